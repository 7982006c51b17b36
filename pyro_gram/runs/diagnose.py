"""Examine a solver: :func:`diagnose` runs all parts of the examination. The program is ``experiments/diagnose.py``.

The evaluation at the end of a run (``runs.evaluate``) is a quick examination that uses the same functions.
Samples are fresh trajectories of the prior on unseen inputs, with the temper that the run's evaluation uses.
The bounds, weights and ranks of the guide use the prior without temper. They say nothing about the model's accuracy.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from pyro_gram.diagnostics import landscape as landscapes
from pyro_gram.diagnostics import verdicts
from pyro_gram.diagnostics.calibration import uniformity
from pyro_gram.diagnostics.evidence import NEITHER, evidence
from pyro_gram.diagnostics.landscape import landscape
from pyro_gram.diagnostics.metrics import measure, solution_ids
from pyro_gram.diagnostics.plots import run as plots
from pyro_gram.diagnostics.plots.calibration import sbc_figure, uniformity_figure
from pyro_gram.diagnostics.plots.posterior import evidence_figure, terms_figure
from pyro_gram.diagnostics.plots.run import pluralize
from pyro_gram.diagnostics.plots.trajectories import animate, attractors_figure, influence_figure, landscape_figure
from pyro_gram.diagnostics.sbc import simulate_ranks
from pyro_gram.diagnostics.trajectories import attractors, guidance_influence, separation, trace_trajectories
from pyro_gram.inference.contract import model_sizes, model_traits
from pyro_gram.inference.guide import why_no_guide
from pyro_gram.inference.importance import MAX_TRACED
from pyro_gram.runs.findings import (
    Findings,
    draw_samples,
    draw_training,
    index_with_few_solutions,
    save_trajectories,
)
from pyro_gram.runs.measure import bound_metrics, sample_metrics, validation_history
from pyro_gram.runs.preflight import check_data
from pyro_gram.runs.scope import Scope
from pyro_gram.sampling.result import Rollout
from pyro_gram.sampling.steps import to_cpu
from pyro_gram.solver import Solver
from pyro_gram.system.files import write_json
from pyro_gram.system.machine import environment

SAMPLES, MAX_DATA_SAMPLES, MIN_DATA_SAMPLES = 20, 2000, 256  # samples per input; for p(x), most and fewest samples
BOUND_PAIRS = 128
TRAIN_INPUTS, MIN_TRAIN_INPUTS, TRAIN_SAMPLES = 128, 16, 4  # most and fewest training inputs; samples of each input
GUIDE_SAMPLES, PRIOR_SAMPLES = 160, 320  # draws per pair (x, y) for log p(y | x)
DATA_PRIOR_SAMPLES = 4096  # draws of the prior for p(x): all data share them
RANK_ROUNDS, RANK_DRAWS = 2, 31  # simulated data per input, and the guide's trajectories per datum
CHAINS, DRAWS = 4, 12  # chains, and draws per chain, for each input of inference.nc
END_SAMPLES, LANDSCAPE_SAMPLES = 24, 64  # trajectories per input: to compare their ends; to draw the landscape
POSITIONS = 8  # positions, and numbers of kept transitions, whose influence on the answer is measured
# The unit of these budgets is ``Scope.num_trajectories``'s: about 0.25 ms on two cores.
BUDGETS = {
    "samples": 50_000,
    "training inputs": 8_000,
    "evidence": 42_000,
    "inference.nc": 20_000,
    "ranks": 35_000,
    "ends": 15_000,
    "deciding": 20_000,
}


def guide_of(solver: Solver) -> nn.Module | None:
    """Return the guide; None if the model has no inference network, or the prior's draws do not follow its density."""
    return None if why_no_guide(solver.model, solver.guide) else solver.guide


def sample_all(solver: Solver, x: Tensor | None, num_samples: int, scope: Scope) -> Rollout:
    """Sample trajectories of the prior, each to its full depth."""
    halt = 1.0 if solver.has_heads else None
    return solver.sample(x, num_samples, scope.depth, scope.seed, halt=halt)


