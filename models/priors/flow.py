"""A conditional normalizing flow, made of Pyro's transforms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.transforms import ConditionalAffineCoupling, Permute
from torch import Tensor, nn, randperm

from pyro_gram.checks import AT_LEAST_1, check_range
from pyro_gram.networks.core import GaussianHead
from pyro_gram.registry import PRIORS

from .gaussian import GaussianPriorConfig


@dataclass(frozen=True)
class FlowPriorConfig(GaussianPriorConfig):
    """Sizes of the flow.

    Attributes:
        couplings: affine couplings (RealNVP); a fixed permutation of channels lies between successive couplings.
    """

    couplings: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, couplings=AT_LEAST_1)


@PRIORS.register("flow")
class FlowPrior(nn.Module):
    """A Gaussian at each position, transformed by affine couplings between channels.

    The couplings depend on u. Before training they are the identity.
    """

    Config = FlowPriorConfig

    def __init__(self, config: FlowPriorConfig, width: int) -> None:
        super().__init__()
        self.head = GaussianHead(width, config.hidden, width, config.initial_scale)
        self.couplings = nn.ModuleList(_coupling(width, config.hidden) for _ in range(config.couplings))
        for k in range(config.couplings - 1):
            self.register_buffer(f"order{k}", randperm(width))

    def forward(self, u: Tensor) -> dist.TorchDistribution:
        transforms: list[Any] = []
        coupling: Any
        for k, coupling in enumerate(self.couplings):
            if k:
                transforms.append(Permute(getattr(self, f"order{k - 1}"), dim=-1))
            transforms.append(coupling.condition(u))
        base = dist.Normal(*self.head(u)).to_event(1)
        return dist.TransformedDistribution(base, transforms).to_event(1)


class CouplingNetwork(nn.Module):
    """Compute shift and log scale of a coupling, ``[..., D - half]`` each, from u and the unchanged channels.

    Pyro's ``ConditionalDenseNN`` does the same, but cannot be built on torch's meta device.
    """

    def __init__(self, half: int, width: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(half + width, hidden), nn.Linear(hidden, 2 * (width - half))])

    def forward(self, x: Tensor, context: Tensor) -> tuple[Tensor, ...]:
        context = context.expand(*x.shape[:-1], context.shape[-1])
        hidden = self.layers[0](torch.cat((context, x), -1)).relu()
        return self.layers[1](hidden).chunk(2, -1)


def _coupling(width: int, hidden: int) -> ConditionalAffineCoupling:
    half = width // 2
    network = CouplingNetwork(half, width, hidden)
    for parameter in network.layers[-1].parameters():
        nn.init.zeros_(parameter)
    return ConditionalAffineCoupling(half, network)
