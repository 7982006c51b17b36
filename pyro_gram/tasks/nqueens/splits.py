"""Divide the inputs of N-Queens, of one or several sizes, among training, validation and test."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from pyro_gram.errors import ConfigError
from pyro_gram.tasks.base import SPLITS, PuzzleSet
from pyro_gram.tasks.held_out import even_shares
from pyro_gram.tasks.nqueens.boards import (
    all_solutions,
    completions,
    contain_solutions,
    one_completion,
    orbit_numbers,
    random_solutions,
)
from pyro_gram.tasks.nqueens.config import MAX_ENUMERATED_SIZE, NQueensConfig
from pyro_gram.tasks.nqueens.squares import pad_answers, pad_inputs

TRAIN_SHARE = 0.85
TEST_ORBIT_SHARE = 0.15  # share of the orbits in the test split; validation has half as many
MAX_ROUNDS = 50  # rounds of draws until enough distinct inputs are there
TRAIN, VALIDATION, TEST = range(3)  # the numbers of SPLITS
NO_SPLIT = -1

Splits = dict[str, PuzzleSet]


def make_splits(config: NQueensConfig) -> Splits:
    """Return the inputs of each split as lists of columns; see :func:`~pyro_gram.tasks.nqueens.boards.completions`."""
    if len(config.sizes) > 1:
        return _split_sizes(config)
    rng = np.random.default_rng(config.data_seed)
    puzzles = _inputs_of_size(config, config.size, rng)
    if config.split_by == "input":
        return split_by_input(puzzles, rng, config.validation)
    split_of_solution = split_orbits(puzzles.solutions, rng)
    if split_of_solution is None:
        raise ConfigError(_too_few_orbits(config.size))
    splits = split_by_solution(puzzles, split_of_solution, rng)
    return splits | {"validation": splits["validation"].subset(config.validation)}


def _inputs_of_size(config: NQueensConfig, size: int, rng: np.random.Generator) -> PuzzleSet:
    """Return all inputs of a size; of a large size, inputs made from random solutions."""
    if size <= MAX_ENUMERATED_SIZE:
        return completions(all_solutions(size), config.min_queens, config.max_queens)
    return one_completion(random_solutions(rng, size, config.solutions), rng, config.min_queens, config.max_queens)


def _too_few_orbits(size: int) -> str:
    count = int(orbit_numbers(all_solutions(size)).max()) + 1
    return (
        f"{size} queens have {count} orbit(s) of solutions, too few for split_by = orbit: "
        "set size = 7 or larger, or split_by = input"
    )


def split_by_input(puzzles: PuzzleSet, rng: np.random.Generator, validation: int) -> Splits:
    """Divide the inputs 85:15 at random; ``validation`` inputs are taken from the larger part."""
    order = torch.from_numpy(rng.permutation(len(puzzles)))
    train = int(TRAIN_SHARE * len(puzzles))
    if validation >= train:
        raise ConfigError(f"validation = {validation} leaves nothing of the {train} training inputs: lower it")
    bounds = {"validation": (0, validation), "train": (validation, train), "test": (train, len(puzzles))}
    return {name: puzzles.select(order[a:b]) for name, (a, b) in bounds.items()}


def split_orbits(solutions: Tensor, rng: np.random.Generator) -> Tensor | None:
    """Divide the orbits of solutions among the splits at random.

    Args:
        solutions: columns, int64 ``[M, n]``, every solution at least once.

    Returns:
        the number of each solution's split, int64 ``[M]``; None if there are too few orbits.
    """
    distinct_solutions, index = solutions.unique(dim=0, return_inverse=True)
    orbit = orbit_numbers(distinct_solutions)
    count = int(orbit.max()) + 1
    test = max(1, round(TEST_ORBIT_SHARE * count))
    validation = max(1, test // 2)
    if test + validation >= count:
        return None
    split_of_orbit = torch.full((count,), TRAIN)
    order = torch.from_numpy(rng.permutation(count))
    split_of_orbit[order[:test]] = TEST
    split_of_orbit[order[test : test + validation]] = VALIDATION
    return split_of_orbit[orbit][index]


def split_by_solution(puzzles: PuzzleSet, split_of_solution: Tensor, rng: np.random.Generator) -> Splits:
    """Return the splits, each with the inputs whose completions all lie in this split, in random order.

    Args:
        split_of_solution: the split of each row of ``puzzles.solutions``, int64 ``[M]``.
    """
    input_of_solution = torch.arange(len(puzzles)).repeat_interleave(puzzles.num_solutions)
    splits = {}
    for i, name in enumerate(SPLITS):
        is_in_split = (split_of_solution == i).long()
        counts = torch.zeros(len(puzzles), dtype=torch.long).index_add_(0, input_of_solution, is_in_split)
        index = (counts == puzzles.num_solutions).nonzero().flatten()
        splits[name] = puzzles.select(index[torch.from_numpy(rng.permutation(len(index)))])
    return splits


# ---- several sizes ---------------------------------------------------------------------------------------------------


def _split_sizes(config: NQueensConfig) -> Splits:
    """Split the inputs of each size, balance the sizes in training, and pad and mix them.

    Each size is divided as if it were the only one, so that its test inputs are those of a task with this one size.
    """
    split = _split_sizes_by_input if config.split_by == "input" else _split_sizes_by_orbit
    splits_by_size = split(config)
    rng = np.random.default_rng((config.data_seed, config.size, config.min_size))
    result = {}
    for name in SPLITS:
        parts = [splits[name] for splits in splits_by_size]
        if name == "train":
            parts = [
                _resize(part, config.train_per_size, rng, size) for part, size in zip(parts, config.sizes, strict=True)
            ]
        mixed = PuzzleSet.concatenate([_pad(part, config.size) for part in parts])
        result[name] = mixed.select(torch.from_numpy(rng.permutation(len(mixed))))
    return result


def _split_sizes_by_input(config: NQueensConfig) -> list[Splits]:
    parts = []
    for size in config.sizes:
        rng = np.random.default_rng(config.data_seed)
        parts.append((_inputs_of_size(config, size, rng), rng))
    limits = [int(TRAIN_SHARE * len(puzzles)) // 2 for puzzles, _ in parts]  # training keeps half of a small size
    if config.validation > sum(limits):
        raise ConfigError(
            f"validation = {config.validation} is more than half of the {2 * sum(limits)} training inputs: lower it"
        )
    shares = even_shares(config.validation, limits)
    return [split_by_input(*part, validation) for part, validation in zip(parts, shares, strict=True)]


def _split_sizes_by_orbit(config: NQueensConfig) -> list[Splits]:
    """Divide the orbits of each size. A size with too few orbits is for training only.

    A training solution must not show a solution that is held out: if a smaller board inside it is one, the training
    solution belongs to no split.
    """
    splits_by_size: list[Splits] = []
    held_out: list[Tensor] = []
    for size in config.sizes:
        rng = np.random.default_rng(config.data_seed)
        puzzles = _inputs_of_size(config, size, rng)
        split_of_solution = split_orbits(puzzles.solutions, rng)
        if split_of_solution is None:
            split_of_solution = torch.full((len(puzzles.solutions),), TRAIN)
        for smaller_solutions in held_out:
            is_leak = (split_of_solution == TRAIN) & contain_solutions(puzzles.solutions, smaller_solutions)
            split_of_solution[is_leak] = NO_SPLIT
        held_out_here = puzzles.solutions[(split_of_solution == VALIDATION) | (split_of_solution == TEST)].unique(dim=0)
        held_out += [held_out_here] if len(held_out_here) else []
        splits_by_size.append(split_by_solution(puzzles, split_of_solution, rng))
    if not held_out:
        raise ConfigError(_too_few_orbits(config.size))
    shares = even_shares(config.validation, [len(splits["validation"]) for splits in splits_by_size])
    return [
        splits | {"validation": splits["validation"].subset(share)}
        for splits, share in zip(splits_by_size, shares, strict=True)
    ]


def _resize(puzzles: PuzzleSet, count: int, rng: np.random.Generator, size: int) -> PuzzleSet:
    """Return ``count`` inputs of one size: a random part of a large set, or a small set repeated."""
    if not len(puzzles):
        raise ConfigError(f"boards of {size} rows have no training inputs: raise max_queens, or set split_by = input")
    repeats, rest = divmod(count, len(puzzles))
    extra = torch.from_numpy(rng.permutation(len(puzzles))[:rest])
    return puzzles.select(torch.cat((torch.arange(len(puzzles)).repeat(repeats), extra)))


def _pad(puzzles: PuzzleSet, size: int) -> PuzzleSet:
    """Pad inputs and solutions to ``size`` tokens."""
    assert puzzles.inputs is not None
    return replace(puzzles, inputs=pad_inputs(puzzles.inputs, size), solutions=pad_answers(puzzles.solutions, size))


# ---- sizes that the splits do not have -------------------------------------------------------------------------------


def draw_inputs(config: NQueensConfig, size: int, count: int, data_seed: int) -> PuzzleSet:
    """Draw distinct inputs of any size; see :meth:`~pyro_gram.tasks.nqueens.task.NQueens.fresh_boards`."""
    rng = np.random.default_rng((data_seed, size))
    is_enumerated = size <= MAX_ENUMERATED_SIZE
    inputs: dict[tuple[int, ...], Tensor] = {}  # each input with its solution
    for _ in range(MAX_ROUNDS):
        if is_enumerated:
            solutions = all_solutions(size)
            solutions = solutions[torch.from_numpy(rng.integers(len(solutions), size=count))]
        else:
            solutions = random_solutions(rng, size, count)
        part = one_completion(solutions, rng, config.min_queens, config.max_queens)
        assert part.inputs is not None
        for x, y in zip(part.inputs.tolist(), part.solutions, strict=True):
            inputs.setdefault(tuple(x), y)
        if len(inputs) >= count:
            break
    else:
        raise ConfigError(f"boards of {size} rows have fewer than {count} inputs, or hardly more: draw fewer")
    x = torch.tensor(list(inputs)[:count])
    if is_enumerated:
        every_solution = all_solutions(size)
        completions_of = [every_solution[((row == 0) | (row - 1 == every_solution)).all(1)] for row in x]
        counts = torch.tensor([len(y) for y in completions_of])
        puzzles = PuzzleSet.from_counts(x, torch.cat(completions_of), counts)
    else:
        ones = torch.ones(count, dtype=torch.long)
        puzzles = PuzzleSet.from_counts(x, torch.stack(list(inputs.values())[:count]), ones, has_all_solutions=False)
    return _pad(puzzles, max(size, config.size))
