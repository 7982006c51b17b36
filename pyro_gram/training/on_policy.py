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
from pyro_gram.sampling.steps import Decode
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
    if namings is None or candidates.is_naming is None or candidates.is_token is None:
        log_p = torch.zeros(mask.shape, device=mask.device) if likelihood is None else likelihood.log_prob(solutions)
        columns = torch.arange(mask.shape[1], device=mask.device)
        return solutions[_draw(log_p.masked_fill(~mask, -torch.inf)), columns]
    logits = None if likelihood is None else likelihood.base_dist.logits  # [B, L_out, classes], normalised
    targets = torch.zeros_like(solutions[0])
    for b, is_token in enumerate(candidates.is_token):  # inputs differ much in their numbers of solutions and namings
        own_namings = namings[candidates.is_naming[:, b]]
        own_solutions = solutions[mask[:, b], b][:, is_token]
        own_logits = None if logits is None else logits[b, is_token]
        targets[b, is_token] = _draw_named(own_logits, own_solutions, own_namings)
    return targets


def _draw(log_p: Tensor) -> Tensor:
    """Draw an index along the first dimension, ``[N, ...] -> int64 [...]``."""
    gumbel = -torch.empty_like(log_p).exponential_().log()  # the greatest of log p + Gumbel noise is a draw from p
    return (log_p + gumbel).argmax(0)


def _draw_named(logits: Tensor | None, solutions: Tensor, namings: Tensor) -> Tensor:
    """Draw a solution of one input and a naming of its values, int64 ``[L]``.

    Args:
        logits: normalised, ``[L, classes]``; None to draw solutions, and their namings, uniformly.
        solutions: int64 ``[K, L]``.
        namings: int64 ``[P, classes]``.
    """
    log_p = torch.zeros(len(solutions), len(namings), device=solutions.device)
    if logits is not None:
        values = one_hot(solutions, logits.shape[-1]).to(logits.dtype)
        by_value = torch.einsum("klv,lw->kvw", values, logits)  # the sum over tokens of value v, if all were w
        value = torch.arange(logits.shape[-1], device=logits.device)
        is_renamed = (namings != value).to(logits.dtype)
        is_same = values.amax(1) @ is_renamed.T == 0  # these namings rename only values that a solution does not use
        log_p = by_value[:, value, namings].sum(-1) - is_same.sum(1, keepdim=True).log()  # each answer counts once
    k, p = divmod(int(_draw(log_p.flatten())), len(namings))
    return namings[p, solutions[k]]
