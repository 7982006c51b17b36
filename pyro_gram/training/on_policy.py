"""Where trajectories of the prior go, and the solutions they should end in.

Training under the guide never shows the core what the prior does wrong: parts of an answer that belong to different
solutions, say. So training also goes along trajectories that the prior makes alone. Which solution such a trajectory is
on its way to is for itself to say: before each supervision step a target is drawn from p(y | h) among all solutions of
x, and the step is trained to make it more probable, without an inference network.

This is a heuristic in the manner of stochastic EM (a sampled E-step over which solution, and one update for an M-step),
not the gradient of the bound. Its targets follow what the model prefers, so nothing in it pulls to uniformity over
solutions: that is left to the updates under the guide, and total variation shows whether it holds. An answer that is
right but not in its canonical form is pulled to that form.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_gram.networks.core import LatentState
from pyro_gram.sampling.rollout import Decode


def prior_end(model: Callable[..., Any], x: Tensor, steps: int, state: LatentState | None = None) -> Decode:
    """Where one trajectory of the prior on each input ends, ``steps`` supervision steps further, without gradient.

    Args:
        x: inputs, int64 ``[B, *event]``.
        state: where the trajectories are, ``[B, L, D]`` each; None is z_0.

    Returns:
        ``state`` at the end, and the ``likelihood`` p(y | h) there, batch shape ``[B]``.
    """
    with torch.no_grad(), Decode() as decode:
        model(x, None, state, steps=steps)
    return decode


def draw_targets(likelihood: Any, solutions: Tensor, there: Tensor) -> Tensor:
    """One solution of each input, with probability proportional to its likelihood.

    Args:
        likelihood: p(y | h), batch shape ``[B]``; None draws uniformly.
        solutions: int64 ``[K, B, L_out]``.
        there: bool ``[K, B]``; False where an input has no k-th solution.

    Returns:
        int64 ``[B, L_out]``.
    """
    log_p = torch.zeros(there.shape, device=there.device) if likelihood is None else likelihood.log_prob(solutions)
    log_p = log_p.masked_fill(~there, -torch.inf)
    gumbel = -torch.empty_like(log_p).exponential_().log()  # the greatest of log p + Gumbel noise is a draw from p
    which = (log_p + gumbel).argmax(0)
    return solutions[which, torch.arange(len(which), device=which.device)]
