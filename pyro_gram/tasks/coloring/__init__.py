"""Colouring of graphs (``coloring``)."""

from pyro_gram.tasks.coloring.any_graph import GraphColoring
from pyro_gram.tasks.coloring.task import Coloring

__all__ = ["Coloring", "GraphColoring"]
