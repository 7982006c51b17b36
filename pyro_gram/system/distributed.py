"""Several processes train one run together. Each works on its share of every batch; all have the same weights.

``torchrun --nproc-per-node=N experiments/run.py ...`` starts the processes. They divide the batch that one process
would train on, and average their gradients. Each process has its own generator, so N processes and a single process
draw different samples, but they estimate the same gradient.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from pyro_gram.errors import ConfigError
from pyro_gram.system.rendezvous import Launch, LostProcessError, has_joined, join, read_number, reason

T = TypeVar("T")

TIMEOUT = timedelta(
    hours=2
)  # the limit of one exchange: other processes wait while the main process writes figures and report


@dataclass(frozen=True)
class ProcessGroup:
    """The processes of a run, seen from one of them. A single process is a group too.

    Attributes:
        rank: the number of this process.
        size: the number of processes.
        device: the device of the tensors that the processes exchange.
        restarts: how often torchrun has restarted the processes.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")  # noqa: RUF009 (immutable)
    restarts: int = 0

    @property
    def is_main(self) -> bool:
        """Is this the main process, which writes files and prints?"""
        return self.rank == 0

    def shard(self, tensor: Tensor, dim: int = 0) -> Tensor:
        """Return this process's share of a batch."""
        return tensor.chunk(self.size, dim)[self.rank] if self.size > 1 else tensor

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Return the shards of all processes, joined along dim 0. Every process gets the same result."""
        if self.size == 1:
            return tensor
        shard = _on_wire(tensor, self.device)
        shards = [torch.empty_like(shard) for _ in range(self.size)]
        _try(lambda: dist.all_gather(shards, shard))
        return torch.cat(shards).to(tensor.device, tensor.dtype)

    def all_reduce_mean_(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors of one type by their means over the processes, in one exchange."""
        if self.size == 1 or not tensors:
            return
        flat = torch._utils._flatten_dense_tensors(tensors)
        _try(lambda: dist.all_reduce(flat))
        flat.div_(self.size)
        torch._foreach_copy_(list(tensors), list(torch._utils._unflatten_dense_tensors(flat, tensors)))

    def broadcast_(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by those of the main process."""
        if self.size > 1:
            for tensor in tensors:
                tensor.copy_(self.broadcast(tensor, 0, tensor.device))

    def all_equal(self, value: float) -> bool:
        """Do all processes have the same value?"""
        return self.all_reduce_max(value) == -self.all_reduce_max(-value)

    def from_main(self, value: float) -> float:
        """Return the main process's value."""
        return self.all_reduce_max(value if self.is_main else -float("inf"))

    def all_reduce_max(self, value: float) -> float:
        """Return the greatest of the processes' values."""
        if self.size == 1:
            return value
        tensor = torch.tensor([value], device=self.device, dtype=torch.float64)
        _try(lambda: dist.all_reduce(tensor, op=dist.ReduceOp.MAX))
        return tensor.item()

    def barrier(self) -> None:
        """Wait until every process has called this method."""
        self.all_reduce_max(0.0)

    def broadcast(self, tensor: Tensor | None, owner: int, device: torch.device) -> Tensor:
        """Return the tensor of the process ``owner``, in all processes. Other processes may pass None as ``tensor``."""
        header = torch.zeros(10, dtype=torch.long, device=self.device)  # type, number of dimensions, shape
        if tensor is not None:
            header[:2] = torch.tensor([DTYPES.index(tensor.dtype), tensor.ndim])
            header[2 : 2 + tensor.ndim] = torch.tensor(tensor.shape, dtype=torch.long)
        _try(lambda: dist.broadcast(header, owner))
        index, ndim, *shape = header.tolist()
        if tensor is None:
            tensor = torch.empty(shape[:ndim], dtype=DTYPES[index])
        buffer = _on_wire(tensor, self.device)
        _try(lambda: dist.broadcast(buffer, owner))
        return buffer.to(device, DTYPES[index])


SINGLE_PROCESS = ProcessGroup()
DTYPES = (torch.float32, torch.float64, torch.int64, torch.bool, torch.uint8, torch.int32, torch.bfloat16)


def start(device: torch.device) -> tuple[ProcessGroup, torch.device]:
    """Join the processes that torchrun has started. Without torchrun there is only one process.

    Returns:
        the group, and this process's own device: ``cuda`` becomes ``cuda:LOCAL_RANK``.

    Raises:
        ConfigError: the device cannot exchange tensors between processes; there are more processes than GPUs; or the
            environment variables of the launcher are incomplete or not numbers.
        LostProcessError: another process has not joined within ``rendezvous.JOIN_TIMEOUT``.
    """
    size, restarts = read_number("WORLD_SIZE", 1, 1), read_number("TORCHELASTIC_RESTART_COUNT", 0, 0)
    if size == 1:
        return ProcessGroup(restarts=restarts), device
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(
            f"{size} processes (WORLD_SIZE) cannot share a run on {device.type}: use cpu or cuda, or unset WORLD_SIZE"
        )
    launch, local_rank = Launch.read(size), read_number("LOCAL_RANK", 0, 0)
    if device.type == "cuda":
        if local_rank >= torch.cuda.device_count():
            raise ConfigError(f"process {local_rank} of this machine has no GPU: it has {torch.cuda.device_count()}")
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    join(launch, device, TIMEOUT)
    processes = ProcessGroup(dist.get_rank(), dist.get_world_size(), device, restarts)
    return replace(processes, restarts=int(processes.all_reduce_max(restarts))), device


def leave(code: int) -> int:
    """Return a program's exit code. If this process is one of several, end it at once with this code instead.

    A normal exit would hang if this process still waits for others. It would also end the threads of the exchange, and
    this sometimes aborts a process that has finished.
    """
    if dist.is_available() and (dist.is_initialized() or has_joined()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def check_batch(batch: int, processes: ProcessGroup) -> None:
    """Raise ConfigError if a batch cannot be shared evenly."""
    if batch % processes.size:
        raise ConfigError(
            f"a batch of {batch} cannot be shared by {processes.size} processes: set train.batch to a multiple of "
            f"{processes.size} (a batch is never larger than the training split)"
        )


def _on_wire(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor in the form that is exchanged: on the group's device, and with bytes for booleans."""
    return tensor.to(device, torch.uint8 if tensor.dtype == torch.bool else tensor.dtype).contiguous()


def _try(collective: Callable[[], T]) -> T:
    try:
        return collective()
    except RuntimeError as e:  # DistBackendError is a subclass
        raise LostProcessError(
            f"the processes of this run cannot exchange tensors ({reason(e)}): another process has "
            "ended or failed; --resume continues from the last saved state, and so does torchrun --max-restarts"
        ) from None
