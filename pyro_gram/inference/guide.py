r"""The base class of effect-based guides.

Such a guide listens to the model's own pass: at each guidance site it answers with :math:`q(\epsilon_t \mid u_t, y)`
(Section 2.2), the model goes on with that draw, and one forward pass yields both traces. A trace-and-replay guide
computes every transition twice.
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
from pyro_gram.inference.deferred import answered
from pyro_gram.inference.sites import is_called_by, plate_shape, proposal_site, register_parameters, transition_index
from pyro_gram.inference.terms import is_delta

RENAMED = re.compile(r"(?<![A-Za-z0-9_])eps_\d+")  # a guidance site under another name: "eps_0_decentered", "a/eps_0"
PREFIXED = re.compile(r"/|__\d+$")  # what scope and name_count make of a name


class _NothingObserved(Messenger):
    """Raises NotImplementedError where a guide observes something while it answers: only outer traces would see it."""

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] and not msg["infer"].get("_deterministic"):
            raise NotImplementedError(
                f"the guide observes {msg['name']!r} while it answers, which the bound would count and importance "
                "weights would not: put the factor or observation into the model"
            )


class EffectGuide(GuideMessenger, nn.Module):
    """Answer every guidance site with a posterior computed from ``u_t`` and ``y``.

    Subclasses implement :meth:`posterior`, and :meth:`encode` where something of y can be computed once a call::

        class Shift(EffectGuide):
            def __init__(self, model, width, classes):
                super().__init__(model)              # first, as for any module
                self.shift = nn.Embedding(classes, width)

            def encode(self, x, y):
                return self.shift(y)                 # once a call

            def posterior(self, u, code, prior):     # once a transition
                return dist.Normal(u * 0 + code, 0.1).to_event(2)

    The guide runs the program that it was built for, so put handlers (``poutine.condition(model, ...)``,
    ``NoGuidance()(model)``) around the model before the guide is built. Pyro's own losses ignore another ``model`` that
    they are given with it, as with every ``GuideMessenger``; those of this library refuse it.

    Args:
        model: the generative program, with or without handlers; its signature must name ``x`` and ``y``.
    """

    trace: Trace
    traits = GuideTraits()
    guided_transitions: int = 0  # transitions of a program after which it follows the prior; 0 for none

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        program = poutine.unwrap(model)
        signature = inspect.signature(program.forward if isinstance(program, nn.Module) else program)
        missing = {"x", "y"} - set(signature.parameters)
        if missing:
            raise TypeError(f"the model must take x and y by name; {', '.join(sorted(missing))} missing in {signature}")
        self._signature = signature
        self._code: Any = None
        self.trace = Trace()

    @abstractmethod
    def posterior(self, u: Tensor, code: Any, prior: dist.TorchDistribution) -> dist.TorchDistribution:
        """q(eps_t | u_t, y).

        Args:
            u: the proposal u_t, ``[..., L, D]``.
            code: what :meth:`encode` returned for this call.
            prior: p(eps_t | u_t), batch shape ``[...]``, event shape ``[L, D]``.
        """

    def encode(self, x: Tensor | None, y: Tensor) -> Any:
        """What the posterior needs of x and y, computed once a call. The default: y itself."""
        return y

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Run the model under this guide; returns the value of each site.

        Handlers around the guide that record traces (``poutine.trace``, and with it ``Importance``,
        ``WeighedPredictive``, ``Predictive``) see what they see of any guide: its draws, and no observed site.

        Raises:
            ValueError: y is missing, or the program's guidance sites have been renamed. A guide that then became the
                prior would hide the mistake.
            NotImplementedError: one of Pyro's JIT losses.
        """
        arguments = self._signature.bind(*args, **kwargs).arguments
        if arguments.get("y") is None:
            raise ValueError(missing_answer_message(self))
        register_parameters("guide", self)
        with _NothingObserved():
            self._code = self.encode(arguments.get("x"), arguments["y"])
        try:
            with answered():
                values = super().__call__(*args, **kwargs)
        finally:
            self._code = None
        self._hide_observed()
        return values

    def _hide_observed(self) -> None:
        """Take the observed sites out of the traces of handlers around this guide: a guide's density has none.

        They cannot be blocked: the scale, mask and plates around the guide belong to them too.
        """
        observed = [(n, s) for n, s in self.trace.nodes.items() if s["type"] == "sample" and s["is_observed"]]
        for handler in _PYRO_STACK:
            if isinstance(handler, TraceMessenger):
                for name, site in observed:
                    node = handler.trace.nodes.get(name)
                    if node is not None and node["value"] is site["value"] and node["fn"] is site["fn"]:
                        handler.trace.remove_node(name)

    def _pyro_sample(self, msg: Any) -> None:
        replaced = msg["is_observed"] and transition_index(msg["name"]) is not None and is_delta(msg["fn"])
        if replaced and any(isinstance(handler, ReparamMessenger) for handler in _PYRO_STACK):
            raise ValueError(_renamed(msg["name"]))
        # Pyro shows a guide the prior without the plates around the program, in which its own draws already lie.
        if not msg["is_observed"] and msg["type"] == "sample" and not site_is_subsample(msg):
            around = torch.broadcast_shapes(plate_shape(), msg["fn"].batch_shape)
            if around != msg["fn"].batch_shape:
                msg["fn"] = msg["fn"].expand(around)
            with _NothingObserved():
                super()._pyro_sample(msg)

    def get_posterior(self, name: str, prior: dist.TorchDistribution) -> dist.TorchDistribution:
        """The posterior at guidance sites; the prior itself at every other (an unobserved ``y``, a user's own).

        Override it to answer latents of your own, and call this one for the rest.
        """
        t = transition_index(name)
        if RENAMED.search(name) if t is None else proposal_site(t) not in self.trace:
            raise ValueError(_renamed(name))
        if t is None:
            _check_own_name(name)
            return prior
        return self.posterior_at(t, self.trace.nodes[proposal_site(t)]["value"], self._code, prior)

    def posterior_at(self, t: int, u: Tensor, code: Any, prior: dist.TorchDistribution) -> dist.TorchDistribution:
        """:meth:`posterior`, and from transition ``until`` on the prior. Arguments as there."""
        return prior if 0 < self.guided_transitions <= t else self.posterior(u, code, prior)

    def get_traces(self) -> tuple[Trace, Trace]:
        """The traces of model and guide; guidance that a handler around this guide observes has the prior's density."""
        for name, site in self.trace.nodes.items():
            drawn = site["type"] == "sample" and not site["is_observed"] and not site_is_subsample(site)
            if drawn and "prior" not in site["infer"]:
                raise ConfigError(
                    f"a handler around the guide (uncondition, lift, replay) has taken its place at the site {name!r}: "
                    "put the handler around the model, and build the guide for that"
                )
        model_trace, guide_trace = super().get_traces()
        for name, site in model_trace.nodes.items():
            if site["type"] == "sample" and site["is_observed"] and "prior" in site["infer"]:
                model_trace.nodes[name] = {**site, "fn": site["infer"]["prior"]}
        return model_trace, guide_trace

    def forget(self) -> None:
        """Drop the last trace: it would keep that pass's whole graph alive."""
        self.trace = Trace()

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()  # without the trace
        return {**state, "_code": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        nn.Module.__setstate__(self, state)
        self.trace = Trace()


def _renamed(name: str) -> str:
    return (
        f"the site {name!r} stands for a guidance site that a handler has renamed (reparam, scope, equalize), and this "
        "guide answers 'eps_t' beside 'u_t' alone: leave the handler away, or write a guide for its sites; a latent of "
        "your own needs a name without 'eps_' and a number"
    )


def _check_own_name(name: str) -> None:
    """Raises ValueError for a site that a handler has renamed, or put in the place of one the guide may answer."""
    by = ""
    if any(isinstance(h, NameCountMessenger | ScopeMessenger) for h in _PYRO_STACK) and PREFIXED.search(name):
        by = "pyro.contrib.autoname"
    if is_called_by(ReparamMessenger._pyro_sample):
        by = "poutine.reparam"
    if by:
        raise ValueError(
            f"{by} has made the site {name!r}, and what the guide says of the site in whose place it is would be lost: "
            "leave the handler away, or answer this name in get_posterior"
        )


def missing_answer_message(guide: nn.Module) -> str:
    """What to do where a guide is called without y."""
    return (
        f"{type(guide).__name__} was called without y: for answers p(y | x) leave the guide out, "
        "Predictive(model, num_samples=N)(x); for trajectories that lead to a given y, "
        "Predictive(model, guide=guide, num_samples=N)(x, y)"
    )


def check_model(model: Any, guide: Any) -> None:
    """Raises ConfigError where an effect guide was built for another program than ``model``, which would be ignored."""
    unwrapped = poutine.unwrap(guide)
    if isinstance(unwrapped, EffectGuide) and model is not unwrapped.model:
        raise ConfigError(
            f"{type(unwrapped).__name__} runs the program that it was built for, and would ignore this one: put "
            "handlers around the model first, then build the guide for what comes out; copy the two together, "
            "copy.deepcopy((model, guide))"
        )


def why_no_guide(model: Any, guide: Any) -> str:
    """Why nothing can be said of a guide, its KL, bounds and weights; nothing where there is one."""
    if guide_traits(guide).follows_prior:
        return "this model has no inference network"
    if prior_traits(prior_of(model)).has_density:
        return ""
    return "the density of this model's prior is not that of its draws"


class PriorGuide(EffectGuide):
    """No inference network: q(eps_t | u_t, y) = p(eps_t | u_t), so that every KL is 0."""

    traits = GuideTraits(follows_prior=True)

    def posterior(self, u: Tensor, code: Any, prior: dist.TorchDistribution) -> dist.TorchDistribution:
        return prior
