"""Compare settings of sampling: ``python experiments/studies/settings.py CHECKPOINT [CHECKPOINT ...]``.

Of a lattice these are order, certainty, number of decisions at once, applications of f, floor and sweeps; of an
autoregressive or a masked diffusion model, its floor and its sampling steps. They are changed one at a time. All
variants do equal work: as many evaluations of the network as 20 samples take with the checkpoint's own settings. The
inputs are those of the validation split, so that settings may be chosen by this study. The checkpoints are seeds of one
run. The figure shows what depth pays (left: accuracy and evenness of one sample against its evaluations) and what width
pays (right: coverage and vote of more and more samples).
"""

from __future__ import annotations

import sys
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from matplotlib.figure import Figure

import pyro_gram
from experiments.tables.cells import mean_and_sd, write_study
from pyro_gram.diagnostics.calibration import uniformity
from pyro_gram.diagnostics.metrics import coverage_by_input, coverage_limit, selected_answers, solution_ids
from pyro_gram.diagnostics.plots.posterior import RED
from pyro_gram.diagnostics.plots.run import BLUE, GREEN, GREY, ORANGE, set_count_ticks, style_axes
from pyro_gram.errors import UserError
from pyro_gram.inference.contract import model_traits
from pyro_gram.sampling.rollout import rollout
from pyro_gram.solver import Solver
from pyro_gram.system.cli import Parser, call
from pyro_gram.system.files import check_writable, write_atomically
from pyro_gram.tasks.base import PuzzleSet

HERE = Path(__file__).parent
BUDGET, MAX_SAMPLES = 20, 80  # samples with the checkpoint's own settings, whose work all variants do; the most samples
UNIFORM = 1e6  # an order that takes all open tokens alike
FLOORS = {f"floor {floor:g}": {"floor": floor} for floor in (0.0, 0.01, 0.02, 0.05, 0.1, 0.2)}
STEPS = {f"{steps} sampling steps": {"sampling_steps": steps} for steps in (8, 16, 32, 64)}
VARIANTS: dict[str, dict[str, Any]] = {  # of a lattice
    "own settings": {},
    "most certain token next": {"order": 0.0},
    "order .05": {"order": 0.05},
    "order .2": {"order": 0.2},
    "order 1": {"order": 1.0},
    "any token next": {"order": UNIFORM},
    "one token at a time": {"certainty": 1.0},
    "certain above .99": {"certainty": 0.99},
    "certain above .9": {"certainty": 0.9},
    "2 tokens at once": {"count": 2},
    "4 tokens at once": {"count": 4},
    "f applied once less": {"low_steps": -1},
    "f applied once more": {"low_steps": 1},
    "f applied thrice more": {"low_steps": 3},
    **FLOORS,
    "no sweep": {"sweeps": 0},
    "one sweep": {"sweeps": 1},
    "two sweeps": {"sweeps": 2},
    "four sweeps": {"sweeps": 4},
}
COUNTS = (1, 2, 5, 10, 20, 40, 80)  # numbers of samples of an input
SHOWN = ("own settings", "most certain token next", "two sweeps", "four sweeps", "8 sampling steps")
SETTINGS = {  # the fields that variants change
    "order": "order",
    "certainty": "certainty",
    "count": "tokens at once",
    "low_steps": "applications of f",
    "floor": "floor",
    "sweeps": "sweeps",
    "sampling_steps": "sampling steps",
}
COLORS = (BLUE, ORANGE, GREEN, RED, GREY, "#CC79A7", "#56B4E9")
COLUMNS = {
    "right": "right samples",
    "evaluations": "evaluations a sample",
    "samples": "samples for equal work",
    "coverage": "their coverage",
    "limit": "its limit",
    "excess": "total variation above perfect sampling",
}


