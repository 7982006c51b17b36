"""Figures of a run (training, answers, coverage and samples), and helpers that other figures use too.

The functions named ``*_figure`` return a matplotlib Figure. They use neither a display nor global state.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter
from torch import Tensor

from pyro_gram.diagnostics.metrics import coverage_by_input, coverage_limit
from pyro_gram.tasks.base import PuzzleSet, Task

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#E69F00", "#009E73", "#777777"
FEW_SOLUTIONS = 6  # the input whose number of solutions is nearest to 6 is shown in detail


# ---- helpers of all figures --------------------------------------------------------------------------------------


def pluralize(number: int, noun: str) -> str:
    """Return a number with its noun: "1 conflict", "2 conflicts"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def style_axes(axes: Any, xlabel: str, ylabel: str) -> None:
    """Set the labels and a light grid, and hide the frame on the sides without an axis."""
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)


def set_count_ticks(axis: Any) -> None:
    """Label an axis with plain numbers (1, 2, 5, 10, ...). The axis must already be logarithmic."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_locator(NullLocator())


def jitter(counts: Tensor) -> Tensor:
    """Move counts by up to 6 %, so that points of equal counts do not hide each other."""
    return counts * (torch.rand(len(counts), generator=torch.Generator().manual_seed(0)) * 0.12 + 0.94)


def check_label(task: Task, x: Tensor | None, y: Tensor) -> str:
    """Return an answer's label: "valid", "2 conflicts" or "not known"; empty if the task cannot check answers."""
    if not task.is_checkable:
        return ""
    if not bool(task.has_known_answer(x, y)):
        return "not known"
    violations = int(task.violations(x, y))
    return "valid" if violations == 0 else pluralize(violations, task.violation_name)


# ---- training ----------------------------------------------------------------------------------------------------


def training_figure(rows: list[dict[str, Any]]) -> Figure:
    """Draw losses, bounds on validation inputs, and accuracy of the prior, during training.

    Args:
        rows: the lines of ``metrics.jsonl``. Lines with bounds come from measurements on the validation split.
    """
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    _draw_losses(left, rows)
    evaluations = [r for r in rows if "elbo_full" in r]
    batch = [r["batch"] for r in evaluations]
    for name, color, label in (
        ("elbo_surrogate", BLUE, "surrogate (Eq. 14)"),
        ("elbo_full", ORANGE, "full ELBO (Eq. 13)"),
    ):
        if all(name in r for r in evaluations):  # a lattice has no surrogate
            middle.plot(batch, [r[name] for r in evaluations], color=color, marker=".", label=label)
    style_axes(middle, "batch", "nats per input, beta = 1")
    middle.legend(frameon=False, loc="best")
    middle.set_title("Bounds, validation inputs")
    _draw_prior_accuracy(right, evaluations)
    return figure


def _draw_losses(axes: Any, rows: list[dict[str, Any]]) -> None:
    batch = [r["batch"] for r in rows]
    axes.plot(batch, [r["reconstruction"] for r in rows], color=BLUE, label="reconstruction")
    axes.plot(batch, [r["kl"] for r in rows], color=ORANGE, label="KL")
    on_policy = [(r["batch"], r["on_policy"]) for r in rows if "on_policy" in r]
    if on_policy:
        axes.plot(*zip(*on_policy, strict=True), color=GREEN, label="reconstruction, on-policy")
    if any(r[term] > 0 for r in rows for term in ("reconstruction", "kl")):
        axes.set_yscale("log")
    style_axes(axes, "batch", "nats per input (log scale)")
    beta = axes.twinx()
    beta.plot(batch, [r["beta"] for r in rows], color=GREY, linestyle="--")
    beta.set_ylabel("beta (dashed)", color=GREY)
    beta.set_ylim(0, 1.5 * max((r["beta"] for r in rows), default=1))
    beta.spines["top"].set_visible(False)
    axes.legend(frameon=False)
    axes.set_title("Training loss")


