"""Recognize the task of a text by the notation of its puzzles. No model is loaded, and no puzzle is solved.

A task reads a text if its parser accepts at least half of the puzzles, so that one faulty puzzle does no harm. If no
task does, the tasks whose puzzles the text resembles are returned: their own error messages say what is wrong.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Sequence
from math import isqrt
from typing import Any, NamedTuple

from pyro_gram.errors import InputError
from pyro_gram.system.text import PuzzleText, normalize_text, numbered_lines
from pyro_gram.tasks import latin
from pyro_gram.tasks.arc.files import is_collection, is_puzzle
from pyro_gram.tasks.base import NO_PUZZLE
from pyro_gram.tasks.board_text import clean_line, is_rule
from pyro_gram.tasks.coloring.any_graph_text import has_suffix, is_edge_list, read_graph, split_any_graphs
from pyro_gram.tasks.coloring.text import has_graph6_length, is_dimacs, without_comments
from pyro_gram.tasks.nqueens.text import MIN_SIZE, parse_queens, split_queens
from pyro_gram.tasks.sudoku.boards import SIZES, conflicts
from pyro_gram.tasks.sudoku.data import BLANKS
from pyro_gram.tasks.sudoku.text import DIGITS, parse_puzzle, remove_answer, split_puzzles

MAX_PUZZLES = 50  # so many puzzles of a text are tried
MAX_CHARACTERS = 2**16  # so much of a text is read, unless it is JSON
LARGEST_ORDER = 10_000  # of a graph; larger ones are not read
SEPARATORS = " \t\n|+=,;[](){}\"'"
QUEENS = "Qq\N{BLACK CHESS QUEEN}\N{WHITE CHESS QUEEN}"
SIGNS_OF_QUEENS = set(QUEENS + "._-*01 ,;|\t")
LOST_CELLS = 3  # a list of about as many numbers as a Sudoku has cells may be a damaged Sudoku
EDGE = re.compile(r"\(?\s*\d{1,6}[\s,;]+\d{1,6}([\s,;]+[-+]?\d*\.?\d+)?\s*\)?")  # two vertices, and perhaps a weight
GRAPH_FILE = re.compile(r"\s*((strict\s+)?(di)?graph\b|<|>>(di)?graph6<<|>>sparse6<<)", re.I)  # GML, Graphviz, XML
VERTEX = r"(?:0|[1-9]\d{0,5}|(?![xX_\d]+\b)[A-Za-z]\w{0,19})"  # a number or a word, but no row of a Sudoku
VERTEX_OR_EDGE = re.compile(rf"{VERTEX}(?P<end>[\s,]+{VERTEX})?(\s*\{{\}})?")
SPARSE6 = re.compile(r"[:;&][?-~]+")  # sparse6, incremental sparse6 and digraph6
NAMES = "graphs, boards of queens, Sudokus, Latin squares and ARC tasks"


class Puzzle(NamedTuple):
    """A puzzle in a text: can it be read, and what is its size (vertices or rows; None if it is unknown)?"""

    is_readable: bool
    size: int | None


Parse = Callable[[str, Callable[[int], None]], None]  # calls a function with the size; raises InputError


def recognize(text: str) -> list[str]:
    """Return the names of the tasks that could read a text. One name is certain; none or several are for the user.

    >>> recognize("Q.../..../..../....")
    ['nqueens']
    >>> recognize(".412\\n.2..\\n21..\\n432.")
    ['sudoku']
    >>> recognize("p edge 3 2\\ne 1 2\\ne 2 3")
    ['coloring']
    >>> recognize("....\\n....\\n....\\n....")
    ['nqueens', 'sudoku']
    """
    text = _beginning(text)
    names = [name for name, puzzles_of in PARSERS.items() if _is_readable(puzzles_of(text))]
    return names or [name for name, resembles in SIGNS.items() if resembles(text)]


def choose_task(text: str, source: str) -> str:
    """Return the name of the only task that could read a text.

    Args:
        text: the puzzles.
        source: the name of the text in messages.

    Raises:
        InputError: the text is empty; or no task could read it, or several tasks could.
    """
    if not numbered_lines(text):
        raise InputError(NO_PUZZLE)
    names = recognize(text)
    if len(names) == 1:
        return names[0]
    if not names:
        raise InputError(
            f"{source} is of no notation that is recognized ({NAMES}): name its task with --task or --checkpoint, "
            "and the error will say what is wrong"
        )
    raise InputError(f"{source} may be a puzzle of {' or '.join(names)}: decide with --task or --checkpoint")


def puzzle_sizes(name: str, text: str) -> list[int]:
    """Return the sizes (vertices or rows) of a text's puzzles of the task ``name``, as far as they are known."""
    puzzles = PARSERS[name](_beginning(text)) if name in PARSERS else []
    return [puzzle.size for puzzle in puzzles if puzzle.size is not None]


