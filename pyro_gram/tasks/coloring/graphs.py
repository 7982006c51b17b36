"""Random graphs, their isomorphism classes, and their 3-colourings."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

COLORS = 3


def draw_graphs(rng: np.random.Generator, n: int, p: float, count: int) -> np.ndarray:
    """Draw ``count`` distinct labelled 3-colourable graphs from G(n, p): bool ``[count, n, n]``.

    Fewer graphs are returned if 20 batches in a row give no new one (for small n or extreme p).
    """
    rows, cols = np.triu_indices(n, 1)
    edge_sets: dict[bytes, None] = {}  # in the order in which they were drawn
    barren_batches = 0
    while len(edge_sets) < count and barren_batches < 20:
        edges = rng.random((4096, len(rows))) < p
        is_colorable = enumerate_colorings(torch.from_numpy(edges))[1].numpy() > 0
        previous_count = len(edge_sets)
        edge_sets.update(dict.fromkeys(row.tobytes() for row in edges[is_colorable]))
        barren_batches = barren_batches + 1 if len(edge_sets) == previous_count else 0
    edges = np.frombuffer(b"".join(list(edge_sets)[:count]), dtype=bool).reshape(-1, len(rows))
    graphs = np.zeros((len(edges), n, n), dtype=bool)
    graphs[:, rows, cols] = edges
    return graphs | graphs.transpose(0, 2, 1)


def isomorphism_invariants(graphs: np.ndarray) -> list[bytes]:
    """Return a key for each graph. Isomorphic graphs have equal keys; graphs that are not isomorphic rarely do.

    A vertex is described by the numbers of walks, and of closed walks, of each length up to n that start at it. The
    key is the sorted list of these descriptions. The numbers are exact, because they stay below 12^12.
    """
    n = graphs.shape[-1]
    adjacency = graphs.astype(np.int64)
    power = np.broadcast_to(np.eye(n, dtype=np.int64), adjacency.shape)
    columns = []
    for _ in range(n):
        power = power @ adjacency
        columns += [power.sum(-1), np.diagonal(power, axis1=-2, axis2=-1)]
    descriptions = np.stack(columns, axis=-1)  # [graphs, n, 2n]
    return [rows[np.lexsort(rows.T)].tobytes() for rows in descriptions]


@cache
def canonical_colorings(n: int) -> tuple[Tensor, Tensor]:
    """List the canonical colourings of n vertices with at most three colours, in lexicographic order.

    Returns:
        The colourings, int64 ``[C, n]``; and for each of them, as 0 or 1, which pairs of vertices have the same
        colour, float32 ``[C, n (n - 1) / 2]``.
    """
    colorings = torch.zeros(1, 1, dtype=torch.long)
    for _ in range(n - 1):  # the next vertex has a colour that is in use, or the next new one
        color = torch.arange(COLORS).repeat(len(colorings))[:, None]
        colorings = torch.cat((colorings.repeat_interleave(COLORS, 0), color), 1)
        colorings = colorings[colorings[:, -1] <= colorings[:, :-1].amax(1) + 1]
    rows, cols = torch.triu_indices(n, n, offset=1)
    return colorings, (colorings[:, rows] == colorings[:, cols]).float()


def enumerate_colorings(edges: Tensor) -> tuple[Tensor, Tensor]:
    """List the canonical 3-colourings of each graph.

    Args:
        edges: bool ``[N, n (n - 1) / 2]``, the upper triangles of the adjacency matrices.

    Returns:
        The colourings, int64 ``[M, n]``, graph after graph, and their number for each graph, int64 ``[N]``.
    """
    n = round((1 + (1 + 8 * edges.shape[-1]) ** 0.5) / 2)
    colorings, has_same_color = canonical_colorings(n)
    solutions, counts = [], []
    for chunk in edges.split(max(1, 20_000_000 // len(colorings))):
        is_proper = chunk.float() @ has_same_color.T == 0
        solutions.append(colorings[is_proper.nonzero()[:, 1]])
        counts.append(is_proper.sum(1))
    return torch.cat(solutions), torch.cat(counts)
