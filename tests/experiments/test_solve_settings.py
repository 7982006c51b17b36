"""Test ``heads.py``, and options of ``solve.py``: halting, selection, draws, memory, tempering, figure, progress."""

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
def solve(heads_checkpoint, tmp_path, capsys):
    """Return a function that solves a few graphs and returns the printed JSON objects."""

    def call(*options, checkpoint=heads_checkpoint, graphs=GRAPHS):
        path = tmp_path / "puzzles.txt"
        path.write_text("\n".join(graphs))
        assert cli(experiments.solve.main, "--checkpoint", checkpoint, "--input", path, "--json", *options) == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return call


def error_of(capsys, *options):
    """Run a command that must fail with one line on stderr and exit code 2; return the line."""
    code = cli(experiments.solve.main, *options)
    out, err = capsys.readouterr()
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    return err


# ---- heads ---------------------------------------------------------------------------------------------------------


def test_heads_are_added_and_nothing_else_changes(plain_checkpoint, heads_checkpoint):
    old_solver, new_solver = pyro_gram.load(plain_checkpoint), pyro_gram.load(heads_checkpoint)
    assert (old_solver.has_heads, new_solver.has_heads) == (False, True)
    weights = new_solver.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in old_solver.model.state_dict().items())
    assert new_solver.config.heads.hidden == 16
    config = json.loads(heads_checkpoint.with_suffix(".json").read_text())
    assert config == new_solver.config.to_dict()
    a, b = (
        s.sample(GRAPHS, num_samples=5, seed=1, halt=None if s is old_solver else 1) for s in (old_solver, new_solver)
    )
    assert torch.equal(a.tokens, b.tokens)
    assert a.value is None
    assert ((b.value >= 0) & (b.value <= 1)).all()


def test_heads_of_a_run_are_added_in_its_directory(plain_checkpoint, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(plain_checkpoint.parent, run)
    assert cli(experiments.heads.main, "--checkpoint", run, *HEADS) == 0
    assert pyro_gram.load(run).has_heads
    assert json.loads((run / "config.json").read_text())["heads"]["hidden"] == 16


def test_the_threshold_can_be_changed_without_training(heads_checkpoint, tmp_path):
    path = tmp_path / "other.safetensors"
    assert cli(experiments.heads.main, "--checkpoint", heads_checkpoint, "--out", path, "--heads.halt", 0.7) == 0
    old_solver, new_solver = pyro_gram.load(heads_checkpoint), pyro_gram.load(path)
    assert (old_solver.config.heads.halt, new_solver.config.heads.halt) == (0.999, 0.7)
    assert new_solver.config.heads.hidden == 16
    weights = new_solver.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in old_solver.model.state_dict().items())


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
    ("options", "message"),
    [
        (["--heads.hidden", 0], "--heads.hidden 0 means no heads"),
        (["--heads.hidden", 12], "must be a multiple of 2 * heads.attention_heads = 8"),
        (["--out", "heads.pt"], "--out must end in .safetensors"),
        (["--heads.halt", 2], "halt must lie between 0 and 1"),
        (["--seed", -1], "--seed must be an integer from 0"),
        (["--out", "/dev/null/heads.safetensors"], "cannot write"),
    ],
)
def test_impossible_settings_of_heads_end_in_one_line(options, message, plain_checkpoint, capsys):
    assert cli(experiments.heads.main, "--checkpoint", plain_checkpoint, *options) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1


# ---- halting and depth -----------------------------------------------------------------------------------------------


def test_a_checkpoint_with_heads_halts_unless_told_not_to(heads_checkpoint, solve):
    solver = pyro_gram.load(heads_checkpoint)
    full_samples, halted_samples = (solver.sample(GRAPHS, num_samples=6, depth=4, halt=halt) for halt in (1, 0))
    assert (full_samples.steps == 4).all()
    assert (halted_samples.steps == 1).all()
    default = solver.sample(GRAPHS, num_samples=6, depth=4)
    assert torch.equal(default.steps, solver.sample(GRAPHS, num_samples=6, depth=4, halt=0.999).steps)
    assert (solver.sample(GRAPHS, num_samples=6, depth=4, history=True).steps == 4).all()
    assert solve("--depth", 4, "--halt", 0, "--seed", 3) != solve("--depth", 4, "--halt", 1, "--seed", 3)
    one_step, halted_at_once = solve("--depth", 1, "--halt", 1), solve("--depth", 4, "--halt", 0)
    assert [o["solutions"] for o in one_step] == [o["solutions"] for o in halted_at_once]


def test_the_text_output_gives_the_mean_number_of_steps_if_trajectories_halt(heads_checkpoint, tmp_path, capsys):
    (tmp_path / "one.g6").write_text("Cr")
    options = ["--checkpoint", heads_checkpoint, "--input", tmp_path / "one.g6", "--depth", 4]
    assert cli(experiments.solve.main, *options, "--halt", 0) == 0
    assert "1.0 of 4 steps on average" in capsys.readouterr().out
    assert cli(experiments.solve.main, *options, "--halt", 1) == 0
    assert "steps on average" not in capsys.readouterr().out