def examine_samples(scope: Scope, findings: Findings) -> None:
    """Examine the prior's samples (accuracy, coverage, evenness), and the bounds and answers under the guide."""
    solver, task = scope.solver, scope.solver.task
    puzzles = scope.test.subset(scope.num_inputs(BUDGETS["samples"], SAMPLES, least=8))
    num_data = min(MAX_DATA_SAMPLES, max(MIN_DATA_SAMPLES, scope.num_trajectories(BUDGETS["samples"])))
    samples = sample_all(solver, puzzles.inputs, SAMPLES if scope.has_input else num_data, scope)
    draw_samples(solver, puzzles, samples, findings)
    if task.split("test").is_first_version is None:
        metrics = sample_metrics(solver, puzzles, samples, "test")
    else:  # the task's own metrics need all versions of an input
        metrics = measure(task, puzzles, samples.tokens, samples.score).to_dict()
    summary: dict[str, Any] = {}
    if puzzles.has_all_solutions and int(puzzles.num_solutions.max()) > 1:
        evenness = uniformity(solution_ids(task, puzzles, samples.tokens), puzzles.num_solutions, seed=scope.seed)
        summary = evenness.summary()
        findings.draw("evenness", uniformity_figure(evenness))
    if guide_of(solver) is not None:
        pairs = scope.test.subset(len(puzzles) if scope.has_input else min(BOUND_PAIRS, scope.max_inputs))
        x, y = scope.sample_pairs(pairs, len(pairs) if scope.has_input else min(BOUND_PAIRS, scope.max_inputs))
        metrics |= bound_metrics(solver, pairs, to_cpu(x), y, scope.depth, scope.seed)
    history = validation_history(scope.rows)
    metrics["depth"] = scope.depth
    new_verdicts = verdicts.from_metrics(metrics, history, summary, _training_accuracy(scope))
    findings.add(*new_verdicts, metrics=metrics, looks=history, uniformity=summary)


def _training_accuracy(scope: Scope) -> float | None:
    """Return the share of right samples on training inputs. It helps to tell poor generalisation from a leak."""
    task = scope.solver.task
    if not task.is_checkable or not scope.has_input:
        return None
    affordable = scope.num_trajectories(BUDGETS["training inputs"]) // TRAIN_SAMPLES
    x = task.split("train").subset(min(TRAIN_INPUTS, max(MIN_TRAIN_INPUTS, affordable))).inputs
    samples = sample_all(scope.solver, x, TRAIN_SAMPLES, scope)
    return task.is_valid(x, samples.tokens).double().mean().item()


def examine_training(scope: Scope, findings: Findings) -> None:
    """Draw the curves of the training, from the lines of ``metrics.jsonl``."""
    draw_training(scope.rows, findings)


def examine_terms(scope: Scope, findings: Findings) -> None:
    """Write ``inference.nc``. Draw the KL and the scale of the guidance of each transition."""
    solver = scope.solver
    count = scope.num_inputs(BUDGETS["inference.nc"], 2 * CHAINS * DRAWS, limit=32)
    settings = {"inputs": count, "chains": CHAINS, "draws": DRAWS, "depth": scope.depth, "seed": scope.seed}
    data = save_trajectories(solver, scope.test, findings, **settings)
    if "guidance" not in data["prior"]:
        findings.skip("terms", "this model has no guidance")
        return
    name = "terms_prior" if guide_of(solver) is None else "terms"
    findings.draw(name, terms_figure(data, model_sizes(solver.config.model).transitions))


def examine_evidence(scope: Scope, findings: Findings) -> None:
    """Estimate log p(y | x) from the guide and from the prior."""
    solver = scope.solver
    if not model_traits(solver.model).has_exact_likelihood:
        findings.skip("evidence", "log p(y|x) of a diffusion model cannot be estimated from trajectories of guidance")
        return
    count = scope.num_inputs(BUDGETS["evidence"], GUIDE_SAMPLES, limit=24)
    puzzles = scope.with_several_solutions(count) if scope.has_input else scope.test.subset(count)
    x, y = scope.sample_pairs(puzzles, count)
    num_data = min(DATA_PRIOR_SAMPLES, max(MIN_DATA_SAMPLES, scope.num_trajectories(2 * BUDGETS["evidence"])))
    estimates = evidence(
        solver.model,
        guide_of(solver),
        x,
        y,
        depth=scope.depth,
        guide_samples=GUIDE_SAMPLES,
        prior_samples=PRIOR_SAMPLES if x is not None else num_data,
        seed=scope.seed,
        max_traced=scope.chunk_size(MAX_TRACED),
        max_trajectories=scope.chunk_size(),
    )
    summary = estimates.summary()
    new_verdicts = [verdicts.estimate(summary)]
    if estimates.guide is not None:
        new_verdicts += [verdicts.importance_weights(summary), verdicts.agreement(summary)]
    numbers = estimates.to_dict()
    if puzzles.has_all_solutions:
        log_ms = puzzles.num_solutions.double().log() + solver.task.log_namings(to_cpu(x), y.cpu())
        log_m, difference = log_ms.mean().item(), estimates.log_p + log_ms
        error = None if x is None else difference.std(correction=0).item() / len(difference) ** 0.5
        untrusted_share = summary["believed"][NEITHER] / summary["pairs"]
        new_verdicts.append(verdicts.likelihood(summary["log_p"], error, log_m, untrusted_share))
        numbers["summary"]["log_p_perfect"] = -log_m
    findings.add(*new_verdicts, evidence=numbers)
    findings.draw("evidence_prior" if estimates.guide is None else "evidence", evidence_figure(estimates))


