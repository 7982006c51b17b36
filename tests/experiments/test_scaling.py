import json

import numpy as np
import pytest
import torch
from matplotlib import image

import experiments.run
import experiments.scaling
import experiments.verdict
import pyro_gram
from experiments.scaling import Drawn, Study, over_seeds
from pyro_gram.diagnostics.scaling import bins
from pyro_gram.inference.sampling import rollout
from pyro_gram.inference.temper import TemperConfig
from tests.experiments.test_run import cli


@pytest.fixture
def quick(monkeypatch):
    for name, value in (("WIDTHS", (1, 2, 6)), ("EQUAL", (2, 4)), ("SELECTED_OF", 2), ("SHALLOW", 2)):
        monkeypatch.setattr(experiments.scaling, name, value)


@pytest.fixture
def study(headed):
    solver = pyro_gram.load(headed)
    return Study(solver, solver.task.split("test"), 3, TemperConfig(), lambda steps: None)


def test_a_study_is_written_as_json_and_drawn(headed, quick, tmp_path, capsys):
    words = ["--checkpoint", headed, "--out", tmp_path, "--depth", 3, "--seeds", 2, "--halt", 0.6]
    assert cli(experiments.scaling.main, *words) == 0
    assert "headed: of 2 samples: one" in capsys.readouterr().out
    path = tmp_path / "headed.scaling.json"
    found = json.loads(path.read_text())
    assert list(found["width"]) == ["1", "2", "3"]
    assert list(found["width"]["3"]) == ["1", "2", "6"]
    for point in found["width"]["3"].values():
        assert point["verified"] >= max(point["vote"], point["value"])
        assert {"sample", "vote", "value", "verified", "coverage", "vote_sd"} <= point.keys()
    assert found["deterministic"]["1"] == found["deterministic"]["2"]  # flat in N, to the last digit
    for depth, methods in found["compared"].items():
        for method, points in methods.items():
            if method != "halting":
                assert [p["work"] for p in points] == pytest.approx([2 * int(depth), 4 * int(depth)], rel=0.5)
    assert found["halted"]["steps"] <= 3
    assert len(found["steps_by_input"]) == len(found["difficulty"]) == found["inputs"]
    assert found["difficulty_label"] == "edges"
    picture = path.with_suffix(".png")
    first = image.imread(picture)
    assert first.std() > 0.05
    picture.unlink()
    assert cli(experiments.scaling.main, "--draw", path) == 0
    assert np.array_equal(first, image.imread(picture))


def test_steps_of_a_walk_are_those_of_a_roll_out(study):
    steps = study.walk(seed=4, n=5)
    rolled = rollout(study.solver.model, study.x, num_samples=5, depth=3, seed=4, history=True)
    for drawn, tokens in zip(steps, rolled.history, strict=True):
        assert torch.equal(drawn.tokens, tokens)
        assert ((drawn.halt >= 0) & (drawn.halt <= 1)).all()
    torch.testing.assert_close(steps[-1].value, rolled.value)


def test_halting_afterwards_takes_the_first_sure_step(study):
    steps = study.walk(seed=4, n=5)
    sure = torch.stack([drawn.halt for drawn in steps])
    halt = sure.median().item()
    drawn, when = study.halted(steps, halt)
    for n in range(5):
        for b in range(len(study.x)):
            first = next((i for i in range(3) if sure[i, n, b] >= halt), 2)
            assert when[n, b] == first + 1
            assert torch.equal(drawn.tokens[n, b], steps[first].tokens[n, b])
            assert drawn.value[n, b] == steps[first].value[n, b]


def test_weights_count_in_the_accuracy_of_a_sample(study):
    drawn = study.walk(seed=4, n=5)[-1]
    valid = study.solver.task.valid(study.x, drawn.tokens).double()
    weight = torch.zeros_like(drawn.score)
    weight[3] = 1.0
    one = study.judge(Drawn(drawn.tokens, drawn.score, drawn.value, weight=weight))
    assert one["sample"] == pytest.approx(valid[3].mean().item())
    assert study.judge(drawn)["sample"] == pytest.approx(valid.mean().item())


def test_methods_do_as_much_work(study):
    for kind in ("smc", "antithetic", "sobol", "distinct"):
        drawn, work = study.diversified(kind, n=10, depth=3, seed=1)
        assert work == pytest.approx(30, rel=0.25)
        assert len(drawn.tokens) == (10 if kind != "distinct" else round(30 / (3 + 2 * 2)))


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


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--depth", 0], "--depth must be at least 1, not 0"),
        (["--seeds", 0], "--seeds must be at least 1"),
        (["--inputs", 0], "--inputs must be at least 1, not 0"),
        (["--halt", 2], "--halt is a probability"),
        (["--width", 3], "--width"),
    ],
)
def test_bad_arguments_end_in_one_line(words, message, headed, capsys):
    assert cli(experiments.scaling.main, "--checkpoint", headed, *words) == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert message in err


def test_a_checkpoint_without_heads_or_a_missing_study_ends_in_one_line(plain, tmp_path, capsys):
    assert cli(experiments.scaling.main, "--checkpoint", plain) == 2
    assert "no heads to select by" in capsys.readouterr().err
    assert cli(experiments.scaling.main, "--draw", tmp_path / "nothing.json") == 2
    assert "does not exist" in capsys.readouterr().err
    (tmp_path / "other.json").write_text("{}")
    assert cli(experiments.scaling.main, "--draw", tmp_path / "other.json") == 2
    assert "is no study of this program" in capsys.readouterr().err
