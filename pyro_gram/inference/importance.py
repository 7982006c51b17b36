"""Importance weights of the guide's trajectories, for each input, at beta = 1.

Pyro's helpers (``Importance``, ``vectorized_importance_weights``, ``WeighedPredictive``) compute the weight of a whole
batch; these functions compute the weight of each input. Both kinds of weight include all sample sites of model and
guide.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide, AutoMessenger
from pyro.infer.enum import get_importance_trace
from pyro.poutine import Trace
from torch import Tensor, nn

from pyro_gram.checks import check_counts
from pyro_gram.errors import UserError
from pyro_gram.inference.guide import EffectGuide, check_model, padding_mask
from pyro_gram.inference.sites import ANSWER
from pyro_gram.inference.terms import (
    charged_guidance_sites,
    check_batch_shape,
    check_not_shared,
    check_sites,
    counted_sites,
    log_prob_of,
    per_input,
    read_terms,
)
from pyro_gram.networks.relations import mean_over


@dataclass(frozen=True)
class GuideDraws:
    """S trajectories of the guide for each of B inputs, on the CPU. Log densities are in nats.

    Attributes:
        log_weight: log p(y, tau | x) - log q(tau | x, y), ``[S, B]``.
        log_likelihood: log p(y | h_T), ``[S, B]``.
        kl: KL(q || p) of each transition along the draw, ``[transitions, S, B]``.
        guidance: root mean square of eps_t over positions and channels, ``[transitions, S, B]``.
        tokens: the mode of p(y | h_T), int64 ``[S, B, L_out]``. The guide has seen y: never score these tokens.
        h: the final high-level state, ``[S, B, L, D]``.
    """

    log_weight: Tensor
    log_likelihood: Tensor
    kl: Tensor
    guidance: Tensor
    tokens: Tensor
    h: Tensor


PER_TRANSITION = ("kl", "guidance")  # the fields whose first dimension is the transition


def guidance_scale(eps: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the root mean square of guidance over positions and channels, ``[..., L, D] -> [...]``.

    Positions at which ``mask``, bool ``[..., L]``, is False are padding and do not count.
    """
    if mask is None:
        return eps.square().mean((-2, -1)).sqrt()
    at_positions = eps.reshape(*eps.shape[:-2], mask.shape[-1], -1)  # a position may stand for a token and a value
    return mean_over(at_positions.square(), mask).mean(-1).sqrt()


MAX_TRACED = 256  # trajectories that are traced together; a trace holds all tensors of a trajectory


def check_pairs(x: Tensor | None, y: Tensor) -> None:
    """Raise UserError unless y holds one answer for each input of x."""
    if not isinstance(y, Tensor) or y.ndim < 2:
        kind = f"of shape {list(y.shape)}" if isinstance(y, Tensor) else f"a {type(y).__name__}"
        raise UserError(f"y must be answers, a tensor [B, L_out], not {kind}")
    if x is not None and len(x) != len(y):
        raise UserError(f"x has {len(x)} inputs and y {len(y)} answers: give one answer for each input")


def inputs_per_chunk(guide: Any, y: Tensor, max_inputs: int) -> int:
    """Return the number of inputs in a chunk: all for Pyro's autoguides, whose parameters belong to one batch."""
    inner_guide = poutine.unwrap(guide)
    return len(y) if isinstance(inner_guide, AutoGuide | AutoMessenger) else max(1, max_inputs)


