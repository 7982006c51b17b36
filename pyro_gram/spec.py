"""The shapes of a task's inputs and answers. Networks, models and guides need to know only these shapes of a task."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TaskSpec:
    """The shapes and vocabularies that networks are built for.

    Four examples:

    >>> sequence = TaskSpec(input_length=9, input_features=None, input_vocabulary=5, output_length=9, output_classes=4)
    >>> sequence.input_shape
    (9,)
    >>> TaskSpec(8, 8, 3, 8, 3).input_shape  # eight tokens at each of eight positions: an adjacency matrix
    (8, 8)
    >>> TaskSpec(9, None, 5, 9, 5, puzzles=7).input_shape  # the number of the puzzle, then nine tokens
    (10,)
    >>> TaskSpec(49, None, 0, 784, 2, image=(28, 28), patch=4).has_input  # p(x) of images
    False

    Attributes:
        input_length: L, the positions of the sequence.
        input_features: F, the tokens at each position (x is ``[B, L, F]``), or None for one token (x is ``[B, L]``).
        input_vocabulary: input tokens lie in ``[0, input_vocabulary)``; 0 if the task has no input (p(x)).
        output_length: L_out, the tokens of an answer. They stand at the last positions of the sequence.
        output_classes: output tokens lie in ``[0, output_classes)``.
        puzzles: if positive, x is ``[B, 1 + L]`` and its first token is the number of the puzzle, in
            ``[0, puzzles)``; each puzzle has a learned embedding (ARC).
        image: rows and columns, if an answer is an image; else None. The L_out pixels are stored row by row.
        patch: side in pixels of the square that one position of the sequence represents (images only).
    """

    input_length: int
    input_features: int | None
    input_vocabulary: int
    output_length: int
    output_classes: int
    puzzles: int = 0
    image: tuple[int, int] | None = None
    patch: int = 1

    @property
    def has_input(self) -> bool:
        """True for p(y | x); False for a program p(x), whose answers are the data."""
        return self.input_vocabulary > 0

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Return the event shape of x."""
        if self.puzzles:
            return (1 + self.input_length,)
        return (self.input_length,) if self.input_features is None else (self.input_length, self.input_features)
