"""Graphs as text: graph6, sparse6 and DIMACS, and what other formats are called.

Nothing is taken for another graph than the one in the text: a file that holds more or fewer edges than it announces is
refused, and so is a line with more on it than one graph.
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
Check = Callable[[int], None]  # of a number of vertices: raises InputError before anything of that size is built

HEADER = re.compile(r">>(graph6|sparse6|digraph6)<<")
DIMACS_LINE = re.compile(r"\s*[peaPEA]\s")
COMMENT_LINE = re.compile(r"\s*[cC]\s+\S")
WEIGHT = re.compile(r"[-+]?\d+(\.\d+)?(e[-+]?\d+)?", re.I | re.A)  # behind an edge
SKIPPED = ("n", "d", "v", "x")  # DIMACS lines of nodes, dimensions, geometry and parameters
FORMATS = (
    (re.compile(r"(strict\s+)?(di)?graph\b.*", re.I | re.S), "Graphviz or GML"),
    (re.compile(r"<"), "XML (GraphML, GEXF)"),
    (re.compile(r"[\[{]"), "JSON"),
    (re.compile(r"\d+([\s,;:]+\d+)*[\s,;:]*$"), "a list of numbers (edges, or an adjacency matrix)"),
)


def split_graphs(text: str) -> list[PuzzleText]:
    """The graphs of a file: one a line in graph6 or sparse6, or as many as it has ``p`` lines in DIMACS."""
    lines = normalize_text(text).split("\n")
    if not is_dimacs(lines):
        found = [(number, HEADER.sub("", line) and line) for number, line in numbered_lines(text)]
        return [PuzzleText(line, number) for number, line in found if line]
    starts = [i for i, line in enumerate(lines) if _key(line) == "p"]
    bounds = [0, *starts[1:], len(lines)]
    return [PuzzleText("\n".join(lines[a:b]), a + 1) for a, b in itertools.pairwise(bounds)]


def parse_graph(text: str, check: Check) -> Edges:
    """The edges of one graph.

    Args:
        text: one line of graph6 or sparse6, or DIMACS of several.
        check: called with the number of vertices as soon as that is known.

    Raises:
        InputError: it is no graph that can be coloured; LineError where a line of DIMACS is at fault.
    """
    lines = normalize_text(text).split("\n")
    if is_dimacs(lines):
        return _parse_dimacs(lines, check)
    found = numbered_lines(text)
    if len(found) > 1 and HEADER.fullmatch(found[0][1]):
        found = found[1:]
    if not found:
        raise InputError("empty input: give one graph in graph6 or DIMACS .col format")
    if len(found) > 1 and not _foreign(found[0][1]):
        raise InputError(f"{len(found)} lines where one graph is expected: give one at a time, or the file to solve.py")
    return _parse_line(found[0][1], check)


# ---- graph6 and sparse6 ----------------------------------------------------------------------------------------------


def _parse_line(line: str, check: Check) -> Edges:
    if line[0] in "\"'" and line[-1] == line[0] and len(line) > 1:
        line = line[1:-1].strip()  # no character of graph6 is a quotation mark
    shown = line[:40]
    header = HEADER.match(line)
    line = line[header.end() :].strip() if header else line
    if line.startswith("&") or (header and header[1] == "digraph6"):
        raise InputError(f"{shown!r} is a directed graph (digraph6): write its undirected graph in graph6")
    if line.startswith(";"):
        raise InputError(f"{shown!r} is incremental sparse6: write each graph whole, in graph6 or sparse6")
    foreign = "" if _order_fits(line) else _foreign(line)
    if foreign:
        raise InputError(
            f"this is {foreign}: give graphs in graph6, one a line (networkx.to_graph6_bytes writes them), or DIMACS"
        )
    words = line.split()
    if len(words) > 1 and _order_fits(words[0]):
        raise InputError(f"there is more on the line than a graph, {' '.join(words[1:])[:20]!r}: keep its first column")
    sparse = line.startswith(":")
    body = line[sparse:]
    if not body or not all(63 <= ord(c) <= 126 for c in body):  # networkx takes some others for edges
        _malformed(shown)
    check(_order(body, shown))
    try:
        data = line.encode("ascii")
        graph = nx.from_sparse6_bytes(data) if sparse else nx.from_graph6_bytes(data)  # type: ignore[call-overload]
    except (nx.NetworkXError, ValueError, IndexError):
        _malformed(shown)
    _check_whole(line, graph, sparse, shown)
    edges = {(min(u, v), max(u, v)) for u, v in graph.edges()}
    loop = next((u for u, v in sorted(edges) if u == v), None)
    if loop is not None:
        raise InputError(f"vertex {loop} (counted from 0) has a loop: no colouring exists; remove the loop")
    return edges


def _check_whole(line: str, graph: nx.Graph, sparse: bool, shown: str) -> None:
    """Raises InputError where the line holds more than the graph: networkx reads as far as it can."""
    write = nx.to_sparse6_bytes if sparse else nx.to_graph6_bytes
    again = write(graph, header=False).decode().strip()
    if line != again and (not sparse or len(line) > len(again) + 1):  # sparse6 can be padded in two ways
        raise InputError(f"{shown!r} is damaged: it holds more than its graph, {again[:40]!r}")


def _order(body: str, shown: str) -> int:
    """The number of vertices, which the first 1, 4 or 8 characters hold."""
    values = [ord(c) - 63 for c in body]
    skipped, length = (0, 1) if values[0] < 63 else (1, 3) if values[1:2] != [63] else (2, 6)
    digits = values[skipped : skipped + length]
    if len(digits) < length:
        _malformed(shown)
    order = 0
    for digit in digits:
        order = order << 6 | digit
    return order


def _order_fits(word: str) -> bool:
    """Is a word as long as its number of vertices asks for, that is, a graph of graph6?"""
    if not word or not all(63 <= ord(c) <= 126 for c in word):
        return False
    try:
        n = _order(word, word)
    except InputError:
        return False
    return len(word) == (1 if n < 63 else 4 if n < 258048 else 8) + (n * (n - 1) // 2 + 5) // 6


def _foreign(line: str) -> str:
    """What a line of another format is called, ``""`` for none that is known."""
    return next((name for pattern, name in FORMATS if pattern.match(line)), "")


def _malformed(shown: str) -> NoReturn:
    raise InputError(
        f"malformed graph6 {shown!r}: expected one line such as 'GCR`v_' (networkx.to_graph6_bytes writes them)"
    ) from None


# ---- DIMACS ----------------------------------------------------------------------------------------------------------


def is_dimacs(lines: list[str]) -> bool:
    """Is there a line that begins with the word p or e (or a, of arcs), or nothing but comments?"""
    written = [line for line in lines if line.strip()]
    return any(map(DIMACS_LINE.match, written)) or (bool(written) and all(map(COMMENT_LINE.match, written)))


def _key(line: str) -> str:
    """The first word of a line in small letters; ``c`` for whatever is a comment."""
    words = line.split(maxsplit=1)
    if not words or words[0] == "C" or words[0][0] in "c#%" or words[0].startswith("//"):
        return "c"  # some leave no space behind a small c; behind a large one it may be graph6
    return words[0].lower()


def _parse_dimacs(lines: list[str], check: Check) -> Edges:
    order = announced = None
    edges: Edges = set()
    written = 0
    ended = False
    for number, line in enumerate(lines, start=1):
        key, words = _key(line), line.split()
        ended = ended or line.strip() == "%"
        if key == "c" or key in SKIPPED or (ended and words == ["0"]):
            continue
        if key == "p":
            if order is not None:
                raise LineError(number, "a second p line: give one graph at a time, or the file to solve.py")
            order, announced = _problem(number, line, check)
        elif key == "e":
            if order is None:
                later = next((n for n, other in enumerate(lines, start=1) if _key(other) == "p"), None)
                raise LineError(
                    number,
                    "an edge, but no line 'p edge VERTICES EDGES' comes before it"
                    + (f": line {later} belongs in front of the edges" if later else ": put one in front"),
                )
            edges.add(_edge(number, line, order))
            written += 1
        elif key == "a":
            raise LineError(number, f"{line.strip()!r} is an arc of a directed graph: write edges, 'e U V'")
        else:
            raise LineError(number, f"expected c, p or e (n, d, v and x are skipped), found {words[0]!r}")
    if order is None or announced is None:
        raise InputError("DIMACS input has no 'p edge VERTICES EDGES' line")
    if announced not in (written, len(edges), 2 * len(edges)):
        raise InputError(
            f"the p line announces {announced} edges, and {written} are there ({len(edges)} distinct): the file is cut "
            "off or put together wrongly; get it whole, or correct the number"
        )
    return edges


def _problem(number: int, line: str, check: Check) -> tuple[int, int]:
    """Vertices and edges that a p line announces."""
    words = line.split()
    counts = [_whole(word) for word in words[2:4]]
    kind = words[1].lower() if len(words) > 1 else ""
    if len(words) < 4 or _whole(kind) is not None:
        raise LineError(number, f"the p line {line.strip()[:40]!r} is too short: it reads 'p edge VERTICES EDGES'")
    if kind not in ("edge", "edges", "col", "sp"):
        raise LineError(number, f"'p {words[1][:20]}' is no graph to colour: that begins with 'p edge VERTICES EDGES'")
    order, announced = counts
    if order is None or announced is None:
        raise LineError(number, f"cannot read {line.strip()[:40]!r}: it reads 'p edge VERTICES EDGES', whole numbers")
    try:
        check(order)
    except InputError as e:
        raise LineError(number, str(e)) from None
    if kind == "sp":
        raise LineError(number, "'p sp' is a problem of shortest paths over arcs: write 'p edge', and edges 'e U V'")
    return order, announced


def _edge(number: int, line: str, order: int) -> tuple[int, int]:
    """One edge, its vertices from 0. In messages they are numbered as in the file, from 1."""
    shown = repr(line.strip()[:40])
    ends = [_whole(word) for word in line.split()[1:3]]
    u, v = (*ends, None, None)[:2]
    weights = all(WEIGHT.fullmatch(word) for word in line.split()[3:])
    if u is None or v is None or not weights:
        raise LineError(number, f"cannot read {shown}: an edge is 'e U V', two numbers of vertices")
    if 0 in (u, v):
        raise LineError(number, f"edge {shown} has a vertex 0: DIMACS numbers vertices from 1, so add 1 to each")
    if max(u, v) > order:
        raise LineError(number, f"edge {shown} names a vertex beyond the {order} of the p line")
    if u == v:
        raise LineError(number, f"edge {shown} is a loop at vertex {u}: no colouring exists; remove the loop")
    return min(u, v) - 1, max(u, v) - 1


def _whole(word: str) -> int | None:
    return int(word) if word.isascii() and word.isdecimal() and len(word) < 19 else None
