"""From a RunConfig to its objects."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from pyro_gram.config import RunConfig
from pyro_gram.errors import ConfigError
from pyro_gram.registry import GUIDES, MODELS, PRIORS
from pyro_gram.tasks.base import Task, make_task


@dataclass(frozen=True)
class Assembly:
    """A task with a model and a guide for it."""

    config: RunConfig
    task: Task
    model: nn.Module
    guide: nn.Module


def build(config: RunConfig, data_dir: str | None = None) -> Assembly:
    """Task, model and guide of a run, the weights drawn from its seed. The caller's random state is left as it was."""
    task = make_task(config.names["task"], config.task, data_dir)
    _check_until(config)
    width = getattr(config.model, "width", None)
    if width is None:
        raise ConfigError(f"the config of model {config.names['model']!r} has no field 'width'")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        prior = PRIORS.get(config.names["prior"])(config.prior, width)
        model = MODELS.get(config.names["model"])(config.model, task.spec, prior)
        guide = GUIDES.get(config.names["guide"])(config.guide, task.spec, model, width)
    return Assembly(config, task, model, guide)


def state_length(config: RunConfig, task: Task) -> int:
    """L of a state: the positions of the input and, before them, of the puzzle tokens."""
    return task.spec.input_length + getattr(config.model, "prefix", 0)


def _check_until(config: RunConfig) -> None:
    # In training every supervision step is a program of its own, whose transitions are counted from 0.
    until, transitions = getattr(config.guide, "until", 0), getattr(config.model, "transitions", 1)
    trained = config.train.supervision_steps * transitions
    if 0 < until < trained:
        raise ConfigError(
            f"guide.until = {until} is less than the {trained} transitions that training makes "
            "(train.supervision_steps x model.transitions): it is for trajectories that go deeper than training"
        )
