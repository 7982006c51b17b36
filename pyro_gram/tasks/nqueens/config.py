"""The settings of N-Queens."""

from __future__ import annotations

from dataclasses import dataclass

from pyro_gram.checks import AT_LEAST_0, AT_LEAST_1, check_choice, check_range, check_seed
from pyro_gram.errors import ConfigError
from pyro_gram.tasks.nqueens.squares import MAX_SIZE
from pyro_gram.tasks.nqueens.text import MIN_SIZE

MAX_ENUMERATED_SIZE = 12  # 12 queens have 14,200 solutions; inputs of larger boards are listed with one solution
TRAIN_PER_SIZE = 4000


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
            one token for each square, 1 (empty) or 2 (queen). ``square``: as ``row``, but networks with the mixer
            relations see squares that share a row, column or diagonal, and boards may have 4 to 20 rows.
        validation: number of validation inputs, taken from the training part (85 %); with ``orbit``, at most
            this many inputs are taken from the validation orbits. Several sizes share this number evenly.
        solutions: number of random solutions to draw when there are too many to enumerate (n > 12).
        data_seed: seed of the split; runs with equal seeds can be compared.
        min_size: the smallest size, if the splits hold boards of all sizes from min_size to size (layout square); 0:
            only boards of size n.
        train_per_size: number of training inputs of each size, if there are several sizes. More inputs are thinned
            at random, and fewer are repeated.
    """

    size: int = 8
    min_queens: int = 1
    max_queens: int = 3
    split_by: str = "input"
    layout: str = "row"
    validation: int = 128
    solutions: int = 5000
    data_seed: int = 0
    min_size: int = 0
    train_per_size: int = TRAIN_PER_SIZE

    def __post_init__(self) -> None:
        check_range(self, size=(MIN_SIZE, 64), min_queens=AT_LEAST_0, validation=AT_LEAST_1)
        check_range(self, solutions=(100, 1_000_000), train_per_size=(1, 1_000_000))
        check_range(self, max_queens=(self.min_queens, self.size))
        check_choice("layout", self.layout, ("row", "cell", "square"))
        check_choice("split_by", self.split_by, ("input", "orbit"))
        if self.split_by == "orbit" and self.size > MAX_ENUMERATED_SIZE:
            raise ConfigError(
                f"split_by = orbit needs every solution, known up to size = {MAX_ENUMERATED_SIZE}, not {self.size}: "
                "lower size, or set split_by = input"
            )
        self._check_sizes()
        check_seed(self.data_seed, "data_seed")

    def _check_sizes(self) -> None:
        """Raise ConfigError for a size that the layout does not take, and for a setting that would be ignored."""
        if self.layout == "square":
            check_range(self, size=(MIN_SIZE, MAX_SIZE))
        elif self.min_size:
            raise ConfigError(f"layout = {self.layout} has boards of one size: set min_size = 0, or layout = square")
        if self.min_size:
            check_range(self, min_size=(MIN_SIZE, self.size))
            if self.max_queens >= self.min_size:
                raise ConfigError(
                    f"max_queens = {self.max_queens} leaves nothing to place on boards of min_size = {self.min_size} "
                    "rows: lower max_queens, or raise min_size"
                )
        if len(self.sizes) == 1 and self.train_per_size != TRAIN_PER_SIZE:
            raise ConfigError(
                f"train_per_size = {self.train_per_size} balances boards of several sizes, and there is one size: set "
                "min_size below size, or leave train_per_size out"
            )

    @property
    def sizes(self) -> range:
        """The sizes of the boards in the splits."""
        return range(self.min_size or self.size, self.size + 1)

    @property
    def solved_sizes(self) -> range:
        """The sizes of the boards that a model of this task reads."""
        return range(MIN_SIZE, MAX_SIZE + 1) if self.layout == "square" else self.sizes
