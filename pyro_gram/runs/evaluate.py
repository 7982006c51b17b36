"""What is measured of a trained run, and everything that is written about it: weights, results, figures, the report."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pyro_gram.inference.contract import model_traits, prior_of, prior_traits
from pyro_gram.checkpoint import save_model
from pyro_gram.diagnostics.bounds import Bounds, bounds
from pyro_gram.diagnostics.calibration import uniformity
from pyro_gram.diagnostics.likelihood import prior_log_likelihood
from pyro_gram.diagnostics.metrics import excess, measure, solution_ids, winners
from pyro_gram.diagnostics.trajectories import attractors
from pyro_gram.inference.guide import why_no_guide
from pyro_gram.inference.importance import MAX_TRACED, guide_draws
from pyro_gram.inference.sites import HEADS_ATTRIBUTE
from pyro_gram.runs.heads import takes_heads, train_heads
from pyro_gram.runs.run_report import draw_figures, write_run_report
from pyro_gram.sampling.memory import chunk_size
from pyro_gram.sampling.rollout import Rollout, rollout, to_device_of
from pyro_gram.system.files import write_json
from pyro_gram.system.machine import environment, peak_memory_mb
from pyro_gram.solver import Solver
from pyro_gram.tasks.base import SPLITS, PuzzleSet, Task
from pyro_gram.tasks.batches import generator_for

if TYPE_CHECKING:
    from pyro_gram.runs.run import Run

BOUND_INPUTS = 1024  # the most pairs (x, y) whose bounds are computed
LIKELIHOOD_INPUTS, LIKELIHOOD_SAMPLES = 64, 100  # the prior Monte Carlo estimate of log p(y | x)
FOLLOWED_INPUTS, FOLLOWED = 24, 6  # trajectories that are followed step by step, of each of the first inputs
TRACED_DRAWS = 25  # trajectories a chain in inference.nc; fewer of more than 16 positions


def rehearse(held: Solver, x: Tensor | None, y: Tensor) -> None:
    """Ask for the weights, bounds and log p(y | x) of two pairs, once: what has none is refused before training.

    No random state changes.

    Args:
        x, y: of a batch, ``[B, *event]`` and ``[B, L_out]``; the first two are looked at.

    Raises:
        ConfigError: inputs share a site; an observation depends on y; tensors of one batch.
    """
    x, y = to_device_of(held.model, None if x is None else x[:2]), to_device_of(held.model, y[:2])
    if not why_no_guide(held.model, held.guide):
        guide_draws(held.model, held.guide, x, y, steps=1, num_samples=2)
    bounds(held.model, held.guide, x, y, steps=1)
    if _has_likelihood(held):
        prior_log_likelihood(held.model, x, y, depth=1, num_samples=2)


def _has_likelihood(held: Solver) -> bool:
    """Not of images, none of which a trajectory ever hits, nor of diffusion models, which bound it by other means."""
    return held.task.is_checkable and model_traits(held.model).has_exact_likelihood


def measured(run: Run) -> PuzzleSet:
    """The inputs of the test split that are measured."""
    puzzles, most = run.solver.task.split("test"), run.solver.config.evaluate.inputs
    return puzzles.subset(most) if most else puzzles


def num_trajectories(run: Run) -> int:
    """How many trajectories :func:`finish` runs: what its bar counts."""
    held, puzzles = run.solver, measured(run)
    samples, plain, given = held.config.evaluate.num_samples, puzzles.first_versions, puzzles.inputs is not None
    count = samples * (len(puzzles) if given else 1) + min(len(plain if given else plain.solutions), BOUND_INPUTS)
    count += FOLLOWED * (min(len(plain), FOLLOWED_INPUTS) if given else FOLLOWED_INPUTS)
    if given and takes_heads(held.model, held.config.heads):
        count += samples * len(plain)
    if _has_likelihood(held):
        count += _likelihood_trajectories(plain)
    return count


def _likelihood_trajectories(plain: PuzzleSet) -> int:
    few = min(len(plain), LIKELIHOOD_INPUTS)
    return LIKELIHOOD_SAMPLES * (10 if plain.inputs is None else few)


def bounds_of(held: Solver, x: Tensor | None, y: Tensor, depth: int, seed: int) -> Bounds:
    """The bounds of pairs, at beta = 1; whole trajectories are traced, few of long sequences at once."""
    return bounds(
        held.model,
        held.guide,
        to_device_of(held.model, x),
        to_device_of(held.model, y),
        steps=depth,
        trained=held.config.train.supervision_steps,
        seed=seed,
        max_traced=chunk_size(held.task.spec.input_length, 4 * MAX_TRACED),
    )


def bound_metrics(held: Solver, x: Tensor | None, found: Bounds) -> dict[str, float | None]:
    """Means of the bounds, the terms of the full one where there is a guide, and what is right under it."""
    terms = {"kl": found.kl.sum(0).mean().item(), "reconstruction": found.reconstruction.mean().item()}
    if found.others.any():  # of a user's own sites
        terms["others"] = found.others.mean().item()
    return {
        "elbo": found.full.mean().item(),
        "elbo_surrogate": found.surrogate.mean().item(),
        **({} if why_no_guide(held.model, held.guide) else terms),
        "posterior_accuracy": right_under_guide(held, x, found),
    }


def right_under_guide(held: Solver, x: Tensor | None, found: Bounds) -> float | None:
    """Pairs whose answer is right where the guide, with y in sight, steers: beside the prior's, it shows a leak.

    None without a guide, or where no answer is right or wrong.
    """
    if found.tokens is None or not held.task.is_checkable or why_no_guide(held.model, held.guide):
        return None
    return held.task.is_valid(x, found.tokens).double().mean().item()


def assess(task: Task, puzzles: PuzzleSet, tokens: Tensor, split: str) -> dict[str, float]:
    """A task's own figures; for samples of digits also what a classifier sees, beside the real ones of ``split``."""
    found = task.extra_metrics(puzzles, tokens)
    if task.classifier == "digits":
        from pyro_gram.diagnostics import digits

        found |= digits.assess(digits.reference(task, split), tokens[:, 0])
    return found


