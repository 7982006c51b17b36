"""ARC-AGI-1 and -2 (``arc``)."""

from pyro_gram.tasks.arc.task import Arc

__all__ = ["Arc"]
