"""Read boards from text: cut a file into boards, and a line into cells.

A board is written on one line, or with one line for each row, or in JSON. Rules (lines of dashes and the like) may
separate its boxes. A space separates cells here; some tasks first mark the spaces that stand for blank cells.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from pyro_gram.errors import InputError
from pyro_gram.system.text import PuzzleText, normalize_text

ASCII_OF_FULL_WIDTH = {0xFF01 + i: 0x21 + i for i in range(94)}  # digits and marks as East Asian keyboards write them
BOX_DRAWING = dict.fromkeys(range(0x2500, 0x2580), "+")
BARS = dict.fromkeys(map(ord, "│┃║┆┇┊┋╎╏"), "|") | dict.fromkeys(map(ord, "─━═┄┅┈┉╌╍"), "-")
ASCII_OF = ASCII_OF_FULL_WIDTH | BOX_DRAWING | BARS
SECTION = re.compile(r"\[([A-Za-z]+)\]")  # a heading in an .sdk file
BOARD_SECTION = "puzzle"
SPACES = " \N{NO-BREAK SPACE}\N{IDEOGRAPHIC SPACE}\N{ZERO WIDTH SPACE}"
MAX_LINE_LENGTH = 10_000  # no board has a longer line

RowLength = Callable[[str], int]  # maps a row of a board to its number of cells, and any other line to 0
Line = tuple[int, str]  # the number of a line in the file, from 1, and its text


def clean_line(line: str) -> str:
    """Remove the comment of a line, and convert bars and full-width characters to ASCII."""
    ascii_line = line[: MAX_LINE_LENGTH + 1].translate(ASCII_OF)
    return re.sub(r"(^|\s)#.*", "", ascii_line).strip(SPACES)  # tabs stay: an empty cell may follow the last tab


def is_rule(line: str) -> bool:
    """Return whether a line may be a rule between boxes. (A row of blank cells, if written ``-``, looks the same.)"""
    return bool(set(line) & set("-=")) and set(line) <= set("-=+| ")


def cells_of(line: str, is_possible: Callable[[int], bool] = bool) -> list[str] | None:
    """Cut a line into cells: the fields between commas, semicolons or tabs, or else its characters.

    Spaces and bars are not cells. An empty field becomes a blank, ``.``.

    Args:
        line: a line of text.
        is_possible: says whether a board or row may have a given number of cells. If the number of fields is not
            possible, an empty last field is dropped.

    Returns:
        The cells, or None if spaces and bars cut the line into words of different lengths.
    """
    line = line.strip(SPACES)
    line = (line[:-1] if line.endswith("],") else line).strip("[](){}").strip(SPACES)
    if re.search(r"[,;\t]", line):
        fields = [field.strip().strip("\"'") for field in re.split(r"[,;\t]", line)]
        if not fields[-1] and not is_possible(len(fields)):
            fields.pop()
        if re.search("[,;]", line) or all(len(field) < 2 for field in fields):  # tabs may also indent a row
            return [field or "." for field in fields]
    words = line.replace("|", " ").split()
    if len({len(word) for word in words}) > 1:
        return None
    return list("".join(words))


def split_boards(
    text: str,
    row_length: RowLength,
    clean: Callable[[str], str] = clean_line,
    band_rows: Callable[[int], int] = lambda size: size,
) -> list[PuzzleText]:
    """Cut a file into boards. Each line holds a board or a row of a board; or the file is JSON.

    Args:
        text: the file. Lines that begin with ``#`` are comments.
        row_length: returns the number of cells of a row, and 0 for any other line, such as a whole board.
        clean: removes comments from a line.
        band_rows: maps the size of a board to the number of rows in a box. (Empty lines may separate the boxes.)
    """
    lines = list(_board_lines(normalize_text(text), clean))
    texts = [line for _, line in lines if line]
    if texts and texts[0].startswith(("[", "{", '"')) and not all(map(row_length, texts)):
        boards = _split_json(_remove_comments(text), lines, row_length)
        if boards:
            return boards
    boards = []
    blocks: list[list[Line]] = [[]]
    for number, line in lines:
        if not line:
            if blocks[-1]:
                blocks.append([])
        elif row_length(line) or is_rule(line):
            blocks[-1].append((number, line))
        else:
            boards += _join_blocks(blocks, row_length, band_rows)
            blocks = [[]]
            boards.append(PuzzleText(line, number))
    return [*boards, *_join_blocks(blocks, row_length, band_rows)]


def lines_of_board(
    text: str,
    keys: tuple[str, ...],
    row_length: RowLength,
    split: Callable[[str], list[PuzzleText]],
    clean: Callable[[str], str] = clean_line,
) -> list[str]:
    """Return the lines of one board: a single line, or its rows without the rules between boxes.

    Args:
        text: the board.
        keys: the names under which a JSON object may hold a board.
        row_length, clean: as for :func:`split_boards`.
        split: cuts a text into boards.

    Raises:
        InputError: the text is empty, holds several boards, or is malformed JSON.
    """
    lines = [line for line in map(clean, normalize_text(text).split("\n")) if line]
    rows = None if all(map(row_length, lines)) else rows_from_json(text, keys)
    if rows is not None:
        lines = [line for line in map(clean, rows) if line]
    if not lines:
        raise InputError("empty input: give a board")
    if rows is None and len(lines) > 1:
        boards = split(text)
        if len(boards) > 1:
            raise InputError(
                f"{len(boards)} boards where one is expected: give one at a time, or pass the file to solve.py"
            )
        lines = boards[0].text.split("\n") if boards else lines
    return lines


def _board_lines(text: str, clean: Callable[[str], str]) -> Iterator[Line]:
    """Yield the numbered lines of a text without their comments. From an .sdk file, yield only the lines of boards.

    A line that holds only a comment is left out. Successive empty lines are merged into one.
    """
    has_sections = f"[{BOARD_SECTION}]" in text.lower()
    current_section = BOARD_SECTION
    follows_empty = False
    for number, raw_line in enumerate(text.split("\n"), start=1):
        section = SECTION.fullmatch(raw_line.strip()) if has_sections else None
        if section:
            current_section = section[1].lower()
        elif current_section == BOARD_SECTION:
            line = clean(raw_line) if raw_line and not raw_line.isspace() else ""
            if line or not (follows_empty or raw_line.strip()):
                yield number, line
                follows_empty = not line


def _join_blocks(blocks: list[list[Line]], row_length: RowLength, band_rows: Callable[[int], int]) -> list[PuzzleText]:
    """Convert blocks of rows to boards. In the file, empty lines separate the blocks.

    If the rows of a block do not make up whole boards, the block becomes one text.
    """
    blocks = [rows for block in blocks if (rows := _remove_rules(block, row_length))]
    if not blocks:
        return []
    size = row_length(blocks[0][0][1])
    height = band_rows(size) if size else 0
    if size and height < size and len(blocks) * height % size == 0 and all(len(block) == height for block in blocks):
        blocks = [[row for block in blocks for row in block]]
    boards = []
    for block in blocks:
        size = row_length(block[0][1])
        step = size if size and len(block) % size == 0 else len(block)
        for start in range(0, len(block), step):
            rows = block[start : start + step]
            boards.append(PuzzleText("\n".join(line for _, line in rows), rows[0][0]))
    return boards


def _remove_rules(block: list[Line], row_length: RowLength) -> list[Line]:
    """Remove from a block the lines of dashes that separate boxes.

    A line of dashes counts as a row if other rows have ``-`` for a blank, or if the block has no other rows.
    """
    rows = [line for _, line in block if not is_rule(line)]
    has_dash_blanks = not rows or any("-" in line for line in rows)
    return [
        row for row in block if not is_rule(row[1]) or (has_dash_blanks and "+" not in row[1] and row_length(row[1]))
    ]


# ---- JSON --------------------------------------------------------------------------------------------------------


def _split_json(text: str, lines: list[Line], row_length: RowLength) -> list[PuzzleText]:
    """Cut a text into boards if it is JSON, or has a JSON value on each line; return no boards for other texts."""
    lines = [(number, line) for number, line in lines if line]
    if len(lines) > 1 and all(line.startswith(("[", "{")) and _load_json(line) is not None for _, line in lines):
        return [PuzzleText(line, number) for number, line in lines]
    value = _load_json(text)
    if value is None:
        return [PuzzleText(text, 1)] if lines[0][1].startswith(("[[", "{", '["')) else []
    is_list_of_boards = isinstance(value, list) and value and all(_is_board(item, row_length) for item in value)
    boards = value if is_list_of_boards else [value]
    if len(boards) == 1:
        return [PuzzleText(json.dumps(boards[0]), 1)]
    return [PuzzleText(json.dumps(board), 1, f"board {n}") for n, board in enumerate(boards, start=1)]


def _is_board(value: Any, row_length: RowLength) -> bool:
    """Return whether an item of a JSON list is a whole board, and not just a row or a cell."""
    if isinstance(value, list):
        return bool(value) and all(isinstance(row, list) for row in value)
    return isinstance(value, dict) or (isinstance(value, str) and len(value) > 15 and not row_length(value))


def _remove_comments(text: str) -> str:
    return "\n".join(line for line in normalize_text(text).split("\n") if line[:1] != "#")


def _load_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def rows_from_json(text: str, keys: tuple[str, ...]) -> list[str] | None:
    """Return the rows of a board in JSON, each as a text. If a row is a list, its cells are joined by commas.

    Args:
        text: one board.
        keys: the names under which an object may hold a board.

    Returns:
        The rows, or None if the text does not look like JSON.

    Raises:
        InputError: the text looks like JSON and is malformed, or holds no board.
    """
    text = _remove_comments(text).strip()
    if not text.startswith(("[", "{", '"')):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as e:
        if not text.startswith(("[[", '["', "{")):
            return None  # it may be a list whose blanks are not JSON, or a board in quotation marks
        raise InputError(f"this begins like JSON but is not JSON: {e}") from None
    if isinstance(value, dict):
        names = [name for name in value if name.strip().lower() in keys]
        if len(names) > 1:
            raise InputError(f"the JSON object has {names[0]!r} and {names[1]!r}: give its board under one name")
        if not names:
            raise InputError(f"the JSON object has no {keys[0]!r}: give its board under that name")
        value = value[names[0]]
    if isinstance(value, str):
        return value.split("\n")
    if not isinstance(value, list) or not value:
        raise InputError("a board in JSON is a list of rows, a list of cells, or a text")
    if not isinstance(value[0], list | str) or (isinstance(value[0], str) and len(value[0]) <= 1):
        value = [value]
    return [row if isinstance(row, str) else _format_row(row) for row in value]


def _format_row(row: Any) -> str:
    if not isinstance(row, list) or any(isinstance(cell, list | dict | float | bool) for cell in row):
        raise InputError("a row of a board in JSON is a list of whole numbers, or a text")
    return ",".join("." if cell is None else str(cell) for cell in row)
