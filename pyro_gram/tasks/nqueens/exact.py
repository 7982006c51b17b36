"""Prove that queens cannot be completed, on boards whose solutions are too many to list."""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np


def has_completion(columns: list[int]) -> bool | None:
    """Return whether a board can be completed; None if python-sat is not installed (``pip install pyro-gram[sat]``).

    Boards of 20 rows take about a hundredth of a second.

    Args:
        columns: the column of each row's queen, -1 for a row without queen.
    """
    try:
        from pysat.solvers import Solver
    except ImportError:
        return None
    n = len(columns)
    queens = [row * n + column + 1 for row, column in enumerate(columns) if column >= 0]
    with Solver(name="minisat22", bootstrap_with=_clauses(n)) as solver:
        return solver.solve(assumptions=queens)


@cache
def _clauses(n: int) -> list[list[int]]:
    """Return the rules of n queens as clauses; variable 1 + r * n + c says that a queen is at (r, c)."""
    square = np.arange(1, n * n + 1).reshape(n, n)
    offsets = range(2 - n, n - 1)
    diagonals = [board.diagonal(offset) for board in (square, square[:, ::-1]) for offset in offsets]
    pairs = [pair for line in (*square, *square.T, *diagonals) for pair in itertools.combinations(line.tolist(), 2)]
    return [*square.tolist(), *([-a, -b] for a, b in pairs)]
