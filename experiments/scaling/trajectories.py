"""Record the answers of many trajectories after every supervision step, and keep them in files for later runs.

The studies of the number of samples, depth and halting compute all their figures from one recording. The first
``FULL_TRAJECTORIES`` trajectories of an input are recorded to the full depth. Each later trajectory is recorded at
least to the depth that the comparison needs (:func:`min_depth`), and further until it would halt.
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

from pyro_gram.inference.contract import model_traits
from pyro_gram.inference.sites import ANSWER, HALT, HALTED, VALUE
from pyro_gram.networks.core import LatentState
from pyro_gram.sampling.memory import chunk_size
from pyro_gram.sampling.result import Rollout
from pyro_gram.sampling.steps import Decode, isolated_rng, run_steps, to_device_of
from pyro_gram.sampling.tempering import Temper
from pyro_gram.solver import Solver
from pyro_gram.system.files import read_json, write_json
from pyro_gram.system.machine import environment

SAMPLE_COUNTS = (1, 2, 5, 10, 20, 50, 100)
FULL_TRAJECTORIES = 20  # trajectories recorded to full depth; their work is the largest work of the comparison
NAMES = ("tokens", "score", "value", "halt")
COMPLETE = 2.0  # in place of P(right): the answer cannot change, and the trajectory ends at any threshold
Progress = Callable[[int], object]


@dataclass(frozen=True)
class Trajectories:
    """Answers of N trajectories of each of B inputs, after each of S supervision steps. The tensors are on the CPU.

    A trajectory that has stopped repeats its last answer.

    Attributes:
        tokens: the most probable answers, int64 ``[S, N, B, L_out]``.
        score: log p(tokens | h), nats, ``[S, N, B]``.
        value: the value head's estimate that the trajectory's last answer will be right, ``[S, N, B]``.
        halt: the halt head's P(the answer is right), or ``COMPLETE``, ``[S, N, B]``.
    """

    tokens: Tensor
    score: Tensor
    value: Tensor
    halt: Tensor

    def first(self, n: int, depth: int) -> Trajectories:
        """Return the first n trajectories of each input, and their first ``depth`` steps."""
        return Trajectories(*(part[:depth, :n] for part in vars(self).values()))

    def halted(self, halt: float) -> Rollout:
        """Return the samples that result if each trajectory stops at its first step with P(right) >= halt.

        With ``halt=1`` no trajectory stops before its answer is complete.
        """
        steps = halting_steps(self.halt, halt)
        last_step = steps[None] - 1
        score, value = (part.gather(0, last_step)[0] for part in (self.score, self.value))
        tokens = self.tokens.gather(0, last_step[..., None].expand(1, *self.tokens.shape[1:]))[0]
        return Rollout(tokens, score, steps, steps.sum(0), value)


def halting_steps(halt: Tensor, threshold: float) -> Tensor:
    """Return the first step with P(right) >= threshold, or the last step if there is none.

    Steps are counted from 1; the result is int64 ``[N, B]``.

    Args:
        halt: P(right) after each step, or ``COMPLETE``, ``[S, N, B]``.
        threshold: P(right) that ends a trajectory; with 1 only complete answers end it.
    """
    is_sure = halt >= (threshold if threshold < 1 else COMPLETE)
    is_sure[-1] = True
    return is_sure.int().argmax(0) + 1


def is_within_work(n: int, depth: int, full_depth: int) -> bool:
    """Return whether n trajectories of ``depth`` steps cost no more than ``FULL_TRAJECTORIES`` of full depth."""
    return n * depth <= FULL_TRAJECTORIES * full_depth


def min_depth(number: int, full_depth: int) -> int:
    """Return the smallest depth to which trajectory ``number`` (counted from 0) must be recorded."""
    if number < FULL_TRAJECTORIES:
        return full_depth
    n = next(n for n in SAMPLE_COUNTS if n > number)  # the smallest N whose samples include this trajectory
    return FULL_TRAJECTORIES * full_depth // n


def record_trajectories(
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
) -> Trajectories:
    """Record N trajectories of the prior on each input, with the tempering of the checkpoint's own config.

    Args:
        solver: a checkpoint with heads.
        x: inputs, int64 ``[B, *event]``.
        num_samples: N, one of ``SAMPLE_COUNTS``.
        depth: supervision steps.
        seed: seed of the draws. If no trajectory stops early, ``sampling.rollout.rollout`` makes the same draws.
        halt: trajectories after the first ``FULL_TRAJECTORIES`` stop at this P(right), but not before `min_depth`.
        folder: cache of this checkpoint (:func:`cache_folder`), with a file for each chunk of inputs. With None nothing
            is stored.
        name: name of the set of inputs. It is a part of the file names.
        progress: called with the number of trajectories that have been recorded.
    """
    chunks: list[dict[str, Tensor]] = []
    settings = {"num_samples": num_samples, "depth": depth, "seed": seed, "halt": halt}
    inputs = to_device_of(solver.model, x)
    with isolated_rng(solver.model, inputs):
        for number, chunk_inputs in enumerate(
            inputs.split(max(1, chunk_size(solver.task.spec.positions) // num_samples))
        ):

            def roll_chunk(number: int = number, chunk_inputs: Tensor = chunk_inputs) -> dict[str, Tensor]:
                torch.manual_seed(seed + number)
                return _roll_chunk(solver, chunk_inputs, num_samples, depth, halt)

            chunks.append(
                cached_tensors(folder, f"{name}-chunk{number}-inputs{len(chunk_inputs)}", settings, roll_chunk)
            )
            progress(num_samples * len(chunk_inputs))
    return Trajectories(**{part: torch.cat([chunk[part] for chunk in chunks], 2) for part in NAMES})


def _roll_chunk(solver: Solver, x: Tensor, n: int, depth: int, halt: float) -> dict[str, Tensor]:
    b = len(x)
    min_depths = torch.tensor([min_depth(number, depth) for number in range(n)], device=x.device).repeat_interleave(b)
    steps: list[dict[str, Tensor]] = []
    with Temper(solver.config.temper):
        end = run_steps(solver.model, x, None, n, 1)
        answers = {name: value.flatten(0, 1) for name, value in _answer_and_heads(solver, end).items()}
        state = LatentState(*(part.expand(n, b, -1, -1).flatten(0, 1) for part in end.state))
        active = torch.arange(n * b, device=x.device)
        steps.append(answers)
        for step in range(2, depth + 1):
            goes_on = ((min_depths[active] >= step) | (answers[HALT] < halt)) & (answers[HALT] < COMPLETE)
            active, state = active[goes_on], LatentState(state.h[goes_on], state.l[goes_on])
            last = steps[-1]
            if len(active):
                end = run_steps(solver.model, x[active % b], state, None, 1)
                state, answers = end.state, _answer_and_heads(solver, end)
                last = {name: value.index_copy(0, active, answers[name]) for name, value in last.items()}
            steps.append(last)
    return {name: torch.stack([step[name] for step in steps]).unflatten(1, (n, b)).cpu() for name in NAMES}


def _answer_and_heads(solver: Solver, end: Decode) -> dict[str, Tensor]:
    heads = {name: end.values[name] for name in (VALUE, HALT)}
    if model_traits(solver.model).has_lattice:
        heads[HALT] = torch.where(end.values[HALTED], COMPLETE, heads[HALT])
    return {"tokens": end.values[ANSWER], "score": end.score, **heads}


def cache_folder(folder: Path | None, checkpoint: Path, solver: Solver) -> Path | None:
    """Return the folder of a checkpoint's recordings, named by a digest of its weights and settings."""
    if folder is None:
        return None
    digest = hashlib.sha256(repr(solver.config.to_dict()).encode())
    for value in solver.model.state_dict().values():
        digest.update(value.cpu().numpy().tobytes())
    return folder / f"{checkpoint.stem}-{digest.hexdigest()[:12]}"


def cached_tensors(
    folder: Path | None, name: str, settings: dict[str, Any], make: Callable[[], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Read tensors from a file in ``folder``. If there is none for this name and these settings, make and store them.

    ``tokens`` are stored as uint8. A file is written under another name, and renamed when it is complete.
    """
    if folder is None:
        return make()
    label = "-".join(f"{key}{value}" for key, value in sorted(settings.items()))
    path = folder / f"{name}-{label}.safetensors"
    if not path.exists():
        tensors = {key: part.cpu().contiguous() for key, part in make().items()}
        tensors["tokens"] = tensors["tokens"].to(torch.uint8)
        folder.mkdir(parents=True, exist_ok=True)
        temporary_path = path.with_suffix(".part")
        save_file(tensors, temporary_path)
        temporary_path.replace(path)
    tensors = load_file(path)
    return {**tensors, "tokens": tensors["tokens"].long()}


def add_result(path: Path, label: str, result: dict[str, Any]) -> None:
    """Add a checkpoint's result to a study's JSON."""
    results = read_json(path) if path.exists() else {}
    write_json(path, {**results, label: result, "environment": environment()})