def examine_ranks(scope: Scope, findings: Findings) -> None:
    """Test by simulation whether the guide is the posterior: rank true trajectories among those of the guide."""
    solver, guide = scope.solver, guide_of(scope.solver)
    if guide is None:
        findings.skip("ranks", why_no_guide(solver.model, solver.guide))
        return
    count = scope.num_inputs(BUDGETS["ranks"], RANK_DRAWS * RANK_ROUNDS, limit=64)
    x, _ = scope.sample_pairs(scope.test.subset(count), count)
    simulation = simulate_ranks(
        solver.model,
        guide,
        x,
        depth=scope.depth,
        rounds=RANK_ROUNDS if x is not None else count * RANK_ROUNDS,
        num_draws=RANK_DRAWS,
        seed=scope.seed,
        max_traced=scope.chunk_size(MAX_TRACED),
    )
    deviations = {name: summary["deviation"] for name, summary in simulation.summary().items()}
    new_verdicts = verdicts.ranks(deviations, simulation.band, data=simulation.ranks.shape[1])
    findings.add(new_verdicts, ranks=simulation.to_dict())
    findings.draw("ranks", sbc_figure(simulation))


def examine_trajectories(scope: Scope, findings: Findings) -> None:
    """Examine where trajectories end, when they separate, and which draws decide the answer."""
    _examine_ends(scope, findings)
    _examine_deciding_draws(scope, findings)
    _examine_one_input(scope, findings)


