"""Graphs are read from DIMACS, graph6 and sparse6 as other programs write them; error messages locate faults."""

import time

import networkx as nx
import pytest
import torch

from pyro_gram.errors import InputError
from pyro_gram.system.text import LineError
from pyro_gram.tasks.coloring.task import Coloring, ColoringConfig
from pyro_gram.tasks.coloring.text import parse_graph

EDGES = [(1, 2), (2, 3), (3, 4), (4, 5), (5, 6), (6, 7), (7, 8), (1, 8), (1, 3)]
GRAPH = "GxCGKC"


def dimacs(edges=EDGES, first="p edge 8 9", mark="e"):
    return "\n".join([first, *(f"{mark} {u} {v}" for u, v in edges)]) + "\n"


@pytest.fixture(scope="module")
def task():
    return Coloring(ColoringConfig())


def read_graphs(task, text):
    return [task.format_input(x) for x in task.read_inputs(text)]


@pytest.mark.parametrize(
    "text",
    [
        dimacs(),
        "c a graph\n" + dimacs(),
        "cNo space\n# hash\n// slashes\n" + dimacs(),
        dimacs().upper(),
        dimacs().replace(" ", "\t"),
        dimacs() + "%\n0\n",
        dimacs(first="p edge 8 9\nn 1 1\nd 2\nv 1 2\nx 3"),
        dimacs(first="p col 8 9"),
        dimacs().replace("e 1 2\n", "e 1 2 7\n"),
        dimacs([*EDGES, *((v, u) for u, v in EDGES)]),  # each edge in both directions
        dimacs([*EDGES, *((v, u) for u, v in EDGES)], "p edge 8 18"),
        dimacs(first="p edge 8 18"),
        dimacs([*EDGES, (1, 2)]),
        "\ufeff" + dimacs(),
    ],
)
def test_every_form_of_dimacs_gives_the_same_graph(task, text):
    assert read_graphs(task, text) == [GRAPH]


BAD_DIMACS = [
    (dimacs(EDGES[:7]), "announces 9 edges, and 7 are there"),
    (dimacs(first="p edge 8 8"), "announces 8 edges, and 9 are there"),
    (dimacs(first="c nothing"), "^line 2: an edge, but no line 'p edge"),
    (dimacs(first="c nothing") + "p edge 8 9\n", "^line 2: .* line 11 belongs in front"),
    (dimacs(first="p 8 9"), "^line 1: the p line 'p 8 9' is too short"),
    (dimacs(first="p edge 8"), "^line 1: the p line 'p edge 8' is too short"),
    (dimacs(first="p edge 8.0 9"), "^line 1: cannot read 'p edge 8.0 9'"),
    (dimacs(first="p cnf 8 9"), "^line 1: 'p cnf' is not a graph to colour"),
    (dimacs(first="p sp 8 9", mark="a"), "^line 1: 'p sp' is a problem of shortest paths"),
    (dimacs(mark="a"), "^line 2: 'a 1 2' is an arc"),
    (dimacs([*EDGES, (3, 3)], "p edge 8 10"), "^line 11: edge 'e 3 3' is a loop at vertex 3"),
    (dimacs([(u - 1, v - 1) for u, v in EDGES]), "^line 2: edge 'e 0 1' has a vertex 0"),
    (dimacs(first="p edge 7 9"), "^line 1: the graph has 7 vertices; this task has vertices = 8"),
    ("p edge 3000000 58333344\na 1 2 803\n", "^line 1: the graph has 3000000 vertices"),
    ("p edge 8 1\ne 1 2 e 3 4\n", "^line 2: cannot read 'e 1 2 e 3 4'"),
    (dimacs() + "C~\n", "^line 11: expected c, p or e .*, found 'C~'"),  # C~ is not a comment, as it may be graph6
    ("c only a comment\n", "no 'p edge VERTICES EDGES' line"),
]


def test_a_fault_in_dimacs_is_explained_with_its_line(task):
    for text, message in BAD_DIMACS:
        with pytest.raises(InputError, match=message):
            list(task.read_inputs(text))


def test_a_file_may_hold_two_graphs_and_lines_are_counted_in_the_file(task):
    two_graphs = dimacs() + "c and\n" + dimacs([(1, 4)], "p edge 8 1")
    assert read_graphs(task, two_graphs) == [GRAPH, "GC????"]
    with pytest.raises(LineError, match="^line 12: the graph has 9 vertices"):
        list(task.read_inputs(dimacs() + "c and\n" + dimacs([(1, 4)], "p edge 9 1")))


@pytest.mark.parametrize(
    "text",
    [
        "GCR`v_",
        "\ufeffGCR`v_\r\n",
        "# from somewhere\nGCR`v_\n",
        ">>graph6<<\nGCR`v_\n",
        ">>graph6<<GCR`v_",
        '"GCR`v_"',
        "  GCR`v_  ",
        "sparse6",
        ">>sparse6<<\nsparse6",
    ],
)
def test_a_line_of_graph6_or_sparse6_is_read(task, text):
    sparse_line = nx.to_sparse6_bytes(nx.from_graph6_bytes(b"GCR`v_"), header=False).decode()
    text = text if text.startswith(">>sparse6") is False and text != "sparse6" else text[:-7] + sparse_line
    assert read_graphs(task, text) == ["GCR`v_"]
    assert task.format_input(task.parse(text)) == "GCR`v_"


OTHER_FORMATS = [
    ("&GCR`v_", "directed graph"),
    (":GaYnL`nabc", "is damaged: it holds more than its graph"),
    (":G~aYnL`n", "is damaged: it holds more than its graph"),
    ("GhCGK~", "is damaged: it holds more than its graph"),
    (">>digraph6<<&GCR`v_", "directed graph"),
    (";GCR", "incremental sparse6"),
    ("graph { 0 -- 1; }", "Graphviz"),
    ("1 2\n2 3", "a list of numbers"),
    ("GCR`v_ 3", "more on the line than a graph, '3': keep its first column"),
    (":Gk?G?eM", r"vertex 6 \(counted from 0\) has a loop"),
    (":~~~~~~~~", "the graph has 68719476735 vertices"),  # refused before memory for such a graph is allocated
    ("# nothing else", "comments only"),
]


def test_other_formats_are_refused_with_their_names(task):
    for text, message in OTHER_FORMATS:
        with pytest.raises(InputError, match=message):
            list(task.read_inputs(text))


@pytest.mark.parametrize(
    ("n", "message"),
    [
        (10, r"--checkpoint .*checkpoints/coloring.safetensors solves vertices = 10"),
        (40, r"--checkpoint .*checkpoints/coloring.safetensors solves vertices = 40"),
        (70, "no checkpoint can have this size .the presets have 3 to 64"),
    ],
)
def test_another_size_names_the_checkpoint_or_the_command(task, n, message):
    with pytest.raises(InputError, match=message):
        task.parse(f"p edge {n} 0")


def test_counted_solutions_are_those_of_the_split(task):
    puzzles = task.split("validation")
    counts = [task.count_solutions(x) for x in puzzles.inputs]
    assert torch.equal(torch.tensor(counts), puzzles.num_solutions)


def test_a_long_line_of_numbers_is_judged_at_once():
    start = time.perf_counter()
    with pytest.raises(InputError, match="malformed graph6"):
        parse_graph("0 11 " + "11 " * 300 + "x", lambda order: None)
    assert time.perf_counter() - start < 5
