"""Direct prediction, and the base class of all models that answer in one step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_gram.checks import AT_LEAST_0, AT_LEAST_1, check_choice, check_range
from pyro_gram.inference.contract import ModelTraits
from pyro_gram.inference.sites import ANSWER, data_plates, record_state, register_parameters
from pyro_gram.networks.core import MIXERS, LatentState, make_stack
from pyro_gram.networks.embeddings import answer_decoder, embed_input, input_encoder
from pyro_gram.networks.relations import RelationalModule
from pyro_gram.registry import MODELS
from pyro_gram.spec import TaskSpec


@dataclass(frozen=True)
class OneStepConfig:
    """Sizes of a stack of layers.

    Attributes:
        width: D, channels at each position.
        heads: attention heads of each layer.
        hidden: width of each layer's SwiGLU.
        layers: number of layers.
        mixer: how positions are mixed: ``attention``, ``swiglu`` (over positions; an autoregressive model has attention
            instead), ``relations`` (each head sees one relation of the task) or ``relation_terms`` (each head adds a
            learned term for each relation; not for autoregressive models).
        prefix: positions of zeros before the input (the paper's 16 puzzle tokens).
    """

    width: int = 512
    heads: int = 8
    hidden: int = 512
    layers: int = 8
    mixer: str = "attention"
    prefix: int = 0

    def __post_init__(self) -> None:
        check_range(self, **dict.fromkeys(("width", "heads", "hidden", "layers"), AT_LEAST_1), prefix=AT_LEAST_0)
        check_choice("mixer", self.mixer, MIXERS)


class OneStepModel(RelationalModule):
    """A model without a trajectory: it ignores ``state`` and ``steps``. Subclasses implement :meth:`respond`."""

    Config: type = OneStepConfig
    traits = ModelTraits(
        has_guidance=False,
        is_one_step=True,
        default_parts={"prior": "none", "guide": "prior"},
        default_settings={"model": {"layers": 8}},
    )
    learns_start = True  # whether a model without input learns an embedding of each position in place of e_x
    zeros: Tensor

    def __init__(self, config: Any, spec: TaskSpec, prior: nn.Module) -> None:
        super().__init__(config, spec)
        self.length = config.prefix + spec.input_length
        self.encoder = input_encoder(spec, config.width, config.prefix, self.has_relations)
        has_start = self.learns_start and not spec.has_input
        self.start = nn.Parameter(torch.randn(self.length, config.width)) if has_start else None
        self.register_buffer("zeros", torch.zeros(self.length, config.width), persistent=False)

    def stack(self, length: int | None = None, prefix: int | None = None) -> nn.Sequential:
        """Make the layers of the config, for ``length`` positions (default: the positions of the input)."""
        c = self.config
        return make_stack(c.mixer, c.layers, length or self.length, c.width, c.heads, c.hidden, prefix)

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
        """Return y, int64 ``[..., B, L_out]``. The arguments are those of :class:`~pyro_gram.models.gram.GRAM`."""
        register_parameters("model", self)
        e_x = embed_input(self.encoder, self.read(x), self.zeros, None if y is None else y.shape[:-1])
        e_x = e_x if self.start is None else e_x + self.start
        with data_plates(e_x.shape[:-2]):
            h, answer = self.respond(e_x, y, beta)
            h = self.at_positions(h)
            record_state(LatentState(h, h))
            return answer

    def respond(self, e_x: Tensor, y: Tensor | None, beta: float) -> tuple[Tensor, Tensor]:
        """Sample or observe the site y; return the last hidden state ``[..., L, D]``, and y."""
        raise NotImplementedError


@MODELS.register("direct")
class Direct(OneStepModel):
    """One pass through a stack of layers; the tokens of an answer are independent given x (Tables 1 and 3b)."""

    def __init__(self, config: OneStepConfig, spec: TaskSpec, prior: nn.Module) -> None:
        super().__init__(config, spec, prior)
        self.f = self.stack()
        self.decoder = answer_decoder(spec, config.width, self.has_relations)

    def respond(self, e_x: Tensor, y: Tensor | None, beta: float) -> tuple[Tensor, Tensor]:
        h = self.f(e_x, self.bias)
        likelihood = dist.Categorical(logits=self.open_values(self.decoder(h))).to_event(1)
        return h, pyro.sample(ANSWER, likelihood, obs=y)
