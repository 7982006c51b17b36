"""A run prints its phases, a bar for each phase, and an estimate of the time until its end."""

import re
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import experiments.run
from pyro_gram.runs.evaluate import evaluate
from pyro_gram.runs.run import open_run
from pyro_gram.runs.train import train, validate
from pyro_gram.system.progress import Phases, format_duration
from pyro_gram.training.config import TrainConfig
from pyro_gram.training.heads import estimate_head_seconds
from pyro_gram.training.pace import Pace, seconds_left
from tests.conftest import build_case, small_config
from tests.experiments.small_run import SMALL, cli

HEADS = {"hidden": 16, "attention_heads": 2, "layers": 1, "rounds": 3, "trajectories": 16}
HEAD_OPTIONS = [word for name, value in HEADS.items() for word in (f"--heads.{name}", value)]


def open_new(config, out):
    return open_run(config, out, resume=False, data_dir=None, device=torch.device("cpu"))


def terminal(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)


# ---- the estimate ------------------------------------------------------------------------------------------------


def test_the_estimate_is_the_rest_of_this_phase_and_the_later_phases(capsys):
    phases = Phases({"train": "4 batches", "heads": "2 rounds", "evaluation": "8 samples"})
    assert phases.remaining_seconds("train", 100.0) is None  # no phase has been measured
    phases.seconds["evaluation"] = 30.0
    assert phases.remaining_text("train", 100.0) == ""  # the heads have not been measured
    assert phases.remaining_seconds("heads", 5.0) == 35.0
    phases.seconds["heads"] = 60.0
    assert phases.remaining_seconds("train", None) is None
    assert phases.remaining_text("train", 100.0) == "all ends in 03:10 | "
    assert phases.remaining_text("train", 40.0) == "all ends in 02:10 | "
    assert phases.remaining_text("evaluation", 5.0) == ""  # the bar of the last phase shows this time anyway
    assert capsys.readouterr().err == (
        "about 03:10 from now in all: train 01:40, heads 01:00, evaluation 00:30; figures and the report come on top\n"
    )


def test_a_single_phase_and_silent_phases_print_nothing(capsys):
    single = Phases({"train": ""})
    assert single.remaining_text("train", 3.0) == ""
    single.start("train", 3, "batch")
    silent = Phases({"train": "a", "evaluation": "b"}, silent=True)
    silent.seconds["evaluation"] = 1.0
    silent.print_plan()
    silent.start("train", 3, "batch")
    assert silent.remaining_text("train", 3.0) == "all ends in 00:04 | "
    assert capsys.readouterr().err == ""


def test_long_durations_are_printed_with_hours():
    assert (format_duration(827.4), format_duration(8027)) == ("13:47", "2:13:47")


def trainer_at(number, batches, pace=None, **config):
    config = TrainConfig(batches=batches, **config)
    return SimpleNamespace(config=config, pace=pace, number=number, num_batches=None, elapsed=90.0)


def test_the_rest_of_training_is_estimated_from_the_pace_so_far():
    assert seconds_left(trainer_at(0, 10), 0, 0.0) is None
    assert seconds_left(trainer_at(4, 10), 0, 8.0) == 12.0
    assert seconds_left(trainer_at(4, 10), 2, 8.0) == 24.0  # the run was resumed at batch 2
    assert seconds_left(trainer_at(10, 10), 0, 8.0) == 0.0
    assert seconds_left(trainer_at(5, 0, minutes=2.0), 0, 90.0) == 30.0


def test_the_rest_of_training_allows_for_the_slower_on_policy_part():
    c = {"on_policy_depth": 16, "on_policy_after": 0.5, "evaluate_every": 100, "pace": Pace(1.0, 3.0, 0.0)}
    assert seconds_left(trainer_at(0, 10, **c), 0, 0.0) == 25.0
    assert seconds_left(trainer_at(5, 10, **c), 0, 10.0) == 40.0  # 5 batches took 10 s, twice the measured time


# ---- what is measured --------------------------------------------------------------------------------------------


def test_the_time_of_heads_is_measured_on_a_copy():
    solver = build_case(heads=HEADS).solver
    state = torch.get_rng_state()
    before = {name: p.clone() for name, p in solver.model.state_dict().items()}
    assert estimate_head_seconds(solver.model, solver.config.model, solver.task, solver.config.heads, depth=2) > 0
    assert torch.equal(torch.get_rng_state(), state)
    assert solver.model.heads is None
    assert all(torch.equal(p, before[name]) for name, p in solver.model.state_dict().items())


def test_the_time_of_heads_is_that_of_all_rounds(monkeypatch):
    solver = build_case(heads=HEADS).solver
    ticks = iter(range(100))
    monkeypatch.setattr("pyro_gram.training.heads.time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    assert (
        estimate_head_seconds(solver.model, solver.config.model, solver.task, solver.config.heads, depth=2)
        == HEADS["rounds"]
    )


