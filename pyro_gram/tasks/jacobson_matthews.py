"""Uniform random Latin squares, by the Markov chain of Jacobson and Matthews (J. Combin. Designs 4, 1996)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot


def random_latin_squares(size: int, count: int, generator: torch.Generator, moves: int = 0) -> Tensor:
    """Draw Latin squares, digits from 1: int64 ``[count, size^2]``.

    A square is a cube of 0 and 1 with entry 1 at (row, column, digit). A move adds 1 to four entries of a small cube
    within it and takes 1 from the other four. An entry may become -1; moves through such improper squares follow until
    the square is proper again. The chain of proper squares is uniform over all Latin squares in the limit of many
    moves. It starts at the cyclic square, so after finitely many moves it is uniform only nearly; the tests
    measure how nearly.

    Args:
        size: at least 2.
        count: the number of squares, from independent chains.
        generator: the source of all draws.
        moves: the proper squares that each chain visits; 0 for ``2 size^2``.
    """
    row, n = torch.arange(size), torch.arange(count)
    cube = one_hot((row[:, None] + row) % size, size).to(torch.int8).repeat(count, 1, 1, 1)  # [n, row, column, digit]
    moves_left = torch.full((count,), moves or 2 * size**2)
    improper = torch.full((3, count), -1)  # row, column and digit of the entry -1 of an improper square
    signs = torch.tensor([1, -1, -1, 1, -1, 1, 1, -1], dtype=torch.int8)[:, None]
    strides = torch.tensor([size**2, size, 1])[:, None]

    while len(n):
        r, c = torch.randint(size, (2, len(n)), generator=generator)
        shift = torch.randint(1, size, (len(n),), generator=generator)
        v = (cube[n, r, c].argmax(-1) + shift) % size  # a digit that the cell does not have
        first = torch.where(improper[0, n] < 0, torch.stack((r, c, v)), improper[:, n])
        r, c, v = first
        is_one = torch.stack((cube[n, :, c, v], cube[n, r, :, v], cube[n, r, c])) == 1  # [3, n, size]
        # Each line has a single 1, but two if its middle is the entry -1. One of them is drawn.
        second = (torch.rand(is_one.shape, generator=generator) * is_one).argmax(-1)
        offsets = torch.stack((first, second), 1) * strides[:, None]
        corners = offsets[0][:, None, None] + offsets[1][:, None] + offsets[2] + n * size**3  # [2, 2, 2, n]
        cube.view(-1).index_add_(0, corners.flatten(), signs.expand(8, len(n)).flatten())
        is_proper = cube.view(-1)[corners[1, 1, 1]] >= 0
        improper[:, n] = torch.where(is_proper, -1, second)
        moves_left[n] -= is_proper.long()
        n = n[moves_left[n] > 0]
    return cube.argmax(-1).flatten(1) + 1
