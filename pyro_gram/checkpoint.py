"""Model checkpoints: averaged weights of model and guide in safetensors, with the config in the JSON header.

Nothing pickled is read or written.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from pyro_gram.build import build, build_task
from pyro_gram.checks import did_you_mean
from pyro_gram.config import RunConfig
from pyro_gram.errors import CheckpointError, ConfigError, reason
from pyro_gram.registry import TASKS
from pyro_gram.sampling.isolation import generator_lock
from pyro_gram.solver import Solver
from pyro_gram.system.files import TensorFile, open_tensor_file, write_tensor_file
from pyro_gram.tasks.base import Task
from pyro_gram.training.config import will_have_heads

MAX_BUFFER_BYTES = 2**28  # the limit for all buffers of a model (angles, masks); checkpoints do not store buffers
MODEL_FILE = "model.safetensors"  # in the directory of a run
NO_CHECKPOINTS = (
    "the installed package comes without checkpoints: clone its repository, and give the path of a .safetensors file "
    "in its folder checkpoints"
)
CALLS_PER_TENSOR = 400  # limit on calls of torch functions while a model is built, for each stored tensor


def save_model(path: Path, solver: Solver, *, half: bool = False) -> None:
    """Write a model checkpoint, atomically: the weights of model and guide, the config and the task's provenance.

    Args:
        path: the file.
        solver: the model with its task, guide and config.
        half: store the weights as bfloat16, which halves the file; :func:`load` makes them float32 again.
    """
    tensors = dict(solver.modules.state_dict())
    if half:
        tensors = {k: v.bfloat16() if v.is_floating_point() else v for k, v in tensors.items()}
    header = {"kind": "model", "config": solver.config.to_dict(), "data": solver.task.provenance()}
    write_tensor_file(path, tensors, header)


@generator_lock()  # building a model draws its initial weights
def load(path: str | Path, data_dir: str | None = None, *, trust_code: bool | Collection[str] = False) -> Solver:
    """Load a solver from a model checkpoint (``.safetensors``) or a run's directory.

    Args:
        path: the file, or the directory; or the name of a checkpoint of this repository (``"coloring"``).
        data_dir: the folder with the task's data files, if the task reads any.
        trust_code: may the checkpoint name classes outside pyro_gram (``package.module:Class``)? Loading imports the
            module of such a class, and so runs its code. True trusts any class; a collection trusts the paths in it.

    Raises:
        CheckpointError: the file is missing, damaged or of another format; its weights do not fit its config; or it
            names a class that is not trusted.
    """
    path = find_checkpoint(path)
    file = open_tensor_file(path, "model")
    try:
        config = RunConfig.from_dict(file.header.get("config", {}), trust_code)
        task = build_task(config, data_dir)
        check_fit(outline_misfits(file, config, task), path)
        solver = build_with_heads(config, data_dir, task)
    except ConfigError as e:
        settings, hint = file.header.get("config"), ""
        if isinstance(settings, dict) and "verdict" in settings:  # the part "heads" had this name
            hint = "; it is of an earlier version: convert it with experiments/studies/rewrite_headers.py"
        raise CheckpointError(f"{path} cannot be rebuilt from its settings: {e}{hint}") from None
    if task.spec.puzzles:  # embeddings are stored by puzzle number, so the numbers must not have changed
        check_same_data(path, file.header, task.provenance())
    modules = solver.modules
    check_fit(file.mismatched_names(modules.state_dict()), path)
    modules.load_state_dict(file.tensors())
    solver.model.eval()
    solver.guide.eval()
    return solver


def find_checkpoint(name: str | Path) -> Path:
    """Return the file of a checkpoint.

    Args:
        name: a file, or the directory of a run; or the name of a checkpoint of this repository, without folder and
            suffix. If there are both, the file is meant, or the directory if it holds a model.

    Raises:
        CheckpointError: ``name`` has neither folder nor suffix, and there is no such file, directory or checkpoint.
    """
    path = Path(name)
    file = path / MODEL_FILE if path.is_dir() else path
    if file.is_file() or path.suffix or path.name != str(name):
        return file
    return file if path.exists() and path.name not in named_checkpoints() else named_checkpoint(path.name)


def named_checkpoint(name: str) -> Path:
    """Return the checkpoint of this repository with this name. Raises CheckpointError if there is none."""
    from pyro_gram.tasks.advice import CHECKPOINTS

    names = named_checkpoints()
    if name in names:
        return CHECKPOINTS / f"{name}.safetensors"
    known = f"known names: {', '.join(names)}{did_you_mean(name, names)}" if names else NO_CHECKPOINTS
    raise CheckpointError(f"no checkpoint at {name}, and none has this name; {known}")


def checkpoint_for_puzzles(task: str, text: str) -> Path:
    """Return the checkpoint for the puzzles of a text: one that solves their size, or the one with the task's name.

    Args:
        task: the name of the task.
        text: the puzzles.

    Raises:
        UserError: there is no such task, or no checkpoint for it.
    """
    from pyro_gram.tasks.advice import checkpoint_of_size
    from pyro_gram.tasks.recognition import puzzle_sizes

    size = next(iter(puzzle_sizes(task, text)), None) if TASKS.get(task).size_field else None
    path = None if size is None else checkpoint_of_size(task, size)
    return path or named_checkpoint(task)


def named_checkpoints() -> list[str]:
    """Return the names of the checkpoints that come with the repository; a wheel has none."""
    from pyro_gram.tasks.advice import CHECKPOINTS

    return sorted(path.stem for path in CHECKPOINTS.glob("*.safetensors"))


def build_with_heads(config: RunConfig, data_dir: str | None, task: Task) -> Solver:
    """Build a solver with untrained weights, and with heads if its settings ask for them. Raises ConfigError."""
    solver = build(config, data_dir, task)
    if will_have_heads(solver.model, config.heads):
        from pyro_gram.training.heads import attach_heads

        attach_heads(solver.model, config.model, task, config.heads, config.seed)
    return solver


def outline_misfits(file: TensorFile, config: RunConfig, task: Task) -> list[str]:
    """Return the names of tensors in a file that do not fit the settings in its header.

    An untrusted file may ask for a model of any size, so the model is built on torch's device "meta", which allocates
    no memory. Models of the user's own classes are not checked, because they may not work on that device.

    Raises:
        ConfigError: no model can be built from the settings, or its buffers take too much memory.
    """
    if any(":" in name for name in config.names.values()):
        return []
    try:
        with CallLimit(CALLS_PER_TENSOR * (len(file.shapes) + 1)), torch.device("meta"):
            modules = build_with_heads(config, None, task).modules
            misfits = file.mismatched_names(modules.state_dict())
    except (RuntimeError, TypeError, OverflowError, MemoryError) as e:
        raise ConfigError(f"they describe no model that can be built: {reason(e)}") from None
    num_bytes = sum(buffer.numel() * buffer.element_size() for buffer in modules.buffers())
    if num_bytes > MAX_BUFFER_BYTES:
        raise ConfigError(f"they describe a model whose buffers take {num_bytes // 2**20:,} MiB beside its weights")
    return misfits


class CallLimit(TorchFunctionMode):
    """Limits the calls of torch functions in a ``with`` block, so that a model of a billion layers is refused early."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.calls_left = calls

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls_left -= 1
        if self.calls_left < 0:
            raise ConfigError("they describe more layers than the file has tensors")
        return func(*args, **(kwargs or {}))


def is_half(path: Path) -> bool:
    """Are the weights of a model checkpoint stored as bfloat16? Raises CheckpointError as :func:`load` does."""
    return open_tensor_file(path, "model").half


def check_same_data(path: Path, header: dict[str, Any], data: dict[str, str]) -> None:
    """Raise CheckpointError if the files of a task are not the ones that the checkpoint was made with.

    Args:
        path: the checkpoint, for messages.
        header: the header of the checkpoint.
        data: the provenance of the task's present files.
    """
    saved_data = header.get("data", {})
    for name in sorted(set(saved_data) & set(data)):
        if saved_data[name] != data[name]:
            raise CheckpointError(
                f"{path} was made with other data ({name}: {saved_data[name]} then, {data[name]} now): use the files "
                "that it was trained with"
            )


def check_fit(misfits: list[str], path: Path) -> None:
    """Raise CheckpointError if some tensors of a file do not fit its config."""
    if misfits:
        raise CheckpointError(f"{path} does not fit its own config: {len(misfits)} tensors differ, first {misfits[0]}")
