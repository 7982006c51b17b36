"""Run a program without the caller's Pyro handlers, one thread at a time.

Handlers, plates and validation of Pyro are global state, and so is torch's generator. Two threads that run programs
at once therefore mix up their plates and draws. A program that runs inside the caller's ``pyro.plate`` or
``poutine.trace`` adds its sites to those of the caller.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from pyro.poutine.indep_messenger import IndepMessenger
from pyro.poutine.runtime import _DIM_ALLOCATOR, _PYRO_STACK
from pyro.poutine.trace_messenger import TraceMessenger

from pyro_gram.errors import UserError

_LOCK = threading.RLock()
_owner = os.getpid()  # the process in which torch has started its threads

if hasattr(os, "register_at_fork"):  # hold the lock during a fork: in the child, no other thread could release it
    os.register_at_fork(before=_LOCK.acquire, after_in_parent=_LOCK.release, after_in_child=_LOCK.release)


@contextmanager
def generator_lock() -> Iterator[None]:
    """Hold the lock of torch's generator, so that other threads wait before they draw.

    In a forked process this sets torch to one thread. The threads that torch had started do not exist in that
    process, and torch would wait for them forever.
    """
    global _owner
    with _LOCK:
        if _owner != os.getpid():
            _owner = os.getpid()
            torch.set_num_threads(1)
        yield


@contextmanager
def isolated_program() -> Iterator[None]:
    """Run Pyro programs without the caller's plates and traces. Only one thread at a time is inside such a block.

    The caller's handlers are restored afterwards. A thread that runs Pyro outside such a block does not wait.

    Raises:
        UserError: a handler of the caller would change the program's draws, and would be ignored here.
    """
    with generator_lock():
        for handler in _PYRO_STACK:
            if not isinstance(handler, IndepMessenger | TraceMessenger):
                raise UserError(
                    f"a solver does not run under Pyro handlers, and {type(handler).__name__} is active here: leave it "
                    "out, or run pyro_gram.sampling.rollout.rollout(solver.model, ...) under it"
                )
        handlers, plates = _PYRO_STACK[:], _DIM_ALLOCATOR._stack[:]
        _PYRO_STACK.clear()
        _DIM_ALLOCATOR._stack.clear()
        try:
            yield
        finally:
            _PYRO_STACK[:], _DIM_ALLOCATOR._stack[:] = handlers, plates
