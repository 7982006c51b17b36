"""Bounds: Pyro's own, with the terms of each step kept, and the balanced analytic one that trains by default.

Everything is in nats. Losses are sums over the batch times whatever ``poutine.scale`` the caller put around the step
(the trainer scales by 1 / batch); the kept terms are per input, unscaled, at beta = 1.
"""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.util import is_validation_enabled
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_gram.checks import FRACTION, check_choice, check_range
from pyro_gram.inference.families import type_of
from pyro_gram.inference.guide import EffectGuide
from pyro_gram.inference.sites import OBSERVED, STATE_H, STATE_L
from pyro_gram.inference.terms import (
    StepTerms,
    check_answered,
    counted_sites,
    guidance_sites,
    is_point,
    read_terms,
)


class _KeepTerms:
    """Mixin: keeps the terms of the last pass as ``self.terms`` and lets the guide forget its trace."""

    terms: StepTerms | None = None

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Trace, Trace]:
        model_trace, guide_trace = super()._get_trace(model, guide, args, kwargs)  # type: ignore[misc]
        self.terms = _terms_of(model_trace, guide_trace)
        _forget(guide)
        return model_trace, guide_trace


def _terms_of(model_trace: Trace, guide_trace: Trace, kls: dict[str, Tensor] | None = None) -> StepTerms | None:
    """The terms of a program of this library; None of another Pyro program, which has not its sites."""
    if not {OBSERVED, STATE_H, STATE_L} <= model_trace.nodes.keys():
        return None
    return read_terms(model_trace, guide_trace, kls)


def _forget(guide: Any) -> None:
    """Let an effect guide drop its trace."""
    unwrapped = poutine.unwrap(guide)
    if isinstance(unwrapped, EffectGuide):
        unwrapped.forget()


class TraceELBO(_KeepTerms, Trace_ELBO):
    """Pyro's ``Trace_ELBO``: the Monte Carlo bound, log p - log q at the draws."""


class MeanFieldELBO(_KeepTerms, TraceMeanField_ELBO):
    """Pyro's ``TraceMeanField_ELBO``: closed-form KLs where there are any."""


class BalancedELBO(TraceMeanField_ELBO):
    r"""The analytic bound with KL balancing (DreamerV2; Section 2.2 of the paper).

    Value: that of ``TraceMeanField_ELBO``. Gradient of each guidance KL: ``balance`` of it reaches the prior's
    parameters and ``1 - balance`` the posterior's, which is the gradient of
    :math:`b\,KL(sg(q)\|p) + (1-b)\,KL(q\|sg(p))`, computed with one KL instead of two.
    Where a KL has no closed form, log q - log p at the guide's own draw stands in for it, balanced in the same way, and
    ``sampled`` says so. All other sites (a user's latents, auxiliary draws of an autoguide) have Pyro's own value and
    gradient, and so has guidance that a guide answers with a point.

    Args:
        balance: b in [0, 1]; the paper's 0.8.
        **kwargs: as for ``pyro.infer.ELBO``.

    Attributes:
        sampled: posterior and prior of a KL of the last pass that had no closed form; None for none.

    Raises:
        NotImplementedError: a latent whose draws in the guide have no gradient (use ``trace``).
    """

    terms: StepTerms | None = None

    def __init__(self, balance: float = 0.8, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.balance = balance
        self.sampled: tuple[str, str] | None = None
        check_range(self, balance=FRACTION)

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Trace, Trace]:
        unwrapped = poutine.unwrap(guide)
        if is_validation_enabled() or not isinstance(unwrapped, Messenger):
            traces = super()._get_trace(model, guide, args, kwargs)
        else:
            # Pyro's way computes the log densities of all draws, which are not needed where KLs are analytic.
            guide(*args, **kwargs)
            traces = unwrapped.get_traces()
        _forget(guide)
        return traces

    def _differentiable_loss_particle(self, model_trace: Trace, guide_trace: Trace) -> tuple[Tensor, Tensor]:
        check_answered(model_trace, guide_trace)
        names = [name for name in guidance_sites(model_trace) if _is_balanced(name, model_trace, guide_trace)]
        rest, rest_of_guide = (_without(trace, names) for trace in (model_trace, guide_trace))
        rest.compute_log_prob()
        rest_of_guide.compute_score_parts()
        for name, site in counted_sites(rest_of_guide):
            _check_gradient(name, site)
        loss, surrogate = super()._differentiable_loss_particle(rest, rest_of_guide)
        self.sampled = None
        kls: dict[str, Tensor] = {}
        for name in names:
            site = model_trace.nodes[name]
            if site["mask"] is not False:
                kl = self._balanced_kl(name, guide_trace.nodes[name], site)
                kls[name] = scale_and_mask(kl, mask=site["mask"])
                charged = scale_and_mask(kls[name], site["scale"]).sum()
                loss, surrogate = loss + charged.detach(), surrogate + charged
        self.terms = _terms_of(model_trace, guide_trace, kls)
        return torch.as_tensor(loss), surrogate

    def _balanced_kl(self, name: str, guide_site: Any, model_site: Any) -> Tensor:
        """KL(q || p) of a guidance site, its gradient balanced; nats, of the site's batch shape."""
        q, p = guide_site["fn"], model_site["fn"]
        if q is p:  # the guide follows the prior
            return torch.zeros(p.batch_shape, device=model_site["value"].device)
        _check_gradient(name, guide_site)
        try:
            return kl_divergence(scale_gradient(q, 1 - self.balance), scale_gradient(p, self.balance))
        except NotImplementedError:
            self.sampled = type_of(q), type_of(p)
            return sampled_kl(q, p, model_site["value"], self.balance)


