"""A device that no machine has: its tensors hold their numbers on the CPU, and refuse what CUDA or MPS would refuse.

No tensor of the CPU meets one of theirs in an operation (but for single numbers, and indices into theirs), no generator
of the CPU draws for them, NumPy cannot read them, and none is float64. So that what runs here has left no tensor
behind, and gives the CPU's numbers, since the draws are the CPU's. The device calls itself ``meta``, the one device
whose name asks for no hardware; kernels, and what depends on ``device.type == "cuda"``, are not tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from pyro_gram import checkpoint

FAKE_DEVICE = torch.device("meta")
aten = torch.ops.aten
BETWEEN = {aten._to_copy.default, aten.copy_.default}  # these take tensors from one device to another
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}


class FakeDeviceTensor(Tensor):
    """A tensor of that device; ``near`` holds its numbers."""

    near: Tensor

    @staticmethod
    def __new__(cls, near: Tensor) -> FakeDeviceTensor:
        if near.dtype in (torch.float64, torch.complex128):
            raise TypeError(f"this device has no {near.dtype}, as MPS has none: use float32, or the CPU")
        made = Tensor._make_wrapper_subclass(
            cls,
            near.size(),
            near.stride(),
            near.storage_offset(),
            dtype=near.dtype,
            layout=near.layout,
            device=FAKE_DEVICE,
        )
        made.near = near
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def tolist(self) -> Any:
        return self.near.tolist()

    def numpy(self, **_: Any) -> Any:
        raise TypeError("NumPy cannot read this device's memory: take the tensor to the CPU")

    __array__ = numpy

    def __repr__(self, **_: Any) -> str:
        return f"Far({self.near!r})"


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The operation on the tensors' numbers, and its results where the device's would lie."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    far = {id(t.near): t for t in tensors if isinstance(t, FakeDeviceTensor)}
    asked = kwargs.get("device")
    _check(func, args, kwargs.get("generator"), tensors, bool(far), asked)
    stays = bool(far) if asked is None else torch.device(asked).type == FAKE_DEVICE.type
    if asked is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    args, kwargs = tree_map(lambda leaf: leaf.near if isinstance(leaf, FakeDeviceTensor) else leaf, (args, kwargs))
    found = func(*args, **kwargs)
    if func is aten.copy_.default:
        return far.get(id(found), found)
    if not stays:
        return found
    # What an operation has written into stays the same object.
    return tree_map(lambda leaf: far.get(id(leaf), FakeDeviceTensor(leaf)) if isinstance(leaf, Tensor) else leaf, found)


def _check(func: Any, args: Any, generator: Any, tensors: list[Tensor], far: bool, asked: Any) -> None:
    there = far if asked is None else torch.device(asked).type == FAKE_DEVICE.type
    if generator is not None and there:
        raise RuntimeError(f"{func}: a generator of the CPU cannot draw on another device")
    into = func in INDEXING and isinstance(args[0], FakeDeviceTensor)
    left = [t for t in tensors if t.dim() and not isinstance(t, FakeDeviceTensor)]
    if far and left and not into and func not in BETWEEN:
        raise RuntimeError(f"{func}: a tensor of shape {list(left[0].shape)} has been left on the CPU")


def _by_copying(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``torch.tensor``, which does not ask the dispatcher for its device."""

    def made(data: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False, **rest: Any) -> Tensor:
        found = make(data, dtype=dtype, **rest)
        found = found if device is None else found.to(device)
        return found.requires_grad_(requires_grad)

    return made


@contextmanager
def fake_device(*programs: Any) -> Iterator[str]:
    """Within it there is the device ``FAR``, whose name it gives, and the modules given find it on the command line."""
    picks = [patch.object(program, "pick_device", torch.device) for program in programs]
    # A checkpoint's shapes are looked at on the real ``meta``, whose name is taken here.
    picks.append(patch.object(checkpoint, "outline_misfits", lambda *_: []))
    for one in picks:
        one.start()
    try:
        with patch.object(torch, "tensor", _by_copying(torch.tensor)), _Mode():
            yield FAKE_DEVICE.type
    finally:
        for one in picks:
            one.stop()
