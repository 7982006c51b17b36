"""A run, as frozen dataclasses: one a part, JSON in and out, and command-line options made from the fields.

``RunConfig`` names a task, model, prior and guide; each name brings its own ``Config`` dataclass through the registry.
A field that does not exist is an error everywhere: in a preset, in a JSON file, on the command line.
"""

from __future__ import annotations

import argparse
import dataclasses
import types
import typing
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pyro_gram.checks import AT_LEAST_0, AT_LEAST_1, check_range, check_seed, did_you_mean
from pyro_gram.errors import ConfigError
from pyro_gram.inference.contract import ModelTraits, Settings, guide_traits, model_traits, prior_traits
from pyro_gram.registry import GUIDES, MODELS, PRIORS, TASKS, Registry
from pyro_gram.sampling.tempering import TemperConfig
from pyro_gram.system.cli import field_descriptions
from pyro_gram.system.files import read_toml_tables
from pyro_gram.training.beta_schedule import BetaConfig
from pyro_gram.training.config import TrainConfig
from pyro_gram.training.heads import HeadsConfig
from pyro_gram.training.optimizer import OptimConfig

T = TypeVar("T")


@dataclass(frozen=True)
class EvaluateConfig:
    """How a model is measured: on fresh trajectories of the prior, on held-out inputs.

    Attributes:
        num_samples: N, trajectories an input (the paper's tables: 20).
        depth: supervision steps of a roll-out; 0 for as many as in training.
        inputs: the most held-out inputs that are measured (the first; splits are in random order); 0 for all.
        seed: of the roll-outs that are measured.
    """

    num_samples: int = 20
    depth: int = 0
    inputs: int = 0
    seed: int = 1

    def __post_init__(self) -> None:
        check_range(self, num_samples=AT_LEAST_1, depth=AT_LEAST_0, inputs=AT_LEAST_0)
        check_seed(self.seed)


NAMED: dict[str, Registry] = {"task": TASKS, "model": MODELS, "prior": PRIORS, "guide": GUIDES}
FIXED: dict[str, type] = {
    "train": TrainConfig,
    "optim": OptimConfig,
    "beta": BetaConfig,
    "temper": TemperConfig,
    "heads": HeadsConfig,
    "evaluate": EvaluateConfig,
}


