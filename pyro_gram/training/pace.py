"""Compute how many batches fit into the minutes of a run, from a speed that is measured before the first batch.

A run with a number of batches and a limit in minutes must follow the same recipe on a slow machine and on a fast one:
by the end its learning rate has fallen to its last value, and its on-policy part has been trained. Two rules would do:

- *Let progress be the larger of two shares: batches done, minutes spent.* This needs no measurement. But every learning
  rate then depends on the clock: a run cannot be repeated bit for bit, and a resumed run differs from an unbroken one.
- *Measure first, then count only batches.* A copy of the model is trained on a few batches, with and without
  on-policy updates. The number of batches is lowered to what fits into the minutes. From then on the run is, bit for
  bit, a run with this number as ``train.batches``. The clock does not end it: if the machine gets slower, the run
  takes longer than its minutes.

The second rule is implemented. A machine that is fast enough trains all batches.
"""

from __future__ import annotations

import copy
import math
import time
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import replace
from statistics import mean, median

import pyro
import torch

from pyro_gram.training.config import TrainConfig
from pyro_gram.training.divergence import DivergedError
from pyro_gram.training.dry_run import prepare_core, random_devices
from pyro_gram.training.precision import matmul_precision
from pyro_gram.training.report import Pace
from pyro_gram.training.trainer import Trainer

REPEATS = 3  # number of timed batches of each kind; one more batch before them warms up
VARIED_REPEATS = 16  # the same, if batches differ in the size of their inputs
NO_LR = 1e-12  # the copy's learning rate, so small that updates hardly change the copy


def fit_to_minutes(trainer: Trainer, monitor: Callable[[], object] | None = None) -> bool:
    """Lower a trainer's number of batches to what fits into the minutes, if the config sets batches and minutes.

    The number is decided once, before the clock starts, and is the same in all processes. The caller's random state is
    restored.

    Args:
        trainer: the trainer of the run.
        monitor: the function that the caller will call every ``evaluate_every`` batches; its time is counted too.

    Returns:
        True if this call has decided the number.
    """
    if trainer.num_batches is not None or trainer.is_finished:
        return False
    trainer.pace = measure_pace(trainer, monitor)
    c, pace = trainer.config, trainer.pace
    num_batches = fit_batches(pace, c, trainer.number, trainer.elapsed) if pace else c.batches
    trainer.num_batches = int(trainer.processes.from_main(num_batches))
    return True


def min_batches(config: TrainConfig) -> int:
    """Return the fewest batches that a run may have: enough for an on-policy part, if the config asks for one."""
    if not config.on_policy_depth:
        return min(1, config.batches)
    every = config.supervision_steps if config.act else 1  # on-policy updates follow every so many batches
    return min(math.ceil(every / (1 - config.on_policy_after)), config.batches)


def fit_batches(pace: Pace, config: TrainConfig, number: int = 0, elapsed: float = 0.0) -> int:
    """Return how many batches, up to ``config.batches``, can be trained within ``config.minutes``.

    Args:
        pace: the pace of this machine.
        config: the length of the run; both ``batches`` and ``minutes`` must be positive.
        number: number of batches that have been trained.
        elapsed: seconds of training so far.

    Returns:
        the number of batches; at least ``number`` and at least :func:`min_batches`.
    """
    counts = range(max(number, min_batches(config)), config.batches + 1)
    seconds = config.minutes * 60 - elapsed
    index = bisect_right(counts, seconds, key=lambda n: pace.run_seconds(config, n, number))
    return counts[max(0, index - 1)]


def seconds_left(trainer: Trainer, first: int, seconds_spent: float) -> float | None:
    """Estimate the seconds of training that are left; None if the pace is unknown.

    Args:
        trainer: the trainer of the run.
        first: the number of the batch with which the run began or was resumed.
        seconds_spent: seconds since that batch began.
    """
    c = trainer.config
    if not c.batches:
        return max(0.0, 60 * c.minutes - trainer.elapsed)
    pace, batches = trainer.pace or Pace(1.0, 0.0, 0.0), trainer.num_batches or c.batches
    remaining_seconds = pace.run_seconds(c, batches, trainer.number)
    trained_seconds = pace.run_seconds(c, batches, first) - remaining_seconds
    if trained_seconds <= 0:
        return remaining_seconds if trainer.pace else None
    return remaining_seconds * seconds_spent / trained_seconds


def measure_pace(trainer: Trainer, monitor: Callable[[], object] | None = None) -> Pace | None:
    """Measure the speed of this machine: train a copy of model and guide on a few batches.

    Args:
        trainer: the trainer of the run; it does not change.
        monitor: the function that the caller will call every ``evaluate_every`` batches; here it is called twice.

    Returns:
        the pace; None if an update diverges. Training will then report the divergence.
    """
    c = trainer.config
    with torch.random.fork_rng(devices=random_devices(trainer.device)):
        modules = copy.deepcopy(trainer.modules)
        trial = type(trainer)(
            modules["model"],
            modules["guide"],
            trainer.batches,
            c,
            replace(trainer.optimizer.config, lr=NO_LR),
            trainer.beta.config,
            trainer.seed,
            trainer.processes,
        )
        trial.clock = trainer.clock
        trial.model.train()
        trial.guide.train()
        prepare_core(trial)
        try:
            batch = _time_batches(trial, replace(c, on_policy_depth=0))
            on_policy_batch = _time_batches(trial, replace(c, on_policy_after=0.0)) if c.on_policy_depth else batch
        except DivergedError:
            return None
        # Only the second call counts, because the first also loads what the monitor needs.
        monitor_seconds = [_time_call(monitor, trainer.clock) for _ in range(2)][-1] if monitor else 0.0
    return Pace(batch, max(0.0, on_policy_batch - batch), monitor_seconds)


def _time_batches(trial: Trainer, config: TrainConfig) -> float:
    """Return the seconds that a batch takes under ``config``: the median of a few batches.

    If batches differ in the size of their inputs, or only some have on-policy updates, it is the mean of more batches.
    """
    trial.config = config

    def train() -> None:
        with pyro.validation_enabled(False), matmul_precision(config.precision, trial.device):
            trial.train_batch(*trial.batches(trial.number))

    is_varied = getattr(trial.batches, "sizes", None) is not None or (config.act and config.on_policy_depth > 0)
    seconds = [_time_call(train, trial.clock) for _ in range(1 + (VARIED_REPEATS if is_varied else REPEATS))][1:]
    return mean(seconds) if is_varied else median(seconds)


def _time_call(function: Callable[[], object], clock: Callable[[], float] | None) -> float:
    clock = clock or time.perf_counter
    start = clock()
    function()
    return clock() - start
