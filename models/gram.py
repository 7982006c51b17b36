r"""GRAM: recursive reasoning as a Pyro program (arXiv 2605.19376, Section 2).

.. math::

    l_{t,k} &= f_L(h_{t-1}, l_{t,k-1}, e_x), \quad k = 1..K        &\text{(6)} \\
    u_t &= f_H(h_{t-1}, l_t)                                        &\text{(7)} \\
    \epsilon_t &\sim N(\mu_\theta(u_t), \sigma_\theta(u_t)^2 I)     &\text{(8)} \\
    h_t &= u_t + \epsilon_t                                         &\text{(9)}

T transitions make one supervision step; the answer y is decoded from the last h.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_gram.checks import AT_LEAST_0, AT_LEAST_1, check_range
from pyro_gram.inference import sites
from pyro_gram.inference.families import embed_guidance, neutralize_padding
from pyro_gram.networks.core import CoreConfig, LatentState, RecursiveCore
from pyro_gram.networks.embeddings import answer_decoder, embed_input, input_encoder
from pyro_gram.networks.relations import RelationalModule
from pyro_gram.registry import MODELS
from pyro_gram.spec import TaskSpec


@dataclass(frozen=True)
class GRAMConfig(CoreConfig):
    """Sizes of the core, and the length of the latent process.

    Attributes:
        transitions: T, transitions in one supervision step.
        truncated: True: only the last transition of a supervision step has a gradient and a KL (Eq. 14). False: all
            transitions have both (Eq. 13).
        prefix: positions of zeros before the input (the paper's 16 puzzle tokens).
    """

    transitions: int = 3
    truncated: bool = True
    prefix: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, transitions=AT_LEAST_1, prefix=AT_LEAST_0)


@MODELS.register("gram")
class GRAM(RelationalModule):
    """The generative program p(y, tau | x), or p(y, tau) if x is None. ``prior`` is a module u -> p(eps | u)."""

    Config = GRAMConfig
    Core: type[nn.Module] = RecursiveCore  # (z_{t-1}, e_x) -> (u_t, l_t)
    h0: Tensor
    l0: Tensor

    def __init__(self, config: GRAMConfig, spec: TaskSpec, prior: nn.Module) -> None:
        super().__init__(config, spec)
        length = 1 if self.has_relations else config.prefix + spec.input_length  # 1: all positions share z_0
        self.encoder = input_encoder(spec, config.width, config.prefix, self.has_relations)
        self.core = self.Core(config, length)
        self.prior = prior
        self.decoder = answer_decoder(spec, config.width, self.has_relations)
        self.heads: nn.Module | None = None  # the halt and value heads; training.heads sets them
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
        """Sample ``steps`` supervision steps from ``state``, then y. Eq. 14 takes one step, Eq. 13 N_sup.

        Args:
            x: input tokens, ``[..., B, *event]``; None for a model without input, p(x).
            y: the observed answer, int64 ``[..., B, L_out]``; None to sample it.
            state: the state in which the last supervision step ended; None for z_0.
            steps: supervision steps of this call; 0 decodes ``state`` as it is.
            truncated: replaces ``truncated`` of the config; False for the full bound (Eq. 13).
            beta: weight of the KL; 1 is the ELBO.

        Returns: y, int64 ``[..., B, L_out]``.
        """
        sites.register_parameters("model", self)
        e_x = self.encode(x, None if y is None else y.shape[:-1])
        with sites.data_plates(e_x.shape[:-2]):
            state = self.reason(e_x, state or self.initial_state(e_x), steps=steps, truncated=truncated, beta=beta)
            sites.record_state(state)
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
        """Sample ``steps * T`` transitions (Eq. 6-9). Their sites are numbered from ``first`` on."""
        T = self.config.transitions
        truncated = self.config.truncated if truncated is None else truncated
        h, l = state
        for t in pyro.markov(range(first, first + steps * T)):
            has_kl = not truncated or (t + 1) % T == 0
            with torch.set_grad_enabled(has_kl and torch.is_grad_enabled()), poutine.mask(mask=has_kl):
                u, l = self.propose(LatentState(h, l), e_x)
                u = pyro.deterministic(sites.proposal_site(t), u, event_dim=2)
                with poutine.scale(scale=beta):
                    eps = pyro.sample(sites.guidance_site(t), neutralize_padding(self.prior(u), self.mask))
                h = self.at_positions(u + embed_guidance(self.prior, eps))
        return LatentState(h, l)

    def propose(self, state: LatentState, e_x: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the core to a state: return the proposal u_t and the low level l_t, ``[..., L, D]`` each (Eq. 6-7)."""
        u, l = self.core(state, e_x, *self.context)
        return self.at_positions(u), self.at_positions(l)

    def answer(self, state: LatentState, e_x: Tensor, y: Tensor | None, infer: dict | None = None) -> Tensor:
        """Observe y; if y is None, sample y and the sites of the heads. ``infer`` is the infer dict of y."""
        likelihood = self.likelihood(state.h)
        sites.sample_halt_and_value(self.heads if y is None else None, state.h, e_x, likelihood, self.structure)
        return pyro.sample(sites.ANSWER, likelihood, obs=y, infer=infer)

    def encode(self, x: Tensor | None, batch: torch.Size | None = None) -> Tensor:
        """Return the embedded input e_x, ``[..., L, D]``. If x is None, return zeros ``[*batch, L, D]``."""
        return embed_input(self.encoder, self.read(x), self.h0, batch)

    def initial_state(self, e_x: Tensor) -> LatentState:
        """Return z_0, expanded to the shape of e_x."""
        return LatentState(self.h0.expand_as(e_x), self.l0.expand_as(e_x))

    def likelihood(self, h: Tensor) -> dist.TorchDistribution:
        """Return p(y | h_T), independent categoricals of event shape ``[L_out]``."""
        return dist.Categorical(logits=self.open_values(self.decoder(h))).to_event(1)