def variants_of(solver: Solver) -> dict[str, dict[str, Any]]:
    """Return the variants of a model. Raises UserError if it has no settings of sampling that are compared here."""
    if model_traits(solver.model).has_lattice:
        return VARIANTS
    fields = vars(solver.config.model)
    variants: dict[str, dict[str, Any]] = {"own settings": {}}
    variants |= FLOORS if "floor" in fields else {}
    variants |= STEPS if "sampling_steps" in fields else {}
    if len(variants) == 1:
        name = solver.config.names["model"]
        raise UserError(f"model {name!r} has neither a lattice nor a floor: this study compares their settings")
    return variants


def measure_variant(solver: Solver, puzzles: PuzzleSet, changes: dict[str, Any], budget: float) -> dict[str, Any]:
    """Measure a checkpoint with changed settings.

    Args:
        solver: the checkpoint.
        puzzles: inputs whose solutions are all known.
        changes: fields of the configs of model and prior, ``floor``, ``sweeps``, and an increment of ``low_steps``.
        budget: evaluations of the network for each input; 0 for those of ``BUDGET`` samples.
    """
    model: Any = deepcopy(solver.model)
    has_lattice = model_traits(model).has_lattice
    if has_lattice:
        fields = {name: value for name, value in changes.items() if name in ("order", "certainty", "count")}
        model.prior.config = replace(model.prior.config, **fields)
        model.config = replace(model.config, low_steps=max(1, model.config.low_steps + changes.get("low_steps", 0)))
    else:
        model.config = replace(model.config, **changes)
    floor = changes.get("floor", solver.config.temper.floor) if has_lattice else 0.0
    samples = rollout(
        model,
        puzzles.inputs,
        num_samples=MAX_SAMPLES,
        depth=solver.config.depth,
        seed=solver.config.evaluate.seed,
        sweeps=changes.get("sweeps", solver.config.evaluate.sweeps),
        temper=replace(solver.config.temper, floor=floor),
    )
    ids = solution_ids(solver.task, puzzles, samples.tokens)
    if has_lattice:
        work = samples.steps.double().mean().item() * model.config.transitions * model.config.low_steps
    else:
        work = float(getattr(model.config, "sampling_steps", 0) or solver.task.spec.output_length)
    count = max(1, min(MAX_SAMPLES, round((budget or BUDGET * work) / work)))
    evenness = uniformity(ids, puzzles.num_solutions)
    answers = solver.task.canonical_form(puzzles.inputs, samples.tokens)
    by_count = []
    for n in COUNTS:
        vote = solver.task.is_valid(puzzles.inputs, selected_answers(answers[:n], samples.score[:n]))
        coverage = coverage_by_input(ids[:n], puzzles.num_solutions)
        by_count.append({"samples": n, "vote": vote.double().mean().item(), "coverage": coverage.mean().item()})
    return {
        "by_count": by_count,
        "right": (ids >= 0).double().mean().item(),
        "evaluations": work,
        "samples": count,
        "coverage": coverage_by_input(ids[:count], puzzles.num_solutions).mean().item(),
        "limit": coverage_limit(puzzles.num_solutions, count).mean().item(),
        "excess": evenness.excess_variation[puzzles.num_solutions > 1].mean().item(),
    }


def measure_checkpoint(solver: Solver, count: int) -> dict[str, dict[str, Any]]:
    """Measure all variants on the first ``count`` validation inputs.

    Raises:
        UserError: the model has no such settings, or its inputs are not known to have several solutions.
    """
    variants = variants_of(solver)
    puzzles = solver.task.split("validation").subset(count)
    if puzzles.inputs is None or not puzzles.has_all_solutions or int(puzzles.num_solutions.max()) < 2:
        raise UserError("this study needs inputs with several solutions, all of them known")
    results: dict[str, dict[str, Any]] = {}
    for name, changes in variants.items():
        budget = BUDGET * results["own settings"]["evaluations"] if results else 0.0
        results[name] = measure_variant(solver, puzzles, changes, budget)
        print(f"{name}: {results[name]['right']:.4f} right", file=sys.stderr)
    return results