# ---- frequencies -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--halt", 1], "p(y|x) at depth 2"),
        (["--halt", 1, "--depth", 3, "--draws", "sobol"], "p(y|x) at depth 3"),
        ([], "not p(y|x): halting at P = 0.999"),
        (["--halt", 0.7, "--temper", 2, 3], "not p(y|x): sigma x 2 in the first 3 transitions, halting at P = 0.7"),
        (["--halt", 1, "--temper", 2, 3], "not p(y|x): sigma x 2 in the first 3 transitions"),
        (["--draws", "smc"], "not p(y|x): filtered by the value head"),
    ],
)
def test_the_output_says_whether_frequencies_estimate_p(options, expected, heads_checkpoint, solve, tmp_path, capsys):
    assert {o["frequencies"] for o in solve(*options)} == {expected}
    (tmp_path / "one.g6").write_text("Cr")
    assert cli(experiments.solve.main, "--checkpoint", heads_checkpoint, "--input", tmp_path / "one.g6", *options) == 0
    line = f"an estimate of {expected}" if expected.startswith("p(y|x)") else expected
    assert f"\n  frequencies: {line}\n" in capsys.readouterr().out


def test_frequencies_name_the_tempering_of_the_run_unless_it_is_overridden(heads_checkpoint):
    solver = pyro_gram.load(heads_checkpoint)
    solver.config = with_settings(solver.config, {"temper": {"scale": 1.9, "transitions": 2}})
    (answers,) = solver.solve("Cr", num_samples=2, halt=1)
    assert answers.frequencies == "not p(y|x): sigma x 1.9 in the first 2 transitions"
    (answers,) = solver.solve("Cr", num_samples=2, halt=1, temper=TemperConfig())
    assert (answers.frequencies, answers.caveats) == (f"p(y|x) at depth {solver.config.depth}", ())


# ---- selection -------------------------------------------------------------------------------------------------------


def test_value_keeps_the_vote_unless_the_value_head_trusts_another_answer_clearly_more(heads_checkpoint, solve):
    solver = pyro_gram.load(heads_checkpoint)
    samples = solver.sample(GRAPHS, num_samples=20)
    choices, votes = solve("--select", "value"), solve("--select", "vote")
    for i, (o, v) in enumerate(zip(choices, votes, strict=True)):
        (answer,), (winner,) = o["solutions"], v["solutions"]
        canonical_tokens = solver.task.canonical_form(solver.task.parse(GRAPHS[i]), samples.tokens[:, i])
        weights, values = {}, {}
        for y, value in zip(canonical_tokens, samples.value[:, i].tolist(), strict=True):
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
        assert answer["score"] <= 0  # the score is still a log probability


def test_value_can_overrule_the_vote(heads_checkpoint, monkeypatch):
    """The value head of this test gives a high value to only one trajectory of each input."""
    solver = pyro_gram.load(heads_checkpoint)
    samples = solver.sample(GRAPHS, num_samples=20)
    values = torch.full_like(samples.value, 0.01)
    values[7] = 0.99
    monkeypatch.setattr(solver, "_sample", lambda *_, **__: replace(samples, value=values))
    for i, answers in enumerate(solver.solve(GRAPHS, num_samples=20, select="value")):
        canonical_tokens = solver.task.canonical_form(solver.task.parse(GRAPHS[i]), samples.tokens[7, i])
        assert torch.equal(answers.solutions[0].y, canonical_tokens)


def test_verified_keeps_the_most_frequent_right_answer_or_none(solve):
    all_answers, verified_answers = solve("--num-samples", 3), solve("--num-samples", 3, "--select", "verified")
    for a, v in zip(all_answers, verified_answers, strict=True):
        assert v["solutions"] == [s for s in a["solutions"] if s["valid"]][:1]
    assert {len(v["solutions"]) for v in verified_answers} == {0, 1}  # a model trained for two batches solves only some


def test_the_text_output_says_if_no_answer_is_right(heads_checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        "pyro_gram.tasks.coloring.task.Coloring.is_valid", lambda self, x, y: torch.zeros_like(y[..., 0]).bool()
    )
    (tmp_path / "one.g6").write_text("Cr")
    options = ["--checkpoint", heads_checkpoint, "--input", tmp_path / "one.g6", "--select", "verified"]
    assert cli(experiments.solve.main, *options) == 0
    assert ", none of them right" in capsys.readouterr().out


def test_the_text_output_gives_the_number_of_answers_before_selection(heads_checkpoint, tmp_path, capsys):
    (tmp_path / "one.g6").write_text("C?")
    options = ["--checkpoint", heads_checkpoint, "--input", tmp_path / "one.g6", "--halt", 1]
    (answers,) = pyro_gram.load(heads_checkpoint).solve("C?", halt=1)
    assert answers.distinct == len(answers.solutions) > 1
    assert cli(experiments.solve.main, *options, "--select", "vote") == 0
    assert f"C?: {answers.distinct} distinct answers in 20 samples, " in (out := capsys.readouterr().out)
    assert ", the most frequent:" in out


def test_every_selection_repeats_under_its_seed(solve):
    for select in SELECTIONS:
        assert solve("--select", select, "--seed", 5) == solve("--select", select, "--seed", 5)


