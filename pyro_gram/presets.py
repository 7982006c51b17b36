"""Presets: the settings of a run come from a table of a TOML file, and the user may replace parts of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from pyro_gram.checks import did_you_mean
from pyro_gram.config import FIXED_PARTS, REGISTRIES, RunConfig, config_class, make_run_config
from pyro_gram.errors import ConfigError
from pyro_gram.inference.contract import ModelTraits, Settings, guide_traits, model_traits, prior_traits
from pyro_gram.registry import GUIDES, MODELS, PRIORS
from pyro_gram.system.files import read_toml_tables
from pyro_gram.training.config import TrainConfig

DEFAULT_NAMES = {"model": "gram", "prior": "gaussian", "guide": "amortized"}
PRESETS_OF_OWN_TASKS = "coloring"


def read_preset(
    folder: Path, task: str, preset: str, *, names: dict[str, str | None] | None = None, seed: int = 0
) -> RunConfig:
    """Read the preset ``preset`` of a task from ``folder/TASK.toml``.

    A task of the user's own, named by a dotted path, uses the presets of colouring. But the settings of the part
    ``task`` keep the defaults of the task's class.

    If the user replaces the model, prior or guide, the preset's settings for this part are kept only if the new class
    has settings of the same names. The traits of a model (``inference.contract``) may name the prior and guide that
    the model needs. The traits of a model or guide may override settings; those of the preset's own model hold unless
    the preset sets them itself. If the prior leaves nothing to infer and the user names no guide, the guide is
    ``prior``. The preset's temper is dropped if the prior is replaced.

    Args:
        folder: the folder with one TOML file for each task.
        task: the name of the task, or its dotted path.
        preset: the name of a table of that file.
        names: the model, prior and guide that replace those of the preset. None keeps the preset's name.
        seed: the seed of the run.

    Raises:
        ConfigError: the task or the preset is unknown, or the preset gives a part a setting that it does not have.
    """
    user_names = {part: name for part, name in (names or {}).items() if name is not None}
    table = _read_table(folder, task, preset)
    preset_names = {"task": task, **DEFAULT_NAMES, **table.pop("names", {})}
    _check_named_by_user(preset, preset_names, {task, *user_names.values()})
    new_names = _with_defaults(preset_names | user_names | {"task": task}, preset_names, user_names)
    for part in ("model", "prior", "guide"):
        if new_names[part] != preset_names[part]:
            fields = {f.name for f in dataclasses.fields(config_class(part, new_names[part]))}
            table[part] = {name: value for name, value in table.get(part, {}).items() if name in fields}
    if new_names["prior"] != preset_names["prior"]:
        table.pop("temper", None)
    overrides = default_overrides(model_traits(MODELS.get(new_names["model"])))
    if new_names["model"] != preset_names["model"]:
        _override(table, overrides, new_names)
    else:
        table |= {part: {**fields, **table.get(part, {})} for part, fields in overrides.items()}
    if new_names["guide"] != preset_names["guide"]:
        _override(table, guide_traits(GUIDES.get(new_names["guide"])).default_settings, new_names)
    return make_run_config(new_names, table, preset=preset, seed=seed)


def _read_table(folder: Path, task: str, preset: str) -> dict[str, Any]:
    is_own_task = ":" in task
    path = folder / f"{PRESETS_OF_OWN_TASKS if is_own_task else task}.toml"
    if not path.is_file():
        known_names = ", ".join(sorted(p.stem for p in folder.glob("*.toml")))
        hint = did_you_mean(task, known_names.split(", "))
        raise ConfigError(
            f"unknown task {task!r}; known: {known_names}; or give your own as package.module:Class{hint}"
        )
    tables = read_toml_tables(path)
    if preset not in tables:
        hint = f"known: {', '.join(tables)}{did_you_mean(preset, tables)}"
        raise ConfigError(f"unknown preset {preset!r} for {path.stem}; {hint}")
    table = dict(tables[preset])
    if is_own_task:
        table.pop("task", None)
    return table


def _check_named_by_user(preset: str, names: dict[str, str], trusted_names: set[str]) -> None:
    """Raise ConfigError if a preset names a class outside pyro_gram, unless the user has named it too."""
    for part, name in names.items():
        if ":" in str(name) and name not in trusted_names:
            raise ConfigError(
                f"preset {preset!r} names the {part} {name!r}, whose module would be imported, which runs its code: "
                f"if you trust it, name it yourself, --{part} {name}"
            )


def _with_defaults(names: dict[str, str], preset_names: dict[str, str], user_names: dict[str, str]) -> dict[str, str]:
    """Return ``names`` with the prior and guide that the model and prior need. Parts that the user has named stay.

    A model other than the preset's may need a prior and a guide. A prior that leaves nothing to infer needs the
    guide ``prior``.
    """
    is_new_model = names["model"] != preset_names["model"]
    needed_parts = model_traits(MODELS.get(names["model"])).default_parts if is_new_model else {}
    if "prior" not in user_names or names["prior"] == needed_parts.get("prior"):
        names = names | {part: name for part, name in needed_parts.items() if part not in user_names}
    if "guide" not in user_names and prior_traits(PRIORS.get(names["prior"])).family is None:
        names = names | {"guide": "prior"}
    return names


def default_overrides(traits: ModelTraits) -> Settings:
    """Return the settings by which a model overrides a preset. For a one-step model they set one supervision step."""
    if not traits.is_one_step:
        return traits.default_settings
    one_step = {"train": {"supervision_steps": 1, "on_policy_depth": 0}, "evaluate": {"depth": 1}}
    return {**traits.default_settings, **one_step}


def _override(table: dict[str, Any], settings: Settings, names: dict[str, str]) -> None:
    """Put settings into a preset's table.

    If the settings change the updates per batch, change the number of batches too. So the number of updates of the
    whole run stays the same.
    """
    train = {f.name: f.default for f in dataclasses.fields(TrainConfig)} | table.get("train", {})
    for part, fields in settings.items():
        cls = config_class(part, names[part]) if part in REGISTRIES else FIXED_PARTS[part]
        known_names = {f.name for f in dataclasses.fields(cls)}
        table[part] = table.get(part, {}) | {name: value for name, value in fields.items() if name in known_names}
    new_train = train | settings.get("train", {})
    updates = 1 if new_train["act"] and not train["act"] else new_train["supervision_steps"]  # updates per batch
    if updates != train["supervision_steps"]:
        lengths = ("batches", "evaluate_every")
        table["train"] |= {name: train[name] * train["supervision_steps"] // updates for name in lengths}