def check_ready(task: Task) -> None:
    """Everything that measuring the task will need, before any training.

    Raises:
        InputError: a file of the task is damaged.
        ConfigError: data or a package is missing.
    """
    for split in SPLITS:
        task.split(split)
    if task.classifier == "digits":
        from pyro_gram.diagnostics import digits

        digits.check_installed()
        digits.load_classifier()


def check_rolls(solver: Solver) -> None:
    """One roll-out, for what would fail there: a temper that is none for the prior, an operation a device lacks.

    Raises:
        ConfigError: the prior cannot be tempered.
    """
    x = solver.task.split("test").inputs
    device = next(solver.model.parameters()).device
    x = None if x is None else x[:1].to(device)
    rollout(solver.model, x, num_samples=1, depth=1, temper=solver.config.temper)


def roll(run: Run, x: Tensor | None, **changes: Any) -> Rollout:
    """Fresh trajectories of the averaged model's prior on inputs x, on the CPU again."""
    evaluate, spec = run.solver.config.evaluate, run.solver.task.spec
    settings = {
        "num_samples": evaluate.num_samples,
        "depth": run.solver.config.depth,
        "seed": evaluate.seed,
        "temper": run.solver.config.temper,
        "max_trajectories": chunk_size(spec.input_length),
        "processes": run.processes,
    }
    model = run.trainer.averaged[0]
    rolled = rollout(model, to_device_of(model, x), **{**settings, **changes})
    return rolled.cpu()


