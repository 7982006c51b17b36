"""Priors with heavier tails, several modes, or correlated positions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints, register_kl

from pyro_gram.checks import AT_LEAST_1, check_range
from pyro_gram.inference.contract import PriorTraits
from pyro_gram.networks.core import GaussianHead, SwiGLU
from pyro_gram.registry import PRIORS

from .gaussian import GaussianPriorConfig


@dataclass(frozen=True)
class StudentTPriorConfig(GaussianPriorConfig):
    """The settings of the Gaussian prior, and how heavy the tails are.

    Attributes:
        degrees_of_freedom: degrees of freedom, above 2 for a finite variance.
    """

    degrees_of_freedom: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, degrees_of_freedom=(2 + 1e-6, 1e6))


@PRIORS.register("student_t")
class StudentTPrior(nn.Module):
    """A Student-t distribution at each position and channel: some draws are very large. Its guides are Gaussian."""

    Config = StudentTPriorConfig

    def __init__(self, config: StudentTPriorConfig, width: int) -> None:
        super().__init__()
        self.degrees_of_freedom = config.degrees_of_freedom
        self.head = GaussianHead(width, config.hidden, width, config.initial_scale)

    def forward(self, u: Tensor) -> dist.TorchDistribution:
        return dist.StudentT(self.degrees_of_freedom, *self.head(u)).to_event(2)


@dataclass(frozen=True)
class MixturePriorConfig(GaussianPriorConfig):
    """The settings of the Gaussian prior, and the number of modes.

    Attributes:
        components: Gaussians in the mixture.
    """

    components: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, components=AT_LEAST_1)


@PRIORS.register("mixture")
class MixturePrior(nn.Module):
    """A mixture of diagonal Gaussians over ``[L, D]``: all positions are in the same component.

    Its guides are Gaussian, because a posterior is expected to lie within one component.
    """

    Config = MixturePriorConfig
    traits = PriorTraits(has_rsample=False)

    def __init__(self, config: MixturePriorConfig, width: int) -> None:
        super().__init__()
        self.components = config.components
        self.head = GaussianHead(width, config.hidden, config.components * width, config.initial_scale)
        self.weights = SwiGLU(width, config.hidden, config.components)
        # Components that are equal at the start would stay equal.
        self.offset = nn.Parameter(config.initial_scale * torch.randn(config.components, 1, width))

    def forward(self, u: Tensor) -> dist.TorchDistribution:
        loc, scale = (t.unflatten(-1, (self.components, -1)).movedim(-2, -3) for t in self.head(u))  # [..., K, L, D]
        choice = dist.Categorical(logits=self.weights(u.mean(-2)))
        return dist.MixtureSameFamily(choice, dist.Normal(loc + self.offset, scale).to_event(2))


class LowRankNormal(dist.TorchDistribution):
    """A Gaussian over ``[L, D]`` with covariance ``diag(scale^2) + F F^T``.

    Args:
        loc, scale: ``[..., L, D]``.
        factor: F, ``[..., L, D, rank]``.
    """

    arg_constraints = {  # noqa: RUF012 (torch's own convention)
        "loc": constraints.real,
        "factor": constraints.real,
        "scale": constraints.positive,
    }
    has_rsample = True
    support = constraints.independent(constraints.real, 2)

    def __init__(self, loc: Tensor, factor: Tensor, scale: Tensor, validate_args: Any = None) -> None:
        self.loc, self.factor, self.scale = loc, factor, scale
        super().__init__(loc.shape[:-2], loc.shape[-2:], validate_args=validate_args)

    @cached_property
    def flat_normal(self) -> dist.LowRankMultivariateNormal:
        """The same distribution over vectors ``[L * D]``. Draws and densities use it; the KL does not."""
        return dist.LowRankMultivariateNormal(
            self.loc.flatten(-2), self.factor.flatten(-3, -2), self.scale.flatten(-2).square(), validate_args=False
        )

    def expand(self, batch_shape: Any, _instance: Any = None) -> LowRankNormal:
        def expand(t: Tensor, event: int) -> Tensor:
            return t.expand(*batch_shape, *t.shape[-event:])

        return LowRankNormal(expand(self.loc, 2), expand(self.factor, 3), expand(self.scale, 2))

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        return self.flat_normal.rsample(sample_shape).unflatten(-1, self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.flat_normal.log_prob(value.flatten(-2))

    @property
    def mean(self) -> Tensor:
        return self.loc


@register_kl(torch.distributions.Independent, LowRankNormal)
def _kl_diagonal_low_rank(q: Any, p: LowRankNormal) -> Tensor:
    """Compute the KL in closed form by Woodbury's identity: only a ``[rank, rank]`` matrix is factorized."""
    if not isinstance(q.base_dist, torch.distributions.Normal):
        raise NotImplementedError
    variance = p.scale.flatten(-2).square()
    scaled_factor = p.factor.flatten(-3, -2) / variance[..., None]  # D^-1 F, [..., LD, rank]
    ratio = q.base_dist.scale.flatten(-2).square() / variance
    capacitance = (
        torch.eye(scaled_factor.shape[-1], device=scaled_factor.device) + p.factor.flatten(-3, -2).mT @ scaled_factor
    )
    root = torch.linalg.cholesky(capacitance)
    shift = (p.loc - q.base_dist.loc).flatten(-2)
    projected_scale = torch.linalg.solve_triangular(
        root, (scaled_factor * q.base_dist.scale.flatten(-2)[..., None]).mT, upper=False
    )
    projected_shift = torch.linalg.solve_triangular(root, (scaled_factor.mT @ shift[..., None]), upper=False)
    trace = ratio.sum(-1) - projected_scale.square().sum((-1, -2))
    distance = (shift.square() / variance).sum(-1) - projected_shift.square().sum((-1, -2))
    log_determinant = 2 * root.diagonal(dim1=-1, dim2=-2).log().sum(-1) - ratio.log().sum(-1)
    return 0.5 * (trace + distance + log_determinant - ratio.shape[-1])


@dataclass(frozen=True)
class LowRankPriorConfig(GaussianPriorConfig):
    """The settings of the Gaussian prior, and the rank of the covariance.

    Attributes:
        rank: rank of the covariance between positions.
    """

    rank: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, rank=AT_LEAST_1)


@PRIORS.register("low_rank")
class LowRankPrior(nn.Module):
    """A Gaussian with correlations between positions and channels."""

    Config = LowRankPriorConfig

    def __init__(self, config: LowRankPriorConfig, width: int) -> None:
        super().__init__()
        self.rank = config.rank
        self.head = GaussianHead(width, config.hidden, width, config.initial_scale)
        self.directions = SwiGLU(width, config.hidden, config.rank * width)
        with torch.no_grad():  # F starts small but not at zero: at zero it would get no gradient
            self.directions.down.weight.mul_(config.initial_scale / math.sqrt(config.rank))

    def forward(self, u: Tensor) -> dist.TorchDistribution:
        loc, scale = self.head(u)
        return LowRankNormal(loc, self.directions(u).unflatten(-1, (-1, self.rank)), scale)
