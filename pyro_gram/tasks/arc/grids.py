"""Grids of ARC: the canvas that networks see, symmetries, votes and scores, and pictures.

The canvas follows HRM and TRM (``dataset/build_arc_dataset.py``): 0 is padding, 1 marks an end, 2 + c is the colour c.
A grid lies somewhere on the canvas. End markers fill the row below it and the column to its right, if these lie inside
the canvas.
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
TRANSFORMS = 8  # bit 1: flip up and down; bit 2: flip left and right; then bit 0: transpose
MAX_SIDE = 30
PALETTE = (  # the colours of arcprize.org
    *("#000000", "#0074D9", "#FF4136", "#2ECC40", "#FFDC00"),
    *("#AAAAAA", "#F012BE", "#FF851B", "#7FDBFF", "#870C25"),
)

Grid = np.ndarray  # uint8 [rows, columns], colours 0-9
GridKey = tuple[tuple[int, ...], bytes]


def grid_key(grid: Grid) -> GridKey:
    """Return a key; two grids have equal keys iff the grids are equal."""
    return grid.shape, np.ascontiguousarray(grid, dtype=np.uint8).tobytes()


# ---- symmetries ----------------------------------------------------------------------------------------------------


class Augmentation(NamedTuple):
    """A version of a task: one of 8 transforms, and the new colour of each of the 10 colours (black stays)."""

    transform: int = 0
    colors: tuple[int, ...] = tuple(range(COLORS))

    def apply(self, grid: Grid) -> Grid:
        """Return the grid in this version."""
        return apply_transform(np.array(self.colors, dtype=np.uint8)[grid], self.transform)


def apply_transform(grid: Grid, transform: int) -> Grid:
    """Apply one of the 8 symmetries of a square (see ``TRANSFORMS``)."""
    if transform & 2:
        grid = grid[::-1]
    if transform & 4:
        grid = grid[:, ::-1]
    return np.ascontiguousarray(grid.T if transform & 1 else grid)


# With a transposition, the inverse exchanges the two flips. Without one, a transform is its own inverse.
INVERSE = np.array([t if not t & 1 else 1 | (t & 2) << 1 | (t & 4) >> 1 for t in range(TRANSFORMS)])


def canonical_colors(grids: Sequence[Grid]) -> tuple[bytes, list[int]]:
    """Number all colours but black by first appearance. Return the new grids as bytes, and the colours in order."""
    cells = np.concatenate([g.ravel() for g in grids])
    cell_colors, first = np.unique(cells, return_index=True)
    order = [int(c) for c in cell_colors[np.argsort(first)] if c]
    new_color = np.zeros(COLORS, dtype=np.uint8)
    new_color[order] = np.arange(1, len(order) + 1)
    return repr([g.shape for g in grids]).encode() + new_color[cells].tobytes(), order


def pair_key(source: Grid, target: Grid) -> bytes:
    """Return a key; two pairs have equal keys iff a transform and a permutation of colours map one to the other."""
    return min(canonical_colors([apply_transform(source, t), apply_transform(target, t)])[0] for t in range(TRANSFORMS))


def rough_key(source: Grid, target: Grid) -> Hashable:
    """Return a key that is cheap to compute: the sides and the counts of colours.

    Pairs with equal :func:`pair_key` have equal rough keys.
    """
    counts = [np.bincount(g.ravel(), minlength=COLORS) for g in (source, target)]
    color_counts = sorted(zip(*(c[1:].tolist() for c in counts), strict=True))
    return min(source.shape), source.size, min(target.shape), target.size, tuple(color_counts)


def draw_augmentations(name: str, grids: Sequence[Grid], count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the plain version of a task, and draw up to ``count`` others. No two versions have the same grids.

    The draws depend only on the name and grids of the task and on the seed, not on other tasks.

    Args:
        name: name of the task.
        grids: the grids of the task.
        count: number of versions besides the plain one.
        seed: seed of the draw.

    Returns:
        Transforms, uint8 ``[V]``, and colours, uint8 ``[V, 10]``; V is less than ``1 + count`` if symmetries of the
        grids leave fewer distinct versions.
    """
    word = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    rng = np.random.default_rng([seed, word])
    # Two versions are equal iff their transforms give the same grids up to the names of colours, and the colours that
    # correspond to each other get the same new colour.
    contents = [canonical_colors([apply_transform(g, t) for g in grids]) for t in range(TRANSFORMS)]
    first_equal_transform = np.array([[c for c, _ in contents].index(content) for content, _ in contents])
    orders = np.array([order for _, order in contents], dtype=np.int64)  # [8, colours in the grids]
    transforms, colors = np.zeros(1, np.uint8), np.arange(COLORS, dtype=np.uint8)[None]
    for _ in range(5):  # at most five rounds, as in TRM; one is nearly always enough
        if len(transforms) == 1 + count:
            break
        new_colors = np.tile(np.arange(COLORS, dtype=np.uint8), (count + 16, 1))
        new_colors[:, 1:] = rng.permuted(new_colors[:, 1:], axis=1)
        transforms = np.concatenate((transforms, rng.integers(0, TRANSFORMS, len(new_colors), dtype=np.uint8)))
        colors = np.concatenate((colors, new_colors))
        keys = first_equal_transform[transforms]
        for names in np.take_along_axis(colors, orders[transforms], axis=1).T:
            keys = keys * COLORS + names
        first = np.sort(np.unique(keys, return_index=True)[1])[: 1 + count]
        transforms, colors = transforms[first], colors[first]
    return transforms, colors


