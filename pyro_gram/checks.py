"""Check settings and arguments. The error messages have one wording for each kind of wrong value."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

import numpy as np

from pyro_gram.errors import ConfigError, UserError

POSITIVE = (sys.float_info.min, math.inf)  # check_range refuses infinity in every range
FRACTION = (0.0, 1.0)
AT_LEAST_0 = (0, math.inf)
AT_LEAST_1 = (1, math.inf)
MAX_SAMPLES = 10_000_000  # the limit per input: all samples of an input are in memory at once
MAX_SEED = 2**62  # well below torch's limit, because each chunk of a rollout adds its number to the seed


def check_range(config: Any, **ranges: tuple[float, float]) -> None:
    """Check that each named field of ``config`` lies in its closed range. NaN and infinity are always refused.

    Raises:
        ConfigError: a field lies outside its range. The message names the field, the range and the value.
    """
    for name, (low, high) in ranges.items():
        value = getattr(config, name)
        if low <= value <= high and value != math.inf:
            continue
        if (low, high) == POSITIVE:
            requirement = "be positive"
        elif high == math.inf:
            requirement = f"be at least {low:g}"
        else:
            requirement = f"lie between {low:g} and {high:g}"
        raise ConfigError(f"{name} must {requirement}, not {value}")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Check that ``value`` is one of ``choices``. The message calls the value ``name``. Raises ConfigError."""
    if value not in choices:
        raise ConfigError(f"unknown {name} {value!r}; known: {', '.join(choices)}{did_you_mean(value, choices)}")


def closest_names(word: str, names: Iterable[str]) -> list[str]:
    """Return up to three of ``names`` that resemble the unknown name ``word``.

    Only the last parts of dotted names (``size`` in ``--task.size``) are compared. Names with the same last part as
    ``word`` are returned. If there are none, names with a similar last part are returned; if some names have the first
    part of ``word`` (``task``), only these are considered.

    >>> closest_names("--size", ["--task.size", "--seed"])
    ['--task.size']
    """

    def split(name: str) -> tuple[str, str]:
        part, _, last = name.lstrip("-").rpartition(".")
        return part, last.replace("-", "_")

    part, last = split(word)
    names = sorted(names, key=lambda name: name.count("."))
    if same_names := [name for name in names if split(name)[1] == last]:
        return same_names[:3]
    candidates = [name for name in names if split(name)[0] == part] or names if part else names
    matches = get_close_matches(last, {split(name)[1] for name in candidates}, n=3, cutoff=0.74)
    return [name for match in matches for name in candidates if split(name)[1] == match][:3]


def did_you_mean(word: Any, names: Iterable[str]) -> str:
    """Return a suggestion, to be added to a message about an unknown name; an empty text if no name is close.

    >>> did_you_mean("gramm", ["gram", "trm"])
    '; did you mean gram?'
    """
    closest = closest_names(word, names) if isinstance(word, str) else []
    return f"; did you mean {' or '.join(closest)}?" if closest else ""


def check_seed(seed: Any, name: str = "seed") -> None:
    """Check that ``seed`` is an integer that every random generator accepts. Raises ConfigError."""
    if type(seed) is not int or not 0 <= seed < MAX_SEED:
        raise ConfigError(f"{name} must be an integer from 0 to 2^62 - 1, not {seed!r}")


def check_counts(*, seed: Any, **counts: Any) -> None:
    """Check that ``seed`` is valid (:func:`check_seed`), and that each count is an integer of at least 1.

    Raises:
        UserError: the seed or a count is wrong.
    """
    check_seed(seed)
    for name, count in counts.items():
        if type(count) is not int:
            raise UserError(f"{name} must be a whole number, not {count!r}")
        if count < 1:
            raise UserError(f"{name} must be at least 1, not {count}")
        if name == "num_samples" and count > MAX_SAMPLES:
            raise UserError(f"num_samples must be at most {MAX_SAMPLES:,}, not {count}")


def to_int(name: str, value: Any) -> int:
    """Convert a whole number of any type (such as NumPy's) to an int. Raises UserError for other values."""
    if isinstance(value, bool | np.bool_) or not hasattr(value, "__index__"):
        raise UserError(f"{name} must be a whole number, not {value!r}")
    return int(value.__index__())
