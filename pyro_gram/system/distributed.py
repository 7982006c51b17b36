"""Several processes that train one run together: each takes its share of every batch, and all keep the same weights.

``torchrun --nproc-per-node=N experiments/run.py ...`` starts them. A batch is the batch of one process, and so are its
draws: every process draws for the whole batch and keeps its own rows, so that N processes compute what one would, up to
the order in which floats are summed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from pyro_gram.errors import ConfigError, UserError
from pyro_gram.system.rendezvous import Launch, LostProcessError, has_met, join, number_of, reason

T = TypeVar("T")

PATIENCE = timedelta(hours=2)  # with the process that draws figures and writes the report while the others wait


@dataclass(frozen=True)
class ProcessGroup:
    """The processes of a run, seen from one of them. One process is a group too.

    Attributes:
        rank: which of them this is.
        size: how many there are.
        device: where they exchange tensors.
        restarts: how often torchrun has started them anew.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")  # noqa: RUF009 (immutable)
    restarts: int = 0

    @property
    def is_main(self) -> bool:
        """Is this the one that writes files, and talks?"""
        return self.rank == 0

    def shard(self, tensor: Tensor, dim: int = 0) -> Tensor:
        """This process's share of a batch."""
        return tensor.chunk(self.size, dim)[self.rank] if self.size > 1 else tensor

    def all_gather(self, tensor: Tensor) -> Tensor:
        """The batch that the shares are of, along dim 0, in every process."""
        if self.size == 1:
            return tensor
        sent = tensor.to(self.device).contiguous()
        sent = sent.byte() if tensor.dtype == torch.bool else sent
        parts = [torch.empty_like(sent) for _ in range(self.size)]
        _try(lambda: dist.all_gather(parts, sent))
        return torch.cat(parts).to(tensor.device, tensor.dtype)

    def all_reduce_mean(self, tensor: Tensor) -> Tensor:
        """The mean over the processes, in a new tensor where there are several."""
        if self.size == 1:
            return tensor
        mean = tensor.to(self.device, copy=True)
        _try(lambda: dist.all_reduce(mean))
        return mean.div_(self.size).to(tensor.device)

    def all_reduce_mean_(self, tensors: Sequence[Tensor]) -> None:
        """The same in place, of many tensors of one kind at once."""
        if self.size == 1 or not tensors:
            return
        flat = torch._utils._flatten_dense_tensors(tensors)
        _try(lambda: dist.all_reduce(flat))
        flat.div_(self.size)
        found = torch._utils._unflatten_dense_tensors(flat, tensors)
        torch._foreach_copy_(list(tensors), list(found))

    def broadcast_(self, tensors: Sequence[Tensor]) -> None:
        """Let every process have what the first one has, in place."""
        if self.size > 1:
            for tensor in tensors:
                tensor.copy_(self.broadcast(tensor, 0, tensor.device))

    def all_equal(self, value: float) -> bool:
        """Have all processes the same value?"""
        return self.all_reduce_max(value) == -self.all_reduce_max(-value)

    def all_reduce_max(self, value: float) -> float:
        """The greatest of the processes' values."""
        return self._reduced(value, dist.ReduceOp.MAX)

    def from_main(self, value: float) -> float:
        """The value of the first process."""
        return self._reduced(value if self.rank == 0 else -float("inf"), dist.ReduceOp.MAX)

    def _reduced(self, value: float, by: Any) -> float:
        if self.size == 1:
            return value
        held = torch.tensor([value], device=self.device, dtype=torch.float64)
        _try(lambda: dist.all_reduce(held, op=by))
        return held.item()

    def broadcast(self, tensor: Tensor | None, owner: int, device: torch.device) -> Tensor:
        """A tensor that one process has, in all of them. Its shape and type travel with it."""
        about = torch.zeros(10, dtype=torch.long, device=self.device)
        if tensor is not None:
            about[:2] = torch.tensor([KINDS.index(tensor.dtype), tensor.ndim])
            about[2 : 2 + tensor.ndim] = torch.tensor(tensor.shape, dtype=torch.long)
        _try(lambda: dist.broadcast(about, owner))
        kind, ndim, *shape = about.tolist()
        dtype = KINDS[kind]
        wire = torch.uint8 if dtype == torch.bool else dtype
        held = (
            torch.empty(shape[:ndim], dtype=wire, device=self.device)
            if tensor is None
            else tensor.to(self.device, wire).contiguous()
        )
        _try(lambda: dist.broadcast(held, owner))
        return held.to(device, dtype)

    def barrier(self) -> None:
        """Until every process is here."""
        self.all_reduce_max(0.0)

    @contextmanager
    def draws(self, dim: int = 0) -> Iterator[None]:
        """Within it, what torch draws for a share of a batch, along ``dim``, are the rows of a draw for all of it."""
        if self.size == 1:
            yield
            return
        with _DrawnForAll(self, dim):
            yield


