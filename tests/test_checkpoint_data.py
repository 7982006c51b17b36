"""Checkpoints record the data that they were made with, and can be saved at half the size."""

import shutil

import pytest
import torch

import experiments.run
from pyro_gram.checkpoint import load, save_model
from pyro_gram.errors import CheckpointError
from pyro_gram.runs.state import load_state, save_state
from pyro_gram.sampling.rollout import rollout
from tests.conftest import build_case, digits_folder, small_config
from tests.experiments.small_run import cli
from tests.test_checkpoint import trainer_of


def test_a_model_saved_at_half_the_size_is_nearly_the_same(tmp_path):
    case = build_case()
    full_path, half_path = tmp_path / "full.safetensors", tmp_path / "half.safetensors"
    save_model(full_path, case.solver)
    save_model(half_path, case.solver, half=True)
    assert half_path.stat().st_size < 0.6 * full_path.stat().st_size
    loaded_model = load(half_path).model
    assert {p.dtype for p in loaded_model.parameters()} == {torch.float32}
    for name, p in loaded_model.state_dict().items():
        torch.testing.assert_close(p, case.solver.model.state_dict()[name], rtol=1e-2, atol=1e-3)
    assert torch.isfinite(rollout(loaded_model, case.x, num_samples=2, depth=2).score).all()


def test_puzzle_numbers_of_other_data_are_refused(tmp_path, monkeypatch):
    case = build_case(task_name="arc")
    path = tmp_path / "model.safetensors"
    save_model(path, case.solver)
    assert load(path).task.provenance() == case.solver.task.provenance() != {}
    monkeypatch.setattr(case.solver.task, "provenance", lambda: {"puzzles": "other"})
    save_model(path, case.solver)
    with pytest.raises(CheckpointError, match="made with other data .puzzles: other then"):
        load(path)


def test_a_run_goes_on_with_its_own_data_only(tmp_path):
    config, path = small_config(), tmp_path / "state.safetensors"
    save_state(path, config, trainer_of(config), {"train": "a"})
    load_state(path, config, trainer_of(config), {"train": "a"})
    with pytest.raises(CheckpointError, match="made with other data .train: a then, b now"):
        load_state(path, config, trainer_of(config), {"train": "b"})


@pytest.mark.parametrize("name", ["t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_data_for_the_measurement_are_read_before_training(name, tmp_path, capsys):
    folder = tmp_path / "digits"
    shutil.copytree(digits_folder(), folder)
    (folder / name).write_bytes((folder / name).read_bytes()[:-5])
    arguments = ["--task", "mnist", "--preset", "tiny", "--task.train", 20, "--task.validation", 4, "--task.test", 10]
    arguments += ["--train.batches", 1, "--evaluate.num_samples", 2]
    code = cli(experiments.run.main, *arguments, "--data-dir", folder, "--out", tmp_path / "out")
    err = capsys.readouterr().err
    if "labels" in name:  # this measurement does not need labels
        assert code == 0
    else:
        assert (code, len(err.splitlines())) == (2, 1)
        assert name in err
        assert not (tmp_path / "out").exists()
