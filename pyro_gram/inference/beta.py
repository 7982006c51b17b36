"""The weight of the KL: constant, or raised by constraint once the reconstruction is good (GECO).

The objective is constrained: keep -log p(y | h_T) under a target, and spend what is left on a smaller KL. beta stays at
its start until the running mean of the reconstruction first falls under the target, then rises while it is under and
falls while it is over. Raised earlier, it collapses the guide before that has found its code; but where much of y
follows from x, a guide that speaks from the start keeps the core from learning to think. It may therefore be kept quiet
for the first part of a run.
"""

from __future__ import annotations

from dataclasses import dataclass

from pyro_gram.checks import AT_LEAST_0, AT_LEAST_1, FRACTION, POSITIVE, check_choice, check_range


@dataclass(frozen=True)
class BetaConfig:
    """``start``: beta, and its least value. ``target``: nats per input, 0 for a constant beta.

    ``watch``: which reconstruction is held to the target: the ``mean`` over supervision steps, or the ``last`` one.
    ``rise``, ``fall``: factors a batch under and over the target. ``smoothing``: decay of the running mean. ``quiet``:
    share of the run, at its start, during which beta is ``most``; then it starts at ``start``.
    """

    start: float = 1.0
    target: float = 0.3
    watch: str = "mean"
    rise: float = 1.02
    fall: float = 0.97
    smoothing: float = 0.9
    most: float = 20.0
    quiet: float = 0.0

    def __post_init__(self) -> None:
        check_range(
            self,
            start=POSITIVE,
            target=AT_LEAST_0,
            rise=AT_LEAST_1,
            fall=(1e-3, 1),
            smoothing=(0, 1 - 1e-9),
            most=POSITIVE,
            quiet=FRACTION,
        )
        check_choice("watch", self.watch, ("mean", "last"))


class BetaController:
    """Follows a BetaConfig, one call to :meth:`update` a batch."""

    def __init__(self, config: BetaConfig) -> None:
        self.config = config
        self.quiet = config.quiet > 0
        self.value = config.most if self.quiet else config.start
        self.mean: float | None = None

    def update(self, reconstruction: float, done: float = 1.0) -> None:
        """Take note of the watched reconstruction of a batch, nats per input, and of the share of the run behind it."""
        c = self.config
        self.mean = (
            reconstruction if self.mean is None else c.smoothing * self.mean + (1 - c.smoothing) * reconstruction
        )
        if self.quiet:
            if done >= c.quiet:
                self.quiet, self.value = False, c.start
        elif c.target > 0:
            factor = c.rise if self.mean < c.target else c.fall
            self.value = min(max(self.value * factor, c.start), max(c.most, c.start))

    def get_state(self) -> dict[str, float | None]:
        return {"value": self.value, "mean": self.mean, "quiet": self.quiet}

    def set_state(self, state: dict[str, float | None]) -> None:
        assert state["value"] is not None
        self.value, self.mean, self.quiet = state["value"], state["mean"], bool(state["quiet"])
