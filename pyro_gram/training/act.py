"""Training with adaptive computation time (ACT), as in the code of HRM and TRM.

The batch holds pairs (x, y) and the states of their trajectories. Each update is one supervision step of every
trajectory. A trajectory ends when the model would halt it, or after N_sup steps. Then a new pair replaces its pair, and
a new trajectory starts at z_0. If a model does not halt, an equal share of the trajectories ends at each update.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pyro_gram.inference.terms import StepTerms
from pyro_gram.networks.core import LatentState
from pyro_gram.sampling.steps import start_states
from pyro_gram.system.distributed import ProcessGroup
from pyro_gram.tasks.batches import Candidates

EXPLORATION = 0.1
# Trajectories that end when their answers are complete stay in step, as most take equally many. So an eighth of them
# start anew at each of the first batches, until they are spread over all stages.
RESTARTED_SHARE, RESTART_BATCHES = 1 / 8, 64


@dataclass(frozen=True)
class Carry:
    """The pairs of a batch and the states of their trajectories, kept from one update to the next.

    Attributes:
        x: inputs, ``[B, *event]``; None for p(x).
        y: answers, int64 ``[B, L_out]``.
        steps: supervision steps that each trajectory has made, int64 ``[B]``.
        finished: bool ``[B]``: has the trajectory ended? If so, the next update replaces its pair.
        state: states of the trajectories, ``[B, L, D]`` each (h of a lattice: ``[B, L_out, V]``); None: all are at z_0.
        candidates: all solutions of the inputs, if the training uses them.
    """

    x: Tensor | None
    y: Tensor
    steps: Tensor
    finished: Tensor
    state: LatentState | None = None
    candidates: Candidates | None = None

    @classmethod
    def start(cls, x: Tensor | None, y: Tensor, candidates: Candidates | None = None) -> Carry:
        """Start a trajectory of each pair at z_0."""
        zeros = torch.zeros(len(y), dtype=torch.long, device=y.device)
        return cls(x, y, zeros, zeros.bool(), candidates=candidates)

    def replace_finished(self, model: Any, x: Tensor | None, y: Tensor, candidates: Candidates | None = None) -> Carry:
        """If a trajectory is finished, replace its pair with the pair in the same row of ``x`` and ``y``."""
        assert self.state is not None
        x = None if x is None or self.x is None else _where(self.finished, x, self.x)
        y = _where(self.finished, y, self.y)
        state, index = self.state, self.finished.nonzero().flatten()
        if len(index):
            with torch.no_grad():
                start = start_states(model, None if x is None else x[index], len(index))
            state = LatentState(*(old.index_copy(0, index, new) for new, old in zip(start, state, strict=True)))
        if candidates is not None and self.candidates is not None:
            candidates = candidates.merge(self.finished, self.candidates)
        return Carry(x, y, self.steps.masked_fill(self.finished, 0), self.finished, state, candidates)

    def advance(
        self, terms: StepTerms, max_steps: int, exploration: float = EXPLORATION, restart: float = 0.0
    ) -> Carry:
        """Return the carry after a supervision step whose results are ``terms``. This uses torch's generator.

        A share ``exploration`` of the trajectories may not halt before a random number of steps, at least 2. A share
        ``restart`` ends at once: at the start of training, so that trajectories of equal length do not stay in step.
        If the model does not say which trajectories halt, each makes ``max_steps`` steps. The trajectories of the first
        batch make 1 to ``max_steps`` steps, so that later ones do not all end at the same update.
        """
        steps = self.steps + 1
        if terms.halted is None:
            if self.state is None:
                steps = torch.randint(1, max_steps + 1, steps.shape, device=steps.device)
            return replace(self, steps=steps, finished=steps >= max_steps, state=terms.state)
        min_steps = torch.randint(2, max(3, max_steps + 1), steps.shape, device=steps.device)
        min_steps = torch.where(torch.rand(steps.shape, device=steps.device) < exploration, min_steps, 0)
        finished = (steps >= max_steps) | (terms.halted & (steps >= min_steps))
        if restart:
            finished = finished | (torch.rand(steps.shape, device=steps.device) < restart)
        return replace(self, steps=steps, finished=finished, state=terms.state)

    def state_dict(self, max_solutions: int = 0) -> dict[str, Tensor]:
        """Return the tensors of the carry by name, with room for at least ``max_solutions`` solutions of an input."""
        tensors = {"y": self.y, "steps": self.steps, "finished": self.finished}
        tensors |= {} if self.x is None else {"x": self.x}
        tensors |= {} if self.candidates is None else self.candidates.state_dict(max_solutions)
        return tensors if self.state is None else tensors | {"h": self.state.h, "l": self.state.l}

    @classmethod
    def from_state_dict(cls, tensors: dict[str, Tensor]) -> Carry:
        """Build a carry from the tensors of :meth:`state_dict`.

        Raises:
            KeyError: a tensor is missing.
            ValueError: the tensors hold different numbers of trajectories.
        """
        if len({len(tensor) for tensor in tensors.values()}) > 1:
            raise ValueError(f"unfinished trajectories: {', '.join(f'{len(t)} in {k}' for k, t in tensors.items())}")
        state, x = LatentState(tensors["h"], tensors["l"]), tensors.get("x")
        candidates = None if x is None else Candidates.from_state_dict(x, tensors)
        return cls(x, tensors["y"], tensors["steps"], tensors["finished"], state, candidates)

    def shard(self, processes: ProcessGroup, device: torch.device) -> Carry:
        """Return this process's share of a carry that holds the trajectories of all processes."""
        return self._map(lambda tensor: processes.shard(tensor).to(device))

    def all_gather(self, processes: ProcessGroup) -> Carry:
        """Join the shares of all processes into one carry."""
        own_size = 0 if self.candidates is None else len(self.candidates.mask)
        return self._map(processes.all_gather, int(processes.all_reduce_max(own_size)))

    def _map(self, change: Callable[[Tensor], Tensor], max_solutions: int = 0) -> Carry:
        tensors = self.state_dict(max_solutions)
        return Carry.from_state_dict({name: change(tensor) for name, tensor in tensors.items()})


def _where(finished: Tensor, new_values: Tensor, old_values: Tensor) -> Tensor:
    return torch.where(finished.view(-1, *[1] * (old_values.ndim - 1)), new_values, old_values)
