"""Boards of n queens: their lines and symmetries, their solutions, and the inputs made from solutions."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import cache

import numpy as np
import torch
from torch import Tensor

from pyro_gram.tasks.base import PuzzleSet

CHAINS = 256  # boards that random_solutions repairs at once


@cache
def board_lines(n: int) -> Tensor:
    """Return every row, column and diagonal of the board as a set of squares: float32 ``[6 n - 2, n * n]``."""
    r, c = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
    families = (r, c, r + c, r - c + n - 1)
    lines = [family.flatten() == i for family in families for i in range(int(family.max()) + 1)]
    return torch.stack(lines).float()


@cache
def board_symmetries(n: int) -> Tensor:
    """Return the symmetries as permutations p of the squares, ``image[i] = board[p[i]]``: int64 ``[8, n * n]``."""
    square = torch.arange(n * n).view(n, n)
    return torch.stack([torch.rot90(s, k).flatten() for s in (square, square.T) for k in range(4)])


def images(columns: Tensor) -> Tensor:
    """Return the eight rotations and reflections of boards with at most one queen in each row and column.

    Args:
        columns: the column of each row's queen, -1 for a row without queen: int64 ``[..., n]``.

    Returns:
        int64 ``[..., 8, n]``; equal images are not merged.
    """
    n = columns.shape[-1]
    board = columns[..., None] == torch.arange(n)
    image = board.flatten(-2)[..., board_symmetries(n)].unflatten(-1, (n, n))
    return torch.where(image.any(-1), image.long().argmax(-1), -1)


def orbit_numbers(solutions: Tensor) -> Tensor:
    """Number the orbits of solutions, int64 ``[M, n]`` -> ``[M]``: images of one another get the same number."""
    n = solutions.shape[-1]
    weights = torch.tensor([n**i for i in range(n)])  # n^n fits an int64 up to n = 15
    return (images(solutions) @ weights).amin(-1).unique(return_inverse=True)[1]


@cache
def all_solutions(n: int) -> Tensor:
    """List the solutions of n queens as the column of each row's queen: int64 ``[M, n]``, in lexicographic order."""
    column = torch.arange(n)
    prefixes = column[:, None]
    for row in range(1, n):
        row_distance = row - torch.arange(row)[:, None]
        column_distance = (prefixes[:, :, None] - column).abs()  # [prefixes, row, n]
        is_free = ((column_distance != 0) & (column_distance != row_distance)).all(1)
        prefix, next_column = is_free.nonzero().T
        prefixes = torch.cat((prefixes[prefix], next_column[:, None]), 1)
    return prefixes


def contain_solutions(solutions: Tensor, smaller_solutions: Tensor) -> Tensor:
    """Return which solutions have one of the smaller solutions in m consecutive rows and m consecutive columns.

    >>> board = torch.tensor([[0, 2, 4, 1, 3]])  # without its first row and column: the first solution of four queens
    >>> contain_solutions(board, all_solutions(4)[:1]), contain_solutions(board, all_solutions(4)[1:])
    (tensor([True]), tensor([False]))

    Args:
        solutions: columns, int64 ``[M, n]``.
        smaller_solutions: columns, int64 ``[K, m]``, m < n.

    Returns:
        bool ``[M]``.
    """
    m = smaller_solutions.shape[1]
    weights = torch.tensor([m**i for i in range(m)])  # m^m fits an int64 up to m = 15
    windows = solutions.unfold(1, m, 1)  # [M, n - m + 1, m]
    first_column = windows.amin(-1, keepdim=True)
    is_board = (windows.amax(-1, keepdim=True) - first_column == m - 1).squeeze(-1)
    is_member = torch.isin((windows - first_column) @ weights, smaller_solutions @ weights)
    return (is_board & is_member).any(1)


