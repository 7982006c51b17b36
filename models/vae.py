"""A conditional variational autoencoder: GRAM without recursion."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
from pyro import poutine
from torch import Tensor, nn

from pyro_gram.inference.contract import ModelTraits
from pyro_gram.inference.families import embed_guidance, neutralize_padding
from pyro_gram.inference.sites import ANSWER, guidance_site, proposal_site
from pyro_gram.networks.embeddings import answer_decoder
from pyro_gram.registry import MODELS
from pyro_gram.spec import TaskSpec

from .direct import OneStepConfig, OneStepModel


@MODELS.register("vae")
class VAE(OneStepModel):
    """One latent eps_0 between two stacks of layers: u_0 = f(e_x), h = g(u_0 + eps_0).

    By default eps_0 ~ N(0, I). The encoder is the guide, which reads u_0 and y.
    """

    traits = ModelTraits(
        is_one_step=True,
        default_parts={"prior": "standard", "guide": "amortized"},
        default_settings={"model": {"layers": 4}, "guide": {"layers": 2}},
    )

    def __init__(self, config: OneStepConfig, spec: TaskSpec, prior: nn.Module) -> None:
        super().__init__(config, spec, prior)
        self.f, self.g = self.stack(), self.stack()
        self.prior = prior
        self.decoder = answer_decoder(spec, config.width, self.has_relations)

    def respond(self, e_x: Tensor, y: Tensor | None, beta: float) -> tuple[Tensor, Tensor]:
        u = pyro.deterministic(proposal_site(0), self.at_positions(self.f(e_x, self.bias)), event_dim=2)
        with poutine.scale(scale=beta):
            eps = pyro.sample(guidance_site(0), neutralize_padding(self.prior(u), self.mask))
        h = self.g(u + embed_guidance(self.prior, eps), self.bias)
        likelihood = dist.Categorical(logits=self.open_values(self.decoder(h))).to_event(1)
        return h, pyro.sample(ANSWER, likelihood, obs=y)
