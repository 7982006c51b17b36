"""Test ``filtering.py``, which compares a particle filter with trajectories that are weighted only at their end."""

import json

import pytest
import torch

import experiments.studies.filtering as filtering
import pyro_gram
from experiments.scaling.scaling import SEED, CheckpointStudy
from pyro_gram.sampling.smc import SMCConfig, smc, to_rollout
from tests.conftest import StateHeads
from tests.experiments.small_run import cli


@pytest.fixture
def study(heads_checkpoint):
    """The study of a model whose heads give different trajectories different values."""
    solver = pyro_gram.load(heads_checkpoint)
    solver.model.heads = StateHeads(200.0)
    return CheckpointStudy(solver, solver.task.split("test"), 4, 0.9, None, lambda count: None)


def test_a_study_says_how_often_each_filter_resampled(heads_checkpoint, tmp_path, capsys):
    out = tmp_path / "filtering.json"
    earlier_results = {"coloring": json.loads(filtering.OUT.read_text())["coloring"]}
    out.write_text(json.dumps(earlier_results))
    assert cli(filtering.main, "--checkpoint", heads_checkpoint, "--out", out, "--seeds", 2) == 0
    assert "with_heads: tuned to {'potential':" in capsys.readouterr().out
    study_json = json.loads(out.read_text())
    assert study_json["coloring"] == earlier_results["coloring"]  # results of earlier checkpoints stay in the file
    results = study_json["with_heads"]
    filters = [tuple(pair["settings"].values()) for pair in results["tried"]]
    assert ("value", 1.0, 0.5) in filters  # the default filter
    assert max(threshold for _, _, threshold in filters) == 0.9
    assert max(power for _, power, _ in filters) > 1
    assert {potential for potential, _, _ in filters} == {"value", "halt"}
    for pair in results["tried"]:
        assert 0 <= pair["filtered"]["resampled"] <= 1
        assert 1 <= pair["filtered"]["least_ess"] <= 20.01
        assert pair["reweighted"].keys() == {"sample", "coverage"}
    assert results["tuned"] == filtering.best_filter(results["tried"])
    assert results["weighed"] == filtering.best_weights(results["tried"])
    assert list(results["test"]) == [str(d) for d in sorted({results["short"], results["depth"]})]
    for rows in results["test"].values():
        assert list(rows) == ["independent", "filtered", "reweighted", "weighed"]
        assert {"sample", "sample_sd", "coverage"} <= rows["reweighted"].keys()
        assert {"resampled", "resampled_sd"} <= rows["filtered"].keys()


def test_reweighted_once_is_the_filter_that_never_resamples(study):
    """A filter with threshold 0 never resamples, so it gives the same result as trajectories weighted at their end."""
    test = filtering.Filtering(study, "test", SEED)
    test.seed = SEED - 5000  # the filter adds 5000, so it draws with the seed of the recorded trajectories
    particles = smc(
        study.solver.model, study.x, num_samples=20, depth=4, seed=SEED, config=SMCConfig(power=4, threshold=0)
    )
    assert not particles.is_resampled.any()
    # 100 trajectories are recorded, so their draws differ from the filter's: use the filter's trajectories instead.
    test.trajectories = filtering.Trajectories(
        *(
            part[None].repeat(4, *[1] * part.dim())
            for part in (particles.tokens, particles.score, particles.value, particles.value)
        )
    )
    config = SMCConfig(power=4.0, threshold=0.0)
    weighted, filtered = test.reweighted(4, config), test.filtered(4, config)
    assert weighted == {name: filtered[name] for name in weighted}
    assert filtered["resampled"] == 0
    tokens = to_rollout(particles, 4, test.seed).tokens
    assert weighted["sample"] == study.solver.task.is_valid(study.x, tokens).double().mean().item()


def test_a_tuned_filter_resamples_where_the_usual_one_does_not(study):
    test = filtering.Filtering(study, "test", SEED)
    shares = [
        test.filtered(4, SMCConfig("value", power, threshold))["resampled"]
        for power, threshold in ((0.01, 0.5), (4.0, 0.9))
    ]
    assert shares[0] == 0
    assert shares[1] > 0.2


def pair(name, filtered, reweighted, resampled):
    parts = {"filtered": {**filtered, "resampled": resampled}, "reweighted": reweighted}
    return {"settings": name, **parts}


def point(sample, coverage):
    return {"sample": sample, "coverage": coverage}


def test_the_most_accurate_filter_is_taken_and_the_weights_that_are_worth_most():
    pairs = [
        pair("usual", point(0.9, 0.9), point(0.5, 0.5), 0.0),
        pair("hard", point(0.95, 0.4), point(0.95, 0.7), 0.6),
        pair("harder", point(0.95, 0.3), point(0.96, 0.5), 0.7),
    ]
    assert filtering.best_filter(pairs) == "hard"
    assert filtering.best_weights(pairs) == "hard"
    assert filtering.best_weights(pairs[::2]) == "harder"


def test_bad_arguments_end_in_one_line(heads_checkpoint, plain_checkpoint, tmp_path, capsys):
    out = ["--out", tmp_path / "filtering.json"]
    assert cli(filtering.main, "--checkpoint", heads_checkpoint, "--seeds", 0, *out) == 2
    assert "--seeds must be at least 1, not 0" in capsys.readouterr().err
    assert cli(filtering.main, "--checkpoint", plain_checkpoint, *out) == 2
    assert "no heads to filter by" in capsys.readouterr().err


def test_weights_count(study):
    test = filtering.Filtering(study, "test", SEED)
    tokens = test.trajectories.tokens[-1]
    valid = study.solver.task.is_valid(study.x, tokens)
    weight = torch.zeros(tokens.shape[:2])
    weight[3] = 1.0
    assert test.measure(tokens, weight)["sample"] == valid[3].double().mean().item()
    assert test.independent(4)["sample"] == valid.double().mean().item()


def test_filters_are_tuned_where_trajectories_are_short():
    assert [filtering.tuning_depth(full_depth) for full_depth in (2, 6, 16, 32)] == [2, 3, 4, 8]
