"""Advice for a user whose puzzle has another size than the puzzles of the loaded checkpoint."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyro_gram.errors import ConfigError, UserError
from pyro_gram.registry import TASKS
from pyro_gram.system.files import read_json, read_toml_tables

if TYPE_CHECKING:
    from pyro_gram.tasks.base import Task

CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"  # the checkpoints that come with the package
PRESETS = Path(__file__).parents[2] / "experiments" / "presets"
DEFAULT_PRESET, LAPTOP_PRESETS = "cpu", ("cpu", "sizes")  # a preset whose name begins so is for a laptop


def suggest_checkpoint(task: Task, size: int) -> str:
    """Return advice: the option that loads a checkpoint of the right size, or the command that trains one.

    Args:
        task: the task of the checkpoint that does not fit.
        size: the size of the user's puzzle.
    """
    task_class = type(task)
    name = task_class.registered_name or f"{task_class.__module__}:{task_class.__qualname__}"
    path = checkpoint_of_size(name, size)
    if path is None:
        return suggest_training(task_class, name, size)
    display_path = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    return f"--checkpoint {display_path} solves {task_class.size_field} = {size}"


def suggest_training(task_class: type[Task], name: str, size: int) -> str:
    """Return the command that trains a checkpoint of a size that no checkpoint has, or why there can be none."""
    field, settings = task_class.size_field, _settings_of_presets(name)
    command = f"no checkpoint here has this size; train one: python experiments/run.py --task {name}"
    sizes_of = {preset: task_class.Config(**table).solved_sizes for preset, table in settings.items()}
    for preset, sizes in sizes_of.items():
        if size in sizes:
            return f"{command} --preset {preset}"
    try:
        task_class.Config(**{**settings.get(DEFAULT_PRESET, {}), field: size})
    except ConfigError as e:
        all_sizes = sorted({*itertools.chain(*sizes_of.values())})
        listed = f"{all_sizes[0]} to {all_sizes[-1]}" if len(all_sizes) > 5 else ", ".join(map(str, all_sizes))
        reason = f"the presets have {listed}" if all_sizes else str(e)
        return f"no checkpoint can have this size ({reason})"
    return f"{command} --task.{field} {size} --out runs/{field}{size}"


@cache
def _settings_of_presets(name: str) -> dict[str, dict[str, Any]]:
    """Return the settings of a task in each of its presets for a laptop; nothing without the repository.

    The settings are cached, because every wrong input needs them.
    """
    path = PRESETS / f"{name}.toml"
    tables = read_toml_tables(path) if path.is_file() else {}
    return {preset: table.get("task", {}) for preset, table in tables.items() if preset.startswith(LAPTOP_PRESETS)}


def checkpoint_of_size(name: str, size: int) -> Path | None:
    """Return the checkpoint of the task ``name`` that solves inputs of a size; None if none does.

    Of several checkpoints the one with the shortest name is returned.
    """
    paths = [path for path, sizes in _checkpoint_sizes(CHECKPOINTS, name) if size in sizes]
    return min(paths, key=lambda path: (len(path.name), path.name), default=None)


@cache
def _checkpoint_sizes(folder: Path, name: str) -> list[tuple[Path, Collection[int]]]:
    """List the checkpoints of a task with the sizes that they solve. The list is cached: every wrong input needs it."""
    checkpoints: list[tuple[Path, Collection[int]]] = []
    for path in folder.glob("*.json"):
        weights = path.with_suffix(".safetensors")
        try:
            config = read_json(path)
            if config["names"]["task"] == name and weights.is_file():
                checkpoints.append((weights, TASKS.get(name).Config(**config["task"]).solved_sizes))
        except (UserError, KeyError, TypeError):  # the file holds results, not a config
            continue
    return checkpoints
