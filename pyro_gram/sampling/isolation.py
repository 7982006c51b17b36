"""A block in which a program runs by itself: without the caller's plates and traces, one thread at a time.

Pyro keeps its handlers, its plates and its validation in global state, and torch its generator. Two threads that run
programs at once therefore meet each other's plates and draws, and a program run inside ``pyro.plate`` or
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
_owner = os.getpid()  # the process whose threads torch has started

if hasattr(os, "register_at_fork"):  # a child has none of the other threads that could hold the lock: wait for them
    os.register_at_fork(before=_LOCK.acquire, after_in_parent=_LOCK.release, after_in_child=_LOCK.release)


@contextmanager
def in_turn() -> Iterator[None]:
    """Keep other threads out of what draws from torch's generator. A forked process works in one thread from here on:
    those that torch had started are gone in it, and it would wait for them.
    """
    global _owner
    with _LOCK:
        if _owner != os.getpid():
            _owner = os.getpid()
            torch.set_num_threads(1)
        yield


@contextmanager
def isolated() -> Iterator[None]:
    """Run Pyro programs without the caller's plates and traces, while no other thread is in such a block.

    The caller's handlers are as they were afterwards. A thread that runs Pyro outside such a block is not kept out.

    Raises:
        UserError: a handler of the caller would change what the programs draw, and would be ignored here.
    """
    with in_turn():
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
