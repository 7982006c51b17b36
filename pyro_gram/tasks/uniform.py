"""How far samples are from uniform over all that is right, and how far a perfect sampler would be."""

from __future__ import annotations

import torch
from torch import Tensor


def total_variation(ids: Tensor, num_solutions: Tensor) -> Tensor:
    """Of an input's right samples to uniform over its solutions; 1 where no sample is right.

    Args:
        ids: which solution each sample is, int64 ``[N, B]``; -1 for a wrong sample.
        num_solutions: m, int64 ``[B]``.

    Returns:
        float64 ``[B]``.

    Raises:
        ValueError: an id that is no solution's.
    """
    if (ids >= num_solutions).any():
        raise ValueError("ids must be below num_solutions")
    found = []
    for column, m in zip(ids.T, num_solutions.tolist(), strict=True):
        right = column[column >= 0]
        share = torch.bincount(right).double() / max(1, len(right))
        found.append(1 - share.clamp(max=1 / m).sum())
    return torch.stack(found)


def expected_total_variation(num_solutions: Tensor, num_samples: int) -> Tensor:
    """The total variation to uniform expected of ``num_samples`` i.i.d. uniform draws from m solutions, ``[B]``.

    Each count is binomial, Bin(N, 1/m), whose mean absolute deviation has De Moivre's closed form,
    2 k C(N, k) p^k (1 - p)^(N - k + 1) with k = floor(N p) + 1.
    """
    m, n = num_solutions.double(), torch.tensor(float(num_samples), dtype=torch.double)
    p = 1 / m.clamp(min=2)  # one solution is never missed; it is put in below
    k = (n / m).floor() + 1
    log_choose = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    deviation = 2 * k * (log_choose + k * p.log() + (n - k + 1) * torch.log1p(-p)).exp()
    return torch.where(m > 1, m * deviation / (2 * n), 0.0)
