"""log p(y | x) by prior Monte Carlo: trajectories that have never seen y, scored when they have ended."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyro_gram.checks import check_counts
from pyro_gram.errors import ConfigError
from pyro_gram.inference.importance import check_pairs
from pyro_gram.inference.sites import ANSWER
from pyro_gram.inference.terms import check_batch_shape, check_not_shared, log_prob_of, per_input
from pyro_gram.sampling.memory import MAX_TRAJECTORIES
from pyro_gram.sampling.rollout import counted_observations, isolated_rng, run_steps
from pyro_gram.sampling.tempering import check_no_temper


def rollout_log_prob(
    model: Callable[..., Any],
    x: Tensor | None,
    y: Tensor,
    *,
    num_samples: int,
    depth: int,
    seed: int = 0,
    max_trajectories: int = MAX_TRAJECTORIES,
) -> Tensor:
    """log p(y | h_T) at the end of each of ``num_samples`` trajectories of the prior, nats, ``[N, B]``.

    The trajectories are those of ``sampling.rollout``; y is looked at when they have ended. What else the program
    observes (a user's own sites, conditioned guidance) counts under its masks. Where x is None, every datum is scored
    under the same N trajectories.

    Raises:
        UserError: a count below 1; x and y that are no pairs.
        ConfigError: an observation that several inputs share; a program that says something else of y where it is given
            y; one that holds tensors of one batch; a Temper around the call.
    """
    check_counts(seed=seed, num_samples=num_samples, depth=depth, max_trajectories=max_trajectories)
    check_pairs(x, y)
    check_no_temper()
    whole = max(1, max_trajectories // num_samples)
    parts = [(None, y)] if x is None else list(zip(x.split(whole), y.split(whole), strict=True))
    rows = []
    chunk = 0
    with isolated_rng(model, x):
        _check_scored(model, parts[0][0], parts[0][1] if x is not None else y[:1])
        for a, b in parts:
            columns = []
            for start in range(0, num_samples, max_trajectories):
                torch.manual_seed(seed + chunk)
                chunk += 1
                decode = run_steps(model, a, None, min(max_trajectories, num_samples - start), depth)
                if len(y) > 1:
                    check_not_shared(decode.observations, decode.answer_site)
                few = [b] if a is not None else b.split(64)  # [N, B] log-probabilities of long answers are wide
                columns.append(torch.cat([decode.log_prob(c) for c in few], dim=1))
            rows.append(torch.cat(columns))
            check_batch_shape(rows[-1].shape, (num_samples, len(b)))
    return torch.cat(rows, dim=1)


class _Replay(Messenger):
    """Notes what a program draws, or gives it what was noted; and keeps its observed sites that count."""

    def __init__(self, values: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.values = {} if values is None else values
        self.replays = values is not None
        self.observed: list[tuple[str, Any]] = []

    def _pyro_sample(self, msg: Any) -> None:
        if self.replays and not msg["is_observed"] and msg["name"] in self.values:
            msg["value"], msg["done"] = self.values[msg["name"]], True

    def _pyro_post_sample(self, msg: Any) -> None:
        if not msg["is_observed"]:
            self.values[msg["name"]] = msg["value"]
        self.observed.extend(counted_observations(msg))


def _check_scored(model: Callable[..., Any], x: Tensor | None, y: Tensor) -> None:
    """Raises ConfigError where the program says something else of y when it is given y: a roll-out is not.

    One trajectory of each input is run without y and scored, and run again, the same, with y.
    """
    with _Replay() as drawn:
        decode = run_steps(model, x, None, 1, 1)
    found = decode.log_prob(y)
    with _Replay(drawn.values) as replayed, pyro.plate("trajectories", 1, dim=-2):
        model(x, y, None, steps=1)
    answer = dict(replayed.observed).get(ANSWER)
    if answer is None:
        return  # a bound stands in for y (diffusion models)
    expected = torch.zeros(torch.broadcast_shapes(answer["fn"].batch_shape, found.shape), device=found.device)
    for name, site in replayed.observed:
        expected = expected + per_input(name, site, log_prob_of(site), answer, expected.shape)
    if not torch.allclose(found.expand_as(expected), expected, rtol=1e-3, atol=1e-2, equal_nan=True):
        names = {name for name, _ in replayed.observed} - {name for name, _ in decode.observations} - {ANSWER}
        what = f"observes {', '.join(sorted(map(repr, names)))} only" if names else "has another density"
        raise ConfigError(
            f"the program {what} where it is given y, and trajectories of the prior are not: make all that depends on "
            "y a part of the likelihood at 'y', or use guide_draws"
        )


def prior_log_likelihood(
    model: nn.Module,
    x: Tensor | None,
    y: Tensor,
    *,
    depth: int,
    num_samples: int,
    seed: int = 0,
    max_trajectories: int = MAX_TRAJECTORIES,
) -> Tensor:
    """log p(y | x) by prior Monte Carlo: the log of the mean of p(y | h_T) over trajectories of the prior.

    Unbiased for p, so below log p on average, by an amount that falls with ``num_samples``.

    Args:
        x: inputs, ``[B, *event]``; None for p(x).
        y: answers, ``[B, L_out]``; they are looked at only after each trajectory has ended.
        depth: supervision steps.
        num_samples: S.
        max_trajectories: the most that run at once.

    Returns:
        nats per input, ``[B]``.
    """
    log_p = rollout_log_prob(
        model, x, y, depth=depth, num_samples=num_samples, seed=seed, max_trajectories=max_trajectories
    )
    return log_p.cpu().logsumexp(0) - math.log(num_samples)
