"""The paper's Gaussian prior, its ablations (Table 3b), a fixed Gaussian, and the prior without guidance."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_gram.checks import AT_LEAST_1, check_range
from pyro_gram.inference.contract import PriorTraits
from pyro_gram.inference.families import MeanFamily, NormalFamily
from pyro_gram.networks.core import GaussianHead
from pyro_gram.registry import PRIORS


@dataclass(frozen=True)
class GaussianPriorConfig:
    """Sizes of the prior.

    Attributes:
        hidden: width of the SwiGLU.
        initial_scale: sigma of every channel before training.
    """

    hidden: int = 512
    initial_scale: float = 0.1

    def __post_init__(self) -> None:
        check_range(self, hidden=AT_LEAST_1, initial_scale=(0.01, 10))


@PRIORS.register("gaussian")
class GaussianPrior(nn.Module):
    r"""The paper's prior: a diagonal Gaussian :math:`N(\mu_\theta(u), \sigma_\theta(u)^2 I)`."""

    Config = GaussianPriorConfig

    def __init__(self, config: GaussianPriorConfig, width: int) -> None:
        super().__init__()
        self.head = GaussianHead(width, config.hidden, width, config.initial_scale)

    def forward(self, u: Tensor) -> dist.TorchDistribution:
        return dist.Normal(*self.head(u)).to_event(2)


@PRIORS.register("noise_only")
class NoiseOnlyPrior(nn.Module):
    r"""The prior :math:`N(0, \sigma_\theta(u)^2 I)`: noise without a learned direction (Table 3b)."""

    Config = GaussianPriorConfig

    def __init__(self, config: GaussianPriorConfig, width: int) -> None:
        super().__init__()
        self.head = GaussianHead(width, config.hidden, width, config.initial_scale, mean=False)

    def forward(self, u: Tensor) -> dist.TorchDistribution:
        (scale,) = self.head(u)
        return dist.Normal(torch.zeros_like(scale), scale).to_event(2)


@PRIORS.register("mean_only")
class MeanOnlyPrior(nn.Module):
    r"""The prior :math:`N(\mu_\theta(u), 0)`: guidance without noise, in prior and guide (Table 3b).

    The KL of two points is 0 or infinite. Training uses the KL of two Gaussians instead, with the points as means and
    ``initial_scale`` as sigma: a squared distance. Bounds with this KL are not reported. Without noise, the guide can
    pass all of y to the core.
    """

    Config = GaussianPriorConfig
    traits = PriorTraits(has_density=False)

    def __init__(self, config: GaussianPriorConfig, width: int) -> None:
        super().__init__()
        self.points = MeanFamily(scale=config.initial_scale)
        self.traits = replace(self.traits, family=self.points)
        self.head = self.points.head(width, config.hidden, width, config.initial_scale)

    def forward(self, u: Tensor) -> dist.TorchDistribution:
        return self.points.distribution(*self.head(u))


@dataclass(frozen=True)
class StandardPriorConfig:
    """The scale of a fixed prior.

    Attributes:
        scale: sigma of every channel.
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        check_range(self, scale=(0.01, 10))


@PRIORS.register("standard")
class StandardPrior(nn.Module):
    """The prior N(0, scale^2 I) of a variational autoencoder. It does not depend on u."""

    Config = StandardPriorConfig

    def __init__(self, config: StandardPriorConfig, width: int) -> None:
        super().__init__()
        self.scale = config.scale
        self.traits = PriorTraits(family=NormalFamily(config.scale))

    def forward(self, u: Tensor) -> dist.TorchDistribution:
        return dist.Normal(torch.zeros_like(u), torch.full_like(u, self.scale)).to_event(2)


@dataclass(frozen=True)
class NoPriorConfig:
    """This prior has no settings."""


@PRIORS.register("none")
class NoPrior(nn.Module):
    """The prior without guidance, eps = 0. With it GRAM is deterministic: TRM's recursion, but with two networks."""

    Config = NoPriorConfig
    traits = PriorTraits(family=None)

    def __init__(self, config: NoPriorConfig, width: int) -> None:
        super().__init__()

    def forward(self, u: Tensor) -> dist.TorchDistribution:
        return dist.Delta(torch.zeros_like(u), event_dim=2)
