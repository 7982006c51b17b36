"""The terms of the bound, read from the traces of one pass under the guide.

Every sample site of the program counts, a user's own latents and observations included. Three kinds do not:
deterministic sites, sites that a mask takes out, and losses of heads (``sites.LOSS_ONLY`` in their ``infer``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions import Delta
from pyro.distributions.util import scale_and_mask
from pyro.poutine import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_gram.errors import ConfigError
from pyro_gram.inference.sites import ANSWER, HALTED, LOSS_ONLY, STATE_H, STATE_L, batch_shape_of, transition_index
from pyro_gram.networks.core import LatentState


@dataclass(frozen=True)
class StepTerms:
    """The terms of the bound after one pass under the guide, detached.

    Attributes:
        reconstruction: -log p(y | h_T), nats per input, ``[..., B]``.
        kl: KL(q || p) of each charged transition, nats per input, ``[T, ..., B]``, without beta; where a KL has no
            closed form, the one-sample estimate log q - log p.
        state: the final latent state, for the next supervision step to start from.
        halted: bool ``[..., B]``: trajectories that the program would end here; None where it does not say.
        others: what a user's own sites cost, nats per input, ``[..., B]``: KLs of further latents, -log p of further
            observations, log q of the guide's auxiliary draws.
        shared: the part of ``others`` that is of sites outside the plate of the inputs: one cost, split evenly.
    """

    reconstruction: Tensor
    kl: Tensor
    state: LatentState
    halted: Tensor | None
    others: Tensor
    shared: Tensor

    @property
    def means(self) -> Tensor:
        """The means of reconstruction and KL, nats per input, ``[2]``."""
        return torch.stack((self.reconstruction.mean(), self.kl.sum(0).mean()))

    @property
    def elbo(self) -> Tensor:
        """The bound per input at beta = 1, nats, ``[..., B]``."""
        return -self.reconstruction - self.kl.sum(0) - self.others


def counted_sites(trace: Trace) -> Iterator[tuple[str, Any]]:
    """The sample sites of a trace that count, with their names."""
    for name, site in trace.nodes.items():
        if is_counted(site):
            yield name, site


def is_counted(site: Any) -> bool:
    """True for a sample site that counts in bounds and weights."""
    if site["type"] != "sample" or site["mask"] is False or site_is_subsample(site):
        return False
    return not (site["infer"].get("_deterministic") or site["infer"].get(LOSS_ONLY))


def guidance_sites(model_trace: Trace) -> list[str]:
    """The names of the latent guidance sites of a model's trace, masked ones included."""
    nodes = model_trace.nodes.items()
    return [n for n, s in nodes if s["type"] == "sample" and not s["is_observed"] and transition_index(n) is not None]


def charged_guidance_sites(model_trace: Trace, guide_trace: Trace) -> list[str]:
    """The names of the guidance sites whose KL counts, in the order of the program."""
    nodes = model_trace.nodes
    return [
        name
        for name in guidance_sites(model_trace)
        if is_counted(nodes[name]) or (name in guide_trace.nodes and is_counted(guide_trace.nodes[name]))
    ]


def _log_densities(q: Any, p: Any, value: Tensor) -> tuple[Tensor, Tensor]:
    return q.log_prob(value), p.log_prob(value)


def log_prob_of(site: Any) -> Tensor:
    """The log density at a site, nats, of the site's batch shape.

    Masks count, and so do the weights of subsampled plates, which belong to the density. ``poutine.scale`` does not.
    """
    log_prob = site["unscaled_log_prob"] if "unscaled_log_prob" in site else site["fn"].log_prob(site["value"])
    return weighted(log_prob, site)


def weighted(term: Tensor, site: Any) -> Tensor:
    """A term of a site under its mask and the weights of its subsampled plates."""
    weight = 1.0
    for frame in site["cond_indep_stack"]:
        if frame.full_size and frame.full_size != frame.size:
            weight *= frame.full_size / frame.size
    return scale_and_mask(term, weight, site["mask"])


