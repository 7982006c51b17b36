"""A run: its directory and its training. ``experiments/run.py`` is its command line; ``evaluate.py`` measures it."""

from __future__ import annotations

import errno
import json
import os
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

from pyro_gram.inference.contract import guide_traits
from pyro_gram.build import build
from pyro_gram.checkpoint import load_training, save_training
from pyro_gram.solver import Solver
from pyro_gram.system.cli import StopOnSignal
from pyro_gram.config import RunConfig
from pyro_gram.diagnostics.verdicts import BAD, leak
from pyro_gram.system.distributed import SINGLE_PROCESS, ProcessGroup, check_batch
from pyro_gram.errors import ConfigError, UserError
from pyro_gram.runs.evaluate import check_ready, check_rolls, rehearse
from pyro_gram.system.files import MAX_CSV_BYTES, read_json, remove_unfinished_files, write_bytes, write_json, write_atomically
from pyro_gram.runs.heads import check_heads, seconds_of_heads, takes_heads
from pyro_gram.training.divergence import DivergedError
from pyro_gram.training.pace import seconds_left
from pyro_gram.inference.sites import why_no_heads
from pyro_gram.training.trainer import BatchReport, Trainer
from pyro_gram.system.machine import revision
from pyro_gram.runs.monitor import timed_look
from pyro_gram.system.progress import Phases
from pyro_gram.tasks.batches import TargetStream
from pyro_gram.system.text import read_text, normalize_text

LOGGED = {"batch", "seconds", "reconstruction", "kl", "beta"}  # at least, in a line of metrics.jsonl
LAUNCH = ".launch"  # the file with the ``launch_id`` of who has last trained here
LEAK_AFTER = 0.25  # share of a run from which on a guide that leaks is warned of


class InterruptedRunError(Exception):
    """The user stopped the run; its state is saved."""

    def __init__(self, number: int, out: Path) -> None:
        super().__init__(f"stopped by signal {number}; the same command with --resume --out {out} goes on")
        self.exit_code = 128 + number


@dataclass
class Run:
    """One run in one directory.

    Attributes:
        solver: task, model and guide.
        trainer: its training state.
        out: the directory, which no other process may write to before :meth:`close`.
        phases: what tells of its progress (``monitor.plan``).
    """

    solver: Solver
    trainer: Trainer
    out: Path
    lock: FileLock | None = None
    phases: Phases = field(default_factory=lambda: Phases({"train": ""}))

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the directory free."""
        if self.lock:
            self.lock.release()

    @property
    def processes(self) -> ProcessGroup:
        """The processes that train it."""
        return self.trainer.processes

    def progress(self, count: int) -> None:
        """Move the bar by trajectories of this process: the others run as many."""
        self.phases.update(count * self.processes.size)

    def save(self, path: Path | None = None) -> None:
        """Write the state of training, atomically; to ``state_path`` where nothing else is said."""
        save_training(path or self.state_path, self.solver.config, self.trainer, self.solver.task.provenance())

    @property
    def averaged(self) -> Solver:
        """The solver with the averaged weights, which are what is measured."""
        return Solver(self.solver.config, self.solver.task, *self.trainer.averaged)

    @property
    def metrics_path(self) -> Path:
        return self.out / "metrics.jsonl"

    def rows(self) -> list[dict[str, Any]]:
        """What ``metrics.jsonl`` holds, a row a batch."""
        return read_rows(self.metrics_path)

    @property
    def state_path(self) -> Path:
        return self.out / "state.safetensors"

    @property
    def report_path(self) -> Path:
        """Where an update that would have ruined the run is told of."""
        return self.out / "diverged.json"

    @property
    def diverged_path(self) -> Path:
        """The state before that update. What ``state_path`` holds is older, and may be better."""
        return self.out / "diverged.safetensors"

    def forget_divergence(self) -> None:
        """Remove both."""
        for path in (self.report_path, self.diverged_path):
            path.unlink(missing_ok=True)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The lines of a ``metrics.jsonl``; none where there is no such file.

    Raises:
        UserError: a line that is no JSON object.
    """
    if not path.exists():
        return []
    try:
        rows = [json.loads(line) for line in read_text(path, limit=MAX_CSV_BYTES).splitlines() if line]
    except (OSError, ValueError, RecursionError) as e:
        raise UserError(f"{path} cannot be read as lines of JSON: {e}") from None
    if not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path} cannot be read as lines of JSON: a line holds no object")
    return rows


