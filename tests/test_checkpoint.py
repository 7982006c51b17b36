import errno
import io
import json
import os
import pickle
from pathlib import Path

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
from pyro_gram.training.divergence import DivergedError
from pyro_gram.training.trainer import Trainer
from tests.conftest import build_case, build_small, perturb_, small_config
from tests.fake_device import fake_device


@pytest.fixture
def model_file(tmp_path):
    case = build_case()
    path = tmp_path / "model.safetensors"
    save_model(path, case.solver)
    return path


def trainer_of(config, perturb=0.0):
    solver = build(config)
    perturb_(solver.model, perturb)
    stream = TargetStream(solver.task, solver.task.split("train"), config.train.batch, config.seed)
    return Trainer(solver.model, solver.guide, stream, config.train, config.optim, config.beta, config.seed)


@pytest.fixture
def state_file(tmp_path):
    """The state of a run of three batches after two."""
    config = small_config()
    trainer = trainer_of(config)
    run = trainer.run()
    next(run), next(run)
    path = tmp_path / "state.safetensors"
    save_state(path, config, trainer)
    return path


def rewrite(path, change=lambda header: None, tensors=lambda t: None, **metadata):
    """Write a checkpoint again after ``change(header)`` and ``tensors(dict)``; ``metadata`` replaces whole entries."""
    with safe_open(path, framework="pt") as f:
        entries = f.metadata()
        held = {key: f.get_tensor(key) for key in f.keys()}  # noqa: SIM118 (not a dict)
    header = json.loads(entries["pyro_gram"])
    change(header)
    tensors(held)
    held = {key: tensor.clone().contiguous() for key, tensor in held.items()}
    if isinstance(header, dict) and "digest" in header:
        header["digest"] = tensor_digest(held)
    entries = {**entries, "pyro_gram": json.dumps(header), **metadata}
    save_file(held, path, {k: v for k, v in entries.items() if v is not None})


# ---- models ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guide", ["amortized", "replay"])
def test_a_loaded_model_rolls_out_as_the_saved_one(guide, tmp_path):
    case = build_case(guide_name=guide)
    path = tmp_path / "model.safetensors"
    save_model(path, case.solver)
    loaded = load(path)
    assert loaded.config == case.solver.config
    a, b = (rollout(m, case.x, num_samples=7, depth=3, seed=5) for m in (case.solver.model, loaded.model))
    assert torch.equal(a.tokens, b.tokens)
    assert torch.equal(a.score, b.score)
    saved, kept = case.solver.guide.state_dict(), loaded.guide.state_dict()
    assert saved.keys() == kept.keys()
    assert all(torch.equal(saved[k], kept[k]) for k in saved)


def test_a_loaded_model_is_ready_for_sampling_and_leaves_the_random_state_alone(model_file):
    before = torch.get_rng_state()
    loaded = load(str(model_file))
    assert torch.equal(torch.get_rng_state(), before)
    assert not loaded.model.training
    assert not loaded.guide.training


def test_the_directory_of_a_run_is_a_checkpoint(model_file):
    assert load(model_file.parent).config == load(model_file).config


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint at .*nothing.safetensors"):
        load(tmp_path / "nothing.safetensors")
    with pytest.raises(CheckpointError, match="no checkpoint at .*model.safetensors"):
        load(tmp_path)


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, -1])
def test_a_truncated_checkpoint_is_refused(keep, model_file):
    data = model_file.read_bytes()
    model_file.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        load(model_file)


@pytest.mark.parametrize("data", [b"just some text\n" * 50, b"\xff" * 200, b"{}"])
def test_a_file_that_is_no_safetensors_is_refused(data, tmp_path):
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
    assert marker.exists()  # the bomb works
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


@pytest.mark.parametrize("header", [None, "", "{", "[]", "[1]", "3", "null", '"model"'])
def test_a_damaged_header_is_a_checkpoint_error(header, model_file):
    rewrite(model_file, pyro_gram=header)
    with pytest.raises(CheckpointError, match="damaged header"):
        load(model_file)


