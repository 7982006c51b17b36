"""The contract of parts: what a model, a prior and a guide must be, and what they may state about themselves.

A part needs no base class: it follows one of the protocols below. The defaults of :class:`ModelTraits`,
:class:`PriorTraits` and :class:`GuideTraits` hold for a part unless it, or its class, has an attribute ``traits``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Protocol, TypeVar

import pyro.distributions as dist
from pyro import poutine
from torch import Tensor

from pyro_gram.errors import ConfigError
from pyro_gram.inference.families import NORMAL, Family
from pyro_gram.networks.core import LatentState

Settings = Mapping[str, Mapping[str, Any]]  # {part of the config: {field: value}}
T = TypeVar("T")


class Model(Protocol):
    """A generative program p(y, tau | x): any Pyro program with this signature and these sites.

    Site ``u_t`` is the deterministic proposal of transition t. Site ``eps_t`` is the guidance that is added to it.
    Sites ``h`` and ``l`` are the final state, and site ``y`` is the answer. All sites lie in plates over the batch. The
    helpers of ``inference.sites`` make the sites. A model with halt and value heads has them as its attribute
    ``heads``, and also calls ``sample_halt_and_value``.

    >>> import pyro, torch
    >>> from pyro_gram.inference import sites
    >>> class Bits(torch.nn.Module):
    ...     def __init__(self, prior):
    ...         super().__init__()
    ...         self.prior, self.f = prior, torch.nn.Linear(2, 2)
    ...
    ...     def forward(self, x, y=None, state=None, *, steps=1, truncated=None, beta=1.0):
    ...         sites.register_parameters("model", self)
    ...         with sites.data_plates(x.shape[:-1]):  # x: [B, L]
    ...             h = torch.zeros(*x.shape, 2) if state is None else state.h
    ...             for t in range(steps):
    ...                 u = self.f(h + x[..., None])
    ...                 pyro.deterministic(sites.proposal_site(t), u, event_dim=2)
    ...                 with pyro.poutine.scale(scale=beta):
    ...                     h = u + pyro.sample(sites.guidance_site(t), self.prior(u))
    ...             sites.record_state(LatentState(h, h))
    ...             return pyro.sample("y", dist.Categorical(logits=h).to_event(1), obs=y)
    >>> model: Model = Bits(lambda u: dist.Normal(torch.zeros_like(u), 0.1).to_event(2))
    >>> model(torch.zeros(3, 5), steps=4).shape
    torch.Size([3, 5])
    """

    def __call__(
        self,
        x: Tensor | None,
        y: Tensor | None = None,
        state: LatentState | None = None,
        *,
        steps: int = 1,
        truncated: bool | None = None,
        beta: float = 1.0,
    ) -> Tensor:
        """Sample y, int64 ``[..., B, L_out]``, or observe the y that is passed.

        Args:
            x: inputs, ``[..., B, *event]``; None for a model without input, p(x).
            y: answers; None to sample them.
            state: the state to start from; None for z_0.
            steps: supervision steps; 0 decodes ``state`` as it is.
            truncated: True: only the last transition of a supervision step has a gradient and a KL (Eq. 14); False:
                all transitions have both (Eq. 13); None: the model's config decides.
            beta: weight of the KL.
        """


class Prior(Protocol):
    """A prior of the guidance, p(eps_t | u_t): a callable from u_t to a distribution.

    If guidance does not lie in u's space (as for discrete codes), the prior also has a method
    ``embed_guidance(eps)``. It returns the term that is added to u, ``[..., L, D]``.

    >>> import torch
    >>> class Noise(torch.nn.Module):
    ...     def forward(self, u):
    ...         return dist.Normal(torch.zeros_like(u), 0.1).to_event(2)
    >>> prior: Prior = Noise()
    >>> prior(torch.zeros(3, 5, 2)).batch_shape
    torch.Size([3])
    """

    def __call__(self, u: Tensor) -> dist.TorchDistribution:
        """Return p(eps | u) for u ``[..., L, D]``: batch shape ``[...]``, event shape ``[L, D]``."""


class Guide(Protocol):
    """A Pyro guide q(tau | x, y) of a model: it samples the model's latent sites under their names.

    A guide has the arguments of its model. Pyro's autoguides are guides, and so are programs of your own. A subclass of
    :class:`~pyro_gram.inference.guide.EffectGuide` defines only q(eps_t | u_t, y), and computes each transition once
    instead of twice:

    >>> import torch
    >>> from pyro_gram.inference.guide import EffectGuide
    >>> class Shift(EffectGuide):
    ...     def posterior(self, u, code, prior):
    ...         return dist.Normal(0.1 * code[..., None].expand_as(u), 0.1).to_event(2)  # code is y
    >>> def model(x, y=None):
    ...     u = pyro.deterministic("u_0", x, event_dim=2)
    ...     h = u + pyro.sample("eps_0", dist.Normal(torch.zeros_like(u), 0.1).to_event(2))
    ...     return pyro.sample("y", dist.Categorical(logits=h).to_event(1), obs=y)
    >>> import pyro
    >>> guide: Guide = Shift(model)
    >>> sorted(guide(torch.zeros(3, 5, 2), torch.ones(3, 5).long()))
    ['eps_0', 'u_0', 'y']
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Sample the latent sites. The arguments are those of the model; y is required."""


@dataclass(frozen=True)
class ModelTraits:
    """The traits that a model may state about itself.

    Attributes:
        has_guidance: the program samples guidance sites; if not, only prior ``none`` and guide ``prior`` fit the model.
        guidance: what eps_t is: ``state``, a term that is added to u_t; or ``decisions``, values of the answer, which
            close a lattice. Model, prior and guide must agree. After the site ``halted`` of a model with a lattice is
            True, further steps change nothing: a rollout ends there.
        is_one_step: each call starts from z_0, and a trajectory has one supervision step.
        has_exact_likelihood: the log density of the site ``y`` is exact; if not, it is a bound.
        default_parts: names of the prior and guide that the model is used with, unless the user names other parts.
        default_settings: settings that replace those of a preset.
    """

    has_guidance: bool = True
    guidance: str = "state"
    is_one_step: bool = False
    has_exact_likelihood: bool = True
    default_parts: Mapping[str, str] = field(default_factory=dict)
    default_settings: Settings = field(default_factory=dict)

    @property
    def has_lattice(self) -> bool:
        """Does a transition decide values of the answer?"""
        return self.guidance == "decisions"


@dataclass(frozen=True)
class PriorTraits:
    """The traits that a prior may state about itself.

    Attributes:
        family: the variational family of guides for this prior; None for a deterministic prior, which leaves nothing to
            infer.
        has_rsample: draws have a gradient. A prior whose draws have none needs a guide in training.
        has_density: ``log_prob`` is the log density of the draws. If not, bounds that use ``log_prob`` are meaningless.
        guidance: what eps_t is, as in :class:`ModelTraits`.
    """

    family: Family | None = NORMAL
    has_rsample: bool = True
    has_density: bool = True
    guidance: str = "state"


@dataclass(frozen=True)
class GuideTraits:
    """The traits that a guide may state about itself.

    Attributes:
        follows_prior: q(eps_t | u_t, y) = p(eps_t | u_t): there is no inference network and every KL is 0.
        is_amortized: all data share the parameters of the guide; if not, each datum has parameters of its own.
        guidance: what eps_t is, as in :class:`ModelTraits`.
        default_settings: settings that replace those of a preset.
    """

    follows_prior: bool = False
    is_amortized: bool = True
    guidance: str = "state"
    default_settings: Settings = field(default_factory=dict)


@dataclass(frozen=True)
class ModelSizes:
    """The fields of a model's config that other parts read. A config may leave out the fields that have a default here.

    Attributes:
        width: D, channels of a position.
        transitions: T, transitions of a supervision step.
        truncated: only the last transition of a supervision step has a KL (Eq. 14).
        prefix: number of positions before the positions of the input.
        low_steps: K, applications of the low-level network in a transition.
        layers: layers of each network.
        mixer: how positions are mixed (``networks.core.CoreConfig``).
    """

    width: int
    transitions: int = 1
    truncated: bool = False
    prefix: int = 0
    low_steps: int = 2
    layers: int = 2
    mixer: str = "attention"


def model_traits(model: Any) -> ModelTraits:
    """Return the traits of a model or of its class. The model may be wrapped in Pyro's handlers."""
    return _traits(poutine.unwrap(model), ModelTraits)


