"""Writing files so that nothing is ever half-written: to a temporary name beside the target, then renamed."""

from __future__ import annotations

import json
import math
import os
import tempfile
import tomllib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from pyro_gram.errors import UserError
from pyro_gram.system.text import GZIP, ZIP, is_gzip, read_text, tidy

MAX_JSON = 256 * 2**20  # bytes, and of TOML
MAX_TEXT = 2**31  # bytes: three times those of the largest set of Sudoku
REALLY = {  # the first bytes of files that are often taken for others
    b"version https://git-lfs": "this is a Git LFS pointer: run git lfs pull",
    ZIP: "this is a zip archive, as torch.save writes them: only safetensors are read, and nothing pickled",
    b"\x80": "this is a pickle, as torch.save writes them: only safetensors are read, and nothing pickled",
    GZIP: "this is a gzip file: unpack it",
    b"\x89HDF": "this is an HDF5 (netCDF) file",
}
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
        with suppress(OSError, NotImplementedError):  # SMB and exFAT refuse: there the mount says who may read
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
    """The JSON value in a file. Raises UserError where there is none, or where the file is larger than any of ours."""
    return _read(path, "JSON", parse_json)


def read_tables(path: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """The tables of a TOML file, each of which holds nothing but tables. Raises UserError where it holds others."""
    tables = _read(path, "TOML", tomllib.loads)
    for name, table in tables.items():
        inner = table.items() if isinstance(table, dict) else [("", table)]
        for part, fields in inner:
            if not isinstance(fields, dict):
                where = ".".join(filter(None, (name, part)))
                raise UserError(f"{path}: {where} must be a table, [{where}] on a line of its own, not {fields!r}")
    return tables


def _read(path: Path, kind: str, parse: Callable[[str], Any]) -> Any:
    """What ``parse`` makes of the text of a file. Raises UserError saying what the file is, where that is known."""
    if not path.exists():
        raise UserError(f"{path} does not exist")
    text = read_text(path, limit=MAX_JSON)
    try:
        return parse(text)
    except (ValueError, RecursionError) as e:
        raise UserError(f"{path} cannot be read as {kind}: {(not is_gzip(path) and really(path)) or e}") from None


def parse_json(text: str) -> Any:
    """The JSON value of a text. Raises UserError where it is none, or nested deeper than Python reads."""
    try:
        return json.loads(tidy(text))
    except ValueError as e:
        raise UserError(str(e)) from None
    except RecursionError:
        raise UserError("it is nested too deeply") from None


def really(path: Path) -> str | None:
    """What a file is that was taken for another, and what to do; None where that cannot be told."""
    try:
        with path.open("rb") as f:
            head = f.read(512)
    except OSError:
        return None
    if not head:
        return "it is empty"
    for start, what in REALLY.items():
        if head.startswith(start):
            return what
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml")):
        return "this is a web page: download the file itself (the 'raw' link)"
    return None
