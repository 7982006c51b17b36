"""The prior of a lattice: which positions of the answer are decided in a transition, and their values."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from pyro_gram.checks import AT_LEAST_0, AT_LEAST_1, check_range
from pyro_gram.inference.contract import PriorTraits
from pyro_gram.inference.decisions import Decisions
from pyro_gram.registry import PRIORS


@dataclass(frozen=True)
class DecisionsConfig:
    """In which order positions are decided, and how many at once.

    Attributes:
        certainty: a position is decided at once if one of its values has a higher probability than this; 1: never.
        order: temperature of the choice of one more position: 0 takes the most certain one (least entropy); a large
            value takes all alike, which gives the most even answers.
        count: number of positions that are decided besides, on average.
    """

    certainty: float = 0.9995
    order: float = 100.0
    count: int = 1

    def __post_init__(self) -> None:
        check_range(self, certainty=(0.5, 1.0), order=AT_LEAST_0, count=AT_LEAST_1)


@PRIORS.register("decisions")
class DecisionsPrior(nn.Module):
    """Turn logits u_t of the open values into the decisions of transition t. It has no parameters."""

    Config = DecisionsConfig
    traits = PriorTraits(guidance="decisions", has_rsample=False)

    def __init__(self, config: DecisionsConfig, width: int) -> None:
        super().__init__()
        self.config = config

    def forward(self, u: Tensor) -> Decisions:
        return Decisions(u, self.config.certainty, self.config.order, self.config.count)
