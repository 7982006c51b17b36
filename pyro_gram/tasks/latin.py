"""Latin squares with blanks: fill a square so that each row and each column holds every digit once.

The file shows what a new constraint problem needs: the relations of its cells (:func:`relations`), a source of inputs
and a notation. Nearly uniform random squares (``jacobson_matthews``) get random blanks, and all completions are listed.
Inputs with many completions are dropped. A symmetry permutes rows, columns and digits, and may swap rows with columns.
No input is symmetric to an input of another split. So augmentation cannot produce a held-out input; as a safeguard, a
pair stays unchanged if its image is held out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from math import isqrt
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pyro_gram.checks import check_range, check_seed
from pyro_gram.errors import ConfigError, InputError
from pyro_gram.registry import TASKS
from pyro_gram.spec import TaskSpec
from pyro_gram.system.text import PuzzleText
from pyro_gram.tasks.advice import suggest_checkpoint
from pyro_gram.tasks.base import PuzzleSet, Task, check_split
from pyro_gram.tasks.board_text import cells_of, lines_of_board, split_boards
from pyro_gram.tasks.held_out import InputSet, held_out_inputs
from pyro_gram.tasks.jacobson_matthews import random_latin_squares
from pyro_gram.tasks.sudoku.boards import make_geometry, solve, symmetry_invariants
from pyro_gram.tasks.sudoku.data import BLANKS, assign_splits
from pyro_gram.tasks.sudoku.pictures import draw_board, render_puzzle
from pyro_gram.tasks.sudoku.sizes import BLANK, FIRST_DIGIT, PADDING, BoardSizes, board_structure
from pyro_gram.tasks.sudoku.text import DIGITS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZES = (3, 9)  # the smallest and the largest size
BATCH = 1000  # squares drawn at once
CELLS = {*DIGITS, *BLANKS}
KEYS = ("square", "board", "puzzle")  # names under which a JSON object may hold a square


@dataclass(frozen=True)
class LatinConfig:
    """Settings of the squares and their number.

    Attributes:
        size: rows of the largest squares, 3 to 9.
        min_size: rows of the smallest squares; 0 for squares of one size. Each size has the same number of inputs.
        min_blanks, max_blanks: the smallest and the largest share of blank cells. The number of blanks is drawn
            uniformly, before inputs are selected by their number of completions.
        max_solutions: inputs with more completions are dropped; all completions are listed.
        train, validation, test: number of inputs in the split, at least one of each size.
        data_seed: seed of inputs and splits; runs with equal seeds can be compared.
    """

    size: int = 6
    min_size: int = 0
    min_blanks: float = 0.4
    max_blanks: float = 0.7
    max_solutions: int = 20
    train: int = 10_000
    validation: int = 128
    test: int = 500
    data_seed: int = 0

    def __post_init__(self) -> None:
        check_range(self, size=SIZES, min_blanks=(0.0, 1.0), max_blanks=(self.min_blanks, 1.0))
        check_range(self, min_size=(SIZES[0] if self.min_size else 0, self.size), max_solutions=(1, 1000))
        num_sizes = self.size - (self.min_size or self.size) + 1
        check_range(self, **dict.fromkeys(("train", "validation", "test"), (num_sizes, float("inf"))))
        check_seed(self.data_seed, "data_seed")

    @property
    def solved_sizes(self) -> range:
        """The sizes of the squares that a model of this task reads."""
        return range(self.min_size or self.size, self.size + 1)


def relations(size: int) -> Tensor:
    """Return which cells stand in the same row, in the same column, and on the same board: bool ``[3, L, L]``."""
    row, column = torch.arange(size**2) // size, torch.arange(size**2) % size
    same_row, same_column = row[:, None] == row, column[:, None] == column
    return torch.stack((same_row, same_column, torch.ones_like(same_row)))


@TASKS.register("latin")
class Latin(Task):
    """Complete a square so that each row and each column holds every digit once."""

    Config = LatinConfig
    size_field = "size"
    difficulty_label = "blank cells"

    def __init__(self, config: LatinConfig, data_dir: str | None = None) -> None:
        self.config = config
        n, smallest = config.size, config.min_size or config.size
        self.boards = BoardSizes([make_geometry(m) for m in range(smallest, n + 1)], first_class=0)
        structure = partial(board_structure, relations_of=relations, sizes=self.boards.sizes, first_class=0, classes=n)
        padding = PADDING if smallest < n else None
        self.max_size = n**2 if smallest < n else None
        self.spec = TaskSpec(n**2, None, n + FIRST_DIGIT, n**2, n, structure=structure, relations=3, padding=padding)

    def violations(self, x: Tensor | None, y: Tensor) -> Tensor:
        """Count the digits missing from rows and columns, tokens that are no digits of the board, and changed clues."""
        assert x is not None
        return self.boards.violations(x, y)

    def difficulty(self, x: Tensor) -> Tensor:
        """Count the blank cells, int64 ``[...]``."""
        return (x == BLANK).sum(-1)

    # ---- data --------------------------------------------------------------------------------------------------

    def split(self, name: str) -> PuzzleSet:
        check_split(name)
        return self._splits[name]

    @cached_property
    def _splits(self) -> dict[str, PuzzleSet]:
        c, sizes, generator = self.config, self.boards.sizes, torch.Generator().manual_seed(self.config.data_seed)
        parts: dict[str, list[PuzzleSet]] = {"test": [], "validation": [], "train": []}
        for i, size in enumerate(sizes):
            counts = {name: (getattr(c, name) + i) // len(sizes) for name in parts}
            puzzles = self._random_puzzles(size, sum(counts.values()) + max(64, counts["test"]), generator)
            assert puzzles.inputs is not None
            keys = symmetry_invariants((puzzles.inputs - BLANK).numpy(), make_geometry(size))
            splits = assign_splits(keys, counts, np.random.default_rng(c.data_seed))
            if splits is None:
                raise ConfigError(
                    f"too few squares of {size}x{size} for {sum(counts.values())} inputs without symmetric ones across "
                    "splits: raise task.min_size, lower task.train, or change task.min_blanks and task.max_blanks"
                )
            for name, index in splits.items():
                parts[name].append(self.boards.pad_puzzles(puzzles.select(torch.from_numpy(index))))
        unions = {name: PuzzleSet.concatenate(part) for name, part in parts.items()}
        return {name: p.select(torch.randperm(len(p), generator=generator)) for name, p in unions.items()}

    def _random_puzzles(self, size: int, count: int, generator: torch.Generator) -> PuzzleSet:
        """Draw up to ``count`` distinct inputs of one size with all completions; fewer if a batch has no new input."""
        c, g, solutions_of = self.config, make_geometry(size), dict[tuple[int, ...], list[tuple[int, ...]]]()
        low, high = (round(share * g.cells) for share in (c.min_blanks, c.max_blanks))
        previous_count = -1
        while previous_count < len(solutions_of) < count:
            previous_count = len(solutions_of)
            squares = random_latin_squares(size, BATCH, generator)
            num_blanks = torch.randint(low, high + 1, (BATCH, 1), generator=generator)
            rank = torch.rand(squares.shape, generator=generator).argsort(-1)
            for board in map(tuple, torch.where(rank < num_blanks, 0, squares).tolist()):
                if board not in solutions_of and len(solutions_of) < count:
                    solutions = solve(board, g, c.max_solutions + 1)
                    if len(solutions) <= c.max_solutions:
                        solutions_of[board] = solutions
        inputs = torch.tensor(list(solutions_of)).view(-1, g.cells) + BLANK
        rows = torch.tensor([row for solutions in solutions_of.values() for row in solutions]).view(-1, g.cells)
        return PuzzleSet.from_counts(inputs, rows - 1, torch.tensor([*map(len, solutions_of.values())]).long())

    def augment(self, x: Tensor | None, y: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Permute the rows, columns and digits of each pair, and perhaps swap rows and columns."""
        assert x is not None
        return self.boards.augment(x, y, self._held_out, generator)

    @cached_property
    def _held_out(self) -> InputSet:
        return held_out_inputs(self)

    # ---- text and picture --------------------------------------------------------------------------------------

    def parse(self, text: str) -> Tensor:
        """Parse a square: a line for each row, or all rows in one line, joined by ``/`` or by nothing."""
        rows = rows_of_square(lines_of_square(text))
        cells = [cell for row in rows for cell in row]
        unknown_cell = next((cell for cell in cells if cell not in CELLS), None)
        if unknown_cell is not None:
            raise InputError(f"{unknown_cell[:20]!r} is neither a digit nor a blank: write digits, and . for a blank")
        size = isqrt(len(cells))
        if size**2 != len(cells) or any(len(row) != size for row in rows if len(rows) > 1):
            raise InputError(f"{len(rows)} row(s) of together {len(cells)} cells: give n rows of n cells")
        if size not in self.boards.sizes:
            sizes = f"sizes {self.boards.sizes[0]} to {self.config.size}"
            raise InputError(f"the square is {size}x{size}; this task has {sizes}: {suggest_checkpoint(self, size)}")
        return self.boards.to_input([0 if cell in BLANKS else int(cell) for cell in cells])

    def puzzle_texts(self, text: str) -> list[PuzzleText]:
        return split_squares(text)

    def count_solutions(self, x: Tensor) -> int | None:
        """Count the completions; None if there are very many."""
        return self.boards.count_solutions(x)

    def format_input(self, x: Tensor | None) -> str:
        assert x is not None
        return _text(self.boards.clues(x), ".")

    def format_solution(self, x: Tensor | None, y: Tensor) -> str:
        """Return the rows, joined by ``/``; ``?`` for a token that is no digit of the square."""
        assert x is not None
        return _text(self.boards.digits(x, y), "?")

    def plot(self, axes: Axes, x: Tensor | None, y: Tensor | None = None) -> None:
        assert x is not None
        draw_board(axes, *self.boards.picture(x, y))

    def render(self, x: Tensor | None, y: Tensor | None = None, colour: bool = False) -> str:
        """Return the square of the input and, if given, the square of the answer on its right."""
        assert x is not None
        return render_puzzle(*self.boards.picture(x, y), colour)


def lines_of_square(text: str) -> list[str]:
    """Return the lines of a square: one for each row, or a single one with all cells, whose rows ``/`` may join.

    Raises:
        InputError: a JSON value is no square.
    """
    return lines_of_board(text, KEYS, _row_length, split_squares)


def rows_of_square(lines: list[str]) -> list[list[str]]:
    """Return the cells of each row; a single row if all cells are in one line without ``/``."""
    return [cells_of(row) or [row] for row in (lines[0].split("/") if len(lines) == 1 else lines)]


def split_squares(text: str) -> list[PuzzleText]:
    """Split a text into squares; errors are left to :func:`lines_of_square`."""
    return split_boards(text, _row_length)


def _row_length(line: str) -> int:
    """Return the number of cells if the line is a row of a square, otherwise 0."""
    cells = [] if "/" in line else cells_of(line) or []
    return len(cells) if SIZES[0] <= len(cells) <= SIZES[1] and set(cells) <= CELLS else 0


def _text(digits: list[int], blank: str) -> str:
    size = isqrt(len(digits))
    return "/".join("".join(str(d or blank) for d in digits[i : i + size]) for i in range(0, len(digits), size))