def read_terms(model_trace: Trace, guide_trace: Trace, kls: dict[str, Tensor] | None = None) -> StepTerms:
    """Read the terms of a pair of traces: of the bound of Eq. 13, or of Eq. 14 where the program was truncated.

    Args:
        kls: KLs of guidance sites that a bound knows already, masked, ``[..., B]`` by name.

    Raises:
        ConfigError: the model has a latent that the guide does not answer, or lacks one of the sites y, h and l.
    """
    if kls is None:  # else a bound has looked at the traces already
        check_guide_sites(model_trace, guide_trace)
    check_sites(model_trace)
    observed = model_trace.nodes[ANSWER]
    with torch.no_grad():
        reconstruction = -log_prob_of(observed) / weight_of_inputs(observed, observed)
        charged: list[Tensor] = []
        others, shared = torch.zeros_like(reconstruction), torch.zeros_like(reconstruction)
        for name, site, cost in _costs(model_trace, guide_trace, kls or {}):
            if transition_index(name) is not None and not site["is_observed"]:
                charged.append(cost.expand_as(reconstruction) / weight_of_inputs(site, observed))
                continue
            each = per_input(name, site, cost, observed, reconstruction.shape)
            others = others + each
            if is_shared(site, observed):
                shared = shared + each
        kl = torch.stack(charged) if charged else reconstruction[None][:0]
    state = LatentState(model_trace.nodes[STATE_H]["value"], model_trace.nodes[STATE_L]["value"])
    halted = model_trace.nodes[HALTED]["value"] if HALTED in model_trace.nodes else None
    return StepTerms(reconstruction.detach(), kl, state.detach(), halted, others.detach(), shared.detach())


def _costs(model_trace: Trace, guide_trace: Trace, kls: dict[str, Tensor]) -> Iterator[tuple[str, Any, Tensor]]:
    """What every site but y adds to the loss: its name, the site, and nats of the site's batch shape."""
    for name, site in model_trace.nodes.items():
        if site["type"] != "sample":
            continue
        guide_site = None if site["is_observed"] else guide_trace.nodes.get(name)
        if guide_site is not None:
            if is_counted(site) or is_counted(guide_site):
                yield name, site, kls[name] if name in kls else divergence(guide_site, site)
        elif is_counted(site) and name != ANSWER:
            yield name, site, -log_prob_of(site)
    for name, site in counted_sites(guide_trace):
        if name not in model_trace.nodes:  # an auxiliary draw of the guide
            yield name, site, log_prob_of(site)


def check_sites(model_trace: Trace) -> None:
    """Raises ConfigError for a program that lacks a site which this library reads."""
    if not {ANSWER, STATE_H, STATE_L} <= model_trace.nodes.keys():
        raise ConfigError(missing_sites_message())
    if model_trace.nodes[ANSWER]["infer"].get("_deterministic"):
        raise ConfigError("y is observed in part (obs_mask), where nothing says what an input costs: use poutine.mask")


def missing_sites_message() -> str:
    """What a program lacks that this library cannot read."""
    return (
        "the program needs the sites 'y', 'h' and 'l': observe the answer at 'y', and let it say where the trajectory "
        "ended with pyro_gram.inference.sites.record_state(state), inside the plate of the inputs"
    )


def check_guide_sites(model_trace: Trace, guide_trace: Trace) -> None:
    """Raises ConfigError where the guide's sites are not the model's latents: no bound of the two would be one."""
    nodes, answers = model_trace.nodes, guide_trace.nodes
    missing = [n for n, s in counted_sites(model_trace) if not s["is_observed"] and n not in answers]
    if missing:
        raise ConfigError(
            f"the guide does not answer {', '.join(map(repr, missing))}: sample each latent of the model in the guide "
            "under the same name, or use a guide that derives from EffectGuide, which falls back on the prior"
        )
    for name, answer in counted_sites(guide_trace):
        if name not in nodes:
            if transition_index(name) is not None:
                raise ConfigError(
                    f"the guide draws {name!r}, which the program has not: it has fewer supervision steps than the "
                    "guide was made for"
                )
        elif nodes[name]["is_observed"]:
            raise ConfigError(f"the model observes {name!r}, which the guide draws: leave it out of the guide")
        elif answer["fn"].batch_shape == nodes[name]["fn"].batch_shape:
            continue
        elif _batch_shape(answer) != _batch_shape(nodes[name]):
            raise ConfigError(
                f"the guide draws {name!r} with the batch shape {list(_batch_shape(answer))}, and the model has "
                f"{list(_batch_shape(nodes[name]))}: sample it in the same plates"
            )


def _batch_shape(site: Any) -> torch.Size:
    """The batch shape of a site in its plates: a replayed one's distribution has not been expanded to them."""
    return torch.broadcast_shapes(site["fn"].batch_shape, batch_shape_of(site["cond_indep_stack"]))


def divergence(guide_site: Any, model_site: Any) -> Tensor:
    """KL(q || p) of a site in closed form, or else log q - log p at the draw; nats, of the site's batch shape."""
    under_q, under_p = divergence_parts(guide_site, model_site)
    found = weighted(under_q, guide_site)
    return found if under_p is None else found - weighted(under_p, model_site)


