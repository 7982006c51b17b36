"""What a guide answers a prior with: each prior names the variational family that suits it.

A family turns features of a position into a distribution over the guidance of that position. Guides ask the prior of
their model for it, so that any guide of the repository works with any prior that leaves something to infer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints, register_kl

from pyro_gram.errors import ConfigError
from pyro_gram.networks.layers import CodeHead, GaussianHead


class Family(Protocol):
    """A kind of distribution over guidance, and the head that parametrises it."""

    def head(self, inputs: int, hidden: int, width: int, initial_scale: float) -> nn.Module:
        """A module from features ``[..., L, inputs]`` to the tensors that :meth:`distribution` takes."""

    def distribution(self, *parameters: Tensor) -> dist.TorchDistribution:
        """Batch shape ``[...]``, event shape ``[L, *]``."""

    def residual(self, prior: Any, *parameters: Tensor) -> dist.TorchDistribution:
        """The same, its parameters taken relative to the prior's. Raises ConfigError where that has no meaning."""


@dataclass(frozen=True)
class NormalFamily:
    """Diagonal Gaussians over ``[L, D]``. ``start``: their scale before training, where the prior's is known; or 0."""

    start: float = 0.0

    def head(self, inputs: int, hidden: int, width: int, initial_scale: float) -> nn.Module:
        return GaussianHead(inputs, hidden, width, self.start or initial_scale)

    def distribution(self, *parameters: Tensor) -> dist.TorchDistribution:
        loc, scale = parameters
        return dist.Normal(loc, scale).to_event(2)

    def residual(self, prior: Any, *parameters: Tensor) -> dist.TorchDistribution:
        loc, scale = parameters
        try:
            middle = prior.mean
        except NotImplementedError:
            raise ConfigError(
                f"a prior that is a {type_of(prior)} has no mean to be residual to: use --guide amortized"
            ) from None
        return self.distribution(middle + loc, scale)


class MeanOnly(dist.Normal):
    r"""N(loc, 0) as far as draws go; its density and KL are those of N(loc, scale^2), so that they are finite."""

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008 (torch's own signature)
        return self.loc.expand(self._extended_shape(sample_shape))

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        return self.rsample(sample_shape).detach()


@dataclass(frozen=True)
class MeanFamily(NormalFamily):
    """Points over ``[L, D]``, compared as Gaussians of one fixed ``scale``."""

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
    """Independent categorical codes, ``groups`` a position, as one-hot vectors side by side.

    Draws are one-hot. With gradient they are straight-through (the gradient is that of the probabilities), or relaxed
    (Gumbel-softmax at ``temperature``), where that is not 0. KLs are of the categoricals, in both cases.

    Args:
        logits: ``[..., L, groups, classes]``, normalised.
        temperature: of relaxed draws; 0 for straight-through ones.
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
        noisy = logits - torch.empty_like(logits).exponential_().log()  # the greatest is a draw (Gumbel's trick)
        trained = logits.requires_grad and torch.is_grad_enabled()
        if trained and self.temperature:
            return (noisy / self.temperature).softmax(-1).flatten(-2)
        hard = _one_hot(noisy.argmax(-1), logits)
        if trained:
            probabilities = logits.exp()
            hard = hard + probabilities - probabilities.detach()
        return hard.flatten(-2)

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
    """:class:`Codes`; ``uniform`` of their probability is spread evenly, so that no KL is infinite (DreamerV3)."""

    groups: int
    classes: int
    temperature: float = 0.0
    uniform_mix: float = 0.01

    def head(self, inputs: int, hidden: int, width: int, initial_scale: float) -> nn.Module:
        return CodeHead(inputs, hidden, self.groups, self.classes)

    def distribution(self, *parameters: Tensor) -> dist.TorchDistribution:
        (raw,) = parameters
        probabilities = (1 - self.uniform_mix) * raw.softmax(-1) + self.uniform_mix / self.classes
        return Codes(probabilities.log(), self.temperature)

    def residual(self, prior: Any, *parameters: Tensor) -> dist.TorchDistribution:
        (raw,) = parameters
        return self.distribution(prior.logits + raw)


NORMAL = NormalFamily()


@runtime_checkable
class EmbeddingPrior(Protocol):
    """A prior whose guidance does not lie in u's space."""

    def embed_guidance(self, eps: Tensor) -> Tensor:
        """Return what is added to u, ``[..., L, D]``."""


def embed_guidance(prior: Any, eps: Tensor) -> Tensor:
    """Return what is added to u: ``eps`` itself, unless the prior has a method ``embed_guidance``."""
    return prior.embed_guidance(eps) if isinstance(prior, EmbeddingPrior) else eps


def type_of(distribution: Any) -> str:
    """The name of a distribution's kind, for messages."""
    return type(getattr(distribution, "base_dist", distribution)).__name__
