"""Boards as text: which lines of a file belong to which board, whatever separates its cells.

A board stands in one line or row by row over several, with or without lines between its boxes, or in JSON. A space is
never a blank cell: it only separates.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from pyro_gram.errors import InputError
from pyro_gram.system.text import PuzzleText, normalize_text

FULL_WIDTH = {0xFF01 + i: 0x21 + i for i in range(94)}  # digits and marks as East Asian keyboards write them
BOX_DRAWING = dict.fromkeys(range(0x2500, 0x2580), "+")
BARS = dict.fromkeys(map(ord, "│┃║┆┇┊┋╎╏"), "|") | dict.fromkeys(map(ord, "─━═┄┅┈┉╌╍"), "-")
PLAIN = FULL_WIDTH | BOX_DRAWING | BARS
SECTION = re.compile(r"\[([A-Za-z]+)\]")  # of SadMan's .sdk files
BOARD_SECTION = "puzzle"
EDGES = " \N{NO-BREAK SPACE}\N{IDEOGRAPHIC SPACE}\N{ZERO WIDTH SPACE}"
LONGEST = 10_000  # characters of a line: no board has more

SideOf = Callable[[str], int]  # of a line: the side of the board that it is a row of; 0 if it is none
Line = tuple[int, str]  # its number, from 1, and its text


def cleaned(line: str) -> str:
    """A line without its comment; bars and full-width characters plain."""
    return re.sub(r"(^|\s)#.*", "", line[: LONGEST + 1].translate(PLAIN)).strip(EDGES)  # a tab may end an empty cell


def is_rule(line: str) -> bool:
    """Can it be a line between boxes? (A row of ``-`` for blanks looks so too.)"""
    return bool(set(line) & set("-=")) and set(line) <= set("-=+| ")


def cells_of(line: str, fits: Callable[[int], bool] = bool) -> list[str] | None:
    """The cells of a line: its characters, or what commas, semicolons, tabs, bars or spaces separate.

    An empty field between commas is a blank, ``.``. None where the separators follow no rule, such as a single space in
    the middle: then nobody can tell whether it stands for a cell.

    Args:
        line: of a text.
        fits: is that a number of cells? If not, a separator may stand behind the last one.
    """
    line = line.strip(EDGES)
    line = (line[:-1] if line.endswith("],") else line).strip("[](){}").strip(EDGES)
    if re.search(r"[,;\t]", line):
        fields = [field.strip().strip("\"'") for field in re.split(r"[,;\t]", line)]
        if not fields[-1] and not fits(len(fields)):
            fields.pop()
        if re.search("[,;]", line) or all(len(field) < 2 for field in fields):  # a tab may also set a whole row in
            return [field or "." for field in fields]
    words = line.replace("|", " ").split()
    if len({len(word) for word in words}) > 1:
        return None
    return list("".join(words))


def split_boards(
    text: str,
    side_of: SideOf,
    clean: Callable[[str], str] = cleaned,
    band: Callable[[int], int] = lambda side: side,
) -> list[PuzzleText]:
    """The boards of a file, each as text: one a line, or rows on lines of their own, or JSON.

    Args:
        text: of the file. Lines that begin with ``#`` are comments.
        side_of: tells a row from a whole board.
        clean: of what a line is read without.
        band: rows of a block where empty lines separate the boxes of a board, by its side.
    """
    lines = list(_lines(normalize_text(text), clean))
    written = [line for _, line in lines if line]
    if written and written[0].startswith(("[", "{", '"')) and not all(map(side_of, written)):
        pieces = _json_pieces(_without_comments(text), lines, side_of)
        if pieces:
            return pieces
    pieces = []
    blocks: list[list[Line]] = [[]]
    for number, line in lines:
        if not line:
            if blocks[-1]:
                blocks.append([])
        elif side_of(line) or is_rule(line):
            blocks[-1].append((number, line))
        else:
            pieces += _boards(blocks, side_of, band)
            blocks = [[]]
            pieces.append(PuzzleText(line, number))
    return [*pieces, *_boards(blocks, side_of, band)]


def lines_of_board(
    text: str,
    keys: tuple[str, ...],
    side_of: SideOf,
    split: Callable[[str], list[PuzzleText]],
    clean: Callable[[str], str] = cleaned,
) -> list[str]:
    """The lines of one board, whatever it is written in: one, or its rows without the lines between boxes.

    Args:
        text: of the board.
        keys: under which an object of JSON has its board.
        side_of, clean: as for :func:`split_boards`.
        split: a text into its boards.

    Raises:
        InputError: no board, several, or JSON that is none.
    """
    lines = [line for line in map(clean, normalize_text(text).split("\n")) if line]
    rows = None if all(map(side_of, lines)) else from_json(text, keys)
    if rows is not None:
        lines = [line for line in map(clean, rows) if line]
    if not lines:
        raise InputError("empty input: give a board")
    if rows is None and len(lines) > 1:
        pieces = split(text)
        if len(pieces) > 1:
            raise InputError(f"{len(pieces)} boards where one is expected: give one at a time, or the file to solve.py")
        lines = pieces[0].text.split("\n") if pieces else lines
    return lines


def _lines(text: str, clean: Callable[[str], str]) -> Iterator[Line]:
    """Numbered lines without comments (such lines are left out); empty ones stay. Of an .sdk file, those of boards."""
    has_sections = f"[{BOARD_SECTION}]" in text.lower()
    current = BOARD_SECTION
    empty = False  # was the last one: one of them in a row is enough
    for number, raw in enumerate(text.split("\n"), start=1):
        section = SECTION.fullmatch(raw.strip()) if has_sections else None
        if section:
            current = section[1].lower()
        elif current == BOARD_SECTION:
            line = clean(raw) if raw and not raw.isspace() else ""
            if line or not (empty or raw.strip()):
                yield number, line
                empty = not line


def _boards(blocks: list[list[Line]], side_of: SideOf, band: Callable[[int], int]) -> list[PuzzleText]:
    """The boards in blocks of rows, which empty lines separate; a block that holds no whole board is one piece."""
    whole = [kept for block in blocks if (kept := _without_rules(block, side_of))]
    if not whole:
        return []
    side = side_of(whole[0][0][1])
    rows = band(side) if side else 0
    if side and rows < side and len(whole) * rows % side == 0 and all(len(block) == rows for block in whole):
        whole = [[row for block in whole for row in block]]
    pieces = []
    for block in whole:
        side = side_of(block[0][1])
        step = side if side and len(block) % side == 0 else len(block)
        for start in range(0, len(block), step):
            part = block[start : start + step]
            pieces.append(PuzzleText("\n".join(line for _, line in part), part[0][0]))
    return pieces


def _without_rules(block: list[Line], side_of: SideOf) -> list[Line]:
    """A block without the lines between boxes. A line of dashes is a row where other rows have ``-`` for a blank, or
    where there are no others; it never makes up for a row that is missing.
    """
    rows = [line for _, line in block if not is_rule(line)]
    blanks = not rows or any("-" in line for line in rows)
    return [row for row in block if not is_rule(row[1]) or (blanks and "+" not in row[1] and side_of(row[1]))]


# ---- JSON --------------------------------------------------------------------------------------------------------


def _json_pieces(text: str, lines: list[Line], side_of: SideOf) -> list[PuzzleText]:
    """The boards of a JSON text, or of one JSON value a line; nothing where there is no such value."""
    lines = [(number, line) for number, line in lines if line]
    if len(lines) > 1 and all(line.startswith(("[", "{")) and _loaded(line) is not None for _, line in lines):
        return [PuzzleText(line, number) for number, line in lines]
    value = _loaded(text)
    if value is None:
        return [PuzzleText(text, 1)] if lines[0][1].startswith(("[[", "{", '["')) else []
    boards = value if isinstance(value, list) and value and all(_is_board(v, side_of) for v in value) else [value]
    if len(boards) == 1:
        return [PuzzleText(json.dumps(boards[0]), 1)]
    return [PuzzleText(json.dumps(board), 1, f"board {n}") for n, board in enumerate(boards, start=1)]


def _is_board(value: Any, side_of: SideOf) -> bool:
    """Is an entry of a JSON list a board, rather than a row or a cell of one?"""
    if isinstance(value, list):
        return bool(value) and all(isinstance(row, list) for row in value)
    return isinstance(value, dict) or (isinstance(value, str) and len(value) > 15 and not side_of(value))


def _without_comments(text: str) -> str:
    return "\n".join(line for line in normalize_text(text).split("\n") if line[:1] != "#")


def _loaded(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def from_json(text: str, keys: tuple[str, ...]) -> list[str] | None:
    """The rows of a board in JSON, each as text whose cells commas separate, or as it is written.

    Args:
        text: of one board.
        keys: under which an object has its board.

    Returns:
        None where the text does not look like JSON.

    Raises:
        InputError: it looks like JSON and is none, or holds no board.
    """
    text = _without_comments(text).strip()
    if not text.startswith(("[", "{", '"')):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as e:
        if not text.startswith(("[[", '["', "{")):
            return None  # a list of numbers with other blanks than JSON has, or a quotation mark
        raise InputError(f"this begins as JSON and is none: {e}") from None
    if isinstance(value, dict):
        found = [name for name in value if name.strip().lower() in keys]
        if len(found) > 1:
            raise InputError(f"the JSON object has {found[0]!r} and {found[1]!r}: give its board under one name")
        if not found:
            raise InputError(f"the JSON object has no {keys[0]!r}: give its board under that name")
        value = value[found[0]]
    if isinstance(value, str):
        return value.split("\n")
    if not isinstance(value, list) or not value:
        raise InputError("a board in JSON is a list of rows, a list of cells, or a text")
    if not isinstance(value[0], list | str) or (isinstance(value[0], str) and len(value[0]) <= 1):
        value = [value]
    return [row if isinstance(row, str) else _row(row) for row in value]


def _row(row: Any) -> str:
    if not isinstance(row, list) or any(isinstance(cell, list | dict | float | bool) for cell in row):
        raise InputError("a row of a board in JSON is a list of whole numbers, or a text")
    return ",".join("." if cell is None else str(cell) for cell in row)