def _draw_prior_accuracy(axes: Any, evaluations: list[dict[str, Any]]) -> None:
    """Draw accuracy and coverage of the prior; for images, which have neither, the first of the task's own metrics."""
    axes.set_title("Prior trajectories while training")

    def plot(name: str, label: str, color: str) -> None:
        points = [(r["batch"], r[name]) for r in evaluations if name in r]
        axes.plot(*zip(*points, strict=True), color=color, marker=".", label=label)

    last = evaluations[-1] if evaluations else {}
    task_metrics = [
        name for name in last if name.startswith("prior_") and name not in ("prior_accuracy", "prior_coverage")
    ]
    if "prior_accuracy" not in last and task_metrics:
        label = task_metrics[0].removeprefix("prior_").replace("_", " ")
        plot(task_metrics[0], label, BLUE)
        axes.set_yscale("log")
        style_axes(axes, "batch", f"{label} (log scale)")
        return
    if "prior_accuracy" in last:
        plot("prior_accuracy", "accuracy, one sample", BLUE)
    if "prior_coverage" in last:
        plot("prior_coverage", "coverage", GREEN)
        axes.axhline(last["coverage_limit"], color=GREEN, linestyle=":", label="coverage, i.i.d. limit")
    axes.set_ylim(0, 1.02)
    style_axes(axes, "batch", "fraction")
    if evaluations:
        axes.legend(frameon=False, loc="best")


# ---- answers -----------------------------------------------------------------------------------------------------


def solved_figure(task: Task, puzzles: PuzzleSet, tokens: Tensor, inputs: int = 4, answers: int = 4) -> Figure:
    """Draw inputs next to their most frequent answers; the task marks mistakes.

    Args:
        tokens: samples, int64 ``[N, B, L_out]``.
    """
    assert puzzles.inputs is not None
    inputs = min(inputs, len(puzzles))
    # Sort the inputs by their number of solutions, and take evenly spaced ones.
    places = torch.linspace(0.2, 0.95, inputs).mul(len(puzzles) - 1).round().long()
    indices = puzzles.num_solutions.argsort(stable=True)[places].tolist()
    canonical = task.canonical_form(puzzles.inputs, tokens)
    rows = []
    for index in indices:
        total = f": {pluralize(int(puzzles.num_solutions[index]), 'solution')}" if puzzles.has_all_solutions else ""
        distinct_answers, counts = canonical[:, index].unique(dim=0, return_counts=True)
        order = counts.argsort(descending=True, stable=True)[:answers]
        row_answers = [(distinct_answers[k], int(counts[k])) for k in order]
        rows.append((f"input {index + 1}{total}", puzzles.inputs[index], row_answers))
    figure = answers_figure(task, rows, len(tokens), answers)
    figure.suptitle(f"Most frequent of {len(tokens)} prior trajectories on held-out inputs")
    return figure


def answers_figure(
    task: Task, rows: list[tuple[str, Tensor, list[tuple[Tensor, int]]]], num_samples: int, columns: int = 4
) -> Figure:
    """Draw one row for each input: its picture, then its answers with their frequencies and mistakes.

    Args:
        rows: for each input a title, its tokens, and its answers with the number of samples of each.
        num_samples: N, the number of samples per input.
        columns: the maximal number of answers that are drawn for an input.
    """
    columns = max(1, min(columns, max(len(answers) for _, _, answers in rows)))
    figure = Figure(figsize=(2.3 * (columns + 1), 2.55 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), columns + 1, squeeze=False)
    for axes in grid.ravel():
        axes.set_axis_off()
    for row, (title, x, answers) in zip(grid, rows, strict=True):
        row[0].set_axis_on()
        task.plot(row[0], x)
        row[0].set_title(title, fontsize=10, parse_math=False)
        for axes, (y, count) in zip(row[1:], answers, strict=False):
            axes.set_axis_on()
            task.plot(axes, x, y)
            axes.set_title(f"{count} of {num_samples}: {check_label(task, x, y)}", fontsize=10)
    return figure


def formation_figure(task: Task, x: Tensor | None, history: Tensor, columns: int = 9) -> Figure:
    """Draw how the answers to one input develop: one row for each trajectory, one column for each supervision step.

    Args:
        x: one input, ``[*event]``; None for p(x).
        history: int64 ``[depth, N, L_out]``.
    """
    depth, n = history.shape[:2]
    # Answers change most in the first steps: draw steps 1, 2, 3, 4, 6, ... and the last one.
    size = min(depth, columns)
    steps = {round(depth ** (i / max(1, size - 1))) - 1 for i in range(size)}
    steps |= set(sorted(set(range(depth)) - steps)[: size - len(steps)])  # rounding may repeat a step: add others
    figure = Figure(figsize=(max(5.5, 1.75 * len(steps) + 0.6), 2.1 * n + 0.4), layout="constrained")
    grid = figure.subplots(n, len(steps), squeeze=False)
    for row in range(n):
        for column, step in enumerate(sorted(steps)):
            y = task.canonical_form(x, history[step, row])
            task.plot(grid[row, column], x, y)
            label = check_label(task, x, y)
            grid[row, column].set_title(f"step {step + 1}{f': {label}' if label else ''}", fontsize=9)
    rows = "Each" if x is None else "One input, each"
    figure.suptitle(f"{rows} row a trajectory of the prior,\nover the supervision steps")
    return figure


