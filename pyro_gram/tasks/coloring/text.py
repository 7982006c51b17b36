"""Read graphs from text: graph6, sparse6 and DIMACS. Other formats are refused; the error names common ones.

Damaged texts are refused too: a file with more or fewer edges than it announces, or a line that goes on after its
graph.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import NoReturn

import networkx as nx

from pyro_gram.errors import InputError
from pyro_gram.system.text import LineError, PuzzleText, normalize_text, numbered_lines

Edges = set[tuple[int, int]]  # pairs (u, v) of vertices from 0, u < v
CheckOrder = Callable[[int], None]  # raises InputError if the task has another number of vertices

HEADER = re.compile(r">>(graph6|sparse6|digraph6)<<")
DIMACS_LINE = re.compile(r"\s*[peaPEA]\s")
COMMENT_LINE = re.compile(r"\s*[cC]\s+\S")
LATE_COMMENT = re.compile(r"(?m)(?<=\S)[ \t]+(#|//).*$")  # no graph in graph6 or sparse6 has these signs
WEIGHT = re.compile(r"[-+]?\d+(\.\d+)?(e[-+]?\d+)?", re.I | re.A)  # a number that may follow an edge
IGNORED_KEYS = ("n", "d", "v", "x")  # first words of skipped DIMACS lines: nodes, dimensions, geometry, parameters
OTHER_FORMATS = (
    (re.compile(r"(strict\s+)?(di)?graph\b.*", re.I | re.S), "Graphviz or GML"),
    (re.compile(r"<"), "XML (GraphML, GEXF)"),
    (re.compile(r"[\[{]"), "JSON"),
    (
        re.compile(r"\d+([\s,;:]+[-+]?(\d+(\.\d*)?|\.\d+))*[\s,;:]*$"),
        "a list of numbers (a list of edges has two vertices on each line, and no weights)",
    ),
)


def without_comments(text: str) -> str:
    """Return a text without the comments at the ends of its lines, which ``#`` or ``//`` begins after a space."""
    return LATE_COMMENT.sub("", normalize_text(text))


def split_graphs(text: str) -> list[PuzzleText]:
    """Cut a file into graphs: one on each line (graph6, sparse6), or one for each ``p`` line (DIMACS)."""
    text = without_comments(text)
    lines = text.split("\n")
    if not is_dimacs(lines):
        return [PuzzleText(line, number) for number, line in numbered_lines(text) if HEADER.sub("", line)]
    starts = [i for i, line in enumerate(lines) if _key(line) == "p"]
    bounds = [0, *starts[1:], len(lines)]
    return [PuzzleText("\n".join(lines[a:b]), a + 1) for a, b in itertools.pairwise(bounds)]


def parse_graph(text: str, check_order: CheckOrder) -> Edges:
    """Return the edges of one graph.

    Args:
        text: one line of graph6 or sparse6, or several lines of DIMACS.
        check_order: called with the number of vertices as soon as it is known.

    Raises:
        InputError: the text is not exactly one graph, or the graph has a loop; a LineError for a wrong line of DIMACS.
    """
    text = without_comments(text)
    lines = text.split("\n")
    if is_dimacs(lines):
        return _parse_dimacs(lines, check_order)
    lines = [line for _, line in numbered_lines(text)]
    if len(lines) > 1 and HEADER.fullmatch(lines[0]):
        lines = lines[1:]
    if not lines:
        raise InputError("empty input: give one graph in graph6 or DIMACS .col format")
    if len(lines) > 1 and not _other_format(lines[0]):
        raise InputError(
            f"{len(lines)} lines where one graph is expected: give one at a time, or pass the file to solve.py"
        )
    return _parse_line(lines[0], check_order)


# ---- graph6 and sparse6 ----------------------------------------------------------------------------------------------


