"""Sudoku: a board to complete (``sudoku``), and whole boards without clues (``sudoku_uncond``)."""

from pyro_gram.tasks.sudoku.task import Sudoku
from pyro_gram.tasks.sudoku.unconditional import SudokuBoards

__all__ = ["Sudoku", "SudokuBoards"]
