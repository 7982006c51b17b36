r"""The base class of effect guides, which get the traces of model and guide from one run of the model.

Such a guide is a Pyro messenger: at each guidance site of the model it samples :math:`q(\epsilon_t \mid u_t, y)`
(Section 2.2), and the model continues with that draw. An ordinary guide computes each transition itself, and the model
computes it again when it replays the guide's draws.
"""

from __future__ import annotations

import inspect
import re
from abc import abstractmethod
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.contrib.autoname.scoping import NameCountMessenger, ScopeMessenger
from pyro.poutine import Trace
from pyro.poutine.guide import GuideMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.reparam_messenger import ReparamMessenger
from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.trace_messenger import TraceMessenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

from pyro_gram.errors import ConfigError
from pyro_gram.inference.contract import GuideTraits, guide_traits, prior_of, prior_traits
from pyro_gram.inference.families import neutralize_padding
from pyro_gram.inference.sites import is_called_by, plate_shape, proposal_site, register_parameters, transition_index
from pyro_gram.inference.terms import is_delta

RENAMED_SITE = re.compile(r"(?<![A-Za-z0-9_])eps_\d+")  # a guidance site that a handler has renamed: "eps_0_decentered"
SCOPED_SITE = re.compile(r"/|__\d+$")  # a name made by Pyro's scope or name_count


class _ForbidObservations(Messenger):
    """Raise NotImplementedError if a guide observes a site: only bounds would count it, not importance weights."""

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] and not msg["infer"].get("_deterministic"):
            raise NotImplementedError(
                f"the guide observes {msg['name']!r}, which bounds would count and importance weights would not: put "
                "the factor or observation into the model"
            )


