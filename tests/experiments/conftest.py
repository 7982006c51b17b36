"""A small checkpoint without heads, and the same with them."""

import pytest

import experiments.heads
import experiments.run
from tests.experiments.small_run import SMALL, cli, run

HEADS = ["--heads.hidden", 16, "--heads.rounds", 3, "--heads.trajectories", 20]


@pytest.fixture(scope="session")
def plain(tmp_path_factory):
    """A checkpoint without heads."""
    out = tmp_path_factory.mktemp("plain") / "run"
    assert cli(experiments.run.main, *SMALL, "--out", out, "--train.batches", 2, "--heads.hidden", 0) == 0
    return out / "model.safetensors"


@pytest.fixture(scope="session")
def headed(plain, tmp_path_factory):
    """The same with heads."""
    out = tmp_path_factory.mktemp("headed") / "headed.safetensors"
    assert cli(experiments.heads.main, "--checkpoint", plain, "--out", out, *HEADS) == 0
    return out


@pytest.fixture
def train(monkeypatch):
    """Run without the evaluation at the end."""

    def call(out, *words):
        with monkeypatch.context() as patch:
            patch.setattr("pyro_gram.runs.evaluate.evaluate", lambda run, half: {"metrics": {}})
            patch.setattr(experiments.run, "summary", lambda task, metrics: "trained")
            return run(out, *words)

    return call