def prior_traits(prior: Any) -> PriorTraits:
    """Return the traits of a prior or of its class."""
    return _traits(prior, PriorTraits)


def guide_traits(guide: Any) -> GuideTraits:
    """Return the traits of a guide or of its class. The guide may be wrapped in Pyro's handlers."""
    return _traits(poutine.unwrap(guide), GuideTraits)


def _traits(part: Any, kind: type[T]) -> T:
    traits = getattr(part, "traits", None)
    if traits is None:
        return kind()
    if not isinstance(traits, kind):
        owner = part if isinstance(part, type) else type(part)
        raise ConfigError(f"{owner.__name__}.traits must be a {kind.__name__}, not {traits!r}")
    return traits


def prior_of(model: Any) -> Any:
    """Return a model's attribute ``prior``; None if it has no prior. The model may be wrapped in Pyro's handlers."""
    return getattr(poutine.unwrap(model), "prior", None)


def family_of(model: Any) -> Family:
    """Return the variational family for the prior of a model.

    Raises:
        ConfigError: the prior is deterministic.
    """
    family = prior_traits(prior_of(model)).family
    if family is None:
        raise ConfigError("this prior is deterministic and leaves nothing to infer: use --guide prior")
    return family


def model_sizes(config: Any) -> ModelSizes:
    """Read the sizes in the config of a model. Raises ConfigError if the config has no field ``width``."""
    if not hasattr(config, "width"):
        raise ConfigError(f"the config of a model must have a field 'width', and {type(config).__name__} has none")
    return ModelSizes(**{f.name: getattr(config, f.name) for f in fields(ModelSizes) if hasattr(config, f.name)})
