"""Checks that config dataclasses share: one wording for each kind of wrong value."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from pyro_gram.errors import ConfigError, UserError

POSITIVE = (sys.float_info.min, math.inf)  # infinity is in no range either
FRACTION = (0.0, 1.0)
AT_LEAST_0 = (0, math.inf)
AT_LEAST_1 = (1, math.inf)
MAX_SAMPLES = 10_000_000  # of an input, whose answers are all in memory
MAX_SEED = 2**62  # leaves room for the chunks of a roll-out, which count on from the seed


def check_range(config: Any, **ranges: tuple[float, float]) -> None:
    """Each named field of ``config`` must be a number within its closed range.

    Raises:
        ConfigError: naming the field, what it may be, and what it is. NaN and infinity are in no range.
    """
    for name, (low, high) in ranges.items():
        value = getattr(config, name)
        if low <= value <= high and value != math.inf:
            continue
        if (low, high) == POSITIVE:
            wanted = "be positive"
        elif high == math.inf:
            wanted = f"be at least {low:g}"
        else:
            wanted = f"lie between {low:g} and {high:g}"
        raise ConfigError(f"{name} must {wanted}, not {value}")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises ConfigError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ConfigError(f"unknown {name} {value!r}; known: {', '.join(choices)}{did_you_mean(value, choices)}")


def closest_names(word: str, known: Iterable[str]) -> list[str]:
    """What was meant, where ``word`` is none of ``known``: the nearest of them, three at the most.

    Of names with points (``--task.size``) the last part counts: all that end in that of ``word``, else those with the
    last part nearest to it, in the same part of the run where ``word`` names one.
    """

    def split(name: str) -> tuple[str, str]:
        part, _, last = name.lstrip("-").rpartition(".")
        return part, last.replace("-", "_")

    part, last = split(word)
    names = sorted(known, key=lambda name: name.count("."))
    if same := [name for name in names if split(name)[1] == last]:
        return same[:3]
    there = [name for name in names if split(name)[0] == part]
    pool = there or names if part else names
    lasts = get_close_matches(last, {split(name)[1] for name in pool}, n=3, cutoff=0.74)
    return [name for near in lasts for name in pool if split(name)[1] == near][:3]


def did_you_mean(word: Any, known: Iterable[str]) -> str:
    """The end of a message about an unknown word: ``; did you mean gram?``, or nothing where none is near."""
    near = closest_names(word, known) if isinstance(word, str) else []
    return f"; did you mean {' or '.join(near)}?" if near else ""


def check_seed(seed: Any, name: str = "seed") -> None:
    """Raises ConfigError unless ``seed`` is an integer that every generator takes."""
    if type(seed) is not int or not 0 <= seed < MAX_SEED:
        raise ConfigError(f"{name} must be an integer from 0 to 2^62 - 1, not {seed!r}")


def check_counts(**values: int) -> None:
    """Raises UserError where a number of things is below 1, or a seed is none."""
    check_seed(values.pop("seed"))
    for name, value in values.items():
        if type(value) is not int:
            raise UserError(f"{name} must be a whole number, not {value!r}")
        if value < 1:
            raise UserError(f"{name} must be at least 1, not {value}")
        if name == "num_samples" and value > MAX_SAMPLES:
            raise UserError(f"num_samples must be at most {MAX_SAMPLES:,}, not {value}")