def split_pairs(x: Tensor | None, y: Tensor, size: int) -> list[tuple[Tensor | None, Tensor]]:
    """Split pairs (x, y) into chunks of ``size``; x stays None for a model without input."""
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
    """Draw ``num_samples`` trajectories of ``steps`` supervision steps from the guide, and compute their weights.

    Args:
        x: inputs, ``[B, *event]``; None for a model without input, p(x).
        y: answers, int64 ``[B, L_out]``.
        max_traced: number of trajectories that are traced together. The parameters of Pyro's autoguides
            belong to one whole batch: for them a chunk has all inputs and fewer samples.

    Raises:
        UserError: a count is below 1, or x and y are not pairs.
        ConfigError: inputs share a latent; the guide leaves out a latent; the guide was built with another model; or
            model or guide hold tensors that belong to one batch.
    """
    check_counts(seed=seed, num_samples=num_samples, steps=steps, max_traced=max_traced)
    check_pairs(x, y)
    check_model(model, guide)
    chunk_size = inputs_per_chunk(guide, y, max_traced // num_samples)
    max_samples = max(1, max_traced // chunk_size)
    devices = [y.device] if y.is_cuda else []
    chunk, rows = 0, []
    with torch.random.fork_rng(devices=devices), torch.no_grad(), pyro.validation_enabled(False):
        for a, b in split_pairs(x, y, chunk_size):
            columns = []
            for start in range(0, num_samples, max_samples):
                torch.manual_seed(seed + chunk)
                chunk += 1
                count = min(max_samples, num_samples - start)
                traces = _traces(model, guide, a, b, steps, count)
                if len(y) > 1:
                    _check_not_shared(*traces)
                columns.append(_read_draws(*traces, (count, len(b)), padding_mask(model)))
            rows.append(_concatenate(columns, 0))
    if isinstance(guide, EffectGuide):
        guide.forget()
    return _concatenate(rows, 1)


def _concatenate(parts: list[GuideDraws], dim: int) -> GuideDraws:
    """Concatenate draws along the samples (0) or the inputs (1)."""
    return GuideDraws(
        **{
            f.name: torch.cat([getattr(part, f.name) for part in parts], dim=dim + (f.name in PER_TRANSITION))
            for f in fields(GuideDraws)
        }
    )


def _traces(
    model: nn.Module, guide: nn.Module, x: Tensor | None, y: Tensor, steps: int, num_samples: int
) -> tuple[Trace, Trace]:
    """Return the traces of model and guide: ``num_samples`` untruncated trajectories of each pair (x, y)."""
    with pyro.plate("trajectories", num_samples, dim=-2):
        traces = get_importance_trace("flat", math.inf, model, guide, (x, y), {"steps": steps, "truncated": False})
    check_sites(traces[0])
    return traces


def _check_not_shared(model_trace: Trace, guide_trace: Trace) -> None:
    """Raise ConfigError if inputs share a site of the model, or an auxiliary site of the guide."""
    auxiliary = ((n, s) for n, s in counted_sites(guide_trace) if n not in model_trace.nodes)
    check_not_shared([*counted_sites(model_trace), *auxiliary], model_trace.nodes[ANSWER])


def _read_draws(model_trace: Trace, guide_trace: Trace, shape: tuple[int, int], mask: Tensor | None) -> GuideDraws:
    """Read the draws ``[S, B]`` from the traces of model and guide. ``mask`` is False at padding."""
    terms = read_terms(model_trace, guide_trace)
    check_batch_shape(terms.reconstruction.shape, shape)
    observed = model_trace.nodes[ANSWER]
    log_p, log_q = (_log_density(trace, model_trace, torch.Size(shape)) for trace in (model_trace, guide_trace))
    guidance = [model_trace.nodes[name]["value"] for name in charged_guidance_sites(model_trace, guide_trace)]
    scales = [guidance_scale(eps, mask).expand(shape) for eps in guidance]
    return GuideDraws(
        log_weight=log_p - log_q,
        log_likelihood=(-terms.reconstruction).cpu(),
        kl=terms.kl.cpu(),
        guidance=torch.stack(scales).cpu() if scales else terms.kl.cpu(),  # [0, S, B] if handlers fix all guidance
        tokens=observed["fn"].mode.expand(*shape, -1).cpu(),
        h=terms.state.h.cpu(),
    )


def _log_density(trace: Trace, model_trace: Trace, shape: torch.Size) -> Tensor:
    """Return the log density of the sites that count in a trace, ``[S, B]``, nats, on the CPU."""
    total = torch.zeros(shape, dtype=torch.double)  # because small differences between sums of thousands of nats matter
    observed = model_trace.nodes[ANSWER]
    for name, site in counted_sites(trace):
        model_site = model_trace.nodes.get(name, site)  # the guide's plates may have other names than the model's
        total = total + per_input(name, model_site, log_prob_of(site), observed, shape).cpu()
    return total


def log_evidence(log_weight: Tensor) -> Tensor:
    """Return the importance-weighted bound IWAE_S, the log of the mean weight, ``[S, B] -> [B]``, nats."""
    return log_weight.logsumexp(0) - math.log(len(log_weight))
