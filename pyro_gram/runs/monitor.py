"""A run while it goes on: what it is going to do, how well it does at a look, and when all of it will be over."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from pyro_gram.diagnostics.metrics import measure
from pyro_gram.runs.evaluate import assess, bounds_of, measured, num_trajectories, right_under_guide, roll
from pyro_gram.runs.heads import takes_heads
from pyro_gram.system.progress import Phases
from pyro_gram.tasks.batches import generator_for

if TYPE_CHECKING:
    from pyro_gram.runs.run import Run

MONITOR_INPUTS = 64  # validation inputs looked at during training
MONITOR_SAMPLES = 1024  # samples of p(x) looked at during training


def plan(run: Run) -> None:
    """Say which phases the run will have: training, heads where its model takes some, and evaluation."""
    config, trainer = run.solver.config, run.trainer
    c, puzzles = config.train, measured(run)
    length = f"{trainer.num_batches or c.batches:,} batches" if c.batches else f"{c.minutes:g} minutes"
    if trainer.num_batches is None:
        length = f"up to {length} in {c.minutes:g} minutes"
    sizes = {"train": f"{length}, complete" if trainer.finished else length}
    if takes_heads(run.solver.model, config.heads):
        sizes["heads"] = f"{config.heads.rounds} rounds"
    inputs = "" if puzzles.inputs is None else f"{len(puzzles.inputs):,} inputs x "
    sizes["evaluation"] = f"{inputs}{config.evaluate.num_samples:,} samples"
    run.phases = Phases(sizes, silent=not run.processes.is_main)
    run.phases.print_plan()


def monitor(run: Run) -> dict[str, float]:
    """Bounds, and accuracy and coverage of the prior, of the averaged weights on a few validation inputs."""
    task, config = run.solver.task, run.solver.config
    puzzles = task.split("validation").subset(MONITOR_INPUTS)
    seed = config.evaluate.seed
    rolled = roll(run, puzzles.inputs, num_samples=min(config.evaluate.num_samples, MONITOR_SAMPLES))
    metrics = measure(task, puzzles, rolled.tokens, rolled.score)
    x, y = puzzles.sample_pairs(MONITOR_INPUTS, generator_for(seed, len(puzzles)))
    found = bounds_of(run.averaged, x, y, run.solver.config.depth, seed)
    looked = {
        "prior_accuracy": metrics.sample_accuracy,
        "prior_coverage": metrics.coverage,
        "coverage_limit": metrics.coverage_limit,
        "elbo_full": found.full.mean().item(),
        "elbo_surrogate": found.surrogate.mean().item(),
    }
    looked["posterior_accuracy"] = right_under_guide(run.averaged, x, found)
    own = assess(task, puzzles, rolled.tokens, split="validation")
    looked |= {f"prior_{name}": value for name, value in own.items()}
    return {name: value for name, value in looked.items() if value is not None}


def timed_look(run: Run) -> dict[str, float]:
    """:func:`monitor`; what it takes a trajectory tells how long the evaluation will take."""
    start = time.perf_counter()
    looked = monitor(run)
    seconds = time.perf_counter() - start
    puzzles, samples = run.solver.task.split("validation"), run.solver.config.evaluate.num_samples
    given = puzzles.inputs is not None
    pairs = min(len(puzzles if given else puzzles.solutions), MONITOR_INPUTS)
    rolled = min(samples, MONITOR_SAMPLES) * (pairs if given else 1)
    run.phases.seconds["evaluation"] = seconds / (rolled + pairs) * num_trajectories(run)
    return looked
