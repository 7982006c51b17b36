"""Sudoku boards: their geometry, an exact solver, random grids, and the group of symmetries.

A board is ``size**2`` cells, row by row, 0 for a blank and 1 to ``size`` for digits; a grid is a board without blanks.
A band is a row of boxes, and a stack is a column of boxes. The symmetries map solutions to solutions. They
rename digits; they permute the bands, the rows of a band, the stacks, and the columns of a stack; and they transpose
the board if boxes are square. The functions also serve other boards, such as boards without boxes (Latin squares).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

BOXES = {4: (2, 2), 6: (2, 3), 9: (3, 3)}  # size -> rows and columns of a box
SIZES = tuple(BOXES)
Size: TypeAlias = "int | Geometry"  # the size of a Sudoku, or the geometry of another board
MAX_SEARCHED_GRIDS_9 = 2000  # at most this many 9x9 grids are found by search; further grids are random images of these


@dataclass(frozen=True, eq=False)  # compared by identity: there is one geometry for each size and box
class Geometry:
    """Index tables for one size of board.

    Attributes:
        size: cells in a row.
        box_rows, box_cols: rows and columns of a box; both are ``size`` if the board has no boxes.
        units: the cells of each row, then of each column, then of each box if there are any, int64 ``[U, size]``.
        unit_masks: the same units, each as the bits of an integer.
        peer_masks: for each cell, the other cells of its units, as bits.
    """

    size: int
    box_rows: int
    box_cols: int
    units: np.ndarray
    unit_masks: tuple[int, ...]
    peer_masks: tuple[int, ...]

    @property
    def cells(self) -> int:
        return self.size * self.size

    @property
    def has_square_boxes(self) -> bool:
        """True if the transpose of a box is a box."""
        return self.box_rows == self.box_cols

    def unit_name(self, unit: int) -> str:
        """Return the name of ``units[unit]``: ``row 1``, ``column 1`` or ``box 1 (of 2 rows and 3 columns)``."""
        kind, number = divmod(unit, self.size)
        shape = f" (of {self.box_rows} rows and {self.box_cols} columns)" if kind == 2 else ""
        return f"{('row', 'column', 'box')[kind]} {number + 1}{shape}"


def geometry(size: Size) -> Geometry:
    """Return the tables for Sudokus of size 4, 6 or 9; a geometry is returned as it is."""
    return size if isinstance(size, Geometry) else make_geometry(size, BOXES[size])


@cache
def make_geometry(size: int, box: tuple[int, int] | None = None) -> Geometry:
    """Return the tables for boards whose boxes have the rows and columns ``box``; None for boards without boxes."""
    box_rows, box_cols = box or (size, size)
    row, col = np.divmod(np.arange(size * size), size)
    unit_numbers = np.stack((row, col, row // box_rows * box_rows + col // box_cols), axis=1)
    kinds = unit_numbers.T[: 3 if box else 2]
    units = np.stack([np.flatnonzero(numbers == n) for numbers in kinds for n in range(size)])
    masks = tuple(sum(1 << int(c) for c in unit) for unit in units)
    peers = (set(units[(units == cell).any(1)].ravel().tolist()) - {cell} for cell in range(size * size))
    return Geometry(size, box_rows, box_cols, units, masks, tuple(sum(1 << cell for cell in cells) for cells in peers))


# ---- constraints -------------------------------------------------------------------------------------------------


@cache
def _num_missing(size: int) -> Tensor:
    """Return a table that maps a set of digits, as bits, to the number of missing digits: int64 ``[2^size]``."""
    return torch.tensor([size - n.bit_count() for n in range(1 << size)])


def missing_digits(digits: Tensor, size: Size) -> Tensor:
    """Count the digits that are missing from the rows, columns and boxes together: 0 for a correct grid.

    In a unit without blanks, as many digits are missing as there are cells that repeat an earlier digit of the unit.

    Args:
        digits: int64 ``[..., L]``, 0 to size - 1; any other number is not a digit.

    Returns:
        int64 ``[...]``.
    """
    g = geometry(size)
    is_digit = (digits >= 0) & (digits < g.size)
    bits = torch.where(is_digit, 1 << digits.clamp(0, g.size - 1), 0).to(torch.int16)
    units = torch.from_numpy(g.units)
    present_digits = bits[..., units[:, 0]]
    for place in range(1, g.size):
        present_digits = present_digits | bits[..., units[:, place]]
    return _num_missing(g.size)[present_digits.long()].sum(-1)


def conflicts(digits: Sequence[int], size: Size) -> list[tuple[int, int, list[int]]]:
    """List every digit that occurs more than once in a unit, as (unit, digit, cells); ``digits`` has 0 for blanks."""
    repeats, g = [], geometry(size)
    for unit, cells in enumerate(g.units.tolist()):
        for digit in range(1, g.size + 1):
            cells_of_digit = [c for c in cells if digits[c] == digit]
            if len(cells_of_digit) > 1:
                repeats.append((unit, digit, cells_of_digit))
    return repeats


# ---- solver ------------------------------------------------------------------------------------------------------


def solve(
    board: Sequence[int], size: Size, limit: int = 2, rng: np.random.Generator | None = None
) -> list[tuple[int, ...]]:
    """Return up to ``limit`` solutions of a board, by exact backtracking on bit masks.

    For each digit, one integer has a bit for every cell that can still take the digit. So the cells with no, one or two
    candidates are found for the whole board at once. The search fills in naked singles (one digit is left for a cell)
    and hidden singles (one cell of a unit is left for a digit). Then it branches over the digits of one cell, or over
    the cells of one digit in a unit, whichever are fewer.

    Args:
        board: ``size**2`` digits, 0 for a blank.
        size: the size or geometry of the board.
        limit: the most solutions to return.
        rng: draws the order in which branches are tried; None for a fixed order.
    """
    g = geometry(size)
    candidates = [(1 << g.cells) - 1] * g.size
    filled_cells = 0
    for cell, digit in enumerate(board):
        if digit:
            if not candidates[digit - 1] >> cell & 1:
                return []
            _assign(candidates, digit - 1, cell, g)
            filled_cells |= 1 << cell
    return list(islice(_search(candidates, filled_cells, g, rng), limit))


def _assign(candidates: list[int], digit: int, cell: int, g: Geometry) -> None:
    """Put a digit (from 0) into a cell: remove this digit from the cell's peers, and other digits from the cell."""
    remaining_cells = candidates[digit] & ~g.peer_masks[cell]
    for d in range(g.size):
        candidates[d] &= ~(1 << cell)
    candidates[digit] = remaining_cells


