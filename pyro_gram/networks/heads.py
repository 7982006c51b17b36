"""Heads that turn a state into the parameters of a distribution."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn.functional import softplus

from pyro_gram.networks.layers import SwiGLU

SCALE_FLOOR = 1e-3  # keeps log sigma and the KL finite in float32


class GaussianHead(nn.Module):
    """A SwiGLU MLP per position onto the mean and scale of a diagonal Gaussian over ``[L, D]`` (Appendix B.1).

    The last layer starts at zero, so that every site begins as N(0, initial_scale^2), under prior and guide alike:
    the KL starts at 0 and grows only where the guide has something to say.

    Shapes: ``[..., L, width] -> (loc, scale)``, each ``[..., L, out]``, scale > 0.
    """

    def __init__(self, width: int, hidden: int, out: int, initial_scale: float = 0.1) -> None:
        super().__init__()
        self.mlp = SwiGLU(width, hidden, 2 * out)
        nn.init.zeros_(self.mlp.down.weight)
        self.shift = math.log(math.expm1(initial_scale - SCALE_FLOOR))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        loc, raw = self.mlp(x).chunk(2, dim=-1)
        return loc, softplus(raw + self.shift) + SCALE_FLOOR
