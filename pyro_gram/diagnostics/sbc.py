r"""Simulation-based calibration of the guide (Talts et al., 2018), on data that the program itself draws.

The program draws a trajectory :math:`\tau^*` and an answer :math:`y^*`, so that :math:`\tau^*` is a draw from its
exact posterior given :math:`(x, y^*)`. Where the guide is that posterior, the rank of any summary of :math:`\tau^*`
among those of the guide's trajectories is uniform. A variational guide never is: what matters is by how much it is not,
and a p-value does not say that. Nothing here is a statement about the data, or about accuracy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_gram.checks import check_counts
from pyro_gram.diagnostics.collect import project
from pyro_gram.errors import ConfigError
from pyro_gram.inference.contract import guide_traits
from pyro_gram.inference.importance import MAX_TRACED, guidance_scale, guide_draws
from pyro_gram.inference.sites import ANSWER, STATE_H, transition_index
from pyro_gram.sampling.rollout import isolated_rng
from pyro_gram.tasks.batches import derive_seed

BAND_DRAWS = 1000  # simulations behind the simultaneous band


@dataclass(frozen=True)
class Simulated:
    """Ranks of M simulated data.

    Attributes:
        names: of the summaries of a trajectory.
        ranks: of the true trajectory's among those of the guide's, int64 ``[len(names), M]``, 0 to ``draws``.
        draws: L, the guide's trajectories for each datum.
    """

    names: tuple[str, ...]
    ranks: Tensor
    draws: int

    @property
    def deviation(self) -> Tensor:
        """How far the ranks' distribution is from uniform at the most (Kolmogorov and Smirnov), ``[len(names)]``."""
        return self.difference.abs().amax(1)

    @property
    def difference(self) -> Tensor:
        """The share of ranks up to each of 0 to L less that of uniform ones, float64 ``[len(names), L + 1]``."""
        return _cumulative(self.ranks, self.draws) - torch.arange(1, self.draws + 2) / (self.draws + 1)

    @property
    def band(self) -> float:
        """Uniform ranks of all summaries stay within it everywhere, at 95 of 100 times; simulated."""
        generator = torch.Generator().manual_seed(0)
        summaries, data = self.ranks.shape
        uniform = torch.randint(self.draws + 1, (BAND_DRAWS * summaries, data), generator=generator)
        deviation = Simulated((), uniform, self.draws).deviation
        return deviation.view(BAND_DRAWS, summaries).amax(1).quantile(0.95).item()

    def summary(self) -> dict[str, dict[str, float]]:
        """Of each summary: the deviation; the mean rank, .5 where the guide is not shifted; and the spread of the ranks
        relative to uniform ones', above 1 where the guide is too narrow."""
        at = self.ranks.double() / self.draws
        middle = (self.draws + 2) / (12 * self.draws)  # the variance of uniform ranks 0, 1/L, ..., 1
        return {
            name: {
                "deviation": d.item(),
                "mean": a.mean().item(),
                "spread": (a.var(correction=0) / middle).sqrt().item(),
            }
            for name, d, a in zip(self.names, self.deviation, at, strict=True)
        }


def _cumulative(ranks: Tensor, draws: int) -> Tensor:
    """The share of ranks up to each, ``[K, M] -> [K, L + 1]``."""
    counts = torch.zeros(len(ranks), draws + 1, dtype=torch.double)
    counts.scatter_add_(1, ranks, torch.ones(ranks.shape, dtype=torch.double))
    return counts.cumsum(1) / ranks.shape[1]


def simulate(
    model: nn.Module,
    guide: nn.Module,
    x: Tensor | None,
    *,
    depth: int,
    rounds: int = 2,
    draws: int = 49,
    seed: int = 0,
    max_traced: int = MAX_TRACED,
) -> Simulated:
    """Draw ``rounds`` data for each input from the program, and rank their trajectories among the guide's.

    Args:
        x: inputs, ``[B, *event]``; None for p(x), where ``rounds`` data are drawn.
        depth: supervision steps.
        draws: L, the guide's trajectories for each datum.
        max_traced: the most trajectories that are traced at once.

    Raises:
        ConfigError: the model has no guidance to rank, or the guide is no inference network.
    """
    check_counts(seed=seed, depth=depth, rounds=rounds, draws=draws)
    if guide_traits(guide).follows_prior:
        raise ConfigError("ranks need an inference network, and this guide looks at no answer")
    ranks = []
    tie = torch.Generator().manual_seed(seed)
    repeats = rounds if x is not None else 1
    for number in range(repeats):
        # Two seeds: under one, the guide's first draw would be made of the true trajectory's noise.
        y, truth = _drawn(model, x, depth, derive_seed(seed, number, 0), rounds)
        theirs_seed = derive_seed(seed, number, 1)
        q = guide_draws(model, guide, x, y, steps=depth, num_samples=draws, seed=theirs_seed, max_traced=max_traced)
        theirs = _summaries(q.guidance, q.h, q.log_likelihood)
        ranks.append(torch.stack([_rank(truth[name], theirs[name], tie) for name in truth]))
    return Simulated(tuple(truth), torch.cat(ranks, 1), draws)


def _drawn(model: nn.Module, x: Tensor | None, depth: int, seed: int, count: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Data that the program draws, y int64 ``[B, L_out]``, and the summaries of the trajectories behind them."""
    with isolated_rng(model, x), pyro.plate("trajectories", 1 if x is not None else count, dim=-2):
        torch.manual_seed(seed)
        trace = poutine.trace(model).get_trace(x, None, None, steps=depth, truncated=False)
    guidance = [site["value"] for name, site in trace.nodes.items() if transition_index(name) is not None]
    if not guidance:
        raise ConfigError("ranks are of guidance, and this model has none")
    y = trace.nodes[ANSWER]["value"]
    shape = y.shape[:2]  # [1, B], or [M, 1] without input
    log_p = trace.nodes[ANSWER]["fn"].log_prob(y).expand(shape)
    h = trace.nodes[STATE_H]["value"]
    h = h.expand(*shape, *h.shape[-2:])
    scales = torch.stack([guidance_scale(eps).expand(shape) for eps in guidance])
    truth = {name: values.flatten().cpu() for name, values in _summaries(scales, h, log_p).items()}
    return y.flatten(0, 1), truth


def _summaries(guidance: Tensor, h: Tensor, log_likelihood: Tensor) -> dict[str, Tensor]:
    """Numbers of trajectories, ``[S, B]`` each: guidance ``[transitions, S, B]``, h ``[S, B, L, D]``."""
    last = len(guidance) - 1
    found = {f"scale of eps_{t}": guidance[t] for t in sorted({0, last // 2, last})}
    found |= {f"projection {i + 1} of h": part for i, part in enumerate(project(h).unbind(-1))}
    return found | {"log p(y|h)": log_likelihood}


def _rank(truth: Tensor, theirs: Tensor, generator: torch.Generator) -> Tensor:
    """How many of ``theirs [S, B]`` are below ``truth [B]``; ties fall at random."""
    below, ties = (theirs < truth).sum(0), (theirs == truth).sum(0)
    return below + (torch.rand(len(truth), generator=generator) * (ties + 1)).long()


def to_dict(found: Simulated) -> dict[str, Any]:
    """The ranks as lists, with their summary."""
    return {
        "summary": found.summary(),
        "band": found.band,
        "draws": found.draws,
        "ranks": dict(zip(found.names, found.ranks.tolist(), strict=True)),
    }