def divergence_parts(
    guide_site: Any,
    model_site: Any,
    kl: Callable[[Any, Any], Tensor] = kl_divergence,
    log_densities: Callable[[Any, Any, Tensor], tuple[Tensor, Tensor]] = _log_densities,
) -> tuple[Tensor, Tensor | None]:
    """KL(q || p) and None, or log q and log p at the draw; nats, of the site's batch shape, unscaled and unmasked.

    Each of two counts under the scale and mask of its own site, a KL under the guide's, as in Pyro.

    Args:
        kl: of q and p; raises NotImplementedError where it has no closed form.
        log_densities: of q and p at a draw.
    """
    q, p, value = guide_site["fn"], model_site["fn"], model_site["value"]
    if q is p:  # the guide follows the prior
        return torch.zeros(p.batch_shape, device=value.device), None
    if is_delta(q):
        return q.log_prob(value), p.log_prob(value)
    try:
        return kl(q, p), None
    except NotImplementedError:
        return log_densities(q, p, value)


def is_delta(distribution: Any) -> bool:
    """True for a Delta, with which Pyro's autoguides answer.

    Its log density stands for that of an auxiliary draw behind it. Pyro's closed-form KL of a Delta leaves it out.
    """
    while isinstance(distribution, torch.distributions.Independent):
        distribution = distribution.base_dist
    return isinstance(distribution, Delta)


def is_shared(site: Any, observed: Any) -> bool:
    """True for a site outside the plate of the inputs, the rightmost one around y: all inputs share it."""
    inputs = plate_of_inputs(observed)
    if inputs:
        return inputs not in _plates(site)
    # A program without that plate: the shapes say it.
    return observed["fn"].batch_shape[-1:].numel() > 1 and site["fn"].batch_shape[-1:].numel() == 1


def check_not_shared(sites: Iterable[tuple[str, Any]], observed: Any) -> None:
    """Raises ConfigError where inputs share one of the sites, so that none has a density of its own."""
    for name, site in sites:
        if is_shared(site, observed):
            raise ConfigError(
                f"all inputs share the site {name!r}, so that none has a weight of its own: put it into the plate "
                f"{plate_of_inputs(observed) or 'data'!r}, or give one input at a time"
            )


def check_batch_shape(shape: torch.Size, expected: tuple[int, ...]) -> None:
    """Raises ConfigError where a pass over some of the inputs has values for others."""
    if shape != expected:
        raise ConfigError(
            f"{expected[-1]} inputs were given, and y has {list(shape)} log densities: inputs come in pieces, so "
            "neither model nor guide may hold tensors of one batch (a mask, a parameter an input), which are part of "
            "x; and dimensions within an input are events (to_event)"
        )


def plate_of_inputs(observed: Any) -> str:
    """The name of the rightmost plate around y; empty where there is none at dimension -1."""
    return next((name for name, dim in _plates(observed).items() if dim == -1), "")


def weight_of_inputs(site: Any, observed: Any) -> float:
    """How much a site of one input weighs where the inputs are a subsample (``pyro.plate("data", N, subsample=i)``)."""
    name = plate_of_inputs(observed)
    sizes = {frame.name: (frame.full_size, frame.size) for frame in site["cond_indep_stack"]}
    full_size, size = sizes.get(name, (None, None))
    return full_size / size if full_size and size else 1.0


def _plates(site: Any) -> dict[str, int]:
    """The vectorized plates around a site, by name, with their dimensions."""
    return {frame.name: frame.dim for frame in site["cond_indep_stack"] if frame.vectorized}


def per_input(name: str, site: Any, term: Tensor, observed: Any, shape: torch.Size) -> Tensor:
    """Distribute a site's term over the inputs so that its sum stays: ``[*batch] -> shape``.

    What lies in plates within an input is summed; what inputs share is split evenly among them. Where the inputs are a
    subsample, each counts once: its weight in the sum over all of them is no part of a term of its own.

    Args:
        name: of the site, for messages.
        site, observed: the site and the site y, with the plates around them.
        term: nats, of the site's batch shape.
        shape: of y's log density, ``[..., B]``.

    Raises:
        ConfigError: the site has values for other inputs than y.
    """
    plates, around = _plates(site), _plates(observed)
    # A dimension is y's own where it is the same plate's, or no plate's at either of them.
    common = {dim for plate, dim in plates.items() if plate in around}
    common |= set(range(-len(shape), 0)) - set(plates.values()) - set(around.values())
    for dim in range(-term.ndim, 0):
        if dim not in common:
            term = term.sum(dim, keepdim=True)
        elif term.shape[dim] not in (1, shape[dim]):
            raise ConfigError(
                f"the site {name!r} has values for {term.shape[dim]} inputs where y has {shape[dim]}: inputs come in "
                "pieces, so make what is observed there a part of x"
            )
    term = term.reshape((1,) * (len(shape) - term.ndim) + term.shape[max(0, term.ndim - len(shape)) :])
    share = term.numel() / max(1, shape.numel())
    return term.expand(shape) * (share / weight_of_inputs(site, observed))
