import errno
import io
import json
import os
import pickle
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from pyro_gram.build import build
from pyro_gram.checkpoint import load, save_model
from pyro_gram.errors import CheckpointError, UserError
from pyro_gram.runs.state import load_state, save_state
from pyro_gram.sampling.rollout import rollout
from pyro_gram.system.files import read_json, tensor_digest, write_atomically, write_bytes, write_json
from pyro_gram.tasks.batches import TargetStream
from pyro_gram.training.loop import train_batches
from pyro_gram.training.trainer import Trainer
from tests.conftest import build_case, build_small, perturb_, small_config


@cache
def model_bytes():
    case = build_case()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_model(path, case.solver)
        return path.read_bytes()


@pytest.fixture
def model_file(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(model_bytes())
    return path


def trainer_of(config, perturb=0.0):
    solver = build(config)
    perturb_(solver.model, perturb)
    stream = TargetStream(solver.task, solver.task.split("train"), config.train.batch, config.seed)
    return Trainer(solver.model, solver.guide, stream, config.train, config.optim, config.beta, config.seed)


@cache
def state_bytes():
    config = small_config()
    trainer = trainer_of(config)
    run = train_batches(trainer)
    next(run), next(run)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "state.safetensors"
        save_state(path, config, trainer)
        return path.read_bytes()


@pytest.fixture
def state_file(tmp_path):
    """Return the file of a training state that was saved after two of three batches."""
    path = tmp_path / "state.safetensors"
    path.write_bytes(state_bytes())
    return path


def rewrite(path, change=lambda header: None, tensors=lambda t: None, **metadata):
    """Write a checkpoint again, after ``change`` has edited its header and ``tensors`` has edited its tensors.

    Each argument in ``metadata`` replaces an entry of the file's metadata; None removes the entry."""
    with safe_open(path, framework="pt") as f:
        entries = f.metadata()
        contents = {key: f.get_tensor(key) for key in f.keys()}  # noqa: SIM118 (not a dict)
    header = json.loads(entries["pyro_gram"])
    change(header)
    tensors(contents)
    contents = {key: tensor.clone().contiguous() for key, tensor in contents.items()}
    if isinstance(header, dict) and "digest" in header:
        header["digest"] = tensor_digest(contents)
    entries = {**entries, "pyro_gram": json.dumps(header), **metadata}
    save_file(contents, path, {k: v for k, v in entries.items() if v is not None})


# ---- models ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guide", ["amortized", "replay"])
def test_a_loaded_model_rolls_out_as_the_saved_one(guide, tmp_path):
    case = build_case(guide_name=guide)
    path = tmp_path / "model.safetensors"
    save_model(path, case.solver)
    loaded_solver = load(path)
    assert loaded_solver.config == case.solver.config
    a, b = (rollout(m, case.x, num_samples=7, depth=3, seed=5) for m in (case.solver.model, loaded_solver.model))
    assert torch.equal(a.tokens, b.tokens)
    assert torch.equal(a.score, b.score)
    saved_weights, loaded_weights = case.solver.guide.state_dict(), loaded_solver.guide.state_dict()
    assert saved_weights.keys() == loaded_weights.keys()
    assert all(torch.equal(saved_weights[k], loaded_weights[k]) for k in saved_weights)


def test_a_loaded_model_is_ready_for_sampling_and_leaves_the_random_state_alone(model_file):
    random_state = torch.get_rng_state()
    solver = load(str(model_file))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not solver.model.training
    assert not solver.guide.training


def test_the_directory_of_a_run_is_a_checkpoint(model_file):
    assert load(model_file.parent).config == load(model_file).config


def test_an_error_names_a_missing_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint at .*nothing.safetensors"):
        load(tmp_path / "nothing.safetensors")
    with pytest.raises(CheckpointError, match="no checkpoint at .*model.safetensors"):
        load(tmp_path)


@pytest.mark.parametrize("keep", [0, 100, -1])
def test_a_truncated_checkpoint_is_refused(keep, model_file):
    data = model_file.read_bytes()
    model_file.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        load(model_file)


@pytest.mark.parametrize("data", [b"just some text\n" * 50, b"\xff" * 200, b"{}"])
def test_a_file_in_another_format_is_refused(data, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        load(path)


class _Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


@pytest.mark.parametrize("write", [pickle.dumps, None], ids=["pickle", "torch.save"])
def test_a_pickle_in_disguise_does_not_run(write, tmp_path):
    path, marker = tmp_path / "model.safetensors", tmp_path / "marker"
    if write:
        path.write_bytes(pickle.dumps(_Bomb(marker)))
        pickle.loads(path.read_bytes()).close()
    else:
        torch.save(_Bomb(marker), path)
        torch.load(io.BytesIO(path.read_bytes()), weights_only=False).close()
    assert marker.exists()  # the bomb works if it is loaded as a pickle
    marker.unlink()
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        load(path)
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        load_state(path, small_config(), trainer_of(small_config()))
    assert not marker.exists()


def test_a_foreign_safetensors_file_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.ones(2)}, path)
    with pytest.raises(CheckpointError, match="not written by pyro_gram"):
        load(path)
    save_file({"weight": torch.ones(2)}, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match="not written by pyro_gram .format 'pt'"):
        load(path)


