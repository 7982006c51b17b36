r"""Priors of the stochastic guidance, :math:`p_\theta(\epsilon_t \mid u_t)` (Eq. 8).

A prior is a module from u ``[..., L, D]`` to a distribution with batch shape ``[...]`` and event shape ``[L, D]``.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyro.distributions as dist
from torch import Tensor, nn

from pyro_gram.checks import AT_LEAST_1, check_range
from pyro_gram.networks.heads import GaussianHead
from pyro_gram.registry import PRIORS


@dataclass(frozen=True)
class GaussianPriorConfig:
    """``hidden``: width of the SwiGLU; ``initial_scale``: sigma of every channel before training."""

    hidden: int = 512
    initial_scale: float = 0.1

    def __post_init__(self) -> None:
        check_range(self, hidden=AT_LEAST_1, initial_scale=(0.01, 10))


@PRIORS.register("gaussian")
class GaussianPrior(nn.Module):
    r"""The paper's: a diagonal Gaussian :math:`N(\mu_\theta(u), \sigma_\theta(u)^2 I)` per position and channel."""

    Config = GaussianPriorConfig

    def __init__(self, config: GaussianPriorConfig, width: int) -> None:
        super().__init__()
        self.head = GaussianHead(width, config.hidden, width, config.initial_scale)

    def forward(self, u: Tensor) -> dist.TorchDistribution:
        return dist.Normal(*self.head(u)).to_event(2)
