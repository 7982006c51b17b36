"""solve.py: halting, selection, width, memory, temper, figure, progress; experiments/heads.py, which adds heads."""

import json
import shutil
from dataclasses import replace

import matplotlib.image
import pytest
import torch

import experiments.heads
import experiments.run
import experiments.solve
import pyro_gram
from pyro_gram.config import with_settings
from pyro_gram.errors import UserError
from pyro_gram.sampling.memory import trajectories_in_memory
from pyro_gram.sampling.selection import MARGIN, SELECTIONS, VALUE_CAP
from pyro_gram.sampling.tempering import TemperConfig
from tests.conftest import StateHeads, small_config
from tests.experiments.conftest import HEADS
from tests.experiments.small_run import SMALL, cli

GRAPHS = ["C?", "Cr", "CF", "C^"]


@pytest.fixture
def solve(headed, tmp_path, capsys):
    """The JSON objects printed for a few graphs."""

    def call(*words, checkpoint=headed, graphs=GRAPHS):
        path = tmp_path / "puzzles.txt"
        path.write_text("\n".join(graphs))
        assert cli(experiments.solve.main, "--checkpoint", checkpoint, "--input", path, "--json", *words) == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return call


def refused(capsys, *words):
    """One line on stderr, nothing on stdout and exit code 2; the line."""
    code = cli(experiments.solve.main, *words)
    out, err = capsys.readouterr()
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    return err


# ---- heads ---------------------------------------------------------------------------------------------------------


def test_heads_are_added_and_nothing_else_changes(plain, headed):
    before, after = pyro_gram.load(plain), pyro_gram.load(headed)
    assert (before.has_heads, after.has_heads) == (False, True)
    weights = after.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in before.model.state_dict().items())
    assert after.config.heads.hidden == 16
    described = json.loads(headed.with_suffix(".json").read_text())
    assert described == after.config.to_dict()
    a, b = (s.sample(GRAPHS, num_samples=5, seed=1, halt=None if s is before else 1) for s in (before, after))
    assert torch.equal(a.tokens, b.tokens)
    assert a.value is None
    assert ((b.value >= 0) & (b.value <= 1)).all()


def test_heads_of_a_run_are_added_in_its_place(plain, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(plain.parent, run)
    assert cli(experiments.heads.main, "--checkpoint", run, *HEADS) == 0
    assert pyro_gram.load(run).has_heads
    assert json.loads((run / "config.json").read_text())["heads"]["hidden"] == 16


def test_the_threshold_alone_changes_without_training(headed, tmp_path):
    path = tmp_path / "other.safetensors"
    assert cli(experiments.heads.main, "--checkpoint", headed, "--out", path, "--heads.halt", 0.7) == 0
    before, after = pyro_gram.load(headed), pyro_gram.load(path)
    assert (before.config.heads.halt, after.config.heads.halt) == (0.999, 0.7)
    assert after.config.heads.hidden == 16
    weights = after.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in before.model.state_dict().items())


def test_a_run_trains_its_own_heads_and_measures_them(tmp_path):
    out = tmp_path / "run"
    assert cli(experiments.run.main, *SMALL, "--out", out, "--train.batches", 2, *HEADS) == 0
    results = json.loads((out / "results.json").read_text())
    m = results["metrics"]
    assert 0 <= m["value_accuracy"] <= m["any_valid"]
    assert 0 <= m["halt_accuracy"] <= 1
    assert 1 <= m["halt_steps"] <= m["depth"]
    assert 0 < results["head_seconds"] < results["seconds"]["train"]
    assert results["head_parameters"] > 0
    assert pyro_gram.load(out).has_heads


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--heads.hidden", 0], "--heads.hidden 0 is no heads"),
        (["--heads.hidden", 12], "must be a multiple of 2 * heads.attention_heads = 8"),
        (["--out", "heads.pt"], "--out must end in .safetensors"),
        (["--heads.halt", 2], "halt must lie between 0 and 1"),
        (["--seed", -1], "--seed must be an integer from 0"),
        (["--out", "/dev/null/heads.safetensors"], "cannot write"),
    ],
)
def test_heads_that_cannot_be_end_in_one_line(words, message, plain, capsys):
    assert cli(experiments.heads.main, "--checkpoint", plain, *words) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1


