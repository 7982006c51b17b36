"""A slow machine follows the same recipe as a fast one, with fewer batches: as many as fit into the minutes."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch

from pyro_gram.build import build
from pyro_gram.errors import CheckpointError
from pyro_gram.runs.state import load_state, save_state
from pyro_gram.tasks.batches import TargetStream
from pyro_gram.training import pace
from pyro_gram.training import trainer as training
from pyro_gram.training.config import TrainConfig
from pyro_gram.training.divergence import DivergedError
from pyro_gram.training.loop import train_batches
from pyro_gram.training.pace import Pace, fit_batches, fit_to_minutes, min_batches
from pyro_gram.training.trainer import Trainer
from tests.conftest import small_config
from tests.test_checkpoint import rewrite

RECIPE = {"supervision_steps": 2, "on_policy_depth": 3, "on_policy_updates": 2, "on_policy_after": 0.6}
UPDATE, ON_POLICY = 2.0, 6.0  # seconds of an update under the guide, and of an on-policy update
FITTING_BATCHES = 7  # 7 x 4 s, plus 2 x 12 s of on-policy updates, are 52 s; 8 batches would take 68 s


class Clock:
    """A clock that moves only when an update is made: each update adds its seconds times ``factor``."""

    def __init__(self, factor):
        self.now, self.factor = 0.0, factor

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    """Return a function that installs the :class:`Clock` of a machine with the given ``factor``."""

    def start(factor):
        clock, update = Clock(factor), Trainer.update

        def slow_update(self, guide, *arguments, **keywords):
            clock.now += clock.factor * (ON_POLICY if guide is self.prior_guide else UPDATE)
            return update(self, guide, *arguments, **keywords)

        for module in (pace, training):
            monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=clock.perf_counter))
        monkeypatch.setattr(Trainer, "update", slow_update)
        return clock

    return start


def config_of(**train):
    return small_config(
        train={"batches": 50, "minutes": 1.0, **RECIPE, **train},
        optim={"min_lr_ratio": 0.1},
        beta={"silent_fraction": 0.3},
    )


def trainer_of(config):
    solver = build(config)
    stream = TargetStream(solver.task, solver.task.split("train"), config.train.batch, config.seed)
    return Trainer(solver.model, solver.guide, stream, config.train, config.optim, config.beta, config.seed)


def state_of(trainer):
    parts = {part: trainer.state_dict()[part] for part in ("weights", "average", "optimizer")}
    return {f"{part}/{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}


def have_same_state(one, other):
    a, b = state_of(one), state_of(other)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def rates_of(trainer):
    """Return a list to which every update adds its learning rate."""
    rates, check = [], trainer.divergence.check
    trainer.divergence.check = lambda record: (rates.append(record.learning_rate), check(record))[1]
    return rates


def test_a_run_on_a_slow_machine_equals_a_run_with_the_batches_that_fit_bit_for_bit(clock):
    slow_clock = clock(1.0)
    trainer = trainer_of(config_of())
    rates = rates_of(trainer)
    reports = list(train_batches(trainer))
    assert len(reports) == trainer.num_batches == FITTING_BATCHES
    assert trainer.elapsed == 52
    assert [r.on_policy is not None for r in reports] == [False] * 5 + [True] * 2
    assert [r.beta == 20.0 for r in reports] == [True] * 3 + [False] * 4
    lr = trainer.optimizer.config.lr
    assert max(rates) > 0.99 * lr
    assert rates[-1] == pytest.approx(0.1 * lr, rel=0.15)  # the schedule has reached its end
    slow_clock.factor = 0.0
    plain_trainer = trainer_of(config_of(batches=FITTING_BATCHES, minutes=0.0))
    assert [r.loss for r in train_batches(plain_trainer)] == [r.loss for r in reports]
    assert have_same_state(plain_trainer, trainer)


def test_a_fast_machine_trains_all_batches_bit_for_bit_as_without_a_limit(clock):
    clock(1e-3)
    limited_trainer, free_trainer = trainer_of(config_of(batches=6)), trainer_of(config_of(batches=6, minutes=0.0))
    assert (
        len(list(train_batches(limited_trainer)))
        == len(list(train_batches(free_trainer)))
        == limited_trainer.num_batches
        == 6
    )
    assert have_same_state(limited_trainer, free_trainer)


def test_a_machine_that_gets_slower_later_loses_nothing(clock):
    slow_clock = clock(1.0)
    trainer = trainer_of(config_of())
    reports = []
    for report in train_batches(trainer):
        slow_clock.factor = 10.0
        reports.append(report)
    assert trainer.elapsed > 120
    assert len(reports) == FITTING_BATCHES
    assert sum(r.on_policy is not None for r in reports) == 2


def test_evaluations_count_as_often_as_they_are_made(clock):
    slow_clock, calls = clock(1.0), []

    def monitor():
        calls.append(slow_clock.now)
        slow_clock.now += 5.0

    trainer = trainer_of(config_of(evaluate_every=4))
    assert fit_to_minutes(trainer, monitor)
    assert len(calls) == 2
    assert trainer.num_batches == 6  # 6 x 4 s, 2 x 12 s on-policy, 2 x 5 s of evaluation: 58 s; 7 batches take 62 s
    assert not fit_to_minutes(trainer, monitor)


def test_fitting_changes_neither_the_state_nor_the_next_draws(clock):
    clock(1.0)
    trainer, other = trainer_of(config_of()), trainer_of(config_of())
    torch.manual_seed(3)
    fit_to_minutes(trainer, lambda: torch.rand(5))
    draws = torch.rand(3)
    torch.manual_seed(3)
    assert torch.equal(draws, torch.rand(3))
    assert have_same_state(trainer, other)
    assert (trainer.number, trainer.elapsed, trainer.optimizer.num_updates) == (0, 0.0, 0)
    assert trainer.divergence.usual_loss is None


@pytest.mark.parametrize("num_trained", [0, 5])
def test_a_run_that_was_killed_keeps_its_number_of_batches_and_ends_as_the_unbroken_one(num_trained, clock, tmp_path):
    slow_clock, config, path = clock(1.0), config_of(), tmp_path / "state.safetensors"
    unbroken_trainer = trainer_of(config)
    losses = [r.loss for r in train_batches(unbroken_trainer)]
    first = trainer_of(config)
    fit_to_minutes(first)
    run = train_batches(first)
    for _ in range(num_trained):
        next(run)
    save_state(path, config, first)
    slow_clock.factor = 7.0  # the run is resumed on a slower machine
    second = trainer_of(config)
    load_state(path, config, second)
    assert second.num_batches == FITTING_BATCHES
    assert [r.loss for r in train_batches(second)] == losses[num_trained:]
    assert have_same_state(unbroken_trainer, second)


def test_a_resumed_run_of_another_length_is_fitted_to_the_minutes_left(clock, tmp_path):
    clock(1.0)
    path = tmp_path / "state.safetensors"
    first = trainer_of(config_of())
    list(train_batches(first))
    save_state(path, config_of(), first)
    longer_config = config_of(minutes=1.9)
    second = trainer_of(longer_config)
    load_state(path, longer_config, second)
    assert second.num_batches is None
    assert not second.is_finished
    reports = list(train_batches(second))
    assert second.num_batches == second.number == 7 + len(reports) == 10  # 62 s are left; a batch takes 4 + 12 = 16 s
    assert second.elapsed <= 114
    free_config = config_of(minutes=0.0, batches=20)
    third = trainer_of(free_config)
    load_state(path, free_config, third)
    assert third.num_batches == 20


@pytest.mark.parametrize("number", [-3, "many", float("nan")])
def test_an_impossible_number_of_batches_is_refused(number, clock, tmp_path):
    clock(1.0)
    path = tmp_path / "state.safetensors"
    trainer = trainer_of(config_of())
    save_state(path, config_of(), trainer)
    rewrite(path, lambda header: header["state"]["progress"].update(num_batches=number))
    with pytest.raises(CheckpointError, match="state.safetensors"):
        load_state(path, config_of(), trainer_of(config_of()))


def test_a_run_that_diverges_at_once_says_so_when_it_trains(clock):
    clock(1.0)
    trainer = trainer_of(config_of())
    with torch.no_grad():
        next(trainer.model.parameters()).fill_(math.nan)
    with pytest.warns(UserWarning, match="NaN"), pytest.raises(DivergedError, match="in batch 0, step 0"):
        list(train_batches(trainer))
    assert trainer.num_batches == 50


def test_the_number_that_fits_is_the_greatest():
    speed = Pace(batch=0.9, on_policy=0.7, monitor=2.3)
    for on_policy_depth, evaluate_every, number, elapsed in itertools.product(
        (0, 4), (1, 7, 500), (0, 5, 40), (0.0, 9.0)
    ):
        config = TrainConfig(
            batches=200,
            minutes=1.0,
            on_policy_depth=on_policy_depth,
            on_policy_after=0.8,
            evaluate_every=evaluate_every,
        )
        lengths = [speed.run_seconds(config, n, number) for n in range(number, 201)]
        assert lengths == sorted(lengths)
        fitting_counts = [n for n in range(number, 201) if speed.run_seconds(config, n, number) <= 60 - elapsed]
        count = fit_batches(speed, config, number, elapsed)
        assert count == max([*fitting_counts, number, min_batches(config)])


def test_the_on_policy_part_has_a_batch_on_the_slowest_machine_too():
    config = TrainConfig(batches=2000, minutes=15.0, on_policy_depth=16, on_policy_after=0.92)
    num_batches = fit_batches(Pace(1e6, 1e6, 1e6), config)
    assert num_batches == min_batches(config) == 13
    assert (num_batches - 1) / num_batches >= config.on_policy_after
    assert fit_batches(Pace(1e6, 1e6, 1e6), TrainConfig(batches=5, minutes=15.0, on_policy_depth=16)) == 2
    assert fit_batches(Pace(1e6, 0.0, 1e6), TrainConfig(batches=5, minutes=15.0)) == 1


def test_without_on_policy_updates_the_number_of_batches_is_the_one_computed_by_hand():
    config = TrainConfig(batches=1000, minutes=1.0, on_policy_depth=0, evaluate_every=10_000)
    assert fit_batches(Pace(0.1, 0.0, 0.0), config) == 600
    assert Pace(1.0, 100.0, 0.0).run_seconds(config, 7) == 7


def test_the_pace_is_measured_on_a_copy_that_is_not_trained(monkeypatch):
    trials, seconds = [], iter([2.0, 1.0])
    monkeypatch.setattr(pace, "_time_batches", lambda *arguments: trials.append(arguments) or next(seconds))
    speed = pace.measure_pace(trainer_of(config_of()))
    assert (speed.batch, speed.on_policy) == (2.0, 0.0)  # 0 instead of 1 - 2 = -1
    assert all(trial.optimizer.config.lr == pace.NO_LR for trial, _ in trials)
    assert trials[0][1].on_policy_depth == 0


def test_the_first_of_the_timed_batches_does_not_count(monkeypatch):
    seconds = iter([1000.0, 1.0, 2.0, 3.0])
    monkeypatch.setattr(pace, "_time_call", lambda function, clock: next(seconds))
    trainer = trainer_of(config_of())
    assert pace._time_batches(trainer, trainer.config) == 2
    assert next(seconds, None) is None
