"""The settings of a run: one frozen dataclass for each part, and their conversion to and from JSON.

``RunConfig`` names the classes of the task, model, prior and guide. Each of these classes has a ``Config`` dataclass of
its own. An unknown field is an error everywhere: in a preset, in a JSON file, on the command line.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, TypeVar

from pyro_gram.checks import AT_LEAST_0, AT_LEAST_1, check_range, check_seed, did_you_mean
from pyro_gram.errors import ConfigError
from pyro_gram.registry import GUIDES, MODELS, PRIORS, TASKS, Registry
from pyro_gram.sampling.tempering import TemperConfig
from pyro_gram.training.beta_schedule import BetaConfig
from pyro_gram.training.config import HeadsConfig, TrainConfig
from pyro_gram.training.optimizer import OptimConfig

T = TypeVar("T")


@dataclass(frozen=True)
class EvaluateConfig:
    """Settings for measuring a model on held-out inputs, with fresh trajectories of the prior.

    Attributes:
        num_samples: N, the number of trajectories per input (20 in the paper's tables).
        depth: supervision steps of a trajectory; 0 for as many as in training.
        inputs: the number of held-out inputs that are measured, counted from the start of the split; 0 for all. The
            order of the split is random.
        seed: the seed of the measured trajectories.
        restarts: how often a trajectory starts anew if the halt head thinks its answer wrong, for models with heads.
        sweeps: how often a complete answer is opened again and drawn anew (``sampling.rollout``), for models with a
            lattice.
    """

    num_samples: int = 20
    depth: int = 0
    inputs: int = 0
    seed: int = 1
    restarts: int = 0
    sweeps: int = 0

    def __post_init__(self) -> None:
        counts = ("depth", "inputs", "restarts", "sweeps")
        check_range(self, num_samples=AT_LEAST_1, **dict.fromkeys(counts, AT_LEAST_0))
        check_seed(self.seed)


REGISTRIES: dict[str, Registry] = {"task": TASKS, "model": MODELS, "prior": PRIORS, "guide": GUIDES}
FIXED_PARTS: dict[str, type] = {
    "train": TrainConfig,
    "optim": OptimConfig,
    "beta": BetaConfig,
    "temper": TemperConfig,
    "heads": HeadsConfig,
    "evaluate": EvaluateConfig,
}


@dataclass(frozen=True)
class RunConfig:
    """The settings that determine a run. ``config.train`` is the part ``train``.

    Attributes:
        names: the registered name (or dotted path) of the task, model, prior and guide.
        parts: the config dataclass of each part. The parts are task, model, prior, guide, train, optim, beta, temper,
            heads and evaluate.
        preset: the name of the preset that the settings started from.
        seed: the seed of the initial weights, the data order and the guidance.
    """

    names: dict[str, str]
    parts: dict[str, Any]
    preset: str = "cpu"
    seed: int = 0

    @property
    def depth(self) -> int:
        """Supervision steps of a measured trajectory: ``evaluate.depth``, or ``train.supervision_steps`` if it is 0."""
        return self.parts["evaluate"].depth or self.parts["train"].supervision_steps

    @property
    def head_settings(self) -> dict[str, Any]:
        """The keyword arguments that a run passes to ``training.heads.train_heads``."""
        augment = self.parts["train"].augment
        return {"depth": self.depth, "seed": self.seed, "temper": self.parts["temper"], "augment": augment}

    def __getattr__(self, part: str) -> Any:
        try:
            return self.__dict__["parts"][part]
        except KeyError:
            raise AttributeError(part) from None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types, for :meth:`from_dict`."""
        parts = {part: dataclasses.asdict(config) for part, config in self.parts.items()}
        return {"preset": self.preset, "seed": self.seed, "names": dict(self.names), **parts}

    @classmethod
    def from_dict(cls, data: dict[str, Any], trust_code: bool | Collection[str] = False) -> RunConfig:
        """Make settings from the result of :meth:`to_dict`, which may come from an untrusted file.

        Args:
            data: plain JSON types.
            trust_code: may the modules of dotted paths among the names be imported? An import runs their code. True
                trusts any path; a collection trusts the paths in it.

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
    """Raise ConfigError if a file names a dotted path that the user does not trust: an import would run its code."""
    for part, name in names.items():
        if trust_code is True or not (isinstance(name, str) and ":" in name):
            continue
        if not trust_code or name not in trust_code:
            raise ConfigError(
                f"its {part} is {name!r}, which would import the module {name.partition(':')[0]!r} and run its code: "
                "if you trust it, add --trust-code (in Python: pyro_gram.load(path, trust_code=True))"
            )


def make_run_config(
    names: dict[str, str], settings: dict[str, dict[str, Any]], *, preset: str = "cpu", seed: int = 0
) -> RunConfig:
    """Make the settings of a run from names and, for each part, the fields that differ from their defaults.

    Raises:
        ConfigError: an unknown name, part or field, or a value that a field cannot have.
    """
    wrong_names = set(names) ^ set(REGISTRIES)
    if wrong_names:
        raise ConfigError(f"a run names {', '.join(REGISTRIES)}; wrong or missing: {', '.join(sorted(wrong_names))}")
    check_seed(seed)
    classes = {part: config_class(part, names[part]) for part in REGISTRIES} | FIXED_PARTS
    stray_parts = set(settings) - set(classes)
    if stray_parts:
        name = min(stray_parts)
        raise ConfigError(f"unknown part {name!r}; known: {', '.join(classes)}{did_you_mean(name, classes)}")
    parts: dict[str, Any] = {part: from_fields(cls, settings.get(part, {}), part) for part, cls in classes.items()}
    return RunConfig(dict(names), parts, preset, seed)


def config_class(part: str, name: str) -> type:
    """Return the config dataclass of a task, model, prior or guide. Raises ConfigError if the class has none."""
    config = getattr(REGISTRIES[part].get(name), "Config", None)
    if not (isinstance(config, type) and dataclasses.is_dataclass(config)):
        raise ConfigError(f"{part} {name!r} has no attribute Config, a dataclass of its settings")
    return config


def from_fields(cls: type[T], values: dict[str, Any], part: str = "") -> T:
    """Make a config dataclass from its fields.

    Args:
        cls: the dataclass.
        values: the fields that differ from their defaults.
        part: the name of this part of a run, for messages.

    Raises:
        ConfigError: a name is not a field, or a value has the wrong type or is out of range.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"the settings of {part} must be a table of names and values, not {values!r}")
    hints = typing.get_type_hints(cls)
    fields = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name, value in values.items():
        if name not in fields:
            hint = f"known in {part}: {', '.join(sorted(fields))}{_suggestion(part, name, fields)}"
            raise ConfigError(f"unknown setting {part}.{name}; {hint}")
        kind = hints[name]
        if kind is float and type(value) is int:
            continue
        if isinstance(kind, type) and type(value) is not kind:
            raise ConfigError(f"{part}.{name} must be {kind.__name__}, not {value!r}")
    return name_part_in_errors(part, lambda: cls(**values))