# ---- halting and depth -----------------------------------------------------------------------------------------------


def test_a_checkpoint_with_heads_halts_unless_told_not_to(headed, solve):
    solver = pyro_gram.load(headed)
    never, always = (solver.sample(GRAPHS, num_samples=6, depth=4, halt=halt) for halt in (1, 0))
    assert (never.steps == 4).all()
    assert (always.steps == 1).all()
    default = solver.sample(GRAPHS, num_samples=6, depth=4)
    assert torch.equal(default.steps, solver.sample(GRAPHS, num_samples=6, depth=4, halt=0.999).steps)
    assert (solver.sample(GRAPHS, num_samples=6, depth=4, history=True).steps == 4).all()
    assert solve("--depth", 4, "--halt", 0, "--seed", 3) != solve("--depth", 4, "--halt", 1, "--seed", 3)
    one, stopped = solve("--depth", 1, "--halt", 1), solve("--depth", 4, "--halt", 0)
    assert [o["solutions"] for o in one] == [o["solutions"] for o in stopped]


def test_a_person_is_told_of_steps_that_were_saved(headed, tmp_path, capsys):
    (tmp_path / "one.g6").write_text("Cr")
    words = ["--checkpoint", headed, "--input", tmp_path / "one.g6", "--depth", 4]
    assert cli(experiments.solve.main, *words, "--halt", 0) == 0
    assert "1.0 of 4 steps on average" in capsys.readouterr().out
    assert cli(experiments.solve.main, *words, "--halt", 1) == 0
    assert "steps on average" not in capsys.readouterr().out


# ---- what frequencies are -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--halt", 1], "p(y|x) at depth 2"),
        (["--halt", 1, "--depth", 3, "--draws", "sobol"], "p(y|x) at depth 3"),
        ([], "not p(y|x): halting at P = 0.999"),
        (["--halt", 0.7, "--temper", 2, 3], "not p(y|x): sigma x 2 in the first 3 transitions, halting at P = 0.7"),
        (["--halt", 1, "--temper", 2, 3], "not p(y|x): sigma x 2 in the first 3 transitions"),
        (["--draws", "smc"], "not p(y|x): filtered by the value head"),
    ],
)
def test_the_output_says_whether_frequencies_estimate_p(words, expected, headed, solve, tmp_path, capsys):
    assert {o["frequencies"] for o in solve(*words)} == {expected}
    (tmp_path / "one.g6").write_text("Cr")
    assert cli(experiments.solve.main, "--checkpoint", headed, "--input", tmp_path / "one.g6", *words) == 0
    line = f"an estimate of {expected}" if expected.startswith("p(y|x)") else expected
    assert f"\n  frequencies: {line}\n" in capsys.readouterr().out


def test_a_run_that_was_measured_with_a_temper_says_so_unless_told_otherwise(headed):
    solver = pyro_gram.load(headed)
    solver.config = with_settings(solver.config, {"temper": {"scale": 1.9, "transitions": 2}})
    (solved,) = solver.solve("Cr", num_samples=2, halt=1)
    assert solved.frequencies == "not p(y|x): sigma x 1.9 in the first 2 transitions"
    (solved,) = solver.solve("Cr", num_samples=2, halt=1, temper=TemperConfig())
    assert (solved.frequencies, solved.caveats) == (f"p(y|x) at depth {solver.config.depth}", ())


# ---- selection -------------------------------------------------------------------------------------------------------


def test_value_keeps_the_vote_unless_the_value_head_trusts_another_answer_clearly_more(headed, solve):
    solver = pyro_gram.load(headed)
    samples = solver.sample(GRAPHS, num_samples=20)
    choices, voted = solve("--select", "value"), solve("--select", "vote")
    for i, (o, v) in enumerate(zip(choices, voted, strict=True)):
        (answer,), (winner,) = o["solutions"], v["solutions"]
        canonical = solver.task.canonical_form(solver.task.parse(GRAPHS[i]), samples.tokens[:, i])
        weights, values = {}, {}
        for y, value in zip(canonical, samples.value[:, i].tolist(), strict=True):
            text = "".join(map(str, y.tolist()))
            odds = min(value, VALUE_CAP) / (1 - min(value, VALUE_CAP))
            weights[text] = weights.get(text, 0.0) + odds
            values[text] = max(values.get(text, 0.0), value)
        heaviest = max(weights.values())
        if heaviest > MARGIN * weights[winner["solution"]]:
            assert weights[answer["solution"]] == pytest.approx(heaviest)
        else:
            assert answer["solution"] == winner["solution"]
        assert answer["value"] == pytest.approx(values[answer["solution"]])
        assert answer["score"] <= 0  # still nats


