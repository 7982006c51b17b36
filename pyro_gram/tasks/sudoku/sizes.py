"""Boards of several sizes for one model: tokens, padding, relations of cells, mistakes and symmetries.

The tokens of an input are 0 for padding, 1 for a blank cell and 2, 3, ... for the digits 1, 2, ... The cells of a board
come first, row by row. If boards have several sizes, padding fills up each input to the largest of them. An answer has
a token for each token of the input, and 0 at padding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from pyro_gram.errors import InputError
from pyro_gram.spec import Structure
from pyro_gram.tasks.base import PuzzleSet
from pyro_gram.tasks.held_out import InputSet, replace_unless_held_out
from pyro_gram.tasks.sudoku.boards import Geometry, conflicts, missing_digits, random_symmetries, solve, transform

PADDING, BLANK, FIRST_DIGIT = 0, 1, 2
MAX_SOLUTIONS_COUNTED = 1000  # if a board has more solutions, they are not counted

RelationsOf = Callable[[int], Tensor]  # maps a size to the relations of its cells, bool [R, size^2, size^2]


@cache
def _relation_table(relations_of: RelationsOf, sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """Return the relations of boards of 0 to n rows, n the largest size: bool ``[n + 1, R, n^2, n^2]``.

    Padding sees only itself.
    """
    length = sizes[-1] ** 2
    num_relations = len(relations_of(sizes[0]))
    table = torch.eye(length, dtype=torch.bool).expand(sizes[-1] + 1, num_relations, length, length).clone()
    for size in sizes:
        table[size, :, : size**2, : size**2] = relations_of(size)
    return table.to(device)


def board_structure(
    x: Tensor, relations_of: RelationsOf, sizes: tuple[int, ...], first_class: int, classes: int
) -> Structure:
    """Return the structure of boards: a given digit stays, and digits beyond the size of a board are closed.

    Args:
        x: tokens, int64 ``[..., L]``.
        relations_of: the relations of the cells of a board; a function of a module, because models are pickled.
        sizes: the sizes that boards may have, in ascending order.
        first_class: the class of the digit 1 in an answer.
        classes: the number of classes of an answer.
    """
    table = _relation_table(relations_of, sizes, x.device)
    value = torch.arange(classes, device=x.device) - first_class
    given_value = (x - FIRST_DIGIT)[..., None]
    is_open = (given_value < 0) | (value == given_value)
    if len(sizes) == 1:
        relations = table[sizes[0]].view(*[1] * (x.ndim - 1), *table.shape[1:])
        return Structure(x, relations, None, is_open & (value >= 0) & (value < sizes[0]))
    mask = x != PADDING
    size = mask.sum(-1).sqrt().round().long()
    relations = table[..., : x.shape[-1], : x.shape[-1]][size]
    is_open = is_open & (value >= 0) & (value < size[..., None, None])
    is_open = torch.where(mask[..., None], is_open, value == -first_class)
    return Structure(x, relations, None if mask.all() else mask, is_open)


class BoardSizes:
    """The boards of a task, of one size or of several.

    Methods accept padded inputs and answers, and those that have lost padding that all inputs of a batch share.

    Args:
        geometries: the geometry of each size, in ascending order.
        first_class: the class of the digit 1 in an answer.
    """

    def __init__(self, geometries: Sequence[Geometry], first_class: int) -> None:
        self.geometries, self.first_class = tuple(geometries), first_class
        self.sizes = tuple(g.size for g in geometries)
        self.length = geometries[-1].cells

    def of(self, x: Tensor) -> Geometry:
        """Return the geometry of one input ``x [L]``. Raises InputError if its tokens are no board."""
        for g, _ in self._by_size(x):
            return g
        sizes = " or ".join(str(g.cells) for g in self.geometries)
        raise InputError(f"{int((x != PADDING).sum())} tokens that are not padding are no board, which has {sizes}")

    def _by_size(self, x: Tensor) -> Iterator[tuple[Geometry, Tensor]]:
        """Yield each size of boards that occurs among the inputs ``[..., L]``, and which of them have it."""
        if len(self.geometries) == 1:
            yield self.geometries[0], torch.ones(x.shape[:-1], dtype=torch.bool, device=x.device)
            return
        cells = (x != PADDING).sum(-1)
        for g in self.geometries:
            is_size = cells == g.cells
            if is_size.any():
                yield g, is_size

    def pad(self, tokens: Tensor) -> Tensor:
        """Pad inputs or answers to the largest board, ``[..., L']`` with L' at most L to ``[..., L]``."""
        return F.pad(tokens, (0, self.length - tokens.shape[-1]))

    def pad_puzzles(self, puzzles: PuzzleSet) -> PuzzleSet:
        """Pad all inputs and solutions."""
        assert puzzles.inputs is not None
        return replace(puzzles, inputs=self.pad(puzzles.inputs), solutions=self.pad(puzzles.solutions))

    def violations(self, x: Tensor, y: Tensor) -> Tensor:
        """Count missing digits, tokens of y that are no digits of the board, changed clues and answers at padding."""
        total = torch.zeros(torch.broadcast_shapes(x.shape[:-1], y.shape[:-1]), dtype=torch.long)
        for g, is_size in self._by_size(x):
            clues, digits = x[..., : g.cells] - FIRST_DIGIT, y[..., : g.cells] - self.first_class
            counts = missing_digits(digits, g) + ((digits < 0) | (digits >= g.size)).sum(-1)
            counts = counts + ((clues >= 0) & (clues != digits)).sum(-1) + (y[..., g.cells :] != 0).sum(-1)
            total = torch.where(is_size, counts, total)
        return total

    def augment(self, x: Tensor, y: Tensor, held_out: InputSet, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Apply a random symmetry to each pair; a pair whose image is held out stays unchanged."""
        flat_x = self.pad(x.reshape(-1, x.shape[-1]))
        flat_y = self.pad(y.reshape(-1, len(flat_x), y.shape[-1]))
        image_x, image_y = flat_x.clone(), flat_y.clone()
        for g, is_size in self._by_size(flat_x):
            rows = is_size.nonzero().flatten()
            cells, digits = random_symmetries(len(rows), g, generator)
            for image, first in ((image_x, FIRST_DIGIT), (image_y, self.first_class)):
                image[..., rows, : g.cells] = transform(image[..., rows, : g.cells], cells, digits, first)
        new_x, new_y = replace_unless_held_out(held_out, flat_x, flat_y, image_x, image_y)
        return new_x[:, : x.shape[-1]].reshape(x.shape), new_y[..., : y.shape[-1]].reshape(y.shape)

    def clues(self, x: Tensor) -> list[int]:
        """Return the digits of one input ``x [L]``, row by row, 0 for a blank."""
        return (x[: self.of(x).cells] - BLANK).clamp(min=0).tolist()

    def digits(self, x: Tensor, y: Tensor) -> list[int]:
        """Return the digits of an answer ``y [L]`` to one input; 0 for a token that is no digit of the board."""
        g = self.of(x)
        digits = y[: g.cells] - self.first_class + 1
        return torch.where((digits < 1) | (digits > g.size), 0, digits).tolist()

    def picture(self, x: Tensor, y: Tensor | None) -> tuple[Geometry, list[int], list[int] | None]:
        """Return what ``pictures.render_puzzle`` and ``draw_board`` draw: geometry, clues, and digits of the answer."""
        return self.of(x), self.clues(x), None if y is None else self.digits(x, y)

    def count_solutions(self, x: Tensor) -> int | None:
        """Count the solutions of one input; None for more than ``MAX_SOLUTIONS_COUNTED``."""
        count = len(solve(self.clues(x), self.of(x), MAX_SOLUTIONS_COUNTED + 1))
        return count if count <= MAX_SOLUTIONS_COUNTED else None

    def to_input(self, board: Sequence[int]) -> Tensor:
        """Convert the digits of a board, 0 for a blank, to an input ``[L]``.

        Raises:
            InputError: a digit is too large or repeated, or the board has no solution.
        """
        g = next(g for g in self.geometries if g.cells == len(board))
        if max(board) > g.size:
            raise InputError(
                f"the digit {max(board)} does not belong on a {g.size}x{g.size} board, whose digits are 1 to {g.size}"
            )
        for unit, digit, _ in conflicts(board, g):
            raise InputError(f"the clues contradict each other: {g.unit_name(unit)} has {digit} twice")
        if not solve(board, g, limit=1):
            raise InputError("the puzzle has no solution (checked exactly)")
        return self.pad(torch.tensor(board) + BLANK)