def _suggestion(part: str, name: str, fields: Collection[str]) -> str:
    if names := owners(part).get(name):
        return f"; it belongs to {join_names(part, names)} (see {help_command(part, names[0])})"
    return did_you_mean(f"{part}.{name}", [f"{part}.{field}" for field in fields]) + (
        f" (see {help_command()})" if part in REGISTRIES or part in FIXED_PARTS else ""
    )


def owners(part: str) -> dict[str, list[str]]:
    """Map each setting of a part to the names of the registered classes that have this setting."""
    names_by_field: dict[str, list[str]] = {}
    for name in REGISTRIES[part].names() if part in REGISTRIES else []:
        config = getattr(REGISTRIES[part].get(name), "Config", None)
        for field in dataclasses.fields(config) if dataclasses.is_dataclass(config) else ():
            names_by_field.setdefault(field.name, []).append(name)
    return names_by_field


def join_names(part: str, names: list[str]) -> str:
    """Return ``the models hrm and trm``, or ``the model trm``."""
    *first, last = names
    return f"the {part}s {', '.join(first)} and {last}" if first else f"the {part} {last}"


def help_command(part: str = "task", name: str = "NAME", task: str = "NAME") -> str:
    """Return the command that explains the settings of a task, model, prior or guide."""
    return f"run.py --task {name} --help" if part == "task" else f"run.py --task {task} --{part} {name} --help"


def name_part_in_errors(part: str, make: Callable[[], T]) -> T:
    """Return ``make()``. If it raises ConfigError, the message begins with the name of the part."""
    try:
        return make()
    except ConfigError as e:
        raise e if str(e).startswith(f"{part}.") else ConfigError(f"{part}: {e}") from None


def with_settings(config: RunConfig, settings: dict[str, dict[str, Any]]) -> RunConfig:
    """Return ``config`` with new values of some fields. The new values are checked like those of a preset.

    Args:
        config: the settings of a run.
        settings: for each part, the new values by field.

    Raises:
        ConfigError: an unknown part or field, or a value that a field cannot have.
    """
    data = config.to_dict()
    for part, fields in settings.items():
        if part not in config.parts:
            hint = f"known: {', '.join(config.parts)}{did_you_mean(part, config.parts)}"
            raise ConfigError(f"unknown part {part!r}; {hint}")
        if not isinstance(fields, dict):
            raise ConfigError(f"the settings of {part!r} must be a table of fields, not {fields!r}")
        data[part] = data[part] | fields
    return RunConfig.from_dict(data, trust_code=config.names.values())