def finish(run: Run, half: bool = False) -> dict[str, Any]:
    """Train the heads, measure on the test split and write everything: weights, results, figures, inference.nc, report.

    ``half`` writes the weights as bfloat16. Several processes share the roll-outs; the first of them writes.
    """
    start = time.perf_counter()
    model, guide = (m.eval() for m in run.trainer.averaged)
    config, task = run.solver.config, run.solver.task
    if takes_heads(model, config.heads):
        train_heads(run.averaged, run.solver.config.depth, run.phases)
        run.processes.broadcast_(
            list(model.get_submodule(HEADS_ATTRIBUTE).state_dict().values())
        )  # roll-outs halt by the heads that are saved
    heads = time.perf_counter() - start
    if run.processes.is_main:
        save_model(run.out / "model.safetensors", run.averaged, half=half)
    puzzles = measured(run)
    with run.phases.start("evaluation", num_trajectories(run), "trajectory"):
        rolled = roll(run, puzzles.inputs, progress=run.progress)
        metrics = test_metrics(run, puzzles, rolled)
        plain = puzzles.first_versions
        history = followed(run, plain)
    followed_inputs = None if plain.inputs is None else plain.inputs[: history.shape[2]]
    metrics["unsettled"] = attractors(task, followed_inputs, history).unsettled_fraction
    run.phases.print("drawing figures and writing the report")
    drawn: dict[str, Any] = {}
    if run.processes.is_main:
        drawn = draw_figures(run, puzzles, rolled.tokens, history)
        write_inference_data(run, puzzles)
    trained = run.trainer.elapsed + heads
    evaluated = time.perf_counter() - start - heads
    results = {
        "task": config.names["task"],
        "preset": config.preset,
        "seed": config.seed,
        "parameters": sum(p.numel() for p in run.solver.model.parameters()),
        "guide_parameters": sum(p.numel() for p in run.solver.guide.parameters()),
        "head_parameters": sum(p.numel() for name, p in model.named_parameters() if name.startswith(f"{HEADS_ATTRIBUTE}.")),
        "batches": run.trainer.number,
        "length": {"batches": config.train.batches, "minutes": config.train.minutes},  # as it was asked for
        "seconds": {"train": trained, "evaluate": evaluated, "total": trained + evaluated},
        "head_seconds": heads,  # of the training
        "processes": run.processes.size,
        "peak_memory_mb": peak_memory_mb(),
        "metrics": metrics,
        "looks": looks_of(run.rows()),
        "uniformity": _uniformity(task, puzzles, rolled.tokens, config.evaluate.seed),
        "data": task.provenance(),
        "environment": environment(),
    }
    if run.processes.is_main:
        write_json(run.out / "results.json", results)
        write_run_report(run, results, drawn)
    run.processes.barrier()
    return results


def _uniformity(task: Task, puzzles: PuzzleSet, tokens: Tensor, seed: int) -> dict[str, Any]:
    """How evenly solutions are found; nothing where not all are known, or all inputs have one."""
    if not puzzles.has_all_solutions or int(puzzles.num_solutions.max()) < 2:
        return {}
    return uniformity(solution_ids(task, puzzles, tokens), puzzles.num_solutions, seed=seed).summary()


def followed(run: Run, puzzles: PuzzleSet) -> Tensor:
    """Answers after each supervision step of some trajectories of the first inputs, int64 ``[S, N, b, L_out]``."""
    x = None if puzzles.inputs is None else puzzles.inputs[:FOLLOWED_INPUTS]
    count = FOLLOWED if x is not None else FOLLOWED * FOLLOWED_INPUTS
    history = roll(run, x, num_samples=count, history=True, progress=run.progress).history
    assert history is not None
    return history


