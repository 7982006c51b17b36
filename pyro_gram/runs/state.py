"""Save and load a training state: ``Trainer.state_dict`` gives tensors (as safetensors) and numbers (as JSON).

A tensor ``NAME`` of the part ``PART`` of the state is stored as ``PART/NAME``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from pyro_gram.checkpoint import check_fit, check_same_data
from pyro_gram.config import RunConfig
from pyro_gram.errors import CheckpointError, ConfigError, UserError, reason
from pyro_gram.system.files import open_tensor_file, write_tensor_file
from pyro_gram.training.trainer import Trainer
from pyro_gram.version import __version__

LAYOUT = 2  # version of the file format; increased when older files can no longer be read
MAX_DIFFERENCES = 4  # how many differing settings a message lists
# These settings may differ between a run and its resumption.
FREE_TRAIN_FIELDS = ("batches", "minutes", "save_seconds", "evaluate_every", "precision", "compile")
FREE_PARTS = ("temper", "heads", "evaluate")


def save_state(path: Path, config: RunConfig, trainer: Trainer, data: dict[str, str] | None = None) -> None:
    """Write the training state atomically. All processes must call this; only the main process writes.

    Args:
        path: the file.
        config: the settings of the run.
        trainer: the trainer whose state is saved.
        data: the task's provenance.
    """
    state = trainer.state_dict()
    if not trainer.processes.is_main:
        return
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, Any]] = {}
    for part, entries in state.items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{part}/{name}"] = value
            else:
                numbers.setdefault(part, {})[name] = value
    header = {"kind": "training", "layout": LAYOUT, "config": config.to_dict(), "state": numbers, "data": data or {}}
    write_tensor_file(path, tensors, header)


def load_state(path: Path, config: RunConfig, trainer: Trainer, data: dict[str, str] | None = None) -> None:
    """Load a saved training state into a freshly built trainer.

    Raises:
        CheckpointError: the file is missing, damaged, of an older layout, or from a run with other data or settings.
            (The settings in ``FREE_TRAIN_FIELDS`` and ``FREE_PARTS`` may differ.)
    """
    try:
        _load_state(path, config, trainer, data or {})
    except UserError:  # the message of a UserError is complete already
        raise
    except KeyError as e:
        raise CheckpointError(f"{path} is damaged: the entry {e} of the training state is missing or unknown") from None
    except (ValueError, TypeError, OverflowError, IndexError, RuntimeError, AttributeError) as e:
        raise CheckpointError(f"{path} is damaged: its training state cannot be loaded ({reason(e)})") from None


def _load_state(path: Path, config: RunConfig, trainer: Trainer, data: dict[str, str]) -> None:
    container = open_tensor_file(path, "training")
    header = container.header
    if header.get("layout") != LAYOUT:
        raise CheckpointError(
            f"{path} has the layout {header.get('layout')!r} of a training state, and this version of pyro_gram reads "
            f"layout {LAYOUT!r}: finish the run with the version that began it, or start a new one in another --out"
        )
    saved_settings = _check_settings(path, header, config)
    check_same_data(path, header, data)
    check_fit(container.mismatched_names(trainer.modules.state_dict(), "weights/"), path)
    check_fit(container.mismatched_names(trainer.average.state_dict(), "average/"), path)
    state: dict[str, dict[str, Any]] = {part: {} for part in trainer.state_dict()}
    for part, numbers in header["state"].items():
        state[part].update(numbers)
    for name, tensor in container.tensors().items():
        part, _, key = name.partition("/")
        state[part][key] = tensor
    number = state["progress"]["number"]
    if 0 < config.train.batches < number:
        raise CheckpointError(
            f"{path} is the state after {number} batches, more than train.batches = {config.train.batches}: raise "
            "train.batches"
        )
    if state["carry"] and not config.train.act:
        raise CheckpointError(f"{path} holds unfinished trajectories, which only a run with train.act has")
    if any(saved_settings["train"][field] != vars(config.train)[field] for field in ("batches", "minutes")):
        state["progress"]["num_batches"] = None  # the trainer will fit the number of batches to the new length
    trainer.load_state_dict(state)


def _check_settings(path: Path, header: dict[str, Any], config: RunConfig) -> dict[str, Any]:
    """Return the saved settings. Raises CheckpointError if they cannot be read or belong to another run."""
    current = config.to_dict()
    try:
        # Compare the names first: no module may be imported just because a file names it.
        mismatches = differences(dict(header["config"]["names"]), current["names"], "names.")
        saved_settings = current
        if not mismatches:
            saved_settings = RunConfig.from_dict(header["config"], config.names.values()).to_dict()
    except (ConfigError, KeyError, TypeError, ValueError) as e:
        by = f", written by pyro_gram {header.get('version', 'of an unknown version')} (this is {__version__})"
        raise CheckpointError(f"{path} has a damaged header, or one of another version{by}: {e}") from None
    if not mismatches:
        compared_settings = {**saved_settings, **{part: current[part] for part in FREE_PARTS}}
        free_fields = {field: current["train"][field] for field in FREE_TRAIN_FIELDS}
        mismatches = differences({**compared_settings, "train": {**saved_settings["train"], **free_fields}}, current)
    if mismatches:
        ending = f", and {len(mismatches) - MAX_DIFFERENCES} more" if len(mismatches) > MAX_DIFFERENCES else ""
        examples = "; ".join(mismatches[:MAX_DIFFERENCES])
        raise CheckpointError(
            f"{path} belongs to a run with other settings ({examples}{ending}): give those, or use another --out"
        )
    return saved_settings


def differences(then: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """List the settings that differ between two configs, each as ``part.field: OLD then, NEW now``."""
    lines = []
    for name in sorted(then.keys() | now.keys()):
        a, b = then.get(name), now.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += differences(a, b, f"{prefix}{name}.")
        elif a != b:
            lines.append(f"{prefix}{name}: {a} then, {b} now")
    return lines
