"""Two of Pyro's ELBOs, and the balanced analytic ELBO, which training uses by default.

Each object stores the terms of its last pass. Everything is in nats. A loss is a sum over the batch, times the
``poutine.scale`` around the step (the trainer scales by 1 / batch size). The stored terms are given for each input,
without this scale and with beta = 1.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.util import is_validation_enabled
from pyro.poutine import Trace
from torch import Tensor, nn
from torch.distributions import Distribution, kl_divergence

from pyro_gram.checks import FRACTION, check_choice, check_range
from pyro_gram.inference.families import type_of
from pyro_gram.inference.guide import EffectGuide, check_model
from pyro_gram.inference.sites import ANSWER, STATE_H, STATE_L
from pyro_gram.inference.terms import (
    StepTerms,
    apply_weights,
    check_guide_sites,
    counted_sites,
    divergence_parts,
    guidance_sites,
    is_delta,
    log_densities,
    read_terms,
)


class _TermsMixin:
    """Store the terms of the last pass as ``self.terms``, and let the guide drop its trace.

    ``terms`` is None for a Pyro program without the sites y, h and l.
    """

    terms: StepTerms | None = None

    def _get_traces(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Iterator[tuple[Trace, Trace]]:
        check_model(model, guide)
        yield from super()._get_traces(model, guide, args, kwargs)  # type: ignore[misc]

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Trace, Trace]:
        model_trace, guide_trace = super()._get_trace(model, guide, args, kwargs)  # type: ignore[misc]
        inner_guide = poutine.unwrap(guide)
        if isinstance(inner_guide, EffectGuide):
            inner_guide.forget()
        return model_trace, guide_trace

    def _store_terms(self, model_trace: Trace, guide_trace: Trace, kls: dict[str, Tensor] | None = None) -> None:
        has_sites = {ANSWER, STATE_H, STATE_L} <= model_trace.nodes.keys()
        self.terms = read_terms(model_trace, guide_trace, kls) if has_sites else None


class TraceELBO(_TermsMixin, Trace_ELBO):
    """Pyro's ``Trace_ELBO``: the Monte Carlo estimate, log p - log q at the draws."""

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Trace, Trace]:
        model_trace, guide_trace = super()._get_trace(model, guide, args, kwargs)
        self._store_terms(model_trace, guide_trace)
        return model_trace, guide_trace


