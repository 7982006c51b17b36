"""Roll-outs from the prior: width (many trajectories) times depth (many supervision steps), untraced and in chunks.

This is the same Pyro program that ``Predictive`` runs, with the same draws under the same seed where neither a temper,
nor a halt, nor another width is asked for, without a trace to keep. It takes no y: what it returns can be scored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from pyro_gram.checks import check_counts
from pyro_gram.errors import ConfigError, UserError
from pyro_gram.inference.sites import ANSWER, HALT, HEADS_ATTRIBUTE, VALUE
from pyro_gram.networks.core import LatentState
from pyro_gram.sampling.decode import Decode, advance, beside, quiet, unrolled
from pyro_gram.sampling.draws import Width
from pyro_gram.sampling.tempering import Temper, TemperConfig, check_no_temper
from pyro_gram.system.distributed import SINGLE_PROCESS, ProcessGroup

AS_IT_IS = TemperConfig()
INDEPENDENT = Width()
MAX_TRAJECTORIES = 2048  # at L = 8, D = 128 about 250 MB at the widest point of a transition
# What a roll-out takes of memory, so that it stays within a limit (measured by bench_solve.py): some 32
# tensors of [L, D] float32 a trajectory, up to twice that with what the allocator holds back, and a constant.
TENSORS, CONSTANT_MB = 64, 8.0


def at_once(length: int, most: int = MAX_TRAJECTORIES) -> int:
    """How many trajectories of ``length`` positions fit into the memory of ``most`` trajectories of 8."""
    return max(1, min(most, most * 8 // length))


def trajectories_within(memory: float, length: int, width: int) -> int:
    """How many trajectories may run at once in ``memory`` MB, beside the model.

    Args:
        memory: MB.
        length, width: L and D of a state.

    Raises:
        UserError: not even one.
    """
    each = TENSORS * 4 * length * width / 2**20
    least = CONSTANT_MB + each
    if not memory >= least:
        raise UserError(f"a memory limit of {memory:g} MB does not hold one trajectory: give at least {least:.1f}")
    return int(min((memory - CONSTANT_MB) / each, 2**31))


@dataclass(frozen=True)
class Rollout:
    """Trajectories of the prior, decoded.

    Attributes:
        tokens: the most probable answer at each trajectory's end, int64 ``[N, B, L_out]``.
        score: log p(tokens | h_T), nats, ``[N, B]``: the decoder's confidence; of diffusion models, in the path there.
        steps: supervision steps until that end, int64 ``[N, B]``.
        work: supervision steps run for each input, all trajectories together, those given up too, int64 ``[B]``.
        value: the value head's estimate that the answer is right, ``[N, B]``; None without heads.
        history: the answer after each supervision step, int64 ``[depth, N, B, L_out]``; None unless asked for.
    """

    tokens: Tensor
    score: Tensor
    steps: Tensor
    work: Tensor
    value: Tensor | None = None
    history: Tensor | None = None

    def cpu(self) -> Rollout:
        """The same on the CPU."""
        held: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {name: t if t is None else t.cpu() for name, t in held.items()}
        return Rollout(**moved)


@dataclass(frozen=True)
class Plan:
    """How far a trajectory goes, and in what way: the settings of :func:`rollout` but for the number of them."""

    depth: int
    history: bool = False
    temper: TemperConfig = AS_IT_IS
    halt: float | None = None
    width: Width = field(default_factory=Width)


def rollout(
    model: Callable[..., Any],
    x: Tensor | None,
    *,
    num_samples: int,
    depth: int,
    seed: int = 0,
    history: bool = False,
    temper: TemperConfig = AS_IT_IS,
    halt: float | None = None,
    width: Width = INDEPENDENT,
    max_trajectories: int = MAX_TRAJECTORIES,
    progress: Callable[[int], None] | None = None,
    processes: ProcessGroup = SINGLE_PROCESS,
) -> Rollout:
    """Run the program ``num_samples`` times on each input, ``depth`` supervision steps deep, from z_0.

    Args:
        model: a program ``model(x, y, state, steps=1)`` with sites ``y``, ``h`` and ``l`` (``models.gram.GRAM``).
        x: inputs, int64 ``[B, *event]``; None for p(x), where B is 1.
        num_samples: N, trajectories an input.
        depth: supervision steps, at the most.
        seed: of the draws. Answers depend on it, on x as a whole, the settings and ``max_trajectories`` alone; chunk 0
            draws as ``Predictive`` would under ``seed``. The caller's random state is left as it was.
        history: keep every supervision step's answer.
        temper: the scale of the prior at the start of each trajectory.
        halt: a trajectory ends, and leaves the batch, after the first supervision step at which the halt head gives its
            answer this probability of being right (A.1: 0.5). None and 1: all go to ``depth``.
        width: how the trajectories of an input are spread (``sampling.draws``).
        max_trajectories: the most that run at once.
        progress: called with the number of trajectories done after each chunk.
        processes: processes that share the chunks; each gets all of them. Answers do not depend on it.

    Raises:
        UserError: ``num_samples`` or ``depth`` below 1, a halt outside [0, 1], or a history of trajectories that end at
            different times.
        ConfigError: a halt for a program without heads.
    """
    check_counts(seed=seed, num_samples=num_samples, depth=depth, max_trajectories=max_trajectories)
    _check_halt(halt, model)
    check_no_temper()
    plan = Plan(depth, history, temper, None if halt == 1 else halt, width)
    _check_plan(plan, x)
    most = max(1, max_trajectories // width.begun(1))  # of those that end, where more of them begin
    inputs = [None] if x is None else list(x.split(max(1, most // num_samples)))
    counts = [min(most, num_samples - start) for start in range(0, num_samples, most)]
    chunks: list[Rollout | None] = []
    with quiet(model, x):
        for chunk, (part, count) in enumerate(product(inputs, counts)):
            if chunk % processes.size != processes.rank:
                chunks.append(None)
                continue
            torch.manual_seed(seed + chunk)
            chunks.append(done := _run(model, part, count, plan))
            if progress:
                progress(done.score.numel())
    here = beside(model, torch.empty(0)).device if isinstance(model, nn.Module) else torch.device("cpu")
    told = [_told(done, chunk % processes.size, processes, here) for chunk, done in enumerate(chunks)]
    rows = [told[first : first + len(counts)] for first in range(0, len(told), len(counts))]
    return _join([_join(columns, dim=0) for columns in rows], dim=1)


def _told(chunk: Rollout | None, owner: int, processes: ProcessGroup, device: torch.device) -> Rollout:
    """A chunk that one process has, in all of them."""
    if processes.size == 1:
        assert chunk is not None
        return chunk
    names = [f.name for f in fields(Rollout)]
    there = None if chunk is None else torch.tensor([getattr(chunk, name) is not None for name in names])
    present = processes.broadcast(there, owner, device).tolist()
    held = {name: None if chunk is None else getattr(chunk, name) for name in names}
    sent = {
        name: processes.broadcast(held[name], owner, device) for name, yes in zip(names, present, strict=True) if yes
    }
    return Rollout(**sent)


def has_heads(model: Any) -> bool:
    """Does the program have halt and value heads?"""
    return getattr(model, HEADS_ATTRIBUTE, None) is not None


def why_no_heads(model: Any) -> str:
    """Why a program can be given no halt and value heads; nothing where it has a place for them."""
    if hasattr(model, HEADS_ATTRIBUTE):
        return ""
    if name := getattr(model, "registered_name", ""):
        return f"the model {name} takes no supervision steps whose states halt and value heads could judge"
    return (
        f"{type(model).__name__} has no attribute {HEADS_ATTRIBUTE!r} for halt and value heads (give it one, and call "
        "pyro_gram.inference.sites.sample_halt_and_value, as models/gram.py does)"
    )


def check_has_heads(model: Any, what: str) -> None:
    """Raises ConfigError where a program has no heads to do ``what`` by."""
    if why := why_no_heads(model):
        raise ConfigError(
            f"{why}: it has no heads to {what} by; answer by vote (--select vote, or verified), at full depth (without "
            "--halt) and with independent trajectories (without --width smc)"
        )
    if not has_heads(model):
        raise ConfigError(
            f"this model has no heads to {what} by: train with --heads.hidden 64, or give it some with "
            "experiments/heads.py"
        )


def _check_halt(halt: float | None, model: Any) -> None:
    if halt is None:
        return
    if not isinstance(halt, int | float) or not 0 <= halt <= 1:
        raise UserError(f"halt is a probability, from 0 to 1, not {halt!r}")
    if halt < 1:
        check_has_heads(model, "halt")


def _check_plan(plan: Plan, x: Tensor | None) -> None:
    if plan.history and (plan.halt is not None or plan.width.gives_up):
        raise UserError("a history needs trajectories that go on to the end: leave out halt and width")
    if x is None and plan.width.gives_up:
        raise UserError("distinct trajectories are for answers to an input, not for p(x)")


def _run(model: Callable[..., Any], x: Tensor | None, n: int, plan: Plan) -> Rollout:
    """One chunk: n trajectories of each input."""
    # What is nearer to the program acts first: draws are of the prior that the temper has widened.
    with plan.width.draws(), Temper(plan.temper):
        if plan.halt is not None or plan.width.gives_up:
            return _until_halted(model, x, n, plan)
        if plan.history:
            ends = list(unrolled(model, x, depth=plan.depth, num_samples=n))
        else:
            ends = [advance(model, x, None, n, plan.depth)]
    last = ends[-1]
    tokens = last.values[ANSWER]
    steps = torch.full(tokens.shape[:2], plan.depth, device=tokens.device)
    history = torch.stack([end.values[ANSWER] for end in ends]) if plan.history else None
    score = last.likelihood.log_prob(tokens)
    return Rollout(tokens, score, steps, steps.sum(0), last.values.get(VALUE), history)


def _until_halted(model: Callable[..., Any], x: Tensor | None, n: int, plan: Plan) -> Rollout:
    """As :func:`_run`, supervision step by step; a trajectory that has ended takes no further part."""
    assert x is not None
    begun, step = plan.width.begun(n), min(plan.depth, plan.width.before_choice)
    end = advance(model, x, None, begun, step)
    chosen = plan.width.choose(end.values[ANSWER], n)  # [n, B]
    b = chosen.shape[1]
    rows = (chosen * b + torch.arange(b, device=chosen.device)).flatten()
    given_up = (begun - n) * step
    # After one transition l is still what all trajectories of an input share, without a dimension for them.
    state = LatentState(*(part.expand(begun, b, -1, -1).flatten(0, 1)[rows] for part in end.state))
    now = {name: value.flatten(0, 1)[rows] for name, value in _said(end).items()}
    found = {name: torch.empty_like(value) for name, value in now.items()}
    steps = torch.empty_like(rows)
    going = torch.arange(len(rows), device=rows.device)
    while True:
        over = _over(now, going, plan, step)
        for name, value in now.items():
            found[name][going[over]] = value[over]
        steps[going[over]] = step
        going, state = going[~over], LatentState(state.h[~over], state.l[~over])
        if not len(going):
            break
        end = advance(model, x[going % b], state, None, 1)
        step, state, now = step + 1, end.state, _said(end)
    shaped = {name: value.unflatten(0, (n, b)) for name, value in found.items()}
    steps = steps.view(n, b)
    return Rollout(shaped[ANSWER], shaped["score"], steps, steps.sum(0) + given_up, shaped.get(VALUE))


def _said(end: Decode) -> dict[str, Tensor]:
    """The answer at the end of a supervision step, its score, and what the heads say of it."""
    tokens = end.values[ANSWER]
    heads = {name: end.values[name] for name in (HALT, VALUE) if name in end.values}
    return {ANSWER: tokens, "score": end.likelihood.log_prob(tokens), **heads}


def _over(now: dict[str, Tensor], going: Tensor, plan: Plan, step: int) -> Tensor:
    """Which of the trajectories that go on end here, bool."""
    if step >= plan.depth:
        return torch.ones_like(going, dtype=torch.bool)
    if plan.halt is None:
        return torch.zeros_like(going, dtype=torch.bool)
    if HALT not in now:
        raise ConfigError(
            "the program has heads and no site 'halt': call pyro_gram.inference.sites.sample_halt_and_value in it"
        )
    return now[HALT] >= plan.halt


def _join(parts: list[Rollout], dim: int) -> Rollout:
    """Chunks side by side: dim 0 for trajectories, 1 for inputs."""
    if len(parts) == 1:
        return parts[0]

    def joined(name: str, dim: int) -> Any:
        kept = [getattr(p, name) for p in parts]
        return None if kept[0] is None else torch.cat(kept, dim)

    work = torch.stack([p.work for p in parts]).sum(0) if dim == 0 else torch.cat([p.work for p in parts])
    columns = {name: joined(name, dim) for name in ("tokens", "score", "steps", "value")}
    return Rollout(**columns, work=work, history=joined("history", dim + 1))