def test_answers_that_cannot_be_checked_cannot_be_verified(heads_checkpoint, monkeypatch):
    solver = pyro_gram.load(heads_checkpoint)
    monkeypatch.setattr(solver.task, "has_known_answer", lambda x, y: torch.zeros_like(y[..., 0], dtype=torch.bool))
    with pytest.raises(UserError, match="input 1 has no known right answer"):
        solver.solve("Cr", select="verified")


# ---- draw schemes, memory, tempering ---------------------------------------------------------------------------------


def test_draw_scheme_and_tempering_change_the_answers(solve):
    independent = solve("--halt", 1)
    assert solve("--halt", 1, "--draws", "antithetic") != independent
    assert solve("--halt", 1, "--temper", 20, 4) != independent
    assert solve("--halt", 1, "--temper", 1, 0) == independent


def test_filtered_trajectories_are_those_that_the_head_trusts(heads_checkpoint, solve):
    solver = pyro_gram.load(heads_checkpoint)
    solver.model.heads = StateHeads(200.0)
    independent, smc_samples = (solver.sample(GRAPHS, num_samples=200, draws=w, halt=1) for w in ("independent", "smc"))
    assert smc_samples.tokens.shape == independent.tokens.shape
    assert smc_samples.value.mean() > independent.value.mean() + 0.05
    assert solve("--draws", "smc", "--seed", 2) == solve("--draws", "smc", "--seed", 2)
    for settings in ({"halt": 0.5}, {"history": True}):
        with pytest.raises(UserError, match="smc weighs full trajectories"):
            solver.sample(GRAPHS, draws="smc", **settings)


def test_memory_limits_the_size_of_a_chunk_and_nothing_else(heads_checkpoint):
    solver = pyro_gram.load(heads_checkpoint)
    chunk_sizes = []
    hook = solver.model.core.register_forward_pre_hook(lambda _, args: chunk_sizes.append(args[0].h[..., 0, 0].numel()))
    samples = solver.sample(GRAPHS, num_samples=50, memory=8.3, halt=1)
    hook.remove()
    assert samples.tokens.shape == (50, 4, 4)
    assert max(chunk_sizes) <= trajectories_in_memory(8.3, 4, solver.config.model.width) < 50
    with pytest.raises(UserError, match="does not hold one trajectory"):
        solver.sample(GRAPHS, memory=0.001)


# ---- figure and progress ---------------------------------------------------------------------------------------------


def test_the_figure_is_drawn_beside_the_json(solve, tmp_path, capsys):
    path = tmp_path / "solved.png"
    solve("--figure", path, graphs=GRAPHS * 2)
    image = matplotlib.image.imread(path)
    assert image.shape[0] > 800
    assert image.std() > 0.05


def test_python_and_the_command_line_give_the_same_answers_over_batches(heads_checkpoint, solve):
    """Each batch has its own draws, so equal inputs at the same place of two batches get different answers."""
    graphs = ["C?"] * 200
    solver = pyro_gram.load(heads_checkpoint)
    assert solve("--halt", 1, "--seed", 3, graphs=graphs) == [s.to_dict() for s in solver.solve(graphs, seed=3, halt=1)]
    answers = solver.solve(graphs, seed=3, halt=1)
    first, second = answers[:64], answers[64:128]
    assert [s.solutions for s in first] != [s.solutions for s in second]


def test_answers_stream_as_their_batch_is_solved(heads_checkpoint):
    solver = pyro_gram.load(heads_checkpoint)
    counts = []
    stream = solver.stream(["C?"] * 130, halt=1, progress=counts.append)
    assert not counts
    next(stream)
    assert sum(counts) == 64 * 20
    assert len(list(stream)) == 129
    assert sum(counts) == 130 * 20


def test_a_progress_bar_is_shown_on_stderr_for_many_inputs(heads_checkpoint, tmp_path, capsys):
    path = tmp_path / "many.g6"
    path.write_text("\n".join(["Cr"] * 70))
    assert (
        cli(experiments.solve.main, "--checkpoint", heads_checkpoint, "--input", path, "--json", "--num-samples", 20)
        == 0
    )
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 70
    assert "1400/1400" in err


# ---- wrong arguments -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
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
def test_bad_arguments_end_in_one_line(options, message, heads_checkpoint, tmp_path, capsys):
    (tmp_path / "one.g6").write_text("Cr")
    err = error_of(capsys, "--checkpoint", heads_checkpoint, "--input", tmp_path / "one.g6", "--json", *options.split())
    assert message in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--select value", "no heads to select by"),
        ("--halt 0.5", "no heads to halt by"),
        ("--draws smc", "no heads to filter by"),
    ],
)
def test_options_that_need_heads_say_how_to_get_them(options, message, plain_checkpoint, tmp_path, capsys):
    (tmp_path / "one.g6").write_text("Cr")
    err = error_of(capsys, "--checkpoint", plain_checkpoint, "--input", tmp_path / "one.g6", *options.split())
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
        assert message in error_of(capsys, "--checkpoint", path, "--input", tmp_path / "one.g6")
