"""The layout ``graph``: graphs of any size, with clues, as tokens.

An input is a matrix ``[n, n]``. Off the diagonal it holds the adjacency matrix. The diagonal holds a token for each
vertex, which says whether the vertex has a clue, and how many colours the input may use; or it holds the token of
padding.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from pyro_gram.spec import Structure
from pyro_gram.tasks.coloring.config import MIN_COLORS

FREE = -1  # the clue of a vertex without a clue
RELATIONS = 3  # neighbours, non-neighbours, all


class GraphBatch(NamedTuple):
    """The parts of inputs in layout ``graph``.

    Attributes:
        adjacency: symmetric, bool ``[..., n, n]``.
        clues: the given colours, int64 ``[..., n]``; -1 for a vertex without a clue, and at padding.
        num_colors: how many colours each input may use, int64 ``[...]``.
        mask: bool ``[..., n]``, False at padding.
    """

    adjacency: Tensor
    clues: Tensor
    num_colors: Tensor
    mask: Tensor


def padding_token(colors: int) -> int:
    """Return the token of padding, the largest one, if the task has at most ``colors`` colours."""
    return 2 + (colors + 1) * (colors - MIN_COLORS + 1)


def encode_graphs(adjacency: Tensor, clues: Tensor, num_colors: Tensor, colors: int, size: int) -> Tensor:
    """Convert graphs without padding to tokens, int64 ``[..., size, size]``.

    Args:
        adjacency: bool ``[..., n, n]``.
        clues: int64 ``[..., n]``, -1 for a vertex without a clue.
        num_colors: int64 ``[...]``.
        colors: the most colours of the task.
        size: at least n; the tokens are padded to this size.
    """
    n = adjacency.shape[-1]
    tokens = 2 + (clues + 1) + (colors + 1) * (num_colors[..., None] - MIN_COLORS)
    x = pad(adjacency.long(), (0, size - n, 0, size - n))
    x.diagonal(dim1=-2, dim2=-1).copy_(pad(tokens, (0, size - n), value=padding_token(colors)))
    return x


def decode_graphs(x: Tensor, colors: int) -> GraphBatch:
    """Convert tokens ``[..., n, n]``, cropped or padded, to graphs."""
    tokens = x.diagonal(dim1=-2, dim2=-1)
    mask = tokens != padding_token(colors)
    more_colors = torch.where(mask, (tokens - 2) // (colors + 1), 0).amax(-1)
    clues = torch.where(mask, (tokens - 2) % (colors + 1) - 1, FREE)
    return GraphBatch(x == 1, clues, MIN_COLORS + more_colors, mask)  # no token of the diagonal is 1


def graph_structure(x: Tensor, colors: int) -> Structure:
    """Return how the vertices of inputs ``[..., n, n]`` relate, and which colours each vertex may have.

    The relations are neighbours, non-neighbours and all. A vertex with a clue has only the colour of its clue, and
    colours beyond the number of an input are closed.
    """
    graphs = decode_graphs(x, colors)
    mask = graphs.mask
    is_self = torch.eye(x.shape[-1], dtype=torch.bool, device=x.device)
    everything = mask[..., :, None] & mask[..., None, :]
    others = everything & ~graphs.adjacency
    relations = torch.stack((graphs.adjacency, others, everything), -3) | is_self
    color = torch.arange(colors, device=x.device)
    clues = graphs.clues[..., None]
    values = (color < graphs.num_colors[..., None, None]) & ((clues == FREE) | (color == clues))
    values = torch.where(mask[..., None], values, color == 0)
    return Structure(x.diagonal(dim1=-2, dim2=-1), relations, None if mask.all() else mask, values)


def canonical_names(y: Tensor, is_fixed: Tensor, mask: Tensor) -> Tensor:
    """Rename colours in order of first appearance, except colours whose name is fixed.

    In order of their first vertex, the other colours get the names that are not fixed, in ascending order.

    Args:
        y: int64 ``[..., n]``.
        is_fixed: bool ``[..., colors]``. Leading dimensions of the three tensors are broadcast.
        mask: bool ``[..., n]``, False at padding. The result is 0 there.
    """
    n, colors = y.shape[-1], is_fixed.shape[-1]
    color = torch.arange(colors, device=y.device)
    vertex = torch.arange(n, device=y.device)[:, None]
    has_color = (y[..., None] == color) & mask[..., None]  # [..., n, colors]
    first_vertex = torch.where(has_color, vertex, n).amin(-2)
    rank = first_vertex.masked_fill(is_fixed, n + 1).argsort(dim=-1, stable=True).argsort(dim=-1)
    open_names = (is_fixed.long() * colors + color).argsort(dim=-1)  # the fixed names come last
    names = torch.where(is_fixed, color, open_names.expand_as(rank).gather(-1, rank))
    return torch.where(mask, names.expand(*y.shape[:-1], colors).gather(-1, y), 0)


def fixed_names(graphs: GraphBatch, colors: int) -> Tensor:
    """Return which colours keep their name, bool ``[..., colors]``.

    They are those of clues, and those beyond the number of the input, so that no renaming makes a wrong answer right.
    """
    color = torch.arange(colors, device=graphs.clues.device)
    return (graphs.clues[..., None] == color).any(-2) | (color >= graphs.num_colors[..., None])
