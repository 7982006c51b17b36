import json

import numpy as np
import pytest
from matplotlib import image

import experiments.scaling.scaling
import pyro_gram
from experiments.scaling.frontier import allowed, choose, name_of
from experiments.scaling.scaling import Study, over_seeds
from pyro_gram.diagnostics.plots.scaling import bins, envelope
from pyro_gram.sampling.rollout import rollout
from tests.experiments.test_run import cli


@pytest.fixture
def study(headed):
    solver = pyro_gram.load(headed)
    return Study(solver, solver.task.split("test"), 3, 0.6, None, lambda done: None)


def test_a_study_is_written_as_json_and_drawn(headed, tmp_path, capsys):
    words = ["--checkpoint", headed, "--out", tmp_path, "--depth", 3, "--seeds", 2, "--halt", 0.6]
    assert cli(experiments.scaling.scaling.main, *words, "--keep", tmp_path / "kept") == 0
    assert "headed: of 20 samples: one" in capsys.readouterr().out
    path = tmp_path / "headed.scaling.json"
    found = json.loads(path.read_text())
    assert list(found["width"]) == ["1", "2", "3"]
    assert list(found["width"]["3"]) == ["1", "2", "5", "10", "20"]  # no more work than 20 whole ones
    assert list(found["width"]["1"]) == ["1", "2", "5", "10", "20", "50"]
    for point in found["width"]["3"].values():
        assert point["verified"] >= max(point["vote"], point["value"])
        assert {"sample", "vote", "value", "verified", "coverage", "vote_sd"} <= point.keys()
    assert found["deterministic"]["1"] == found["deterministic"]["20"]  # flat in N, to the last digit
    assert found["halted"]["steps"] <= 3
    assert len(found["steps_by_input"]) == len(found["difficulty"]) == found["inputs"]
    assert found["difficulty_label"] == "edges"
    picture = path.with_suffix(".png")
    first = image.imread(picture)
    assert first.std() > 0.05
    picture.unlink()
    assert cli(experiments.scaling.scaling.main, "--draw", path) == 0
    assert np.array_equal(first, image.imread(picture))
    again = tmp_path / "again"
    again.mkdir()
    assert cli(experiments.scaling.scaling.main, *words, "--out", again, "--keep", tmp_path / "kept") == 0
    later = json.loads((again / "headed.scaling.json").read_text())
    assert {**later, "seconds": 0} == {**found, "seconds": 0}


def test_settings_are_chosen_on_validation_inputs_and_every_test_point_is_there(headed, tmp_path):
    words = ["--checkpoint", headed, "--out", tmp_path, "--depth", 3, "--seeds", 2, "--halt", 0.6, "--validation", 3]
    assert cli(experiments.scaling.scaling.main, *words) == 0
    found = json.loads((tmp_path / "headed.scaling.json").read_text())
    validation = found["validation"]
    assert validation["inputs"] == 3
    assert validation["chosen"] == {str(b): row for b, row in choose(validation["points"], 3).items()}
    assert found["points"].keys() == validation["points"].keys()
    for row in validation["chosen"].values():
        assert row["whole"] is not None
    for point in found["points"].values():
        assert {"work", "work_sd", "sample", "sample_sd", "coverage", "coverage_sd"} <= point.keys()
        if point["halt"] == 1:
            assert point["work"] == point["n"] * point["depth"]
            assert allowed(point["n"], point["depth"], 3)
        else:
            assert point["work"] <= point["n"] * point["depth"] * (1 + found["head_cost"]) + 1e-9


def test_halting_pays_for_its_heads(headed, tmp_path):
    words = ["--checkpoint", headed, "--out", tmp_path, "--depth", 2, "--seeds", 1, "--halt", 0.999]
    assert cli(experiments.scaling.scaling.main, *words) == 0
    found = json.loads((tmp_path / "headed.scaling.json").read_text())
    one_step = found["points"][name_of(20, 1, 0.999)]
    assert found["head_cost"] > 0
    assert one_step["work"] == pytest.approx(20 * (1 + found["head_cost"]))