def _beginning(text: str) -> str:
    """Return the first lines of a long text; JSON cannot be cut."""
    text = normalize_text(text)
    if len(text) <= MAX_CHARACTERS or text.lstrip().startswith(("[", "{", '"')):
        return text
    return text[:MAX_CHARACTERS].rpartition("\n")[0] or text[:MAX_CHARACTERS]


def _is_readable(puzzles: list[Puzzle]) -> bool:
    return bool(puzzles) and 2 * sum(puzzle.is_readable for puzzle in puzzles) >= len(puzzles)


def _try_puzzles(pieces: Sequence[PuzzleText], parse: Parse) -> list[Puzzle]:
    """Parse the first puzzles of a text."""
    puzzles = []
    for piece in pieces[:MAX_PUZZLES]:
        sizes: list[int] = []
        try:
            parse(piece.text, sizes.append)
            is_readable = True
        except InputError:
            is_readable = False
        puzzles.append(Puzzle(is_readable, next(iter(sizes), None)))
    return puzzles


# ---- graphs ----------------------------------------------------------------------------------------------------------


def _graphs(text: str) -> list[Puzzle]:
    text = without_comments(text)
    if not numbered_lines(text):
        return []
    is_list = is_edge_list(text)

    def parse(text: str, on_size: Callable[[int], None]) -> None:
        def check_order(order: int) -> None:
            on_size(order)
            if not 0 < order <= LARGEST_ORDER:
                raise InputError(f"a graph of {order} vertices")

        if is_edge_list(text) and not (is_list and _has_names_of_vertices(text)):
            raise InputError("no graph")
        read_graph(text, check_order)

    return _try_puzzles(split_any_graphs(text), parse)


def _has_names_of_vertices(text: str) -> bool:
    """Return whether a list of edges names vertices by numbers or words, and is no Sudoku whose boxes are spaced."""
    matches = [VERTEX_OR_EDGE.fullmatch(line) for _, line in numbered_lines(text)]
    edges = [match for match in matches if match and match["end"]]
    has_words = any(re.search("[A-Za-z]", match[0]) for match in edges)
    return all(matches) and 2 * len(edges) >= len(matches) > has_words and not _is_readable(_sudokus(text))


def _resembles_graphs(text: str) -> bool:
    """Return whether a text is DIMACS, graph6 with more on its lines, another format for graphs, or a list of edges."""
    lines = [line for _, line in numbered_lines(without_comments(text))][:MAX_PUZZLES]
    if not lines or is_dimacs(lines) or GRAPH_FILE.match(text):
        return bool(lines)
    return (
        all(map(EDGE.fullmatch, lines))
        or all(map(SPARSE6.fullmatch, lines))
        or all(has_graph6_length(line.split()[0]) for line in lines)
    )


# ---- queens ----------------------------------------------------------------------------------------------------------


def _queens(text: str) -> list[Puzzle]:
    first = next((puzzle.size for puzzle in _try_puzzles(split_queens(text, ())[:1], _parse_queens)), None)
    pieces = split_queens(text, () if first is None else (first,))
    puzzles = _try_puzzles(pieces, _parse_queens)
    return [Puzzle(False, None)] * len(puzzles) if _may_be_rows_of_sudoku(pieces) else puzzles


