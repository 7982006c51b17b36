"""On-policy training: updates along trajectories of the prior.

Training under the guide never shows the core the prior's own mistakes, such as an answer that mixes two solutions. So
the core is also trained on states that the prior reaches. Before each supervision step a target is drawn from
p(y | h) among all solutions of x. The step is trained to make the target more probable, without an inference network.

This is a heuristic in the manner of stochastic EM: the E-step draws a solution, and the M-step is one update. It does
not follow the gradient of the bound. Its targets follow the model's preferences, so it does not make solutions equally
probable. The updates under the guide do this, and the total variation from the uniform distribution measures how well.
If a trajectory has a right answer that is not in canonical form, it is trained towards a solution in canonical form.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_gram.networks.core import LatentState
from pyro_gram.sampling.rollout import Decode


def prior_end(model: Callable[..., Any], x: Tensor, steps: int, state: LatentState | None = None) -> Decode:
    """Sample one trajectory of the prior on each input, ``steps`` supervision steps long, without gradient.

    Args:
        x: inputs, int64 ``[B, *event]``.
        state: the states from which the trajectories start, ``[B, L, D]`` each; None is z_0.

    Returns:
        an object with the ``state`` at the end, and the ``likelihood`` p(y | h) of that state, batch shape ``[B]``.
    """
    with torch.no_grad(), Decode() as decode:
        model(x, None, state, steps=steps)
    return decode


def draw_targets(likelihood: Any, solutions: Tensor, mask: Tensor) -> Tensor:
    """Draw one solution of each input, with probability proportional to its likelihood.

    Args:
        likelihood: p(y | h), batch shape ``[B]``; None to draw uniformly.
        solutions: int64 ``[K, B, L_out]``.
        mask: bool ``[K, B]``; False where an input has no k-th solution.

    Returns:
        int64 ``[B, L_out]``.
    """
    log_p = torch.zeros(mask.shape, device=mask.device) if likelihood is None else likelihood.log_prob(solutions)
    log_p = log_p.masked_fill(~mask, -torch.inf)
    gumbel = -torch.empty_like(log_p).exponential_().log()  # the greatest of log p + Gumbel noise is a draw from p
    index = (log_p + gumbel).argmax(0)
    return solutions[index, torch.arange(len(index), device=index.device)]
