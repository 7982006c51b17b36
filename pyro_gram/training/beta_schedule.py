"""beta, the weight of the KL, is constant, or rises while the reconstruction is below a target (GECO).

GECO minimizes the KL under the constraint that the reconstruction, -log p(y | h_T), stays below a target. beta keeps
its start value until the running mean of the reconstruction first falls below the target. After that, beta rises while
the mean is below the target, and falls while it is above. If beta rose earlier, the guide would collapse to the prior
before it has learnt to use y.

If y mostly follows from x, a guide that reveals y from the start keeps the core from learning to reason. Therefore beta
can be so large in the first part of a run that the guide stays equal to the prior. Such a guide is called silent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from pyro_gram.checks import AT_LEAST_0, AT_LEAST_1, POSITIVE, check_choice, check_range
from pyro_gram.errors import ConfigError


@dataclass(frozen=True)
class BetaConfig:
    """The schedule of beta.

    Attributes:
        start: the first value of beta (after the silent part of the run, if there is one), and also its least value.
        target: the reconstruction, nats per input, below which beta rises; 0 for a constant beta.
        watch: the reconstruction that is compared with the target: the ``mean`` over supervision steps, or that of
            the ``last`` step.
        raise_factor: beta is multiplied by this after a batch if the running mean is below the target.
        lower_factor: beta is multiplied by this after a batch if the running mean is not below the target.
        smoothing: decay per batch of the running mean of the reconstruction; the target is compared with this mean.
        max: the largest beta.
        silent_fraction: beta is ``max`` during this first share of the run, and then begins at ``start``.
    """

    start: float = 1.0
    target: float = 0.3
    watch: str = "mean"
    raise_factor: float = 1.02
    lower_factor: float = 0.97
    smoothing: float = 0.9
    max: float = 20.0
    silent_fraction: float = 0.0

    def __post_init__(self) -> None:
        check_range(
            self,
            start=POSITIVE,
            target=AT_LEAST_0,
            raise_factor=AT_LEAST_1,
            lower_factor=(1e-3, 1),
            smoothing=(0, 1 - 1e-9),
            max=POSITIVE,
            silent_fraction=(0, 1 - 1e-9),
        )
        check_choice("watch", self.watch, ("mean", "last"))
        if self.silent_fraction and self.max < self.start:
            raise ConfigError(
                f"beta.max = {self.max:g} is below beta.start = {self.start:g}, so no guide would be silent: raise it"
            )


class BetaController:
    """Computes beta as a BetaConfig says: call :meth:`start_batch` before and :meth:`update` after each batch.

    Attributes:
        value: beta, the weight of the KL.
        is_silent: does this batch belong to the first part of the run, in which the guide is silent?
        mean: running mean of the reconstruction, nats per input; None before the first batch after the silent part.
    """

    def __init__(self, config: BetaConfig) -> None:
        self.config = config
        self.is_silent = config.silent_fraction > 0
        self.mean: float | None = None
        self._constrained_beta = config.start  # the value of beta when the guide is not silent
        self._set_value()

    def start_batch(self, progress: float) -> None:
        """Start a batch. ``progress`` is the share of the run that is over."""
        self.is_silent = progress < self.config.silent_fraction
        self._set_value()

    def _set_value(self) -> None:
        self.value = self.config.max if self.is_silent else self._constrained_beta

    def update(self, reconstruction: float) -> None:
        """Adapt beta to a batch's reconstruction, nats per input. Batches of the silent part are ignored."""
        c = self.config
        if self.is_silent:
            return
        self.mean = (
            reconstruction if self.mean is None else c.smoothing * self.mean + (1 - c.smoothing) * reconstruction
        )
        if c.target > 0:
            factor = c.raise_factor if self.mean < c.target else c.lower_factor
            self._constrained_beta = min(max(self._constrained_beta * factor, c.start), max(c.max, c.start))
        self._set_value()

    def state_dict(self) -> dict[str, float | None]:
        return {"value": self._constrained_beta, "mean": self.mean}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a saved state. Raises ValueError for numbers that are not finite."""
        value, mean = float(state["value"]), None if state["mean"] is None else float(state["mean"])
        if not math.isfinite(value) or (mean is not None and not math.isfinite(mean)):
            raise ValueError(f"beta {value} at a mean reconstruction of {mean}")
        self._constrained_beta, self.mean = value, mean
        self._set_value()
