"""HRM and TRM: deterministic recursions that learn when to stop (Wang et al., 2025; Jolicoeur-Martineau, 2025).

Both are GRAM's program with other cores, no guidance (prior ``none``), and halting of their own: with ``train.act`` a
trajectory keeps its place in the batch until it halts, as in their code.

Where their papers and their code differ, and what is done here:

- *Carry.* Their papers draw a fresh batch for N_sup steps. Their code loads a batch at each update, which only the
  places of halted trajectories take. Done: the code's way (``train.act``).
- *Exploration.* One in ten trajectories must make a random number of steps of at least 2. HRM draws that once, the code
  at every step anew. Done: the code's way.
- *Loss.* Softmax cross-entropy, where their code has stablemax; the halting loss weighs half as much as the mean
  cross-entropy of a position, as in their code.
- *HRM's target of going on* is the best value of the next step; at the last allowed step the code takes the value of
  halting there. The program does not know which step is its last and always takes the best. TRM leaves that loss out.
- *In evaluation* both run all supervision steps, as their code does.
- Weights: HRM has two networks of 4 layers and TRM one of 2; sizes are the user's here (``model.layers``).
- They read the halting head off the first position. So it is done here; there are puzzle tokens at it only with a
  ``prefix``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro import poutine
from torch import Tensor, nn

from pyro_gram.checks import check_choice
from pyro_gram.inference.contract import ModelTraits
from pyro_gram.inference.sites import DRAW_ANSWER, HALT, HALTED, LOSS_ONLY, add_training_loss
from pyro_gram.networks.core import CoreConfig, LatentState, RecursiveCore
from pyro_gram.networks.layers import make_stack
from pyro_gram.registry import MODELS

from .gram import GRAM, GRAMConfig

WEIGHT = 0.5  # of the halting loss beside the mean cross-entropy of a position
ANSWERS, STARTS = ("mode", "sampled"), ("fixed", "random")


class OneStepCore(RecursiveCore):
    """HRM's: of a transition's low-level steps only the last carries gradient (its one-step approximation)."""

    def forward(self, state: LatentState, e_x: Tensor) -> tuple[Tensor, Tensor]:
        h, l = state
        injected = h + e_x
        with torch.no_grad():
            for _ in range(self.low_steps - 1):
                l = self.f_L(l + injected)
        l = self.f_L(l + injected)
        return self.f_H(h + l), l


class SharedCore(nn.Module):
    """TRM's: one network is both f_L and f_H."""

    def __init__(self, config: CoreConfig, length: int) -> None:
        super().__init__()
        self.low_steps = config.low_steps
        self.f = make_stack(config.mixer, config.layers, length, config.width, config.heads, config.hidden)

    def forward(self, state: LatentState, e_x: Tensor) -> tuple[Tensor, Tensor]:
        h, l = state
        injected = h + e_x
        for _ in range(self.low_steps):
            l = self.f(l + injected)
        return self.f(h + l), l


class _Halting(GRAM):
    """What HRM and TRM share: a head that is trained along with the rest, and its gradient into the core."""

    traits = ModelTraits(
        default_parts={"prior": "none", "guide": "prior"},
        default_settings={
            "train": {"supervision_steps": 16, "act": True, "on_policy_depth": 0},
            "evaluate": {"depth": 16},
        },
    )
    outputs = 1

    def __init__(self, config: Any, spec: Any, prior: nn.Module) -> None:
        super().__init__(config, spec, prior)
        self.halting = nn.Linear(config.width, self.outputs)
        nn.init.zeros_(self.halting.weight)
        nn.init.constant_(self.halting.bias, -5.0)

    def answer(self, state: LatentState, e_x: Tensor, y: Tensor | None, infer: dict | None = None) -> Tensor:
        if y is not None:
            self.learn_to_halt(state, e_x, y)
        return super().answer(state, e_x, y, infer)

    def learn_to_halt(self, state: LatentState, e_x: Tensor, y: Tensor) -> None:
        """The observed site ``halt`` ("the answer is right now") and the site ``halted``."""
        logits = self.halting(state.h[..., 0, :])
        right = (self.likelihood(state.h).base_dist.logits.argmax(-1) == y).all(-1)
        with poutine.scale(scale=WEIGHT * self.spec.output_length):
            pyro.sample(
                HALT,
                dist.Bernoulli(logits=logits[..., 0]),
                obs=right.to(logits.dtype).expand(logits.shape[:-1]),
                infer={LOSS_ONLY: True},
            )
            self.learn_to_go_on(logits, state, e_x)
        threshold = logits[..., 1] if self.outputs > 1 else torch.zeros_like(logits[..., 0])
        pyro.deterministic(HALTED, logits[..., 0] > threshold)

    def learn_to_go_on(self, logits: Tensor, state: LatentState, e_x: Tensor) -> None:
        """What HRM adds."""


@dataclass(frozen=True)
class HRMConfig(GRAMConfig):
    """As GRAM's.

    Attributes:
        low_steps: low-level cycles in each high-level one (2 in the paper).
        transitions: high-level cycles (2 in the paper).
    """

    low_steps: int = 2
    transitions: int = 2


@MODELS.register("hrm")
class HRM(_Halting):
    """The Hierarchical Reasoning Model: two networks, one-step gradients, Q-learning of when to halt."""

    Config = HRMConfig
    Core = OneStepCore
    outputs = 2

    def learn_to_go_on(self, logits: Tensor, state: LatentState, e_x: Tensor) -> None:
        with torch.no_grad(), poutine.block():
            following = self.reason(e_x, state.detach(), truncated=True)
            target = self.halting(following.h[..., 0, :]).amax(-1).sigmoid()
        loss = F.binary_cross_entropy_with_logits(logits[..., 1], target, reduction="none")
        add_training_loss("go_on", loss)


@dataclass(frozen=True)
class TRMConfig(GRAMConfig):
    """Sizes, and the two naive ways to make TRM stochastic (Table 3b).

    Attributes:
        decoding: what a roll-out answers: the decoder's ``mode``, or a draw from it (``sampled``).
        initial_state: z_0 is ``fixed``, or drawn anew for every trajectory (``random``), in training as well.
    """

    low_steps: int = 6
    decoding: str = "mode"
    initial_state: str = "fixed"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("decoding", self.decoding, ANSWERS)
        check_choice("initial_state", self.initial_state, STARTS)


@MODELS.register("trm")
class TRM(_Halting):
    """The Tiny Recursive Model: one network, gradient through the last whole transition, halting by a binary head."""

    Config = TRMConfig
    Core = SharedCore
    config: TRMConfig

    def initial_state(self, e_x: Tensor) -> LatentState:
        if self.config.initial_state == "fixed":
            return super().initial_state(e_x)
        plain = dist.Normal(torch.zeros_like(self.h0), 1.0).to_event(2)
        state = LatentState(pyro.sample("z0_h", plain), pyro.sample("z0_l", plain))
        return LatentState(*(part.expand(torch.broadcast_shapes(part.shape, e_x.shape)) for part in state))

    def answer(self, state: LatentState, e_x: Tensor, y: Tensor | None, infer: dict | None = None) -> Tensor:
        return super().answer(state, e_x, y, {DRAW_ANSWER: True} if self.config.decoding == "sampled" else infer)
