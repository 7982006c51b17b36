"""N-Queens completion (Section 4.2 and Appendix B.2 of the paper): complete a board with few queens to n queens.

An input is a solution with all but a few queens removed; each distinct input is listed once, with all completions. By
default the inputs are split 85:15 at random, as in the paper. Nearly every held-out input is then the rotation or
reflection of a training input, and its completions are also answers of training inputs. The augmentation by the eight
symmetries never produces a held-out input. With ``split_by = "orbit"`` whole orbits of solutions (a solution with
all its images) are held out, and no completion of a test input was ever an answer in training.

With ``layout = "square"`` a model takes boards of 4 to 20 rows, and the splits may have several sizes. By orbit, a
training answer then shows no held-out solution of fewer queens either (``tasks.nqueens.splits``).
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyro_gram.checks import check_counts
from pyro_gram.errors import ConfigError, InputError
from pyro_gram.registry import TASKS
from pyro_gram.spec import TaskSpec
from pyro_gram.system.text import PuzzleText
from pyro_gram.tasks.advice import suggest_checkpoint
from pyro_gram.tasks.base import PuzzleSet, Task, check_split
from pyro_gram.tasks.held_out import InputSet, held_out_inputs, replace_unless_held_out
from pyro_gram.tasks.nqueens import squares
from pyro_gram.tasks.nqueens.boards import all_solutions, board_lines, board_symmetries
from pyro_gram.tasks.nqueens.config import MAX_ENUMERATED_SIZE, NQueensConfig
from pyro_gram.tasks.nqueens.exact import has_completion
from pyro_gram.tasks.nqueens.splits import draw_inputs, make_splits
from pyro_gram.tasks.nqueens.text import MIN_SIZE, parse_queens, split_queens
from pyro_gram.tasks.terminal import WIDTH, mark_mistake, nearest_colour, painter

if TYPE_CHECKING:
    from matplotlib.axes import Axes

EMPTY, QUEEN = 1, 2  # tokens of the cell layout; 0 is the paper's padding
INPUT_COLOR, ADDED_COLOR, MISTAKE_COLOR = "#222222", "#0072B2", "#C00000"
SQUARE_COLORS = ("#EEEEEE", "#D0D0D0")  # in a terminal


@TASKS.register("nqueens")
class NQueens(Task):
    """Complete a board to n queens, none of which attacks another."""

    Config = NQueensConfig
    size_field = "size"
    violation_name = "conflict"
    difficulty_label = "queens missing"

    def __init__(self, config: NQueensConfig, data_dir: str | None = None) -> None:
        self.config = config
        n = self.n = config.size
        self.has_squares = config.layout == "square"
        is_in_paper = config.split_by == "input" and len(config.sizes) == 1
        self.paper_name = f"nqueens{n}" if is_in_paper else ""
        if self.has_squares:
            self.spec = TaskSpec(
                n,
                None,
                squares.VOCABULARY,
                n,
                n,
                structure=squares.square_structure,
                relations=squares.RELATIONS,
                padding=squares.PADDING,
                has_value_positions=True,
            )
        elif config.layout == "row":
            self.spec = TaskSpec(n, None, n + 1, n, n)
        else:
            self.spec = TaskSpec(n * n, None, 3, n * n, 3)
        self.max_size = squares.MAX_SIZE if self.has_squares else None

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
        """Return the queens of an input: bool ``[..., n, n]``; padding has no queens."""
        if self.config.layout == "cell":
            return (x == QUEEN).unflatten(-1, (self.n, self.n))
        return torch.arange(1, x.shape[-1] + 1) == x[..., None]

    def answer_board(self, y: Tensor, x: Tensor | None = None) -> Tensor:
        """Return the queens of an answer: bool ``[..., n, n]``. Without x the answer has no padding."""
        if self.config.layout == "cell":
            return (y == QUEEN).unflatten(-1, (self.n, self.n))
        queens = torch.arange(y.shape[-1]) == y[..., None]
        return queens & squares.squares_on_board(x) if self.has_squares and x is not None else queens

    def sizes(self, x: Tensor) -> Tensor:
        """Return the number of rows of each input, int64 ``[...]``."""
        return squares.board_sizes(x) if self.has_squares else torch.full(x.shape[:-1], self.n)

    # ---- right answers -----------------------------------------------------------------------------------------

    def violations(self, x: Tensor | None, y: Tensor) -> Tensor:
        """Count pairs of queens on one line, queens of x that y lacks, and queens missing from a total of n."""
        assert x is not None
        queens = self.answer_board(y, x)
        counts = queens.flatten(-2).float() @ board_lines(queens.shape[-1]).T  # [..., lines]
        attacks = (counts * (counts - 1) / 2).sum(-1).long()
        num_removed = (self.board(x) & ~queens).flatten(-2).sum(-1)
        num_missing = (self.sizes(x) - queens.flatten(-2).sum(-1)).clamp(min=0)
        return attacks + num_removed + num_missing

    def difficulty(self, x: Tensor) -> Tensor:
        """Count the queens to place, int64 ``[...]``."""
        return self.sizes(x) - self.board(x).flatten(-2).sum(-1)

    # ---- data --------------------------------------------------------------------------------------------------

    def split(self, name: str) -> PuzzleSet:
        check_split(name)
        return self._splits[name]

    @cached_property
    def _splits(self) -> dict[str, PuzzleSet]:
        splits = make_splits(self.config)
        return splits if self.has_squares else {name: self._to_layout(part) for name, part in splits.items()}

    def _to_layout(self, puzzles: PuzzleSet) -> PuzzleSet:
        """Convert inputs and solutions from lists of columns to the tokens of the task's layout."""
        assert puzzles.inputs is not None
        board = torch.arange(1, self.n + 1) == puzzles.inputs[..., None]
        return replace(puzzles, inputs=self.encode(board), solutions=self.encode_answer(puzzles.solutions))

    @cached_property
    def _held_out(self) -> InputSet:
        return held_out_inputs(self)

    def augment(self, x: Tensor | None, y: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Apply a random symmetry of the board to each pair; a pair whose image is held out stays unchanged."""
        assert x is not None
        length = x.shape[-1]
        index = torch.randint(8, (len(x),), generator=generator)
        if self.has_squares:
            x, y = squares.pad_inputs(x, self.n), squares.pad_answers(y, self.n)
            cells = squares.padded_symmetries(self.n)[self.sizes(x), index]  # [B, n * n]
        else:
            cells = board_symmetries(self.n)[index]
        image_x = self.board(x).flatten(-2).gather(-1, cells).unflatten(-1, (self.n, self.n))
        queens = self.answer_board(y, x).flatten(-2)
        image_y = queens.gather(-1, cells.expand(queens.shape)).unflatten(-1, (self.n, self.n))
        images = self.encode(image_x), self.encode_answer(image_y.long().argmax(-1))
        if not self.has_squares:
            return replace_unless_held_out(self._held_out, x, y, *images)
        image = images[0].masked_fill(x == squares.PADDING, squares.PADDING)
        x, y = replace_unless_held_out(self._held_out, x, y, image, images[1])
        return x[..., :length], y[..., :length]

    def fresh_boards(self, size: int, count: int, data_seed: int = 0) -> PuzzleSet:
        """Draw ``count`` inputs of a size that the splits do not have, to measure a model on boards that it never saw.

        An input is a solution with all but ``min_queens`` to ``max_queens`` queens removed. Up to 12 rows the solution
        is drawn uniformly, and every completion is listed. A larger board is listed with one completion, and its
        solution is not drawn uniformly: see :func:`~pyro_gram.tasks.nqueens.boards.random_solutions`.

        Args:
            size: the number of rows, 4 to 20.
            count: the number of inputs; no two of them are equal.
            data_seed: seed of the draws.

        Returns:
            inputs padded to ``max(config.size, size)`` tokens, like the answers.

        Raises:
            ConfigError: the layout has one size, the splits have boards of this size, or there are too few inputs.
        """
        check_counts(seed=data_seed, count=count)
        if not self.has_squares:
            raise ConfigError(f"layout = {self.config.layout} has boards of one size: set layout = square")
        if size in self.config.sizes:
            raise ConfigError(f"the splits have boards of {size} rows: measure on the test split")
        if size not in self.config.solved_sizes:
            raise ConfigError(f"boards have {MIN_SIZE} to {squares.MAX_SIZE} rows, not {size}")
        return draw_inputs(self.config, size, count, data_seed)

    # ---- text and picture --------------------------------------------------------------------------------------

    def parse(self, text: str) -> Tensor:
        """Parse a board given as rows of squares or as a list of columns (see ``tasks.nqueens.text``)."""
        rows = parse_queens(text, self.config.solved_sizes, self._check_size)
        n = len(rows)
        board = torch.zeros(n, n, dtype=torch.bool)
        for row, columns in enumerate(rows):
            board[row, columns] = True
        queens = board.nonzero().tolist()
        for (r1, c1), (r2, c2) in itertools.combinations(queens, 2):
            if r1 == r2 or c1 == c2 or abs(r1 - r2) == abs(c1 - c2):
                raise InputError(
                    f"the queens at row {r1 + 1}, column {c1 + 1} and row {r2 + 1}, column {c2 + 1} attack each other"
                )
        x = self.encode(board)
        self._check_completable(x)
        return squares.pad_inputs(x, max(n, self.n)) if self.has_squares else x

    def _check_completable(self, x: Tensor) -> None:
        """Raise InputError if an input is proved to have no answer. Large boards of layout ``row`` are not checked."""
        if self.count_solutions(x) == 0:
            raise InputError("these queens cannot be completed (checked against every solution): no answer exists")
        if self.has_squares and len(x) > MAX_ENUMERATED_SIZE and has_completion((x - 1).tolist()) is False:
            raise InputError("these queens cannot be completed (proved by a SAT solver): no answer exists")

    def _check_size(self, rows: int) -> None:
        if rows in self.config.solved_sizes:
            return
        if self.has_squares:
            raise InputError(f"the board has {rows} rows; this task reads boards of {MIN_SIZE} to {squares.MAX_SIZE}")
        raise InputError(f"the board has {rows} rows; this task has size = {self.n}: {suggest_checkpoint(self, rows)}")

    def puzzle_texts(self, text: str) -> list[PuzzleText]:
        return split_queens(text, self.config.solved_sizes)

    def count_solutions(self, x: Tensor) -> int | None:
        """Count all completions; None if the board is so large that its solutions are not enumerated."""
        n = int(self.sizes(x))
        if n > MAX_ENUMERATED_SIZE:
            return None
        board = self._one_board(self.board(x), x)
        columns = torch.where(board.any(1), board.long().argmax(1), -1)
        return int(((columns < 0) | (all_solutions(n) == columns)).all(1).sum())

    def _one_board(self, board: Tensor, x: Tensor) -> Tensor:
        """Remove the padding of a board of one input: bool ``[n, n]`` -> ``[m, m]``."""
        n = int(self.sizes(x))
        return board[:n, :n]

    def format_input(self, x: Tensor | None) -> str:
        assert x is not None
        return _text(self._one_board(self.board(x), x))

    def format_solution(self, x: Tensor | None, y: Tensor) -> str:
        """Return the board in the form of the input."""
        return _text(self.answer_board(y) if x is None else self._one_board(self.answer_board(y, x), x))

    def plot(self, axes: Axes, x: Tensor | None, y: Tensor | None = None) -> None:
        assert x is not None
        input_queens, queens = self._boards(x, y)
        n = len(queens)
        checks = ((torch.arange(n)[:, None] + torch.arange(n)) % 2).numpy()
        axes.imshow(checks, cmap="Greys", vmin=-0.3, vmax=4, extent=(0, n, n, 0))
        conflicts = _conflict_squares(queens)
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
        input_queens, queens = self._boards(x, y)
        n = len(queens)
        mistakes = (_conflict_squares(queens) & queens) | (input_queens & ~queens)
        remark = "  " + mark_mistake("no queen", paint)
        gap = " " if 2 * n + len("  no queen!") <= WIDTH else ""
        lines = []
        for r in range(n):
            line = ""
            for c in range(n):
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

    def _boards(self, x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the queens of one input and of its answer (without one, those of the input): bool ``[m, m]``."""
        input_queens = self._one_board(self.board(x), x)
        return input_queens, input_queens if y is None else self._one_board(self.answer_board(y, x), x)


def _conflict_squares(queens: Tensor) -> Tensor:
    """Mark the squares of all lines with two queens or more: bool ``[n, n]``, like ``queens``."""
    lines = board_lines(len(queens)).view(-1, *queens.shape) > 0
    return lines[(lines & queens).flatten(1).sum(1) > 1].any(0)


def _text(board: Tensor) -> str:
    return "/".join("".join("Q" if queen else "." for queen in row) for row in board.tolist())
