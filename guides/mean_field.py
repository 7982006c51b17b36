"""Free parameters for each datum: what a guide can reach that need not generalise (the amortization gap)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_gram.checks import AT_LEAST_0, AT_LEAST_1, check_range
from pyro_gram.errors import ConfigError
from pyro_gram.inference.contract import GuideTraits, family_of, model_sizes, prior_traits
from pyro_gram.inference.families import NormalFamily
from pyro_gram.inference.guide import EffectGuide
from pyro_gram.registry import GUIDES
from pyro_gram.spec import TaskSpec

ROUTE = 0x5DEECE66D  # of the multipliers that name a datum


@dataclass(frozen=True)
class MeanFieldGuideConfig:
    """Room for parameters: two floats a pair, transition, position and channel, all of them touched by every update.

    Attributes:
        num_pairs: pairs (x, y) that have parameters of their own.
        transitions: of a program, at least T; those after them follow the prior. 0 for what a supervision step charges
            (Eq. 14): its T transitions, or the last where it is truncated, those before it following the prior. All
            supervision steps then share their parameters.
        initial_scale: sigma of every channel before training.
    """

    num_pairs: int = 4096
    transitions: int = 0
    initial_scale: float = 0.1

    def __post_init__(self) -> None:
        check_range(self, num_pairs=AT_LEAST_1, transitions=AT_LEAST_0, initial_scale=(0.01, 10))


@GUIDES.register("mean_field")
class MeanFieldGuide(EffectGuide):
    """A diagonal Gaussian with a mean and a scale of its own for each pair (x, y), transition, position and channel.

    A pair is known by a 64-bit key of its tokens and takes the next free row when it is first seen in training. Pairs
    that were never trained are answered as all are before training, N(0, initial_scale^2). Arguments as for the
    amortized guide.

    Raises:
        ConfigError: a prior that is not answered by Gaussians; more pairs than ``data``.
    """

    Config = MeanFieldGuideConfig
    traits = GuideTraits(is_amortized=False, default_settings={"train": {"augment": False}})
    keys: Tensor
    used: Tensor

    def __init__(self, config: MeanFieldGuideConfig, spec: TaskSpec, model: Any, width: int) -> None:
        super().__init__(model)
        if type(family_of(model)) is not NormalFamily:
            raise ConfigError("guide 'mean_field' answers with Gaussians, which this prior is not answered by")
        sizes = model_sizes(model.config)
        T = sizes.transitions
        if 0 < config.transitions < T:
            raise ConfigError(f"guide.transitions = {config.transitions} is less than the {T} of a supervision step")
        self.guided_transitions = config.transitions or T
        self.first = T - 1 if sizes.truncated and not config.transitions else 0
        if self.first and not prior_traits(model.prior).has_rsample:
            raise ConfigError(
                "guide 'mean_field' follows the prior at transitions that are not charged, and this one has draws "
                "without gradient: set model.truncated to false"
            )
        self.scale = config.initial_scale
        length = sizes.prefix + spec.input_length
        shape = (config.num_pairs, self.guided_transitions - self.first, length, width)
        self.loc, self.log_scale = nn.Parameter(torch.zeros(shape)), nn.Parameter(torch.zeros(shape))
        self.register_buffer("keys", torch.zeros(config.num_pairs, dtype=torch.long))
        self.register_buffer("used", torch.zeros((), dtype=torch.long))

    def encode(self, x: Tensor | None, y: Tensor) -> Tensor:
        """The row of each pair, int64 ``[..., B]``; -1 for a pair without one."""
        key = _key(y, 0) if x is None else _key(y, 0) + _key(x.flatten(y.ndim - 1), y.shape[-1])
        rows = self._rows(key)
        if self.training and (rows < 0).any():
            new = key[rows < 0].unique()
            first, last = int(self.used), int(self.used) + len(new)
            if last > len(self.keys):
                raise ConfigError(
                    f"more than {len(self.keys)} pairs (x, y), each with parameters of its own: raise "
                    "guide.num_pairs, or train on fewer"
                )
            self.keys[first:last] = new
            self.used.fill_(last)
            rows = self._rows(key)
        return rows

    def _rows(self, key: Tensor) -> Tensor:
        if not self.used:
            return torch.full_like(key, -1)
        hit, row = (key[..., None] == self.keys[: self.used]).max(-1)
        return torch.where(hit, row, -1)

    def posterior_at(self, t: int, u: Tensor, code: Any, prior: dist.TorchDistribution) -> dist.TorchDistribution:
        if not self.first <= t < self.guided_transitions:
            return prior
        t -= self.first
        known, row = (code >= 0)[..., None, None], code.clamp(min=0)
        loc, log_scale = self.loc[row, t] * known, self.log_scale[row, t] * known
        return dist.Normal(loc.expand_as(u), (self.scale * log_scale.exp()).expand_as(u)).to_event(2)

    def posterior(self, u: Tensor, code: Any, prior: dist.TorchDistribution) -> dist.TorchDistribution:
        return self.posterior_at(self.first, u, code, prior)


def _key(tokens: Tensor, offset: int) -> Tensor:
    """A 64-bit name of rows of tokens, ``[..., n] -> [...]``: a sum of products that wraps around."""
    generator = torch.Generator().manual_seed(ROUTE)
    factors = torch.randint(-(2**63), 2**63 - 1, (offset + tokens.shape[-1],), generator=generator)[offset:]
    return ((tokens.long() + 1) * factors.to(tokens.device)).sum(-1)
