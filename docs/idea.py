"""Draw the figure of the idea, ``_static/idea.png``: an input, trajectories through the latent space, several answers.

``python docs/idea.py`` runs the checkpoint ``coloring`` on a test graph with four solutions, and plots the result.
"""

import sys
from pathlib import Path
from typing import Any

import networkx as nx
import torch
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch
from pyro import poutine
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import pyro_gram  # noqa: E402
from pyro_gram.networks.core import LatentState  # noqa: E402

OUT = Path(__file__).parent / "_static" / "idea.png"
VERTICES, SOLUTIONS, TRAJECTORIES, DEPTH, SEED = 8, 4, 60, 8, 2
# Colours of the answers, the most frequent first. No vertex has these colours.
COLOURS = ("#5B3A9B", "#C2255C", "#8C564B", "#444444")
GREY = "#AAAAAA"  # for wrong answers


def pick_graph(task: Any) -> nx.Graph:
    """Return the first test graph with VERTICES vertices, SOLUTIONS colourings and a triangle, whose colours are given.

    The colours of a triangle name all three colours, so that each colouring counts once.
    """
    test = task.split("test")
    is_candidate = (test.num_solutions == SOLUTIONS) & (task.spec.sizes_of(test.inputs) == VERTICES)
    for x in test.inputs[is_candidate]:
        graph = nx.from_graph6_bytes(task.format_input(x).encode())
        triangle = next((clique for clique in nx.enumerate_all_cliques(graph) if len(clique) == 3), None)
        if triangle:
            nx.set_node_attributes(graph, dict(zip(triangle, range(3), strict=True)), "color")
            return graph
    raise LookupError("no test graph has a triangle and this number of colourings")


def run_trajectories(model: torch.nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Run S steps. Return the last answers ``[N, L_out]``, and h after all but the first, ``[S - 1, N, L * D]``."""
    x, state, path = x.expand(TRAJECTORIES, *x.shape[1:]), None, []
    torch.manual_seed(SEED)
    with torch.no_grad():
        for _ in range(DEPTH):
            nodes = poutine.trace(model).get_trace(x, state=state, steps=1).nodes
            state = LatentState(nodes["h"]["value"], nodes["l"]["value"])
            path.append(state.h.flatten(1))
        answers = nodes["y"]["fn"].mode
    return answers, torch.stack(path[1:])  # the first step would need a larger picture


def project(path: Tensor) -> Tensor:
    """Project states on two principal components, ``[S, N, 2]``, which are computed from the last half of the steps."""
    late = path[len(path) // 2 :].flatten(0, 1)
    _, _, components = torch.linalg.svd(late - late.mean(0), full_matrices=False)
    return (path - late.mean(0)) @ components[:2].T


def main() -> None:
    solver = pyro_gram.load("coloring")
    task: Any = solver.task
    x = task.parse_graph(pick_graph(task))[None]
    answers, path = run_trajectories(solver.model, x)
    answers = task.canonical_form(x, answers[:, None])[:, 0]
    points = project(path)

    is_right = task.is_valid(x, answers[:, None])[:, 0]
    solutions, group, counts = answers.unique(dim=0, return_inverse=True, return_counts=True)
    order = counts.argsort(descending=True)
    plotted_groups = [int(k) for k in order if is_right[group == k].all()][: len(COLOURS)]
    colour_of = dict(zip(plotted_groups, COLOURS, strict=False))

    figure = Figure(figsize=(11, 3.9), facecolor="white")
    grid = figure.add_gridspec(2, 4, width_ratios=(1.15, 2.3, 0.8, 0.8), left=0.01, right=0.99, top=0.84, bottom=0.04)
    input_axes, plane = figure.add_subplot(grid[:, 0]), figure.add_subplot(grid[:, 1])
    task.plot(input_axes, x[0])
    for line, k in zip(points.unbind(1), group.tolist(), strict=True):
        plane.plot(*line.T, color=colour_of.get(k, GREY), linewidth=1, alpha=0.65)
        plane.plot(*line[-1], "o", color=colour_of.get(k, GREY), markersize=5)
    plane.set_xticks([])
    plane.set_yticks([])
    for side in plane.spines.values():
        side.set_color("#CCCCCC")
    panels = [figure.add_subplot(grid[i // 2, 2 + i % 2]) for i in range(len(plotted_groups))]
    for axes, k in zip(panels, plotted_groups, strict=True):
        task.plot(axes, x[0], solutions[k])
        axes.set_title(f"{int(counts[k])} of {TRAJECTORIES}", fontsize=11, color=colour_of[k], weight="bold", pad=1)

    title = {"fontsize": 13, "ha": "center", "va": "bottom", "weight": "bold", "color": "#222222"}
    for left, right, text in (
        (input_axes, input_axes, "one input"),
        (plane, plane, f"{TRAJECTORIES} random trajectories of the latent state"),
        (panels[0], panels[1], "several answers"),
    ):
        middle = (left.get_position().x0 + right.get_position().x1) / 2
        figure.text(middle, 0.91, text, **title)
    arrow = {"arrowstyle": "-|>", "color": "#555555", "linewidth": 1.5, "mutation_scale": 16}
    ends = {"coordsA": "axes fraction", "coordsB": "axes fraction", "axesA": input_axes, "axesB": plane}
    figure.add_artist(ConnectionPatch((0.98, 0.5), (-0.02, 0.5), **ends, **arrow))
    figure.savefig(OUT, dpi=150)


if __name__ == "__main__":
    main()
