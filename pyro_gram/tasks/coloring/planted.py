"""Random graphs that are drawn together with a colouring, for sizes whose colourings are too many to list.

A graph G and its planted colouring s have a probability that is proportional to p^edges (1 - p)^(pairs without edge) if
s is a colouring of G with k colours, else 0. So, given the graph, all its colourings (with their names) are equally
probable. The colouring is drawn first: all colourings are equally probable, and one is accepted with probability
(1 - p)^(pairs of equal colour more than in an even colouring). Then each pair of different colours is an edge with
probability p. Without the acceptance, uneven colourings would be too frequent among the colourings of a graph.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pyro_gram.tasks.coloring.config import MIN_COLORS, MIN_VERTICES

LOWEST_DEGREE = 2.5
HARD_DEGREES = {3: 4.4, 4: 8.0, 5: 12.0, 6: 17.0}  # the mean degree at which colouring with k colours becomes hard
CLUE_PROBABILITY = 0.3  # the probability that a graph has clues
CLUE_SHARE = 3  # one vertex in three then has one
MAX_DRAWS = 4096  # colourings that are drawn at once


@dataclass(frozen=True)
class PlantedGraphs:
    """Graphs of one size with one colouring each.

    Attributes:
        adjacency: bool ``[N, n, n]``.
        colors: the planted colouring, int64 ``[N, n]``.
        clues: int64 ``[N, n]``: the colours of some vertices, -1 elsewhere.
        num_colors: k, int64 ``[N]``.
    """

    adjacency: np.ndarray
    colors: np.ndarray
    clues: np.ndarray
    num_colors: np.ndarray


def draw_planted(rng: np.random.Generator, n: int, num_colors: np.ndarray) -> PlantedGraphs:
    """Draw a graph of n vertices for each number of colours k in ``num_colors``, int64 ``[N]``.

    Its mean degree is uniform between about 2.5 and the degree at which k-colouring becomes hard. Small graphs have
    smaller degrees, so that some pairs of different colours have no edge.
    """
    full_degree = (n - 1) * (1 - 1 / num_colors)  # the mean degree if all pairs of different colours are edges
    highest = np.minimum([HARD_DEGREES[k] for k in num_colors.tolist()], full_degree)
    lowest = np.minimum(LOWEST_DEGREE, full_degree / 2)
    edge_probability = (lowest + (highest - lowest) * rng.random(len(num_colors))) / full_degree
    colors = draw_colors(rng, n, num_colors, edge_probability)
    rows, cols = np.triu_indices(n, 1)
    is_edge = rng.random((len(colors), len(rows))) < edge_probability[:, None]
    adjacency = np.zeros((len(colors), n, n), dtype=bool)
    adjacency[:, rows, cols] = is_edge & (colors[:, rows] != colors[:, cols])
    adjacency |= adjacency.transpose(0, 2, 1)
    rank = rng.random((len(colors), n)).argsort(1).argsort(1)
    has_clue = (rank < max(1, n // CLUE_SHARE)) & (rng.random((len(colors), 1)) < CLUE_PROBABILITY)
    return PlantedGraphs(adjacency, colors, np.where(has_clue, colors, -1), num_colors)


def draw_colors(rng: np.random.Generator, n: int, num_colors: np.ndarray, edge_probability: np.ndarray) -> np.ndarray:
    """Draw a colouring for each k and p, so that it is proportional to (1 - p)^(pairs of equal colour): ``[N, n]``."""
    colors = np.zeros((len(num_colors), n), dtype=np.int64)
    share, rest = np.divmod(n, num_colors)
    fewest = share * (share - 1) // 2 * (num_colors - rest) + share * (share + 1) // 2 * rest
    open_rows = np.arange(len(num_colors))
    while len(open_rows):
        repeats = max(1, MAX_DRAWS // len(open_rows))
        rows = np.tile(open_rows, repeats)
        draws = (rng.random((len(rows), n)) * num_colors[rows, None]).astype(np.int64)
        sizes = (draws[..., None] == np.arange(num_colors.max())).sum(1)
        excess = (sizes * (sizes - 1) // 2).sum(1) - fewest[rows]
        is_accepted = rng.random(len(rows)) < (1 - edge_probability[rows]) ** excess
        accepted_rows, first = np.unique(rows[is_accepted], return_index=True)
        colors[accepted_rows] = draws[is_accepted][first]
        open_rows = np.setdiff1d(open_rows, accepted_rows, assume_unique=True)
    return colors


def spread_sizes(rng: np.random.Generator, smallest: int, largest: int, count: int) -> np.ndarray:
    """Draw ``count`` sizes uniformly: the number of graphs of each size from ``smallest`` to ``largest``, int64."""
    return np.bincount(rng.integers(max(smallest, MIN_VERTICES), largest + 1, count), minlength=largest + 1)[smallest:]


def draw_num_colors(rng: np.random.Generator, colors: int, count: int) -> np.ndarray:
    """Draw how many colours each of ``count`` graphs may use, uniformly from 3 to ``colors``, int64 ``[count]``."""
    return rng.integers(MIN_COLORS, colors + 1, count)
