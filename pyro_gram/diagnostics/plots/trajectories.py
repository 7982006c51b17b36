"""Figures of trajectories: the loss they cross, where they end, which draws decide; and an animation of answers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from matplotlib import patheffects
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogFormatterSciNotation, LogLocator, MaxNLocator
from PIL import Image
from torch import Tensor

from pyro_gram.diagnostics.landscape import LEAST_LOSS, Landscape
from pyro_gram.diagnostics.metrics import coverage_limit
from pyro_gram.diagnostics.plots.run import BLUE, GREEN, GREY, ORANGE, clean, counted, counts_axis, jittered
from pyro_gram.diagnostics.trajectories import Attractors, Deciding, Parting
from pyro_gram.system.files import write_atomically

if TYPE_CHECKING:
    from pyro_gram.tasks.base import Task

BLACK = "#000000"
ANSWERS = (BLUE, ORANGE, GREEN, "#CC79A7", "#56B4E9", "#D55E00")  # of the most frequent answers; all others are grey
OUTLINE = [patheffects.Stroke(linewidth=5, foreground="white"), patheffects.Normal()]
SHADES = LinearSegmentedColormap.from_list("shades", ("#F2F2F2", "#707070"))  # colours must stand out against them
DETERMINISTIC = "deterministic path (every guidance at its mean)"
FRAMES, COLUMNS, COLOURS = 24, 6, 64  # of an animation, at most
HELD = 4  # times as long as the others the last frame is shown


# ---- the landscape -----------------------------------------------------------------------------------------------


def landscape_figure(landscape: Landscape) -> Figure:
    """Trajectories of one input over the loss between the states that they visit, and their loss step by step."""
    figure = Figure(figsize=(13, 6), layout="constrained")
    plane, course = figure.subplots(1, 2, width_ratios=(1.3, 1))
    _surface(figure, plane, landscape)
    _paths(plane, landscape)
    _course(course, landscape)
    # Trajectories may end anywhere in the plane: a key within it would hide some.
    figure.legend(handles=_key(landscape), loc="outside lower left", ncols=4, frameon=False, fontsize=10)
    return figure


def _surface(figure: Figure, axes: Any, landscape: Landscape) -> None:
    low, high = (bound.log10().item() for bound in landscape.loss.clamp(min=LEAST_LOSS).aminmax())
    levels = torch.logspace(np.floor(low), max(np.ceil(high), np.floor(low) + 1), 25)
    shown = landscape.grid.clamp(levels[0], levels[-1])
    x, y = landscape.grid_x, landscape.grid_y
    filled = axes.contourf(x, y, shown, levels=levels, norm=LogNorm(), cmap=SHADES)
    bar = figure.colorbar(filled, ax=axes, pad=0.01, ticks=LogLocator(), format=LogFormatterSciNotation())
    bar.set_label("loss between the states, nats (white: no state near)")


def _paths(axes: Any, landscape: Landscape) -> None:
    for way, colour, right in _ways(landscape.points, landscape):
        axes.plot(*way.T, color=colour, linewidth=0.9, alpha=0.5)
        axes.plot(*way[-1], color=colour, linestyle="", zorder=3, **_end(right))
    if landscape.mean_points is not None:
        axes.plot(*landscape.mean_points.T, color=BLACK, linewidth=3, path_effects=OUTLINE)
        end = _end(landscape.mean_right is not False)
        axes.plot(*landscape.mean_points[-1], color=BLACK, linestyle="", zorder=4, **{**end, "markersize": 12})
    axes.plot(*landscape.points[0, 0], linestyle="", zorder=5, **_start())
    first, second = landscape.explained
    clean(axes, f"first principal component of late h ({first:.0%} of the variance)", f"second ({second:.0%})")
    axes.grid(visible=False)
    found = counted(int(landscape.answer.max()) + 1, "distinct answer")
    judged = "" if landscape.right is None else f", {int(landscape.right.sum())} trajectories right"
    axes.set_title(f"{landscape.points.shape[1]} trajectories of the prior:\n{found}{judged}")


def _course(axes: Any, landscape: Landscape) -> None:
    for way, colour, right in _ways(landscape.loss, landscape):
        way = way.clamp(min=LEAST_LOSS)
        axes.plot(way, color=colour, linewidth=0.9, alpha=0.5)
        axes.plot(len(way) - 1, way[-1], color=colour, linestyle="", zorder=3, **_end(right))
    if landscape.mean_loss is not None:
        shown = landscape.mean_loss.clamp(min=LEAST_LOSS)
        axes.plot(shown, color=BLACK, linewidth=3, path_effects=OUTLINE)
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    clean(axes, "supervision steps from z_0", f"loss: {_loss_name(landscape)}, nats")
    black = "" if landscape.mean_loss is None else "\n(black: the deterministic path)"
    axes.set_title(f"The loss along each trajectory{black}")


def _ways(values: Tensor, landscape: Landscape) -> list[tuple[Tensor, str, bool]]:
    """Of each trajectory its part of ``values`` ``[S + 1, N, ...]``, its colour, and whether it is drawn as right."""
    answers = landscape.answer.tolist()
    rights = [True] * len(answers) if landscape.right is None else landscape.right.tolist()
    colours = [ANSWERS[k] if k < len(ANSWERS) else GREY for k in answers]
    return list(zip(values.unbind(1), colours, rights, strict=True))


def _end(right: bool) -> dict[str, Any]:
    return {"marker": "o", "markersize": 6} if right else {"marker": "x", "markersize": 9, "markeredgewidth": 2.5}


def _start() -> dict[str, Any]:
    return {"marker": "*", "markersize": 18, "color": "white", "markeredgecolor": BLACK}


def _key(landscape: Landscape) -> list[Line2D]:
    def mark(label: str, **style: Any) -> Line2D:
        return Line2D([], [], label=label, **style)

    rare = int(landscape.answer.max()) >= len(ANSWERS)
    colours = f"a colour an answer{' (grey: rarer ones)' if rare else ''}"
    known = landscape.right is not None
    keys = [
        mark("z_0", linestyle="", **_start()),
        mark(f"{'a right' if known else 'an'} answer, {colours}", color=ANSWERS[0], linewidth=0.9, **_end(True)),
    ]
    if landscape.right is not None and not landscape.right.all():
        keys.append(mark("a wrong answer", color=ANSWERS[0], linewidth=0.9, **_end(False)))
    if landscape.mean_points is not None:
        keys.append(mark(DETERMINISTIC, color=BLACK, linewidth=3))
    return keys


def _loss_name(landscape: Landscape) -> str:
    m = landscape.num_solutions
    if m == 0:
        return "-log p(decoded answer | h)"
    return "-log p(the solution | h)" if m == 1 else f"-log p(any of the {m} solutions | h)"


# ---- where trajectories end --------------------------------------------------------------------------------------


def attractors_figure(attractors: Attractors, parting: Parting, num_solutions: Tensor | None = None) -> Figure:
    """How many answers the trajectories of an input end in, when they have them, and when pairs of them part.

    Args:
        num_solutions: of each input, int64 ``[B]``; None where not all are known.
    """
    figure = Figure(figsize=(12, 8.4), layout="constrained")
    (many, settled), (answers, distances) = figure.subplots(2, 2)
    _answers_of_inputs(many, attractors, num_solutions)
    _settled(settled, attractors)
    _parted(answers, parting)
    _distances(distances, parting)
    return figure


def _answers_of_inputs(axes: Any, attractors: Attractors, num_solutions: Tensor | None) -> None:
    n, b = attractors.settling.shape
    if num_solutions is None:
        at = torch.arange(1, b + 1).double()
        order = attractors.effective.argsort()
        clean(axes, "inputs, in order", "answers of an input")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlim(0, b + 1)
        axes.set_ylim(0, attractors.distinct.max().item() + 1)
    else:
        order = torch.arange(b)
        at = jittered(num_solutions)
        m = torch.arange(1, int(num_solutions.max()) + 1)
        axes.plot(m, m * coverage_limit(m, n), color=GREEN, linestyle=":", label=f"distinct, {n} i.i.d. uniform draws")
        axes.set_xscale("log")
        axes.set_yscale("log")
        for axis in (axes.xaxis, axes.yaxis):
            counts_axis(axis)
        clean(axes, "solutions of an input", "answers of an input")
    axes.scatter(at, attractors.distinct[order], s=45, alpha=0.6, color=BLUE, label="distinct, wrong ones too")
    axes.scatter(
        at, attractors.effective[order], s=45, alpha=0.8, color=ORANGE, marker="D", label="effective: exp(entropy)"
    )
    axes.legend(frameon=False, loc="best")
    axes.set_title(f"Answers that {n} trajectories of an input end in")


def _settled(axes: Any, attractors: Attractors) -> None:
    steps = range(1, len(attractors.settled_at) + 1)
    axes.plot(steps, attractors.settled_at.mean(1), color=BLUE, marker="o", label="have their final answer, for good")
    if attractors.right_at is not None:
        axes.plot(steps, attractors.right_at.nanmean(1), color=GREEN, marker="s", label="have a right answer")
    axes.set_ylim(0, 1.05)
    _over_steps(axes, "share of trajectories")
    axes.legend(frameon=False, loc="lower right")
    axes.set_title(f"{attractors.unsettled.mean():.1%} of them still change in the last quarter of the steps")


def _parted(axes: Any, parting: Parting) -> None:
    axes.plot(range(1, len(parting.differ) + 1), parting.differ, color=BLUE, marker="o")
    axes.set_ylim(0, 1.05)
    _over_steps(axes, "share whose answers differ already")
    pairs = counted(parting.num_apart, "pair")
    axes.set_title(f"When answers part: {pairs} of trajectories of one\ninput that end in different answers")


def _distances(axes: Any, parting: Parting) -> None:
    steps = range(len(parting.apart))
    for values, number, colour, marker, name in (
        (parting.apart, parting.num_apart, BLUE, "o", "different answers"),
        (parting.alike, parting.num_alike, ORANGE, "D", "the same answer"),
    ):
        axes.plot(steps, values, color=colour, marker=marker, label=f"{counted(number, 'pair')} that end in {name}")
    axes.set_ylim(bottom=0)
    _over_steps(axes, "root mean square of h - h'")
    axes.legend(frameon=False, loc="best")
    axes.set_title("When states part: mean distance of pairs of\ntrajectories of one input (0: z_0)")


def _over_steps(axes: Any, ylabel: str) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    clean(axes, "supervision steps", ylabel)


# ---- which draws decide ------------------------------------------------------------------------------------------


def deciding_figure(deciding: Deciding) -> Figure:
    """The share of forks that end in their trajectory's answer, by what they keep of its guidance."""
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    chance = deciding.by_transition[0].mean().item()
    left.plot(deciding.kept, deciding.by_transition, color=GREY, alpha=0.4, linewidth=1)
    left.plot([], [], color=GREY, alpha=0.4, linewidth=1, label="one input")
    left.plot(deciding.kept, deciding.by_transition.mean(1), color=BLUE, marker="o", linewidth=2.5, label="mean")
    left.set_xscale("function", functions=(_root, np.square))
    left.set_xticks(deciding.kept.tolist())
    clean(left, "transitions whose guidance is kept, from the first on", "share that ends in the same answer")
    left.set_title("Guidance of the later transitions drawn anew")
    positions = deciding.positions.numpy()
    for column in deciding.by_position.T:
        right.plot(positions, column, color=GREY, alpha=0.4, linestyle="", marker="o", markersize=5)
    gap = np.diff(positions).min() if len(positions) > 1 else 1
    right.bar(positions, deciding.by_position.mean(1).numpy(), color=BLUE, alpha=0.6, width=0.8 * gap)
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    clean(right, "position of the sequence whose guidance is not kept", "")
    right.set_title("Guidance of one position drawn anew, at every transition")
    for axes in (left, right):
        axes.axhline(chance, color=ORANGE, linestyle="--", label=f"nothing kept: {chance:.2f}")
        axes.axhline(1, color=GREEN, linestyle=":", label="all kept: 1")
        axes.set_ylim(0, 1.05)
    left.legend(loc="lower right", framealpha=0.85)
    return figure


