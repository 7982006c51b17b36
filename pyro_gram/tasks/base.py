"""What a task must provide, and the puzzle set that it hands out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from pyro_gram.checks import check_choice
from pyro_gram.errors import ConfigError, InputError
from pyro_gram.spec import TaskSpec
from pyro_gram.system.download import data_folder
from pyro_gram.system.text import PuzzleText, numbered_lines
from pyro_gram.tasks.terminal import mark, painter

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SPLITS = ("train", "validation", "test")
NO_PUZZLE = "there is no puzzle in the text, which is empty or holds comments only"


@dataclass(frozen=True)
class PuzzleSet:
    """Inputs and, for each, its solutions.

    Attributes:
        inputs: int64 ``[N, ...]``; None for the empty condition of p(x), which is one input: its solutions are data.
        solutions: integers ``[M, L_out]`` (uint8 where int64 would be large), those of input i at rows
            ``offsets[i] : offsets[i + 1]``.
        offsets: int64 ``[N + 1]``.
        complete: are these all the solutions? If not, coverage has no meaning and is left out.
        primary: bool ``[N]``, where several rows are versions of one input (ARC): True for the first of each, which is
            what counts as an input; its versions follow it. None where every row is an input.
    """

    inputs: Tensor | None
    solutions: Tensor
    offsets: Tensor
    has_all_solutions: bool = True
    is_first_version: Tensor | None = None

    @classmethod
    def from_data(cls, data: Tensor, has_all_solutions: bool = False) -> PuzzleSet:
        """The empty condition, with ``data`` int64 ``[M, L_out]`` for its solutions."""
        return cls(None, data, torch.tensor([0, len(data)]), has_all_solutions)

    @classmethod
    def concatenate(cls, parts: list[PuzzleSet]) -> PuzzleSet:
        """The puzzles of several sets, one after the other, each counted as an input of its own."""
        inputs = [part.inputs for part in parts if part.inputs is not None]
        counts = torch.cat([part.num_solutions for part in parts])
        offsets = torch.cat((torch.zeros(1, dtype=torch.long), counts.cumsum(0)))
        solutions = torch.cat([part.solutions for part in parts])
        return cls(torch.cat(inputs), solutions, offsets, all(part.has_all_solutions for part in parts))

    def __len__(self) -> int:
        return len(self.offsets) - 1

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
        return self.solutions[self.offsets[index] + draw].long()

    def sample_pairs(self, count: int, generator: torch.Generator) -> tuple[Tensor | None, Tensor]:
        """Up to ``count`` pairs (x, y): the first inputs with a target each, or for p(x) data drawn at random."""
        if self.inputs is None:
            return None, self.solutions[torch.randperm(len(self.solutions), generator=generator)[:count]].long()
        first = self.subset(count)
        return first.inputs, first.sample_targets(torch.arange(len(first)), generator)

    def subset(self, count: int) -> PuzzleSet:
        """The first ``count`` puzzles (all, where there are fewer), each with all its versions."""
        count = min(count, len(self))
        primary = self.is_first_version
        if primary is not None:
            starts = primary.nonzero().flatten().tolist()
            count = starts[count] if count < len(starts) else len(self)
            primary = primary[:count]
        inputs = None if self.inputs is None else self.inputs[:count]
        return replace(
            self,
            inputs=inputs,
            solutions=self.solutions[: self.offsets[count]],
            offsets=self.offsets[: count + 1],
            is_first_version=primary,
        )

    @property
    def first_versions(self) -> PuzzleSet:
        """Of versions of one input the first, each an input of its own; all where there are no versions."""
        return self if self.is_first_version is None else self.select(self.is_first_version)

    def select(self, index: Tensor) -> PuzzleSet:
        """The puzzles at ``index`` (int64, or bool ``[N]``), in its order, each counted as an input of its own."""
        assert self.inputs is not None
        counts = self.num_solutions[index]
        offsets = torch.cat((torch.zeros(1, dtype=torch.long), counts.cumsum(0)))
        rows = torch.arange(int(offsets[-1])) + (self.offsets[:-1][index] - offsets[:-1]).repeat_interleave(counts)
        return replace(
            self, inputs=self.inputs[index], solutions=self.solutions[rows], offsets=offsets, is_first_version=None
        )


class Task(ABC):
    """A problem: where its data comes from, what is right, how it reads and looks.

    Subclasses are registered in ``TASKS``, name their frozen config dataclass as ``Config``, and take
    ``(config, data_dir)``. Every tensor argument may have any leading shape; x is None in tasks without input.
    """

    Config: ClassVar[type]
    registered_name: ClassVar[str] = ""
    spec: TaskSpec
    violation_name: ClassVar[str] = "violation"  # what ``violations`` counts, in the singular
    is_checkable: ClassVar[bool] = True  # can an answer be right or wrong? (a handwritten digit cannot)
    classifier: ClassVar[str] = ""  # what judges samples of images: "digits", or nothing
    paper_name: str = ""  # what the tables of the paper call this very problem; nothing where they do not have it
    equivalence: ClassVar[str] = ""  # which answers count as the same, beside how many there are
    difficulty_label: ClassVar[str] = ""  # of an axis: what ``difficulty`` counts

    @abstractmethod
    def split(self, name: str) -> PuzzleSet:
        """The puzzles of ``train``, ``validation`` or ``test``, in random order; no input is in two of them."""

    @abstractmethod
    def violations(self, x: Tensor | None, y: Tensor) -> Tensor:
        """int64 ``[...]``: how many constraints of ``x [..., *event]`` the answer ``y [..., L_out]`` breaks."""

    @abstractmethod
    def parse(self, text: str) -> Tensor:
        """One input from its text: int64 ``[*event]``. Raises InputError naming what is wrong."""

    @abstractmethod
    def format_input(self, x: Tensor | None) -> str:
        """The text of one input, as ``parse`` reads it."""

    def title(self, x: Tensor | None) -> str:
        """What one input is called where it is shown beside its picture. The default: :meth:`format_input`."""
        return self.format_input(x)

    @abstractmethod
    def format_solution(self, x: Tensor | None, y: Tensor) -> str:
        """The text of one answer."""

    @abstractmethod
    def plot(self, axes: Axes, x: Tensor | None, y: Tensor | None = None) -> None:
        """A picture of one input and, where given, an answer with its mistakes marked."""

    def render(self, x: Tensor | None, y: Tensor | None = None, colour: bool = False) -> str:
        """A few lines for a terminal: one input and, where given, an answer with its mistakes marked.

        ``colour`` adds escape codes and changes nothing else. The default: the texts, and a mark behind a wrong answer.
        """
        lines = [self.format_input(x)]
        if y is not None:
            solution = self.format_solution(x, y)
            wrong = bool(self.has_known_answer(x, y)) and not bool(self.is_valid(x, y))
            lines.append(mark(solution + " ", painter(colour)) if wrong else solution)
        return "\n".join(line for line in lines if line)

    def puzzle_texts(self, text: str) -> list[PuzzleText]:
        """The puzzles in the text of a file, each as text. The default: one a line, without blank and ``#`` lines.

        It only cuts the text up, and raises nothing: what is wrong with a piece is for :meth:`parse` to say.
        """
        return [PuzzleText(line, number) for number, line in numbered_lines(text)]

    def parse_inputs(self, text: str) -> list[Tensor]:
        """The inputs of one piece. The default: one. Raises InputError."""
        return [self.parse(text)]

    def read_inputs(self, text: str) -> Iterator[Tensor]:
        """Every input in the text of a file. Raises InputError at the first that is none, saying where it is."""
        pieces = self.puzzle_texts(text)
        if not pieces:
            raise InputError(NO_PUZZLE)
        for piece in pieces:
            try:
                yield from self.parse_inputs(piece.text)
            except InputError as e:
                raise (piece.locate_error(e) if len(pieces) > 1 else e) from None

    def count_solutions(self, x: Tensor) -> int | None:
        """How many answers of one input ``x [*event]`` are right, counted as :meth:`canonical` does.

        None where that is not known, or too many to be counted. The default.
        """
        return None

    def parse_graph(self, graph: Any) -> Tensor:
        """One input from a networkx graph: int64 ``[*event]``. Raises InputError; the default: always."""
        raise InputError(f"an input of the task {self.registered_name or type(self).__name__} is no graph: give texts")

    def is_valid(self, x: Tensor | None, y: Tensor) -> Tensor:
        """bool ``[...]``: is the answer right?"""
        return self.violations(x, y) == 0

    def has_known_answer(self, x: Tensor | None, y: Tensor) -> Tensor:
        """bool ``[...]``: can the task tell whether the answer is right? The default: always."""
        return torch.ones_like(y[..., 0], dtype=torch.bool)

    def fresh_inputs(self, count: int, data_seed: int) -> PuzzleSet:
        """``count`` puzzles of another seed, none a symmetry of a puzzle of any split or of another one of them.

        They measure a checkpoint on inputs that nobody saw while its settings were chosen. Beside the inputs of a split
        they lean towards what is rare, where the splits hold a good part of all classes of symmetric inputs.

        Raises:
            ConfigError: the task makes none (the default), or not so many were met.
        """
        name = self.registered_name or type(self).__name__
        raise ConfigError(f"the task {name} makes no fresh inputs: measure on its test split")

    def difficulty(self, x: Tensor) -> Tensor | None:
        """float or int64 ``[B]``: what makes inputs harder, told by the input alone; None where nothing is known."""
        return None

    def provenance(self) -> dict[str, str]:
        """What of outside the data come from: names and digests, for results and checkpoints. The default: nothing."""
        return {}

    def canonical_form(self, x: Tensor | None, y: Tensor) -> Tensor:
        """The representative of all answers that count as the same. The default: the answer itself."""
        return y

    def augment(self, x: Tensor | None, y: Tensor, generator: torch.Generator) -> tuple[Tensor | None, Tensor]:
        """A random symmetry of each training pair that is never a held-out input. The default: none."""
        return x, y

    def extra_metrics(self, puzzles: PuzzleSet, tokens: Tensor) -> dict[str, float]:
        """Further figures of this task, from samples ``tokens`` int64 ``[N, B, L_out]`` for ``puzzles``."""
        return {}


class GenerativeTask(Task):
    """A task without input: its answers are data, and the program is p(x).

    ``split`` returns ``PuzzleSet.from_data``; every x is None. Subclasses implement :meth:`split`,
    :meth:`violations`, :meth:`format_solution` and :meth:`draw`.
    """

    def parse(self, text: str) -> Tensor:
        raise InputError(
            f"the task {self.registered_name or type(self).__name__} takes no input: its checkpoints are models p(x), "
            "sampled with experiments/sample.py"
        )

    def format_input(self, x: Tensor | None) -> str:
        return ""


def check_split(name: str) -> None:
    """Raises ConfigError unless ``name`` is a split."""
    check_choice("split", name, SPLITS)


def make_task(name: str, config: Any, data_dir: str | None = None) -> Task:
    """The task ``name`` with its ``config``; ``data_dir`` holds the files of tasks that read any.

    Raises:
        ConfigError: an unknown task, or a ``data_dir`` that is no directory, whether the task reads files or not.
    """
    from pyro_gram.registry import TASKS

    if data_dir is not None:
        data_folder(data_dir)
    return TASKS.get(name)(config, data_dir)