def completions(solutions: Tensor, min_queens: int, max_queens: int) -> PuzzleSet:
    """Return every distinct input with ``min_queens`` to ``max_queens`` queens, with all its completions.

    Args:
        solutions: columns, int64 ``[M, n]``.

    Returns:
        inputs int64 ``[N, n]``, for each row 0 (no queen) or 1 + the column of its queen; solutions int64 ``[C, n]``.
    """
    n = solutions.shape[1]
    weights = torch.tensor([(n + 1) ** i for i in range(n)])  # (n + 1)^n fits an int64 up to n = 12
    keys, sources = [], []
    for count in range(min_queens, max_queens + 1):
        for rows in itertools.combinations(range(n), count):
            mask = torch.zeros(n, dtype=torch.long)
            mask[list(rows)] = 1
            keys.append(((solutions + 1) * mask) @ weights)
            sources.append(torch.arange(len(solutions)))
    key, order = torch.cat(keys).sort(stable=True)
    distinct_keys, counts = key.unique_consecutive(return_counts=True)
    inputs = distinct_keys[:, None] // weights % (n + 1)
    return PuzzleSet.from_counts(inputs, solutions[torch.cat(sources)[order]], counts)


def random_solutions(rng: np.random.Generator, n: int, count: int) -> Tensor:
    """Draw ``count`` distinct solutions, int64 ``[count, n]``, by min-conflicts repair of random boards.

    The draws are not uniform: without a list of all solutions, no way to draw uniformly is known. Among
    20,000 solved boards of 8 queens, the rarest of the 92 solutions came half as often as it should, and the most
    frequent one 1.9 times as often; the total variation to the uniform distribution was 0.09 (even draws: 0.03).
    """
    solutions: dict[bytes, np.ndarray] = {}
    for boards in solved_boards(rng, n):
        for solution in boards:
            solutions.setdefault(solution.tobytes(), solution)
        if len(solutions) >= count:
            break
    return torch.from_numpy(np.stack(list(solutions.values())[:count]))


def solved_boards(rng: np.random.Generator, n: int) -> Iterator[np.ndarray]:
    """Yield solutions, int64 ``[M, n]``, again and again; a solution may come several times.

    A random permutation of columns is repaired by min-conflicts until it is a solution, which is yielded, and a new
    permutation takes its place. Some boards are replaced before they are solved, because they may be stuck.
    """
    rows = np.arange(n)
    column = rng.permuted(np.tile(rows, (CHAINS, 1)), axis=1)
    while True:
        solutions = []
        for _ in range(8 * n):
            column_distance = np.abs(column[:, :, None] - column[:, None, :])
            attacks = (column_distance == 0) | (column_distance == np.abs(rows[:, None] - rows))
            attacks[:, rows, rows] = False
            is_attacked = attacks.any(2)
            is_solved = ~is_attacked.any(1)
            solutions.append(column[is_solved])
            column[is_solved] = rng.permuted(column[is_solved], axis=1)
            _move_one_queen(column, is_attacked, rng)
        column[: CHAINS // 4] = rng.permuted(column[: CHAINS // 4], axis=1)
        yield np.concatenate(solutions)


def _move_one_queen(column: np.ndarray, is_attacked: np.ndarray, rng: np.random.Generator) -> None:
    """On each board, move a random attacked queen to the column with the fewest conflicts, in place.

    The queen stays in its row. Ties are broken at random. On a board without attacked queens the queen of row 0 moves.

    Args:
        column: the column of each row's queen, int64 ``[chains, n]``.
        is_attacked: bool ``[chains, n]``.
    """
    chains, n = column.shape
    rows = np.arange(n)
    row = np.where(is_attacked, rng.random(is_attacked.shape), -1).argmax(1)
    row_distance = np.abs(rows - row[:, None])[:, :, None]
    column_distance = np.abs(column[:, :, None] - rows)  # [chains, queens, columns]
    attacks = ((column_distance == 0) | (column_distance == row_distance)) & (row_distance > 0)
    cost = attacks.sum(1) + rng.random((chains, n)) * 0.9
    column[np.arange(chains), row] = cost.argmin(1)


def one_completion(solutions: Tensor, rng: np.random.Generator, min_queens: int, max_queens: int) -> PuzzleSet:
    """Make one input from each solution, and list it with only that solution. Equal inputs are listed once.

    Arguments and shapes are those of :func:`completions`.
    """
    rank = torch.from_numpy(rng.random(solutions.shape)).argsort(1).argsort(1)
    count = torch.from_numpy(rng.integers(min_queens, max_queens + 1, size=len(solutions)))
    inputs = torch.where(rank < count[:, None], solutions + 1, 0)
    _, first = np.unique(inputs.numpy(), axis=0, return_index=True)
    index = torch.from_numpy(np.sort(first))
    ones = torch.ones(len(index), dtype=torch.long)
    return PuzzleSet.from_counts(inputs[index], solutions[index], ones, has_all_solutions=False)
