"""N-Queens completion (Section 4.2 and Appendix B.2 of the paper): put the missing queens back, in every possible way.

Inputs are solutions with all but a few queens removed; each distinct input stands once, with all its completions. By
default they are split 85:15 at random, as in the paper. Nearly every held-out input is then the rotation or reflection
of a training input, and its completions are answers of training inputs; the augmentation of training by the eight
symmetries of the board leaves out every image that is held out. With ``split_by = "orbit"`` whole orbits of solutions
(one solution with all its images) are held out, and nothing that completes a test input was ever an answer in training.
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
    orbits,
    random_solutions,
)
from pyro_gram.tasks.nqueens.text import parse_queens, split_queens
from pyro_gram.tasks.terminal import WIDTH, mark_mistake, nearest_colour, painter

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_ENUMERATED = 12  # 14,200 solutions; beyond, inputs come with the one solution they were made from
TRAIN_SHARE = 0.85
TEST_ORBITS = 0.15  # of the orbits of solutions; validation takes half as many
EMPTY, QUEEN = 1, 2  # tokens of the cell layout; 0 is the paper's padding
GIVEN, FILLED, WRONG = "#222222", "#0072B2", "#C00000"
SQUARES = ("#EEEEEE", "#D0D0D0")  # in a terminal


@dataclass(frozen=True)
class NQueensConfig:
    """Which boards, and how they are laid out as tokens.

    Attributes:
        size: n, rows of a board. Up to 12 every solution of every input is known; beyond, one is, and coverage is left
            out.
        min_queens, max_queens: queens left on the board (the paper removes 5 to 7 of 8, 7 to 9 of 10: 1 to 3 are left).
        split_by: ``input``: 85:15 by input, the paper's; ``orbit``: by solution and its images, which needs n from 7 to
            12. Inputs that have completions in the orbits of several splits are then in none.
        layout: ``row``: one token a row, 0 blank or 1 + column, answers the column; ``cell``: the paper's, one token a
            square, 1 empty or 2 queen.
        validation: inputs taken out of the training 85 %; by orbit, the most that the validation orbits give.
        solutions: how many random solutions to draw where they cannot all be enumerated (n > 12).
        data_seed: seed of the split; the same for every run that is to be compared.
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
        if self.split_by == "orbit" and self.size > MAX_ENUMERATED:
            raise ConfigError(
                f"split_by = orbit needs every solution, known up to size = {MAX_ENUMERATED}, not {self.size}: "
                "lower size, or split_by = input"
            )
        check_seed(self.data_seed, "data_seed")