def test_no_noise_is_one_answer(study):
    assert study.deterministic(1) == study.deterministic(4)


def test_spreads_do_as_much_work_as_independent_trajectories(study):
    walk = study.walk("test", 5)
    found = study.spreads(walk, seed=6)
    assert found.keys() == {"independent", "antithetic", "sobol", "distinct"}
    for n in (5, 20):
        independent = found["independent"][n]
        assert independent["work"] == pytest.approx(walk.first(n, 3).halted(0.6).steps.double().sum(0).mean().item())
        assert found["sobol"][n]["n"] == found["antithetic"][n]["n"] == n
        assert found["distinct"][n]["n"] < n
        for kind in ("antithetic", "sobol", "distinct"):
            assert found[kind][n]["work"] == pytest.approx(independent["work"], rel=0.5)


def test_what_is_judged_are_trajectories_of_the_prior_from_z0(study):
    rolled = rollout(study.solver.model, study.x, num_samples=20, depth=2, seed=4)
    walked = study.walk("test", 4).first(20, 2).halted(1)
    found, expected = study.judge(walked), study.judge(rolled)
    assert found.keys() == expected.keys()
    valid = study.solver.task.is_valid(study.x, walked.tokens)
    assert found["sample"] == valid.double().mean().item()
    assert found["verified"] == valid.any(0).double().mean().item()


def test_means_and_deviations_over_seeds():
    found = over_seeds(
        [{"a": 1.0, "n": 3, "l": [1.0, 2.0], "d": {"b": 0.0}}, {"a": 3.0, "n": 3, "l": [3.0, 2.0], "d": {"b": 4.0}}]
    )
    assert found == {"a": 2.0, "a_sd": 2**0.5, "n": 3, "l": [2.0, 2.0], "d": {"b": 2.0, "b_sd": 8**0.5}}


def test_bins_hold_every_place_once():
    for values in ([1, 1, 2, 5], list(range(1, 300))):
        for log in (False, True):
            places = bins(values, log)
            assert sorted(np.concatenate(places).tolist()) == list(range(len(values)))
            assert len(places) <= 10
    assert [p.tolist() for p in bins([1, 1, 2, 5])] == [[0, 1], [2], [3]]


def test_an_envelope_leaves_out_what_another_point_beats():
    points = [(4, 0.5), (1, 0.2), (2, 0.6), (2, 0.3), (3, 0.6), (5, 0.9)]
    assert envelope(points) == [(1, 0.2), (2, 0.6), (5, 0.9)]
    assert envelope([]) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--depth", 0], "--depth must be at least 1, not 0"),
        (["--seeds", 0], "--seeds must be at least 1"),
        (["--inputs", 0], "--inputs must be at least 1, not 0"),
        (["--validation", 0], "--validation must be at least 1, not 0"),
        (["--halt", 2], "--halt is a probability"),
        (["--draws", 3], "--draws"),
    ],
)
def test_bad_arguments_end_in_one_line(words, message, headed, capsys):
    assert cli(experiments.scaling.scaling.main, "--checkpoint", headed, *words) == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert message in err


def test_a_checkpoint_without_heads_or_a_missing_study_ends_in_one_line(plain, tmp_path, capsys):
    assert cli(experiments.scaling.scaling.main, "--checkpoint", plain) == 2
    assert "no heads to select by" in capsys.readouterr().err
    assert cli(experiments.scaling.scaling.main, "--draw", tmp_path / "nothing.json") == 2
    assert "does not exist" in capsys.readouterr().err
    (tmp_path / "other.json").write_text("{}")
    assert cli(experiments.scaling.scaling.main, "--draw", tmp_path / "other.json") == 2
    assert "is no study of this program" in capsys.readouterr().err
