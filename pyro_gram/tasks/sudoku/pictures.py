"""Boards of digits as text and as pictures, with mistakes marked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pyro_gram.tasks.sudoku.boards import Size, conflicts, geometry
from pyro_gram.tasks.terminal import FILLED_INK, join_blocks, join_cells, mark_mistake, painter

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CLUE_COLOR, FILLED_COLOR, MISTAKE_COLOR = "#000000", "#0072B2", "#C00000"


def find_mistakes(size: Size, clues: Sequence[int], answer: Sequence[int] | None) -> set[int]:
    """Return the cells whose digit is repeated in a row, column or box; in an answer, also blanks and changed clues.

    Arguments are those of :func:`draw_board`.
    """
    mistakes = {cell for _, _, cells in conflicts(clues if answer is None else answer, size) for cell in cells}
    if answer is not None:
        mistakes |= {c for c, digit in enumerate(answer) if not digit or (clues[c] and clues[c] != digit)}
    return mistakes


def render_puzzle(size: Size, clues: Sequence[int], answer: Sequence[int] | None, colour: bool = False) -> str:
    """Return the board of the clues as text and, if there is an answer, its board on the right.

    Arguments are those of :func:`draw_board`.
    """
    boards = [render_board(size, clues, colour=colour)]
    if answer is not None:
        boards.append(render_board(size, clues, answer, colour))
    return join_blocks(*boards, separator="  ->  ")


def render_board(size: Size, clues: Sequence[int], answer: Sequence[int] | None = None, colour: bool = False) -> str:
    """Return a board with its boxes as text: clues bold, other digits blue, mistakes marked.

    Arguments are those of :func:`draw_board`.
    """
    paint, g = painter(colour), geometry(size)
    digits, mistakes = clues if answer is None else answer, find_mistakes(size, clues, answer)
    cells = []
    for cell, digit in enumerate(digits):
        text = str(digit) if digit else "." if answer is None else "?"
        if cell in mistakes:
            cells.append(mark_mistake(text, paint))
        else:
            style = {"bold": True} if clues[cell] else {"foreground": FILLED_INK if digit else None}
            cells.append(paint(text, **style) + " ")
    return join_cells(cells, g.size, g.box_rows, g.box_cols)


def draw_board(axes: Axes, size: Size, clues: Sequence[int], answer: Sequence[int] | None = None) -> None:
    """Draw a board with its boxes: clues bold and black, other digits blue, mistakes red on a tinted cell.

    Args:
        axes: the axes to draw on.
        size: the size of a Sudoku, or the geometry of another board.
        clues: ``size**2`` digits, 0 for a blank.
        answer: ``size**2`` digits, 0 (drawn as ``?``) for a token that is not a digit; None to draw the clues only.
    """
    g = geometry(size)
    size = g.size
    digits, mistakes = clues if answer is None else answer, find_mistakes(g, clues, answer)
    for line in range(size + 1):
        for box, draw in ((g.box_rows, axes.hlines), (g.box_cols, axes.vlines)):
            is_box_edge = line % box == 0
            draw(line, 0, size, colors="#333333" if is_box_edge else "#BBBBBB", linewidth=1.4 if is_box_edge else 0.5)
    cell_points = axes.get_window_extent().height / axes.get_figure().dpi * 72 / size  # type: ignore[union-attr]
    for cell, digit in enumerate(digits):
        row, col = divmod(cell, size)
        if cell in mistakes:
            axes.fill((col, col + 1, col + 1, col), (row, row, row + 1, row + 1), color="#F8DADA", zorder=0)
        if not digit and answer is None:
            continue
        color = MISTAKE_COLOR if cell in mistakes else CLUE_COLOR if clues[cell] else FILLED_COLOR
        axes.text(
            col + 0.5,
            row + 0.52,
            str(digit or "?"),
            ha="center",
            va="center",
            color=color,
            fontsize=max(3.0, 0.55 * cell_points),
            fontweight="bold" if clues[cell] else "normal",
        )
    axes.set_xlim(-0.05, size + 0.05)
    axes.set_ylim(size + 0.05, -0.05)
    axes.set_aspect("equal")
    axes.set_axis_off()