def _is_balanced(name: str, model_trace: Trace, guide_trace: Trace) -> bool:
    """False for guidance that the guide answers with a point: there is no KL to balance."""
    q = guide_trace.nodes[name]["fn"]
    return q is model_trace.nodes[name]["fn"] or not is_point(q)


def _without(trace: Trace, names: list[str]) -> Trace:
    """The sample sites of a trace but for ``names`` and deterministic ones; the sites are shared, not copied."""
    rest = Trace()
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and name not in names and not site["infer"].get("_deterministic"):
            rest.nodes[name] = site
    return rest


def _check_gradient(name: str, guide_site: Any) -> None:
    """Raises NotImplementedError where a guide's draw has no gradient, and its parameters would not be trained."""
    if torch.is_grad_enabled() and not guide_site["fn"].has_rsample:
        raise NotImplementedError(
            f"the guide draws {name!r} from a {type_of(guide_site['fn'])}, whose draws have no gradient: train with "
            "Trace_ELBO (--train.elbo trace), or give it a reparameterized distribution"
        )


def sampled_kl(q: Any, p: Any, value: Tensor, balance: float) -> Tensor:
    """log q - log p at a draw of q, its gradient balanced: ``balance`` of it reaches what p is made of.

    Args:
        value: the draw, with its gradient; what flows back through it trains q, and gets the rest.
    """
    balance = min(max(balance, 1e-6), 1 - 1e-6)
    through_q = _ScaleGradient.apply(value, (1 - balance) / balance)
    log_p = _ScaleGradient.apply(p.log_prob(through_q), balance)
    return _ScaleGradient.apply(q.log_prob(value), 1 - balance) - log_p


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.factor, None


def scale_gradient(distribution: Any, factor: float) -> Any:
    """The same distribution, with every gradient into its parameters multiplied by ``factor``."""
    if isinstance(distribution, torch.distributions.Independent):
        base = scale_gradient(distribution.base_dist, factor)
        return dist.Independent(base, distribution.reinterpreted_batch_ndims)
    names = distribution.arg_constraints
    # Distributions given twice over (probs and logits) name both; only what was given stands in the instance.
    arguments = {
        name: _ScaleGradient.apply(vars(distribution)[name], factor) for name in names if name in vars(distribution)
    }
    if not arguments:  # a mixture, a flow: built of other distributions
        raise NotImplementedError
    return type(distribution)(**arguments, validate_args=False)


ELBOS = ("balanced", "mean_field", "trace")


def make_elbo(name: str, balance: float = 0.8, num_particles: int = 1) -> BalancedELBO | MeanFieldELBO | TraceELBO:
    """The bound called ``name``, one of ``ELBOS``. Raises ConfigError for another."""
    check_choice("elbo", name, ELBOS)
    if name == "balanced":
        return BalancedELBO(balance, num_particles=num_particles)
    if name == "mean_field":
        return MeanFieldELBO(num_particles=num_particles)
    assert name == "trace"
    return TraceELBO(num_particles=num_particles)
