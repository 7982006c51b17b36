"""Measure the samples and bounds of a solver on held-out inputs. Training measures the validation split.

Nothing here writes a file. Accuracy and coverage come from fresh trajectories of the prior. Bounds use the
prior without temper.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from pyro_gram.diagnostics.bounds import Bounds, bounds
from pyro_gram.inference.contract import guide_traits, model_traits, prior_of, prior_traits
from pyro_gram.inference.guide import why_no_guide
from pyro_gram.inference.importance import MAX_TRACED
from pyro_gram.sampling.memory import chunk_size
from pyro_gram.sampling.result import Rollout
from pyro_gram.sampling.rollout import rollout
from pyro_gram.sampling.steps import to_cpu, to_device_of
from pyro_gram.solver import Solver
from pyro_gram.system.distributed import SINGLE_PROCESS, ProcessGroup
from pyro_gram.tasks.base import PuzzleSet
from pyro_gram.tasks.batches import generator_for

BOUND_INPUTS = 1024  # bounds are computed for at most 1024 pairs (x, y)
LIKELIHOOD_INPUTS, LIKELIHOOD_SAMPLES = 64, 100  # for prior Monte Carlo: inputs, and trajectories per input
HISTORY_INPUTS, HISTORY_SAMPLES = 24, 6  # inputs, and samples per input, that are decoded after every supervision step
VALIDATION_INPUTS, VALIDATION_SAMPLES = 64, 1024  # limits of a validation: inputs, and samples per input

Progress = Callable[[int], None]


def test_puzzles(solver: Solver) -> PuzzleSet:
    """Return the part of the test split that is measured."""
    puzzles, limit = solver.task.split("test"), solver.config.evaluate.inputs
    return puzzles.subset(limit) if limit else puzzles


def sample_prior(solver: Solver, x: Tensor | None, processes: ProcessGroup = SINGLE_PROCESS, **changes: Any) -> Rollout:
    """Sample trajectories of the prior with the settings of the run's evaluation. Several processes share the work.

    Args:
        solver: a trained model with its task and config.
        x: inputs, ``[B, *event]``; None for p(x).
        processes: the processes that share the trajectories.
        **changes: arguments of ``sampling.rollout.rollout`` that replace those of the config.
    """
    config = solver.config
    settings = {
        "num_samples": config.evaluate.num_samples,
        "depth": config.depth,
        "seed": config.evaluate.seed,
        "temper": config.temper,
        "sweeps": 0 if changes.get("history") else config.evaluate.sweeps,
        "restarts": 0 if changes.get("history") or not solver.has_heads else config.evaluate.restarts,
        "max_trajectories": chunk_size(solver.task.spec.positions),
        "processes": processes,
    }
    return rollout(solver.model, to_device_of(solver.model, x), **{**settings, **changes}).cpu()


def count_trajectories(solver: Solver, with_heads: bool) -> int:
    """Return the number of trajectories that :func:`runs.scores.measure_test` runs.

    Args:
        solver: a model with its task and config.
        with_heads: will the model have halt and value heads when it is measured?
    """
    puzzles, num_samples = test_puzzles(solver), solver.config.evaluate.num_samples
    first_versions, has_input = puzzles.first_versions, puzzles.inputs is not None
    count = num_samples * (len(puzzles) if has_input else 1)
    count += min(len(first_versions if has_input else first_versions.solutions), BOUND_INPUTS)
    count += HISTORY_SAMPLES * (min(len(first_versions), HISTORY_INPUTS) if has_input else HISTORY_INPUTS)
    if has_input and with_heads:
        count += num_samples * len(first_versions)
    if has_likelihood(solver):
        count += LIKELIHOOD_SAMPLES * (min(len(first_versions), LIKELIHOOD_INPUTS) if has_input else 10)
    return count


def measure_validation(solver: Solver, processes: ProcessGroup = SINGLE_PROCESS) -> dict[str, float]:
    """Measure the prior and the bounds on a few validation inputs, for a line of ``metrics.jsonl``."""
    from pyro_gram.diagnostics.metrics import measure

    config = solver.config
    puzzles = solver.task.split("validation").subset(VALIDATION_INPUTS)
    num_samples = min(config.evaluate.num_samples, VALIDATION_SAMPLES)
    samples = sample_prior(solver, puzzles.inputs, processes, num_samples=num_samples)
    metrics = measure(solver.task, puzzles, samples.tokens, samples.score)
    x, y = puzzles.sample_pairs(VALIDATION_INPUTS, generator_for(config.evaluate.seed, len(puzzles)))
    measured_bounds = bounds_of(solver, x, y, config.depth, config.evaluate.seed)
    is_lattice = model_traits(solver.model).has_lattice
    values = {
        "prior_accuracy": metrics.sample_accuracy,
        "prior_coverage": metrics.coverage,
        "coverage_limit": metrics.coverage_limit,
        "elbo_full": measured_bounds.full.mean().item(),
        "elbo_surrogate": None if is_lattice else measured_bounds.surrogate.mean().item(),
        "posterior_accuracy": posterior_accuracy(solver, x, measured_bounds),
    }
    task_metrics = _task_metrics(solver, puzzles, samples, "validation")
    values |= {f"prior_{name}": value for name, value in task_metrics.items()}
    return {name: value for name, value in values.items() if value is not None}


def count_validation_trajectories(solver: Solver) -> int:
    """Return the number of trajectories that :func:`measure_validation` runs."""
    puzzles = solver.task.split("validation")
    has_input = puzzles.inputs is not None
    pairs = min(len(puzzles if has_input else puzzles.solutions), VALIDATION_INPUTS)
    num_samples = min(solver.config.evaluate.num_samples, VALIDATION_SAMPLES)
    return num_samples * (pairs if has_input else 1) + pairs


def sample_metrics(solver: Solver, puzzles: PuzzleSet, samples: Rollout, split: str) -> dict[str, Any]:
    """Return the accuracy, coverage and other metrics of samples, with the task's own metrics."""
    from pyro_gram.diagnostics.metrics import measure

    metrics = measure(solver.task, puzzles, samples.tokens, samples.score).to_dict()
    metrics["mean_steps"] = samples.steps.double().mean().item()
    return metrics | _task_metrics(solver, puzzles, samples, split)


