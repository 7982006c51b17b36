"""Figures of trajectories (their loss, their ends, the draws that decide the answer) and an animation of answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
from pyro_gram.diagnostics.plots.run import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    check_label,
    jitter,
    pluralize,
    set_count_ticks,
    style_axes,
)
from pyro_gram.diagnostics.trajectories import Attractors, GuidanceInfluence, Separation
from pyro_gram.system.files import write_atomically
from pyro_gram.tasks.base import Task

BLACK = "#000000"
# The colours of the six most frequent answers; all other answers are grey.
ANSWER_COLOURS = (BLUE, ORANGE, GREEN, "#CC79A7", "#56B4E9", "#D55E00")
OUTLINE = [patheffects.Stroke(linewidth=5, foreground="white"), patheffects.Normal()]
SHADES = LinearSegmentedColormap.from_list("shades", ("#F2F2F2", "#707070"))  # a background for coloured lines
DETERMINISTIC = "deterministic trajectory (guidance at the prior's mean)"
FRAMES, COLUMNS, COLOURS = 24, 6, 64  # the maximal numbers of an animation: frames, answers in a row, colours
LAST_FRAME = 4  # the last frame is shown four times as long as the others


# ---- the landscape -----------------------------------------------------------------------------------------------


def landscape_figure(landscape: Landscape) -> Figure:
    """Draw trajectories of one input on a map of the loss, and the loss of each trajectory after each step."""
    figure = Figure(figsize=(13, 6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.3, 1))
    _draw_surface(figure, left, landscape)
    _draw_paths(left, landscape)
    _draw_losses(right, landscape)
    # A legend inside the plane would hide some trajectories.
    figure.legend(handles=_legend_handles(landscape), loc="outside lower left", ncols=4, frameon=False, fontsize=10)
    return figure


def _draw_surface(figure: Figure, axes: Any, landscape: Landscape) -> None:
    low, high = (bound.log10().item() for bound in landscape.loss.clamp(min=LEAST_LOSS).aminmax())
    levels = torch.logspace(np.floor(low), max(np.ceil(high), np.floor(low) + 1), 25)
    loss = landscape.grid.clamp(levels[0], levels[-1])
    contours = axes.contourf(landscape.grid_x, landscape.grid_y, loss, levels=levels, norm=LogNorm(), cmap=SHADES)
    bar = figure.colorbar(contours, ax=axes, pad=0.01, ticks=LogLocator(), format=LogFormatterSciNotation())
    bar.set_label("loss between the states, nats (white: no state near)")


def _draw_paths(axes: Any, landscape: Landscape) -> None:
    for path, colour, is_right in _by_trajectory(landscape.points, landscape):
        axes.plot(*path.T, color=colour, linewidth=0.9, alpha=0.5)
        axes.plot(*path[-1], color=colour, linestyle="", zorder=3, **_end_style(is_right))
    if landscape.mean_points is not None:
        axes.plot(*landscape.mean_points.T, color=BLACK, linewidth=3, path_effects=OUTLINE)
        style = {**_end_style(landscape.mean_is_right is not False), "markersize": 12}
        axes.plot(*landscape.mean_points[-1], color=BLACK, linestyle="", zorder=4, **style)
    axes.plot(*landscape.points[0, 0], linestyle="", zorder=5, **_start_style())
    first, second = landscape.explained_variance
    style_axes(axes, f"first principal component of late h ({first:.0%} of the variance)", f"second ({second:.0%})")
    axes.grid(visible=False)
    answers = pluralize(int(landscape.answer.max()) + 1, "distinct answer")
    right = "" if landscape.is_right is None else f", {int(landscape.is_right.sum())} trajectories right"
    axes.set_title(f"{landscape.points.shape[1]} trajectories of the prior:\n{answers}{right}")


def _draw_losses(axes: Any, landscape: Landscape) -> None:
    for loss, colour, is_right in _by_trajectory(landscape.loss, landscape):
        loss = loss.clamp(min=LEAST_LOSS)
        axes.plot(loss, color=colour, linewidth=0.9, alpha=0.5)
        axes.plot(len(loss) - 1, loss[-1], color=colour, linestyle="", zorder=3, **_end_style(is_right))
    if landscape.mean_loss is not None:
        axes.plot(landscape.mean_loss.clamp(min=LEAST_LOSS), color=BLACK, linewidth=3, path_effects=OUTLINE)
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    style_axes(axes, "supervision steps from z_0", f"loss: {_loss_name(landscape)}, nats")
    black = "" if landscape.mean_loss is None else "\n(black: the deterministic trajectory)"
    axes.set_title(f"The loss along each trajectory{black}")


def _by_trajectory(values: Tensor, landscape: Landscape) -> list[tuple[Tensor, str, bool]]:
    """Return each trajectory's part of ``values`` ``[S + 1, N, ...]``, its colour, and whether it is drawn as right."""
    answers = landscape.answer.tolist()
    is_right = [True] * len(answers) if landscape.is_right is None else landscape.is_right.tolist()
    colours = [ANSWER_COLOURS[k] if k < len(ANSWER_COLOURS) else GREY for k in answers]
    return list(zip(values.unbind(1), colours, is_right, strict=True))


