"""Walks: what many trajectories of a checkpoint say after every supervision step, kept in files between runs.

A walk holds all that the studies of width, depth and halting compare, so that each of their points costs no further
roll-out. It is as large as they need: the first trajectories of an input go all the way, and those beyond stop where
more steps of so many trajectories would exceed the work of the comparison, but not before they would have halted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pyro_gram.inference.sites import ANSWER, HALT, VALUE
from pyro_gram.networks.core import LatentState
from pyro_gram.sampling.memory import chunk_size
from pyro_gram.sampling.rollout import Decode, Rollout, isolated_rng, run_steps, to_device_of
from pyro_gram.sampling.tempering import Temper
from pyro_gram.solver import Solver
from pyro_gram.system.files import read_json, write_json
from pyro_gram.system.machine import environment

WIDTHS = (1, 2, 5, 10, 20, 50, 100)
WHOLE = 20  # trajectories that go all the way: their work bounds that of every point
NAMES = ("tokens", "score", "value", "halt")
Progress = Callable[[int], object]


@dataclass(frozen=True)
class Walk:
    """N trajectories of each of B inputs, after each of S supervision steps, on the CPU.

    A trajectory that has stopped repeats its last step.

    Attributes:
        tokens: the most probable answers, int64 ``[S, N, B, L_out]``.
        score: log p(tokens | h), nats, ``[S, N, B]``.
        value: the value head's estimate that the trajectory's last answer will be right, ``[S, N, B]``.
        halt: the halt head's P(the answer is right), ``[S, N, B]``.
    """

    tokens: Tensor
    score: Tensor
    value: Tensor
    halt: Tensor

    def first(self, n: int, depth: int) -> Walk:
        """The first n trajectories of each input, and their first ``depth`` steps."""
        return Walk(*(part[:depth, :n] for part in vars(self).values()))

    def halted(self, halt: float) -> Rollout:
        """The samples, had each trajectory stopped at its first step with P(right) >= halt; 1 for never."""
        steps = halted_steps(self.halt, halt)
        at = steps[None] - 1
        score, value = (part.gather(0, at)[0] for part in (self.score, self.value))
        tokens = self.tokens.gather(0, at[..., None].expand(1, *self.tokens.shape[1:]))[0]
        return Rollout(tokens, score, steps, steps.sum(0), value)


def halted_steps(halt: Tensor, threshold: float) -> Tensor:
    """The first step with P(right) >= threshold, else the last: ``[S, N, B]`` to int64 ``[N, B]``, from 1."""
    sure = halt >= threshold if threshold < 1 else torch.zeros_like(halt, dtype=torch.bool)
    sure[-1] = True
    return sure.int().argmax(0) + 1


def allowed(n: int, depth: int, whole: int) -> bool:
    """Is the work of n trajectories of ``depth`` steps within that of the comparison? ``whole``: the full depth."""
    return n * depth <= WHOLE * whole


def reach(number: int, whole: int) -> int:
    """How deep the walk follows the trajectory ``number`` (from 0) at the least."""
    if number < WHOLE:
        return whole
    width = next(n for n in WIDTHS if n > number)  # the narrowest sample that it belongs to
    return WHOLE * whole // width


def walk(
    solver: Solver,
    x: Tensor,
    *,
    num_samples: int,
    depth: int,
    seed: int,
    halt: float,
    folder: Path | None = None,
    name: str = "",
    progress: Progress = lambda _: None,
) -> Walk:
    """N trajectories of the prior on each input, as the checkpoint is sampled.

    Args:
        solver: a checkpoint with heads.
        x: inputs, int64 ``[B, *event]``.
        num_samples: N, one of ``WIDTHS``.
        depth: supervision steps.
        seed: of the draws; where no trajectory stops early they are those of ``sampling.rollout.rollout``.
        halt: trajectories beyond ``WHOLE`` stop at this P(right), once they are as deep as :func:`reach` says.
        folder: what is walked is kept there, chunk by chunk of the inputs, and not walked again; None keeps nothing. It
            is of this checkpoint alone (:func:`kept_in`).
        name: of the inputs, in the folder.
        progress: called with the number of trajectories that have been walked.
    """
    chunks: list[dict[str, Tensor]] = []
    settings = {"num_samples": num_samples, "depth": depth, "seed": seed, "halt": halt}
    asked = to_device_of(solver.model, x)
    with isolated_rng(solver.model, asked):
        for chunk, some in enumerate(asked.split(max(1, chunk_size(solver.task.spec.input_length) // num_samples))):

            def made(chunk: int = chunk, some: Tensor = some) -> dict[str, Tensor]:
                torch.manual_seed(seed + chunk)
                return _walk(solver, some, num_samples, depth, halt)

            chunks.append(kept(folder, f"{name}-chunk{chunk}-inputs{len(some)}", settings, made))
            progress(num_samples * len(some))
    return Walk(**{part: torch.cat([chunk[part] for chunk in chunks], 2) for part in NAMES})


def _walk(solver: Solver, x: Tensor, n: int, depth: int, halt: float) -> dict[str, Tensor]:
    b = len(x)
    least = torch.tensor([reach(number, depth) for number in range(n)], device=x.device).repeat_interleave(b)
    steps: list[dict[str, Tensor]] = []
    with Temper(solver.config.temper):
        end = run_steps(solver.model, x, None, n, 1)
        now = {name: value.flatten(0, 1) for name, value in _said(end).items()}
        state = LatentState(*(part.expand(n, b, -1, -1).flatten(0, 1) for part in end.state))
        going = torch.arange(n * b, device=x.device)
        steps.append(now)
        for step in range(2, depth + 1):
            on = (least[going] >= step) | (now[HALT] < halt)
            going, state = going[on], LatentState(state.h[on], state.l[on])
            last = steps[-1]
            if len(going):
                end = run_steps(solver.model, x[going % b], state, None, 1)
                state, now = end.state, _said(end)
                last = {name: value.index_copy(0, going, now[name]) for name, value in last.items()}
            steps.append(last)
    return {name: torch.stack([step[name] for step in steps]).unflatten(1, (n, b)).cpu() for name in NAMES}


def _said(end: Decode) -> dict[str, Tensor]:
    tokens = end.values[ANSWER]
    heads = {name: end.values[name] for name in (VALUE, HALT)}
    return {"tokens": tokens, "score": end.likelihood.log_prob(tokens), **heads}


def kept_in(folder: Path | None, checkpoint: Path, solver: Solver) -> Path | None:
    """Where the roll-outs of a checkpoint are kept: under its name and a digest of its weights and settings."""
    if folder is None:
        return None
    digest = hashlib.sha256(repr(solver.config.to_dict()).encode())
    for value in solver.model.state_dict().values():
        digest.update(value.cpu().numpy().tobytes())
    return folder / f"{checkpoint.stem}-{digest.hexdigest()[:12]}"


def kept(
    folder: Path | None, name: str, settings: dict[str, Any], made: Callable[[], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Tensors that an earlier run has left in ``folder`` under the same name and settings; else made, and left there.

    ``tokens`` are stored as bytes. A file holds arrays and no code, and none is read that was not written whole.
    """
    if folder is None:
        return made()
    label = "-".join(f"{key}{value}" for key, value in sorted(settings.items()))
    path = folder / f"{name}-{label}.safetensors"
    if not path.exists():
        tensors = {key: part.cpu().contiguous() for key, part in made().items()}
        tensors["tokens"] = tensors["tokens"].to(torch.uint8)
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".part")
        save_file(tensors, unfinished)
        unfinished.replace(path)
    stored = load_file(path)
    return {**stored, "tokens": stored["tokens"].long()}


def add_result(path: Path, label: str, result: dict[str, Any]) -> None:
    """Put a checkpoint's result into a study's JSON, beside those of other checkpoints that it holds."""
    known = read_json(path) if path.exists() else {}
    write_json(path, {**known, label: result, "environment": environment()})
