import io
import itertools
import json
import re

import networkx as nx
import pytest
import torch

import experiments.run
import experiments.solve
import pyro_gram
from pyro_gram.errors import CheckpointError, InputError, UserError
from tests.experiments.small_run import SMALL, cli

GRAPHS = ("C?", "C~", "Cr", "CF", "C^")  # graphs of four vertices; C~ is the complete graph
SOLVABLE_GRAPHS = [g for g in GRAPHS if g != "C~"]


def test_a_device_that_is_not_there_is_refused(capsys):
    assert cli(experiments.solve.main, "--checkpoint", "checkpoints/coloring.safetensors", "--device", "nope") == 2
    assert "no device 'nope': give cpu, cuda or mps" in capsys.readouterr().err


def graph_of(text):
    return nx.from_graph6_bytes(text.encode())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    assert cli(experiments.run.main, *SMALL, "--out", out, "--train.batches", 2) == 0
    return out / "model.safetensors"


@pytest.fixture(scope="module")
def solver(checkpoint):
    return pyro_gram.load(checkpoint)


@pytest.fixture
def solve(checkpoint, tmp_path, monkeypatch, capsys):
    """Return a function that solves a text, from a file or from stdin, and returns the printed JSON objects."""

    def call(text, *options, stdin=False):
        path = tmp_path / "puzzles.txt"
        path.write_text(text)
        if stdin:
            monkeypatch.setattr("sys.stdin", io.StringIO(text))
        options = ["--checkpoint", checkpoint, "--input", "-" if stdin else path, "--json", *options]
        assert cli(experiments.solve.main, *options) == 0
        out, err = capsys.readouterr()
        assert err == ""
        return [json.loads(line) for line in out.splitlines()]

    return call


def test_json_has_an_object_for_each_input_with_the_documented_keys(solve):
    objects = solve("\n".join(SOLVABLE_GRAPHS) + "\n\n")
    assert [o["input"] for o in objects] == SOLVABLE_GRAPHS
    for o in objects:
        assert o.keys() == {
            *("input", "solutions", "num_samples", "depth", "frequencies"),
            *("mean_steps", "distinct", "distinct_valid", "total"),
        }
        assert o["distinct"] == len(o["solutions"])
        assert o["distinct_valid"] == sum(s["valid"] for s in o["solutions"])
        graph = graph_of(o["input"])
        colourings = [c for c in itertools.product("012", repeat=4) if all(c[u] != c[v] for u, v in graph.edges)]
        assert o["total"] == len({tuple(map(c.index, c)) for c in colourings})  # swapped colours give no new solution
        assert 0 < o["mean_steps"] <= 2
        assert o["frequencies"] == "not p(y|x): halting at P = 0.999"  # the run has heads, so it halts
        assert (o["num_samples"], o["depth"]) == (20, 2)  # the default N, and the depth of training
        for s in o["solutions"]:
            assert s.keys() == {"solution", "count", "valid", "score", "value"}
            assert 0 <= s["value"] <= 1
            assert re.fullmatch("[012]{4}", s["solution"])
            assert s["score"] <= 0


def test_all_answers_are_distinct_and_counted_most_frequent_first(solve):
    for o in solve("\n".join(SOLVABLE_GRAPHS), "--num-samples", "33"):
        counts = [s["count"] for s in o["solutions"]]
        assert sum(counts) == o["num_samples"] == 33
        assert counts == sorted(counts, reverse=True)
        assert len({s["solution"] for s in o["solutions"]}) == len(counts)


def test_answers_that_differ_in_the_names_of_colors_are_one(solve):
    for o in solve("\n".join(SOLVABLE_GRAPHS)):
        for s in o["solutions"]:
            order = list(dict.fromkeys(s["solution"]))
            assert order == sorted(order) == [str(i) for i in range(len(order))]


def test_vote_keeps_the_most_frequent_answer_only(solve):
    all_answers, vote_answers = (solve("\n".join(SOLVABLE_GRAPHS), "--select", select) for select in ("all", "vote"))
    assert [o["solutions"] for o in vote_answers] == [o["solutions"][:1] for o in all_answers]


def test_the_valid_flag_agrees_with_networkx(solve):
    flags = []
    objects = solve("\n".join(nx.to_graph6_bytes(g, header=False).decode().strip() for g in every_graph()))
    for o in objects:
        edges = graph_of(o["input"]).edges
        for s in o["solutions"]:
            assert s["valid"] == all(s["solution"][u] != s["solution"][v] for u, v in edges)
            flags.append(s["valid"])
    assert set(flags) == {True, False}


def every_graph():
    """Yield every labelled graph of four vertices except the complete one."""
    pairs = [(u, v) for v in range(4) for u in range(v)]
    for bits in range(2**6 - 1):
        graph = nx.empty_graph(4)
        graph.add_edges_from(pair for i, pair in enumerate(pairs) if bits >> i & 1)
        yield graph


def test_the_seed_fixes_the_answers(solve):
    text = "\n".join(SOLVABLE_GRAPHS)
    a, b, c = solve(text, "--seed", "3"), solve(text, "--seed", "3"), solve(text, "--seed", "4")
    assert a == b
    assert a != c


