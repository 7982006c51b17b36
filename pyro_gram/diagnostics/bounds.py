"""Bounds on log p(y | x) for given pairs (x, y), at beta = 1: the full bound (Eq. 13) and the surrogate (Eq. 14)."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyro_gram.checks import check_counts
from pyro_gram.errors import ConfigError
from pyro_gram.inference.elbo import BalancedELBO
from pyro_gram.inference.importance import MAX_TRACED, check_pairs, inputs_per_chunk, split_pairs
from pyro_gram.inference.sites import ANSWER, DRAW_ANSWER
from pyro_gram.inference.terms import StepTerms, check_batch_shape, missing_sites_message


@dataclass(frozen=True)
class Bounds:
    """Bounds on log p(y | x) for each pair, and the terms of the full bound, nats, ``[B]``.

    Attributes:
        full: Eq. 13: log p(y | h_T) at the end of the trajectory minus the KL of every transition.
        surrogate: Eq. 14: the mean of the bounds of single supervision steps. In training each update raises one such
            bound.
        kl: KL of every transition of the full trajectory, ``[transitions, B]``.
        reconstruction: -log p(y | h_T) at the end of the trajectory.
        other_terms: the cost of further sites (a user's own latents): full = -reconstruction - sum of kl - other_terms.
        tokens: the mode of p(y | h_T), int64 ``[B, L_out]``. These tokens are not answers of the model, because
            the guide was given y. None for a program whose likelihood has no mode.
    """

    full: Tensor
    surrogate: Tensor
    kl: Tensor
    reconstruction: Tensor
    other_terms: Tensor
    tokens: Tensor | None


class _RecordMode(Messenger):
    """Record the mode of the observed site y. (The factor statement of a diffusion model has no mode.)"""

    mode: Tensor | None = None

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["name"] == ANSWER and not msg["infer"].get(DRAW_ANSWER):
            with suppress(NotImplementedError):
                self.mode = msg["fn"].mode


def terms(model: nn.Module, guide: nn.Module, *args: Any, **kwargs: Any) -> StepTerms:
    """Return reconstruction, KLs and final state of one pass under the guide, at beta = 1, without gradient.

    Raises:
        ConfigError: the program lacks one of the sites y, h and l.
    """
    elbo = BalancedELBO()  # the balance changes gradients only; KLs without a closed form are estimated
    with torch.no_grad(), pyro.validation_enabled(False):
        elbo.loss(model, guide, *args, **kwargs)
    if elbo.terms is None:
        raise ConfigError(missing_sites_message())
    return elbo.terms


def bounds(
    model: nn.Module,
    guide: nn.Module,
    x: Tensor | None,
    y: Tensor,
    steps: int,
    surrogate_steps: int | None = None,
    seed: int = 0,
    max_traced: int = 4 * MAX_TRACED,
) -> Bounds:
    """Estimate the bounds from one trajectory of the guide for each pair. The caller's random state is restored.

    Args:
        steps: supervision steps of the full bound.
        surrogate_steps: supervision steps of the surrogate, N_sup; ``steps`` if None.
        max_traced: the maximal number of inputs whose trajectories are in memory at once. A Pyro autoguide, which is
            built for one batch, gets all inputs together.

    Returns:
        the bounds, on the CPU.

    Raises:
        UserError: a count is below 1, or x and y do not form pairs.
        ConfigError: the guide does not sample a latent; the program lacks one of the sites y, h and l; or the
            program or the guide holds tensors that fit one batch only.
    """
    surrogate_steps = surrogate_steps or steps
    check_counts(seed=seed, steps=steps, surrogate_steps=surrogate_steps, max_traced=max_traced)
    check_pairs(x, y)
    parts = []
    with torch.random.fork_rng(devices=[y.device] if y.is_cuda else []):
        for chunk, (inputs, answers) in enumerate(split_pairs(x, y, inputs_per_chunk(guide, y, max_traced))):
            torch.manual_seed(seed + chunk)
            parts.append(_bounds(model, guide, inputs, answers, steps, surrogate_steps, len(answers) / len(y)))
    return Bounds(
        full=torch.cat([p.full for p in parts]),
        surrogate=torch.cat([p.surrogate for p in parts]),
        kl=torch.cat([p.kl for p in parts], dim=1),
        reconstruction=torch.cat([p.reconstruction for p in parts]),
        other_terms=torch.cat([p.other_terms for p in parts]),
        tokens=None if parts[0].tokens is None else torch.cat([p.tokens for p in parts if p.tokens is not None]),
    )


def _bounds(
    model: nn.Module, guide: nn.Module, x: Tensor | None, y: Tensor, steps: int, surrogate_steps: int, share: float
) -> Bounds:
    """Return the bounds of a chunk of the inputs.

    The chunk holds the fraction ``share`` of all inputs, and bears this fraction of the terms that inputs share.
    """
    with _RecordMode() as recorder:
        full = terms(model, guide, x, y, steps=steps, truncated=False)
    check_batch_shape(full.reconstruction.shape, (len(y),))
    state, by_step = None, []
    for _ in range(surrogate_steps):
        step = terms(model, guide, x, y, state)
        state = step.state
        by_step.append(step.elbo + (1 - share) * step.shared_terms)
    other_share = (1 - share) * full.shared_terms
    return Bounds(
        full=(full.elbo + other_share).cpu(),
        surrogate=torch.stack(by_step).mean(0).cpu(),
        kl=full.kl.cpu(),
        reconstruction=full.reconstruction.cpu(),
        other_terms=(full.other_terms - other_share).cpu(),
        tokens=None if recorder.mode is None else recorder.mode.cpu(),
    )
