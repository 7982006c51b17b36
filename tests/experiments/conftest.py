"""Fixtures: a small checkpoint without heads, the same one with heads, and a training command without evaluation."""

import pytest

import experiments.heads
import experiments.run
from tests.experiments.small_run import SMALL, cli, run

HEADS = ["--heads.hidden", 16, "--heads.rounds", 3, "--heads.trajectories", 20]


@pytest.fixture(scope="session")
def plain_checkpoint(tmp_path_factory):
    """A checkpoint without heads."""
    out = tmp_path_factory.mktemp("run") / "run"
    assert cli(experiments.run.main, *SMALL, "--out", out, "--train.batches", 2, "--heads.hidden", 0) == 0
    return out / "model.safetensors"


@pytest.fixture(scope="session")
def heads_checkpoint(plain_checkpoint, tmp_path_factory):
    """The checkpoint of ``plain_checkpoint``, with heads added."""
    out = tmp_path_factory.mktemp("heads") / "with_heads.safetensors"
    assert cli(experiments.heads.main, "--checkpoint", plain_checkpoint, "--out", out, *HEADS) == 0
    return out


@pytest.fixture
def train(monkeypatch):
    """Return a function that runs the training command without the evaluation at its end."""

    def call(out, *options):
        with monkeypatch.context() as patch:
            patch.setattr("pyro_gram.runs.evaluate.evaluate", lambda run, half: {"metrics": {}})
            patch.setattr(experiments.run, "summary", lambda task, metrics: "trained")
            return run(out, *options)

    return call