def _examine_ends(scope: Scope, findings: Findings) -> None:
    solver, task, temper = scope.solver, scope.solver.task, scope.solver.config.temper
    in_memory = max(1, scope.chunk_size() // END_SAMPLES)  # inputs that fit: all their states are in memory at once
    puzzles = scope.test.subset(scope.num_inputs(BUDGETS["ends"], END_SAMPLES, least=2, limit=min(24, in_memory)))
    x = scope.on_device(puzzles.inputs)
    traces = trace_trajectories(
        solver.model, x, depth=scope.depth, num_samples=END_SAMPLES, seed=scope.seed, temper=temper
    )
    ends = attractors(task, x, traces.tokens)
    pairs = separation(task, x, traces)
    has_several = puzzles.num_solutions > 1  # two known solutions suffice, even if the list is incomplete
    same_answer = (ends.num_distinct_right[has_several] <= 1).double()
    new_verdicts = [verdicts.diversity(same_answer.mean().item() if len(same_answer) else 0.0, len(same_answer))]
    if ends.unsettled_fraction is not None:
        new_verdicts.append(verdicts.settling(ends.unsettled_fraction))
    numbers = {
        "inputs": len(puzzles),
        "num_samples": END_SAMPLES,
        "distinct": ends.num_distinct.double().mean().item(),
        "effective": ends.effective_number.mean().item(),
        "steps_to_settle": ends.settling_step.double().mean().item(),
        "differ_by_step": pairs.differ_by_step.tolist(),
    }
    findings.add(*new_verdicts, trajectories=numbers)
    num_solutions = puzzles.num_solutions if puzzles.has_all_solutions else None
    findings.draw("attractors", attractors_figure(ends, pairs, num_solutions))


def _examine_deciding_draws(scope: Scope, findings: Findings) -> None:
    solver, num_samples = scope.solver, END_SAMPLES // 2
    in_memory = max(1, scope.chunk_size() // num_samples)  # inputs that fit: all their guidance is in memory at once
    per_input = num_samples * 2 * POSITIONS
    count = scope.num_inputs(BUDGETS["deciding"], per_input, least=1, limit=min(8, in_memory))
    decisions = guidance_influence(
        solver.model,
        solver.task,
        scope.inputs_of_one_size(count),
        depth=scope.depth,
        num_samples=num_samples,
        places=POSITIONS,
        seed=scope.seed,
        temper=solver.config.temper,
    )
    if decisions is None:
        findings.skip("deciding", "this model has no guidance")
        return
    findings.add(deciding={"kept": decisions.num_kept.tolist(), "same": decisions.by_transition.mean(1).tolist()})
    findings.draw("deciding", influence_figure(decisions))


def _examine_one_input(scope: Scope, findings: Findings) -> None:
    """Draw the landscape of one input, and how the answers to it develop."""
    task, model, temper = scope.solver.task, scope.solver.model, scope.solver.config.temper
    index = index_with_few_solutions(scope.test)
    every_solution, x = scope.test.solutions_of(index), None
    if scope.test.inputs is not None:
        single_input, every_solution = task.spec.crop(scope.test.inputs[index : index + 1], every_solution)
        every_solution, x = task.with_all_names(single_input[0], every_solution), scope.on_device(single_input)
    solutions = every_solution if scope.test.has_all_solutions else None
    settings: dict[str, Any] = {"depth": scope.depth, "seed": scope.seed, "temper": temper}
    count = min(LANDSCAPE_SAMPLES, scope.chunk_size())
    surface = landscape(model, task, x, solutions, num_samples=count, **settings)
    if surface is None:
        findings.skip("landscape", "every trajectory of this model is the same")
    else:
        findings.draw("landscape", landscape_figure(surface))
    history = trace_trajectories(model, x, num_samples=3, **settings).tokens[:, :, 0]
    single = None if x is None else x[0].cpu()
    findings.draw("formation", plots.formation_figure(task, single, history))
    path = findings.folder / "figures" / "formation.gif"
    animate(task, single, history, path)
    findings.draw("animation", path)


PARTS: dict[str, Callable[[Scope, Findings], None]] = {
    "samples": examine_samples,
    "training": examine_training,
    "inference.nc": examine_terms,
    "log p(y|x)": examine_evidence,
    "ranks under the guide": examine_ranks,
    "trajectories": examine_trajectories,
}


def check_ready(solver: Solver) -> None:
    """Load the data and packages that a diagnosis needs.

    Raises:
        ConfigError: data or a package is missing.
        InputError: a file of the task is damaged.
    """
    check_data(solver.task)
    landscapes.check_installed()


def diagnose(scope: Scope, findings: Findings, name: str, progress: Any) -> None:
    """Run every part of the examination, then write ``report.html`` and ``diagnosis.json``.

    Args:
        scope: the solver, and how much of it is examined.
        findings: an empty object, to which the results are added.
        name: the name of the checkpoint.
        progress: a tqdm bar, which shows each part's name.
    """
    start = time.perf_counter()
    seconds = {}
    progress.reset(total=len(PARTS))
    for title, part in PARTS.items():
        progress.set_postfix_str(title)
        part_start = time.perf_counter()
        part(scope, findings)
        seconds[title] = time.perf_counter() - part_start
        progress.update()
    progress.set_postfix_str("")
    config = scope.solver.config
    summary = {
        "checkpoint": name,
        "task": config.names["task"],
        "depth": scope.depth,
        "seed": scope.seed,
        "seconds": {**seconds, "total": time.perf_counter() - start},
        "verdicts": [v.to_dict() for v in findings.verdicts.values()],
        **findings.numbers,
        "environment": environment(),
    }
    write_json(findings.folder / "diagnosis.json", summary)
    findings.write_page(
        scope.solver,
        title=f"{name}: {config.names['task']}, {config.names['model']}",
        summary=_lead(scope, findings.numbers["metrics"]),
        details={"Settings": config.to_dict(), "diagnosis.json": summary},
        all_inputs=findings.numbers["metrics"]["num_inputs"] == len(scope.test),
    )


def _lead(scope: Scope, metrics: dict[str, Any]) -> str:
    """Return two sentences that say what was examined."""
    solver, config = scope.solver, scope.solver.config
    count = sum(p.numel() for p in solver.model.parameters())
    inputs = f"on {metrics['num_inputs']:,} inputs that training never saw" if scope.has_input else "without input"
    temper = config.temper.describe()
    guide = "; the guide, its bounds, weights and ranks are examined on a few of them, with the prior without temper"
    return (
        f"Preset {config.preset}, seed {config.seed}, {count:,} parameters with the heads. "
        f"Samples are fresh trajectories of the prior{f' ({temper})' if temper else ''} {inputs}, "
        f"{metrics['num_samples']:,} each, {pluralize(scope.depth, 'supervision step')} "
        f"deep{guide if guide_of(solver) is not None else ''}."
    )
