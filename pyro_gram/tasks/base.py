"""What a task must provide, and the puzzle set that it hands out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from pyro_gram.checks import check_choice

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class TaskSpec:
    """The shapes that networks are built for.

    Attributes:
        input_length: L of x.
        input_features: tokens a position (x is ``[B, L, F]``), or None for one (x is ``[B, L]``).
        input_vocabulary: input tokens lie in ``[0, input_vocabulary)``.
        output_length: L of y; an answer stands at the last ``output_length`` positions of the sequence.
        output_classes: output tokens lie in ``[0, output_classes)``.
    """

    input_length: int
    input_features: int | None
    input_vocabulary: int
    output_length: int
    output_classes: int


@dataclass(frozen=True)
class PuzzleSet:
    """Inputs and, for each, every solution.

    Attributes:
        inputs: int64 ``[N, ...]``.
        solutions: int64 ``[M, L_out]``, the solutions of input i at rows ``offsets[i] : offsets[i + 1]``.
        offsets: int64 ``[N + 1]``.
    """

    inputs: Tensor
    solutions: Tensor
    offsets: Tensor

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def num_solutions(self) -> Tensor:
        """int64 ``[N]``."""
        return self.offsets.diff()

    def solutions_of(self, index: int) -> Tensor:
        """All solutions of one input, int64 ``[m, L_out]``."""
        return self.solutions[self.offsets[index] : self.offsets[index + 1]]

    def sample_targets(self, index: Tensor, generator: torch.Generator) -> Tensor:
        """One solution of each input ``index`` (int64 ``[B]``), uniform over its solutions: int64 ``[B, L_out]``."""
        counts = self.num_solutions[index]
        draw = (torch.rand(len(index), generator=generator, dtype=torch.float64) * counts).long()
        return self.solutions[self.offsets[index] + draw]

    def subset(self, count: int) -> PuzzleSet:
        """The first ``count`` puzzles (all, where there are fewer)."""
        count = min(count, len(self))
        return PuzzleSet(self.inputs[:count], self.solutions[: self.offsets[count]], self.offsets[: count + 1])


class Task(ABC):
    """A problem: where its data comes from, what is right, how it reads and looks.

    Subclasses are registered in ``TASKS``, name their frozen config dataclass as ``Config``, and take
    ``(config, data_dir)``. Every tensor argument may have any leading shape.
    """

    Config: ClassVar[type]
    registered_name: ClassVar[str] = ""
    spec: TaskSpec
    unit: ClassVar[str] = "violation"  # what ``violations`` counts, in the singular

    @abstractmethod
    def split(self, name: str) -> PuzzleSet:
        """The puzzles of ``train``, ``validation`` or ``test``; no input, nor a symmetry of it, in two of them."""

    @abstractmethod
    def violations(self, x: Tensor, y: Tensor) -> Tensor:
        """int64 ``[...]``: how many constraints of ``x [..., *event]`` the answer ``y [..., L_out]`` breaks."""

    @abstractmethod
    def parse(self, text: str) -> Tensor:
        """One input from its text: int64 ``[*event]``. Raises InputError naming what is wrong."""

    @abstractmethod
    def format_input(self, x: Tensor) -> str:
        """The text of one input, as ``parse`` reads it."""

    @abstractmethod
    def format_solution(self, x: Tensor, y: Tensor) -> str:
        """The text of one answer."""

    @abstractmethod
    def draw(self, axes: Axes, x: Tensor, y: Tensor | None = None) -> None:
        """A picture of one input and, where given, an answer with its mistakes marked."""

    def read(self, text: str) -> Iterator[Tensor]:
        """Every input in the text of a file. The default: one a line, blank lines skipped."""
        for line in text.splitlines():
            if line.strip():
                yield self.parse(line.strip())

    def valid(self, x: Tensor, y: Tensor) -> Tensor:
        """bool ``[...]``: is the answer right?"""
        return self.violations(x, y) == 0

    def canonical(self, x: Tensor, y: Tensor) -> Tensor:
        """The representative of all answers that count as the same. The default: the answer itself."""
        return y

    def augment(self, x: Tensor, y: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A random symmetry of each training pair that is never a held-out input. The default: none."""
        return x, y


def check_split(name: str) -> None:
    """Raises ConfigError unless ``name`` is a split."""
    check_choice("split", name, SPLITS)


def make_task(name: str, config: Any, data_dir: str | None = None) -> Task:
    """The task ``name`` with its ``config``; ``data_dir`` holds the files of tasks that read any."""
    from pyro_gram.registry import TASKS

    return TASKS.get(name)(config, data_dir)