def _end_style(is_right: bool) -> dict[str, Any]:
    return {"marker": "o", "markersize": 6} if is_right else {"marker": "x", "markersize": 9, "markeredgewidth": 2.5}


def _start_style() -> dict[str, Any]:
    return {"marker": "*", "markersize": 18, "color": "white", "markeredgecolor": BLACK}


def _legend_handles(landscape: Landscape) -> list[Line2D]:
    def handle(label: str, **style: Any) -> Line2D:
        return Line2D([], [], label=label, **style)

    has_rare = int(landscape.answer.max()) >= len(ANSWER_COLOURS)
    colours = f"one colour for each answer{' (grey: rarer ones)' if has_rare else ''}"
    answer = "an answer" if landscape.is_right is None else "a right answer"
    handles = [
        handle("z_0", linestyle="", **_start_style()),
        handle(f"{answer}, {colours}", color=ANSWER_COLOURS[0], linewidth=0.9, **_end_style(True)),
    ]
    if landscape.is_right is not None and not landscape.is_right.all():
        handles.append(handle("a wrong answer", color=ANSWER_COLOURS[0], linewidth=0.9, **_end_style(False)))
    if landscape.mean_points is not None:
        handles.append(handle(DETERMINISTIC, color=BLACK, linewidth=3))
    return handles


def _loss_name(landscape: Landscape) -> str:
    m = landscape.num_solutions
    if m == 0:
        return "-log p(decoded answer | h)"
    return "-log p(the solution | h)" if m == 1 else f"-log p(any of the {m} solutions | h)"


# ---- where trajectories end --------------------------------------------------------------------------------------


def attractors_figure(attractors: Attractors, separation: Separation, num_solutions: Tensor | None = None) -> Figure:
    """Draw in how many answers the trajectories of an input end, when answers settle, and when trajectories separate.

    Args:
        num_solutions: the number of solutions of each input, int64 ``[B]``; None if not all are known.
    """
    figure = Figure(figsize=(12, 8.4), layout="constrained")
    (top_left, top_right), (bottom_left, bottom_right) = figure.subplots(2, 2)
    _draw_num_answers(top_left, attractors, num_solutions)
    _draw_settling(top_right, attractors)
    _draw_answer_separation(bottom_left, separation)
    _draw_state_separation(bottom_right, separation)
    return figure


def _draw_num_answers(axes: Any, attractors: Attractors, num_solutions: Tensor | None) -> None:
    n, b = attractors.settling_step.shape
    if num_solutions is None:
        x = torch.arange(1, b + 1).double()
        order = attractors.effective_number.argsort()
        style_axes(axes, "inputs, in order", "answers of an input")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlim(0, b + 1)
        axes.set_ylim(0, attractors.num_distinct.max().item() + 1)
    else:
        order = torch.arange(b)
        x = jitter(num_solutions)
        m = torch.arange(1, int(num_solutions.max()) + 1)
        axes.plot(m, m * coverage_limit(m, n), color=GREEN, linestyle=":", label=f"distinct, {n} i.i.d. uniform draws")
        axes.set_xscale("log")
        axes.set_yscale("log")
        for axis in (axes.xaxis, axes.yaxis):
            set_count_ticks(axis)
        style_axes(axes, "solutions of an input", "answers of an input")
    axes.scatter(x, attractors.num_distinct[order], s=45, alpha=0.6, color=BLUE, label="distinct, wrong ones too")
    effective = attractors.effective_number[order]
    axes.scatter(x, effective, s=45, alpha=0.8, color=ORANGE, marker="D", label="effective: exp(entropy)")
    axes.legend(frameon=False, loc="best")
    axes.set_title(f"Answers that {n} trajectories of an input end in")


def _draw_settling(axes: Any, attractors: Attractors) -> None:
    steps = range(1, len(attractors.settled_by_step) + 1)
    axes.plot(steps, attractors.settled_by_step.mean(1), color=BLUE, marker="o", label="keep their answer from here on")
    if attractors.right_by_step is not None:
        axes.plot(steps, attractors.right_by_step.nanmean(1), color=GREEN, marker="s", label="have a right answer")
    axes.set_ylim(0, 1.05)
    _style_steps(axes, "share of trajectories")
    axes.legend(frameon=False, loc="lower right")
    axes.set_title(f"{attractors.unsettled_by_input.mean():.1%} still change in the last quarter of the steps")


def _draw_answer_separation(axes: Any, separation: Separation) -> None:
    share = separation.differ_by_step
    axes.plot(range(1, len(share) + 1), share, color=BLUE, marker="o")
    axes.set_ylim(0, 1.05)
    _style_steps(axes, "share whose answers differ already")
    pairs = pluralize(separation.num_different, "pair")
    axes.set_title(f"When answers separate: {pairs} of trajectories of\none input that end in different answers")


