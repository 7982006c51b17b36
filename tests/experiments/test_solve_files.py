"""``solve.py`` finds the task of a file and the checkpoint of the task; checkpoints of the repository load by name."""

import io
import json
import re

import networkx as nx
import pytest
import torch

import experiments.solve
import pyro_gram
from pyro_gram import checkpoint
from pyro_gram.answers import Answer, Answers
from pyro_gram.errors import CheckpointError, InputError
from pyro_gram.tasks import advice
from tests.conftest import ROOT
from tests.experiments.small_run import cli

CHECKPOINTS = ROOT / "checkpoints"
CYCLE = "p edge 8 8\n" + "".join(f"e {v} {v % 8 + 1}\n" for v in range(1, 9))
PETERSEN = "IheA@GUAo"
QUEENS = "Q......./......../....Q.../......../......../......../......../........"
SUDOKU = ".412\n.2..\n21..\n432.\n"
TEXTS = {"cycle.col": CYCLE, "queens.txt": QUEENS, "sudoku.txt": SUDOKU, "petersen.g6": PETERSEN}
FAST = ["--num-samples", 2, "--depth", 1]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory, with four files of puzzles."""
    monkeypatch.chdir(tmp_path)
    for name, text in TEXTS.items():
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.fixture
def use_checkpoints(monkeypatch):
    """Return a function that sets the folder of the repository's checkpoints."""

    def use(path):
        monkeypatch.setattr(advice, "CHECKPOINTS", path)

    return use


def solve(capsys, *options):
    """Run a command that must succeed. Return the printed objects and the lines on stderr."""
    assert cli(experiments.solve.main, *options, "--json", *FAST) == 0
    out, err = capsys.readouterr()
    return [json.loads(line) for line in out.splitlines()], err.splitlines()


def error_of(capsys, *options):
    """Run a command that must fail with one line on stderr and exit code 2; return the line."""
    assert cli(experiments.solve.main, *options, *FAST) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    return err


def test_files_of_several_tasks_and_sizes_are_solved_in_their_order(folder, capsys):
    objects, lines = solve(capsys, *TEXTS)
    assert [o["input"] for o in objects] == ["GhCGKC", QUEENS, SUDOKU.replace("\n", ""), PETERSEN]
    assert lines == [
        f"{file}: {task}, solved with {CHECKPOINTS / name}.safetensors"
        for file, task, name in (
            ("cycle.col", "coloring", "coloring"),
            ("queens.txt", "nqueens", "nqueens"),
            ("sudoku.txt", "sudoku", "sudoku"),
            ("petersen.g6", "coloring", "coloring"),
        )
    ]


def test_the_answers_are_those_of_the_named_checkpoint(folder, capsys):
    expected, lines = solve(capsys, "--checkpoint", CHECKPOINTS / "coloring.safetensors", "--input", "cycle.col")
    assert lines == []
    assert solve(capsys, "--checkpoint", "coloring", "cycle.col")[0] == expected
    assert solve(capsys, "--task", "coloring", "cycle.col")[0] == expected
    assert solve(capsys, "--input", "cycle.col")[0] == expected


def test_a_pipe_is_recognized_too(folder, monkeypatch, capsys):
    expected, _ = solve(capsys, "sudoku.txt")
    for options in ([], ["-"], ["--input", "-"]):
        monkeypatch.setattr("sys.stdin", io.StringIO(SUDOKU))
        assert solve(capsys, *options)[0] == expected


