"""CPU operations with few passes over memory: the norm of a residual sum, and attention over few positions.

Compilers and torch's CUDA kernels fuse the plain operations of ``networks.core`` themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.nn.attention import SDPBackend, sdpa_kernel

MAX_POSITIONS = 128  # for longer sequences the attention scores take too much memory
_use_plain: ContextVar[bool] = ContextVar("plain", default=False)


@contextmanager
def plain_forms() -> Iterator[None]:
    """Use only plain torch operations, not even torch's fused attention. Second derivatives need plain operations."""
    token = _use_plain.set(True)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        _use_plain.reset(token)


def can_fuse(*tensors: Tensor) -> bool:
    """Return whether all tensors are on the CPU, all float32 or all float64, and no compiler or transform is active.

    Under autocast results of matrix products may be bfloat16. The fused operations take them, but compute in float32.
    """
    dtypes = {t.dtype for t in tensors}
    if torch.is_autocast_enabled("cpu"):
        dtypes -= {torch.bfloat16}
    return (
        not is_compiling()
        and not _use_plain.get()
        and not torch._C._are_functorch_transforms_active()  # torch.func's grad and vmap do not support these functions
        and len(dtypes) == 1
        and dtypes <= {torch.float32, torch.float64}
        and all(t.device.type == "cpu" for t in tensors)
    )


def _first_derivative_only(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Make a backward pass raise RuntimeError for second derivatives.

    torch's ``once_differentiable`` would return wrong numbers instead.
    """

    @wraps(backward)
    def backward_or_error(ctx: Any, grad: Tensor) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "the CPU's fused layers have no second derivatives: compute the forward pass within "
                "pyro_gram.networks.fused.plain_forms()"
            )
        return backward(ctx, grad)

    return backward_or_error


class FusedResidualNorm(torch.autograd.Function):
    """Compute ``rms_norm(x + branch)`` over the last dimension, and its gradient. Shapes ``[..., D]``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, branch: Tensor) -> Tensor:
        total = x + branch
        norm = torch.linalg.vector_norm(total, dim=-1, keepdim=True)
        inverse = norm.square_().div_(x.shape[-1]).add_(torch.finfo(x.dtype).eps).rsqrt_()
        y = total.mul_(inverse)
        ctx.save_for_backward(y, inverse)
        return y

    @staticmethod
    @_first_derivative_only
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        y, inverse = ctx.saved_tensors
        dot = torch.linalg.vecdot(grad, y).unsqueeze(-1).div_(-y.shape[-1])
        grad_total = torch.addcmul(grad, y, dot).mul_(inverse)
        return grad_total, grad_total


class FusedRotaryAttention(torch.autograd.Function):
    """Rotary attention, by default in both directions: complex ``[B, L, 3, H, S/2]`` to ``[B, L, H * S]``.

    The rotation also reorders queries, keys and values for the batched products; the backward pass undoes this.

    Args:
        qkv: pairs of channels as complex numbers.
        rotation: complex ``[L, 3, H, S/2]``, the factor of each pair of channels. Factors of queries include 1/sqrt(S).
        bias: what is added to the scores, ``[..., H, L, L]`` (B is the product of the first dimensions), or None. No
            gradient is sent into it.
    """

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)  # for few positions bfloat16 is not faster
    def forward(ctx: Any, qkv: Tensor, rotation: Tensor, bias: Tensor | None = None) -> Tensor:
        B, L, _, H, half = qkv.shape
        rotated_qkv = qkv.new_empty(3, B, H, L, half)
        torch.mul(qkv, rotation, out=rotated_qkv.permute(1, 3, 0, 2, 4))
        q, k, v = _operands(rotated_qkv)
        scores = torch.bmm(q, k.transpose(1, 2))
        if bias is not None:
            scores.view(bias.shape).add_(bias)
        torch.softmax(scores, -1, out=scores)
        ctx.save_for_backward(rotated_qkv, scores, rotation)
        return torch.bmm(scores, v).view(B, H, L, 2 * half).transpose(1, 2).reshape(B, L, 2 * half * H)

    @staticmethod
    @_first_derivative_only
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        rotated_qkv, scores, rotation = ctx.saved_tensors
        _, B, H, L, half = rotated_qkv.shape
        q, k, v = _operands(rotated_qkv)
        grad_rotated_qkv = torch.empty_like(rotated_qkv)
        dq, dk, dv = _operands(grad_rotated_qkv)
        grad = grad.view(B, L, H, 2 * half).transpose(1, 2).reshape(B * H, L, 2 * half)
        torch.bmm(scores.transpose(1, 2), grad, out=dv)
        grad_scores = torch.bmm(grad, v.transpose(1, 2))
        grad_scores = torch._softmax_backward_data(grad_scores, scores, -1, scores.dtype)
        torch.bmm(grad_scores, k, out=dq)
        torch.bmm(grad_scores.transpose(1, 2), q, out=dk)
        return grad_rotated_qkv.permute(1, 3, 0, 2, 4) * rotation.conj(), None, None


def _operands(rotated_qkv: Tensor) -> Tensor:
    """View complex ``[3, B, H, L, S/2]`` as the operands of batched products, real ``[3, B * H, L, S]``."""
    return torch.view_as_real(rotated_qkv).flatten(-2).flatten(1, 2)
