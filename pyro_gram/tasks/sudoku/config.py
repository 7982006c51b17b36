"""The settings of Sudoku."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pyro_gram.checks import AT_LEAST_1, FRACTION, check_choice, check_range, check_seed
from pyro_gram.errors import ConfigError
from pyro_gram.tasks.sudoku.boards import SIZES

CLUES = {4: (4, 10), 6: (9, 20), 9: (28, 45)}
SOURCES = ("auto", "generated", "extreme")


@dataclass(frozen=True)
class SudokuConfig:
    """Settings of the boards, their source and their number.

    Attributes:
        size: rows of a board: 4 (boxes of 2x2), 6 (boxes of 2 rows and 3 columns) or 9.
        min_size: rows of the smallest boards; 0 for boards of one size. With ``size = 9`` and ``min_size = 4`` there
            are boards of 4, 6 and 9 rows, each size from its own source.
        source: ``generated``, ``extreme`` (the files of Sudoku-Extreme, 9x9 only), or ``auto``: extreme for size 9,
            generated for the others.
        train, test: number of puzzles of each size in the split. 0: all puzzles of the file. -1: the default, which
            is 7000 for training and 500 for testing at size 4, 10000 and 500 at size 6, 1000 and 1000 at size 9; if
            the file has fewer puzzles, all of them.
        validation: number of puzzles of each size to validate on, taken from the training file if there is one.
            Puzzles of the training file that are symmetric to a test puzzle are not used.
        min_clues, max_clues: the fewest and most clues of generated puzzles. 0: the default, which is 4 to 10 for
            size 4, 9 to 20 for size 6, and 28 to 45 for size 9. With several sizes both must be 0.
        unique: share of generated puzzles that have exactly one solution.
        max_solutions: the most solutions of the other generated puzzles; all solutions are listed.
        train_file, test_file: CSV files in the data folder (or paths), plain or .gz, to read instead of train.csv and
            test.csv (the full set) or sudoku-extreme-1k_train.csv and sudoku-extreme-1k_test_hard.csv.
        data_seed: seed of puzzles and splits; runs with equal seeds can be compared.
    """

    size: int = 4
    min_size: int = 0
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
        if self.min_size and self.min_size not in SIZES[: SIZES.index(self.size) + 1]:
            raise ConfigError(f"min_size must be 4, 6 or 9 and at most size = {self.size}, or 0, not {self.min_size}")
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
        if len(self.sizes) > 1:
            if self.min_clues or self.max_clues or self.source == "extreme":
                raise ConfigError(
                    "with several sizes, min_clues and max_clues must be 0 and source must be auto or generated: "
                    "set min_size = 0, or leave them out"
                )
            for size in self.sizes:
                self.of_size(size)  # raises ConfigError

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes of boards, in ascending order."""
        return tuple(size for size in SIZES if (self.min_size or self.size) <= size <= self.size)

    @property
    def solved_sizes(self) -> tuple[int, ...]:
        """The sizes of the boards that a model of this task reads."""
        return self.sizes

    def of_size(self, size: int) -> SudokuConfig:
        """Return the settings of the boards of one size."""
        return replace(self, size=size, min_size=0)

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