def test_a_terminal_is_not_waited_for(monkeypatch, capsys):
    terminal = io.StringIO(SUDOKU)
    terminal.isatty = lambda: True
    monkeypatch.setattr("sys.stdin", terminal)
    assert "there is no puzzle: name a FILE, or pipe a text" in error_of(capsys)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("." * 81, [], "the board is 9x9; .*train one: python experiments/run.py --task sudoku --task.size 9"),
        ("p sp 3000000 1", [], "the graph has 3000000 vertices; this task reads 3 to 64"),
        (SUDOKU.replace("412", "442"), [], "the clues contradict each other"),
        (SUDOKU.replace(".412", ".41"), [], r"line 1: 3 cells \(2 digits and 1 blanks\), and a 4x4 board has 16"),
        ("....\n" * 4, [], "a.txt may be a puzzle of nqueens or sudoku: decide with --task or --checkpoint"),
        ("hello world", [], "a.txt is of no notation that is recognized"),
        ("C~", ["--colors", "3"], "^error: a.txt: the graph is not 3-colourable .*: allow more, up to 6"),
        ("F~~~w", [], "the graph is not 6-colourable .*: this task has no more colours"),
        ("0 1 0.5\n1 2 1.5", [], "a list of edges has two vertices on each line, and no weights"),
        ("...\n...\n...", [], "the board has 3 rows; this task reads boards of 4 to 20"),
        ("11..\n....\n....\n....", [], "the queens at row 1"),
        ("11..\n..3.\n....\n....", [], "the clues contradict each other: row 1 has 1 twice"),
        ("# nothing", [], "there is no puzzle in the text"),
        (SUDOKU, ["--task", "sudoky"], "unknown task 'sudoky'.*did you mean sudoku?"),
        (SUDOKU, ["--task", "coloring", "--checkpoint", "sudoku"], "--task is coloring, and .* of the task sudoku"),
        (SUDOKU, ["--checkpoint", "sudok"], "no checkpoint at sudok, .*known names: .*sudoku.*did you mean"),
        (SUDOKU, ["--colors", "3"], "the task sudoku has no number of colours"),
        (SUDOKU, ["queens.txt", "--figure", "a.png"], "--figure draws the puzzles of one task"),
        (SUDOKU, ["--input", "queens.txt"], "give FILE or --input, not both"),
        (QUEENS.replace("./....Q", "./Q...Q"), ["sudoku.txt"], "^error: a.txt: the queens at row 1"),
        ('{"train": [], "test": []}', [], "no checkpoint at arc, and none has this name"),
    ],
)
def test_what_is_not_clear_or_not_possible_ends_in_one_line(text, options, message, folder, capsys):
    (folder / "a.txt").write_text(text)
    err = error_of(capsys, "a.txt", *options)
    assert re.search(message, err), err


def test_the_options_decide_where_the_text_does_not(folder, capsys):
    (folder / "a.txt").write_text("....\n" * 4)
    assert [o["input"] for o in solve(capsys, "a.txt", "--task", "sudoku")[0]] == ["." * 16]
    assert [o["input"] for o in solve(capsys, "a.txt", "--checkpoint", "sudoku")[0]] == ["." * 16]


def test_with_keep_going_the_files_after_a_faulty_one_are_solved(folder, capsys):
    (folder / "bad.g6").write_text("G~~~~{\n")
    assert cli(experiments.solve.main, "bad.g6", "sudoku.txt", "--keep-going", "--json", *FAST) == 1
    failure, answers = map(json.loads, capsys.readouterr().out.splitlines())
    assert "not 6-colourable" in failure["error"]
    assert answers["input"] == SUDOKU.replace("\n", "")


def test_graphs_of_all_sizes_are_solved_with_one_checkpoint(folder, capsys):
    assert cli(experiments.solve.main, "cycle.col", "petersen.g6", "--json", "--num-samples", 4) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["input"] for one in answers] == ["GhCGKC", PETERSEN]
    assert all(one["solutions"][0]["valid"] and one["colors"] == 3 for one in answers)
    assert pyro_gram.load("coloring").task.max_size == 64


# ---- checkpoints by name -----------------------------------------------------------------------------------------


def test_a_name_is_a_file_or_a_run_before_it_is_a_checkpoint_of_the_repository(folder):
    assert checkpoint.find_checkpoint("coloring") == CHECKPOINTS / "coloring.safetensors"
    (folder / "coloring").mkdir()  # a directory without a model
    assert checkpoint.find_checkpoint("coloring") == CHECKPOINTS / "coloring.safetensors"
    run_file = folder / "coloring" / "model.safetensors"
    run_file.touch()
    assert checkpoint.find_checkpoint("coloring").samefile(run_file)
    (folder / "sudoku").touch()
    assert checkpoint.find_checkpoint("sudoku").samefile(folder / "sudoku")


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(CheckpointError, match="known names: coloring, latin, .*did you mean coloring"):
        pyro_gram.load("colorin")
    for path in ("runs/coloring", "coloring9.safetensors"):
        with pytest.raises(CheckpointError, match=f"^no checkpoint at {path}$"):
            pyro_gram.load(path)


