"""The recursive core, and the layers of Appendix B.1 that it is made of.

The layers are post-RMSNorm, rotary attention, SwiGLU, SwiGLU over positions, and heads that compute the parameters
of distributions. All take ``[..., L, D]`` with any leading shape, on any device; all but the heads return the same
shape. ``networks.fused`` has faster forms for CPUs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.compiler import is_compiling

from pyro_gram.checks import AT_LEAST_1, check_choice, check_range
from pyro_gram.errors import ConfigError
from pyro_gram.networks.fused import MAX_POSITIONS, FusedResidualNorm, FusedRotaryAttention, can_fuse

MIXERS = ("attention", "swiglu", "relations", "relation_terms")
MAX_RELATIONS = 8  # the most relations of a task, for learned terms
SCALE_FLOOR = 1e-3  # the least sigma; it keeps log sigma and the KL finite in float32


class LatentState(NamedTuple):
    """The latent state z = (h, l): a high-level and a low-level part, ``[..., L, D]`` each."""

    h: Tensor
    l: Tensor

    def detach(self) -> LatentState:
        """Return the state without its autograd graph. The next supervision step starts from the detached state."""
        return LatentState(self.h.detach(), self.l.detach())


@dataclass(frozen=True)
class CoreConfig:
    """Sizes of the core (Appendix B.1).

    Attributes:
        width: D, channels at each position.
        heads: attention heads of each layer.
        hidden: width of each layer's SwiGLU.
        layers: layers of f_L, and of f_H.
        mixer: how positions are mixed: ``attention`` (with rotary positions), ``swiglu`` (over positions; for Sudoku),
            ``relations``: attention without positions, in which each head sees one relation of the task; or
            ``relation_terms``: the same, but all heads see all positions, and add a learned term for each relation to
            their scores. Only the last two work for inputs of several sizes.
        low_steps: K, applications of f_L in a transition.
    """

    width: int = 512
    heads: int = 8
    hidden: int = 512
    layers: int = 2
    mixer: str = "attention"
    low_steps: int = 4

    def __post_init__(self) -> None:
        check_range(self, **dict.fromkeys(("width", "heads", "hidden", "layers", "low_steps"), AT_LEAST_1))
        check_choice("mixer", self.mixer, MIXERS)


class RecursiveCore(nn.Module):
    """Update the low level K times, then compute the proposal u for the high level.

    ``l_{t,k} = f_L(l_{t,k-1} + h_{t-1} + e_x)`` for k = 1..K (Eq. 6), ``u_t = f_H(h_{t-1} + l_t)`` (Eq. 7).
    """

    def __init__(self, config: CoreConfig, length: int) -> None:
        super().__init__()
        sizes = (config.mixer, config.layers, length, config.width, config.heads, config.hidden)
        self.low_steps = config.low_steps
        self.f_L = make_stack(*sizes)
        self.f_H = make_stack(*sizes)

    def forward(self, state: LatentState, e_x: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return ``(u_t, l_t)``. All tensors but ``bias`` are ``[..., L, D]``.

        Args:
            bias: what attention adds to its scores, ``[..., heads, L, L]`` (``Structure.attention_bias``).
        """
        h, l = state
        injection = h + e_x
        for _ in range(self.low_steps):
            l = self.f_L(l + injection, bias)
        return self.f_H(h + l, bias), l


def init_linear_(linear: nn.Linear) -> nn.Linear:
    """Draw weights from a truncated normal of variance 1/fan_in, as TRM and HRM do; return the layer."""
    nn.init.trunc_normal_(linear.weight, std=linear.in_features**-0.5)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
    return linear


class RMSNorm(nn.Module):
    """Root-mean-square normalisation of ``x``, or of ``x + branch``, over the last dimension; no gain (as in TRM)."""

    def forward(self, x: Tensor, branch: Tensor | None = None) -> Tensor:
        if branch is not None and can_fuse(x, branch):
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
    """SwiGLU over positions, shared by all channels (the paper's core for Sudoku). ``[..., L, D] -> [..., L, D]``."""

    def __init__(self, length: int, hidden: int) -> None:
        super().__init__()
        self.mix = SwiGLU(length, hidden)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return self.mix(x.transpose(-1, -2)).transpose(-1, -2)


