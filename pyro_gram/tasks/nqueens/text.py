"""Boards with queens as text: rows of squares, FEN, matrices of 0 and 1, and lists of columns."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from functools import partial

from pyro_gram.errors import InputError
from pyro_gram.system.text import PuzzleText
from pyro_gram.tasks.board_text import cells_of, lines_of_board, split_boards

QUEENS = "Qq1\N{BLACK CHESS QUEEN}\N{WHITE CHESS QUEEN}"
BLANKS = "._-*0\N{MIDDLE DOT}"
FORM = "Q for a queen and . for an empty square"
KEYS = ("board", "queens", "columns", "puzzle")  # of a JSON object
TAILS = (4, 6)  # words of a line of FEN: the board, who moves, castling, en passant, and two counters
NO_COLUMN = {".", "_", "-", "?", "*", "None", "null", "x", "X"}
SMALLEST = 4

Check = Callable[[int], None]  # of a number of rows: raises InputError where the task has another

Columns = list[list[int]]  # of each row, those of its queens, from 0


def split_queens(text: str, size: int) -> list[PuzzleText]:
    """The boards of a file, each as text: one a line, or one a row, with or without empty lines between boards."""
    return split_boards(text, partial(side_of, size=size))


def side_of(line: str, size: int) -> int:
    """The side of the board that a line is a row of; 0 if it is none."""
    cells = [] if "/" in line else cells_of(line, size.__eq__) or []
    return len(cells) if len(cells) >= SMALLEST and all(map(_is_square, cells)) else 0


def _is_square(cell: str) -> bool:
    return len(cell) == 1 and cell in QUEENS + BLANKS


def parse_queens(text: str, size: int, check: Check) -> Columns:
    """The queens of one board: for each row, the columns that it has them in, from 0.

    Args:
        text: of one board.
        size: n, of the board that is expected.
        check: of its number of rows.

    Raises:
        InputError: it is no board; or a list of columns that may be counted from 0 or from 1.
    """
    lines = lines_of_board(text, KEYS, partial(side_of, size=size), partial(split_queens, size=size))
    if len(lines) == 1:
        line = _without_tail(lines[0])
        numbers = None if "/" in line else _numbers(line)
        if numbers is not None:
            check(len(numbers))
            return _from_list(numbers)
        lines = line.split("/")
        if len(lines) == 1:
            what = f"one row of {side_of(line, size)} squares" if side_of(line, size) else f"no board: {line[:40]!r}"
            raise InputError(f"this is {what}; give all rows, on lines of their own or joined by /: {FORM}")
    check(len(lines))
    return [_row(number, line, len(lines)) for number, line in enumerate(lines, start=1)]


def _without_tail(line: str) -> str:
    """The board in a line of FEN; any other line as it is."""
    words = line.split()
    return words[0] if len(words) in TAILS and words[1] in ("w", "b") else line


def _row(number: int, line: str, n: int) -> list[int]:
    """The columns of the queens of a row, from 0. Raises InputError."""
    cells = cells_of(line, n.__eq__)
    if cells is not None and len(cells) != n:
        cells = _unpacked(cells, n)
    if cells is None:
        raise InputError(f"row {number} of the board has spaces that follow no rule: {line[:40]!r}: write {FORM}")
    strange = next((cell for cell in cells if not _is_square(cell)), None)
    if strange is not None:
        raise InputError(f"row {number} of the board holds {strange[:20]!r}: use {FORM}")
    if len(cells) != n:
        raise InputError(f"row {number} of the board has {len(cells)} squares, not {n}: {line[:40]!r}")
    return [column for column, cell in enumerate(cells) if cell in QUEENS]


def _unpacked(cells: list[str], n: int) -> list[str]:
    """A row of FEN, whose numbers are runs of empty squares, written out; any other row as it is."""
    if any(len(cell) > 1 for cell in cells):
        return cells
    row: list[str] = []
    for digits, group in itertools.groupby(cells, str.isdecimal):
        word = "".join(group)
        row += ["."] * min(int(word), n + 1) if digits and len(word) < 3 else list(word)
    return row


def _numbers(line: str) -> list[int | None] | None:
    """The numbers of a list of columns, None for a blank among them; None where the line is no such list."""
    words = re.split(r"[\s,;]+", line.strip("[](){} ").rstrip(",; "))
    if len(words) < SMALLEST or not all(re.fullmatch(r"-?\d{1,3}", word) or word in NO_COLUMN for word in words):
        return None
    if not any(word.lstrip("-").isdecimal() for word in words):
        return None
    return [None if word in NO_COLUMN else int(word) for word in words]


def _from_list(numbers: list[int | None]) -> Columns:
    """A list of columns, row by row. Raises InputError where they may be counted from 0 or from 1.

    From 0 where a blank is -1, or where every row has a column and the first of them is 0. From 1 where the last
    column, n, is among them, or where 0 stands for several blanks.
    """
    n = len(numbers)
    given = [number for number in numbers if number is not None]
    zeros = given.count(0)
    if min(given) < -1 or max(given) > n:
        wrong = next(number for number in given if not -1 <= number <= n)
        raise InputError(
            f"column {wrong} lies outside the board: columns are 0 to {n - 1}, and -1 is a row without queen"
        )
    if n > 1 and set(given) <= {0, 1} and len(given) == n:
        raise InputError(
            f"{n} numbers of 0 and 1 are one row of a board, or a list of columns: give all rows, or Q and ."
        )
    from_one = n in given or (zeros > 1 and -1 not in given)
    from_zero = -1 in given or (zeros == 1 and sorted(given) == list(range(n)))
    if from_one and zeros and None in numbers:
        from_zero = True  # 0 cannot be a blank beside another mark for one
    if from_one and from_zero:
        raise InputError(
            f"the list counts columns in two ways: write 0 to {n - 1} and -1 for a row without queen, or 1 to {n} and 0"
        )
    if not from_one and not from_zero:
        raise InputError(
            f"columns may be counted from 0 or from 1 in this list: write columns 0 to {n - 1}, and -1 for a row "
            "without queen, or the board itself"
        )
    blank = 0 if from_one else -1
    return [[] if number is None or number == blank else [number - from_one] for number in numbers]