def open_run(
    config: RunConfig,
    out: Path,
    *,
    resume: bool,
    data_dir: str | None,
    device: torch.device,
    processes: ProcessGroup = SINGLE_PROCESS,
) -> Run:
    """A new run in ``out``, or the one that is there.

    Of several processes (``processes``), the first checks and writes the directory, which all of them must see. What
    torchrun has begun here, and started anew, is resumed.

    Raises:
        UserError: ``out`` holds a run and ``resume`` was not asked for, or cannot be written, or holds another run, or
            another process runs in it; data or a package that the task needs is missing or damaged.
    """
    revision()  # as the code is now
    resume = resume or (processes.restarts > 0 and launched_here(out))
    if processes.is_main:
        check_new(out, resume)
    solver = build(config, data_dir)
    check_ready(solver.task)
    check_per_datum(solver)
    if takes_heads(solver.model, config.heads):
        check_heads(solver.model, solver.task, config.heads)
    elif config.heads.hidden and processes.is_main:
        print(f"{why_no_heads(solver.model)}: it is trained and measured without heads", file=sys.stderr)
    solver.model.to(device)
    solver.guide.to(device)
    stream = TargetStream(
        solver.task, solver.task.split("train"), config.train.batch, config.seed, config.train.augment
    )
    check_batch(stream.batch, processes)
    trainer = Trainer(
        solver.model,
        solver.guide,
        stream,
        config.train,
        config.optim,
        config.beta,
        seed=config.seed,
        processes=processes,
    )
    check_rolls(solver)
    sampled = trainer.rehearse()
    rehearse(solver, *stream(0))
    lock = lock_directory(out, 30.0 if processes.restarts else 0.0) if processes.is_main else None
    run = Run(solver, trainer, out, lock, Phases({"train": ""}, silent=not processes.is_main))
    processes.barrier()  # what the first process would not have in its directory, none of the others trains
    try:
        _prepare(run, resume)
        processes.barrier()
    except BaseException:
        run.close()
        raise
    if sampled and processes.is_main:
        print(
            f"no closed-form KL of {sampled[0]} from {sampled[1]}: it is estimated from each draw (log q - log p)",
            file=sys.stderr,
        )
    return run


def _prepare(run: Run, resume: bool) -> None:
    """Take up the saved state, if there is one, and put the directory in order."""
    out, trainer, solver = run.out, run.trainer, run.solver
    if run.processes.is_main:
        check_new(out, resume)  # again, as nobody else can have begun one since
    begun = bool(run.processes.from_main(resume and run.state_path.exists()))
    if begun:
        load_training(run.state_path, solver.config, trainer, solver.task.provenance())
    weights = sum(p.detach().cpu().double().sum().item() for p in trainer.optim.named.values())
    if not (run.processes.all_equal(trainer.number) and run.processes.all_equal(weights)):
        raise UserError(f"the processes of this run begin with different states: do all of them see the same {out}?")
    if not run.processes.is_main:
        return
    for folder in (out, out / "figures"):
        remove_unfinished_files(folder)
    if resume:
        print(_resumed(run, begun), file=sys.stderr)
    if begun:
        lost = _cut_metrics(run.metrics_path, trainer.number)
        if lost:
            print(f"{run.metrics_path}: {lost} lines that cannot be read are dropped", file=sys.stderr)
    else:
        run.metrics_path.unlink(missing_ok=True)
    if launch_id():
        write_bytes(out / LAUNCH, launch_id().encode())
    write_json(out / "config.json", solver.config.to_dict())


def check_new(out: Path, resume: bool) -> None:
    """Raises UserError where ``out`` holds a run that is not to be continued."""
    if (out / "config.json").exists() and not resume:
        raise UserError(f"{out} holds a run already: add --resume to continue it, or choose another --out")


def launch_id() -> str:
    """What the processes that one call of torchrun starts, and starts anew, have in common; nothing without it."""
    name = os.environ.get("TORCHELASTIC_RUN_ID", "")
    return f"{name} {os.getppid()}" if name == "none" else name  # the name of every launch on a single machine


def launched_here(out: Path) -> bool:
    """Has this call of torchrun begun, or gone on with, the run in ``out``?"""
    path = out / LAUNCH
    return bool(launch_id()) and path.exists() and path.read_text() == launch_id()


def _resumed(run: Run, begun: bool) -> str:
    """What --resume has found."""
    if not begun:
        return f"nothing to resume in {run.out}: a new run"
    number, batches = run.trainer.number, run.trainer.num_batches or run.solver.config.train.batches
    of = f" of {batches}" if batches else ""
    if run.trainer.finished:
        return f"training in {run.out} is over, at batch {number}{of}: it is measured again"
    return f"going on from batch {number}{of}"


