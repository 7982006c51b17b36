"""Sudoku boards as text: the layouts of collections, solvers, spreadsheets and our own pictures."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from typing import NoReturn

from pyro_gram.errors import InputError
from pyro_gram.system.text import PuzzleText, normalize_text
from pyro_gram.tasks.board_text import cells_of, cleaned, is_rule, lines_of_board, split_boards
from pyro_gram.tasks.sudoku.boards import BOXES, SIZES
from pyro_gram.tasks.sudoku.data import BLANKS, DELIMITERS, PUZZLE

DIGITS = "123456789"
COLUMNS = (*PUZZLE, "board", "grid", "clues")  # of a CSV, keys of a JSON object
CELLS = {size * size: size for size in SIZES}
ANSWER_BESIDE = re.compile(r"\s*->\s*|\s{3,}")
RATING = 8  # characters of a rating, at the most; what is longer and looks like cells is no rating
FORM = f"digits, and one of {' '.join(BLANKS)} for a blank"


def split_puzzles(text: str) -> list[PuzzleText]:
    """The puzzles of a file, each as text: one a line, row by row, a CSV with a header, ``.sdk``, ``.sdm`` or JSON."""
    lines = normalize_text(text).split("\n")
    first = next((i for i, line in enumerate(lines) if line and clues_in(line)), 0)
    for delimiter in DELIMITERS:
        names = [name.lower() for name in _fields(lines[first], delimiter)]
        column = next((names.index(name) for name in COLUMNS if name in names), None)
        if column is not None and (len(names) > 1 or _is_listed(lines[first + 1 :])):
            break
    else:
        return split_boards(text, side_of, clues_in, lambda side: BOXES[side][0])
    pieces = []
    for number, line in enumerate(lines[first + 1 :], start=first + 2):
        row = _fields(line, delimiter)
        if any(row) and line[:1] != "#":
            pieces.append(PuzzleText(row[column] if column < len(row) else line, number))
    return pieces


def _is_listed(lines: list[str]) -> bool:
    """Does the first of some lines hold a whole board? Then a lone word above it is a header, and else a title."""
    line = next(filter(None, map(clues_in, lines)), "")
    return len(line) in CELLS


def _fields(line: str, delimiter: str) -> list[str]:
    """Of a line of CSV; the line itself where it is none."""
    try:
        return [field.strip() for field in next(csv.reader([line], delimiter=delimiter), [])]
    except csv.Error:
        return [line]


def clues_in(line: str) -> str:
    """A line without its comment and, of a picture that solve.py prints, the answer beside it."""
    line = cleaned(line)
    left, *others = ANSWER_BESIDE.split(line)
    if len(others) != 1:
        return line
    cells, answer = ((part if is_rule(part) else cells_of(part)) or [] for part in (left, others[0]))
    fits = len(cells) == len(answer) > 1 and set(answer) <= set(DIGITS)
    keeps = fits and all(c in BLANKS or c == a for c, a in zip(cells, answer, strict=True))
    return left if keeps or (is_rule(left) and left == others[0]) else line


def side_of(line: str) -> int:
    """The side of the board that a line is a row of; 0 if it is none."""
    cells = cells_of(line, plausible)
    return len(cells) if cells and len(cells) in SIZES and all(len(cell) == 1 for cell in cells) else 0


def parse_puzzle(text: str, size: int, other_size: Callable[[int], str]) -> list[int]:
    """The digits of one board, row by row, 0 for a blank.

    Args:
        text: one line or one a row.
        size: of the board that is expected.
        other_size: what to do about a board of another size, given that.

    Raises:
        InputError: it is no board of this size; saying what it is instead.
    """
    lines = lines_of_board(text, COLUMNS, side_of, split_puzzles, clues_in)
    cells = _board_in(lines[0]) if len(lines) == 1 else _joined(lines)
    if cells is None:
        _refuse_spaces(lines, size)
    _check_characters(cells, lines)
    found = CELLS.get(len(cells))
    rowwise = len(lines) == 1 or all(len(cells_of(line, plausible) or "") == found for line in lines)
    if found is None or not rowwise:
        _refuse_length(cells, lines, size)
    if found != size:
        raise InputError(f"the board is {found}x{found}; this task has size = {size}: {other_size(found)}")
    digits = [0 if cell in BLANKS else int(cell) for cell in cells]
    if max(digits) > size:
        raise InputError(f"the digit {max(digits)} is none of a {size}x{size} board, whose digits are 1 to {size}")
    return digits


def _board_in(line: str) -> list[str] | None:
    """The cells of a board in one line; beside it, a hash, a rating or its solution may stand."""
    written = [word for word in re.split(r"[\s,;]+", line) if not set(word) - set(BLANKS + DIGITS)]
    words = [word for word in written if len(word) in CELLS]
    if not words:
        return cells_of(line, plausible)
    first, *others = words
    if any(set(word) & set(BLANKS) or len(word) != len(first) for word in others):
        raise InputError(f"{len(words)} boards on one line: give one a line")
    more = [word for word in written if word not in words]
    if len(more) > 1 or any(len(word) > RATING for word in more):
        raise InputError(f"there is more on the line than a board, {more[0][:20]!r}: give one board a line")
    return list(first)


def plausible(count: int) -> bool:
    """Can that be the number of cells of a row or a board?"""
    return count in SIZES or count in CELLS


def _joined(lines: list[str]) -> list[str] | None:
    rows = [cells_of(line, plausible) for line in lines]
    return None if None in rows else [cell for row in rows for cell in row or ()]


def _check_characters(cells: list[str], lines: list[str]) -> None:
    for cell in cells:
        if len(cell) != 1 or cell not in BLANKS + DIGITS:
            where = f" (row {next(n for n, line in enumerate(lines, 1) if cell in line)})" if len(lines) > 1 else ""
            shown = repr(cell[:20]) + "..." * (len(cell) > 20)
            raise InputError(f"{shown}{where} is neither a digit nor a blank: write {FORM}")


def _refuse_spaces(lines: list[str], size: int) -> NoReturn:
    raise InputError(
        "the spaces in the line follow no rule, so that nobody can tell which of them are cells: write . for a blank, "
        f"and {size} rows of {size} cells or all {size * size} in one line"
        if len(lines) == 1
        else f"a row has spaces that follow no rule: write {size} cells in each of {size} rows, . for a blank"
    )


def _refuse_length(cells: list[str], lines: list[str], size: int) -> NoReturn:
    if len(lines) > 1:
        lengths = sorted({len(cells_of(line, plausible) or "") for line in lines})
        what = f"{len(lines)} rows of {' or '.join(map(str, lengths))} cells"
        raise InputError(f"{what}, and a {size}x{size} board has {size} rows of {size}")
    blanks = sum(cell in BLANKS for cell in cells)
    hint = "" if blanks else "; a space is no blank: write . for one"
    what = f"{len(cells)} cells ({len(cells) - blanks} digits and {blanks} blanks)"
    raise InputError(f"{what}, and a {size}x{size} board has {size * size}{hint}")