def test_the_time_of_the_evaluation_is_estimated_from_the_pace_of_a_validation(tmp_path, monkeypatch):
    with open_new(small_config(heads=HEADS, evaluate={"num_samples": 5}), tmp_path / "run") as run:
        ticks = iter((10.0, 16.0))
        monkeypatch.setattr("pyro_gram.runs.train.time", SimpleNamespace(perf_counter=lambda: next(ticks)))
        validate(run)
        validation_trajectories = 4 * 5 + 4  # each of 4 inputs has 5 samples and one bound
        # The numbers of trajectories: samples and halted samples; bounds; histories; likelihoods.
        evaluation_trajectories = 2 * 4 * 5 + 4 + 4 * 6 + 4 * 100
        assert run.phases.seconds["evaluation"] == pytest.approx(
            6.0 / validation_trajectories * evaluation_trajectories
        )


@pytest.mark.parametrize(
    "changes",
    [
        {"heads": HEADS},
        {"model_name": "autoregressive"},
        {"model_name": "mdlm"},
        pytest.param({"task_name": "sudoku_uncond"}, marks=pytest.mark.slow),
        pytest.param({"task_name": "arc", "heads": HEADS}, marks=pytest.mark.slow),
        {"task_name": "coloring", "evaluate": {"inputs": 2, "num_samples": 3}},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_the_bar_of_the_evaluation_ends_at_100_percent(changes, tmp_path, monkeypatch, capsys):
    terminal(monkeypatch)
    with open_new(small_config(**changes), tmp_path / "run") as run:
        evaluate(run)
    stderr = capsys.readouterr().err
    *_, last = re.findall(r"(\d)/(\d) evaluation: +(\d+)% (\d+)/(\d+) ", stderr)
    assert last[0] == last[1]
    assert last[2] == "100"
    assert last[3] == last[4]


# ---- a run -------------------------------------------------------------------------------------------------------


def test_a_log_has_a_line_for_each_phase_and_one_estimate_and_no_bars(tmp_path, capsys):
    arguments = [*SMALL, *HEAD_OPTIONS, "--train.batches", 4, "--train.evaluate_every", 2, "--out", tmp_path / "run"]
    assert cli(experiments.run.main, *arguments) == 0
    err = capsys.readouterr().err
    time = r"(\d\d:)?\d\d:\d\d"
    expected = [
        r"phases: 1/3 train \(4 batches\), 2/3 heads \(3 rounds\), 3/3 evaluation \(4 inputs x 5 samples\)",
        r"1/3 train: 4 batches",
        rf"about {time} from now in all: train {time}, heads {time}, evaluation {time}; figures and the report .*",
        rf"2/3 heads: 3 rounds, about {time}",
        rf"3/3 evaluation: 4 inputs x 5 samples, about {time}",
        r"drawing figures and writing the report",
    ]
    lines = err.splitlines()
    assert len(lines) == len(expected)
    for line, pattern in zip(lines, expected, strict=True):
        assert re.fullmatch(pattern, line), line
    assert "\r" not in err


def test_the_estimate_comes_before_the_first_batch_if_the_pace_is_measured(tmp_path, capsys):
    arguments = [*SMALL, *HEAD_OPTIONS, "--train.batches", 6, "--train.minutes", 1, "--out", tmp_path / "run"]
    arguments += ["--train.evaluate_every", 100000]
    assert cli(experiments.run.main, *arguments) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("phases: 1/3 train (up to 6 batches in 1 minutes), ")
    at = next(i for i, line in enumerate(lines) if line.startswith("1/3 train: up to 6 batches"))
    assert re.match(r"about .* from now in all: train .*, heads .*, evaluation ", lines[at + 1])


def test_a_terminal_has_a_bar_for_each_phase_with_the_time_to_the_end_of_all_phases(tmp_path, monkeypatch, capsys):
    terminal(monkeypatch)
    arguments = [*SMALL, *HEAD_OPTIONS, "--train.batches", 4, "--train.evaluate_every", 2, "--out", tmp_path / "run"]
    assert cli(experiments.run.main, *arguments) == 0
    bars = capsys.readouterr().err
    assert re.search(r"1/3 train: 100%.* 4/4 .*all ends in \d\d:\d\d \| loss", bars)
    assert re.search(r"2/3 heads: 100%.* 3/3 .*all ends in \d\d:\d\d \| loss", bars)
    assert re.search(r"3/3 evaluation: 100%", bars)


def test_the_estimate_changes_no_weight(tmp_path):
    config = small_config(heads=HEADS)
    ends = []
    for name in ("estimated", "plain"):
        torch.manual_seed(5)
        with open_new(config, tmp_path / name) as run:
            train(run, None if name == "estimated" else dict)
            ends.append({k: v.clone() for k, v in run.trainer.average.state_dict().items()})
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(v, ends[1][k]) for k, v in ends[0].items())


def test_a_model_without_heads_has_two_phases(tmp_path, capsys):
    config = small_config(model_name="autoregressive", heads=HEADS)
    with open_new(replace(config, seed=3), tmp_path / "run") as run:
        capsys.readouterr()
        run.phases.print_plan()
    assert capsys.readouterr().err.startswith("phases: 1/2 train (3 batches), 2/2 evaluation (4 inputs x ")
