r"""Lattice GRAM: recursive reasoning over the candidates of an answer.

The high level is a lattice h in {0, 1}^{L x V}: which values each token of the answer may still take.

.. math::

    l_{t,k} &= f(l_{t,k-1} + \mathrm{embed}(h_{t-1}) + e_x), \quad k = 1..K   \\
    u_t &= \text{logits of } l_{t,K} \text{ over the open values of } h_{t-1}      \\
    \epsilon_t &\sim p(\epsilon_t | u_t) \quad\text{(some tokens, and a value for each)} \\
    h_t &= h_{t-1} \text{ with these tokens closed to their values}

The guide takes the values of y. So the KL of a transition is the sum of -log p of the values that it decides, and the
bound on log p(y | x) is that of an any-order autoregressive model.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.nn.functional import one_hot

from pyro_gram.checks import AT_LEAST_0, AT_LEAST_1, check_range
from pyro_gram.inference import sites
from pyro_gram.inference.contract import ModelTraits
from pyro_gram.networks.core import CoreConfig, LatentState, init_linear_, make_embedding, make_stack
from pyro_gram.networks.embeddings import answer_decoder, embed_input, image_encoder, input_encoder
from pyro_gram.networks.relations import CLOSED, RelationalModule
from pyro_gram.registry import MODELS
from pyro_gram.spec import TaskSpec


@dataclass(frozen=True)
class LatticeConfig(CoreConfig):
    """Sizes of the core, and the length of the latent process.

    Attributes:
        low_steps: K, applications of f in a transition.
        transitions: T, transitions in one supervision step.
        truncated: True: only the last transition of a supervision step has a gradient and a KL.
        prefix: positions of zeros before the input.
        recursion_weight: weight in training of the mean loss of all positions after the K applications of f.
        is_carried: whether l is kept from one transition to the next; if not, each starts at l_0.
    """

    low_steps: int = 3
    transitions: int = 1
    truncated: bool = False
    prefix: int = 0
    recursion_weight: float = 1.0
    is_carried: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, transitions=AT_LEAST_1, prefix=AT_LEAST_0, recursion_weight=AT_LEAST_0)


@MODELS.register("lattice")
class Lattice(RelationalModule):
    """The generative program p(y, tau | x), or p(y, tau) if x is None. ``prior`` is a module u -> p(eps | u)."""

    Config = LatticeConfig
    traits = ModelTraits(
        guidance="decisions",
        default_parts={"prior": "decisions", "guide": "reveal"},
        default_settings={  # a trajectory ends when its answer is complete: 128 steps are only a limit
            "model": {"low_steps": 3},
            "optim": {"hidden_optimizer": "muon", "lr": 3e-3},
            "train": {
                "act": True,
                "supervision_steps": 128,
                "on_policy_depth": 0,
                "elbo": "mean_field",
                "exact_targets": True,
            },
            "beta": {"start": 1.0, "target": 0.0, "silent_fraction": 0.0},
            "evaluate": {"depth": 128},
        },
    )
    l0: Tensor

    def __init__(self, config: LatticeConfig, spec: TaskSpec, prior: nn.Module) -> None:
        super().__init__(config, spec)
        length = 1 if self.has_relations else config.prefix + spec.input_length
        self.encoder = input_encoder(spec, config.width, config.prefix, self.has_relations)
        self.lattice_encoder = LatticeEncoder(spec, config.width, length, self.has_relations)
        self.f = make_stack(config.mixer, config.layers, length, config.width, config.heads, config.hidden)
        self.prior = prior
        self.decoder = answer_decoder(spec, config.width, self.has_relations, has_pixel_features=True)
        self.heads: nn.Module | None = None  # the halt and value heads, which read l; training.heads sets them
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
        """Sample ``steps`` supervision steps from ``state``, then y. Arguments and result are those of GRAM.

        The state is ``h [..., B, L_out, V]``, 1 for an open value, and ``l [..., B, L, D]``.
        """
        sites.register_parameters("model", self)
        e_x = embed_input(self.encoder, self.read(x), self.l0, None if y is None else y.shape[:-1])
        with sites.data_plates(e_x.shape[:-2]):
            h, l = state or self.initial_state(x, e_x)
            T = self.config.transitions
            truncated = self.config.truncated if truncated is None else truncated
            for t in pyro.markov(range(steps * T)):
                has_kl = not truncated or (t + 1) % T == 0
                with torch.set_grad_enabled(has_kl and torch.is_grad_enabled()), poutine.mask(mask=has_kl):
                    targets = None if y is None or not has_kl else self.targets(y, h, t)
                    is_open = (h.sum(-1) > 1.5).any(-1)[..., None, None]
                    e_h, pixels = self.lattice_encoder(h)
                    states = self.refine(l, e_h + e_x) if is_open.any() else [l]  # a complete lattice costs nothing
                    l = torch.where(is_open, states[-1], l)
                    u = pyro.deterministic(sites.proposal_site(t), self.logits(h, l, pixels), event_dim=2)
                    if targets is not None and self.config.recursion_weight:
                        predictions = torch.stack([*(self.logits(h, state, pixels) for state in states[:-1]), u])
                        losses = -(targets * predictions.log_softmax(-1)).sum((-1, -2))
                        sites.add_training_loss(f"recursion_{t}", self.config.recursion_weight * losses.mean(0))
                    with poutine.scale(scale=beta):
                        eps = pyro.sample(sites.guidance_site(t), self.prior(u))
                    h = torch.where(eps.sum(-1, keepdim=True) > 0, eps, h)
            sites.record_state(LatentState(h, l))
            pyro.deterministic(sites.HALTED, (h.sum(-1) == 1).all(-1))
            logits = u.masked_fill(h < 0.5, CLOSED) if steps else self.logits(h, l, self.lattice_encoder(h)[1])
            likelihood = dist.Categorical(logits=logits).to_event(1)  # a decided position has its value
            sites.sample_halt_and_value(self.heads if y is None else None, l, e_x, likelihood, self.structure)
            return pyro.sample(sites.ANSWER, likelihood, obs=y)

    def targets(self, y: Tensor, h: Tensor, t: int) -> Tensor:
        """Return what transition t is trained towards, ``[..., L_out, V]``: y, unless a handler knows all solutions."""
        values = one_hot(y, h.shape[-1]).to(h.dtype)
        infer = {"_deterministic": True, sites.LATTICE: h}
        return pyro.sample(sites.targets_site(t), dist.Delta(values, event_dim=2), obs=values, infer=infer)

    def refine(self, l: Tensor, injection: Tensor) -> list[Tensor]:
        """Return the low level after each of K applications of f."""
        states = [l if self.config.is_carried else self.l0.expand_as(injection)]
        for _ in range(self.config.low_steps):
            states.append(self.at_positions(self.f(states[-1] + injection, *self.context)))
        return states[1:]

    def initial_state(self, x: Tensor | None, e_x: Tensor) -> LatentState:
        """Return z_0: all values are open but those that the input closes."""
        values = None if x is None or self.spec.structure is None else (self.structure or self.spec.structure(x)).values
        shape = e_x.shape[:-2]
        if values is None:
            h = e_x.new_ones(*shape, self.spec.output_length, self.spec.output_classes)
        else:
            h = values.to(e_x.dtype).expand(*shape, *values.shape[-2:])
        return LatentState(h, self.l0.expand_as(e_x))

    def logits(self, h: Tensor, l: Tensor, pixels: Tensor | None) -> Tensor:
        """Return the logits of the answer, ``[..., L_out, V]``, CLOSED at the closed values of h."""
        logits = self.decoder(l) if pixels is None else self.decoder(l, pixels)
        return self.open_values(logits).masked_fill(h < 0.5, CLOSED)


class LatticeEncoder(nn.Module):
    """Embed a lattice ``[..., L_out, V]`` at the positions of the sequence, ``[..., L, D]``.

    At a position (token, value) the value is closed, open, or decided. For an image the second result holds features of
    its pixels; else it is None.
    """

    def __init__(self, spec: TaskSpec, width: int, length: int, has_relations: bool) -> None:
        super().__init__()
        self.spec, self.length = spec, 0 if has_relations else length
        if spec.image is not None:
            self.pixels = image_encoder(spec, width)
        elif spec.has_value_positions:
            self.embedding = make_embedding(3, width)
            self.scale = width**0.5
        else:
            self.linear = init_linear_(nn.Linear(spec.output_classes + 1, width, bias=False))

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor | None]:
        is_decided, pixels = h.sum(-1, keepdim=True) < 1.5, None
        if self.spec.image is not None:
            e = self.pixels.embed(pixels := self.pixels.features_of(h))
        elif self.spec.has_value_positions:
            return self.embedding((h * (1 + is_decided)).long().flatten(-2)) * self.scale, None
        else:
            e = self.linear(torch.cat((h, is_decided.to(h.dtype)), -1))
        return nn.functional.pad(e, (0, 0, max(0, self.length - e.shape[-2]), 0)), pixels
