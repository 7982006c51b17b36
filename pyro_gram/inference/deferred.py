"""A prior that a truncated supervision step looks at only where it has to (Eq. 14).

In transitions that are not charged the guide draws and nothing asks for the prior's density: its head would be computed
for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import pyro.distributions as dist
import torch
from pyro.poutine.reparam_messenger import ReparamMessenger
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor
from torch.distributions import Distribution, constraints, kl_divergence, register_kl

from pyro_gram.inference.contract import prior_traits

_answered: ContextVar[bool] = ContextVar("answered", default=False)


@contextmanager
def answered() -> Iterator[None]:
    """Within it, an effect guide answers the guidance sites."""
    token = _answered.set(True)
    try:
        yield
    finally:
        _answered.reset(token)


class Deferred(dist.TorchDistribution):
    """A reparameterized distribution over ``[L, D]`` made of u at the first look at it, without gradient.

    Args:
        make: u, ``[..., L, D]``, to the distribution.
        u: the proposal.
    """

    has_rsample = True
    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 (torch's own declaration)

    def __init__(self, make: Callable[[Tensor], Any], u: Tensor) -> None:
        super().__init__(u.shape[:-2], u.shape[-2:], validate_args=False)
        self._make, self._u, self._made = make, u, None

    @property
    def made(self) -> Any:
        """The distribution itself."""
        if self._made is None:
            with torch.no_grad():
                self._made = self._make(self._u)
        return self._made

    @constraints.dependent_property
    def support(self) -> Any:
        return self.made.support

    @property
    def base_dist(self) -> Any:
        """Of an Independent: what a guide reads the prior's parameters from."""
        return self.made.base_dist

    @property
    def mean(self) -> Tensor:
        return self.made.mean

    @property
    def variance(self) -> Tensor:
        return self.made.variance

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        return self.made.sample(sample_shape)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        return self.made.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.made.log_prob(value)

    def entropy(self) -> Tensor:
        return self.made.entropy()

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> Any:
        # A plate asks it of every distribution, where nothing changes too.
        return self if torch.Size(batch_shape) == self.batch_shape else self.made.expand(batch_shape)


@register_kl(dist.Delta, Deferred)
@register_kl(Distribution, Deferred)
def _(q: Any, p: Deferred) -> Tensor:
    return kl_divergence(q, p.made)


def prior_at(prior: Any, u: Tensor, charged: bool) -> Any:
    """p(eps | u): at once where it is charged or drawn from, else when it is looked at.

    Args:
        prior: a module from u to a distribution. Only one whose traits have ``can_defer`` waits.
        u: the proposal, ``[..., L, D]``.
        charged: is the KL of this transition part of the bound?
    """
    if charged or not _answered.get() or not prior_traits(prior).can_defer:
        return prior(u)
    if any(isinstance(handler, ReparamMessenger) for handler in _PYRO_STACK):  # takes the prior apart
        return prior(u)
    return Deferred(prior, u)
