"""The prior of a lattice: which tokens of the answer are decided in a transition, and their values."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from pyro_gram.checks import AT_LEAST_0, check_range
from pyro_gram.inference.contract import PriorTraits
from pyro_gram.inference.decisions import Decisions
from pyro_gram.registry import PRIORS


@dataclass(frozen=True)
class DecisionsConfig:
    """In which order tokens are decided, and how many at once.

    Attributes:
        certainty: a token is decided at once if one of its values has a higher probability than this; 1: never.
        order: temperature of the choice of one more token: 0 takes the most certain one (least entropy); a large
            value takes all alike, which gives the most even answers.
        count: number of tokens that are decided besides, on average; 0 for one of each 64 tokens of the answer, but at
            least one.
    """

    certainty: float = 0.9995
    order: float = 100.0
    count: int = 0

    def __post_init__(self) -> None:
        check_range(self, certainty=(0.5, 1.0), order=AT_LEAST_0, count=AT_LEAST_0)

    def count_for(self, tokens: int) -> int:
        """Return ``count`` for an answer with this number of tokens."""
        return self.count or max(1, round(tokens / 64))


@PRIORS.register("decisions")
class DecisionsPrior(nn.Module):
    """Turn logits u_t of the open values into the decisions of transition t. It has no parameters."""

    Config = DecisionsConfig
    traits = PriorTraits(guidance="decisions", has_rsample=False)

    def __init__(self, config: DecisionsConfig, width: int) -> None:
        super().__init__()
        self.config = config

    def forward(self, u: Tensor) -> Decisions:
        config = self.config
        return Decisions(u, config.certainty, config.order, config.count_for(u.shape[-2]))
