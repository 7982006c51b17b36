"""Grids of ARC: the canvas that networks see, symmetries and their inverses, votes and scores, and how they look.

The canvas follows HRM and TRM (``dataset/build_arc_dataset.py``): 0 is padding, 1 marks an end, 2 + c is the colour c.
A grid stands somewhere on the canvas; markers of its end run along the row below and the column to its right, where
these lie inside the canvas.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_gram.tasks.terminal import FAINT_INK, MISTAKE, Painter, contrasting_ink, nearest_colour

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PAD, EOS, FIRST_COLOR, COLORS = 0, 1, 2, 10
VOCABULARY = FIRST_COLOR + COLORS
TRANSFORMS = 8  # bit 0: transposed, after bit 1: upside down, and bit 2: left to right
MAX_SIDE = 30
PALETTE = (  # of arcprize.org
    *("#000000", "#0074D9", "#FF4136", "#2ECC40", "#FFDC00"),
    *("#AAAAAA", "#F012BE", "#FF851B", "#7FDBFF", "#870C25"),
)

Grid = np.ndarray  # uint8 [rows, columns], colours 0-9
GridKey = tuple[tuple[int, ...], bytes]


def grid_key(grid: Grid) -> GridKey:
    """Equal for equal grids only."""
    return grid.shape, np.ascontiguousarray(grid, dtype=np.uint8).tobytes()


# ---- symmetries ----------------------------------------------------------------------------------------------------


class Augmentation(NamedTuple):
    """A version of a task: one of 8 transforms, and what becomes of each of the 10 colours (black stays black)."""

    transform: int = 0
    colors: tuple[int, ...] = tuple(range(COLORS))

    def apply(self, grid: Grid) -> Grid:
        """The grid in this version."""
        return transformed(np.array(self.colors, dtype=np.uint8)[grid], self.transform)


def transformed(grid: Grid, transform: int) -> Grid:
    """One of the 8 symmetries of a square: flipped as bits 1 and 2 say, then transposed as bit 0 says."""
    if transform & 2:
        grid = grid[::-1]
    if transform & 4:
        grid = grid[:, ::-1]
    return np.ascontiguousarray(grid.T if transform & 1 else grid)


# A transposition exchanges the two flips; without it a transform undoes itself.
INVERSE = np.array([t if not t & 1 else 1 | (t & 2) << 1 | (t & 4) >> 1 for t in range(TRANSFORMS)])


def recolored(grids: Sequence[Grid]) -> tuple[bytes, list[int]]:
    """Grids up to a renaming of the nine colours: their content renamed by first appearance, and that order."""
    cells = np.concatenate([g.ravel() for g in grids])
    present, first = np.unique(cells, return_index=True)
    order = [int(c) for c in present[np.argsort(first)] if c]
    names = np.zeros(COLORS, dtype=np.uint8)
    names[order] = np.arange(1, len(order) + 1)
    return repr([g.shape for g in grids]).encode() + names[cells].tobytes(), order


def pair_key(source: Grid, target: Grid) -> bytes:
    """Equal for two pairs exactly if a transform and a permutation of the colours turn one into the other."""
    return min(recolored([transformed(source, t), transformed(target, t)])[0] for t in range(TRANSFORMS))


def rough_key(source: Grid, target: Grid) -> Hashable:
    """Cheap, and equal wherever :func:`pair_key` is: sides and how often colours occur."""
    counts = [np.bincount(g.ravel(), minlength=COLORS) for g in (source, target)]
    named = sorted(zip(*(c[1:].tolist() for c in counts), strict=True))
    return sorted(source.shape)[0], source.size, sorted(target.shape)[0], target.size, tuple(named)


def draw_augmentations(name: str, grids: Sequence[Grid], count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The plain task and up to ``count`` further versions, no two with the same content.

    They depend on the task and the seed only, never on the other tasks around it.

    Args:
        name: of the task.
        grids: its content.
        count: versions besides the plain one.
        seed: of the draw.

    Returns:
        transforms, uint8 ``[V]``, and colours, uint8 ``[V, 10]``; V is less than ``1 + count`` where symmetries of
        the content leave fewer versions.
    """
    word = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    rng = np.random.default_rng([seed, word])
    # Two versions agree iff their transforms give the same content up to colours, named alike in the same order.
    contents = [recolored([transformed(g, t) for g in grids]) for t in range(TRANSFORMS)]
    first_like = np.array([[c for c, _ in contents].index(content) for content, _ in contents])
    orders = np.array([order for _, order in contents], dtype=np.int64)  # [8, colours that occur]
    transforms, colors = np.zeros(1, np.uint8), np.arange(COLORS, dtype=np.uint8)[None]
    for _ in range(5):  # as TRM, up to five tries a version; one is nearly always enough
        if len(transforms) == 1 + count:
            break
        more = np.tile(np.arange(COLORS, dtype=np.uint8), (count + 16, 1))
        more[:, 1:] = rng.permuted(more[:, 1:], axis=1)
        transforms = np.concatenate((transforms, rng.integers(0, TRANSFORMS, len(more), dtype=np.uint8)))
        colors = np.concatenate((colors, more))
        keys = first_like[transforms]
        for names in np.take_along_axis(colors, orders[transforms], axis=1).T:
            keys = keys * COLORS + names
        first = np.sort(np.unique(keys, return_index=True)[1])[: 1 + count]
        transforms, colors = transforms[first], colors[first]
    return transforms, colors


