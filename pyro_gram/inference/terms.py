"""Compute the terms of the ELBO from the traces of one pass of model and guide.

All sample sites count, including a user's own latents and observations. The exceptions are deterministic sites,
subsamples of plates, sites with ``mask=False``, and sites with the key ``sites.LOSS_ONLY`` in their infer dict.
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
    """The terms of the ELBO after one pass of model and guide, detached.

    Attributes:
        reconstruction: -log p(y | h_T), nats per input, ``[..., B]``.
        kl: KL(q || p) of each transition whose KL counts, nats per input, ``[T, ..., B]``, without beta. A KL
            without closed form is estimated by log q - log p at the draw.
        state: the final latent state, for the next supervision step to start from.
        halted: bool ``[..., B]``: whether the model halts a trajectory after this pass; None without a site ``halted``.
        other_terms: the sum over all other sites, nats per input, ``[..., B]``: KLs of a user's latents, -log p of
            further observations, log q of the guide's auxiliary draws.
        shared_terms: the part of ``other_terms`` from sites outside the plate of the inputs, split evenly over inputs.
    """

    reconstruction: Tensor
    kl: Tensor
    state: LatentState
    halted: Tensor | None
    other_terms: Tensor
    shared_terms: Tensor

    @property
    def means(self) -> Tensor:
        """Return the means of reconstruction and KL, nats per input, ``[2]``."""
        return torch.stack((self.reconstruction.mean(), self.kl.sum(0).mean()))

    @property
    def elbo(self) -> Tensor:
        """Return the ELBO of each input at beta = 1, nats, ``[..., B]``."""
        return -self.reconstruction - self.kl.sum(0) - self.other_terms


def counted_sites(trace: Trace) -> Iterator[tuple[str, Any]]:
    """Yield the name and the site of each sample site that counts in a trace."""
    for name, site in trace.nodes.items():
        if is_counted(site):
            yield name, site


def is_counted(site: Any) -> bool:
    """Return whether a site counts in bounds and importance weights."""
    if site["type"] != "sample" or site["mask"] is False or site_is_subsample(site):
        return False
    return not (site["infer"].get("_deterministic") or site["infer"].get(LOSS_ONLY))


def guidance_sites(model_trace: Trace) -> list[str]:
    """Return the names of the latent guidance sites in a model's trace, including masked ones."""
    nodes = model_trace.nodes.items()
    return [n for n, s in nodes if s["type"] == "sample" and not s["is_observed"] and transition_index(n) is not None]


def charged_guidance_sites(model_trace: Trace, guide_trace: Trace) -> list[str]:
    """Return the names of the guidance sites whose KL counts, in the order of the program."""
    nodes = model_trace.nodes
    return [
        name
        for name in guidance_sites(model_trace)
        if is_counted(nodes[name]) or (name in guide_trace.nodes and is_counted(guide_trace.nodes[name]))
    ]


def log_densities(q: Any, p: Any, value: Tensor) -> tuple[Tensor, Tensor]:
    return q.log_prob(value), p.log_prob(value)


def log_prob_of(site: Any) -> Tensor:
    """Return the log density of the value at a site, nats, in the site's batch shape.

    It includes masks and the weights of subsampled plates, but not ``poutine.scale``.
    """
    log_prob = site["unscaled_log_prob"] if "unscaled_log_prob" in site else site["fn"].log_prob(site["value"])
    return apply_weights(log_prob, site)


def apply_weights(term: Tensor, site: Any) -> Tensor:
    """Apply the site's mask, and the weights of its subsampled plates, to a term."""
    weight = 1.0
    for frame in site["cond_indep_stack"]:
        if frame.full_size and frame.full_size != frame.size:
            weight *= frame.full_size / frame.size
    return scale_and_mask(term, weight, site["mask"])


