"""The terms of the bound, read from the traces of one pass under the guide.

Every sample site of the program counts, a user's own latents and observations included. Three kinds do not:
deterministic sites, sites that a mask takes out, and losses of heads (``sites.HEAD_LOSS`` in their ``infer``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine import Trace
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_gram.errors import ConfigError
from pyro_gram.inference.sites import HALTED, HEAD_LOSS, OBSERVED, STATE_H, STATE_L, transition_of
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
        others: what all other sites cost, nats per input, ``[..., B]``: KLs of further latents, -log p of further
            observations, log q of the guide's auxiliary draws. A site that all inputs share is split evenly among them.
    """

    reconstruction: Tensor
    kl: Tensor
    state: LatentState
    halted: Tensor | None
    others: Tensor

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
    if site["type"] != "sample" or site["mask"] is False or type(site["fn"]).__name__ == "_Subsample":
        return False
    return not (site["infer"].get("_deterministic") or site["infer"].get(HEAD_LOSS))


def guidance_sites(model_trace: Trace) -> list[str]:
    """The names of the latent guidance sites of a model's trace, masked ones included."""
    nodes = model_trace.nodes.items()
    return [n for n, s in nodes if s["type"] == "sample" and not s["is_observed"] and transition_of(n) is not None]


def log_prob_of(site: Any) -> Tensor:
    """The log density at a site, masked and without ``poutine.scale``, nats, of the site's batch shape."""
    log_prob = site["unscaled_log_prob"] if "unscaled_log_prob" in site else site["fn"].log_prob(site["value"])
    return scale_and_mask(log_prob, mask=site["mask"])


def read_terms(model_trace: Trace, guide_trace: Trace, kls: dict[str, Tensor] | None = None) -> StepTerms:
    """Read the terms of a pair of traces: of the bound of Eq. 13, or of Eq. 14 where the program was truncated.

    Args:
        kls: KLs of guidance sites that are known already, masked, ``[..., B]`` by name.

    Raises:
        ConfigError: the model has a latent that the guide does not answer, or no observed site ``y``.
    """
    check_answered(model_trace, guide_trace)
    if OBSERVED not in model_trace.nodes:
        raise ConfigError(f"the model has no site {OBSERVED!r}: observe the answer there")
    with torch.no_grad():
        reconstruction = -log_prob_of(model_trace.nodes[OBSERVED])
        charged: list[Tensor] = []
        others = torch.zeros_like(reconstruction)
        for name, site in counted_sites(model_trace):
            if name == OBSERVED:
                continue
            if site["is_observed"]:
                others = others - per_input(log_prob_of(site), others.shape)
            elif transition_of(name) is not None:
                kl = kls[name] if kls and name in kls else divergence(guide_trace.nodes[name], site)
                charged.append(kl.detach().expand_as(reconstruction))
            else:
                others = others + per_input(divergence(guide_trace.nodes[name], site), others.shape)
        for name, site in counted_sites(guide_trace):
            if name not in model_trace.nodes:  # auxiliary draws of the guide
                others = others + per_input(log_prob_of(site), others.shape)
        kl = torch.stack(charged) if charged else reconstruction[None][:0]
    state = LatentState(model_trace.nodes[STATE_H]["value"], model_trace.nodes[STATE_L]["value"])
    halted = model_trace.nodes[HALTED]["value"] if HALTED in model_trace.nodes else None
    return StepTerms(reconstruction.detach(), kl, state.detach(), halted, others.detach())


def check_answered(model_trace: Trace, guide_trace: Trace) -> None:
    """Raises ConfigError where a latent of the model has no site in the guide: the bound would lack its density."""
    missing = [n for n, s in counted_sites(model_trace) if not s["is_observed"] and n not in guide_trace.nodes]
    if missing:
        raise ConfigError(
            f"the guide does not answer {', '.join(map(repr, missing))}: sample each latent of the model in the guide "
            "under the same name, or use a guide that derives from EffectGuide, which falls back on the prior"
        )


def divergence(guide_site: Any, model_site: Any) -> Tensor:
    """KL(q || p) of a site in closed form, or else log q - log p at the draw; nats, masked.

    A Delta (Pyro's autoguides answer with them) has log q - log p: its density is that of an auxiliary draw.
    """
    q, p = guide_site["fn"], model_site["fn"]
    if q is p:
        return torch.zeros(p.batch_shape, device=model_site["value"].device)
    try:
        if is_point(q):
            raise NotImplementedError
        return scale_and_mask(kl_divergence(q, p), mask=model_site["mask"])
    except NotImplementedError:
        return log_prob_of(guide_site) - log_prob_of(model_site)


def is_point(distribution: Any) -> bool:
    """True for a Delta, also within an Independent."""
    return type(getattr(distribution, "base_dist", distribution)).__name__ == "Delta"


def per_input(term: Tensor, shape: torch.Size) -> Tensor:
    """Distribute a site's term over the inputs so that its sum stays: ``[*batch] -> shape``.

    What lies in plates within an input is summed; what inputs share is split evenly among them.
    """
    surplus = max(0, term.ndim - len(shape))
    term = term.flatten(0, surplus - 1).sum(0) if surplus else term
    term = term.reshape((1,) * (len(shape) - term.ndim) + term.shape)
    within = [d for d, size in enumerate(shape) if size == 1 and term.shape[d] > 1]
    term = term.sum(within, keepdim=True) if within else term
    return term.expand(shape) * (term.numel() / max(1, shape.numel()))
