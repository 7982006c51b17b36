"""Format text for a terminal. A character marks each mistake, so the text can be understood without colours."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import TextIO

WIDTH = 99  # the maximal number of columns of a line
MISTAKE = "!"  # the mark that follows a mistake
MISTAKE_INK, MISTAKE_PAPER = 231, 160  # white on red
FAINT_INK = 240  # grey on black
FILLED_INK = 33  # a blue that is legible on black and on white
CUBE_LEVELS = (0, 95, 135, 175, 215, 255)  # levels of red, green and blue in the 6 x 6 x 6 colours 16 to 231
ESCAPE_CODES = re.compile(r"\x1b\[[0-9;]*m")

Painter = Callable[..., str]  # a function with the parameters of ``paint``


def wants_colour(stream: TextIO) -> bool:
    """Return whether text for ``stream`` is to be coloured.

    The environment decides first: text is not coloured if NO_COLOR (no-color.org) is set and not empty; otherwise it is
    coloured if FORCE_COLOR is set and not empty. If both are unset or empty, only text for a terminal is coloured.
    """
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or stream.isatty()


def paint(text: str, foreground: int | None = None, background: int | None = None, bold: bool = False) -> str:
    """Put ``text`` between escape codes. Colours are numbers of the 256-colour palette (:func:`nearest_colour`)."""
    codes = ["1"] if bold else []
    codes += [f"{kind};5;{colour}" for kind, colour in ((38, foreground), (48, background)) if colour is not None]
    return f"\x1b[{';'.join(codes)}m{text}\x1b[0m" if codes and text else text


def painter(colour: bool) -> Painter:
    """Return :func:`paint` if ``colour``, otherwise a function with the same parameters that does not paint."""
    return paint if colour else _leave_unpainted


def _leave_unpainted(
    text: str, foreground: int | None = None, background: int | None = None, bold: bool = False
) -> str:
    return text


def mark_mistake(text: str, paint: Painter) -> str:
    """Append the mark of a mistake to ``text``, and paint both."""
    return paint(text + MISTAKE, MISTAKE_INK, MISTAKE_PAPER, bold=True)


def strip_escape_codes(text: str) -> str:
    """Remove the escape codes from ``text``."""
    return ESCAPE_CODES.sub("", text)


@cache
def nearest_colour(rgb: str) -> int:
    """Return the colour of the 256-colour palette that is nearest to ``#RRGGBB``, as its number."""
    target = _levels(rgb)
    cube = [(CUBE_LEVELS[i // 36], CUBE_LEVELS[i // 6 % 6], CUBE_LEVELS[i % 6]) for i in range(216)]
    grey = [(8 + 10 * i,) * 3 for i in range(24)]
    distances = [sum((a - b) ** 2 for a, b in zip(target, colour, strict=True)) for colour in cube + grey]
    return 16 + distances.index(min(distances))


def contrasting_ink(paper: str) -> int:
    """Return black (16) or white (231), whichever is easier to read on ``#RRGGBB``."""
    red, green, blue = _levels(paper)
    return 16 if 0.299 * red + 0.587 * green + 0.114 * blue > 120 else 231


def _levels(rgb: str) -> tuple[int, int, int]:
    red, green, blue = (int(rgb[i : i + 2], 16) for i in (1, 3, 5))
    return red, green, blue


# ---- blocks of lines -----------------------------------------------------------------------------------------------


def join_blocks(*blocks: str, separator: str = "   ") -> str:
    """Put blocks of lines side by side, with ``separator`` at half their height.

    Blocks that do not fit into :data:`WIDTH` go below the others, after an empty line.
    """
    rows: list[list[str]] = []
    row_width = WIDTH
    for block in blocks:
        row_width += len(separator) + _width(block)
        if row_width > WIDTH:
            rows.append([])
            row_width = _width(block)
        rows[-1].append(block)
    return "\n\n".join(_join_row(row, separator) for row in rows)


def _join_row(blocks: list[str], separator: str) -> str:
    height = max(block.count("\n") + 1 for block in blocks)
    columns: list[list[str]] = []
    for block in blocks:
        if columns:
            columns.append([separator if i == (height - 1) // 2 else " " * len(separator) for i in range(height)])
        lines = block.split("\n")
        lines += [""] * (height - len(lines))
        columns.append([line + " " * (_width(block) - _width(line)) for line in lines])
    return "\n".join(map("".join, zip(*columns, strict=True)))


def _width(block: str) -> int:
    return max(map(len, strip_escape_codes(block).split("\n")))


def join_cells(cells: Sequence[str], columns: int, box_rows: int, box_columns: int) -> str:
    """Arrange cells in rows, with lines between boxes. Each cell ends in a space or a mark; all have the same width."""
    rows = [cells[i : i + columns] for i in range(0, len(cells), columns)]
    width = len(strip_escape_codes(cells[0])) * box_columns
    rule = "+-".join("-" * width for _ in range(columns // box_columns))
    lines = []
    for r, row in enumerate(rows):
        if r and r % box_rows == 0:
            lines.append(rule)
        lines.append("| ".join("".join(row[c : c + box_columns]) for c in range(0, columns, box_columns)))
    return "\n".join(lines)


def half_blocks(pixels: Sequence[Sequence[int]], paint: Painter) -> str:
    """Return an image of pixels 0 and 1 (white) as text. Each character shows two pixels, one above the other."""
    characters = " \N{UPPER HALF BLOCK}\N{LOWER HALF BLOCK}\N{FULL BLOCK}"
    lower_rows = [*pixels[1::2], *([[0] * len(pixels[0])] if len(pixels) % 2 else [])]
    lines = []
    for upper_row, lower_row in zip(pixels[::2], lower_rows, strict=True):
        line = "".join(
            characters[upper_pixel + 2 * lower_pixel]
            for upper_pixel, lower_pixel in zip(upper_row, lower_row, strict=True)
        )
        lines.append(paint(line, 231, 16))
    return "\n".join(lines)
