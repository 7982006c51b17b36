"""Colouring of graphs of any size, with three to six colours and with clues: the layout ``graph`` of ``coloring``."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import networkx as nx
import numpy as np
import torch
from torch import Tensor

from pyro_gram.errors import InputError
from pyro_gram.spec import TaskSpec
from pyro_gram.system.text import PuzzleText
from pyro_gram.tasks.base import PuzzleSet
from pyro_gram.tasks.coloring.any_graph_text import read_graph, split_any_graphs, vertex_names, write_suffix
from pyro_gram.tasks.coloring.config import MAX_VERTICES, MIN_COLORS, MIN_VERTICES, ColoringConfig
from pyro_gram.tasks.coloring.exact import count_partial_colorings, is_colorable
from pyro_gram.tasks.coloring.graph_splits import make_splits
from pyro_gram.tasks.coloring.graph_tokens import (
    FREE,
    RELATIONS,
    GraphBatch,
    canonical_names,
    decode_graphs,
    encode_graphs,
    fixed_names,
    graph_structure,
    padding_token,
)
from pyro_gram.tasks.coloring.pictures import plot_coloring, render_coloring
from pyro_gram.tasks.coloring.task import Coloring

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_TITLE = 40  # a title with more characters does not show the text of the graph


class GraphColoring(Coloring, layout="graph"):
    """Colour the vertices of a graph so that no edge joins two vertices of one colour, and all clues are kept.

    An input says how many colours its answers may use; a clue is the given colour of a vertex.

    Attributes:
        max_size: the number of vertices of the largest graph that is read.
        max_colors: the most colours that an input may use.
    """

    max_size = MAX_VERTICES
    min_colors = MIN_COLORS

    def __init__(self, config: ColoringConfig, data_dir: str | None = None) -> None:
        self.config = config
        self.paper_name = ""
        n, self.max_colors = config.largest_size, config.colors
        self.n = n
        self._first_color = 0
        padding = padding_token(self.max_colors)
        structure = partial(graph_structure, colors=self.max_colors)
        self.spec = TaskSpec(
            n,
            n,
            padding + 1,
            n,
            self.max_colors,
            structure=structure,
            relations=RELATIONS,
            padding=padding if config.min_vertices else None,
        )

    # ---- layout ------------------------------------------------------------------------------------------------

    def encode(self, adjacency: Tensor) -> Tensor:
        """Convert graphs without padding and clues, bool ``[..., n, n]``, to inputs with three colours."""
        clues = torch.full(adjacency.shape[:-1], FREE)
        num_colors = torch.full(adjacency.shape[:-2], MIN_COLORS)
        return encode_graphs(adjacency, clues, num_colors, self.max_colors, max(self.n, adjacency.shape[-1]))

    def decode(self, x: Tensor | None) -> GraphBatch:
        """Return the adjacency, the clues, the numbers of colours and the mask of inputs ``[..., n, n]``."""
        assert x is not None
        return decode_graphs(x, self.max_colors)

    def edges(self, x: Tensor | None) -> Tensor:
        """Return which pairs are edges, bool ``[..., n (n - 1) / 2]``, in the order of the upper triangle."""
        assert x is not None
        rows, cols = torch.triu_indices(x.shape[-1], x.shape[-1], offset=1)
        return x[..., rows, cols] == 1

    def adjacency(self, x: Tensor | None) -> Tensor:
        return self.decode(x).adjacency

    def colors_of(self, x: Tensor) -> Tensor:
        """Return how many colours each input may use, int64 ``[...]``."""
        return self.decode(x).num_colors

    def with_colors(self, x: Tensor, colors: int) -> Tensor:
        """Return the input ``x [n, n]`` with another number of colours.

        Raises:
            InputError: the task has not so many colours; a clue has a colour beyond them; or it is proved that so few
                colours do not suffice.
        """
        x = self.replace_colors(x, colors)
        self._check_colorable(x, colors)
        return x

    def replace_colors(self, x: Tensor, colors: int) -> Tensor:
        """Return inputs ``[..., n, n]`` with another number of colours, whether it suffices or not.

        Raises:
            InputError: the task has not so many colours, or a clue has a colour beyond them.
        """
        graphs = self.decode(x)
        if not MIN_COLORS <= colors <= self.max_colors:
            raise InputError(f"this task colours with {MIN_COLORS} to {self.max_colors} colours, not {colors}")
        largest_clue = int(graphs.clues.max())
        if largest_clue >= colors:
            raise InputError(f"a clue has colour {largest_clue}: with {colors} colours they are 0 to {colors - 1}")
        shift = (self.max_colors + 1) * (colors - graphs.num_colors)[..., None]
        x = x.clone()
        diagonal = x.diagonal(dim1=-2, dim2=-1)
        diagonal += torch.where(graphs.mask, shift, 0)
        return x

    # ---- right and equal answers -------------------------------------------------------------------------------

    def violations(self, x: Tensor | None, y: Tensor) -> Tensor:
        """Count edges whose ends have one colour, clues that are not kept, and colours beyond the number of colours."""
        graphs = self.decode(x)
        is_edge = graphs.adjacency & (y[..., :, None] == y[..., None, :])
        breaks_clue = (graphs.clues != FREE) & (graphs.clues != y)
        is_beyond = graphs.mask & (y >= graphs.num_colors[..., None])
        return is_edge.sum((-2, -1)) // 2 + breaks_clue.sum(-1) + is_beyond.sum(-1)

    def canonical_form(self, x: Tensor | None, y: Tensor) -> Tensor:
        """Rename the colours that no clue has, in order of first appearance. Padding becomes 0."""
        graphs = self.decode(x)
        return canonical_names(y, fixed_names(graphs, self.max_colors), graphs.mask)

    # ---- data --------------------------------------------------------------------------------------------------

    @cached_property
    def _splits(self) -> dict[str, PuzzleSet]:
        return make_splits(self.config)

    def augment(self, x: Tensor | None, y: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Permute the vertices of each pair and the names of its colours at random: all names are equally probable."""
        graphs = self.decode(x)
        assert x is not None
        n = x.shape[-1]
        keys = torch.rand(*graphs.mask.shape, generator=generator)
        order = torch.where(graphs.mask, keys, 1.0 + torch.arange(n)).argsort(-1)  # padding stays at the end
        color = torch.arange(self.max_colors)
        keys = torch.rand(*order.shape[:-1], self.max_colors, generator=generator)
        is_open = color < graphs.num_colors[..., None]
        names = torch.where(is_open, keys, 1.0 + color).argsort(-1)  # the names of closed colours stay
        clues = torch.where(graphs.clues == FREE, FREE, names.gather(-1, graphs.clues.clamp(min=0)))
        new_colors = names.expand(*y.shape[:-1], self.max_colors).gather(-1, y)
        y = torch.where(graphs.mask, new_colors, 0).gather(-1, order.expand(y.shape))
        x = x.clone()
        diagonal = x.diagonal(dim1=-2, dim2=-1)
        diagonal += torch.where(graphs.mask, clues - graphs.clues, 0)
        x = x.gather(-2, order[..., :, None].expand_as(x)).gather(-1, order[..., None, :].expand_as(x))
        return x, y

    def namings(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the permutations of colours, and which of them rename neither the colours of clues nor closed ones."""
        graphs = self.decode(x)
        open_colors = int(graphs.num_colors.max())
        closed = tuple(range(open_colors, self.max_colors))
        namings = torch.tensor([(*names, *closed) for names in itertools.permutations(range(open_colors))])
        is_kept = namings[:, None] == torch.arange(self.max_colors)  # [P, 1, colors]
        return namings, (is_kept | ~fixed_names(graphs, self.max_colors)).all(-1)

    def log_namings(self, x: Tensor | None, y: Tensor) -> Tensor:
        """Return the log of the number of answers that are ``y`` up to the names of free colours, ``[...]``."""
        graphs = self.decode(x)
        is_free = ~fixed_names(graphs, self.max_colors)
        is_used = ((y[..., None] == torch.arange(self.max_colors)) & graphs.mask[..., None]).any(-2)
        num_free, num_used = is_free.sum(-1).double(), (is_free & is_used).sum(-1).double()
        return torch.lgamma(num_free + 1) - torch.lgamma(num_free - num_used + 1)

    # ---- text and picture --------------------------------------------------------------------------------------

    def parse(self, text: str) -> Tensor:
        """Parse a graph in graph6 or sparse6 (one line, perhaps with clues), in DIMACS .col format, or as its edges."""
        graph = read_graph(text, self._check_order)
        return self._input_from(graph.order, graph.edges, graph.clues, graph.colors)

    def vertex_names(self, text: str) -> list[str]:
        return vertex_names(text)

    def parse_graph(self, graph: nx.Graph) -> Tensor:
        """Convert a simple graph. The attribute ``color`` of a vertex is its clue, a whole number from 0.

        If the vertices are not 0 to n - 1, they are numbered in the graph's order.

        Raises:
            InputError: the graph is directed, has parallel edges, loops or another size, or cannot be coloured; or a
                clue is no colour of this task.
        """
        graph = self._checked_graph(graph)
        clues = [self._clue_of(v, graph.nodes[v].get("color")) for v in range(len(graph))]
        return self._input_from(len(graph), graph.edges, clues)

    def _clue_of(self, vertex: int, value: Any) -> int:
        if value is None:
            return FREE
        is_number = hasattr(value, "__index__") and not isinstance(value, bool)
        if not is_number or not 0 <= value.__index__() < self.max_colors:
            raise InputError(
                f"the attribute color of vertex {vertex} is {value!r}: a clue is a whole number from 0 to "
                f"{self.max_colors - 1}; remove the attribute of vertices without a clue"
            )
        return int(value)

    def _input_from(
        self, order: int, edges: Iterable[tuple[int, int]], clues: list[int], colors: int | None = None
    ) -> Tensor:
        """Return the tokens of a graph. Raises InputError if it is proved that it has no colouring.

        ``colors`` is the number of colours that is tried first; None: three, or more if a clue has a higher colour.
        """
        largest_clue = max(clues)
        if largest_clue >= self.max_colors:
            raise InputError(
                f"a clue has colour {largest_clue}: the colours of this task are 0 to {self.max_colors - 1}"
            )
        adjacency = torch.zeros(order, order, dtype=torch.bool)
        for u, v in edges:
            adjacency[u, v] = adjacency[v, u] = True
            if clues[u] == clues[v] != FREE:
                raise InputError(f"vertices {u} and {v} are adjacent and have the same clue, colour {clues[u]}")
        num_colors = torch.tensor(max(MIN_COLORS, largest_clue + 1))
        x = encode_graphs(adjacency, torch.tensor(clues), num_colors, self.max_colors, max(self.n, order))
        x = x if colors is None else self.replace_colors(x, colors)
        self._check_colorable(x, self.max_colors)
        return x

    def _check_colorable(self, x: Tensor, colors: int) -> None:
        """Raise InputError if it is proved that ``colors`` colours do not suffice for the input ``x [n, n]``."""
        adjacency, clues, _ = self._exact_arguments(x)
        is_possible, method = is_colorable(adjacency, clues, colors)
        if is_possible is False:
            clause = " with its clues" if clues.max() >= 0 else ""
            limit = (
                f"allow more, up to {self.max_colors}" if colors < self.max_colors else "this task has no more colours"
            )
            raise InputError(f"the graph{clause} is not {colors}-colourable ({method}): {limit}")

    def count_solutions(self, x: Tensor) -> int | None:
        """Count the colourings of one input up to the names of colours without a clue; None if they are too many."""
        return count_partial_colorings(*self._exact_arguments(x))

    def _exact_arguments(self, x: Tensor) -> tuple[np.ndarray, np.ndarray, int]:
        """Return the adjacency matrix, the clues and the number of colours of one input, without padding."""
        graph = self.decode(x)
        n = int(graph.mask.sum())
        return graph.adjacency[:n, :n].numpy(), graph.clues[:n].numpy(), int(graph.num_colors)

    def _check_order(self, n: int) -> None:
        if not self.config.min_vertices:
            super()._check_order(n)
        elif not MIN_VERTICES <= n <= self.max_size:
            raise InputError(f"the graph has {n} vertices; this task reads {MIN_VERTICES} to {self.max_size}")

    def puzzle_texts(self, text: str) -> list[PuzzleText]:
        """Cut a file into graphs: one on each line, or in DIMACS one for each p line; a list of edges is one graph."""
        return split_any_graphs(text)

    def format_input(self, x: Tensor | None) -> str:
        """Return the graph in graph6, then its clues, if any, and the number of colours where it is not the least."""
        graph = self.decode(x)
        clues = graph.clues[graph.mask].tolist()
        colors = int(graph.num_colors)
        return super().format_input(x) + write_suffix(
            clues, colors if colors > max(MIN_COLORS, max(clues) + 1) else None
        )

    def title(self, x: Tensor | None) -> str:
        """Return the graph in graph6 with its clues or, if this is long, the numbers of vertices and edges."""
        text = super().title(x)
        if len(text) <= MAX_TITLE:
            return text
        graph = self._graph(x)
        return f"graph of {graph.number_of_nodes()} vertices, {graph.number_of_edges()} edges"

    def format_solution(self, x: Tensor | None, y: Tensor) -> str:
        """Return the colours as digits, vertex by vertex."""
        return "".join(map(str, y[self.decode(x).mask].tolist()))

    def plot(self, axes: Axes, x: Tensor | None, y: Tensor | None = None) -> None:
        plot_coloring(axes, self._graph(x), self._answer_of(x, y), self._clues_of(x))

    def render(self, x: Tensor | None, y: Tensor | None = None, colour: bool = False) -> str:
        """Return a line for each vertex, with its neighbours; ``2:0`` is vertex 2 in colour 0 (or with clue 0)."""
        return render_coloring(self._graph(x), self._answer_of(x, y), self._clues_of(x), colour)

    def _answer_of(self, x: Tensor | None, y: Tensor | None) -> list[int] | None:
        return None if y is None else y[self.decode(x).mask].tolist()

    def _clues_of(self, x: Tensor | None) -> list[int] | None:
        """Return the clue of each vertex, -1 for none; None if the input has no clues."""
        graph = self.decode(x)
        clues = graph.clues[graph.mask].tolist()
        return clues if max(clues) >= 0 else None

    def _graph(self, x: Tensor | None) -> nx.Graph:
        graph = self.decode(x)
        n = int(graph.mask.sum())
        return nx.from_numpy_array(graph.adjacency[:n, :n].numpy().astype(int))
