"""The settings of two trainings: first of the model, then of its heads."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from pyro_gram.checks import AT_LEAST_0, AT_LEAST_1, FRACTION, POSITIVE, check_choice, check_range
from pyro_gram.errors import ConfigError
from pyro_gram.inference.elbo import ELBOS
from pyro_gram.inference.sites import why_no_heads
from pyro_gram.training.precision import PRECISIONS


@dataclass(frozen=True)
class TrainConfig:
    """Length and recipe of a run.

    The state of training is saved at the end of a batch, never within one. A signal (SIGINT, SIGTERM) ends the run
    after the current batch; with the cpu presets, a batch takes 2 to 3 seconds on one core. A second SIGINT ends the
    run at once. If the run is then resumed, it trains the batches since the last save again.

    Attributes:
        batches: number of batches in the run; 0 for as many as fit into the minutes. A batch has ``supervision_steps``
            updates, and late in the run also ``on_policy_updates`` on-policy updates.
        minutes: minutes of training; 0 for as many as the batches take. If ``batches`` is positive too, the run
            first measures its speed, and trains fewer batches if all would take longer than the minutes; the clock
            does not end this run. If ``batches`` is 0, the clock ends the run, and the schedules follow the clock.
        batch: B, inputs in a batch.
        supervision_steps: N_sup, the number of updates of a batch. Each update starts in the state in which the update
            before it ended.
        elbo: the bound: ``balanced`` (``balance`` splits the gradient of its KL), ``mean_field`` or ``trace``.
        balance: share of the KL's gradient that trains the prior (``balanced`` only).
        particles: number of draws from the guide in an update.
        ema: decay of the running average of the weights, per update; evaluation uses the average.
        augment: whether to apply the task's symmetries to training pairs.
        evaluate_every: number of batches between two evaluations on the validation split.
        save_seconds: seconds between two saves of the training state. A save waits for the end of a batch.
        act: train as HRM and TRM do: a batch is one update, and a trajectory stays in the batch until the model halts
            it or it has made ``supervision_steps`` steps; then a new pair replaces it. On-policy updates follow every
            ``supervision_steps``-th batch.
        exact_targets: train a lattice towards the shares of values among all solutions of an input that agree with what
            is decided, instead of one solution. Needs ``act``; inputs with too many solutions keep one.
        on_policy_depth: also train on trajectories of the prior, up to this supervision step. The target is a solution,
            drawn with its probability under the model. 0 for no such training. The task must list all solutions.
        on_policy_updates: number of updates along trajectories of the prior in a batch. They are made at successive
            supervision steps, the first at a random depth.
        on_policy_after: on-policy training begins after this share of the run.
        precision: precision of the core's matrix products: ``fp32``, ``tf32`` (CUDA), ``bf16``, or ``auto``: bf16 if
            the device has instructions for it, else fp32. CUDA then computes all other matrix products in TF32, unless
            the precision is fp32; everything else is in float32.
        compile: compile the core. This takes 20 to 70 seconds at the start; on the CPU it needs a C++ compiler.
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
    exact_targets: bool = False
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
        if not self.batches and not self.minutes:
            raise ConfigError("a run needs an end: batches or minutes must be positive")


@dataclass(frozen=True)
class HeadsConfig:
    """Halt and value heads, and their training.

    Attributes:
        hidden: width of the heads; 0 for no heads.
        layers: number of attention layers. They see the state ``h``, the embedded input ``e_x`` and the answer.
        attention_heads: number of attention heads in each of these layers.
        rounds: number of rounds of training. Each round samples new trajectories.
        trajectories: number of trajectories in a round if inputs have 8 positions; fewer for longer inputs.
        lr: peak learning rate.
        halt: a trajectory stops when the halt head's probability of a right answer reaches this value, unless a
            rollout sets another value; 1 for never.
    """

    hidden: int = 0
    layers: int = 2
    attention_heads: int = 4
    rounds: int = 40
    trajectories: int = 1024
    lr: float = 2e-3
    halt: float = 0.999

    def __post_init__(self) -> None:
        counts = dict.fromkeys(("layers", "attention_heads", "rounds", "trajectories"), AT_LEAST_1)
        check_range(self, hidden=AT_LEAST_0, lr=POSITIVE, halt=FRACTION, **counts)


def will_have_heads(model: nn.Module, config: HeadsConfig) -> bool:
    """Return whether heads will be trained for this model. A user's model may have no place for heads."""
    return config.hidden > 0 and not why_no_heads(model)