def test_depth_and_number_of_samples_are_those_of_the_options(solve, solver):
    (o,) = solve("Cr", "--depth", "5", "--num-samples", "3", "--seed", "8")
    assert (o["depth"], o["num_samples"]) == (5, 3)
    samples = solver.sample("Cr", num_samples=3, depth=5, seed=8)
    assert max(s["score"] for s in o["solutions"]) == pytest.approx(samples.score.max().item())


def test_stdin_is_read_like_a_file(solve):
    text = "\n".join(SOLVABLE_GRAPHS)
    assert solve(text, stdin=True) == solve(text)


def test_a_dimacs_file_is_one_graph(solve):
    (o,) = solve("c a square\np edge 4 4\ne 1 2\ne 2 3\ne 3 4\ne 4 1\n")
    assert nx.utils.edges_equal(graph_of(o["input"]).edges, nx.cycle_graph(4).edges)


def test_the_directory_of_a_run_is_a_checkpoint(solve, checkpoint, tmp_path, capsys):
    (tmp_path / "one.g6").write_text("Cr")
    options = ["--checkpoint", checkpoint.parent, "--input", tmp_path / "one.g6", "--json"]
    assert cli(experiments.solve.main, *options) == 0
    assert [json.loads(capsys.readouterr().out)] == solve("Cr")


def test_without_json_the_output_is_readable_text(checkpoint, tmp_path, capsys):
    (tmp_path / "one.g6").write_text("C?")
    assert cli(experiments.solve.main, "--checkpoint", checkpoint, "--input", tmp_path / "one.g6") == 0
    out = capsys.readouterr().out
    assert re.match(
        r"C\?: \d+ distinct answers in 20 samples, \d+ of 14 solutions found \(up to.*\).*\n  [012]{4}  valid  ", out
    )
    assert "neighbours" in out


# ---- bad input ---------------------------------------------------------------------------------------------------


def error_of(capsys, *options):
    """Run a command that must fail with one line on stderr and exit code 2; return the line."""
    assert cli(experiments.solve.main, *options) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    return err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("DQc", "5 vertices; this task has vertices = 4"),
        ("C~", "not 3-colourable"),
        ("Cr\nC~", "not 3-colourable"),  # one bad graph: no graph is solved
        ("C", "malformed graph6"),
        ("Crr", "malformed graph6"),
        ("hello world", "malformed graph6"),
        ("p edge 4 1\ne 1 9", "vertex beyond"),
        ("", "is empty"),
        ("\n \n", "is empty"),
        ("\x00\x01", "holds zero bytes: it is not text"),
    ],
)
def test_bad_puzzles_end_in_one_line(text, message, checkpoint, tmp_path, capsys):
    path = tmp_path / "puzzles.txt"
    path.write_text(text)
    err = error_of(capsys, "--checkpoint", checkpoint, "--input", path, "--json")
    assert re.search(message, err)


def test_bad_puzzles_from_stdin_end_in_one_line(checkpoint, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert "is empty" in error_of(capsys, "--checkpoint", checkpoint, "--json")


def test_files_that_cannot_be_read_end_in_one_line(checkpoint, tmp_path, capsys):
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name, message in (("nothing", "No such file"), ("binary", "not a text file"), (".", "Is a directory")):
        err = error_of(capsys, "--checkpoint", checkpoint, "--input", tmp_path / name)
        assert message in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--num-samples 0", "--num-samples must be at least 1, not 0"),
        ("--num-samples -3", "--num-samples must be at least 1, not -3"),
        ("--num-samples many", "--num-samples"),
        ("--depth 0", "--depth must be at least 1, not 0"),
        ("--select best", "--select"),
        ("--seed x", "--seed"),
        ("--seed 100000000000000000000", "seed"),
        ("--num-sample 3", "--num-sample"),
        ("stray", "puzzles are named twice: give FILE or --input, not both"),
        ("--colors 0", "--colors must be at least 1, not 0"),
        ("--colors 3", "the task coloring has no number of colours"),
        ("--task sudoku", "--task is sudoku, and the checkpoint .* is of the task coloring"),
    ],
)
def test_bad_arguments_end_in_one_line(options, message, checkpoint, tmp_path, capsys):
    (tmp_path / "one.g6").write_text("Cr")
    err = error_of(capsys, "--checkpoint", checkpoint, "--input", tmp_path / "one.g6", "--json", *options.split())
    assert re.search(message, err)


def test_checkpoints_that_cannot_be_loaded_end_in_one_line(tmp_path, capsys):
    (tmp_path / "one.g6").write_text("Cr")
    for checkpoint, message in (("nothing.safetensors", "no checkpoint at"), ("one.g6", "not a readable safetensors")):
        err = error_of(capsys, "--checkpoint", tmp_path / checkpoint, "--input", tmp_path / "one.g6")
        assert message in err


# ---- from Python -------------------------------------------------------------------------------------------------


