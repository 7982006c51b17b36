"""A guide that shifts the prior's mean by an amount computed from u and y, and keeps the prior's scale."""

from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_gram.inference.guide import EffectGuide
from pyro_gram.networks.core import GaussianHead
from pyro_gram.networks.embeddings import answer_encoder
from pyro_gram.spec import TaskSpec


@dataclass(frozen=True)
class ShiftGuideConfig:
    hidden: int = 512


class ShiftGuide(EffectGuide):
    Config = ShiftGuideConfig

    def __init__(self, config: ShiftGuideConfig, spec: TaskSpec, model: Any, width: int) -> None:
        super().__init__(model)
        self.embed = answer_encoder(spec, width)
        self.head = GaussianHead(2 * width, config.hidden, width)

    def encode(self, x: Tensor | None, y: Tensor) -> Tensor:
        return self.embed(y)

    def posterior(self, u: Tensor, code: Tensor, prior: dist.TorchDistribution) -> dist.TorchDistribution:
        code = nn.functional.pad(code, (0, 0, u.shape[-2] - code.shape[-2], 0)).expand_as(u)
        shift, _ = self.head(torch.cat((u, code), -1))
        return dist.Normal(prior.base_dist.loc + shift, prior.base_dist.scale).to_event(2)
