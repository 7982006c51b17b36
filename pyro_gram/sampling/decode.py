"""One pass of a program under its prior, untraced: where it ends, and what it answers there. It takes no y."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyro_gram.errors import UserError
from pyro_gram.inference.sites import ANSWER, DRAW_ANSWER, HEAD_SITE, STATE_H, STATE_L, transition_index
from pyro_gram.inference.terms import is_counted, log_prob_of, per_input, weight_of_inputs
from pyro_gram.networks.core import LatentState


def observed_in(msg: Any) -> list[tuple[str, Any]]:
    """The site of a message with its name, where it is observed and counts; else nothing."""
    if msg["is_observed"] and msg["mask"] is False and transition_index(msg["name"]) is not None:
        msg = {**msg, "mask": None}  # conditioned guidance: it counts however the program was truncated
    return [(msg["name"], msg)] if msg["is_observed"] and is_counted(msg) else []


def _of_a_head(msg: Any) -> bool:
    """A user's own site may have the name of a head's."""
    return bool(msg["infer"].get(HEAD_SITE)) and not msg["is_observed"]


class Decode(Messenger):
    """Answers an unobserved ``y`` with its mode and the heads' sites with their means, drawing nothing there.

    Where the program says ``drawn`` (an autoregressive model has no known mode), y is a draw. It keeps these, the final
    state and the site y: in ``values`` P(right) stands at ``halt``. ``observations``: other observed sites that count.
    """

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[str, Tensor] = {}
        self.answer: Any = None
        self.observations: list[tuple[str, Any]] = []

    @property
    def likelihood(self) -> Any:
        """p(y | h_T)."""
        return self.answer["fn"]

    @property
    def state(self) -> LatentState:
        """Where the program ended."""
        return LatentState(self.values[STATE_H], self.values[STATE_L])

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] == ANSWER:
            if msg["is_observed"]:
                raise UserError("a roll-out of the prior must not be given y")
            msg["value"] = msg["fn"].sample() if msg["infer"].get(DRAW_ANSWER) else msg["fn"].mode
            self.answer = msg
        elif _of_a_head(msg):
            msg["value"] = msg["fn"].mean

    def _pyro_post_sample(self, msg: Any) -> None:
        if _of_a_head(msg) or msg["name"] in (ANSWER, STATE_H, STATE_L):
            self.values[msg["name"]] = msg["value"]
        else:
            self.observations.extend(observed_in(msg))

    def log_prob(self, y: Tensor) -> Tensor:
        """log p(y | h_T), and the density of what else the program observes, under their masks; nats, ``[N, B]``.

        Args:
            y: ``[B, L_out]``. Of p(x), where the program ran without inputs, each datum pays the whole of the rest.
        """
        run = self.answer["fn"].batch_shape
        log_prob = log_prob_of({**self.answer, "value": y}) / weight_of_inputs(self.answer, self.answer)
        for name, site in self.observations:
            log_prob = log_prob + per_input(name, site, log_prob_of(site), self.answer, run)
        return log_prob


def beside(model: nn.Module, tensor: Any) -> Any:
    """The tensor on the model's device; None stays None."""
    return None if tensor is None else tensor.to(next(model.parameters()).device)


@contextmanager
def quiet(model: Callable[..., Any], x: Tensor | None) -> Iterator[None]:
    """No gradient, no validation, and the caller's random state put back at the end, where x or the model is."""
    held = x if x is not None or not isinstance(model, nn.Module) else next(model.parameters(), None)
    devices = [held.device] if held is not None and held.is_cuda else []
    with torch.random.fork_rng(devices=devices), torch.no_grad(), pyro.validation_enabled(False):
        yield


def unrolled(
    model: Callable[..., Any],
    x: Tensor | None,
    *,
    depth: int,
    num_samples: int | None = None,
) -> Iterator[Decode]:
    """The ends of ``depth`` successive supervision steps from z_0, all trajectories together and in the caller's draws.

    Args:
        x: inputs, int64 ``[B, *event]``.
        num_samples: N, for states ``[N, B, L, D]``; None for one trajectory an input, ``[B, L, D]``.
    """
    state = None
    for _ in range(depth):
        end = advance(model, x, state, num_samples, 1)
        yield end
        state = end.state


def advance(
    model: Callable[..., Any], x: Tensor | None, state: LatentState | None, width: int | None, steps: int
) -> Decode:
    """The end of ``steps`` supervision steps from ``state``, of ``width`` trajectories an input (None: of one)."""
    plate = nullcontext() if width is None else pyro.plate("trajectories", width, dim=-2)
    with Decode() as decode, plate:
        model(x, None, state, steps=steps)
    return decode
