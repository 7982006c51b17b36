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
from pyro_gram.text import Piece, tidy

FULL_WIDTH = {0xFF01 + i: 0x21 + i for i in range(94)}  # digits and marks as East Asian keyboards write them
BARS = dict.fromkeys(map(ord, "│┃║"), "|") | dict.fromkeys(map(ord, "─━═"), "-") | dict.fromkeys(map(ord, "┼╋╬"), "+")
RULE = re.compile(r"[-+=| ]*[-=][-+=| ]*$")  # a line between boxes, or a row of blanks
SECTION = re.compile(r"\[([A-Za-z]\w*)\]$")  # of SadMan's .sdk files
BOARD_SECTION = "puzzle"
ANSWER_BESIDE = re.compile(r"\s*->\s*|\s{3,}")  # as solve.py prints it

SideOf = Callable[[str], int]  # of a line: the side of the board that it is a row of; 0 if it is none


def cleaned(line: str) -> str:
    """A line without its comment and the answer beside a printed board; bars and full-width characters plain."""
    line = line.translate(FULL_WIDTH).translate(BARS)
    line = re.sub(r"(^|\s)#.*", "", line).strip()
    left, *others = ANSWER_BESIDE.split(line)
    if len(others) == 1 and len(left.split()) == len(others[0].split()) and (" " in left or RULE.match(left)):
        return left
    return line


def cells_of(line: str) -> list[str] | None:
    """The cells of a line: its characters, or what commas, semicolons, tabs, bars or spaces separate.

    An empty field between commas is a blank, ``.``. None where the separators follow no rule, such as a single space in
    the middle: then nobody can tell whether it stands for a cell.
    """
    line = line.strip().strip("[](){}").strip()
    if re.search(r"[,;\t]", line):
        fields = [field.strip().strip("\"'") for field in re.split(r"[,;\t]", line)]
        if len(fields) > 1 and not fields[-1] and len(fields[0]) > 0:
            fields.pop()  # a separator behind the last cell
        return [field or "." for field in fields]
    words = line.replace("|", " ").split()
    if len({len(word) for word in words}) > 1:
        return None
    return list("".join(words))


def rule_of(lines: list[str], sides: list[int]) -> list[bool]:
    """For each line of a block: is it a line between boxes, and no row? (A row may consist of ``-`` for blanks.)

    Args:
        lines: of one block.
        sides: for each, how many cells it has as a row; 0 where it is none.
    """
    rules = [bool(RULE.match(line)) for line in lines]
    rows = [side for side, rule in zip(sides, rules, strict=True) if not rule]
    dashes = any("-" in line for line, rule in zip(lines, rules, strict=True) if not rule)
    if rows and rows[0] and (dashes or len(rows) % rows[0]):
        return [rule and ("+" in line or not side) for line, rule, side in zip(lines, rules, sides, strict=True)]
    return rules if rows else [rule and not side for rule, side in zip(rules, sides, strict=True)]


def split_boards(text: str, side_of: SideOf, band: Callable[[int], int] = lambda side: side) -> list[Piece]:
    """The boards of a file, each as text: one a line, or rows on lines of their own, or JSON.

    Args:
        text: of the file. Lines that begin with ``#`` are comments.
        side_of: tells a row from a whole board.
        band: rows of a block where empty lines separate the boxes of a board, by its side.
    """
    if text.lstrip().startswith(("[", "{")) and not SECTION.match(text.lstrip().split("\n", 1)[0].strip()):
        pieces = _json_pieces(text)
        if pieces:
            return pieces
    pieces = []
    blocks: list[list[tuple[int, str]]] = []
    for number, line in _lines(text):
        if not line:
            blocks.append([])
        elif side_of(line) or RULE.match(line):
            blocks = blocks or [[]]
            blocks[-1].append((number, line))
        else:
            pieces += _boards(blocks, side_of, band)
            blocks = []
            pieces.append(Piece(line, number))
    return [*pieces, *_boards(blocks, side_of, band)]


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Numbered lines without comments (such lines are left out) and sections that hold no board; empty ones stay."""
    section = BOARD_SECTION
    for number, raw in enumerate(tidy(text).split("\n"), start=1):
        header = SECTION.match(raw.strip())
        if header:
            section = header[1].lower()
            continue
        line = cleaned(raw)
        if section == BOARD_SECTION and (line or not raw.strip()):
            yield number, line


def _boards(blocks: list[list[tuple[int, str]]], side_of: SideOf, band: Callable[[int], int]) -> list[Piece]:
    """The boards in blocks of rows, which empty lines separate; a block that holds no whole board is one piece."""
    whole: list[list[tuple[int, str]]] = []
    for block in filter(None, blocks):
        lines = [line for _, line in block]
        rules = rule_of(lines, [side_of(line) for line in lines])
        whole.append([row for row, rule in zip(block, rules, strict=True) if not rule])
    whole = [block for block in whole if block]
    if not whole:
        return []
    side = side_of(whole[0][0][1])
    rows = band(side) if side else 0
    if side and rows < side and all(len(block) == rows for block in whole) and len(whole) * rows % side == 0:
        whole = [[row for block in whole for row in block]]
    pieces = []
    for block in whole:
        side = side_of(block[0][1])
        step = side if side and len(block) % side == 0 else len(block)
        for start in range(0, len(block), step):
            part = block[start : start + step]
            pieces.append(Piece("\n".join(line for _, line in part), part[0][0]))
    return pieces


# ---- JSON --------------------------------------------------------------------------------------------------------


def _json_pieces(text: str) -> list[Piece]:
    """The boards of a JSON text, or of one JSON value a line; nothing where there is no such value."""
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if len(lines) > 1 and all(line.lstrip().startswith(("[", "{")) and _loaded(line) is not None for _, line in lines):
        return [Piece(line, number) for number, line in lines]
    value = _loaded(text)
    if value is None:
        return [Piece(text, 1)] if text.lstrip().startswith(("[[", "{", '["')) else []
    boards = value if isinstance(value, list) and value and all(map(_is_board, value)) else [value]
    if len(boards) == 1:
        return [Piece(json.dumps(boards[0]), 1)]
    return [Piece(json.dumps(board), 1, f"board {n}") for n, board in enumerate(boards, start=1)]


def _is_board(value: Any) -> bool:
    """Is an entry of a JSON list a board, rather than a row or a cell of one?"""
    if isinstance(value, list):
        return bool(value) and all(isinstance(row, list) for row in value)
    return isinstance(value, dict) or (isinstance(value, str) and len(value) > 15)


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
    if not text.startswith(("[", "{", '"')):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as e:
        if not text.startswith(("[[", '["', "{")):
            return None  # a list of numbers with other blanks than JSON has, or a quotation mark
        raise InputError(f"this begins as JSON and is none: {e}") from None
    if isinstance(value, dict):
        names = {name.strip().lower(): name for name in value}
        key = next((names[k] for k in keys if k in names), None)
        if key is None:
            raise InputError(f"the JSON object has no {keys[0]!r}: give its board under that name")
        value = value[key]
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
    return ",".join("." if cell is None else str(cell) for cell in row) + ","
