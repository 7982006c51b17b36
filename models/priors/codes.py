"""Discrete guidance: DreamerV2's categorical codes."""

from __future__ import annotations

from dataclasses import dataclass

import pyro.distributions as dist
from torch import Tensor, nn

from pyro_gram.checks import AT_LEAST_0, AT_LEAST_1, FRACTION, check_range
from pyro_gram.inference.contract import PriorTraits
from pyro_gram.inference.families import CodeFamily
from pyro_gram.networks.core import init_linear_
from pyro_gram.registry import PRIORS


@dataclass(frozen=True)
class DiscretePriorConfig:
    """Sizes of the codes, and the kind of their gradient.

    Attributes:
        hidden: width of the SwiGLU.
        groups: codes at each position.
        classes: values of a code.
        temperature: temperature of relaxed draws in training (Gumbel-softmax); 0 for straight-through gradients.
        uniform_mix: share of the probability that is spread evenly over a code's values.
    """

    hidden: int = 512
    groups: int = 8
    classes: int = 8
    temperature: float = 0.0
    uniform_mix: float = 0.01

    def __post_init__(self) -> None:
        check_range(
            self,
            hidden=AT_LEAST_1,
            groups=AT_LEAST_1,
            classes=(2, 1 << 16),
            temperature=AT_LEAST_0,
            uniform_mix=FRACTION,
        )


@PRIORS.register("discrete")
class DiscretePrior(nn.Module):
    """Categorical codes at each position, embedded as vectors of u's width. Rollouts always draw one-hot codes."""

    Config = DiscretePriorConfig

    def __init__(self, config: DiscretePriorConfig, width: int) -> None:
        super().__init__()
        self.codes = CodeFamily(config.groups, config.classes, config.temperature, config.uniform_mix)
        self.traits = PriorTraits(family=self.codes)
        self.head = self.codes.head(width, config.hidden, width, 1.0)
        self.embedding = init_linear_(nn.Linear(config.groups * config.classes, width, bias=False))

    def forward(self, u: Tensor) -> dist.TorchDistribution:
        return self.codes.distribution(*self.head(u))

    def embed_guidance(self, eps: Tensor) -> Tensor:
        return self.embedding(eps)