def _parse_queens(text: str, on_size: Callable[[int], None]) -> None:
    """Parse a board of queens, none of which may attack another: rows of a Sudoku read like lists of columns."""
    columns = parse_queens(text, (_count_rows(text),), on_size)
    queens = [(r, c) for r, row in enumerate(columns) for c in row]
    for (r1, c1), (r2, c2) in itertools.combinations(queens, 2):
        if r1 == r2 or c1 == c2 or abs(r1 - r2) == abs(c1 - c2):
            raise InputError("two queens attack each other")


def _count_rows(text: str) -> int:
    return len(text.strip().split("\n")) if "\n" in text.strip() else text.count("/") + 1


def _may_be_rows_of_sudoku(pieces: Sequence[PuzzleText]) -> bool:
    """Return whether lists of columns may be the rows, or all cells, of a damaged Sudoku.

    A list of columns on a line reads like a row of a Sudoku with separated cells. Lists are taken for boards of queens
    if ``-1`` is their only blank; or if several lists have one length, and none has two blanks; or if a single list has
    no blanks but 0, and not about as many numbers as a Sudoku has cells.
    """
    lists = [_numbers_of(piece.text) for piece in pieces[:MAX_PUZZLES]]  # empty for a text that is no such list
    values = [number for numbers in lists for number in numbers if number is not None]
    num_marks = sum(numbers.count(None) for numbers in lists)
    num_digits = sum(0 <= value <= 9 for value in values)
    if num_digits < 0.8 * len(values) or (not num_marks and -1 in values) or not values:
        return False
    if len(lists) > 1:
        num_blanks = max(numbers.count(None) + numbers.count(0) for numbers in lists)
        return len({len(numbers) for numbers in lists}) > 1 or num_blanks > 1
    is_near = any(abs(len(lists[0]) - size**2) <= LOST_CELLS for size in (4, 6, 9))
    return is_near or (num_marks > 0 and len(lists[0]) <= 9)


def _numbers_of(text: str) -> list[int | None]:
    """Return the numbers of a list of columns on one line, with None for each blank; nothing for other texts."""
    words = re.split(r"[\s,;]+", text.strip("[](){},; "))
    if "\n" in text or not any(word.lstrip("-").isdecimal() for word in words):
        return []
    is_list = len(words) >= MIN_SIZE and all(re.fullmatch(r"-?\d{1,2}|[._\-?*xX]|null|None", word) for word in words)
    return [int(word) if word.lstrip("-").isdecimal() else None for word in words] if is_list else []


def _resembles_queens(text: str) -> bool:
    """Return whether a text has a queen's letter, rows joined by ``/``, or lists of columns that do not repeat."""
    lines = _lines_of_boards(text)
    if any(line.count("/") > 2 and len(line) <= 1000 and not _has_rows_of_digits(line) for line in lines):
        return True
    if any(set(line) & set(QUEENS) and not set(line) - SIGNS_OF_QUEENS for line in lines):
        return True
    if len(lines) > 1 and all(len(line) == len(lines) and not set(line) - SIGNS_OF_QUEENS for line in lines):
        return True  # a square of blanks and ones that is no board: too small, or its queens attack each other
    lists = [[number for number in _numbers_of(line) if number not in (None, 0, -1)] for line in lines]
    return bool(lists) and all(len(numbers) > 1 and len(set(numbers)) == len(numbers) for numbers in lists)


def _has_rows_of_digits(line: str) -> bool:
    """Return whether a line has digits other than 1 beside blanks, without letters: a Latin square, and no FEN."""
    return "/" in line and "." in line and bool(set(line) & set("23456789")) and not re.search("[A-Za-z]", line)


def _resembles_latin_squares(text: str) -> bool:
    return any(map(_has_rows_of_digits, _lines_of_boards(text)))


# ---- Sudokus and Latin squares ---------------------------------------------------------------------------------------


def _sudokus(text: str) -> list[Puzzle]:
    if all(has_suffix(line) for _, line in numbered_lines(text)):
        return []  # the clues of 16 vertices look like a board of 4x4
    return _try_puzzles(split_puzzles(text), _parse_sudoku)