def markdown(study: dict[str, Any]) -> str:
    """Return a table with a row for each variant: means over checkpoints, with standard deviations."""
    lines = [f"| setting | {' | '.join(COLUMNS.values())} |", "|---" * (1 + len(COLUMNS)) + "|"]
    runs = study["checkpoints"]
    for name in runs[0]["variants"]:
        cells = [mean_and_sd([run["variants"][name][key] for run in runs]) for key in COLUMNS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def settings_figure(study: dict[str, Any]) -> Figure:
    """Draw accuracy and evenness of a sample against its evaluations, and coverage and vote against those of an input.

    On the left the variants of one setting share a colour, and a line joins them. The cross has the own settings.
    """
    runs = [run["variants"] for run in study["checkpoints"]]

    def mean_of(name: str, key: str) -> float:
        return mean(run[name][key] for run in runs)

    figure = Figure(figsize=(13, 8), layout="constrained")
    (accuracy, coverage), (evenness, vote) = figure.subplots(2, 2)
    for axes, key, label in ((accuracy, "right", "right samples"), (evenness, "excess", COLUMNS["excess"])):
        own = (mean_of("own settings", "evaluations"), mean_of("own settings", key))
        for number, setting in enumerate(SETTINGS):
            names = [n for n in runs[0] if setting in {**VARIANTS, **STEPS}[n]]
            points = sorted([own, *((mean_of(n, "evaluations"), mean_of(n, key)) for n in names)])
            if names:
                axes.plot(*zip(*points, strict=True), "o-", color=COLORS[number], markersize=4, label=SETTINGS[setting])
        axes.plot(*own, "kx", markersize=10, label="own settings")
        axes.set_xscale("log")
        set_count_ticks(axes.xaxis)
        axes.legend(fontsize=8)
        style_axes(axes, "evaluations of the network for a sample", label)
    for axes, key, label in ((coverage, "coverage", "share of solutions covered"), (vote, "vote", "right votes")):
        for name, color in zip([name for name in SHOWN if name in runs[0]], COLORS, strict=False):
            by_count = zip(*(run[name]["by_count"] for run in runs), strict=True)
            means = [(p[0]["samples"] * mean_of(name, "evaluations"), mean(q[key] for q in p)) for p in by_count]
            axes.plot(*zip(*means, strict=True), "o-", markersize=3, color=color, label=name)
        axes.set_xscale("log")
        set_count_ticks(axes.xaxis)
        axes.legend(fontsize=8)
        style_axes(axes, "evaluations of the network for all samples of an input", label)
    return figure


def main(argv: list[str]) -> int:
    parser = Parser("settings.py", description=__doc__)
    parser.add_argument("checkpoints", nargs="+", type=Path, metavar="CHECKPOINT", help=".safetensors, or a run")
    parser.add_argument("--inputs", type=int, default=100, metavar="B", help="validation inputs (default 100)")
    parser.add_argument(
        "--out", type=Path, metavar="FILE.json", help="default: settings_TASK_MODEL.json beside this script"
    )
    arguments = parser.parse_args(argv)
    if arguments.inputs < 1:
        raise UserError(f"--inputs must be at least 1, not {arguments.inputs}")
    solvers = [pyro_gram.load(path) for path in arguments.checkpoints]
    kinds = sorted({f"{solver.config.names['task']}_{solver.config.names['model']}" for solver in solvers})
    if len(kinds) > 1:
        raise UserError(f"the checkpoints differ ({', '.join(kinds)}): give seeds of one run")
    out = arguments.out or HERE / f"settings_{kinds[0]}.json"
    check_writable(out)
    with torch.no_grad():
        runs = [{"seed": s.config.seed, "variants": measure_checkpoint(s, arguments.inputs)} for s in solvers]
    results = {"checkpoints": runs, "inputs": arguments.inputs}
    write_atomically(out.with_suffix(".png"), partial(settings_figure(results).savefig, dpi=100))
    write_study(out, results, markdown(results))
    return 0


if __name__ == "__main__":
    raise SystemExit(call(main))
