"""Test whether the right samples of an input are uniform over its solutions, as the true p(y | x) is."""

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

DRAWS = 999  # the minimal number of draws of a test's null distribution: p-values can then be as small as 1 / 1000
CHUNK = 2_000_000  # simulated samples in memory at once


@dataclass(frozen=True)
class Uniformity:
    """The test results of B inputs: each tensor has one value for each input, ``[B]``.

    Attributes:
        num_solutions: m, the number of solutions.
        num_right: the number of right samples.
        total_variation: distance of the right samples' frequencies from the uniform distribution over the solutions; 1
            if there are no right samples.
        expected_variation: the mean total variation of ``num_right`` i.i.d. uniform draws; 1 if ``num_right`` is 0.
        p_value: the p-value of a Monte Carlo chi-square test of uniformity. NaN for inputs that cannot be tested: those
            with one solution or fewer than two right samples.
        adjusted_p_value: p-values adjusted for the number of tests to control the false discovery rate (Benjamini and
            Hochberg, 1995); NaN for inputs that cannot be tested.
        coverage: the share of the solutions that the samples contain.
        coverage_limit: expected coverage of i.i.d. uniform draws.
        false_discovery_rate: the accepted share of wrong rejections among all rejections.
    """

    num_solutions: Tensor
    num_right: Tensor
    total_variation: Tensor
    expected_variation: Tensor
    p_value: Tensor
    adjusted_p_value: Tensor
    coverage: Tensor
    coverage_limit: Tensor
    false_discovery_rate: float

    @property
    def is_tested(self) -> Tensor:
        """Mask of the inputs that could be tested, bool ``[B]``."""
        return ~self.p_value.isnan()

    @property
    def is_rejected(self) -> Tensor:
        """Mask of the inputs whose samples are more uneven than chance explains, bool ``[B]``."""
        return self.adjusted_p_value <= self.false_discovery_rate  # False for NaN

    @property
    def excess_variation(self) -> Tensor:
        """Total variation minus its mean under perfect sampling, ``[B]``; 0 on average for a calibrated sampler."""
        return self.total_variation - self.expected_variation

    def summary(self) -> dict[str, Any]:
        """Return counts of tested and rejected inputs, and means over the tested inputs.

        ``excess`` is the mean excess variation. ``uneven`` is the excess divided by the greatest possible excess: 0
        for a calibrated sampler, 1 if all right samples of an input are the same solution. (With many solutions and few
        samples, even the greatest possible excess is small.)
        """
        is_tested, num_rejected = self.is_tested, int(self.is_rejected.sum())
        counts = {"tested": int(is_tested.sum()), "rejected": num_rejected, "level": self.false_discovery_rate}
        if not counts["tested"]:
            return counts
        greatest = 1 - 1 / self.num_solutions.double() - self.expected_variation
        uneven = self.excess_variation[is_tested].sum() / greatest[is_tested].sum()
        return counts | {"excess": self.excess_variation[is_tested].mean().item(), "uneven": uneven.item()}


def uniformity(
    ids: Tensor,
    num_solutions: Tensor,
    *,
    seed: int = 0,
    num_draws: int | None = None,
    false_discovery_rate: float = 0.05,
) -> Uniformity:
    """Test the right samples of each input for uniformity over its solutions.

    The null distribution is simulated, because the chi-square distribution is wrong for few samples per solution.

    Args:
        ids: for each sample the index of its solution, -1 for a wrong sample, int64 ``[N, B]``
            (``metrics.solution_ids``).
        num_solutions: m, int64 ``[B]``.
        seed: the seed of the simulation.
        num_draws: draws of the null distribution. If None, there are enough draws to detect a single uneven input.
        false_discovery_rate: the accepted share of wrong rejections among all rejections.
    """
    num_right = (ids >= 0).sum(0)
    p_value = torch.full((len(num_right),), torch.nan, dtype=torch.double)
    num_tests = int(((num_solutions > 1) & (num_right > 1)).sum())
    # The least p-value is 1 / (num_draws + 1), and the adjustment multiplies it by the number of tests.
    num_draws = num_draws or max(DRAWS, math.ceil(num_tests / false_discovery_rate))
    generator = torch.Generator().manual_seed(seed)
    null: dict[tuple[int, int], Tensor] = {}  # (m, n) -> simulated statistics
    for i, (m, n) in enumerate(zip(num_solutions.tolist(), num_right.tolist(), strict=True)):
        if m < 2 or n < 2:
            continue
        if (m, n) not in null:
            null[m, n] = _simulate_statistic(m, n, num_draws, generator)
        column = ids[:, i]
        observed = _statistic(column[column >= 0].bincount(minlength=m)[None])
        p_value[i] = (1 + int((null[m, n] >= observed).sum())) / (1 + num_draws)
    adjusted_p_value = p_value.clone()
    is_tested = ~p_value.isnan()
    if is_tested.any():
        adjusted_p_value[is_tested] = torch.from_numpy(np.asarray(false_discovery_control(p_value[is_tested].numpy())))
    expected_variation = torch.ones(len(num_right), dtype=torch.double)
    for n in num_right.unique().tolist():
        if n:
            mask = num_right == n
            expected_variation[mask] = expected_total_variation(num_solutions[mask], n)
    return Uniformity(
        num_solutions,
        num_right,
        total_variation(ids, num_solutions),
        expected_variation,
        p_value,
        adjusted_p_value,
        coverage_by_input(ids, num_solutions),
        coverage_limit(num_solutions, len(ids)),
        false_discovery_rate,
    )


def _statistic(counts: Tensor) -> Tensor:
    """Return the sum of squared counts, ``[..., m] -> [...]``. For samples of one size it rises with chi-square."""
    return counts.square().sum(-1)


def _simulate_statistic(m: int, n: int, num_draws: int, generator: torch.Generator) -> Tensor:
    """Simulate the statistic of n i.i.d. uniform draws from m solutions ``num_draws`` times: ``[num_draws]``."""
    parts = []
    for part in torch.arange(num_draws).split(max(1, CHUNK // max(m, n))):
        samples = torch.randint(m, (len(part), n), generator=generator)
        counts = torch.zeros(len(part), m, dtype=torch.long).scatter_add_(1, samples, torch.ones_like(samples))
        parts.append(_statistic(counts))
    return torch.cat(parts)
