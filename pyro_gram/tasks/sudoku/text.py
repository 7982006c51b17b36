"""Read Sudoku boards from text, in the layouts of puzzle collections, other solvers, spreadsheets and solve.py."""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Callable
from typing import NoReturn

from pyro_gram.errors import InputError
from pyro_gram.system.text import PuzzleText, normalize_text
from pyro_gram.tasks.board_text import cells_of, clean_line, is_rule, lines_of_board, split_boards
from pyro_gram.tasks.sudoku.boards import BOXES, SIZES
from pyro_gram.tasks.sudoku.data import BLANKS, DELIMITERS, PUZZLE_COLUMNS

DIGITS = "123456789"
BOARD_NAMES = (*PUZZLE_COLUMNS, "board", "grid", "clues")  # names of CSV columns and JSON keys that hold a board
SIZE_OF = {size * size: size for size in SIZES}  # number of cells -> size
ANSWER_SEPARATOR = re.compile(r"\s*->\s*|\s{3,}")
MAX_RATING_LENGTH = 8  # a longer word of digits is not a rating
FORM = f"digits, and one of {' '.join(BLANKS)} for a blank"


def mark_blanks(text: str) -> str:
    """Write ``.`` for each space that stands for a blank cell.

    These are the spaces of a line that has as many digits and spaces as a board has cells, unless its digits alone are
    the cells of a board; and those of n successive lines whose longest has n digits and spaces.
    """
    lines = normalize_text(text).split("\n")
    is_plain = [bool(line) and not set(line) - set(DIGITS + " ") for line in lines]
    for number, line in enumerate(lines):
        if is_plain[number] and len(line) in SIZE_OF and len(cells_of(line) or "") not in SIZE_OF:
            lines[number] = line.replace(" ", ".")
    start = 0
    for is_block, group in itertools.groupby(is_plain):
        end = start + len(list(group))
        size = max(map(len, lines[start:end]))
        if is_block and size in SIZES and (end - start) % size == 0:
            lines[start:end] = [line.ljust(size).replace(" ", ".") for line in lines[start:end]]
        start = end
    return "\n".join(lines)


def split_puzzles(text: str) -> list[PuzzleText]:
    """Cut a file into puzzles: text (a puzzle or row on each line), CSV with a header, ``.sdk``, ``.sdm`` or JSON."""
    text = mark_blanks(text)
    lines = text.split("\n")
    first = next((i for i, line in enumerate(lines) if line and remove_answer(line)), 0)
    for delimiter in DELIMITERS:
        names = [name.lower() for name in _fields(lines[first], delimiter)]
        column = next((names.index(name) for name in BOARD_NAMES if name in names), None)
        if column is not None and (len(names) > 1 or _begins_with_board(lines[first + 1 :])):
            break
    else:
        return split_boards(text, row_length, remove_answer, lambda size: BOXES[size][0])
    puzzles = []
    for number, line in enumerate(lines[first + 1 :], start=first + 2):
        row = _fields(line, delimiter)
        if any(row) and line[:1] != "#":
            puzzles.append(PuzzleText(row[column] if column < len(row) else line, number))
    return puzzles


def _begins_with_board(lines: list[str]) -> bool:
    """Return whether the first line with cells holds a whole board. A single word above such a line is a CSV header."""
    line = next(filter(None, map(remove_answer, lines)), "")
    return len(line) in SIZE_OF


def _fields(line: str, delimiter: str) -> list[str]:
    """Return the fields of a line of CSV; a malformed line is one field."""
    try:
        return [field.strip() for field in next(csv.reader([line], delimiter=delimiter), [])]
    except csv.Error:
        return [line]


def remove_answer(line: str) -> str:
    """Remove a line's comment. From a line of a picture that solve.py prints, also remove the answer on the right."""
    line = clean_line(line)
    puzzle_part, *others = ANSWER_SEPARATOR.split(line)
    if len(others) != 1:
        return line
    cells, answer = ((part if is_rule(part) else cells_of(part)) or [] for part in (puzzle_part, others[0]))
    is_answer = len(cells) == len(answer) > 1 and set(answer) <= set(DIGITS)
    is_answer = is_answer and all(c in BLANKS or c == a for c, a in zip(cells, answer, strict=True))
    return puzzle_part if is_answer or (is_rule(puzzle_part) and puzzle_part == others[0]) else line