@dataclass(frozen=True)
class RunConfig:
    """Everything that determines a run.

    Attributes:
        names: the registered name (or dotted path) of the task, model, prior and guide.
        parts: the config dataclass of each part: those four, and train, optim, beta, temper, heads, evaluate.
        preset: where the settings started from.
        seed: of weights, data order and guidance.
    """

    names: dict[str, str]
    parts: dict[str, Any]
    preset: str = "cpu"
    seed: int = 0

    @property
    def depth(self) -> int:
        """The supervision steps of a roll-out: ``evaluate.depth``, or as many as in training where that is 0."""
        return self.parts["evaluate"].depth or self.parts["train"].supervision_steps

    @property
    def head_settings(self) -> dict[str, Any]:
        """The keyword arguments of ``training.heads.train_heads`` that a run gives."""
        augment = self.parts["train"].augment
        return {"depth": self.depth, "seed": self.seed, "temper": self.parts["temper"], "augment": augment}

    def __getattr__(self, part: str) -> Any:
        try:
            return self.__dict__["parts"][part]
        except KeyError:
            raise AttributeError(part) from None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; :meth:`from_dict` takes it back."""
        parts = {part: dataclasses.asdict(config) for part, config in self.parts.items()}
        return {"preset": self.preset, "seed": self.seed, "names": dict(self.names), **parts}

    @classmethod
    def from_dict(cls, data: dict[str, Any], trust_code: bool | Collection[str] = False) -> RunConfig:
        """The run that :meth:`to_dict` described, in a file as a rule, which a stranger may have written.

        Args:
            data: plain JSON types.
            trust_code: may a dotted path among its names be imported, which runs the code of that module? True for
                any; or the paths that the user has named.

        Raises:
            ConfigError: an unknown or missing part, name or field; a dotted path that is not trusted.
        """
        if not isinstance(data, dict) or not isinstance(data.get("names"), dict):
            raise ConfigError("not a run's config: no 'names' in it")
        data = dict(data)
        names = data.pop("names")
        check_trusted(names, trust_code)
        preset, seed = data.pop("preset", "cpu"), data.pop("seed", 0)
        return make_run_config(names, data, preset=preset, seed=seed)


def check_trusted(names: dict[str, Any], trust_code: bool | Collection[str]) -> None:
    """Raises ConfigError where a dotted path among the names of a file would run code that nobody has asked for."""
    for part, name in names.items():
        if trust_code is True or not (isinstance(name, str) and ":" in name):
            continue
        if not trust_code or name not in trust_code:
            raise ConfigError(
                f"its {part} is {name!r}, which would import the module {name.partition(':')[0]!r} and run its code: "
                "where you trust that, add --trust-code (in Python: pyro_gram.load(path, trust_code=True))"
            )


def make_run_config(
    names: dict[str, str], settings: dict[str, dict[str, Any]], *, preset: str = "cpu", seed: int = 0
) -> RunConfig:
    """A RunConfig from names and, for each part, the fields that differ from their defaults.

    Raises:
        ConfigError: unknown name, part or field, or a value that a field cannot have.
    """
    unknown = set(names) ^ set(NAMED)
    if unknown:
        raise ConfigError(f"a run names {', '.join(NAMED)}; wrong or missing: {', '.join(sorted(unknown))}")
    check_seed(seed)
    classes = {part: config_class(part, names[part]) for part in NAMED} | FIXED
    stray = set(settings) - set(classes)
    if stray:
        raise ConfigError(
            f"unknown part {(name := sorted(stray)[0])!r}; known: {', '.join(classes)}{did_you_mean(name, classes)}"
        )
    parts: dict[str, Any] = {part: from_fields(cls, settings.get(part, {}), part) for part, cls in classes.items()}
    return RunConfig(dict(names), parts, preset, seed)


def config_class(part: str, name: str) -> type:
    """The config dataclass of the task, model, prior or guide called ``name``. Raises ConfigError where it has none."""
    found = getattr(NAMED[part].get(name), "Config", None)
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        raise ConfigError(f"{part} {name!r} has no attribute Config, a dataclass of its settings")
    return found


def from_fields(cls: type[T], values: dict[str, Any], part: str = "") -> T:
    """An instance of a config dataclass; a name that is not a field, or a value of the wrong type, is an error."""
    if not isinstance(values, dict):
        raise ConfigError(f"the settings of {part} must be a table of names and values, not {values!r}")
    hints = typing.get_type_hints(cls)
    fields = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name, value in values.items():
        if name not in fields:
            known = f"known in {part}: {', '.join(sorted(fields))}{_what_was_meant(part, name, fields)}"
            raise ConfigError(f"unknown setting {part}.{name}; {known}")
        kind = hints[name]
        if kind is float and type(value) is int:
            continue
        if isinstance(kind, type) and type(value) is not kind:
            raise ConfigError(f"{part}.{name} must be {kind.__name__}, not {value!r}")
    return built(part, lambda: cls(**values))


def _what_was_meant(part: str, name: str, fields: Collection[str]) -> str:
    if having := owners(part).get(name):
        return f"; it belongs to {_listed(part, having)} (see {help_page(part, having[0])})"
    return did_you_mean(f"{part}.{name}", [f"{part}.{field}" for field in fields]) + (
        f" (see {help_page()})" if part in NAMED or part in FIXED else ""
    )


def owners(part: str) -> dict[str, list[str]]:
    """The registered tasks, models, priors or guides that have each setting, by the setting's name."""
    found: dict[str, list[str]] = {}
    for name in NAMED[part].names() if part in NAMED else []:
        config = getattr(NAMED[part].get(name), "Config", None)
        for field in dataclasses.fields(config) if dataclasses.is_dataclass(config) else ():
            found.setdefault(field.name, []).append(name)
    return found


