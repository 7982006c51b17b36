"""The exact targets of a lattice: how often each value occurs among the solutions that agree with what is decided.

If y is drawn evenly from all solutions of x, and some of its tokens are known, then each other token is distributed as
among the solutions that agree with the known ones. A loss towards these shares has the same expected gradient as a loss
towards y, and less variance (Rao-Blackwell).
"""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.nn.functional import one_hot

from pyro_gram.inference.sites import LATTICE
from pyro_gram.tasks.batches import Candidates


class KnownSolutions(Messenger):
    """Train a lattice towards the shares of values among all solutions that agree, in place of one solution.

    Args:
        candidates: all solutions of the batch.
    """

    def __init__(self, candidates: Candidates) -> None:
        super().__init__()
        self.candidates = candidates

    def _pyro_sample(self, msg: Any) -> None:
        h = msg["infer"].get(LATTICE)
        if h is not None:
            shares = consistent_marginals(h, self.candidates)
            msg["value"] = torch.where(shares.sum(-1, keepdim=True) > 0, shares, msg["value"])
            msg["fn"] = dist.Delta(msg["value"], event_dim=2)


def consistent_marginals(h: Tensor, candidates: Candidates) -> Tensor:
    """Return the share of each value of each token among the solutions that agree with a lattice.

    Solutions that differ only in the names of exchangeable values count as often as their names may be chosen.

    Args:
        h: lattices, 1 for an open value, ``[B, L_out, V]``. A token with one open value is decided.
        candidates: all solutions of the inputs.

    Returns:
        ``[B, L_out, V]``; zeros for a lattice that agrees with no solution.
    """
    values = one_hot(candidates.solutions, h.shape[-1]).to(h.dtype)  # [K, B, L, V]
    if candidates.is_token is None:
        weights = candidates.mask & (values * h).sum(-1).gt(0.5).all(-1)
        shares = torch.einsum("kb,kblv->blv", weights.to(h.dtype), values)
    else:
        is_token = candidates.is_token[..., None].to(h.dtype)
        weights, colors = _rename(h * is_token, values * is_token, candidates.mask)
        shares = torch.einsum("kb,kblv,kbvc->blc", weights, values * is_token, colors) + (1 - is_token) * h
    return shares / shares.sum(-1, keepdim=True).clamp(min=1e-30)


def _rename(h: Tensor, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Choose the names of the values of each solution so that it agrees with a lattice.

    A value of a solution that occurs at a decided token takes the name that is decided there. The others take distinct
    names that are left, each with equal probability.

    Args:
        h: lattices ``[B, L, V]``, 0 at padding.
        values: solutions ``[K, B, L, V]``, one-hot; 0 at padding.
        mask: bool ``[K, B]``.

    Returns:
        in how many ways the names can be chosen, ``[K, B]`` (up to a factor for each lattice), and the probability that
        value v gets name c, ``[K, B, V, V]``.
    """
    decided = h * (h.sum(-1, keepdim=True) == 1)
    is_named_so = torch.einsum("kblv,blc->kbvc", values, decided) > 0
    is_named, is_taken = is_named_so.any(-1), is_named_so.any(-2)  # [K, B, V] each: of values, and of names
    is_one_to_one = (is_named_so.sum(-1) <= 1).all(-1) & (is_named_so.sum(-2) <= 1).all(-1)
    is_free = (h > 0).any(-2) & ~is_taken
    num_free = is_free.sum(-1).to(h.dtype)
    num_unnamed = ((values.sum(-2) > 0) & ~is_named).sum(-1).to(h.dtype)
    is_possible = mask & is_one_to_one & (num_unnamed <= num_free)
    ways = (torch.lgamma(num_free + 1) - torch.lgamma((num_free - num_unnamed).clamp(min=0) + 1)).exp()
    even = is_free[..., None, :].to(h.dtype) / num_free.clamp(min=1)[..., None, None]
    names = torch.where(is_named[..., None], is_named_so.to(h.dtype), even)
    return ways * is_possible, names
