"""The figure of accuracy and coverage against compute, from the JSON of ``experiments/scaling/scaling.py``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator, StrMethodFormatter

from pyro_gram.diagnostics.plots.run import BLUE, GREEN, GREY, ORANGE, style_axes

METHODS = {
    "whole": (BLUE, "o", "whole trajectories"),
    "shallower": (ORANGE, "v", "fewer steps each"),
    "halting": (GREEN, "s", "halting (ACT)"),
}
LABELLED_THRESHOLDS = ("0.5", "0.9", "0.999")  # halting thresholds with a label in the figure
NEAR = 0.22  # points whose accuracy is below the best accuracy by more than this are left out
MAX_VALUES = 7  # more distinct x values than this are put into bins


def scaling_figure(study: dict[str, Any]) -> Figure:
    """Draw eight panels on the number and selection of trajectories, halting, solutions, and coverage against compute.

    Args:
        study: the JSON object that ``experiments/scaling/scaling.py`` writes. All keys of its objects are strings.
    """
    figure = Figure(figsize=(19, 8.6), layout="constrained")
    (samples, selection, by_depth, solutions), (halting, thresholds, coverage, tradeoff) = figure.subplots(2, 4)
    _draw_samples(samples, study)
    _draw_selection(selection, study)
    _draw_selection_by_depth(by_depth, study)
    _draw_solutions(solutions, study)
    _draw_halting(halting, study)
    _draw_thresholds(thresholds, study)
    _draw_compute(coverage, study)
    _draw_tradeoff(tradeoff, study)
    inputs = f"{study['inputs']} unseen inputs, trajectories of the prior"
    figure.suptitle(f"{study['checkpoint']}: {inputs}, {_describe_seeds(study['seeds'])}")
    return figure


def _describe_seeds(count: int) -> str:
    return "one seed of the draws" if count == 1 else f"{count} seeds of the draws (bands: their standard deviation)"


def _plot_mean(axes: Any, points: Sequence[tuple[float, dict[str, Any]]], name: str, **style: Any) -> None:
    """Plot means as a curve, and their standard deviation over seeds as a band."""
    x = np.array([value for value, _ in points])
    y = np.array([p[name] for _, p in points])
    sd = np.array([p.get(f"{name}_sd", 0.0) for _, p in points])
    axes.plot(x, y, **style)
    axes.fill_between(x, (y - sd).clip(0), (y + sd).clip(max=1), color=style.get("color"), alpha=0.18, linewidth=0)


def _log_ticks(axes: Any, values: list[float]) -> None:
    axes.set_xscale("log")
    axes.set_xticks(values)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def _points_of_depth(study: dict[str, Any], depth: str) -> list[tuple[float, dict[str, float]]]:
    return [(int(n), p) for n, p in study["width"][depth].items()]


def _draw_samples(axes: Any, study: dict[str, Any]) -> None:
    depths = [d for d in study["width"] if d.isdigit()]
    shades = np.linspace(0.75, 0.0, len(depths))
    widths: set[float] = set()
    for depth, shade in zip(depths, shades, strict=True):
        points = _points_of_depth(study, depth)
        widths |= {n for n, _ in points}
        blue = tuple(np.array((0, 0.447, 0.698)) * (1 - shade) + shade * np.ones(3))
        steps = f"{depth} step{'' if depth == '1' else 's'}"
        _plot_mean(axes, points, "value", color=blue, marker="o", label=steps)
    _plot_deterministic(axes, study, "value")
    _log_ticks(axes, sorted(widths))
    axes.set_ylim(top=1.02)
    style_axes(axes, "trajectories N", "accuracy, selected by value")
    axes.set_title("Number of trajectories at several depths")
    axes.legend(frameon=False, fontsize=8)


def _plot_deterministic(axes: Any, study: dict[str, Any], name: str) -> None:
    points = [(int(n), p) for n, p in study["deterministic"].items()]
    x = [n for n, _ in points]
    label = f"no noise, {study['depth']} steps"
    axes.plot(x, [p[name] for _, p in points], color=GREY, linestyle="--", marker="x", label=label)


SELECTIONS = (
    ("verified", "task's check (any right)", GREEN),
    ("value", "vote and value head", BLUE),
    ("vote", "majority vote", ORANGE),
    ("sample", "one sample", GREY),
)


def _draw_selection(axes: Any, study: dict[str, Any]) -> None:
    points = _points_of_depth(study, str(study["depth"]))
    for name, label, color in SELECTIONS:
        _plot_mean(axes, points, name, color=color, marker="o", label=label)
    _log_ticks(axes, [n for n, _ in points])
    axes.set_ylim(bottom=min(axes.get_ylim()[0], 0.95), top=1.002)  # so that small differences look small
    style_axes(axes, "trajectories N", "accuracy")
    axes.set_title(f"Selection, {study['depth']} steps")
    axes.legend(frameon=False, fontsize=8)


def _draw_selection_by_depth(axes: Any, study: dict[str, Any]) -> None:
    points = [(int(d), study["width"][d][str(study["of"])]) for d in study["width"]]
    for name, _, color in SELECTIONS:
        _plot_mean(axes, points, name, color=color, marker="o")
    _log_ticks(axes, [d for d, _ in points])
    axes.set_ylim(top=1.02)
    style_axes(axes, "supervision steps", f"accuracy, N = {study['of']}")
    axes.set_title("Selection at several depths")


def bins(values: list[float], log: bool = False) -> list[np.ndarray]:
    """Return the indices of ``values`` in each bin. Up to 7 distinct values get a bin each; more share ten bins."""
    array = np.asarray(values, dtype=float)
    unique = np.unique(array)
    if len(unique) <= MAX_VALUES:
        return [np.flatnonzero(array == v) for v in unique]
    scaled_values = np.log(array) if log else array
    edges = np.linspace(scaled_values.min(), scaled_values.max() + 1e-9, 11)
    index = np.digitize(scaled_values, edges)
    return [np.flatnonzero(index == b) for b in np.unique(index)]


def _plot_binned(axes: Any, positions: list[float], values: list[float], *, log: bool = False, **style: Any) -> None:
    places = bins(positions, log)
    x = [np.mean(np.asarray(positions)[p]) for p in places]
    y = [np.mean(np.asarray(values)[p]) for p in places]
    error = [np.std(np.asarray(values)[p]) / len(p) ** 0.5 if len(p) > 1 else np.nan for p in places]
    axes.errorbar(x, y, yerr=error, marker="o", capsize=2, **style)


def _draw_solutions(axes: Any, study: dict[str, Any]) -> None:
    m, by_input = study["num_solutions"], study["by_input"]
    _plot_binned(axes, m, by_input["sample"], log=True, color=GREY, label="accuracy, one sample")
    names = [name for name in by_input if name.startswith("coverage_")]
    for name, shade in zip(names, np.linspace(0.7, 0.0, len(names)), strict=True):
        n = int(name.removeprefix("coverage_"))
        green = tuple(np.array((0, 0.62, 0.451)) * (1 - shade) + shade * np.ones(3))
        _plot_binned(axes, m, by_input[name], log=True, color=green, label=f"coverage, N = {n}")
    if names:
        grid = np.unique(np.round(np.geomspace(1, max(m), 60)))
        n = int(names[-1].removeprefix("coverage_"))
        label = f"i.i.d. uniform limit, N = {n}"
        axes.plot(grid, 1 - (1 - 1 / grid) ** n, color=GREEN, linestyle=":", label=label)
    _log_ticks(axes, [v for v in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if v <= max(m)])
    axes.set_ylim(-0.02, 1.05)
    style_axes(axes, "number of solutions", "fraction")
    axes.set_title("Number of solutions")
    axes.legend(frameon=False, fontsize=8, loc="lower left")


def _draw_halting(axes: Any, study: dict[str, Any]) -> None:
    difficulty, label = study["difficulty"], study["difficulty_label"]
    if difficulty is None:
        difficulty, label = study["num_solutions"], "number of solutions"
    jitter = np.random.default_rng(0).uniform(-0.2, 0.2, len(difficulty))
    axes.scatter(np.asarray(difficulty) + jitter, study["steps_by_input"], s=9, alpha=0.3, color=BLUE, linewidths=0)
    _plot_binned(axes, difficulty, study["steps_by_input"], color=ORANGE, label=f"mean (of at most {study['depth']})")
    axes.set_ylim(bottom=0)
    axes.set_xlim(min(difficulty) - 0.6, max(difficulty) + 0.6)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    style_axes(axes, label, "supervision steps until halting")
    point = study["halted"]
    full_depth_accuracy = study["width"][str(study["depth"])][str(study["of"])]["sample"]
    axes.set_title(
        f"Halting at P = {study['halt']:g}: {point['sample']:.3f} right after {point['steps']:.1f} steps\n"
        f"(without: {full_depth_accuracy:.3f} after {study['depth']})",
        fontsize=11,
    )
    axes.legend(frameon=False, fontsize=8)


def _draw_thresholds(axes: Any, study: dict[str, Any]) -> None:
    points = [(p["steps"], p | {"halt": halt}) for halt, p in study["halting"].items() if isinstance(p, dict)]
    _plot_mean(axes, points, "sample", color=GREEN, marker="s", label="halting at P")
    for steps, point in points:
        if point["halt"] in LABELLED_THRESHOLDS:
            axes.annotate(point["halt"], (steps, point["sample"]), (4, -11), textcoords="offset points", fontsize=8)
    full_points = [(int(d), p[str(study["of"])]) for d, p in study["width"].items()]
    _plot_mean(axes, full_points, "sample", color=BLUE, marker="o", label="all of this depth")
    _log_ticks(axes, [d for d, _ in full_points])
    axes.set_ylim(top=1.01)
    style_axes(axes, "supervision steps, mean of all trajectories", "accuracy, one sample")
    axes.set_title("Halting at several P")
    axes.legend(frameon=False, fontsize=8, loc="lower right")


def method_of(point: dict[str, float], full_depth: int) -> str:
    """Return the method of a point, a key of ``METHODS``."""
    if point["halt"] < 1:
        return "halting"
    return "whole" if point["depth"] == full_depth else "shallower"


def goal_of(study: dict[str, Any]) -> tuple[str, str]:
    """Return a metric and its label: coverage if all solutions are known, else ``verified``."""
    return ("coverage", "coverage") if study["coverage_limit"] is not None else ("verified", "any sample right")


def envelope(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points (x, y) that no other point dominates, in order of x.

    A point dominates another if its x is smaller or equal and its y is larger or equal.
    """
    best_points: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda p: (p[0], -p[1])):
        if not best_points or y > best_points[-1][1]:
            best_points.append((x, y))
    return best_points


