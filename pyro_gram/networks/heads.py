"""The halt head and the value head, which judge the answer that a state decodes to."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from pyro_gram.networks.core import RMSNorm, init_linear_, make_stack


class HaltValueHead(nn.Module):
    """Predict whether a state's answer is right (halt), and whether the trajectory's last answer will be right (value).

    The paper's heads read only the first position of h, a puzzle token. Without puzzle tokens the first position is
    only a part of the puzzle, but all positions decide whether an answer is right. The heads here attend over all of
    ``[h, e_x, probabilities of the answer]``, then take the mean and the maximum over positions.

    Shapes: h and e_x ``[..., L, D]``, probabilities ``[..., L_out, classes]``. The result is two logits ``[...]``.
    """

    def __init__(self, length: int, width: int, classes: int, hidden: int, layers: int, heads: int) -> None:
        super().__init__()
        self.norm = RMSNorm()
        self.state = init_linear_(nn.Linear(2 * width, hidden))
        self.answer = init_linear_(nn.Linear(classes, hidden, bias=False))
        self.mix = make_stack("attention", layers, length, hidden, heads, hidden)
        self.out = nn.Linear(2 * hidden, 2)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, h: Tensor, e_x: Tensor, probabilities: Tensor) -> tuple[Tensor, Tensor]:
        s = self.state(torch.cat((self.norm(h), self.norm(e_x.expand_as(h))), dim=-1))
        a = self.answer(probabilities)  # the answer stands at the last positions
        s = self.mix(s + pad(a, (0, 0, s.shape[-2] - a.shape[-2], 0)))
        halt, value = self.out(torch.cat((s.mean(-2), s.amax(-2)), dim=-1)).unbind(-1)
        return halt, value
