"""What to do with a puzzle of a size that a checkpoint does not have."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pyro_gram
from pyro_gram.errors import ConfigError, UserError
from pyro_gram.system.files import read_json

if TYPE_CHECKING:
    from pyro_gram.tasks.base import Task

CHECKPOINTS = Path(pyro_gram.__file__).parents[1] / "checkpoints"  # those that come with the package


def suggest_checkpoint(task: Task, field: str, value: int) -> str:
    """Names the checkpoint that fits, or the command that trains one.

    Args:
        task: of the checkpoint that does not fit.
        field: of its config, the size.
        value: what the puzzle has.
    """
    kind = type(task)
    try:
        kind.Config(**{field: value})
    except ConfigError as e:
        return f"no checkpoint can have it ({e})"
    name = kind.registered_name or f"{kind.__module__}:{kind.__qualname__}"
    fits = [path for path, size in _sizes(CHECKPOINTS, name, field) if size == value]
    if not fits:
        command = f"python experiments/run.py --task {name} --task.{field} {value} --out runs/{field}{value}"
        return f"no checkpoint here has it; train one: {command}"
    path = min(fits, key=lambda path: (len(path.name), path.name)).with_suffix(".safetensors")
    return f"--checkpoint {_short(path)} has {field} = {value}"


@cache
def _sizes(folder: Path, name: str, field: str) -> list[tuple[Path, object]]:
    """The checkpoints of a folder, each with its size; read once, as a file may hold a thousand wrong inputs."""
    return [(path, _size(path, name, field)) for path in folder.glob("*.json")]


def _size(path: Path, name: str, field: str) -> object:
    """The size that a checkpoint's config has; None for another task, a file of results, or one without weights."""
    try:
        config = read_json(path)
        if config["names"]["task"] != name or not path.with_suffix(".safetensors").is_file():
            return None
        return config["task"][field]
    except (UserError, KeyError, TypeError):
        return None


def _short(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
