"""Halt and value heads: trained on roll-outs of the prior, after the program, and without a gradient into it.

The heads are sites of the program (``sites.sample_halt_and_value``): what is observed there is whether the answer of a
state is right and whether the last answer of its trajectory is, by the task's own check, as several answers may be
right. Training is SVI on a program of no transitions, which decodes a given state and judges it; there is nothing
latent in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor, nn

from pyro_gram.checks import AT_LEAST_0, AT_LEAST_1, FRACTION, POSITIVE, check_range
from pyro_gram.inference.sites import ANSWER, HALT, HEADS_ATTRIBUTE, VALUE
from pyro_gram.networks.core import LatentState
from pyro_gram.sampling.rollout import isolated_rng, rollout_steps
from pyro_gram.sampling.tempering import NO_TEMPER, Temper, TemperConfig
from pyro_gram.training.optimizer import OptimConfig, TorchOptim

BATCH = 512  # states an update
EPOCHS = 2  # over the states of a round: to gather them costs more than to learn from them
DEEPEST = 16  # supervision steps of a roll-out to learn from
EARLY = 4  # of which all states are learnt from, and of later ones ever fewer: nearly all of those are right


@dataclass(frozen=True)
class VerdictConfig:
    """Halt and value heads, and their training.

    Attributes:
        hidden: width of the halt and value heads; 0 for none.
        layers: attention layers over ``[h, e_x, answer]``.
        attention_heads: attention heads of those layers.
        rounds: roll-outs that the heads learn from, each of fresh trajectories and inputs.
        trajectories: in a round, of 8 positions; fewer of longer sequences.
        lr: peak learning rate of the heads.
        halt: P(right) from which on a trajectory stops, unless asked otherwise; 1 for never.
    """

    hidden: int = 0
    layers: int = 2
    attention_heads: int = 4
    rounds: int = 40
    trajectories: int = 1024
    lr: float = 2e-3
    halt: float = 0.999

    def __post_init__(self) -> None:
        ones = dict.fromkeys(("layers", "attention_heads", "rounds", "trajectories"), AT_LEAST_1)
        check_range(self, hidden=AT_LEAST_0, lr=POSITIVE, halt=FRACTION, **ones)


@dataclass(frozen=True)
class States:
    """States of trajectories of the prior, and what became of them.

    Attributes:
        x: inputs, int64 ``[M, *event]``.
        state: ``[M, L, D]`` each.
        right: bool ``[M]``: is the answer decoded from it right?
        final: bool ``[M]``: is the last answer of the roll-out, ``DEEPEST`` steps deep at the most?
    """

    x: Tensor
    state: LatentState
    right: Tensor
    final: Tensor


Check = Callable[[Tensor, Tensor], Tensor]  # x [B, *event], tokens [B, L_out] -> bool [B], the task's, on the CPU


def gather(
    model: nn.Module, x: Tensor, check: Check, *, depth: int, seed: int, temper: TemperConfig = NO_TEMPER
) -> States:
    """States of one trajectory of the prior on each input, at most ``DEEPEST`` supervision steps deep. It has no y.

    Which of the states of a step are kept is drawn without looking, so that what is learnt of a step is calibrated.

    Args:
        x: int64 ``[B, *event]``.
        check: is an answer right?
        depth: supervision steps.
    """
    with isolated_rng(model, x):
        torch.manual_seed(seed)
        with Temper(temper):
            ends = list(rollout_steps(model, x, depth=min(depth, DEEPEST)))
        here = x.cpu()  # tasks check on the CPU
        rights = [check(here, end.values[ANSWER].cpu()).to(x.device) for end in ends]
        kept = [torch.rand(len(x), device=x.device) < EARLY / (step + 1) for step in range(len(ends))]

    def states(parts: list[Tensor]) -> Tensor:
        return torch.cat([part[mask] for part, mask in zip(parts, kept, strict=True)])

    h, l = states([end.state.h for end in ends]), states([end.state.l for end in ends])
    everywhere = [rights[-1]] * len(ends)
    return States(states([x] * len(ends)), LatentState(h, l), states(rights), states(everywhere))


def fit(
    model: nn.Module,
    inputs: Callable[[int], Tensor],
    check: Check,
    config: VerdictConfig,
    *,
    depth: int,
    seed: int = 0,
    temper: TemperConfig = NO_TEMPER,
) -> Iterator[float]:
    """Train the heads of ``model`` (its attribute ``heads``); yields the mean loss of each round, nats a state.

    Args:
        inputs: round to training inputs, int64 ``[M, *event]``: a trajectory for each.
        check: is an answer right?
        depth: supervision steps of the roll-outs.
        seed: of the draws, and of the order of the states.
        temper: of the roll-outs; as they will be when the heads are used.
    """
    optim = TorchOptim(
        {HEADS_ATTRIBUTE: getattr(model, HEADS_ATTRIBUTE)},
        OptimConfig(lr=config.lr, weight_decay=0.01, warmup=50, min_lr_ratio=0.05),
    )
    svi = SVI(poutine.block(_observed(model), hide_fn=_not_of_the_heads), _nothing_latent, optim, Trace_ELBO())
    device = next(model.parameters()).device
    for number in range(config.rounds):
        x = inputs(number).to(device)
        start = (seed * 1_000_003 + number) % 2**62
        states = gather(model, x, check, depth=depth, seed=start, temper=temper)
        generator = torch.Generator().manual_seed(start)
        order = torch.cat([torch.randperm(len(states.x), generator=generator) for _ in range(EPOCHS)]).to(device)
        losses = []
        for at, chosen in enumerate(order.split(BATCH)):
            optim.progress = (number + at * BATCH / len(order)) / config.rounds
            few = LatentState(states.state.h[chosen], states.state.l[chosen])
            with poutine.scale(scale=1 / len(chosen)), pyro.validation_enabled(False):
                losses.append(svi.step(states.x[chosen], few, states.right[chosen], states.final[chosen]))
        yield sum(losses) / len(losses)


def _observed(model: nn.Module) -> Callable[..., Any]:
    def program(x: Tensor, state: LatentState, right: Tensor, final: Tensor) -> Any:
        with poutine.condition(data={HALT: right.float(), VALUE: final.float()}):
            return model(x, None, state, steps=0)

    return program


def _nothing_latent(*_: Any) -> None:
    """The guide of a program in which everything is observed."""


def _not_of_the_heads(site: dict[str, Any]) -> bool:
    if site["type"] == "param":
        return f".{HEADS_ATTRIBUTE}." not in site["name"]
    return site["name"] not in (HALT, VALUE)
