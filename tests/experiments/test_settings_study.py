"""Test ``settings.py``, the study of settings of sampling, with small untrained models."""

from dataclasses import replace

import pytest
import torch

from experiments.studies import settings
from pyro_gram.build import build
from pyro_gram.checkpoint import save_model
from pyro_gram.config import with_settings
from pyro_gram.sampling.rollout import rollout
from pyro_gram.system.cli import call
from pyro_gram.system.files import read_json
from tests.conftest import perturb_, small_config

QUEENS = {"size": 5, "min_queens": 1, "max_queens": 1, "validation": 4}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    paths = []
    for seed in (0, 1):
        parts = {"task": QUEENS, "prior": {"certainty": 0.6}, "model": {"transitions": 1}, "temper": {"floor": 0.2}}
        config = replace(small_config(model_name="lattice", task_name="nqueens", **parts), seed=seed)
        paths.append(folder / f"{seed}.safetensors")
        solver = build(config)
        torch.manual_seed(seed)
        perturb_(solver.model, 0.2)  # so that some values are nearly certain
        save_model(paths[-1], solver)
    out = folder / "lattice.json"
    assert call(settings.main, [*map(str, paths), "--inputs", "2", "--out", str(out)]) == 0
    return read_json(out)["checkpoints"], out


def test_every_variant_does_the_work_of_twenty_samples_and_has_its_own_effect(study):
    runs, out = study
    assert len(runs) == 2
    for variants in (run["variants"] for run in runs):
        own = variants["own settings"]
        assert own["samples"] == 20
        assert variants["floor 0.2"] == variants["no sweep"] == own
        for name, row in variants.items():
            assert row["samples"] == settings.MAX_SAMPLES or row["samples"] == pytest.approx(
                20 * own["evaluations"] / row["evaluations"], abs=0.5
            )
            assert 0 <= row["coverage"] <= 1, name
            coverages = [point["coverage"] for point in row["by_count"]]
            assert coverages == sorted(coverages)
            assert row["coverage"] <= coverages[-1]
        assert variants["one token at a time"]["evaluations"] > own["evaluations"]
        assert variants["4 tokens at once"]["evaluations"] < variants["2 tokens at once"]["evaluations"]
        assert variants["four sweeps"]["samples"] < variants["one sweep"]["samples"] < 20
        assert variants["f applied once more"]["evaluations"] == pytest.approx(own["evaluations"] / 2 * 3, rel=0.2)
    assert out.with_suffix(".png").stat().st_size > 20_000
    assert out.with_suffix(".md").read_text().count("\n") == 2 + len(settings.VARIANTS)


def test_a_variant_changes_one_setting_of_the_checkpoint(monkeypatch):
    calls = []
    monkeypatch.setattr(settings, "rollout", lambda *_, **settings: calls.append(settings) or rollout(*_, **settings))
    config = small_config(model_name="lattice", task_name="nqueens", task=QUEENS, evaluate={"sweeps": 1})
    solver = build(with_settings(config, {"temper": {"floor": 0.2}}))
    puzzles = solver.task.split("validation").subset(2)
    for changes in ({}, {"floor": 0.0}, {"sweeps": 4}):
        settings.measure_variant(solver, puzzles, changes, 0.0)
    assert [(call["temper"].floor, call["sweeps"]) for call in calls] == [(0.2, 1), (0.0, 1), (0.2, 4)]


def test_a_checkpoint_without_lattice_is_refused(tmp_path, capsys):
    path = tmp_path / "gram.safetensors"
    save_model(path, build(small_config(task_name="nqueens", task=QUEENS)))
    assert call(settings.main, [str(path), "--out", str(tmp_path / "o.json")]) == 2
    assert "model 'gram' has neither a lattice nor a floor" in capsys.readouterr().err


def test_floors_and_steps_of_the_baselines_are_compared(tmp_path):
    for model, count in (("autoregressive", 7), ("mdlm", 11)):
        path, out = tmp_path / f"{model}.safetensors", tmp_path / f"{model}.json"
        solver = build(small_config(model_name=model))
        perturb_(solver.model, 0.2)
        save_model(path, solver)
        assert call(settings.main, [str(path), "--inputs", "2", "--out", str(out)]) == 0
        variants = read_json(out)["checkpoints"][0]["variants"]
        assert len(variants) == count
        assert variants["floor 0"] == variants["own settings"] != variants["floor 0.2"]
        own = variants["own settings"]["evaluations"]
        for name in settings.STEPS.keys() & variants.keys():
            assert variants[name]["samples"] == max(1, round(20 * own / variants[name]["evaluations"]))
