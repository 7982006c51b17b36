"""Random graphs and their isomorphism classes."""

from __future__ import annotations

import numpy as np

from pyro_gram.tasks.coloring.listing import list_three_colorings

COLORS = 3
LONGEST_WALK = 12  # the spectrum of a graph of up to 12 vertices determines the numbers of longer walks


def draw_graphs(rng: np.random.Generator, n: int, p: float, count: int) -> np.ndarray:
    """Draw ``count`` distinct labelled 3-colourable graphs from G(n, p): bool ``[count, n, n]``.

    Fewer graphs are returned if 20 batches in a row give no new one (for small n or extreme p).
    """
    num_pairs = n * (n - 1) // 2
    edge_sets: dict[bytes, None] = {}  # in the order in which they were drawn
    barren_batches = 0
    while len(edge_sets) < count and barren_batches < 20:
        edges = rng.random((4096, num_pairs)) < p
        is_colorable = list_three_colorings(_adjacency_of(edges, n)).counts > 0
        previous_count = len(edge_sets)
        edge_sets.update(dict.fromkeys(row.tobytes() for row in edges[is_colorable]))
        barren_batches = barren_batches + 1 if len(edge_sets) == previous_count else 0
    edges = np.frombuffer(b"".join(list(edge_sets)[:count]), dtype=bool).reshape(-1, num_pairs)
    return _adjacency_of(edges, n)


def _adjacency_of(edges: np.ndarray, n: int) -> np.ndarray:
    """Return the adjacency matrices of n vertices whose upper triangles are ``edges``, bool ``[count, n, n]``."""
    rows, cols = np.triu_indices(n, 1)
    graphs = np.zeros((len(edges), n, n), dtype=bool)
    graphs[:, rows, cols] = edges
    return graphs | graphs.transpose(0, 2, 1)


def isomorphism_invariants(graphs: np.ndarray) -> list[bytes]:
    """Return a key for each graph. Isomorphic graphs have equal keys; graphs that are not isomorphic rarely do.

    Vertices without edges do not count: graphs that differ only in their number pose the same problem.

    A vertex is described by the numbers of walks, and of closed walks, of each length up to ``LONGEST_WALK`` that start
    at it. The key is the sorted list of these descriptions. The numbers are exact up to 20 vertices, because they stay
    below 2^63; those of larger graphs are remainders.
    """
    adjacency = graphs.astype(np.int64)
    power = np.broadcast_to(np.eye(graphs.shape[-1], dtype=np.int64), adjacency.shape)
    columns = []
    for _ in range(LONGEST_WALK):
        power = power @ adjacency
        columns += [power.sum(-1), np.diagonal(power, axis1=-2, axis2=-1)]
    descriptions = np.stack(columns, axis=-1)  # [graphs, n, 2 LONGEST_WALK]
    keys = []
    for rows, has_edge in zip(descriptions, np.any(graphs, axis=-1), strict=True):
        vertices = rows[has_edge]
        keys.append(vertices[np.lexsort(vertices.T)].tobytes())
    return keys
