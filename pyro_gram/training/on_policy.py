"""On-policy training: updates along trajectories of the prior.

Training under the guide never shows the core the prior's own mistakes, such as an answer that mixes two solutions. So
the core is also trained on states that the prior reaches. Before each supervision step a target is drawn from
p(y | h) among all solutions of x. The step is trained to make the target more probable, without an inference network.

This is a heuristic in the manner of stochastic EM: the E-step draws a solution, and the M-step is one update. It does
not follow the gradient of the bound. Its targets follow the model's preferences, so it does not make solutions equally
probable. The updates under the guide do this, and the total variation from the uniform distribution measures how well.
If a trajectory has a right answer that is not in canonical form, it is trained towards a solution in canonical form,
unless the task says how values may be renamed (``Task.namings``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from pyro_gram.networks.core import LatentState
from pyro_gram.sampling.rollout import Decode
from pyro_gram.tasks.batches import Candidates


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


def draw_targets(likelihood: Any, candidates: Candidates) -> Tensor:
    """Draw one solution of each input, with probability proportional to its likelihood.

    If values are exchangeable, the solution is drawn together with its naming: a trajectory that has found a solution
    keeps the names that it uses.

    Args:
        likelihood: p(y | h), batch shape ``[B]``; None to draw solutions, and their namings, uniformly.
        candidates: the solutions of each input, on the device of ``likelihood``.

    Returns:
        int64 ``[B, L_out]``.
    """
    solutions, mask, namings = candidates.solutions, candidates.mask, candidates.namings
    columns = torch.arange(mask.shape[1], device=mask.device)
    is_naming, is_token = candidates.is_naming, candidates.is_token
    if namings is None or is_naming is None or is_token is None:
        log_p = torch.zeros(mask.shape, device=mask.device) if likelihood is None else likelihood.log_prob(solutions)
        return solutions[_draw(log_p.masked_fill(~mask, -torch.inf)), columns]
    is_open = mask[:, None] & is_naming  # [K, P, B]
    values = one_hot(solutions, namings.shape[-1]) * is_token[..., None]  # [K, B, L_out, classes]
    log_p = torch.zeros(is_open.shape, device=mask.device)
    if likelihood is not None:
        log_p = _log_prob_of_namings(likelihood, values, namings) - _log_repeats(values, namings, is_naming)
    index = _draw(log_p.masked_fill(~is_open, -torch.inf).flatten(0, 1))
    targets = solutions[index // len(namings), columns]
    return namings[index % len(namings)].gather(-1, targets) * is_token


def _draw(log_p: Tensor) -> Tensor:
    """Draw an index along the first dimension, ``[N, B] -> int64 [B]``."""
    gumbel = -torch.empty_like(log_p).exponential_().log()  # the greatest of log p + Gumbel noise is a draw from p
    return (log_p + gumbel).argmax(0)


def _log_prob_of_namings(likelihood: Any, values: Tensor, namings: Tensor) -> Tensor:
    """Return the log density of every naming of every solution, nats, ``[K, P, B]``.

    Args:
        values: the solutions, one-hot, 0 at padding, ``[K, B, L_out, classes]``.
    """
    logits = likelihood.base_dist.logits  # [B, L_out, classes], normalised
    # by_value[k, b, v, w]: the sum over the tokens with value v in solution k, if they all had value w
    by_value = torch.einsum("kblv,blw->kbvw", values.to(logits.dtype), logits)
    index = torch.arange(namings.shape[-1], device=namings.device)
    return by_value[..., index, namings].sum(-1).movedim(-1, 1)


def _log_repeats(values: Tensor, namings: Tensor, is_naming: Tensor) -> Tensor:
    """Return the log of how many namings give the same answer, because they rename unused values, ``[K, 1, B]``."""
    is_used = values.amax(-2).float()  # [K, B, classes]
    is_renamed = (namings != torch.arange(namings.shape[-1], device=namings.device)).float()  # [P, classes]
    is_same = torch.einsum("kbv,pv->kpb", is_used, is_renamed) == 0
    return (is_same & is_naming).sum(1, keepdim=True).clamp(min=1).log()
