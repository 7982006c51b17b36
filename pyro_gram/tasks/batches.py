"""Training batches. A batch depends only on a seed and on its number, so a resumed run sees the same batches."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from pyro_gram.checks import MAX_SEED
from pyro_gram.errors import ConfigError
from pyro_gram.tasks.base import PuzzleSet, Task


def generator_for(*key: int) -> torch.Generator:
    """Return a generator whose seed is a hash of the integers ``key``; keys that are close give unrelated seeds."""
    # int() is needed because NumPy 1.26 cannot shift a uint64 by a Python integer.
    return torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]) >> 1)


def derive_seed(*key: int) -> int:
    """Return a seed that is a hash of integers, so that draws under different keys are independent."""
    return generator_for(*key).initial_seed() % MAX_SEED


MAX_SOLUTIONS = 256  # of an input, if all of them are targets
GROUP = 16  # batches within whose inputs are sorted by size, so that a batch holds inputs of nearly one size


@dataclass(frozen=True)
class Candidates:
    """A batch of inputs, with every solution of each input.

    Attributes:
        x: int64 ``[B, *event]``.
        solutions: int64 ``[K, B, L_out]``; K is the largest number of solutions in the batch.
        mask: bool ``[K, B]``; False if the input has no k-th solution; its first solution is then repeated.
        namings: the permutations of exchangeable values, int64 ``[P, classes]``; None if there are none.
        is_naming: bool ``[P, B]``, the permutations that an input allows (``Task.namings``); None without namings.
        is_token: bool ``[B, L_out]``, False at padding; None without namings.
        log_namings: log of the number of names of each solution (``Task.log_namings``), ``[K, B]``; None if not needed.
    """

    x: Tensor
    solutions: Tensor
    mask: Tensor
    namings: Tensor | None = None
    is_naming: Tensor | None = None
    is_token: Tensor | None = None
    log_namings: Tensor | None = None

    def merge(self, is_new: Tensor, old: Candidates) -> Candidates:
        """Return these candidates in the rows ``is_new``, bool ``[B]``, and ``old`` ones in the others."""
        size = max(len(self.mask), len(old.mask))
        new, old = self._pad(size), old._pad(size)
        mask = torch.where(is_new, new.mask, old.mask)
        k = int(mask.sum(0).max())  # solutions come first
        solutions = torch.where(is_new[:, None], new.solutions, old.solutions)
        tokens = new.is_token
        if new.is_token is not None and old.is_token is not None:
            tokens = torch.where(is_new[:, None], new.is_token, old.is_token)
        log_namings = new.log_namings
        if new.log_namings is not None and old.log_namings is not None:
            log_namings = torch.where(is_new, new.log_namings, old.log_namings)[:k]
        x = torch.where(is_new.view(-1, *[1] * (self.x.ndim - 1)), new.x, old.x)
        return Candidates(x, solutions[:k], mask[:k], is_token=tokens, log_namings=log_namings)

    def _pad(self, size: int) -> Candidates:
        rows = (0, 0, 0, size - len(self.mask))
        log_namings = None if self.log_namings is None else pad(self.log_namings, rows)
        solutions = pad(self.solutions, (0, 0, *rows))
        return replace(self, solutions=solutions, mask=pad(self.mask, rows), log_namings=log_namings)

    def state_dict(self, size: int = 0) -> dict[str, Tensor]:
        """Return the tensors by name, with the batch first and room for at least ``size`` solutions."""
        padded = self._pad(max(size, len(self.mask)))
        tensors = {"solutions": padded.solutions.movedim(0, 1), "solution_mask": padded.mask.movedim(0, 1)}
        if padded.log_namings is not None:
            tensors["log_namings"] = padded.log_namings.movedim(0, 1)
        return tensors if self.is_token is None else tensors | {"is_token": self.is_token}

    @classmethod
    def from_state_dict(cls, x: Tensor, tensors: dict[str, Tensor]) -> Candidates | None:
        """Build candidates from the tensors of :meth:`state_dict`; None if there are none."""
        if "solutions" not in tensors:
            return None
        mask = tensors["solution_mask"].movedim(0, 1)
        k = int(mask.sum(0).max())
        log_namings = tensors["log_namings"].movedim(0, 1)[:k] if "log_namings" in tensors else None
        solutions = tensors["solutions"].movedim(0, 1)[:k]
        return cls(x, solutions, mask[:k], is_token=tensors.get("is_token"), log_namings=log_namings)


class TargetStream:
    """Map a batch number to pairs (x, y).

    An epoch visits the inputs in random order, and draws one solution uniformly at each visit. If the last inputs of
    the order do not fill a batch, the epoch leaves them out. For p(x) an epoch visits the data, and x is None.

    If inputs have several sizes, a batch holds inputs of nearly one size, without the padding that all of them share.

    Args:
        task: augments the pairs.
        puzzles: the training split.
        batch: B, the number of pairs in a batch. If the split is smaller, a batch is the whole split.
        seed: seed of the order, the solutions and the augmentation.
        augment: whether to apply the task's symmetries.
        group: whether a batch holds inputs of nearly one size, without shared padding. If not, all batches have one
            shape.
    """

    def __init__(
        self, task: Task, puzzles: PuzzleSet, batch: int, seed: int, augment: bool = True, *, group: bool = True
    ) -> None:
        self.task, self.puzzles, self.seed, self.augment = task, puzzles, seed, augment
        self.sizes: Tensor | None = None  # int64 [N]
        if group and puzzles.inputs is not None and task.spec.padding is not None:
            self.sizes = task.spec.sizes_of(puzzles.inputs)
        self.size = len(puzzles.solutions) if puzzles.inputs is None else len(puzzles)
        self.batch = min(batch, self.size)
        self.batches_per_epoch = self.size // self.batch
        self._epoch_order: tuple[int, Tensor] | None = None  # the epoch that was used last, and its order

    def __call__(self, number: int) -> tuple[Tensor | None, Tensor]:
        """Return batch ``number``: x int64 ``[B, *event]`` or None, and y int64 ``[B, L_out]``."""
        x, answers, _ = self._answers(number, 1)
        return x, answers[0]

    def with_solutions(self, number: int) -> tuple[Tensor, Candidates]:
        """Return y of batch ``number``, and the batch's inputs with all their solutions (up to the names of values).

        An input with more than ``MAX_SOLUTIONS`` solutions, or of which only some are known, has y alone.

        Raises:
            ConfigError: the task has no input.
        """
        x, answers, mask = self._answers(number, MAX_SOLUTIONS)
        if x is None:
            raise ConfigError("all solutions of an input need a task with inputs: set train.exact_targets to false")
        solutions = answers[1:] if len(answers) > 1 else answers
        if self.task.namings(x[:1]) is None:
            return answers[0], Candidates(x, solutions, mask)
        names = {"is_token": self.task.spec.token_mask(x), "log_namings": self.task.log_namings(x, solutions).float()}
        return answers[0], Candidates(x, solutions, mask, **names)

    def _answers(self, number: int, max_solutions: int) -> tuple[Tensor | None, Tensor, Tensor]:
        """Return x, the answers ``[1 + K, B, L_out]`` (y, then up to ``max_solutions`` solutions), and their mask."""
        epoch, position = divmod(number, self.batches_per_epoch)
        if self._epoch_order is None or self._epoch_order[0] != epoch:
            self._epoch_order = epoch, self._order(generator_for(self.seed, 0, epoch))
        index = self._epoch_order[1][position * self.batch : (position + 1) * self.batch]
        generator = generator_for(self.seed, 1, number)
        mask = torch.ones(1, len(index), dtype=torch.bool)
        x: Tensor | None
        if self.puzzles.inputs is None:
            x, answers = None, self.puzzles.solutions[index].long()[None]
        else:
            x, answers = self.puzzles.inputs[index], self.puzzles.sample_targets(index, generator)[None]
            if max_solutions > 1:
                solutions, mask = self._solutions(index, answers[0], max_solutions)
                answers = answers if len(solutions) == 1 else torch.cat((answers, solutions))
            if self.sizes is not None:
                x, answers = self.task.spec.crop(x, answers)
        if self.augment and len(answers) == 1:
            x, y = self.task.augment(x, answers[0], generator)
            return x, y[None], mask
        if self.augment:
            x, answers = self.task.augment(x, answers, generator)
        return x, answers, mask

    def _solutions(self, index: Tensor, y: Tensor, max_solutions: int) -> tuple[Tensor, Tensor]:
        """Return the solutions of inputs, ``[K, B, L_out]``, and their mask ``[K, B]``; y where there are too many."""
        puzzles = self.puzzles
        is_complete = torch.full((len(puzzles),), puzzles.has_all_solutions)
        is_complete[puzzles.complete_rows] = True
        counts = puzzles.num_solutions[index]
        is_listed = is_complete[index] & (counts <= max_solutions)
        counts = torch.where(is_listed, counts, 1)
        k = torch.arange(int(counts.max()))[:, None]
        mask = k < counts
        solutions = puzzles.solutions[puzzles.offsets[index] + torch.where(mask, k, 0)].long()
        return torch.where(is_listed[:, None], solutions, y), mask

    def _order(self, generator: torch.Generator) -> Tensor:
        """Return the order in which an epoch visits the inputs, int64 ``[N]``."""
        order = torch.randperm(self.size, generator=generator)
        if self.sizes is None:
            return order
        windows = order[: self.batches_per_epoch * self.batch].split(GROUP * self.batch)
        batches = torch.cat([self._sort_by_size(window) for window in windows]).view(-1, self.batch)
        return batches[torch.randperm(len(batches), generator=generator)].flatten()

    def _sort_by_size(self, index: Tensor) -> Tensor:
        return index if self.sizes is None else index[self.sizes[index].argsort(stable=True)]

    def candidates(self, number: int) -> Candidates:
        """Return a random batch of inputs, not augmented, with all solutions of each input. Like a batch of pairs, it
        depends only on the seed and the number. Inputs of which only some solutions are known are left out.

        Raises:
            ConfigError: the task has no input, or does not list every solution.
        """
        puzzles = self.puzzles
        if puzzles.inputs is None:
            raise ConfigError("train.on_policy_depth needs a task with inputs: set it to 0 for p(x)")
        rows = puzzles.complete_rows
        if not len(rows):
            raise ConfigError(
                "train.on_policy_depth needs every solution of every input, and this task lists only some: set it to 0"
            )
        generator = generator_for(self.seed, 2, number)
        groups = 1 if self.sizes is None else GROUP
        index = rows[torch.randint(len(rows), (groups * self.batch,), generator=generator)]
        if self.sizes is not None:
            group = int(torch.randint(groups, (), generator=generator))
            index = self._sort_by_size(index).split(self.batch)[group]
        counts = puzzles.num_solutions[index]
        k = torch.arange(int(counts.max()))[:, None]
        mask = k < counts
        solutions = puzzles.solutions[puzzles.offsets[index] + torch.where(mask, k, 0)].long()
        x = puzzles.inputs[index]
        if self.sizes is not None:
            x, solutions = self.task.spec.crop(x, solutions)
        namings = self.task.namings(x)
        if namings is None:
            return Candidates(x, solutions, mask)
        return Candidates(x, solutions, mask, *namings, self.task.spec.token_mask(x))
