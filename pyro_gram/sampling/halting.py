"""Run trajectories that end at different times, start wrong ones anew, and open complete answers again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from pyro_gram.errors import ConfigError
from pyro_gram.inference.contract import model_traits
from pyro_gram.inference.sites import ANSWER, HALT, HALTED, VALUE
from pyro_gram.networks.core import LatentState
from pyro_gram.sampling.draws import DrawScheme
from pyro_gram.sampling.result import Rollout
from pyro_gram.sampling.steps import Decode, run_steps, start_states

LOG_DECIDED = "log_decided"
REOPENED_SHARE = 0.5  # share of the tokens of a complete answer that a sweep opens again
WRONG = 0.5  # an answer is thought wrong if the halt head gives it a lower probability of being right


def run_until_halted(
    model: Callable[..., Any],
    x: Tensor | None,
    num_samples: int,
    *,
    depth: int,
    halt: float | None,
    draws: DrawScheme,
    restarts: int,
    sweeps: int,
) -> Rollout:
    """Run trajectories one supervision step at a time; a trajectory that has halted leaves the batch.

    The arguments are those of ``rollout``. The trajectories of all inputs lie along one dimension: row ``n * B + b`` is
    trajectory n of input b.
    """
    num_proposals = draws.num_proposals(num_samples)
    step = min(depth, draws.shared_steps)
    end = run_steps(model, x, None, num_proposals, step)
    kept_index = draws.select(end.values[ANSWER], num_samples)  # [N, B]
    b = kept_index.shape[1]
    rows = (kept_index * b + torch.arange(b, device=kept_index.device)).flatten()
    # After one transition all trajectories of an input still share l, so that l has no dimension for trajectories.
    state = LatentState(*(part.expand(num_proposals, b, -1, -1).flatten(0, 1)[rows] for part in end.state))
    values = {name: value.flatten(0, 1)[rows] for name, value in _read_answers(end).items()}
    x_rows = None if x is None else x[rows % b]
    values, steps = _run_rows(model, x_rows, state, values, depth, halt, step)
    for _ in range(restarts):
        wrong_rows = (values[HALT] < WRONG).nonzero().flatten()
        if not len(wrong_rows):
            break
        x_wrong = None if x_rows is None else x_rows[wrong_rows]
        start = start_states(model, x_wrong, len(wrong_rows))
        new_values, new_steps = _run_from(model, x_wrong, start, depth, halt)
        values = {name: value.index_copy(0, wrong_rows, new_values[name]) for name, value in values.items()}
        steps = steps.index_add(0, wrong_rows, new_steps)
    for _ in range(sweeps):
        state = _reopen(model, x_rows, values[ANSWER])
        new_values, new_steps = _run_from(model, x_rows, state, depth, None)
        is_complete = new_values[HALTED]
        values = {name: _where(is_complete, new_values[name], value) for name, value in values.items()}
        steps = steps + new_steps
    if sweeps:  # they differ in how many tokens they drew again
        values["score"] = torch.zeros_like(values["score"])
    results = {name: value.unflatten(0, (num_samples, b)) for name, value in values.items()}
    steps = steps.view(num_samples, b)
    work = steps.sum(0) + (num_proposals - num_samples) * step
    return Rollout(results[ANSWER], results["score"], steps, work, results.get(VALUE))


def _run_from(
    model: Callable[..., Any], x: Tensor | None, state: LatentState, depth: int, halt: float | None
) -> tuple[dict[str, Tensor], Tensor]:
    """Run trajectories from ``state`` until each has halted; arguments and results are those of :func:`_run_rows`."""
    end = run_steps(model, x, state, None, 1)
    return _run_rows(model, x, end.state, _read_answers(end), depth, halt, 1)


def _run_rows(
    model: Callable[..., Any],
    x: Tensor | None,
    state: LatentState,
    values: dict[str, Tensor],
    depth: int,
    halt: float | None,
    step: int,
) -> tuple[dict[str, Tensor], Tensor]:
    """Run trajectories until each has halted.

    Args:
        model: the program.
        x: the input of each trajectory, ``[R, *event]``, or None.
        state: the state of each trajectory after ``step`` supervision steps.
        values: the answers and outputs of the heads in this state.
        depth, halt: as for a rollout.
        step: supervision steps that all trajectories have made.

    Returns: the values at the end of each trajectory, and its number of supervision steps, int64 ``[R]``.
    """
    final_values = {name: torch.empty_like(value) for name, value in values.items()}
    active_rows = torch.arange(len(state.h), device=state.h.device)
    steps = torch.empty_like(active_rows)
    while True:
        halted = _find_halted(model, values, depth, halt, step)
        for name, value in values.items():
            final_values[name][active_rows[halted]] = value[halted]
        steps[active_rows[halted]] = step
        active_rows, state = active_rows[~halted], LatentState(state.h[~halted], state.l[~halted])
        log_decided = values[LOG_DECIDED][~halted]
        if not len(active_rows):
            return final_values, steps
        end = run_steps(model, None if x is None else x[active_rows], state, None, 1)
        step, state, values = step + 1, end.state, _read_answers(end, log_decided)


def _read_answers(end: Decode, log_decided: Tensor | float = 0.0) -> dict[str, Tensor]:
    """Return the answers at the end of a supervision step, their scores, and the outputs of the heads.

    ``log_decided`` is log p of the values that were decided in earlier steps.
    """
    heads = {name: end.values[name] for name in (HALT, VALUE, HALTED) if name in end.values}
    score = end.score + log_decided
    decided = torch.zeros_like(score) + end.log_decided + log_decided
    return {ANSWER: end.values[ANSWER], "score": score, LOG_DECIDED: decided, **heads}


def _find_halted(model: Any, values: dict[str, Tensor], depth: int, halt: float | None, step: int) -> Tensor:
    """Return a bool mask ``[R]`` of the trajectories that end after this step."""
    if step >= depth:
        return torch.ones_like(values["score"], dtype=torch.bool)
    is_complete = torch.zeros_like(values["score"], dtype=torch.bool)
    if model_traits(model).has_lattice:
        is_complete = values[HALTED]
    if halt is None:
        return is_complete
    if HALT not in values:
        raise ConfigError(
            "the program has heads and no site 'halt': call pyro_gram.inference.sites.sample_halt_and_value in it"
        )
    return is_complete | (values[HALT] >= halt)


def _reopen(model: Callable[..., Any], x: Tensor | None, tokens: Tensor) -> LatentState:
    """Return states in which a random half of the tokens is open as in z_0, and the others have their ``tokens``."""
    start = start_states(model, x, len(tokens))
    is_open = torch.rand(tokens.shape, device=tokens.device) < REOPENED_SHARE
    decided = one_hot(tokens, start.h.shape[-1]).to(start.h.dtype)
    return LatentState(torch.where(is_open[..., None], start.h, decided), start.l)


def _where(mask: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(mask.reshape(*mask.shape, *[1] * (a.ndim - mask.ndim)), a, b)
