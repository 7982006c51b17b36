"""What a run's figures depend on besides its config, and what the run takes of the machine."""

from __future__ import annotations

import platform
import resource
from pathlib import Path
from typing import Any

import pyro
import torch

from pyro_gram.version import __version__


def environment() -> dict[str, Any]:
    """Versions, threads and processor."""
    return {
        "pyro_gram": __version__,
        "torch": torch.__version__,
        "pyro": pyro.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "processor": processor(),
    }


def processor() -> str:
    """The processor's name and the vector instructions that torch uses of it."""
    try:  # Linux tells it here, and nothing by platform.processor()
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor()
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def peak_memory_mb() -> float:
    """The most memory this process has held, MiB."""
    try:  # what the kernel counts as usage begins with that of the process that started this one
        status = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 2**10
    except (OSError, StopIteration):
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if platform.system() == "Darwin" else 2**10)


def resident_mb() -> float:
    """What this process holds now, MiB; where the system does not say, the most that it has held."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20
    except OSError:
        return peak_memory_mb()
