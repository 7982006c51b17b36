r"""GRAM: recursive reasoning as a Pyro program (arXiv 2605.19376, Section 2).

.. math::

    l_{t,k} &= f_L(h_{t-1}, l_{t,k-1}, e_x), \quad k = 1..K        &\text{(6)} \\
    u_t &= f_H(h_{t-1}, l_t)                                        &\text{(7)} \\
    \epsilon_t &\sim N(\mu_\theta(u_t), \sigma_\theta(u_t)^2 I)     &\text{(8)} \\
    h_t &= u_t + \epsilon_t                                         &\text{(9)}

T transitions make one supervision step; the answer is decoded from the h that it ends in.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_gram.checks import AT_LEAST_0, AT_LEAST_1, check_range
from pyro_gram.inference.deferred import prior_at
from pyro_gram.inference.families import embedded
from pyro_gram.inference.sites import (
    ANSWER,
    data_plates,
    guidance_site,
    proposal_site,
    record_state,
    register_parameters,
    sample_halt_and_value,
)
from pyro_gram.networks.core import CoreConfig, LatentState, RecursiveCore
from pyro_gram.networks.embeddings import answer_decoder, embed_input, input_encoder
from pyro_gram.registry import MODELS
from pyro_gram.spec import TaskSpec


@dataclass(frozen=True)
class GRAMConfig(CoreConfig):
    """The core's sizes, and the process.

    Attributes:
        transitions: T, transitions in one supervision step.
        truncated: Eq. 14: only a supervision step's last transition carries gradient and is charged; False: all.
        prefix: zero positions before the input (the paper's 16 puzzle tokens).
    """

    transitions: int = 3
    truncated: bool = True
    prefix: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, transitions=AT_LEAST_1, prefix=AT_LEAST_0)


@MODELS.register("gram")
class GRAM(nn.Module):
    """The generative program p(y, tau | x), and p(y, tau) where x is None.

    Args:
        config: sizes and process.
        spec: shapes of the task.
        prior: module u -> p(eps | u).
    """

    Config = GRAMConfig
    Core: type[nn.Module] = RecursiveCore  # (z_{t-1}, e_x) -> (u_t, l_t)
    h0: Tensor
    l0: Tensor

    def __init__(self, config: GRAMConfig, spec: TaskSpec, prior: nn.Module) -> None:
        super().__init__()
        self.config, self.spec = config, spec
        length = config.prefix + spec.input_length
        self.encoder = input_encoder(spec, config.width, config.prefix)
        self.core = self.Core(config, length)
        self.prior = prior
        self.decoder = answer_decoder(spec, config.width)
        self.verdict: nn.Module | None = None  # halt and value heads, where ``training.heads`` has put some
        self.register_buffer("h0", torch.randn(length, config.width))  # z_0: drawn once and kept (Section 2.1)
        self.register_buffer("l0", torch.randn(length, config.width))

    def forward(
        self,
        x: Tensor | None,
        y: Tensor | None = None,
        state: LatentState | None = None,
        *,
        steps: int = 1,
        truncated: bool | None = None,
        beta: float = 1.0,
    ) -> Tensor:
        """``steps`` supervision steps from ``state``, then the answer. One for training (Eq. 14), N_sup for Eq. 13.

        Args:
            x: input tokens, ``[..., B, *event]``; None is the empty condition of p(x).
            y: the answer, int64 ``[..., B, L_out]``; None samples it.
            state: where the last supervision step ended; None is z_0.
            steps: supervision steps in this program; 0 decodes ``state`` as it is.
            truncated: overrides the config's; the full bound (Eq. 13) takes False.
            beta: weight of the KL; 1 is the ELBO.

        Returns:
            y, int64 ``[..., B, L_out]``.
        """
        register_parameters("model", self)
        e_x = self.encode(x, None if y is None else y.shape[:-1])
        with data_plates(e_x.shape[:-2]):
            state = self.reason(e_x, state or self.initial_state(e_x), steps=steps, truncated=truncated, beta=beta)
            record_state(state)
            return self.answer(state, e_x, y)

    def reason(
        self,
        e_x: Tensor,
        state: LatentState,
        *,
        first: int = 0,
        steps: int = 1,
        truncated: bool | None = None,
        beta: float = 1.0,
    ) -> LatentState:
        """The latent trajectory: ``steps * T`` transitions (Eq. 6-9), their sites numbered from ``first``."""
        T = self.config.transitions
        truncated = self.config.truncated if truncated is None else truncated
        h, l = state
        for t in pyro.markov(range(first, first + steps * T)):
            charged = not truncated or (t + 1) % T == 0
            with torch.set_grad_enabled(charged and torch.is_grad_enabled()), poutine.mask(mask=charged):
                u, l = self.core(LatentState(h, l), e_x)
                u = pyro.deterministic(proposal_site(t), u, event_dim=2)
                with poutine.scale(scale=beta):
                    eps = pyro.sample(guidance_site(t), prior_at(self.prior, u, charged))
                h = u + embedded(self.prior, eps)
        return LatentState(h, l)

    def answer(self, state: LatentState, e_x: Tensor, y: Tensor | None, infer: dict | None = None) -> Tensor:
        """The site y, with what ``infer`` notes of it, and what heads say of it where it is not given."""
        likelihood = self.likelihood(state.h)
        sample_halt_and_value(self.verdict if y is None else None, state.h, e_x, likelihood)
        return pyro.sample(ANSWER, likelihood, obs=y, infer=infer)

    def encode(self, x: Tensor | None, batch: torch.Size | None = None) -> Tensor:
        """e_x, ``[..., L, D]``; zeros of ``[*batch, L, D]`` for the empty condition."""
        return embed_input(self.encoder, x, self.h0, batch)

    def initial_state(self, e_x: Tensor) -> LatentState:
        """z_0 in the shape of e_x."""
        return LatentState(self.h0.expand_as(e_x), self.l0.expand_as(e_x))

    def likelihood(self, h: Tensor) -> dist.TorchDistribution:
        """p(y | h_T): independent categoricals, event shape ``[L_out]``."""
        return dist.Categorical(logits=self.decoder(h)).to_event(1)