def _by_method(study: dict[str, Any], x: str, y: str) -> dict[str, list[tuple[float, float]]]:
    points: dict[str, list[tuple[float, float]]] = {method: [] for method in METHODS}
    for point in study["points"].values():
        points[method_of(point, study["depth"])].append((point[x], point[y]))
    return points


def _draw_compute(axes: Any, study: dict[str, Any]) -> None:
    """Draw coverage against compute for every point within the budget, and the best points of each method."""
    name, label = goal_of(study)
    budget = study["of"] * study["depth"]
    candidates = {
        m: [p for p in points if p[0] <= 1.1 * budget] for m, points in _by_method(study, "work", name).items()
    }
    for method, (color, marker, method_label) in METHODS.items():
        if not candidates[method]:
            continue
        points = np.array(candidates[method])
        axes.scatter(points[:, 0], points[:, 1], s=9, color=color, marker=marker, alpha=0.25, linewidths=0)
        best_points = np.array(envelope(candidates[method]))
        axes.step(best_points[:, 0], best_points[:, 1], where="post", color=color, linewidth=1.4)
        axes.plot(
            best_points[:, 0],
            best_points[:, 1],
            color=color,
            marker=marker,
            markersize=4,
            linestyle="",
            label=method_label,
        )
    works = [work for points in candidates.values() for work, _ in points]
    ticks = [tick for power in range(5) for tick in (10**power, 2 * 10**power, 5 * 10**power)]
    _log_ticks(axes, [tick for tick in ticks if min(works) * 0.8 < tick < max(works) * 1.25])
    lowest = min(y for _, y in candidates["whole"])
    axes.set_ylim(max(0.0, lowest - 0.15), 1.01)
    style_axes(axes, "core evaluations (supervision steps) for each input", label)
    axes.set_title("Each width, depth and P (lines: the best of these inputs)")
    axes.legend(frameon=False, fontsize=8, loc="lower right")