def _parse_line(line: str, check_order: CheckOrder) -> Edges:
    if line[0] in "\"'" and line[-1] == line[0] and len(line) > 1:
        line = line[1:-1].strip()  # no character of graph6 is a quotation mark
    excerpt = line[:40]
    header = HEADER.match(line)
    line = line[header.end() :].strip() if header else line
    if line.startswith("&") or (header and header[1] == "digraph6"):
        raise InputError(f"{excerpt!r} is a directed graph (digraph6): write its undirected graph in graph6")
    if line.startswith(";"):
        raise InputError(f"{excerpt!r} is incremental sparse6: write each graph whole, in graph6 or sparse6")
    other_format = "" if has_graph6_length(line) else _other_format(line)
    if other_format:
        raise InputError(
            f"this is {other_format}: give graphs in graph6, one on each line (networkx.to_graph6_bytes writes them), "
            "or DIMACS"
        )
    words = line.split()
    if len(words) > 1 and has_graph6_length(words[0]):
        raise InputError(f"there is more on the line than a graph, {' '.join(words[1:])[:20]!r}: keep its first column")
    is_sparse6 = line.startswith(":")
    body = line[is_sparse6:]
    if not body or not all(63 <= ord(c) <= 126 for c in body):  # networkx would read some other characters as edges
        _refuse_malformed(excerpt)
    check_order(_order(body, excerpt))
    try:
        data = line.encode("ascii")
        graph = nx.from_sparse6_bytes(data) if is_sparse6 else nx.from_graph6_bytes(data)  # type: ignore[call-overload]
    except (nx.NetworkXError, ValueError, IndexError):
        _refuse_malformed(excerpt)
    _check_nothing_follows(line, graph, is_sparse6, excerpt)
    edges = {(min(u, v), max(u, v)) for u, v in graph.edges()}
    loop = next((u for u, v in sorted(edges) if u == v), None)
    if loop is not None:
        raise InputError(f"vertex {loop} (counted from 0) has a loop: no colouring exists; remove the loop")
    return edges


def _check_nothing_follows(line: str, graph: nx.Graph, is_sparse6: bool, excerpt: str) -> None:
    """Raise InputError if the line goes on after its graph; networkx ignores the rest of such a line."""
    write = nx.to_sparse6_bytes if is_sparse6 else nx.to_graph6_bytes
    expected = write(graph, header=False).decode().strip()
    if line != expected and (not is_sparse6 or len(line) > len(expected) + 1):  # sparse6 has two ways of padding
        raise InputError(f"{excerpt!r} is damaged: it holds more than its graph, {expected[:40]!r}")


def _order(body: str, excerpt: str) -> int:
    """Decode the number of vertices from the first 1, 4 or 8 characters of a graph in graph6 or sparse6."""
    values = [ord(c) - 63 for c in body]
    start, length = (0, 1) if values[0] < 63 else (1, 3) if values[1:2] != [63] else (2, 6)
    digits = values[start : start + length]
    if len(digits) < length:
        _refuse_malformed(excerpt)
    order = 0
    for digit in digits:
        order = order << 6 | digit
    return order


