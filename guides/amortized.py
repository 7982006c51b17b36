r"""The amortized guide :math:`q_\phi(\epsilon_t \mid u_t, y)` (Section 2.2).

The paper does not say how y enters; here its embedding is concatenated with u_t, position by position.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import pad

from pyro_gram.checks import AT_LEAST_0, AT_LEAST_1, check_range
from pyro_gram.embeddings import answer_encoder
from pyro_gram.inference.guide import EffectGuide
from pyro_gram.networks.heads import GaussianHead
from pyro_gram.networks.layers import make_stack
from pyro_gram.registry import GUIDES
from pyro_gram.tasks.base import TaskSpec


@dataclass(frozen=True)
class AmortizedGuideConfig:
    """Sizes of the posterior.

    Attributes:
        hidden: width of the SwiGLU.
        initial_scale: sigma of every channel before training, as the prior's.
        layers: attention layers over the embedded answer. With none, the posterior of a position sees its own part of
            y only; with some, all of it, so that few positions can say what many need (images).
        heads: of those layers.
    """

    hidden: int = 512
    initial_scale: float = 0.1
    layers: int = 0
    heads: int = 4

    def __post_init__(self) -> None:
        check_range(self, hidden=AT_LEAST_1, initial_scale=(0.01, 10), layers=AT_LEAST_0, heads=AT_LEAST_1)


@GUIDES.register("amortized")
class AmortizedGuide(EffectGuide):
    """A diagonal Gaussian from ``[u_t, embedding of y]``, position by position.

    Args:
        config: sizes.
        spec: shapes of the task.
        model: the generative program.
        width: D.
    """

    Config = AmortizedGuideConfig

    def __init__(self, config: AmortizedGuideConfig, spec: TaskSpec, model: Any, width: int) -> None:
        super().__init__(model)
        self.answer = answer_encoder(spec, width)
        length = max(spec.input_length, spec.output_length)
        self.mix = make_stack("attention", config.layers, length, width, config.heads, config.hidden)
        self.head = GaussianHead(2 * width, config.hidden, width, config.initial_scale)

    def encode(self, x: Tensor | None, y: Tensor) -> Tensor:
        return self.mix(self.answer(y))

    def posterior(self, u: Tensor, code: Tensor, prior: dist.TorchDistribution) -> dist.TorchDistribution:
        code = pad(code, (0, 0, u.shape[-2] - code.shape[-2], 0))  # the answer stands at the last positions
        code = code.expand(*u.shape[:-1], code.shape[-1])
        return dist.Normal(*self.head(torch.cat((u, code), dim=-1))).to_event(2)