SINGLE_PROCESS = ProcessGroup()
KINDS = (torch.float32, torch.float64, torch.int64, torch.bool, torch.uint8, torch.int32, torch.bfloat16)


def start(device: torch.device) -> tuple[ProcessGroup, torch.device]:
    """Join the processes that torchrun has started, or be alone.

    Returns:
        the processes, and this process's own device: ``cuda`` becomes ``cuda:LOCAL_RANK``.

    Raises:
        ConfigError: several processes on a device that has no way to exchange tensors, or more processes than GPUs;
            variables of a launcher that are incomplete or no numbers.
        LostProcessError: another process has not come within ``rendezvous.JOINING``.
    """
    size, restarts = number_of("WORLD_SIZE", 1, 1), number_of("TORCHELASTIC_RESTART_COUNT", 0, 0)
    if size == 1:
        return ProcessGroup(restarts=restarts), device
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(
            f"{size} processes (WORLD_SIZE) cannot share a run on {device.type}: use cpu or cuda, or unset WORLD_SIZE"
        )
    launch, local = Launch.read(size), number_of("LOCAL_RANK", 0, 0)
    if device.type == "cuda":
        if local >= torch.cuda.device_count():
            raise ConfigError(f"process {local} of this machine has no GPU: it has {torch.cuda.device_count()}")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    join(launch, device, PATIENCE)
    processes = ProcessGroup(dist.get_rank(), dist.get_world_size(), device, restarts)
    return replace(processes, restarts=int(processes.all_reduce_max(restarts))), device


