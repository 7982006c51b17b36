"""The bounds of a model on given pairs (x, y): full (Eq. 13) and surrogate (Eq. 14), at beta = 1."""

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
    """Nats per input, each ``[B]``.

    Attributes:
        full: Eq. 13: log p(y | h_T) at the end of the trajectory less every KL on the way.
        surrogate: Eq. 14, the mean over the supervision steps that are trained: what each update maximises.
        kl: KL of every transition of the full trajectory, ``[transitions, B]``.
        reconstruction: -log p(y | h) at the trajectory's end.
        others: what further sites cost (a user's own latents): full = -reconstruction - sum of kl - others.
        tokens: the mode of p(y | h) there, int64 ``[B, L_out]``: what the guide, who knows y, makes the program answer.
            Never score it as the model's. None where the program has no mode.
    """

    full: Tensor
    surrogate: Tensor
    kl: Tensor
    reconstruction: Tensor
    others: Tensor
    tokens: Tensor | None


class _Answer(Messenger):
    """Keeps the mode of the observed site, where it has one: a factor (diffusion models) has none."""

    mode: Tensor | None = None

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["name"] == ANSWER and not msg["infer"].get(DRAW_ANSWER):
            with suppress(NotImplementedError):
                self.mode = msg["fn"].mode


def terms(model: nn.Module, guide: nn.Module, *args: Any, **kwargs: Any) -> StepTerms:
    """Reconstruction, KLs and final state of one pass under the guide, at beta = 1, without gradient.

    Raises:
        ConfigError: the program lacks one of the sites y, h and l.
    """
    elbo = BalancedELBO()  # without a gradient its balance is nothing, and it knows KLs without closed form
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
    trained: int | None = None,
    seed: int = 0,
    max_traced: int = 4 * MAX_TRACED,
) -> Bounds:
    """One draw of the guide an input, told on the CPU. The caller's random state is left as it was.

    Args:
        steps: supervision steps of the full bound.
        trained: supervision steps of the surrogate, N_sup; as many where None.
        max_traced: bounds the memory: the most inputs whose whole trajectories are held at once. One of Pyro's
            autoguides, which belongs to its batch, is given all together.

    Raises:
        UserError: a count below 1; x and y that are no pairs.
        ConfigError: a latent that the guide does not answer; a program without the sites y, h and l; a program or guide
            that holds tensors of one batch.
    """
    check_counts(seed=seed, steps=steps, trained=trained or steps, max_traced=max_traced)
    check_pairs(x, y)
    parts = []
    with torch.random.fork_rng(devices=[y.device] if y.is_cuda else []):
        for chunk, (a, b) in enumerate(split_pairs(x, y, inputs_per_chunk(guide, y, max_traced))):
            torch.manual_seed(seed + chunk)
            parts.append(_bounds(model, guide, a, b, steps, trained or steps, len(b) / len(y)))
    return Bounds(
        full=torch.cat([p.full for p in parts]),
        surrogate=torch.cat([p.surrogate for p in parts]),
        kl=torch.cat([p.kl for p in parts], dim=1),
        reconstruction=torch.cat([p.reconstruction for p in parts]),
        others=torch.cat([p.others for p in parts]),
        tokens=None if parts[0].tokens is None else torch.cat([p.tokens for p in parts if p.tokens is not None]),
    )


def _bounds(
    model: nn.Module, guide: nn.Module, x: Tensor | None, y: Tensor, steps: int, trained: int, share: float
) -> Bounds:
    """The bounds of some of the inputs, which are ``share`` of all and pay so much of what all inputs share."""
    with _Answer() as answer:
        whole = terms(model, guide, x, y, steps=steps, truncated=False)
    check_batch_shape(whole.reconstruction.shape, (len(y),))
    state, by_step = None, []
    for _ in range(trained):
        one = terms(model, guide, x, y, state)
        state = one.state
        by_step.append(one.elbo + (1 - share) * one.shared)
    tokens = None if answer.mode is None else answer.mode.cpu()
    surrogate = torch.stack(by_step).mean(0).cpu()
    spared = (1 - share) * whole.shared
    return Bounds(
        full=(whole.elbo + spared).cpu(),
        surrogate=surrogate,
        kl=whole.kl.cpu(),
        reconstruction=whole.reconstruction.cpu(),
        others=(whole.others - spared).cpu(),
        tokens=tokens,
    )