def _listed(part: str, names: list[str]) -> str:
    *most, last = names
    return f"the {part}s {', '.join(most)} and {last}" if most else f"the {part} {last}"


def help_page(part: str = "task", name: str = "NAME", task: str = "NAME") -> str:
    """The command that explains the settings of the task, model, prior or guide called ``name``."""
    return f"run.py --task {name} --help" if part == "task" else f"run.py --task {task} --{part} {name} --help"


def foreign_options(config: RunConfig) -> dict[str, tuple[str, str]]:
    """The options that other tasks, models, priors and guides have and this run has not.

    Returns:
        option to whose it is, in words, and the command that explains it (``cli.Parser.unavailable_options``).
    """
    found = {}
    for part, own in config.names.items():
        mine = {field.name for field in dataclasses.fields(config.parts[part])}
        for field, having in owners(part).items():
            if field not in mine:
                whose = f"belongs to {_listed(part, having)}, and this run's {part} is {own}"
                found[f"--{part}.{field}"] = whose, help_page(part, having[0], config.names["task"])
    return found


def built(part: str, make: Callable[[], T]) -> T:
    """A config dataclass; where a value is none that it can have, the error names the part too."""
    try:
        return make()
    except ConfigError as e:
        raise e if str(e).startswith(f"{part}.") else ConfigError(f"{part}: {e}") from None


def add_options(parser: argparse.ArgumentParser, config: RunConfig) -> None:
    """One option a field of every part, ``--part.field VALUE``, with its meaning and the value of ``config``."""
    for part, value in config.parts.items():
        group = parser.add_argument_group(f"{part} ({type(value).__name__})")
        hints, meaning = typing.get_type_hints(type(value)), field_descriptions(type(value))
        for field in dataclasses.fields(value):
            kind = hints[field.name]
            if isinstance(kind, types.UnionType) or kind not in (int, float, str, bool):
                continue
            group.add_argument(
                f"--{part}.{field.name}",
                type=_boolean if kind is bool else kind,
                metavar=kind.__name__.upper(),
                default=argparse.SUPPRESS,
                help=_explained(meaning.get(field.name, ""), getattr(value, field.name)),
            )


def _explained(meaning: str, default: Any) -> str:
    said = f"default {'empty' if default == '' else default}"
    return (f"{meaning} ({said})" if meaning else said).replace("%", "%%")


def with_options(config: RunConfig, arguments: dict[str, Any]) -> RunConfig:
    """``config`` with the ``part.field`` entries of parsed arguments put in."""
    changes: dict[str, dict[str, Any]] = {}
    for key, value in arguments.items():
        part, _, name = key.partition(".")
        if name:
            changes.setdefault(part, {})[name] = value
    parts = {
        part: built(part, partial(dataclasses.replace, value, **changes.get(part, {})))
        for part, value in config.parts.items()
    }
    return dataclasses.replace(config, parts=parts)


def with_settings(config: RunConfig, settings: dict[str, dict[str, Any]]) -> RunConfig:
    """``config`` with the fields of each part put in, checked as a preset is.

    Raises:
        ConfigError: unknown part or field, or a value that a field cannot have.
    """
    data = config.to_dict()
    for part, fields in settings.items():
        if part not in config.parts:
            known = f"known: {', '.join(config.parts)}{did_you_mean(part, config.parts)}"
            raise ConfigError(f"unknown part {part!r}; {known}")
        if not isinstance(fields, dict):
            raise ConfigError(f"the settings of {part!r} must be a table of fields, not {fields!r}")
        data[part] = data[part] | fields
    return RunConfig.from_dict(data, trust_code=config.names.values())


def _boolean(text: str) -> bool:
    if text.lower() in ("true", "yes", "1"):
        return True
    if text.lower() in ("false", "no", "0"):
        return False
    raise argparse.ArgumentTypeError(f"expected true or false, not {text!r}")


