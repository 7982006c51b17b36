"""Model checkpoints: averaged weights of model and guide in safetensors, their config in its JSON header.

Nothing pickled is read or written.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pyro_gram.build import build, build_task
from pyro_gram.config import RunConfig
from pyro_gram.errors import CheckpointError, ConfigError
from pyro_gram.sampling.isolation import generator_lock
from pyro_gram.solver import Solver
from pyro_gram.system.files import TensorFile, open_tensor_file, write_tensor_file
from pyro_gram.system.rendezvous import reason
from pyro_gram.tasks.base import Task
from pyro_gram.training.averaging import pair
from pyro_gram.training.heads import attach_heads, will_have_heads

MAX_TABLES = 2**28  # bytes of what a model keeps beside its weights (angles, masks): they are in no file
CALLS = 400  # of torch's functions, for each tensor that a model has, in building it


def save_model(path: Path, solver: Solver, *, half: bool = False) -> None:
    """Write a model checkpoint, atomically: the weights of model and guide, the config and the task's provenance.

    Args:
        path: the file.
        solver: the model with its task, guide and config.
        half: keep weights as bfloat16, at half the size; they are float32 again once loaded.
    """
    tensors = dict(pair(solver.model, solver.guide).state_dict())
    if half:
        tensors = {k: v.bfloat16() if v.is_floating_point() else v for k, v in tensors.items()}
    header = {"kind": "model", "config": solver.config.to_dict(), "data": solver.task.provenance()}
    write_tensor_file(path, tensors, header)


@generator_lock()  # initial weights are drawn
def load(path: str | Path, data_dir: str | None = None, *, trust_code: bool | Collection[str] = False) -> Solver:
    """Load a solver from a model checkpoint (``.safetensors``) or a run's directory.

    Args:
        path: the file, or the directory.
        data_dir: where a task that reads files finds them.
        trust_code: may the checkpoint name classes outside pyro_gram (``package.module:Class``)? Their module is
            imported, which runs its code. True for any; or the paths that the user has named.

    Raises:
        CheckpointError: missing, damaged, of another format, weights that do not fit the config, or code that is not
            trusted.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "model.safetensors"
    held = open_tensor_file(path, "model")
    try:
        config = RunConfig.from_dict(held.header.get("config", {}), trust_code)
        task = build_task(config, data_dir)
        check_fit(outline_misfits(held, config, task), path)
        solver = build(config, data_dir, task)
        if will_have_heads(solver.model, config.heads):
            attach_heads(solver.model, task, config.heads, config.seed)
    except ConfigError as e:
        raise CheckpointError(f"{path} cannot be rebuilt from its settings: {e}") from None
    if solver.task.spec.puzzles:  # which embedding is whose
        check_same_data(path, held.header, solver.task.provenance())
    whole = pair(solver.model, solver.guide)
    check_fit(held.mismatched_names(whole.state_dict()), path)
    _fill(whole, held.tensors())
    solver.model.eval()
    solver.guide.eval()
    return solver


def outline_misfits(held: TensorFile, config: RunConfig, task: Task) -> list[str]:
    """The tensors of a file that do not fit its settings, found without memory for those that the settings ask for.

    Classes of a user's own may not build without numbers: what they would take is not looked at.

    Raises:
        ConfigError: the settings describe a model that is larger than any.
    """
    if any(":" in name for name in config.names.values()):
        return []
    try:
        with AtMost(CALLS * (len(held.shapes) + 1)), torch.device("meta"):
            solver = build(config, None, task)
            if will_have_heads(solver.model, config.heads):
                attach_heads(solver.model, task, config.heads, config.seed)
            whole = pair(solver.model, solver.guide)
            misfits = held.mismatched_names(whole.state_dict())
    except (RuntimeError, TypeError, OverflowError, MemoryError) as e:
        raise ConfigError(f"they describe no model that can be built: {reason(e)}") from None
    tables = sum(buffer.numel() * buffer.element_size() for buffer in whole.buffers())
    if tables > MAX_TABLES:
        raise ConfigError(f"they describe a model whose tables take {tables // 2**20:,} MiB beside its weights")
    return misfits


class AtMost(TorchFunctionMode):
    """Within it, torch's functions may be called so many times: a model of a billion layers is never made."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.left = calls

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.left -= 1
        if self.left < 0:
            raise ConfigError("they describe more layers than it has tensors")
        return func(*args, **(kwargs or {}))


def is_half(path: Path) -> bool:
    """Are a model checkpoint's weights kept as bfloat16? Raises CheckpointError as :func:`load`."""
    return open_tensor_file(path, "model").half


def check_same_data(path: Path, header: dict[str, Any], data: dict[str, str]) -> None:
    """Raises CheckpointError where the files that a task found are not those that the checkpoint was made with."""
    made = header.get("data", {})
    for name in sorted(set(made) & set(data)):
        if made[name] != data[name]:
            raise CheckpointError(
                f"{path} was made with other data ({name}: {made[name]} then, {data[name]} now): give it the files "
                "that it was trained with"
            )


def check_fit(misfits: list[str], path: Path) -> None:
    if misfits:
        raise CheckpointError(f"{path} does not fit its own config: {len(misfits)} tensors differ, first {misfits[0]}")


def _fill(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    with torch.no_grad():
        module.load_state_dict(tensors)
