"""Train a run: train batches, validate between them, save, and end cleanly on a signal."""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tqdm import tqdm

from pyro_gram.runs.measure import count_trajectories, count_validation_trajectories, measure_validation
from pyro_gram.runs.run import Run
from pyro_gram.system.cli import StopOnSignal
from pyro_gram.system.files import write_json
from pyro_gram.training.config import TrainConfig
from pyro_gram.training.divergence import DivergedError
from pyro_gram.training.loop import train_batches
from pyro_gram.training.pace import fit_to_minutes, seconds_left
from pyro_gram.training.report import BatchReport

MIN_LEAK_PROGRESS = 0.25  # share of a run that must be over before a leak can be judged

Validate = Callable[[], dict[str, float]]


def validate(run: Run) -> dict[str, float]:
    """Measure the averaged weights on the validation split, and estimate how long the evaluation will take."""
    solver, phases = run.averaged_solver, run.phases
    start = time.perf_counter()
    values = measure_validation(solver, run.processes)
    seconds = (time.perf_counter() - start) / count_validation_trajectories(solver)
    phases.seconds["evaluation"] = seconds * count_trajectories(solver, with_heads="heads" in phases.sizes)
    return values


class InterruptedRunError(Exception):
    """Raised when the user has stopped the run. The run's state is saved."""

    def __init__(self, number: int, out: Path) -> None:
        super().__init__(f"stopped by signal {number}; to continue, run the same command with --resume --out {out}")
        self.exit_code = 128 + number


class CheckpointCallback:
    """Saves the state at intervals, and before a run stops. All processes call it after each batch."""

    def __init__(self, run: Run, stop: StopOnSignal) -> None:
        self.run, self.stop = run, stop
        self.last_save = time.monotonic()

    def __call__(self, force: bool = False) -> None:
        """Save if the interval is over or ``force`` is true. After a signal, save and raise InterruptedRunError."""
        is_due = time.monotonic() - self.last_save > self.run.solver.config.train.save_seconds
        signal = self._signal()
        if force or signal or self.run.processes.from_main(is_due):
            self.run.trainer.sync_clock()
            self.run.save()
            self.last_save = time.monotonic()
        if signal:
            raise InterruptedRunError(signal, self.run.out)

    def check(self) -> None:
        """Raise InterruptedRunError on a signal that came after the last save."""
        if signal := self._signal():
            raise InterruptedRunError(signal, self.run.out)

    def _signal(self) -> int:
        return int(self.run.processes.all_reduce_max(self.stop.signal or 0))


def train(run: Run, on_evaluate: Validate | None = None) -> None:
    """Train a run to its end.

    Args:
        run: a new or resumed run.
        on_evaluate: a function that is called every ``train.evaluate_every`` batches and after the last batch. It
            returns numbers that are logged with the batch. The default is :func:`validate`. If both ``train.batches``
            and ``train.minutes`` are set, a call before the first batch measures how long the function takes.

    Raises:
        InterruptedRunError: on SIGINT or SIGTERM, when the current batch has ended and the state is saved.
        DivergedError: the loss is not finite, or has exploded. ``diverged.json`` describes the update that diverged,
            and ``diverged.safetensors`` holds the state before this update.
    """
    trainer, c = run.trainer, run.solver.config.train
    on_evaluate = partial(validate, run) if on_evaluate is None else on_evaluate
    run.phases.print_plan()
    if c.compile and not trainer.is_finished:
        run.print("compiling the core, which takes a minute or so")
    log_path = run.metrics_path if run.processes.is_main else Path(os.devnull)
    with StopOnSignal() as stop, warnings.catch_warnings(), log_path.open("a", buffering=1) as log:
        warnings.filterwarnings("ignore", message="Encountered NaN")  # Pyro warns, but the run stops with an error
        checkpoint = CheckpointCallback(run, stop)
        _fit_length(run, on_evaluate, checkpoint)
        if "heads" in run.phases.sizes and run.processes.is_main and not trainer.is_finished:
            from pyro_gram.training.heads import estimate_head_seconds

            solver = run.averaged_solver
            config = solver.config
            seconds = estimate_head_seconds(
                solver.model, config.model, solver.task, config.heads, **config.head_settings
            )
            run.phases.seconds["heads"] = seconds
        first_number, start = trainer.number, trainer.elapsed
        with _progress_bar(run) as bar:
            if not trainer.is_finished:
                run.phases.remaining_text("train", seconds_left(trainer, first_number, 0.0))
            validation: dict[str, float] = {}
            has_warned = False
            for report in _batches(run):
                row = _log_row(report)
                if trainer.number % c.evaluate_every == 0 or report.is_last:
                    validation = on_evaluate()
                    row |= validation
                    can_judge = trainer.progress >= first_leak_progress(c)
                    warning = leak_warning(validation) if can_judge else ""
                    if run.processes.is_main and warning and not has_warned:
                        run.phases.print(f"batch {trainer.number}: {warning}")
                        has_warned = True
                log.write(json.dumps(row) + "\n")
                if run.processes.is_main:
                    run.remove_divergence_files()  # an earlier start of this run may have left them
                bar.update(1 if c.batches else min(round(report.seconds), round(60 * c.minutes)) - bar.n)
                train_seconds = seconds_left(trainer, first_number, report.seconds - start)
                remaining_text = run.phases.remaining_text("train", train_seconds)
                bar.set_postfix_str(remaining_text + _postfix(report, validation), refresh=False)
                checkpoint(force=report.is_last)
        checkpoint.check()


