"""Test that commands that need heads say so for baselines that cannot have them, and name the alternative."""

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
def baseline(request, tmp_path):
    """The name and the checkpoint of a baseline without heads."""
    config = small_config(model_name=request.param)
    solver = build(config)
    path = tmp_path / "model.safetensors"
    save_model(path, solver)
    return request.param, path


def error_line(capsys, main, *options):
    """Run a command that must fail, and return its one line on stderr."""
    assert cli(main, *options) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "attribute" not in line
    return line


@pytest.mark.parametrize("options", ["--select value", "--halt 0.5", "--draws smc"])
def test_options_that_need_heads_name_the_model_and_the_alternative(options, baseline, tmp_path, capsys):
    name, path = baseline
    (tmp_path / "one.g6").write_text("Cr")
    line = error_line(
        capsys, experiments.solve.main, "--checkpoint", path, "--input", tmp_path / "one.g6", *options.split()
    )
    assert f"the model {name} takes no supervision steps, which halt and value heads need" in line
    assert "--select vote" in line
    assert "--heads.hidden" not in line  # heads cannot be added to this model
    assert "heads.py" not in line


def test_heads_cannot_be_added(baseline, capsys):
    name, path = baseline
    assert re.search(
        f"the model {name} takes .*: it cannot have heads",
        error_line(capsys, experiments.heads.main, "--checkpoint", path),
    )


def test_a_study_of_heads_refuses_such_a_model(baseline, tmp_path, capsys):
    name, path = baseline
    line = error_line(capsys, experiments.scaling.scaling.main, "--checkpoint", path, "--out", tmp_path / "scaling")
    assert f"the model {name} takes no supervision steps" in line


def test_a_run_trains_without_heads_and_says_so(tmp_path, capsys):
    options = ["--model", "autoregressive", "--train.batches", 1, "--train.supervision_steps", 1]
    small_options = [
        w
        for at, w in enumerate(SMALL)
        if not {"--prior.hidden", "--guide.hidden"} & set(SMALL[max(0, at - 1) : at + 1])
    ]
    assert cli(experiments.run.main, *small_options, *options, "--heads.hidden", 64, "--out", tmp_path / "run") == 0
    err = capsys.readouterr().err
    assert "the model autoregressive takes no supervision steps" in err
    assert "the model is trained and measured without heads" in err
    assert "attribute" not in err
