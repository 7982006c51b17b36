"""Halt and value heads of a run: what they are built for, and what they learn from."""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn
from tqdm import tqdm

from pyro_gram.build import Assembly, state_length
from pyro_gram.config import RunConfig
from pyro_gram.errors import ConfigError
from pyro_gram.inference.sampling import at_once, why_no_heads
from pyro_gram.inference.sites import WHERE
from pyro_gram.inference.verdict import VerdictConfig, fit
from pyro_gram.networks.heads import VerdictHead
from pyro_gram.tasks.base import Task
from pyro_gram.tasks.stream import TargetStream


def takes_heads(model: nn.Module, config: VerdictConfig) -> bool:
    """Will this model be given heads? A program of a user's own may have no place for them, and runs without."""
    return config.hidden > 0 and not why_no_heads(model)


def check_heads(model: nn.Module, task: Task, config: VerdictConfig) -> None:
    """Raises ConfigError where heads are asked for and cannot be had."""
    if not task.checkable or not task.spec.conditional:
        raise ConfigError("halt and value heads judge answers to an input: set verdict.hidden to 0 for p(x)")
    if why := why_no_heads(model):
        raise ConfigError(f"{why}: it can have none, and answers are chosen by vote (--select vote, or verified)")
    if config.hidden % (2 * config.heads):
        raise ConfigError(
            f"verdict.hidden {config.hidden} must be a multiple of 2 * verdict.heads = {2 * config.heads}"
        )


def attach(model: nn.Module, task: Task, config: RunConfig) -> None:
    """Put untrained heads onto a program; the caller's random state stays. Raises as :func:`check_heads`."""
    c = config.verdict
    check_heads(model, task, c)
    length = state_length(config, task)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        head = VerdictHead(length, config.model.width, task.spec.output_classes, c.hidden, c.layers, c.heads)
    setattr(model, WHERE, head.to(next(model.parameters()).device))


def train_heads(assembly: Assembly, depth: int, silent: bool = False) -> None:
    """Give a trained model its heads, as ``config.verdict`` says, with a bar on stderr unless ``silent``.

    They learn from trajectories of the prior as it is sampled (its temper too), up to ``depth`` supervision steps deep,
    on training inputs under the task's symmetries: on those as they are the model errs less than on others.
    """
    config, task, model = assembly.config, assembly.task, assembly.model
    attach(model, task, config)
    count = at_once(task.spec.input_length, config.verdict.trajectories)
    stream = TargetStream(task, task.split("train"), count, config.seed, config.train.augment)

    def some(number: int) -> Tensor:
        x, _ = stream(number)
        assert x is not None
        return x

    rounds = fit(model, some, task.valid, config.verdict, depth=depth, seed=config.seed, temper=config.temper)
    bar = tqdm(
        rounds,
        total=config.verdict.rounds,
        desc="heads",
        unit="round",
        file=sys.stderr,
        mininterval=1.0,
        disable=silent,
    )
    for loss in bar:
        bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
