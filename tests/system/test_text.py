"""Texts as people have them, in every encoding, and graphs in every shape; all of them are made here."""

import gzip
import io

import pytest
import torch

from pyro_gram.errors import InputError
from pyro_gram.system import text as reader
from pyro_gram.system.text import LineError, open_lines, read_bytes, read_text
from pyro_gram.tasks.coloring.task import Coloring, ColoringConfig

TEXT = "# é\nGCR`v_\n"
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-32")
EDGES = [(1, 2), (2, 3), (3, 4), (4, 5), (5, 6), (6, 7), (7, 8), (1, 8), (1, 3)]
GRAPH = "GxCGKC"


def dimacs(edges=EDGES, first="p edge 8 9", mark="e"):
    return "\n".join([first, *(f"{mark} {u} {v}" for u, v in edges)]) + "\n"


@pytest.fixture(scope="module")
def task():
    return Coloring(ColoringConfig())


def names(task, text):
    return [task.format_input(x) for x in task.read_inputs(text)]


# ---- bytes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", [*ENCODINGS, "utf-16-be with its mark"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_text_is_the_same_however_it_was_written(tmp_path, encoding, end, packed):
    written = TEXT.replace("\n", end)
    data = b"\xfe\xff" + written.encode("utf-16-be") if "mark" in encoding else written.encode(encoding)
    data = gzip.compress(data) if packed else data
    (tmp_path / "a.txt").write_bytes(data)
    assert read_text(tmp_path / "a.txt") == TEXT
    assert read_text(io.BytesIO(data), "stdin") == TEXT
    with open_lines(tmp_path / "a.txt", 1000) as lines:
        assert "".join(lines) == written


def test_marks_inside_a_text_are_dropped_where_files_were_put_together():
    assert reader.decode("A\n".encode("utf-8-sig") * 2, "x") == "A\nA\n"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"ok\nFran\xe7ois", r"^x is not UTF-8 \(byte 0xE7 in line 2\): save it as UTF-8"),
        (b"\xff\xfe\x00", "begins as UTF-16 and is not"),
        ("GCR`v_".encode("utf-16-le"), "zero bytes: .* UTF-16 without its mark"),
        (gzip.compress(b"GCR`v_", mtime=0)[:-9], r"cannot read x: the \.gz is damaged or cut short"),
        (gzip.compress(b"a" * 5000, mtime=0), "x holds more than 1000 bytes"),
        (b"a" * 1001, "x holds more than 1000 bytes"),
        (b"PK\x03\x04" + bytes(30), "x is a zip archive: unpack it"),
    ],
)
def test_what_is_no_text_is_said_in_one_sentence(data, message):
    with pytest.raises(InputError, match=message) as caught:
        read_text(io.BytesIO(data), "x", limit=1000)
    assert "\n" not in str(caught.value)


def test_the_lines_of_a_file_are_text_too(tmp_path):
    path = tmp_path / "a"
    path.write_bytes("A\n".encode("utf-8-sig") * 2)
    with open_lines(path, 1000) as lines:
        assert list(lines) == ["A\n", "A\n"]
    for data, message in (
        (b"PK\x03\x04" + bytes(30), "a is a zip archive: unpack it"),
        ("A\n".encode("utf-16-le"), "a holds zero bytes: .* UTF-16 without its mark"),
    ):
        path.write_bytes(data)
        with pytest.raises(InputError, match=message), open_lines(path, 1000) as lines:
            list(lines)


def test_a_large_file_is_refused_before_it_is_read(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"a" * 11)
    monkeypatch.setattr(reader, "unpack_stream", None)
    with pytest.raises(InputError, match="a holds more than 10 bytes"):
        read_bytes(tmp_path / "a", 10)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    for read in (read_text, read_bytes):
        with pytest.raises(InputError, match=f"cannot read {tmp_path}/gone: No such file"):
            read(tmp_path / "gone")


def test_a_line_without_an_end_is_not_taken_into_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "MAX_LINE_LENGTH", 10)
    (tmp_path / "a").write_text("short\n" + "x" * 100)
    with (
        pytest.raises(InputError, match="a line of more than 10 characters"),
        open_lines(tmp_path / "a", 1000) as lines,
    ):
        list(lines)


