"""The file of a training state: ``Trainer.state_dict`` in safetensors, its numbers in the JSON header.

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

LAYOUT = 2  # of the file; raised when older files can no longer be read
MAX_DIFFERENCES = 4  # settings that differ, in a message
# A run that is resumed may have another length, and be evaluated, computed and given heads in another way.
FREE_TRAIN_FIELDS = ("batches", "minutes", "save_seconds", "evaluate_every", "precision", "compile")
FREE_PARTS = ("temper", "heads", "evaluate")


def save_state(path: Path, config: RunConfig, trainer: Trainer, data: dict[str, str] | None = None) -> None:
    """Write everything that the next batch depends on, atomically. All processes call it, and the main one writes.

    Args:
        path: the file.
        config: of the run.
        trainer: whose state is saved.
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
        CheckpointError: the file is missing, damaged, of an older layout, or of a run with other settings or data (its
            length, its heads, and how it is evaluated and computed, may differ).
    """
    try:
        _load_state(path, config, trainer, data or {})
    except UserError:  # its message is complete
        raise
    except KeyError as e:
        raise CheckpointError(f"{path} is damaged: the entry {e} of the training state is missing or stray") from None
    except (ValueError, TypeError, OverflowError, IndexError, RuntimeError, AttributeError) as e:
        raise CheckpointError(f"{path} is damaged: no run has saved this training state ({reason(e)})") from None


def _load_state(path: Path, config: RunConfig, trainer: Trainer, data: dict[str, str]) -> None:
    container = open_tensor_file(path, "training")
    header = container.header
    if header.get("layout") != LAYOUT:
        raise CheckpointError(
            f"{path} has the layout of another version of pyro_gram (it was written by "
            f"{header.get('version', 'an unknown one')}, and this is {__version__}): finish the run with that version, "
            "or start it anew in another --out"
        )
    saved = _check_settings(path, header, config)
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
            f"{path} is the state after {number} batches, more than the {config.train.batches} of train.batches: raise "
            "that"
        )
    if state["carry"] and not config.train.act:
        raise CheckpointError(f"{path} holds trajectories that are carried on, as only train.act does")
    if any(saved["train"][field] != vars(config.train)[field] for field in ("batches", "minutes")):
        state["progress"]["num_batches"] = None  # another length is fitted anew
    trainer.load_state_dict(state)


def _check_settings(path: Path, header: dict[str, Any], config: RunConfig) -> dict[str, Any]:
    """Return the saved settings. Raises CheckpointError where they cannot be read, or are those of another run."""
    current = config.to_dict()
    try:
        # Compare the names first: nothing is imported that only the file names.
        differing = differences(dict(header["config"]["names"]), current["names"], "names.")
        saved = current if differing else RunConfig.from_dict(header["config"], config.names.values()).to_dict()
    except (ConfigError, KeyError, TypeError, ValueError) as e:
        by = f", written by pyro_gram {header.get('version', 'of an unknown version')} (this is {__version__})"
        raise CheckpointError(f"{path} has a damaged header, or one of another version{by}: {e}") from None
    if not differing:
        compared = {**saved, **{part: current[part] for part in FREE_PARTS}}
        free = {field: current["train"][field] for field in FREE_TRAIN_FIELDS}
        differing = differences({**compared, "train": {**saved["train"], **free}}, current)
    if differing:
        more = f", and {len(differing) - MAX_DIFFERENCES} more" if len(differing) > MAX_DIFFERENCES else ""
        raise CheckpointError(
            f"{path} belongs to a run with other settings ({'; '.join(differing[:MAX_DIFFERENCES])}{more}): give "
            "those, or use another --out"
        )
    return saved


def differences(then: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """List the settings that differ between two configs, each as ``part.field: this then, that now``."""
    lines = []
    for name in sorted(then.keys() | now.keys()):
        a, b = then.get(name), now.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += differences(a, b, f"{prefix}{name}.")
        elif a != b:
            lines.append(f"{prefix}{name}: {a} then, {b} now")
    return lines
