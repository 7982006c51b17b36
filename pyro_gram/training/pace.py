"""How many batches fit into the minutes of a run: the speed is measured once, before the first batch.

A run with a number of batches and a limit in minutes must be the same recipe on a slow machine and on a fast one: its
learning rate falls to the end, and its on-policy part is trained. Two rules would give that:

- *progress = the greater share, of the batches or of the minutes.* Nothing is measured, but every learning rate then
  depends on the clock, which is ahead of the batches in the first one already: no run repeats bit for bit on any
  machine, and none that was killed ends as one that was left alone.
- *measure first, then count batches alone.* A few batches of both kinds are trained on a copy, and the number of
  batches is lowered to what fits. From then on the run is that of ``train.batches`` = this number, bit for bit; the
  clock ends nothing, so nothing is cut off, and where the machine gets slower later the run takes longer than its
  minutes.

The second is done. A machine that is fast enough trains all batches.
"""

from __future__ import annotations

import copy
import math
import time
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING

import pyro
import torch

from pyro_gram.training.config import TrainConfig
from pyro_gram.training.divergence import DivergedError
from pyro_gram.training.precision import products_in

if TYPE_CHECKING:
    from pyro_gram.training.trainer import Trainer

REPEATS = 3  # batches of each kind that are timed, after one that warms up
STILL = 1e-12  # the learning rate of the copy: it takes as long as any, and nothing can diverge


@dataclass(frozen=True)
class Pace:
    """The seconds of a batch without its on-policy updates, of these, and of a look at the validation split."""

    batch: float
    on_policy: float
    look: float

    def seconds(self, config: TrainConfig, batches: int, number: int = 0) -> float:
        """The length of a run of so many batches, from batch ``number`` on. It never falls with ``batches``."""
        begins = max(number, math.ceil(config.on_policy_after * batches))
        on_policy = max(0, batches - begins) if config.on_policy_depth else 0
        looks = math.ceil(batches / config.evaluate_every) - number // config.evaluate_every
        return (batches - number) * self.batch + on_policy * self.on_policy + looks * self.look


def least_batches(config: TrainConfig) -> int:
    """The batches of the shortest run that has an on-policy part, where the config asks for one."""
    least = math.ceil(1 / (1 - config.on_policy_after)) if config.on_policy_depth else 1
    return min(least, config.batches)


def batches_that_fit(pace: Pace, config: TrainConfig, number: int = 0, elapsed: float = 0.0) -> int:
    """The most batches, up to ``config.batches``, that end within ``config.minutes``.

    Args:
        pace: of this machine.
        config: the length that was asked for; both must be positive.
        number: batches that are behind the run.
        elapsed: seconds that are.

    Returns:
        at least ``number`` and :func:`least_batches`.
    """
    counts = range(max(number, least_batches(config)), config.batches + 1)
    left = config.minutes * 60 - elapsed
    fitting = bisect_right(counts, left, key=lambda n: pace.seconds(config, n, number))
    return counts[max(0, fitting - 1)]


def seconds_left(trainer: Trainer, first: int, spent: float) -> float | None:
    """How long training will go on; None before anything is known of its pace.

    Args:
        trainer: of the run.
        first: the batch that this sitting began with.
        spent: the seconds since then.
    """
    c = trainer.config
    if not c.batches:
        return max(0.0, 60 * c.minutes - trainer.elapsed)
    pace, batches = trainer.pace or Pace(1.0, 0.0, 0.0), trainer.num_batches or c.batches
    left = pace.seconds(c, batches, trainer.number)
    done = pace.seconds(c, batches, first) - left
    if done <= 0:
        return left if trainer.pace else None
    return left * spent / done


def measure_pace(trainer: Trainer, look: Callable[[], object] | None = None) -> Pace | None:
    """The speed of this machine, from a few batches on a copy of model and guide; the trainer stays as it is.

    Args:
        trainer: of the run.
        look: what the caller does every ``evaluate_every`` batches; it is called twice.

    Returns:
        None where the first update cannot be made: training comes to it, and says why.
    """
    c = trainer.config
    devices = [trainer.device] if trainer.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        held = copy.deepcopy(torch.nn.ModuleDict({"model": trainer.model, "guide": trainer.guide}))
        trial = type(trainer)(
            held["model"],
            held["guide"],
            trainer.batches,
            c,
            replace(trainer.optim.config, lr=STILL),
            trainer.beta.config,
            trainer.seed,
            trainer.processes,
        )
        trial.model.train()
        trial.guide.train()
        trial.prepare()
        try:
            plain = _timed_batches(trial, replace(c, on_policy_depth=0))
            whole = _timed_batches(trial, replace(c, on_policy_after=0.0)) if c.on_policy_depth else plain
        except DivergedError:
            return None
        looks = [_timed(look) for _ in range(2)] if look else [0.0]  # the first also loads what a look needs
    return Pace(plain, max(0.0, whole - plain), looks[-1])


def _timed_batches(trial: Trainer, config: TrainConfig) -> float:
    """Seconds of a batch under ``config``, the median of a few."""
    trial.config = config

    def one() -> None:
        with pyro.validation_enabled(False), products_in(config.precision, trial.device):
            trial.one_batch(*trial.batches(trial.number))

    return median([_timed(one) for _ in range(1 + REPEATS)][1:])


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
