"""Start or resume a run in a directory, lock the directory, and save the run."""

from __future__ import annotations

import errno
import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from pyro_gram.build import build
from pyro_gram.config import RunConfig
from pyro_gram.errors import ConfigError, UserError
from pyro_gram.inference.sites import why_no_heads
from pyro_gram.runs.measure import test_puzzles
from pyro_gram.runs.preflight import check_data, check_estimates, check_guide_capacity, check_rollout
from pyro_gram.runs.state import load_state, save_state
from pyro_gram.solver import Solver
from pyro_gram.system.distributed import SINGLE_PROCESS, ProcessGroup, check_batch
from pyro_gram.system.files import read_json, remove_unfinished_files, write_atomically, write_bytes, write_json
from pyro_gram.system.machine import revision
from pyro_gram.system.progress import Phases
from pyro_gram.system.text import normalize_text, read_text
from pyro_gram.tasks.batches import TargetStream
from pyro_gram.training.config import will_have_heads
from pyro_gram.training.dry_run import dry_run
from pyro_gram.training.trainer import Trainer

ROW_KEYS = {"batch", "seconds", "reconstruction", "kl", "beta"}  # every line of metrics.jsonl has these keys
LAUNCH_FILE = ".launch"  # holds the ``launch_id`` of the last training in the directory
RESTART_PATIENCE = 30.0  # seconds to wait for the end of a process that torchrun has replaced


@dataclass
class Run:
    """One run in one directory.

    Attributes:
        solver: the task, model and guide.
        trainer: the trainer.
        out: the directory. No other run may write to it before :meth:`close`.
        lock: the lock of the directory. It is None if the file system has no locks, and in all but the main process.
        phases: the progress display.
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
        """Release the lock of the directory."""
        if self.lock:
            self.lock.release()

    @property
    def processes(self) -> ProcessGroup:
        """The processes that train this run."""
        return self.trainer.processes

    def print(self, text: str) -> None:
        """Print a line on stderr, in the main process."""
        if self.processes.is_main:
            print(text, file=sys.stderr)

    @property
    def averaged_solver(self) -> Solver:
        """A solver with the averaged weights, for validation and evaluation."""
        return Solver(self.solver.config, self.solver.task, *self.trainer.averaged_modules)

    def save(self, path: Path | None = None) -> None:
        """Write the state of training atomically, to ``state.safetensors`` unless another path is given."""
        save_state(path or self.state_path, self.solver.config, self.trainer, self.solver.task.provenance())

    @property
    def state_path(self) -> Path:
        return self.out / "state.safetensors"

    @property
    def metrics_path(self) -> Path:
        return self.out / "metrics.jsonl"

    def rows(self) -> list[dict[str, Any]]:
        """Return the lines of ``metrics.jsonl``, one per batch."""
        return read_rows(self.metrics_path)

    @property
    def divergence_report_path(self) -> Path:
        """Path of the report on the update that diverged."""
        return self.out / "diverged.json"

    @property
    def diverged_state_path(self) -> Path:
        """Path of the state before the update that diverged. The state at ``state_path`` is older and may be better."""
        return self.out / "diverged.safetensors"

    def remove_divergence_files(self) -> None:
        for path in (self.divergence_report_path, self.diverged_state_path):
            path.unlink(missing_ok=True)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a ``metrics.jsonl``; an empty list if the file does not exist.

    Raises:
        UserError: a line is not a JSON object.
    """
    if not path.exists():
        return []
    try:
        rows = [json.loads(line) for line in read_text(path).splitlines() if line]
    except (OSError, ValueError, RecursionError) as e:
        raise UserError(f"{path} cannot be read as lines of JSON: {e}") from None
    if not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path} cannot be read as lines of JSON: a line is not an object")
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
    """Open a new run in ``out``, or resume the run that is there.

    Only the main process checks and writes the directory, but all processes must see it. A run that torchrun has
    restarted is always resumed.

    Raises:
        UserError: ``out`` holds a run and ``resume`` is False; ``out`` holds a run with other settings, is in use by
            another run, or cannot be written; data or a package that the task needs is missing or damaged; the parts
            of the run do not fit together.
    """
    revision()  # reads and caches the git commit now, because the code may change during the run
    resume = resume or (processes.restarts > 0 and was_launched_here(out))
    if processes.is_main:
        check_new(out, resume)
    solver = build(config, data_dir)
    check_data(solver.task)
    check_guide_capacity(solver)
    has_heads = will_have_heads(solver.model, config.heads)
    if has_heads:
        from pyro_gram.training.heads import check_heads

        check_heads(solver.model, solver.task, config.heads)
    trainer = _make_trainer(solver.to(device), processes)
    check_rollout(solver)
    estimated_kl = dry_run(trainer)
    check_estimates(solver, *trainer.batches(0))
    lock = lock_directory(out, RESTART_PATIENCE if processes.restarts else 0.0) if processes.is_main else None
    run = Run(solver, trainer, out, lock)
    processes.barrier()  # no process trains if the main one cannot lock the directory
    try:
        _restore(run, resume)
        processes.barrier()
    except BaseException:
        run.close()
        raise
    run.phases = Phases(phase_sizes(run), silent=not processes.is_main)
    if config.heads.hidden and not has_heads:
        run.print(f"{why_no_heads(solver.model)}: the model is trained and measured without heads")
    if estimated_kl:
        posterior, prior = estimated_kl
        run.print(f"no closed-form KL of {posterior} from {prior}: the KL is estimated from each draw (log q - log p)")
    return run


