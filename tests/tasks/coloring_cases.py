"""A task of colouring graphs of any size, and its graphs, for several test files."""

import networkx as nx

from pyro_gram.tasks.coloring import Coloring, GraphColoring
from pyro_gram.tasks.coloring.config import ColoringConfig

SETTINGS = {
    "layout": "graph",
    "min_vertices": 5,
    "vertices": 8,
    "colors": 5,
    "planted_graphs": 400,
    "planted_vertices": 12,
    "train": 400,
    "validation": 30,
    "test": 50,
}


def make(**changes) -> GraphColoring:
    return Coloring(ColoringConfig(**{**SETTINGS, **changes}))


def networkx_graph(task, x) -> nx.Graph:
    graph = task.decode(x)
    n = int(graph.mask.sum())
    result = nx.from_numpy_array(graph.adjacency[:n, :n].numpy().astype(int))
    for v, clue in enumerate(graph.clues[:n].tolist()):
        if clue >= 0:
            result.nodes[v]["color"] = clue
    return result
