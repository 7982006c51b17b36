import json

import numpy as np
import pytest
from matplotlib import image

import experiments.scaling.scaling
import pyro_gram
from experiments.scaling.frontier import choose_points, is_within_work, point_name
from experiments.scaling.scaling import OTHER_SCHEMES, CheckpointStudy, over_seeds
from pyro_gram.build import build
from pyro_gram.diagnostics.plots.scaling import bins, envelope
from pyro_gram.sampling.rollout import rollout
from tests.conftest import small_config
from tests.experiments.small_run import cli


@pytest.fixture
def study(heads_checkpoint):
    solver = pyro_gram.load(heads_checkpoint)
    return CheckpointStudy(solver, solver.task.split("test"), 3, 0.6, None, lambda count: None)


@pytest.fixture(scope="module")
def written_study(heads_checkpoint, tmp_path_factory):
    """The JSON of a study, its path, and the options of the command."""
    folder = tmp_path_factory.mktemp("scaling")
    options = ["--checkpoint", heads_checkpoint, "--depth", 2, "--seeds", 2, "--halt", 0.6, "--validation", 3]
    options += ["--inputs", 3, "--keep", folder / "cache"]
    assert cli(experiments.scaling.scaling.main, *options, "--out", folder) == 0
    path = folder / "with_heads.scaling.json"
    return json.loads(path.read_text()), path, options


def test_a_study_measures_samples_by_depth_number_and_threshold(written_study):
    results, _, _ = written_study
    assert list(results["width"]) == ["1", "2"]
    assert list(results["width"]["2"]) == ["1", "2", "5", "10", "20"]  # N = 50 and 100 need more work than the limit
    assert list(results["width"]["1"]) == ["1", "2", "5", "10", "20"]
    for point in results["width"]["2"].values():
        assert point["verified"] >= max(point["vote"], point["value"])
        assert {"sample", "vote", "value", "verified", "coverage", "vote_sd"} <= point.keys()
    assert results["deterministic"]["1"] == results["deterministic"]["20"]  # without noise, metrics do not depend on N
    assert results["halted"]["steps"] <= 2
    assert len(results["steps_by_input"]) == len(results["difficulty"]) == results["inputs"] == 3
    assert results["difficulty_label"] == "edges"


def test_the_figure_is_drawn_again_from_the_json(written_study):
    _, path, _ = written_study
    picture = path.with_suffix(".png")
    first = image.imread(picture)
    assert first.std() > 0.05
    picture.unlink()
    assert cli(experiments.scaling.scaling.main, "--draw", path) == 0
    assert np.array_equal(first, image.imread(picture))


def test_points_are_chosen_on_validation_inputs_and_all_are_measured_on_test_inputs(written_study):
    results, _, _ = written_study
    validation = results["validation"]
    assert validation["inputs"] == 3
    assert validation["chosen"] == {str(b): row for b, row in choose_points(validation["points"], 2).items()}
    assert results["points"].keys() == validation["points"].keys()
    for row in validation["chosen"].values():
        assert row["whole"] is not None
    for point in results["points"].values():
        assert {"work", "work_sd", "sample", "sample_sd", "coverage", "coverage_sd"} <= point.keys()
        if point["halt"] == 1:
            assert point["work"] == point["n"] * point["depth"]
            assert is_within_work(point["n"], point["depth"], 2)
        else:
            assert point["work"] <= point["n"] * point["depth"] * (1 + results["head_cost"]) + 1e-9


def test_the_work_of_halting_includes_the_heads(written_study):
    results, _, _ = written_study
    one_step = results["points"][point_name(20, 1, 0.6)]
    assert results["head_cost"] > 0
    assert one_step["work"] == pytest.approx(20 * (1 + results["head_cost"]))


def test_a_study_repeats_from_its_cache(written_study, tmp_path, monkeypatch, capsys):
    results, _, options = written_study
    monkeypatch.setattr("experiments.scaling.trajectories._roll_chunk", None)
    assert cli(experiments.scaling.scaling.main, *options, "--out", tmp_path) == 0
    assert "with_heads: of 20 samples: one" in capsys.readouterr().out
    repeated_results = json.loads((tmp_path / "with_heads.scaling.json").read_text())
    assert {**repeated_results, "seconds": 0} == {**results, "seconds": 0}


