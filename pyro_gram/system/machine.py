"""The machine that a program runs on: its devices, its memory, its processor, and the versions of the software."""

from __future__ import annotations

import math
import mmap
import os
import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pyro
import torch

from pyro_gram.errors import ConfigError
from pyro_gram.version import __version__

CHECKOUT = Path(__file__).resolve().parents[2]  # the repository, if the package is not installed from a wheel
CODE_PATTERNS = ("*.py", "*.toml", "*.jinja")
GIT_TIMEOUT = 5.0  # seconds


# ---- devices --------------------------------------------------------------------------------------------------------


def device_type(name: str) -> str:
    """Return the type of the device ``name``, whether or not this machine has it.

    Raises:
        ConfigError: torch does not know the device.
    """
    try:
        return torch.device(name).type
    except RuntimeError:
        raise ConfigError(f"no device {name!r}: give cpu, cuda or mps") from None


def pick_device(name: str) -> torch.device:
    """Return the device ``name`` of this machine.

    Raises:
        ConfigError: this machine has no such device.
    """
    kind = device_type(name)
    availability = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not availability.get(kind, False):
        available_names = ", ".join(k for k, is_available in availability.items() if is_available)
        raise ConfigError(f"no device {name!r} here; available: {available_names}")
    device = torch.device(name)
    count = torch.cuda.device_count() if kind == "cuda" else 1
    if device.index is not None and device.index >= count:
        raise ConfigError(f"no device {name!r} here: this machine has {count} of {kind}")
    return device


# ---- memory ---------------------------------------------------------------------------------------------------------


def peak_memory_mb() -> float:
    """Return the peak memory of this process, MiB; NaN if the system does not report it (Windows)."""
    try:  # getrusage() would count the peak of the parent process too
        status = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 2**10
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ModuleNotFoundError:
        return math.nan
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if platform.system() == "Darwin" else 2**10)


def resident_memory_mb() -> float:
    """Return the memory that this process uses now, MiB; its peak memory if the system reports only the peak."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE / 2**20
    except OSError:
        return peak_memory_mb()


# ---- versions and processor -----------------------------------------------------------------------------------------


def environment() -> dict[str, Any]:
    """Return versions, git commit, number of threads and processor. Results depend on them and on the config."""
    commit, is_modified = revision()
    return {
        "pyro_gram": __version__,
        "revision": commit,
        "modified": is_modified,
        "torch": torch.__version__,
        "pyro": pyro.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "processor": processor(),
    }


@cache
def revision(folder: Path = CHECKOUT) -> tuple[str | None, bool | None]:
    """Return the git commit of the code, and whether the code differs from that commit.

    Git is called once per process. A run calls this before it trains, because the code may change during the training.

    Returns:
        the full hash, and whether the code differs. Both are None if ``folder`` is not a git checkout (for
            example, an installed wheel), or if git does not answer.
    """
    if not (folder / ".git").exists():  # .git is a directory; in a worktree it is a file
        return None, None
    commit = _run_git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None, None
    changes = _run_git(folder, "status", "--porcelain", "--untracked-files=all", "--", *CODE_PATTERNS)
    return commit, None if changes is None else bool(changes)


def _run_git(folder: Path, *arguments: str) -> str | None:
    """Return the output of git; None if git fails, is missing, or takes longer than :data:`GIT_TIMEOUT`."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")} | {"GIT_OPTIONAL_LOCKS": "0"}
    try:
        process = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=GIT_TIMEOUT,
            env=environ,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.SubprocessError, UnicodeError):
        return None
    return process.stdout.strip() if process.returncode == 0 else None


def processor() -> str:
    """Return the processor's name and the vector instructions that torch uses on it."""
    try:  # on Linux platform.processor() is empty
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor()
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"
