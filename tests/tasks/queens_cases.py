"""Tasks and inputs of N-Queens on boards of several sizes."""

import torch

from pyro_gram.tasks.nqueens.squares import PADDING, pad_inputs
from pyro_gram.tasks.nqueens.task import NQueens, NQueensConfig


def make(size=8, min_size=5, **changes) -> NQueens:
    settings = {"layout": "square", "validation": 60, "train_per_size": 300} | changes
    return NQueens(NQueensConfig(size=size, min_size=min_size, **settings))


def one_size(size, **changes) -> NQueens:
    return NQueens(NQueensConfig(size=size, **{"validation": 5, **changes}))


def row(columns, length) -> torch.Tensor:
    """Return an input, padded, of which only the columns are known (-1: no queen)."""
    return pad_inputs(torch.tensor(columns) + 1, length)


def inputs_by_size(task, split) -> dict[int, list[tuple[int, ...]]]:
    x = task.split(split).inputs
    sizes = task.sizes(x).tolist()
    by_size = {m: [] for m in task.config.sizes}
    for m, tokens in zip(sizes, x.tolist(), strict=True):
        assert all(token == PADDING for token in tokens[m:])
        by_size[m].append(tuple(tokens[:m]))
    return by_size


def answers_by_size(task, split) -> dict[int, set[tuple[int, ...]]]:
    puzzles = task.split(split)
    sizes = task.sizes(puzzles.inputs).repeat_interleave(puzzles.num_solutions).tolist()
    by_size = {m: set() for m in task.config.sizes}
    for m, tokens in zip(sizes, puzzles.solutions.tolist(), strict=True):
        assert not any(tokens[m:])
        by_size[m].add(tuple(tokens[:m]))
    return by_size
