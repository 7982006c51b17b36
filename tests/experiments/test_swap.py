"""Test that a prior, guide or model can be swapped by name, trained and measured, and used to solve a puzzle."""

import json

import pytest

from experiments import run, solve
from pyro_gram.build import build
from pyro_gram.checkpoint import save_model
from pyro_gram.diagnostics.inference_data import load
from pyro_gram.system.cli import call
from tests.conftest import small_config

SIZES = {"vertices": 4, "edge_probability": 0.4, "train": 20, "validation": 4, "test": 4}
TASK = ["--task", "coloring", "--preset", "tiny", *(w for k, v in SIZES.items() for w in (f"--task.{k}", str(v)))]
SHORT_RUN = ["--train.batches", "4", "--evaluate.num_samples", "3", "--heads.hidden", "0"]
FROM_THE_GUIDE = {"posterior", "posterior_predictive", "log_likelihood", "sample_stats"}


@pytest.mark.parametrize(
    ("options", "has_posterior"),
    [
        ("--model mdlm", False),
        pytest.param("--model vae", True, marks=pytest.mark.slow),
        pytest.param("--prior discrete", True, marks=pytest.mark.slow),
        pytest.param("--prior none", False, marks=pytest.mark.slow),
        pytest.param("--guide mean_field", True, marks=pytest.mark.slow),
    ],
)
def test_a_swapped_part_is_trained_measured_and_solves(options, has_posterior, tmp_path, capsys):
    assert call(run.main, [*TASK, *SHORT_RUN, *options.split(), "--out", str(tmp_path / "run")]) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert 0 <= results["metrics"]["sample_accuracy"] <= 1
    assert ("log_likelihood_prior_mc" in results["metrics"]) == ("mdlm" not in options)
    groups = {name.strip("/") for name in load(tmp_path / "run" / "inference.nc").groups()} - {""}
    assert {"prior_predictive", "observed_data"} <= groups
    assert groups & FROM_THE_GUIDE == (FROM_THE_GUIDE if has_posterior else set())
    assert ("kl" in results["metrics"]) == (results["metrics"]["posterior_accuracy"] is not None) == has_posterior
    report = (tmp_path / "run" / "report.html").read_text()
    assert "Can its answers be trusted?" in report
    assert ("Can its guide be trusted?" in report) == has_posterior
    (tmp_path / "graph").write_text("CF\n")
    capsys.readouterr()
    assert call(solve.main, ["--checkpoint", str(tmp_path / "run"), "--input", str(tmp_path / "graph"), "--json"]) == 0
    answers = json.loads(capsys.readouterr().out)
    assert sum(s["count"] for s in answers["solutions"]) == answers["num_samples"]


def test_a_model_of_one_step_goes_no_deeper(tmp_path, capsys):
    out = tmp_path / "model.safetensors"
    save_model(out, build(small_config(model_name="direct")))
    (tmp_path / "graph").write_text("CF\n")
    options = ["--checkpoint", str(out), "--input", str(tmp_path / "graph"), "--depth", "8"]
    assert call(solve.main, options) == 2
    assert "answers in one supervision step: depth must be 1, not 8" in capsys.readouterr().err


@pytest.mark.slow
def test_heads_of_a_trm_whose_answers_are_drawn_let_it_halt(tmp_path, capsys):
    out = tmp_path / "run"
    options = ["--model", "trm", "--model.decoding", "sampled", "--train.batches", "2", "--evaluate.num_samples", "2"]
    assert call(run.main, [*TASK, *options, "--out", str(out)]) == 0
    assert json.loads((out / "results.json").read_text())["head_parameters"] > 0
    (tmp_path / "graph").write_text("CF\n")
    options = ["--checkpoint", str(out), "--input", str(tmp_path / "graph"), "--halt", "0.01", "--json"]
    capsys.readouterr()
    assert call(solve.main, options) == 0
    assert json.loads(capsys.readouterr().out)["solutions"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--prior none --guide amortized", "leaves nothing to infer"),
        ("--model direct --prior gaussian", "has no guidance"),
        ("--guide mean_field --guide.num_pairs 3", "room for 3 pairs (x, y), and the training split has"),
        ("--guide mean_field --train.augment true", "set train.augment to false"),
        ("--prior flow --guide residual", "needs the mean of the prior"),
        ("--prior discrete --guide.max_kl 1", "max_kl needs a Gaussian prior"),
    ],
)
def test_parts_that_do_not_fit_are_refused_before_training(options, message, tmp_path, capsys):
    out = tmp_path / "run"
    assert call(run.main, [*TASK, *SHORT_RUN, *options.split(), "--out", str(out)]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "train:" not in err
    assert not (out / "metrics.jsonl").exists()
