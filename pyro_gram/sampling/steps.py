"""Run supervision steps of a program, and decode the answer at their end instead of sampling it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyro_gram.errors import UserError
from pyro_gram.inference.sites import (
    ANSWER,
    DRAW_ANSWER,
    HALTED,
    HEAD_SITE,
    STATE_H,
    STATE_L,
    data_plates,
    transition_index,
)
from pyro_gram.inference.terms import is_counted, is_lattice_guidance, log_prob_of, per_input, weight_of_inputs
from pyro_gram.networks.core import LatentState


def rollout_steps(
    model: Callable[..., Any], x: Tensor | None, *, depth: int, num_samples: int | None = None
) -> Iterator[Decode]:
    """Run ``depth`` supervision steps from z_0, all trajectories together; yield the decoded end of each step.

    Draws come from the caller's generator.

    Args:
        model: the program.
        x: inputs, int64 ``[B, *event]``; None for a model without input, p(x).
        depth: supervision steps.
        num_samples: N, for states ``[N, B, L, D]``; None for one trajectory of each input, ``[B, L, D]``.
    """
    state = None
    for _ in range(depth):
        end = run_steps(model, x, state, num_samples, 1)
        yield end
        state = end.state


def run_steps(
    model: Callable[..., Any], x: Tensor | None, state: LatentState | None, num_samples: int | None, steps: int
) -> Decode:
    """Run ``steps`` supervision steps from ``state`` and return their decoded end.

    Args:
        model: the program.
        x: inputs, int64 ``[B, *event]``; None for a model without input, p(x).
        state: where to start; None for z_0.
        num_samples: N trajectories of each input; None for one trajectory, without a dimension for N.
        steps: supervision steps.
    """
    plate = nullcontext() if num_samples is None else pyro.plate("trajectories", num_samples, dim=-2)
    with Decode() as decode, plate:
        model(x, None, state, steps=steps)
    return decode


def start_states(model: Callable[..., Any], x: Tensor | None, size: int) -> LatentState:
    """Return z_0 of ``size`` trajectories, ``[size, ...]``: one of each input ``x [size, *event]``, or all of p(x)."""
    with data_plates(torch.Size([size])) if x is None else nullcontext():
        start = run_steps(model, x, None, None, 0).state
    return LatentState(*(part.expand(size, *part.shape[-2:]) for part in start))


class Decode(Messenger):
    """Decode the answer of a program instead of sampling it, and record the answer and the final state.

    The site ``y`` takes the mode of p(y | h_T), or a draw if the program marks it with ``DRAW_ANSWER`` (an
    autoregressive model has no known mode). The sites of the heads take their means.

    Attributes:
        values: the values of ``y``, ``h``, ``l`` and, with heads, ``halt`` (P(the answer is right)) and ``value``.
        answer_site: the message of the site ``y``.
        observations: name and message of each other observed site whose density counts.
        log_decided: log p of the values that a lattice has decided, nats, ``[N, B]``; 0 for other models.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log_decided: Any = 0.0
        self.values: dict[str, Tensor] = {}
        self.answer_site: Any = None
        self.observations: list[tuple[str, Any]] = []

    @property
    def likelihood(self) -> Any:
        """The distribution p(y | h_T)."""
        return self.answer_site["fn"]

    @property
    def score(self) -> Tensor:
        """Log p of the decoded answer, nats, ``[N, B]``: of the decisions that led to it, and of its other tokens."""
        return self.likelihood.log_prob(self.values[ANSWER]) + self.log_decided

    @property
    def state(self) -> LatentState:
        """The state at the end of the program."""
        return LatentState(self.values[STATE_H], self.values[STATE_L])

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] == ANSWER:
            if msg["is_observed"]:
                raise UserError("a rollout of the prior must not be given y")
            msg["value"] = msg["fn"].sample() if msg["infer"].get(DRAW_ANSWER) else msg["fn"].mode
            self.answer_site = msg
        elif _is_head(msg):
            msg["value"] = msg["fn"].mean

    def _pyro_post_sample(self, msg: Any) -> None:
        if _is_head(msg) or msg["name"] in (ANSWER, STATE_H, STATE_L, HALTED):
            self.values[msg["name"]] = msg["value"]
        else:
            if is_lattice_guidance(msg["fn"]):
                self.log_decided = self.log_decided + msg["fn"].log_prob_of_values(msg["value"])
            self.observations.extend(counted_observations(msg))

    def log_prob(self, y: Tensor) -> Tensor:
        """Return log p(y | h_T) plus the log density of the other observations, under their masks; nats, ``[N, B]``.

        Args:
            y: ``[B, L_out]``. In a program without input, the whole density of the other observations is added to the
                density of each datum.
        """
        shape = self.answer_site["fn"].batch_shape
        log_prob = log_prob_of({**self.answer_site, "value": y}) / weight_of_inputs(self.answer_site, self.answer_site)
        for name, site in self.observations:
            log_prob = log_prob + per_input(name, site, log_prob_of(site), self.answer_site, shape)
        return log_prob


def counted_observations(msg: Any) -> list[tuple[str, Any]]:
    """If a site is observed and its density counts, return a list with its name and message; else an empty list."""
    if msg["is_observed"] and msg["mask"] is False and transition_index(msg["name"]) is not None:
        msg = {**msg, "mask": None}  # conditioned guidance counts although a truncated program masks it
    return [(msg["name"], msg)] if msg["is_observed"] and is_counted(msg) else []


def _is_head(msg: Any) -> bool:
    """Return whether a head made this site. A user's own site may have the same name, but not the key ``HEAD_SITE``."""
    return bool(msg["infer"].get(HEAD_SITE)) and not msg["is_observed"]


# ---- devices and random states -----------------------------------------------------------------------------------


def to_cpu(x: Tensor | None) -> Tensor | None:
    """Return inputs on the CPU; None stays None."""
    return None if x is None else x.cpu()


def to_device_of(model: nn.Module, tensor: Any) -> Any:
    """Return the tensor on the model's device; None stays None."""
    return None if tensor is None else tensor.to(next(model.parameters()).device)


@contextmanager
def isolated_rng(model: Callable[..., Any], x: Tensor | None) -> Iterator[None]:
    """Run a block without gradients and validation, and restore the caller's random state afterwards.

    Two random states are restored: that of the CPU, and that of the device that holds x (or the model, if x is None).
    """
    tensor = x if x is not None or not isinstance(model, nn.Module) else next(model.parameters(), None)
    devices = [tensor.device] if tensor is not None and tensor.is_cuda else []
    with torch.random.fork_rng(devices=devices), torch.no_grad(), pyro.validation_enabled(False):
        yield
