"""Make training faster: set the precision of the core's matrix products, and compile the core."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from pyro_gram.errors import ConfigError, UserError

PRECISIONS = ("fp32", "tf32", "bf16", "auto")
# The most variants of a core that torch may compile. A variant computes a gradient or none, and starts from z_0
# (whose rows share memory) or from another state.
MAX_VARIANTS = 32
BACKEND: str | Callable[..., Any] = "inductor"


def check_precision(precision: str, compiled: bool, model: nn.Module, device: torch.device) -> None:
    """Raise ConfigError if this model cannot have this precision, or cannot be compiled, on this device."""
    if precision == "tf32" and device.type != "cuda":
        raise ConfigError(f"train.precision tf32 needs the tensor cores of CUDA, and this is {device.type}: use fp32")
    if (compiled or precision == "bf16") and find_core(model) is None:
        raise ConfigError(
            f"{type(model).__name__} has no module 'core' or 'f' that could be compiled or run in bfloat16: set "
            "train.compile to false and train.precision to fp32"
        )
    if compiled and device.type == "cpu" and not has_compiler():
        raise ConfigError(f"train.compile needs a C++ compiler on the CPU ({compiler_command()}): set it to false")


def multiplies_bfloat16(device: torch.device) -> bool:
    """Return whether a device has instructions for matrix products in bfloat16."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and any(torch.cpu.get_capabilities().get(n) for n in ("amx_bf16", "avx512_bf16"))


def runs_in_bfloat16(precision: str, device: torch.device) -> bool:
    """Return whether a core of this precision multiplies in bfloat16 on this device."""
    return precision == "bf16" or (precision == "auto" and multiplies_bfloat16(device))


def compiler_command() -> str:
    """Return the command of the C++ compiler that torch calls."""
    return os.environ.get("CXX") or {"win32": "cl", "darwin": "clang++"}.get(sys.platform, "g++")


def has_compiler() -> bool:
    """Return whether there is a C++ compiler on this machine."""
    return shutil.which(compiler_command()) is not None


def find_core(model: Any) -> nn.Module | None:
    """Return the module that takes most of a program's time, ``core`` or ``f``; None if the program has neither."""
    modules = [getattr(model, name, None) for name in ("core", "f")]
    return next((module for module in modules if isinstance(module, nn.Module)), None)


def configure_core(model: nn.Module, precision: str, compiled: bool, device: torch.device) -> None:
    """Set the precision of a model's core, and compile it if ``compiled``, in place.

    With bf16 the matrix products of the core are in bfloat16; its residuals and norms, and all tensors outside the
    core (heads, distributions, the likelihood and the KL), stay in float32. ``auto`` is bf16 where the device has
    instructions for it, else fp32.
    """
    core: Any = find_core(model)
    if core is None:
        return
    if getattr(vars(core).get("forward"), "func", None) is _forward_in_bfloat16:  # set by an earlier trainer
        del core.forward
    if runs_in_bfloat16(precision, device):
        core.forward = partial(_forward_in_bfloat16, core, device.type)
    if compiled:
        limits: Any = torch._dynamo.config
        limits.recompile_limit = max(limits.recompile_limit, MAX_VARIANTS)
        spec = getattr(model, "spec", None)
        has_sizes = spec is not None and spec.padding is not None  # one variant then serves inputs of all sizes
        core.compile(dynamic=has_sizes, backend=BACKEND)


def _forward_in_bfloat16(core: nn.Module, device: str, *args: Any, **kwargs: Any) -> Any:
    """Run ``core`` in bfloat16. ``partial`` binds ``core``, so that a deep copy of the core runs its own weights."""
    with torch.autocast(device, torch.bfloat16):
        return type(core).forward(core, *args, **kwargs)


@contextmanager
def explain_compiler_errors() -> Iterator[None]:
    """Raise UserError if the compiler fails, because it is missing, its cache is damaged or the disk is full."""
    try:
        yield
    except Exception as e:
        if "torch._dynamo" not in sys.modules or not isinstance(e, torch._dynamo.exc.TorchDynamoException):
            raise
        reason = str(e).strip().splitlines()[0][:200]
        raise UserError(
            f"the core could not be compiled ({reason}): set train.compile to false, or check the compiler (CXX) "
            "and its cache (TORCHINDUCTOR_CACHE_DIR, by default torchinductor_USER in the temporary folder)"
        ) from None


@contextmanager
def matmul_precision(precision: str, device: torch.device) -> Iterator[None]:
    """On CUDA, let float32 matrix products run on tensor cores (TF32), unless ``precision`` is fp32."""
    if device.type != "cuda" or precision == "fp32":
        yield
        return
    previous_precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(previous_precision)
