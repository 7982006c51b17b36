"""Read boards of queens from text: rows of squares, FEN, matrices of 0 and 1, and lists of columns."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Container
from functools import partial

from pyro_gram.errors import InputError
from pyro_gram.system.text import PuzzleText
from pyro_gram.tasks.board_text import cells_of, lines_of_board, split_boards

QUEENS = "Qq1\N{BLACK CHESS QUEEN}\N{WHITE CHESS QUEEN}"
BLANKS = "._-*0\N{MIDDLE DOT}"
FORM = "Q for a queen and . for an empty square"
KEYS = ("board", "queens", "columns", "puzzle")  # names under which a JSON object may hold a board
FEN_WORDS = (4, 6)  # a line of FEN has 4 words (board, player, castling, en passant) or 6 (also two counters)
COLUMN_BLANKS = {".", "_", "-", "?", "*", "None", "null", "x", "X"}
MIN_SIZE = 4

CheckSize = Callable[[int], None]  # raises InputError if the task's boards have another number of rows
Columns = list[list[int]]  # for each row the columns of its queens, counted from 0


def split_queens(text: str, sizes: Container[int]) -> list[PuzzleText]:
    """Cut a file into boards of the sizes ``sizes``. Each line holds a board or a row of a board."""
    return split_boards(text, partial(row_length, sizes=sizes))


def row_length(line: str, sizes: Container[int]) -> int:
    """Return the number of squares if the line is a row of a board, otherwise 0."""
    cells = [] if "/" in line else cells_of(line, sizes.__contains__) or []
    return len(cells) if len(cells) > 1 and all(map(_is_square, cells)) else 0


def _is_square(cell: str) -> bool:
    return len(cell) == 1 and cell in QUEENS + BLANKS


def parse_queens(text: str, sizes: Container[int], check_size: CheckSize) -> Columns:
    """Return the columns of each row's queens, from 0.

    Args:
        text: one board.
        sizes: the sizes of board that the caller expects.
        check_size: called with the number of rows.

    Raises:
        InputError: the text is not a board, or is a list of columns that leaves open whether it counts from 0 or 1.
    """
    lines = lines_of_board(text, KEYS, partial(row_length, sizes=sizes), partial(split_queens, sizes=sizes))
    if len(lines) == 1:
        line = _remove_fen_fields(lines[0])
        numbers = None if "/" in line else _parse_numbers(line)
        if numbers is not None:
            check_size(len(numbers))
            return _columns_from_list(numbers)
        lines = line.split("/")
        if len(lines) == 1:
            length = row_length(line, sizes)
            content = f"one row of {length} squares" if length else f"no board: {line[:40]!r}"
            raise InputError(f"this is {content}; give all rows, on lines of their own or joined by /: {FORM}")
    check_size(len(lines))
    return [_parse_row(number, line, len(lines)) for number, line in enumerate(lines, start=1)]


def _remove_fen_fields(line: str) -> str:
    """Return only the board of a line of FEN, and any other line unchanged."""
    words = line.split()
    return words[0] if len(words) in FEN_WORDS and words[1] in ("w", "b") else line


def _parse_row(number: int, line: str, n: int) -> list[int]:
    """Return the columns of the queens of a row, from 0. Raises InputError."""
    cells = cells_of(line, n.__eq__)
    if cells is not None and len(cells) != n:
        cells = _expand_fen_row(cells, n)
    if cells is None:
        raise InputError(f"row {number} of the board has irregular spaces: {line[:40]!r}: write {FORM}")
    unknown_cell = next((cell for cell in cells if not _is_square(cell)), None)
    if unknown_cell is not None:
        raise InputError(f"row {number} of the board holds {unknown_cell[:20]!r}: use {FORM}")
    if len(cells) != n:
        raise InputError(f"row {number} of the board has {len(cells)} squares, not {n}: {line[:40]!r}")
    return [column for column, cell in enumerate(cells) if cell in QUEENS]


def _expand_fen_row(cells: list[str], n: int) -> list[str]:
    """Expand a row of FEN, in which a number n stands for n empty squares; return any other row unchanged."""
    if any(len(cell) > 1 for cell in cells):
        return cells
    row: list[str] = []
    for is_number, group in itertools.groupby(cells, str.isdecimal):
        word = "".join(group)
        row += ["."] * min(int(word), n + 1) if is_number and len(word) < 3 else list(word)
    return row


def _parse_numbers(line: str) -> list[int | None] | None:
    """Return the numbers of a list of columns, with None for each blank. Return None if the line is not such a list."""
    words = re.split(r"[\s,;]+", line.strip("[](){} ").rstrip(",; "))
    if len(words) < MIN_SIZE or not all(re.fullmatch(r"-?\d{1,3}", word) or word in COLUMN_BLANKS for word in words):
        return None
    if not any(word.lstrip("-").isdecimal() for word in words):
        return None
    return [None if word in COLUMN_BLANKS else int(word) for word in words]


def _columns_from_list(numbers: list[int | None]) -> Columns:
    """Convert a list with one column for each row. Raises InputError if it may count from 0 as well as from 1.

    Columns are counted from 0 if a blank is -1, or if they are 0 to n - 1 in some order. They are counted from 1 if one
    of them is n, or if 0 stands for several blanks.
    """
    n = len(numbers)
    columns = [number for number in numbers if number is not None]
    zeros = columns.count(0)
    if min(columns) < -1 or max(columns) > n:
        outside_column = next(number for number in columns if not -1 <= number <= n)
        raise InputError(
            f"column {outside_column} lies outside the board: columns are 0 to {n - 1}, and -1 is a row without queen"
        )
    if n > 1 and set(columns) <= {0, 1} and len(columns) == n:
        raise InputError(
            f"{n} numbers of 0 and 1 are one row of a board, or a list of columns: give all rows, or Q and ."
        )
    is_from_one = n in columns or (zeros > 1 and -1 not in columns)
    is_from_zero = -1 in columns or (zeros == 1 and sorted(columns) == list(range(n)))
    if is_from_one and zeros and None in numbers:
        is_from_zero = True  # the list has another mark for blanks, so 0 must be a column
    if is_from_one and is_from_zero:
        raise InputError(
            f"the list counts columns in two ways: write 0 to {n - 1} and -1 for a row without queen, or 1 to {n} and 0"
        )
    if not is_from_one and not is_from_zero:
        raise InputError(
            f"columns may be counted from 0 or from 1 in this list: write columns 0 to {n - 1}, and -1 for a row "
            "without queen, or the board itself"
        )
    blank = 0 if is_from_one else -1
    return [[] if number is None or number == blank else [number - is_from_one] for number in numbers]
