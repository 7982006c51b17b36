"""The total variation between samples and the uniform distribution over all solutions."""

from __future__ import annotations

import torch
from torch import Tensor


def total_variation(ids: Tensor, num_solutions: Tensor) -> Tensor:
    """Return the total variation between the right samples of each input and the uniform distribution.

    Args:
        ids: the index of the solution that each sample equals, int64 ``[N, B]``; -1 for a wrong sample.
        num_solutions: m, int64 ``[B]``.

    Returns:
        float64 ``[B]``; 1 if no sample is right.

    Raises:
        ValueError: an id is ``num_solutions`` or more.
    """
    if (ids >= num_solutions).any():
        raise ValueError("ids must be below num_solutions")
    distances = []
    for column, m in zip(ids.T, num_solutions.tolist(), strict=True):
        right_ids = column[column >= 0]
        shares = torch.bincount(right_ids).double() / max(1, len(right_ids))
        distances.append(1 - shares.clamp(max=1 / m).sum())
    return torch.stack(distances)


def expected_total_variation(num_solutions: Tensor, num_samples: int) -> Tensor:
    """Return the expected total variation of N independent uniform draws from m solutions: float64 ``[B]``.

    A perfect sampler has this value on average. The count of each solution is binomial, Bin(N, p) with p = 1 / m. De
    Moivre's closed form of the mean absolute deviation of that count is 2 k C(N, k) p^k (1 - p)^(N - k + 1), with
    k = floor(N p) + 1.

    Args:
        num_solutions: m, int64 ``[B]``.
        num_samples: N.
    """
    m, n = num_solutions.double(), torch.tensor(float(num_samples), dtype=torch.double)
    p = 1 / m.clamp(min=2)  # for m = 1 the last line returns 0
    k = (n / m).floor() + 1
    log_choose = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    deviation = 2 * k * (log_choose + k * p.log() + (n - k + 1) * torch.log1p(-p)).exp()
    return torch.where(m > 1, m * deviation / (2 * n), 0.0)
