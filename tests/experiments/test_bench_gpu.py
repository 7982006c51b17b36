import json

import pytest
import torch

from experiments.bench import bench_gpu
from experiments.bench.bench_steps import random_batch
from pyro_gram.presets import read_preset
from pyro_gram.spec import TaskSpec
from pyro_gram.system.cli import call


@pytest.mark.parametrize("task", ["coloring", pytest.param("sudoku_uncond", marks=pytest.mark.slow)])
def test_each_precision_of_a_preset_is_timed(monkeypatch, tmp_path, task):
    monkeypatch.setattr(bench_gpu, "REPEATS", 1)
    monkeypatch.setattr(bench_gpu, "UPDATES", 2)
    out = tmp_path / "gpu.json"
    assert call(bench_gpu.main, ["--preset", "tiny", "--tasks", task, "--eager", "--out", str(out)]) == 0
    results = json.loads(out.read_text())
    rows = results["tasks"][task]["ways"]
    assert [row["precision"] for row in rows] == ["fp32", "bf16"]
    assert all(row["updates_per_second"] > 0 and row["tflops"] > 0 for row in rows)
    assert rows[0]["loss"] == pytest.approx(rows[1]["loss"], rel=0.5)
    config = read_preset(bench_gpu.PRESETS, task, "tiny")
    updates = config.train.batches * config.train.supervision_steps
    assert results["tasks"][task]["updates_of_the_run"] == updates
    hours = updates / rows[0]["updates_per_second"] / 3600
    assert rows[0]["hours_of_the_run"] == pytest.approx(hours)


def test_the_cost_of_exchanging_gradients_is_computed_from_measured_times(tmp_path, capsys):
    way = {"precision": "bf16", "compiled": True, "update_ms": 80.0}
    slow = {"precision": "fp32", "compiled": False, "update_ms": 90.0}
    results = {"preset": "tiny", "tasks": {"coloring": {"ways": [slow, way, {"precision": "tf32", "compiled": False}]}}}
    (tmp_path / "gpu.json").write_text(json.dumps(results))
    assert call(bench_gpu.main, ["--shared", str(tmp_path / "gpu.json"), "--processes", "4"]) == 0
    *_, row = capsys.readouterr().out.splitlines()
    assert "80 ms (bf16, compiled) | 20.0 ms" in row  # four GPUs: a quarter of the shortest time
    assert row.count(" x |") == 3
    assert call(bench_gpu.main, ["--shared", str(tmp_path / "gpu.json"), "--processes", "1"]) == 2
    assert call(bench_gpu.main, []) == 2
    assert "give --out FILE" in capsys.readouterr().err


def test_random_batches_have_the_shapes_of_a_task():
    spec = TaskSpec(6, 3, 5, 4, 7)
    x, y = random_batch(spec, 2, torch.device("cpu"))
    assert x.shape == (2, 6, 3)
    assert y.shape == (2, 4)
    assert random_batch(TaskSpec(6, None, 0, 4, 7), 2, torch.device("cpu"))[0] is None


def test_a_missing_device_is_an_error(tmp_path, capsys):
    if torch.cuda.is_available():
        pytest.skip("there is one here")
    assert call(bench_gpu.main, ["--device", "cuda", "--out", str(tmp_path / "gpu.json")]) == 2
    assert "--device cuda cannot be used" in capsys.readouterr().err
