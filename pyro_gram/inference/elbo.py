"""Bounds: Pyro's own, with the terms of each step kept, and the balanced analytic one that trains by default.

Everything is in nats. Losses are sums over the batch times whatever ``poutine.scale`` the caller put around the step
(the trainer scales by 1 / batch); the kept terms are per input, unscaled, at beta = 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_gram.checks import FRACTION, check_choice, check_range
from pyro_gram.inference.families import type_of
from pyro_gram.inference.guide import EffectGuide
from pyro_gram.inference.sites import HALTED, OBSERVED, STATE_H, STATE_L, transition_of
from pyro_gram.networks.core import LatentState


@dataclass(frozen=True)
class StepTerms:
    """What one pass under the guide left behind, detached.

    Attributes:
        reconstruction: -log p(y | h_T), nats per input, ``[..., B]``.
        kl: KL(q || p) of each charged transition, nats per input, ``[T, ..., B]``, without beta; where a KL has no
            closed form, the one-sample estimate log q - log p.
        state: the final latent state, for the next supervision step to start from.
        halted: bool ``[..., B]``: trajectories that the program would end here; None where it does not say.
    """

    reconstruction: Tensor
    kl: Tensor
    state: LatentState
    halted: Tensor | None = None

    @property
    def means(self) -> Tensor:
        """The means of reconstruction and KL, nats per input, ``[2]``."""
        return torch.stack((self.reconstruction.mean(), self.kl.sum(0).mean()))

    @property
    def elbo(self) -> Tensor:
        """The bound per input at beta = 1, nats, ``[..., B]``."""
        return -self.reconstruction - self.kl.sum(0)


def read_terms(model_trace: Trace, guide_trace: Trace) -> StepTerms:
    """The terms of a pair of traces. The bound of Eq. 13, or of Eq. 14 where the program was truncated."""
    with torch.no_grad():
        kls = []
        for name, site in model_trace.nodes.items():
            if site["type"] == "sample" and transition_of(name) is not None and site["mask"] is not False:
                q = guide_trace.nodes[name]["fn"]
                kls.append(_kl(q, site["fn"], site["value"]))
        observed = model_trace.nodes[OBSERVED]
        reconstruction = -observed["fn"].log_prob(observed["value"])
        kl = torch.stack([k.expand_as(reconstruction) for k in kls]) if kls else reconstruction[None][:0]
    return StepTerms(reconstruction, kl, *_carried(model_trace))


def _carried(model_trace: Trace) -> tuple[LatentState, Tensor | None]:
    """The final state, and which trajectories have halted, where the program says so; detached."""
    state = LatentState(model_trace.nodes[STATE_H]["value"], model_trace.nodes[STATE_L]["value"])
    return state.detach(), model_trace.nodes[HALTED]["value"] if HALTED in model_trace.nodes else None


def _kl(q: Any, p: Any, value: Tensor) -> Tensor:
    try:
        return kl_divergence(q, p)
    except NotImplementedError:
        return q.log_prob(value) - p.log_prob(value)


class _KeepTerms:
    """Mixin: keeps the terms of the last pass as ``self.terms`` and lets the guide forget its trace."""

    terms: StepTerms | None = None

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Trace, Trace]:
        model_trace, guide_trace = super()._get_trace(model, guide, args, kwargs)  # type: ignore[misc]
        self.terms = read_terms(model_trace, guide_trace)
        unwrapped = poutine.unwrap(guide)
        if isinstance(unwrapped, EffectGuide):
            unwrapped.forget()
        return model_trace, guide_trace


class TraceELBO(_KeepTerms, Trace_ELBO):
    """Pyro's ``Trace_ELBO``: the Monte Carlo bound, log p - log q at the draws."""


class MeanFieldELBO(_KeepTerms, TraceMeanField_ELBO):
    """Pyro's ``TraceMeanField_ELBO``: closed-form KLs where there are any."""


class BalancedELBO(_KeepTerms, TraceMeanField_ELBO):
    r"""The analytic bound with KL balancing (DreamerV2; Section 2.2 of the paper).

    Value: that of ``TraceMeanField_ELBO``. Gradient of each guidance KL: ``balance`` of it reaches the prior's
    parameters and ``1 - balance`` the posterior's, which is the gradient of
    :math:`b\,KL(sg(q)\|p) + (1-b)\,KL(q\|sg(p))`, computed with one KL instead of two.
    Where a KL has no closed form, log q - log p at the guide's own draw stands in for it, balanced in the same way, and
    ``sampled`` says so.

    Args:
        balance: b in [0, 1]; the paper's 0.8.
        **kwargs: as for ``pyro.infer.ELBO``.

    Attributes:
        sampled: posterior and prior of a KL of the last pass that had no closed form; None for none.
    """

    def __init__(self, balance: float = 0.8, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.balance = balance
        self.sampled: tuple[str, str] | None = None
        check_range(self, balance=FRACTION)

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Trace, Trace]:
        unwrapped = poutine.unwrap(guide)
        if not isinstance(unwrapped, Messenger):
            return super()._get_trace(model, guide, args, kwargs)
        guide(*args, **kwargs)
        # The log-densities of draws, which get_importance_trace would compute, are not needed where KLs are analytic.
        model_trace, guide_trace = unwrapped.get_traces()
        if isinstance(unwrapped, EffectGuide):
            unwrapped.forget()
        return model_trace, guide_trace

    def _differentiable_loss_particle(self, model_trace: Trace, guide_trace: Trace) -> tuple[Tensor, Tensor]:
        self.sampled = None
        loss: Tensor | float = 0.0
        kls: list[Tensor] = []
        reconstruction: Tensor | None = None
        for name, site in model_trace.nodes.items():
            if site["type"] != "sample" or site["mask"] is False or site["infer"].get("_deterministic"):
                continue
            if site["is_observed"]:
                log_p = site["fn"].log_prob(site["value"])
                loss = loss - scale_and_mask(log_p, site["scale"], site["mask"]).sum()
                if name == OBSERVED:
                    reconstruction = -log_p.detach()
                continue
            q, p = guide_trace.nodes[name]["fn"], site["fn"]
            if q is p:  # a user's own latent, or guidance from where on the guide follows the prior
                if transition_of(name) is not None:
                    kls.append(torch.zeros(p.batch_shape, device=site["value"].device))
                continue
            try:
                kl = kl_divergence(scale_gradient(q, 1 - self.balance), scale_gradient(p, self.balance))
            except NotImplementedError:
                self.sampled = type_of(q), type_of(p)
                kl = sampled_kl(q, p, site["value"], self.balance)
            loss = loss + scale_and_mask(kl, site["scale"], site["mask"]).sum()
            kls.append(kl.detach())
        assert reconstruction is not None, f"the model has no observed site {OBSERVED!r}"
        kl_terms = torch.stack(torch.broadcast_tensors(*kls)) if kls else reconstruction[None][:0]
        self.terms = StepTerms(reconstruction, kl_terms, *_carried(model_trace))
        assert isinstance(loss, Tensor)
        return loss.detach(), loss


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
