"""Reports of training: the mean losses of a batch, and the speed of the machine."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pyro_gram.training.config import TrainConfig


@dataclass
class BatchReport:
    """Means over the supervision steps and inputs of one batch, in nats per input. The KL is not multiplied by beta.

    Attributes:
        number: number of the batch.
        reconstruction, kl: means over the updates along trajectories of the guide.
        beta: the weight of the KL in these updates.
        on_policy: the reconstruction of the on-policy updates; None if there were no such updates.
        seconds: seconds of training since the run began.
        is_last: does this batch end the run?
    """

    number: int
    reconstruction: float
    kl: float
    beta: float
    on_policy: float | None = None
    seconds: float = 0.0
    is_last: bool = False

    @property
    def loss(self) -> float:
        """The negative ELBO of Eq. 14, in nats per input."""
        return self.reconstruction + self.kl


@dataclass(frozen=True)
class Pace:
    """The speed of a machine: the seconds that parts of a run take on it.

    Attributes:
        batch: seconds of one batch without its on-policy updates.
        on_policy: seconds of the on-policy updates of one batch.
        monitor: seconds of one evaluation on the validation split.
    """

    batch: float
    on_policy: float
    monitor: float

    def run_seconds(self, config: TrainConfig, batches: int, number: int = 0) -> float:
        """Return the seconds from batch ``number`` to the end of a run that has ``batches`` batches in all.

        More batches never take fewer seconds.
        """
        first_on_policy = max(number, math.ceil(config.on_policy_after * batches))
        on_policy = max(0, batches - first_on_policy) if config.on_policy_depth else 0
        evaluations = math.ceil(batches / config.evaluate_every) - number // config.evaluate_every
        return (batches - number) * self.batch + on_policy * self.on_policy + evaluations * self.monitor
