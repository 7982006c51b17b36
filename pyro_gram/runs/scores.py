"""Measure a solver on the test split, for ``results.json``. Nothing here writes a file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pyro_gram.diagnostics.calibration import uniformity
from pyro_gram.diagnostics.likelihood import prior_log_likelihood
from pyro_gram.diagnostics.metrics import selected_answers, solution_ids
from pyro_gram.diagnostics.trajectories import attractors
from pyro_gram.runs.measure import (
    BOUND_INPUTS,
    HISTORY_INPUTS,
    HISTORY_SAMPLES,
    LIKELIHOOD_INPUTS,
    LIKELIHOOD_SAMPLES,
    Progress,
    bound_metrics,
    has_likelihood,
    sample_metrics,
    sample_prior,
    test_puzzles,
)
from pyro_gram.sampling.memory import chunk_size
from pyro_gram.sampling.result import Rollout
from pyro_gram.sampling.steps import to_device_of
from pyro_gram.solver import Solver
from pyro_gram.system.distributed import SINGLE_PROCESS, ProcessGroup
from pyro_gram.tasks.base import PuzzleSet
from pyro_gram.tasks.batches import generator_for


@dataclass(frozen=True)
class Measurement:
    """The results of a solver on the test split.

    Attributes:
        puzzles: the test inputs, with their solutions.
        rollout: the trajectories of the prior that were scored.
        history: the answers of a few trajectories of the first b inputs, after each supervision step, int64
            ``[depth, N, b, L_out]``.
        metrics: the metrics of ``results.json``.
        uniformity: the result of :func:`uniformity_summary`.
    """

    puzzles: PuzzleSet
    rollout: Rollout
    history: Tensor
    metrics: dict[str, Any]
    uniformity: dict[str, Any]


def measure_test(
    solver: Solver, processes: ProcessGroup = SINGLE_PROCESS, progress: Progress = lambda count: None
) -> Measurement:
    """Measure a solver on the test split.

    Args:
        solver: a trained model with its task and config.
        processes: the processes that share the trajectories.
        progress: called with the number of trajectories that have just ended. These numbers add up to
            :func:`count_trajectories`.
    """

    def shared_progress(count: int) -> None:
        progress(count * processes.size)  # each process runs about the same number of trajectories

    config, task, puzzles = solver.config, solver.task, test_puzzles(solver)
    samples = sample_prior(solver, puzzles.inputs, processes, progress=shared_progress)
    first_versions = puzzles.first_versions
    x, y = first_versions.sample_pairs(BOUND_INPUTS, generator_for(config.evaluate.seed, len(first_versions)))
    metrics = sample_metrics(solver, puzzles, samples, "test")
    metrics |= bound_metrics(solver, first_versions, x, y, config.depth, config.evaluate.seed) | {"elbo_inputs": len(y)}
    progress(len(y))
    metrics |= _limits(solver, first_versions, x, y, metrics) | _likelihood_metrics(solver, x, y, progress)
    metrics |= {
        "depth": config.depth,
        "temper_scale": config.temper.scale,
        "temper_transitions": config.temper.transitions,
        "temper_floor": config.temper.floor,
    }
    metrics |= _head_metrics(solver, puzzles, samples, processes, shared_progress)
    history = _history(solver, first_versions, processes, shared_progress)
    inputs = None if first_versions.inputs is None else first_versions.inputs[: history.shape[2]]
    metrics["unsettled"] = attractors(task, inputs, history).unsettled_fraction
    return Measurement(puzzles, samples, history, metrics, uniformity_summary(solver, puzzles, samples))


def uniformity_summary(solver: Solver, puzzles: PuzzleSet, samples: Rollout) -> dict[str, Any]:
    """Return how evenly solutions are sampled; empty unless all are known and some input has several solutions."""
    if not puzzles.has_all_solutions or int(puzzles.num_solutions.max()) < 2:
        return {}
    ids = solution_ids(solver.task, puzzles, samples.tokens)
    return uniformity(ids, puzzles.num_solutions, seed=solver.config.evaluate.seed).summary()


def _likelihood_metrics(solver: Solver, x: Tensor | None, y: Tensor, progress: Progress) -> dict[str, float]:
    if not has_likelihood(solver):
        return {}
    # Without input, all data share the trajectories. Many trajectories then cost little.
    num_samples = LIKELIHOOD_SAMPLES if x is not None else 10 * LIKELIHOOD_SAMPLES
    log_p = prior_log_likelihood(
        solver.model,
        to_device_of(solver.model, None if x is None else x[:LIKELIHOOD_INPUTS]),
        to_device_of(solver.model, y[:LIKELIHOOD_INPUTS]),
        depth=solver.config.depth,
        num_samples=num_samples,
        seed=solver.config.evaluate.seed,
        max_trajectories=chunk_size(solver.task.spec.positions),
    )
    progress(num_samples if x is None else num_samples * len(log_p))
    return {
        "log_likelihood_prior_mc": log_p.mean().item(),
        "log_likelihood_se": (log_p.std(correction=0) / len(log_p) ** 0.5).item(),
        "log_likelihood_samples": num_samples,
        "log_likelihood_inputs": len(log_p),
    }


def _limits(
    solver: Solver, puzzles: PuzzleSet, x: Tensor | None, y: Tensor, metrics: dict[str, Any]
) -> dict[str, float]:
    """Return the values that a perfect model would reach; empty unless all solutions are known."""
    coverage, limit = metrics["coverage"], metrics["coverage_limit"]
    if not puzzles.has_all_solutions or coverage is None or limit is None:
        return {}
    log_m, log_namings = puzzles.num_solutions.double().log(), solver.task.log_namings(x, y)
    return {
        "coverage_ratio": coverage / limit,
        "log_num_solutions": log_m.mean().item() + log_namings.mean().item(),
        "log_likelihood_limit": -(log_m[:LIKELIHOOD_INPUTS].mean() + log_namings[:LIKELIHOOD_INPUTS].mean()).item(),
    }


def _head_metrics(
    solver: Solver, puzzles: PuzzleSet, samples: Rollout, processes: ProcessGroup, progress: Progress
) -> dict[str, float]:
    """Return the accuracy of answers selected by the value head, and of trajectories ended by the halt head."""
    if samples.value is None or puzzles.inputs is None:
        return {}
    task, halt = solver.task, solver.config.heads.halt
    rows = slice(None) if puzzles.is_first_version is None else puzzles.is_first_version
    x, tokens = puzzles.inputs[rows], samples.tokens[:, rows]
    selected_tokens = selected_answers(task.canonical_form(x, tokens), samples.score[:, rows], samples.value[:, rows])
    halted_rollout = sample_prior(solver, x, processes, halt=halt, progress=progress)
    return {
        "value_accuracy": task.is_valid(x, selected_tokens).double().mean().item(),
        "halt": halt,
        "halt_accuracy": task.is_valid(x, halted_rollout.tokens).double().mean().item(),
        "halt_steps": halted_rollout.steps.double().mean().item(),
    }


def _history(solver: Solver, puzzles: PuzzleSet, processes: ProcessGroup, progress: Progress) -> Tensor:
    """Return the answers after each supervision step of a few trajectories, int64 ``[depth, N, b, L_out]``."""
    x = None if puzzles.inputs is None else puzzles.inputs[:HISTORY_INPUTS]
    count = HISTORY_SAMPLES if x is not None else HISTORY_SAMPLES * HISTORY_INPUTS
    history = sample_prior(solver, x, processes, num_samples=count, history=True, progress=progress).history
    assert history is not None
    return history
