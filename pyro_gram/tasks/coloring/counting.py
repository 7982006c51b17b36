"""Count the colourings of a graph without listing them."""

from __future__ import annotations

import numpy as np

MAX_STATES = 5000  # colourings of the border that are told apart; more take seconds

Border = tuple[int, ...]  # vertices that have neighbours which are not coloured yet


def count_colorings(adjacency: np.ndarray, colors: int) -> int | None:
    """Count the colourings with at most ``colors`` colours; those that differ only in the names of colours count once.

    Vertices are coloured one after the other. Two partial colourings go on in equally many ways if they use equally
    many colours and agree, up to names, on the border: the coloured vertices with a neighbour that is not coloured. So
    they are counted together.

    Args:
        adjacency: bool ``[n, n]``.
        colors: the most colours.

    Returns:
        The exact count, or None if a border has more than :data:`MAX_STATES` colourings.
    """
    neighbours = [set(np.flatnonzero(row).tolist()) for row in adjacency]
    border: Border = ()
    counts: dict[tuple[Border, int], int] = {((), 0): 1}  # by the colours of the border and the number of colours
    for vertex, new_border in _narrow_borders(neighbours):
        extended = (*border, vertex)
        indices = [i for i, v in enumerate(extended) if v in new_border]
        touching = [i for i, v in enumerate(border) if v in neighbours[vertex]]
        new_counts: dict[tuple[Border, int], int] = {}
        for (state, used), count in counts.items():
            in_border = max(state, default=-1) + 1
            closed = {state[i] for i in touching}
            choices = [(color, used, 1) for color in range(in_border) if color not in closed]
            choices.append((in_border, used, used - in_border))  # colours that the border does not show
            choices.append((in_border, used + 1, int(used < colors)))  # a new colour
            for color, new_used, ways in choices:
                if ways:
                    key = _canonical((*state, color), indices), new_used
                    new_counts[key] = new_counts.get(key, 0) + ways * count
        if len(new_counts) > MAX_STATES:
            return None
        border, counts = tuple(extended[i] for i in indices), new_counts
    return sum(counts.values())


def _canonical(state: Border, indices: list[int]) -> Border:
    """Return the colours at some indices of a state, numbered in order of first appearance."""
    names: dict[int, int] = {}
    return tuple(names.setdefault(state[i], len(names)) for i in indices)


def _narrow_borders(neighbours: list[set[int]]) -> list[tuple[int, set[int]]]:
    """Return an order of the vertices with small borders: each vertex with the border after it."""
    steps: list[tuple[int, set[int]]] = []
    colored: set[int] = set()
    border: set[int] = set()
    rest = set(range(len(neighbours)))
    while rest:
        borders = {v: {u for u in border | {v} if not neighbours[u] <= colored | {v}} for v in rest}
        vertex = min(rest, key=lambda v: (len(borders[v]), -len(neighbours[v] & colored), v))
        border = borders[vertex]
        colored.add(vertex)
        rest.remove(vertex)
        steps.append((vertex, border))
    return steps
