"""The recursive core: ``f_L`` and ``f_H``, and the deterministic part of a transition (Eq. 6-7)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from pyro_gram.checks import AT_LEAST_1, check_choice, check_range
from pyro_gram.networks.layers import MIXERS, make_stack


class LatentState(NamedTuple):
    """The latent state z = (h, l): a high-level and a low-level part, ``[..., L, D]`` each."""

    h: Tensor
    l: Tensor

    def detach(self) -> LatentState:
        """Return the state without its graph, as one supervision step passes it to the next."""
        return LatentState(self.h.detach(), self.l.detach())


@dataclass(frozen=True)
class CoreConfig:
    """Sizes of the core (Appendix B.1).

    Attributes:
        width: D, channels at each position.
        heads: attention heads of each layer.
        hidden: width of each layer's SwiGLU.
        layers: layers of f_L, and of f_H.
        mixer: how positions are mixed: ``attention``, or ``swiglu`` (over positions; for Sudoku).
        low_steps: K, applications of f_L in a transition.
    """

    width: int = 512
    heads: int = 8
    hidden: int = 512
    layers: int = 2
    mixer: str = "attention"
    low_steps: int = 4

    def __post_init__(self) -> None:
        check_range(self, **dict.fromkeys(("width", "heads", "hidden", "layers", "low_steps"), AT_LEAST_1))
        check_choice("mixer", self.mixer, MIXERS)


class RecursiveCore(nn.Module):
    """Update l K times, then compute the proposal u for h.

    ``l_{t,k} = f_L(l_{t,k-1} + h_{t-1} + e_x)`` for k = 1..K (Eq. 6), ``u_t = f_H(h_{t-1} + l_t)`` (Eq. 7).
    """

    def __init__(self, config: CoreConfig, length: int) -> None:
        super().__init__()
        sizes = (config.mixer, config.layers, length, config.width, config.heads, config.hidden)
        self.low_steps = config.low_steps
        self.f_L = make_stack(*sizes)
        self.f_H = make_stack(*sizes)

    def forward(self, state: LatentState, e_x: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``(u_t, l_t)``. All tensors are ``[..., L, D]``."""
        h, l = state
        injected = h + e_x
        for _ in range(self.low_steps):
            l = self.f_L(l + injected)
        return self.f_H(h + l), l
