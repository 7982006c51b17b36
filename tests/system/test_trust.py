"""A file can name a class outside pyro_gram. The code of that class runs only if the user trusts the file."""

import sys

import pytest

import pyro_gram
from experiments import diagnose, heads, run, sample, solve
from experiments.scaling import scaling
from experiments.studies import amortization, filtering, selection
from pyro_gram.checkpoint import load, save_model
from pyro_gram.config import RunConfig
from pyro_gram.errors import CheckpointError, ConfigError
from pyro_gram.presets import read_preset
from pyro_gram.runs.run import check_same_settings
from pyro_gram.runs.state import load_state
from pyro_gram.system.cli import call
from pyro_gram.system.files import read_json, write_json
from tests.conftest import build_case, small_config
from tests.experiments.small_run import SMALL, cli
from tests.test_checkpoint import model_file, rewrite, state_file, trainer_of  # noqa: F401 (fixtures)

MY_PRIOR = "from pyro_gram.models.priors.gaussian import GaussianPrior\n\nclass Mine(GaussianPrior):\n    pass\n"
PARTS = ("task", "model", "prior", "guide")


@pytest.fixture
def working_directory(tmp_path, monkeypatch):
    """Make a working directory with two modules. The module ``evil`` writes a file when it is imported."""
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "evil.py").write_text("open('ran', 'w').close()\nclass Prior: pass\n")
    (folder / "mine.py").write_text(MY_PRIOR)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield folder
    for name in ("evil", "mine"):
        sys.modules.pop(name, None)


def name_evil(path, part="prior"):
    rewrite(path, lambda header: header["config"]["names"].update({part: "evil:Prior"}))


def read_error(capsys):
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1, err
    return err


@pytest.mark.parametrize("part", PARTS)
def test_a_checkpoint_runs_no_code_that_it_names(part, working_directory, model_file, monkeypatch):  # noqa: F811
    monkeypatch.syspath_prepend(working_directory)  # as in a Python session, whose working directory is on the path
    name_evil(model_file, part)
    with pytest.raises(CheckpointError, match=rf"its {part} is 'evil:Prior', which would import the module 'evil'"):
        pyro_gram.load(model_file)
    with pytest.raises(CheckpointError, match="trust_code=True"):
        load(model_file)
    assert "evil" not in sys.modules
    assert not (working_directory / "ran").exists()


SCRIPTS = {
    solve: [],
    sample: ["--out", "x.npz"],
    diagnose: [],
    scaling: [],
    heads: ["--heads.hidden", 8],
    selection: ["--out", "x.json"],
    filtering: ["--out", "x.json"],
    amortization: ["--out", "x.json"],
}


@pytest.mark.parametrize("program", SCRIPTS, ids=lambda program: program.__name__)
def test_every_program_refuses_untrusted_code(program, working_directory, model_file, capsys):  # noqa: F811
    name_evil(model_file)
    arguments = ["--checkpoint", model_file, *SCRIPTS[program]]
    assert cli(program.main, *arguments) == 2
    expected = "would import the module 'evil' and run its code: if you trust it, add --trust-code"
    assert expected in read_error(capsys)
    assert not (working_directory / "ran").exists()
    assert str(working_directory) not in sys.path
    assert cli(program.main, *arguments, "--trust-code") == 2  # the code ran; evil.Prior has no Config
    assert "has no attribute Config" in read_error(capsys)
    assert (working_directory / "ran").exists()


def test_a_trusted_checkpoint_with_a_users_prior_solves_puzzles(working_directory, tmp_path, capsys):
    sys.path.append(str(working_directory))
    case = build_case(prior_name="mine:Mine")
    path = tmp_path / "model.safetensors"
    save_model(path, case.solver)
    assert type(pyro_gram.load(path, trust_code=True).model.prior).__name__ == "Mine"
    with pytest.raises(CheckpointError, match="trust"):
        pyro_gram.load(path)  # still an error, although the module is already imported
    sys.path.remove(str(working_directory))
    del sys.modules["mine"]
    (working_directory / "graphs").write_text("CF\n")
    arguments = ["--checkpoint", path, "--input", "graphs", "--num-samples", 2, "--json"]
    assert cli(solve.main, *arguments, "--trust-code") == 0
    assert cli(solve.main, *arguments) == 2


def test_a_saved_state_runs_no_code_that_it_names(working_directory, state_file, monkeypatch):  # noqa: F811
    monkeypatch.syspath_prepend(working_directory)
    name_evil(state_file)
    config = small_config()
    with pytest.raises(CheckpointError, match=r"names.prior: evil:Prior then, gaussian now"):
        load_state(state_file, config, trainer_of(config))
    assert not (working_directory / "ran").exists()


def test_a_runs_folder_runs_no_code_that_it_names(working_directory, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(working_directory)
    config = small_config()
    data = config.to_dict()
    data["names"]["guide"] = "evil:Prior"
    write_json(tmp_path / "config.json", data)
    with pytest.raises(ConfigError, match="begun with other settings"):
        check_same_settings(tmp_path, config, "--runs")
    with pytest.raises(ConfigError, match="its guide is 'evil:Prior'"):
        RunConfig.from_dict(read_json(tmp_path / "config.json"))
    assert not (working_directory / "ran").exists()


def test_a_users_prior_in_the_working_directory_trains_and_resumes(working_directory, tmp_path, capsys):
    settings = [*SMALL, "--train.batches", 2, "--evaluate.inputs", 2, "--heads.rounds", 1, "--out", tmp_path / "run"]
    arguments = [*settings, "--prior", "mine:Mine"]
    assert cli(run.main, *arguments) == 0
    assert cli(run.main, *arguments, "--resume") == 0
    assert "is over, at batch" in capsys.readouterr().err
    assert cli(run.main, *settings, "--resume") == 2
    assert "names.prior: mine:Mine then, gaussian now" in read_error(capsys)


def test_a_preset_runs_no_code_that_it_names(working_directory, tmp_path):
    sys.path.append(str(working_directory))
    (tmp_path / "coloring.toml").write_text('[cpu]\n[cpu.names]\nprior = "evil:Prior"\n')
    with pytest.raises(ConfigError, match="preset 'cpu' names the prior 'evil:Prior', whose module would be imported"):
        read_preset(tmp_path, "coloring", "cpu")
    assert not (working_directory / "ran").exists()


def test_the_working_directory_is_on_the_path_only_if_a_dotted_name_is_given(working_directory):
    sys.path[:] = [p for p in sys.path if p not in ("", str(working_directory))]
    assert call(run.main, ["--task", "coloring", "--list-split", "test", "--preset", "tiny"]) == 0
    assert str(working_directory) not in sys.path
    assert cli(run.main, *SMALL, "--prior", "evil:Prior") == 2
    assert str(working_directory) in sys.path
    assert (working_directory / "ran").exists()
