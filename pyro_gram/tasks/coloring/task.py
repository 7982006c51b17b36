"""Three-colouring of random graphs (Section 4.2 and Appendix B.2 of the paper): many answers to one question.

Graphs are drawn from G(n, p) and kept if they can be coloured with three colours. An answer is identified up to a
renaming of the colours by its canonical form, in which colours are numbered as they first appear. No graph of one
split is isomorphic to one of another: graphs are dealt out by an invariant of isomorphism, so that permuting the
vertices of training graphs (the augmentation) cannot reach a held-out one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import networkx as nx
import numpy as np
import torch
from torch import Tensor

from pyro_gram.checks import AT_LEAST_1, check_choice, check_range, check_seed
from pyro_gram.errors import ConfigError, InputError
from pyro_gram.registry import TASKS
from pyro_gram.spec import TaskSpec
from pyro_gram.system.text import PuzzleText
from pyro_gram.tasks.advice import suggest_checkpoint
from pyro_gram.tasks.base import SPLITS, PuzzleSet, Task, check_split
from pyro_gram.tasks.coloring.text import parse_graph, split_graphs
from pyro_gram.tasks.held_out import add_new_classes
from pyro_gram.tasks.terminal import contrasting_ink, mark_mistake, nearest_colour, painter

if TYPE_CHECKING:
    from collections.abc import Hashable

    from matplotlib.axes import Axes

COLORS = 3
MAX_VERTICES = 12  # 3^11 / 2 canonical colourings are enumerated for each graph
FRESH_DRAWS = 1000  # graphs drawn at a time for fresh inputs, the least
PALETTE = ("#0072B2", "#E69F00", "#009E73")  # Okabe-Ito: told apart by colour-blind readers
CONFLICT = "#C00000"
INKS = {16: "#000000", 231: "#FFFFFF"}  # what contrasting_ink gives


@dataclass(frozen=True)
class ColoringConfig:
    """Which graphs, how many, and how they are laid out as tokens.

    Attributes:
        vertices: n, vertices of a graph.
        edge_probability: p of G(n, p), the share of pairs that are edges.
        layout: ``vertex``: one token a vertex, holding its adjacency row; ``edge``: the paper's, one token a pair
            of vertices (1 no edge, 2 edge) and then one blank a vertex, answers 3 + colour.
        train: graphs to train on.
        validation: graphs to validate on.
        test: graphs to test on.
        data_seed: seed of the graphs and the split; the same for every run that is to be compared.
    """

    vertices: int = 8
    edge_probability: float = 0.5
    layout: str = "vertex"
    train: int = 7002
    validation: int = 128
    test: int = 255
    data_seed: int = 0

    def __post_init__(self) -> None:
        check_range(
            self,
            vertices=(3, MAX_VERTICES),
            edge_probability=(1e-6, 1 - 1e-6),
            **dict.fromkeys(SPLITS, AT_LEAST_1),
        )
        check_choice("layout", self.layout, ("vertex", "edge"))
        check_seed(self.data_seed, "data_seed")


@TASKS.register("coloring")
class Coloring(Task):
    """Colour the vertices of a graph with three colours so that no edge joins two of one colour."""

    Config = ColoringConfig
    violation_name = "conflict"
    equivalence = "up to the names of the colours"
    difficulty_label = "edges"

    def __init__(self, config: ColoringConfig, data_dir: str | None = None) -> None:
        self.config = config
        n = self.n = config.vertices
        self.paper_name = f"coloring{n}"
        self._rows, self._cols = torch.triu_indices(n, n, offset=1)
        self.pairs = len(self._rows)
        if config.layout == "vertex":
            self.spec = TaskSpec(n, n, 3, n, COLORS)
        else:
            self.spec = TaskSpec(self.pairs + n, None, 3, n, 3 + COLORS)
        self._first_color = self.spec.output_classes - COLORS

    # ---- layouts -----------------------------------------------------------------------------------------------

    def encode(self, adjacency: Tensor) -> Tensor:
        """bool ``[..., n, n]`` to input tokens, ``[..., n, n]`` or ``[..., pairs + n]`` by layout."""
        if self.config.layout == "vertex":
            return adjacency.long() + 2 * torch.eye(self.n, dtype=torch.long)  # 2 says "this vertex"
        edges = adjacency[..., self._rows, self._cols].long() + 1
        return torch.nn.functional.pad(edges, (0, self.n))

    def edges(self, x: Tensor | None) -> Tensor:
        """Which pairs are edges: input tokens to bool ``[..., pairs]``, in the order of the upper triangle."""
        assert x is not None
        if self.config.layout == "vertex":
            return x[..., self._rows, self._cols] == 1
        return x[..., : self.pairs] == 2

    def adjacency(self, x: Tensor | None) -> Tensor:
        """Input tokens to a symmetric bool ``[..., n, n]``."""
        edges = self.edges(x)
        matrix = edges.new_zeros(*edges.shape[:-1], self.n, self.n)
        matrix[..., self._rows, self._cols] = edges
        return matrix | matrix.transpose(-1, -2)

    # ---- what is right -----------------------------------------------------------------------------------------

    def violations(self, x: Tensor | None, y: Tensor) -> Tensor:
        """Edges whose ends have one colour, plus vertices that hold no colour at all (``edge`` layout)."""
        same = y[..., self._rows] == y[..., self._cols]
        return (same & self.edges(x)).sum(-1) + (y < self._first_color).sum(-1)

    def difficulty(self, x: Tensor) -> Tensor:
        """The number of edges, int64 ``[...]``."""
        return self.edges(x).sum(-1)

    def canonical_form(self, x: Tensor | None, y: Tensor) -> Tensor:
        """Colours renumbered in order of first appearance; tokens that are no colour stay as they are."""
        color = y - self._first_color
        which = torch.arange(COLORS)
        position = torch.arange(self.n)[:, None].expand(self.n, COLORS)
        first = torch.where(color[..., None] == which, position, self.n).amin(-2)  # [..., COLORS]
        rank = first.argsort(dim=-1, stable=True).argsort(dim=-1)  # rank of each colour by first appearance
        renamed = rank.gather(-1, color.clamp(min=0)) + self._first_color
        return torch.where(color >= 0, renamed, y)

    # ---- data --------------------------------------------------------------------------------------------------

    def split(self, name: str) -> PuzzleSet:
        check_split(name)
        return self._splits[name]

    @cached_property
    def _splits(self) -> dict[str, PuzzleSet]:
        c = self.config
        wanted = {split: getattr(c, split) for split in ("test", "validation", "train")}
        rng = np.random.default_rng(c.data_seed)
        graphs = draw_graphs(rng, c.vertices, c.edge_probability, sum(wanted.values()) + max(64, c.test))
        groups: dict[bytes, list[int]] = {}
        for index, key in enumerate(isomorphism_invariants(graphs)):
            groups.setdefault(key, []).append(index)
        deck = list(groups.values())
        order = iter(rng.permutation(len(deck)).tolist())
        dealt: dict[str, Tensor] = {}
        for split, count in wanted.items():
            taken: list[int] = []
            while len(taken) < count:
                group = next(order, None)
                if group is None:
                    raise ConfigError(
                        f"too few 3-colourable graphs of {c.vertices} vertices for {sum(wanted.values())} inputs "
                        "without an isomorphic pair across splits: lower task.train or raise task.vertices"
                    )
                taken += deck[group]  # a class that overflows the split is cut, its rest used nowhere
            dealt[split] = torch.as_tensor(taken[:count])
        return {split: self._puzzles(torch.from_numpy(graphs[index.numpy()])) for split, index in dealt.items()}

    def _puzzles(self, adjacency: Tensor) -> PuzzleSet:
        solutions, counts = enumerate_colorings(adjacency[:, self._rows, self._cols])
        offsets = torch.cat((torch.zeros(1, dtype=torch.long), counts.cumsum(0)))
        return PuzzleSet(self.encode(adjacency), solutions + self._first_color, offsets)

    def fresh_inputs(self, count: int, data_seed: int) -> PuzzleSet:
        """Graphs of G(n, p), none isomorphic to one of a split or to another one of them."""
        rng = np.random.default_rng(data_seed)
        classes: set[Hashable] = set()
        for split in SPLITS:
            classes.update(isomorphism_invariants(self.adjacency(self.split(split).inputs).numpy()))
        graphs = np.zeros((0, self.n, self.n), dtype=bool)
        while len(graphs) < count:
            batch = draw_graphs(rng, self.n, self.config.edge_probability, max(FRESH_DRAWS, count))
            new = batch[add_new_classes(classes, isomorphism_invariants(batch))]
            if not len(new):
                raise ConfigError(
                    f"only {len(graphs)} graphs of {self.n} vertices were met that are isomorphic to none of a split: "
                    "ask for fewer"
                )
            graphs = np.concatenate((graphs, new))
        return self._puzzles(torch.from_numpy(graphs[:count]))

    def augment(self, x: Tensor | None, y: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A random renumbering of the vertices of each pair, the answer made canonical again."""
        assert x is not None
        order = torch.rand(*y.shape, generator=generator).argsort(-1)  # [..., n]
        adjacency = self.adjacency(x)
        adjacency = adjacency.gather(-2, order[..., :, None].expand_as(adjacency))
        adjacency = adjacency.gather(-1, order[..., None, :].expand_as(adjacency))
        x = self.encode(adjacency)
        return x, self.canonical_form(x, y.gather(-1, order))

    # ---- text and picture --------------------------------------------------------------------------------------

    def parse(self, text: str) -> Tensor:
        """A graph in graph6 or sparse6 (one line) or DIMACS .col (several lines) format."""
        return self._checked(parse_graph(text, self._check_order))

    def parse_graph(self, graph: nx.Graph) -> Tensor:
        """A simple graph. Vertices 0 to n - 1 keep their numbers, others get them as the graph lists them.

        Raises:
            InputError: it is directed, has parallel edges, loops or another size, or cannot be coloured.
        """
        if graph.is_directed() or graph.is_multigraph():
            raise InputError("the graph is directed or has parallel edges: give networkx.Graph(graph)")
        if set(graph) != set(range(len(graph))):
            graph = nx.convert_node_labels_to_integers(graph)
        self._check_order(graph.number_of_nodes())
        loops = list(nx.nodes_with_selfloops(graph))
        if loops:
            raise InputError(f"vertex {loops[0]} has a loop: no colouring exists; remove the loop")
        return self._checked(graph.edges)

    def _checked(self, edges: Iterable[tuple[int, int]]) -> Tensor:
        """The input of a graph of these edges. Raises InputError where it has no colouring."""
        adjacency = torch.zeros(self.n, self.n, dtype=torch.bool)
        for u, v in edges:
            adjacency[u, v] = adjacency[v, u] = True
        x = self.encode(adjacency)
        if not self.count_solutions(x):
            raise InputError("the graph is not 3-colourable (checked exactly): no answer exists")
        return x

    def _check_order(self, n: int) -> None:
        if n != self.n:
            raise InputError(
                f"the graph has {n} vertices; this task has vertices = {self.n}: "
                f"{suggest_checkpoint(self, 'vertices', n)}"
            )

    def puzzle_texts(self, text: str) -> list[PuzzleText]:
        """One graph a line, or DIMACS: one for each p line."""
        return split_graphs(text)

    def count_solutions(self, x: Tensor) -> int:
        """All colourings, those that differ in the names of colours counted once."""
        return int(enumerate_colorings(self.edges(x)[None])[1])

    def format_input(self, x: Tensor | None) -> str:
        return nx.to_graph6_bytes(self._graph(x), header=False).decode().strip()

    def format_solution(self, x: Tensor | None, y: Tensor) -> str:
        """Colours 0-2 as a digit string, vertex by vertex; ``?`` for a token that is no colour."""
        return "".join("?" if c < 0 else str(c) for c in (y - self._first_color).tolist())

    def plot(self, axes: Axes, x: Tensor | None, y: Tensor | None = None) -> None:
        graph = self._graph(x)
        position = nx.circular_layout(graph)
        colors = [-1] * self.n if y is None else (y - self._first_color).tolist()
        bad = [(u, v) for u, v in graph.edges if y is not None and colors[u] == colors[v]]
        nx.draw_networkx_edges(graph, position, ax=axes, edge_color="#888888")
        nx.draw_networkx_edges(graph, position, edgelist=bad, ax=axes, edge_color=CONFLICT, width=3, style="dashed")
        fill = [PALETTE[c] if c >= 0 else "#FFFFFF" for c in colors]
        nx.draw_networkx_nodes(graph, position, ax=axes, node_color=fill, edgecolors="#333333", node_size=160)
        for vertex, color in enumerate(fill):  # numbered as in the text of an answer
            (across, up), ink = position[vertex], INKS[contrasting_ink(color)]
            axes.annotate(str(vertex), (across, up), ha="center", va="center", color=ink, fontsize=7)
        axes.set_aspect("equal")
        axes.margins(0.15)
        axes.set_axis_off()

    def render(self, x: Tensor | None, y: Tensor | None = None, colour: bool = False) -> str:
        """A vertex a line with its neighbours, behind each a colon and its colour, as in the text of the answer."""
        graph, paint = self._graph(x), painter(colour)
        colors = None if y is None else (y - self._first_color).tolist()

        def named(v: int, beside: int | None = None) -> str:
            if colors is None:
                return f"{v:>2}"
            name = f"{v:>2}:{colors[v] if colors[v] >= 0 else '?'}"
            if colors[v] < 0 or (beside is not None and colors[v] == colors[beside]):
                return mark_mistake(name, paint)
            paper = PALETTE[colors[v]]
            return paint(name, contrasting_ink(paper), nearest_colour(paper)) + " "

        lines = [f"    {named(v)}   {' '.join(named(w, v) for w in sorted(graph[v]))}" for v in graph]
        return "\n".join(("vertex   neighbours" if y is None else "vertex:colour   neighbours", *lines))

    def _graph(self, x: Tensor | None) -> nx.Graph:
        return nx.from_numpy_array(self.adjacency(x).numpy().astype(int))


