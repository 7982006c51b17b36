"""The errors a user can cause; each says what was wrong and what to do instead."""

from __future__ import annotations


class UserError(ValueError):
    """Base class: bad input or arguments. Command-line programs print it in one line and exit with 2."""


class ConfigError(UserError):
    """A setting that does not exist or cannot have the value it was given."""


class InputError(UserError):
    """A puzzle, a file of puzzles or a data directory that cannot be read as one."""


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged, or made by something else."""