@pytest.mark.parametrize(
    "change",
    [
        lambda h: h.pop("config"),
        lambda h: h.update(config=None),
        lambda h: h.update(config={}),
        lambda h: h["config"].pop("names"),
        lambda h: h["config"]["names"].update(model="grim"),
        lambda h: h["config"]["names"].update(model=3),
        lambda h: h["config"]["names"].update(model="pathlib:Path"),
        lambda h: h["config"]["model"].update(depth=3),
        lambda h: h["config"]["model"].update(width="16"),
        lambda h: h["config"]["model"].update(width=-16),
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


def test_a_model_is_no_training_state_and_the_other_way_round(model_file, state_file):
    with pytest.raises(CheckpointError, match="holds a training, not a model"):
        load(state_file)
    with pytest.raises(CheckpointError, match="holds a model, not a training"):
        load_state(model_file, small_config(), trainer_of(small_config()))


# ---- training states ---------------------------------------------------------------------------------------------


RECIPES = [
    {},
    {"beta": {"target": 1e6}},
    {"beta": {"target": 1e6, "silent_fraction": 0.3}},
    {"beta": {"target": 1e6, "silent_fraction": 0.7}},
    {"optim": {"hidden_optimizer": "muon"}},
    {"train": {"on_policy_depth": 5, "on_policy_after": 0.6}},
    {"model_name": "trm", "train": {"supervision_steps": 3}},  # places that go on
    {"model_name": "mdlm"},
    {"guide_name": "mean_field", "guide": {"num_pairs": 400}, "train": {"augment": False}},  # rows given on the way
    {"prior_name": "discrete"},
]


@pytest.mark.parametrize("changes", RECIPES, ids=str)
def test_a_resumed_run_is_bit_for_bit_an_unbroken_one(changes, tmp_path):
    config = small_config(**{**changes, "train": {"batches": 5, **changes.get("train", {})}})
    unbroken = trainer_of(config)
    expected = [(r.number, r.loss, r.kl, r.beta) for r in unbroken.run()]

    first = trainer_of(config)
    run = first.run()
    seen = [next(run) for _ in range(2)]
    save_state(tmp_path / "state.safetensors", config, first)
    second = trainer_of(config, perturb=1.0)  # whatever its weights were, the file's replace them
    load_state(tmp_path / "state.safetensors", config, second)
    assert second.elapsed == first.elapsed
    seen += list(second.run())

    assert [(r.number, r.loss, r.kl, r.beta) for r in seen] == expected
    for a, b in (
        (unbroken.model.state_dict(), second.model.state_dict()),
        (unbroken.guide.state_dict(), second.guide.state_dict()),
        (unbroken.average.state_dict(), second.average.state_dict()),
        (unbroken.optimizer.state_dict(), second.optimizer.state_dict()),
    ):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[k], b[k]) for k in a)
    assert unbroken.beta.get_state() == second.beta.get_state()


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("updates", [1, 2, 5, 6, 7, 8])
def test_a_run_that_stops_inside_a_batch_goes_on_bit_for_bit(updates, tmp_path):
    """Between two updates: under the guide, before the on-policy part, and within it."""
    config = small_config(
        train={
            "batches": 3,
            "supervision_steps": 3,
            "on_policy_depth": 5,
            "on_policy_updates": 3,
            "on_policy_after": 0.2,
        },
        optim={"min_lr_ratio": 0.1},  # a rate that falls
    )
    unbroken = trainer_of(config)
    expected = [(r.number, r.loss, r.on_policy) for r in unbroken.run()]

    first, left = trainer_of(config), [updates]

    def between():
        left[0] -= 1
        if not left[0]:
            raise StoppedError

    first.between = between
    seen = []
    with pytest.raises(StoppedError):
        seen += [(r.number, r.loss, r.on_policy) for r in first.run()]
    assert first.inside is not None
    save_state(tmp_path / "state.safetensors", config, first)
    second = trainer_of(config, perturb=1.0)
    load_state(tmp_path / "state.safetensors", config, second)
    torch.randn(7)  # the state of the generators is the file's
    done = second.number
    seen = expected[:done] + [(r.number, r.loss, r.on_policy) for r in second.run()]
    assert seen == expected
    for a, b in (
        (unbroken.model.state_dict(), second.model.state_dict()),
        (unbroken.average.state_dict(), second.average.state_dict()),
        (unbroken.optimizer.state_dict(), second.optimizer.state_dict()),
    ):
        assert all(torch.equal(a[k], b[k]) for k in a)
    assert unbroken.divergence.usual_loss == second.divergence.usual_loss


