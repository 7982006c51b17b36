import numpy as np
import pytest

import experiments.run
import experiments.sample
import experiments.solve
import pyro_gram
from pyro_gram.errors import InputError
from tests.conftest import digits_folder
from tests.experiments.small_run import SMALL, cli, results, rows

SIZES = SMALL[SMALL.index("--model.width") :]


def train(out, task, *options):
    options = ["--task", task, "--preset", "tiny", *SIZES, "--train.batches", 2, "--train.evaluate_every", 1, *options]
    assert cli(experiments.run.main, *options, "--out", out) == 0
    return out


@pytest.fixture(scope="module")
def boards(tmp_path_factory):
    """The directory of a run on whole 4x4 Sudoku boards."""
    return train(tmp_path_factory.mktemp("runs") / "boards", "sudoku_uncond")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "digits"
    sizes = {"train": 20, "validation": 4, "test": 10, "patch": 7}
    options = [word for name, value in sizes.items() for word in (f"--task.{name}", value)]
    return train(out, "mnist", *options, "--data-dir", digits_folder())


def sample(run, out, *options):
    return cli(experiments.sample.main, "--checkpoint", run, "--out", out, *options)


def test_a_run_without_input_measures_its_samples(boards):
    m = results(boards)["metrics"]
    assert (m["num_inputs"], m["num_samples"]) == (1, 5)
    assert 0 <= m["accuracy"] == m["sample_accuracy"] <= 1
    assert m["vote_accuracy"] is m["any_valid"] is None
    assert 0 <= m["coverage"] <= m["coverage_limit"] == pytest.approx(1 - (1 - 1 / 288) ** 5)
    assert m["elbo"] <= -np.log(288) + 1e-3  # no bound lies above the ELBO of a perfect model
    assert m["validity"] == m["accuracy"]
    assert 0 <= m["grids_found"] <= 5
    assert all("prior_accuracy" in row for row in rows(boards))


def test_a_run_on_images_is_measured_by_the_classifier(digits):
    m = results(digits)["metrics"]
    assert m["accuracy"] is m["coverage"] is m["violations"] is None
    assert m["frechet_distance"] > 0
    assert 1 <= m["inception_score"] <= 10
    assert {p.name for p in (digits / "figures").iterdir()} == {
        f"{name}.png" for name in ("training", "samples", "formation", "neighbours")
    }


def test_an_npz_holds_every_sample(boards, tmp_path):
    assert sample(boards, tmp_path / "new" / "a.npz", "--num-samples", 9, "--seed", 3) == 0
    with np.load(tmp_path / "new" / "a.npz") as samples:
        assert set(samples.files) == {"tokens", "score", "valid"}
        assert samples["tokens"].shape == (9, 16)
        assert samples["tokens"].max() < 4
        assert (samples["score"] <= 0).all()
        tokens = samples["tokens"]
        for board, valid in zip(tokens.reshape(9, 4, 4), samples["valid"], strict=True):
            units = [*board, *board.T, *(board[r : r + 2, c : c + 2].ravel() for r in (0, 2) for c in (0, 2))]
            assert valid == all(len(set(unit.tolist())) == 4 for unit in units)
    expected = pyro_gram.load(boards).sample(None, 9, seed=3).tokens[:, 0].numpy()
    assert (tokens == expected).all()


def test_seed_and_depth_change_the_samples(boards, tmp_path):
    files = {}
    for name, options in {"a": [], "b": [], "c": ["--seed", 1], "d": ["--depth", 1]}.items():
        assert sample(boards, tmp_path / f"{name}.npz", "--num-samples", 8, *options) == 0
        with np.load(tmp_path / f"{name}.npz") as samples:
            files[name] = samples["score"]
    assert (files["a"] == files["b"]).all()
    assert not (files["a"] == files["c"]).all()
    assert not (files["a"] == files["d"]).all()


def test_formation_keeps_every_step(boards, tmp_path):
    assert sample(boards, tmp_path / "a.npz", "--num-samples", 3, "--depth", 4, "--formation") == 0
    with np.load(tmp_path / "a.npz") as samples:
        assert samples["history"].shape == (4, 3, 16)
        assert (samples["history"][-1] == samples["tokens"]).all()


@pytest.mark.parametrize("options", [[], ["--formation"]])
def test_pictures_are_complete_files(boards, digits, tmp_path, options, capsys):
    for run in (boards, digits):
        assert sample(run, tmp_path / "a.png", "--num-samples", 5, *options) == 0
        assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
        assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
        assert "5 samples" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--out a.gif", "ending in .npz"),
        ("--out a.png --num-samples 500", "at most 400 samples"),
        ("--out a.npz --num-samples 0", "num_samples must be at least 1"),
        ("--out a.npz --depth 0", "depth must be at least 1"),
        ("--out a.npz --seed -1", "seed"),
        ("", "--out"),
    ],
)
def test_bad_arguments_end_in_one_line_and_write_nothing(options, message, boards, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli(experiments.sample.main, "--checkpoint", boards, *options.split()) == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_solve_needs_a_model_with_input_and_sample_one_without(boards, plain_checkpoint, tmp_path, capsys):
    assert sample(plain_checkpoint, tmp_path / "a.npz") == 2
    assert "use experiments/solve.py" in capsys.readouterr().err
    (tmp_path / "one.txt").write_text("1...............")
    assert cli(experiments.solve.main, "--checkpoint", boards, "--input", tmp_path / "one.txt") == 2
    assert "experiments/sample.py" in capsys.readouterr().err
    solver = pyro_gram.load(boards)
    with pytest.raises(InputError, match="without input"):
        solver.sample("1...............")
    with pytest.raises(InputError, match="at least one"):
        pyro_gram.load(plain_checkpoint).sample(None)


def test_list_split_of_p_x_prints_the_data(capsys):
    assert cli(experiments.run.main, "--task", "sudoku_uncond", "--preset", "tiny", "--list-split", "train") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(set(lines)) == 288
