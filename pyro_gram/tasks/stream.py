"""Training batches as a pure function of (seed, number), so that a resumed run sees what an unbroken one would."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pyro_gram.tasks.base import PuzzleSet, Task


def generator_for(*key: int) -> torch.Generator:
    """A generator seeded by a tuple of integers, without collisions between neighbours."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))


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