# ---- the canvas ----------------------------------------------------------------------------------------------------


def encode(grids: Iterable[Grid], canvas: int) -> Tensor:
    """Place grids at the top left of the canvas, with end markers: int64 ``[N, canvas * canvas]``."""
    grids = list(grids)
    cells = torch.zeros(len(grids), canvas, canvas, dtype=torch.long)
    for i, grid in enumerate(grids):
        cells[i, : grid.shape[0], : grid.shape[1]] = torch.from_numpy(grid.astype(np.int64)) + FIRST_COLOR
    size = torch.tensor([g.shape for g in grids], dtype=torch.long).view(-1, 2)
    return place(cells, size, torch.zeros_like(size)).flatten(-2)


def origin_of(tokens: Tensor) -> Tensor:
    """Return the first row and column of the grid on a well-formed canvas ``[..., C, C]``: int64 ``[..., 2]``."""
    is_color = tokens >= FIRST_COLOR
    return torch.stack((is_color.any(-1).long().argmax(-1), is_color.any(-2).long().argmax(-1)), dim=-1)


def crop(tokens: Tensor, origin: Tensor) -> tuple[Tensor, Tensor]:
    """Return the grid that starts at ``origin`` on any canvas, well-formed or not.

    As in TRM's evaluator, the grid is the largest rectangle of colours whose top left corner is at the origin; if
    several are equally large, it is the one with the fewest rows.

    Args:
        tokens: int64 ``[..., C, C]``.
        origin: int64 ``[..., 2]``.

    Returns:
        The cells of the grid, moved to the top left of a canvas of zeros, int64 ``[..., C, C]``; and the numbers of
        rows and columns, int64 ``[..., 2]``, both 0 if the token at the origin is not a colour.
    """
    cells = shift(tokens, origin)
    run_length = (cells >= FIRST_COLOR).long().cumprod(-1).sum(-1)  # [..., C]: number of leading colours
    width = run_length.cummin(-1).values
    area = width * torch.arange(1, tokens.shape[-1] + 1)
    last_row = area.argmax(-1, keepdim=True)
    columns = width.gather(-1, last_row).squeeze(-1)
    size = torch.stack((torch.where(columns > 0, last_row.squeeze(-1) + 1, 0), columns), dim=-1)
    return cells * _inside_mask(size, tokens.shape[-1]), size


def place(cells: Tensor, size: Tensor, offset: Tensor) -> Tensor:
    """Place grids on a canvas at ``offset``, with end markers.

    Args:
        cells: int64 ``[..., C, C]``, each grid at the top left, 0 outside.
        size, offset: int64 ``[..., 2]``.
    """
    side = torch.arange(cells.shape[-1])
    rows, columns = size[..., 0, None], size[..., 1, None]
    is_below = (side == rows)[..., :, None] & (side < columns)[..., None, :]
    is_right = (side < rows)[..., :, None] & (side == columns)[..., None, :]
    marked_cells = torch.where((is_below | is_right) & (rows > 0)[..., None], EOS, cells)
    return shift(marked_cells, -offset)


def turn(cells: Tensor, size: Tensor, transform: Tensor, colors: Tensor) -> tuple[Tensor, Tensor]:
    """Apply an :class:`Augmentation` to each of many grids.

    Args:
        cells: int64 ``[..., C, C]``, each grid at the top left, 0 outside.
        size: int64 ``[..., 2]``.
        transform: int64 ``[...]``.
        colors: int64 ``[..., 10]``.

    Returns:
        Cells and sizes of the transformed grids.
    """
    side = torch.arange(cells.shape[-1])
    is_transposed, is_flipped_up, is_flipped_left = (((transform >> bit) & 1).bool() for bit in range(3))
    image_size = torch.where(is_transposed[..., None], size.flip(-1), size)
    # Cell (i, j) of the result is cell (r[i], c[j]) of the grid or, with a transposition, cell (r[j], c[i]).
    r = torch.where(is_flipped_up[..., None], size[..., :1] - 1 - side, side)
    c = torch.where(is_flipped_left[..., None], size[..., 1:] - 1 - side, side)
    plain_index = r[..., :, None] * len(side) + c[..., None, :]
    index = torch.where(is_transposed[..., None, None], plain_index.transpose(-1, -2), plain_index)
    is_inside = _inside_mask(image_size, len(side))
    tokens = cells.flatten(-2).gather(-1, torch.where(is_inside, index, 0).flatten(-2))
    tokens = colors.gather(-1, (tokens - FIRST_COLOR).clamp(min=0)) + FIRST_COLOR
    return tokens.view(cells.shape) * is_inside, image_size


