"""Tempering: sample trajectories from a prior that is wider, or narrower, than the trained one.

The first transitions decide in which of several solutions a trajectory ends. If the prior's scale is small, its
mean decides. A wider scale makes the frequencies of an input's solutions more even, but more trajectories fail.
In a lattice, a floor keeps improbable values from being drawn.
Only rollouts are tempered: training, bounds, likelihoods and the file inference.nc (for ArviZ) use the prior as it was
trained.
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
from pyro_gram.inference.terms import is_lattice_guidance


@dataclass(frozen=True)
class TemperConfig:
    r"""How the prior of rollouts differs from the trained one.

    Attributes:
        scale: the factor of :math:`\sigma_\theta(u_t)`; 1 leaves the prior as it is, a factor below 1 narrows it.
        transitions: how many transitions from z_0 on are scaled; 0 for none.
        floor: in a lattice, values with a lower probability than this are not drawn, in all transitions; 0: all are.
    """

    scale: float = 1.0
    transitions: int = 0
    floor: float = 0.0

    def __post_init__(self) -> None:
        is_number = [type(value) in (int, float) for value in (self.scale, self.floor)]
        if type(self.transitions) is not int or not all(is_number):
            raise ConfigError(
                "temper takes a scale (a number), transitions (a whole number) and a floor (a number), not "
                f"{self.scale!r}, {self.transitions!r}, {self.floor!r}"
            )
        check_range(self, scale=(0.01, 100), transitions=AT_LEAST_0, floor=(0.0, 0.5))
        if (self.scale == 1) != (self.transitions == 0):
            raise ConfigError(
                f"temper.scale = {self.scale:g} with temper.transitions = {self.transitions} changes nothing: "
                "give a scale other than 1 and transitions of at least 1; or, for the prior as it is, 1 and 0"
            )

    def describe(self) -> str:
        """Return a label such as "sigma x 1.9 in the first 2 transitions"; an empty text for the trained prior."""
        scale = f"sigma x {self.scale:g} in the first {self.transitions} transitions" if self.transitions else ""
        floor = f"no values below p = {self.floor:g}" if self.floor else ""
        return ", ".join(filter(None, (scale, floor)))


NO_TEMPER = TemperConfig()


class Temper(Messenger):
    """Sample a batch of trajectories from a prior that is scaled in the first transitions, or has a floor.

    The handler counts transitions over all calls of the program inside it. One instance therefore serves one batch of
    trajectories that start at z_0::

        with Temper(TemperConfig(scale=2.0, transitions=2)):
            model(x, steps=16)

    The program inside the handler must run without a guide. A guide would give a site its value before this handler
    sees the site.

    Raises:
        ConfigError: the scale of the prior cannot be changed, or it has no values that a floor could exclude.
        TypeError: the handler is used as a decorator. A decorator would count the transitions of all calls together.
    """

    def __init__(self, config: TemperConfig) -> None:
        super().__init__()
        self.config = config
        self.num_transitions = 0
        self.has_decisions = False

    def __call__(self, fn: Any) -> Any:
        raise TypeError(
            "a Temper serves one batch of trajectories and cannot wrap a model: use 'with Temper(config): model(...)'"
        )

    def __exit__(self, exc_type: Any, *error: Any) -> Any:
        if self.config.floor and not self.has_decisions and exc_type is None:
            raise ConfigError("only a lattice has values that a floor can exclude: set temper.floor to 0")
        return super().__exit__(exc_type, *error)

    def _pyro_sample(self, msg: Any) -> None:
        if transition_index(msg["name"]) is None:
            return
        if self.num_transitions < self.config.transitions:
            msg["fn"] = widen(msg["fn"], self.config.scale)
        if self.config.floor and is_lattice_guidance(msg["fn"]):
            self.has_decisions = True
            msg["fn"] = msg["fn"].with_floor(self.config.floor)
        self.num_transitions += 1


def check_no_temper() -> None:
    """Raise ConfigError inside a :class:`Temper`.

    Functions that run several batches of trajectories, or that need the prior as it was trained, call this one first.
    """
    if any(isinstance(handler, Temper) for handler in _PYRO_STACK):
        raise ConfigError(
            "a Temper around this call would change its first batch of trajectories only: give a rollout its own "
            "(temper=...); likelihoods and bounds use the prior as it was trained"
        )


def widen(distribution: Any, scale: float) -> Any:
    """Return the distribution with its standard deviation times ``scale`` and the same mean.

    Raises:
        ConfigError: the scale of this family cannot be changed.
    """
    if isinstance(distribution, torch.distributions.Independent):
        base = widen(distribution.base_dist, scale)
        return dist.Independent(base, distribution.reinterpreted_batch_ndims)
    if isinstance(distribution, MeanOnly):
        return distribution
    if isinstance(distribution, dist.Normal):
        return dist.Normal(distribution.loc, distribution.scale * scale, validate_args=False)
    if isinstance(distribution, dist.Delta):
        return distribution
    raise ConfigError(f"cannot widen a prior that is a {type(distribution).__name__}: set temper.transitions to 0")


class FixedGuidance(Messenger):
    """Condition a program on all of its guidance, like ``poutine.condition``, but without naming the sites."""

    def value(self, prior: Any) -> torch.Tensor:
        """Return the guidance of one transition, ``[..., L, D]``.

        Args:
            prior: p(eps_t | u_t).
        """
        raise NotImplementedError

    def _pyro_sample(self, msg: Any) -> None:
        if transition_index(msg["name"]) is not None:
            prior = msg["infer"].get("prior", msg["fn"])  # within a guide, "fn" is the posterior
            msg["value"] = self.value(prior)
            msg["is_observed"] = True


class NoGuidance(FixedGuidance):
    """Condition a program on eps_t = 0 in every transition. This makes GRAM deterministic, like TRM.

    An example::

        deterministic = NoGuidance()(model)
        Predictive(deterministic, num_samples=2, parallel=True)(x, steps=8)["y"]
    """

    def value(self, prior: Any) -> torch.Tensor:
        return torch.zeros_like(prior.sample())  # only the draw's shape and device are used


class AtMean(FixedGuidance):
    """Condition a program on the prior's mean in every transition; on the most probable decisions, if it makes any.

    Raises:
        NotImplementedError: the prior has no mean.
    """

    def value(self, prior: Any) -> torch.Tensor:
        return prior.mode if is_lattice_guidance(prior) else prior.mean
