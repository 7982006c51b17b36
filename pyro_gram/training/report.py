"""What training reports after each batch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class BatchReport:
    """Means of one batch over its supervision steps and inputs, in nats per input at beta = 1.

    Attributes:
        number: of the batch.
        reconstruction, kl: of the updates under the guide.
        beta: the weight of the KL in these updates.
        on_policy: the reconstruction of the on-policy updates; None where there were none.
        seconds: of training since the run began.
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
        """-ELBO of Eq. 14, nats per input."""
        return self.reconstruction + self.kl
