"""Sudoku of size 4, 6 and 9: complete a board (Section 4.1 and Appendix B.2 of the paper: Sudoku-Extreme).

By default, puzzles of size 4 and 6 are generated. Half of them have several solutions, which are all listed. Puzzles of
size 9 come from Sudoku-Extreme and have one solution. Puzzles of different splits are never symmetric to each other, so
augmentation (by the full group of symmetries) cannot produce a held-out puzzle. As a safeguard, a pair stays unchanged
if its image is held out. Boards of several sizes share one model, which sees the rows, columns and boxes of each board
(``min_size``, with ``--model.mixer relations``); each size has its own puzzles.
"""

from __future__ import annotations

from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pyro_gram.registry import TASKS
from pyro_gram.spec import TaskSpec
from pyro_gram.system.download import data_folder
from pyro_gram.system.text import PuzzleText
from pyro_gram.tasks.advice import suggest_checkpoint
from pyro_gram.tasks.base import PuzzleSet, Task, check_split
from pyro_gram.tasks.batches import generator_for
from pyro_gram.tasks.held_out import InputSet, held_out_inputs
from pyro_gram.tasks.sudoku.boards import geometry
from pyro_gram.tasks.sudoku.config import SudokuConfig
from pyro_gram.tasks.sudoku.data import RatedPuzzles
from pyro_gram.tasks.sudoku.pictures import draw_board, render_puzzle
from pyro_gram.tasks.sudoku.sizes import BLANK, FIRST_DIGIT, PADDING, BoardSizes, board_structure
from pyro_gram.tasks.sudoku.splits import Splits
from pyro_gram.tasks.sudoku.text import parse_puzzle, split_puzzles

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def relations(size: int) -> Tensor:
    """Return which cells share a row, a column, a box, and the board: bool ``[4, L, L]``."""
    units = torch.from_numpy(geometry(size).units).view(3, size, size)
    is_member = torch.zeros(3, size, size**2).scatter_(-1, units, 1.0)  # [kind, unit, cell]
    same_unit = (is_member.transpose(-1, -2) @ is_member).bool()
    return torch.cat((same_unit, torch.ones_like(same_unit[:1])))


@TASKS.register("sudoku")
class Sudoku(Task):
    """Fill a board so that each row, column and box holds every digit once."""

    Config = SudokuConfig
    size_field = "size"
    difficulty_label = "blank cells"

    def __init__(self, config: SudokuConfig, data_dir: str | None = None) -> None:
        self.config, sizes = config, config.sizes
        has_one_size = len(sizes) == 1
        self.paper_name = "sudoku" if config.uses_files and has_one_size else ""
        self.boards = BoardSizes([geometry(size) for size in sizes], FIRST_DIGIT)
        cells, tokens = config.size**2, config.size + FIRST_DIGIT
        structure = partial(
            board_structure, relations_of=relations, sizes=sizes, first_class=FIRST_DIGIT, classes=tokens
        )
        padding = None if has_one_size else PADDING
        self.spec = TaskSpec(cells, None, tokens, cells, tokens, structure=structure, relations=4, padding=padding)
        self.max_size = None if has_one_size else cells
        if config.uses_files:
            data_folder(data_dir)  # report a wrong folder now, not when the data is needed
        self._splits = [Splits(config.of_size(size), data_dir) for size in sizes]

    # ---- right answers -----------------------------------------------------------------------------------------

    def violations(self, x: Tensor | None, y: Tensor) -> Tensor:
        """Count the digits missing from rows, columns and boxes, tokens that are not digits, and changed clues."""
        assert x is not None
        return self.boards.violations(x, y)

    def difficulty(self, x: Tensor) -> Tensor:
        """Count the blank cells, int64 ``[...]``."""
        return (x == BLANK).sum(-1)

    # ---- data --------------------------------------------------------------------------------------------------

    def split(self, name: str) -> PuzzleSet:
        check_split(name)
        parts = [self._to_puzzle_set(splits.puzzles[name]) for splits in self._splits]
        if len(parts) == 1:
            return parts[0]
        puzzles = PuzzleSet.concatenate(parts)
        return puzzles.select(
            torch.randperm(len(puzzles), generator=generator_for(self.config.data_seed, len(puzzles)))
        )

    def _to_puzzle_set(self, puzzles: RatedPuzzles) -> PuzzleSet:
        inputs = torch.from_numpy(puzzles.boards.astype(np.int64)) + BLANK
        solutions = torch.from_numpy(puzzles.solutions.astype(np.int64)) + BLANK
        return self.boards.pad_puzzles(PuzzleSet(inputs, solutions, torch.from_numpy(puzzles.offsets)))

    def ratings(self, split: str) -> Tensor | None:
        """Return the rating of each puzzle of a split, ``[N]``; None if its file has no ratings, or with several sizes.
        In Sudoku-Extreme a rating is the number of backtracks of a solver."""
        check_split(split)
        ratings = self._splits[0].puzzles[split].ratings if len(self._splits) == 1 else None
        return None if ratings is None else torch.from_numpy(ratings)

    def provenance(self) -> dict[str, str]:
        """Return name and SHA-256 of the training and the test file; empty before they are read, or without files."""
        return {split: source for splits in self._splits for split, source in splits.sources.items()}

    def augment(self, x: Tensor | None, y: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Apply a random symmetry to each pair; a pair whose image is held out stays unchanged."""
        assert x is not None
        return self.boards.augment(x, y, self._held_out, generator)

    @cached_property
    def _held_out(self) -> InputSet:
        return held_out_inputs(self)

    # ---- text and picture --------------------------------------------------------------------------------------

    def parse(self, text: str) -> Tensor:
        """Parse a board in one line or row by row (see ``tasks.sudoku.text``)."""
        return self.boards.to_input(parse_puzzle(text, self.boards.sizes, partial(suggest_checkpoint, self)))

    def puzzle_texts(self, text: str) -> list[PuzzleText]:
        return split_puzzles(text)

    def count_solutions(self, x: Tensor) -> int | None:
        """Count the solutions; None if there are very many."""
        return self.boards.count_solutions(x)

    def format_input(self, x: Tensor | None) -> str:
        assert x is not None
        return "".join(str(digit or ".") for digit in self.boards.clues(x))

    def format_solution(self, x: Tensor | None, y: Tensor) -> str:
        """Return the digits in one line; ``?`` for a token that is not a digit."""
        assert x is not None
        return "".join(str(digit or "?") for digit in self.boards.digits(x, y))

    def plot(self, axes: Axes, x: Tensor | None, y: Tensor | None = None) -> None:
        assert x is not None
        draw_board(axes, *self.boards.picture(x, y))

    def render(self, x: Tensor | None, y: Tensor | None = None, colour: bool = False) -> str:
        """Return the board of the clues and, if given, the board of the answer on its right."""
        assert x is not None
        return render_puzzle(*self.boards.picture(x, y), colour)
