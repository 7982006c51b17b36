"""A flat model: one latent h, no hierarchy."""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_gram.inference.sites import data_plates, register_parameters, sample_halt_and_value
from pyro_gram.networks.core import CoreConfig, LatentState, make_stack
from pyro_gram.networks.embeddings import answer_decoder, input_encoder
from pyro_gram.spec import TaskSpec


class FlatModel(nn.Module):
    Config = CoreConfig
    h0: Tensor

    def __init__(self, config: CoreConfig, spec: TaskSpec, prior: nn.Module) -> None:
        super().__init__()
        c = config
        self.spec, self.prior = spec, prior
        encoder = input_encoder(spec, c.width)
        assert encoder is not None  # it is None for tasks without input
        self.encoder = encoder
        self.f = make_stack(c.mixer, c.layers, spec.input_length, c.width, c.heads, c.hidden)
        self.decoder = answer_decoder(spec, c.width)
        self.heads: nn.Module | None = None  # a run puts the halt and value heads here
        self.register_buffer("h0", torch.randn(spec.input_length, c.width))

    def forward(
        self,
        x: Tensor,
        y: Tensor | None = None,
        state: LatentState | None = None,
        *,
        steps: int = 1,
        truncated: bool | None = None,
        beta: float = 1.0,
    ) -> Tensor:
        register_parameters("model", self)
        e_x = self.encoder(x)
        h = self.h0.expand_as(e_x) if state is None else state.h
        with data_plates(e_x.shape[:-2]):
            for t in pyro.markov(range(steps)):
                u = pyro.deterministic(f"u_{t}", self.f(h + e_x), event_dim=2)
                with pyro.poutine.scale(scale=beta):
                    h = u + pyro.sample(f"eps_{t}", self.prior(u))
            h = pyro.deterministic("h", h, event_dim=2)
            pyro.deterministic("l", h, event_dim=2)
            likelihood = dist.Categorical(logits=self.decoder(h)).to_event(1)
            sample_halt_and_value(self.heads if y is None else None, h, e_x, likelihood)
            return pyro.sample("y", likelihood, obs=y)
