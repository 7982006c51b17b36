"""Command-line options of a run's settings: one option ``--part.field VALUE`` for each field of each part."""

from __future__ import annotations

import argparse
import dataclasses
import types
import typing
from functools import partial
from typing import Any

from pyro_gram.config import RunConfig, help_command, join_names, name_part_in_errors, owners
from pyro_gram.system.cli import field_descriptions


def add_options(parser: argparse.ArgumentParser, config: RunConfig) -> None:
    """Add an option for each field, with the description from the dataclass and the value in ``config`` as default."""
    for part, value in config.parts.items():
        group = parser.add_argument_group(f"{part} ({type(value).__name__})")
        hints, descriptions = typing.get_type_hints(type(value)), field_descriptions(type(value))
        for field in dataclasses.fields(value):
            kind = hints[field.name]
            if isinstance(kind, types.UnionType) or kind not in (int, float, str, bool):
                continue
            group.add_argument(
                f"--{part}.{field.name}",
                type=_boolean if kind is bool else kind,
                metavar=kind.__name__.upper(),
                default=argparse.SUPPRESS,
                help=_help_text(descriptions.get(field.name, ""), getattr(value, field.name)),
            )


def _help_text(description: str, default: Any) -> str:
    default_text = f"default {'empty' if default == '' else default}"
    return (f"{description} ({default_text})" if description else default_text).replace("%", "%%")


def _boolean(text: str) -> bool:
    if text.lower() in ("true", "yes", "1"):
        return True
    if text.lower() in ("false", "no", "0"):
        return False
    raise argparse.ArgumentTypeError(f"expected true or false, not {text!r}")


def with_options(config: RunConfig, arguments: dict[str, Any]) -> RunConfig:
    """Return ``config`` with the values of the parsed arguments that are named ``part.field``.

    Raises:
        ConfigError: an argument has a value that its field cannot have.
    """
    changes: dict[str, dict[str, Any]] = {}
    for key, value in arguments.items():
        part, _, name = key.partition(".")
        if name:
            changes.setdefault(part, {})[name] = value
    parts = {
        part: name_part_in_errors(part, partial(dataclasses.replace, value, **changes.get(part, {})))
        for part, value in config.parts.items()
    }
    return dataclasses.replace(config, parts=parts)


def foreign_options(config: RunConfig) -> dict[str, tuple[str, str]]:
    """Return the options of other tasks, models, priors and guides that do not apply to this run.

    This imports every registered class.

    Returns:
        for each option, a text that says which classes have it, and the command that explains it. The result is meant
            for ``cli.Parser.unavailable_options``.
    """
    options = {}
    for part, name in config.names.items():
        known_names = {field.name for field in dataclasses.fields(config.parts[part])}
        for field, names in owners(part).items():
            if field not in known_names:
                owner = f"belongs to {join_names(part, names)}, and this run's {part} is {name}"
                options[f"--{part}.{field}"] = owner, help_command(part, names[0], config.names["task"])
    return options
