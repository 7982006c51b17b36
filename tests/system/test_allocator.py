import resource
import subprocess
import sys

import pytest

from pyro_gram.system import allocator
from tests.conftest import ROOT

FILL = """
import resource
import torch
from pyro_gram.system.machine import keep_freed_memory

if {keep}:
    assert keep_freed_memory()
fill = lambda: torch.zeros(2**24)  # 64 MB
for _ in range(20):  # aligned blocks leave gaps, until one fits
    fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    fill()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
PAGES = 2**26 // resource.getpagesize()


def faults(keep):
    done = subprocess.run([sys.executable, "-c", FILL.format(keep=keep)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_a_large_array_is_not_fetched_from_the_system_twice():
    if not allocator.keep_freed_memory():
        pytest.skip("another C library than glibc")
    assert faults(keep=True) < PAGES < faults(keep=False)


def test_another_system_is_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not allocator.keep_freed_memory()
