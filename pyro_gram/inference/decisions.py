"""The guidance of a lattice: which positions of an answer are decided now, and their values."""

from __future__ import annotations

import math
from copy import copy
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints, register_kl
from torch.nn.functional import one_hot

from pyro_gram.networks.relations import CLOSED, close_improbable

MIN_LOG_WEIGHT = -1e4  # log probability of deciding a position that cannot be decided: finite, and 0 in float32


class Decisions(dist.TorchDistribution):
    r"""Decide every position that is nearly certain, and some more; draw a value for each of them.

    A draw has a one-hot row for each position that is decided, and a row of zeros for every other position:

    .. math:: \log p(\epsilon) = \log w_j + \sum_{i \in S} \log p_i(\epsilon_i), \qquad S = C \cup \{j\}

    C are the open positions with max p_i > ``certainty``; j is one of the other open positions, if there are any, and
    is drawn with probability w_j. If ``count`` is above 1, each of the other open positions is decided with probability
    min(1, count w_j), independently of the others, in place of exactly one of them.

    A position is open if several of its values are. The positions to decide depend on ``logits``, but have no gradient:
    training follows the gradient of the bound at given orders.

    Args:
        logits: ``[..., L, V]``, :data:`~pyro_gram.networks.relations.CLOSED` at closed values.
        certainty: the probability above which a value counts as nearly certain; 1 for never.
        order: temperature of the choice of j: w_j is proportional to exp(-H_j / order), where H_j is the entropy of
            position j, nats. 0 takes the most certain position, infinity takes all alike.
        count: number of positions that are not nearly certain and are decided, on average.
    """

    arg_constraints = {"logits": constraints.real}  # noqa: RUF012 (torch's own convention)
    support = constraints.independent(constraints.real, 2)

    def __init__(
        self, logits: Tensor, certainty: float, order: float, count: int = 1, validate_args: bool | None = None
    ) -> None:
        self.raw_logits = logits
        self.settings = certainty, order, count
        self.logits = logits.log_softmax(-1)
        with torch.no_grad():
            log_p = self.logits.detach()
            is_open = (logits > CLOSED / 2).sum(-1) > 1
            self.is_certain = is_open & (log_p.amax(-1) > math.log(certainty))
            self.is_choice = is_open & ~self.is_certain
            entropy = -(log_p.exp() * log_p).sum(-1)
            score = (-entropy / max(order, 1e-6)).masked_fill(~self.is_choice, MIN_LOG_WEIGHT * 1e3)
            self.log_weights = score.log_softmax(-1).clamp(min=MIN_LOG_WEIGHT)
            share = (count * self.log_weights.exp()).clamp(max=1) * self.is_choice
            self.decision_probability = torch.where(self.is_certain, 1.0, share)  # [..., L]
        *batch, length, classes = logits.shape
        super().__init__(torch.Size(batch), torch.Size((length, classes)), validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Decisions:
        return Decisions(self.raw_logits.expand(*batch_shape, *self.event_shape), *self.settings)

    def with_floor(self, floor: float) -> Decisions:
        """Return the distribution that decides the same positions, but draws no value whose probability is lower."""
        decisions = copy(self)
        decisions.logits = close_improbable(self.logits, floor).log_softmax(-1)
        return decisions

    def reveal(self, values: Tensor, targets: Tensor | None = None) -> RevealedDecisions:
        """Return the distribution that decides the same positions, for known values (:class:`RevealedDecisions`)."""
        return RevealedDecisions(self, values, targets)

    @property
    def mode(self) -> Tensor:
        """The decisions of the certain positions and of the one that is chosen first, at their most probable values."""
        choice = one_hot(self.log_weights.argmax(-1), self.event_shape[0]).bool() & self.is_choice
        values = one_hot(self.logits.argmax(-1), self.event_shape[1]).to(self.logits.dtype)
        return values * (self.is_certain | choice)[..., None]

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008 (torch's own signature)
        with torch.no_grad():
            shape = torch.Size(sample_shape) + self.batch_shape
            is_decided = self.sample_positions(shape)
            logits = self.logits.expand(*shape, *self.event_shape)
            values = (logits + _gumbel(logits)).argmax(-1)
            return one_hot(values, self.event_shape[1]).to(logits.dtype) * is_decided[..., None]

    def sample_positions(self, shape: torch.Size) -> Tensor:
        """Draw which positions are decided, bool ``[*shape, L]``."""
        length = self.event_shape[0]
        if self.settings[-1] == 1:
            weights = self.log_weights.expand(*shape, length)
            choice = one_hot((weights + _gumbel(weights)).argmax(-1), length).bool()
            return self.is_certain | (choice & self.is_choice)
        probability = self.decision_probability.expand(*shape, length)
        return torch.rand_like(probability) < probability

    def log_prob(self, value: Tensor) -> Tensor:
        return self.log_prob_of_positions(value.sum(-1) > 0.5) + self.log_prob_of_values(value)

    def log_prob_of_positions(self, is_decided: Tensor) -> Tensor:
        """Return the log probability of deciding exactly these positions, bool ``[..., L]``, nats."""
        if self.settings[-1] == 1:
            is_chosen = is_decided & ~self.is_certain
            is_possible = (is_decided | ~self.is_certain).all(-1) & (is_chosen.sum(-1) == self.is_choice.any(-1).long())
            return (self.log_weights * is_chosen).sum(-1).masked_fill(~is_possible, -torch.inf)
        positions = dist.Bernoulli(self.decision_probability, validate_args=False)
        return positions.log_prob(is_decided.to(self.logits.dtype)).sum(-1)

    def log_prob_of_values(self, value: Tensor) -> Tensor:
        """Return the log probability of the values of the positions that ``value [..., L, V]`` decides, nats."""
        return (value * self.logits).sum((-1, -2))


class RevealedDecisions(Decisions):
    """Decide the positions that a prior decides, for known values. Prior and guide have the same w, which cancels.

    Args:
        prior: the prior's decisions.
        values: int64 ``[..., L]``: the values that decided positions take for sure.
        targets: ``[..., L, V]``: how these values are distributed given what was decided before, for the KL; None if
            this is not known.
    """

    has_rsample = True  # the values are fixed, and the choice of positions has no gradient in any case

    def __init__(self, prior: Decisions, values: Tensor, targets: Tensor | None = None) -> None:
        self.__dict__.update(prior.__dict__)  # the positions are computed once
        self.values, self.targets = values, targets

    def expand(self, batch_shape: Any, _instance: Any = None) -> RevealedDecisions:
        values = self.values.expand(*batch_shape, self.values.shape[-1])
        targets = None if self.targets is None else self.targets.expand(*batch_shape, *self.event_shape)
        return RevealedDecisions(super().expand(batch_shape), values, targets)

    @property
    def mode(self) -> Tensor:
        return super().mode.sum(-1, keepdim=True) * one_hot(self.values, self.event_shape[1])

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008 (torch's own signature)
        is_decided = self.sample_positions(torch.Size(sample_shape) + self.batch_shape)
        return one_hot(self.values, self.event_shape[1]).to(self.logits.dtype) * is_decided[..., None]

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        return self.sample(sample_shape)

    def log_prob_of_values(self, value: Tensor) -> Tensor:
        is_other = (value.sum(-1) > 0.5) & (value.argmax(-1) != self.values)
        return CLOSED * is_other.sum(-1)


def _gumbel(like: Tensor) -> Tensor:
    return -torch.empty_like(like).exponential_().log()


@register_kl(Decisions, Decisions)
def _kl_decisions(q: Decisions, p: Decisions) -> Tensor:
    """Return KL(q || p) of two distributions that decide the same positions, nats, ``[...]``: an expectation over j.

    Raises:
        NotImplementedError: they do not decide the same positions with the same probabilities.
    """
    return _sum_positions(q, p, (q.logits.exp() * (q.logits - p.logits)).sum(-1))


@register_kl(RevealedDecisions, Decisions)
def _kl_revealed(q: RevealedDecisions, p: Decisions) -> Tensor:
    if q.targets is not None:
        return _sum_positions(q, p, -(q.targets * p.logits).sum(-1))
    values = q.values.expand(p.logits.shape[:-1])[..., None]
    return _sum_positions(q, p, -p.logits.gather(-1, values).squeeze(-1))


def _sum_positions(q: Decisions, p: Decisions, per_position: Tensor) -> Tensor:
    if q.settings != p.settings or not torch.equal(q.decision_probability, p.decision_probability):
        raise NotImplementedError("this KL is of decisions with equal orders")
    return (p.decision_probability * per_position).sum(-1)
