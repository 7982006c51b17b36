"""CONTRIBUTING.md is executed as written: its blocks make one module, and each part of it trains."""

import re

import pytest

from pyro_gram.cli import call
from tests.conftest import ROOT

TINY = ["--preset", "tiny", "--train.batches", "2", "--train.supervision_steps", "2", "--evaluate.num_samples", "2"]
COLORING = [
    "--task",
    "coloring",
    "--task.vertices",
    "4",
    "--task.train",
    "20",
    "--task.test",
    "4",
    "--task.validation",
    "4",
]


@pytest.fixture
def my_gram(tmp_path, monkeypatch):
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 5
    (tmp_path / "my_gram.py").write_text("\n\n".join(blocks))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "arguments",
    [
        [*COLORING, "--prior", "my_gram:StudentTPrior", "--train.elbo", "trace"],
        [*COLORING, "--guide", "my_gram:ResidualGuide"],
        [*COLORING, "--model", "my_gram:FlatModel"],
        ["--task", "my_gram:Completion"],
    ],
    ids=["prior", "guide", "model", "task"],
)
def test_a_users_own_part_trains_and_is_measured(my_gram, arguments):
    from experiments import run

    assert call(run.main, [*arguments, *TINY, "--out", "out"]) == 0
    assert (my_gram / "out" / "results.json").exists()


def test_a_prior_without_closed_form_says_what_to_do(my_gram, capsys):
    from experiments import run

    assert call(run.main, [*COLORING, "--prior", "my_gram:StudentTPrior", *TINY, "--out", "out"]) == 2
    assert "--train.elbo trace" in capsys.readouterr().err
