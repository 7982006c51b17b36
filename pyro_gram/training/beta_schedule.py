"""The weight of the KL: constant, or raised by constraint once the reconstruction is good (GECO).

The objective is constrained: keep -log p(y | h_T) under a target, and spend what is left on a smaller KL. beta stays at
its start until the running mean of the reconstruction first falls under the target, then rises while it is under and
falls while it is over. Raised earlier, it collapses the guide before that has found its code; but where much of y
follows from x, a guide that speaks from the start keeps the core from learning to think. It may therefore be kept quiet
for the first part of a run.
"""

from __future__ import annotations

from dataclasses import dataclass

from pyro_gram.checks import AT_LEAST_0, AT_LEAST_1, POSITIVE, check_choice, check_range
from pyro_gram.errors import ConfigError


@dataclass(frozen=True)
class BetaConfig:
    """The weight of the KL and what it follows.

    Attributes:
        start: beta at the start, and its least value.
        target: the reconstruction, nats per input, that beta is raised under; 0 for a constant beta.
        watch: which reconstruction is held to the target: the ``mean`` over supervision steps, or the ``last`` one.
        raise_factor: what beta is multiplied by in a batch under the target.
        lower_factor: what beta is multiplied by in a batch over the target.
        smoothing: decay of the running mean of the reconstruction, a batch.
        max: the largest beta.
        silent_fraction: share of the run, at its start, during which beta is ``max``; then it starts at ``start``.
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
            raise ConfigError(f"beta.max = {self.max:g} silences nothing below beta.start = {self.start:g}: raise it")


class BetaController:
    """Follows a BetaConfig: :meth:`begin` before and :meth:`update` after each batch."""

    def __init__(self, config: BetaConfig) -> None:
        self.config = config
        self.silent = config.silent_fraction > 0
        self.mean: float | None = None
        self._raised = config.start

    @property
    def value(self) -> float:
        """beta."""
        return self.config.max if self.silent else self._raised

    def begin(self, done: float) -> None:
        """A batch begins, with the share ``done`` of the run behind it."""
        self.silent = done < self.config.silent_fraction

    def update(self, reconstruction: float) -> None:
        """Take note of the batch's watched reconstruction, nats per input. Those of the quiet part do not count."""
        c = self.config
        if self.silent:
            return
        self.mean = (
            reconstruction if self.mean is None else c.smoothing * self.mean + (1 - c.smoothing) * reconstruction
        )
        if c.target > 0:
            factor = c.raise_factor if self.mean < c.target else c.lower_factor
            self._raised = min(max(self._raised * factor, c.start), max(c.max, c.start))

    def get_state(self) -> dict[str, float | None]:
        return {"value": self._raised, "mean": self.mean}

    def set_state(self, state: dict[str, float | None]) -> None:
        assert state["value"] is not None
        self._raised, self.mean = state["value"], state["mean"]
