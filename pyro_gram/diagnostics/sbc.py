r"""Simulation-based calibration of the guide (Talts et al., 2018), on data that the program itself generates.

The program samples a trajectory :math:`\tau^*` and an answer :math:`y^*`; so :math:`\tau^*` is a sample of the
program's exact posterior given :math:`(x, y^*)`. If the guide equals that posterior, the rank of any summary of
:math:`\tau^*` among the same summaries of the guide's trajectories is uniform. A variational guide never equals the
posterior. So the size of the deviation matters, and p-values do not show this size. The ranks say nothing about real
data or accuracy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_gram.checks import check_counts
from pyro_gram.diagnostics.inference_data import project_states
from pyro_gram.errors import ConfigError
from pyro_gram.inference.contract import guide_traits
from pyro_gram.inference.guide import padding_mask
from pyro_gram.inference.importance import MAX_TRACED, guidance_scale, guide_draws
from pyro_gram.inference.sites import ANSWER, STATE_H, transition_index
from pyro_gram.sampling.steps import isolated_rng
from pyro_gram.tasks.batches import derive_seed

BAND_DRAWS = 1000  # the number of simulations from which the band is computed


@dataclass(frozen=True)
class SBCRanks:
    """Ranks of the true trajectories of M simulated data.

    Attributes:
        names: the names of the summaries, which are numbers that describe a trajectory.
        ranks: the rank of the true trajectory's summary among the summaries of the guide's draws, 0 to ``num_draws``,
            int64 ``[len(names), M]``.
        num_draws: the number of the guide's trajectories for each datum.
    """

    names: tuple[str, ...]
    ranks: Tensor
    num_draws: int

    @property
    def difference(self) -> Tensor:
        """The cumulative distribution of the ranks minus the uniform one, float64 ``[len(names), num_draws + 1]``."""
        uniform = torch.arange(1, self.num_draws + 2) / (self.num_draws + 1)
        return _cumulative(self.ranks, self.num_draws) - uniform

    @property
    def deviation(self) -> Tensor:
        """The largest absolute difference (Kolmogorov and Smirnov), ``[len(names)]``."""
        return self.difference.abs().amax(1)

    @property
    def band(self) -> float:
        """A threshold: in 95 % of simulations with uniform ranks, the deviations of all summaries are below it."""
        generator = torch.Generator().manual_seed(0)
        summaries, data = self.ranks.shape
        uniform = torch.randint(self.num_draws + 1, (BAND_DRAWS * summaries, data), generator=generator)
        deviation = SBCRanks((), uniform, self.num_draws).deviation
        return deviation.view(BAND_DRAWS, summaries).amax(1).quantile(0.95).item()

    def summary(self) -> dict[str, dict[str, float]]:
        """Return three numbers for each summary of a trajectory.

        ``deviation`` is a value of :attr:`deviation`. ``mean`` is the mean relative rank; it is 0.5 unless the guide is
        shifted. ``spread`` is the standard deviation of the ranks divided by the standard deviation of uniform ranks;
        it is above 1 if the guide is too narrow.
        """
        relative_ranks = self.ranks.double() / self.num_draws
        uniform_variance = (self.num_draws + 2) / (12 * self.num_draws)  # the variance of uniform relative ranks
        return {
            name: {
                "deviation": deviation.item(),
                "mean": row.mean().item(),
                "spread": (row.var(correction=0) / uniform_variance).sqrt().item(),
            }
            for name, deviation, row in zip(self.names, self.deviation, relative_ranks, strict=True)
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the ranks and their summary as JSON values."""
        return {
            "summary": self.summary(),
            "band": self.band,
            "draws": self.num_draws,
            "ranks": dict(zip(self.names, self.ranks.tolist(), strict=True)),
        }


def _cumulative(ranks: Tensor, num_draws: int) -> Tensor:
    """Return the share of ranks up to each value, ``[K, M] -> [K, num_draws + 1]``."""
    counts = torch.zeros(len(ranks), num_draws + 1, dtype=torch.double)
    counts.scatter_add_(1, ranks, torch.ones(ranks.shape, dtype=torch.double))
    return counts.cumsum(1) / ranks.shape[1]


