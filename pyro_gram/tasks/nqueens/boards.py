"""Boards of n queens: their lines and symmetries, their solutions, and the inputs that these complete."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor


def board_lines(n: int) -> Tensor:
    """Every row, column and diagonal of the board as a set of squares: float32 ``[6 n - 2, n * n]``."""
    r, c = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
    families = (r, c, r + c, r - c + n - 1)
    lines = [family.flatten() == i for family in families for i in range(int(family.max()) + 1)]
    return torch.stack(lines).float()


def board_symmetries(n: int) -> Tensor:
    """The symmetries of the board as permutations of its squares: ``image[i] = board[p[i]]``, int64 ``[8, n * n]``."""
    square = torch.arange(n * n).view(n, n)
    return torch.stack([torch.rot90(s, k).flatten() for s in (square, square.T) for k in range(4)])


def images(columns: Tensor) -> Tensor:
    """The eight rotations and reflections of boards with at most one queen a row and a column.

    Args:
        columns: the column of each row's queen, -1 where there is none: int64 ``[..., n]``.

    Returns:
        int64 ``[..., 8, n]``, repeated where a board is its own image.
    """
    n = columns.shape[-1]
    board = columns[..., None] == torch.arange(n)
    image = board.flatten(-2)[..., board_symmetries(n)].unflatten(-1, (n, n))
    return torch.where(image.any(-1), image.long().argmax(-1), -1)


def orbits(solutions: Tensor) -> Tensor:
    """Numbers from 0 on, int64 ``[M]``, equal for solutions (int64 ``[M, n]``) that are images of one another."""
    n = solutions.shape[-1]
    weights = torch.tensor([n**i for i in range(n)])  # n^n fits an int64 up to n = 15
    return (images(solutions) @ weights).amin(-1).unique(return_inverse=True)[1]


_SOLUTIONS: dict[int, Tensor] = {}


def all_solutions(n: int) -> Tensor:
    """Every solution of n queens, the column of each row's queen: int64 ``[M, n]``, in lexicographic order."""
    if n not in _SOLUTIONS:
        grown = torch.arange(n)[:, None]
        for row in range(1, n):
            column = torch.arange(n)
            gap = row - torch.arange(row)
            apart = (grown[:, :, None] - column).abs()  # [prefixes, row, n]
            free = ((apart != 0) & (apart != gap[:, None])).all(1)
            prefix, new = free.nonzero().T
            grown = torch.cat((grown[prefix], new[:, None]), 1)
        _SOLUTIONS[n] = grown
    return _SOLUTIONS[n]


def completions(solutions: Tensor, fewest: int, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Every distinct input with ``fewest`` to ``most`` queens, and all its completions.

    Args:
        solutions: int64 ``[M, n]``.

    Returns:
        the inputs, 0 or 1 + column a row, int64 ``[N, n]``; their completions, int64 ``[C, n]``, input after input; and
        where each input's begin, int64 ``[N + 1]``.
    """
    n = solutions.shape[1]
    weights = torch.tensor([(n + 1) ** i for i in range(n)])  # (n + 1)^n fits an int64 up to n = 12
    keys, sources = [], []
    for count in range(fewest, most + 1):
        for rows in itertools.combinations(range(n), count):
            kept = torch.zeros(n, dtype=torch.long)
            kept[list(rows)] = 1
            keys.append(((solutions + 1) * kept) @ weights)
            sources.append(torch.arange(len(solutions)))
    key, order = torch.cat(keys).sort(stable=True)
    distinct, counts = key.unique_consecutive(return_counts=True)
    given = distinct[:, None] // weights % (n + 1)
    return given, solutions[torch.cat(sources)[order]], torch.cat((torch.zeros(1, dtype=torch.long), counts.cumsum(0)))


def random_solutions(rng: np.random.Generator, n: int, count: int) -> Tensor:
    """Up to ``count`` distinct random solutions, int64 ``[<= count, n]``, by min-conflicts repair of random boards.

    Not uniform over the solutions: no way is known to draw uniformly where they cannot be enumerated.
    """
    found: dict[bytes, np.ndarray] = {}
    chains = 256
    rows = np.arange(n)
    column = rng.permuted(np.tile(rows, (chains, 1)), axis=1)
    every = np.arange(chains)
    while len(found) < count:
        for _ in range(8 * n):
            apart = np.abs(column[:, :, None] - column[:, None, :])
            clash = (apart == 0) | (apart == np.abs(rows[:, None] - rows))
            clash[:, rows, rows] = False
            hit = clash.any(2)
            done = ~hit.any(1)
            for solution in column[done]:
                found.setdefault(solution.tobytes(), solution.copy())
            # Take a random queen in conflict (any queen on a solved board: a fresh start nearby), and move it to the
            # column of its row with the fewest conflicts, ties at random.
            column[done] = rng.permuted(column[done], axis=1)
            row = np.where(hit, rng.random(hit.shape), -1).argmax(1)
            gap = np.abs(rows - row[:, None])
            others = gap[:, :, None] > 0
            away = np.abs(column[:, :, None] - rows)  # [chains, queens, columns]
            cost = (((away == 0) | (away == gap[:, :, None])) & others).sum(1) + rng.random((chains, n)) * 0.9
            column[every, row] = cost.argmin(1)
        column[: chains // 4] = rng.permuted(column[: chains // 4], axis=1)  # some may be stuck
    return torch.from_numpy(np.stack(list(found.values())[:count]))


def one_completion(
    solutions: Tensor, rng: np.random.Generator, fewest: int, most: int
) -> tuple[Tensor, Tensor, Tensor]:
    """One distinct input a solution, with that solution alone. As :func:`completions`."""
    kept = torch.from_numpy(rng.random(solutions.shape)).argsort(1).argsort(1)
    count = torch.from_numpy(rng.integers(fewest, most + 1, size=len(solutions)))
    given = torch.where(kept < count[:, None], solutions + 1, 0)
    _, which = np.unique(given.numpy(), axis=0, return_index=True)
    index = torch.from_numpy(np.sort(which))
    return given[index], solutions[index], torch.arange(len(index) + 1)
