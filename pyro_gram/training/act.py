"""Halting and carry in training, as in the code of HRM and TRM (adaptive computation time).

A place in the batch holds a pair (x, y) and the state of its trajectory. Each update is one supervision step of every
place. Where the model would halt, or after N_sup steps, the place takes the next pair and starts from z_0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_gram.errors import ConfigError
from pyro_gram.inference.sites import data_plates
from pyro_gram.inference.terms import StepTerms
from pyro_gram.networks.core import LatentState
from pyro_gram.system.distributed import ProcessGroup

EXPLORING = 0.1  # the share of trajectories that must make a random number of steps, of at least 2


@dataclass(frozen=True)
class Places:
    """The batch between two updates.

    Attributes:
        x: inputs, ``[B, *event]``; None for p(x).
        y: answers, int64 ``[B, L_out]``.
        steps: supervision steps that each trajectory has made, int64 ``[B]``.
        over: bool ``[B]``: the trajectory has ended, and its place takes the next pair.
        state: where the trajectories are, ``[B, L, D]`` each; None is z_0.
    """

    x: Tensor | None
    y: Tensor
    steps: Tensor
    over: Tensor
    state: LatentState | None = None

    @classmethod
    def new(cls, x: Tensor | None, y: Tensor) -> Places:
        """All trajectories at z_0."""
        nothing = torch.zeros(len(y), dtype=torch.long, device=y.device)
        return cls(x, y, nothing, nothing.bool())

    def refilled(self, model: Any, x: Tensor | None, y: Tensor) -> Places:
        """With new pairs in the places whose trajectory is over. Every batch has as many pairs."""
        assert self.state is not None
        with torch.no_grad(), data_plates(self.over.shape):
            fresh = model.initial_state(self.state.h)
        state = LatentState(*(_where(self.over, a, b) for a, b in zip(fresh, self.state, strict=True)))
        x = None if x is None or self.x is None else _where(self.over, x, self.x)
        return Places(x, _where(self.over, y, self.y), self.steps.masked_fill(self.over, 0), self.over, state)

    def after(self, terms: StepTerms, most: int) -> Places:
        """One supervision step later, of ``most`` at the most. Draws from torch's generator."""
        if terms.halted is None:
            raise ConfigError(
                "train.act needs a model that says which trajectories have halted, at a site 'halted' (hrm and trm "
                "do): set it to false"
            )
        steps = self.steps + 1
        least = torch.randint(2, max(3, most + 1), steps.shape, device=steps.device)
        least = torch.where(torch.rand(steps.shape, device=steps.device) < EXPLORING, least, 0)
        over = (steps >= most) | (terms.halted & (steps >= least))
        return Places(self.x, self.y, steps, over, terms.state)

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        kept = {"y": self.y, "steps": self.steps, "over": self.over}
        kept |= {} if self.x is None else {"x": self.x}
        return kept if self.state is None else kept | {"h": self.state.h, "l": self.state.l}

    def shared(self, processes: ProcessGroup) -> Places:
        """One process's places of those of all."""
        return Places.from_tensors({name: processes.shard(t) for name, t in self.tensors().items()}) or self

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Places | None:
        """What :meth:`tensors` gave; None where there were none. Raises KeyError naming what is missing."""
        if not tensors:
            return None
        state = LatentState(tensors["h"], tensors["l"])
        return cls(tensors.get("x"), tensors["y"], tensors["steps"], tensors["over"], state)


def _where(over: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(over.view(-1, *[1] * (old.ndim - 1)), new, old)
