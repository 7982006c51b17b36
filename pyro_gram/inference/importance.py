"""Importance weights of the guide's trajectories, per input and at beta = 1.

Pyro's own helpers (``Importance``, ``vectorized_importance_weights``, ``WeighedPredictive``) give the weight of a whole
batch, these that of each input. Both take every sample site of model and guide into account.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import pyro
import torch
from pyro.infer.enum import get_importance_trace
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyro_gram.errors import ConfigError
from pyro_gram.inference.guide import EffectGuide
from pyro_gram.inference.sites import OBSERVED, transition_of
from pyro_gram.inference.terms import counted_sites, log_prob_of, per_input, read_terms


@dataclass(frozen=True)
class GuideDraws:
    """Trajectories drawn from the guide, for S draws of each of B inputs; nats, on the CPU.

    Attributes:
        log_weight: log p(y, tau | x) - log q(tau | x, y), ``[S, B]``.
        log_likelihood: log p(y | h_T), ``[S, B]``.
        kl: KL(q || p) of each transition along the draw, ``[transitions, S, B]``.
        guidance: root mean square of eps_t over positions and channels, ``[transitions, S, B]``.
        tokens: the mode of p(y | h_T), int64 ``[S, B, L_out]``. It has seen y: never score it.
        h: the final high-level state, ``[S, B, L, D]``.
    """

    log_weight: Tensor
    log_likelihood: Tensor
    kl: Tensor
    guidance: Tensor
    tokens: Tensor
    h: Tensor


PER_TRANSITION = ("kl", "guidance")  # their first dimension is the transition


class GuidanceScale(Messenger):
    """Notes the root mean square of each transition's guidance as it passes."""

    def __init__(self) -> None:
        super().__init__()
        self.by_transition: list[Tensor] = []

    def _pyro_post_sample(self, msg: Any) -> None:
        if transition_of(msg["name"]) is not None:
            self.by_transition.append(msg["value"].square().mean((-2, -1)).sqrt())


MAX_TRACED = 256  # trajectories of 8 positions traced at once: a trace holds every tensor of the whole trajectory


def split_pairs(x: Tensor | None, y: Tensor, size: int) -> list[tuple[Tensor | None, Tensor]]:
    """Pairs (x, y) in pieces of ``size``; x stays None for p(x)."""
    ys = y.split(size)
    return list(zip([None] * len(ys) if x is None else x.split(size), ys, strict=True))


def guide_draws(
    model: nn.Module,
    guide: nn.Module,
    x: Tensor | None,
    y: Tensor,
    *,
    steps: int,
    num_samples: int,
    seed: int = 0,
    max_traced: int = MAX_TRACED,
) -> GuideDraws:
    """Draw ``num_samples`` trajectories of ``steps`` supervision steps from the guide, each with its weight.

    Args:
        x: inputs, ``[B, *event]``; None for p(x).
        y: answers, int64 ``[B, L_out]``.
        max_traced: the most trajectories that are traced at once.

    Raises:
        ConfigError: a latent that several inputs share, or that the guide does not answer.
    """
    at_once = max(1, max_traced // num_samples)
    devices = [y.device] if y.is_cuda else []
    chunk, rows = 0, []
    with torch.random.fork_rng(devices=devices), torch.no_grad(), pyro.validation_enabled(False):
        for a, b in split_pairs(x, y, at_once):
            columns = []
            for start in range(0, num_samples, max_traced):
                torch.manual_seed(seed + chunk)
                chunk += 1
                columns.append(_draw(model, guide, a, b, steps, min(max_traced, num_samples - start)))
            rows.append(_joined(columns, 0))
    if isinstance(guide, EffectGuide):
        guide.forget()
    return _joined(rows, 1)


def _joined(parts: list[GuideDraws], dim: int) -> GuideDraws:
    """Draws side by side: along the samples (0) or the inputs (1)."""
    return GuideDraws(
        **{
            f.name: torch.cat([getattr(part, f.name) for part in parts], dim=dim + (f.name in PER_TRANSITION))
            for f in fields(GuideDraws)
        }
    )


def _draw(model: nn.Module, guide: nn.Module, x: Tensor | None, y: Tensor, steps: int, num_samples: int) -> GuideDraws:
    with GuidanceScale() as scale, pyro.plate("trajectories", num_samples, dim=-2):
        model_trace, guide_trace = get_importance_trace(
            "flat", math.inf, model, guide, (x, y), {"steps": steps, "truncated": False}
        )
    terms = read_terms(model_trace, guide_trace)
    shape = (num_samples, len(y))
    log_p, log_q = (_log_density(trace, shape) for trace in (model_trace, guide_trace))
    likelihood = model_trace.nodes[OBSERVED]["fn"]
    transitions = len(terms.kl)
    return GuideDraws(
        log_weight=log_p - log_q,
        log_likelihood=(-terms.reconstruction).expand(shape).cpu(),
        kl=terms.kl.expand(transitions, *shape).cpu(),
        # A two-pass guide runs every transition twice, the replay of the model second; both carry the same draw.
        guidance=torch.stack(scale.by_transition[-transitions:]).expand(transitions, *shape).cpu(),
        tokens=likelihood.mode.expand(*shape, -1).cpu(),
        h=terms.state.h.cpu(),
    )


def _log_density(trace: Any, shape: tuple[int, int]) -> Tensor:
    """The log density of all that counts in a trace, for each draw and input, ``[S, B]``, nats, on the CPU.

    Raises:
        ConfigError: a site that several inputs share, so that their weights are not each one's own.
    """
    total = torch.zeros(shape, dtype=torch.double)  # of thousands of nats, whose differences matter
    for name, site in counted_sites(trace):
        log_prob = log_prob_of(site)
        if shape[1] > 1 and (log_prob.ndim == 0 or log_prob.shape[-1] == 1):
            raise ConfigError(
                f"all {shape[1]} inputs share the site {name!r}, so that none has a weight of its own: put it into the "
                "plate 'data', or give one input at a time"
            )
        total = total + per_input(log_prob.cpu(), total.shape)
    return total


def log_evidence(log_weight: Tensor) -> Tensor:
    """The importance-weighted bound IWAE_S: log of the mean weight, ``[S, B] -> [B]``, nats."""
    return log_weight.logsumexp(0) - math.log(len(log_weight))
