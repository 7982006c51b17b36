"""Read the puzzles of a user's files, and report those that cannot be solved."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from pyro_gram.errors import InputError, UserError
from pyro_gram.system.text import MAX_PUZZLE_BYTES, make_printable, normalize_text, read_text
from pyro_gram.tasks.base import NO_PUZZLE, Task
from pyro_gram.tasks.inputs import input_with_colors

STDIN_NAME = "standard input"  # in messages


@dataclass(frozen=True)
class Source:
    """A text of puzzles, and the name of its file in messages."""

    name: str
    text: str


def read_sources(files: list[str], option: str | None = None) -> list[Source]:
    """Read the texts of all ``files``, of the file that ``--input`` names, or of stdin.

    Raises:
        InputError: a text is empty.
        UserError: no file is named, and stdin is a terminal.
    """
    if option is not None:
        return [read_source(option, f"--input {option}")]
    if files:
        return [read_source(file, STDIN_NAME if file == "-" else file) for file in files]
    if sys.stdin is not None and sys.stdin.isatty():
        raise UserError("there is no puzzle: name a FILE, or pipe a text (- reads what you type)")
    return [read_source("-", STDIN_NAME)]


def read_source(file: str, name: str) -> Source:
    """Read the text of a file or, for ``-``, of stdin. Raises InputError if it is empty."""
    if file != "-":
        text = read_text(Path(file), name, MAX_PUZZLE_BYTES)
    elif sys.stdin is None:
        raise InputError("standard input is closed: name a FILE")
    else:
        stream = getattr(sys.stdin, "buffer", None)
        text = read_text(stream, name, MAX_PUZZLE_BYTES) if stream else normalize_text(sys.stdin.read())
    if not text.strip():
        raise InputError(f"{name} is empty: give one puzzle per line")
    return Source(name, text)


@dataclass(frozen=True)
class FailedInput:
    """The text of an input that cannot be solved, and the reason."""

    text: str
    error: str

    def show(self) -> str:
        """Return the line that is printed without ``--json``."""
        return f"{make_printable(' '.join(self.text.split()), 80)}: not solved: {make_printable(self.error)}\n"

    def to_dict(self) -> dict[str, str]:
        """Return the object that ``--json`` prints."""
        return {"input": self.text, "error": self.error}


def read_inputs(task: Task, text: str, colors: int | None, keep_going: bool) -> list[Tensor | FailedInput]:
    """Read every input of a text, and check that ``colors`` may suffice for it.

    With ``keep_going``, an input that cannot be solved becomes a FailedInput; otherwise it raises InputError.
    """
    if colors is None and not keep_going:
        return list(task.read_inputs(text))
    inputs: list[Tensor | FailedInput] = []
    pieces = task.puzzle_texts(text)
    if not pieces:
        raise InputError(NO_PUZZLE)
    for piece in pieces:
        try:
            rows = task.parse_inputs(piece.text)
            if colors is not None:
                for x in rows:
                    input_with_colors(task, x[None], colors)
            inputs += rows
        except InputError as e:
            error = piece.locate_error(e) if len(pieces) > 1 else e
            if not keep_going:
                raise error from None
            inputs.append(FailedInput(piece.text.strip(), str(error)))
    return inputs


def names_of_vertices(task: Task, text: str, inputs: list[Tensor | FailedInput]) -> list[list[str]]:
    """Return how a text calls the vertices of each of its inputs; nothing where it counts them from 0."""
    if not task.max_colors:
        return [[] for _ in inputs]
    pieces = zip(task.puzzle_texts(text), inputs, strict=True)
    return [[] if isinstance(x, FailedInput) else task.vertex_names(piece.text) for piece, x in pieces]
