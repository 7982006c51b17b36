"""What a run's figures depend on besides its config, and what the run takes of the machine."""

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

from pyro_gram.version import __version__

CHECKOUT = Path(__file__).resolve().parents[2]  # where this package is used from one
CODE = ("*.py", "*.toml", "*.jinja")
PATIENCE = 5.0  # seconds that git may take


def environment() -> dict[str, Any]:
    """Versions, threads and processor."""
    commit, modified = revision()
    return {
        "pyro_gram": __version__,
        "revision": commit,
        "modified": modified,
        "torch": torch.__version__,
        "pyro": pyro.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "processor": processor(),
    }


@cache
def revision(folder: Path = CHECKOUT) -> tuple[str | None, bool | None]:
    """The git commit of the code, and whether the code has been changed or added to since.

    It is asked for once in a process: by a run before it trains, as the code may change meanwhile.

    Returns:
        the full hash; None for both where ``folder`` is no checkout (an installed wheel), or where git does not answer.
    """
    if not (folder / ".git").exists():  # a file in a worktree
        return None, None
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None, None
    changes = _git(folder, "status", "--porcelain", "--untracked-files=all", "--", *CODE)
    return commit, None if changes is None else bool(changes)


def _git(folder: Path, *words: str) -> str | None:
    """What git prints; None where it fails, is missing, or takes too long."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")} | {"GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            env=environ,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.SubprocessError, UnicodeError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def processor() -> str:
    """The processor's name and the vector instructions that torch uses of it."""
    try:  # Linux tells it here, and nothing by platform.processor()
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor()
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def peak_memory_mb() -> float:
    """The most memory this process has held, MiB; NaN where the system does not say (Windows)."""
    try:  # what the kernel counts as usage begins with that of the process that started this one
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


def resident_mb() -> float:
    """What this process holds now, MiB; where the system does not say, the most that it has held."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE / 2**20
    except OSError:
        return peak_memory_mb()
