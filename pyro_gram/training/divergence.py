"""A check before each update: it stops a run whose loss or gradient diverges."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from pyro_gram.errors import UserError

MAX_RATIO = 1000.0  # the largest accepted ratio of a loss to the usual loss; a usual loss below 1 nat counts as 1 nat
SMOOTHING = 0.98  # decay per update of the running mean of losses


class DivergedError(UserError):
    """The loss or its gradient is not finite, or the loss is more than a thousand times the usual loss.

    Attributes:
        record: the record of the update that was not made.
    """

    def __init__(self, message: str, record: UpdateRecord) -> None:
        super().__init__(message)
        self.record = record


@dataclass(frozen=True)
class UpdateRecord:
    """The numbers of an update that is about to be made.

    Attributes:
        batch, step: the numbers of the batch, and of the supervision step within the batch.
        on_policy: is it an update along a trajectory of the prior?
        loss: reconstruction + beta * kl, nats per input.
        reconstruction, kl: the two parts of the loss, nats per input; kl is not multiplied by beta.
        gradient_norm: the norm of the gradient before clipping.
        learning_rate, beta: the learning rate and beta in this update.
        usual_loss: the running mean of absolute losses before this update, nats per input; None at the first update.
    """

    batch: int
    step: int
    on_policy: bool
    loss: float
    reconstruction: float
    kl: float
    gradient_norm: float
    learning_rate: float
    beta: float
    usual_loss: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return the record in JSON types: texts such as ``"nan"`` and ``"inf"`` replace floats that JSON lacks."""
        return {
            name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in asdict(self).items()
        }


class DivergenceCheck:
    """Refuses an update whose loss or gradient is not finite, or whose loss is far above the usual loss.

    Attributes:
        usual_loss: running mean of the absolute loss, nats per input; None before the first update.
    """

    def __init__(self) -> None:
        self.usual_loss: float | None = None

    def check(self, record: UpdateRecord) -> None:
        """Compare an update with earlier updates. Raises DivergedError if the update must not be made."""
        size = abs(record.loss)
        place = f"in batch {record.batch}, step {record.step}{' of the on-policy part' if record.on_policy else ''}"
        if not math.isfinite(size):
            raise DivergedError(f"the loss became {record.loss} {place}", record)
        if not math.isfinite(record.gradient_norm):
            raise DivergedError(f"the gradient's norm became {record.gradient_norm} {place}", record)
        if self.usual_loss is not None and size > MAX_RATIO * max(1.0, self.usual_loss):
            raise DivergedError(
                f"the loss exploded to {record.loss:.3g} nats (usually {self.usual_loss:.3g}) {place}", record
            )
        self.usual_loss = size if self.usual_loss is None else SMOOTHING * self.usual_loss + (1 - SMOOTHING) * size

    def state_dict(self) -> dict[str, float | None]:
        return {"usual_loss": self.usual_loss}

    def load_state_dict(self, state: dict[str, float | None]) -> None:
        """Load a saved state. Raises ValueError if its ``usual_loss`` is negative or not finite."""
        usual_loss = state["usual_loss"]
        if usual_loss is not None and not 0 <= float(usual_loss) < math.inf:
            raise ValueError(f"a usual loss of {usual_loss}")
        self.usual_loss = usual_loss
