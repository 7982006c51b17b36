"""The names of the sites that models and inference share, and helpers that make these sites in a model."""

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
from pyro_gram.spec import Structure

ANSWER = "y"
DATA = "data"  # the plate of the inputs
STATE_H, STATE_L = "h", "l"
HALT, VALUE = "halt", "value"
HALTED = "halted"  # deterministic, bool: whether a trajectory ends here; of HRM, TRM and lattices
DRAW_ANSWER = "draw_answer"  # key of y's infer dict: a rollout answers with a draw from p(y | h_T), not with its mode
LATTICE = "lattice"  # key of the infer dict of a site of targets: the lattice before the transition
HEAD_SITE = "head_site"  # key of the infer dict of a head's site: a rollout takes the site's mean, not a draw
LOSS_ONLY = "loss_only"  # key of an infer dict: the site is part of the training loss, but of no reported bound
HEADS_ATTRIBUTE = "heads"  # the attribute of a program that holds its halt and value heads
VALUE_SCALE = 0.5**0.5  # sigma at which the negative log density is the squared error, up to a constant


def guidance_site(t: int) -> str:
    """Return the name of the guidance site of transition t, counted from 0 over the whole trajectory."""
    return f"eps_{t}"


def targets_site(t: int) -> str:
    """Return the name of the site of the values that transition t is trained towards (``models/lattice.py``)."""
    return f"targets_{t}"


def proposal_site(t: int) -> str:
    """Return the name of the deterministic site of u_t, which guides read."""
    return f"u_{t}"


def transition_index(name: str) -> int | None:
    """Return t if ``name`` is the guidance site of transition t, else None."""
    prefix, _, index = name.partition("_")
    return int(index) if prefix == "eps" and index.isdigit() else None


def data_plates(shape: torch.Size) -> ExitStack:
    """Enter a plate for each batch dimension of an input: "data" at dim -1, "data_1" at dim -2, and so on.

    Plates around the model (particles, trajectories) may add further batch dimensions.
    """
    stack = ExitStack()
    for i, size in enumerate(reversed(shape)):
        stack.enter_context(pyro.plate(DATA if i == 0 else f"{DATA}_{i}", size, dim=-1 - i))
    return stack


def plate_shape() -> torch.Size:
    """Return the batch shape of the plates that are entered now, for draws that a model makes without a site."""
    return batch_shape_of(get_plates())


def batch_shape_of(plates: Iterable[Any]) -> torch.Size:
    """Return the batch shape of a site in these plates.

    Args:
        plates: the frames of a ``cond_indep_stack``; frames of sequential plates have no dimension.
    """
    sizes = {frame.dim: frame.size for frame in plates if frame.vectorized}
    return torch.Size(sizes.get(dim, 1) for dim in range(min(sizes, default=0), 0))


def record_state(state: Any) -> None:
    """Record the final state at the deterministic sites h and l. The next supervision step starts from this state.

    Call this function inside the plates of the data.
    """
    pyro.deterministic(STATE_H, state.h, event_dim=2)
    pyro.deterministic(STATE_L, state.l, event_dim=2)


def sample_halt_and_value(
    heads: nn.Module | None,
    state_h: Tensor,
    e_x: Tensor,
    likelihood: dist.TorchDistribution,
    structure: Structure | None = None,
) -> None:
    """Sample the sites of the heads (Sections 2.3 and A.1). They send no gradient into the state.

    ``halt`` (Bernoulli) predicts whether the answer decoded from h is right. ``value`` (Normal with a mean in [0, 1])
    predicts how right the last answer of the trajectory will be. Call this function inside the plates of the data.

    Args:
        heads: a ``networks.heads.HaltValueHead``; with None this function does nothing.
        state_h: h, ``[..., L, D]``.
        e_x: the embedded input, ``[..., L, D]``.
        likelihood: p(y | h), categorical, event shape ``[L_out]``.
        structure: the structure of the inputs; None if positions have no relations.
    """
    if heads is None:
        return
    probabilities = likelihood.base_dist.probs
    context = () if structure is None else (structure,)
    halt, value = heads(state_h.detach(), e_x.detach(), probabilities.detach(), *context)
    pyro.sample(HALT, dist.Bernoulli(logits=halt), infer={HEAD_SITE: True})
    pyro.sample(VALUE, dist.Normal(value.sigmoid(), VALUE_SCALE), infer={HEAD_SITE: True})