def _draw_tradeoff(axes: Any, study: dict[str, Any]) -> None:
    """Draw coverage against accuracy within one budget, with a line through the best points of each method."""
    name, label = goal_of(study)
    budget = study["of"] * study["depth"]
    candidates: dict[str, list[tuple[float, float]]] = {method: [] for method in METHODS}
    for p in study["points"].values():
        if p["work"] <= budget:
            candidates[method_of(p, study["depth"])].append((p["sample"], p[name]))
    best_accuracy = max(x for points in candidates.values() for x, _ in points)
    for method, (color, marker, method_label) in METHODS.items():
        shown_points = np.array([(x, y) for x, y in candidates[method] if x > best_accuracy - NEAR]).reshape(-1, 2)
        axes.scatter(shown_points[:, 0], shown_points[:, 1], s=9, color=color, marker=marker, alpha=0.25, linewidths=0)
        best_points = np.array([(-x, y) for x, y in envelope([(-x, y) for x, y in shown_points.tolist()])]).reshape(
            -1, 2
        )
        axes.plot(best_points[:, 0], best_points[:, 1], color=color, marker=marker, markersize=5, label=method_label)
    style_axes(axes, "accuracy, one sample", label)
    axes.set_title(f"Within {budget} core evaluations")
    axes.legend(frameon=False, fontsize=8, loc="lower left")
