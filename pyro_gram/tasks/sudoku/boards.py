"""What the Sudoku tasks share: the geometry of a board, an exact solver, random grids, and the group of symmetries.

Boards here are rows of ``size**2`` cells in row-major order, 0 for a blank and 1 to ``size`` for digits. The symmetries
rename digits, permute bands, rows in a band, stacks and columns in a stack, and transpose where boxes are square: they
map solutions to solutions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

BOXES = {4: (2, 2), 6: (2, 3), 9: (3, 3)}  # size -> rows and columns of a box
SIZES = tuple(BOXES)
BASES_9 = 2000  # searched 9x9 grids, of which all others are random symmetries


@dataclass(frozen=True)
class Geometry:
    """Index tables of one size of board.

    Attributes:
        size: cells in a row.
        box_rows, box_cols: the sides of a box.
        units: int64 ``[3 size, size]``, the cells of each row, then of each column, then of each box.
        unit_masks: the same as bits of an integer.
        peer_masks: for each cell, the other cells of its units.
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
    def square_boxes(self) -> bool:
        """Does transposing map boxes to boxes?"""
        return self.box_rows == self.box_cols

    def unit_name(self, unit: int) -> str:
        """``row 1``, ``column 1``, ``box 1 (of 2 rows and 3 columns)``: a row of ``units``, counted from 1."""
        kind, number = divmod(unit, self.size)
        shape = f" (of {self.box_rows} rows and {self.box_cols} columns)" if kind == 2 else ""
        return f"{('row', 'column', 'box')[kind]} {number + 1}{shape}"


