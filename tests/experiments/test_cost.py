"""Test ``cost.py``, which counts the floating-point operations of a run."""

import pytest
import torch

from experiments.bench import cost
from pyro_gram.runs.run import open_run
from pyro_gram.runs.train import train
from pyro_gram.system.cli import call
from pyro_gram.system.files import read_json
from tests.conftest import small_config

NEW = {"resume": False, "data_dir": None, "device": torch.device("cpu")}


def test_the_cost_of_a_run_is_its_batches_times_the_operations_of_one(tmp_path, capsys):
    runs = []
    for width in (16, 32):
        config = small_config(model={"width": width, "layers": 1}, train={"batches": 3, "supervision_steps": 2})
        with open_run(config, tmp_path / str(width), **NEW) as run:
            train(run)
        runs.append(str(run.out))
    out = tmp_path / "cost.json"
    assert call(cost.main, [*runs, "--out", str(out)]) == 0
    small, large = read_json(out)["runs"]
    assert small["batches"] == 3
    assert small["pflop"] == pytest.approx(3 * small["gflop_of_a_batch"] / 1e6)
    assert small["tflops"] == pytest.approx(1e3 * small["pflop"] / (small["hours"] * 3600))
    assert small["share"] == pytest.approx(small["tflops"] / small["tflops_of_products"])
    assert 2 < large["gflop_of_a_batch"] / small["gflop_of_a_batch"] < 4.5  # products grow by 4, attention by 2
    assert out.with_suffix(".md").read_text().count("\n") == 4


def test_a_run_without_batches_is_refused(tmp_path, capsys):
    with open_run(small_config(), tmp_path / "run", **NEW) as run:
        pass
    assert call(cost.main, [str(run.out), "--out", str(tmp_path / "o.json")]) == 2
    assert "has trained no batch yet" in capsys.readouterr().err