def looks_of(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Accuracy of the prior on a few validation inputs at the looks of training, last and best: does it decay?

    ``recent_accuracy`` and ``peak_accuracy`` are means of three successive looks, as the best of many noisy ones is
    too good: the last three, and the best before them. None of both with fewer than six.

    Args:
        rows: the lines of ``metrics.jsonl``.
    """
    seen = [row["prior_accuracy"] for row in rows if "prior_accuracy" in row]
    if not seen:
        return {}
    found = {"last_accuracy": seen[-1], "best_accuracy": max(seen)}
    if len(seen) < 6:
        return found
    means = [sum(seen[i : i + 3]) / 3 for i in range(len(seen) - 2)]
    return found | {"recent_accuracy": means[-1], "peak_accuracy": max(means[:-3])}


def test_metrics(run: Run, puzzles: PuzzleSet, rolled: Rollout) -> dict[str, Any]:
    """The metrics of the roll-outs, and the bounds at beta = 1: those are of the prior as it is, without temper."""
    task, seed = run.solver.task, run.solver.config.evaluate.seed
    metrics = measure(task, puzzles, rolled.tokens, rolled.score)
    plain = puzzles.first_versions
    x, y = plain.sample_pairs(BOUND_INPUTS, generator_for(seed, len(plain)))
    found = bounds_of(run.averaged, x, y, run.solver.config.depth, seed)
    run.phases.update(len(y))
    return {
        **metrics.to_dict(),
        **_against_limits(plain, metrics.coverage, metrics.coverage_limit, found.full),
        "elbo_full": found.full.mean().item(),
        **bound_metrics(run.averaged, x, found),
        **_no_bounds(run),
        "elbo_inputs": len(y),
        **_likelihood(run, x, y),
        "depth": run.solver.config.depth,
        "temper_scale": run.solver.config.temper.scale,
        "temper_transitions": run.solver.config.temper.transitions,
        **_judged(run, puzzles, rolled),
        **assess(task, puzzles, rolled.tokens, split="test"),
    }


def _no_bounds(run: Run) -> dict[str, None]:
    """What takes the place of bounds that are none: where the prior's density is not that of its draws."""
    if prior_traits(prior_of(run.solver.model)).has_density:
        return {}
    return dict.fromkeys(("elbo", "elbo_full", "elbo_surrogate", "excess"))


def _judged(run: Run, puzzles: PuzzleSet, rolled: Rollout) -> dict[str, float]:
    """What the heads are good for: the answer selected by value, and trajectories that stop when sure."""
    if rolled.value is None or puzzles.inputs is None:
        return {}
    task, halt = run.solver.task, run.solver.config.heads.halt
    plain = slice(None) if puzzles.is_first_version is None else puzzles.is_first_version  # versions of an input are not inputs
    x, tokens, score, value = (
        puzzles.inputs[plain],
        rolled.tokens[:, plain],
        rolled.score[:, plain],
        rolled.value[:, plain],
    )

    def right(tokens: Tensor) -> float:
        return task.is_valid(x, tokens).double().mean().item()

    chosen = winners(task.canonical_form(x, tokens), score, value)
    halted = roll(run, x, halt=halt, progress=run.progress)
    return {
        "value_accuracy": right(chosen),
        "halt": halt,
        "halt_accuracy": right(halted.tokens),
        "halt_steps": halted.steps.double().mean().item(),
    }


def _likelihood(run: Run, x: Tensor | None, y: Tensor) -> dict[str, float]:
    """log p(y | x) by prior Monte Carlo on a few inputs."""
    task = run.solver.task
    if not _has_likelihood(run.solver):
        return {}
    few = slice(LIKELIHOOD_INPUTS)
    # Without input all data share their trajectories, so that many cost little.
    samples = LIKELIHOOD_SAMPLES if x is not None else 10 * LIKELIHOOD_SAMPLES
    model = run.trainer.averaged[0]
    log_p = prior_log_likelihood(
        model,
        to_device_of(model, None if x is None else x[few]),
        to_device_of(model, y[few]),
        depth=run.solver.config.depth,
        num_samples=samples,
        seed=run.solver.config.evaluate.seed,
        max_trajectories=chunk_size(task.spec.input_length),
    )
    run.phases.update(samples if x is None else samples * len(log_p))
    return {
        "log_likelihood_prior_mc": log_p.mean().item(),
        "log_likelihood_se": (log_p.std(correction=0) / len(log_p) ** 0.5).item(),
        "log_likelihood_samples": samples,
        "log_likelihood_inputs": len(log_p),
    }


def _against_limits(puzzles: PuzzleSet, coverage: float | None, limit: float | None, full: Tensor) -> dict[str, float]:
    """What a perfect model would reach, where all solutions are known. ``full``: the bound of the first inputs."""
    if not puzzles.has_all_solutions or coverage is None or limit is None:
        return {}
    log_m = puzzles.num_solutions.double().log()
    return {
        "coverage_ratio": coverage / limit,
        "log_num_solutions": log_m.mean().item(),
        "log_likelihood_limit": -log_m[:LIKELIHOOD_INPUTS].mean().item(),
        "excess": excess(full, puzzles.num_solutions[: len(full)]).mean().item(),
    }


def write_inference_data(run: Run, puzzles: PuzzleSet, inputs: int = 32) -> None:
    """inference.nc: the guide's and the prior's trajectories on a few held-out inputs."""
    from pyro_gram.diagnostics.collect import collect
    from pyro_gram.diagnostics.inference_data import save

    model, guide = (m.cpu() for m in run.trainer.averaged)
    config, task = run.solver.config, run.solver.task
    draws = max(2, min(TRACED_DRAWS, 16 * TRACED_DRAWS // task.spec.input_length))
    data = collect(task, model, guide, puzzles, inputs=inputs, depth=run.solver.config.depth, draws=draws, seed=config.evaluate.seed)
    save(data, run.out / "inference.nc")
