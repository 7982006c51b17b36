"""What the CPU has no kernel for, in few passes over memory: a residual's norm, and attention over few positions.

Compilers and CUDA fuse the plain forms, which stand beside the calls in ``networks.layers``; ``plain_forms`` asks for
them.
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

MAX_POSITIONS = 128  # from here on a square of scores costs more memory than it saves time
_plain: ContextVar[bool] = ContextVar("plain", default=False)


@contextmanager
def plain_forms() -> Iterator[None]:
    """Within it nothing below is used, nor torch's own fused attention: second derivatives need that."""
    token = _plain.set(True)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        _plain.reset(token)


def on_cpu(*tensors: Tensor) -> bool:
    """Are these for the functions below: of one precision, on the CPU, and neither compiled nor transformed?"""
    kinds = {t.dtype for t in tensors}
    return (
        not is_compiling()
        and not _plain.get()
        and not torch._C._are_functorch_transforms_active()  # torch.func's grad and vmap take functions apart
        and len(kinds) == 1
        and kinds <= {torch.float32, torch.float64}
        and all(t.device.type == "cpu" for t in tensors)
    )


def _once(backward: Callable[..., Any]) -> Callable[..., Any]:
    """A gradient that has none itself. Torch's ``once_differentiable`` lets ``autograd.grad`` pass by in silence."""

    @wraps(backward)
    def checked(ctx: Any, grad: Tensor) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "the CPU's fused layers have no second derivatives: compute the forward pass within "
                "pyro_gram.networks.fused.plain_forms()"
            )
        return backward(ctx, grad)

    return checked


class FusedResidualNorm(torch.autograd.Function):
    """``rms_norm(x + branch)`` over the last dimension, and its gradient. Shapes ``[..., D]``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, branch: Tensor) -> Tensor:
        total = x + branch
        norm = torch.linalg.vector_norm(total, dim=-1, keepdim=True)
        inverse = norm.square_().div_(x.shape[-1]).add_(torch.finfo(x.dtype).eps).rsqrt_()
        y = total.mul_(inverse)
        ctx.save_for_backward(y, inverse)
        return y

    @staticmethod
    @_once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        y, inverse = ctx.saved_tensors
        along = torch.linalg.vecdot(grad, y).unsqueeze(-1).div_(-y.shape[-1])
        found = torch.addcmul(grad, y, along).mul_(inverse)
        return found, found


class FusedRotaryAttention(torch.autograd.Function):
    """Rotary attention in both directions, heads side by side: complex ``[B, L, 3, H, S/2]`` to ``[B, L, H * S]``.

    Turning brings queries, keys and values into the order that the products want, and turning back brings their
    gradients into the order of the layer before.

    Args:
        qkv: pairs of channels as complex numbers.
        turn: complex ``[L, 3, H, S/2]``: what each is turned by; for queries with 1/sqrt(S).
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, turn: Tensor) -> Tensor:
        B, L, _, H, half = qkv.shape
        turned = qkv.new_empty(3, B, H, L, half)
        torch.mul(qkv, turn, out=turned.permute(1, 3, 0, 2, 4))
        q, k, v = _products(turned)
        scores = torch.bmm(q, k.transpose(1, 2))
        torch.softmax(scores, -1, out=scores)
        ctx.save_for_backward(turned, scores, turn)
        return torch.bmm(scores, v).view(B, H, L, 2 * half).transpose(1, 2).reshape(B, L, 2 * half * H)

    @staticmethod
    @_once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        turned, scores, turn = ctx.saved_tensors
        _, B, H, L, half = turned.shape
        q, k, v = _products(turned)
        found = torch.empty_like(turned)
        dq, dk, dv = _products(found)
        grad = grad.view(B, L, H, 2 * half).transpose(1, 2).reshape(B * H, L, 2 * half)
        torch.bmm(scores.transpose(1, 2), grad, out=dv)
        weight = torch.bmm(grad, v.transpose(1, 2))
        weight = torch._softmax_backward_data(weight, scores, -1, scores.dtype)
        torch.bmm(weight, k, out=dq)
        torch.bmm(weight.transpose(1, 2), q, out=dk)
        return found.permute(1, 3, 0, 2, 4) * turn.conj(), None


def _products(turned: Tensor) -> Tensor:
    """Complex ``[3, B, H, L, S/2]`` as the three operands of batched products, real ``[3, B * H, L, S]``."""
    return torch.view_as_real(turned).flatten(-2).flatten(1, 2)
