import json

import pytest

from experiments import bench, bench_solve
from pyro_gram.cli import call

SMALL = {
    "task": {"vertices": 4, "train": 20, "validation": 4, "test": 4},
    "model": {"width": 16, "heads": 2, "hidden": 16, "layers": 1, "low_steps": 1},
    "train": {"batch": 8},
}


@pytest.mark.parametrize("transitions", [1, 3])
def test_both_steps_compute_the_same_loss(monkeypatch, transitions):
    size = {**SMALL, "model": {**SMALL["model"], "transitions": transitions}}
    monkeypatch.setitem(bench.SIZES, "cpu", size)
    row = bench.compare("cpu", repeats=4)
    assert row["loss"][0] == pytest.approx(row["loss"][1], rel=1e-4)
    assert row["pyro_over_torch"] > 0


def test_quick_prints_json_and_writes_it(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(bench.SIZES, "cpu", SMALL)
    assert call(bench.main, ["--quick", "--repeats", "4", "--json", "--out", str(tmp_path / "bench.json")]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "bench.json").read_text())
    assert {"pyro_over_torch", "steps", "environment"} <= set(printed)


def test_too_few_repeats_is_an_error(capsys):
    assert call(bench.main, ["--repeats", "1"]) == 2
    assert "--repeats must be at least 4" in capsys.readouterr().err


@pytest.mark.slow
def test_solving_is_timed_and_keeps_to_its_memory(tmp_path, capsys):
    assert call(bench_solve.main, ["--repeats", "1", "--inputs", "16", "--out", str(tmp_path / "solve.json")]) == 0
    found = json.loads((tmp_path / "solve.json").read_text())
    assert found == json.loads(capsys.readouterr().out)
    assert found["inputs"] == 16
    assert all(m["peak_mb"] <= m["limit_mb"] for m in found["memory"])
    assert all(seconds > 0 for seconds in found["seconds"].values())


def test_no_repeats_or_inputs_of_solving_are_an_error(capsys):
    assert call(bench_solve.main, ["--repeats", "0"]) == 2
    assert "--repeats must be at least 1" in capsys.readouterr().err
    for inputs in ("0", "256"):
        assert call(bench_solve.main, ["--inputs", inputs]) == 2
        assert "--inputs must be from 1 to the 255" in capsys.readouterr().err
