"""Figures of a run. Each function returns a matplotlib Figure; no display and no global state is used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter
from torch import Tensor

from pyro_gram.diagnostics.metrics import coverage_by_input, coverage_limit

if TYPE_CHECKING:
    from pyro_gram.tasks.base import PuzzleSet, Task

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#E69F00", "#009E73", "#777777"
HANDFUL = 6  # solutions of the input that is shown closely, as near as there is one


def counted(number: int, noun: str) -> str:
    """ "1 conflict", "2 conflicts"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def clean(axes: Any, xlabel: str, ylabel: str) -> None:
    """Labels, a light grid, and no frame where there is no axis."""
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)


def counts_axis(axis: Any) -> None:
    """Numbers of solutions on a logarithmic axis, written out. Set the scale first."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_locator(NullLocator())


def jittered(counts: Tensor) -> Tensor:
    """Counts moved by up to 6 %, so that inputs of as many solutions can be told apart."""
    return counts * (torch.rand(len(counts), generator=torch.Generator().manual_seed(0)) * 0.12 + 0.94)


def training(rows: list[dict[str, Any]]) -> Figure:
    """Losses, bounds on validation inputs, and accuracy of the prior, over training.

    Args:
        rows: the lines of ``metrics.jsonl``; those with a ``prior_accuracy`` are looks at the validation split.
    """
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    number = [r["batch"] for r in rows]
    left.plot(number, [r["reconstruction"] for r in rows], color=BLUE, label="reconstruction")
    left.plot(number, [r["kl"] for r in rows], color=ORANGE, label="KL")
    on_policy = [(r["batch"], r["on_policy"]) for r in rows if "on_policy" in r]
    if on_policy:
        left.plot(*zip(*on_policy, strict=True), color=GREEN, label="reconstruction, on-policy")
    if any(r[term] > 0 for r in rows for term in ("reconstruction", "kl")):
        left.set_yscale("log")
    clean(left, "batch", "nats per input (log scale)")
    beta = left.twinx()
    beta.plot(number, [r["beta"] for r in rows], color=GREY, linestyle="--")
    beta.set_ylabel("beta (dashed)", color=GREY)
    beta.set_ylim(0, 1.5 * max((r["beta"] for r in rows), default=1))
    beta.spines["top"].set_visible(False)
    left.legend(frameon=False)
    left.set_title("Training loss")

    looks = [r for r in rows if "elbo_full" in r]
    number = [r["batch"] for r in looks]
    middle.plot(number, [r["elbo_surrogate"] for r in looks], color=BLUE, marker=".", label="surrogate (Eq. 14)")
    middle.plot(number, [r["elbo_full"] for r in looks], color=ORANGE, marker=".", label="full ELBO (Eq. 13)")
    clean(middle, "batch", "nats per input, beta = 1")
    middle.legend(frameon=False, loc="best")
    middle.set_title("Bounds, validation inputs")

    _prior_over_training(right, looks)
    return figure


def _prior_over_training(axes: Any, looks: list[dict[str, Any]]) -> None:
    """Accuracy and coverage of the prior; where there are none (images), the first figure of the task's own."""
    axes.set_title("Prior trajectories while training")

    def plot(name: str, label: str, color: str) -> None:
        found = [(r["batch"], r[name]) for r in looks if name in r]
        axes.plot(*zip(*found, strict=True), color=color, marker=".", label=label)

    last = looks[-1] if looks else {}
    own = [name for name in last if name.startswith("prior_") and name not in ("prior_accuracy", "prior_coverage")]
    if "prior_accuracy" not in last and own:
        label = own[0].removeprefix("prior_").replace("_", " ")
        plot(own[0], label, BLUE)
        axes.set_yscale("log")
        clean(axes, "batch", f"{label} (log scale)")
        return
    if "prior_accuracy" in last:
        plot("prior_accuracy", "accuracy, one sample", BLUE)
    if "prior_coverage" in last:
        plot("prior_coverage", "coverage", GREEN)
        axes.axhline(last["coverage_limit"], color=GREEN, linestyle=":", label="coverage, i.i.d. limit")
    axes.set_ylim(0, 1.02)
    clean(axes, "batch", "fraction")
    if looks:
        axes.legend(frameon=False, loc="best")


def solved(task: Task, puzzles: PuzzleSet, tokens: Tensor, inputs: int = 4, answers: int = 4) -> Figure:
    """Inputs, each beside its most frequent answers; mistakes are marked by the task.

    Args:
        tokens: samples, int64 ``[N, B, L_out]``.
    """
    assert puzzles.inputs is not None
    inputs = min(inputs, len(puzzles))
    # From few solutions to many: the inputs at even steps through the order of their numbers of solutions.
    places = torch.linspace(0.2, 0.95, inputs).mul(len(puzzles) - 1).round().long()
    shown = puzzles.num_solutions.argsort(stable=True)[places].tolist()
    canonical = task.canonical_form(puzzles.inputs, tokens)
    rows = []
    for index in shown:
        many = f": {counted(int(puzzles.num_solutions[index]), 'solution')}" if puzzles.has_all_solutions else ""
        found, counts = canonical[:, index].unique(dim=0, return_counts=True)
        order = counts.argsort(descending=True, stable=True)[:answers]
        rows.append((f"input {index + 1}{many}", puzzles.inputs[index], [(found[k], int(counts[k])) for k in order]))
    figure = answers_grid(task, rows, len(tokens), answers)
    figure.suptitle(f"Most frequent of {len(tokens)} prior trajectories on held-out inputs")
    return figure


