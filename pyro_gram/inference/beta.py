"""The weight of the KL: constant, or raised by constraint once the reconstruction is good (GECO).

The objective is constrained: keep -log p(y | h_T) under a target, and spend what is left on a smaller KL. beta stays at
its start until the running mean of the reconstruction first falls under the target, then rises while it is under and
falls while it is over. Raised earlier, it collapses the guide before that has found its code.
"""

from __future__ import annotations

from dataclasses import dataclass

from pyro_gram.checks import AT_LEAST_0, AT_LEAST_1, POSITIVE, check_choice, check_range


@dataclass(frozen=True)
class BetaConfig:
    """``start``: beta, and its least value. ``target``: nats per input, 0 for a constant beta.

    ``watch``: which reconstruction is held to the target: the ``mean`` over supervision steps, or the ``last`` one.
    ``rise``, ``fall``: factors a batch under and over the target. ``smoothing``: decay of the running mean.
    """

    start: float = 1.0
    target: float = 0.3
    watch: str = "mean"
    rise: float = 1.02
    fall: float = 0.97
    smoothing: float = 0.9
    most: float = 20.0

    def __post_init__(self) -> None:
        check_range(
            self,
            start=POSITIVE,
            target=AT_LEAST_0,
            rise=AT_LEAST_1,
            fall=(1e-3, 1),
            smoothing=(0, 1 - 1e-9),
            most=POSITIVE,
        )
        check_choice("watch", self.watch, ("mean", "last"))


class BetaController:
    """Follows a BetaConfig, one call to :meth:`update` a batch."""

    def __init__(self, config: BetaConfig) -> None:
        self.config = config
        self.value = config.start
        self.mean: float | None = None

    def update(self, reconstruction: float) -> None:
        """Take note of the watched reconstruction of a batch, nats per input."""
        c = self.config
        self.mean = (
            reconstruction if self.mean is None else c.smoothing * self.mean + (1 - c.smoothing) * reconstruction
        )
        if c.target > 0:
            factor = c.rise if self.mean < c.target else c.fall
            self.value = min(max(self.value * factor, c.start), max(c.most, c.start))

    def get_state(self) -> dict[str, float | None]:
        return {"value": self.value, "mean": self.mean}

    def set_state(self, state: dict[str, float | None]) -> None:
        assert state["value"] is not None
        self.value, self.mean = state["value"], state["mean"]