def row_length(line: str) -> int:
    """Return the number of cells if the line is a row of a board, otherwise 0."""
    cells = cells_of(line, is_cell_count)
    return len(cells) if cells and len(cells) in SIZES and all(len(cell) == 1 for cell in cells) else 0


def parse_puzzle(text: str, sizes: tuple[int, ...], advise: Callable[[int], str]) -> list[int]:
    """Return the digits of one board, row by row, 0 for a blank.

    Args:
        text: one line, or a line for each row.
        sizes: the sizes of boards that the caller expects, in ascending order.
        advise: maps a wrong size to advice for the user.

    Raises:
        InputError: the text is not a board of one of these sizes.
    """
    lines = lines_of_board(mark_blanks(text), BOARD_NAMES, row_length, split_puzzles, remove_answer)
    cells = _cells_of_board(lines[0]) if len(lines) == 1 else _join_rows(lines)
    if cells is None:
        _refuse_spaces(lines, sizes[-1])
    _check_characters(cells, lines)
    actual_size = SIZE_OF.get(len(cells))
    is_square = len(lines) == 1 or all(len(cells_of(line, is_cell_count) or "") == actual_size for line in lines)
    if actual_size is None or not is_square:
        _refuse_length(cells, lines, sizes)
    if actual_size not in sizes:
        size = " or ".join(map(str, sizes))
        raise InputError(
            f"the board is {actual_size}x{actual_size}; this task has size = {size}: {advise(actual_size)}"
        )
    return [0 if cell in BLANKS else int(cell) for cell in cells]


def _cells_of_board(line: str) -> list[str] | None:
    """Return the cells of a board on one line. The line may also hold a hash, a rating or the solution."""
    words = [word for word in re.split(r"[\s,;]+", line) if not set(word) - set(BLANKS + DIGITS)]
    boards = [word for word in words if len(word) in SIZE_OF]
    if not boards:
        return cells_of(line, is_cell_count)
    puzzle, *others = boards
    if any(set(board) & set(BLANKS) or len(board) != len(puzzle) for board in others):
        raise InputError(f"{len(boards)} boards on one line: give one board on each line")
    rest = [word for word in words if word not in boards]
    if len(rest) > 1 or any(len(word) > MAX_RATING_LENGTH for word in rest):
        raise InputError(f"there is more on the line than a board, {rest[0][:20]!r}: give one board on each line")
    return list(puzzle)


def is_cell_count(count: int) -> bool:
    """Return whether a row or a board may have ``count`` cells."""
    return count in SIZES or count in SIZE_OF


def _join_rows(lines: list[str]) -> list[str] | None:
    rows = [cells_of(line, is_cell_count) for line in lines]
    return None if None in rows else [cell for row in rows for cell in row or ()]


def _check_characters(cells: list[str], lines: list[str]) -> None:
    for cell in cells:
        if len(cell) != 1 or cell not in BLANKS + DIGITS:
            place = f" (row {next(n for n, line in enumerate(lines, 1) if cell in line)})" if len(lines) > 1 else ""
            excerpt = repr(cell[:20]) + "..." * (len(cell) > 20)
            raise InputError(f"{excerpt}{place} is neither a digit nor a blank: write {FORM}")


def _refuse_spaces(lines: list[str], size: int) -> NoReturn:
    raise InputError(
        "the spaces in the line are irregular, so that it is unclear which stand for cells: write . for a blank, "
        f"and {size} rows of {size} cells or all {size * size} in one line"
        if len(lines) == 1
        else f"a row has irregular spaces: write {size} cells in each of {size} rows, . for a blank"
    )


def _refuse_length(cells: list[str], lines: list[str], sizes: tuple[int, ...]) -> NoReturn:
    if len(lines) > 1:
        lengths = sorted({len(cells_of(line, is_cell_count) or "") for line in lines})
        rows = f"{len(lines)} rows of {' or '.join(map(str, lengths))} cells"
        raise InputError(f"{rows}, and {', '.join(f'a {n}x{n} board has {n} rows of {n}' for n in sizes)}")
    blanks = sum(cell in BLANKS for cell in cells)
    hint = "" if blanks else "; a space is no blank: write . for one"
    counts = f"{len(cells)} cells ({len(cells) - blanks} digits and {blanks} blanks)"
    raise InputError(f"{counts}, and {', '.join(f'a {n}x{n} board has {n * n}' for n in sizes)}{hint}")
