"""The puzzles of training, validation and test for boards of one size: generated, or read from files."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from pyro_gram.errors import ConfigError
from pyro_gram.tasks.sudoku.boards import symmetry_invariants
from pyro_gram.tasks.sudoku.config import SudokuConfig
from pyro_gram.tasks.sudoku.data import (
    RatedPuzzles,
    assign_splits,
    digest,
    exclude_symmetric,
    locate_file,
    random_puzzles,
    read_csv,
)

DEFAULT_TRAIN = {4: 7000, 6: 10_000, 9: 1000}
DEFAULT_TEST = {4: 500, 6: 500, 9: 1000}


class Splits:
    """The puzzles of each split. Puzzles of different splits are never symmetric to each other.

    Args:
        config: settings with one size.
        data_dir: the folder of data files, or None.

    Attributes:
        sources: name and SHA-256 of the training and the test file; empty before they are read, or without files.
    """

    def __init__(self, config: SudokuConfig, data_dir: str | None) -> None:
        self.config, self.data_dir = config, data_dir
        self.sources: dict[str, str] = {}

    @cached_property
    def puzzles(self) -> dict[str, RatedPuzzles]:
        """The puzzles by the name of the split. They are generated or read when they are first needed."""
        return self._read_splits() if self.config.uses_files else self._generate_splits()

    def _generate_splits(self) -> dict[str, RatedPuzzles]:
        c = self.config
        test = DEFAULT_TEST[c.size] if c.test < 0 else c.test
        train = DEFAULT_TRAIN[c.size] if c.train < 0 else c.train
        sizes = {"test": test, "validation": c.validation, "train": train}
        count = sum(sizes.values()) + max(64, test)
        puzzles = random_puzzles(c.size, count, c.clues, c.unique, c.max_solutions, c.data_seed)
        keys = symmetry_invariants(puzzles.boards, c.size)
        splits = assign_splits(keys, sizes, np.random.default_rng(c.data_seed))
        if splits is None:
            raise ConfigError(
                f"too few {c.size}x{c.size} puzzles for {sum(sizes.values())} inputs without symmetric ones "
                "across splits: lower task.train or widen task.min_clues and task.max_clues"
            )
        return {split: puzzles.take(index) for split, index in splits.items()}

    def _read_splits(self) -> dict[str, RatedPuzzles]:
        c = self.config
        rng = np.random.default_rng(c.data_seed)
        paths = {
            "train": locate_file("train.csv", c.train_file, self.data_dir),
            "test": locate_file("test.csv", c.test_file, self.data_dir),
        }
        test, train = (read_csv(paths[split], c.size) for split in ("test", "train"))
        self.sources = {split: f"{path.name} {digest(path)}" for split, path in paths.items()}
        number = _split_size("test", c.test, DEFAULT_TEST[9], len(test), f"{paths['test']} holds")
        test = test.take(rng.permutation(len(test))[:number])
        order = rng.permutation(len(train))
        held_out = symmetry_invariants(test.boards, c.size)
        index = exclude_symmetric(train.boards, order, held_out, c.validation + 1, c.size)
        if len(index) <= c.validation:
            raise ConfigError(
                f"validation = {c.validation}, but without images of test puzzles, {paths['train']} holds only "
                f"{len(index)} puzzles: lower it, or take other files or a smaller test"
            )
        index = index[: c.validation]
        validation, rest = train.take(index), order[~np.isin(order, index)]
        held_out = np.concatenate((held_out, symmetry_invariants(validation.boards, c.size)))
        count = len(rest) if c.train == 0 else DEFAULT_TRAIN[9] if c.train < 0 else c.train
        index = exclude_symmetric(train.boards, rest, held_out, count, c.size)
        reason = f"besides validation, and without images of held-out puzzles, {paths['train']} holds"
        number = _split_size("train", c.train, DEFAULT_TRAIN[9], len(index), reason)
        return {"train": train.take(index[:number]), "validation": validation, "test": test}


def _split_size(split: str, num_requested: int, default: int, num_available: int, reason: str) -> int:
    """Return how many puzzles of a file a split gets. Raises ConfigError if more are requested than there are."""
    if not num_available:
        raise ConfigError(f"{reason} no puzzles that could be the {split} split: take other files, or hold out fewer")
    if num_requested > num_available:
        raise ConfigError(
            f"{split} = {num_requested}, but {reason} only {num_available} puzzles: lower it, or set it to 0 for all"
        )
    return min(default, num_available) if num_requested < 0 else num_requested or num_available
