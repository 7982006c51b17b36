"""A small program and its guide. The evidence of the program is known in closed form."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_gram.inference.guide import EffectGuide
from pyro_gram.inference.sites import data_plates, register_parameters


class Probit(nn.Module):
    """A program with one guidance eps ~ N(x, 1). Its answer is one token: 1 with probability Phi(eps), else 0.

    So p(y = 1 | x) = Phi(x / sqrt(2)).
    """

    def forward(self, x, y=None, state=None, *, steps=1, truncated=None, beta=1.0):
        register_parameters("model", self)
        mean = x.double()[..., None]  # [..., B, 1, 1]
        with data_plates(x.shape[:-1]):
            u = pyro.deterministic("u_0", torch.zeros_like(mean), event_dim=2)
            h = u + pyro.sample("eps_0", dist.Normal(mean, 1.0).to_event(2))
            pyro.deterministic("h", h, event_dim=2)
            pyro.deterministic("l", h, event_dim=2)
            logits = torch.stack((log_phi(-h[..., 0]), log_phi(h[..., 0])), -1)  # [..., B, 1, 2]
            return pyro.sample("y", dist.Categorical(logits=logits).to_event(1), obs=y)


class Gaussian(EffectGuide):
    """The inexact guide q(eps | x, y) = N(x + a (2 y - 1), b^2), with a = ``shift`` and b = ``scale``."""

    def __init__(self, model: nn.Module, shift: float = 0.6, scale: float = 0.9) -> None:
        super().__init__(model)
        self.shift, self.scale = shift, scale

    def encode(self, x, y):
        return x.double()[..., None] + self.shift * (2 * y.double()[..., None] - 1)

    def posterior(self, u, code, prior):
        return dist.Normal(code.expand_as(u), self.scale).to_event(2)


def log_phi(t: Tensor) -> Tensor:
    return torch.special.log_ndtr(t)


def probit_evidence(x: Tensor, y: Tensor) -> Tensor:
    """Return log p(y | x) of the program :class:`Probit`, ``[B]``."""
    return log_phi((2 * y[:, 0].double() - 1) * x[:, 0].double() / 2**0.5)
