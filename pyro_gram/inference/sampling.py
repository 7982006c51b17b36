"""Roll-outs from the prior: width (many trajectories) times depth (many supervision steps), untraced and in chunks.

This is the same Pyro program that ``Predictive`` runs, with the same draws under the same seed where no temper is asked
for, without a trace to keep. It takes no y: what it returns can be scored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_gram.checks import check_seed
from pyro_gram.errors import UserError
from pyro_gram.inference.sites import OBSERVED, STATE_H, STATE_L
from pyro_gram.inference.temper import Temper, TemperConfig
from pyro_gram.networks.core import LatentState

AS_IT_IS = TemperConfig()
MAX_TRAJECTORIES = 2048  # at L = 8, D = 128 about 250 MB at the widest point of a transition


def at_once(length: int, most: int = MAX_TRAJECTORIES) -> int:
    """How many trajectories of ``length`` positions fit into the memory of ``most`` trajectories of 8."""
    return max(1, min(most, most * 8 // length))


@dataclass(frozen=True)
class Rollout:
    """Trajectories of the prior, decoded.

    Attributes:
        tokens: the most probable answer at each trajectory's end, int64 ``[N, B, L_out]``.
        score: log p(tokens | h_T), nats, ``[N, B]``: the decoder's confidence.
        history: the answer after each supervision step, int64 ``[depth, N, B, L_out]``; None unless asked for.
    """

    tokens: Tensor
    score: Tensor
    history: Tensor | None = None


class Decode(Messenger):
    """Answers an unobserved ``y`` with its mode, drawing nothing, and keeps the final state and the likelihood."""

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[str, Tensor] = {}
        self.likelihood: Any = None

    @property
    def state(self) -> LatentState:
        """Where the program ended."""
        return LatentState(self.values[STATE_H], self.values[STATE_L])

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] == OBSERVED:
            if msg["is_observed"]:
                raise UserError("a roll-out of the prior must not be given y")
            msg["value"] = msg["fn"].mode
            msg["done"] = True
            self.likelihood = msg["fn"]

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["name"] in (OBSERVED, STATE_H, STATE_L):
            self.values[msg["name"]] = msg["value"]


def rollout(
    model: Callable[..., Any],
    x: Tensor | None,
    *,
    num_samples: int,
    depth: int,
    seed: int = 0,
    history: bool = False,
    temper: TemperConfig = AS_IT_IS,
    max_trajectories: int = MAX_TRAJECTORIES,
    progress: Callable[[int], None] | None = None,
) -> Rollout:
    """Run the program ``num_samples`` times on each input, ``depth`` supervision steps deep, from z_0.

    Args:
        model: a program ``model(x, y, state, steps=1)`` with sites ``y``, ``h`` and ``l`` (``models.gram.GRAM``).
        x: inputs, int64 ``[B, *event]``; None for p(x), where B is 1.
        num_samples: N, trajectories an input.
        depth: supervision steps.
        seed: of the draws. The answer depends on it, on ``temper`` and on ``max_trajectories`` alone; chunk 0 draws as
            ``Predictive`` would under ``seed``. The caller's random state is left as it was.
        history: keep every supervision step's answer.
        temper: the scale of the prior at the start of each trajectory.
        max_trajectories: the most that run at once.
        progress: called with the number of trajectories done after each chunk.

    Raises:
        UserError: ``num_samples`` or ``depth`` below 1.
    """
    _check(seed=seed, num_samples=num_samples, depth=depth, max_trajectories=max_trajectories)
    inputs = [None] if x is None else list(x.split(max(1, max_trajectories // num_samples)))
    rows: list[Rollout] = []
    chunk = 0
    with _quiet(x):
        for part in inputs:
            columns = []
            for start in range(0, num_samples, max_trajectories):
                torch.manual_seed(seed + chunk)
                chunk += 1
                columns.append(_run(model, part, min(max_trajectories, num_samples - start), depth, history, temper))
                if progress:
                    progress(columns[-1].score.numel())
            rows.append(_join(columns, dim=0))
    return _join(rows, dim=1)


def rollout_log_prob(
    model: Callable[..., Any],
    x: Tensor | None,
    y: Tensor,
    *,
    num_samples: int,
    depth: int,
    seed: int = 0,
    max_trajectories: int = MAX_TRAJECTORIES,
) -> Tensor:
    """log p(y | h_T) at the end of each of ``num_samples`` trajectories of the prior, nats, ``[N, B]``.

    The trajectories are those of :func:`rollout`; y is looked at when they have ended. Where x is None, every datum
    is scored under the same N trajectories.
    """
    _check(seed=seed, num_samples=num_samples, depth=depth, max_trajectories=max_trajectories)
    whole = max(1, max_trajectories // num_samples)
    parts = [(None, y)] if x is None else list(zip(x.split(whole), y.split(whole), strict=True))
    rows = []
    chunk = 0
    with _quiet(x):
        for a, b in parts:
            columns = []
            for start in range(0, num_samples, max_trajectories):
                torch.manual_seed(seed + chunk)
                chunk += 1
                decode = _final(model, a, None, min(max_trajectories, num_samples - start), depth)
                few = [b] if a is not None else b.split(64)  # [N, B] log-probabilities of long answers are wide
                columns.append(torch.cat([decode.likelihood.log_prob(c) for c in few], dim=1))
            rows.append(torch.cat(columns))
    return torch.cat(rows, dim=1)


def _check(**values: int) -> None:
    check_seed(values.pop("seed"))
    for name, value in values.items():
        if value < 1:
            raise UserError(f"{name} must be at least 1, not {value}")


@contextmanager
def _quiet(x: Tensor | None) -> Iterator[None]:
    """No gradient, no validation, and the caller's random state put back at the end."""
    devices = [x.device] if x is not None and x.is_cuda else []
    with torch.random.fork_rng(devices=devices), torch.no_grad(), pyro.validation_enabled(False):
        yield


def _final(model: Callable[..., Any], x: Tensor | None, state: LatentState | None, width: int, steps: int) -> Decode:
    with Decode() as decode, pyro.plate("trajectories", width, dim=-2):
        model(x, None, state, steps=steps)
    return decode


def _run(
    model: Callable[..., Any], x: Tensor | None, width: int, depth: int, history: bool, temper: TemperConfig
) -> Rollout:
    state, answers, start = None, [], Temper(temper)
    steps = 1 if history else depth
    for _ in range(depth // steps):
        with start:
            decode = _final(model, x, state, width, steps)
        state = decode.state
        answers.append(decode.values[OBSERVED])
    score = decode.likelihood.log_prob(answers[-1])
    return Rollout(answers[-1], score, torch.stack(answers) if history else None)


def _join(parts: list[Rollout], dim: int) -> Rollout:
    if len(parts) == 1:
        return parts[0]
    kept = [p.history for p in parts if p.history is not None]
    return Rollout(
        torch.cat([p.tokens for p in parts], dim),
        torch.cat([p.score for p in parts], dim),
        torch.cat(kept, dim + 1) if kept else None,
    )
