"""Sample trajectories of the prior and decode the answer at the end of each.

:func:`rollout` runs the same Pyro program as ``pyro.infer.Predictive``. Under one seed both draw the same numbers, as
long as all settings of a trajectory have their defaults, all inputs have one size, and the model's answers are not
complete before ``depth`` steps. :func:`rollout` keeps no trace and runs in chunks of bounded memory. A
rollout never sees the right answer y. Its decoded answers can therefore be compared with y.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_gram.checks import check_counts
from pyro_gram.errors import UserError
from pyro_gram.inference.contract import model_traits
from pyro_gram.inference.sites import ANSWER, VALUE, check_has_heads
from pyro_gram.sampling.draws import INDEPENDENT, DrawScheme
from pyro_gram.sampling.memory import MAX_TRAJECTORIES
from pyro_gram.sampling.result import Rollout, broadcast_chunk, concatenate_rollouts
from pyro_gram.sampling.steps import isolated_rng, rollout_steps, run_steps, to_device_of
from pyro_gram.sampling.tempering import NO_TEMPER, Temper, TemperConfig, check_no_temper
from pyro_gram.spec import TaskSpec
from pyro_gram.system.distributed import SINGLE_PROCESS, ProcessGroup

# ---- settings -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RolloutConfig:
    """How each trajectory of a rollout is run.

    Attributes:
        depth: the largest number of supervision steps.
        history: keep the answer after each supervision step.
        temper: how the prior differs from the trained one.
        halt: a trajectory ends when the halt head's probability of a right answer reaches this value; None: never.
        draws: how the trajectories of an input are drawn together.
        restarts: how often a trajectory whose last answer the halt head thinks wrong starts anew.
        sweeps: how often half of a complete answer is drawn again.
    """

    depth: int
    history: bool = False
    temper: TemperConfig = NO_TEMPER
    halt: float | None = None
    draws: DrawScheme = INDEPENDENT
    restarts: int = 0
    sweeps: int = 0


# ---- rollout -----------------------------------------------------------------------------------------------------


def rollout(
    model: Callable[..., Any],
    x: Tensor | None,
    *,
    num_samples: int,
    depth: int,
    seed: int = 0,
    history: bool = False,
    temper: TemperConfig = NO_TEMPER,
    halt: float | None = None,
    draws: DrawScheme = INDEPENDENT,
    restarts: int = 0,
    sweeps: int = 0,
    max_trajectories: int = MAX_TRAJECTORIES,
    progress: Callable[[int], Any] | None = None,
    processes: ProcessGroup = SINGLE_PROCESS,
) -> Rollout:
    """Sample ``num_samples`` trajectories of the prior for each input, from z_0, and decode their answers.

    Args:
        model: a program ``model(x, y, state, steps=1)`` with sites ``y``, ``h`` and ``l``, such as GRAM.
        x: inputs, int64 ``[B, *event]``; None for a model without input, p(x), where B is 1.
        num_samples: N, trajectories for each input.
        depth: the largest number of supervision steps.
        seed: chunk c draws under ``seed + c``; chunk 0 draws as ``Predictive`` does under ``seed``. Answers depend on
            the seed, on all of x, the settings and ``max_trajectories``. The caller's random state is restored.
        history: keep the answer after each supervision step.
        temper: how the prior differs from the trained one.
        halt: a trajectory ends after the first supervision step at which the halt head's probability of a right
            answer reaches this value (A.1: 0.5). None or 1: it runs to ``depth``, or until its answer is complete.
        draws: how the trajectories of an input are drawn together (``sampling.draws``).
        restarts: how often a trajectory starts anew if, at its end, the halt head's probability is below 0.5.
        sweeps: how often a random half of a complete answer of a lattice is opened again and drawn given the rest. A
            sweep that is not complete after ``depth`` steps is dropped.
        max_trajectories: the largest number of trajectories that run at once.
        progress: called after each chunk with its number of trajectories.
        processes: the processes that share the chunks. Each returns all answers, the same for any number of them.

    Raises:
        UserError: a number is out of range, or history is set and trajectories may end at different times.
        ConfigError: halt or restarts are set, and the program has no heads.
    """
    check_counts(seed=seed, num_samples=num_samples, depth=depth, max_trajectories=max_trajectories)
    _check_halt(halt, model)
    check_no_temper()
    config = RolloutConfig(depth, history, temper, None if halt == 1 else halt, draws, restarts, sweeps)
    _check_config(config, x, model)
    size = max(1, max_trajectories // draws.num_proposals(1))
    order = _order_by_size(model, x)
    x = x if x is None or order is None else x[order]
    inputs = [None] if x is None else list(x.split(max(1, size // num_samples)))
    counts = [min(size, num_samples - start) for start in range(0, num_samples, size)]
    chunks: list[Rollout | None] = []
    with isolated_rng(model, x):
        for chunk, (part, count) in enumerate(product(inputs, counts)):
            if chunk % processes.size != processes.rank:
                chunks.append(None)
                continue
            torch.manual_seed(seed + chunk)
            chunks.append(result := _run_cropped_chunk(model, part, count, config))
            if progress:
                progress(result.score.numel())
    result = _join_chunks(model, chunks, len(counts), processes)
    return result if order is None else result.select(order.argsort())


def _join_chunks(model: Any, chunks: list[Rollout | None], parts: int, processes: ProcessGroup) -> Rollout:
    """Join the chunks of all processes; ``parts`` consecutive chunks hold the trajectories of the same inputs."""
    device = to_device_of(model, torch.empty(0)).device if isinstance(model, nn.Module) else torch.device("cpu")
    owned = [broadcast_chunk(chunk, number % processes.size, processes, device) for number, chunk in enumerate(chunks)]
    rows = [owned[first : first + parts] for first in range(0, len(owned), parts)]
    return concatenate_rollouts([concatenate_rollouts(row, dim=0) for row in rows], dim=1)


def _spec_with_sizes(model: Any) -> TaskSpec | None:
    """Return the spec of a model whose inputs have several sizes; None for other models and programs."""
    spec: TaskSpec | None = getattr(poutine.unwrap(model), "spec", None)
    return None if spec is None or spec.padding is None else spec


def _order_by_size(model: Any, x: Tensor | None) -> Tensor | None:
    """Return an order in which inputs of nearly one size run together, with little padding; None if all have one."""
    spec = _spec_with_sizes(model)
    return None if spec is None or x is None else spec.sizes_of(x).argsort(stable=True)


def _check_halt(halt: float | None, model: Any) -> None:
    if halt is None:
        return
    if not isinstance(halt, int | float) or not 0 <= halt <= 1:
        raise UserError(f"halt is a probability, from 0 to 1, not {halt!r}")
    if halt < 1:
        check_has_heads(model, "halt")


def _check_config(config: RolloutConfig, x: Tensor | None, model: Any) -> None:
    for name in ("restarts", "sweeps"):
        if getattr(config, name) < 0:
            raise UserError(f"{name} must be at least 0, not {getattr(config, name)}")
    if config.restarts:
        check_has_heads(model, "halt")
    if config.sweeps and (config.history or not model_traits(model).has_lattice):
        raise UserError("sweeps draw half of a complete answer again: they need a model with a lattice, and no history")
    if config.history and (config.halt is not None or config.draws.is_selective or config.restarts):
        raise UserError("a history needs trajectories that run once to the full depth: leave out halt, draws, restarts")
    if x is None and config.draws.is_selective:
        raise UserError("distinct trajectories are for answers to an input, not for p(x)")


# ---- one chunk ---------------------------------------------------------------------------------------------------


def _run_cropped_chunk(model: Callable[..., Any], x: Tensor | None, num_samples: int, config: RolloutConfig) -> Rollout:
    """Run a chunk without the padding that all of its inputs share; the answers are padded again.

    The result is a copy: the answers of a chunk lie between its freed tensors, whose memory the allocator uses again.
    """
    spec = _spec_with_sizes(model)
    if spec is None or x is None:
        return _run_chunk(model, x, num_samples, config).clone()
    cropped_x, _ = spec.crop(x, x)
    return _run_chunk(model, cropped_x, num_samples, config).pad(x.shape[-1]).clone()


def _run_chunk(model: Callable[..., Any], x: Tensor | None, num_samples: int, config: RolloutConfig) -> Rollout:
    """Run ``num_samples`` trajectories of each input together."""
    # Pyro applies the inner handler first: Temper changes the prior, then the draw scheme draws from it.
    with config.draws.handler(), Temper(config.temper):
        has_lattice = model_traits(model).has_lattice and not config.history
        if config.halt is not None or config.draws.is_selective or config.restarts or has_lattice:
            from pyro_gram.sampling.halting import run_until_halted

            names = ("depth", "halt", "draws", "restarts", "sweeps")
            settings: dict[str, Any] = {name: getattr(config, name) for name in names}
            return run_until_halted(model, x, num_samples, **settings)
        if config.history:
            ends = list(rollout_steps(model, x, depth=config.depth, num_samples=num_samples))
        else:
            ends = [run_steps(model, x, None, num_samples, config.depth)]
    tokens = ends[-1].values[ANSWER]
    steps = torch.full(tokens.shape[:2], config.depth, device=tokens.device)
    history = torch.stack([end.values[ANSWER] for end in ends]) if config.history else None
    score = ends[-1].score + sum(end.log_decided for end in ends[:-1])
    return Rollout(tokens, score, steps, steps.sum(0), ends[-1].values.get(VALUE), history)