def read_terms(model_trace: Trace, guide_trace: Trace, kls: dict[str, Tensor] | None = None) -> StepTerms:
    """Read the terms from the traces of model and guide. They belong to Eq. 14 if the model was truncated, else to
    Eq. 13.

    Args:
        kls: KLs that the caller has already computed: name of the site -> KL with its mask applied, ``[..., B]``.

    Raises:
        ConfigError: the guide does not sample a latent of the model, or a site y, h or l is missing.
    """
    if kls is None:  # an ELBO that passes KLs has already checked the traces
        check_guide_sites(model_trace, guide_trace)
    check_sites(model_trace)
    observed = model_trace.nodes[ANSWER]
    with torch.no_grad():
        reconstruction = -log_prob_of(observed) / weight_of_inputs(observed, observed)
        charged_kls: list[Tensor] = []
        other_terms, shared_terms = torch.zeros_like(reconstruction), torch.zeros_like(reconstruction)
        for name, site, cost in _costs(model_trace, guide_trace, kls or {}):
            if transition_index(name) is not None and not site["is_observed"]:
                charged_kls.append(cost.expand_as(reconstruction) / weight_of_inputs(site, observed))
                continue
            cost_per_input = per_input(name, site, cost, observed, reconstruction.shape)
            other_terms = other_terms + cost_per_input
            if is_shared(site, observed):
                shared_terms = shared_terms + cost_per_input
        kl = torch.stack(charged_kls) if charged_kls else reconstruction[None][:0]
    state = LatentState(model_trace.nodes[STATE_H]["value"], model_trace.nodes[STATE_L]["value"])
    halted = model_trace.nodes[HALTED]["value"] if HALTED in model_trace.nodes else None
    return StepTerms(reconstruction.detach(), kl, state.detach(), halted, other_terms.detach(), shared_terms.detach())


def _costs(model_trace: Trace, guide_trace: Trace, kls: dict[str, Tensor]) -> Iterator[tuple[str, Any, Tensor]]:
    """Yield (name, site, cost) for each site except y: the cost is what the site adds to the loss, nats."""
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
    """Raise ConfigError if a model lacks the site y, h or l, or observes y only in part."""
    if not {ANSWER, STATE_H, STATE_L} <= model_trace.nodes.keys():
        raise ConfigError(missing_sites_message())
    if model_trace.nodes[ANSWER]["infer"].get("_deterministic"):
        raise ConfigError("y is observed only in part (obs_mask), so that no input has a density: use poutine.mask")


def missing_sites_message() -> str:
    """Return the message for a model without the sites y, h and l."""
    return (
        "the program needs the sites 'y', 'h' and 'l': observe the answer at 'y', and record the final state with "
        "pyro_gram.inference.sites.record_state(state), inside the plate of the inputs"
    )


def check_guide_sites(model_trace: Trace, guide_trace: Trace) -> None:
    """Raise ConfigError if the guide's sites do not match the model's latents: then the two have no ELBO."""
    nodes, guide_nodes = model_trace.nodes, guide_trace.nodes
    missing_names = [n for n, s in counted_sites(model_trace) if not s["is_observed"] and n not in guide_nodes]
    if missing_names:
        raise ConfigError(
            f"the guide does not sample {', '.join(map(repr, missing_names))}: sample each latent of the model in the "
            "guide under the same name, or use a subclass of EffectGuide, which draws other latents from the prior"
        )
    for name, guide_site in counted_sites(guide_trace):
        if name not in nodes:
            if transition_index(name) is not None:
                raise ConfigError(
                    f"the guide draws {name!r}, which the program lacks: it has fewer supervision steps than the "
                    "guide was made for"
                )
        elif nodes[name]["is_observed"]:
            raise ConfigError(f"the model observes {name!r}, which the guide draws: leave it out of the guide")
        elif guide_site["fn"].batch_shape == nodes[name]["fn"].batch_shape:
            continue
        elif _batch_shape(guide_site) != _batch_shape(nodes[name]):
            raise ConfigError(
                f"the guide draws {name!r} with the batch shape {list(_batch_shape(guide_site))}, and the model has "
                f"{list(_batch_shape(nodes[name]))}: sample it in the same plates"
            )


def _batch_shape(site: Any) -> torch.Size:
    """Return the batch shape of a site in its plates. A replayed distribution is not always expanded to this shape."""
    return torch.broadcast_shapes(site["fn"].batch_shape, batch_shape_of(site["cond_indep_stack"]))


def divergence(guide_site: Any, model_site: Any) -> Tensor:
    """Return KL(q || p) of a site, nats, in its batch shape; if it has no closed form, log q - log p at the draw."""
    q_term, p_term = divergence_parts(guide_site, model_site)
    kl = apply_weights(q_term, guide_site)
    return kl if p_term is None else kl - apply_weights(p_term, model_site)