def _make_trainer(solver: Solver, processes: ProcessGroup) -> Trainer:
    c, task = solver.config, solver.task
    stream = TargetStream(task, task.split("train"), c.train.batch, c.seed, c.train.augment, group=not c.train.act)
    check_batch(stream.batch, processes)
    model, guide = solver.model, solver.guide
    return Trainer(model, guide, stream, c.train, c.optim, c.beta, seed=c.seed, processes=processes)


def _restore(run: Run, resume: bool) -> None:
    """Load the saved state, if there is one, and prepare the files of the directory."""
    out, trainer, solver = run.out, run.trainer, run.solver
    if run.processes.is_main:
        check_new(out, resume)  # a second check: another process may have begun a run here meanwhile
    has_state = bool(run.processes.from_main(resume and run.state_path.exists()))
    if has_state:
        load_state(run.state_path, solver.config, trainer, solver.task.provenance())
    weight_sum = sum(p.detach().cpu().double().sum().item() for p in trainer.optimizer.parameters_by_name.values())
    if not (run.processes.all_equal(trainer.number) and run.processes.all_equal(weight_sum)):
        raise UserError(
            f"the processes of this run begin with different states: make sure that all of them see the same {out}"
        )
    if not run.processes.is_main:
        return
    for folder in (out, out / "figures"):
        remove_unfinished_files(folder)
    if resume:
        run.print(_describe_resume(run, has_state))
    if has_state:
        num_unreadable = truncate_metrics(run.metrics_path, trainer.number)
        if num_unreadable:
            run.print(f"{run.metrics_path}: {num_unreadable} unreadable lines are dropped")
    else:
        run.metrics_path.unlink(missing_ok=True)
    if launch_id():
        write_bytes(out / LAUNCH_FILE, launch_id().encode())
    write_json(out / "config.json", solver.config.to_dict())


def _describe_resume(run: Run, has_state: bool) -> str:
    if not has_state:
        return f"nothing to resume in {run.out}: a new run starts"
    number, batches = run.trainer.number, run.trainer.num_batches or run.solver.config.train.batches
    total = f" of {batches}" if batches else ""
    if run.trainer.is_finished:
        return f"training in {run.out} is over, at batch {number}{total}: the model is measured again"
    return f"continuing from batch {number}{total}"