def _search(
    candidates: list[int], filled_cells: int, g: Geometry, rng: np.random.Generator | None
) -> Iterator[tuple[int, ...]]:
    """Yield every solution below a node of the search. ``candidates`` is changed in place."""
    all_cells = (1 << g.cells) - 1
    while True:
        at_least_1 = at_least_2 = at_least_3 = 0  # masks of the cells with at least 1, 2 and 3 candidates
        for c in candidates:
            at_least_3 |= at_least_2 & c
            at_least_2 |= at_least_1 & c
            at_least_1 |= c
        if at_least_1 != all_cells:
            return
        if filled_cells == all_cells:
            yield _to_digits(candidates, g)
            return
        naked_singles = at_least_1 & ~at_least_2 & ~filled_cells
        if naked_singles:
            filled_cells |= naked_singles
            for digit in range(g.size):
                cells = candidates[digit] & naked_singles
                while cells:
                    cell = (cells & -cells).bit_length() - 1
                    cells &= cells - 1
                    candidates[digit] &= ~g.peer_masks[cell]
            continue
        moves = _fewest_cells_of_a_digit(candidates, filled_cells, g)
        if moves is None:
            return
        if len(moves) > 1:
            break
        digit, cell = moves[0]
        _assign(candidates, digit, cell, g)
        filled_cells |= 1 << cell
    pairs = at_least_2 & ~at_least_3
    if pairs or len(moves) > 2:
        cell = _lowest_bit(pairs) if pairs else _cell_with_fewest_candidates(candidates, all_cells & ~filled_cells, g)
        digits = [(d, cell) for d in range(g.size) if candidates[d] >> cell & 1]
        moves = min(digits, moves, key=len)
    if rng is not None:
        moves = [moves[i] for i in rng.permutation(len(moves))]
    for digit, cell in moves:
        branch = candidates.copy()
        _assign(branch, digit, cell, g)
        yield from _search(branch, filled_cells | 1 << cell, g, rng)


