"""Graphs of any size, with clues, are read from text and from networkx; impossible ones are refused with a proof."""

import networkx as nx
import numpy as np
import pytest
import torch

from pyro_gram.errors import InputError
from pyro_gram.system.text import LineError
from pyro_gram.tasks.coloring import Coloring, exact
from pyro_gram.tasks.coloring.config import ColoringConfig
from pyro_gram.tasks.coloring.exact import is_colorable

PATH = "0 1\n1 2\n2 3\n"


@pytest.fixture(scope="module")
def task():
    planted = {"colors": 5, "planted_graphs": 8, "planted_vertices": 8}
    return Coloring(ColoringConfig(layout="graph", min_vertices=4, vertices=8, **planted))


@pytest.fixture
def without_sat(monkeypatch):
    monkeypatch.setattr(exact, "has_sat_solver", lambda: False)


def graph6(graph: nx.Graph) -> str:
    return nx.to_graph6_bytes(graph, header=False).decode().strip()


def read(task, text) -> list[str]:
    return [task.format_input(x) for x in task.read_inputs(text)]


# ---- round trips -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [3, 8, 9, 40, 62, 63, 64])
def test_graphs_of_every_size_are_read_from_every_format(task, n):
    graph = nx.cycle_graph(n)
    lines = [f"p edge {n} {n}", *(f"e {u + 1} {v + 1}" for u, v in graph.edges)]
    edges = "\n".join(f"{u} {v}" for u, v in graph.edges)
    texts = [graph6(graph), nx.to_sparse6_bytes(graph).decode(), "\n".join(lines), edges]
    for text in texts:
        assert read(task, text) == [graph6(graph)]
        x = task.parse(text)
        assert x.shape == (max(8, n), max(8, n))
        assert task.spec.sizes_of(x) == n
    assert torch.equal(task.parse_graph(graph), x)


SUFFIXES = [
    "GCR`v_",
    "GCR`v_ colors=4",
    "GCR`v_ 0..1....",
    "GCR`v_ ....4...",  # colour 4: five colours are needed anyway
    "GCR`v_ 0..1.... colors=5",
]


@pytest.mark.parametrize("text", SUFFIXES)
def test_clues_and_numbers_of_colors_are_written_as_they_are_read(task, text):
    x = task.parse(text)
    assert task.format_input(x) == text
    assert torch.equal(task.parse(task.format_input(x)), x)
    expected = [-1] * 8 if "." not in text else [-1 if c == "." else int(c) for c in text.split()[1]]
    assert task.decode(x).clues.tolist() == expected


def test_a_number_of_colors_without_need_is_read_and_not_written(task):
    assert read(task, "GCR`v_ colors=3\nGCR`v_ ........\n>>sparse6<<:Cdv 0...") == ["GCR`v_", "GCR`v_", "Ch 0..."]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("Bern,Paris\nParis,Rome", ["Bern", "Paris", "Rome"]),
        ("source,target\nBern,Paris\nParis,Rome", ["Bern", "Paris", "Rome"]),
        ("Node1 Node2\n7 30\n5 30", ["5", "7", "30"]),
        ("from,to\nfrom,A\nA,B", ["from", "to", "A", "B"]),  # a heading has no vertex of the graph
        ("p edge 3 2\ne 1 2\ne 2 3", ["1", "2", "3"]),
        ("0 1\n1 2", []),
        ("GCR`v_", []),
    ],
)
def test_the_names_of_vertices_are_those_of_the_text(task, text, names):
    assert task.vertex_names(text) == names
    assert len(names) in (0, int(task.spec.sizes_of(task.parse(text))))


@pytest.mark.parametrize(
    "text", ["Bw # a triangle", "0 1 # c\n1 2 // d\n2 0", "p edge 3 3\ne 1 2 # x\ne 2 3 // y\ne 1 3"]
)
def test_a_comment_may_end_a_line(task, text):
    assert read(task, text) == ["Bw"]


def test_a_file_may_mix_graphs_with_and_without_clues(task):
    text = "# two graphs\nGCR`v_ 0..1....\nDUW\n>>graph6<<GCR`v_ colors=4\n"
    assert read(task, text) == ["GCR`v_ 0..1....", "DUW", "GCR`v_ colors=4"]
    assert [p.line for p in task.puzzle_texts(text)] == [2, 3, 4]


EDGE_LISTS = [
    PATH,
    "1 2\n2 3\n3 4\n",  # numbered from 1
    "0,1\n1,2\n2,3",
    "0, 1\r\n1, 2\r\n2, 3\r\n",
    "0\t1\n1\t2\n2\t3\n",
    "# networkx\n0 1 {}\n1 2 {}\n2 3 {}\n",
    "a b\nb c\nc d\n",  # a and c begin lines of DIMACS, which have more words
    "p e\ne a\na c\n",
    "1 0\n2 3\n1 2\n0 1\n",  # each in any order and twice
    "10 20\n20 30\n30 40\n",
    "Ann Bob\nBob Cid\nCid Dan\n",
]


