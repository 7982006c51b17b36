"""Errors that a user can cause. Each message says what is wrong and what to do instead."""

from __future__ import annotations


class UserError(ValueError):
    """Base class of wrong input or arguments. Command-line programs print it in one line and exit with 2."""


class ConfigError(UserError):
    """Raised for a setting that does not exist or cannot have its value."""


class InputError(UserError):
    """Raised for a puzzle, a file of puzzles or a data folder that cannot be read as one."""


class CheckpointError(UserError):
    """Raised for a checkpoint that is missing, damaged, or written by another program."""