def has_graph6_length(word: str) -> bool:
    """Return whether a word has the length that graph6 needs for its number of vertices."""
    if not word or not all(63 <= ord(c) <= 126 for c in word):
        return False
    try:
        n = _order(word, word)
    except InputError:
        return False
    return len(word) == (1 if n < 63 else 4 if n < 258048 else 8) + (n * (n - 1) // 2 + 5) // 6


def _other_format(line: str) -> str:
    """Return the name of a line's format, or ``""`` for graph6 and for an unknown format."""
    return next((name for pattern, name in OTHER_FORMATS if pattern.match(line)), "")


def _refuse_malformed(excerpt: str) -> NoReturn:
    raise InputError(
        f"malformed graph6 {excerpt!r}: expected one line such as 'GCR`v_' (networkx.to_graph6_bytes writes them)"
    ) from None


# ---- DIMACS ----------------------------------------------------------------------------------------------------------


def is_dimacs(lines: list[str]) -> bool:
    """Return whether the lines are DIMACS: one of them begins with the word p, e or a (arc), or all are comments."""
    lines = [line for line in lines if line.strip()]
    return any(map(DIMACS_LINE.match, lines)) or (bool(lines) and all(map(COMMENT_LINE.match, lines)))


def _key(line: str) -> str:
    """Return the first word of a line in lower case, and ``c`` for any comment."""
    words = line.split(maxsplit=1)
    if not words or words[0] == "C" or words[0][0] in "c#%" or words[0].startswith("//"):
        return "c"  # a space may be missing after c; a word that begins with C may be graph6
    return words[0].lower()


def _parse_dimacs(lines: list[str], check_order: CheckOrder) -> Edges:
    order = num_edges = None
    edges: Edges = set()
    edge_lines = 0
    is_after_end = False
    for number, line in enumerate(lines, start=1):
        key, words = _key(line), line.split()
        is_after_end = is_after_end or line.strip() == "%"
        if key == "c" or key in IGNORED_KEYS or (is_after_end and words == ["0"]):
            continue
        if key == "p":
            if order is not None:
                raise LineError(number, "a second p line: give one graph at a time, or pass the file to solve.py")
            order, num_edges = _parse_problem_line(number, line, check_order)
        elif key == "e":
            if order is None:
                later_p_line = next((n for n, text in enumerate(lines, start=1) if _key(text) == "p"), None)
                raise LineError(
                    number,
                    "an edge, but no line 'p edge VERTICES EDGES' comes before it"
                    + (
                        f": line {later_p_line} belongs in front of the edges" if later_p_line else ": put one in front"
                    ),
                )
            edges.add(_parse_edge(number, line, order))
            edge_lines += 1
        elif key == "a":
            raise LineError(number, f"{line.strip()!r} is an arc of a directed graph: write edges, 'e U V'")
        else:
            raise LineError(number, f"expected c, p or e (n, d, v and x are skipped), found {words[0]!r}")
    if order is None or num_edges is None:
        raise InputError("DIMACS input has no 'p edge VERTICES EDGES' line")
    if num_edges not in (edge_lines, len(edges), 2 * len(edges)):
        raise InputError(
            f"the p line announces {num_edges} edges, and {edge_lines} are there ({len(edges)} distinct): the file is "
            "cut off or wrongly joined; get the whole file, or correct the number"
        )
    return edges


def _parse_problem_line(number: int, line: str, check_order: CheckOrder) -> tuple[int, int]:
    """Return the numbers of vertices and edges that a p line announces."""
    words = line.split()
    counts = [_whole_number(word) for word in words[2:4]]
    kind = words[1].lower() if len(words) > 1 else ""
    if len(words) < 4 or _whole_number(kind) is not None:
        raise LineError(number, f"the p line {line.strip()[:40]!r} is too short: write 'p edge VERTICES EDGES'")
    if kind not in ("edge", "edges", "col", "sp"):
        raise LineError(number, f"'p {words[1][:20]}' is not a graph to colour: write 'p edge VERTICES EDGES'")
    order, num_edges = counts
    if order is None or num_edges is None:
        raise LineError(number, f"cannot read {line.strip()[:40]!r}: write 'p edge VERTICES EDGES' with whole numbers")
    try:
        check_order(order)
    except InputError as e:
        raise LineError(number, str(e)) from None
    if kind == "sp":
        raise LineError(number, "'p sp' is a problem of shortest paths over arcs: write 'p edge', and edges 'e U V'")
    return order, num_edges


def _parse_edge(number: int, line: str, order: int) -> tuple[int, int]:
    """Return one edge with vertices counted from 0. Error messages count them from 1, as the file does."""
    excerpt = repr(line.strip()[:40])
    ends = [_whole_number(word) for word in line.split()[1:3]]
    u, v = (*ends, None, None)[:2]
    has_weights_only = all(WEIGHT.fullmatch(word) for word in line.split()[3:])
    if u is None or v is None or not has_weights_only:
        raise LineError(number, f"cannot read {excerpt}: an edge is 'e U V', two numbers of vertices")
    if 0 in (u, v):
        raise LineError(number, f"edge {excerpt} has a vertex 0: DIMACS numbers vertices from 1, so add 1 to each")
    if max(u, v) > order:
        raise LineError(number, f"edge {excerpt} names a vertex beyond the {order} of the p line")
    if u == v:
        raise LineError(number, f"edge {excerpt} is a loop at vertex {u}: no colouring exists; remove the loop")
    return min(u, v) - 1, max(u, v) - 1


def _whole_number(word: str) -> int | None:
    return int(word) if word.isascii() and word.isdecimal() and len(word) < 19 else None
