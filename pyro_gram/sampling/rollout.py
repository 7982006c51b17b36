"""Sample trajectories of the prior and decode the answer at the end of each.

:func:`rollout` runs the same Pyro program as ``pyro.infer.Predictive``. Under one seed both draw the same numbers, as
long as ``temper``, ``halt`` and ``draws`` have their defaults, and all inputs have one size. :func:`rollout` keeps no
trace and runs in chunks of bounded memory. A rollout never sees the right answer y. Its decoded answers can therefore
be compared with y.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import product
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyro_gram.checks import check_counts
from pyro_gram.errors import ConfigError, UserError
from pyro_gram.inference.sites import (
    ANSWER,
    DRAW_ANSWER,
    HALT,
    HEAD_SITE,
    STATE_H,
    STATE_L,
    VALUE,
    check_has_heads,
    transition_index,
)
from pyro_gram.inference.terms import is_counted, log_prob_of, per_input, weight_of_inputs
from pyro_gram.networks.core import LatentState
from pyro_gram.sampling.draws import INDEPENDENT, DrawScheme
from pyro_gram.sampling.memory import MAX_TRAJECTORIES
from pyro_gram.sampling.result import Rollout, broadcast_chunk, concatenate_rollouts
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
        temper: the scale of the prior in the first transitions.
        halt: a trajectory ends when the halt head's probability of a right answer reaches this value; None: never.
        draws: how the trajectories of an input are drawn together.
    """

    depth: int
    history: bool = False
    temper: TemperConfig = NO_TEMPER
    halt: float | None = None
    draws: DrawScheme = INDEPENDENT


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
        temper: the scale of the prior in the first transitions.
        halt: a trajectory ends after the first supervision step at which the halt head's probability of a right
            answer reaches this value (A.1: 0.5). With None or 1 every trajectory runs to ``depth``.
        draws: how the trajectories of an input are drawn together (``sampling.draws``).
        max_trajectories: the largest number of trajectories that run at once.
        progress: called after each chunk with its number of trajectories.
        processes: the processes that share the chunks. Each returns all answers. They are the same for any number of
            processes.

    Raises:
        UserError: ``num_samples`` or ``depth`` is below 1, halt is outside [0, 1], or history is set and trajectories
            may end at different times.
        ConfigError: halt is set, and the program has no heads.
    """
    check_counts(seed=seed, num_samples=num_samples, depth=depth, max_trajectories=max_trajectories)
    _check_halt(halt, model)
    check_no_temper()
    config = RolloutConfig(depth, history, temper, None if halt == 1 else halt, draws)
    _check_config(config, x)
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
    device = to_device_of(model, torch.empty(0)).device if isinstance(model, nn.Module) else torch.device("cpu")
    parts = [broadcast_chunk(result, chunk % processes.size, processes, device) for chunk, result in enumerate(chunks)]
    rows = [parts[first : first + len(counts)] for first in range(0, len(parts), len(counts))]
    result = concatenate_rollouts([concatenate_rollouts(row, dim=0) for row in rows], dim=1)
    return result if order is None else result.select(order.argsort())


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


def _check_config(config: RolloutConfig, x: Tensor | None) -> None:
    if config.history and (config.halt is not None or config.draws.is_selective):
        raise UserError("a history needs trajectories that all run to the full depth: leave out halt and draws")
    if x is None and config.draws.is_selective:
        raise UserError("distinct trajectories are for answers to an input, not for p(x)")


# ---- one chunk ---------------------------------------------------------------------------------------------------


def _run_cropped_chunk(model: Callable[..., Any], x: Tensor | None, num_samples: int, config: RolloutConfig) -> Rollout:
    """Run a chunk without the padding that all of its inputs share; the answers are padded again."""
    spec = _spec_with_sizes(model)
    if spec is None or x is None:
        return _run_chunk(model, x, num_samples, config)
    cropped_x, _ = spec.crop(x, x)
    return _run_chunk(model, cropped_x, num_samples, config).pad(x.shape[-1])


def _run_chunk(model: Callable[..., Any], x: Tensor | None, num_samples: int, config: RolloutConfig) -> Rollout:
    """Run ``num_samples`` trajectories of each input together."""
    # Pyro applies the inner handler first: Temper changes the prior, then the draw scheme draws from it.
    with config.draws.handler(), Temper(config.temper):
        if config.halt is not None or config.draws.is_selective:
            return _run_until_halted(model, x, num_samples, config)
        if config.history:
            ends = list(rollout_steps(model, x, depth=config.depth, num_samples=num_samples))
        else:
            ends = [run_steps(model, x, None, num_samples, config.depth)]
    tokens = ends[-1].values[ANSWER]
    steps = torch.full(tokens.shape[:2], config.depth, device=tokens.device)
    history = torch.stack([end.values[ANSWER] for end in ends]) if config.history else None
    score = ends[-1].likelihood.log_prob(tokens)
    return Rollout(tokens, score, steps, steps.sum(0), ends[-1].values.get(VALUE), history)


def _run_until_halted(model: Callable[..., Any], x: Tensor | None, num_samples: int, config: RolloutConfig) -> Rollout:
    """Run trajectories one supervision step at a time; a trajectory that has halted leaves the batch.

    The trajectories of all inputs lie along one dimension: row ``n * B + b`` is trajectory n of input b.
    """
    assert x is not None
    num_proposals = config.draws.num_proposals(num_samples)
    step = min(config.depth, config.draws.shared_steps)
    end = run_steps(model, x, None, num_proposals, step)
    kept_index = config.draws.select(end.values[ANSWER], num_samples)  # [N, B]
    b = kept_index.shape[1]
    rows = (kept_index * b + torch.arange(b, device=kept_index.device)).flatten()
    dropped_work = (num_proposals - num_samples) * step
    # After one transition all trajectories of an input still share l, so that l has no dimension for trajectories.
    state = LatentState(*(part.expand(num_proposals, b, -1, -1).flatten(0, 1)[rows] for part in end.state))
    values = {name: value.flatten(0, 1)[rows] for name, value in _read_answers(end).items()}
    final_values = {name: torch.empty_like(value) for name, value in values.items()}
    steps = torch.empty_like(rows)
    active_rows = torch.arange(len(rows), device=rows.device)
    while True:
        halted = _find_halted(values, active_rows, config, step)
        for name, value in values.items():
            final_values[name][active_rows[halted]] = value[halted]
        steps[active_rows[halted]] = step
        active_rows, state = active_rows[~halted], LatentState(state.h[~halted], state.l[~halted])
        if not len(active_rows):
            break
        end = run_steps(model, x[active_rows % b], state, None, 1)
        step, state, values = step + 1, end.state, _read_answers(end)
    results = {name: value.unflatten(0, (num_samples, b)) for name, value in final_values.items()}
    steps = steps.view(num_samples, b)
    return Rollout(results[ANSWER], results["score"], steps, steps.sum(0) + dropped_work, results.get(VALUE))


def _read_answers(end: Decode) -> dict[str, Tensor]:
    """Return the answers at the end of a supervision step, their scores, and the outputs of the heads."""
    tokens = end.values[ANSWER]
    heads = {name: end.values[name] for name in (HALT, VALUE) if name in end.values}
    return {ANSWER: tokens, "score": end.likelihood.log_prob(tokens), **heads}


def _find_halted(values: dict[str, Tensor], active_rows: Tensor, config: RolloutConfig, step: int) -> Tensor:
    """Return a bool mask of the active trajectories that end after this step."""
    if step >= config.depth:
        return torch.ones_like(active_rows, dtype=torch.bool)
    if config.halt is None:
        return torch.zeros_like(active_rows, dtype=torch.bool)
    if HALT not in values:
        raise ConfigError(
            "the program has heads and no site 'halt': call pyro_gram.inference.sites.sample_halt_and_value in it"
        )
    return values[HALT] >= config.halt


# ---- supervision steps -------------------------------------------------------------------------------------------


def rollout_steps(
    model: Callable[..., Any], x: Tensor | None, *, depth: int, num_samples: int | None = None
) -> Iterator[Decode]:
    """Run ``depth`` supervision steps from z_0, all trajectories together; yield the decoded end of each step.

    Draws come from the caller's generator.

    Args:
        model: the program.
        x: inputs, int64 ``[B, *event]``; None for a model without input, p(x).
        depth: supervision steps.
        num_samples: N, for states ``[N, B, L, D]``; None for one trajectory of each input, ``[B, L, D]``.
    """
    state = None
    for _ in range(depth):
        end = run_steps(model, x, state, num_samples, 1)
        yield end
        state = end.state


def run_steps(
    model: Callable[..., Any], x: Tensor | None, state: LatentState | None, num_samples: int | None, steps: int
) -> Decode:
    """Run ``steps`` supervision steps from ``state`` and return their decoded end.

    Args:
        model: the program.
        x: inputs, int64 ``[B, *event]``; None for a model without input, p(x).
        state: where to start; None for z_0.
        num_samples: N trajectories of each input; None for one trajectory, without a dimension for N.
        steps: supervision steps.
    """
    plate = nullcontext() if num_samples is None else pyro.plate("trajectories", num_samples, dim=-2)
    with Decode() as decode, plate:
        model(x, None, state, steps=steps)
    return decode


class Decode(Messenger):
    """Decode the answer of a program instead of sampling it, and record the answer and the final state.

    The site ``y`` takes the mode of p(y | h_T), or a draw if the program marks it with ``DRAW_ANSWER`` (an
    autoregressive model has no known mode). The sites of the heads take their means.

    Attributes:
        values: the values of ``y``, ``h``, ``l`` and, with heads, ``halt`` (P(the answer is right)) and ``value``.
        answer_site: the message of the site ``y``.
        observations: name and message of each other observed site whose density counts.
    """

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[str, Tensor] = {}
        self.answer_site: Any = None
        self.observations: list[tuple[str, Any]] = []

    @property
    def likelihood(self) -> Any:
        """The distribution p(y | h_T)."""
        return self.answer_site["fn"]

    @property
    def state(self) -> LatentState:
        """The state at the end of the program."""
        return LatentState(self.values[STATE_H], self.values[STATE_L])

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] == ANSWER:
            if msg["is_observed"]:
                raise UserError("a rollout of the prior must not be given y")
            msg["value"] = msg["fn"].sample() if msg["infer"].get(DRAW_ANSWER) else msg["fn"].mode
            self.answer_site = msg
        elif _is_head(msg):
            msg["value"] = msg["fn"].mean

    def _pyro_post_sample(self, msg: Any) -> None:
        if _is_head(msg) or msg["name"] in (ANSWER, STATE_H, STATE_L):
            self.values[msg["name"]] = msg["value"]
        else:
            self.observations.extend(counted_observations(msg))

    def log_prob(self, y: Tensor) -> Tensor:
        """Return log p(y | h_T) plus the log density of the other observations, under their masks; nats, ``[N, B]``.

        Args:
            y: ``[B, L_out]``. In a program without input, the whole density of the other observations is added to the
                density of each datum.
        """
        shape = self.answer_site["fn"].batch_shape
        log_prob = log_prob_of({**self.answer_site, "value": y}) / weight_of_inputs(self.answer_site, self.answer_site)
        for name, site in self.observations:
            log_prob = log_prob + per_input(name, site, log_prob_of(site), self.answer_site, shape)
        return log_prob


def counted_observations(msg: Any) -> list[tuple[str, Any]]:
    """If a site is observed and its density counts, return a list with its name and message; else an empty list."""
    if msg["is_observed"] and msg["mask"] is False and transition_index(msg["name"]) is not None:
        msg = {**msg, "mask": None}  # conditioned guidance counts although a truncated program masks it
    return [(msg["name"], msg)] if msg["is_observed"] and is_counted(msg) else []


def _is_head(msg: Any) -> bool:
    """Return whether a head made this site. A user's own site may have the same name, but not the key ``HEAD_SITE``."""
    return bool(msg["infer"].get(HEAD_SITE)) and not msg["is_observed"]


# ---- devices and random states -----------------------------------------------------------------------------------


def to_cpu(x: Tensor | None) -> Tensor | None:
    """Return inputs on the CPU; None stays None."""
    return None if x is None else x.cpu()


def to_device_of(model: nn.Module, tensor: Any) -> Any:
    """Return the tensor on the model's device; None stays None."""
    return None if tensor is None else tensor.to(next(model.parameters()).device)


@contextmanager
def isolated_rng(model: Callable[..., Any], x: Tensor | None) -> Iterator[None]:
    """Run a block without gradients and validation, and restore the caller's random state afterwards.

    Two random states are restored: that of the CPU, and that of the device that holds x (or the model, if x is None).
    """
    tensor = x if x is not None or not isinstance(model, nn.Module) else next(model.parameters(), None)
    devices = [tensor.device] if tensor is not None and tensor.is_cuda else []
    with torch.random.fork_rng(devices=devices), torch.no_grad(), pyro.validation_enabled(False):
        yield
