"""Test the study ``fresh.py`` with committed checkpoints on a few inputs."""

from statistics import mean

import pytest
import torch

import pyro_gram
from experiments.studies import fresh
from pyro_gram.system.cli import call
from pyro_gram.system.files import read_json

SMALL = ["--inputs", "3", "--seeds", "2"]


def test_fresh_inputs_are_measured_once_and_without_halting(tmp_path, monkeypatch):
    out = tmp_path / "fresh.json"
    monkeypatch.setattr(fresh, "NUM_SAMPLES", 4)
    assert call(fresh.main, ["--checkpoints", "coloring8", *SMALL, "--out", str(out)]) == 0
    study = read_json(out)["coloring8"]
    solver = pyro_gram.load(fresh.CHECKPOINTS / "coloring8.safetensors")
    puzzles = solver.task.fresh_inputs(3, study["data_seed"])
    for seed, draw in enumerate(study["draws"]):
        samples = solver.sample(puzzles.inputs, fresh.NUM_SAMPLES, seed=100_000 * (seed + 1), halt=1.0)
        assert (samples.steps == solver.config.depth).all()
        is_right = solver.task.is_valid(puzzles.inputs, samples.tokens).double()
        assert draw["sample_accuracy"] == pytest.approx(is_right.mean().item())
        assert draw["accuracy"] == pytest.approx(is_right[0].mean().item())
    assert len(study["draws"]) == 2
    assert study["mean"]["coverage"] == pytest.approx(mean(draw["coverage"] for draw in study["draws"]))
    monkeypatch.setattr(fresh, "measure_checkpoint", lambda *_: pytest.fail("measured again"))
    assert call(fresh.main, ["--checkpoints", "coloring8", *SMALL, "--out", str(out)]) == 0
    assert read_json(out)["coloring8"] == study


def test_queens_are_taken_from_the_part_of_the_test_split_that_no_run_is_measured_on():
    solver = pyro_gram.load(fresh.CHECKPOINTS / "nqueens10.safetensors")
    puzzles, description = fresh.fresh_puzzles(solver, 5, data_seed=1)
    test = solver.task.split("test")
    assert description == "test inputs 1,001 to 1,005"
    assert torch.equal(puzzles.inputs, test.inputs[1000:1005])
    assert torch.equal(puzzles.solutions_of(4), test.solutions_of(1004))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--checkpoints", "nqueens8"], "the task nqueens makes no fresh inputs"),
        (["--checkpoints", "chess"], "no committed checkpoint 'chess'"),
        (["--inputs", "0"], "--inputs must be at least 1, not 0"),
        (["--seeds", "1"], "--seeds must be at least 2, not 1"),
    ],
)
def test_bad_arguments_end_in_one_line(options, message, tmp_path, capsys):
    assert call(fresh.main, [*options, "--out", str(tmp_path / "fresh.json")]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
