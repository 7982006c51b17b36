"""Boards for the tests of Sudoku, and slow algorithms with which the tests compare the package."""

import itertools

import numpy as np
import torch

from pyro_gram.tasks.sudoku.boards import BOXES, random_grids

SIZES = (4, 6, 9)
QUESTION = ".47.5....6.9.3.4..53..........9..6.....3.6.82.....5.4.79...4..64.37......56.9...."
ANSWER = "247659318689137425531482967874921653915346782362875149798514236423768591156293874"


def blocks(size):
    """Yield rows, columns and boxes as sets of (row, column), computed without the tables of the package."""
    h, w = BOXES[size]
    span = range(size)
    yield from ({(r, c) for c in span} for r in span)
    yield from ({(r, c) for r in span} for c in span)
    yield from ({(r, c) for r in span for c in span if r // h == i and c // w == j} for i in span for j in span)


def brute_force(board, size):
    """Return every completion of a board, found by trying all digits in one cell after another."""
    units = [[r * size + c for r, c in block] for block in blocks(size) if block]
    peers = [set().union(*(u for u in units if cell in u)) - {cell} for cell in range(size * size)]
    board, solutions = list(board), set()

    def fill(cell):
        if cell == size * size:
            solutions.add(tuple(board))
        elif board[cell]:
            fill(cell + 1)
        else:
            for digit in set(range(1, size + 1)) - {board[peer] for peer in peers[cell]}:
                board[cell] = digit
                fill(cell + 1)
            board[cell] = 0

    fill(0)
    return solutions


def sample_grids(size, count, seed=0):
    return random_grids(size, count, torch.Generator().manual_seed(seed))


def blank_cells(size, count, clues, seed=0):
    """Draw grids and blank random cells until ``clues`` are left: int64 [count, L]."""
    rank = torch.rand(count, size * size, generator=torch.Generator().manual_seed(seed)).argsort(-1)
    return torch.where(rank < clues, sample_grids(size, count, seed), 0)


def canonical_4(board):
    """Return the smallest symmetric image of a 4x4 board; digits are renamed in order of appearance."""
    lines = [[2 * b + i for b in bands for i in ((0, 1), (1, 0))[flips[b]]] for bands in ((0, 1), (1, 0))
             for flips in itertools.product((0, 1), repeat=2)]  # fmt: skip
    grid = np.array(board).reshape(4, 4)
    images = []
    for rows, cols in itertools.product(lines, lines):
        for image in (grid[rows][:, cols], grid[rows][:, cols].T):
            names = {0: 0}
            images.append(tuple(names.setdefault(d, len(names)) for d in image.ravel().tolist()))
    return min(images)
