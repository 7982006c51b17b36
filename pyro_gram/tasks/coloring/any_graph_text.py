"""Read and write graphs of any size with clues.

The formats are those of :mod:`pyro_gram.tasks.coloring.text`, and two more. After a graph in graph6 or sparse6 may
follow its clues, one character for each vertex (a dot for a vertex without a clue), and the number of colours:
``GCR`v_ 0..1.... colors=4``. A list of edges has two vertices on each line, ``0 1`` or ``0,1``; a line with one vertex
stands for a vertex without edges.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from pyro_gram.errors import InputError
from pyro_gram.system.text import LineError, PuzzleText, normalize_text, numbered_lines
from pyro_gram.tasks.coloring.text import (
    HEADER,
    Edges,
    has_graph6_length,
    is_dimacs,
    parse_graph,
    split_graphs,
    without_comments,
)

CLUES = re.compile(r"[0-9.]+")
COLORS = re.compile(r"colors=([0-9]{1,2})")
HEADINGS = {frozenset(pair.split()) for pair in ("source target", "from to", "src dst", "start end", "u v", "a b")}
HEADINGS |= {frozenset((f"{word}1", f"{word}2")) for word in ("node", "vertex", "v", "n", "id")}
EMPTY_DATA = "{}"  # networkx.write_edgelist puts this after each edge


@dataclass(frozen=True)
class GraphText:
    """A graph as it was read.

    Attributes:
        order: the number of vertices.
        edges: pairs (u, v) of vertices from 0, u < v.
        clues: the given colour of each vertex, -1 for none.
        colors: the number of colours, if the text says it.
    """

    order: int
    edges: Edges
    clues: list[int]
    colors: int | None = None


def split_any_graphs(text: str) -> list[PuzzleText]:
    """Cut a file into graphs: a list of edges is one graph; in other formats a file may hold several."""
    return [PuzzleText(text, 1)] if is_edge_list(text) else split_graphs(text)


def vertex_names(text: str) -> list[str]:
    """Return how a text that can be read calls the vertices of its graph, in order; nothing if it counts from 0.

    >>> vertex_names("Bern,Paris\\nParis,Rome")
    ['Bern', 'Paris', 'Rome']
    """
    if is_edge_list(text):
        names = _names_of(_rows_of(text))
        return [] if names == [str(i) for i in range(len(names))] else names
    if not is_dimacs(normalize_text(text).split("\n")):
        return []
    return [str(vertex + 1) for vertex in range(read_graph(text, lambda order: None).order)]


def read_graph(text: str, check_order: Callable[[int], None]) -> GraphText:
    """Read one graph.

    Args:
        text: one graph in one of the formats of this module.
        check_order: called with the number of vertices as soon as it is known; raises InputError.

    Raises:
        InputError: the text is not exactly one graph, or its clues do not fit it.
    """
    if is_edge_list(text):
        order, edges = _parse_edge_list(text)
        check_order(order)
        return GraphText(order, edges, [-1] * order)
    text = without_comments(text)
    if not is_dimacs(text.split("\n")):
        lines = [line for _, line in numbered_lines(text)]
        if lines and has_suffix(lines[-1]):
            graph, *words = lines[-1].split()
            return _read_suffix(read_graph("\n".join((*lines[:-1], graph)), check_order), words)
    orders: list[int] = []

    def note_order(order: int) -> None:
        check_order(order)
        orders.append(order)

    edges = parse_graph(text, note_order)
    return GraphText(orders[0], edges, [-1] * orders[0])


# ---- clues -----------------------------------------------------------------------------------------------------------


def has_suffix(line: str) -> bool:
    """Return whether a line is a graph in graph6 or sparse6, and after it clues or a number of colours."""
    graph, *words = line.split()
    graph = HEADER.sub("", graph)
    is_graph = graph.startswith(":") or has_graph6_length(graph)
    return is_graph and bool(words) and all(CLUES.fullmatch(word) or COLORS.fullmatch(word) for word in words)


def _read_suffix(graph: GraphText, words: list[str]) -> GraphText:
    """Add the clues and the number of colours that follow a graph. Raises InputError."""
    clue_words = [word for word in words if CLUES.fullmatch(word)]
    numbers = [int(match[1]) for match in map(COLORS.fullmatch, words) if match]
    if len(clue_words) > 1 or len(numbers) > 1:
        raise InputError(f"{' '.join(words)[:40]!r} after the graph: give its clues once, and colors=K once")
    clues = graph.clues
    if clue_words:
        if len(clue_words[0]) != graph.order:
            raise InputError(
                f"the clues {clue_words[0][:40]!r} have {len(clue_words[0])} characters, and the graph has "
                f"{graph.order} vertices: write one character for each vertex, a dot for one without a clue"
            )
        clues = [-1 if character == "." else int(character) for character in clue_words[0]]
    return GraphText(graph.order, graph.edges, clues, numbers[0] if numbers else None)


def write_suffix(clues: list[int], colors: int | None) -> str:
    """Return what follows a graph in graph6: its clues if there are any, and ``colors`` if it is not None."""
    words = ["".join("." if clue < 0 else str(clue) for clue in clues)] if max(clues, default=-1) >= 0 else []
    return "".join(f" {word}" for word in (*words, *([] if colors is None else [f"colors={colors}"])))


# ---- lists of edges --------------------------------------------------------------------------------------------------


def _words_of(line: str) -> list[str]:
    words = line.replace(",", " ").split()
    return words[:-1] if words[2:] == [EMPTY_DATA] else words


def _rows_of(text: str) -> list[tuple[int, list[str]]]:
    """Return the words of each line of a list of edges with the number of the line, without a heading."""
    rows = [(number, _words_of(line)) for number, line in numbered_lines(without_comments(text))]
    words = {word for _, words in rows[1:] for word in words}
    has_heading = len(rows) > 1 and frozenset(map(str.lower, rows[0][1])) in HEADINGS and not words & {*rows[0][1]}
    return rows[has_heading:]


def _names_of(rows: list[tuple[int, list[str]]]) -> list[str]:
    """Return the names of vertices: numbers in their order, other names as they appear."""
    names = list(dict.fromkeys(word for _, words in rows for word in words))
    return sorted(names, key=int) if all(name.isascii() and name.isdecimal() for name in names) else names


def is_edge_list(text: str) -> bool:
    """Return whether each line names an edge or a vertex, and the lines are no graphs in graph6.

    A file in DIMACS has lines of three words; a text of comments only is no list of edges.
    """
    lines = [line for _, line in numbered_lines(without_comments(text))]
    first_words = [line.split()[0] for line in lines]
    if all(word[0] in ":;&>" or has_graph6_length(word) for word in first_words):
        return False
    if all(word in ("c", "C") for word in first_words):
        return False
    sizes = {len(_words_of(line)) for line in lines}
    return sizes in ({2}, {1, 2}) and not any(line[0] in "<[{" for line in lines)


def _parse_edge_list(text: str) -> tuple[int, Edges]:
    """Return the number of vertices and the edges. Vertices are numbered by their numbers, or in order of appearance.

    Raises:
        LineError: a line is a loop, or a heading over numbers.
    """
    rows = _rows_of(text)
    names = _names_of(rows)
    has_numbers = [name.isascii() and name.isdecimal() for name in names]
    if all(has_numbers):
        if len({int(name) for name in names}) < len(names):
            raise InputError("a vertex has its number written in two ways (1 and 01): write each number in one way")
    elif all(has_numbers[2:]) and len(names) > 3 and not any(has_numbers[:2]):
        raise LineError(rows[0][0], f"{' '.join(rows[0][1])!r} is a heading, not an edge: remove it")
    vertex_of = {name: vertex for vertex, name in enumerate(names)}
    edges: Edges = set()
    for number, words in rows:
        if len(words) == 2:
            u, v = vertex_of[words[0]], vertex_of[words[1]]
            if u == v:
                raise LineError(number, f"vertex {words[0]} has a loop: no colouring exists; remove the loop")
            edges.add((min(u, v), max(u, v)))
    return len(names), edges
