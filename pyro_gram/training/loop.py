"""The loop over the batches of a run."""

from __future__ import annotations

from collections.abc import Iterator

import pyro

from pyro_gram.training.dry_run import dry_run, prepare_core
from pyro_gram.training.pace import fit_to_minutes
from pyro_gram.training.precision import explain_compiler_errors, matmul_precision
from pyro_gram.training.report import BatchReport
from pyro_gram.training.trainer import Trainer


def train_batches(trainer: Trainer) -> Iterator[BatchReport]:
    """Train until all batches of a run are done or, if the config sets no number of batches, the minutes are over.

    Yields a report after each batch. The time that the caller takes before the next batch (for evaluation or saving)
    counts as time of the run.

    Raises:
        ConfigError: as raised by ``dry_run``.
        DivergedError: before the first update whose loss or gradient is not finite, or whose loss explodes.
    """
    trainer.model.train()
    trainer.guide.train()
    if not trainer.is_finished:
        if not trainer.is_checked:
            dry_run(trainer)
        prepare_core(trainer)
        fit_to_minutes(trainer)
    trainer.start_clock()
    is_last = trainer.is_finished
    while not is_last:
        with (
            pyro.validation_enabled(False),
            matmul_precision(trainer.config.precision, trainer.device),
            explain_compiler_errors(),
        ):
            report = trainer.train_batch(*trainer.batches(trainer.number))
        report.seconds = trainer.sync_clock()
        report.is_last = is_last = trainer.is_finished  # decided once, so that the caller and this loop agree
        yield report
        trainer.sync_clock()