def _parse_sudoku(text: str, on_size: Callable[[int], None]) -> None:
    """Parse a Sudoku of any size, whose clues may not contradict each other."""
    digits = parse_puzzle(text, SIZES, str)
    size = isqrt(len(digits))
    on_size(size)
    if max(digits) > size or conflicts(digits, size):
        raise InputError("no Sudoku")


def _resembles_sudoku(text: str) -> bool:
    """Return whether at least nine of ten signs in a text are digits or blanks, and one is a digit from 2 to 9."""
    lines = list(filter(None, map(remove_answer, _lines_of_boards(text))))
    signs = [sign for line in lines if not is_rule(line) for sign in line if sign not in SEPARATORS]
    digits = [sign for sign in signs if sign in DIGITS]
    is_graph = all(map(EDGE.fullmatch, lines))
    num_cells = len(digits) + sum(sign in BLANKS for sign in signs)
    return not is_graph and bool(set(digits) - {"1"}) and num_cells >= max(4, 0.9 * len(signs))


def _latin_squares(text: str) -> list[Puzzle]:
    return _try_puzzles(latin.split_squares(text), _parse_latin)


def _parse_latin(text: str, on_size: Callable[[int], None]) -> None:
    """Parse a square that repeats no digit in a row or column. In a size of Sudokus its rows are joined by ``/``."""
    lines = latin.lines_of_square(text)
    rows, has_slashes = latin.rows_of_square(lines), len(lines) == 1 and "/" in lines[0]
    if len(rows) == 1:
        size = isqrt(len(rows[0]))
        rows = [rows[0][i : i + size] for i in range(0, len(rows[0]), size or 1)]
        has_slashes = size < 4  # nine digits are rather a row of a Sudoku
    size = len(rows)
    is_square = latin.SIZES[0] <= size <= latin.SIZES[1] and all(len(row) == size for row in rows)
    if not is_square or (size in SIZES and not has_slashes):
        raise InputError("no square")
    on_size(size)
    digits = [[_digit(cell) for cell in row] for row in rows]
    lines_of_digits = [[digit for digit in line if digit] for line in (*digits, *zip(*digits, strict=True))]
    highest = max(itertools.chain(*lines_of_digits), default=0)
    if not 0 < highest <= size or any(len(set(line)) < len(line) for line in lines_of_digits):
        raise InputError("no Latin square")
    if highest == 1 and any("0" in row for row in rows):
        raise InputError("no Latin square")  # a board of 0 and 1 is a board of queens


def _digit(cell: str) -> int:
    """Return the digit in a cell, 0 for a blank, and 10 for anything else."""
    return 0 if cell in BLANKS else int(cell) if cell.isascii() and cell.isdecimal() else 10


def _lines_of_boards(text: str) -> list[str]:
    """Return the first lines of a text, without comments and empty lines."""
    return [line for line in map(clean_line, normalize_text(text).split("\n")[: 10 * MAX_PUZZLES]) if line]


# ---- ARC -------------------------------------------------------------------------------------------------------------


def _arc_tasks(text: str) -> list[Puzzle]:
    if not text.lstrip().startswith("{"):
        return []
    try:
        values = [json.loads(text)]
    except (ValueError, RecursionError):
        try:
            values = [json.loads(line) for _, line in numbered_lines(text)]
        except (ValueError, RecursionError):
            return []

    def has_input(value: Any) -> bool:
        return isinstance(value, dict) and {"id", "input"} <= value.keys()

    return [Puzzle(has_input(v) or is_puzzle(v) or is_collection(v), None) for v in values]


PARSERS: dict[str, Callable[[str], list[Puzzle]]] = {
    "arc": _arc_tasks,
    "coloring": _graphs,
    "latin": _latin_squares,
    "nqueens": _queens,
    "sudoku": _sudokus,
}
SIGNS: dict[str, Callable[[str], bool]] = {
    "coloring": _resembles_graphs,
    "latin": _resembles_latin_squares,
    "nqueens": _resembles_queens,
    "sudoku": _resembles_sudoku,
}
