"""The running average of the weights, with which a run is evaluated."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel


def pair(model: nn.Module, guide: nn.Module) -> nn.ModuleDict:
    """Return model and guide as one module, so that copies and averages keep the guide attached to its model."""
    return nn.ModuleDict({"model": model, "guide": guide})


def make_average(model: nn.Module, guide: nn.Module, decay: float) -> AveragedModel:
    """Return an exponential moving average of the weights of model and guide.

    After n updates its decay is min(``decay``, (1 + n) / (10 + n)): the average of a short run must not be its start.
    """

    @torch.no_grad()
    def move_average(averages: Any, weights: Any, count: Any) -> None:
        n = float(count)
        torch._foreach_lerp_(averages, weights, 1 - min(decay, (1 + n) / (10 + n)))

    return AveragedModel(pair(model, guide), multi_avg_fn=move_average)