def divergence_parts(
    guide_site: Any,
    model_site: Any,
    kl: Callable[[Any, Any], Tensor] = kl_divergence,
    log_densities: Callable[[Any, Any, Tensor], tuple[Tensor, Tensor]] = log_densities,
) -> tuple[Tensor, Tensor | None]:
    """Return (KL(q || p), None) if the KL has a closed form. If not, or if q is a Delta, return (log q, log p).

    log q and log p are taken at the site's draw. The values are in nats, have the site's batch shape, and are neither
    scaled nor masked. As in Pyro, a KL counts with the scale and mask of the guide's site, a log density with those of
    its own site.

    Args:
        kl: computes KL(q || p); raises NotImplementedError if there is no closed form.
        log_densities: computes log q and log p from q, p and a draw.
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
    """Return whether a distribution is a Delta, as in Pyro's autoguides.

    An autoguide gives the Delta the log density of an auxiliary draw. Pyro's closed-form KL omits this density.
    """
    while isinstance(distribution, torch.distributions.Independent):
        distribution = distribution.base_dist
    return isinstance(distribution, Delta)


def is_lattice_guidance(distribution: Any) -> bool:
    """Return whether a distribution holds the decisions of a lattice (``inference.decisions``)."""
    return hasattr(distribution, "log_prob_of_tokens")


def is_shared(site: Any, observed: Any) -> bool:
    """Return whether all inputs share a site, because it lies outside their plate (the rightmost plate around y)."""
    plate_name = plate_of_inputs(observed)
    if plate_name:
        return plate_name not in _plates(site)
    # If y lies in no plate of the inputs, the batch shapes decide.
    return observed["fn"].batch_shape[-1:].numel() > 1 and site["fn"].batch_shape[-1:].numel() == 1


def check_not_shared(sites: Iterable[tuple[str, Any]], observed: Any) -> None:
    """Raise ConfigError if inputs share one of the sites, so that no input has a density of its own."""
    for name, site in sites:
        if is_shared(site, observed):
            raise ConfigError(
                f"all inputs share the site {name!r}, so that none has a weight of its own: put it into the plate "
                f"{plate_of_inputs(observed) or 'data'!r}, or give one input at a time"
            )


def check_batch_shape(shape: torch.Size, expected: tuple[int, ...]) -> None:
    """Raise ConfigError if a pass over a chunk of inputs returns values for more or fewer inputs than the chunk has."""
    if shape != expected:
        raise ConfigError(
            f"{expected[-1]} inputs were given, and y has {list(shape)} log densities: inputs are run in "
            "chunks, so move tensors of one batch (a mask, a parameter for each input) from model and guide into x; "
            "and declare dimensions within an input as events (to_event)"
        )


def plate_of_inputs(observed: Any) -> str:
    """Return the name of the plate of dimension -1 around y; empty if there is none."""
    return next((name for name, dim in _plates(observed).items() if dim == -1), "")


def weight_of_inputs(site: Any, observed: Any) -> float:
    """Return N / B if the B inputs are a subsample of N, ``pyro.plate("data", N, subsample=i)``; else 1."""
    name = plate_of_inputs(observed)
    sizes = {frame.name: (frame.full_size, frame.size) for frame in site["cond_indep_stack"]}
    full_size, size = sizes.get(name, (None, None))
    return full_size / size if full_size and size else 1.0


def _plates(site: Any) -> dict[str, int]:
    """Return the dimensions of the vectorized plates around a site, by name."""
    return {frame.name: frame.dim for frame in site["cond_indep_stack"] if frame.vectorized}


def per_input(name: str, site: Any, term: Tensor, observed: Any, shape: torch.Size) -> Tensor:
    """Distribute a site's term over the inputs, so that the sum stays the same: ``[*batch] -> shape``.

    Terms of plates within an input are summed; shared terms are split evenly between inputs. If the inputs are a
    subsample, each input counts once, without the weight of the subsample.

    Args:
        name: name of the site, for messages.
        site, observed: the site and the site y, with the plates around them.
        term: the term, nats, of the site's batch shape.
        shape: shape of y's log density, ``[..., B]``.

    Raises:
        ConfigError: the site has values for more or fewer inputs than y has.
    """
    plates, y_plates = _plates(site), _plates(observed)
    # Site and y share a dimension if both have the same plate there, or neither has a plate there.
    common_dims = {dim for plate, dim in plates.items() if plate in y_plates}
    common_dims |= set(range(-len(shape), 0)) - set(plates.values()) - set(y_plates.values())
    for dim in range(-term.ndim, 0):
        if dim not in common_dims:
            term = term.sum(dim, keepdim=True)
        elif term.shape[dim] not in (1, shape[dim]):
            raise ConfigError(
                f"the site {name!r} has values for {term.shape[dim]} inputs where y has {shape[dim]}: inputs are run "
                "in chunks, so make the values observed there a part of x"
            )
    term = term.reshape((1,) * (len(shape) - term.ndim) + term.shape[max(0, term.ndim - len(shape)) :])
    share = term.numel() / max(1, shape.numel())
    return term.expand(shape) * (share / weight_of_inputs(site, observed))
