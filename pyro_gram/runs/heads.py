"""Halt and value heads of a run: what they are built for, and what they learn from."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from pyro_gram.config import RunConfig
from pyro_gram.errors import ConfigError
from pyro_gram.inference.sites import HEADS_ATTRIBUTE, why_no_heads
from pyro_gram.networks.heads import HaltValueHead
from pyro_gram.sampling.memory import chunk_size
from pyro_gram.solver import Solver
from pyro_gram.system.progress import Phases
from pyro_gram.tasks.base import Task
from pyro_gram.tasks.batches import TargetStream
from pyro_gram.training.heads import VerdictConfig, fit


def takes_heads(model: nn.Module, config: VerdictConfig) -> bool:
    """Will this model be given heads? A program of a user's own may have no place for them, and runs without."""
    return config.hidden > 0 and not why_no_heads(model)


def check_heads(model: nn.Module, task: Task, config: VerdictConfig) -> None:
    """Raises ConfigError where heads are asked for and cannot be had."""
    if not task.is_checkable or not task.spec.has_input:
        raise ConfigError("halt and value heads judge answers to an input: set heads.hidden to 0 for p(x)")
    if why := why_no_heads(model):
        raise ConfigError(f"{why}: it can have none, and answers are chosen by vote (--select vote, or verified)")
    if config.hidden % (2 * config.attention_heads):
        raise ConfigError(
            f"heads.hidden {config.hidden} must be a multiple of 2 * heads.attention_heads = "
            f"{2 * config.attention_heads}"
        )


def attach(model: nn.Module, task: Task, config: RunConfig) -> None:
    """Put untrained heads onto a program; the caller's random state stays. Raises as :func:`check_heads`."""
    c = config.heads
    check_heads(model, task, c)
    length = task.spec.input_length + getattr(config.model, "prefix", 0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        head = HaltValueHead(
            length, config.model.width, task.spec.output_classes, c.hidden, c.layers, c.attention_heads
        )
    setattr(model, HEADS_ATTRIBUTE, head.to(next(model.parameters()).device))


def train_heads(solver: Solver, phases: Phases | None = None) -> None:
    """Give a trained model its heads, as ``config.heads`` says, with a bar on stderr.

    They learn from trajectories of the prior as it is sampled (its temper too), up to the depth of the run,
    on training inputs under the task's symmetries: on those as they are the model errs less than on others.
    ``phases``: of the run, whose phase ``heads`` this is.
    """
    count = solver.config.heads.rounds
    phases = phases or Phases({"heads": f"{count} rounds"})
    rounds = _rounds(solver)  # what is wrong is said before the phase begins
    start = time.perf_counter()
    with phases.start("heads", count, "round") as bar:
        for number, loss in enumerate(rounds, 1):
            left = (time.perf_counter() - start) / number * (count - number)
            bar.set_postfix_str(f"{phases.remaining_text('heads', left)}loss {loss:.3f}", refresh=False)
            bar.update()


def seconds_of_heads(solver: Solver) -> float:
    """How long :func:`train_heads` will take, by one round on a copy of the model. No random state changes."""
    copied = Solver(solver.config, solver.task, copy.deepcopy(solver.model), solver.guide)
    device = next(copied.model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        rounds = _rounds(copied)
        start = time.perf_counter()
        next(rounds)
        return (time.perf_counter() - start) * solver.config.heads.rounds


def _rounds(solver: Solver) -> Iterator[float]:
    """The rounds of :func:`train_heads`, with the loss of each. Heads are there before the first."""
    config, task, model = solver.config, solver.task, solver.model
    attach(model, task, config)
    count = chunk_size(task.spec.input_length, config.heads.trajectories)
    stream = TargetStream(task, task.split("train"), count, config.seed, config.train.augment)

    def some(number: int) -> Tensor:
        x, _ = stream(number)
        assert x is not None
        return x

    return fit(model, some, task.is_valid, config.heads, depth=config.depth, seed=config.seed, temper=config.temper)
