"""A guide with free parameters for each datum. The amortization gap of other guides is measured against it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from pyro_gram.checks import AT_LEAST_0, AT_LEAST_1, check_range
from pyro_gram.errors import ConfigError
from pyro_gram.inference.contract import GuideTraits, family_of, model_sizes, prior_traits
from pyro_gram.inference.families import NormalFamily
from pyro_gram.inference.guide import EffectGuide
from pyro_gram.registry import GUIDES
from pyro_gram.spec import TaskSpec

KEY_SEED = 0x5DEECE66D  # seed of the multipliers in the key of a datum


@dataclass(frozen=True)
class MeanFieldGuideConfig:
    """Sizes. Each pair, transition, position and channel has two parameters. Each update processes all parameters.

    Attributes:
        num_pairs: pairs (x, y) that have parameters of their own.
        transitions: number of transitions with parameters, at least T; later transitions follow the prior. With 0, only
            the transitions with a KL have parameters (the last of a supervision step if truncated, else all T), and all
            supervision steps share them.
        initial_scale: sigma of every channel before training.
    """

    num_pairs: int = 4096
    transitions: int = 0
    initial_scale: float = 0.1

    def __post_init__(self) -> None:
        check_range(self, num_pairs=AT_LEAST_1, transitions=AT_LEAST_0, initial_scale=(0.01, 10))


@GUIDES.register("mean_field")
class MeanFieldGuide(EffectGuide):
    """A diagonal Gaussian with free parameters for each pair (x, y), transition, position and channel.

    A pair has a 64-bit key, made of its tokens, and takes the next free row of parameters when training first meets it.
    A pair without parameters has the posterior N(0, initial_scale^2), as before training. The arguments are those of
    the amortized guide.

    Raises:
        ConfigError: guides for this prior are not Gaussian; boards of queens have several sizes; or there are more
            pairs than ``num_pairs``.
    """

    Config = MeanFieldGuideConfig
    traits = GuideTraits(is_amortized=False, default_settings={"train": {"augment": False}})
    keys: Tensor
    used: Tensor

    def __init__(self, config: MeanFieldGuideConfig, spec: TaskSpec, model: Any, width: int) -> None:
        super().__init__(model)
        if type(family_of(model)) is not NormalFamily:
            raise ConfigError(
                "guide 'mean_field' is Gaussian, and guides for this prior are not: use --guide amortized"
            )
        if spec.has_value_positions and spec.padding is not None:
            raise ConfigError(
                "guide 'mean_field' needs boards of one size: give the task one size, or use --guide amortized"
            )
        self.spec = spec
        sizes = model_sizes(model.config)
        T = sizes.transitions
        if 0 < config.transitions < T:
            raise ConfigError(f"guide.transitions = {config.transitions} is less than the {T} of a supervision step")
        self.guided_transitions = config.transitions or T
        self.first = T - 1 if sizes.truncated and not config.transitions else 0
        if self.first and not prior_traits(model.prior).has_rsample:
            raise ConfigError(
                "guide 'mean_field' follows the prior at transitions without a KL, and this prior has draws without "
                "gradient: set model.truncated to false"
            )
        self.scale = config.initial_scale
        length = sizes.prefix + spec.positions
        shape = (config.num_pairs, self.guided_transitions - self.first, length, width)
        self.loc, self.log_scale = nn.Parameter(torch.zeros(shape)), nn.Parameter(torch.zeros(shape))
        self.register_buffer("keys", torch.zeros(config.num_pairs, dtype=torch.long))
        self.register_buffer("used", torch.zeros((), dtype=torch.long))

    def encode(self, x: Tensor | None, y: Tensor) -> Tensor:
        """Return the index of each pair's row of parameters, int64 ``[..., B]``; -1 for a pair without parameters."""
        if x is not None and self.spec.padding is not None:  # a pair has the same row whatever its batch pads
            x, y = self.spec.pad(x, self.spec.input_length), pad(y, (0, self.spec.output_length - y.shape[-1]))
        key = _key(y, 0) if x is None else _key(y, 0) + _key(x.flatten(y.ndim - 1), y.shape[-1])
        rows = self._rows(key)
        if self.training and (rows < 0).any():
            new_keys = key[rows < 0].unique()
            first, last = int(self.used), int(self.used) + len(new_keys)
            if last > len(self.keys):
                raise ConfigError(
                    f"more than {len(self.keys)} pairs (x, y), each with parameters of its own: raise "
                    "guide.num_pairs, or train on fewer"
                )
            self.keys[first:last] = new_keys
            self.used.fill_(last)
            rows = self._rows(key)
        return rows

    def _rows(self, key: Tensor) -> Tensor:
        if not self.used:
            return torch.full_like(key, -1)
        has_row, row = (key[..., None] == self.keys[: self.used]).max(-1)
        return torch.where(has_row, row, -1)

    def posterior_at(self, t: int, u: Tensor, code: Any, prior: dist.TorchDistribution) -> dist.TorchDistribution:
        if not self.first <= t < self.guided_transitions:
            return prior
        t -= self.first
        has_row, row = (code >= 0)[..., None, None], code.clamp(min=0)
        length = u.shape[-2]
        loc, log_scale = (p[row, t, :length] * has_row for p in (self.loc, self.log_scale))
        return dist.Normal(loc.expand_as(u), (self.scale * log_scale.exp()).expand_as(u)).to_event(2)

    def posterior(self, u: Tensor, code: Any, prior: dist.TorchDistribution) -> dist.TorchDistribution:
        return self.posterior_at(self.first, u, code, prior)


def _key(tokens: Tensor, offset: int) -> Tensor:
    """Compute a 64-bit key of tokens, ``[..., n] -> [...]``: a sum of products modulo 2^64."""
    generator = torch.Generator().manual_seed(KEY_SEED)
    factors = torch.randint(-(2**63), 2**63 - 1, (offset + tokens.shape[-1],), generator=generator)[offset:]
    return ((tokens.long() + 1) * factors.to(tokens.device)).sum(-1)