def test_no_noise_is_one_answer(study):
    assert study.deterministic(1) == study.deterministic(4)


@pytest.mark.parametrize("names", [{"prior_name": "discrete"}, {"model_name": "lattice"}])
def test_schemes_for_gaussian_priors_are_left_out_for_others(names):
    solver = build(small_config(**names))
    study = CheckpointStudy(solver, solver.task.split("test"), 3, 0.6, None, lambda count: None)
    assert [kind for kind in OTHER_SCHEMES if study.can_draw(kind)] == ["distinct"]


def test_draw_schemes_do_as_much_work_as_independent_trajectories(study):
    trajectories = study.record_trajectories("test", 5)
    results = study.by_draw_scheme(trajectories, seed=6)
    assert results.keys() == {"independent", "antithetic", "sobol", "distinct"}
    for n in (5, 20):
        independent = results["independent"][n]
        assert independent["work"] == pytest.approx(
            trajectories.first(n, 3).halted(0.6).steps.double().sum(0).mean().item()
        )
        assert results["sobol"][n]["n"] == results["antithetic"][n]["n"] == n
        assert results["distinct"][n]["n"] < n
        for kind in ("antithetic", "sobol", "distinct"):
            assert results[kind][n]["work"] == pytest.approx(independent["work"], rel=0.5)


def test_the_measured_samples_are_trajectories_of_the_prior_from_z0(study):
    samples = rollout(study.solver.model, study.x, num_samples=20, depth=2, seed=4)
    trajectories = study.record_trajectories("test", 4).first(20, 2).halted(1)
    results, expected = study.measure(trajectories), study.measure(samples)
    assert results.keys() == expected.keys()
    valid = study.solver.task.is_valid(study.x, trajectories.tokens)
    assert results["sample"] == valid.double().mean().item()
    assert results["verified"] == valid.any(0).double().mean().item()


def test_means_and_deviations_over_seeds():
    results = over_seeds(
        [{"a": 1.0, "n": 3, "l": [1.0, 2.0], "d": {"b": 0.0}}, {"a": 3.0, "n": 3, "l": [3.0, 2.0], "d": {"b": 4.0}}]
    )
    assert results == {"a": 2.0, "a_sd": 2**0.5, "n": 3, "l": [2.0, 2.0], "d": {"b": 2.0, "b_sd": 8**0.5}}


def test_bins_contain_every_index_once():
    for values in ([1, 1, 2, 5], list(range(1, 300))):
        for log in (False, True):
            places = bins(values, log)
            assert sorted(np.concatenate(places).tolist()) == list(range(len(values)))
            assert len(places) <= 10
    assert [p.tolist() for p in bins([1, 1, 2, 5])] == [[0, 1], [2], [3]]


def test_an_envelope_leaves_out_points_that_another_one_beats():
    corners = [(4, 0.5), (1, 0.2), (2, 0.6), (2, 0.3), (3, 0.6), (5, 0.9)]
    assert envelope(corners) == [(1, 0.2), (2, 0.6), (5, 0.9)]
    assert envelope([]) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--depth", 0], "--depth must be at least 1, not 0"),
        (["--seeds", 0], "--seeds must be at least 1"),
        (["--inputs", 0], "--inputs must be at least 1, not 0"),
        (["--validation", 0], "--validation must be at least 1, not 0"),
        (["--halt", 2], "--halt is a probability"),
        (["--draws", 3], "--draws"),
    ],
)
def test_bad_arguments_end_in_one_line(options, message, heads_checkpoint, capsys):
    assert cli(experiments.scaling.scaling.main, "--checkpoint", heads_checkpoint, *options) == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert message in err


def test_a_checkpoint_without_heads_or_a_missing_study_ends_in_one_line(plain_checkpoint, tmp_path, capsys):
    assert cli(experiments.scaling.scaling.main, "--checkpoint", plain_checkpoint) == 2
    assert "no heads to select by" in capsys.readouterr().err
    assert cli(experiments.scaling.scaling.main, "--draw", tmp_path / "nothing.json") == 2
    assert "does not exist" in capsys.readouterr().err
    (tmp_path / "other.json").write_text("{}")
    assert cli(experiments.scaling.scaling.main, "--draw", tmp_path / "other.json") == 2
    assert "was not written by this program" in capsys.readouterr().err