@pytest.mark.parametrize("text", EDGE_LISTS)
def test_every_form_of_a_list_of_edges_gives_the_same_graph(task, text):
    assert len(task.puzzle_texts(text)) == 1
    assert read(task, text) == [graph6(nx.path_graph(4))]


def test_numbers_are_sorted_and_a_line_with_one_vertex_is_a_vertex_without_edges(task):
    graph = nx.empty_graph(4)
    graph.add_edges_from([(3, 2), (2, 1)])
    assert read(task, "10 9\n2\n9 8") == [graph6(graph)]


def test_the_attribute_color_of_a_vertex_is_its_clue(task):
    graph = nx.relabel_nodes(nx.path_graph(5), dict(enumerate("abcde")))
    graph.nodes["b"]["color"] = np.int64(2)
    graph.nodes["d"]["color"] = None
    assert task.format_input(task.parse_graph(graph)) == graph6(nx.path_graph(5)) + " .2..."
    for wrong in (5, -1, "red", 1.0, True):
        graph.nodes["b"]["color"] = wrong
        with pytest.raises(InputError, match=f"the attribute color of vertex 1 is {wrong!r}: .* from 0 to 4"):
            task.parse_graph(graph)


# ---- wrong inputs ----------------------------------------------------------------------------------------------------

BAD_TEXTS = [
    ("GCR`v_ 0..1...", r"the clues '0..1...' have 7 characters, and the graph has 8 vertices"),
    ("GCR`v_ 0..1..... ", "have 9 characters"),
    ("GCR`v_ 5.......", "a clue has colour 5: the colours of this task are 0 to 4"),
    ("GCR`v_ 0....... .1......", "give its clues once, and colors=K once"),
    ("GCR`v_ colors=6", "colours with 3 to 5 colours, not 6"),
    ("GCR`v_ colors=2", "colours with 3 to 5 colours, not 2"),
    ("GCR`v_ 4....... colors=4", "a clue has colour 4: with 4 colours they are 0 to 3"),
    ("GCR`v_ 0..0....", "vertices 0 and 3 are adjacent and have the same clue, colour 0"),
    ("GCR`v_ first", "there is more on the line than a graph, 'first'"),
    ("GCR`v_ a\nDUW b", "2 lines where one graph is expected"),
    ("A_", "the graph has 2 vertices; this task reads 3 to 64"),
    ("0 1", "the graph has 2 vertices"),
    ("\n".join(f"{i} {i + 1}" for i in range(64)), "the graph has 65 vertices; this task reads 3 to 64"),
    (PATH + "3 3", "line 4: vertex 3 has a loop"),
    ("one,two\n0,1\n1,2\n", "line 1: 'one two' is a heading"),
    ("1 2\n01 3\n3 4", "a vertex has its number written in two ways"),
    ("0 1 0\n1 0 1\n0 1 0", "a list of numbers"),
    ("[[0, 1], [1, 2]]", "JSON"),
    ("c a comment\nc another", "no 'p edge VERTICES EDGES' line"),
    ("c comment\nc another", "no 'p edge VERTICES EDGES' line"),
    ("", "empty input"),
]


@pytest.mark.parametrize(("text", "message"), BAD_TEXTS)
def test_each_kind_of_bad_text_has_its_own_message(task, text, message):
    with pytest.raises(InputError, match=message):
        task.parse(text)


def test_a_task_with_one_size_reads_only_this_size():
    task = Coloring(ColoringConfig(layout="graph", vertices=6))
    assert task.format_input(task.parse("EEh_")) == "EEh_"
    with pytest.raises(InputError, match="8 vertices; this task has vertices = 6"):
        task.parse("GCR`v_")


def test_numbers_of_colors_are_checked(task):
    x = task.parse("GCR`v_ ...3....")
    assert task.format_input(task.with_colors(x, 5)) == "GCR`v_ ...3.... colors=5"
    with pytest.raises(InputError, match="a clue has colour 3: with 3 colours"):
        task.with_colors(x, 3)
    for colors in (2, 6):
        with pytest.raises(InputError, match="3 to 5 colours"):
            task.with_colors(x, colors)


# ---- proofs that there is no colouring -------------------------------------------------------------------------------

K6 = nx.complete_graph(6)
MYCIELSKI = nx.mycielski_graph(5)  # 23 vertices, no triangle, five colours