def leave(code: int) -> int:
    """The end of a program: its exit code, with which one of several processes ends at once.

    Otherwise threads of the exchange, torn down while another process ends too, now and then abort one that is done;
    one that still waits for others would not end, and a store that is open aborts it.
    """
    if dist.is_available() and (dist.is_initialized() or has_met()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def check_batch(batch: int, processes: ProcessGroup) -> None:
    """Raises ConfigError where a batch cannot be shared evenly."""
    if batch % processes.size:
        raise ConfigError(
            f"a batch of {batch} cannot be shared by {processes.size} processes: set train.batch to a multiple of "
            f"{processes.size} (a batch is at most the training split)"
        )


def _try(collective: Callable[[], T]) -> T:
    try:
        return collective()
    except RuntimeError as e:  # DistBackendError is one
        raise LostProcessError(
            f"the processes of this run cannot exchange tensors ({reason(e)}): another of them is "
            "gone, or has failed; the last saved state goes on with --resume, torchrun --max-restarts does so by itself"
        ) from None


FACTORIES = {torch.rand, torch.randn}
LIKE = {torch.normal, torch.bernoulli, torch.multinomial, Tensor.bernoulli, Tensor.multinomial}
LIKE |= {torch.rand_like, torch.randn_like, torch.randint_like, torch.dropout, F.dropout}
# How often these draw depends on the values, of the other processes too.
BY_VALUE = {torch._standard_gamma, torch._sample_dirichlet, torch.poisson, torch.binomial}
IN_PLACE = {
    getattr(Tensor, f"{name}_")
    for name in ("normal", "uniform", "exponential", "bernoulli", "cauchy", "geometric", "log_normal", "random")
}
OTHERS = {torch.randperm, F.alpha_dropout, F.feature_alpha_dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.rrelu}


class _DrawnForAll(TorchFunctionMode):
    """Draws for every process, and keeps this one's rows. What has no dimensions is drawn once, as it is.

    Raises:
        UserError: a draw that is no draw of rows.
    """

    def __init__(self, processes: ProcessGroup, dim: int) -> None:
        super().__init__()
        self.processes, self.dim = processes, dim

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in FACTORIES or func is torch.randint:
            return self._factory(func, args, kwargs)
        if func in LIKE:
            return self._like(func, args, kwargs)
        if func in BY_VALUE:
            return self._by_value(func, args)
        if func in IN_PLACE and args[0].ndim:
            held, *rest = self._for_all(args[0], *args[1:])
            return args[0].copy_(self.processes.shard(func(held, *rest, **kwargs), self.dim))
        if func in OTHERS:
            name = getattr(func, "__name__", func)
            raise UserError(
                f"{name} cannot be shared by several processes: draw by distributions and by rows, or for the whole "
                "batch at once (pyro_gram.system.distributed.for_whole_batch)"
            )
        return func(*args, **kwargs)

    def _like(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if func is torch.normal and ("size" in kwargs or isinstance(args[-1], tuple | list)):
            size = list(kwargs["size"] if "size" in kwargs else args[-1])
            size[self.dim : self.dim + 1] = [n * self.processes.size for n in size[self.dim : self.dim + 1]]
            args, kwargs = (args, kwargs | {"size": size}) if "size" in kwargs else ((*args[:-1], size), kwargs)
            return self._rows(func(*args, **kwargs))
        found = self._for_all(*args, *kwargs.values())
        return self._rows(func(*found[: len(args)], **dict(zip(kwargs, found[len(args) :], strict=True))))

    def _by_value(self, func: Any, args: Any) -> Any:
        given = [a.detach() for a in args if isinstance(a, Tensor)]
        if not torch.broadcast_shapes(*(a.shape for a in given)):
            return func(*args)
        whole = [self.processes.all_gather(a.transpose(0, self.dim)).transpose(0, self.dim) for a in _broadcast(given)]
        drawn = self.processes.shard(func(*whole), self.dim)
        if func is torch._standard_gamma and args[0].requires_grad:
            return _Reparameterized.apply(args[0], drawn)
        return drawn

    def _rows(self, drawn: Tensor) -> Tensor:
        return self.processes.shard(drawn, self.dim) if drawn.ndim else drawn

    def _for_all(self, *values: Any) -> list[Any]:
        """Tensors of a share, as they would be for the whole batch; all else as it is."""
        tensors = _broadcast([v for v in values if isinstance(v, Tensor)])
        if not tensors or not tensors[0].ndim:
            return list(values)
        whole = iter([torch.cat([t] * self.processes.size, self.dim) for t in tensors])
        return [next(whole) if isinstance(v, Tensor) else v for v in values]

    def _factory(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor:
        args = list(args)
        if "size" in kwargs:
            size = kwargs.pop("size")
        elif args and isinstance(args[-1], tuple | list | torch.Size):
            size = args.pop()
        else:
            size, args = (args, []) if func is not torch.randint else (args.pop(), args)
        size = list(size)
        if not size:
            return func(*args, size, **kwargs)
        size[self.dim] *= self.processes.size
        return self.processes.shard(func(*args, size, **kwargs), self.dim)


def _broadcast(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    return torch.broadcast_tensors(*tensors) if tensors else ()


class _Reparameterized(torch.autograd.Function):
    """A standard gamma's draw, which has been drawn already, and its gradient by the concentration."""

    @staticmethod
    def forward(ctx: Any, concentration: Tensor, drawn: Tensor) -> Tensor:
        ctx.save_for_backward(concentration, drawn)
        return drawn.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * torch._standard_gamma_grad(*ctx.saved_tensors), None


def for_whole_batch(make: Callable[[int], Tensor], count: int) -> Tensor:
    """Return ``make(count)``; within :meth:`ProcessGroup.draws`, this process's rows of a draw for the whole batch."""
    mode = next((m for m in reversed(_get_current_function_mode_stack()) if isinstance(m, _DrawnForAll)), None)
    if mode is None:
        return make(count)
    with torch._C.DisableTorchFunction():
        return mode.processes.shard(make(count * mode.processes.size))
