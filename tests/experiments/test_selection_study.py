"""Test ``selection.py``, which compares the vote with the value head on fresh inputs."""

import json

import pytest
import torch

import experiments.studies.selection as selection
import pyro_gram
from experiments.studies.fresh import checkpoint_path
from pyro_gram.build import build
from pyro_gram.diagnostics.metrics import wilson_interval
from pyro_gram.solver import Solver
from pyro_gram.tasks.coloring.task import isomorphism_invariants
from tests.conftest import small_config
from tests.experiments.small_run import cli


def test_vote_and_value_select_from_the_samples_that_solve_draws(heads_checkpoint, tmp_path, monkeypatch, capsys):
    solver = pyro_gram.load(heads_checkpoint)
    x = solver.task.split("test").inputs
    monkeypatch.setattr(selection, "fresh_inputs", lambda solver, count: (x[:count], "test inputs"))
    out = tmp_path / "selection.json"
    options = ["--checkpoint", heads_checkpoint, "--out", out, "--seeds", 2, "--inputs", 3, "--keep", tmp_path / "kept"]
    assert cli(selection.main, *options) == 0
    assert "with_heads: vote" in capsys.readouterr().out
    results = json.loads(out.read_text())["with_heads"]
    assert (results["inputs"], results["seeds"], results["halt"]) == (3, 2, 0.999)
    right = {name: torch.zeros(2, 3) for name in ("vote", "value")}
    for number in range(2):
        for name, answers in right.items():
            all_answers = solver.solve(x[:3], seed=selection.SEED * (number + 1), select=name)
            answers[number] = torch.tensor([s.solutions[0].valid for s in all_answers])
    for name, answers in right.items():
        assert results[name]["accuracy"] == pytest.approx(answers.mean().item())
        assert results[name]["sd"] == pytest.approx(answers.mean(1).std().item(), abs=1e-7)
        assert results[name]["interval"] == pytest.approx(wilson_interval(answers.mean().item(), 3))
    assert results["only_vote_right"] - results["only_value_right"] == int((right["vote"] - right["value"]).sum())
    monkeypatch.setattr("pyro_gram.solver.Solver.sample", None)
    assert cli(selection.main, *options) == 0  # samples in the cache are not drawn again
    assert json.loads(out.read_text())["with_heads"] == results


def test_fresh_graphs_are_isomorphic_to_none_of_a_split():
    config = small_config(task={"vertices": 7, "train": 30, "validation": 5, "test": 5})
    solver = build(config)
    solver = Solver(config, solver.task, solver.model, solver.guide)
    x, description = selection.fresh_inputs(solver, 20)
    assert (len(x), description) == (20, f"data_seed {selection.DATA_SEED}")
    task = solver.task
    known_invariants = {
        k
        for s in ("train", "validation", "test")
        for k in isomorphism_invariants(task.adjacency(task.split(s).inputs).numpy())
    }
    assert not known_invariants & set(isomorphism_invariants(task.adjacency(x).numpy()))


def test_fresh_queens_are_test_inputs_that_no_run_measures_if_there_are_enough():
    def solver_of(**changes):
        config = small_config(task_name="nqueens", **changes)
        solver = build(config)
        return Solver(config, solver.task, solver.model, solver.guide)

    solver = solver_of()
    test = solver.task.split("test").inputs
    x, description = selection.fresh_inputs(solver, 5)
    assert torch.equal(x, test[:5])
    assert description == "test inputs 1 to 5"
    x, description = selection.fresh_inputs(solver_of(evaluate={"inputs": 4}), 5)
    assert torch.equal(x, test[4:9])
    assert description == "test inputs 5 to 9"
    all_inputs, _ = selection.fresh_inputs(solver_of(evaluate={"inputs": 4}), 10_000)
    assert torch.equal(all_inputs, test)


def test_bad_arguments_end_in_one_line(heads_checkpoint, plain_checkpoint, tmp_path, capsys):
    out = ["--out", tmp_path / "selection.json"]
    for name in ("seeds", "inputs"):
        assert cli(selection.main, "--checkpoint", heads_checkpoint, f"--{name}", 0, *out) == 2
        assert f"--{name} must be at least 1, not 0" in capsys.readouterr().err
    assert cli(selection.main, "--checkpoint", plain_checkpoint, *out) == 2
    assert "no heads to select by" in capsys.readouterr().err


COMMITTED_JSON = selection.OUT


@pytest.mark.skipif(not COMMITTED_JSON.exists(), reason="the study has not been run")
def test_value_is_not_worse_than_the_vote_on_any_shipped_checkpoint():
    results = {name: s for name, s in json.loads(COMMITTED_JSON.read_text()).items() if name != "environment"}
    checkpoints = {path.stem for path in COMMITTED_JSON.parents[2].joinpath("checkpoints").glob("*.safetensors")}
    with_heads = {name for name in checkpoints if pyro_gram.load(checkpoint_path(name)).has_heads}
    assert set(results) == with_heads
    for name, study in results.items():
        # Queens have no fresh inputs, so the number of inputs is limited by the test split.
        assert study["inputs"] >= (500 if name.startswith("nqueens8") or name == "sudoku" else 1000), name
        assert study["seeds"] >= 3, name
        assert study["value"]["accuracy"] >= study["vote"]["accuracy"], name
