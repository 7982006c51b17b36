"""Halt and value heads: they are trained after the model, on trajectories of its prior. No gradient reaches the model.

The outputs of the heads are sites of the model (``sites.sample_halt_and_value``). In training, the halt site is
observed as 1 if the answer decoded from a state is right, and the value site as 1 if the last answer of the trajectory
is right. The task's own check decides this, because several answers may be right. Training is SVI on a program without
transitions, which decodes a given state and judges the answer. Nothing in this program is latent.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor, nn

from pyro_gram.errors import ConfigError
from pyro_gram.inference.contract import model_sizes, model_traits
from pyro_gram.inference.sites import ANSWER, HALT, HALTED, HEADS_ATTRIBUTE, VALUE, why_no_heads
from pyro_gram.networks.core import LatentState
from pyro_gram.networks.heads import HaltValueHead
from pyro_gram.networks.relations import check_mixer, reads_relations
from pyro_gram.sampling.memory import chunk_size
from pyro_gram.sampling.steps import isolated_rng, rollout_steps
from pyro_gram.sampling.tempering import NO_TEMPER, Temper, TemperConfig
from pyro_gram.tasks.base import Task
from pyro_gram.tasks.batches import TargetStream
from pyro_gram.training.config import HeadsConfig
from pyro_gram.training.optimizer import OptimConfig, TorchOptim

BATCH = 512  # states in an update
EPOCHS = 2  # passes over the states of a round: a pass takes less time than sampling the states
MAX_DEPTH = 16  # the heads learn from at most this many supervision steps of a trajectory
EARLY_STEPS = 4  # all states of these first steps are used; later steps give fewer, as most of their answers are right

Check = Callable[[Tensor, Tensor], Tensor]  # x [B, *event], tokens [B, L_out] -> bool [B], on the CPU


def check_heads(model: nn.Module, task: Task, config: HeadsConfig) -> None:
    """Raise ConfigError if a model cannot have the heads of ``config`` on this task."""
    if not task.is_checkable or not task.spec.has_input:
        raise ConfigError("halt and value heads judge answers to an input: set heads.hidden to 0 for p(x)")
    if reason := why_no_heads(model):
        raise ConfigError(f"{reason}: it cannot have heads, so choose answers by vote (--select vote, or verified)")
    multiple = 2 * config.attention_heads
    if config.hidden % multiple:
        raise ConfigError(f"heads.hidden {config.hidden} must be a multiple of 2 * heads.attention_heads = {multiple}")


def attach_heads(model: nn.Module, model_config: Any, task: Task, config: HeadsConfig, seed: int) -> None:
    """Give a model untrained heads, with weights drawn under ``seed``. The caller's random state is restored.

    Raises:
        ConfigError: as :func:`check_heads`.
    """
    check_heads(model, task, config)
    sizes = model_sizes(model_config)
    length = task.spec.input_length + sizes.prefix
    shape = length, sizes.width, task.spec.output_classes, config.hidden, config.layers, config.attention_heads
    mixer = "relations" if reads_relations(sizes.mixer) else "attention"
    check_mixer(mixer, task.spec, config.attention_heads, sizes.prefix, "heads.attention_heads")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        heads = HaltValueHead(*shape, mixer, task.spec.has_value_positions)
    setattr(model, HEADS_ATTRIBUTE, heads.to(next(model.parameters()).device))


def train_heads(
    model: nn.Module,
    model_config: Any,
    task: Task,
    config: HeadsConfig,
    *,
    depth: int,
    seed: int = 0,
    temper: TemperConfig = NO_TEMPER,
    augment: bool = True,
    progress: Callable[[int, float], object] = lambda number, loss: None,
) -> None:
    """Give a trained model new heads and train them, on training inputs to which the task's symmetries are applied.

    Args:
        model: the trained model; only its heads change.
        model_config: the model's config, with the sizes of the model's states (``inference.contract.ModelSizes``).
        task: the task, whose check says which answers are right.
        config: settings of the heads.
        depth: supervision steps of a trajectory.
        seed: seed of the weights, the draws, and the order of the states.
        temper: tempering of the trajectories; give the tempering with which the heads will be used.
        augment: whether to apply the symmetries. The model makes fewer errors on plain training inputs than on others.
        progress: called with the number of each round and its mean loss, nats per state.

    Raises:
        ConfigError: as :func:`check_heads`.
    """
    attach_heads(model, model_config, task, config, seed)
    stream = TargetStream(
        task, task.split("train"), chunk_size(task.spec.positions, config.trajectories), seed, augment, group=False
    )

    def inputs(number: int) -> Tensor:
        x, _ = stream(number)
        assert x is not None
        return x

    rounds = fit_heads(model, inputs, task.is_valid, config, depth=depth, seed=seed, temper=temper)
    for number, loss in enumerate(rounds):
        progress(number, loss)


def estimate_head_seconds(
    model: nn.Module, model_config: Any, task: Task, config: HeadsConfig, **settings: Any
) -> float:
    """Estimate the seconds that :func:`train_heads` takes: time one round on a copy of the model.

    The caller's random state is restored.
    """
    trial = copy.deepcopy(model)
    device = next(trial.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        start = time.perf_counter()
        train_heads(trial, model_config, task, replace(config, rounds=1), **settings)
        return (time.perf_counter() - start) * config.rounds


@dataclass(frozen=True)
class JudgedStates:
    """States from trajectories of the prior, and whether their answers are right.

    Attributes:
        x: inputs, int64 ``[M, *event]``.
        state: the high and the low level, ``[M, L, D]`` each.
        is_right: bool ``[M]``: is the answer decoded from the state right?
        is_end_right: bool ``[M]``: is the last answer of the state's trajectory right?
    """

    x: Tensor
    state: LatentState
    is_right: Tensor
    is_end_right: Tensor


def sample_states(
    model: nn.Module, x: Tensor, check: Check, *, depth: int, seed: int, temper: TemperConfig = NO_TEMPER
) -> JudgedStates:
    """Sample states of one trajectory of the prior on each input. The caller's random state is restored.

    All states of early steps are returned, and a random share of the states of each later step. The share does not
    depend on the answers, so the heads learn calibrated probabilities for each step. A trajectory whose answer is
    complete gives no further states.

    Args:
        model: the program whose prior is sampled.
        x: int64 ``[B, *event]``.
        check: says which answers are right.
        depth: number of supervision steps; a larger number than ``MAX_DEPTH`` counts as ``MAX_DEPTH``, unless the
            trajectories end when their answers are complete.
        seed: seed of the draws.
        temper: tempering of the trajectories.
    """
    has_lattice, ends = model_traits(model).has_lattice, []
    with isolated_rng(model, x):
        torch.manual_seed(seed)
        with Temper(temper):
            for end in rollout_steps(model, x, depth=depth if has_lattice else min(depth, MAX_DEPTH)):
                ends.append(end)
                if has_lattice and end.values[HALTED].all():
                    break
        x_cpu = x.cpu()  # tasks check answers on the CPU
        is_right = [check(x_cpu, end.values[ANSWER].cpu()).to(x.device) for end in ends]
        masks = [torch.rand(len(x), device=x.device) < EARLY_STEPS / (step + 1) for step in range(len(ends))]
        if has_lattice:
            for step, end in enumerate(ends[:-1], start=1):
                masks[step] &= ~end.values[HALTED]

    def select(steps: list[Tensor]) -> Tensor:
        return torch.cat([values[mask] for values, mask in zip(steps, masks, strict=True)])

    state = LatentState(select([end.state.h for end in ends]), select([end.state.l for end in ends]))
    return JudgedStates(select([x] * len(ends)), state, select(is_right), select([is_right[-1]] * len(ends)))


def fit_heads(
    model: nn.Module,
    inputs: Callable[[int], Tensor],
    check: Check,
    config: HeadsConfig,
    *,
    depth: int,
    seed: int = 0,
    temper: TemperConfig = NO_TEMPER,
) -> Iterator[float]:
    """Train the heads of a model, and yield the mean loss of each round, nats per state.

    Args:
        model: a model that has heads.
        inputs: maps the number of a round to inputs, int64 ``[M, *event]``, with one trajectory each.
        check: says which answers are right.
        config: settings of the heads.
        depth: supervision steps of a trajectory.
        seed: seed of the draws, and of the order of the states.
        temper: tempering of the trajectories.
    """
    optim = TorchOptim(
        {HEADS_ATTRIBUTE: getattr(model, HEADS_ATTRIBUTE)},
        OptimConfig(lr=config.lr, weight_decay=0.01, warmup=50, min_lr_ratio=0.05),
    )
    svi = SVI(poutine.block(_judging_program(model), hide_fn=_is_not_of_heads), _no_latents, optim, Trace_ELBO())
    device = next(model.parameters()).device
    for number in range(config.rounds):
        round_seed = (seed * 1_000_003 + number) % 2**62
        states = sample_states(model, inputs(number).to(device), check, depth=depth, seed=round_seed, temper=temper)
        generator = torch.Generator().manual_seed(round_seed)
        order = torch.cat([torch.randperm(len(states.x), generator=generator) for _ in range(EPOCHS)]).to(device)
        losses = []
        for update, index in enumerate(order.split(BATCH)):
            optim.progress = (number + update * BATCH / len(order)) / config.rounds
            state = LatentState(states.state.h[index], states.state.l[index])
            with poutine.scale(scale=1 / len(index)), pyro.validation_enabled(False):
                losses.append(svi.step(states.x[index], state, states.is_right[index], states.is_end_right[index]))
        yield sum(losses) / len(losses)


def _judging_program(model: nn.Module) -> Callable[..., Any]:
    """Return the program that decodes and judges given states, with the sites of the heads observed."""

    def program(x: Tensor, state: LatentState, is_right: Tensor, is_end_right: Tensor) -> Any:
        with poutine.condition(data={HALT: is_right.float(), VALUE: is_end_right.float()}):
            return model(x, None, state, steps=0)

    return program


def _no_latents(*_: Any) -> None:
    """The guide of a program in which everything is observed."""


def _is_not_of_heads(site: dict[str, Any]) -> bool:
    if site["type"] == "param":
        return f".{HEADS_ATTRIBUTE}." not in site["name"]
    return site["name"] not in (HALT, VALUE)
