"""The blocks of Appendix B.1: post-RMSNorm, rotary attention, SwiGLU, and SwiGLU over positions.

All take and return ``[..., L, D]`` for any leading shape, and use no operation that needs a particular device.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_gram.checks import check_choice
from pyro_gram.errors import ConfigError

MIXERS = ("attention", "swiglu")


def init_linear_(linear: nn.Linear) -> nn.Linear:
    """Truncated normal with variance 1/fan_in, as TRM and HRM initialise; zero bias. Returns its argument."""
    nn.init.trunc_normal_(linear.weight, std=linear.in_features**-0.5)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
    return linear


class RMSNorm(nn.Module):
    """Root-mean-square normalisation over the last dimension, without a gain (as in TRM)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:])


class SwiGLU(nn.Module):
    """``down(silu(gate(x)) * up(x))`` over the last dimension.

    Shapes: ``[..., width] -> [..., out]``.
    """

    def __init__(self, width: int, hidden: int, out: int | None = None) -> None:
        super().__init__()
        self.gate_up = init_linear_(nn.Linear(width, 2 * hidden, bias=False))
        self.down = init_linear_(nn.Linear(hidden, out or width, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class PositionSwiGLU(nn.Module):
    """SwiGLU over the positions: mixes along L, shared by all channels (the Sudoku core). ``[..., L, D]`` both ways."""

    def __init__(self, length: int, hidden: int) -> None:
        super().__init__()
        self.mix = SwiGLU(length, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x.transpose(-1, -2)).transpose(-1, -2)


class RotaryAttention(nn.Module):
    """Multi-head self-attention, with rotary positions on queries and keys.

    Args:
        length: the largest L; the tables of sines are made once for it.
        width: D, a multiple of ``2 * heads``.
        heads: number of heads.
        base: the rotary base.
        prefix: None for attention in both directions. Otherwise the first ``prefix`` positions see each other, and all
            further ones these and what stands before them (a prefix language model).
    """

    cos: Tensor
    sin: Tensor
    seen: Tensor | None

    def __init__(self, length: int, width: int, heads: int, base: float = 10_000.0, prefix: int | None = None) -> None:
        super().__init__()
        if width % (2 * heads):
            raise ConfigError(f"width {width} must be a multiple of 2 * heads = {2 * heads}")
        self.heads = heads
        self.qkv = init_linear_(nn.Linear(width, 3 * width, bias=False))
        self.out = init_linear_(nn.Linear(width, width, bias=False))
        size = width // heads
        angle = torch.outer(torch.arange(length).float(), base ** (-torch.arange(0, size, 2).float() / size))
        self.register_buffer("cos", angle.cos().repeat(1, 2), persistent=False)  # [L, size]
        self.register_buffer("sin", angle.sin().repeat(1, 2), persistent=False)
        position = torch.arange(length)
        seen = None if prefix is None else (position < prefix) | (position <= position[:, None])  # [query, key]
        self.register_buffer("seen", seen, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        *batch, L, D = x.shape
        qkv = self.qkv(x).view(-1, L, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)  # [3, B, H, L, size]
        q, k = self._rotate(qkv[:2])
        mask = None if self.seen is None else self.seen[:L, :L]
        attended = F.scaled_dot_product_attention(q, k, qkv[2], attn_mask=mask)  # [B, H, L, size]
        return self.out(attended.transpose(1, 2).reshape(*batch, L, D))

    def _rotate(self, qk: Tensor) -> Tensor:
        L, half = qk.shape[-2], qk.shape[-1] // 2
        turned = torch.cat((-qk[..., half:], qk[..., :half]), dim=-1)
        return qk * self.cos[:L] + turned * self.sin[:L]


class Block(nn.Module):
    """One layer: mix positions, then channels, each with a residual and post-RMSNorm."""

    def __init__(self, mixer: nn.Module, width: int, hidden: int) -> None:
        super().__init__()
        self.mixer = mixer
        self.channels = SwiGLU(width, hidden)
        self.norm = RMSNorm()

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x + self.mixer(x))
        return self.norm(x + self.channels(x))


def make_stack(
    mixer: str, layers: int, length: int, width: int, heads: int, hidden: int, prefix: int | None = None
) -> nn.Sequential:
    """``layers`` blocks, their positions mixed by ``"attention"`` or ``"swiglu"``.

    Args:
        prefix: as for :class:`RotaryAttention`; attention alone can see in one direction.

    Raises:
        ConfigError: another ``mixer``.
    """
    check_choice("mixer", mixer, MIXERS)

    def one() -> nn.Module:
        if mixer == "attention":
            return RotaryAttention(length, width, heads, prefix=prefix)
        return PositionSwiGLU(length, hidden)

    return nn.Sequential(*(Block(one(), width, hidden) for _ in range(layers)))


def make_embedding(count: int, width: int) -> nn.Embedding:
    """An embedding of unit variance: std 1/sqrt(D), to be scaled by sqrt(D) in use, as Appendix B.1 does."""
    embedding = nn.Embedding(count, width)
    nn.init.trunc_normal_(embedding.weight, std=1 / math.sqrt(width))
    return embedding
