"""Three-colouring of random graphs (Section 4.2 and Appendix B.2 of the paper): an input has many solutions.

Graphs are drawn from G(n, p) and kept if three colours suffice. Answers that differ only in the names of the colours
count as equal; in their canonical form, colours are numbered in order of first appearance. No two splits hold
isomorphic graphs, because all graphs with the same isomorphism invariant go to one split. So the augmentation, which
permutes the vertices of training graphs, never produces a held-out graph.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import networkx as nx
import numpy as np
import torch
from torch import Tensor

from pyro_gram.errors import ConfigError, InputError
from pyro_gram.registry import TASKS
from pyro_gram.spec import TaskSpec
from pyro_gram.system.text import PuzzleText
from pyro_gram.tasks.base import PuzzleSet, Task, check_split
from pyro_gram.tasks.coloring.config import ColoringConfig
from pyro_gram.tasks.coloring.graphs import COLORS, draw_graphs, isomorphism_invariants
from pyro_gram.tasks.coloring.listing import list_three_colorings
from pyro_gram.tasks.coloring.pictures import plot_coloring, render_coloring
from pyro_gram.tasks.coloring.text import parse_graph, split_graphs

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@TASKS.register("coloring")
class Coloring(Task):
    """Colour the vertices of a graph with three colours so that no edge joins two vertices of the same colour.

    With layout ``graph``, ``Coloring(config)`` returns a :class:`~pyro_gram.tasks.coloring.any_graph.GraphColoring`.
    """

    Config = ColoringConfig
    size_field = "vertices"
    violation_name = "conflict"
    equivalence = "up to the names of the colours"
    difficulty_label = "edges"

    layout_classes: ClassVar[dict[str, type[Coloring]]] = {}  # subclasses for layouts that this class does not know

    def __init_subclass__(cls, layout: str = "", **kwargs: Any) -> None:
        """Register a subclass for its layout, if it has one."""
        super().__init_subclass__(**kwargs)
        if layout:
            Coloring.layout_classes[layout] = cls

    def __new__(cls, config: ColoringConfig | None = None, *args: Any, **kwargs: Any) -> Coloring:
        """Return an object of the class for the layout. To copy a task, Python calls this without a config."""
        if cls is Coloring and config is not None:
            cls = cls.layout_classes.get(config.layout, cls)
        return super().__new__(cls)

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
        """Convert adjacency matrices, bool ``[..., n, n]``, to tokens, ``[..., n, n]`` or ``[..., pairs + n]``."""
        if self.config.layout == "vertex":
            return adjacency.long() + 2 * torch.eye(self.n, dtype=torch.long)  # 2 marks the vertex itself
        edges = adjacency[..., self._rows, self._cols].long() + 1
        return torch.nn.functional.pad(edges, (0, self.n))

    def edges(self, x: Tensor | None) -> Tensor:
        """Return which pairs are edges, bool ``[..., pairs]``, in the order of the upper triangle."""
        assert x is not None
        if self.config.layout == "vertex":
            return x[..., self._rows, self._cols] == 1
        return x[..., : self.pairs] == 2

    def adjacency(self, x: Tensor | None) -> Tensor:
        """Convert input tokens to symmetric adjacency matrices, bool ``[..., n, n]``."""
        edges = self.edges(x)
        matrix = edges.new_zeros(*edges.shape[:-1], self.n, self.n)
        matrix[..., self._rows, self._cols] = edges
        return matrix | matrix.transpose(-1, -2)

    # ---- right and equal answers -------------------------------------------------------------------------------

    def violations(self, x: Tensor | None, y: Tensor) -> Tensor:
        """Count the edges whose ends have the same colour, and the vertices without a colour (``edge`` layout)."""
        has_same_color = y[..., self._rows] == y[..., self._cols]
        return (has_same_color & self.edges(x)).sum(-1) + (y < self._first_color).sum(-1)

    def difficulty(self, x: Tensor) -> Tensor:
        """Count the edges, int64 ``[...]``."""
        return self.edges(x).sum(-1)

    def canonical_form(self, x: Tensor | None, y: Tensor) -> Tensor:
        """Renumber the colours in order of first appearance. Tokens that are not colours stay unchanged."""
        color = y - self._first_color
        vertex = torch.arange(self.n)[:, None].expand(self.n, COLORS)
        first_vertex = torch.where(color[..., None] == torch.arange(COLORS), vertex, self.n).amin(-2)  # [..., COLORS]
        rank = first_vertex.argsort(dim=-1, stable=True).argsort(dim=-1)
        renamed_colors = rank.gather(-1, color.clamp(min=0)) + self._first_color
        return torch.where(color >= 0, renamed_colors, y)

    # ---- data --------------------------------------------------------------------------------------------------

    def split(self, name: str) -> PuzzleSet:
        check_split(name)
        return self._splits[name]

    @cached_property
    def _splits(self) -> dict[str, PuzzleSet]:
        c = self.config
        sizes = {split: getattr(c, split) for split in ("test", "validation", "train")}
        rng = np.random.default_rng(c.data_seed)
        graphs = draw_graphs(rng, c.vertices, c.edge_probability, sum(sizes.values()) + max(64, c.test))
        indices_of: dict[bytes, list[int]] = {}
        for index, key in enumerate(isomorphism_invariants(graphs)):
            indices_of.setdefault(key, []).append(index)
        classes = list(indices_of.values())
        order = iter(rng.permutation(len(classes)).tolist())
        splits = {}
        for split, size in sizes.items():
            indices: list[int] = []
            while len(indices) < size:
                number = next(order, None)
                if number is None:
                    raise ConfigError(
                        f"too few 3-colourable graphs of {c.vertices} vertices for {sum(sizes.values())} inputs "
                        "without an isomorphic pair across splits: lower task.train or raise task.vertices"
                    )
                indices += classes[number]  # if the last class is too large, the rest of it is in no split
            splits[split] = self._puzzles(torch.from_numpy(graphs[indices[:size]]))
        return splits

    def _puzzles(self, adjacency: Tensor) -> PuzzleSet:
        colorings = list_three_colorings(adjacency.numpy())
        solutions = torch.from_numpy(colorings.solutions).long() + self._first_color
        return PuzzleSet.from_counts(self.encode(adjacency), solutions, torch.from_numpy(colorings.counts))

    def augment(self, x: Tensor | None, y: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Permute the vertices of each pair at random, and make the answer canonical again."""
        assert x is not None
        adjacency = self.adjacency(x)
        order = torch.rand(*adjacency.shape[:-1], generator=generator).argsort(-1)  # [..., n]
        adjacency = adjacency.gather(-2, order[..., :, None].expand_as(adjacency))
        adjacency = adjacency.gather(-1, order[..., None, :].expand_as(adjacency))
        x = self.encode(adjacency)
        return x, self.canonical_form(x, y.gather(-1, order.expand(y.shape)))

    # ---- text and picture --------------------------------------------------------------------------------------

    def parse(self, text: str) -> Tensor:
        """Parse a graph in graph6 or sparse6 (one line) or DIMACS .col (several lines) format."""
        return self._input_of(parse_graph(text, self._check_order))

    def parse_graph(self, graph: nx.Graph) -> Tensor:
        """Convert a simple graph. If its vertices are not 0 to n - 1, they are numbered in the graph's order.

        Raises:
            InputError: the graph is directed, has parallel edges, loops or another size, or cannot be coloured.
        """
        return self._input_of(self._checked_graph(graph).edges)

    def _checked_graph(self, graph: nx.Graph) -> nx.Graph:
        """Return the graph with the vertices 0 to n - 1. Raises InputError if it is not simple or has a wrong size."""
        if graph.is_directed() or graph.is_multigraph():
            raise InputError("the graph is directed or has parallel edges: give networkx.Graph(graph)")
        if set(graph) != set(range(len(graph))):
            graph = nx.convert_node_labels_to_integers(graph)
        self._check_order(graph.number_of_nodes())
        loops = list(nx.nodes_with_selfloops(graph))
        if loops:
            raise InputError(f"vertex {loops[0]} has a loop: no colouring exists; remove the loop")
        return graph

    def _input_of(self, edges: Iterable[tuple[int, int]]) -> Tensor:
        """Return the input tokens of the graph with these edges. Raises InputError if it has no colouring."""
        adjacency = torch.zeros(self.n, self.n, dtype=torch.bool)
        for u, v in edges:
            adjacency[u, v] = adjacency[v, u] = True
        x = self.encode(adjacency)
        if not self.count_solutions(x):
            raise InputError("the graph is not 3-colourable (checked exactly): no answer exists")
        return x

    def _check_order(self, n: int) -> None:
        if n != self.n:
            from pyro_gram.tasks.advice import suggest_checkpoint

            raise InputError(
                f"the graph has {n} vertices; this task has vertices = {self.n}: {suggest_checkpoint(self, n)}"
            )

    def puzzle_texts(self, text: str) -> list[PuzzleText]:
        """Cut a file into graphs: one on each line, or in DIMACS one for each p line."""
        return split_graphs(text)

    def count_solutions(self, x: Tensor) -> int | None:
        """Count the colourings; those that differ only in the names of colours count once."""
        return int(list_three_colorings(self.adjacency(x)[None].numpy()).counts[0])

    def format_input(self, x: Tensor | None) -> str:
        return nx.to_graph6_bytes(self._graph(x), header=False).decode().strip()

    def format_solution(self, x: Tensor | None, y: Tensor) -> str:
        """Return the colours 0-2 as digits, vertex by vertex; ``?`` for a token that is not a colour."""
        return "".join("?" if c < 0 else str(c) for c in (y - self._first_color).tolist())

    def plot(self, axes: Axes, x: Tensor | None, y: Tensor | None = None) -> None:
        plot_coloring(axes, self._graph(x), self._colors(y))

    def render(self, x: Tensor | None, y: Tensor | None = None, colour: bool = False) -> str:
        """Return a line for each vertex, with its neighbours; ``2:0`` is vertex 2 in colour 0."""
        return render_coloring(self._graph(x), self._colors(y), None, colour)

    def _colors(self, y: Tensor | None) -> list[int] | None:
        """Return the colour of each vertex in an answer, negative for a token that is not a colour."""
        return None if y is None else (y - self._first_color).tolist()

    def _graph(self, x: Tensor | None) -> nx.Graph:
        return nx.from_numpy_array(self.adjacency(x).numpy().astype(int))
