"""The halt head and the value head, which judge the answer that a state decodes to."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from pyro_gram.networks.core import RMSNorm, init_linear_, make_stack
from pyro_gram.networks.relations import max_over, mean_over
from pyro_gram.spec import Structure


class HaltValueHead(nn.Module):
    """Predict whether a state's answer is right (halt), and whether the trajectory's last answer will be right (value).

    The paper's heads read only the first position of h, a puzzle token. Without puzzle tokens the first position is
    only a part of the puzzle, but all positions decide whether an answer is right. The heads here attend over all of
    ``[h, e_x, probabilities of the answer]``, then take the mean and the maximum over positions.

    Shapes: h and e_x ``[..., L, D]``, probabilities ``[..., L_out, classes]``. The result is two logits ``[...]``.

    Args:
        length: L.
        width: D.
        classes: values of a token of the answer.
        hidden: width of the heads' own layers.
        layers: number of attention layers.
        heads: attention heads of each layer.
        mixer: ``attention``, or ``relations`` to see the relations of the input.
        has_value_positions: positions are pairs (token, value).
    """

    def __init__(
        self,
        length: int,
        width: int,
        classes: int,
        hidden: int,
        layers: int,
        heads: int,
        mixer: str = "attention",
        has_value_positions: bool = False,
    ) -> None:
        super().__init__()
        self.heads, self.has_value_positions = heads, has_value_positions
        classes = 1 if has_value_positions else classes
        self.norm = RMSNorm()
        self.state = init_linear_(nn.Linear(2 * width, hidden))
        self.answer = init_linear_(nn.Linear(classes, hidden, bias=False))
        self.mix = make_stack(mixer, layers, length, hidden, heads, hidden)
        self.out = nn.Linear(2 * hidden, 2)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(
        self, h: Tensor, e_x: Tensor, probabilities: Tensor, structure: Structure | None = None
    ) -> tuple[Tensor, Tensor]:
        s = self.state(torch.cat((self.norm(h), self.norm(e_x.expand_as(h))), dim=-1))
        if self.has_value_positions:
            probabilities = probabilities.flatten(-2)[..., None]
        a = self.answer(probabilities)  # the answer stands at the last positions
        bias = None if structure is None else structure.attention_bias(self.heads, s.dtype)
        mask = None if structure is None else structure.mask
        s = self.mix(s + pad(a, (0, 0, s.shape[-2] - a.shape[-2], 0)), bias)
        halt, value = self.out(torch.cat((mean_over(s, mask), max_over(s, mask)), dim=-1)).unbind(-1)
        return halt, value
