"""The blocks of Appendix B.1: post-RMSNorm, rotary attention, SwiGLU, and SwiGLU over positions.

All take and return ``[..., L, D]`` for any leading shape, on any device; the CPU has shorter ways of its own
(``networks.fused``).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.compiler import is_compiling

from pyro_gram.checks import check_choice
from pyro_gram.errors import ConfigError
from pyro_gram.networks.fused import MAX_POSITIONS, FusedResidualNorm, FusedRotaryAttention, on_cpu

MIXERS = ("attention", "swiglu")
SCALE_FLOOR = 1e-3  # the least sigma: keeps log sigma and the KL finite in float32


def init_linear_(linear: nn.Linear) -> nn.Linear:
    """Truncated normal with variance 1/fan_in, as TRM and HRM initialise; zero bias. Returns its argument."""
    nn.init.trunc_normal_(linear.weight, std=linear.in_features**-0.5)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
    return linear


class RMSNorm(nn.Module):
    """Root-mean-square normalisation over the last dimension, without a gain (as in TRM).

    Of ``x``, or of ``x + branch``: a block's residual.
    """

    def forward(self, x: Tensor, branch: Tensor | None = None) -> Tensor:
        if branch is not None and on_cpu(x, branch):
            return FusedResidualNorm.apply(x, branch)
        return F.rms_norm(x if branch is None else x + branch, x.shape[-1:])


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

    turn: Tensor
    order: Tensor
    scale: Tensor
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
        angle = angle[:, None, None] * torch.tensor([1.0, 1.0, 0.0])[:, None, None]  # values are not turned
        turn = torch.stack((angle.cos(), angle.sin()), dim=-1).expand(-1, -1, heads, -1, -1).contiguous()
        self.register_buffer("turn", turn, persistent=False)  # [L, 3, heads, size / 2, 2]
        # Channel i of a query or key turns with channel i + size / 2: brought side by side, which costs less among the
        # weights than among the activations, the two are one complex number.
        order = torch.arange(3 * width).view(3, heads, size)
        order[:2] = order[:2].unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)
        self.register_buffer("order", order.flatten(), persistent=False)
        scale = torch.tensor([size**-0.5, 1.0, 1.0]).view(3, 1, 1, 1)  # of queries, keys and values
        self.register_buffer("scale", scale, persistent=False)
        position = torch.arange(length)
        seen = None if prefix is None else (position < prefix) | (position <= position[:, None])  # [query, key]
        self.register_buffer("seen", seen, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        *batch, L, D = x.shape
        weight = self.qkv.weight.index_select(0, self.order)
        qkv = F.linear(x, weight).view(math.prod(batch), L, 3, self.heads, D // self.heads // 2, 2)
        turn = self.turn[:L]
        if self.seen is None and L <= MAX_POSITIONS and on_cpu(qkv, turn):
            scaled = torch.view_as_complex(turn * self.scale)
            return self.out(FusedRotaryAttention.apply(torch.view_as_complex(qkv), scaled).view(*batch, L, D))
        q, k, v = rotate(qkv, turn).flatten(-2).permute(2, 0, 3, 1, 4).unbind()  # [B, H, L, size] each
        mask = None if self.seen is None else self.seen[:L, :L]
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(attended.transpose(1, 2).reshape(*batch, L, D))


def rotate(pairs: Tensor, turn: Tensor) -> Tensor:
    """Pairs of channels ``[..., 2]``, each turned by an angle, whose cosine and sine ``turn`` holds."""
    exact = pairs.dtype == turn.dtype and pairs.dtype in (torch.float32, torch.float64)
    if exact and pairs.device.type in ("cpu", "cuda") and not is_compiling():
        return torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(turn))
    a, b = pairs.unbind(-1)  # half precision has no complex numbers, and compilers fuse what they can see
    cos, sin = turn.to(pairs.dtype).unbind(-1)
    return torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1)


class Block(nn.Module):
    """One layer: mix positions, then channels, each with a residual and post-RMSNorm."""

    def __init__(self, mixer: nn.Module, width: int, hidden: int) -> None:
        super().__init__()
        self.mixer = mixer
        self.channels = SwiGLU(width, hidden)
        self.norm = RMSNorm()

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x, self.mixer(x))
        return self.norm(x, self.channels(x))


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


class GaussianHead(nn.Module):
    """A SwiGLU MLP per position onto the mean and scale of a diagonal Gaussian over ``[L, D]`` (Appendix B.1).

    The last layer starts at zero, so that every site begins as N(0, initial_scale^2), under prior and guide alike:
    the KL starts at 0 and grows only where the guide has something to say.

    Shapes: ``[..., L, width] -> (loc, scale)``, each ``[..., L, out]``, scale > 0; without ``mean`` or without
    ``scale`` only the other.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        out: int,
        initial_scale: float = 0.1,
        *,
        mean: bool = True,
        scale: bool = True,
    ) -> None:
        super().__init__()
        self.mean, self.scale = mean, scale
        self.mlp = SwiGLU(width, hidden, (mean + scale) * out)
        nn.init.zeros_(self.mlp.down.weight)
        self.shift = math.log(math.expm1(initial_scale - SCALE_FLOOR))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        *loc, raw = self.mlp(x).chunk(self.mean + self.scale, dim=-1)
        return (*loc, F.softplus(raw + self.shift) + SCALE_FLOOR if self.scale else raw)


class CodeHead(nn.Module):
    """A SwiGLU MLP per position onto logits of categorical codes, all equal before training.

    Shapes: ``[..., L, width] -> ([..., L, groups, classes],)``.
    """

    def __init__(self, width: int, hidden: int, groups: int, classes: int) -> None:
        super().__init__()
        self.shape = (groups, classes)
        self.mlp = SwiGLU(width, hidden, groups * classes)
        nn.init.zeros_(self.mlp.down.weight)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.mlp(x).unflatten(-1, self.shape),)