@TASKS.register("nqueens")
class NQueens(Task):
    """Place n queens on an n x n board, none attacking another, some of them given."""

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
        """Queens, bool ``[..., n, n]`` with at most one a row, to input tokens by layout."""
        if self.config.layout == "cell":
            return board.flatten(-2).long() + EMPTY
        return torch.where(board.any(-1), board.long().argmax(-1) + 1, 0)

    def encode_answer(self, columns: Tensor) -> Tensor:
        """The column of each row's queen, int64 ``[..., n]``, to output tokens by layout."""
        if self.config.layout == "cell":
            return torch.nn.functional.one_hot(columns, self.n).flatten(-2) + EMPTY
        return columns

    def board(self, x: Tensor) -> Tensor:
        """The given queens of input tokens: bool ``[..., n, n]``."""
        if self.config.layout == "cell":
            return (x == QUEEN).unflatten(-1, (self.n, self.n))
        return torch.arange(1, self.n + 1) == x[..., None]

    def answer_board(self, y: Tensor) -> Tensor:
        """The queens of output tokens: bool ``[..., n, n]``."""
        if self.config.layout == "cell":
            return (y == QUEEN).unflatten(-1, (self.n, self.n))
        return torch.arange(self.n) == y[..., None]

    # ---- what is right -----------------------------------------------------------------------------------------

    def violations(self, x: Tensor | None, y: Tensor) -> Tensor:
        """Pairs of queens in one row, column or diagonal, plus given queens that are gone, plus queens not placed."""
        assert x is not None
        queens = self.answer_board(y)
        on_line = queens.flatten(-2).float() @ self._lines.T  # [..., lines]
        pairs = (on_line * (on_line - 1) / 2).sum(-1).long()
        lost = (self.board(x) & ~queens).flatten(-2).sum(-1)
        missing = (self.n - queens.flatten(-2).sum(-1)).clamp(min=0)
        return pairs + lost + missing

    def difficulty(self, x: Tensor) -> Tensor:
        """The number of queens to place, int64 ``[...]``."""
        return self.n - self.board(x).flatten(-2).sum(-1)

    # ---- data --------------------------------------------------------------------------------------------------

    def split(self, name: str) -> PuzzleSet:
        check_split(name)
        return self._splits[name]

    @cached_property
    def _splits(self) -> dict[str, PuzzleSet]:
        c = self.config
        rng = np.random.default_rng(c.data_seed)
        complete = c.size <= MAX_ENUMERATED
        if complete:
            given, solutions, offsets = completions(all_solutions(c.size), c.min_queens, c.max_queens)
        else:
            drawn = random_solutions(rng, c.size, c.solutions)
            given, solutions, offsets = one_completion(drawn, rng, c.min_queens, c.max_queens)
        whole = PuzzleSet(given, solutions, offsets, complete)
        if c.split_by == "orbit":
            return {split: self._laid_out(puzzles) for split, puzzles in self._by_orbit(whole, rng).items()}
        order = torch.from_numpy(rng.permutation(len(given)))
        train = int(TRAIN_SHARE * len(given))  # rounded down: what is left over goes to the test
        if c.validation >= train:
            raise ConfigError(f"validation = {c.validation} leaves nothing of the {train} training inputs: lower it")
        bounds = {"validation": (0, c.validation), "train": (c.validation, train), "test": (train, len(given))}
        return {split: self._laid_out(whole.select(order[a:b])) for split, (a, b) in bounds.items()}

    def _by_orbit(self, whole: PuzzleSet, rng: np.random.Generator) -> dict[str, PuzzleSet]:
        """The inputs, all of whose completions lie in one split's orbits. Inputs and solutions are columns."""
        number = orbits(whole.solutions)
        count = int(number.max()) + 1
        test = max(1, round(TEST_ORBITS * count))
        validation = max(1, test // 2)
        if test + validation >= count:
            raise ConfigError(
                f"{self.n} queens have {count} orbit(s) of solutions, too few for split_by = orbit: "
                "set size = 7 or larger, or split_by = input"
            )
        side = torch.full((count,), SPLITS.index("train"))
        order = torch.from_numpy(rng.permutation(count))
        side[order[:test]] = SPLITS.index("test")
        side[order[test : test + validation]] = SPLITS.index("validation")
        owner = torch.arange(len(whole)).repeat_interleave(whole.num_solutions)
        splits = {}
        for i, split in enumerate(SPLITS):
            inside = torch.zeros(len(whole), dtype=torch.long).index_add_(0, owner, (side[number] == i).long())
            index = (inside == whole.num_solutions).nonzero().flatten()
            index = index[torch.from_numpy(rng.permutation(len(index)))]
            splits[split] = whole.select(index[: self.config.validation] if split == "validation" else index)
        return splits

    def _laid_out(self, puzzles: PuzzleSet) -> PuzzleSet:
        """Puzzles whose inputs and solutions are columns, in the task's layout."""
        assert puzzles.inputs is not None
        board = torch.arange(1, self.n + 1) == puzzles.inputs[..., None]
        return replace(puzzles, inputs=self.encode(board), solutions=self.encode_answer(puzzles.solutions))

    @cached_property
    def _held_out(self) -> InputSet:
        held = [self._splits[name].inputs for name in ("validation", "test")]
        return InputSet(torch.cat([x for x in held if x is not None]), self.spec.input_vocabulary)

    def augment(self, x: Tensor | None, y: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """One of the eight symmetries of the board for each pair; the pair itself where the image is held out."""
        assert x is not None
        which = torch.randint(8, (len(y),), generator=generator)
        cells = self._symmetries[which]  # [B, n * n]
        image_x = self.board(x).flatten(-2).gather(-1, cells).unflatten(-1, (self.n, self.n))
        image_y = self.answer_board(y).flatten(-2).gather(-1, cells).unflatten(-1, (self.n, self.n))
        images = self.encode(image_x), self.encode_answer(image_y.long().argmax(-1))
        return replace_unless_held_out(self._held_out, x, y, *images)

    # ---- text and picture --------------------------------------------------------------------------------------

    def parse(self, text: str) -> Tensor:
        """A board as rows of squares, or a list of columns: see ``tasks.nqueens.text``."""
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
        """All completions, up to the size where all solutions are known."""
        if self.n > MAX_ENUMERATED:
            return None
        board = self.board(x)
        given = torch.where(board.any(1), board.long().argmax(1), -1)
        return int(((given < 0) | (all_solutions(self.n) == given)).all(1).sum())

    def format_input(self, x: Tensor | None) -> str:
        assert x is not None
        return _text(self.board(x))

    def format_solution(self, x: Tensor | None, y: Tensor) -> str:
        """The board in the form of the input."""
        return _text(self.answer_board(y))

    def plot(self, axes: Axes, x: Tensor | None, y: Tensor | None = None) -> None:
        assert x is not None
        n = self.n
        given = self.board(x)
        queens = given if y is None else self.answer_board(y)
        checks = ((torch.arange(n)[:, None] + torch.arange(n)) % 2).numpy()
        axes.imshow(checks, cmap="Greys", vmin=-0.3, vmax=4, extent=(0, n, n, 0))
        crowded = self._crowded(queens)
        for r, c in (queens | given).nonzero().tolist():
            if not queens[r, c]:
                color, sign = WRONG, "\N{MULTIPLICATION SIGN}"  # a given queen that the answer has taken away
            else:
                color = WRONG if crowded[r, c] else GIVEN if given[r, c] else FILLED
                sign = "\N{BLACK CHESS QUEEN}"
            axes.text(c + 0.5, r + 0.53, sign, ha="center", va="center", color=color, fontsize=110 / n + 3)
        axes.set_xlim(0, n)
        axes.set_ylim(n, 0)
        axes.set_aspect("equal")
        axes.set_xticks([])
        axes.set_yticks([])

    def render(self, x: Tensor | None, y: Tensor | None = None, colour: bool = False) -> str:
        """The board: Q a given queen, q an added one, x a given one that the answer has taken away.

        Marks stand behind these; where the board is too wide for that (n > 44), in their place.
        """
        assert x is not None
        paint = painter(colour)
        given = self.board(x)
        queens = given if y is None else self.answer_board(y)
        wrong = (self._crowded(queens) & queens) | (given & ~queens)
        remark = "  " + mark_mistake("no queen", paint)
        room = " " if 2 * self.n + len("  no queen!") <= WIDTH else ""
        lines = []
        for r in range(self.n):
            line = ""
            for c in range(self.n):
                square = SQUARES[(r + c) % 2]
                name = ("Q" if given[r, c] else "q") if queens[r, c] else "x" if given[r, c] else "."
                if wrong[r, c]:
                    line += mark_mistake(name if room else "", paint)
                else:
                    ink = GIVEN if name == "Q" else FILLED if name == "q" else "#A0A0A0"
                    line += paint(name + room, nearest_colour(ink), nearest_colour(square), bold=name == "Q")
            if y is not None and not queens[r].any():
                line += remark
            lines.append(line)
        return "\n".join(lines)

    def _crowded(self, queens: Tensor) -> Tensor:
        """The squares of lines that hold two queens or more: bool ``[n, n]`` both."""
        lines = self._lines.view(-1, self.n, self.n) > 0
        return lines[(lines & queens).flatten(1).sum(1) > 1].any(0)


def _text(board: Tensor) -> str:
    return "/".join("".join("Q" if queen else "." for queen in row) for row in board.tolist())
