"""The figure of what more compute at inference buys, from the JSON of ``experiments/scaling/scaling.py``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator, StrMethodFormatter

from pyro_gram.diagnostics.plots.run import BLUE, GREEN, GREY, ORANGE, clean

METHODS = {
    "whole": (BLUE, "o", "whole trajectories"),
    "shallower": (ORANGE, "v", "fewer steps each"),
    "halting": (GREEN, "s", "halting (ACT)"),
}
TOLD = ("0.5", "0.9", "0.999")  # thresholds that are named in the figure
NEAR = 0.22  # of the best accuracy: what is far from it is left out of the picture
MANY = 7  # values of x from which on points are gathered in bins


def scaling_figure(found: dict[str, Any]) -> Figure:
    """Width, selection, number of solutions, halting, and the frontier of accuracy and coverage: eight panels.

    Args:
        found: the JSON, its keys strings.
    """
    figure = Figure(figsize=(19, 8.6), layout="constrained")
    (width, selection, by_depth, solutions), (halting, threshold, coverage, trade) = figure.subplots(2, 4)
    _depths(width, found)
    _selection(selection, found)
    _selection_by_depth(by_depth, found)
    _by_solutions(solutions, found)
    _halting(halting, found)
    _thresholds(threshold, found)
    _compute(coverage, found)
    _trade(trade, found)
    figure.suptitle(
        f"{found['checkpoint']}: {found['inputs']} unseen inputs, trajectories of the prior, {_seeds(found['seeds'])}"
    )
    return figure


def _seeds(count: int) -> str:
    return "one seed of the draws" if count == 1 else f"{count} seeds of the draws (bands: their standard deviation)"


def _line(axes: Any, points: Sequence[tuple[float, dict[str, Any]]], name: str, **style: Any) -> None:
    """A curve of means, with its standard deviation over seeds as a band."""
    x = np.array([at for at, _ in points])
    y = np.array([p[name] for _, p in points])
    sd = np.array([p.get(f"{name}_sd", 0.0) for _, p in points])
    axes.plot(x, y, **style)
    axes.fill_between(x, (y - sd).clip(0), (y + sd).clip(max=1), color=style.get("color"), alpha=0.18, linewidth=0)


def _log_ticks(axes: Any, values: list[float]) -> None:
    axes.set_xscale("log")
    axes.set_xticks(values)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def _width(found: dict[str, Any], depth: str) -> list[tuple[float, dict[str, float]]]:
    return [(int(n), p) for n, p in found["width"][depth].items()]


def _depths(axes: Any, found: dict[str, Any]) -> None:
    depths = [d for d in found["width"] if d.isdigit()]
    shades = np.linspace(0.75, 0.0, len(depths))
    widest: set[float] = set()
    for depth, shade in zip(depths, shades, strict=True):
        points = _width(found, depth)
        widest |= {n for n, _ in points}
        blue = tuple(np.array((0, 0.447, 0.698)) * (1 - shade) + shade * np.ones(3))
        steps = f"{depth} step{'' if depth == '1' else 's'}"
        _line(axes, points, "value", color=blue, marker="o", label=steps)
    _flat(axes, found, "value")
    _log_ticks(axes, sorted(widest))
    axes.set_ylim(top=1.02)
    clean(axes, "trajectories N", "accuracy, selected by value")
    axes.set_title("Width at several depths")
    axes.legend(frameon=False, fontsize=8)


def _flat(axes: Any, found: dict[str, Any], name: str) -> None:
    points = [(int(n), p) for n, p in found["deterministic"].items()]
    x = [n for n, _ in points]
    label = f"no noise, {found['depth']} steps"
    axes.plot(x, [p[name] for _, p in points], color=GREY, linestyle="--", marker="x", label=label)


SELECTIONS = (
    ("verified", "task's check (any right)", GREEN),
    ("value", "vote and value head", BLUE),
    ("vote", "majority vote", ORANGE),
    ("sample", "one sample", GREY),
)


def _selection(axes: Any, found: dict[str, Any]) -> None:
    points = _width(found, str(found["depth"]))
    for name, label, color in SELECTIONS:
        _line(axes, points, name, color=color, marker="o", label=label)
    _log_ticks(axes, [n for n, _ in points])
    axes.set_ylim(top=1.001)
    clean(axes, "trajectories N", "accuracy")
    axes.set_title(f"Selection, {found['depth']} steps")
    axes.legend(frameon=False, fontsize=8)


def _selection_by_depth(axes: Any, found: dict[str, Any]) -> None:
    points = [(int(d), found["width"][d][str(found["of"])]) for d in found["width"]]
    for name, _, color in SELECTIONS:
        _line(axes, points, name, color=color, marker="o")
    _log_ticks(axes, [d for d, _ in points])
    axes.set_ylim(top=1.02)
    clean(axes, "supervision steps", f"accuracy, N = {found['of']}")
    axes.set_title("Selection at several depths")


def bins(values: list[float], log: bool = False) -> list[np.ndarray]:
    """The places of ``values``, gathered by equal values where there are few, else in ten bins, none empty."""
    array = np.asarray(values, dtype=float)
    unique = np.unique(array)
    if len(unique) <= MANY:
        return [np.flatnonzero(array == v) for v in unique]
    scaled = np.log(array) if log else array
    edges = np.linspace(scaled.min(), scaled.max() + 1e-9, 11)
    which = np.digitize(scaled, edges)
    return [np.flatnonzero(which == b) for b in np.unique(which)]


def _binned(axes: Any, at: list[float], values: list[float], *, log: bool = False, **style: Any) -> None:
    places = bins(at, log)
    x = [np.mean(np.asarray(at)[p]) for p in places]
    y = [np.mean(np.asarray(values)[p]) for p in places]
    error = [np.std(np.asarray(values)[p]) / len(p) ** 0.5 if len(p) > 1 else np.nan for p in places]
    axes.errorbar(x, y, yerr=error, marker="o", capsize=2, **style)


def _by_solutions(axes: Any, found: dict[str, Any]) -> None:
    m, by_input = found["num_solutions"], found["by_input"]
    _binned(axes, m, by_input["sample"], log=True, color=GREY, label="accuracy, one sample")
    shown = [name for name in by_input if name.startswith("coverage_")]
    for name, shade in zip(shown, np.linspace(0.7, 0.0, len(shown)), strict=True):
        n = int(name.removeprefix("coverage_"))
        green = tuple(np.array((0, 0.62, 0.451)) * (1 - shade) + shade * np.ones(3))
        _binned(axes, m, by_input[name], log=True, color=green, label=f"coverage, N = {n}")
    if shown:
        grid = np.unique(np.round(np.geomspace(1, max(m), 60)))
        n = int(shown[-1].removeprefix("coverage_"))
        label = f"i.i.d. uniform limit, N = {n}"
        axes.plot(grid, 1 - (1 - 1 / grid) ** n, color=GREEN, linestyle=":", label=label)
    _log_ticks(axes, [v for v in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if v <= max(m)])
    axes.set_ylim(-0.02, 1.05)
    clean(axes, "number of solutions", "fraction")
    axes.set_title("Number of solutions")
    axes.legend(frameon=False, fontsize=8, loc="lower left")


def _halting(axes: Any, found: dict[str, Any]) -> None:
    difficulty, label = found["difficulty"], found["difficulty_label"]
    if difficulty is None:
        difficulty, label = found["num_solutions"], "number of solutions"
    jitter = np.random.default_rng(0).uniform(-0.2, 0.2, len(difficulty))
    axes.scatter(np.asarray(difficulty) + jitter, found["steps_by_input"], s=9, alpha=0.3, color=BLUE, linewidths=0)
    _binned(axes, difficulty, found["steps_by_input"], color=ORANGE, label=f"mean (of {found['depth']} at the most)")
    axes.set_ylim(bottom=0)
    axes.set_xlim(min(difficulty) - 0.6, max(difficulty) + 0.6)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    clean(axes, label, "supervision steps until halting")
    halted = found["halted"]
    full = found["width"][str(found["depth"])][str(found["of"])]["sample"]
    axes.set_title(
        f"Halting at P = {found['halt']:g}: {halted['sample']:.3f} right after {halted['steps']:.1f} steps\n"
        f"(without: {full:.3f} after {found['depth']})",
        fontsize=11,
    )
    axes.legend(frameon=False, fontsize=8)


def _thresholds(axes: Any, found: dict[str, Any]) -> None:
    points = [(p["steps"], p | {"halt": halt}) for halt, p in found["halting"].items() if isinstance(p, dict)]
    _line(axes, points, "sample", color=GREEN, marker="s", label="halting at P")
    for steps, point in points:
        if point["halt"] in TOLD:
            axes.annotate(point["halt"], (steps, point["sample"]), (4, -11), textcoords="offset points", fontsize=8)
    full = [(int(d), p[str(found["of"])]) for d, p in found["width"].items()]
    _line(axes, full, "sample", color=BLUE, marker="o", label="all so deep")
    _log_ticks(axes, [d for d, _ in full])
    axes.set_ylim(top=1.01)
    clean(axes, "supervision steps, mean of all trajectories", "accuracy, one sample")
    axes.set_title("Halting at several P")
    axes.legend(frameon=False, fontsize=8, loc="lower right")


def method_of(point: dict[str, float], whole: int) -> str:
    """Which method a point belongs to."""
    if point["halt"] < 1:
        return "halting"
    return "whole" if point["depth"] == whole else "shallower"


def goal_of(found: dict[str, Any]) -> tuple[str, str]:
    """What is sought, and its label."""
    return ("coverage", "coverage") if found["coverage_limit"] is not None else ("verified", "any sample right")


def envelope(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points (x, y) with no other one at a smaller or equal x that has a larger or equal y, by x."""
    best: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda p: (p[0], -p[1])):
        if not best or y > best[-1][1]:
            best.append((x, y))
    return best