class RotaryAttention(nn.Module):
    """Multi-head self-attention, with rotary positions on queries and keys.

    Args:
        length: the largest L. The table of rotations is computed once for this length. With 0 nothing is rotated:
            positions differ only by their content and by the bias on the attention scores.
        width: D, a multiple of ``2 * heads``.
        heads: number of heads.
        base: the rotary base.
        prefix: None for attention in both directions. A number makes a prefix language model: the first ``prefix``
            positions attend to each other, and each later position attends to itself and all positions before it.
    """

    rotation: Tensor
    order: Tensor
    scale: Tensor
    mask: Tensor | None

    is_fused = True  # on the CPU a fused form may be used, which has no gradient for the bias

    def __init__(self, length: int, width: int, heads: int, base: float = 10_000.0, prefix: int | None = None) -> None:
        super().__init__()
        if width % (2 * heads):
            raise ConfigError(f"width {width} must be a multiple of 2 * heads = {2 * heads}")
        self.heads, self.is_rotated = heads, length > 0
        self.qkv = init_linear_(nn.Linear(width, 3 * width, bias=False))
        self.out = init_linear_(nn.Linear(width, width, bias=False))
        size = width // heads
        angle = torch.outer(torch.arange(max(1, length)).float(), base ** (-torch.arange(0, size, 2).float() / size))
        angle = angle[:, None, None] * torch.tensor([1.0, 1.0, 0.0])[:, None, None]  # values are not rotated
        rotation = torch.stack((angle.cos(), angle.sin()), dim=-1).expand(-1, -1, heads, -1, -1).contiguous()
        self.register_buffer("rotation", rotation, persistent=False)  # [L, 3, heads, size / 2, 2]
        # Channel i of a query or key rotates with channel i + size / 2. The weights are reordered so that the two
        # lie side by side, as one complex number; this is cheaper than to reorder the activations.
        order = torch.arange(3 * width).view(3, heads, size)
        order[:2] = order[:2].unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)
        self.register_buffer("order", order.flatten(), persistent=False)
        scale = torch.tensor([size**-0.5, 1.0, 1.0]).view(3, 1, 1, 1)  # the scales of queries, keys and values
        self.register_buffer("scale", scale, persistent=False)
        position = torch.arange(length)
        mask = None if prefix is None else (position < prefix) | (position <= position[:, None])  # [query, key]
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Attend. ``bias`` is added to the scores, ``[..., heads, L, L]``, its batch dimensions broadcast to x."""
        *batch, L, D = x.shape
        weight = self.qkv.weight.index_select(0, self.order)
        qkv = F.linear(x, weight).view(math.prod(batch), L, 3, self.heads, D // self.heads // 2, 2)
        rotation = self.rotation[:L]
        bias = None if bias is None else bias.expand(*batch, self.heads, L, L)
        if self.is_fused and self.mask is None and L <= MAX_POSITIONS and can_fuse(qkv, rotation):
            scaled_rotation = torch.view_as_complex(rotation * self.scale)
            pairs = torch.view_as_complex(qkv.to(rotation.dtype))
            values = FusedRotaryAttention.apply(pairs, scaled_rotation, bias)
            return self.out(values.view(*batch, L, D))
        qkv = rotate(qkv, rotation) if self.is_rotated else qkv
        q, k, v = qkv.flatten(-2).permute(2, 0, 3, 1, 4).unbind()  # [B, H, L, size] each
        mask = None if self.mask is None else self.mask[:L, :L]
        if bias is not None:
            bias = bias.reshape(-1, self.heads, L, L).to(q.dtype)
            mask = bias if mask is None else bias.masked_fill(~mask, -torch.inf)
        is_compiled_for_cpu = is_compiling() and x.device.type == "cpu" and L <= MAX_POSITIONS
        attend = attention_of_few if is_compiled_for_cpu else F.scaled_dot_product_attention
        attention = attend(q, k, v, attn_mask=mask)
        return self.out(attention.transpose(1, 2).reshape(*batch, L, D))


class TermAttention(RotaryAttention):
    """Attention in which each head adds a learned term for each relation to its scores.

    The terms start at 0, so that at first no relation matters.
    """

    is_fused = False

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(0, width, heads)
        self.terms = nn.Parameter(torch.zeros(heads, MAX_RELATIONS))

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Attend. ``bias`` is 0 or 1 in each relation, and -inf at padding, ``[..., R, L, L]``."""
        assert bias is not None
        bias = bias.to(self.terms.dtype)
        terms = torch.einsum("hr,...rij->...hij", self.terms[:, : bias.shape[-3]], bias.clamp(min=0))
        return super().forward(x, terms + bias.amax(-3, keepdim=True).clamp(max=0))