def test_another_version_of_the_format_is_refused(model_file):
    rewrite(model_file, format="pyro_gram/999")
    with pytest.raises(CheckpointError, match="format 'pyro_gram/999'"):
        load(model_file)


@pytest.mark.parametrize("header", [None, "{", "[1]", "null"])
def test_a_damaged_header_is_a_checkpoint_error(header, model_file):
    rewrite(model_file, pyro_gram=header)
    with pytest.raises(CheckpointError, match="damaged header"):
        load(model_file)


@pytest.mark.parametrize(
    "change",
    [
        lambda h: h.pop("config"),
        lambda h: h.update(config={}),
        lambda h: h.update(config=[1]),
        lambda h: h["config"].pop("names"),
        lambda h: h["config"]["names"].update(model="grim"),
        lambda h: h["config"]["names"].update(model="pathlib:Path"),
        lambda h: h["config"]["model"].update(depth=3),
        lambda h: h["config"]["model"].update(width="16"),
        lambda h: h["config"].update(model=16),
        lambda h: h["config"].update(seed="x"),
        lambda h: h["config"]["model"].update(width=32, hidden=32),
        lambda h: h["config"]["task"].update(vertices=5),
        lambda h: h["config"]["names"].update(guide="replay"),
    ],
    ids=lambda change: None,
)
def test_a_tampered_config_is_a_checkpoint_error_that_names_the_file(change, model_file):
    rewrite(model_file, change)
    with pytest.raises(CheckpointError, match="model.safetensors"):
        load(model_file)


def test_a_checkpoint_of_an_earlier_version_is_refused_with_the_script_that_converts_it(model_file):
    rewrite(model_file, lambda h: h["config"].update(verdict=h["config"].pop("heads")))
    with pytest.raises(CheckpointError, match="earlier version: convert it with .*rewrite_headers.py"):
        load(model_file)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (lambda t: t.pop("model.h0"), "1 tensors differ, first model.h0"),
        (lambda t: t.update(stray=torch.ones(1)), "1 tensors differ, first stray"),
        (lambda t: t.update({"model.h0": torch.ones(2)}), "1 tensors differ, first model.h0"),
    ],
)
def test_weights_that_do_not_fit_their_config_are_refused(tensors, message, model_file):
    rewrite(model_file, tensors=tensors)
    with pytest.raises(CheckpointError, match=message):
        load(model_file)


def test_a_model_and_a_training_state_are_not_taken_for_each_other(model_file, state_file):
    with pytest.raises(CheckpointError, match="holds a training, not a model"):
        load(state_file)
    with pytest.raises(CheckpointError, match="holds a model, not a training"):
        load_state(model_file, small_config(), trainer_of(small_config()))


@pytest.mark.parametrize("place", [-1, -1000])
def test_a_checkpoint_whose_contents_have_changed_is_refused(place, model_file):
    data = bytearray(model_file.read_bytes())
    data[place] ^= 0xFF
    model_file.write_bytes(data)
    with pytest.raises(
        CheckpointError, match=r"safetensors is damaged: its contents have changed since it was written"
    ):
        load(model_file)


# ---- files -------------------------------------------------------------------------------------------------------


def fill_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_leaves_the_old_checkpoint_and_no_temporary_file(model_file, monkeypatch):
    old_bytes = model_file.read_bytes()
    other_solver = build_small(optim={"lr": 0.5})
    monkeypatch.setattr(os, "fsync", fill_disk)
    with pytest.raises(UserError, match="cannot write .*model.safetensors: No space left"):
        save_model(model_file, other_solver)
    assert model_file.read_bytes() == old_bytes
    assert list(model_file.parent.iterdir()) == [model_file]


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), RuntimeError("bug"), KeyboardInterrupt()])
def test_a_writer_that_fails_half_way_changes_nothing(error, tmp_path):
    path = tmp_path / "results.json"
    write_json(path, {"a": 1})

    def write_half(temporary):
        temporary.write_text("{")
        raise error

    with pytest.raises(UserError if isinstance(error, OSError) else type(error)):
        write_atomically(path, write_half)
    assert read_json(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_value_that_json_cannot_hold_changes_nothing(tmp_path):
    path = tmp_path / "results.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": torch.ones(1)})
    assert read_json(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_path_that_cannot_be_written_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="cannot write"):
        write_bytes(tmp_path / "file" / "model.safetensors", b"x")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_directory_is_a_user_error_and_keeps_its_files(model_file):
    old_bytes = model_file.read_bytes()
    model_file.parent.chmod(0o555)
    try:
        with pytest.raises(UserError, match="Permission denied"):
            write_bytes(model_file, b"x")
    finally:
        model_file.parent.chmod(0o755)
    assert model_file.read_bytes() == old_bytes


def test_missing_folders_are_made_and_the_file_is_readable_by_others(tmp_path):
    path = tmp_path / "a" / "b" / "x.json"
    write_json(path, [1])
    assert read_json(path) == [1]
    assert path.stat().st_mode & 0o777 == 0o644