class MeanFieldELBO(_TermsMixin, TraceMeanField_ELBO):
    """Pyro's ``TraceMeanField_ELBO``: it uses the closed form of each KL that has one.

    This class corrects two silent errors of Pyro's class. The log density of a Delta in the guide counts, as in
    ``Trace_ELBO`` (Pyro's autoguides need this). And draws without gradient raise an error even if Pyro's validation is
    off.

    Attributes:
        estimated_kl: class names of the posterior and the prior, if their KL had no closed form and the last pass
            estimated it from a draw; else None.

    Raises:
        NotImplementedError: the draws of a latent in the guide have no gradient (use ``trace``).
    """

    estimated_kl: tuple[str, str] | None = None

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """Return the loss as a float. ``loss_and_grads`` returns a tensor, so that training need not wait for a GPU."""
        return float(super().loss(model, guide, *args, **kwargs))

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Trace, Trace]:
        inner_guide = poutine.unwrap(guide)
        if is_validation_enabled() or not isinstance(inner_guide, EffectGuide):
            return super()._get_trace(model, guide, args, kwargs)
        # Pyro's method would compute the log densities of all draws. Analytic KLs do not need them.
        guide(*args, **kwargs)
        traces = inner_guide.get_traces()
        inner_guide.forget()
        return traces

    def _differentiable_loss_particle(self, model_trace: Trace, guide_trace: Trace) -> tuple[Tensor, Tensor]:
        check_guide_sites(model_trace, guide_trace)
        self.estimated_kl = None
        deltas = [n for n, s in counted_sites(guide_trace) if n in model_trace.nodes and is_delta(s["fn"])]
        names = list(dict.fromkeys([*guidance_sites(model_trace), *deltas]))
        loss, surrogate = self._pyro_loss(_exclude(model_trace, names), _exclude(guide_trace, names))
        kls = {}
        for name in names:
            site, guide_site = model_trace.nodes[name], guide_trace.nodes.get(name)
            if guide_site is None or (site["mask"] is False and guide_site["mask"] is False):
                continue
            q_term, p_term = self._divergence(name, site, guide_site)
            cost = scale_and_mask(q_term, guide_site["scale"], guide_site["mask"]).sum()
            kls[name] = apply_weights(q_term.detach(), guide_site)
            if p_term is not None:
                cost = cost - scale_and_mask(p_term, site["scale"], site["mask"]).sum()
                kls[name] = kls[name] - apply_weights(p_term.detach(), site)
            loss, surrogate = loss + cost.detach(), surrogate + cost
        self._store_terms(model_trace, guide_trace, kls)
        return torch.as_tensor(loss), surrogate

    def _pyro_loss(self, model_trace: Trace, guide_trace: Trace) -> tuple[Tensor, Tensor]:
        """Return Pyro's loss for the sites in these traces, and the surrogate loss that carries the gradient."""
        model_trace.compute_log_prob()
        guide_trace.compute_score_parts()
        for name, site in counted_sites(guide_trace):
            _check_gradient(name, site)
        if guide_trace.nodes:
            return super()._differentiable_loss_particle(model_trace, guide_trace)
        # All sites are observed. The sum of their log densities stays on the device: nothing waits for a GPU.
        surrogate = -sum(site["log_prob_sum"] for site in model_trace.nodes.values())
        return torch.as_tensor(surrogate).detach(), surrogate

    def _divergence(self, name: str, site: Any, guide_site: Any) -> tuple[Tensor, Tensor | None]:
        """Call ``divergence_parts`` for a site, with this bound's own ``_kl`` and ``_log_densities``."""
        _check_gradient(name, guide_site)
        q_term, p_term = divergence_parts(guide_site, site, self._kl, self._log_densities)
        if p_term is not None and not is_delta(guide_site["fn"]):
            self.estimated_kl = type_of(guide_site["fn"]), type_of(site["fn"])
        return q_term, p_term

    def _kl(self, q: Any, p: Any) -> Tensor:
        """Return KL(q || p) in closed form. Raises NotImplementedError if there is none."""
        return kl_divergence(q, p)

    def _log_densities(self, q: Any, p: Any, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return log q and log p at a draw of q, if the KL has no closed form."""
        return log_densities(q, p, value)


class BalancedELBO(MeanFieldELBO):
    r"""The analytic bound with KL balancing (DreamerV2; Section 2.2 of the paper).

    The value is that of :class:`MeanFieldELBO`. The gradient of each guidance KL is split: the share ``balance``
    goes to the prior's parameters, the share ``1 - balance`` to the posterior's parameters. This is the gradient of
    :math:`b\,KL(sg(q)\|p) + (1-b)\,KL(q\|sg(p))` (sg stops the gradient), computed with one KL instead of two.
    If a KL has no closed form, log q - log p at the guide's draw replaces it, and ``estimated_kl`` holds the class
    names of q and p. The gradient of this estimate is balanced in the same way. All other sites (a user's latents,
    auxiliary draws) have Pyro's gradient, and so does guidance that the guide draws from a Delta.

    Args:
        balance: b in [0, 1]; the paper uses 0.8.
        **kwargs: the arguments of ``pyro.infer.ELBO``.
    """

    def __init__(self, balance: float = 0.8, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.balance = balance
        check_range(self, balance=FRACTION)

    def _kl(self, q: Any, p: Any) -> Tensor:
        return kl_divergence(scale_gradient(q, 1 - self.balance), scale_gradient(p, self.balance))

    def _log_densities(self, q: Any, p: Any, value: Tensor) -> tuple[Tensor, Tensor]:
        return balanced_log_densities(q, p, value, self.balance)


def _exclude(trace: Trace, names: list[str]) -> Trace:
    """Return a trace of the sample sites that are neither named in ``names`` nor deterministic. No site is copied."""
    sample_trace = Trace()
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and name not in names and not site["infer"].get("_deterministic"):
            sample_trace.nodes[name] = site
    return sample_trace


def _check_gradient(name: str, guide_site: Any) -> None:
    """Raise NotImplementedError if a guide's draw has no gradient: the guide's parameters would not be trained."""
    if torch.is_grad_enabled() and not guide_site["fn"].has_rsample:
        raise NotImplementedError(
            f"the guide draws {name!r} from a {type_of(guide_site['fn'])}, whose draws have no gradient: train with "
            "Trace_ELBO (--train.elbo trace), or use a reparameterized distribution"
        )


def balanced_log_densities(q: Any, p: Any, value: Tensor, balance: float) -> tuple[Tensor, Tensor]:
    """Return log q and log p at a draw of q, with balanced gradients: p receives the share ``balance``.

    Args:
        value: the draw. The gradient through the draw trains q, with the share ``1 - balance``.
    """
    balance = min(max(balance, 1e-6), 1 - 1e-6)
    scaled_value = _ScaleGradient.apply(value, (1 - balance) / balance)
    # A straight-through draw has the relaxed draw as an attribute, and Pyro takes the density of the relaxed draw.
    relaxed_value = getattr(value, "_unquantize", None)
    if relaxed_value is not None:
        scaled_value._unquantize = _ScaleGradient.apply(relaxed_value, (1 - balance) / balance)
    log_p = _ScaleGradient.apply(p.log_prob(scaled_value), balance)
    return _ScaleGradient.apply(q.log_prob(value), 1 - balance), log_p


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.factor, None


def scale_gradient(distribution: Any, factor: float) -> Any:
    """Return a copy of a distribution in which the gradients of all tensors are multiplied by ``factor``.

    Distributions inside the distribution (in an Independent, a Beta, a LogNormal) are copied in the same way.

    Raises:
        NotImplementedError: the distribution has no tensor, or has a module or collection that may hold parameters.
    """
    clone = copy.copy(distribution)
    # Transforms need no scaling: the KL of transformed q and p has a closed form only if the transforms are equal.
    attributes = {name: part for name, part in vars(distribution).items() if name != "transforms"}
    parts = {name: part for name, part in attributes.items() if isinstance(part, Tensor | Distribution)}
    if not parts or any(isinstance(part, nn.Module | list | dict) for part in attributes.values()):
        raise NotImplementedError
    for name, part in parts.items():
        scaled_part = (
            scale_gradient(part, factor) if isinstance(part, Distribution) else _ScaleGradient.apply(part, factor)
        )
        vars(clone)[name] = scaled_part
    return clone


ELBOS = ("balanced", "mean_field", "trace")


def make_elbo(name: str, balance: float = 0.8, num_particles: int = 1) -> BalancedELBO | MeanFieldELBO | TraceELBO:
    """Make the ELBO ``name``, one of ``ELBOS``. Raises ConfigError for any other name."""
    check_choice("elbo", name, ELBOS)
    if name == "balanced":
        return BalancedELBO(balance, num_particles=num_particles)
    if name == "mean_field":
        return MeanFieldELBO(num_particles=num_particles)
    assert name == "trace"
    return TraceELBO(num_particles=num_particles)