def _by_method(found: dict[str, Any], x: str, y: str) -> dict[str, list[tuple[float, float]]]:
    points: dict[str, list[tuple[float, float]]] = {method: [] for method in METHODS}
    for point in found["points"].values():
        points[method_of(point, found["depth"])].append((point[x], point[y]))
    return points


def _compute(axes: Any, found: dict[str, Any]) -> None:
    """Every point of the frontier within the budget, and the best of each method."""
    name, label = goal_of(found)
    budget = found["of"] * found["depth"]
    every = {m: [p for p in points if p[0] <= 1.1 * budget] for m, points in _by_method(found, "work", name).items()}
    for method, (color, marker, words) in METHODS.items():
        if not every[method]:
            continue
        at = np.array(every[method])
        axes.scatter(at[:, 0], at[:, 1], s=9, color=color, marker=marker, alpha=0.25, linewidths=0)
        best = np.array(envelope(every[method]))
        axes.step(best[:, 0], best[:, 1], where="post", color=color, linewidth=1.4)
        axes.plot(best[:, 0], best[:, 1], color=color, marker=marker, markersize=4, linestyle="", label=words)
    works = [work for points in every.values() for work, _ in points]
    ticks = [tick for power in range(5) for tick in (10**power, 2 * 10**power, 5 * 10**power)]
    _log_ticks(axes, [tick for tick in ticks if min(works) * 0.8 < tick < max(works) * 1.25])
    lowest = min(y for _, y in every["whole"])
    axes.set_ylim(max(0.0, lowest - 0.15), 1.01)
    clean(axes, "core evaluations (supervision steps) an input", label)
    axes.set_title("Each width, depth and P (lines: the best of these inputs)")
    axes.legend(frameon=False, fontsize=8, loc="lower right")


def _trade(axes: Any, found: dict[str, Any]) -> None:
    """What is to be had at one budget: of each method the points that no other one of it beats in both."""
    name, label = goal_of(found)
    budget = found["of"] * found["depth"]
    within: dict[str, list[tuple[float, float]]] = {method: [] for method in METHODS}
    for p in found["points"].values():
        if p["work"] <= budget:
            within[method_of(p, found["depth"])].append((p["sample"], p[name]))
    most = max(x for points in within.values() for x, _ in points)
    for method, (color, marker, words) in METHODS.items():
        near = np.array([(x, y) for x, y in within[method] if x > most - NEAR]).reshape(-1, 2)
        axes.scatter(near[:, 0], near[:, 1], s=9, color=color, marker=marker, alpha=0.25, linewidths=0)
        best = np.array([(-x, y) for x, y in envelope([(-x, y) for x, y in near.tolist()])]).reshape(-1, 2)
        axes.plot(best[:, 0], best[:, 1], color=color, marker=marker, markersize=5, label=words)
    clean(axes, "accuracy, one sample", label)
    axes.set_title(f"Within {budget} core evaluations")
    axes.legend(frameon=False, fontsize=8, loc="lower left")