@cache
def geometry(size: int) -> Geometry:
    """The tables of boards with 4, 6 or 9 cells in a row."""
    box_rows, box_cols = BOXES[size]
    row, col = np.divmod(np.arange(size * size), size)
    place = np.stack((row, col, row // box_rows * box_rows + col // box_cols), axis=1)
    units = np.stack([np.flatnonzero(place[:, kind] == n) for kind in range(3) for n in range(size)])
    masks = tuple(sum(1 << int(c) for c in unit) for unit in units)
    peers = []
    for cell, (r, c, b) in enumerate(place.tolist()):
        peers.append((masks[r] | masks[size + c] | masks[2 * size + b]) & ~(1 << cell))
    return Geometry(size, box_rows, box_cols, units, masks, tuple(peers))


# ---- what is right -----------------------------------------------------------------------------------------------


@cache
def _missing(size: int) -> Tensor:
    """How many of ``size`` digits a set of them, given as bits, lacks: int64 ``[2^size]``."""
    return torch.tensor([size - n.bit_count() for n in range(1 << size)])


def missing_digits(digits: Tensor, size: int) -> Tensor:
    """Digits that rows, columns and boxes lack, summed: 0 for a correct full board.

    In a full board a unit lacks as many digits as it repeats.

    Args:
        digits: int64 ``[..., L]``, 0 to size - 1; anything else is no digit.

    Returns:
        int64 ``[...]``.
    """
    is_digit = (digits >= 0) & (digits < size)
    bits = torch.where(is_digit, 1 << digits.clamp(0, size - 1), 0).to(torch.int16)
    units = torch.from_numpy(geometry(size).units)
    present = bits[..., units[:, 0]]
    for place in range(1, size):
        present = present | bits[..., units[:, place]]
    return _missing(size)[present.long()].sum(-1)


def conflicts(digits: Sequence[int], size: int) -> list[tuple[int, int, list[int]]]:
    """Every digit that stands twice in a unit, as (unit, digit, cells); ``digits`` has 0 for blanks."""
    found = []
    for unit, cells in enumerate(geometry(size).units.tolist()):
        for digit in range(1, size + 1):
            same = [c for c in cells if digits[c] == digit]
            if len(same) > 1:
                found.append((unit, digit, same))
    return found


# ---- solver ------------------------------------------------------------------------------------------------------


def solve(
    board: Sequence[int], size: int, limit: int = 2, rng: np.random.Generator | None = None
) -> list[tuple[int, ...]]:
    """Up to ``limit`` solutions of a board, all of them where there are fewer: exact backtracking on bit masks.

    For each digit, one integer holds the cells that can still take it, so that cells with one, two or no candidates
    left are found for the whole board at once. Naked and hidden singles are filled in before the search branches, in
    the cell with fewest candidates or over the places of a digit in a unit, whichever are fewer.

    Args:
        board: ``size**2`` digits, 0 for a blank.
        size: 4, 6 or 9.
        limit: stop at this many.
        rng: tries digits in random order; without it, in ascending order.
    """
    g = geometry(size)
    candidates = [(1 << g.cells) - 1] * size
    filled = 0
    for cell, digit in enumerate(board):
        if digit:
            if not candidates[digit - 1] >> cell & 1:
                return []
            _assign(candidates, digit - 1, cell, g)
            filled |= 1 << cell
    found: list[tuple[int, ...]] = []
    for solution in _search(candidates, filled, g, rng):
        found.append(solution)
        if len(found) >= limit:
            break
    return found


def _assign(candidates: list[int], digit: int, cell: int, g: Geometry) -> None:
    others = ~(1 << cell)
    kept = candidates[digit] & ~g.peer_masks[cell]
    for d in range(g.size):
        candidates[d] &= others
    candidates[digit] = kept


def _search(
    candidates: list[int], filled: int, g: Geometry, rng: np.random.Generator | None
) -> Iterator[tuple[int, ...]]:
    """Every solution below a node. ``candidates`` is used up."""
    whole = (1 << g.cells) - 1
    while True:
        once = twice = thrice = 0  # cells with at least one, two, three candidates
        for c in candidates:
            thrice |= twice & c
            twice |= once & c
            once |= c
        if once != whole:
            return
        if filled == whole:
            yield _digits(candidates, g)
            return
        naked = once & ~twice & ~filled
        if naked:
            filled |= naked
            for digit in range(g.size):
                hits = candidates[digit] & naked
                while hits:
                    cell = (hits & -hits).bit_length() - 1
                    hits &= hits - 1
                    candidates[digit] &= ~g.peer_masks[cell]
            continue
        places = _fewest_places(candidates, filled, g)
        if places is None:
            return
        if len(places) > 1:
            break
        digit, cell = places[0]
        _assign(candidates, digit, cell, g)
        filled |= 1 << cell
    pairs = twice & ~thrice
    if pairs or len(places) > 2:
        cell = _lowest(pairs) if pairs else _fewest(candidates, whole & ~filled, g)
        digits = [(d, cell) for d in range(g.size) if candidates[d] >> cell & 1]
        places = min(digits, places, key=len)
    if rng is not None:
        places = [places[i] for i in rng.permutation(len(places))]
    for digit, cell in places:
        branch = candidates.copy()
        _assign(branch, digit, cell, g)
        yield from _search(branch, filled | 1 << cell, g, rng)


def _fewest_places(candidates: list[int], filled: int, g: Geometry) -> list[tuple[int, int]] | None:
    """The (digit, cell) pairs of a digit in a unit where it has fewest places; None where some digit has none."""
    best, fewest, digit_of_best = 0, g.size + 1, 0
    for digit, cells in enumerate(candidates):
        for unit in g.unit_masks:
            hits = cells & unit
            more = hits & (hits - 1)  # without the lowest
            if not more:
                if hits & filled:
                    continue
                return [(digit, _lowest(hits))] if hits else None
            if fewest > 2 and (number := hits.bit_count()) < fewest:
                best, fewest, digit_of_best = hits, number, digit
    places = []
    while best:
        places.append((digit_of_best, _lowest(best)))
        best &= best - 1
    return places


def _lowest(mask: int) -> int:
    return (mask & -mask).bit_length() - 1


def _fewest(candidates: list[int], cells: int, g: Geometry) -> int:
    """The cell of the mask ``cells`` with fewest candidates."""
    at_least = [cells] + [0] * g.size
    for c in candidates:
        for n in range(g.size, 0, -1):
            at_least[n] |= at_least[n - 1] & c
    for n in range(1, g.size):
        exactly = at_least[n] & ~at_least[n + 1]
        if exactly:
            return _lowest(exactly)
    return _lowest(cells)


def _digits(candidates: list[int], g: Geometry) -> tuple[int, ...]:
    board = [0] * g.cells
    for digit, cells in enumerate(candidates, start=1):
        while cells:
            board[_lowest(cells)] = digit
            cells &= cells - 1
    return tuple(board)


# ---- symmetries --------------------------------------------------------------------------------------------------


def random_symmetries(count: int, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Elements of the symmetry group, uniform and independent.

    The image of a board holds in cell i what the board holds in cell ``cells[i]``, digit d (from 0) renamed to
    ``digits[d]``.

    Returns:
        cells, int64 ``[count, L]``, and digits, int64 ``[count, size]``.
    """
    g = geometry(size)

    def permutations(*shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator).argsort(-1)

    def lines(groups: int, each: int) -> Tensor:
        return (permutations(groups)[..., None] * each + permutations(groups, each)).flatten(1)

    rows = lines(size // g.box_rows, g.box_rows)
    cols = lines(size // g.box_cols, g.box_cols)
    cells = rows[:, :, None] * size + cols[:, None, :]
    if g.square_boxes:
        transposed = torch.rand(count, 1, 1, generator=generator) < 0.5
        cells = torch.where(transposed, cells.transpose(1, 2), cells)
    return cells.flatten(1), permutations(size)


def transform(boards: Tensor, cells: Tensor, digits: Tensor, first: int) -> Tensor:
    """Images of boards under symmetries, one each.

    Args:
        boards: int64 ``[count, L]``, tokens: digit d (from 0) is ``first + d``; what is below ``first`` stays.
        cells, digits: of :func:`random_symmetries`.
        first: the token of the lowest digit.
    """
    fixed = torch.arange(first).expand(len(digits), first)
    renamed = torch.cat((fixed, digits + first), 1)
    return renamed.gather(1, boards.gather(1, cells))


def symmetry_invariants(boards: np.ndarray, size: int, rounds: int = 4, chunk: int = 20_000) -> np.ndarray:
    """A key a board, equal for boards that a symmetry maps to each other (and, rarely, for others).

    Colours of cells are refined as in the Weisfeiler-Leman test: each round describes digits, rows, columns, boxes,
    bands and stacks by the cells they hold, and cells by those they lie in. Multisets are hashed as sums of scrambled
    64-bit words, which wrap around: exact integers, no rounding.

    Args:
        boards: integers ``[N, L]``, 0 for a blank.

    Returns:
        uint64 ``[N]``.
    """
    parts = [_invariants(boards[i : i + chunk], size, rounds) for i in range(0, len(boards), chunk)]
    return np.concatenate(parts) if parts else np.zeros(0, np.uint64)


def _invariants(boards: np.ndarray, size: int, rounds: int) -> np.ndarray:
    g = geometry(size)
    n, bands, stacks = len(boards), size // g.box_rows, size // g.box_cols
    digit = torch.from_numpy(boards.astype(np.int64))
    color = _scramble((boards > 0).astype(np.uint64))
    flip = np.uint64(0 if g.square_boxes else 1)  # without transposition, columns are another kind than rows
    for _ in range(rounds):
        grid = color.reshape(n, bands, g.box_rows, stacks, g.box_cols)
        rows = _scramble(grid.sum((3, 4)))  # [n, bands, box_rows]
        cols = _scramble(grid.sum((1, 2)) + flip)  # [n, stacks, box_cols]
        rows = _scramble(rows + _scramble(rows.sum(2, keepdims=True)))
        cols = _scramble(cols + _scramble(cols.sum(2, keepdims=True)))
        boxes = _scramble(grid.sum((2, 4), keepdims=True) ^ np.uint64(2))
        words = torch.zeros(n, size + 1, dtype=torch.int64)
        words.scatter_add_(1, digit, torch.from_numpy(color.view(np.int64)))
        words = torch.from_numpy(_scramble(words.numpy().view(np.uint64) ^ np.uint64(4)).view(np.int64))
        words[:, 0] = 0  # blanks share nothing
        held = words.gather(1, digit).numpy().view(np.uint64)
        lines = rows[:, :, :, None, None] + cols[:, None, None]  # a sum: the same after a transposition
        grid = _scramble(grid) * np.uint64(3) + (lines ^ np.uint64(8)) + boxes + held.reshape(grid.shape)
        color = _scramble(grid).reshape(n, g.cells)
    return _scramble(color.sum(1, dtype=np.uint64))


def _scramble(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64, a bijection of 64-bit words."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


# ---- random grids ------------------------------------------------------------------------------------------------


@cache
def all_grids_4() -> Tensor:
    """The 288 grids of 4x4, digits from 1, int64 ``[288, 16]`` in lexicographic order."""
    return torch.tensor(sorted(solve([0] * 16, 4, limit=1000)))


@cache
def _normal_grids_6() -> Tensor:
    """816 grids of 6x6, one for each set of images under a group that moves every grid: int64 ``[816, 36]``.

    The group renames digits, permutes the columns of the right stack and the rows of the lower two bands; so box 1
    can read 123456, row 1 go on with 456, and column 1 ascend as far as that group goes. 816 * 720 * 6 * 8 =
    28,200,960 is the number of all grids.
    """
    found: list[tuple[int, ...]] = []
    for second, third, fourth in ((3, 5, 6), (5, 3, 6), (6, 3, 5)):
        board = [0] * 36
        board[:9] = [1, 2, 3, 4, 5, 6, 4, 5, 6]
        board[12], board[18], board[24], board[30] = 2, second, third, fourth
        found += solve(board, 6, limit=1000)
    return torch.tensor(found)


def _searched_grids_9(count: int, generator: torch.Generator) -> Tensor:
    """Grids of 9x9 by randomised backtracking, from a random band of diagonal boxes: int64 ``[count, 81]``."""
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
    """Random solved grids, digits from 1: int64 ``[count, L]``.

    Uniform over all grids and independent for sizes 4 and 6. For size 9, up to 2,000 grids from randomised
    backtracking, and further ones as random symmetries of these (each has up to 3,359,232 * 9! images).
    """
    if size == 4:
        return all_grids_4()[torch.randint(288, (count,), generator=generator)]
    if size == 6:
        normal = _normal_grids_6()
        grids = normal[torch.randint(len(normal), (count,), generator=generator)]
    else:
        bases = _searched_grids_9(min(count, BASES_9), generator)
        grids = bases.repeat(math.ceil(count / max(1, len(bases))), 1)[:count]
    cells, digits = random_symmetries(count, size, generator)
    return transform(grids, cells, digits, first=1)
