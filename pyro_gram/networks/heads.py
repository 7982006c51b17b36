"""Heads that turn a state into the parameters of a distribution."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, softplus

from pyro_gram.networks.layers import RMSNorm, SwiGLU, init_linear_, make_stack

SCALE_FLOOR = 1e-3  # keeps log sigma and the KL finite in float32


class GaussianHead(nn.Module):
    """A SwiGLU MLP per position onto the mean and scale of a diagonal Gaussian over ``[L, D]`` (Appendix B.1).

    The last layer starts at zero, so that every site begins as N(0, initial_scale^2), under prior and guide alike:
    the KL starts at 0 and grows only where the guide has something to say.

    Shapes: ``[..., L, width] -> (loc, scale)``, each ``[..., L, out]``, scale > 0; without ``mean`` or without
    ``scale`` only the other.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        out: int,
        initial_scale: float = 0.1,
        *,
        mean: bool = True,
        scale: bool = True,
    ) -> None:
        super().__init__()
        self.mean, self.scale = mean, scale
        self.mlp = SwiGLU(width, hidden, (mean + scale) * out)
        nn.init.zeros_(self.mlp.down.weight)
        self.shift = math.log(math.expm1(initial_scale - SCALE_FLOOR))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        *loc, raw = self.mlp(x).chunk(self.mean + self.scale, dim=-1)
        return (*loc, softplus(raw + self.shift) + SCALE_FLOOR if self.scale else raw)


class VerdictHead(nn.Module):
    """What a state says of its own answer: is it right (halt), and will the trajectory's last one be (value)?

    The paper's heads are linear in the first position of h; there is no such position without puzzle tokens, and
    whether an answer is right is a matter of all its parts. Attention over ``[h, e_x, probabilities of the answer]``,
    then the mean and the maximum over positions.

    Shapes: h and e_x ``[..., L, D]``, probabilities ``[..., L_out, classes]`` to two logits ``[...]`` each.
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
        seen = self.state(torch.cat((self.norm(h), self.norm(e_x.expand_as(h))), dim=-1))
        said = self.answer(probabilities)  # the answer stands at the last positions
        mixed = self.mix(seen + pad(said, (0, 0, seen.shape[-2] - said.shape[-2], 0)))
        halt, value = self.out(torch.cat((mixed.mean(-2), mixed.amax(-2)), dim=-1)).unbind(-1)
        return halt, value


class CodeHead(nn.Module):
    """A SwiGLU MLP per position onto logits of categorical codes, all equal before training.

    Shapes: ``[..., L, width] -> ([..., L, groups, classes],)``.
    """

    def __init__(self, width: int, hidden: int, groups: int, classes: int) -> None:
        super().__init__()
        self.shape = (groups, classes)
        self.mlp = SwiGLU(width, hidden, groups * classes)
        nn.init.zeros_(self.mlp.down.weight)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.mlp(x).unflatten(-1, self.shape),)