def read_preset(
    folder: Path, task: str, preset: str, *, names: dict[str, str | None] | None = None, seed: int = 0
) -> RunConfig:
    """A preset of a task, from the table ``preset`` of ``folder/TASK.toml``.

    A task given by its dotted path borrows the presets of colouring, with its own task settings at their defaults.
    ``names`` overrides the model, prior or guide. Fields that the preset sets for a part so replaced apply where the
    other class has them too (a width stays a width), and are dropped where it has not. A model may bring the prior and
    guide that it needs, and a model or guide settings of its own (see its traits, ``inference.contract``); a prior with
    nothing to infer brings the guide that is none. A temper is the business of the preset's own prior.

    Raises:
        ConfigError: no presets for the task, or no such preset.
    """
    own = ":" in task
    path = folder / f"{'coloring' if own else task}.toml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in folder.glob("*.toml")))
        near = did_you_mean(task, known.split(", "))
        raise ConfigError(f"unknown task {task!r}; known: {known}; or give your own as package.module:Class{near}")
    tables = read_toml_tables(path)
    if preset not in tables:
        known = f"known: {', '.join(tables)}{did_you_mean(preset, tables)}"
        raise ConfigError(f"unknown preset {preset!r} for {path.stem}; {known}")
    table = dict(tables[preset])
    usual = {"task": path.stem, "model": "gram", "prior": "gaussian", "guide": "amortized"} | table.pop("names", {})
    chosen = usual | {part: name for part, name in (names or {}).items() if name is not None}
    for part, name in chosen.items():
        if ":" in str(name) and name != task and name not in (names or {}).values():
            raise ConfigError(
                f"preset {preset!r} names the {part} {name!r}, whose module would be imported, which runs its code: "
                f"where you trust that, name it yourself, --{part} {name}"
            )
    if own:
        table.pop("task", None)
        chosen["task"] = task
    model = MODELS.get(chosen["model"])
    asked = {part for part, name in (names or {}).items() if name is not None}
    brought = model_traits(model).default_parts if chosen["model"] != usual["model"] else {}
    if "prior" not in asked:
        chosen |= {part: name for part, name in brought.items() if part not in asked}
    elif chosen["prior"] == brought.get("prior"):
        chosen |= {part: name for part, name in brought.items() if part == "guide" and part not in asked}
    if "guide" not in asked and prior_traits(PRIORS.get(chosen["prior"])).family is None:
        chosen["guide"] = "prior"
    for part in ("model", "prior", "guide"):
        if chosen[part] != usual[part]:
            known_fields = {f.name for f in dataclasses.fields(config_class(part, chosen[part]))}
            table[part] = {k: v for k, v in table.get(part, {}).items() if k in known_fields}
    if chosen["prior"] != usual["prior"]:
        table.pop("temper", None)
    if chosen["model"] != usual["model"]:
        _follow(table, default_overrides(model_traits(model)), chosen)
    if chosen["guide"] != usual["guide"]:
        _follow(table, guide_traits(GUIDES.get(chosen["guide"])).default_settings, chosen)
    return make_run_config(chosen, table, preset=preset, seed=seed)


def default_overrides(traits: ModelTraits) -> Settings:
    """Return the settings that a model puts over a preset: its own, and those of a single supervision step."""
    if not traits.is_one_step:
        return traits.default_settings
    one_step = {"train": {"supervision_steps": 1, "on_policy_depth": 0}, "evaluate": {"depth": 1}}
    return {**traits.default_settings, **one_step}


def _follow(table: dict[str, Any], recipe: Settings, names: dict[str, str]) -> None:
    """Put the settings that a model or guide brings into a preset's table, at the preset's number of updates."""
    train = {f.name: f.default for f in dataclasses.fields(TrainConfig)} | table.get("train", {})
    for part, fields in recipe.items():
        known = {f.name for f in dataclasses.fields(config_class(part, names[part]) if part in NAMED else FIXED[part])}
        table[part] = table.get(part, {}) | {k: v for k, v in fields.items() if k in known}
    changed = train | recipe.get("train", {})
    updates = 1 if changed["act"] and not train["act"] else changed["supervision_steps"]  # of a batch
    if updates != train["supervision_steps"]:
        table["train"] |= {k: train[k] * train["supervision_steps"] // updates for k in ("batches", "evaluate_every")}