def attention_of_few(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None) -> Tensor:
    """Compute ``F.scaled_dot_product_attention`` by operations that a compiler fuses; the softmax is in float32.

    For few positions this is faster on a CPU than torch's kernel, whose backward pass is slow with a mask.
    """
    scores = (q @ k.transpose(-1, -2)).float() * q.shape[-1] ** -0.5
    weights = (scores if attn_mask is None else scores + attn_mask).softmax(-1)
    return weights.to(v.dtype) @ v


def rotate(pairs: Tensor, rotation: Tensor) -> Tensor:
    """Rotate pairs of channels ``[..., 2]`` by angles whose cosine and sine are ``rotation`` ``[..., 2]``."""
    is_exact = pairs.dtype == rotation.dtype and pairs.dtype in (torch.float32, torch.float64)
    if is_exact and pairs.device.type in ("cpu", "cuda") and not is_compiling():
        return torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(rotation))
    a, b = pairs.unbind(-1)  # half precision has no complex type, and compilers fuse real operations
    cos, sin = rotation.to(pairs.dtype).unbind(-1)
    return torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1)


class Block(nn.Module):
    """One layer: mix positions, then channels, each with a residual connection and post-RMSNorm."""

    def __init__(self, mixer: nn.Module, width: int, hidden: int) -> None:
        super().__init__()
        self.mixer = mixer
        self.channels = SwiGLU(width, hidden)
        self.norm = RMSNorm()

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        x = self.norm(x, self.mixer(x, bias))
        return self.norm(x, self.channels(x))


class Stack(nn.Sequential):
    """Blocks, applied one after the other; all get the same bias on their attention scores."""

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        for block in self:
            x = block(x, bias)
        return x


def make_stack(
    mixer: str, layers: int, length: int, width: int, heads: int, hidden: int, prefix: int | None = None
) -> Stack:
    """Make ``layers`` blocks that mix positions in one of the ways of :attr:`CoreConfig.mixer`.

    Args:
        prefix: as for :class:`RotaryAttention`; only for ``"attention"``.

    Raises:
        ConfigError: ``mixer`` is not one of these.
    """
    check_choice("mixer", mixer, MIXERS)

    def make_mixer() -> nn.Module:
        if mixer == "swiglu":
            return PositionSwiGLU(length, hidden)
        if mixer == "relation_terms":
            return TermAttention(width, heads)
        return RotaryAttention(0 if mixer == "relations" else length, width, heads, prefix=prefix)

    return Stack(*(Block(make_mixer(), width, hidden) for _ in range(layers)))


def make_embedding(count: int, width: int) -> nn.Embedding:
    """Make an embedding with std 1/sqrt(D). Its callers scale the output by sqrt(D), to unit variance (App. B.1)."""
    embedding = nn.Embedding(count, width)
    nn.init.trunc_normal_(embedding.weight, std=1 / math.sqrt(width))
    return embedding


class GaussianHead(nn.Module):
    """Compute mean and scale of a diagonal Gaussian over ``[L, D]`` by a SwiGLU at each position (Appendix B.1).

    The last layer starts at zero, so that prior and guide start as N(0, initial_scale^2), and the KL starts at 0.

    Shapes: ``[..., L, width] -> (loc, scale)``, each ``[..., L, out]``, scale > 0; ``mean=False`` or
    ``scale=False`` leaves out one of the two.
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
        *loc, raw_output = self.mlp(x).chunk(self.mean + self.scale, dim=-1)
        return (*loc, F.softplus(raw_output + self.shift) + SCALE_FLOOR if self.scale else raw_output)


class CodeHead(nn.Module):
    """Compute logits of categorical codes by a SwiGLU at each position. Before training all logits are 0.

    Shapes: ``[..., L, width] -> ([..., L, groups, classes],)``.
    """

    def __init__(self, width: int, hidden: int, groups: int, classes: int) -> None:
        super().__init__()
        self.shape = (groups, classes)
        self.mlp = SwiGLU(width, hidden, groups * classes)
        nn.init.zeros_(self.mlp.down.weight)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.mlp(x).unflatten(-1, self.shape),)