# ---- the canvas ----------------------------------------------------------------------------------------------------


def encode(grids: Iterable[Grid], canvas: int) -> Tensor:
    """Grids at the top left of the canvas with their end marked: int64 ``[N, canvas * canvas]``."""
    grids = list(grids)
    cells = torch.zeros(len(grids), canvas, canvas, dtype=torch.long)
    for i, grid in enumerate(grids):
        cells[i, : grid.shape[0], : grid.shape[1]] = torch.from_numpy(grid.astype(np.int64)) + FIRST_COLOR
    size = torch.tensor([g.shape for g in grids], dtype=torch.long).view(-1, 2)
    return place(cells, size, torch.zeros_like(size)).flatten(-2)


def origin_of(tokens: Tensor) -> Tensor:
    """Where the grid on a well-formed canvas ``[..., C, C]`` stands: int64 ``[..., 2]``, its first row and column."""
    colored = tokens >= FIRST_COLOR
    return torch.stack((colored.any(-1).long().argmax(-1), colored.any(-2).long().argmax(-1)), dim=-1)


def crop(tokens: Tensor, origin: Tensor) -> tuple[Tensor, Tensor]:
    """The grid that starts at ``origin`` on any canvas, well-formed or not.

    As in TRM's evaluator: the largest rectangle of colours with its corner there, the lowest of several.

    Args:
        tokens: int64 ``[..., C, C]``.
        origin: int64 ``[..., 2]``.

    Returns:
        The cells, moved to the top left and 0 outside, int64 ``[..., C, C]``; rows and columns, int64 ``[..., 2]``,
        both 0 where no colour stands at the origin.
    """
    moved = shift(tokens, origin)
    run = (moved >= FIRST_COLOR).long().cumprod(-1).sum(-1)  # [..., C]: colours from the left of each row
    width = run.cummin(-1).values
    area = width * torch.arange(1, tokens.shape[-1] + 1)
    best = area.argmax(-1, keepdim=True)
    columns = width.gather(-1, best).squeeze(-1)
    size = torch.stack((torch.where(columns > 0, best.squeeze(-1) + 1, 0), columns), dim=-1)
    return moved * _inside(size, tokens.shape[-1]), size


def place(cells: Tensor, size: Tensor, offset: Tensor) -> Tensor:
    """A canvas from grids: cells (0 outside the grid) moved by ``offset``, markers put along their end.

    Args:
        cells: int64 ``[..., C, C]``, each grid at the top left.
        size, offset: int64 ``[..., 2]``.
    """
    side = torch.arange(cells.shape[-1])
    rows, columns = size[..., 0, None], size[..., 1, None]
    below = (side == rows)[..., :, None] & (side < columns)[..., None, :]
    right = (side < rows)[..., :, None] & (side == columns)[..., None, :]
    marked = torch.where((below | right) & (rows > 0)[..., None], EOS, cells)
    return shift(marked, -offset)


def turn(cells: Tensor, size: Tensor, transform: Tensor, colors: Tensor) -> tuple[Tensor, Tensor]:
    """What :meth:`Augmentation.apply` does, for many grids at once.

    Args:
        cells: int64 ``[..., C, C]``, each grid at the top left, 0 outside.
        size: int64 ``[..., 2]``.
        transform: int64 ``[...]``.
        colors: int64 ``[..., 10]``.

    Returns:
        cells and size, turned.
    """
    side = torch.arange(cells.shape[-1])
    transposed, upside, mirrored = (((transform >> bit) & 1).bool() for bit in range(3))
    size_out = torch.where(transposed[..., None], size.flip(-1), size)
    # Cell (i, j) of the result comes from (r, c) = flips of (j, i) where transposed, of (i, j) where not.
    r = torch.where(upside[..., None], size[..., :1] - 1 - side, side)
    c = torch.where(mirrored[..., None], size[..., 1:] - 1 - side, side)
    straight = r[..., :, None] * len(side) + c[..., None, :]
    index = torch.where(transposed[..., None, None], straight.transpose(-1, -2), straight)
    inside = _inside(size_out, len(side))
    taken = cells.flatten(-2).gather(-1, torch.where(inside, index, 0).flatten(-2))
    named = colors.gather(-1, (taken - FIRST_COLOR).clamp(min=0)) + FIRST_COLOR
    return named.view(cells.shape) * inside, size_out


