"""Prior Monte Carlo: estimate log p(y | x) by the mean likelihood of y at the ends of trajectories of the prior."""

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
from pyro_gram.sampling.steps import counted_observations, isolated_rng, run_steps
from pyro_gram.sampling.tempering import check_no_temper

DATA_CHUNK = 64  # this many data of p(x) are scored at once: log-probabilities of long answers take much memory


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
    """Estimate log p(y | x) by the log of the mean of p(y | h_T) over trajectories of the prior.

    The mean is an unbiased estimate of p, so its log is below log p on average. More samples bring the estimate closer.

    Args:
        x: inputs, ``[B, *event]``; None for p(x).
        y: answers, ``[B, L_out]``, which are used only after each trajectory has ended.
        depth: supervision steps.
        num_samples: S, the number of trajectories per input.
        max_trajectories: the maximal number of trajectories that run at once.

    Returns:
        nats, ``[B]``.
    """
    log_p = rollout_log_prob(
        model, x, y, depth=depth, num_samples=num_samples, seed=seed, max_trajectories=max_trajectories
    )
    return log_p.cpu().logsumexp(0) - math.log(num_samples)


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
    """Return log p(y | h_T) at the end of each of ``num_samples`` trajectories of the prior, nats, ``[N, B]``.

    The trajectories are those of ``sampling.rollout``; y is used only when they have ended. The log densities of other
    observed sites (a user's own, or conditioned guidance) are added, with their masks. Without input (x is None) all
    data are scored under the same N trajectories.

    Raises:
        UserError: a count is below 1, or x and y do not form pairs.
        ConfigError: several inputs share an observation; the program's density of y changes when the program is given
            y; the program holds tensors that fit one batch only; or a Temper is active around the call.
    """
    check_counts(seed=seed, num_samples=num_samples, depth=depth, max_trajectories=max_trajectories)
    check_pairs(x, y)
    check_no_temper()
    size = max(1, max_trajectories // num_samples)
    parts = [(None, y)] if x is None else list(zip(x.split(size), y.split(size), strict=True))
    rows = []
    chunk = 0
    with isolated_rng(model, x):
        _check_density_of_y(model, parts[0][0], parts[0][1] if x is not None else y[:1])
        for inputs, answers in parts:
            columns = []
            for start in range(0, num_samples, max_trajectories):
                torch.manual_seed(seed + chunk)
                chunk += 1
                end = run_steps(model, inputs, None, min(max_trajectories, num_samples - start), depth)
                if len(y) > 1:
                    check_not_shared(end.observations, end.answer_site)
                pieces = [answers] if inputs is not None else answers.split(DATA_CHUNK)
                columns.append(torch.cat([end.log_prob(piece) for piece in pieces], dim=1))
            rows.append(torch.cat(columns))
            check_batch_shape(rows[-1].shape, (num_samples, len(answers)))
    return torch.cat(rows, dim=1)


class _Replay(Messenger):
    """Record the values that a program samples, or replay recorded values. Also record the sites that are observed."""

    def __init__(self, values: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.values = {} if values is None else values
        self.replays = values is not None
        self.observations: list[tuple[str, Any]] = []

    def _pyro_sample(self, msg: Any) -> None:
        if self.replays and not msg["is_observed"] and msg["name"] in self.values:
            msg["value"], msg["done"] = self.values[msg["name"]], True

    def _pyro_post_sample(self, msg: Any) -> None:
        if not msg["is_observed"]:
            self.values[msg["name"]] = msg["value"]
        self.observations.extend(counted_observations(msg))


def _check_density_of_y(model: Callable[..., Any], x: Tensor | None, y: Tensor) -> None:
    """Raise ConfigError if the density of a program changes when y is passed to the program. Rollouts do not pass y.

    One trajectory of each input runs and is scored without y. Then the trajectory is replayed with y.
    """
    with _Replay() as recorder:
        end = run_steps(model, x, None, 1, 1)
    log_prob = end.log_prob(y)
    with _Replay(recorder.values) as replay, pyro.plate("trajectories", 1, dim=-2):
        model(x, y, None, steps=1)
    answer = dict(replay.observations).get(ANSWER)
    if answer is None:
        return  # a diffusion model has a bound in place of the site y
    expected = torch.zeros(torch.broadcast_shapes(answer["fn"].batch_shape, log_prob.shape), device=log_prob.device)
    for name, site in replay.observations:
        expected = expected + per_input(name, site, log_prob_of(site), answer, expected.shape)
    if not torch.allclose(log_prob.expand_as(expected), expected, rtol=1e-3, atol=1e-2, equal_nan=True):
        names = {name for name, _ in replay.observations} - {name for name, _ in end.observations} - {ANSWER}
        difference = f"observes {', '.join(sorted(map(repr, names)))} only" if names else "has another density"
        raise ConfigError(
            f"the program {difference} when it is given y, but trajectories of the prior are not given y: move all "
            "that depends on y into the likelihood at 'y', or use guide_draws"
        )