def phase_sizes(run: Run) -> dict[str, str]:
    """Return the phases of a run (training, heads if the model has them, evaluation), each with its amount of work."""
    config, trainer, puzzles = run.solver.config, run.trainer, test_puzzles(run.solver)
    c = config.train
    length = f"{trainer.num_batches or c.batches:,} batches" if c.batches else f"{c.minutes:g} minutes"
    if trainer.num_batches is None:
        length = f"up to {length} in {c.minutes:g} minutes"
    sizes = {"train": f"{length}, complete" if trainer.is_finished else length}
    if will_have_heads(run.solver.model, config.heads):
        sizes["heads"] = f"{config.heads.rounds} rounds"
    inputs = "" if puzzles.inputs is None else f"{len(puzzles.inputs):,} inputs x "
    return sizes | {"evaluation": f"{inputs}{config.evaluate.num_samples:,} samples"}


def check_new(out: Path, resume: bool) -> None:
    """Raise UserError if ``out`` holds a run and ``resume`` is False."""
    if (out / "config.json").exists() and not resume:
        raise UserError(f"{out} holds a run already: add --resume to continue it, or choose another --out")


def check_same_settings(out: Path, config: RunConfig, option: str) -> None:
    """Raise ConfigError if ``out``, the value of ``option``, holds a run with other settings."""
    path = out / "config.json"
    if not path.exists():
        return
    saved_config = read_json(path)
    # Compare the names first: no module may be imported just because a file names it.
    same_names = isinstance(saved_config, dict) and saved_config.get("names") == config.names
    if not same_names or RunConfig.from_dict(saved_config, config.names.values()).to_dict() != config.to_dict():
        raise ConfigError(f"{out} was begun with other settings: give another {option}")


def launch_id() -> str:
    """Return the name of this call of torchrun, shared by its processes and restarts; empty without torchrun."""
    name = os.environ.get("TORCHELASTIC_RUN_ID", "")
    return f"{name} {os.getppid()}" if name == "none" else name  # torchrun calls every launch on one machine "none"


def was_launched_here(out: Path) -> bool:
    """Has this call of torchrun already trained the run in ``out``?"""
    path = out / LAUNCH_FILE
    return bool(launch_id()) and path.exists() and path.read_text() == launch_id()


def lock_directory(out: Path, patience: float = 0.0) -> FileLock | None:
    """Keep other runs out of ``out`` until the lock is released or this process ends.

    Args:
        out: the directory, which is made if needed.
        patience: seconds to wait for another run to end.

    Returns:
        the lock; None if the file system has no locks.

    Raises:
        UserError: another run writes to ``out``, or ``out`` cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / ".lock")
        lock.acquire(timeout=patience)
    except Timeout:
        raise UserError(f"another run is writing to {out}: wait for its end, or choose another --out") from None
    except OSError as e:
        if e.errno in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
            print(f"the file system of {out} has no locks: make sure that no other run writes to it", file=sys.stderr)
            return None
        raise UserError(f"cannot write to {out}: {e.strerror or e}") from None
    return lock


def truncate_metrics(path: Path, number: int) -> int:
    """Drop the lines of a ``metrics.jsonl`` from batch ``number`` on, because those batches are trained again.

    Returns:
        the number of lines that were dropped because they cannot be read. (A crash of the machine can damage a line.)
    """
    if not path.exists():
        return 0
    lines, num_unreadable = [], 0
    for line in normalize_text(path.read_text(encoding="utf-8", errors="replace")).splitlines():
        try:
            row = json.loads(line)
            if not row.keys() >= ROW_KEYS:
                num_unreadable += 1
            elif row["batch"] < number:
                lines.append(line)
        except (ValueError, AttributeError, TypeError, RecursionError):
            num_unreadable += 1
    write_atomically(path, lambda temporary: temporary.write_text("".join(line + "\n" for line in lines)))
    return num_unreadable
