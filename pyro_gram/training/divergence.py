"""Stops a run before the update that would ruin it, and tells what that update was."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from pyro_gram.errors import UserError

EXPLODED = 1000.0  # times the usual loss
USUAL = 0.98  # smoothing of the usual loss, an update


class DivergedError(UserError):
    """The loss or its gradient is infinite, not a number, or a thousand times the usual.

    Attributes:
        update: the one that was not made.
    """

    def __init__(self, message: str, update: Update) -> None:
        super().__init__(message)
        self.update = update


@dataclass(frozen=True)
class Update:
    """One update as it would have been.

    Attributes:
        batch, step: its batch, and the supervision step within it.
        on_policy: is it one along the prior's own trajectories?
        loss: nats per input, at ``beta``; made of
        reconstruction, kl: nats per input, at beta = 1.
        gradient_norm: before clipping.
        learning_rate, beta: of this update.
        usual: the running mean of losses before it; None at the first.
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
    usual: float | None

    def to_dict(self) -> dict[str, Any]:
        """JSON types; what is no number is told by its name, nan or inf."""
        return {
            name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in asdict(self).items()
        }


class Guard:
    """Keeps the usual size of the loss, and refuses an update that is out of all proportion.

    Attributes:
        usual: running mean of the absolute loss, nats per input; None before the first update. Part of a run's state.
    """

    def __init__(self) -> None:
        self.usual: float | None = None

    def check(self, update: Update) -> None:
        """Raises DivergedError where the update must not be made."""
        size = abs(update.loss)
        where = f"in batch {update.batch}, step {update.step}{' of the on-policy part' if update.on_policy else ''}"
        if not math.isfinite(size):
            raise DivergedError(f"the loss became {update.loss} {where}", update)
        if not math.isfinite(update.gradient_norm):
            raise DivergedError(f"the gradient's norm became {update.gradient_norm} {where}", update)
        if self.usual is not None and size > EXPLODED * max(1.0, self.usual):
            raise DivergedError(
                f"the loss exploded to {update.loss:.3g} nats (usually {self.usual:.3g}) {where}", update
            )
        self.usual = size if self.usual is None else USUAL * self.usual + (1 - USUAL) * size