def shift(tokens: Tensor, by: Tensor) -> Tensor:
    """``out[r, c] = tokens[r + by[0], c + by[1]]``, 0 from beyond the canvas. ``[..., C, C]``, ``[..., 2]``."""
    side = torch.arange(tokens.shape[-1])
    r, c = side + by[..., :1], side + by[..., 1:]
    there = ((r >= 0) & (r < len(side)))[..., :, None] & ((c >= 0) & (c < len(side)))[..., None, :]
    index = torch.where(there, r[..., :, None] * len(side) + c[..., None, :], 0)
    return tokens.flatten(-2).gather(-1, index.flatten(-2)).view(tokens.shape) * there


def _inside(size: Tensor, canvas: int) -> Tensor:
    side = torch.arange(canvas)
    return (side < size[..., :1])[..., :, None] & (side < size[..., 1:])[..., None, :]


def to_grid(cells: Tensor, size: Tensor) -> Grid | None:
    """One grid from :func:`crop`; None where there is none."""
    rows, columns = size.tolist()
    return (cells[:rows, :columns] - FIRST_COLOR).numpy().astype(np.uint8) if rows else None


# ---- votes and scores ----------------------------------------------------------------------------------------------


def vote(answers: Iterable[Hashable | None], attempts: int) -> list[Hashable]:
    """The ``attempts`` most frequent answers, the earlier first among equals. None (no answer) has no vote."""
    counts = Counter(a for a in answers if a is not None)  # keeps the order of first appearance, as sorted() does
    return sorted(counts, key=lambda answer: -counts[answer])[:attempts]


def mean_by_task(solved: dict[tuple[int, Hashable], bool]) -> float:
    """ARC Prize's score: the share of a task's test outputs that are solved, averaged over tasks.

    As ``ARCScorer`` of github.com/arcprize/arc-agi-benchmarking has it. (Kaggle averages over test outputs.)

    Args:
        solved: (task, test input) to whether any attempt was exactly right.
    """
    tasks: dict[int, list[bool]] = {}
    for (task, _), right in solved.items():
        tasks.setdefault(task, []).append(right)
    return sum(sum(t) / len(t) for t in tasks.values()) / len(tasks) if tasks else 0.0


# ---- looks ---------------------------------------------------------------------------------------------------------


def draw_grid(axes: Axes, grid: Grid, wrong: np.ndarray) -> None:
    """The grid in ARC's colours, crosses where it is ``wrong``, bool ``[rows, columns]``."""
    from matplotlib.colors import ListedColormap

    axes.imshow(grid, cmap=ListedColormap(PALETTE), vmin=0, vmax=len(PALETTE) - 1, interpolation="nearest")
    rows, columns = grid.shape
    axes.set_xticks(np.arange(columns + 1) - 0.5)
    axes.set_yticks(np.arange(rows + 1) - 0.5)
    axes.grid(color="#777777", linewidth=0.5)
    axes.tick_params(length=0, labelbottom=False, labelleft=False)
    if not wrong.any():
        return
    r, c = np.nonzero(wrong)
    axes.scatter(c, r, marker="x", color="#FFFFFF", s=60, linewidths=4)  # white below black: seen on any colour
    axes.scatter(c, r, marker="x", color="#000000", s=50, linewidths=1.5)


def render_grid(grid: Grid, wrong: np.ndarray, paint: Painter) -> str:
    """The digits of the colours, paint on them, and marks where the grid is ``wrong``. As :func:`draw_grid`."""

    def cell(color: int, bad: bool) -> str:
        paper = PALETTE[color]
        ink = contrasting_ink(paper) if color or bad else FAINT_INK  # most cells are black: background
        return paint(f"{color}{MISTAKE if bad else ' '}", ink, nearest_colour(paper), bold=bad)

    rows = zip(grid.tolist(), wrong.tolist(), strict=True)
    return "\n".join("".join(map(cell, *row)) for row in rows)