def _draw_state_separation(axes: Any, separation: Separation) -> None:
    for distance, number, colour, marker, name in (
        (separation.distance_different, separation.num_different, BLUE, "o", "different answers"),
        (separation.distance_same, separation.num_same, ORANGE, "D", "the same answer"),
    ):
        label = f"{pluralize(number, 'pair')} that end in {name}"
        axes.plot(range(len(distance)), distance, color=colour, marker=marker, label=label)
    axes.set_ylim(bottom=0)
    _style_steps(axes, "root mean square of h - h'")
    axes.legend(frameon=False, loc="best")
    axes.set_title("When states separate: mean distance of pairs of\ntrajectories of one input (0: z_0)")


def _style_steps(axes: Any, ylabel: str) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    style_axes(axes, "supervision steps", ylabel)


# ---- which draws decide ------------------------------------------------------------------------------------------


def influence_figure(influence: GuidanceInfluence) -> Figure:
    """Draw how often trajectories end in the same answer again if only a part of their guidance is kept."""
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    chance = influence.by_transition[0].mean().item()
    left.plot(influence.num_kept, influence.by_transition, color=GREY, alpha=0.4, linewidth=1)
    left.plot([], [], color=GREY, alpha=0.4, linewidth=1, label="one input")
    left.plot(influence.num_kept, influence.by_transition.mean(1), color=BLUE, marker="o", linewidth=2.5, label="mean")
    left.set_xscale("function", functions=(_root, np.square))
    left.set_xticks(influence.num_kept.tolist())
    style_axes(left, "transitions whose guidance is kept, from the first on", "share that ends in the same answer")
    left.set_title("Guidance of the later transitions drawn anew")
    positions = influence.positions.numpy()
    for column in influence.by_position.T:
        right.plot(positions, column, color=GREY, alpha=0.4, linestyle="", marker="o", markersize=5)
    gap = np.diff(positions).min() if len(positions) > 1 else 1
    right.bar(positions, influence.by_position.mean(1).numpy(), color=BLUE, alpha=0.6, width=0.8 * gap)
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    style_axes(right, "position of the sequence whose guidance is not kept", "")
    right.set_title("Guidance of one position drawn anew, at every transition")
    for axes in (left, right):
        axes.axhline(chance, color=ORANGE, linestyle="--", label=f"nothing kept: {chance:.2f}")
        axes.axhline(1, color=GREEN, linestyle=":", label="all kept: 1")
        axes.set_ylim(0, 1.05)
    left.legend(loc="lower right", framealpha=0.85)
    return figure


def _root(values: Any) -> Any:
    return np.sqrt(np.maximum(values, 0))  # the margin of an axis extends below 0, where a root does not exist


# ---- how answers develop -----------------------------------------------------------------------------------------


def animate(task: Task, x: Tensor | None, history: Tensor, path: Path, *, milliseconds: int = 400) -> None:
    """Write an animated GIF that shows how the answers to one input develop. Each frame shows one supervision step.

    Args:
        x: one input, ``[*event]``; None for p(x).
        history: the answers of N trajectories after each of S steps, int64 ``[S, N, L_out]``. At most 24 evenly spaced
            steps are shown.
        milliseconds: the duration of a frame; the last frame is shown longer.

    Raises:
        UserError: the file cannot be written.
    """
    depth = len(history)
    steps = torch.linspace(0, depth - 1, min(depth, FRAMES)).round().long().tolist()
    frames = [_draw_frame(task, x, history[step], step + 1) for step in steps]
    # One palette for all frames, so that no colour flickers.
    palette = Image.fromarray(np.concatenate(frames)).quantize(COLOURS, method=Image.Quantize.MAXCOVERAGE)
    first, *later_frames = [Image.fromarray(f).quantize(palette=palette, dither=Image.Dither.NONE) for f in frames]
    duration = [milliseconds] * len(later_frames) + [LAST_FRAME * milliseconds]

    def write(temporary: Path) -> None:
        first.save(temporary, format="GIF", save_all=True, append_images=later_frames, duration=duration, loop=0)

    write_atomically(path, write)


def _draw_frame(task: Task, x: Tensor | None, answers: Tensor, step: int) -> np.ndarray:
    """Draw the answers ``[N, L_out]`` of one step as pixels, ``[height, width, 3]``."""
    columns = min(len(answers), COLUMNS)
    rows = -(-len(answers) // columns)
    height = 2.35 * rows + 0.45
    figure = Figure(figsize=(max(3.0, 2.1 * columns), height), dpi=80)
    figure.subplots_adjust(0.02, 0.02, 0.98, 1 - 0.75 / height, wspace=0.08, hspace=0.2)  # equal in all frames
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, answer in zip(grid, answers, strict=False):
        y = task.canonical_form(x, answer)
        axes.set_axis_on()
        task.plot(axes, x, y)
        axes.set_title(check_label(task, x, y), fontsize=12)
    figure.suptitle(f"step {step}", fontsize=14)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]
