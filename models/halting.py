"""HRM and TRM: deterministic recursions that learn when to halt (Wang et al., 2025; Jolicoeur-Martineau, 2025).

Both are GRAM with another core, without guidance (prior ``none``), and with a halting head that is trained together
with the rest. With ``train.act`` a trajectory keeps its place in the batch until it halts, as in the authors' code.

The papers, the authors' code and this file differ in these points:

- *Carry.* In the papers a batch stays for N_sup steps. In the code each update loads a batch, and
  the inputs of this batch replace those of halted trajectories. Here: as in the code (``train.act``).
- *Exploration.* One in ten trajectories must take a random number of steps, at least 2. The HRM paper draws this
  number once for a trajectory; the code draws it again at each step. Here: as in the code.
- *Loss.* Here the cross-entropy uses the softmax; the code uses stablemax. The halting loss has half the weight of the
  mean cross-entropy of a position, as in the code.
- *HRM's target for continuing* is the larger of the next step's two values (halting, continuing). At the last step
  the code uses the value of halting. Here the larger value is always used, because the model does not know which
  step is the last. TRM omits this loss.
- *Evaluation* runs all supervision steps, as in the code.
- *Sizes.* HRM has two networks of 4 layers, TRM one network of 2 layers. Here ``model.layers`` sets the number.
- *Head.* The halting head reads the first position, as in the code. This is a puzzle token only with a ``prefix``.
  With ``mixer = relations`` no position is the first one, and the head reads the mean over positions.
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
from pyro_gram.networks.core import CoreConfig, LatentState, RecursiveCore, make_stack
from pyro_gram.networks.relations import mean_over
from pyro_gram.registry import MODELS

from .gram import GRAM, GRAMConfig

HALT_WEIGHT = 0.5  # weight of the halting loss, relative to the mean cross-entropy of a position
DECODINGS, INITIAL_STATES = ("mode", "sampled"), ("fixed", "random")


class OneStepCore(RecursiveCore):
    """HRM's core: only the last low-level step of a transition has a gradient (the one-step approximation)."""

    def forward(self, state: LatentState, e_x: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
        h, l = state
        injection = h + e_x
        with torch.no_grad():
            for _ in range(self.low_steps - 1):
                l = self.f_L(l + injection, bias)
        l = self.f_L(l + injection, bias)
        return self.f_H(h + l, bias), l


class SharedCore(nn.Module):
    """TRM's core: one network is both f_L and f_H."""

    def __init__(self, config: CoreConfig, length: int) -> None:
        super().__init__()
        self.low_steps = config.low_steps
        self.f = make_stack(config.mixer, config.layers, length, config.width, config.heads, config.hidden)

    def forward(self, state: LatentState, e_x: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
        h, l = state
        injection = h + e_x
        for _ in range(self.low_steps):
            l = self.f(l + injection, bias)
        return self.f(h + l, bias), l


class _Halting(GRAM):
    """Base class of HRM and TRM: GRAM with a halting head that is trained with the core."""

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
        """Observe at ``halt`` whether the present answer is right; record at ``halted`` which trajectories halt."""
        logits = self.halt_logits(state.h)
        is_right = (self.likelihood(state.h).base_dist.logits.argmax(-1) == y).all(-1)
        with poutine.scale(scale=HALT_WEIGHT * self.answer_mask(e_x).sum(-1)):
            pyro.sample(
                HALT,
                dist.Bernoulli(logits=logits[..., 0]),
                obs=is_right.to(logits.dtype).expand(logits.shape[:-1]),
                infer={LOSS_ONLY: True},
            )
            self.learn_to_continue(logits, state, e_x)
        threshold = logits[..., 1] if self.outputs > 1 else torch.zeros_like(logits[..., 0])
        pyro.deterministic(HALTED, logits[..., 0] > threshold)

    def halt_logits(self, h: Tensor) -> Tensor:
        """Return the outputs of the halting head, ``[..., L, D] -> [..., outputs]``."""
        return self.halting(mean_over(h, self.mask) if self.has_relations else h[..., 0, :])

    def learn_to_continue(self, logits: Tensor, state: LatentState, e_x: Tensor) -> None:
        """Add the loss of HRM's estimate of the value of continuing; TRM has no such loss."""


@dataclass(frozen=True)
class HRMConfig(GRAMConfig):
    """GRAM's config, with other defaults.

    Attributes:
        low_steps: low-level cycles in each high-level cycle (2 in the paper).
        transitions: high-level cycles (2 in the paper).
    """

    low_steps: int = 2
    transitions: int = 2


@MODELS.register("hrm")
class HRM(_Halting):
    """The Hierarchical Reasoning Model: two networks, one-step gradients, halting by Q-learning."""

    Config = HRMConfig
    Core = OneStepCore
    outputs = 2

    def learn_to_continue(self, logits: Tensor, state: LatentState, e_x: Tensor) -> None:
        with torch.no_grad(), poutine.block():
            next_state = self.reason(e_x, state.detach(), truncated=True)
            target = self.halt_logits(next_state.h).amax(-1).sigmoid()
        loss = F.binary_cross_entropy_with_logits(logits[..., 1], target, reduction="none")
        add_training_loss("go_on", loss)


@dataclass(frozen=True)
class TRMConfig(GRAMConfig):
    """Sizes, and the two naive ways to make TRM stochastic (Table 3b).

    Attributes:
        decoding: how a rollout answers: with the ``mode`` of p(y | h_T), or with a draw from it (``sampled``).
        initial_state: z_0 is ``fixed``, or drawn for each trajectory (``random``), also in training.
    """

    low_steps: int = 6
    decoding: str = "mode"
    initial_state: str = "fixed"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("decoding", self.decoding, DECODINGS)
        check_choice("initial_state", self.initial_state, INITIAL_STATES)


@MODELS.register("trm")
class TRM(_Halting):
    """The Tiny Recursive Model: one network, a gradient through the last transition, halting by a binary head."""

    Config = TRMConfig
    Core = SharedCore
    config: TRMConfig

    def initial_state(self, e_x: Tensor) -> LatentState:
        if self.config.initial_state == "fixed":
            return super().initial_state(e_x)
        standard_normal = dist.Normal(e_x.new_zeros(e_x.shape[-2:]), 1.0).to_event(2)
        state = LatentState(pyro.sample("z0_h", standard_normal), pyro.sample("z0_l", standard_normal))
        return LatentState(*(part.expand(torch.broadcast_shapes(part.shape, e_x.shape)) for part in state))

    def answer(self, state: LatentState, e_x: Tensor, y: Tensor | None, infer: dict | None = None) -> Tensor:
        return super().answer(state, e_x, y, {DRAW_ANSWER: True} if self.config.decoding == "sampled" else infer)
