"""Models with a single latent state, without hierarchy (Table 3a)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from pyro_gram.inference.contract import ModelTraits
from pyro_gram.networks.core import CoreConfig, LatentState, make_stack
from pyro_gram.registry import MODELS

from .gram import GRAM, GRAMConfig


class FlatCore(nn.Module):
    """Apply ``h = f(h + e_x)`` ``low_steps`` times; l stays as it is."""

    def __init__(self, config: CoreConfig, length: int) -> None:
        super().__init__()
        self.steps = config.low_steps
        self.f = make_stack(config.mixer, config.layers, length, config.width, config.heads, config.hidden)

    def forward(self, state: LatentState, e_x: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
        h, l = state
        for _ in range(self.steps):
            h = self.f(h + e_x, bias)
        return h, l


@dataclass(frozen=True)
class FlatConfig(GRAMConfig):
    """GRAM's config, with other defaults.

    Attributes:
        low_steps: applications of f between two draws of guidance.
    """

    low_steps: int = 1


@MODELS.register("flat")
class Flat(GRAM):
    """GRAM with one latent state and one network."""

    Config = FlatConfig
    Core = FlatCore


@dataclass(frozen=True)
class LoopedConfig(FlatConfig):
    """GRAM's config, with other defaults.

    Attributes:
        transitions: number of loops; the gradient goes through all of them.
    """

    transitions: int = 8
    truncated: bool = False


@MODELS.register("looped")
class Looped(GRAM):
    """The Looped Transformer: one stack of layers, applied repeatedly and supervised at the end only.

    With a prior other than ``none``, this model is the row "+ guidance" of Table 3a. Each transition then has a KL
    (Eq. 13).
    """

    Config = LoopedConfig
    Core = FlatCore
    traits = ModelTraits(
        is_one_step=True,
        default_parts={"prior": "none", "guide": "prior"},
        default_settings={"model": {"transitions": LoopedConfig.transitions, "truncated": False, "low_steps": 1}},
    )
