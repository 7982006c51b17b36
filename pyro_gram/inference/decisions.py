"""The guidance of a lattice: which tokens of an answer are decided now, and their values."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints, register_kl
from torch.nn.functional import one_hot

from pyro_gram.networks.relations import CLOSED, close_improbable

MIN_LOG_WEIGHT = -1e4  # log probability of deciding a token that cannot be decided: finite, and 0 in float32


class Decisions(dist.TorchDistribution):
    r"""Decide every token that is nearly certain, and some more; draw a value for each of them.

    A draw has a one-hot row for each token that is decided, and a row of zeros for every other token:

    .. math:: \log p(\epsilon) = \log w_j + \sum_{i \in S} \log p_i(\epsilon_i), \qquad S = C \cup \{j\}

    C are the open tokens with max p_i > ``certainty``; j is one of the other open tokens, if there are any, and is
    drawn with probability w_j. If ``count`` is above 1, each of the other open tokens is decided independently of the
    others, in place of exactly one of them. These probabilities are proportional to w_j, at most 1, and add up to
    ``count``, or to the number of these tokens.

    A token is open if several of its values are. The tokens to decide depend on ``logits``, but have no gradient:
    training follows the gradient of the bound at given orders.

    Args:
        logits: ``[..., L, V]``, :data:`~pyro_gram.networks.relations.CLOSED` at closed values.
        certainty: the probability above which a value counts as nearly certain; 1 for never.
        order: temperature of the choice of j: w_j is proportional to exp(-H_j / order), where H_j is the entropy of
            token j, nats. 0 takes the most certain token, infinity takes all alike.
        count: number of tokens that are not nearly certain and are decided, on average.
        floor: values with a lower probability are not drawn; the choice of tokens does not change.
    """

    arg_constraints = {"logits": constraints.real}  # noqa: RUF012 (torch's own convention)
    support = constraints.independent(constraints.real, 2)

    def __init__(
        self,
        logits: Tensor,
        certainty: float,
        order: float,
        count: int = 1,
        floor: float = 0.0,
        validate_args: bool | None = None,
    ) -> None:
        self.raw_logits, self.certainty, self.order, self.count, self.floor = logits, certainty, order, count, floor
        self.logits = logits.log_softmax(-1)
        with torch.no_grad():
            log_p = self.logits.detach()
            is_open = (logits > CLOSED / 2).sum(-1) > 1
            self.is_certain = is_open & (log_p.amax(-1) > math.log(certainty))
            self.is_choice = is_open & ~self.is_certain
            entropy = -(log_p.exp() * log_p).sum(-1)
            score = (-entropy / max(order, 1e-6)).masked_fill(~self.is_choice, MIN_LOG_WEIGHT * 1e3)
            self.log_weights = score.log_softmax(-1).clamp(min=MIN_LOG_WEIGHT)
            share = _inclusion_probability(score, count) * self.is_choice
            self.decision_probability = torch.where(self.is_certain, 1.0, share)  # [..., L]
            first_choices = score.topk(min(count, score.shape[-1])).indices
            self.most_probable = self.is_certain | (self.is_choice & _mask_of(first_choices, score.shape[-1]))
        if floor:
            self.logits = close_improbable(self.logits, floor).log_softmax(-1)
        *batch, length, classes = logits.shape
        super().__init__(torch.Size(batch), torch.Size((length, classes)), validate_args=validate_args)

    @property
    def settings(self) -> tuple[float, float, int]:
        """``certainty``, ``order`` and ``count``: which tokens are decided, for given logits."""
        return self.certainty, self.order, self.count

    def expand(self, batch_shape: Any, _instance: Any = None) -> Decisions:
        return Decisions(self.raw_logits.expand(*batch_shape, *self.event_shape), *self.settings, self.floor)

    def with_floor(self, floor: float) -> Decisions:
        """Return the distribution that decides the same tokens, but draws no value whose probability is lower."""
        return Decisions(self.raw_logits, *self.settings, floor)

    def reveal(self, values: Tensor, targets: Tensor | None = None) -> RevealedDecisions:
        """Return the distribution that decides the same tokens, for known values (:class:`RevealedDecisions`)."""
        return RevealedDecisions(self, values, targets)

    @property
    def mode(self) -> Tensor:
        """The decisions of the certain tokens and of those chosen first, at their most probable values."""
        values = one_hot(self.logits.argmax(-1), self.event_shape[1]).to(self.logits.dtype)
        return values * self.most_probable[..., None]

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008 (torch's own signature)
        with torch.no_grad():
            shape = torch.Size(sample_shape) + self.batch_shape
            is_decided = self.sample_tokens(shape)
            logits = self.logits.expand(*shape, *self.event_shape)
            values = (logits + _gumbel(logits)).argmax(-1)
            return one_hot(values, self.event_shape[1]).to(logits.dtype) * is_decided[..., None]

    def sample_tokens(self, shape: torch.Size) -> Tensor:
        """Draw which tokens are decided, bool ``[*shape, L]``."""
        length = self.event_shape[0]
        if self.count == 1:
            weights = self.log_weights.expand(*shape, length)
            choice = one_hot((weights + _gumbel(weights)).argmax(-1), length).bool()
            return self.is_certain | (choice & self.is_choice)
        probability = self.decision_probability.expand(*shape, length)
        return torch.rand_like(probability) < probability

    def log_prob(self, value: Tensor) -> Tensor:
        return self.log_prob_of_tokens(value.sum(-1) > 0.5) + self.log_prob_of_values(value)

    def log_prob_of_tokens(self, is_decided: Tensor) -> Tensor:
        """Return the log probability of deciding exactly these tokens, bool ``[..., L]``, nats."""
        if self.count == 1:
            is_chosen = is_decided & ~self.is_certain
            is_possible = (is_decided | ~self.is_certain).all(-1) & (is_chosen.sum(-1) == self.is_choice.any(-1).long())
            return (self.log_weights * is_chosen).sum(-1).masked_fill(~is_possible, -torch.inf)
        tokens = dist.Bernoulli(self.decision_probability, validate_args=False)
        return tokens.log_prob(is_decided.to(self.logits.dtype)).sum(-1)

    def log_prob_of_values(self, value: Tensor) -> Tensor:
        """Return the log probability of the values of the tokens that ``value [..., L, V]`` decides, nats."""
        return (value * self.logits).sum((-1, -2))


class RevealedDecisions(Decisions):
    """Decide the tokens that a prior decides, for known values. Prior and guide have the same w, which cancels.

    Args:
        prior: the prior's decisions.
        values: int64 ``[..., L]``: the values that decided tokens take for sure.
        targets: ``[..., L, V]``: how these values are distributed given what was decided before, for the KL; None if
            this is not known.
    """

    has_rsample = True  # the values are fixed, and the choice of tokens has no gradient in any case

    def __init__(self, prior: Decisions, values: Tensor, targets: Tensor | None = None) -> None:
        self.__dict__.update(prior.__dict__)  # the tokens are chosen once
        self.values, self.targets = values, targets

    def expand(self, batch_shape: Any, _instance: Any = None) -> RevealedDecisions:
        values = self.values.expand(*batch_shape, self.values.shape[-1])
        targets = None if self.targets is None else self.targets.expand(*batch_shape, *self.event_shape)
        return RevealedDecisions(super().expand(batch_shape), values, targets)

    @property
    def mode(self) -> Tensor:
        return self.most_probable[..., None] * one_hot(self.values, self.event_shape[1]).to(self.logits.dtype)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008 (torch's own signature)
        is_decided = self.sample_tokens(torch.Size(sample_shape) + self.batch_shape)
        return one_hot(self.values, self.event_shape[1]).to(self.logits.dtype) * is_decided[..., None]

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        return self.sample(sample_shape)

    def log_prob_of_values(self, value: Tensor) -> Tensor:
        is_other = (value.sum(-1) > 0.5) & (value.argmax(-1) != self.values)
        return CLOSED * is_other.sum(-1)


def _inclusion_probability(score: Tensor, count: int) -> Tensor:
    """Return probabilities of choosing each of L tokens, proportional to exp(score) but at most 1, ``[..., L]``.

    They add up to ``count``. In each round the tokens that reach 1 leave, and the others share the rest.
    """
    probability = torch.zeros_like(score)
    for _ in range(count):
        is_sure = probability >= 1
        rest = (count - is_sure.sum(-1, keepdim=True)).clamp(min=0)
        weights = score.masked_fill(is_sure, -torch.inf).softmax(-1).nan_to_num()
        probability = torch.where(is_sure, 1.0, (rest * weights).clamp(max=1))
    return probability


def _mask_of(index: Tensor, length: int) -> Tensor:
    return torch.zeros(*index.shape[:-1], length, dtype=torch.bool, device=index.device).scatter(-1, index, True)


def _gumbel(like: Tensor) -> Tensor:
    return -torch.empty_like(like).exponential_().clamp(min=torch.finfo(like.dtype).tiny).log()


@register_kl(Decisions, Decisions)
def _kl_decisions(q: Decisions, p: Decisions) -> Tensor:
    """Return KL(q || p) of two distributions that decide the same tokens, nats, ``[...]``: an expectation over j.

    Raises:
        NotImplementedError: they do not decide the same tokens with the same probabilities.
    """
    return _sum_tokens(q, p, (q.logits.exp() * (q.logits - p.logits)).sum(-1))


@register_kl(RevealedDecisions, Decisions)
def _kl_revealed(q: RevealedDecisions, p: Decisions) -> Tensor:
    if q.targets is not None:
        return _sum_tokens(q, p, -(q.targets * p.logits).sum(-1))
    values = q.values.expand(p.logits.shape[:-1])[..., None]
    return _sum_tokens(q, p, -p.logits.gather(-1, values).squeeze(-1))


def _sum_tokens(q: Decisions, p: Decisions, per_token: Tensor) -> Tensor:
    if q.settings != p.settings or not torch.equal(q.decision_probability, p.decision_probability):
        raise NotImplementedError("this KL is of decisions with equal orders")
    return (p.decision_probability * per_token).sum(-1)
