"""The sites that programs and inference agree on, and how a module announces its parameters to Pyro."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.ops.jit import CompiledFunction
from pyro.poutine.runtime import am_i_wrapped, effectful, get_plates
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_gram.errors import ConfigError

ANSWER = "y"
DATA = "data"  # the plate of the inputs
STATE_H, STATE_L = "h", "l"
HALT, VALUE = "halt", "value"
HALTED = "halted"  # deterministic, bool: trajectories that a program with halting of its own would end here (HRM, TRM)
DRAW_ANSWER = "draw_answer"  # key of the infer dict of y: a trajectory answers with a draw, not with the mode
HEAD_SITE = "head_site"  # key of an infer dict: a roll-out reads this site of the heads and does not draw it
LOSS_ONLY = "loss_only"  # key of an infer dict: the optimizer sees the site, and no bound counts it
HEADS_ATTRIBUTE = "heads"  # the attribute of a program that holds its halt and value heads
VALUE_SCALE = 0.5**0.5  # of the Normal whose negative log density is the squared error, up to a constant


def guidance_site(t: int) -> str:
    """The site of the stochastic guidance of transition t (counted from 0 over the whole trajectory)."""
    return f"eps_{t}"


def proposal_site(t: int) -> str:
    """The deterministic site that holds u_t, for guides to read."""
    return f"u_{t}"


def transition_index(name: str) -> int | None:
    """t, where ``name`` is a guidance site; None for every other site."""
    head, _, tail = name.partition("_")
    return int(tail) if head == "eps" and tail.isdigit() else None


def data_plates(shape: torch.Size) -> ExitStack:
    """Plates for the batch dimensions of an input: "data" at dim -1, "data_1" at dim -2, and so on; none for ``[]``.

    Further batch dimensions may come from plates around the program (particles, trajectories).
    """
    stack = ExitStack()
    for i, size in enumerate(reversed(shape)):
        stack.enter_context(pyro.plate(DATA if i == 0 else f"{DATA}_{i}", size, dim=-1 - i))
    return stack


def plate_shape() -> torch.Size:
    """The batch shape that the plates around give a site: for draws that a program makes without a site."""
    return batch_shape_of(get_plates())


def batch_shape_of(plates: Iterable[Any]) -> torch.Size:
    """The batch shape that plates give what lies in them.

    Args:
        plates: frames of a ``cond_indep_stack``; those that are not vectorized have no dimension.
    """
    sizes = {frame.dim: frame.size for frame in plates if frame.vectorized}
    return torch.Size(sizes.get(dim, 1) for dim in range(min(sizes, default=0), 0))


def record_state(state: Any) -> None:
    """The deterministic sites of the state that the next supervision step starts from, inside the plates."""
    pyro.deterministic(STATE_H, state.h, event_dim=2)
    pyro.deterministic(STATE_L, state.l, event_dim=2)


def sample_halt_and_value(
    heads: nn.Module | None, state_h: Tensor, e_x: Tensor, likelihood: dist.TorchDistribution
) -> None:
    """The sites of the heads, inside the plates of the data (Sections 2.3 and A.1); none where there are no heads.

    ``halt`` ~ Bernoulli: is the answer that h decodes to right? ``value`` ~ Normal, its mean in [0, 1]: how right will
    the trajectory's last answer be? No gradient leaves them for the state.

    Args:
        heads: ``networks.heads.HaltValueHead``, or None.
        state_h: h, ``[..., L, D]``.
        e_x: the embedded input, ``[..., L, D]``.
        likelihood: p(y | h), categorical, event shape ``[L_out]``.
    """
    if heads is None:
        return
    probabilities = likelihood.base_dist.probs
    halt, value = heads(state_h.detach(), e_x.detach(), probabilities.detach())
    pyro.sample(HALT, dist.Bernoulli(logits=halt), infer={HEAD_SITE: True})
    pyro.sample(VALUE, dist.Normal(value.sigmoid(), VALUE_SCALE), infer={HEAD_SITE: True})


def has_heads(model: Any) -> bool:
    """Does the program have halt and value heads?"""
    return getattr(model, HEADS_ATTRIBUTE, None) is not None


def why_no_heads(model: Any) -> str:
    """Return why a program cannot be given halt and value heads; an empty text if it can."""
    if hasattr(model, HEADS_ATTRIBUTE):
        return ""
    if name := getattr(model, "registered_name", ""):
        return f"the model {name} takes no supervision steps whose states halt and value heads could judge"
    return (
        f"{type(model).__name__} has no attribute {HEADS_ATTRIBUTE!r} for halt and value heads (give it one, and call "
        "pyro_gram.inference.sites.sample_halt_and_value, as models/gram.py does)"
    )


def check_has_heads(model: Any, purpose: str) -> None:
    """Raise ConfigError if a program has no heads. ``purpose`` is a verb: what the heads are needed to do."""
    if why := why_no_heads(model):
        raise ConfigError(
            f"{why}: it has no heads to {purpose} by; answer by vote (--select vote, or verified), at full depth "
            "(without --halt) and with independent trajectories (without --draws smc)"
        )
    if not has_heads(model):
        raise ConfigError(
            f"this model has no heads to {purpose} by: train with --heads.hidden 64, or give it some with "
            "experiments/heads.py"
        )


def add_training_loss(name: str, loss: Tensor) -> None:
    """Add a loss to what the optimizer sees that no reported bound counts.

    Args:
        name: of the site.
        loss: ``[..., B]``, inside the plates of the data.
    """
    unit = dist.Unit(-loss)
    pyro.sample(name, unit, obs=unit.sample(), infer={"is_auxiliary": True, LOSS_ONLY: True})


def register_parameters(name: str, module: nn.Module) -> None:
    """Make the parameters of ``module`` visible to SVI, as ``pyro.module`` does, but without the global store.

    ``pyro.module`` would hand the parameters of the first model of a process to the second one of the same name, and
    leaves a weak reference on every parameter, which then can no longer be pickled or deep-copied.
    """
    if not am_i_wrapped():
        return
    _check_not_compiled()
    for key, value in module.named_parameters():
        _param(f"{name}.{key}", value)


def _check_not_compiled() -> None:
    """Raises NotImplementedError within ``pyro.ops.jit``, which looks parameters up in the global store by name."""
    if is_called_by(CompiledFunction.__call__):
        raise NotImplementedError(
            "Pyro's JIT losses (JitTrace_ELBO and the like) need parameters in the global parameter store, where this "
            "library puts none: use Trace_ELBO or TraceMeanField_ELBO, and compile the core (train.compile, "
            "model.core.compile()) for speed"
        )


def is_called_by(function: Any) -> bool:
    """Is a function of Pyro's going on? Of some, nothing but the stack of Python says so."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_code is not function.__code__:
        frame = frame.f_back
    return frame is not None


@effectful(type="param")
def _param_site(value: Tensor, full_name: str, **_: object) -> Tensor:
    alias = value.detach()  # shares storage; carries what SVI.step asks a param site for

    def unconstrained() -> Tensor:
        # The optimizers of pyro.optim ask the store for a parameter's name: for options by name, and to keep its state.
        pyro.get_param_store()._param_to_name[value] = full_name
        return value

    alias.unconstrained = unconstrained  # type: ignore[attr-defined]
    return alias


def drop_param_names(parameters: Iterable[Tensor]) -> None:
    """Take parameters' names out of Pyro's store, which would keep the parameters alive, once an update is over."""
    for parameter in parameters:
        pyro.get_param_store()._param_to_name.pop(parameter, None)


def _param(full_name: str, value: Tensor) -> None:
    _param_site(value, full_name, name=full_name, constraint=constraints.real)
