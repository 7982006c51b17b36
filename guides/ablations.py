"""Guides for ablations: y enters the posterior in other ways than in the amortized guide, or not at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
from torch import Tensor

from pyro_gram.inference.guide import PriorGuide
from pyro_gram.networks.relations import mean_over
from pyro_gram.registry import GUIDES
from pyro_gram.spec import TaskSpec

from .amortized import AmortizedGuide, AmortizedGuideConfig, align_answer


@GUIDES.register("additive")
class AdditiveGuide(AmortizedGuide):
    """Add the embedding of y to u_t, instead of concatenating both; the head has half as many inputs."""

    inputs = 1

    def features(self, u: Tensor, code: Tensor) -> Tensor:
        return u + align_answer(code, u)


@dataclass(frozen=True)
class GlobalGuideConfig(AmortizedGuideConfig):
    """The amortized guide's config, with other defaults.

    Attributes:
        layers: attention layers over the embedded answer; with 0 layers the code is the mean of the token embeddings.
    """

    layers: int = 1


@GUIDES.register("global")
class GlobalGuide(AmortizedGuide):
    """Use one code for all of y, the same at each position."""

    Config = GlobalGuideConfig

    def encode(self, x: Tensor | None, y: Tensor) -> Tensor:
        mask = None if x is None or self.structure_of is None else self.structure_of(x).mask
        return mean_over(super().encode(x, y), mask)[..., None, :]

    def features(self, u: Tensor, code: Tensor) -> Tensor:
        return super().features(u, code.expand(*code.shape[:-2], u.shape[-2], -1))


@GUIDES.register("residual")
class ResidualGuide(AmortizedGuide):
    """Compute the posterior's mean (or logits) relative to the prior's."""

    def make_posterior(self, prior: dist.TorchDistribution, parameters: tuple[Tensor, ...]) -> dist.TorchDistribution:
        return self.family.residual(prior, *parameters)


@dataclass(frozen=True)
class NoGuideConfig:
    """This guide has no settings."""


@GUIDES.register("prior")
class NoGuide(PriorGuide):
    """A guide without inference network: trajectories of the prior are trained to end in y, and each KL is 0."""

    Config = NoGuideConfig

    def __init__(self, config: NoGuideConfig, spec: TaskSpec, model: Any, width: int) -> None:
        super().__init__(model)
