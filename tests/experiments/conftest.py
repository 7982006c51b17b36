"""A small checkpoint without heads, and the same with them."""

import pytest

import experiments.heads
import experiments.run
from tests.experiments.small_run import SMALL, cli

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
