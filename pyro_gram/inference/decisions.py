"""The guidance of a lattice: which positions of an answer are decided now, and their values."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints, register_kl
from torch.nn.functional import one_hot

from pyro_gram.networks.relations import CLOSED

MIN_LOG_WEIGHT = -1e4  # log probability of deciding a position that cannot be decided: finite, and 0 in float32


class Decisions(dist.TorchDistribution):
    r"""Decide every position that is nearly certain, and some more; draw a value for each of them.

    A draw has a one-hot row for each position that is decided, and a row of zeros for every other position:

    .. math:: \log p(\epsilon) = \log w_j + \sum_{i \in S} \log p_i(\epsilon_i), \qquad S = C \cup \{j\}

    C are the open positions with max p_i > ``certainty``; j is one of the other open positions, if there are any, and
    is drawn with probability w_j. If ``count`` is above 1, each of the other open positions is decided with probability
    min(1, count w_j), independently of the others, in place of exactly one of them.

    A position is open if several of its values are. The positions to decide depend on ``logits``, but have no gradient:
    training follows the gradient of the bound at given orders. A guide that decides the same positions has the same w,
    so that the w of prior and guide cancel.

    Args:
        logits: ``[..., L, V]``, :data:`~pyro_gram.networks.relations.CLOSED` at closed values.
        certainty: the probability above which a value counts as nearly certain; 1 for never.
        order: temperature of the choice of j: w_j is proportional to exp(-H_j / order), where H_j is the entropy of
            position j, nats. 0 takes the most certain position, infinity takes all alike.
        count: number of positions that are not nearly certain and are decided, on average.
        values: int64 ``[..., L]``: the values that decided positions take for sure, in a guide; None: they are drawn.
        targets: ``[..., L, V]``: how the values of the guide are distributed given what was decided before, for the KL;
            None if this is not known.
    """

    arg_constraints = {"logits": constraints.real}  # noqa: RUF012 (torch's own convention)
    support = constraints.independent(constraints.real, 2)

    def __init__(
        self,
        logits: Tensor,
        certainty: float,
        order: float,
        count: int = 1,
        values: Tensor | None = None,
        targets: Tensor | None = None,
        validate_args: Any = None,
    ) -> None:
        self.raw_logits, self.values, self.targets = logits, values, targets
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
        shape = torch.Size(batch_shape)
        values = None if self.values is None else self.values.expand(*shape, self.values.shape[-1])
        targets = None if self.targets is None else self.targets.expand(*shape, *self.event_shape)
        return Decisions(self.raw_logits.expand(*shape, *self.event_shape), *self.settings, values, targets)

    def with_values(self, values: Tensor, targets: Tensor | None = None) -> Decisions:
        """Return the distribution that decides the same positions, for the values ``values``, int64 ``[..., L]``."""
        return Decisions(self.raw_logits, *self.settings, values, targets)

    @property
    def has_rsample(self) -> bool:
        """Whether the values are fixed, as in a guide. The choice of positions has no gradient in any case."""
        return self.values is not None

    @property
    def mode(self) -> Tensor:
        """The decisions of the certain positions and of the one that is chosen first, at their most probable values."""
        classes = self.event_shape[-1]
        choice = one_hot(self.log_weights.argmax(-1), self.event_shape[0]).bool() & self.is_choice
        values = self.logits.argmax(-1) if self.values is None else self.values
        return one_hot(values, classes).to(self.logits.dtype) * (self.is_certain | choice)[..., None]

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008 (torch's own signature)
        with torch.no_grad():
            shape = torch.Size(sample_shape) + self.batch_shape
            length, classes = self.event_shape
            if self.settings[-1] == 1:
                weights = self.log_weights.expand(*shape, length)
                choice = one_hot((weights + _gumbel(weights)).argmax(-1), length).bool()
                is_decided = self.is_certain | (choice & self.is_choice)
            else:
                probability = self.decision_probability.expand(*shape, length)
                is_decided = torch.rand_like(probability) < probability
            values = self.values
            if values is None:
                logits = self.logits.expand(*shape, length, classes)
                values = (logits + _gumbel(logits)).argmax(-1)
            return one_hot(values, classes).to(self.logits.dtype) * is_decided[..., None]

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        return self.sample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        is_decided = value.sum(-1) > 0.5
        if self.settings[-1] == 1:
            is_chosen = is_decided & ~self.is_certain
            log_decided = (self.log_weights * is_chosen).sum(-1)
            is_possible = (is_decided | ~self.is_certain).all(-1) & (is_chosen.sum(-1) == self.is_choice.any(-1).long())
            log_decided = log_decided.masked_fill(~is_possible, -torch.inf)
        else:
            log_decided = (
                dist.Bernoulli(self.decision_probability, validate_args=False).log_prob(is_decided.float()).sum(-1)
            )
        if self.values is None:
            log_values = (value * self.logits).sum((-1, -2))
        else:
            log_values = CLOSED * (is_decided & (value.argmax(-1) != self.values)).sum(-1)
        return log_decided + log_values


def _gumbel(like: Tensor) -> Tensor:
    return -torch.empty_like(like).exponential_().log()


@register_kl(Decisions, Decisions)
def _kl_decisions(q: Decisions, p: Decisions) -> Tensor:
    """Return KL(q || p) of two distributions that decide the same positions, nats, ``[...]``: an expectation over j.

    Raises:
        NotImplementedError: they do not decide the same positions with the same probabilities.
    """
    if q.settings != p.settings or not torch.equal(q.decision_probability, p.decision_probability):
        raise NotImplementedError("this KL is of decisions with equal orders")
    if q.values is None:
        per_position = (q.logits.exp() * (q.logits - p.logits)).sum(-1)
    elif q.targets is not None:
        per_position = -(q.targets * p.logits).sum(-1)
    else:
        per_position = -p.logits.gather(-1, q.values.expand(p.logits.shape[:-1])[..., None]).squeeze(-1)
    return (p.decision_probability * per_position).sum(-1)
