"""Advice for a user whose puzzle has another size than the puzzles of the loaded checkpoint."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from pyro_gram.errors import ConfigError, UserError
from pyro_gram.system.files import read_json

if TYPE_CHECKING:
    from pyro_gram.tasks.base import Task

CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"  # the checkpoints that come with the package


def suggest_checkpoint(task: Task, field: str, value: int) -> str:
    """Return advice: the option that loads a checkpoint of the right size, or the command that trains one.

    Args:
        task: the task of the checkpoint that does not fit.
        field: the field of the task's config that holds the size.
        value: the size of the user's puzzle.
    """
    task_class = type(task)
    name = task_class.registered_name or f"{task_class.__module__}:{task_class.__qualname__}"
    path = checkpoint_of_size(name, field, value)
    if path is None:
        return suggest_training(task_class, name, field, value)
    display_path = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    return f"--checkpoint {display_path} has {field} = {value}"


def suggest_training(task_class: type[Task], name: str, field: str, value: int) -> str:
    """Return the command that trains a checkpoint of a size that no checkpoint has, or why there can be none."""
    try:
        task_class.Config(**{field: value})
    except ConfigError as e:
        return f"no checkpoint can have this size ({e})"
    command = f"python experiments/run.py --task {name} --task.{field} {value} --out runs/{field}{value}"
    return f"no checkpoint here has this size; train one: {command}"


def checkpoint_of_size(name: str, field: str, value: int | None = None) -> Path | None:
    """Return the checkpoint of the task ``name`` with ``field = value`` that has the shortest name; None if none has.

    If ``value`` is None, checkpoints of any size count.
    """
    sizes = _checkpoint_sizes(CHECKPOINTS, name, field)
    paths = [path for path, size in sizes if size is not None and value in (None, size)]
    path = min(paths, key=lambda path: (len(path.name), path.name), default=None)
    return path and path.with_suffix(".safetensors")


@cache
def _checkpoint_sizes(folder: Path, name: str, field: str) -> list[tuple[Path, object]]:
    """List the checkpoints of a folder with their sizes. The list is cached, because every wrong input needs it."""
    return [(path, _checkpoint_size(path, name, field)) for path in folder.glob("*.json")]


def _checkpoint_size(path: Path, name: str, field: str) -> object:
    """Return the size in a checkpoint's config; None if the checkpoint is for another task or has no weights."""
    try:
        config = read_json(path)
        if config["names"]["task"] != name or not path.with_suffix(".safetensors").is_file():
            return None
        return config["task"][field]
    except (UserError, KeyError, TypeError):  # the file holds results, not a config
        return None