def _fit_length(run: Run, on_evaluate: Validate, checkpoint: CheckpointCallback) -> None:
    """If a new run limits both batches and minutes, lower the number of batches until they fit into the minutes."""
    trainer, c = run.trainer, run.solver.config.train
    if trainer.num_batches is None and not trainer.is_finished:
        run.print(f"timing a few batches: how many of {c.batches:,} fit into {c.minutes:g} minutes?")
    if not fit_to_minutes(trainer, monitor=on_evaluate):
        return
    run.save()  # a killed run must resume with the same number of batches
    if trainer.num_batches and trainer.num_batches < c.batches:
        run.print(
            f"this machine trains {trainer.num_batches:,} of {c.batches:,} batches in {c.minutes:g} minutes: the "
            "schedule is fitted to them (--train.minutes sets another length, and 0 trains all batches)"
        )
    checkpoint.check()


def _progress_bar(run: Run) -> tqdm:
    """Return a bar that counts batches, or seconds if the run is limited by time only."""
    trainer, c = run.trainer, run.solver.config.train
    total = trainer.num_batches or round(c.minutes * 60)
    initial = trainer.number if c.batches else round(trainer.elapsed)
    return run.phases.start("train", total, "batch" if c.batches else "s", initial)


def _batches(run: Run) -> Iterator[BatchReport]:
    """Train the batches of a run. If an update diverges, save the state before this update, and describe the update."""
    try:
        yield from train_batches(run.trainer)
    except DivergedError as e:
        run.save(run.diverged_state_path)
        if not run.processes.is_main:
            raise
        write_json(run.divergence_report_path, {**e.record.to_dict(), "last_batches": run.rows()[-20:]})
        raise DivergedError(
            f"{e}: {run.divergence_report_path} describes it, {run.diverged_state_path.name} holds the state before "
            "that update, and the last regular save is unchanged. --resume would diverge again: start a new run in "
            "another --out, with a lower --optim.lr or, if the KL has grown, a higher --beta.start",
            e.record,
        ) from None


def first_leak_progress(config: TrainConfig) -> float:
    """Return the share of a run after which a leak can be judged.

    Before that, the prior has had too little time to learn from the guide; and in a run with an on-policy part, which
    trains the prior on its own trajectories, half of this part must be over.
    """
    middle = (1 + config.on_policy_after) / 2 if config.on_policy_depth else 0.0
    return max(MIN_LEAK_PROGRESS, middle)


def leak_warning(validation: dict[str, float]) -> str:
    """Return a warning if the guide, which sees y, is right where the prior is wrong; else an empty text.

    Args:
        validation: accuracies on validation inputs.
    """
    if not {"posterior_accuracy", "prior_accuracy"} <= validation.keys():
        return ""
    from pyro_gram.diagnostics.verdicts import BAD, leak

    verdict = leak(validation["posterior_accuracy"], validation["prior_accuracy"])
    return f"the guide leaks: {verdict.value}. {verdict.meaning}" if verdict.level == BAD else ""


def _log_row(report: BatchReport) -> dict[str, float]:
    row = {
        "batch": report.number,
        "seconds": round(report.seconds, 3),
        "reconstruction": report.reconstruction,
        "kl": report.kl,
        "beta": report.beta,
    }
    return row if report.on_policy is None else row | {"on_policy": report.on_policy}


def _postfix(report: BatchReport, validation: dict[str, float]) -> str:
    text = f"loss {report.loss:.2f} kl {report.kl:.2f}"
    prior = [f"{name.removeprefix('prior_')} {v:.2f}" for name, v in validation.items() if name.startswith("prior_")]
    return text + (" | prior: " + " ".join(prior[:3]) if prior else "")
