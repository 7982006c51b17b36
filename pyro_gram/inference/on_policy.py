"""Where trajectories of the prior end, and the solutions they should end in.

Training under the guide never shows the core what the prior does wrong: parts of an answer that belong to different
solutions, say. So training also goes on from states that the prior reached alone. Which solution such a trajectory is
on its way to is for itself to say: the target is drawn from p(y | h) among the solutions of x, the E-step of EM on the
probability that the trajectory ends in any of them. Uniformity over solutions stays the guide's matter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_gram.inference.sampling import Decode
from pyro_gram.networks.core import LatentState


def prior_state(model: Callable[..., Any], x: Tensor, steps: int) -> tuple[LatentState, Any]:
    """The state after ``steps`` supervision steps of the prior from z_0, without gradient, and p(y | h) there."""
    with torch.no_grad(), Decode() as decode:
        model(x, None, None, steps=steps)
    return decode.state, decode.likelihood


def draw_targets(likelihood: Any, solutions: Tensor, there: Tensor) -> Tensor:
    """One solution of each input, with probability proportional to its likelihood.

    Args:
        likelihood: p(y | h), batch shape ``[B]``.
        solutions: int64 ``[K, B, L_out]``.
        there: bool ``[K, B]``; False where an input has no k-th solution.

    Returns:
        int64 ``[B, L_out]``.
    """
    log_p = likelihood.log_prob(solutions).masked_fill(~there, -torch.inf)
    gumbel = -torch.empty_like(log_p).exponential_().log()  # the greatest of log p + Gumbel noise is a draw from p
    which = (log_p + gumbel).argmax(0)
    return solutions[which, torch.arange(len(which), device=which.device)]
