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

from pyro_gram.inference.sites import ANSWER, LATTICE
from pyro_gram.networks.relations import CLOSED
from pyro_gram.tasks.batches import Candidates


class ExactTargets(Messenger):
    """Replace y in the losses of a lattice by the shares of values among all solutions that agree with the lattice.

    Args:
        candidates: all solutions of the batch.
    """

    def __init__(self, candidates: Candidates) -> None:
        super().__init__()
        self.candidates = candidates
        self.targets: Tensor | None = None  # of the last transition

    def _pyro_sample(self, msg: Any) -> None:
        h = msg["infer"].get(LATTICE)
        if h is not None:
            shares = shares_of_values(h, self.candidates)
            self.targets = torch.where(shares.sum(-1, keepdim=True) > 0, shares, msg["value"])
            msg["value"], msg["fn"] = self.targets, dist.Delta(self.targets, event_dim=2)
        elif msg["name"] == ANSWER and msg["is_observed"] and self.targets is not None:
            msg["fn"] = ExpectedCategorical(msg["fn"].base_dist.logits, self.targets).to_event(1)


class ExpectedCategorical(dist.Categorical):
    """A categorical likelihood whose log density is an expectation: over the targets instead of the observed value.

    Tokens that are decided keep the density of their value.

    Args:
        logits: ``[..., L, V]``.
        targets: the distribution of each token before the last decisions, ``[..., L, V]``.
    """

    def __init__(self, logits: Tensor, targets: Tensor) -> None:
        super().__init__(logits=logits, validate_args=False)
        self.targets = targets
        self.is_open = (logits > CLOSED / 2).sum(-1) > 1

    def log_prob(self, value: Tensor) -> Tensor:
        return torch.where(self.is_open, (self.targets * self.logits).sum(-1), super().log_prob(value))

    def expand(self, batch_shape: Any, _instance: Any = None) -> ExpectedCategorical:
        shape = (*batch_shape, self.logits.shape[-1])
        return ExpectedCategorical(self.logits.expand(shape), self.targets.expand(shape))


def shares_of_values(h: Tensor, candidates: Candidates) -> Tensor:
    """Return the share of each value of each token among the solutions that agree with a lattice.

    All solutions are equally probable, and so are the names of a solution's exchangeable values.

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
        if candidates.log_namings is not None:
            weights = weights * (-candidates.log_namings).exp().to(h.dtype)
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
