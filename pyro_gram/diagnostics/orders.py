"""The exact likelihood of a lattice model: a sum over all orders in which the tokens of an answer may be decided.

The state of a lattice after some decisions is known from the set of decided tokens and y. So the sum over orders is a
sum over paths through subsets of the open tokens: 2^n states instead of n! orders.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.nn.functional import one_hot

from pyro_gram.errors import ConfigError, UserError
from pyro_gram.inference.decisions import Decisions
from pyro_gram.inference.sites import guidance_site
from pyro_gram.networks.core import LatentState
from pyro_gram.sampling.memory import MAX_TRAJECTORIES
from pyro_gram.sampling.steps import isolated_rng, run_steps

MAX_STATES = 2**18  # of a sum: 2^n for each answer, if n tokens are open


@dataclass(frozen=True)
class OrderSums:
    """What the sum over orders gives for answers to one input.

    Attributes:
        log_p: log p(y | x), nats, float64 ``[M]``.
        elbo: the ELBO of the guide ``reveal``, which is at most ``log_p``, nats, float64 ``[M]``.
        steps: the expected number of transitions of a trajectory that ends in the answer, float64 ``[M]``.
    """

    log_p: Tensor
    elbo: Tensor
    steps: Tensor


class _RecordDecisions(Messenger):
    """Record the prior's distribution in the first transition."""

    decisions: Any = None

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] == guidance_site(0):
            self.decisions = msg["fn"]


def sum_over_orders(model: Callable[..., Any], x: Tensor, y: Tensor) -> OrderSums:
    """Compute log p(y | x) and the ELBO of a lattice model exactly.

    Args:
        model: a program whose guidance are :class:`~pyro_gram.inference.decisions.Decisions`, with ``count`` 1, and
            which carries no low level from one transition to the next.
        x: one input, int64 ``[1, *event]``.
        y: answers to it, int64 ``[M, L_out]``. Answers that the input excludes have the probability 0.

    Raises:
        ConfigError: the program is no such model.
        UserError: so many answers and open tokens have more than ``MAX_STATES`` states.
    """
    if getattr(getattr(poutine.unwrap(model), "config", None), "is_carried", True):
        raise ConfigError("a sum over orders needs a lattice that carries no low level: set model.is_carried to false")
    with isolated_rng(model, x):
        start = run_steps(model, x, None, None, 0).state
        tokens = (start.h[0].sum(-1) > 1).nonzero().flatten()
        if (states := len(y) * 2 ** len(tokens)) > MAX_STATES:
            raise UserError(
                f"{len(y)} answers with {len(tokens)} open tokens have {states:,} states, over {MAX_STATES:,}"
            )
        subsets = torch.arange(2 ** len(tokens), device=x.device)
        is_decided = (subsets[:, None] >> torch.arange(len(tokens), device=x.device) & 1).bool()  # [S, n]
        pairs = torch.cartesian_prod(torch.arange(len(y)), subsets.cpu()).to(x.device)
        columns = [
            _decide(model, x, y[part[:, 0]], start, tokens, is_decided[part[:, 1]])
            for part in pairs.split(MAX_TRAJECTORIES)
        ]
        w, log_p, is_certain = (
            torch.cat(column).cpu().double().unflatten(0, (len(y), -1)) for column in zip(*columns, strict=True)
        )
        is_open = start.h.expand(len(y), -1, -1).gather(-1, y[..., None]) > 0.5
    sums = _sum_paths(w, log_p, is_certain.bool())
    is_excluded = ~is_open.all(-1).all(-1).cpu()
    log_p, elbo = (values.masked_fill(is_excluded, -torch.inf) for values in (sums.log_p, sums.elbo))
    return OrderSums(log_p, elbo, sums.steps)


def _decide(
    model: Callable[..., Any], x: Tensor, y: Tensor, start: LatentState, tokens: Tensor, is_decided: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the weights, log p(y) and certainty of the open ``tokens``, ``[S, n]`` each, once some are decided.

    Args:
        y: int64 ``[S, L_out]``.
        start: z_0 of the input.
        tokens: the tokens that z_0 leaves open, int64 ``[n]``.
        is_decided: which of them have their values of y, bool ``[S, n]``.
    """
    closed = torch.zeros(y.shape, dtype=torch.bool, device=y.device)
    closed[:, tokens] = is_decided
    h = torch.where(closed[..., None], one_hot(y, start.h.shape[-1]).to(start.h.dtype), start.h)
    with _RecordDecisions() as recorder:
        run_steps(model, x.expand(len(y), *x.shape[1:]), LatentState(h, start.l.expand(len(y), -1, -1)), None, 1)
    decisions = recorder.decisions
    if not isinstance(decisions, Decisions) or decisions.count != 1:
        raise ConfigError("a sum over orders needs decisions of one token at a time: set prior.count to 1")
    log_p = decisions.logits.gather(-1, y[..., None]).squeeze(-1)
    weights = decisions.log_weights.exp() * decisions.is_choice
    return weights[:, tokens], log_p[:, tokens], decisions.is_certain[:, tokens]


def _sum_paths(weights: Tensor, log_p: Tensor, is_certain: Tensor) -> OrderSums:
    """Sum over paths through the subsets of n tokens, from the empty one to the whole one.

    The arguments are ``[M, 2^n, n]``. The bits of the number of a subset are its tokens.
    """
    num_answers, num_subsets, n = weights.shape
    answers = torch.arange(num_answers)
    certain = (is_certain * 2 ** torch.arange(n)).sum(-1)  # [M, S]
    log_certain = (log_p * is_certain).sum(-1)
    log_reach = torch.full((num_answers, num_subsets), -torch.inf, dtype=torch.double)
    share = torch.zeros_like(log_reach)  # the probability that the guide visits a subset
    steps = torch.zeros_like(log_reach)  # transitions until a subset, on average over the model's paths to it
    log_reach[:, 0], share[:, 0] = 0.0, 1.0
    elbo = torch.zeros(num_answers).double()
    for subset in range(num_subsets - 1):  # a path leads to larger numbers only
        no_choice = (weights[:, subset].sum(-1) == 0).double()
        moves = [(0, no_choice, torch.zeros_like(elbo))]
        moves += [(2**j, weights[:, subset, j], log_p[:, subset, j]) for j in range(n)]
        for bit, weight, log_value in moves:
            if not (weight * share[:, subset]).any():
                continue
            target, log_value = (subset | bit) | certain[:, subset], log_value + log_certain[:, subset]
            path = log_reach[:, subset] + weight.log() + log_value
            total = torch.logaddexp(log_reach[answers, target], path)
            path_share = (path - total).exp().nan_to_num()
            steps[answers, target] = torch.lerp(steps[answers, target], steps[:, subset] + 1, path_share)
            log_reach[answers, target] = total
            share[answers, target] += share[:, subset] * weight
            elbo += torch.where(weight > 0, share[:, subset] * weight * log_value, 0.0)
    return OrderSums(log_reach[:, -1], elbo, steps[:, -1])
