"""N-Queens completion (``nqueens``)."""

from pyro_gram.tasks.nqueens.task import NQueens

__all__ = ["NQueens"]