def simulate_ranks(
    model: nn.Module,
    guide: nn.Module,
    x: Tensor | None,
    *,
    depth: int,
    rounds: int = 2,
    num_draws: int = 49,
    seed: int = 0,
    max_traced: int = MAX_TRACED,
) -> SBCRanks:
    """Let the program generate ``rounds`` data for each input. Rank the true trajectories among those of the guide.

    Args:
        x: inputs, ``[B, *event]``; None for p(x), where ``rounds`` data are generated.
        depth: supervision steps.
        num_draws: trajectories of the guide for each datum.
        max_traced: the maximal number of trajectories that are traced at once.

    Raises:
        ConfigError: the model has no guidance to rank, or the guide follows the prior.
    """
    check_counts(seed=seed, depth=depth, rounds=rounds, draws=num_draws)
    if guide_traits(guide).follows_prior:
        raise ConfigError("ranks need a guide that depends on y, and this one follows the prior")
    ranks = []
    generator = torch.Generator().manual_seed(seed)
    repeats = rounds if x is not None else 1
    for number in range(repeats):
        # Under the same seed, the guide's first draw would repeat the noise of the true trajectory.
        y, truth = _generate_data(model, x, depth, derive_seed(seed, number, 0), rounds)
        guide_seed = derive_seed(seed, number, 1)
        q = guide_draws(model, guide, x, y, steps=depth, num_samples=num_draws, seed=guide_seed, max_traced=max_traced)
        summaries = _summaries(q.guidance, q.h, q.log_likelihood)
        ranks.append(torch.stack([_rank(truth[name], summaries[name], generator) for name in truth]))
    return SBCRanks(tuple(truth), torch.cat(ranks, 1), num_draws)


def _generate_data(
    model: nn.Module, x: Tensor | None, depth: int, seed: int, count: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Sample data from the program. Returns y, int64 ``[B, L_out]``, and the summaries of the true trajectories."""
    with isolated_rng(model, x), pyro.plate("trajectories", 1 if x is not None else count, dim=-2):
        torch.manual_seed(seed)
        trace = poutine.trace(model).get_trace(x, None, None, steps=depth, truncated=False)
    guidance = [site["value"] for name, site in trace.nodes.items() if transition_index(name) is not None]
    if not guidance:
        raise ConfigError("this model has no guidance to rank")
    y = trace.nodes[ANSWER]["value"]
    shape = y.shape[:2]  # [1, B], or [M, 1] without input
    log_p = trace.nodes[ANSWER]["fn"].log_prob(y).expand(shape)
    h = trace.nodes[STATE_H]["value"]
    h = h.expand(*shape, *h.shape[-2:])
    scales = torch.stack([guidance_scale(eps, padding_mask(model)).expand(shape) for eps in guidance])
    truth = {name: values.flatten().cpu() for name, values in _summaries(scales, h, log_p).items()}
    return y.flatten(0, 1), truth


def _summaries(guidance: Tensor, h: Tensor, log_likelihood: Tensor) -> dict[str, Tensor]:
    """Summarise trajectories by numbers ``[S, B]``, from guidance ``[transitions, S, B]`` and h ``[S, B, L, D]``."""
    last = len(guidance) - 1
    values = {f"scale of eps_{t}": guidance[t] for t in sorted({0, last // 2, last})}
    values |= {f"projection {i + 1} of h": part for i, part in enumerate(project_states(h).unbind(-1))}
    return values | {"log p(y|h)": log_likelihood}


def _rank(truth: Tensor, values: Tensor, generator: torch.Generator) -> Tensor:
    """Count the values ``[S, B]`` below ``truth [B]``; ties are broken at random."""
    num_below, num_ties = (values < truth).sum(0), (values == truth).sum(0)
    return num_below + (torch.rand(len(truth), generator=generator) * (num_ties + 1)).long()
