"""Boards on which some rows take no queen: training inputs with far more answers than boards of n queens.

Ten queens have 724 solutions, and a network soon knows them by heart. Eight or nine queens on ten rows have many
thousands of placements, from which a network must learn the rules.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pyro_gram.tasks.base import PuzzleSet
from pyro_gram.tasks.nqueens.boards import BLANK, NO_ROW, contain_solutions, list_completions

MAX_EMPTY_ROWS = 3
MAX_BLANK_ROWS = 6  # rows to fill; more have too many completions to list
MAX_COMPLETIONS = 100
CHUNK = 500  # boards whose completions are listed at once


def partial_boards(rng: np.random.Generator, n: int, count: int, max_queens: int, held_out: list[Tensor]) -> PuzzleSet:
    """Draw inputs in which one to three rows take no queen, with all their completions that training may show.

    Args:
        n: the number of rows.
        count: the number of inputs.
        max_queens: the most queens of an input; it has more if more than six rows would be left to fill.
        held_out: solutions that no completion may show or be a part of, int64 ``[M, m]`` each, of n or fewer queens.

    Returns:
        inputs int64 ``[count, n]`` and solutions int64 ``[C, n]``, as in
        :func:`~pyro_gram.tasks.nqueens.boards.list_completions`.
    """
    parts: list[PuzzleSet] = []
    while sum(map(len, parts)) < count:
        puzzles = list_completions(_random_inputs(rng, n, max_queens))
        puzzles = puzzles.select(puzzles.num_solutions <= MAX_COMPLETIONS)
        solutions, owner = puzzles.solutions, torch.arange(len(puzzles)).repeat_interleave(puzzles.num_solutions)
        is_allowed = ~show_held_out(solutions, held_out)
        counts = owner[is_allowed].bincount(minlength=len(puzzles))
        puzzles = PuzzleSet.from_counts(puzzles.inputs, solutions[is_allowed], counts)
        parts.append(puzzles.select(counts > 0))
    return PuzzleSet.concatenate(parts).subset(count)


def show_held_out(placements: Tensor, held_out: list[Tensor]) -> Tensor:
    """Return which placements are a part of a held-out solution of n queens, or contain one of fewer queens.

    Args:
        placements: columns, NO_ROW for a row without queen: int64 ``[C, n]``.
        held_out: solutions, int64 ``[M, m]`` each, m <= n.

    Returns:
        bool ``[C]``.
    """
    n = placements.shape[1]
    is_shown = torch.zeros(len(placements), dtype=torch.bool)
    for solutions in held_out:
        if solutions.shape[1] == n:
            square = torch.arange(n)
            queens = (placements[:, :, None] == square).flatten(1).float()
            other_queens = (solutions[:, :, None] == square).flatten(1).float()
            is_shown |= (queens @ other_queens.T).amax(1) == queens.sum(1)
        else:
            apart = torch.where(placements == NO_ROW, -2 * n, placements)  # no queen in a board around this row
            is_shown |= contain_solutions(apart, solutions)
    return is_shown


def _random_inputs(rng: np.random.Generator, n: int, max_queens: int) -> Tensor:
    """Draw inputs, int64 ``[m, n]``, m <= CHUNK: rows without queen, and queens of which none attacks another."""
    queens = np.full((CHUNK, n), BLANK)
    rank = rng.random((CHUNK, n)).argsort(1).argsort(1)
    empty_rows = rng.integers(1, min(MAX_EMPTY_ROWS, n - 2), size=(CHUNK, 1), endpoint=True)
    fewest = np.maximum(1, n - empty_rows - MAX_BLANK_ROWS)
    num_queens = rng.integers(fewest, np.maximum(fewest, np.minimum(max_queens, n - empty_rows - 1)), endpoint=True)
    is_queen = (rank >= empty_rows) & (rank < empty_rows + num_queens)
    queens = np.where(rank < empty_rows, NO_ROW, np.where(is_queen, rng.integers(n, size=(CHUNK, n)), BLANK))
    row = np.arange(n)
    distance = np.abs(queens[:, :, None] - queens[:, None, :])
    is_attack = ((distance == 0) | (distance == np.abs(row[:, None] - row))) & (row[:, None] < row)
    is_attack &= is_queen[:, :, None] & is_queen[:, None, :]
    return torch.from_numpy(queens[~is_attack.any((1, 2))])