def lock_directory(out: Path, patience: float = 0.0) -> FileLock | None:
    """Keeps other runs out of ``out``, until it is released or this process ends in whatever way.

    ``patience``: seconds in which a run that was there before may end.

    Raises:
        UserError: another run is in it, or nothing can be written there.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / ".lock")
        lock.acquire(timeout=patience)
    except Timeout:
        raise UserError(f"another run is writing to {out}: wait for its end, or choose another --out") from None
    except OSError as e:
        if e.errno in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
            print(f"the file system of {out} has no locks: see that no other run writes to it", file=sys.stderr)
            return None
        raise UserError(f"cannot write to {out}: {e.strerror or e}") from None
    return lock


def check_per_datum(solver: Solver) -> None:
    """Raises ConfigError where a guide has parameters for each datum, and has too few, or no datum comes twice."""
    if guide_traits(solver.guide).is_amortized:
        return
    config, pairs = solver.config, len(solver.task.split("train").solutions)
    name = config.names["guide"]
    if config.train.augment:
        raise ConfigError(
            f"guide {name!r} has parameters for each datum, and symmetries make new ones: set train.augment to false"
        )
    if pairs > config.guide.num_pairs:
        raise ConfigError(
            f"guide {name!r} has room for {config.guide.num_pairs} pairs (x, y), and the training split has {pairs}: "
            f"set --guide.num_pairs to {pairs}"
        )


def check_begun(out: Path, config: RunConfig, option: str) -> None:
    """Raises ConfigError where ``out``, which ``option`` names, holds a run with other settings."""
    begun = out / "config.json"
    if not begun.exists():
        return
    held = read_json(begun)
    # Other names differ before anything is imported that they say.
    same = isinstance(held, dict) and held.get("names") == config.names
    if not same or RunConfig.from_dict(held, config.names.values()).to_dict() != config.to_dict():
        raise ConfigError(f"{out} was begun with other settings: give another {option}")


def _cut_metrics(path: Path, number: int) -> int:
    """Drop the lines of batches that the saved state has not seen: they will be trained again.

    Returns:
        how many more were dropped as they cannot be read: cut off, where the machine went down.
    """
    if not path.exists():
        return 0
    kept, lost = [], 0
    for line in normalize_text(path.read_text(encoding="utf-8", errors="replace")).splitlines():
        try:
            row = json.loads(line)
            if not row.keys() >= LOGGED:
                lost += 1
            elif row["batch"] < number:
                kept.append(line)
        except (ValueError, AttributeError, TypeError, RecursionError):
            lost += 1
    write_atomically(path, lambda temporary: temporary.write_text("".join(line + "\n" for line in kept)))
    return lost


def train(run: Run) -> None:
    """Train to the end, looking at the validation split and saving on the way.

    Raises:
        InterruptedRunError: on SIGINT or SIGTERM, after the update that was going on, and after saving.
        DivergedError: the loss is no longer finite, or has exploded; the state before that update is in
            ``diverged.safetensors``, and ``diverged.json`` tells of it.
    """
    config = run.solver.config.train
    look: dict[str, float] = {}
    warned = False
    if config.compile and run.processes.is_main and not run.trainer.finished:
        print("compiling the core, which takes a minute or so", file=sys.stderr)
    log_path = run.metrics_path if run.processes.is_main else Path(os.devnull)
    with StopOnSignal() as stop, warnings.catch_warnings(), log_path.open("a", buffering=1) as log:
        warnings.filterwarnings("ignore", message="Encountered NaN")  # Pyro's, of what stops the run with an error
        keep = Keeper(run, stop)
        if run.processes.is_main and run.trainer.num_batches is None and not run.trainer.finished:
            asked = f"{config.batches:,} fit into {config.minutes:g} minutes"
            print(f"timing a few batches: how many of {asked}?", file=sys.stderr)
        if run.trainer.fit(look=lambda: timed_look(run)):
            run.save()  # killed at once, it stays the run of so many batches
            if run.processes.is_main and (fitted := fitted_length(run)):
                print(fitted, file=sys.stderr)
            keep.check()
        if run.processes.size == 1:
            run.trainer.between = keep
        first, before = run.trainer.number, run.trainer.elapsed
        if "heads" in run.phases.sizes and run.processes.is_main and not run.trainer.finished:
            run.phases.seconds["heads"] = seconds_of_heads(run.averaged, run.solver.config.depth)
        with _bar(run) as bar:
            if not run.trainer.finished:
                run.phases.remaining_text("train", seconds_left(run.trainer, first, 0.0))
            for report in _reported(run):
                row = _row(report)
                if run.trainer.number % config.evaluate_every == 0 or report.last:
                    look = timed_look(run)
                    row |= look
                    if run.processes.is_main and not warned and (leaking := leak_at(look, run.trainer.done)):
                        bar.write(f"batch {run.trainer.number}: {leaking}", file=sys.stderr)
                        warned = True
                log.write(json.dumps(row) + "\n")
                if run.processes.is_main:
                    run.forget_divergence()  # it has been got over
                bar.update(1 if config.batches else min(round(report.seconds), round(60 * config.minutes)) - bar.n)
                told = run.phases.remaining_text("train", seconds_left(run.trainer, first, report.seconds - before))
                bar.set_postfix_str(told + _postfix(report, look), refresh=False)
                keep(report.last)
        keep.check()


def fitted_length(run: Run) -> str:
    """What a run says that trains fewer batches than were asked for; nothing where it trains all."""
    c, batches = run.solver.config.train, run.trainer.num_batches
    if not batches or batches >= c.batches:
        return ""
    return (
        f"this machine trains {batches:,} of {c.batches:,} batches in {c.minutes:g} minutes: the schedule is fitted to "
        "them (--train.minutes sets another length)"
    )


def _bar(run: Run) -> tqdm:
    """A bar that counts batches, or seconds where only the clock ends the run."""
    trainer, c = run.trainer, run.solver.config.train
    total = trainer.num_batches or round(c.minutes * 60)
    initial = trainer.number if c.batches else round(trainer.elapsed)
    return run.phases.start("train", total, "batch" if c.batches else "s", initial)


class Keeper:
    """Saves the state when it is time to, and when the run is to stop: called between two updates.

    By several processes between two batches only: they do it together.
    """

    def __init__(self, run: Run, stop: StopOnSignal) -> None:
        self.run, self.stop = run, stop
        self.saved = time.monotonic()

    def __call__(self, now: bool = False) -> None:
        """Raises InterruptedRunError on a signal, after saving. ``now``: save in any case."""
        late = time.monotonic() - self.saved > self.run.solver.config.train.save_seconds
        processes, stopped = self.run.processes, self._stopped()
        if now or stopped or processes.from_main(late):
            if processes.size == 1:
                self.run.trainer.read_clock()
            self.run.save()
            self.saved = time.monotonic()
        if stopped:
            raise InterruptedRunError(stopped, self.run.out)

    def check(self) -> None:
        """Raises InterruptedRunError on a signal that came after the last save, or before a run that was over."""
        if stopped := self._stopped():
            raise InterruptedRunError(stopped, self.run.out)

    def _stopped(self) -> int:
        return int(self.run.processes.all_reduce_max(self.stop.signal or 0))


def _reported(run: Run) -> Iterator[BatchReport]:
    """The batches of a run; where it diverges, the state before that update is saved, and a report of it."""
    try:
        yield from run.trainer.run()
    except DivergedError as e:
        run.save(run.diverged_path)
        if not run.processes.is_main:
            raise
        write_json(run.report_path, {**e.update.to_dict(), "last_batches": run.rows()[-20:]})
        raise DivergedError(
            f"{e}: {run.report_path} tells of it, {run.diverged_path.name} holds the state before that update, and "
            "what was saved before stays as it is. --resume would come there again: start anew, in another --out, with "
            "a lower --optim.lr, or with a higher --beta.start where the KL has grown",
            e.update,
        ) from None


def leak_at(look: dict[str, float], done: float) -> str:
    """The warning that a look deserves: the guide, with y in sight, is right, and the prior, without, is wrong.

    Nothing in the first quarter of a run, in which the prior has not had the time to learn what the guide says.
    """
    if done < LEAK_AFTER or not {"posterior_accuracy", "prior_accuracy"} <= look.keys():
        return ""
    verdict = leak(look["posterior_accuracy"], look["prior_accuracy"])
    return f"the guide leaks: {verdict.value}. {verdict.meaning}" if verdict.level == BAD else ""


def _row(report: BatchReport) -> dict[str, float]:
    row = {
        "batch": report.number,
        "seconds": round(report.seconds, 3),
        "reconstruction": report.reconstruction,
        "kl": report.kl,
        "beta": report.beta,
    }
    return row if report.on_policy is None else row | {"on_policy": report.on_policy}


def _postfix(report: BatchReport, look: dict[str, float]) -> str:
    text = f"loss {report.loss:.2f} kl {report.kl:.2f}"
    seen = [f"{name.removeprefix('prior_')} {v:.2f}" for name, v in look.items() if name.startswith("prior_")]
    return text + (" | prior: " + " ".join(seen[:3]) if seen else "")
