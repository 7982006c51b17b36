"""Evaluation of the prior at its first use, which spares its head in transitions without a KL (Eq. 14).

In these transitions the guide draws, and nothing reads the prior's density.
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

_effect_guide_draws: ContextVar[bool] = ContextVar("effect_guide_draws", default=False)


@contextmanager
def effect_guide_draws() -> Iterator[None]:
    """Mark that an effect guide samples the guidance sites."""
    token = _effect_guide_draws.set(True)
    try:
        yield
    finally:
        _effect_guide_draws.reset(token)


class Deferred(dist.TorchDistribution):
    """A reparameterized distribution over ``[L, D]`` that is computed from u at its first use, without gradient.

    Args:
        make: function from u, ``[..., L, D]``, to the distribution.
        u: the proposal.
    """

    has_rsample = True
    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 (torch's own declaration)

    def __init__(self, make: Callable[[Tensor], Any], u: Tensor) -> None:
        super().__init__(u.shape[:-2], u.shape[-2:], validate_args=False)
        self._make, self._u, self._distribution = make, u, None

    @property
    def distribution(self) -> Any:
        """Compute the distribution, once."""
        if self._distribution is None:
            with torch.no_grad():
                self._distribution = self._make(self._u)
        return self._distribution

    @constraints.dependent_property
    def support(self) -> Any:
        return self.distribution.support

    @property
    def base_dist(self) -> Any:
        """Return the ``base_dist`` of an Independent, from which a guide reads the prior's parameters."""
        return self.distribution.base_dist

    @property
    def mean(self) -> Tensor:
        return self.distribution.mean

    @property
    def variance(self) -> Tensor:
        return self.distribution.variance

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        return self.distribution.sample(sample_shape)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        return self.distribution.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.distribution.log_prob(value)

    def entropy(self) -> Tensor:
        return self.distribution.entropy()

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> Any:
        # Plates call it also if the shape stays the same.
        return self if torch.Size(batch_shape) == self.batch_shape else self.distribution.expand(batch_shape)


@register_kl(dist.Delta, Deferred)
@register_kl(Distribution, Deferred)
def _(q: Any, p: Deferred) -> Tensor:
    return kl_divergence(q, p.distribution)


def prior_at(prior: Any, u: Tensor, has_kl: bool) -> Any:
    """Return p(eps | u), computed now if it has a KL or is drawn from, else at its first use.

    Args:
        prior: function from u to a distribution; deferred only if its traits have ``can_defer``.
        u: the proposal, ``[..., L, D]``.
        has_kl: whether the KL of this transition is part of the bound.
    """
    if has_kl or not _effect_guide_draws.get() or not prior_traits(prior).can_defer:
        return prior(u)
    if any(isinstance(handler, ReparamMessenger) for handler in _PYRO_STACK):  # which decomposes the prior
        return prior(u)
    return Deferred(prior, u)