@pytest.mark.parametrize("number", [2, 8])
def test_the_state_saved_before_an_update_that_is_refused_is_the_one_before_its_draws(number, tmp_path):
    """Under the guide and along the prior's own trajectories: resumed, the same update is made again."""
    config = small_config(
        train={
            "batches": 3,
            "supervision_steps": 3,
            "on_policy_depth": 5,
            "on_policy_updates": 3,
            "on_policy_after": 0.2,
        }
    )
    unbroken = trainer_of(config)
    expected = [r.loss for r in unbroken.run()]
    trainer, counted = trainer_of(config), []

    def refuse(update):
        counted.append(update)
        if len(counted) == number:
            raise DivergedError("now", update)

    trainer.divergence.check = refuse
    with pytest.raises(DivergedError):
        list(trainer.run())
    save_state(tmp_path / "state.safetensors", config, trainer)
    second = trainer_of(config)
    load_state(tmp_path / "state.safetensors", config, second)
    left = expected[second.number :]
    assert [r.loss for r in second.run()] == left
    weights = (unbroken.model.state_dict(), second.model.state_dict())
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])


def test_fewer_batches_than_a_state_has_behind_it_are_refused(state_file):
    config = small_config(train={"batches": 1})
    with pytest.raises(CheckpointError, match="2 batches behind it, more than the 1 of train.batches"):
        load_state(state_file, config, trainer_of(config))


def test_the_setting_that_differs_is_named_alone(state_file):
    config = small_config(optim={"lr": 0.5})
    with pytest.raises(CheckpointError, match=r"\(optim.lr: 0.01 then, 0.5 now\)"):
        load_state(state_file, config, trainer_of(config))


@pytest.mark.parametrize(
    "changes",
    [
        {"optim": {"lr": 0.5}},
        {"train": {"balance": 0.5}},
        {"beta": {"start": 2.0}},
        {"task": {"data_seed": 1}},
        {"guide_name": "replay"},
    ],
    ids=str,
)
def test_the_state_of_a_run_with_other_settings_is_refused(changes, state_file):
    config = small_config(**changes)
    with pytest.raises(CheckpointError, match="other settings .* or use another --out"):
        load_state(state_file, config, trainer_of(config))


def test_a_run_may_be_made_longer_and_measured_otherwise(state_file):
    config = small_config(
        train={"batches": 4, "minutes": 3.0, "evaluate_every": 7, "save_seconds": 1.0},
        evaluate={"depth": 9},
        temper={"scale": 2.0, "transitions": 1},
    )
    trainer = trainer_of(config)
    load_state(state_file, config, trainer)
    assert trainer.number == 2
    assert len(list(trainer.run())) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"change": lambda h: h.pop("config")},
        {"change": lambda h: h["config"].pop("train")},
        {"change": lambda h: h.pop("number")},
        {"change": lambda h: h.pop("beta")},
        {"change": lambda h: h["beta"].pop("value")},
        {"tensors": lambda t: t.pop("weights/model.h0")},
        {"tensors": lambda t: t.pop("average/n_averaged")},
        {"tensors": lambda t: t.pop("optim/update")},
        {"tensors": lambda t: t.pop(next(k for k in t if k.endswith("/exp_avg")))},
        {"tensors": lambda t: t.update({next(k for k in t if k.endswith("/exp_avg")): torch.ones(3, 3, 3)})},
        {"tensors": lambda t: t.update({"optim/model.nothing/exp_avg": torch.ones(1)})},
    ],
    ids=lambda change: None,
)
def test_a_damaged_training_state_is_a_checkpoint_error_that_names_the_file(change, state_file):
    rewrite(state_file, **change)
    with pytest.raises(CheckpointError, match="state.safetensors"):
        load_state(state_file, small_config(), trainer_of(small_config()))


INSIDE = {"batches": 3, "supervision_steps": 3, "on_policy_depth": 5, "on_policy_updates": 3, "on_policy_after": 0.2}


@pytest.fixture
def inside_file(tmp_path):
    """The state of a run that stands after two of the three updates of its first batch."""
    trainer, left = trainer_of(small_config(train=INSIDE)), [2]

    def between():
        left[0] -= 1
        if not left[0]:
            raise StoppedError

    trainer.between = between
    with pytest.raises(StoppedError):
        list(trainer.run())
    path = tmp_path / "inside" / "state.safetensors"
    save_state(path, small_config(train=INSIDE), trainer)
    return path


def first_step(tensors):
    return next(k for k in tensors if k.endswith("/step"))