def _fewest_cells_of_a_digit(candidates: list[int], filled_cells: int, g: Geometry) -> list[tuple[int, int]] | None:
    """Find the digit and the unit with the fewest cells, counting the cells of the unit that can take the digit.

    Returns:
        The pairs (digit, cell) of these cells; None if some digit fits into no cell of a unit.
    """
    fewest_cells, min_count, fewest_digit = 0, g.size + 1, 0
    for digit, digit_cells in enumerate(candidates):
        for unit in g.unit_masks:
            cells = digit_cells & unit
            if not cells & (cells - 1):  # at most one cell
                if cells & filled_cells:
                    continue
                return [(digit, _lowest_bit(cells))] if cells else None
            if min_count > 2 and (number := cells.bit_count()) < min_count:
                fewest_cells, min_count, fewest_digit = cells, number, digit
    moves = []
    while fewest_cells:
        moves.append((fewest_digit, _lowest_bit(fewest_cells)))
        fewest_cells &= fewest_cells - 1
    return moves


def _lowest_bit(mask: int) -> int:
    return (mask & -mask).bit_length() - 1


def _cell_with_fewest_candidates(candidates: list[int], cells: int, g: Geometry) -> int:
    """Return the first cell of the mask ``cells`` that has the fewest candidates."""
    at_least = [cells] + [0] * g.size
    for c in candidates:
        for n in range(g.size, 0, -1):
            at_least[n] |= at_least[n - 1] & c
    for n in range(1, g.size):
        cells_with_n = at_least[n] & ~at_least[n + 1]
        if cells_with_n:
            return _lowest_bit(cells_with_n)
    return _lowest_bit(cells)


def _to_digits(candidates: list[int], g: Geometry) -> tuple[int, ...]:
    board = [0] * g.cells
    for digit, cells in enumerate(candidates, start=1):
        while cells:
            board[_lowest_bit(cells)] = digit
            cells &= cells - 1
    return tuple(board)


# ---- symmetries --------------------------------------------------------------------------------------------------


