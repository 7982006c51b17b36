"""A fake device: its tensors keep their values on the CPU, and refuse operations that CUDA or MPS would refuse.

An operation cannot mix tensors of the device with CPU tensors, except single numbers and indices. Generators of the CPU
cannot draw for the device, NumPy cannot read its memory, and the device has no float64. So code that runs on it without
an error has left no tensor on the CPU. Results and random draws are the same as on the CPU. The device is called
``meta``, because PyTorch accepts this name on any machine. Two things are not tested: GPU kernels, and code that
depends on ``device.type == "cuda"``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from pyro_gram import checkpoint

FAKE_DEVICE = torch.device("meta")
aten = torch.ops.aten
TRANSFERS = {aten._to_copy.default, aten.copy_.default}  # operations that copy tensors from one device to another
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}


class FakeDeviceTensor(Tensor):
    """A tensor of the fake device.

    Attributes:
        cpu_values: the CPU tensor that holds its values.
    """

    cpu_values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> FakeDeviceTensor:
        if values.dtype in (torch.float64, torch.complex128):
            raise TypeError(f"this device has no {values.dtype}, as MPS has none: use float32, or the CPU")
        tensor = Tensor._make_wrapper_subclass(
            cls,
            values.size(),
            values.stride(),
            values.storage_offset(),
            dtype=values.dtype,
            layout=values.layout,
            device=FAKE_DEVICE,
        )
        tensor.cpu_values = values
        return tensor

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _dispatch(func, args, kwargs or {})

    def tolist(self) -> Any:
        return self.cpu_values.tolist()

    def numpy(self, **_: Any) -> Any:
        raise TypeError("NumPy cannot read this device's memory: take the tensor to the CPU")

    __array__ = numpy

    def __repr__(self, **_: Any) -> str:
        return f"FakeDeviceTensor({self.cpu_values!r})"


class _DispatchMode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _dispatch(func, args, kwargs or {})


def _dispatch(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation on the values of its tensors, and return the results on the right device."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    fake_tensors = {id(t.cpu_values): t for t in tensors if isinstance(t, FakeDeviceTensor)}
    device = kwargs.get("device")
    is_result_fake = bool(fake_tensors) if device is None else torch.device(device).type == FAKE_DEVICE.type
    _check_devices(func, args, kwargs.get("generator"), tensors, is_result_fake)
    if device is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    args, kwargs = tree_map(_cpu_values, (args, kwargs))
    result = func(*args, **kwargs)
    if func is aten.copy_.default:
        return fake_tensors.get(id(result), result)
    if not is_result_fake:
        return result
    # An in-place operation returns the tensor that it was given.
    return tree_map(
        lambda leaf: fake_tensors.get(id(leaf), FakeDeviceTensor(leaf)) if isinstance(leaf, Tensor) else leaf, result
    )


def _cpu_values(leaf: Any) -> Any:
    return leaf.cpu_values if isinstance(leaf, FakeDeviceTensor) else leaf


def _check_devices(func: Any, args: Any, generator: Any, tensors: list[Tensor], is_result_fake: bool) -> None:
    """Raise RuntimeError, as a real device does, for a CPU generator, or if CPU and device tensors are mixed."""
    if generator is not None and is_result_fake:
        raise RuntimeError(f"{func}: a generator of the CPU cannot draw on another device")
    is_index = func in INDEXING and isinstance(args[0], FakeDeviceTensor)
    cpu_tensors = [t for t in tensors if t.dim() and not isinstance(t, FakeDeviceTensor)]
    has_fake_tensor = any(isinstance(t, FakeDeviceTensor) for t in tensors)
    if has_fake_tensor and cpu_tensors and not is_index and func not in TRANSFERS:
        raise RuntimeError(f"{func}: a tensor of shape {list(cpu_tensors[0].shape)} has been left on the CPU")


def _create_then_move(create: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return a replacement for ``torch.tensor`` that creates a CPU tensor, and then moves it to ``device``."""

    def tensor(
        data: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False, **kwargs: Any
    ) -> Tensor:
        result = create(data, dtype=dtype, **kwargs)
        result = result if device is None else result.to(device)
        return result.requires_grad_(requires_grad)

    return tensor


@contextmanager
def fake_device(*programs: Any) -> Iterator[str]:
    """Provide the fake device and yield its name. The option ``--device`` of the modules ``programs`` accepts it."""
    with ExitStack() as stack:
        for program in programs:
            stack.enter_context(patch.object(program, "pick_device", torch.device))
        # ``outline_misfits`` needs the real meta device, but "meta" now names the fake device. So a stub replaces it.
        stack.enter_context(patch.object(checkpoint, "outline_misfits", lambda *_: []))
        stack.enter_context(patch.object(torch, "tensor", _create_then_move(torch.tensor)))
        stack.enter_context(_DispatchMode())
        yield FAKE_DEVICE.type
