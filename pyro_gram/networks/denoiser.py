"""The network of the diffusion baselines. It predicts the clean answer from a corrupted one."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from pyro_gram.networks.core import init_linear_


class Denoiser(nn.Module):
    """Apply layers to the sum of e_x, the embedded corrupted answer and, if ``uses_time``, the embedded time.

    Shapes: e_x ``[..., L, D]``, tokens int64 ``[..., L_out]``, time ``[...]`` in [0, 1]. The result is logits
    ``[..., L_out, classes]``.

    Args:
        answer: network from tokens to their embedding ``[..., L', D]``, for the last L' positions.
        layers: network ``[..., L, D] -> [..., L, D]``, called with the bias on its attention scores.
        decoder: network from ``[..., L, D]`` to logits.
        width: D.
        uses_time: whether the time is embedded.
    """

    def __init__(self, answer: nn.Module, layers: nn.Module, decoder: nn.Module, width: int, uses_time: bool) -> None:
        super().__init__()
        self.answer, self.layers, self.decoder = answer, layers, decoder
        self.time = init_linear_(nn.Linear(width, width)) if uses_time else None

    def forward(self, e_x: Tensor, tokens: Tensor, time: Tensor, bias: Tensor | None = None) -> Tensor:
        e_y = self.answer(tokens)
        s = e_x + pad(e_y, (0, 0, e_x.shape[-2] - e_y.shape[-2], 0))
        if self.time is not None:
            s = s + self.time(sinusoidal_embedding(time, s.shape[-1]))[..., None, :]
        return self.decoder(self.layers(s, bias))


def sinusoidal_embedding(time: Tensor, width: int) -> Tensor:
    """Embed times in [0, 1] by sines and cosines, ``[...] -> [..., width]`` (``width`` even)."""
    rates = torch.exp(torch.arange(width // 2, device=time.device) * (-math.log(1e4) / (width // 2)))
    angle = 1000 * time[..., None] * rates
    return torch.cat((angle.sin(), angle.cos()), dim=-1)