def test_sample_gives_tokens_and_scores_for_each_trajectory_and_input(solver):
    x = torch.stack([solver.task.parse(g) for g in SOLVABLE_GRAPHS])
    samples = solver.sample(x, num_samples=7, depth=3, seed=1)
    assert samples.tokens.shape == (7, 4, 4)
    assert samples.tokens.dtype == torch.int64
    assert samples.score.shape == (7, 4)
    assert ((samples.tokens >= 0) & (samples.tokens < 3)).all()
    same_seed = solver.sample(x, num_samples=7, depth=3, seed=1)
    assert torch.equal(samples.tokens, same_seed.tokens)


def test_text_is_an_input_too(solver):
    x = torch.stack([solver.task.parse(g) for g in SOLVABLE_GRAPHS])
    expected = solver.sample(x, num_samples=3, seed=2).tokens
    assert torch.equal(solver.sample(SOLVABLE_GRAPHS, num_samples=3, seed=2).tokens, expected)
    assert solver.sample("Cr", num_samples=3).tokens.shape == (3, 1, 4)


def test_sampling_leaves_the_random_state_alone(solver):
    before = torch.get_rng_state()
    solver.sample("Cr")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(2, 4, 4),
        torch.zeros(2, 5, 5, dtype=torch.long),
        torch.zeros(4, 4, dtype=torch.long),
        torch.zeros(1, 2, 4, 4, dtype=torch.long),
        torch.zeros(0, 4, 4, dtype=torch.long),
        torch.full((1, 4, 4), 3),
        torch.full((1, 4, 4), -1),
        "C~",
        "",
        ["Cr", "DQc"],
        [],
    ],
    ids=lambda x: str(x) if not isinstance(x, torch.Tensor) else f"{x.dtype}{list(x.shape)}",
)
def test_invalid_inputs_raise_an_input_error(x, solver):
    with pytest.raises(InputError):
        solver.sample(x, num_samples=2)


def test_number_of_samples_depth_and_selection_are_checked(solver):
    x = solver.task.parse("Cr")[None]
    for settings in ({"num_samples": 0}, {"depth": 0}):
        with pytest.raises(UserError, match="must be at least 1, not 0"):
            solver.sample(x, **settings)
    with pytest.raises(UserError, match="unknown selection 'best'; known: all, vote"):
        solver.solve(x, select="best")


def test_load_names_a_missing_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        pyro_gram.load(tmp_path / "nothing.safetensors")


def test_text_is_solved_too(solver):
    x = torch.stack([solver.task.parse(g) for g in SOLVABLE_GRAPHS])
    assert solver.solve(SOLVABLE_GRAPHS, num_samples=5) == solver.solve(x, num_samples=5)
    assert [s.input for s in solver.solve("Cr", num_samples=2)] == ["Cr"]


def test_an_answer_that_cannot_be_checked_is_neither_valid_nor_invalid(solver, monkeypatch):
    monkeypatch.setattr(solver.task, "has_known_answer", lambda x, y: torch.zeros_like(y[..., 0], dtype=torch.bool))
    (answers,) = solver.solve("Cr", num_samples=4)
    assert {a.valid for a in answers.solutions} == {None}
    assert "unknown" in experiments.solve.format_solved(solver, answers)


# ---- going on after a bad input ----------------------------------------------------------------------------------


def keep_going(checkpoint, path, capsys, *options):
    code = cli(experiments.solve.main, "--checkpoint", checkpoint, "--input", path, "--keep-going", *options)
    return code, *capsys.readouterr()


def test_a_bad_input_becomes_an_error_in_its_place_and_the_others_are_solved(checkpoint, tmp_path, capsys):
    path = tmp_path / "some.g6"
    path.write_text("Cr\nC~\nCF\n")
    code, out, err = keep_going(checkpoint, path, capsys, "--json")
    first, failure, last = map(json.loads, out.splitlines())
    assert code == 1
    assert (first["input"], last["input"]) == ("Cr", "CF")
    message = "line 2: the graph is not 3-colourable (checked exactly): no answer exists"
    assert failure == {"input": "C~", "error": message}
    assert err == "1 of 3 inputs cannot be solved\n"
    path.write_text("Cr\nCF\n")
    code, output, err = keep_going(checkpoint, path, capsys, "--json")
    assert (code, err) == (0, "")
    assert [json.loads(line) for line in output.splitlines()] == [first, last]
    path.write_text("C~\n")
    code, out, _ = keep_going(checkpoint, path, capsys)
    assert code == 1
    assert out.startswith("C~: not solved: the graph is not 3-colourable")


def test_stdin_may_be_bytes_of_any_encoding_and_may_be_closed(checkpoint, tmp_path, monkeypatch, capsys):
    outputs = []
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("Cr\r\n".encode(encoding))))
        assert cli(experiments.solve.main, "--checkpoint", checkpoint, "--json") == 0
        outputs.append(capsys.readouterr().out)
    assert len(set(outputs)) == 1
    monkeypatch.setattr("sys.stdin", None)
    assert "standard input is closed" in error_of(capsys, "--checkpoint", checkpoint)
