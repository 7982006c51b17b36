"""Prove that queens cannot be completed, on boards whose solutions are too many to list."""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np

from pyro_gram.tasks.nqueens.boards import NO_ROW


def has_completion(columns: list[int]) -> bool | None:
    """Return whether a board can be completed; None if python-sat is not installed (``pip install pyro-gram[sat]``).

    Boards of 20 rows take about a hundredth of a second.

    Args:
        columns: the column of each row's queen; BLANK for a row to be filled; NO_ROW for a row that takes no queen.
    """
    try:
        from pysat.solvers import Solver
    except ImportError:
        return None
    n = len(columns)
    rows = [[row * n + c + 1 for c in range(n)] for row, column in enumerate(columns) if column != NO_ROW]
    queens = [row * n + column + 1 for row, column in enumerate(columns) if column >= 0]
    with Solver(name="minisat22", bootstrap_with=[*rows, *_attacks(n)]) as solver:
        return solver.solve(assumptions=queens)


@cache
def _attacks(n: int) -> list[list[int]]:
    """Return clauses that forbid two queens on a line; variable 1 + r * n + c says that a queen is at (r, c)."""
    square = np.arange(1, n * n + 1).reshape(n, n)
    offsets = range(2 - n, n - 1)
    diagonals = [board.diagonal(offset) for board in (square, square[:, ::-1]) for offset in offsets]
    pairs = [pair for line in (*square, *square.T, *diagonals) for pair in itertools.combinations(line.tolist(), 2)]
    return [[-a, -b] for a, b in pairs]