def random_symmetries(count: int, size: Size, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw elements of the symmetry group, uniformly and independently.

    Cell i of the image holds the digit of cell ``cells[i]`` of the board; digit d (from 0) becomes ``digits[d]``.

    Returns:
        cells, int64 ``[count, L]``, and digits, int64 ``[count, size]``.
    """
    g = geometry(size)

    def permutations(*shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator).argsort(-1)

    def line_order(groups: int, lines: int) -> Tensor:
        return (permutations(groups)[..., None] * lines + permutations(groups, lines)).flatten(1)

    rows = line_order(g.size // g.box_rows, g.box_rows)
    cols = line_order(g.size // g.box_cols, g.box_cols)
    cells = rows[:, :, None] * g.size + cols[:, None, :]
    if g.has_square_boxes:
        is_transposed = torch.rand(count, 1, 1, generator=generator) < 0.5
        cells = torch.where(is_transposed, cells.transpose(1, 2), cells)
    return cells.flatten(1), permutations(g.size)


def transform(boards: Tensor, cells: Tensor, digits: Tensor, first: int) -> Tensor:
    """Apply a symmetry to each board.

    Args:
        boards: tokens, int64 ``[..., count, L]``: digit d (from 0) is ``first + d``; lower tokens stay unchanged.
        cells, digits: the results of :func:`random_symmetries`.
        first: the token of the lowest digit.
    """
    image_of_token = torch.cat((torch.arange(first).expand(len(digits), first), digits + first), 1)
    image_of_token = image_of_token.expand(*boards.shape[:-1], image_of_token.shape[-1])
    return image_of_token.gather(-1, boards.gather(-1, cells.expand(boards.shape)))


def symmetry_invariants(boards: np.ndarray, size: Size, rounds: int = 4, chunk: int = 20_000) -> np.ndarray:
    """Return a key for each board. Symmetric boards have equal keys; boards that are not symmetric rarely do.

    Cells have colours, which are refined as in the Weisfeiler-Leman test: each round describes digits, rows, columns,
    boxes, bands and stacks by their cells, and then each cell by its digit, row, column and box. The hash of a
    multiset is the sum modulo 2^64 of scrambled 64-bit integers, which does not depend on their order.

    Args:
        boards: integers ``[N, L]``, 0 for a blank.

    Returns:
        uint64 ``[N]``.
    """
    parts = [_invariants(boards[i : i + chunk], geometry(size), rounds) for i in range(0, len(boards), chunk)]
    return np.concatenate(parts) if parts else np.zeros(0, np.uint64)


def _invariants(boards: np.ndarray, g: Geometry, rounds: int) -> np.ndarray:
    n, bands, stacks = len(boards), g.size // g.box_rows, g.size // g.box_cols
    digit = torch.from_numpy(boards.astype(np.int64))
    color = _scramble((boards > 0).astype(np.uint64))
    column_kind = np.uint64(0 if g.has_square_boxes else 1)  # without transposition, columns differ from rows
    for _ in range(rounds):
        grid = color.reshape(n, bands, g.box_rows, stacks, g.box_cols)
        rows = _scramble(grid.sum((3, 4)))  # [n, bands, box_rows]
        cols = _scramble(grid.sum((1, 2)) + column_kind)  # [n, stacks, box_cols]
        rows = _scramble(rows + _scramble(rows.sum(2, keepdims=True)))
        cols = _scramble(cols + _scramble(cols.sum(2, keepdims=True)))
        boxes = _scramble(grid.sum((2, 4), keepdims=True) ^ np.uint64(2))
        digit_hashes = torch.zeros(n, g.size + 1, dtype=torch.int64)
        digit_hashes.scatter_add_(1, digit, torch.from_numpy(color.view(np.int64)))
        digit_hashes = torch.from_numpy(_scramble(digit_hashes.numpy().view(np.uint64) ^ np.uint64(4)).view(np.int64))
        digit_hashes[:, 0] = 0  # blanks do not count as a common digit
        same_digit = digit_hashes.gather(1, digit).numpy().view(np.uint64)
        lines = rows[:, :, :, None, None] + cols[:, None, None]  # a sum, because a transposition swaps rows and columns
        grid = _scramble(grid) * np.uint64(3) + (lines ^ np.uint64(8)) + boxes + same_digit.reshape(grid.shape)
        color = _scramble(grid).reshape(n, g.cells)
    return _scramble(color.sum(1, dtype=np.uint64))


def _scramble(x: np.ndarray) -> np.ndarray:
    """Apply the finaliser of SplitMix64, a bijection of 64-bit integers."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


# ---- random grids ------------------------------------------------------------------------------------------------


@cache
def all_grids_4() -> Tensor:
    """List the 288 grids of 4x4, digits from 1: int64 ``[288, 16]``, in lexicographic order."""
    return torch.tensor(sorted(solve([0] * 16, 4, limit=1000)))


@cache
def _representative_grids_6() -> Tensor:
    """List 816 grids of 6x6 that represent all grids up to a group of 720 * 6 * 8 symmetries: int64 ``[816, 36]``.

    The group renames digits, permutes the columns of the right stack, and permutes the lower two bands and their rows.
    Only the identity maps a grid to itself, so there are 816 * 720 * 6 * 8 = 28,200,960 grids. A representative has
    the digits 1 to 6 in order in box 1, then 4, 5, 6 in row 1, and column 1 ascends as far as the group allows.
    """
    grids: list[tuple[int, ...]] = []
    for second, third, fourth in ((3, 5, 6), (5, 3, 6), (6, 3, 5)):
        board = [0] * 36
        board[:9] = [1, 2, 3, 4, 5, 6, 4, 5, 6]
        board[12], board[18], board[24], board[30] = 2, second, third, fourth
        grids += solve(board, 6, limit=1000)
    return torch.tensor(grids)


def _search_grids_9(count: int, generator: torch.Generator) -> Tensor:
    """Fill the diagonal boxes at random, and complete them by randomised backtracking: int64 ``[count, 81]``."""
    rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    g = geometry(9)
    grids = np.empty((count, g.cells), dtype=np.int64)
    for i in range(count):
        board = np.zeros(g.cells, dtype=np.int64)
        for box in (18, 22, 26):
            board[g.units[box]] = rng.permutation(9) + 1
        grids[i] = solve(board.tolist(), 9, limit=1, rng=rng)[0]
    return torch.from_numpy(grids)


def random_grids(size: int, count: int, generator: torch.Generator) -> Tensor:
    """Draw grids, digits from 1: int64 ``[count, L]``.

    For sizes 4 and 6 the grids are independent and uniform over all grids. For size 9, up to 2,000 grids come from
    randomised backtracking; further grids are random images of these. A grid has up to 3,359,232 * 9! images.
    """
    if size == 4:
        return all_grids_4()[torch.randint(288, (count,), generator=generator)]
    if size == 6:
        representatives = _representative_grids_6()
        grids = representatives[torch.randint(len(representatives), (count,), generator=generator)]
    else:
        searched_grids = _search_grids_9(min(count, MAX_SEARCHED_GRIDS_9), generator)
        grids = searched_grids.repeat(math.ceil(count / max(1, len(searched_grids))), 1)[:count]
    cells, digits = random_symmetries(count, size, generator)
    return transform(grids, cells, digits, first=1)
