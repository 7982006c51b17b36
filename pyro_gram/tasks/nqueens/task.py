"""N-Queens completion (Section 4.2 and Appendix B.2 of the paper): complete a board with few queens to n queens.

An input is a solution with all but a few queens removed; each distinct input is listed once, with all completions. By
default the inputs are split 85:15 at random, as in the paper. Nearly every held-out input is then the rotation or
reflection of a training input, and its completions are also answers of training inputs. The augmentation by the eight
symmetries never produces a held-out input. With ``split_by = "orbit"`` whole orbits of solutions (a solution with
all its images) are held out, and no completion of a test input was ever an answer in training.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pyro_gram.checks import AT_LEAST_0, AT_LEAST_1, check_choice, check_range, check_seed
from pyro_gram.errors import ConfigError, InputError
from pyro_gram.registry import TASKS
from pyro_gram.spec import TaskSpec
from pyro_gram.system.text import PuzzleText
from pyro_gram.tasks.advice import suggest_checkpoint
from pyro_gram.tasks.base import SPLITS, PuzzleSet, Task, check_split
from pyro_gram.tasks.held_out import InputSet, replace_unless_held_out
from pyro_gram.tasks.nqueens.boards import (
    all_solutions,
    board_lines,
    board_symmetries,
    completions,
    one_completion,
    orbit_numbers,
    random_solutions,
)
from pyro_gram.tasks.nqueens.text import parse_queens, split_queens
from pyro_gram.tasks.terminal import WIDTH, mark_mistake, nearest_colour, painter

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_ENUMERATED_SIZE = 12  # 12 queens have 14,200 solutions; inputs of larger boards are listed with one solution
TRAIN_SHARE = 0.85
TEST_ORBIT_SHARE = 0.15  # share of the orbits in the test split; validation has half as many
EMPTY, QUEEN = 1, 2  # tokens of the cell layout; 0 is the paper's padding
INPUT_COLOR, ADDED_COLOR, MISTAKE_COLOR = "#222222", "#0072B2", "#C00000"
SQUARE_COLORS = ("#EEEEEE", "#D0D0D0")  # in a terminal


@dataclass(frozen=True)
class NQueensConfig:
    """Settings of the boards and their layout as tokens.

    Attributes:
        size: n, the number of rows. Up to n = 12, every solution of every input is listed. For larger n, one solution
            is listed, and coverage is not measured.
        min_queens, max_queens: fewest and most queens of an input (the paper removes 5 to 7 of 8, or 7 to 9 of 10).
        split_by: ``input``: the inputs are split 85:15, as in the paper. ``orbit``: the solutions are split, each with
            its images (n from 7 to 12), and an input whose completions lie in several splits is left out.
        layout: ``row``: one token for each row, 0 (blank) or 1 + column; answers are columns. ``cell`` (the paper's):
            one token for each square, 1 (empty) or 2 (queen).
        validation: number of validation inputs, taken from the training part (85 %); with ``orbit``, at most
            this many inputs are taken from the validation orbits.
        solutions: number of random solutions to draw when there are too many to enumerate (n > 12).
        data_seed: seed of the split; runs with equal seeds can be compared.
    """

    size: int = 8
    min_queens: int = 1
    max_queens: int = 3
    split_by: str = "input"
    layout: str = "row"
    validation: int = 128
    solutions: int = 5000
    data_seed: int = 0

    def __post_init__(self) -> None:
        check_range(self, size=(4, 64), min_queens=AT_LEAST_0, validation=AT_LEAST_1, solutions=(100, 1_000_000))
        check_range(self, max_queens=(self.min_queens, self.size))
        check_choice("layout", self.layout, ("row", "cell"))
        check_choice("split_by", self.split_by, ("input", "orbit"))
        if self.split_by == "orbit" and self.size > MAX_ENUMERATED_SIZE:
            raise ConfigError(
                f"split_by = orbit needs every solution, known up to size = {MAX_ENUMERATED_SIZE}, not {self.size}: "
                "lower size, or set split_by = input"
            )
        check_seed(self.data_seed, "data_seed")


@TASKS.register("nqueens")
class NQueens(Task):
    """Complete a board to n queens, none of which attacks another."""

    Config = NQueensConfig
    violation_name = "conflict"
    difficulty_label = "queens missing"

    def __init__(self, config: NQueensConfig, data_dir: str | None = None) -> None:
        self.config = config
        n = self.n = config.size
        self.paper_name = f"nqueens{n}" if config.split_by == "input" else ""  # the paper has no other split
        if config.layout == "row":
            self.spec = TaskSpec(n, None, n + 1, n, n)
        else:
            self.spec = TaskSpec(n * n, None, 3, n * n, 3)
        self._lines = board_lines(n)
        self._symmetries = board_symmetries(n)

    # ---- layouts -----------------------------------------------------------------------------------------------

    def encode(self, board: Tensor) -> Tensor:
        """Convert queens, bool ``[..., n, n]`` with at most one in each row, to input tokens."""
        if self.config.layout == "cell":
            return board.flatten(-2).long() + EMPTY
        return torch.where(board.any(-1), board.long().argmax(-1) + 1, 0)

    def encode_answer(self, columns: Tensor) -> Tensor:
        """Convert the column of each row's queen, int64 ``[..., n]``, to output tokens."""
        if self.config.layout == "cell":
            return torch.nn.functional.one_hot(columns, self.n).flatten(-2) + EMPTY
        return columns

    def board(self, x: Tensor) -> Tensor:
        """Return the queens of an input: bool ``[..., n, n]``."""
        if self.config.layout == "cell":
            return (x == QUEEN).unflatten(-1, (self.n, self.n))
        return torch.arange(1, self.n + 1) == x[..., None]

    def answer_board(self, y: Tensor) -> Tensor:
        """Return the queens of an answer: bool ``[..., n, n]``."""
        if self.config.layout == "cell":
            return (y == QUEEN).unflatten(-1, (self.n, self.n))
        return torch.arange(self.n) == y[..., None]

    # ---- right answers -----------------------------------------------------------------------------------------

    def violations(self, x: Tensor | None, y: Tensor) -> Tensor:
        """Count pairs of queens on one line, queens of x that y lacks, and queens missing from a total of n."""
        assert x is not None
        queens = self.answer_board(y)
        counts = queens.flatten(-2).float() @ self._lines.T  # [..., lines]
        attacks = (counts * (counts - 1) / 2).sum(-1).long()
        num_removed = (self.board(x) & ~queens).flatten(-2).sum(-1)
        num_missing = (self.n - queens.flatten(-2).sum(-1)).clamp(min=0)
        return attacks + num_removed + num_missing

    def difficulty(self, x: Tensor) -> Tensor:
        """Count the queens to place, int64 ``[...]``."""
        return self.n - self.board(x).flatten(-2).sum(-1)

    # ---- data --------------------------------------------------------------------------------------------------

    def split(self, name: str) -> PuzzleSet:
        check_split(name)
        return self._splits[name]

    @cached_property
    def _splits(self) -> dict[str, PuzzleSet]:
        c = self.config
        rng = np.random.default_rng(c.data_seed)
        if c.size <= MAX_ENUMERATED_SIZE:
            puzzles = completions(all_solutions(c.size), c.min_queens, c.max_queens)
        else:
            solutions = random_solutions(rng, c.size, c.solutions)
            puzzles = one_completion(solutions, rng, c.min_queens, c.max_queens)
        split = self._split_by_orbit if c.split_by == "orbit" else self._split_by_input
        return {name: self._to_layout(part) for name, part in split(puzzles, rng).items()}

    def _split_by_input(self, puzzles: PuzzleSet, rng: np.random.Generator) -> dict[str, PuzzleSet]:
        validation = self.config.validation
        order = torch.from_numpy(rng.permutation(len(puzzles)))
        train = int(TRAIN_SHARE * len(puzzles))
        if validation >= train:
            raise ConfigError(f"validation = {validation} leaves nothing of the {train} training inputs: lower it")
        bounds = {"validation": (0, validation), "train": (validation, train), "test": (train, len(puzzles))}
        return {name: puzzles.select(order[a:b]) for name, (a, b) in bounds.items()}

    def _split_by_orbit(self, puzzles: PuzzleSet, rng: np.random.Generator) -> dict[str, PuzzleSet]:
        """Divide the orbits among the splits. A split has the inputs whose completions all lie in its orbits."""
        orbit = orbit_numbers(puzzles.solutions)
        count = int(orbit.max()) + 1
        test = max(1, round(TEST_ORBIT_SHARE * count))
        validation = max(1, test // 2)
        if test + validation >= count:
            raise ConfigError(
                f"{self.n} queens have {count} orbit(s) of solutions, too few for split_by = orbit: "
                "set size = 7 or larger, or split_by = input"
            )
        split_of_orbit = torch.full((count,), SPLITS.index("train"))
        order = torch.from_numpy(rng.permutation(count))
        split_of_orbit[order[:test]] = SPLITS.index("test")
        split_of_orbit[order[test : test + validation]] = SPLITS.index("validation")
        input_of_solution = torch.arange(len(puzzles)).repeat_interleave(puzzles.num_solutions)
        splits = {}
        for i, name in enumerate(SPLITS):
            is_in_split = (split_of_orbit[orbit] == i).long()
            counts = torch.zeros(len(puzzles), dtype=torch.long).index_add_(0, input_of_solution, is_in_split)
            index = (counts == puzzles.num_solutions).nonzero().flatten()
            index = index[torch.from_numpy(rng.permutation(len(index)))]
            splits[name] = puzzles.select(index[: self.config.validation] if name == "validation" else index)
        return splits

    def _to_layout(self, puzzles: PuzzleSet) -> PuzzleSet:
        """Convert inputs and solutions from lists of columns to the tokens of the task's layout."""
        assert puzzles.inputs is not None
        board = torch.arange(1, self.n + 1) == puzzles.inputs[..., None]
        return replace(puzzles, inputs=self.encode(board), solutions=self.encode_answer(puzzles.solutions))

    @cached_property
    def _held_out(self) -> InputSet:
        held_out = PuzzleSet.concatenate([self._splits[name] for name in ("validation", "test")])
        assert held_out.inputs is not None
        return InputSet(held_out.inputs, self.spec.input_vocabulary)

    def augment(self, x: Tensor | None, y: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Apply a random symmetry of the board to each pair; a pair whose image is held out stays unchanged."""
        assert x is not None
        cells = self._symmetries[torch.randint(8, (len(y),), generator=generator)]  # [B, n * n]
        image_x = self.board(x).flatten(-2).gather(-1, cells).unflatten(-1, (self.n, self.n))
        image_y = self.answer_board(y).flatten(-2).gather(-1, cells).unflatten(-1, (self.n, self.n))
        images = self.encode(image_x), self.encode_answer(image_y.long().argmax(-1))
        return replace_unless_held_out(self._held_out, x, y, *images)

    # ---- text and picture --------------------------------------------------------------------------------------

    def parse(self, text: str) -> Tensor:
        """Parse a board given as rows of squares or as a list of columns (see ``tasks.nqueens.text``)."""
        n = self.n
        board = torch.zeros(n, n, dtype=torch.bool)
        for row, columns in enumerate(parse_queens(text, n, self._check_size)):
            board[row, columns] = True
        queens = board.nonzero().tolist()
        for (r1, c1), (r2, c2) in itertools.combinations(queens, 2):
            if r1 == r2 or c1 == c2 or abs(r1 - r2) == abs(c1 - c2):
                raise InputError(
                    f"the queens at row {r1 + 1}, column {c1 + 1} and row {r2 + 1}, column {c2 + 1} attack each other"
                )
        x = self.encode(board)
        if self.count_solutions(x) == 0:
            raise InputError("these queens cannot be completed (checked against every solution): no answer exists")
        return x

    def _check_size(self, rows: int) -> None:
        if rows != self.n:
            raise InputError(
                f"the board has {rows} rows; this task has size = {self.n}: {suggest_checkpoint(self, 'size', rows)}"
            )

    def puzzle_texts(self, text: str) -> list[PuzzleText]:
        return split_queens(text, self.n)

    def count_solutions(self, x: Tensor) -> int | None:
        """Count all completions; None if the board is so large that its solutions are not enumerated."""
        if self.n > MAX_ENUMERATED_SIZE:
            return None
        board = self.board(x)
        columns = torch.where(board.any(1), board.long().argmax(1), -1)
        return int(((columns < 0) | (all_solutions(self.n) == columns)).all(1).sum())

    def format_input(self, x: Tensor | None) -> str:
        assert x is not None
        return _text(self.board(x))

    def format_solution(self, x: Tensor | None, y: Tensor) -> str:
        """Return the board in the form of the input."""
        return _text(self.answer_board(y))

    def plot(self, axes: Axes, x: Tensor | None, y: Tensor | None = None) -> None:
        assert x is not None
        n = self.n
        input_queens = self.board(x)
        queens = input_queens if y is None else self.answer_board(y)
        checks = ((torch.arange(n)[:, None] + torch.arange(n)) % 2).numpy()
        axes.imshow(checks, cmap="Greys", vmin=-0.3, vmax=4, extent=(0, n, n, 0))
        conflicts = self._conflict_squares(queens)
        for r, c in (queens | input_queens).nonzero().tolist():
            if not queens[r, c]:
                color, sign = MISTAKE_COLOR, "\N{MULTIPLICATION SIGN}"  # the answer has removed this queen
            else:
                color = MISTAKE_COLOR if conflicts[r, c] else INPUT_COLOR if input_queens[r, c] else ADDED_COLOR
                sign = "\N{BLACK CHESS QUEEN}"
            axes.text(c + 0.5, r + 0.53, sign, ha="center", va="center", color=color, fontsize=110 / n + 3)
        axes.set_xlim(0, n)
        axes.set_ylim(n, 0)
        axes.set_aspect("equal")
        axes.set_xticks([])
        axes.set_yticks([])

    def render(self, x: Tensor | None, y: Tensor | None = None, colour: bool = False) -> str:
        """Return the board: Q is a queen of the input, q an added queen, x a queen of the input that y lacks.

        A mark follows each mistake. If the board is too wide for that (n > 44), the mark replaces the letter.
        """
        assert x is not None
        paint = painter(colour)
        input_queens = self.board(x)
        queens = input_queens if y is None else self.answer_board(y)
        mistakes = (self._conflict_squares(queens) & queens) | (input_queens & ~queens)
        remark = "  " + mark_mistake("no queen", paint)
        gap = " " if 2 * self.n + len("  no queen!") <= WIDTH else ""
        lines = []
        for r in range(self.n):
            line = ""
            for c in range(self.n):
                square = SQUARE_COLORS[(r + c) % 2]
                letter = ("Q" if input_queens[r, c] else "q") if queens[r, c] else "x" if input_queens[r, c] else "."
                if mistakes[r, c]:
                    line += mark_mistake(letter if gap else "", paint)
                else:
                    ink = INPUT_COLOR if letter == "Q" else ADDED_COLOR if letter == "q" else "#A0A0A0"
                    line += paint(letter + gap, nearest_colour(ink), nearest_colour(square), bold=letter == "Q")
            if y is not None and not queens[r].any():
                line += remark
            lines.append(line)
        return "\n".join(lines)

    def _conflict_squares(self, queens: Tensor) -> Tensor:
        """Mark the squares of all lines with two queens or more: bool ``[n, n]``, like ``queens``."""
        lines = self._lines.view(-1, self.n, self.n) > 0
        return lines[(lines & queens).flatten(1).sum(1) > 1].any(0)


def _text(board: Tensor) -> str:
    return "/".join("".join("Q" if queen else "." for queen in row) for row in board.tolist())
