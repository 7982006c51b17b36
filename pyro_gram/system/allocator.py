"""Freed memory stays with the process, which fills arrays of the same sizes again and again."""

from __future__ import annotations

import ctypes
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of mallopt(3)
LARGEST = 2**30
TRIMMED = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let glibc reuse freed blocks of up to a gigabyte, where it would hand each large one back to the system.

    A block fresh from the system costs a page fault every 4 kB, which took up to half the time of wide roll-outs. Such
    blocks are no longer given back before the process ends, so that it holds its peak.

    Returns:
        whether the C library took the settings; another than glibc is left alone.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(MMAP_THRESHOLD, LARGEST) and mallopt(TRIM_THRESHOLD, TRIMMED))
