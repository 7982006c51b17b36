"""The splits of layout ``graph``: graphs of several sizes, all of whose colourings are listed, and planted graphs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn.functional import pad

from pyro_gram.errors import ConfigError
from pyro_gram.tasks.base import SPLITS, PuzzleSet
from pyro_gram.tasks.coloring.config import MIN_COLORS, ColoringConfig
from pyro_gram.tasks.coloring.graph_tokens import canonical_names, decode_graphs, encode_graphs, fixed_names
from pyro_gram.tasks.coloring.graphs import isomorphism_invariants
from pyro_gram.tasks.coloring.listing import Colorings, list_colorings, list_three_colorings, narrow_orders
from pyro_gram.tasks.coloring.planted import PlantedGraphs, draw_num_colors, draw_planted, spread_sizes
from pyro_gram.tasks.held_out import even_shares

MEAN_DEGREE = 4.0  # edge probabilities are at most this over n: then half of the graphs are 3-colourable, or more
HELD_OUT_SHARE = 0.15  # at most this share of the classes of a size is in the test split; as many in validation
USABLE_SHARE = 0.6  # of small graphs, the held-out classes may take away so many that only this share is left
SPARE_GRAPHS = 64  # graphs that are drawn for each size beyond its even share
BARREN_BATCHES = 20  # so many batches without a new graph end the drawing: there are too few of this size
MAX_LISTED = 64  # the colourings of planted graphs are listed if there are at most so many
SEARCH_LIMIT = 256  # partial colourings at which the search for them is given up
KEY_BATCH = 1000  # graphs whose invariants are computed at once
MAX_PLANTED_DRAWS = 1000  # so many times graphs that are isomorphic to held-out ones are drawn again


@dataclass(frozen=True)
class SizedGraphs:
    """Graphs of one size with all their 3-colourings.

    Attributes:
        adjacency: bool ``[N, n, n]``.
        colorings: their colourings.
    """

    adjacency: np.ndarray
    colorings: Colorings

    def __len__(self) -> int:
        return len(self.adjacency)

    @property
    def size(self) -> int:
        """The number of vertices."""
        return self.adjacency.shape[-1]

    def select(self, index: Sequence[int] | np.ndarray) -> SizedGraphs:
        """Return the graphs ``index``, in this order."""
        index = np.asarray(index, dtype=np.int64)
        ends = self.colorings.counts.cumsum()
        rows = [np.arange(ends[i] - self.colorings.counts[i], ends[i]) for i in index]
        solutions = self.colorings.solutions[np.concatenate(rows)] if rows else self.colorings.solutions[:0]
        colorings = Colorings(solutions, self.colorings.counts[index], self.colorings.is_complete[index])
        return SizedGraphs(self.adjacency[index], colorings)

    def puzzles(self, colors: int, padded_size: int) -> PuzzleSet:
        """Return the graphs as inputs with three colours, padded to ``padded_size`` vertices."""
        adjacency = torch.from_numpy(self.adjacency)
        clues = torch.full(adjacency.shape[:-1], -1)
        x = encode_graphs(adjacency, clues, torch.full((len(self),), MIN_COLORS), colors, padded_size)
        solutions = pad(torch.from_numpy(self.colorings.solutions), (0, padded_size - self.size))
        return PuzzleSet.from_counts(x, solutions, torch.from_numpy(self.colorings.counts))


# ---- graphs with all their colourings ------------------------------------------------------------------------------


def edge_probability_of(config: ColoringConfig, n: int) -> float:
    """Return p of G(n, p) for graphs of n vertices."""
    return min(config.edge_probability, MEAN_DEGREE / n)


def draw_colorable(rng: np.random.Generator, n: int, p: float, count: int) -> SizedGraphs:
    """Draw ``count`` graphs from G(n, p), and return those that are 3-colourable."""
    rows, cols = np.triu_indices(n, 1)
    adjacency = np.zeros((count, n, n), dtype=bool)
    adjacency[:, rows, cols] = rng.random((count, len(rows))) < p
    adjacency |= adjacency.transpose(0, 2, 1)
    colorings = list_three_colorings(adjacency)
    graphs = SizedGraphs(adjacency, colorings)
    return graphs.select(colorings.counts.nonzero()[0])


def draw_distinct(rng: np.random.Generator, n: int, p: float, count: int) -> SizedGraphs:
    """Draw ``count`` distinct labelled 3-colourable graphs from G(n, p); fewer, if there are hardly more."""
    known: set[bytes] = set()
    parts: list[SizedGraphs] = []
    barren_batches = 0
    while len(known) < count and barren_batches < BARREN_BATCHES:
        batch = draw_colorable(rng, n, p, max(256, 2 * (count - len(known))))
        keys = [row.tobytes() for row in batch.adjacency]
        new_rows = [i for key, i in {key: i for i, key in reversed(list(enumerate(keys)))}.items() if key not in known]
        new_rows = sorted(new_rows)[: count - len(known)]
        known.update(keys[i] for i in new_rows)
        parts.append(batch.select(new_rows))
        barren_batches = 0 if new_rows else barren_batches + 1
    return SizedGraphs(
        np.concatenate([part.adjacency for part in parts]),
        Colorings(*(np.concatenate(arrays) for arrays in zip(*(part.colorings for part in parts), strict=True))),
    )


def draw_split_graphs(config: ColoringConfig) -> dict[str, list[SizedGraphs]]:
    """Draw the graphs of each split, one element for each size. No two splits hold isomorphic graphs.

    Validation and test hold one graph of each of their isomorphism classes. Training holds distinct labelled graphs.

    Raises:
        ConfigError: there are too few graphs.
    """
    rng = np.random.default_rng(config.data_seed)
    totals = {name: getattr(config, name) for name in SPLITS}
    pools, classes = [], []
    num_missing = sum(totals.values())
    for n in config.sizes:
        share = num_missing / (config.vertices + 1 - n)  # the larger sizes make up for what this one lacks
        pool = draw_distinct(rng, n, edge_probability_of(config, n), round(share * 1.2) + SPARE_GRAPHS)
        indices_of: dict[bytes, list[int]] = {}
        for index, key in enumerate(isomorphism_invariants(pool.adjacency)):
            indices_of.setdefault(key, []).append(index)
        members = list(indices_of.values())
        pools.append(pool)
        classes.append([members[i] for i in rng.permutation(len(members))])
        num_missing = max(0, num_missing - round(USABLE_SHARE * len(pool)))
    held_out_limits = [int(len(members) * HELD_OUT_SHARE) for members in classes]
    splits: dict[str, list[SizedGraphs]] = {}
    for name in ("test", "validation"):
        parts = _parts_of(config, totals[name], held_out_limits, name)
        splits[name] = [
            pool.select([member[0] for member in members[:part]])
            for pool, members, part in zip(pools, classes, parts, strict=True)
        ]
        classes = [members[part:] for members, part in zip(classes, parts, strict=True)]
    training_indices = [np.array(sorted(itertools.chain.from_iterable(members)), np.int64) for members in classes]
    parts = _parts_of(config, totals["train"], [len(index) for index in training_indices], "train")
    splits["train"] = [
        pool.select(index[:part]) for pool, index, part in zip(pools, training_indices, parts, strict=True)
    ]
    return splits


def _parts_of(config: ColoringConfig, total: int, limits: list[int], name: str) -> list[int]:
    """Return how many graphs of each size a split gets. Raises ConfigError."""
    parts = even_shares(total, limits)
    if sum(parts) < total:
        sizes = config.sizes
        order = f"{sizes[0]} to {sizes[-1]}" if len(sizes) > 1 else str(sizes[0])
        raise ConfigError(
            f"too few 3-colourable graphs of {order} vertices for {name} = {total} without an isomorphic pair across "
            f"splits: lower task.{name} to {sum(limits)}, or raise task.vertices"
        )
    return parts


# ---- planted graphs ------------------------------------------------------------------------------------------------


def planted_puzzles(config: ColoringConfig, held_out: set[tuple[int, bytes]]) -> PuzzleSet:
    """Draw the planted graphs of the training split.

    Args:
        config: settings of the task.
        held_out: the sizes and invariants of the graphs of validation and test. No planted graph is isomorphic to one
            of them.
    """
    rng = np.random.default_rng((config.data_seed, 1))
    sizes = range(config.min_vertices, config.planted_vertices + 1)
    counts = spread_sizes(rng, sizes[0], sizes[-1], config.planted_graphs)
    parts = [_planted_of_size(rng, config, n, int(count), held_out) for n, count in zip(sizes, counts, strict=True)]
    return PuzzleSet.concatenate([part for part in parts if len(part)])


def _planted_of_size(
    rng: np.random.Generator, config: ColoringConfig, n: int, count: int, held_out: set[tuple[int, bytes]]
) -> PuzzleSet:
    """Draw ``count`` planted graphs of n vertices as puzzles, padded to the largest size."""
    graphs = draw_planted(rng, n, draw_num_colors(rng, config.colors, count))
    for _ in range(MAX_PLANTED_DRAWS):
        is_held_out = np.zeros(count, bool)
        if n in config.sizes:
            is_held_out = np.array([(n, key) in held_out for key in isomorphism_invariants(graphs.adjacency)], bool)
        if not is_held_out.any():
            return _puzzles_of(graphs, config)
        graphs = _replace(graphs, is_held_out, draw_planted(rng, n, graphs.num_colors[is_held_out]))
    raise ConfigError(f"nearly all planted graphs of {n} vertices are held out: lower task.test and task.validation")


def _replace(graphs: PlantedGraphs, rows: np.ndarray, new_graphs: PlantedGraphs) -> PlantedGraphs:
    """Return ``graphs`` with the rows where the mask ``rows`` is True replaced."""
    arrays = {}
    for name in ("adjacency", "colors", "clues", "num_colors"):
        array = getattr(graphs, name).copy()
        array[rows] = getattr(new_graphs, name)
        arrays[name] = array
    return PlantedGraphs(**arrays)


def _puzzles_of(graphs: PlantedGraphs, config: ColoringConfig) -> PuzzleSet:
    """Return planted graphs as puzzles: with all colourings, where these are few, else with the planted one."""
    order = narrow_orders(graphs.adjacency, graphs.clues)
    rows = np.arange(len(order))[:, None]
    colorings = list_colorings(
        graphs.adjacency[rows[..., None], order[:, :, None], order[:, None, :]],
        graphs.clues[rows, order],
        graphs.num_colors,
        SEARCH_LIMIT,
    )
    is_complete = torch.from_numpy(colorings.is_complete & (colorings.counts <= MAX_LISTED))
    graph = torch.from_numpy(np.repeat(np.arange(len(order)), colorings.counts))
    position = torch.from_numpy(order.argsort(1))
    solutions = torch.from_numpy(colorings.solutions).long().gather(1, position[graph])
    is_used = is_complete[graph]
    graph, solutions = graph[is_used], solutions[is_used]
    single = (~is_complete).nonzero().flatten()
    graph = torch.cat((graph, single))
    solutions = torch.cat((solutions, torch.from_numpy(graphs.colors)[single]))
    by_graph = graph.argsort(stable=True)
    graph, solutions = graph[by_graph], solutions[by_graph]
    x = encode_graphs(
        torch.from_numpy(graphs.adjacency),
        torch.from_numpy(graphs.clues),
        torch.from_numpy(graphs.num_colors),
        config.colors,
        config.largest_size,
    )
    parts = decode_graphs(x, config.colors)
    solutions = pad(solutions, (0, x.shape[-1] - solutions.shape[-1]))
    solutions = canonical_names(solutions, fixed_names(parts, config.colors)[graph], parts.mask[graph])
    counts = graph.bincount(minlength=len(x))
    puzzles = PuzzleSet.from_counts(x, solutions.to(torch.uint8), counts, has_all_solutions=False)
    return replace(puzzles, is_complete=is_complete)


# ---- splits --------------------------------------------------------------------------------------------------------


def make_splits(config: ColoringConfig) -> dict[str, PuzzleSet]:
    """Return the three splits, each in random order.

    Held-out graphs that equal a graph of another split, but for the number of vertices without edges, are left out.
    """
    generator = torch.Generator().manual_seed(config.data_seed)
    graphs = draw_split_graphs(config)
    splits = {}
    for name in SPLITS:
        sets = [part.puzzles(config.colors, config.largest_size) for part in graphs[name] if len(part)]
        if name == "train" and config.planted_graphs:
            held_out: set[tuple[int, bytes]] = set()
            for part in graphs["validation"] + graphs["test"]:
                held_out.update((part.size, key) for key in isomorphism_invariants(part.adjacency))
            sets.append(planted_puzzles(config, held_out))
        puzzles = PuzzleSet.concatenate(sets)
        splits[name] = puzzles.select(torch.randperm(len(puzzles), generator=generator))
    if config.min_vertices:
        _leave_out_equal_problems(splits, config)
    return splits


def _leave_out_equal_problems(splits: dict[str, PuzzleSet], config: ColoringConfig) -> None:
    """Leave out held-out graphs that equal a graph of another split without its vertices that have no edge.

    Only graphs of different sizes can be concerned. In validation, those of the test split are left out too.
    """
    known: set[bytes] = set()
    for name in ("train", "test", "validation"):
        inputs = splits[name].inputs
        assert inputs is not None
        adjacency = decode_graphs(inputs, config.colors).adjacency.numpy()
        keys = [
            key
            for part in np.array_split(adjacency, len(adjacency) // KEY_BATCH + 1)
            for key in isomorphism_invariants(part)
        ]
        if name != "train":
            splits[name] = splits[name].select(torch.tensor([i for i, key in enumerate(keys) if key not in known]))
        known.update(keys)