def _root(values: Any) -> Any:
    return np.sqrt(np.maximum(values, 0))  # margins of an axis reach below 0


# ---- answers as they form ----------------------------------------------------------------------------------------


def animate(task: Task, x: Tensor | None, history: Tensor, path: Path, *, milliseconds: int = 400) -> None:
    """Write an animated GIF of answers to one input as they form, each picture a trajectory and each frame a step.

    Args:
        x: one input, ``[*event]``; None for p(x).
        history: int64 ``[S, N, L_out]``, N of them side by side; of more steps than 24 evenly spaced ones are shown.
        milliseconds: that a frame is shown; the last one longer, before all starts anew.

    Raises:
        UserError: the file cannot be written.
    """
    depth = len(history)
    steps = torch.linspace(0, depth - 1, min(depth, FRAMES)).round().long().tolist()
    drawn = [_frame(task, x, history[step], step + 1) for step in steps]
    whole = Image.fromarray(np.concatenate(drawn))
    palette = whole.quantize(COLOURS, method=Image.Quantize.MAXCOVERAGE)  # one for all: no colour flickers
    first, *rest = [Image.fromarray(f).quantize(palette=palette, dither=Image.Dither.NONE) for f in drawn]
    duration = [milliseconds] * len(rest) + [HELD * milliseconds]

    def write(temporary: Path) -> None:
        first.save(temporary, format="GIF", save_all=True, append_images=rest, duration=duration, loop=0)

    write_atomically(path, write)


def _frame(task: Task, x: Tensor | None, answers: Tensor, step: int) -> np.ndarray:
    """One step's answers ``[N, L_out]`` as pixels, ``[height, width, 3]``."""
    columns = min(len(answers), COLUMNS)
    rows = -(-len(answers) // columns)
    height = 2.35 * rows + 0.45
    figure = Figure(figsize=(max(3.0, 2.1 * columns), height), dpi=80)
    figure.subplots_adjust(0.02, 0.02, 0.98, 1 - 0.75 / height, wspace=0.08, hspace=0.2)  # the same in every frame
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, answer in zip(grid, answers, strict=False):
        y = task.canonical_form(x, answer)
        axes.set_axis_on()
        task.plot(axes, x, y)
        axes.set_title(_verdict(task, x, y), fontsize=12)
    figure.suptitle(f"step {step}", fontsize=14)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def _verdict(task: Task, x: Tensor | None, y: Tensor) -> str:
    if not task.is_checkable:
        return ""
    if not bool(task.has_known_answer(x, y)):
        return "not known"
    broken = int(task.violations(x, y))
    return "valid" if broken == 0 else counted(broken, task.violation_name)
