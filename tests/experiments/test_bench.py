import json
from dataclasses import replace

import pytest
import torch

from experiments.bench import bench, bench_solve, bench_steps
from pyro_gram.errors import UserError
from pyro_gram.system.cli import call

SMALL = {
    "task": {"vertices": 6, "train": 20, "validation": 4, "test": 4},
    "model": {"width": 16, "heads": 4, "hidden": 16, "layers": 1, "low_steps": 1},
    "train": {"batch": 8},
}


@pytest.fixture
def _small_sizes(monkeypatch):
    for name in ("cpu", "cells"):
        monkeypatch.setitem(bench_steps.SIZES, name, ("coloring", SMALL))


@pytest.mark.parametrize("transitions", [1, 3])
def test_both_steps_compute_the_same_loss(monkeypatch, transitions):
    size = {**SMALL, "model": {**SMALL["model"], "transitions": transitions}}
    monkeypatch.setitem(bench_steps.SIZES, "cpu", ("coloring", size))
    row = bench_steps.compare("cpu", repeats=4)
    assert len({round(loss, 3) for loss in row["loss"]}) == 3  # each update changes the weights, and so the loss
    assert row["pyro_over_torch"] > 0
    assert row["positions"] == 6
    # On an idle machine a step is slower than its products, and the fraction is below 1. On a busy machine other
    # processes may slow the products down more than the step.
    assert row["roofline_fraction"] == pytest.approx(row["gflops"] / row["machine_gflops"], rel=0.5)


MISTAKES = {
    "kl_divergence": lambda q, p: 0 * q.loc,
    "scale_gradient": lambda distribution, _: distribution,
    "Categorical": lambda **options: torch.distributions.Categorical(logits=1.01 * options["logits"]),
}


@pytest.mark.usefixtures("_small_sizes")
@pytest.mark.parametrize("name", [*MISTAKES, "clip"])
def test_steps_that_differ_are_not_compared(monkeypatch, name):
    if name == "clip":
        true_step = bench_steps.torch_step

        def without_clipping(trainer, x, y):
            trainer.optimizer.config = replace(trainer.optimizer.config, clip=1e6)
            return true_step(trainer, x, y)

        monkeypatch.setattr(bench_steps, "torch_step", without_clipping)
    else:
        monkeypatch.setattr(bench_steps, name, MISTAKES[name])
    with pytest.raises(UserError, match="the two steps disagree"):
        bench_steps.check_same_updates("cpu")


def test_the_products_of_a_step_are_all_counted():
    with bench_steps.Products() as products:
        a, b = torch.randn(3, 4), torch.randn(4, 5)
        a @ b
        a @ b
        torch.bmm(torch.randn(2, 3, 4), torch.randn(2, 4, 3))
        torch.nn.functional.linear(a, b.T, torch.zeros(5))
    assert sorted(products.operand_counts.values()) == [
        1,
        3,
    ]  # linear() multiplies a by b.T.T, which has the strides of b: its product counts as a third a @ b
    products.replay()()


@pytest.mark.usefixtures("_small_sizes")
def test_quick_prints_json_and_writes_it(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(
        bench, "memory", lambda _: {"4": 10.0, "64": 11.0}
    )  # the real bench.memory starts a process, which takes seconds
    assert call(bench.main, ["--quick", "--repeats", "4", "--json", "--out", str(tmp_path / "bench.json")]) == 0
    first = json.loads(capsys.readouterr().out)
    assert first == json.loads((tmp_path / "bench.json").read_text())
    targets = {"pyro_over_torch", "roofline_fraction", "memory_ratio_n_sup", "width20_over_width1"}
    assert targets | {"steps", "sampling", "environment"} <= set(first)
    assert first["memory_ratio_n_sup"] == pytest.approx(1.1)
    monkeypatch.setattr(bench, "memory", lambda _: {"4": 10.0, "64": 12.0})
    assert call(bench.main, ["--only", "memory", "--out", str(tmp_path / "bench.json")]) == 0
    second = json.loads((tmp_path / "bench.json").read_text())
    assert second["memory_ratio_n_sup"] == pytest.approx(1.2)
    assert second["steps"] == first["steps"]  # --only keeps the results of the other parts
    (tmp_path / "bench.json").write_text(json.dumps(second | {"environment": {"processor": "another"}}))
    assert call(bench.main, ["--only", "memory", "--out", str(tmp_path / "bench.json")]) == 2
    assert "was measured on another machine or version" in capsys.readouterr().err


@pytest.mark.usefixtures("_small_sizes")
def test_growth_is_a_power_of_each_size(monkeypatch):
    monkeypatch.setattr(bench, "CHANNELS", (16, 32))
    monkeypatch.setattr(bench, "LENGTHS", (16, 24))
    results = bench.growth(repeats=4)
    assert {"16", "32"} == set(results["D"]["seconds"])
    assert {"16", "24"} == set(results["L"]["seconds"])
    assert all(-1 < results[axis]["power"] < 4 for axis in "DLN")
    seconds = {"1": {"median": 1.0}, "4": {"median": 8.0}}
    assert bench.power(seconds, "1", "4") == pytest.approx(1.5)


def test_too_few_repeats_is_an_error(capsys):
    assert call(bench.main, ["--repeats", "1"]) == 2
    assert "--repeats must be at least 4" in capsys.readouterr().err


@pytest.mark.slow
def test_memory_does_not_grow_with_the_supervision_steps():
    peak_mb = bench.memory("edge")
    # 64 steps are 16 times as many as 4 steps. The allocator causes some growth.
    assert peak_mb["64"] < 2 * peak_mb["4"]


@pytest.mark.slow
def test_solving_is_timed_and_keeps_to_its_memory(tmp_path, capsys):
    assert call(bench_solve.main, ["--repeats", "1", "--inputs", "16", "--out", str(tmp_path / "solve.json")]) == 0
    results = json.loads((tmp_path / "solve.json").read_text())
    assert results == json.loads(capsys.readouterr().out)
    assert results["inputs"] == 16
    assert all(m["peak_mb"] <= m["limit_mb"] for m in results["memory"])
    assert all(seconds > 0 for seconds in results["seconds"].values())


def test_no_repeats_or_inputs_of_solving_are_an_error(capsys):
    assert call(bench_solve.main, ["--repeats", "0"]) == 2
    assert "--repeats must be at least 1" in capsys.readouterr().err
    for inputs in ("0", "761"):
        assert call(bench_solve.main, ["--inputs", inputs]) == 2
        assert "--inputs must be from 1 to the 760" in capsys.readouterr().err
