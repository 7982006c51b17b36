"""Writing files so that nothing is ever half-written: to a temporary name beside the target, then renamed."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from pyro_gram.errors import UserError

UNFINISHED = ".unfinished-"  # in the name of a file that is being written


def write_via(path: Path, write: Callable[[Path], Any]) -> None:
    """Let ``write`` fill a temporary file with the target's suffix, then rename it to ``path``.

    Raises:
        UserError: the directory cannot be written, or the disk is full; an older ``path`` stays as it was.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}{UNFINISHED}", suffix=path.suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        write(temporary)
        temporary.chmod(0o644)
        temporary.replace(path)
        _sync(path.parent)
    except OSError as e:
        raise UserError(f"cannot write {path}: {e.strerror or e}") from e
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove what a process killed in :func:`write_via` has left in ``folder``. Nobody writes there now."""
    for path in folder.glob(f".*{UNFINISHED}*"):
        path.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    """Let a rename in ``folder`` reach the disk: after a power cut the file is the old one or the new one."""
    with suppress(OSError):  # some file systems cannot sync a folder, and some systems cannot open one
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def check_writable(path: Path) -> None:
    """Raises UserError where ``path`` cannot be written: before the work whose result it is to hold."""
    if path.is_dir():
        raise UserError(f"{path} is a directory; give a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent):
            pass
    except OSError as e:
        raise UserError(f"cannot write {path}: {e.strerror or e}") from e


def check_directory(path: Path, option: str) -> None:
    """Raises UserError where ``path``, which ``option`` names, is a file or lies in one."""
    if any(p.exists() and not p.is_dir() for p in (path, *path.parents)):
        raise UserError(f"{option} {path} is, or lies in, a file; give a directory")


def write_bytes(path: Path, data: bytes) -> None:
    """As :func:`write_via`, for bytes; synced to disk before the rename."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())

    write_via(path, write)


def write_json(path: Path, value: Any) -> None:
    """As :func:`write_bytes`, for JSON."""
    write_bytes(path, (as_json(value) + "\n").encode())


def as_json(value: Any) -> str:
    """JSON with two spaces of indent; null stands for numbers that JSON has none for."""
    return json.dumps(_finite(value), indent=2, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(held) for key, held in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(held) for held in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path) -> Any:
    """The JSON value in a file. Raises UserError where there is none."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (OSError, ValueError) as e:
        raise UserError(f"{path} cannot be read as JSON: {e}") from None
