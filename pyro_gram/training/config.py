"""Length and recipe of a run."""

from __future__ import annotations

from dataclasses import dataclass

from pyro_gram.checks import AT_LEAST_0, AT_LEAST_1, FRACTION, check_choice, check_range
from pyro_gram.errors import ConfigError
from pyro_gram.inference.elbo import ELBOS
from pyro_gram.training.precision import PRECISIONS


@dataclass(frozen=True)
class TrainConfig:
    """Length and recipe of a run.

    Attributes:
        batches: batches in the run, each of ``supervision_steps`` updates (and, on-policy, ``on_policy_updates`` more);
            0 for as many as the minutes hold.
        minutes: of training; 0 for as many as the batches take. Beside ``batches``, the run measures its speed first
            and trains fewer batches where those would take longer: the clock itself ends nothing.
            Without ``batches`` the run ends after them, and its schedule follows the clock.
        batch: inputs a batch.
        supervision_steps: N_sup, updates of a batch, each of which goes on where the last one ended.
        elbo: the bound: ``balanced`` (its KL trains prior and guide by ``balance``), ``mean_field`` or ``trace``.
        balance: share of the KL's gradient that trains the prior (``balanced`` only).
        particles: draws of the guide an update.
        ema: decay of the running average of the weights, an update; evaluation uses the average.
        augment: apply the task's symmetries to training pairs.
        evaluate_every: batches between two looks at the validation split.
        save_seconds: seconds between two saves of the training state.
        act: halting and carry as HRM and TRM train: a batch is one update, and a trajectory keeps its place until the
            model would halt it or it has made ``supervision_steps``; only then the place takes the new batch's pair.
            For models that halt by themselves.
        on_policy_depth: the deepest supervision step of the prior's own trajectories that is trained too, towards the
            solution that each is heading for; 0 for none. Needs inputs, and all solutions.
        on_policy_updates: how many successive steps of the prior's own trajectories a batch trains, from a random depth
            on.
        on_policy_after: share of the run before on-policy training begins.
        precision: of the matrix products of the core: ``fp32``, ``tf32`` (CUDA) or ``bf16``. On CUDA the others take
            TF32 beside either of the last two; all that is no product is float32.
        compile: compile the core: 20 to 70 seconds at the start, on the CPU with a C++ compiler.
    """

    batches: int = 10_000
    minutes: float = 0.0
    batch: int = 768
    supervision_steps: int = 16
    elbo: str = "balanced"
    balance: float = 0.8
    particles: int = 1
    ema: float = 0.9999
    augment: bool = True
    evaluate_every: int = 500
    save_seconds: float = 60.0
    act: bool = False
    on_policy_depth: int = 0
    on_policy_updates: int = 4
    on_policy_after: float = 0.5
    precision: str = "fp32"
    compile: bool = False

    def __post_init__(self) -> None:
        check_range(
            self,
            batches=AT_LEAST_0,
            batch=AT_LEAST_1,
            supervision_steps=AT_LEAST_1,
            particles=AT_LEAST_1,
            evaluate_every=AT_LEAST_1,
            minutes=AT_LEAST_0,
            save_seconds=AT_LEAST_0,
            on_policy_depth=AT_LEAST_0,
            on_policy_updates=AT_LEAST_1,
            on_policy_after=(0, 1 - 1e-9),
            balance=FRACTION,
            ema=(0, 1 - 1e-9),
        )
        check_choice("elbo", self.elbo, ELBOS)
        check_choice("precision", self.precision, PRECISIONS)
        if 0 < self.on_policy_depth < self.on_policy_updates:
            raise ConfigError(
                f"train.on_policy_updates = {self.on_policy_updates} steps do not fit into train.on_policy_depth = "
                f"{self.on_policy_depth}: lower them, or go deeper"
            )
        if self.act and self.on_policy_depth:
            raise ConfigError("train.act has no on-policy part: set train.on_policy_depth to 0")
        if not self.batches and not self.minutes:
            raise ConfigError("a run needs an end: batches or minutes must be positive")
