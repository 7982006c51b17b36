"""The layout ``square`` of N-Queens: boards of 4 to 20 rows, which are padded to the size of the largest one.

An input has one token for each row: 0 (no queen), 1 + the column of the queen, or :data:`PADDING`. The positions of a
network are the squares (row, column), row by row. A square sees the squares of its row, its column and its two
diagonals, so that a network knows the rules of the game, and not the size of the board.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import pad

from pyro_gram.spec import Structure
from pyro_gram.tasks.nqueens.boards import board_symmetries

MAX_SIZE = 20
PADDING = MAX_SIZE + 1  # whatever the largest board of the splits is, so that a network solves boards of 20 rows
VOCABULARY = MAX_SIZE + 2
RELATIONS = 4  # one row, one column, one diagonal, one antidiagonal
FREE, QUEEN, NO_QUEEN = 0, 1, 2  # tokens of a square: its row is blank; its row has a queen here, or elsewhere


def board_sizes(x: Tensor) -> Tensor:
    """Return the number of rows of each input, int64 ``[...]``, for ``x [..., n]``."""
    return (x != PADDING).sum(-1)


def pad_inputs(x: Tensor, length: int) -> Tensor:
    """Pad inputs ``[..., n]`` to ``[..., length]``."""
    return pad(x, (0, length - x.shape[-1]), value=PADDING)


def pad_answers(y: Tensor, length: int) -> Tensor:
    """Pad answers ``[..., n]`` to ``[..., length]``; answers have 0 at padding."""
    return pad(y, (0, length - y.shape[-1]))


def squares_on_board(x: Tensor) -> Tensor:
    """Return which squares are not padding, bool ``[..., n, n]``, for ``x [..., n]``."""
    is_row = x != PADDING
    return is_row[..., None] & is_row[..., None, :]  # row i is padding exactly if column i is


def square_structure(x: Tensor) -> Structure:
    """Return the structure of inputs ``x [..., n]`` of 4 to 20 rows; its positions are the n * n squares.

    A row with a queen may only take the column of this queen. Columns that queens of other rows attack stay open:
    to exclude them is what a network learns.
    """
    n = x.shape[-1]
    column = torch.arange(n, device=x.device)
    on_board = squares_on_board(x)
    is_row = on_board.diagonal(dim1=-2, dim2=-1)
    has_queen = (is_row & (x > 0))[..., None]
    is_queen = column == (x - 1)[..., None]
    tokens = torch.where(has_queen, torch.where(is_queen, QUEEN, NO_QUEEN), FREE)
    values = torch.where(is_row[..., None], on_board & (is_queen | ~has_queen), column == 0)
    tokens = torch.where(on_board, tokens, PADDING).flatten(-2)
    return Structure(tokens, *_visible_squares(x, on_board.flatten(-2)), values)


def _visible_squares(x: Tensor, on_board: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the relations and the mask of a structure. Inputs of one size have one tensor of relations.

    Args:
        x: inputs, int64 ``[..., n]``.
        on_board: which squares are not padding, bool ``[..., n * n]``.
    """
    n = x.shape[-1]
    relations = line_relations(n, x.device)
    smallest, largest = torch.stack(board_sizes(x).aminmax()).tolist()
    if smallest == n:
        return relations.view(*[1] * (x.ndim - 1), *relations.shape), None
    mask = on_board
    if smallest == largest:
        on_board = on_board.view(-1, n * n)[0].view(*[1] * (x.ndim - 1), n * n)
    is_self = torch.eye(n * n, dtype=torch.bool, device=x.device)
    is_visible = (on_board[..., None, :] & on_board[..., None]) | is_self
    return relations & is_visible[..., None, :, :], mask


@cache
def line_relations(n: int, device: torch.device) -> Tensor:
    """Return which squares share a row, column, diagonal or antidiagonal: bool ``[4, n * n, n * n]``."""
    r, c = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
    lines = torch.stack([line.flatten() for line in (r, c, r - c, r + c)])
    return (lines[:, :, None] == lines[:, None, :]).to(device)


@cache
def padded_symmetries(n: int) -> Tensor:
    """Return the symmetries of boards of m <= n rows, padded to n rows: int64 ``[n + 1, 8, n * n]``; m comes first.

    As in :func:`~pyro_gram.tasks.nqueens.boards.board_symmetries`, ``image[i] = board[p[i]]``. Padding stays.
    """
    square = torch.arange(n * n)
    tables = square.repeat(n + 1, 8, 1)
    for m in range(1, n + 1):
        on_board = square.view(n, n)[:m, :m].flatten()
        tables[m][:, on_board] = on_board[board_symmetries(m)]
    return tables
