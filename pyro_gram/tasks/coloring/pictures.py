"""Pictures of coloured graphs, for figures and for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import networkx as nx

from pyro_gram.tasks.terminal import contrasting_ink, mark_mistake, nearest_colour, painter

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe-Ito: distinct to colour-blind readers too
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#F0E442")
CONFLICT = "#C00000"
INKS = {16: "#000000", 231: "#FFFFFF"}  # the colour of each number that contrasting_ink may return


def plot_coloring(axes: Axes, graph: nx.Graph, colors: list[int] | None, clues: list[int] | None = None) -> None:
    """Draw a graph on a circle, with its conflicts marked.

    Args:
        axes: where to draw.
        graph: vertices 0 to n - 1.
        colors: the colour of each vertex, -1 for none; None: there is no answer.
        clues: the given colour of each vertex, -1 for none. These vertices have a thick border, which is red if the
            answer does not keep the clue.
    """
    positions = nx.circular_layout(graph)
    clues = [-1] * len(graph) if clues is None else clues
    conflicts = [] if colors is None else [(u, v) for u, v in graph.edges if colors[u] == colors[v]]
    shown = clues if colors is None else colors
    nx.draw_networkx_edges(graph, positions, ax=axes, edge_color="#888888")
    nx.draw_networkx_edges(graph, positions, edgelist=conflicts, ax=axes, edge_color=CONFLICT, width=3, style="dashed")
    papers = [PALETTE[c] if c >= 0 else "#FFFFFF" for c in shown]
    borders = [CONFLICT if clue not in (-1, color) else "#333333" for clue, color in zip(clues, shown, strict=True)]
    widths = [1.0 if clue < 0 else 2.5 for clue in clues]
    nx.draw_networkx_nodes(
        graph, positions, ax=axes, node_color=papers, edgecolors=borders, linewidths=widths, node_size=160
    )
    for vertex, paper in enumerate(papers):  # numbered as in the text of an answer
        (column, row), ink = positions[vertex], INKS[contrasting_ink(paper)]
        axes.annotate(str(vertex), (column, row), ha="center", va="center", color=ink, fontsize=7)
    axes.set_aspect("equal")
    axes.margins(0.15)
    axes.set_axis_off()


def render_coloring(graph: nx.Graph, colors: list[int] | None, clues: list[int] | None, colour: bool) -> str:
    """Return a line for each vertex, with its neighbours; ``2:0`` is vertex 2 in colour 0.

    Without an answer, ``2:0`` is a clue. A ``!`` marks a vertex that does not keep its clue, and the ends of an edge
    whose colours are equal. The arguments are those of :func:`plot_coloring`; ``colour`` adds escape codes.
    """
    paint = painter(colour)
    shown = clues if colors is None else colors

    def name_vertex(v: int, neighbour: int | None = None) -> str:
        if shown is None:
            return f"{v:>2}"
        if colors is None and shown[v] < 0:
            return f"{v:>2}   "
        name = f"{v:>2}:{shown[v] if shown[v] >= 0 else '?'}"
        breaks_clue = neighbour is None and clues is not None and clues[v] not in (-1, shown[v])
        has_conflict = colors is not None and neighbour is not None and shown[v] == shown[neighbour]
        if shown[v] < 0 or breaks_clue or has_conflict:
            return mark_mistake(name, paint)
        paper = PALETTE[shown[v]]
        return paint(name, contrasting_ink(paper), nearest_colour(paper)) + " "

    lines = [f"    {name_vertex(v)}   {' '.join(name_vertex(w, v) for w in sorted(graph[v]))}" for v in graph]
    return "\n".join(("vertex   neighbours" if shown is None else "vertex:colour   neighbours", *lines))