def test_without_the_repository_the_error_says_where_checkpoints_are(folder, use_checkpoints, capsys):
    use_checkpoints(folder / "nowhere")
    with pytest.raises(CheckpointError, match="comes without checkpoints: clone its repository"):
        pyro_gram.load("coloring")
    assert "comes without checkpoints: clone its repository" in error_of(capsys, "cycle.col")


# ---- numbers of colours ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("distinct_valid", "fewer", "line"),
    [
        (1, {}, "  with 3 colours"),
        (2, {3: "proved impossible", 4: "none found in 9 samples"}, "; with 3: proved impossible; with 4: none found"),
        (0, {3: "none found in 9 samples"}, ": none found in 9 samples; with 3: none found in 9 samples"),
    ],
)
def test_the_output_says_how_many_colours_were_needed(distinct_valid, fewer, line):
    solver = pyro_gram.load("coloring")
    colors = 3 + len(fewer)
    counts = {"distinct": 2, "distinct_valid": distinct_valid, "total": None, "mean_steps": 1.0, "caveats": ()}
    x = solver.task.parse("GhCGKC")
    answers = Answers("GhCGKC", [], 9, 1, "all", **counts, x=x, colors=colors, fewer_colors=fewer)
    second_line = experiments.solve.format_solved(solver, answers).splitlines()[1]
    assert second_line.startswith(f"  with {colors} colours")
    assert line in second_line


def test_the_output_says_what_the_text_calls_the_vertices(tmp_path, capsys):
    path = tmp_path / "cities.csv"
    path.write_text("source,target\nBern,Paris\nParis,Rome\nRome,Bern\n")
    dimacs = tmp_path / "graph.col"
    dimacs.write_text("p edge 3 2\ne 1 2\ne 2 3\n")
    assert cli(experiments.solve.main, path, dimacs, "--num-samples", 2, "--depth", 1) == 0
    out = capsys.readouterr().out
    assert "  vertices: 0 is Bern, 1 is Paris, 2 is Rome\n" in out
    assert "  vertices: 0 to 2 are 1 to 3 of the text\n" in out
    assert cli(experiments.solve.main, path, "--json", "--num-samples", 2, "--depth", 1) == 0
    assert json.loads(capsys.readouterr().out)["vertices"] == ["Bern", "Paris", "Rome"]


def test_the_first_right_answer_is_drawn():
    solver = pyro_gram.load("nqueens")
    x = solver.task.parse(".Q../..../..../....")
    wrong, right = (torch.tensor(columns + [0] * (len(x) - 4)) for columns in ([0, 1, 2, 3], [1, 3, 0, 2]))
    solutions = [Answer(str(y.tolist()), 1, is_right, -1.0, None, y) for y, is_right in ((wrong, False), (right, True))]
    counts = {"distinct": 2, "distinct_valid": 1, "total": 1, "mean_steps": 1.0, "caveats": ()}
    for listed, y in ((solutions, right), (solutions[:1], wrong)):
        text = experiments.solve.format_solved(solver, Answers("", listed, 2, 1, "all", **counts, x=x))
        assert all(line.rstrip() in text for line in solver.task.render(x, y).splitlines())


def test_a_long_graph_is_named_by_its_size():
    task = pyro_gram.load("coloring").task
    assert task.title(task.parse_graph(nx.path_graph(4))) == "Ch"
    assert task.title(task.parse_graph(nx.path_graph(32))) == "graph of 32 vertices, 31 edges"


def test_an_input_that_needs_more_colours_is_reported_in_its_place(monkeypatch):
    task = pyro_gram.load("coloring").task
    monkeypatch.setattr(type(task), "max_colors", 4)

    def with_colors(self, x, colors):
        if not self.adjacency(x).any():
            raise InputError("the graph needs more colours")
        return x

    monkeypatch.setattr(type(task), "with_colors", with_colors)
    texts = "GhCGKC\nG?????\n"
    first, second = experiments.solve.read_inputs(task, texts, colors=3, keep_going=True)
    assert torch.equal(first, task.parse("GhCGKC"))
    assert isinstance(second, experiments.solve.FailedInput)
    assert second.error.startswith("line 2: the graph needs more colours")
    with pytest.raises(InputError, match="^line 2: the graph needs more colours"):
        experiments.solve.read_inputs(task, texts, colors=3, keep_going=False)