# ---- coverage and samples ----------------------------------------------------------------------------------------


def coverage_figure(ids: Tensor, num_solutions: Tensor) -> Figure:
    """Draw coverage against the number of solutions, with the limit of i.i.d. uniform draws.

    Args:
        ids: int64 ``[N, B]`` from ``metrics.solution_ids``.
        num_solutions: int64 ``[B]``.
    """
    n = len(ids)
    coverage = coverage_by_input(ids, num_solutions)
    valid_share = (ids >= 0).double().mean(0)
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    x = jitter(num_solutions)
    edges = torch.tensor([1, 2, 3, 5, 9, 17, 33, 65, 129, 10**9])
    bins = torch.bucketize(num_solutions, edges, right=True)
    for axes, values, name in (
        (left, coverage, f"coverage, {n} samples"),
        (right, valid_share, "share of valid samples"),
    ):
        axes.scatter(x, values, s=12, alpha=0.35, color=BLUE, linewidths=0, label="one input")
        centres = [num_solutions[bins == b].double().mean().item() for b in bins.unique()]
        means = [values[bins == b].mean().item() for b in bins.unique()]
        axes.plot(centres, means, color=ORANGE, marker="o", label="mean of a bin")
        axes.set_xscale("log")
        set_count_ticks(axes.xaxis)
        axes.set_ylim(-0.02, 1.05)
        style_axes(axes, "number of solutions", name)
    m = torch.arange(1, int(num_solutions.max()) + 1)
    left.plot(m, coverage_limit(m, n), color=GREEN, linestyle=":", label="i.i.d. uniform limit")
    left.legend(frameon=False)
    return figure


def samples_figure(task: Task, tokens: Tensor, columns: int = 8, rows: int = 8) -> Figure:
    """Draw the first samples of p(x), without selection; the task marks mistakes.

    Args:
        tokens: int64 ``[N, L_out]``.
    """
    tokens = tokens[: rows * columns]
    rows = -(-len(tokens) // columns)
    figure = Figure(figsize=(1.15 * columns, 1.15 * rows + 0.4), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    num_wrong = 0
    for axes, y in zip(grid, tokens, strict=False):
        task.plot(axes, None, y)
        num_wrong += bool(task.is_checkable and int(task.violations(None, y)) > 0)
    for axes in grid[len(tokens) :]:
        axes.set_axis_off()
    valid_text = f", {len(tokens) - num_wrong} of them valid" if task.is_checkable else ""
    figure.suptitle(f"{len(tokens)} trajectories of the prior{valid_text}")
    return figure


def neighbours_figure(tokens: Tensor, train: Tensor, side: int, count: int = 24, columns: int = 6) -> Figure:
    """Draw samples next to their nearest training images; dots in the training image mark pixels that differ.

    Args:
        tokens: integers ``[N, side^2]``; the first ``count`` are drawn.
        train: integers ``[M, side^2]``.
    """
    from pyro_gram.diagnostics.digits import nearest_neighbours  # imported for images only

    samples = tokens[:count].cpu()
    index, distance = nearest_neighbours(samples, train.cpu())
    rows = max(1, math.ceil(len(samples) / columns))
    figure = Figure(figsize=(1.8 * columns, 1.15 * rows + 0.4), layout="constrained")
    gap = 2
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for number, (axes, image) in enumerate(zip(grid, samples, strict=False)):
        neighbour = train[index[number]].cpu()
        pair = [
            image.view(side, side).float(),
            torch.full((side, gap), math.nan),
            neighbour.view(side, side).float(),
        ]
        axes.imshow(torch.cat(pair, 1).numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        differing_pixels = (image != neighbour).view(side, side).nonzero()
        axes.scatter(differing_pixels[:, 1] + side + gap, differing_pixels[:, 0], s=1.2, color=ORANGE, linewidths=0)
        axes.set_title(f"{int(distance[number])} pixels", fontsize=8)
    figure.suptitle("Samples (left of each pair) and their nearest training images; dots mark pixels that differ")
    return figure
