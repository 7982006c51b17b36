"""Lists of all colourings of many graphs at once, by a search that goes through the vertices of all graphs in step."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

CHUNK = 256  # graphs that are searched together, which limits memory


class Colorings(NamedTuple):
    """All colourings of N graphs.

    Attributes:
        solutions: uint8 ``[M, n]``, graph after graph.
        counts: the number of colourings of each graph, int64 ``[N]``; 0 if the search was given up.
        is_complete: bool ``[N]``, False if the search was given up.
    """

    solutions: np.ndarray
    counts: np.ndarray
    is_complete: np.ndarray


def list_colorings(
    adjacency: np.ndarray, clues: np.ndarray, num_colors: np.ndarray, limit: int | None = None
) -> Colorings:
    """List the canonical colourings of each graph, in lexicographic order.

    Colours that appear in clues keep their names. In order of their first vertex, the other colours have the other
    names, in ascending order.

    Args:
        adjacency: bool ``[N, n, n]``, n at most 64.
        clues: int64 ``[N, n]``, -1 for a vertex without a clue.
        num_colors: how many colours each graph may use, int64 ``[N]``.
        limit: a graph is given up as soon as its first vertices have more colourings than this; None: never.
    """
    parts = [
        _search(adjacency[i : i + CHUNK], clues[i : i + CHUNK], num_colors[i : i + CHUNK], limit)
        for i in range(0, len(adjacency), CHUNK)
    ]
    if not parts:
        return Colorings(np.zeros((0, adjacency.shape[-1]), np.uint8), np.zeros(0, np.int64), np.zeros(0, bool))
    return Colorings(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def list_three_colorings(adjacency: np.ndarray) -> Colorings:
    """List the canonical 3-colourings of each graph without clues, bool ``[N, n, n]``."""
    return list_colorings(adjacency, np.full(adjacency.shape[:2], -1), np.full(len(adjacency), 3))


def _search(adjacency: np.ndarray, clues: np.ndarray, num_colors: np.ndarray, limit: int | None) -> Colorings:
    """List the colourings of graphs that fit into memory together. The arguments are those of list_colorings."""
    count, n = clues.shape
    color = np.arange(num_colors.max())
    bits = np.uint64(1) << np.arange(n, dtype=np.uint64)
    neighbours = (adjacency * bits).sum(-1, dtype=np.uint64)  # sets of vertices as bits, [N, n]
    is_named = (clues[..., None] == color).any(1)  # the colours of clues, [N, C]
    is_open = color < num_colors[:, None]
    graph = np.arange(count)  # the graph of each partial colouring, [R]
    members = np.zeros((count, len(color)), np.uint64)  # the vertices of each colour, [R, C]
    solutions = np.zeros((count, 0), np.uint8)
    is_complete = np.ones(count, bool)
    for v in range(n):
        is_new = (members == 0) & ~is_named[graph] & is_open[graph]
        is_allowed = is_open[graph] & ~(is_new & (is_new.cumsum(1) > 1))  # of the new colours only the first one
        is_allowed &= (members & neighbours[graph, v, None]) == 0
        clue = clues[graph, v, None]
        is_allowed &= (clue < 0) | (clue == color)
        row, new_color = is_allowed.nonzero()
        graph, members = graph[row], members[row]
        members[np.arange(len(row)), new_color] |= bits[v]
        solutions = np.concatenate((solutions[row], new_color[:, None].astype(np.uint8)), 1)
        if limit is not None:
            is_complete &= np.bincount(graph, minlength=count) <= limit
            is_kept = is_complete[graph]
            graph, members, solutions = graph[is_kept], members[is_kept], solutions[is_kept]
    return Colorings(solutions, np.bincount(graph, minlength=count), is_complete)


def narrow_orders(adjacency: np.ndarray, clues: np.ndarray) -> np.ndarray:
    """Order the vertices of each graph so that a search has few partial colourings: int64 ``[N, n]``.

    Vertices with clues come first; then always the vertex with the most neighbours among those before it.
    """
    count, n = clues.shape
    degrees = adjacency.sum(-1)
    score = (clues >= 0) * (4 * n * n) + degrees  # a vertex's own degree decides between equals
    rows = np.arange(count)
    order = np.zeros((count, n), np.int64)
    for step in range(n):
        vertex = order[:, step] = score.argmax(1)
        score += 2 * n * adjacency[rows, vertex]
        score[rows, vertex] = -(2 * n**3) - 1
    return order
