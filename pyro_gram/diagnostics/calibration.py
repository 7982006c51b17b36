"""Are the right samples of an input uniform over its solutions, as p(y | x) is?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import false_discovery_control
from torch import Tensor

from pyro_gram.diagnostics.metrics import coverage_by_input, coverage_limit
from pyro_gram.tasks.uniform import expected_total_variation, total_variation

DRAWS = 999  # of the null distribution of each test, at the least: p-values down to a thousandth
AT_ONCE = 2_000_000  # simulated samples held at once


@dataclass(frozen=True)
class Uniformity:
    """Of each input, ``[B]``.

    Attributes:
        num_solutions: m.
        right: right samples.
        total_variation: of their frequencies to uniform over the solutions; 1 where none is right.
        expected: its mean over as many i.i.d. uniform draws; 1 where none is right.
        p_value: of a Monte Carlo chi-square test of uniformity. NaN where there is one solution, or fewer than two
            right samples: nothing to test.
        adjusted: p-values adjusted for the number of tests, controlling the false discovery rate (Benjamini and
            Hochberg, 1995); NaN where there is no test.
        coverage: the share of its solutions among all its samples.
        coverage_limit: what i.i.d. uniform draws would cover.
        level: the false discovery rate.
    """

    num_solutions: Tensor
    right: Tensor
    total_variation: Tensor
    expected: Tensor
    p_value: Tensor
    adjusted: Tensor
    coverage: Tensor
    coverage_limit: Tensor
    level: float

    @property
    def tested(self) -> Tensor:
        """bool ``[B]``: inputs with a test."""
        return ~self.p_value.isnan()

    @property
    def rejected(self) -> Tensor:
        """bool ``[B]``: inputs that are uneven beyond chance."""
        return self.adjusted <= self.level  # NaN is not

    @property
    def excess(self) -> Tensor:
        """Total variation above what perfect sampling of as many would show, ``[B]``; 0 on average where calibrated."""
        return self.total_variation - self.expected

    def summary(self) -> dict[str, Any]:
        """Over the tested inputs.

        ``uneven``: their excess, of the greatest that there could be: 0 where calibrated, 1 where all right samples of
        an input are one solution. The excess by itself is small where solutions are many and samples few.
        """
        tested = self.tested
        found: dict[str, Any] = {"tested": int(tested.sum()), "rejected": int(self.rejected.sum()), "level": self.level}
        if not found["tested"]:
            return found
        most = 1 - 1 / self.num_solutions.double() - self.expected
        uneven = self.excess[tested].sum() / most[tested].sum()
        return found | {"excess": self.excess[tested].mean().item(), "uneven": uneven.item()}


def uniformity(
    ids: Tensor, num_solutions: Tensor, *, seed: int = 0, draws: int | None = None, level: float = 0.05
) -> Uniformity:
    """Test each input's right samples for uniformity over its solutions.

    Counts of a solution are far too small for the chi-square distribution, so that the statistic's own is simulated.

    Args:
        ids: which solution each sample is, -1 for a wrong one, int64 ``[N, B]`` (``metrics.solution_ids``).
        num_solutions: m, int64 ``[B]``.
        seed: of the simulation.
        draws: of the null distribution; None for as many as let one uneven input among all be found.
        level: false discovery rate.
    """
    right = (ids >= 0).sum(0)
    p_value = torch.full((len(right),), torch.nan, dtype=torch.double)
    tests = int(((num_solutions > 1) & (right > 1)).sum())
    # The least p-value is 1 / (draws + 1), and the adjustment multiplies it by the number of tests.
    draws = draws or max(DRAWS, math.ceil(tests / level))
    generator = torch.Generator().manual_seed(seed)
    null: dict[tuple[int, int], Tensor] = {}
    for i, (m, n) in enumerate(zip(num_solutions.tolist(), right.tolist(), strict=True)):
        if m < 2 or n < 2:
            continue
        if (m, n) not in null:  # shared by inputs alike
            null[m, n] = _simulated(m, n, draws, generator)
        column = ids[:, i]
        seen = _statistic(column[column >= 0].bincount(minlength=m)[None])
        p_value[i] = (1 + int((null[m, n] >= seen).sum())) / (1 + draws)
    adjusted = p_value.clone()
    tested = ~p_value.isnan()
    if tested.any():
        adjusted[tested] = torch.from_numpy(np.asarray(false_discovery_control(p_value[tested].numpy())))
    expected = torch.ones(len(right), dtype=torch.double)
    for n in right.unique().tolist():
        if n:
            at = right == n
            expected[at] = expected_total_variation(num_solutions[at], n)
    return Uniformity(
        num_solutions,
        right,
        total_variation(ids, num_solutions),
        expected,
        p_value,
        adjusted,
        coverage_by_input(ids, num_solutions),
        coverage_limit(num_solutions, len(ids)),
        level,
    )


def _statistic(counts: Tensor) -> Tensor:
    """The sum of squared counts, ``[..., m] -> [...]``: a rising function of chi-square where m and n are given."""
    return counts.square().sum(-1)


def _simulated(m: int, n: int, draws: int, generator: torch.Generator) -> Tensor:
    """The statistic of n i.i.d. uniform draws from m solutions, ``[draws]``."""
    parts = []
    for size in torch.arange(draws).split(max(1, AT_ONCE // max(m, n))):
        samples = torch.randint(m, (len(size), n), generator=generator)
        counts = torch.zeros(len(size), m, dtype=torch.long).scatter_add_(1, samples, torch.ones_like(samples))
        parts.append(_statistic(counts))
    return torch.cat(parts)