# ---- graphs ------------------------------------------------------------------------------------------------------


def draw_graphs(rng: np.random.Generator, n: int, p: float, count: int) -> np.ndarray:
    """``count`` distinct labelled 3-colourable graphs from G(n, p): bool ``[count, n, n]``.

    Fewer come back where the supply dries up (small n, extreme p).
    """
    rows, cols = np.triu_indices(n, 1)
    seen: dict[bytes, None] = {}
    barren = 0
    while len(seen) < count and barren < 20:
        edges = rng.random((4096, len(rows))) < p
        keep = enumerate_colorings(torch.from_numpy(edges))[1].numpy() > 0
        before = len(seen)
        seen.update(dict.fromkeys(row.tobytes() for row in edges[keep]))
        barren = barren + 1 if len(seen) == before else 0
    edges = np.frombuffer(b"".join(list(seen)[:count]), dtype=bool).reshape(-1, len(rows))
    graphs = np.zeros((len(edges), n, n), dtype=bool)
    graphs[:, rows, cols] = edges
    return graphs | graphs.transpose(0, 2, 1)


def isomorphism_invariants(graphs: np.ndarray) -> list[bytes]:
    """A key a graph, equal for isomorphic graphs (and, rarely, for others).

    Each vertex is described by its numbers of walks and of closed walks of every length up to n; the key is the
    sorted list of these descriptions. Exact integers: entries stay below 12^12.
    """
    n = graphs.shape[-1]
    adjacency = graphs.astype(np.int64)
    power = np.broadcast_to(np.eye(n, dtype=np.int64), adjacency.shape)
    columns = []
    for _ in range(n):
        power = power @ adjacency
        columns += [power.sum(-1), np.diagonal(power, axis1=-2, axis2=-1)]
    described = np.stack(columns, axis=-1)  # [graphs, n, 2n]
    return [row[np.lexsort(row.T)].tobytes() for row in described]


