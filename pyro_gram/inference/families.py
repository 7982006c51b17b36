"""Variational families: the kinds of distribution that guides use for the guidance eps_t.

A family turns the features of each position into a distribution over the guidance there. Each prior names the family
that its guides use (``PriorTraits.family``). The amortized guide therefore works with every prior that is not
deterministic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints, register_kl

from pyro_gram.errors import ConfigError
from pyro_gram.inference.terms import is_delta, is_lattice_guidance
from pyro_gram.networks.core import CodeHead, GaussianHead


class Family(Protocol):
    """A kind of distribution over guidance, and the network that computes its parameters."""

    def head(self, inputs: int, hidden: int, width: int, initial_scale: float) -> nn.Module:
        """Make the module that maps features ``[..., L, inputs]`` to the arguments of :meth:`distribution`."""

    def distribution(self, *parameters: Tensor) -> dist.TorchDistribution:
        """Return the distribution with these parameters: batch shape ``[...]``, event shape ``[L, *]``."""

    def residual(self, prior: Any, *parameters: Tensor) -> dist.TorchDistribution:
        """Return a distribution whose mean (or logits) is that of the prior plus the first of these parameters.

        Raises:
            ConfigError: the prior has no mean.
        """


@dataclass(frozen=True)
class NormalFamily:
    """Diagonal Gaussians over ``[L, D]``.

    Attributes:
        start_scale: sigma before training; 0 for the guide's own ``initial_scale``.
    """

    start_scale: float = 0.0

    def head(self, inputs: int, hidden: int, width: int, initial_scale: float) -> nn.Module:
        return GaussianHead(inputs, hidden, width, self.start_scale or initial_scale)

    def distribution(self, *parameters: Tensor) -> dist.TorchDistribution:
        loc, scale = parameters
        return dist.Normal(loc, scale).to_event(2)

    def residual(self, prior: Any, *parameters: Tensor) -> dist.TorchDistribution:
        loc, scale = parameters
        try:
            prior_mean = prior.mean
        except NotImplementedError:
            raise ConfigError(
                f"the residual guide needs the mean of the prior; a {type_of(prior)} has none: use --guide amortized"
            ) from None
        return self.distribution(prior_mean + loc, scale)


class MeanOnly(dist.Normal):
    r"""A point mass: each draw is ``loc``. Density and KL are those of N(loc, scale^2), so that they are finite."""

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008 (torch's own signature)
        return self.loc.expand(self._extended_shape(sample_shape))

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        return self.rsample(sample_shape).detach()


@dataclass(frozen=True)
class MeanFamily(NormalFamily):
    """Point masses over ``[L, D]``. Their KL is that of Gaussians with one fixed ``scale``."""

    scale: float = 0.1

    def head(self, inputs: int, hidden: int, width: int, initial_scale: float) -> nn.Module:
        return GaussianHead(inputs, hidden, width, scale=False)

    def distribution(self, *parameters: Tensor) -> dist.TorchDistribution:
        (loc,) = parameters
        return MeanOnly(loc, torch.full_like(loc, self.scale)).to_event(2)

    def residual(self, prior: Any, *parameters: Tensor) -> dist.TorchDistribution:
        (shift,) = parameters
        return self.distribution(prior.mean + shift)


class Codes(dist.TorchDistribution):
    """Independent categorical codes, ``groups`` of them at each position, as concatenated one-hot vectors.

    Draws are one-hot vectors. A draw that needs a gradient takes the gradient of the probabilities (straight-through);
    with a ``temperature`` other than 0, such a draw is relaxed instead (Gumbel-softmax). The KL is always that of the
    categorical distributions.

    Args:
        logits: ``[..., L, groups, classes]``, normalised.
        temperature: temperature of relaxed draws; 0 for straight-through draws.
    """

    arg_constraints = {"logits": constraints.real}  # noqa: RUF012 (torch's own convention)
    has_rsample = True
    support = constraints.independent(constraints.real, 2)

    def __init__(self, logits: Tensor, temperature: float = 0.0, validate_args: Any = None) -> None:
        self.logits, self.temperature = logits, temperature
        *batch, length, groups, classes = logits.shape
        super().__init__(torch.Size(batch), torch.Size((length, groups * classes)), validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Codes:
        return Codes(self.logits.expand(*batch_shape, *self.logits.shape[-3:]), self.temperature)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        logits = self.logits.expand(*sample_shape, *self.logits.shape)
        gumbel_logits = logits - torch.empty_like(logits).exponential_().log()  # the argmax of these logits is a draw
        needs_grad = logits.requires_grad and torch.is_grad_enabled()
        if needs_grad and self.temperature:
            return (gumbel_logits / self.temperature).softmax(-1).flatten(-2)
        codes = _one_hot(gumbel_logits.argmax(-1), logits)
        if needs_grad:
            probabilities = logits.exp()
            codes = codes + probabilities - probabilities.detach()
        return codes.flatten(-2)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        with torch.no_grad():
            return self.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        return (value.unflatten(-1, self.logits.shape[-2:]) * self.logits).sum((-1, -2, -3))

    @property
    def mean(self) -> Tensor:
        return self.logits.exp().flatten(-2)

    @property
    def mode(self) -> Tensor:
        return _one_hot(self.logits.argmax(-1), self.logits).flatten(-2)


def _one_hot(index: Tensor, like: Tensor) -> Tensor:
    return nn.functional.one_hot(index, like.shape[-1]).to(like.dtype)


@register_kl(Codes, Codes)
def _kl_codes(q: Codes, p: Codes) -> Tensor:
    return (q.logits.exp() * (q.logits - p.logits)).sum((-1, -2, -3))


@dataclass(frozen=True)
class CodeFamily:
    """The family of :class:`Codes`. A uniform share ``uniform_mix`` of the probability keeps KLs finite (DreamerV3)."""

    groups: int
    classes: int
    temperature: float = 0.0
    uniform_mix: float = 0.01

    def head(self, inputs: int, hidden: int, width: int, initial_scale: float) -> nn.Module:
        return CodeHead(inputs, hidden, self.groups, self.classes)

    def distribution(self, *parameters: Tensor) -> dist.TorchDistribution:
        (raw_logits,) = parameters
        probabilities = (1 - self.uniform_mix) * raw_logits.softmax(-1) + self.uniform_mix / self.classes
        return Codes(probabilities.log(), self.temperature)

    def residual(self, prior: Any, *parameters: Tensor) -> dist.TorchDistribution:
        (raw_logits,) = parameters
        return self.distribution(prior.logits + raw_logits)


NORMAL = NormalFamily()


def neutralize_padding(distribution: Any, mask: Tensor | None) -> Any:
    """Return a distribution of guidance that is the same at padding for every prior and guide.

    At padding a Gaussian becomes N(0, 1), and codes become uniform. The KL there is 0, and log densities of prior and
    guide cancel.

    Args:
        distribution: batch shape ``[...]``, event shape ``[L, *]``.
        mask: bool ``[..., L]``, False at padding; None if no position is padding.

    Raises:
        ConfigError: positions of this distribution are not independent, or no such form of it is known.
    """
    if mask is None or is_delta(distribution) or is_lattice_guidance(distribution):  # it decides nothing at padding
        return distribution
    base = getattr(distribution, "base_dist", distribution)
    if isinstance(base, dist.Normal):
        column = mask[..., None]
        loc, scale = torch.where(column, base.loc, 0.0), torch.where(column, base.scale, 1.0)
        return type(base)(loc, scale, validate_args=False).to_event(2)
    if isinstance(distribution, Codes):
        uniform = -math.log(distribution.logits.shape[-1])
        logits = torch.where(mask[..., None, None], distribution.logits, uniform)
        return Codes(logits, distribution.temperature)
    raise ConfigError(
        f"a {type_of(distribution)} has no form for padding: use --prior gaussian, or a task with inputs of one size"
    )


@runtime_checkable
class EmbeddingPrior(Protocol):
    """A prior whose guidance does not lie in u's space. The guidance is embedded before it is added to u."""

    def embed_guidance(self, eps: Tensor) -> Tensor:
        """Return the term that is added to u, ``[..., L, D]``."""


def embed_guidance(prior: Any, eps: Tensor) -> Tensor:
    """Return the term that is added to u: ``eps`` itself, unless the prior has a method ``embed_guidance``."""
    return prior.embed_guidance(eps) if isinstance(prior, EmbeddingPrior) else eps


def type_of(distribution: Any) -> str:
    """Return the name of a distribution's class, without ``Independent`` around it."""
    return type(getattr(distribution, "base_dist", distribution)).__name__