@pytest.mark.parametrize(
    "change",
    [
        {"change": lambda h: h.update(number=-3)},
        {"change": lambda h: h.update(number=float("inf"))},
        {"change": lambda h: h.update(elapsed=float("nan"))},
        {"change": lambda h: h.update(usual=float("nan"))},
        {"change": lambda h: h["beta"].update(value=float("nan"))},
        {"change": lambda h: h.update(data=None)},
        {"tensors": lambda t: t.update({"optim/update": torch.ones(3)})},
        {"tensors": lambda t: t.update({"optim/update": torch.tensor(torch.nan)})},
        {"tensors": lambda t: t.update({first_step(t): torch.ones(2)})},
        {"tensors": lambda t: t.update({"weights/model.h0": t["weights/model.h0"].long()})},
        {"tensors": lambda t: t.update({"inside/first": torch.ones(2)})},
        {"tensors": lambda t: t.update({"inside/first": torch.tensor(7)})},
        {"tensors": lambda t: t.update({"inside/h": t["inside/h"][:3]})},
        {"tensors": lambda t: t.update({"inside/h": t["inside/h"][..., :3], "inside/l": t["inside/l"][..., :3]})},
        {"tensors": lambda t: t.update({"inside/cpu": t["inside/cpu"][:9]})},
        {"tensors": lambda t: t.update({"inside/cpu": t["inside/cpu"].float()})},
        {"tensors": lambda t: t.update({"inside/terms": torch.ones(2)})},
        {"tensors": lambda t: t.update({"inside/terms": torch.ones(9, 2)})},
        {"tensors": lambda t: t.update({"inside/seen": torch.ones(9)})},
        {"tensors": lambda t: t.pop("inside/first")},
        {"tensors": lambda t: t.update({"places/h": t["inside/h"]})},
    ],
    ids=lambda change: None,
)
def test_a_tampered_state_within_a_batch_is_a_checkpoint_error(change, inside_file):
    rewrite(inside_file, **change)
    config = small_config(train=INSIDE)
    with pytest.raises(CheckpointError, match="state.safetensors"):
        load_state(inside_file, config, trainer_of(config))


@pytest.mark.filterwarnings(
    "ignore:for .* copying from a non-meta parameter"
)  # the device of the test calls itself meta
def test_a_batch_begun_on_another_device_names_the_device(inside_file):
    config = small_config(train=INSIDE)
    trainer = trainer_of(config)
    with fake_device() as device:
        trainer.model.to(device)
        with pytest.raises(CheckpointError, match=r"within a batch on cpu.*resume with --device cpu"):
            load_state(inside_file, config, trainer)


@pytest.mark.parametrize("place", [-1, -1000])
def test_a_checkpoint_whose_contents_have_changed_is_refused(place, model_file):
    data = bytearray(model_file.read_bytes())
    data[place] ^= 0xFF
    model_file.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"safetensors is damaged: its contents are not those that were written"):
        load(model_file)


# ---- files -------------------------------------------------------------------------------------------------------


def fill_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_leaves_the_old_checkpoint_and_no_temporary_file(model_file, monkeypatch):
    before = model_file.read_bytes()
    other = build_small(optim={"lr": 0.5})
    monkeypatch.setattr(os, "fsync", fill_disk)
    with pytest.raises(UserError, match="cannot write .*model.safetensors: No space left"):
        save_model(model_file, other)
    assert model_file.read_bytes() == before
    assert list(model_file.parent.iterdir()) == [model_file]


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), RuntimeError("bug"), KeyboardInterrupt()])
def test_a_writer_that_fails_half_way_changes_nothing(error, tmp_path):
    path = tmp_path / "results.json"
    write_json(path, {"a": 1})

    def half(temporary):
        temporary.write_text("{")
        raise error

    with pytest.raises(UserError if isinstance(error, OSError) else type(error)):
        write_atomically(path, half)
    assert read_json(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_value_that_is_no_json_changes_nothing(tmp_path):
    path = tmp_path / "results.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": torch.ones(1)})
    assert read_json(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="cannot write"):
        write_bytes(tmp_path / "file" / "model.safetensors", b"x")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_directory_is_a_user_error_and_keeps_its_files(model_file):
    before = model_file.read_bytes()
    model_file.parent.chmod(0o555)
    try:
        with pytest.raises(UserError, match="Permission denied"):
            write_bytes(model_file, b"x")
    finally:
        model_file.parent.chmod(0o755)
    assert model_file.read_bytes() == before


def test_missing_folders_are_made_and_the_file_is_readable_by_others(tmp_path):
    path = tmp_path / "a" / "b" / "x.json"
    write_json(path, [1])
    assert read_json(path) == [1]
    assert path.stat().st_mode & 0o777 == 0o644