def _task_metrics(solver: Solver, puzzles: PuzzleSet, samples: Rollout, split: str) -> dict[str, float]:
    """Return a task's own metrics. For digits, a classifier and the real digits of ``split`` add more metrics."""
    metrics = dict(solver.task.extra_metrics(puzzles, samples.tokens))
    if solver.task.classifier == "digits":
        from pyro_gram.diagnostics import digits

        metrics |= digits.assess(digits.reference(solver.task, split), samples.tokens[:, 0])
    return metrics


def bounds_of(solver: Solver, x: Tensor | None, y: Tensor, depth: int, seed: int) -> Bounds:
    """Return bounds of log p(y | x) for pairs (x, y), at beta = 1 (Eq. 13, 14).

    Args:
        solver: a model with its guide.
        x, y: pairs, ``[B, *event]`` (None for p(x)) and ``[B, L_out]``.
        depth: supervision steps of the full bound.
        seed: the seed of the guide's draws.
    """
    return bounds(
        solver.model,
        solver.guide,
        to_device_of(solver.model, x),
        to_device_of(solver.model, y),
        steps=depth,
        surrogate_steps=1 if model_traits(solver.model).has_lattice else solver.config.train.supervision_steps,
        seed=seed,
        max_traced=chunk_size(solver.task.spec.positions, 4 * MAX_TRACED),
    )


def bound_metrics(
    solver: Solver, puzzles: PuzzleSet, x: Tensor | None, y: Tensor, depth: int, seed: int
) -> dict[str, float | None]:
    """Return the mean bounds of pairs, the terms of the full bound, and the accuracy under the guide.

    Args:
        puzzles: the inputs x with their solutions, in the same order.
        x, y, depth, seed: as for :func:`bounds_of`.
    """
    measured_bounds = bounds_of(solver, x, y, depth, seed)
    full_bound, surrogate_bound = measured_bounds.full.mean().item(), measured_bounds.surrogate.mean().item()
    metrics: dict[str, float | None] = {"elbo": full_bound, "elbo_full": full_bound, "elbo_surrogate": surrogate_bound}
    if not why_no_guide(solver.model, solver.guide):
        metrics["kl"] = measured_bounds.kl.sum(0).mean().item()
        metrics["reconstruction"] = measured_bounds.reconstruction.mean().item()
        if measured_bounds.other_terms.any():  # only sites of a user's own add other terms
            metrics["others"] = measured_bounds.other_terms.mean().item()
    if puzzles.has_all_solutions:
        from pyro_gram.diagnostics.metrics import excess

        log_namings = solver.task.log_namings(to_cpu(x), y.cpu())
        metrics["excess"] = excess(measured_bounds.full, puzzles.num_solutions[: len(y)], log_namings).mean().item()
    if not prior_traits(prior_of(solver.model)).has_density:  # without a density these numbers are not bounds
        metrics |= dict.fromkeys(("elbo", "elbo_full", "elbo_surrogate", "excess"))
    if model_traits(solver.model).has_lattice:  # a step has no term for what was decided before it
        metrics["elbo_surrogate"] = None
    return metrics | {"posterior_accuracy": posterior_accuracy(solver, x, measured_bounds)}


def posterior_accuracy(solver: Solver, x: Tensor | None, measured_bounds: Bounds) -> float | None:
    """Return the share of right answers under the guide, which sees y. A share far above the prior's shows a leak.

    The result is None if there is no guide, if its decisions are y itself, or if answers cannot be checked.
    """
    has_no_guide = why_no_guide(solver.model, solver.guide) or guide_traits(solver.guide).guidance == "decisions"
    if measured_bounds.tokens is None or not solver.task.is_checkable or has_no_guide:
        return None
    return solver.task.is_valid(x, measured_bounds.tokens).double().mean().item()


def has_likelihood(solver: Solver) -> bool:
    """Can log p(y | x) be estimated by log p(y | h_T) of trajectories of the prior?

    Not for images, because no sample equals a given one; nor for diffusion models; nor for lattices, whose answers are
    complete before y.
    """
    traits = model_traits(solver.model)
    return solver.task.is_checkable and traits.has_exact_likelihood and not traits.has_lattice


def validation_history(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Summarize the prior's accuracy on validation inputs during training, to show whether it decays.

    ``recent_accuracy`` is the mean of the last three measurements. ``peak_accuracy`` is the highest mean of three
    successive measurements before the last three. (The best single value would be too high, because single values are
    noisy.) Both values need at least six measurements.

    Args:
        rows: the lines of ``metrics.jsonl``.
    """
    accuracies = [row["prior_accuracy"] for row in rows if "prior_accuracy" in row]
    if not accuracies:
        return {}
    summary = {"last_accuracy": accuracies[-1], "best_accuracy": max(accuracies)}
    if len(accuracies) < 6:
        return summary
    means = [sum(accuracies[i : i + 3]) / 3 for i in range(len(accuracies) - 2)]
    return summary | {"recent_accuracy": means[-1], "peak_accuracy": max(means[:-3])}
