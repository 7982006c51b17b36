"""The amortized posterior as an ordinary two-pass guide, a Pyro program of its own.

This guide runs the recursion itself to compute each u_t; Pyro then replays the model with the same draws, so that each
transition is computed twice. Tests compare this guide with the one-pass guide: both have the same ELBO
for the same parameters and seed.
"""

from __future__ import annotations

from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_gram.errors import ConfigError
from pyro_gram.inference.families import embed_guidance, neutralize_padding
from pyro_gram.inference.guide import missing_answer_message
from pyro_gram.inference.sites import data_plates, guidance_site, register_parameters
from pyro_gram.networks.core import LatentState
from pyro_gram.registry import GUIDES
from pyro_gram.spec import TaskSpec

from .amortized import AmortizedGuide, AmortizedGuideConfig


@GUIDES.register("replay")
class ReplayGuide(nn.Module):
    """q(tau | x, y) as an ordinary Pyro guide. It has the arguments and the networks of :class:`AmortizedGuide`."""

    Config = AmortizedGuideConfig

    def __init__(self, config: AmortizedGuideConfig, spec: TaskSpec, model: Any, width: int) -> None:
        super().__init__()
        if not hasattr(model, "core"):
            raise ConfigError(
                f"the replay guide runs a recursive core, and {type(model).__name__} has none: use --guide amortized"
            )
        self.inference = AmortizedGuide(config, spec, model, width)

    def forward(
        self,
        x: Tensor | None,
        y: Tensor | None = None,
        state: LatentState | None = None,
        *,
        steps: int = 1,
        truncated: bool | None = None,
        beta: float = 1.0,
    ) -> None:
        """Sample the guidance of a trajectory. The arguments are those of the model; y is required."""
        if y is None:
            raise ValueError(missing_answer_message(self))
        model: Any = self.inference.model
        register_parameters("guide", self)
        T = model.config.transitions
        truncated = model.config.truncated if truncated is None else truncated
        e_x = model.encode(x, y.shape[:-1])
        code = self.inference.encode(x, y)
        with data_plates(e_x.shape[:-2]):
            h, l = state or model.initial_state(e_x)
            for t in pyro.markov(range(steps * T)):
                has_kl = not truncated or (t + 1) % T == 0
                with torch.set_grad_enabled(has_kl and torch.is_grad_enabled()), poutine.mask(mask=has_kl):
                    u, l = model.propose(LatentState(h, l), e_x)
                    prior = neutralize_padding(model.prior(u), model.mask)
                    posterior = neutralize_padding(self.inference.posterior_at(t, u, code, prior), model.mask)
                    with poutine.scale(scale=beta):
                        eps = pyro.sample(guidance_site(t), posterior)
                    h = model.at_positions(u + embed_guidance(model.prior, eps))