_COLORINGS: dict[int, tuple[Tensor, Tensor]] = {}


def canonical_colorings(n: int) -> tuple[Tensor, Tensor]:
    """All canonical colourings of n vertices with at most three colours, in lexicographic order.

    Returns:
        int64 ``[C, n]`` and, for each, which pairs have one colour, float32 ``[C, n (n - 1) / 2]``.
    """
    if n not in _COLORINGS:
        grown = torch.zeros(1, 1, dtype=torch.long)
        for _ in range(n - 1):  # each prefix grows by a colour that it uses already, or by the next new one
            grown = torch.cat((grown.repeat_interleave(COLORS, 0), torch.arange(COLORS).repeat(len(grown))[:, None]), 1)
            grown = grown[grown[:, -1] <= grown[:, :-1].amax(1) + 1]
        rows, cols = torch.triu_indices(n, n, offset=1)
        _COLORINGS[n] = grown, (grown[:, rows] == grown[:, cols]).float()
    return _COLORINGS[n]


def enumerate_colorings(edges: Tensor) -> tuple[Tensor, Tensor]:
    """Every canonical 3-colouring of each graph.

    Args:
        edges: bool ``[N, n (n - 1) / 2]``, the upper triangles of the adjacency matrices.

    Returns:
        colourings, int64 ``[M, n]``, graph after graph, and how many each graph has, int64 ``[N]``.
    """
    n = round((1 + (1 + 8 * edges.shape[-1]) ** 0.5) / 2)
    colorings, same = canonical_colorings(n)
    found, counts = [], []
    for part in edges.split(max(1, 20_000_000 // len(colorings))):
        proper = part.float() @ same.T == 0
        found.append(colorings[proper.nonzero()[:, 1]])
        counts.append(proper.sum(1))
    return torch.cat(found), torch.cat(counts)
