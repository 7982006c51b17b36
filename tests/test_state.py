"""A run that is resumed from its state file equals an unbroken run, and an error names a damaged file."""

import pytest
import torch

from pyro_gram.errors import CheckpointError
from pyro_gram.runs.state import load_state, save_state
from pyro_gram.training.divergence import DivergedError
from pyro_gram.training.loop import train_batches
from tests.conftest import small_config
from tests.test_checkpoint import rewrite, state_file, trainer_of  # noqa: F401 (a fixture)

RECIPES = [
    {"beta": {"target": 1e6, "silent_fraction": 0.3}, "optim": {"hidden_optimizer": "muon"}},
    {"train": {"on_policy_depth": 5, "on_policy_after": 0.6}, "prior_name": "discrete"},
    {"model_name": "trm", "train": {"supervision_steps": 3}},  # trajectories go on from batch to batch
    {"model_name": "lattice", "task_name": "nqueens"},  # with all solutions of the trajectories' inputs
    # the guide assigns a row to each pair
    {"guide_name": "mean_field", "guide": {"num_pairs": 400}, "train": {"augment": False}},
]


def assert_equal_states(one, other):
    a, b = one.state_dict(), other.state_dict()
    assert a.keys() == b.keys()
    for part in a.keys() - {"progress"}:  # the seconds differ
        assert a[part].keys() == b[part].keys()
        for name, value in a[part].items():
            assert torch.equal(value, b[part][name]) if isinstance(value, torch.Tensor) else value == b[part][name]


@pytest.mark.parametrize("changes", RECIPES, ids=str)
def test_a_resumed_run_is_bit_for_bit_an_unbroken_one(changes, tmp_path):
    config = small_config(**{**changes, "train": {"batches": 5, **changes.get("train", {})}})
    unbroken_trainer = trainer_of(config)
    expected = [(r.number, r.loss, r.kl, r.beta, r.on_policy) for r in train_batches(unbroken_trainer)]

    first = trainer_of(config)
    run = train_batches(first)
    reports = [next(run) for _ in range(2)]
    save_state(tmp_path / "state.safetensors", config, first)
    second = trainer_of(config, perturb=1.0)  # the weights of the file replace these weights
    load_state(tmp_path / "state.safetensors", config, second)
    assert second.elapsed == first.elapsed
    reports += list(train_batches(second))

    assert [(r.number, r.loss, r.kl, r.beta, r.on_policy) for r in reports] == expected
    assert_equal_states(unbroken_trainer, second)


def test_the_state_before_an_update_that_diverges_can_be_loaded(tmp_path):
    """The state has the weights from before the diverging update. A run that resumes from it repeats the batch."""
    config = small_config()
    trainer, records = trainer_of(config), []

    def refuse(record):
        records.append(record)
        if len(records) == 4:  # the second update of the second batch
            raise DivergedError("now", record)

    trainer.divergence.check = refuse
    with pytest.raises(DivergedError):
        list(train_batches(trainer))
    save_state(tmp_path / "state.safetensors", config, trainer)
    second = trainer_of(config, perturb=1.0)
    load_state(tmp_path / "state.safetensors", config, second)
    assert_equal_states(trainer, second)
    assert [report.number for report in train_batches(second)] == [1, 2]


def test_a_state_after_more_batches_than_the_run_has_is_refused(state_file):  # noqa: F811
    config = small_config(train={"batches": 1})
    with pytest.raises(CheckpointError, match="after 2 batches, more than train.batches = 1"):
        load_state(state_file, config, trainer_of(config))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optim": {"lr": 0.5}}, r"\(optim.lr: 0.01 then, 0.5 now\)"),
        ({"train": {"balance": 0.5}}, r"train.balance"),
        ({"task": {"data_seed": 1}}, r"task.data_seed"),
        ({"guide_name": "replay"}, r"\(names.guide: amortized then, replay now\)"),
    ],
    ids=str,
)
def test_the_state_of_a_run_with_other_settings_is_refused_with_their_names(changes, message, state_file):  # noqa: F811
    config = small_config(**changes)
    with pytest.raises(CheckpointError, match=f"other settings .*{message}.* or use another --out"):
        load_state(state_file, config, trainer_of(config))


def test_a_resumed_run_may_be_longer_and_evaluated_in_another_way(state_file):  # noqa: F811
    config = small_config(
        train={"batches": 4, "minutes": 3.0, "evaluate_every": 7, "save_seconds": 1.0},
        evaluate={"depth": 9},
        temper={"scale": 2.0, "transitions": 1},
    )
    trainer = trainer_of(config)
    load_state(state_file, config, trainer)
    assert trainer.number == 2
    assert len(list(train_batches(trainer))) == 2


def test_a_state_of_the_old_layout_is_refused_in_one_sentence(state_file):  # noqa: F811
    rewrite(state_file, lambda header: header.pop("layout"))
    with pytest.raises(CheckpointError, match="has the layout .* of a training state.*finish the run with"):
        load_state(state_file, small_config(), trainer_of(small_config()))


def first_name(tensors, suffix):
    return next(name for name in tensors if name.endswith(suffix))


def progress(header):
    return header["state"]["progress"]


@pytest.mark.parametrize(
    "change",
    [
        {"change": lambda h: h.pop("config")},
        {"change": lambda h: h["config"].pop("train")},
        {"change": lambda h: h.pop("state")},
        {"change": lambda h: h["state"].update(more={"a": 1})},
        {"change": lambda h: progress(h).pop("number")},
        {"change": lambda h: progress(h).update(number=-3)},
        {"change": lambda h: progress(h).update(number="many")},
        {"change": lambda h: progress(h).update(elapsed=-1.0)},
        {"change": lambda h: progress(h).update(num_batches=-3)},
        {"change": lambda h: h["state"]["divergence"].update(usual_loss=-1.0)},
        {"change": lambda h: h["state"]["beta"].update(value="high")},
        {"change": lambda h: h["state"]["beta"].pop("value")},
        {"change": lambda h: h.update(data=3)},
        {"tensors": lambda t: t.pop("weights/model.h0")},
        {"tensors": lambda t: t.update({"weights/model.h0": t["weights/model.h0"].long()})},
        {"tensors": lambda t: t.pop("average/n_averaged")},
        {"tensors": lambda t: t.pop("optimizer/num_updates")},
        {"tensors": lambda t: t.update({"optimizer/num_updates": torch.tensor(torch.nan)})},
        {"tensors": lambda t: t.pop(first_name(t, "/exp_avg"))},
        {"tensors": lambda t: t.update({first_name(t, "/exp_avg"): torch.ones(3, 3, 3)})},
        {"tensors": lambda t: t.update({first_name(t, "/step"): torch.ones(2)})},
        {"tensors": lambda t: t.update({"optimizer/model.nothing/exp_avg": torch.ones(1)})},
        {"tensors": lambda t: t.update({"more/h": torch.ones(1)})},
        {"tensors": lambda t: t.update({"carry/h": torch.ones(1)})},
    ],
    ids=lambda change: None,
)
def test_a_damaged_training_state_is_a_checkpoint_error_that_names_the_file(change, state_file):  # noqa: F811
    rewrite(state_file, **change)
    with pytest.raises(CheckpointError, match="state.safetensors"):
        load_state(state_file, small_config(), trainer_of(small_config()))