def test_without_sat_solver_small_graphs_are_checked_by_counting(task, without_sat):
    with pytest.raises(InputError, match=r"the graph is not 5-colourable \(checked exactly\): this task has no more"):
        task.parse_graph(K6)
    with pytest.raises(InputError, match=r"the graph is not 4-colourable \(checked exactly\)"):
        task.with_colors(task.parse(graph6(nx.complete_graph(5))), 4)
    assert int(task.colors_of(task.parse(graph6(nx.complete_graph(5)) + " colors=4"))) == 4  # where a search begins
    sparse = nx.gnp_random_graph(64, 0.15, seed=0)  # counting takes long
    x = task.with_colors(task.parse_graph(sparse), 5)
    assert is_colorable(*task._exact_arguments(x)) == (None, "not decided")
    assert task.count_solutions(x) is None


def test_whether_an_input_is_colorable_depends_on_its_number_of_colors(task):
    x = task.parse_graph(nx.complete_graph(5))
    inputs = [task.replace_colors(x, k) for k in (3, 4, 5)]
    assert [is_colorable(*task._exact_arguments(x))[0] for x in inputs] == [False, False, True]
    assert [task.count_solutions(task.replace_colors(x, k)) for k in (3, 4, 5)] == [0, 0, 1]


def test_clues_can_make_a_coloring_impossible(task):
    star = nx.star_graph(5)  # each leaf has a clue of its own, so nothing is left for the centre
    for leaf in range(1, 6):
        star.nodes[leaf]["color"] = leaf - 1
    with pytest.raises(InputError, match="the graph with its clues is not 5-colourable"):
        task.parse_graph(star)
    star.nodes[5]["color"] = 0
    x = task.parse_graph(star)
    assert [task.count_solutions(task.replace_colors(x, k)) for k in (4, 5)] == [0, 1]


def test_the_sat_solver_proves_and_colors(task):
    pytest.importorskip("pysat", reason="proofs come with the package python-sat")
    with pytest.raises(InputError, match=r"the graph is not 4-colourable \(proved by python-sat\)"):
        task.with_colors(task.parse(graph6(MYCIELSKI)), 4)
    rng = np.random.default_rng(0)
    for colors in (3, 4, 5):
        for _ in range(20):
            adjacency = np.triu(rng.random((9, 9)) < 0.5, 1)
            adjacency |= adjacency.T
            clues = np.where(rng.random(9) < 0.2, rng.integers(0, colors, 9), -1)
            result = exact.sat_coloring(adjacency, clues, colors)
            assert (result is not False) == (exact.count_partial_colorings(adjacency, clues, colors) > 0)
            if result:
                y = np.array(result)
                assert ((clues < 0) | (clues == y)).all()
                assert not (adjacency & (y[:, None] == y)).any()
                assert y.max() < colors


# ---- pictures --------------------------------------------------------------------------------------------------------


def test_the_terminal_marks_conflicts_and_broken_clues(task):
    x = task.parse(PATH)
    assert task.render(x).splitlines()[0] == "vertex   neighbours"
    assert len(task.render(x).splitlines()) == 5
    x = task.parse(graph6(nx.path_graph(4)) + " 1...")
    assert task.render(x).splitlines()[1] == "     0:1     1   "
    right = torch.tensor([1, 0, 1, 0, 0, 0, 0, 0])
    assert "!" not in task.render(x, right)
    assert task.format_solution(x, right) == "1010"
    wrong = torch.tensor([0, 1, 1, 0, 0, 0, 0, 0])
    assert task.render(x, wrong).splitlines()[1:] == [
        "     0:0!    1:1 ",
        "     1:1     0:0   2:1!",
        "     2:1     1:1!  3:0 ",
        "     3:0     2:1 ",
    ]


def test_a_picture_shows_only_vertices_of_the_graph(task):
    from matplotlib.figure import Figure

    axes = Figure().subplots(1, 2)
    x = task.parse(graph6(nx.path_graph(4)) + " 1...")
    task.plot(axes[0], x)
    task.plot(axes[1], x, torch.zeros(8, dtype=torch.long))
    assert [len(a.texts) for a in axes] == [4, 4]
    assert len(axes[1].collections) > len(axes[0].collections)


def test_errors_of_a_file_name_the_line(task):
    with pytest.raises(LineError, match="line 3: "):
        list(task.read_inputs("GCR`v_\n\nGCR`v_ 0..\n"))


def test_too_few_colors_are_refused_with_a_proof(task):
    x = task.parse_graph(nx.complete_graph(5))
    with pytest.raises(InputError, match="not 4-colourable"):
        task.with_colors(x, 4)
    assert task.colors_of(task.with_colors(x, 5)) == 5
