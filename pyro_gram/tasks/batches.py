"""Training batches as a pure function of (seed, number), so that a resumed run sees what an unbroken one would."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pyro_gram.checks import MAX_SEED
from pyro_gram.errors import ConfigError
from pyro_gram.tasks.base import PuzzleSet, Task


def generator_for(*key: int) -> torch.Generator:
    """A generator seeded by a tuple of integers, without collisions between neighbours."""
    # Of Python's integers: NumPy 1.26 shifts no uint64 by one.
    return torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]) >> 1)


def sub_seed(*key: int) -> int:
    """A seed derived from a tuple of integers, so that what is drawn under one is independent of another's draws."""
    return generator_for(*key).initial_seed() % MAX_SEED


@dataclass(frozen=True)
class Candidates:
    """Inputs with every known solution of each.

    Attributes:
        x: int64 ``[B, *event]``.
        solutions: int64 ``[K, B, L_out]``, K the most that an input of the batch has.
        there: bool ``[K, B]``: False where an input has no k-th solution, and its first stands in.
    """

    x: Tensor
    solutions: Tensor
    there: Tensor


class TargetStream:
    """Batch number -> (x, y): each input once an epoch, its target uniform over its solutions at each visit.

    Without input (p(x)): each datum once an epoch, and x is None.

    Args:
        task: for its augmentation.
        puzzles: the training split.
        batch: pairs a batch; lowered to the size of the split where that is smaller.
        seed: of order, targets and augmentation.
        augment: apply the task's symmetries.
    """

    def __init__(self, task: Task, puzzles: PuzzleSet, batch: int, seed: int, augment: bool = True) -> None:
        self.task, self.puzzles, self.seed, self.augment = task, puzzles, seed, augment
        self.size = len(puzzles.solutions) if puzzles.inputs is None else len(puzzles)
        self.batch = min(batch, self.size)
        self.per_epoch = self.size // self.batch
        self._order: tuple[int, Tensor] | None = None

    def __call__(self, number: int) -> tuple[Tensor | None, Tensor]:
        epoch, place = divmod(number, self.per_epoch)
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, torch.randperm(self.size, generator=generator_for(self.seed, 0, epoch))
        index = self._order[1][place * self.batch : (place + 1) * self.batch]
        generator = generator_for(self.seed, 1, number)
        x: Tensor | None
        if self.puzzles.inputs is None:
            x, y = None, self.puzzles.solutions[index].long()
        else:
            x, y = self.puzzles.inputs[index], self.puzzles.sample_targets(index, generator)
        return self.task.augment(x, y, generator) if self.augment else (x, y)

    def candidates(self, number: int) -> Candidates:
        """A random batch of inputs, as they are, with all their known solutions; as pure as the batch ``number``.

        Raises:
            ConfigError: the task has no input, or does not know every solution.
        """
        puzzles = self.puzzles
        if puzzles.inputs is None:
            raise ConfigError("train.on_policy_depth needs a task with inputs: set it to 0 for p(x)")
        if not puzzles.has_all_solutions:
            raise ConfigError(
                "train.on_policy_depth needs every solution of every input, and this task knows some: set it to 0"
            )
        index = torch.randint(len(puzzles), (self.batch,), generator=generator_for(self.seed, 2, number))
        counts = puzzles.num_solutions[index]
        k = torch.arange(int(counts.max()))[:, None]
        there = k < counts
        rows = puzzles.offsets[index] + torch.where(there, k, 0)
        return Candidates(puzzles.inputs[index], puzzles.solutions[rows].long(), there)
