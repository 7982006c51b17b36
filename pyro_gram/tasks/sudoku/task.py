"""Sudoku of size 4, 6 and 9: complete a board (Section 4.1 and Appendix B.2 of the paper: Sudoku-Extreme).

By default, puzzles of size 4 and 6 are generated. Half of them have several solutions, which are all listed. Puzzles of
size 9 come from Sudoku-Extreme and have one solution. Puzzles of different splits are never symmetric to each other, so
augmentation (by the full group of symmetries) cannot produce a held-out puzzle. As a safeguard, a pair stays unchanged
if its image is held out.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pyro_gram.checks import AT_LEAST_1, FRACTION, check_choice, check_range, check_seed
from pyro_gram.errors import ConfigError, InputError
from pyro_gram.registry import TASKS
from pyro_gram.spec import TaskSpec
from pyro_gram.system.download import data_folder
from pyro_gram.system.text import PuzzleText
from pyro_gram.tasks.advice import suggest_checkpoint
from pyro_gram.tasks.base import PuzzleSet, Task, check_split
from pyro_gram.tasks.batches import derive_seed
from pyro_gram.tasks.held_out import InputSet, add_new_classes, replace_unless_held_out
from pyro_gram.tasks.sudoku.boards import (
    SIZES,
    conflicts,
    geometry,
    missing_digits,
    random_symmetries,
    solve,
    symmetry_invariants,
    transform,
)
from pyro_gram.tasks.sudoku.data import (
    RatedPuzzles,
    assign_splits,
    digest,
    exclude_symmetric,
    locate_file,
    random_puzzles,
    read_csv,
)
from pyro_gram.tasks.sudoku.pictures import draw_board, render_puzzle
from pyro_gram.tasks.sudoku.text import parse_puzzle, split_puzzles

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLANK, FIRST_DIGIT = 1, 2  # tokens as in the paper: 0 padding (not used here), 1 a blank, 2 the digit 1, ...
CLUES = {4: (4, 10), 6: (9, 20), 9: (28, 45)}
DEFAULT_TRAIN = {4: 7000, 6: 10_000, 9: 1000}
DEFAULT_TEST = {4: 500, 6: 500, 9: 1000}
MAX_SOLUTIONS_COUNTED = 1000  # if a board has more solutions, they are not counted
FRESH_DRAWS = 1000  # the least number of puzzles that fresh_inputs draws at once
SOURCES = ("auto", "generated", "extreme")


@dataclass(frozen=True)
class SudokuConfig:
    """Settings of the boards, their source and their number.

    Attributes:
        size: rows of a board: 4 (boxes of 2x2), 6 (boxes of 2 rows and 3 columns) or 9.
        source: ``generated``, ``extreme`` (the files of Sudoku-Extreme, 9x9 only), or ``auto``: extreme for size 9,
            generated for the others.
        train, test: number of puzzles in the split. 0: all puzzles of the file. -1: the default, which is 7000 for
            training and 500 for testing at size 4, 10000 and 500 at size 6, 1000 and 1000 at size 9; if the file has
            fewer puzzles, all of them.
        validation: number of puzzles to validate on, taken from the training file if there is one. Puzzles of the
            training file that are symmetric to a test puzzle are not used.
        min_clues, max_clues: the fewest and most clues of generated puzzles. 0: the default, which is 4 to 10 for
            size 4, 9 to 20 for size 6, and 28 to 45 for size 9.
        unique: share of generated puzzles that have exactly one solution.
        max_solutions: the most solutions of the other generated puzzles; all solutions are listed.
        train_file, test_file: CSV files in the data folder (or paths), plain or .gz, to read instead of train.csv and
            test.csv (the full set) or sudoku-extreme-1k_train.csv and sudoku-extreme-1k_test_hard.csv.
        data_seed: seed of puzzles and splits; runs with equal seeds can be compared.
    """

    size: int = 4
    source: str = "auto"
    train: int = -1
    validation: int = 128
    test: int = -1
    min_clues: int = 0
    max_clues: int = 0
    unique: float = 0.5
    max_solutions: int = 20
    train_file: str = ""
    test_file: str = ""
    data_seed: int = 0

    def __post_init__(self) -> None:
        check_size(self.size)
        check_choice("source", self.source, SOURCES)
        if self.source == "extreme" and self.size != 9:
            raise ConfigError(f"source extreme has boards of 9x9 only: set size = 9, not {self.size}")
        cells = self.size**2
        check_range(
            self,
            train=(-1, float("inf")),
            validation=AT_LEAST_1,
            test=(-1, float("inf")),
            min_clues=(0, cells - 1),
            max_clues=(0, cells - 1),
            unique=FRACTION,
            max_solutions=(2, 1000),
        )
        low, high = self.clues
        if low > high:
            raise ConfigError(f"min_clues must be at most max_clues, but {low} is more than {high}")
        if not self.uses_files:
            for name in ("train", "test"):
                if getattr(self, name) == 0:
                    raise ConfigError(f"{name} must be at least 1 for generated puzzles (or -1: the default number)")
        check_seed(self.data_seed, "data_seed")

    @property
    def uses_files(self) -> bool:
        """True if the puzzles come from files."""
        return self.source == "extreme" or (self.source == "auto" and self.size == 9)

    @property
    def clues(self) -> tuple[int, int]:
        """The fewest and the most clues of generated puzzles."""
        low, high = CLUES[self.size]
        return self.min_clues or low, self.max_clues or high


def check_size(size: int) -> None:
    """Raise ConfigError unless ``size`` is 4, 6 or 9."""
    if size not in SIZES:
        raise ConfigError(f"size must be 4, 6 or 9, not {size}")


@TASKS.register("sudoku")
class Sudoku(Task):
    """Fill a board so that each row, column and box holds every digit once."""

    Config = SudokuConfig
    difficulty_label = "blank cells"

    def __init__(self, config: SudokuConfig, data_dir: str | None = None) -> None:
        self.config = config
        self.data_dir = data_dir
        self._sources: dict[str, str] = {}
        self.size, self.cells = config.size, config.size**2
        self.paper_name = "sudoku" if config.uses_files else ""
        self.spec = TaskSpec(self.cells, None, self.size + FIRST_DIGIT, self.cells, self.size + FIRST_DIGIT)
        if config.uses_files:
            data_folder(data_dir)  # report a wrong folder now, not when the data is needed

    # ---- right answers -----------------------------------------------------------------------------------------

    def violations(self, x: Tensor | None, y: Tensor) -> Tensor:
        """Count the digits missing from rows, columns and boxes, tokens that are not digits, and changed clues."""
        assert x is not None
        num_missing = missing_digits(y - FIRST_DIGIT, self.size)
        return num_missing + (y < FIRST_DIGIT).sum(-1) + ((x >= FIRST_DIGIT) & (x != y)).sum(-1)

    def difficulty(self, x: Tensor) -> Tensor:
        """Count the blank cells, int64 ``[...]``."""
        return (x < FIRST_DIGIT).sum(-1)

    # ---- data --------------------------------------------------------------------------------------------------

    def split(self, name: str) -> PuzzleSet:
        check_split(name)
        return self._to_puzzle_set(self._puzzles[name])

    def _to_puzzle_set(self, puzzles: RatedPuzzles) -> PuzzleSet:
        inputs = torch.from_numpy(puzzles.boards.astype(np.int64)) + BLANK
        solutions = torch.from_numpy(puzzles.solutions.astype(np.int64)) + BLANK
        return PuzzleSet(inputs, solutions, torch.from_numpy(puzzles.offsets))

    def ratings(self, split: str) -> Tensor | None:
        """Return the rating of each puzzle of a split, ``[N]``; None if its file has no ratings. In Sudoku-Extreme a
        rating is the number of backtracks of a solver."""
        check_split(split)
        ratings = self._puzzles[split].ratings
        return None if ratings is None else torch.from_numpy(ratings)

    def provenance(self) -> dict[str, str]:
        """Return name and SHA-256 of the training and the test file; empty before they are read, or without files."""
        return dict(self._sources)

    @cached_property
    def _puzzles(self) -> dict[str, RatedPuzzles]:
        return self._read_splits() if self.config.uses_files else self._generate_splits()

    def _generate_splits(self) -> dict[str, RatedPuzzles]:
        c = self.config
        test = DEFAULT_TEST[self.size] if c.test < 0 else c.test
        train = DEFAULT_TRAIN[self.size] if c.train < 0 else c.train
        sizes = {"test": test, "validation": c.validation, "train": train}
        count = sum(sizes.values()) + max(64, test)
        puzzles = random_puzzles(self.size, count, c.clues, c.unique, c.max_solutions, c.data_seed)
        keys = symmetry_invariants(puzzles.boards, self.size)
        splits = assign_splits(keys, sizes, np.random.default_rng(c.data_seed))
        if splits is None:
            raise ConfigError(
                f"too few {self.size}x{self.size} puzzles for {sum(sizes.values())} inputs without symmetric ones "
                "across splits: lower task.train or widen task.min_clues and task.max_clues"
            )
        return {split: puzzles.take(index) for split, index in splits.items()}

    def fresh_inputs(self, count: int, data_seed: int) -> PuzzleSet:
        """Generate puzzles. None of them is symmetric to another one or to a puzzle of a split."""
        c = self.config
        if c.uses_files:
            return super().fresh_inputs(count, data_seed)
        classes: set[Hashable] = set()
        for puzzles in self._puzzles.values():
            classes.update(symmetry_invariants(puzzles.boards, self.size).tolist())
        parts: list[PuzzleSet] = []
        while sum(map(len, parts)) < count:
            seed = derive_seed(data_seed, len(parts))
            batch = random_puzzles(self.size, max(FRESH_DRAWS, count), c.clues, c.unique, c.max_solutions, seed)
            new_indices = add_new_classes(classes, symmetry_invariants(batch.boards, self.size).tolist())
            if not new_indices:
                raise ConfigError(
                    f"found only {sum(map(len, parts))} puzzles of {self.size}x{self.size} that are symmetric to no "
                    "puzzle of a split: ask for fewer"
                )
            parts.append(self._to_puzzle_set(batch.take(np.array(new_indices))))
        return PuzzleSet.concatenate(parts).subset(count)

    def _read_splits(self) -> dict[str, RatedPuzzles]:
        c = self.config
        rng = np.random.default_rng(c.data_seed)
        paths = {
            "train": locate_file("train.csv", c.train_file, self.data_dir),
            "test": locate_file("test.csv", c.test_file, self.data_dir),
        }
        test, train = (read_csv(paths[split], self.size) for split in ("test", "train"))
        self._sources = {split: f"{path.name} {digest(path)}" for split, path in paths.items()}
        number = _split_size("test", c.test, DEFAULT_TEST[9], len(test), f"{paths['test']} holds")
        test = test.take(rng.permutation(len(test))[:number])
        order = rng.permutation(len(train))
        held_out = symmetry_invariants(test.boards, self.size)
        index = exclude_symmetric(train.boards, order, held_out, c.validation + 1, self.size)
        if len(index) <= c.validation:
            raise ConfigError(
                f"validation = {c.validation}, but without images of test puzzles, {paths['train']} holds only "
                f"{len(index)} puzzles: lower it, or take other files or a smaller test"
            )
        index = index[: c.validation]
        validation, rest = train.take(index), order[~np.isin(order, index)]
        held_out = np.concatenate((held_out, symmetry_invariants(validation.boards, self.size)))
        count = len(rest) if c.train == 0 else DEFAULT_TRAIN[9] if c.train < 0 else c.train
        index = exclude_symmetric(train.boards, rest, held_out, count, self.size)
        reason = f"besides validation, and without images of held-out puzzles, {paths['train']} holds"
        number = _split_size("train", c.train, DEFAULT_TRAIN[9], len(index), reason)
        return {"train": train.take(index[:number]), "validation": validation, "test": test}

    def augment(self, x: Tensor | None, y: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Apply a random symmetry to each pair; a pair whose image is held out stays unchanged."""
        assert x is not None
        flat_x, flat_y = x.reshape(-1, self.cells), y.reshape(-1, self.cells)
        cells, digits = random_symmetries(len(flat_y), self.size, generator)
        image_x, image_y = (transform(board, cells, digits, FIRST_DIGIT) for board in (flat_x, flat_y))
        new_x, new_y = replace_unless_held_out(self._held_out, flat_x, flat_y, image_x, image_y)
        return new_x.reshape(x.shape), new_y.reshape(y.shape)

    @cached_property
    def _held_out(self) -> InputSet:
        boards = np.concatenate([self._puzzles[split].boards for split in ("validation", "test")])
        return InputSet(torch.from_numpy(boards.astype(np.int64)) + BLANK, self.spec.input_vocabulary)

    # ---- text and picture --------------------------------------------------------------------------------------

    def parse(self, text: str) -> Tensor:
        """Parse a board in one line or row by row (see ``tasks.sudoku.text``)."""
        board = parse_puzzle(text, self.size, partial(suggest_checkpoint, self, "size"))
        for unit, digit, _ in conflicts(board, self.size):
            unit_name = geometry(self.size).unit_name(unit)
            raise InputError(f"the clues contradict each other: {unit_name} has {digit} twice")
        if not solve(board, self.size, limit=1):
            raise InputError("the puzzle has no solution (checked exactly)")
        return torch.tensor(board) + BLANK

    def puzzle_texts(self, text: str) -> list[PuzzleText]:
        return split_puzzles(text)

    def count_solutions(self, x: Tensor) -> int | None:
        """Count the solutions; None for more than ``MAX_SOLUTIONS_COUNTED``."""
        count = len(solve((x - BLANK).tolist(), self.size, MAX_SOLUTIONS_COUNTED + 1))
        return count if count <= MAX_SOLUTIONS_COUNTED else None

    def format_input(self, x: Tensor | None) -> str:
        assert x is not None
        return "".join("." if token < FIRST_DIGIT else str(token - BLANK) for token in x.tolist())

    def format_solution(self, x: Tensor | None, y: Tensor) -> str:
        """Return the digits in one line; ``?`` for a token that is not a digit."""
        return "".join("?" if token < FIRST_DIGIT else str(token - BLANK) for token in y.tolist())

    def plot(self, axes: Axes, x: Tensor | None, y: Tensor | None = None) -> None:
        draw_board(axes, self.size, *self._digits(x, y))

    def render(self, x: Tensor | None, y: Tensor | None = None, colour: bool = False) -> str:
        """Return the board of the clues and, if given, the board of the answer on its right."""
        return render_puzzle(self.size, *self._digits(x, y), colour)

    def _digits(self, x: Tensor | None, y: Tensor | None) -> tuple[list[int], list[int] | None]:
        """Return the clues and the answer as digits; 0 is a blank, or a token that is not a digit."""
        assert x is not None
        clues = (x - BLANK).clamp(min=0).tolist()
        return clues, None if y is None else (y - BLANK).clamp(min=0).tolist()


def _split_size(split: str, num_requested: int, default: int, num_available: int, reason: str) -> int:
    """Return how many puzzles of a file a split gets. Raises ConfigError if more are requested than there are."""
    if not num_available:
        raise ConfigError(f"{reason} no puzzles that could be the {split} split: take other files, or hold out fewer")
    if num_requested > num_available:
        raise ConfigError(
            f"{split} = {num_requested}, but {reason} only {num_available} puzzles: lower it, or set it to 0 for all"
        )
    return min(default, num_available) if num_requested < 0 else num_requested or num_available
