"""Other ways in which y may enter the guide, each a few lines away from the default."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
from torch import Tensor

from pyro_gram.inference.guide import PriorGuide
from pyro_gram.registry import GUIDES
from pyro_gram.spec import TaskSpec

from .amortized import AmortizedGuide, AmortizedGuideConfig, align_answer


@GUIDES.register("additive")
class AdditiveGuide(AmortizedGuide):
    """The embedding of y is added to u_t, not put beside it: half the head, and no room of its own for y."""

    inputs = 1

    def features(self, u: Tensor, code: Tensor) -> Tensor:
        return u + align_answer(code, u)


@dataclass(frozen=True)
class GlobalGuideConfig(AmortizedGuideConfig):
    """As the amortized guide's.

    Attributes:
        layers: attention layers over the embedded answer; with none the code is a bag of answers, without their places.
    """

    layers: int = 1


@GUIDES.register("global")
class GlobalGuide(AmortizedGuide):
    """One code for all of y, the same at every position: none can be told its own answer and no more."""

    Config = GlobalGuideConfig

    def encode(self, x: Tensor | None, y: Tensor) -> Tensor:
        return super().encode(x, y).mean(-2, keepdim=True)

    def features(self, u: Tensor, code: Tensor) -> Tensor:
        return super().features(u, code.expand(*code.shape[:-2], u.shape[-2], -1))


@GUIDES.register("residual")
class ResidualGuide(AmortizedGuide):
    """Around the prior: its head says how far from the prior's mean (or logits) the posterior lies."""

    def make_posterior(self, prior: dist.TorchDistribution, parameters: tuple[Tensor, ...]) -> dist.TorchDistribution:
        return self.family.residual(prior, *parameters)


@dataclass(frozen=True)
class NoGuideConfig:
    """There is nothing to set."""


@GUIDES.register("prior")
class NoGuide(PriorGuide):
    """No inference network: trajectories of the prior are trained to end in y, and every KL is 0."""

    Config = NoGuideConfig

    def __init__(self, config: NoGuideConfig, spec: TaskSpec, model: Any, width: int) -> None:
        super().__init__(model)
