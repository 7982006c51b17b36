"""The guide of a lattice: it decides the tokens that the prior would decide, for the values of y."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pyro_gram.inference.contract import GuideTraits
from pyro_gram.inference.decisions import Decisions
from pyro_gram.inference.guide import EffectGuide
from pyro_gram.inference.sites import targets_site
from pyro_gram.registry import GUIDES
from pyro_gram.spec import TaskSpec


@dataclass(frozen=True)
class RevealGuideConfig:
    """This guide has no settings."""


@GUIDES.register("reveal")
class RevealGuide(EffectGuide):
    """Reveal the values of y at the tokens that are decided. The guide has no parameters."""

    Config = RevealGuideConfig
    traits = GuideTraits(guidance="decisions")

    def __init__(self, config: RevealGuideConfig, spec: TaskSpec, model: Any, width: int) -> None:
        super().__init__(model)

    def posterior(self, u: Tensor, code: Tensor, prior: Any) -> Decisions:
        return prior.reveal(code)

    def posterior_at(self, t: int, u: Tensor, code: Tensor, prior: Any) -> Decisions:
        """Return :meth:`posterior` with the targets of transition t, if the model has a site for them."""
        site = self.trace.nodes.get(targets_site(t))
        return prior.reveal(code, None if site is None else site["value"])