def shift(tokens: Tensor, distance: Tensor) -> Tensor:
    """Return ``out[r, c] = tokens[r + distance[0], c + distance[1]]``, 0 outside the canvas.

    Args:
        tokens: int64 ``[..., C, C]``.
        distance: rows and columns, int64 ``[..., 2]``.
    """
    side = torch.arange(tokens.shape[-1])
    r, c = side + distance[..., :1], side + distance[..., 1:]
    is_inside = ((r >= 0) & (r < len(side)))[..., :, None] & ((c >= 0) & (c < len(side)))[..., None, :]
    index = torch.where(is_inside, r[..., :, None] * len(side) + c[..., None, :], 0)
    return tokens.flatten(-2).gather(-1, index.flatten(-2)).view(tokens.shape) * is_inside


def _inside_mask(size: Tensor, canvas: int) -> Tensor:
    side = torch.arange(canvas)
    return (side < size[..., :1])[..., :, None] & (side < size[..., 1:])[..., None, :]


def to_grid(cells: Tensor, size: Tensor) -> Grid | None:
    """Convert one result of :func:`crop` to a grid; None if it is empty."""
    rows, columns = size.tolist()
    return (cells[:rows, :columns] - FIRST_COLOR).numpy().astype(np.uint8) if rows else None


# ---- votes and scores ----------------------------------------------------------------------------------------------


def vote(answers: Iterable[Hashable | None], attempts: int) -> list[Hashable]:
    """Return the ``attempts`` most frequent answers; ties go to the earlier answer. None (no answer) has no vote."""
    counts = Counter(a for a in answers if a is not None)  # in order of first appearance, which sorted() keeps
    return sorted(counts, key=lambda answer: -counts[answer])[:attempts]


def mean_by_task(outcomes: dict[tuple[int, Hashable], bool]) -> float:
    """Return ARC Prize's score: the share of a task's test outputs that are solved, averaged over tasks.

    This is ``ARCScorer`` of github.com/arcprize/arc-agi-benchmarking. (Kaggle averages over test outputs.)

    Args:
        outcomes: maps (task, test input) to whether an attempt was exactly right.
    """
    tasks: dict[int, list[bool]] = {}
    for (task, _), is_solved in outcomes.items():
        tasks.setdefault(task, []).append(is_solved)
    return sum(sum(t) / len(t) for t in tasks.values()) / len(tasks) if tasks else 0.0


# ---- pictures ------------------------------------------------------------------------------------------------------


def draw_grid(axes: Axes, grid: Grid, mistakes: np.ndarray) -> None:
    """Draw a grid in ARC's colours, with crosses at ``mistakes``, bool ``[rows, columns]``."""
    from matplotlib.colors import ListedColormap

    axes.imshow(grid, cmap=ListedColormap(PALETTE), vmin=0, vmax=len(PALETTE) - 1, interpolation="nearest")
    rows, columns = grid.shape
    axes.set_xticks(np.arange(columns + 1) - 0.5)
    axes.set_yticks(np.arange(rows + 1) - 0.5)
    axes.grid(color="#777777", linewidth=0.5)
    axes.tick_params(length=0, labelbottom=False, labelleft=False)
    if not mistakes.any():
        return
    r, c = np.nonzero(mistakes)
    axes.scatter(c, r, marker="x", color="#FFFFFF", s=60, linewidths=4)  # white below black is visible on any colour
    axes.scatter(c, r, marker="x", color="#000000", s=50, linewidths=1.5)


def render_grid(grid: Grid, mistakes: np.ndarray, paint: Painter) -> str:
    """Return a grid as digits painted in their colours, with marks at ``mistakes``, bool ``[rows, columns]``."""

    def render_cell(color: int, is_mistake: bool) -> str:
        paper = PALETTE[color]
        ink = contrasting_ink(paper) if color or is_mistake else FAINT_INK  # a black cell is background
        return paint(f"{color}{MISTAKE if is_mistake else ' '}", ink, nearest_colour(paper), bold=is_mistake)

    rows = zip(grid.tolist(), mistakes.tolist(), strict=True)
    return "\n".join("".join(map(render_cell, *row)) for row in rows)
