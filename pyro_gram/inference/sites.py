"""Names of the sites that programs and inference agree on, and how a module announces its parameters to Pyro."""

from __future__ import annotations

from contextlib import ExitStack

import pyro
import torch
from pyro.poutine.runtime import am_i_wrapped, effectful
from torch import Tensor, nn
from torch.distributions import constraints

OBSERVED = "y"
STATE_H, STATE_L = "h", "l"


def guidance(t: int) -> str:
    """The site of the stochastic guidance of transition t (counted from 0 over the whole trajectory)."""
    return f"eps_{t}"


def proposal(t: int) -> str:
    """The deterministic site that holds u_t, for guides to read."""
    return f"u_{t}"


def transition_of(name: str) -> int | None:
    """t, where ``name`` is a guidance site; None for every other site."""
    head, _, tail = name.partition("_")
    return int(tail) if head == "eps" and tail.isdigit() else None


def data_plates(shape: torch.Size) -> ExitStack:
    """Plates for the batch dimensions of an input: "data" at dim -1, "data_1" at dim -2, and so on; none for ``[]``.

    Further batch dimensions may come from plates around the program (particles, trajectories).
    """
    stack = ExitStack()
    for i, size in enumerate(reversed(shape)):
        stack.enter_context(pyro.plate("data" if i == 0 else f"data_{i}", size, dim=-1 - i))
    return stack


def announce(name: str, module: nn.Module) -> None:
    """Make the parameters of ``module`` visible to SVI, as ``pyro.module`` does, but without the global store.

    ``pyro.module`` would hand the parameters of the first model of a process to the second one of the same name, and
    leaves a weak reference on every parameter, which then can no longer be pickled or deep-copied.
    """
    if not am_i_wrapped():
        return
    for key, value in module.named_parameters():
        _param(f"{name}.{key}", value)


@effectful(type="param")
def _param_site(value: Tensor, **_: object) -> Tensor:
    alias = value.detach()  # shares storage; carries what SVI.step asks a param site for
    alias.unconstrained = lambda: value  # type: ignore[attr-defined]
    return alias


def _param(full_name: str, value: Tensor) -> None:
    _param_site(value, name=full_name, constraint=constraints.real)
