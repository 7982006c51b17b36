"""Rewrite checkpoints, configs and results with the new names of settings: ``rewrite_headers.py FILE ...``.

Settings were renamed before version 0.1.0. The library reads the new names only, so older files must be rewritten once.
They are model checkpoints (``.safetensors``), and JSON that contains settings. A file with new names stays unchanged.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pyro_gram.system.cli import Parser, call
from pyro_gram.system.files import open_tensor_file, read_json, write_json, write_tensor_file

# Old and new names of fields, by part of a config.
FIELD_NAMES: dict[str, dict[str, str]] = {
    "task": {"fewest": "min_queens", "most": "max_queens"},
    "model": {
        "answers": "decoding",
        "start": "initial_state",
        "times": "diffusion_steps",
        "auxiliary": "auxiliary_weight",
    },
    "prior": {"uniform": "uniform_mix", "freedom": "degrees_of_freedom"},
    "guide": {"until": "guided_transitions", "budget": "max_kl", "data": "num_pairs"},
    "train": {"on_policy": "on_policy_depth"},
    "optim": {"matrices": "hidden_optimizer", "final": "min_lr_ratio"},
    "beta": {"most": "max", "quiet": "silent_fraction", "rise": "raise_factor", "fall": "lower_factor"},
    "verdict": {"heads": "attention_heads"},
}
PART_NAMES = {"verdict": "heads"}  # old and new names of parts


def rename(value: Any) -> Any:
    """Return a copy of a JSON value in which all settings have their new names, however deep they are nested."""
    if isinstance(value, list):
        return [rename(item) for item in value]
    if not isinstance(value, dict):
        return value
    new_dict = {}
    for key, item in value.items():
        item = rename(item)
        if key in FIELD_NAMES and isinstance(item, dict):
            item = {FIELD_NAMES[key].get(name, name): setting for name, setting in item.items()}
            key = PART_NAMES.get(key, key)
        new_dict[key] = item
    return new_dict


def rewrite(path: Path) -> bool:
    """Rewrite one file in place, atomically. Returns whether it changed.

    Raises:
        UserError, CheckpointError: the file is neither JSON nor a model checkpoint.
    """
    if path.suffix == ".json":
        old_json = read_json(path)
        new_json = rename(old_json)
        if new_json != old_json:
            write_json(path, new_json)
        return new_json != old_json
    container = open_tensor_file(path, "model")
    header = {**container.header, "config": rename(container.header["config"])}
    tensors = container.tensors()
    new_tensors = {name.replace("model.verdict.", "model.heads."): tensor for name, tensor in tensors.items()}
    is_changed = header != container.header or new_tensors.keys() != tensors.keys()
    if is_changed:
        write_tensor_file(path, new_tensors, header)
    return is_changed


def main(argv: list[str]) -> int:
    parser = Parser("rewrite_headers.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="a .safetensors checkpoint or a .json file")
    for path in parser.parse_args(argv).files:
        print(f"{path}: {'rewritten' if rewrite(path) else 'unchanged'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(call(main))
