"""The interface that every task implements, and the set of puzzles that a task provides."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from pyro_gram.checks import check_choice
from pyro_gram.errors import InputError
from pyro_gram.registry import TASKS
from pyro_gram.spec import TaskSpec
from pyro_gram.system.text import PuzzleText, numbered_lines
from pyro_gram.tasks.terminal import mark_mistake, painter

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SPLITS = ("train", "validation", "test")
NO_PUZZLE = "there is no puzzle in the text, which is empty or holds comments only"


@dataclass(frozen=True)
class PuzzleSet:
    """A set of inputs, each with its solutions.

    The solutions of all inputs lie in one tensor. In this example the second input has two solutions:

    >>> inputs, solutions = torch.tensor([[0], [1]]), torch.tensor([[5], [6], [7]])
    >>> puzzles = PuzzleSet.from_counts(inputs, solutions, num_solutions=torch.tensor([1, 2]))
    >>> puzzles.solutions_of(1)
    tensor([[6],
            [7]])

    Attributes:
        inputs: int64 ``[N, *event]``; None for p(x). The set then counts as one input, whose solutions are the data.
        solutions: integers ``[M, L_out]`` (uint8 if int64 would take too much memory). The solutions of input i are
            the rows ``offsets[i]`` to ``offsets[i + 1] - 1``.
        offsets: int64 ``[N + 1]``.
        has_all_solutions: True if every solution of every input is listed. Only then can coverage be measured.
        is_complete: bool ``[N]``: whether every solution of an input is listed; None if this is equal for all inputs.
        is_first_version: bool ``[N]``, or None if every row of ``inputs`` is a separate puzzle. A task may list a
            puzzle in several versions, in consecutive rows (ARC: rotated, or in other colours). The entry of a row is
            True if the row holds the first version of its puzzle.
    """

    inputs: Tensor | None
    solutions: Tensor
    offsets: Tensor
    has_all_solutions: bool = True
    is_first_version: Tensor | None = None
    is_complete: Tensor | None = None

    @classmethod
    def from_counts(
        cls, inputs: Tensor | None, solutions: Tensor, num_solutions: Tensor, has_all_solutions: bool = True
    ) -> PuzzleSet:
        """Return a set of puzzles. In order, input i gets the next ``num_solutions[i]`` rows of ``solutions``."""
        offsets = torch.cat((torch.zeros(1, dtype=torch.long), num_solutions.cumsum(0)))
        return cls(inputs, solutions, offsets, has_all_solutions)

    @classmethod
    def from_data(cls, data: Tensor, has_all_solutions: bool = False) -> PuzzleSet:
        """Return the set of a task p(x): it has no inputs, and its solutions are ``data``, integers ``[M, L_out]``."""
        return cls.from_counts(None, data, torch.tensor([len(data)]), has_all_solutions)

    @classmethod
    def concatenate(cls, parts: list[PuzzleSet]) -> PuzzleSet:
        """Join several sets of puzzles. In the result every row counts as a separate puzzle."""
        inputs = torch.cat([part.inputs for part in parts if part.inputs is not None])
        solutions = torch.cat([part.solutions for part in parts])
        num_solutions = torch.cat([part.num_solutions for part in parts])
        has_all_solutions = all(part.has_all_solutions for part in parts)
        union = cls.from_counts(inputs, solutions, num_solutions, has_all_solutions)
        if has_all_solutions:
            return union
        is_complete = torch.zeros(len(union), dtype=torch.bool)
        starts = torch.tensor([0, *(len(part) for part in parts)]).cumsum(0).tolist()
        for start, part in zip(starts, parts, strict=False):
            is_complete[start + part.complete_rows] = True
        return replace(union, is_complete=is_complete)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def complete_rows(self) -> Tensor:
        """The indices of the inputs whose solutions are all listed, int64 ``[K]``."""
        if self.is_complete is not None:
            return self.is_complete.nonzero().flatten()
        return torch.arange(len(self) if self.has_all_solutions else 0)

    @property
    def num_solutions(self) -> Tensor:
        """The number of solutions of each input, int64 ``[N]``."""
        return self.offsets.diff()

    def solutions_of(self, index: int) -> Tensor:
        """Return all solutions of one input, integers ``[m, L_out]``."""
        return self.solutions[self.offsets[index] : self.offsets[index + 1]]

    def sample_targets(self, index: Tensor, generator: torch.Generator) -> Tensor:
        """Draw one solution uniformly for each of the inputs ``index`` (int64 ``[B]``): int64 ``[B, L_out]``."""
        counts = self.num_solutions[index]
        draw = (torch.rand(len(index), generator=generator, dtype=torch.float64) * counts).long()
        return self.solutions[self.offsets[index] + draw].long()

    def sample_pairs(self, count: int, generator: torch.Generator) -> tuple[Tensor | None, Tensor]:
        """Return up to ``count`` pairs (x, y): the first inputs, each with a random solution; for p(x), random data."""
        if self.inputs is None:
            return None, self.solutions[torch.randperm(len(self.solutions), generator=generator)[:count]].long()
        first = self.subset(count)
        return first.inputs, first.sample_targets(torch.arange(len(first)), generator)

    def subset(self, count: int) -> PuzzleSet:
        """Return the first ``count`` puzzles, each with all its versions, or all puzzles if there are fewer."""
        rows = min(count, len(self))
        is_first_version = self.is_first_version
        if is_first_version is not None:
            starts = is_first_version.nonzero().flatten().tolist()
            rows = starts[rows] if rows < len(starts) else len(self)
            is_first_version = is_first_version[:rows]
        return replace(
            self,
            inputs=None if self.inputs is None else self.inputs[:rows],
            solutions=self.solutions[: self.offsets[rows]],
            offsets=self.offsets[: rows + 1],
            is_first_version=is_first_version,
            is_complete=None if self.is_complete is None else self.is_complete[:rows],
        )

    @property
    def first_versions(self) -> PuzzleSet:
        """The set with only the first version of each puzzle."""
        return self if self.is_first_version is None else self.select(self.is_first_version)

    def select(self, index: Tensor) -> PuzzleSet:
        """Return the rows ``index`` (int64, or bool ``[N]``), in that order; each counts as a separate puzzle."""
        assert self.inputs is not None
        counts = self.num_solutions[index]
        first_rows = self.offsets[:-1][index] - (counts.cumsum(0) - counts)
        rows = torch.arange(int(counts.sum())) + first_rows.repeat_interleave(counts)
        selected = PuzzleSet.from_counts(self.inputs[index], self.solutions[rows], counts, self.has_all_solutions)
        return selected if self.is_complete is None else replace(selected, is_complete=self.is_complete[index])


class Task(ABC):
    """A task says where puzzles come from, which answers are right, and how inputs and answers are written.

    A subclass sets :attr:`spec` and implements :meth:`split` and :meth:`violations`; everything else has a default.
    The settings of a task are a frozen dataclass, :attr:`Config`. A task is constructed with such a config and
    ``data_dir``, the folder of data files (None: the default folder). Methods accept any leading batch shape ``[...]``.

    >>> @dataclass(frozen=True)
    ... class NegationConfig:
    ...     bits: int = 3
    >>> class Negation(Task):
    ...     Config = NegationConfig
    ...
    ...     def __init__(self, config, data_dir=None):
    ...         self.n = config.bits
    ...         self.spec = TaskSpec(self.n, None, 2, self.n, 2)
    ...
    ...     def split(self, name):
    ...         x = torch.arange(2**self.n)[:, None] >> torch.arange(self.n) & 1
    ...         x = x[{"train": slice(2, None), "validation": slice(0, 1), "test": slice(1, 2)}[name]]
    ...         return PuzzleSet.from_counts(x, 1 - x, torch.ones(len(x), dtype=torch.long))
    ...
    ...     def violations(self, x, y):
    ...         return (x == y).sum(-1)
    >>> task = Negation(NegationConfig())
    >>> x, y = task.split("test").sample_pairs(1, torch.Generator())
    >>> task.format_input(x[0]), task.format_solution(x[0], y[0]), task.is_valid(x, y)
    ('1 0 0', '0 1 1', tensor([True]))

    A task p(x) has no input: its ``spec.has_input`` is False, its ``split`` returns :meth:`PuzzleSet.from_data`, and
    every x is None.
    """

    Config: ClassVar[type]
    registered_name: ClassVar[str] = ""  # set by ``TASKS.register``
    spec: TaskSpec
    violation_name: ClassVar[str] = "violation"  # the singular noun for what ``violations`` counts
    is_checkable: ClassVar[bool] = True  # False if answers are neither right nor wrong (handwritten digits)
    classifier: ClassVar[str] = ""  # "digits": samples are scored by the digit classifier
    equivalence: ClassVar[str] = ""  # says what ``canonical_form`` ignores: "up to the names of the colours"
    difficulty_label: ClassVar[str] = ""  # an axis label for ``difficulty``
    max_size: int | None = None  # the size of the largest input that is read; None for that of the splits
    size_field: ClassVar[str] = ""  # the config field of an input's size; the config has ``solved_sizes``
    min_colors: int = 0  # the number of colours that is tried first
    max_colors: int = 0  # the largest number of colours that ``with_colors`` accepts; 0 if the task has no such number
    paper_name: str = ""  # the key of this task in diagnostics/paper.toml; empty if the paper has no such task

    # ---- required --------------------------------------------------------------------------------------------------

    @abstractmethod
    def split(self, name: str) -> PuzzleSet:
        """Return the puzzles of ``train``, ``validation`` or ``test``, in random order; no input is in two splits."""

    @abstractmethod
    def violations(self, x: Tensor | None, y: Tensor) -> Tensor:
        """Count the constraints of ``x [..., *event]`` that ``y [..., L_out]`` breaks: int64 ``[...]``; 0 if right."""

    # ---- right and equal answers -----------------------------------------------------------------------------------

    def is_valid(self, x: Tensor | None, y: Tensor) -> Tensor:
        """Return bool ``[...]``: True where ``y`` is a solution of ``x``."""
        return self.violations(x, y) == 0

    def has_known_answer(self, x: Tensor | None, y: Tensor) -> Tensor:
        """Return bool ``[...]``: is it known whether ``y`` is right? By default this is True everywhere."""
        return torch.ones_like(y[..., 0], dtype=torch.bool)

    def canonical_form(self, x: Tensor | None, y: Tensor) -> Tensor:
        """Return the representative of all answers that count as equal to ``y`` (by default ``y`` itself)."""
        return y

    def namings(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return how the values of an answer may be renamed, if some of them are exchangeable (colours); else None.

        Args:
            x: inputs, ``[B, *event]``.

        Returns:
            permutations, int64 ``[P, classes]`` (value v becomes ``permutation[v]``); and bool ``[P, B]``:
            whether a permutation turns every solution of an input into an equal solution.
        """
        return None

    def with_all_names(self, x: Tensor, solutions: Tensor) -> Tensor:
        """Return the answers to one input that count as equal to one of ``solutions``, int64 ``[m, L_out]``, sorted.

        Without exchangeable values these are the solutions themselves.
        """
        renaming = self.namings(x[None])
        if renaming is None:
            return solutions
        namings, is_naming = renaming
        answers = namings[is_naming[:, 0]][:, solutions.long()] * self.spec.token_mask(x)  # [P, m, L_out]
        return answers.flatten(0, 1).unique(dim=0)

    def log_namings(self, x: Tensor | None, y: Tensor) -> Tensor:
        """Return the log of the number of answers that count as equal to ``y``, nats, ``[...]`` (by default 0).

        A model that gives all of them the same probability has log p(y | x) = -log m - this value, for m solutions.
        """
        return torch.zeros(y.shape[:-1], dtype=torch.double)

    def count_solutions(self, x: Tensor) -> int | None:
        """Count the canonical solutions of one input ``x [*event]``; None if their number is unknown or too large."""
        return None

    def extra_metrics(self, puzzles: PuzzleSet, tokens: Tensor) -> dict[str, float]:
        """Return the task's own metrics of ``tokens`` (int64 ``[N, B, L_out]``): N samples for each of B inputs."""
        return {}

    # ---- data ------------------------------------------------------------------------------------------------------

    def augment(self, x: Tensor | None, y: Tensor, generator: torch.Generator) -> tuple[Tensor | None, Tensor]:
        """Apply a random symmetry to each training pair, but never return a held-out input (by default: do nothing).

        Args:
            x: inputs, int64 ``[B, *event]``; None for p(x).
            y: answers, int64 ``[..., B, L_out]``: all answers of an input undergo the same symmetry.
            generator: draws the symmetries.
        """
        return x, y

    def difficulty(self, x: Tensor) -> Tensor | None:
        """Return how hard each input is, ``[...]``, judged from the input alone; None if the task cannot say."""
        return None

    def provenance(self) -> dict[str, str]:
        """Return names and digests of the data files, to be recorded in results and checkpoints (by default none)."""
        return {}

    # ---- text ------------------------------------------------------------------------------------------------------

    def parse(self, text: str) -> Tensor:
        """Parse one input to int64 ``[*event]``. By default the text lists the tokens, separated by spaces or commas.

        Raises:
            InputError: the text is not an input of this task; the message says why.
        """
        if not self.spec.has_input:
            raise InputError(
                f"the task {self._name()} takes no input: its checkpoints are models p(x), "
                "sampled with experiments/sample.py"
            )
        words = text.replace(",", " ").split()
        shape, vocabulary = self.spec.input_shape, self.spec.input_vocabulary
        is_number = all(word.isascii() and word.isdecimal() for word in words)
        if not is_number or len(words) != math.prod(shape) or any(int(word) >= vocabulary for word in words):
            raise InputError(f"an input is {math.prod(shape)} whole numbers from 0 to {vocabulary - 1}")
        return torch.tensor([int(word) for word in words]).view(shape)

    def vertex_names(self, text: str) -> list[str]:
        """Return how a text that :meth:`parse` reads calls the vertices of its graph; nothing if it counts from 0."""
        return []

    def format_input(self, x: Tensor | None) -> str:
        """Return one input as a text that :meth:`parse` reads; an empty text for p(x)."""
        return "" if x is None else " ".join(map(str, x.flatten().tolist()))

    def format_solution(self, x: Tensor | None, y: Tensor) -> str:
        """Return the text of one answer; by default its tokens, separated by spaces."""
        return " ".join(map(str, y.tolist()))

    def title(self, x: Tensor | None) -> str:
        """Return a caption for the picture of one input; by default the text of the input."""
        return self.format_input(x)

    def puzzle_texts(self, text: str) -> list[PuzzleText]:
        """Cut a file's text into puzzles. By default each line is a puzzle; blank lines and ``#`` comments are skipped.

        This never raises: :meth:`parse` reports what is wrong with a puzzle.
        """
        return [PuzzleText(line, number) for number, line in numbered_lines(text)]

    def parse_inputs(self, text: str) -> list[Tensor]:
        """Parse the text of one puzzle. In some tasks (ARC) a puzzle holds several inputs. Raises InputError."""
        return [self.parse(text)]

    def read_inputs(self, text: str) -> Iterator[Tensor]:
        """Yield every input in the text of a file. Raises InputError for the first wrong puzzle."""
        puzzle_texts = self.puzzle_texts(text)
        if not puzzle_texts:
            raise InputError(NO_PUZZLE)
        for puzzle_text in puzzle_texts:
            try:
                yield from self.parse_inputs(puzzle_text.text)
            except InputError as e:
                raise (puzzle_text.locate_error(e) if len(puzzle_texts) > 1 else e) from None

    def parse_graph(self, graph: Any) -> Tensor:
        """Convert a networkx graph to one input, int64 ``[*event]``. Raises InputError (by default always)."""
        raise InputError(f"an input of the task {self._name()} is no graph: give texts")

    def with_colors(self, x: Tensor, colors: int) -> Tensor:
        """Return the input ``x [*event]`` for answers with at most ``colors`` colours.

        Raises:
            InputError: it is proved that no such answer exists; or the task has not so many colours, or no number of
                colours (the default).
        """
        raise InputError(f"the task {self._name()} has no number of colours: leave it out")

    def colors_of(self, x: Tensor) -> Tensor:
        """Return how many colours each input may use, int64 ``[...]``; 0 if the task has no such number."""
        return torch.zeros(x.shape[: x.ndim - len(self.spec.input_shape)], dtype=torch.long)

    # ---- pictures --------------------------------------------------------------------------------------------------

    def plot(self, axes: Axes, x: Tensor | None, y: Tensor | None = None) -> None:
        """Draw one input and, if given, an answer with its mistakes marked; by default as text."""
        axes.text(0.5, 0.5, self.render(x, y), ha="center", va="center", transform=axes.transAxes)
        axes.set_axis_off()

    def render(self, x: Tensor | None, y: Tensor | None = None, colour: bool = False) -> str:
        """Return lines for a terminal: one input and, if given, an answer with a ``!`` after each mistake.

        By default the lines are the texts of input and answer, with one ``!`` after the whole answer if it is wrong.
        ``colour`` only adds escape codes.
        """
        lines = [self.format_input(x)]
        if y is not None:
            solution = self.format_solution(x, y)
            is_wrong = bool(self.has_known_answer(x, y)) and not bool(self.is_valid(x, y))
            lines.append(mark_mistake(solution + " ", painter(colour)) if is_wrong else solution)
        return "\n".join(line for line in lines if line)

    def _name(self) -> str:
        return self.registered_name or type(self).__name__


def check_split(name: str) -> None:
    """Raise ConfigError unless ``name`` is the name of a split."""
    check_choice("split", name, SPLITS)


def make_task(name: str, config: Any, data_dir: str | None = None) -> Task:
    """Construct the task ``name`` from its ``config``; ``data_dir`` is the folder of its data files.

    Raises:
        ConfigError: the task is unknown, or ``data_dir`` is not a folder (even if the task reads no files).
    """
    if data_dir is not None:
        from pyro_gram.system.download import data_folder

        data_folder(data_dir)
    return TASKS.get(name)(config, data_dir)