def test_value_can_overrule_the_vote(headed, monkeypatch):
    """Heads that trust one trajectory of each input alone."""
    solver = pyro_gram.load(headed)
    samples = solver.sample(GRAPHS, num_samples=20)
    trusted = torch.full_like(samples.value, 0.01)
    trusted[7] = 0.99
    monkeypatch.setattr(solver, "sample", lambda *_, **__: replace(samples, value=trusted))
    for i, solved in enumerate(solver.solve(GRAPHS, num_samples=20, select="value")):
        canonical = solver.task.canonical_form(solver.task.parse(GRAPHS[i]), samples.tokens[7, i])
        assert torch.equal(solved.solutions[0].y, canonical)


def test_verified_keeps_the_most_frequent_right_answer_or_none(solve):
    every, verified = solve("--num-samples", 3), solve("--num-samples", 3, "--select", "verified")
    for a, v in zip(every, verified, strict=True):
        assert v["solutions"] == [s for s in a["solutions"] if s["valid"]][:1]
    assert {len(v["solutions"]) for v in verified} == {0, 1}  # a model of two batches fails some


def test_a_person_is_told_where_nothing_is_right(headed, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        "pyro_gram.tasks.coloring.task.Coloring.is_valid", lambda self, x, y: torch.zeros_like(y[..., 0]).bool()
    )
    (tmp_path / "one.g6").write_text("Cr")
    words = ["--checkpoint", headed, "--input", tmp_path / "one.g6", "--select", "verified"]
    assert cli(experiments.solve.main, *words) == 0
    assert ", none of them right" in capsys.readouterr().out


def test_a_person_is_told_of_how_many_answers_one_was_selected(headed, tmp_path, capsys):
    (tmp_path / "one.g6").write_text("C?")
    words = ["--checkpoint", headed, "--input", tmp_path / "one.g6", "--halt", 1]
    (every,) = pyro_gram.load(headed).solve("C?", halt=1)
    assert every.distinct == len(every.solutions) > 1
    assert cli(experiments.solve.main, *words, "--select", "vote") == 0
    assert f"C?: {every.distinct} distinct answers in 20 samples, " in (out := capsys.readouterr().out)
    assert ", the most frequent:" in out


def test_every_selection_repeats_under_its_seed(solve):
    for select in SELECTIONS:
        assert solve("--select", select, "--seed", 5) == solve("--select", select, "--seed", 5)


def test_what_nobody_knows_cannot_be_verified(headed, monkeypatch):
    solver = pyro_gram.load(headed)
    monkeypatch.setattr(solver.task, "has_known_answer", lambda x, y: torch.zeros_like(y[..., 0], dtype=torch.bool))
    with pytest.raises(UserError, match="input 1 has no known right answer"):
        solver.solve("Cr", select="verified")


# ---- width, memory, temper -------------------------------------------------------------------------------------------


def test_other_widths_and_tempers_change_what_is_drawn(solve):
    independent = solve("--halt", 1)
    assert solve("--halt", 1, "--draws", "antithetic") != independent
    assert solve("--halt", 1, "--temper", 20, 4) != independent
    assert solve("--halt", 1, "--temper", 1, 0) == independent


def test_filtered_trajectories_are_those_that_the_head_trusts(headed, solve):
    solver = pyro_gram.load(headed)
    solver.model.heads = StateHeads(200.0)
    plain, filtered = (solver.sample(GRAPHS, num_samples=200, draws=w, halt=1) for w in ("independent", "smc"))
    assert filtered.tokens.shape == plain.tokens.shape
    assert filtered.value.mean() > plain.value.mean() + 0.05
    assert solve("--draws", "smc", "--seed", 2) == solve("--draws", "smc", "--seed", 2)
    for settings in ({"halt": 0.5}, {"history": True}):
        with pytest.raises(UserError, match="smc weighs full trajectories"):
            solver.sample(GRAPHS, draws="smc", **settings)


