"""Test the study ``amortization.py`` on a small checkpoint."""

import json

import pytest

from experiments.studies import amortization
from pyro_gram.system.cli import call

SMALL = ["--inputs", "4", "--depth", "2"]


def test_a_guide_fitted_to_its_pairs_has_a_higher_bound_than_the_trained_one(plain_checkpoint, tmp_path):
    out = tmp_path / "study.json"
    assert (
        call(amortization.main, ["--checkpoint", str(plain_checkpoint), *SMALL, "--updates", "50", "--out", str(out)])
        == 0
    )
    study = json.loads(out.read_text())
    bounds = study["bounds"]
    assert study["amortization_gap"]["mean"] > 0
    assert study["amortization_gap"]["mean"] == pytest.approx(
        bounds["copy"]["elbo"]["mean"] - bounds["guide"]["elbo"]["mean"], abs=1e-4
    )
    for kind in bounds.values():
        assert kind["elbo"]["mean"] <= kind["iwae"]["mean"]
    assert set(bounds) == {"guide", "copy", "mean_field"}
    assert bounds["copy"]["elbo"]["mean"] < study["log_p_prior_mc"]["mean"] + 3 * study["log_p_prior_mc"]["se"]


def test_a_study_without_updates_is_an_error(plain_checkpoint, tmp_path, capsys):
    assert (
        call(amortization.main, ["--checkpoint", str(plain_checkpoint), "--updates", "0", "--out", str(tmp_path / "s")])
        == 2
    )
    assert "--updates must be at least 1" in capsys.readouterr().err
