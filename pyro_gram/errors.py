"""Errors that a user can cause. Each message says what is wrong and what to do instead."""

from __future__ import annotations

import re


class UserError(ValueError):
    """Base class of errors that a user can cause. Command-line programs print one line and exit with code 2."""


class ConfigError(UserError):
    """Raised for a setting that does not exist or cannot have its value."""


class InputError(UserError):
    """Raised for a puzzle, a file of puzzles or a data folder that cannot be read."""


class CheckpointError(UserError):
    """Raised for a checkpoint that is missing, damaged, or written by another program."""


def reason(error: Exception) -> str:
    """Return the first line of an error's message, without the position in torch's sources."""
    return re.sub(r"^\[\S+\] ", "", (str(error).splitlines() or [type(error).__name__])[0])[:160]
