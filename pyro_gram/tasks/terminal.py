"""Text for a terminal. Marks are characters, so that it reads without colour; colours repeat what the text says."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import TextIO

WIDTH = 99  # columns that a line may take
MISTAKE = "!"  # stands behind whatever is wrong
WRONG_INK, WRONG_PAPER = 231, 160  # white on red
QUIET_INK = 240  # grey on black
FILLED_INK = 33  # a blue that reads on black and on white
CUBE = (0, 95, 135, 175, 215, 255)  # levels of the 6 x 6 x 6 colours 16 to 231
ESCAPES = re.compile(r"\x1b\[[0-9;]*m")

Painter = Callable[..., str]  # with the parameters of paint


def wants_colour(stream: TextIO) -> bool:
    """Is what is written to ``stream`` to be coloured?

    The environment decides first, NO_COLOR (no-color.org) before FORCE_COLOR, each by any value but the empty one;
    then whether ``stream`` is a terminal.
    """
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or stream.isatty()


def paint(text: str, foreground: int | None = None, background: int | None = None, bold: bool = False) -> str:
    """``text`` between escape codes; colours are numbers of the 256-colour palette (:func:`nearest`)."""
    codes = ["1"] if bold else []
    codes += [f"{kind};5;{colour}" for kind, colour in ((38, foreground), (48, background)) if colour is not None]
    return f"\x1b[{';'.join(codes)}m{text}\x1b[0m" if codes and text else text


def painter(colour: bool) -> Painter:
    """:func:`paint`, or where there is no colour a function of the same parameters that returns the text as it is."""
    return paint if colour else _leave


def _leave(text: str, foreground: int | None = None, background: int | None = None, bold: bool = False) -> str:
    return text


def mark(text: str, painted: Painter) -> str:
    """``text`` with the mark of a mistake behind it."""
    return painted(text + MISTAKE, WRONG_INK, WRONG_PAPER, bold=True)


def plain(text: str) -> str:
    """``text`` without its escape codes."""
    return ESCAPES.sub("", text)


@cache
def nearest(colour: str) -> int:
    """The number in the 256-colour palette that comes closest to ``#RRGGBB``."""
    want = _rgb(colour)
    cube = [(CUBE[i // 36], CUBE[i // 6 % 6], CUBE[i % 6]) for i in range(216)]
    grey = [(8 + 10 * i,) * 3 for i in range(24)]
    distance = [sum((a - b) ** 2 for a, b in zip(want, have, strict=True)) for have in cube + grey]
    return 16 + distance.index(min(distance))


def ink_on(paper: str) -> int:
    """Black or white, whichever reads better on ``#RRGGBB``."""
    red, green, blue = _rgb(paper)
    return 16 if 0.299 * red + 0.587 * green + 0.114 * blue > 120 else 231


def _rgb(colour: str) -> tuple[int, int, int]:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return red, green, blue


# ---- blocks of lines -----------------------------------------------------------------------------------------------


def beside(*blocks: str, between: str = "   ") -> str:
    """Blocks of lines side by side, ``between`` at half their height; what does not fit goes below, a line apart."""
    rows: list[list[str]] = []
    used = WIDTH
    for block in blocks:
        used += len(between) + _width(block)
        if used > WIDTH:
            rows.append([])
            used = _width(block)
        rows[-1].append(block)
    return "\n\n".join(_joined(row, between) for row in rows)


def _joined(blocks: list[str], between: str) -> str:
    height = max(block.count("\n") + 1 for block in blocks)
    columns: list[list[str]] = []
    for block in blocks:
        if columns:
            columns.append([between if i == (height - 1) // 2 else " " * len(between) for i in range(height)])
        lines = block.split("\n")
        lines += [""] * (height - len(lines))
        columns.append([line + " " * (_width(block) - _width(line)) for line in lines])
    return "\n".join(map("".join, zip(*columns, strict=True)))


def _width(block: str) -> int:
    return max(map(len, plain(block).split("\n")))


def boxed(cells: Sequence[str], columns: int, box_rows: int, box_columns: int) -> str:
    """Cells row by row, with lines between boxes. Each cell ends in a space or a mark, all of one width."""
    rows = [cells[i : i + columns] for i in range(0, len(cells), columns)]
    width = len(plain(cells[0])) * box_columns
    rule = "+-".join("-" * width for _ in range(columns // box_columns))
    lines = []
    for r, row in enumerate(rows):
        if r and r % box_rows == 0:
            lines.append(rule)
        lines.append("| ".join("".join(row[c : c + box_columns]) for c in range(0, columns, box_columns)))
    return "\n".join(lines)


def half_blocks(pixels: Sequence[Sequence[int]], painted: Painter) -> str:
    """An image of 0 and 1, white on black where there is colour; a character holds two pixels, one above the other."""
    characters = " \N{UPPER HALF BLOCK}\N{LOWER HALF BLOCK}\N{FULL BLOCK}"
    below = [*pixels[1::2], *([[0] * len(pixels[0])] if len(pixels) % 2 else [])]
    lines = []
    for upper, lower in zip(pixels[::2], below, strict=True):
        line = "".join(characters[a + 2 * b] for a, b in zip(upper, lower, strict=True))
        lines.append(painted(line, 231, 16))
    return "\n".join(lines)
