"""Three-colouring of graphs (``coloring``)."""

from pyro_gram.tasks.coloring.task import Coloring

__all__ = ["Coloring"]
