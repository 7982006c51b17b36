"""Settings of the task ``coloring``."""

from __future__ import annotations

from dataclasses import dataclass, fields

from pyro_gram.checks import AT_LEAST_0, AT_LEAST_1, check_choice, check_range, check_seed
from pyro_gram.errors import ConfigError
from pyro_gram.tasks.base import SPLITS

MIN_COLORS, MAX_COLORS = 3, 6
MIN_VERTICES = 3
MAX_LISTED_VERTICES = (
    12  # graphs of the splits whose solutions are all listed; 12 vertices have about 3^11 / 2 colourings
)
MAX_VERTICES = 64  # the largest graph that can be solved
GRAPH_FIELDS = ("colors", "min_vertices", "planted_graphs", "planted_vertices")  # other layouts ignore them


@dataclass(frozen=True)
class ColoringConfig:
    """Settings of the graphs, their number, and their layout as tokens.

    Attributes:
        vertices: n, the number of vertices of a graph; the largest number, if ``min_vertices`` is positive.
        edge_probability: p of G(n, p), the probability of an edge between two vertices. In layout ``graph`` it is at
            most 4 / n, so that about as many large graphs as small ones are 3-colourable.
        layout: ``vertex``: one position for each vertex, with its row of the adjacency matrix. ``edge`` (the paper's):
            one token for each pair of vertices (1 no edge, 2 edge), then a blank for each vertex; answers are
            3 + colour. ``graph``: graphs of any size, which may have clues (vertices with a given colour).
        train: number of graphs to train on, without the planted ones.
        validation: number of graphs to validate on. Of several sizes, fewer remain: those that equal a graph of another
            split without vertices that have no edge are left out.
        test: number of graphs to test on, in the same way.
        data_seed: seed of the graphs and the splits; runs with equal seeds can be compared.
        colors: the most colours that an input may use (layout ``graph``). Each input has its own number, from 3 on.
        min_vertices: the smallest number of vertices of a graph (layout ``graph``); 0: all graphs have ``vertices``.
        planted_graphs: number of further training graphs, which are drawn together with a colouring (layout ``graph``).
        planted_vertices: the largest number of vertices of these graphs.
    """

    vertices: int = 8
    edge_probability: float = 0.5
    layout: str = "vertex"
    train: int = 7002
    validation: int = 128
    test: int = 255
    data_seed: int = 0
    colors: int = 3
    min_vertices: int = 0
    planted_graphs: int = 0
    planted_vertices: int = 20

    def __post_init__(self) -> None:
        check_range(
            self,
            vertices=(MIN_VERTICES, MAX_LISTED_VERTICES),
            edge_probability=(1e-6, 1 - 1e-6),
            **dict.fromkeys(SPLITS, AT_LEAST_1),
            colors=(MIN_COLORS, MAX_COLORS),
            planted_graphs=AT_LEAST_0,
        )
        check_choice("layout", self.layout, ("vertex", "edge", "graph"))
        check_seed(self.data_seed, "data_seed")
        self._check_sizes()

    def _check_sizes(self) -> None:
        """Raise ConfigError for fields that the layout ignores, and for sizes that contradict each other."""
        changes = [field.name for field in fields(self) if getattr(self, field.name) != field.default]
        if self.layout != "graph":
            for name in GRAPH_FIELDS:
                if name in changes:
                    raise ConfigError(f"{name} needs layout = graph: layout {self.layout} ignores it")
        if self.min_vertices:
            check_range(self, min_vertices=(MIN_VERTICES, self.vertices))
        if self.planted_graphs:
            if not self.min_vertices:
                raise ConfigError("planted_graphs have several sizes: set min_vertices to the smallest one")
            check_range(self, planted_vertices=(self.min_vertices, MAX_VERTICES))
        else:
            for name in ("colors", "planted_vertices"):
                if name in changes:
                    raise ConfigError(
                        f"{name} needs planted_graphs: the other graphs are drawn as graphs of three colours"
                    )

    @property
    def sizes(self) -> range:
        """The numbers of vertices of the graphs in all splits, without the planted ones."""
        return range(self.min_vertices or self.vertices, self.vertices + 1)

    @property
    def solved_sizes(self) -> range:
        """The numbers of vertices of the graphs that a model of this task reads."""
        return range(MIN_VERTICES, MAX_VERTICES + 1) if self.min_vertices else self.sizes

    @property
    def largest_size(self) -> int:
        """The number of vertices to which all graphs of the splits are padded."""
        return max(self.vertices, self.planted_vertices if self.planted_graphs else 0)
