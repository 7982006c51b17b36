"""A baseline that can have no halt and value heads: whatever asks for them says so, and what to do instead."""

import re

import pytest

import experiments.heads
import experiments.run
import experiments.scaling.scaling
import experiments.solve
from pyro_gram.build import build
from pyro_gram.checkpoint import save_model
from pyro_gram.registry import MODELS
from tests.conftest import small_config
from tests.experiments.small_run import SMALL, cli

ONE_STEP = [name for name in MODELS.names() if not hasattr(build(small_config(model_name=name)).model, "heads")]


def test_these_are_the_baselines_without_heads():
    assert ONE_STEP == ["autoregressive", "d3pm", "direct", "mdlm", "vae"]


@pytest.fixture(params=["autoregressive", "mdlm"])
def headless(request, tmp_path):
    """The name and a checkpoint of such a baseline."""
    config = small_config(model_name=request.param)
    solver = build(config)
    path = tmp_path / "model.safetensors"
    save_model(path, solver)
    return request.param, path


def said_by(capsys, main, *words):
    """The one line that a refused command ends with."""
    assert cli(main, *words) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "attribute" not in line
    return line


@pytest.mark.parametrize("words", ["--select value", "--halt 0.5", "--draws smc"])
def test_solving_by_heads_names_the_model_and_what_needs_none(words, headless, tmp_path, capsys):
    name, path = headless
    (tmp_path / "one.g6").write_text("Cr")
    line = said_by(capsys, experiments.solve.main, "--checkpoint", path, "--input", tmp_path / "one.g6", *words.split())
    assert f"the model {name} takes no supervision steps, which halt and value heads need" in line
    assert "--select vote" in line
    assert "--heads.hidden" not in line  # it would not help
    assert "heads.py" not in line


def test_heads_cannot_be_added(headless, capsys):
    name, path = headless
    assert re.search(
        f"the model {name} takes .*: it cannot have heads",
        said_by(capsys, experiments.heads.main, "--checkpoint", path),
    )


def test_a_study_of_heads_refuses_it(headless, tmp_path, capsys):
    name, path = headless
    line = said_by(capsys, experiments.scaling.scaling.main, "--checkpoint", path, "--out", tmp_path / "scaling")
    assert f"the model {name} takes no supervision steps" in line


def test_a_run_goes_on_without_them_and_says_so(tmp_path, capsys):
    words = ["--model", "autoregressive", "--train.batches", 1, "--train.supervision_steps", 1]
    small = [
        w
        for at, w in enumerate(SMALL)
        if not {"--prior.hidden", "--guide.hidden"} & set(SMALL[max(0, at - 1) : at + 1])
    ]
    assert cli(experiments.run.main, *small, *words, "--heads.hidden", 64, "--out", tmp_path / "run") == 0
    err = capsys.readouterr().err
    assert "the model autoregressive takes no supervision steps" in err
    assert "the model is trained and measured without heads" in err
    assert "attribute" not in err
