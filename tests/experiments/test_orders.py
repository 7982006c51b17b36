"""Test ``orders.py``, the exact figures of lattice checkpoints, with a small untrained model."""

import pytest

from experiments.studies import orders
from pyro_gram.build import build
from pyro_gram.checkpoint import save_model
from pyro_gram.sampling.rollout import rollout
from pyro_gram.system.cli import call
from pyro_gram.system.files import read_json
from tests.conftest import small_config

QUEENS = {"size": 5, "min_queens": 1, "max_queens": 1, "validation": 4}


def test_the_exact_accuracy_is_that_of_many_samples(tmp_path, capsys):
    solver = build(small_config(model_name="lattice", task_name="nqueens", task=QUEENS, prior={"certainty": 1.0}))
    path, out = tmp_path / "lattice.safetensors", tmp_path / "orders.json"
    save_model(path, solver)
    assert call(orders.main, [str(path), "--inputs", "2", "--out", str(out)]) == 0
    (study,) = read_json(out)["checkpoints"]
    x = solver.task.split("test").subset(2).inputs
    samples = rollout(solver.model, x, num_samples=4000, depth=5, seed=1)
    share = solver.task.is_valid(x, samples.tokens).double().mean().item()
    assert study["right"] == pytest.approx(share, abs=0.005)
    assert study["gap"] == pytest.approx(study["log_p"] - study["elbo"])
    assert study["gap"] > 0
    assert study["log_p"] < study["perfect"] < 0 or study["perfect"] == 0
    assert study["steps"] == pytest.approx(5, abs=1e-4)  # the layout row leaves the row of a queen open too
    assert out.with_suffix(".md").read_text().count("\n") == 3


def test_a_model_without_lattice_is_refused(tmp_path, capsys):
    path = tmp_path / "gram.safetensors"
    save_model(path, build(small_config(task_name="nqueens", task=QUEENS)))
    assert call(orders.main, [str(path), "--out", str(tmp_path / "o.json")]) == 2
    assert "a sum over orders needs a lattice" in capsys.readouterr().err
