"""Test ``selection.py``, which compares the vote with the value head."""

import json

import pytest
import torch

import experiments.studies.selection as selection
import pyro_gram
from pyro_gram.diagnostics.metrics import wilson_interval
from tests.experiments.small_run import cli


def test_vote_and_value_select_from_the_samples_that_solve_draws(heads_checkpoint, tmp_path, monkeypatch, capsys):
    solver = pyro_gram.load(heads_checkpoint)
    x = solver.task.split("test").inputs
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


def test_bad_arguments_end_in_one_line(heads_checkpoint, plain_checkpoint, tmp_path, capsys):
    out = ["--out", tmp_path / "selection.json"]
    for name in ("seeds", "inputs"):
        assert cli(selection.main, "--checkpoint", heads_checkpoint, f"--{name}", 0, *out) == 2
        assert f"--{name} must be at least 1, not 0" in capsys.readouterr().err
    assert cli(selection.main, "--checkpoint", plain_checkpoint, *out) == 2
    assert "no heads to select by" in capsys.readouterr().err


COMMITTED_JSON = selection.OUT


@pytest.mark.skipif(not COMMITTED_JSON.exists(), reason="the study has not been run")
def test_value_is_not_worse_than_the_vote_on_any_measured_checkpoint():
    results = {name: s for name, s in json.loads(COMMITTED_JSON.read_text()).items() if name != "environment"}
    checkpoints = {path.stem for path in COMMITTED_JSON.parents[2].joinpath("checkpoints").glob("*.safetensors")}
    with_heads = {name for name in checkpoints if pyro_gram.load(name).has_heads}
    assert {"latin", "nqueens"} <= set(results) <= with_heads
    for name, study in results.items():
        assert study["inputs"] >= (100 if name == "nqueens" else 500), name  # ten rows take long
        assert study["seeds"] >= 3, name
        assert study["value"]["accuracy"] >= study["vote"]["accuracy"], name