def has_heads(model: Any) -> bool:
    """Return whether a model has halt and value heads."""
    return getattr(model, HEADS_ATTRIBUTE, None) is not None


def why_no_heads(model: Any) -> str:
    """Return why a model cannot have halt and value heads; an empty text if it can."""
    if hasattr(model, HEADS_ATTRIBUTE):
        return ""
    if name := getattr(model, "registered_name", ""):
        return f"the model {name} takes no supervision steps, which halt and value heads need"
    return (
        f"{type(model).__name__} has no attribute {HEADS_ATTRIBUTE!r} for halt and value heads (give it one, and call "
        "pyro_gram.inference.sites.sample_halt_and_value, as models/gram.py does)"
    )


def check_has_heads(model: Any, purpose: str) -> None:
    """Raise ConfigError if a program has no heads. ``purpose`` is the verb of the message, such as "halt"."""
    if reason := why_no_heads(model):
        raise ConfigError(
            f"{reason}: it has no heads to {purpose} by; answer by vote (--select vote, or verified), at full depth "
            "(without --halt) and with independent trajectories (without --draws smc)"
        )
    if not has_heads(model):
        raise ConfigError(
            f"this model has no heads to {purpose} by: train with --heads.hidden 64, or give it some with "
            "experiments/heads.py"
        )


def add_training_loss(name: str, loss: Tensor) -> None:
    """Add a term to the training loss. Reported bounds leave the term out. Call this inside the plates of the data.

    Args:
        name: the name of the site.
        loss: the term, ``[..., B]``.
    """
    unit = dist.Unit(-loss)
    pyro.sample(name, unit, obs=unit.sample(), infer={"is_auxiliary": True, LOSS_ONLY: True})


def register_parameters(name: str, module: nn.Module) -> None:
    """Make the parameters of ``module`` visible to SVI, as ``pyro.module`` does, but without the global store.

    ``pyro.module`` would give the parameters of a process's first model to a second model of the same name. It also
    leaves a weak reference on each parameter. Such a parameter cannot be pickled or deep-copied.
    """
    if not am_i_wrapped():
        return
    _check_not_compiled()
    for key, value in module.named_parameters():
        _param(f"{name}.{key}", value)


def _check_not_compiled() -> None:
    """Raise NotImplementedError within ``pyro.ops.jit``, which looks for parameters in the global store."""
    if is_called_by(CompiledFunction.__call__):
        raise NotImplementedError(
            "Pyro's JIT losses (JitTrace_ELBO and the like) need parameters in the global parameter store, where this "
            "library puts none: use Trace_ELBO or TraceMeanField_ELBO, and compile the core (train.compile, "
            "model.core.compile()) for speed"
        )


def is_called_by(function: Any) -> bool:
    """Return whether a function is on Python's call stack. Some of Pyro's handlers leave no other sign."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_code is not function.__code__:
        frame = frame.f_back
    return frame is not None


@effectful(type="param")
def _param_site(value: Tensor, full_name: str, **_: object) -> Tensor:
    alias = value.detach()  # shares its storage with value; SVI.step reads its attribute ``unconstrained``

    def unconstrained() -> Tensor:
        # Optimizers of pyro.optim find a parameter's options and state by its name in the store.
        pyro.get_param_store()._param_to_name[value] = full_name
        return value

    alias.unconstrained = unconstrained  # type: ignore[attr-defined]
    return alias


def drop_param_names(parameters: Iterable[Tensor]) -> None:
    """Remove the names of parameters from Pyro's store, which would otherwise keep the parameters alive."""
    for parameter in parameters:
        pyro.get_param_store()._param_to_name.pop(parameter, None)


def _param(full_name: str, value: Tensor) -> None:
    _param_site(value, full_name, name=full_name, constraint=constraints.real)