def test_memory_bounds_what_runs_at_once_and_no_more(headed):
    solver = pyro_gram.load(headed)
    widths = []
    hook = solver.model.core.register_forward_pre_hook(lambda _, args: widths.append(args[0].h[..., 0, 0].numel()))
    samples = solver.sample(GRAPHS, num_samples=50, memory=8.3, halt=1)
    hook.remove()
    assert samples.tokens.shape == (50, 4, 4)
    assert max(widths) <= trajectories_in_memory(8.3, 4, solver.config.model.width) < 50
    with pytest.raises(UserError, match="does not hold one trajectory"):
        solver.sample(GRAPHS, memory=0.001)


# ---- figure and progress ---------------------------------------------------------------------------------------------


def test_the_figure_is_drawn_beside_the_json(solve, tmp_path, capsys):
    path = tmp_path / "solved.png"
    solve("--figure", path, graphs=GRAPHS * 2)
    image = matplotlib.image.imread(path)
    assert image.shape[0] > 800
    assert image.std() > 0.05


def test_python_and_the_command_line_give_the_same_answers_over_batches(headed, solve):
    """Batches after the first draw for themselves: equal inputs in equal places do not repeat each other."""
    graphs = ["C?"] * 200
    solver = pyro_gram.load(headed)
    assert solve("--halt", 1, "--seed", 3, graphs=graphs) == [s.to_dict() for s in solver.solve(graphs, seed=3, halt=1)]
    solved = solver.solve(graphs, seed=3, halt=1)
    first, second = solved[:64], solved[64:128]
    assert [s.solutions for s in first] != [s.solutions for s in second]


def test_answers_stream_as_their_batch_is_solved(headed):
    solver = pyro_gram.load(headed)
    done = []
    stream = solver.stream(["C?"] * 130, halt=1, progress=done.append)
    assert not done
    next(stream)
    assert sum(done) == 64 * 20
    assert len(list(stream)) == 129
    assert sum(done) == 130 * 20


def test_progress_is_told_on_stderr_of_many_inputs(headed, tmp_path, capsys):
    path = tmp_path / "many.g6"
    path.write_text("\n".join(["Cr"] * 70))
    assert cli(experiments.solve.main, "--checkpoint", headed, "--input", path, "--json", "--num-samples", 20) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 70
    assert "1400/1400" in err


# ---- wrong arguments -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--halt 1.5", "--halt is a probability"),
        ("--halt nan", "--halt is a probability"),
        ("--memory 0", "--memory must be a positive number"),
        ("--memory 8", "does not hold one trajectory"),
        ("--draws distinct", "--draws"),
        ("--figure /dev/null/solved.png", "there is no directory"),
        ("--draws wide", "--draws"),
        ("--temper 2", "--temper"),
        ("--temper two 2", "--temper takes a number and a whole number"),
        ("--temper 2 0", "changes nothing"),
        ("--figure solved.txt", "--figure writes .png, .pdf or .svg"),
    ],
)
def test_bad_arguments_end_in_one_line(words, message, headed, tmp_path, capsys):
    (tmp_path / "one.g6").write_text("Cr")
    err = refused(capsys, "--checkpoint", headed, "--input", tmp_path / "one.g6", "--json", *words.split())
    assert message in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--select value", "no heads to select by"),
        ("--halt 0.5", "no heads to halt by"),
        ("--draws smc", "no heads to filter by"),
    ],
)
def test_what_needs_heads_says_how_to_get_them(words, message, plain, tmp_path, capsys):
    (tmp_path / "one.g6").write_text("Cr")
    err = refused(capsys, "--checkpoint", plain, "--input", tmp_path / "one.g6", *words.split())
    assert message in err
    assert "experiments/heads.py" in err


def test_a_checkpoint_of_another_task_reads_no_graphs(tmp_path, capsys):
    from pyro_gram.build import build
    from pyro_gram.checkpoint import save_model

    for task, message in (
        ("nqueens", "row"),
        ("sudoku", "neither a digit nor a blank"),
        ("sudoku_uncond", "takes no input"),
    ):
        solver = build(small_config(task_name=task))
        path = tmp_path / f"{task}.safetensors"
        save_model(path, solver)
        (tmp_path / "one.g6").write_text("Cr")
        assert message in refused(capsys, "--checkpoint", path, "--input", tmp_path / "one.g6")
