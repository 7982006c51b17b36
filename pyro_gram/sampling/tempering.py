"""A wider, or a narrower, prior at the start of a trajectory: sampling at a temperature.

Which of several solutions a trajectory ends in is decided in its first transitions, by the prior's mean where its scale
is small. A wider scale there makes the solutions of an input more even, and more trajectories fail. Only roll-outs know
of it: training, the bounds, the likelihood and inference.nc are of the prior as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _PYRO_STACK

from pyro_gram.checks import AT_LEAST_0, check_range
from pyro_gram.errors import ConfigError
from pyro_gram.inference.families import MeanOnly
from pyro_gram.inference.sites import transition_index


@dataclass(frozen=True)
class TemperConfig:
    r"""The scale of the prior in roll-outs, relative to what was trained, and for how long.

    Attributes:
        scale: what :math:`\sigma_\theta(u_t)` is multiplied by; 1 is the prior as it is, less than 1 narrows it.
        transitions: how many transitions from z_0 are so scaled; 0 for none.
    """

    scale: float = 1.0
    transitions: int = 0

    def __post_init__(self) -> None:
        if type(self.transitions) is not int or type(self.scale) not in (int, float):
            raise ConfigError(f"temper takes a number and a whole number, not {self.scale!r} and {self.transitions!r}")
        check_range(self, scale=(0.01, 100), transitions=AT_LEAST_0)
        if (self.scale == 1) != (self.transitions == 0):
            raise ConfigError(
                f"temper.scale = {self.scale:g} with temper.transitions = {self.transitions} changes nothing: "
                "give a scale other than 1 and transitions of at least 1; or, for the prior as it is, 1 and 0"
            )


def told(scale: float, transitions: int) -> str:
    """As figures are marked: "sigma x 1.9 in the first 2 transitions"; nothing for the prior as it is."""
    return f"sigma x {scale:g} in the first {transitions} transitions" if transitions else ""


class Temper(Messenger):
    """Scales the guidance of the first transitions that it sees, over as many calls of the program as it is around.

    One instance belongs to one batch of trajectories, which start at z_0::

        with Temper(TemperConfig(scale=2.0, transitions=2)):
            model(x, steps=16)

    It goes around a program without a guide: a guide answers a site before this handler sees it.

    Raises:
        ConfigError: a prior whose width it cannot change.
        TypeError: used as a decorator, where trajectories after the first would go on counting its transitions.
    """

    def __init__(self, config: TemperConfig) -> None:
        super().__init__()
        self.config = config
        self.seen = 0

    def __call__(self, fn: Any) -> Any:
        raise TypeError("a Temper is for one batch of trajectories: with Temper(config): model(x, steps=16)")

    def _pyro_sample(self, msg: Any) -> None:
        if transition_index(msg["name"]) is None:
            return
        if self.seen < self.config.transitions:
            msg["fn"] = widened(msg["fn"], self.config.scale)
        self.seen += 1


def check_no_temper() -> None:
    """Raises ConfigError within a Temper, where a call runs several batches of trajectories, or is of the prior."""
    if any(isinstance(handler, Temper) for handler in _PYRO_STACK):
        raise ConfigError(
            "a Temper around this call would reach its first batch of trajectories alone: roll-outs take a temper of "
            "their own (temper=...), and likelihoods are of the prior as it is"
        )


class FixedGuidance(Messenger):
    """Condition every guidance site of a program, however many transitions it has: ``poutine.condition`` of all."""

    def value(self, prior: Any) -> torch.Tensor:
        """What a site is conditioned on, ``[..., L, D]``.

        Args:
            prior: p(eps_t | u_t).
        """
        raise NotImplementedError

    def _pyro_sample(self, msg: Any) -> None:
        if transition_index(msg["name"]) is not None:
            prior = msg["infer"].get("prior", msg["fn"])  # a guide within has put its posterior in the prior's place
            msg["value"] = self.value(prior)
            msg["is_observed"] = True


class NoGuidance(FixedGuidance):
    """Condition every guidance site on eps_t = 0: TRM is GRAM with it::

    deterministic = NoGuidance()(model)
    Predictive(deterministic, num_samples=2, parallel=True)(x, steps=8)["y"]
    """

    def value(self, prior: Any) -> torch.Tensor:
        return torch.zeros_like(prior.sample())  # a draw has the shape and the device


class AtMean(FixedGuidance):
    """Condition every guidance site on its prior's mean. NotImplementedError for a prior that has none."""

    def value(self, prior: Any) -> torch.Tensor:
        return prior.mean


def widened(distribution: Any, scale: float) -> Any:
    """The same distribution about the same mean, its standard deviation multiplied. Raises ConfigError."""
    if isinstance(distribution, torch.distributions.Independent):
        base = widened(distribution.base_dist, scale)
        return dist.Independent(base, distribution.reinterpreted_batch_ndims)
    if isinstance(distribution, MeanOnly):
        return distribution
    if isinstance(distribution, dist.Normal):
        return dist.Normal(distribution.loc, distribution.scale * scale, validate_args=False)
    if isinstance(distribution, dist.Delta):
        return distribution
    raise ConfigError(f"cannot widen a prior that is a {type(distribution).__name__}: set temper.transitions to 0")