def answers_grid(
    task: Task, rows: list[tuple[str, Tensor, list[tuple[Tensor, int]]]], num_samples: int, columns: int = 4
) -> Figure:
    """One row an input: its picture, then those of its answers, with their frequency and what is wrong with them.

    Args:
        rows: of each input a title, its tokens, and its answers with the number of samples that gave each.
        num_samples: of how many.
        columns: the most answers shown of an input; fewer where none has so many.
    """
    columns = max(1, min(columns, max(len(answers) for _, _, answers in rows)))
    figure = Figure(figsize=(2.3 * (columns + 1), 2.55 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), columns + 1, squeeze=False)
    for axes in grid.ravel():
        axes.set_axis_off()
    for line, (title, x, answers) in zip(grid, rows, strict=True):
        line[0].set_axis_on()
        task.plot(line[0], x)
        line[0].set_title(title, fontsize=10, parse_math=False)
        for axes, (y, count) in zip(line[1:], answers, strict=False):
            axes.set_axis_on()
            task.plot(axes, x, y)
            verdict = "not known" if not bool(task.has_known_answer(x, y)) else _verdict(task, x, y)
            axes.set_title(f"{count} of {num_samples}: {verdict}", fontsize=10)
    return figure


def _verdict(task: Task, x: Tensor | None, y: Tensor) -> str:
    broken = int(task.violations(x, y))
    return "valid" if broken == 0 else counted(broken, task.violation_name)


def coverage_by_solutions(ids: Tensor, num_solutions: Tensor) -> Figure:
    """Coverage against the number of solutions, beside what i.i.d. uniform draws would reach.

    Args:
        ids: int64 ``[N, B]`` from ``metrics.solution_ids``.
        num_solutions: int64 ``[B]``.
    """
    n = len(ids)
    coverage = coverage_by_input(ids, num_solutions)
    valid = (ids >= 0).double().mean(0)
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    at = jittered(num_solutions)
    for axes, values, name in ((left, coverage, f"coverage, {n} samples"), (right, valid, "share of valid samples")):
        axes.scatter(at, values, s=12, alpha=0.35, color=BLUE, linewidths=0, label="one input")
        edges = [1, 2, 3, 5, 9, 17, 33, 65, 129, 10**9]
        bins = torch.bucketize(num_solutions, torch.tensor(edges), right=True)
        centres = [num_solutions[bins == b].double().mean().item() for b in bins.unique()]
        means = [values[bins == b].mean().item() for b in bins.unique()]
        axes.plot(centres, means, color=ORANGE, marker="o", label="mean of a bin")
        axes.set_xscale("log")
        counts_axis(axes.xaxis)
        axes.set_ylim(-0.02, 1.05)
        clean(axes, "number of solutions", name)
    m = torch.arange(1, int(num_solutions.max()) + 1)
    left.plot(m, coverage_limit(m, n), color=GREEN, linestyle=":", label="i.i.d. uniform limit")
    left.legend(frameon=False)
    return figure


def samples(task: Task, tokens: Tensor, columns: int = 8, rows: int = 8) -> Figure:
    """Samples of p(x), as they came; mistakes are marked by the task.

    Args:
        tokens: int64 ``[N, L_out]``.
    """
    shown = tokens[: rows * columns]
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(1.15 * columns, 1.15 * rows + 0.4), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    wrong = 0
    for axes, y in zip(grid, shown, strict=False):
        task.plot(axes, None, y)
        wrong += bool(task.is_checkable and int(task.violations(None, y)) > 0)
    for axes in grid[len(shown) :]:
        axes.set_axis_off()
    verdict = f", {len(shown) - wrong} of them valid" if task.is_checkable else ""
    figure.suptitle(f"{len(shown)} trajectories of the prior{verdict}")
    return figure


def formation(task: Task, x: Tensor | None, history: Tensor, columns: int = 9) -> Figure:
    """How answers to one input form: one row a trajectory, one column a supervision step.

    Args:
        x: one input, ``[*event]``; None for p(x).
        history: int64 ``[depth, N, L_out]``.
    """
    depth, n = history.shape[:2]
    # Most happens early: steps 1, 2, 3, 4, 6, ... up to the last.
    wanted = min(depth, columns)
    steps = {round(depth ** (i / max(1, wanted - 1))) - 1 for i in range(wanted)}
    steps |= set(sorted(set(range(depth)) - steps)[: wanted - len(steps)])  # rounding merged some: add early ones
    figure = Figure(figsize=(max(5.5, 1.75 * len(steps) + 0.6), 2.1 * n + 0.4), layout="constrained")
    grid = figure.subplots(n, len(steps), squeeze=False)
    for row in range(n):
        for column, step in enumerate(sorted(steps)):
            y = task.canonical_form(x, history[step, row])
            task.plot(grid[row, column], x, y)
            verdict = ""
            if task.is_checkable:
                verdict = f": {_verdict(task, x, y)}"
            grid[row, column].set_title(f"step {step + 1}{verdict}", fontsize=9)
    rows = "Each" if x is None else "One input, each"
    figure.suptitle(f"{rows} row a trajectory of the prior,\nover the supervision steps")
    return figure
