"""Options that make training faster without changing what is trained: precision of products, and compiled cores."""

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

PRECISIONS = ("fp32", "tf32", "bf16")
VARIANTS = 32  # of compiled code: with and without gradient, from z_0 (whose rows share memory) and from elsewhere
BACKEND: str | Callable[..., Any] = "inductor"


def check_speed(precision: str, compiled: bool, model: nn.Module, device: torch.device) -> None:
    """Raises ConfigError where a model or device has no such option."""
    if precision == "tf32" and device.type != "cuda":
        raise ConfigError(f"train.precision tf32 is of CUDA's tensor cores, not of {device.type}: use fp32")
    if (compiled or precision == "bf16") and core_of(model) is None:
        raise ConfigError(
            f"{type(model).__name__} has no module 'core' or 'f' that could be compiled or run in bfloat16: set "
            "train.compile to false and train.precision to fp32"
        )
    if compiled and device.type == "cpu" and not has_compiler():
        raise ConfigError(f"train.compile needs a C++ compiler on the CPU ({compiler()}): set it to false")


def compiler() -> str:
    """The C++ compiler that torch calls."""
    return os.environ.get("CXX") or {"win32": "cl", "darwin": "clang++"}.get(sys.platform, "g++")


def has_compiler() -> bool:
    """Is it there?"""
    return shutil.which(compiler()) is not None


def core_of(model: Any) -> nn.Module | None:
    """The module in which a program spends its time: ``core`` or ``f``; None where it has neither."""
    found = [getattr(model, name, None) for name in ("core", "f")]
    return next((module for module in found if isinstance(module, nn.Module)), None)


def speed_up(model: nn.Module, precision: str, compiled: bool, device: torch.device) -> None:
    """Let a model's core take its products in bfloat16, and compile it, in place.

    Residuals and norms in the core stay in float32, and so do the tensors outside: heads, distributions, the
    likelihood and the KL.
    """
    core: Any = core_of(model)
    if core is None:
        return
    if getattr(vars(core).get("forward"), "func", None) is _in_bfloat16:  # of a trainer before this one
        del core.forward
    if precision == "bf16":
        core.forward = partial(_in_bfloat16, core, device.type)
    if compiled:
        limits: Any = torch._dynamo.config
        limits.recompile_limit = max(limits.recompile_limit, VARIANTS)
        core.compile(dynamic=False, backend=BACKEND)


def _in_bfloat16(core: nn.Module, device: str, *args: Any, **kwargs: Any) -> Any:
    """A core's own forward. Bound to it by ``partial``, which a copy of the core binds to the copy."""
    with torch.autocast(device, torch.bfloat16):
        return type(core).forward(core, *args, **kwargs)


@contextmanager
def compilation_told() -> Iterator[None]:
    """Raises UserError where the compiler fails: no compiler, a full disk, what a killed one has left in its cache."""
    from torch._dynamo.exc import TorchDynamoException

    try:
        yield
    except TorchDynamoException as e:
        reason = str(e).strip().splitlines()[0][:200]
        raise UserError(
            f"the core could not be compiled ({reason}): set train.compile to false, or see to the compiler (CXX) "
            "and to its cache (TORCHINDUCTOR_CACHE_DIR, by default torchinductor_USER in the temporary folder)"
        ) from None


@contextmanager
def products_in(precision: str, device: torch.device) -> Iterator[None]:
    """On CUDA, let products of float32 outside the core run on tensor cores (TF32) unless all is to be float32."""
    if device.type != "cuda" or precision == "fp32":
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
