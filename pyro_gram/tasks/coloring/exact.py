"""Exact statements about a graph with clues: whether it can be coloured, and in how many ways.

A SAT solver decides the first, if the package python-sat is installed (``pip install pyro-gram[sat]``). Without it,
only graphs whose colourings can be counted are decided.
"""

from __future__ import annotations

import itertools
from importlib.util import find_spec

import numpy as np

from pyro_gram.tasks.coloring.counting import count_colorings

SAT_CONFLICTS = 100_000  # a few seconds; then the SAT solver gives up


def has_sat_solver() -> bool:
    """Return whether the package python-sat is installed."""
    return find_spec("pysat") is not None


def count_partial_colorings(adjacency: np.ndarray, clues: np.ndarray, colors: int) -> int | None:
    """Count the colourings that keep the clues, up to the names of colours without a clue; None if it takes long.

    Args:
        adjacency: bool ``[n, n]``.
        clues: int64 ``[n]``, -1 for a vertex without a clue.
        colors: the most colours.
    """
    merged = _merge_clues(adjacency, clues)
    return 0 if merged is None else count_colorings(merged, colors)


def _merge_clues(adjacency: np.ndarray, clues: np.ndarray) -> np.ndarray | None:
    """Return the graph in which the vertices with one clue are one vertex, adjacent to those with other clues.

    Its partitions into independent sets are the colourings that keep the clues. None: an edge joins two equal clues.
    """
    free = np.flatnonzero(clues < 0)
    clue_colors = np.unique(clues[clues >= 0])
    members = np.concatenate((clues == clue_colors[:, None], np.arange(len(clues)) == free[:, None])).astype(np.int64)
    merged = members @ adjacency @ members.T > 0
    if merged.diagonal().any():
        return None
    merged[: len(clue_colors), : len(clue_colors)] = ~np.eye(len(clue_colors), dtype=bool)
    return merged


def sat_coloring(adjacency: np.ndarray, clues: np.ndarray, colors: int) -> list[int] | bool | None:
    """Search a colouring that keeps the clues with the SAT solver Glucose. The arguments are those of counting.

    Returns:
        The colour of each vertex; False if it is proved that there is no colouring; None if the solver gave up.

    Raises:
        ImportError: python-sat is not installed.
    """
    from pysat.solvers import Glucose4

    n = len(adjacency)
    variable = 1 + np.arange(n * colors).reshape(n, colors)  # vertex v has colour c
    clauses = variable.tolist()
    clauses += [
        [-a, -b] for u, v in np.argwhere(np.triu(adjacency)) for a, b in zip(variable[u], variable[v], strict=True)
    ]
    fixed = [(int(v), int(clues[v])) for v in np.flatnonzero(clues >= 0)]
    if not fixed:  # names of colours are free: a clique gets the first ones
        clique = _greedy_clique(adjacency)
        if len(clique) > colors:
            return False
        fixed = list(zip(clique, itertools.count()))
    clauses += [[variable[v, c]] for v, c in fixed]
    with Glucose4(bootstrap_with=[[int(literal) for literal in clause] for clause in clauses]) as solver:
        solver.conf_budget(SAT_CONFLICTS)
        is_satisfiable = solver.solve_limited()
        if not is_satisfiable:
            return is_satisfiable
        is_true = np.array(solver.get_model())[: n * colors].reshape(n, colors) > 0
    return is_true.argmax(1).tolist()


def _greedy_clique(adjacency: np.ndarray) -> list[int]:
    """Return vertices that are pairwise adjacent, chosen greedily by their degree."""
    clique: list[int] = []
    candidates = np.ones(len(adjacency), dtype=bool)
    while candidates.any():
        vertex = int(np.where(candidates, adjacency[:, candidates].sum(1), -1).argmax())
        clique.append(vertex)
        candidates &= adjacency[vertex]
    return clique


def is_colorable(adjacency: np.ndarray, clues: np.ndarray, colors: int) -> tuple[bool | None, str]:
    """Return whether a colouring keeps the clues (None: unknown), and how this is known. Arguments as in counting."""
    if has_sat_solver():
        result = sat_coloring(adjacency, clues, colors)
        if result is not None:
            return result is not False, "proved by python-sat"
    count = count_partial_colorings(adjacency, clues, colors)
    return (None, "not decided") if count is None else (count > 0, "checked exactly")
