"""The result of a rollout: decoded trajectories, which are joined from chunks and shared between processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from pyro_gram.system.distributed import ProcessGroup

INPUT_DIMS = {"work": 0, "history": 2}  # the dimension of the inputs in the fields of a Rollout; 1 in all others


@dataclass(frozen=True)
class Rollout:
    """Decoded trajectories of the prior.

    Attributes:
        tokens: the most probable answer at the end of each trajectory, int64 ``[N, B, L_out]``.
        score: log p(tokens | h_T), nats, ``[N, B]``; for diffusion models and lattices, log p of the values in the
            order in which they were drawn (0 after sweeps).
        steps: supervision steps of each trajectory, int64 ``[N, B]``.
        work: supervision steps of all trajectories of each input, dropped trajectories included, int64 ``[B]``.
        value: the value head's probability that the answer is right, ``[N, B]``; None without heads.
        history: the answer after each supervision step, int64 ``[depth, N, B, L_out]``; None if not asked for.
    """

    tokens: Tensor
    score: Tensor
    steps: Tensor
    work: Tensor
    value: Tensor | None = None
    history: Tensor | None = None

    def cpu(self) -> Rollout:
        """Return a copy on the CPU."""
        return self._map(lambda name, tensor: tensor.cpu())

    def clone(self) -> Rollout:
        """Return a copy in memory of its own."""
        return self._map(lambda name, tensor: tensor.clone())

    def pad(self, length: int) -> Rollout:
        """Return a copy whose answers have ``length`` tokens: the tokens of padding are 0."""
        return self._map(lambda name, t: pad(t, (0, length - t.shape[-1])) if name in ("tokens", "history") else t)

    def select(self, index: Tensor) -> Rollout:
        """Return the trajectories of the inputs ``index``, int64 ``[B']``, in that order."""
        return self._map(lambda name, tensor: tensor.index_select(INPUT_DIMS.get(name, 1), index.to(tensor.device)))

    def _map(self, change: Callable[[str, Tensor], Tensor]) -> Rollout:
        tensors: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        changed: dict[str, Any] = {name: t if t is None else change(name, t) for name, t in tensors.items()}
        return Rollout(**changed)


def broadcast_chunk(chunk: Rollout | None, owner: int, processes: ProcessGroup, device: torch.device) -> Rollout:
    """Send a chunk from the process ``owner`` to all others. In the other processes ``chunk`` is None."""
    if processes.size == 1:
        assert chunk is not None
        return chunk
    names = [f.name for f in fields(Rollout)]
    tensors = {name: None if chunk is None else getattr(chunk, name) for name in names}
    mask = None if chunk is None else torch.tensor([tensors[name] is not None for name in names])
    is_set = processes.broadcast(mask, owner, device).tolist()
    set_names = [name for name, flag in zip(names, is_set, strict=True) if flag]
    return Rollout(**{name: processes.broadcast(tensors[name], owner, device) for name in set_names})


def concatenate_rollouts(parts: list[Rollout], dim: int) -> Rollout:
    """Join chunks along the trajectories (``dim`` 0) or the inputs (``dim`` 1)."""
    if len(parts) == 1:
        return parts[0]

    def concatenate(name: str, dim: int) -> Any:
        tensors = [getattr(p, name) for p in parts]
        return None if tensors[0] is None else torch.cat(tensors, dim)

    work = torch.stack([p.work for p in parts]).sum(0) if dim == 0 else torch.cat([p.work for p in parts])
    columns = {name: concatenate(name, dim) for name in ("tokens", "score", "steps", "value")}
    return Rollout(**columns, work=work, history=concatenate("history", dim + 1))
