"""log p(y | x) by prior Monte Carlo: trajectories that have never seen y, scored when they have ended."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyro_gram.errors import ConfigError
from pyro_gram.inference.decode import advance, quiet
from pyro_gram.inference.sampling import MAX_TRAJECTORIES, check_counts
from pyro_gram.inference.sites import OBSERVED
from pyro_gram.inference.terms import check_apart, check_pieces, is_counted


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
        ConfigError: an observation that several inputs share, or that the program makes only where it is given y; a
            program that holds tensors of one batch.
    """
    check_counts(seed=seed, num_samples=num_samples, depth=depth, max_trajectories=max_trajectories)
    whole = max(1, max_trajectories // num_samples)
    parts = [(None, y)] if x is None else list(zip(x.split(whole), y.split(whole), strict=True))
    rows = []
    chunk = 0
    with quiet(model, x):
        _check_observed_alike(model, parts[0][0], parts[0][1] if x is not None else y[:1])
        for a, b in parts:
            columns = []
            for start in range(0, num_samples, max_trajectories):
                torch.manual_seed(seed + chunk)
                chunk += 1
                decode = advance(model, a, None, min(max_trajectories, num_samples - start), depth)
                if len(y) > 1:
                    check_apart(decode.observations, decode.answer)
                few = [b] if a is not None else b.split(64)  # [N, B] log-probabilities of long answers are wide
                columns.append(torch.cat([decode.log_prob(c) for c in few], dim=1))
            rows.append(torch.cat(columns))
            check_pieces(rows[-1].shape, (num_samples, len(b)))
    return torch.cat(rows, dim=1)


class _Observed(Messenger):
    """Notes the names of observed sites that count."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["is_observed"] and is_counted(msg):
            self.names.add(msg["name"])


def _check_observed_alike(model: Callable[..., Any], x: Tensor | None, y: Tensor) -> None:
    """Raises ConfigError where the program observes more with y than without: a roll-out would leave that out."""
    with _Observed() as with_y:
        model(x, y)
    with _Observed() as without:
        model(x, None)
    more = with_y.names - without.names - {OBSERVED}
    if more:
        raise ConfigError(
            f"the program observes {', '.join(sorted(map(repr, more)))} only where it is given y, and trajectories of "
            "the prior are not: make it a part of the likelihood at 'y', or use guide_draws"
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