# ---- graphs --------------------------------------------------------------------------------------------------------


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
        dimacs([*EDGES, *((v, u) for u, v in EDGES)]),  # 2 m lines
        dimacs([*EDGES, *((v, u) for u, v in EDGES)], "p edge 8 18"),
        dimacs(first="p edge 8 18"),
        dimacs([*EDGES, (1, 2)]),
        "\ufeff" + dimacs(),
    ],
)
def test_a_graph_of_dimacs_is_the_same_however_it_is_written(task, text):
    assert names(task, text) == [GRAPH]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (dimacs(EDGES[:7]), "announces 9 edges, and 7 are there"),
        (dimacs(first="p edge 8 8"), "announces 8 edges, and 9 are there"),
        (dimacs(first="c nothing"), "^line 2: an edge, but no line 'p edge"),
        (dimacs(first="c nothing") + "p edge 8 9\n", "^line 2: .* line 11 belongs in front"),
        (dimacs(first="p 8 9"), "^line 1: the p line 'p 8 9' is too short"),
        (dimacs(first="p edge 8"), "^line 1: the p line 'p edge 8' is too short"),
        (dimacs(first="p edge 8.0 9"), "^line 1: cannot read 'p edge 8.0 9'"),
        (dimacs(first="p cnf 8 9"), "^line 1: 'p cnf' is no graph"),
        (dimacs(first="p sp 8 9", mark="a"), "^line 1: 'p sp' is a problem of shortest paths"),
        (dimacs(mark="a"), "^line 2: 'a 1 2' is an arc"),
        (dimacs([*EDGES, (3, 3)], "p edge 8 10"), "^line 11: edge 'e 3 3' is a loop at vertex 3"),
        (dimacs([(u - 1, v - 1) for u, v in EDGES]), "^line 2: edge 'e 0 1' has a vertex 0"),
        (dimacs(first="p edge 7 9"), "^line 1: the graph has 7 vertices; this task has vertices = 8"),
        ("p edge 3000000 58333344\na 1 2 803\n", "^line 1: the graph has 3000000 vertices"),
        ("p edge 8 1\ne 1 2 e 3 4\n", "^line 2: cannot read 'e 1 2 e 3 4'"),
        (dimacs() + "C~\n", "^line 11: expected c, p or e .*, found 'C~'"),  # a graph in graph6, no comment
        ("c only a comment\n", "no 'p edge VERTICES EDGES' line"),
    ],
)
def test_dimacs_that_is_no_graph_is_told_by_its_cause_and_line(task, text, message):
    with pytest.raises(InputError, match=message):
        list(task.read_inputs(text))


def test_two_graphs_in_one_file_are_two_and_faults_are_counted_in_the_file(task):
    two = dimacs() + "c and\n" + dimacs([(1, 4)], "p edge 8 1")
    assert names(task, two) == [GRAPH, "GC????"]
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
    import networkx as nx

    sparse = nx.to_sparse6_bytes(nx.from_graph6_bytes(b"GCR`v_"), header=False).decode()
    text = text if text.startswith(">>sparse6") is False and text != "sparse6" else text[:-7] + sparse
    assert names(task, text) == ["GCR`v_"]
    assert task.format_input(task.parse(text)) == "GCR`v_"


@pytest.mark.parametrize(
    ("text", "message"),
    [
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
        (":~~~~~~~~", "the graph has 68719476735 vertices"),  # before anything of that size is built
        ("# nothing else", "comments only"),
    ],
)
def test_what_is_not_read_is_named(task, text, message):
    with pytest.raises(InputError, match=message):
        list(task.read_inputs(text))


@pytest.mark.parametrize(
    ("n", "message"),
    [
        (10, r"--checkpoint .*checkpoints/coloring10.safetensors has vertices = 10"),
        (9, "train one: python experiments/run.py --task coloring --task.vertices 9 "),
        (40, "no checkpoint can have it .vertices must lie between 3 and 12"),
    ],
)
def test_another_size_names_the_checkpoint_or_the_command(task, n, message):
    with pytest.raises(InputError, match=message):
        task.parse(f"p edge {n} 0")


def test_solutions_are_counted_up_to_the_names_of_the_colours(task):
    puzzles = task.split("validation")
    counted = [task.count_solutions(x) for x in puzzles.inputs]
    assert torch.equal(torch.tensor(counted), puzzles.num_solutions)
