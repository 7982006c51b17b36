"""A prior with heavy tails: p(eps | u) is a Cauchy distribution."""

from dataclasses import dataclass

import pyro.distributions as dist
from torch import Tensor, nn

from pyro_gram.networks.core import GaussianHead


@dataclass(frozen=True)
class CauchyPriorConfig:
    hidden: int = 512


class CauchyPrior(nn.Module):
    Config = CauchyPriorConfig

    def __init__(self, config: CauchyPriorConfig, width: int) -> None:
        super().__init__()
        self.head = GaussianHead(width, config.hidden, width)

    def forward(self, u: Tensor) -> dist.TorchDistribution:
        loc, scale = self.head(u)
        return dist.Cauchy(loc, scale).to_event(2)