class EffectGuide(GuideMessenger, nn.Module):
    """Sample each guidance site from a posterior q(eps_t | u_t, y).

    Subclasses implement :meth:`posterior`. Computations that do not depend on the transition belong in :meth:`encode`::

        class Shift(EffectGuide):
            def __init__(self, model, width, classes):
                super().__init__(model)              # call this first, as in any module
                self.shift = nn.Embedding(classes, width)

            def encode(self, x, y):
                return self.shift(y)                 # once for each call

            def posterior(self, u, code, prior):     # once for each transition
                return dist.Normal(u * 0 + code, 0.1).to_event(2)

    The guide runs the model that it was built with: put handlers (``poutine.condition(model, ...)``,
    ``NoGuidance()(model)``) around the model before the guide is built. A loss must get this same model. Pyro's losses
    ignore any other model, as for any ``GuideMessenger``; the losses of this library raise ConfigError.

    Args:
        model: the generative program, with or without handlers; its signature must name ``x`` and ``y``.
    """

    trace: Trace
    traits = GuideTraits()
    guided_transitions: int = 0  # the guide follows the prior from this transition on; 0 for never

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        program = poutine.unwrap(model)
        signature = inspect.signature(program.forward if isinstance(program, nn.Module) else program)
        missing_arguments = {"x", "y"} - set(signature.parameters)
        if missing_arguments:
            raise TypeError(
                f"the model must take x and y by name; {', '.join(sorted(missing_arguments))} missing in {signature}"
            )
        self._signature = signature
        self._code: Any = None
        self.trace = Trace()

    @abstractmethod
    def posterior(self, u: Tensor, code: Any, prior: dist.TorchDistribution) -> dist.TorchDistribution:
        """Return q(eps_t | u_t, y).

        Args:
            u: the proposal u_t, ``[..., L, D]``.
            code: the result of :meth:`encode` for this call.
            prior: p(eps_t | u_t), batch shape ``[...]``, event shape ``[L, D]``.
        """

    def encode(self, x: Tensor | None, y: Tensor) -> Any:
        """Compute the code of x and y for the posterior, once for each call. The default is y itself."""
        return y

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Run the model with this guide's draws; return the value of each site.

        Handlers around the guide that record traces (``poutine.trace``, as in ``Importance``, ``WeighedPredictive`` and
        ``Predictive``) see the guide's draws and no observed site, as for any guide.

        Raises:
            ValueError: y is missing, or a handler has renamed guidance sites. Without the error, draws at the renamed
                sites would silently follow the prior.
            NotImplementedError: the caller is one of Pyro's JIT losses.
        """
        arguments = self._signature.bind(*args, **kwargs).arguments
        if arguments.get("y") is None:
            raise ValueError(missing_answer_message(self))
        register_parameters("guide", self)
        with _ForbidObservations():
            self._code = self.encode(arguments.get("x"), arguments["y"])
        try:
            values = super().__call__(*args, **kwargs)
        finally:
            self._code = None
        self._hide_observed()
        return values

    def _hide_observed(self) -> None:
        """Remove observed sites from the traces of handlers around this guide: the guide's density excludes them.

        ``poutine.block`` would also hide these sites from the scale, mask and plates around the guide.
        """
        observed = [(n, s) for n, s in self.trace.nodes.items() if s["type"] == "sample" and s["is_observed"]]
        for handler in _PYRO_STACK:
            if isinstance(handler, TraceMessenger):
                for name, site in observed:
                    node = handler.trace.nodes.get(name)
                    if node is not None and node["value"] is site["value"] and node["fn"] is site["fn"]:
                        handler.trace.remove_node(name)

    def _pyro_sample(self, msg: Any) -> None:
        is_reparam = msg["is_observed"] and transition_index(msg["name"]) is not None and is_delta(msg["fn"])
        if is_reparam and any(isinstance(handler, ReparamMessenger) for handler in _PYRO_STACK):
            raise ValueError(_renamed_site_message(msg["name"]))
        # Pyro passes the prior without the batch shape of the plates around the model; draws need that shape.
        if not msg["is_observed"] and msg["type"] == "sample" and not site_is_subsample(msg):
            shape = torch.broadcast_shapes(plate_shape(), msg["fn"].batch_shape)
            if shape != msg["fn"].batch_shape:
                msg["fn"] = msg["fn"].expand(shape)
            with _ForbidObservations():
                super()._pyro_sample(msg)

    def get_posterior(self, name: str, prior: dist.TorchDistribution) -> dist.TorchDistribution:
        """Return the posterior at a guidance site, and the prior at any other site (a user's own latent).

        Override this method to give latents of your own a posterior, and call the inherited method for other sites.
        """
        t = transition_index(name)
        if RENAMED_SITE.search(name) if t is None else proposal_site(t) not in self.trace:
            raise ValueError(_renamed_site_message(name))
        if t is None:
            _check_own_name(name)
            return prior
        posterior = self.posterior_at(t, self.trace.nodes[proposal_site(t)]["value"], self._code, prior)
        return posterior if posterior is prior else neutralize_padding(posterior, padding_mask(self.model))

    def posterior_at(self, t: int, u: Tensor, code: Any, prior: dist.TorchDistribution) -> dist.TorchDistribution:
        """Return :meth:`posterior` of transition t, or the prior from transition ``guided_transitions`` on."""
        return prior if 0 < self.guided_transitions <= t else self.posterior(u, code, prior)

    def get_traces(self) -> tuple[Trace, Trace]:
        """Return the traces of model and guide. Guidance that a handler has fixed gets the prior's density."""
        for name, site in self.trace.nodes.items():
            is_latent = site["type"] == "sample" and not site["is_observed"] and not site_is_subsample(site)
            if is_latent and "prior" not in site["infer"]:
                raise ConfigError(
                    f"a handler around the guide (uncondition, lift, replay) has replaced its draw at {name!r}: "
                    "put the handler around the model, and build the guide for the result"
                )
        model_trace, guide_trace = super().get_traces()
        for name, site in model_trace.nodes.items():
            if site["type"] == "sample" and site["is_observed"] and "prior" in site["infer"]:
                model_trace.nodes[name] = {**site, "fn": site["infer"]["prior"]}
        return model_trace, guide_trace

    def forget(self) -> None:
        """Drop the last trace, which would keep the autograd graph of its pass alive."""
        self.trace = Trace()

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()  # Pyro leaves out the trace
        return {**state, "_code": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        nn.Module.__setstate__(self, state)
        self.trace = Trace()


def padding_mask(model: Any) -> Tensor | None:
    """Return the mask of a running model's inputs, False at padding, bool ``[..., L]``; None without padding."""
    structure = getattr(poutine.unwrap(model), "structure", None)
    return None if structure is None else structure.mask


def _renamed_site_message(name: str) -> str:
    """Return the message for a guidance site that a handler has renamed."""
    return (
        f"a handler (reparam, scope, equalize) has renamed a guidance site to {name!r}, and this guide samples only "
        "'eps_t' after 'u_t': remove the handler, or write a guide for its sites; if it is a latent of your own, "
        "give it a name without 'eps_' and a number"
    )


def _check_own_name(name: str) -> None:
    """Raise ValueError if a handler (scope or reparam) has made this site out of another site."""
    handler = ""
    if any(isinstance(h, NameCountMessenger | ScopeMessenger) for h in _PYRO_STACK) and SCOPED_SITE.search(name):
        handler = "pyro.contrib.autoname"
    if is_called_by(ReparamMessenger._pyro_sample):
        handler = "poutine.reparam"
    if handler:
        raise ValueError(
            f"{handler} has made the site {name!r}, and the guide's posterior for the original site would be lost: "
            "remove the handler, or return a posterior for this name in get_posterior"
        )


def missing_answer_message(guide: nn.Module) -> str:
    """Return the message for a guide that is called without y."""
    return (
        f"{type(guide).__name__} was called without y: for answers p(y | x) leave the guide out, "
        "Predictive(model, num_samples=N)(x); for trajectories that lead to a given y, "
        "Predictive(model, guide=guide, num_samples=N)(x, y)"
    )


def check_model(model: Any, guide: Any) -> None:
    """Raise ConfigError if an effect guide was built with another model: the guide would ignore ``model``."""
    inner_guide = poutine.unwrap(guide)
    if isinstance(inner_guide, EffectGuide) and model is not inner_guide.model:
        raise ConfigError(
            f"{type(inner_guide).__name__} runs the model that it was built with, and would ignore this one: put "
            "handlers around the model first, then build the guide for the result; copy the two together, "
            "copy.deepcopy((model, guide))"
        )


def why_no_guide(model: Any, guide: Any) -> str:
    """Return why a model and guide have no KL, bounds or importance weights; an empty text if they have them."""
    if guide_traits(guide).follows_prior:
        return "this model has no inference network"
    if prior_traits(prior_of(model)).has_density:
        return ""
    return "the density of this model's prior is not that of its draws"


class PriorGuide(EffectGuide):
    """A guide without inference network: q(eps_t | u_t, y) = p(eps_t | u_t), so that every KL is 0."""

    traits = GuideTraits(follows_prior=True)

    def posterior(self, u: Tensor, code: Any, prior: dist.TorchDistribution) -> dist.TorchDistribution:
        return prior
