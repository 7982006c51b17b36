"""Write files atomically (under a temporary name, then renamed), and read JSON, TOML and safetensors files.

A stranger may have made a file. The sizes in the header of a tensor file are therefore compared with the file's size
before memory is allocated.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
import tomllib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pyro_gram.errors import CheckpointError, UserError
from pyro_gram.system.text import GZIP, ZIP, is_gzip, normalize_text, read_text
from pyro_gram.version import __version__

MAX_JSON_BYTES = 256 * 2**20  # the largest JSON or TOML file that is read
MAX_CSV_BYTES = 2**31  # the largest CSV file that is read; the largest Sudoku data set has a third of this
MAX_HEADER_BYTES = 16 * 2**20  # the longest accepted header of a tensor file; our headers have about 50 KB
FORMAT = "pyro_gram/1"
TEMPORARY_MARK = ".unfinished-"  # the name of a file contains this mark while the file is being written
FILE_TYPES = {  # first bytes of files that users give by mistake -> what a message says about them
    b"version https://git-lfs": "this is a Git LFS pointer: run git lfs pull",
    ZIP: "this is a zip archive, as torch.save writes them: only safetensors are read, never pickles",
    b"\x80": "this is a pickle, as torch.save writes them: only safetensors are read, never pickles",
    GZIP: "this is a gzip file: unpack it",
    b"\x89HDF": "this is an HDF5 (netCDF) file",
}


# ---- write ----------------------------------------------------------------------------------------------------------


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Let ``write`` fill a temporary file with the target's suffix, then rename it to ``path``.

    Raises:
        UserError: the directory cannot be written, or the disk is full; an older file at ``path`` is unchanged.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}{TEMPORARY_MARK}", suffix=path.suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        write(temporary)
        with suppress(OSError, NotImplementedError):  # SMB and exFAT fix all permissions at mount time
            temporary.chmod(0o644)
        temporary.replace(path)
        _sync_directory(path.parent)
    except OSError as e:
        raise UserError(f"cannot write {path}: {e.strerror or e}") from e
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def remove_unfinished_files(folder: Path) -> None:
    """Remove the temporary files that killed processes have left in ``folder``. No process may be writing there."""
    for path in folder.glob(f".*{TEMPORARY_MARK}*"):
        path.unlink(missing_ok=True)


def _sync_directory(folder: Path) -> None:
    """Flush a rename in ``folder`` to disk, so that after a power cut the file is either the old or the new one."""
    with suppress(OSError):  # some file systems cannot sync a directory, and some systems cannot open one
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def check_writable(path: Path) -> None:
    """Check that a file can be written at ``path``. Call it before a long computation whose result goes there.

    Raises:
        UserError: no file can be written there.
    """
    if path.is_dir():
        raise UserError(f"{path} is a directory; give a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent):
            pass
    except OSError as e:
        raise UserError(f"cannot write {path}: {e.strerror or e}") from e


def check_directory(path: Path, option: str) -> None:
    """Check that ``path``, the value of ``option``, can be a directory.

    Raises:
        UserError: ``path`` or one of its parents is a file.
    """
    if any(p.exists() and not p.is_dir() for p in (path, *path.parents)):
        raise UserError(f"{option} {path} is a file, or lies in one; give a directory")


def write_bytes(path: Path, data: bytes) -> None:
    """Write bytes as :func:`write_atomically` does, and sync them to disk before the rename."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())

    write_atomically(path, write)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as JSON, by :func:`write_bytes`."""
    write_bytes(path, (format_json(value) + "\n").encode())


def format_json(value: Any) -> str:
    """Return ``value`` as JSON with an indent of two spaces; NaN and infinities become null."""
    return json.dumps(_replace_non_finite(value), indent=2, allow_nan=False)


def _replace_non_finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _replace_non_finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_replace_non_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# ---- read -----------------------------------------------------------------------------------------------------------


def read_json(path: Path) -> Any:
    """Return the JSON value in a file.

    Raises:
        UserError: the file is missing, not JSON, or larger than :data:`MAX_JSON_BYTES`.
    """
    return _parse_file(path, "JSON", parse_json)


def read_toml_tables(path: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the contents of a TOML file as table -> part -> field -> value.

    A table with ``extends = "NAME"`` has also the fields of the table NAME that it does not set itself. A table that
    extends another cannot be extended.

    Raises:
        UserError: the file is missing, is not TOML, or holds a value where a table must stand; or a table extends one
            that does not exist or that extends a table itself.
    """
    tables = _parse_file(path, "TOML", tomllib.loads)
    bases = {name: t.pop("extends") for name, t in tables.items() if isinstance(t, dict) and "extends" in t}
    for name, table in tables.items():
        entries = table.items() if isinstance(table, dict) else [("", table)]
        for part, fields in entries:
            if not isinstance(fields, dict):
                key = ".".join(filter(None, (name, part)))
                raise UserError(f"{path}: {key} must be a table, [{key}] on a line of its own, not {fields!r}")
    own_tables = [name for name in tables if name not in bases]
    for name, base in bases.items():
        if base not in own_tables:
            raise UserError(f"{path}: [{name}] extends {base!r}; it can extend {', '.join(own_tables) or 'no table'}")
        parts = {**tables[base], **tables[name]}
        tables[name] = {part: tables[base].get(part, {}) | tables[name].get(part, {}) for part in parts}
    return tables


def _parse_file(path: Path, kind: str, parse: Callable[[str], Any]) -> Any:
    if not path.exists():
        raise UserError(f"{path} does not exist")
    text = read_text(path, limit=MAX_JSON_BYTES)
    try:
        return parse(text)
    except (ValueError, RecursionError) as e:
        reason = (not is_gzip(path) and explain_file_type(path)) or e
        raise UserError(f"{path} cannot be read as {kind}: {reason}") from None


def parse_json(text: str) -> Any:
    """Return the JSON value of a text.

    Raises:
        UserError: the text is not JSON, or nested more deeply than Python can read.
    """
    try:
        return json.loads(normalize_text(text))
    except ValueError as e:
        raise UserError(str(e)) from None
    except RecursionError:
        raise UserError("it is nested too deeply") from None


def explain_file_type(path: Path) -> str | None:
    """Return a phrase that names the type of an unreadable file and says what to do; None if the type is unknown."""
    try:
        with path.open("rb") as f:
            head = f.read(512)
    except OSError:
        return None
    if not head:
        return "it is empty"
    for magic, explanation in FILE_TYPES.items():
        if head.startswith(magic):
            return explanation
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml")):
        return "this is a web page: download the file itself (the 'raw' link)"
    return None


# ---- tensor files ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TensorFile:
    """A safetensors file with a JSON header. :func:`open_tensor_file` opens it; :meth:`tensors` reads the tensors.

    Attributes:
        path: the path of the file.
        header: the JSON object that was saved with the tensors.
        shapes: the shape of each tensor.
        float_names: the names of the floating-point tensors.
        half: whether some tensors are bfloat16.
    """

    path: Path
    header: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    float_names: frozenset[str]
    half: bool

    def tensors(self) -> dict[str, Tensor]:
        """Read all tensors.

        Raises:
            CheckpointError: the tensors cannot be read, or have changed since they were written.
        """
        try:
            with safe_open(self.path, framework="pt") as f:
                tensors = {key: f.get_tensor(key) for key in self.shapes}
        except (SafetensorError, OSError, ValueError) as e:
            raise CheckpointError(f"{self.path} is not a readable safetensors file: {e}") from None
        if "digest" in self.header and self.header["digest"] != tensor_digest(tensors):  # older files have no digest
            raise CheckpointError(f"{self.path} is damaged: its contents have changed since it was written")
        return tensors

    def mismatched_names(self, expected: dict[str, Tensor], prefix: str = "") -> list[str]:
        """Compare the tensors under ``prefix`` with ``expected``.

        Returns:
            the names that only the file or only ``expected`` has. If there are none: the names of tensors that differ
            in shape, or that are floats on one side only. The precision of floats may differ.
        """
        names = {name.removeprefix(prefix): name for name in self.shapes if name.startswith(prefix)}
        return sorted(set(expected) ^ set(names)) or [
            key
            for key, tensor in expected.items()
            if tuple(tensor.shape) != self.shapes[names[key]]
            or tensor.is_floating_point() != (names[key] in self.float_names)
        ]


def write_tensor_file(path: Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """Write tensors and ``header`` atomically, with this package's version and a digest of the contents."""
    copies = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}  # save() refuses shared storage
    header = {"version": __version__, **header, "digest": tensor_digest(copies)}
    write_bytes(path, save(copies, metadata={"format": FORMAT, "pyro_gram": json.dumps(header, sort_keys=True)}))


def tensor_digest(tensors: dict[str, Tensor]) -> str:
    """Return the SHA-256 of the names and contents of contiguous tensors on the CPU."""
    sha256 = hashlib.sha256()
    for name in sorted(tensors):
        sha256.update(name.encode())
        sha256.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return sha256.hexdigest()


def open_tensor_file(path: Path, kind: str) -> TensorFile:
    """Open a checkpoint without reading its tensors.

    Args:
        path: the path of the file.
        kind: the ``kind`` that the header must have.

    Raises:
        CheckpointError: the file is missing, is not a safetensors file, was not written by pyro_gram, is damaged, or
            has another kind.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file" if path.exists() else f"no checkpoint at {path}")
    try:
        _check_header_length(path)
        with safe_open(path, framework="pt") as f:
            metadata = f.metadata() or {}
            slices = {key: f.get_slice(key) for key in f.keys()}  # noqa: SIM118 (not a dict)
            shapes = {key: tuple(part.get_shape()) for key, part in slices.items()}
            dtypes = {key: str(part.get_dtype()) for key, part in slices.items()}
    except (SafetensorError, OSError, ValueError) as e:
        weights = path.with_suffix(".safetensors")
        hint = f" (its weights are in {weights.name})" if path.suffix == ".json" and weights.exists() else ""
        reason = explain_file_type(path) or e
        raise CheckpointError(f"{path} is not a readable safetensors file{hint}: {reason}") from None
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path} was not written by pyro_gram (format {metadata.get('format')!r})")
    try:
        header = parse_json(metadata["pyro_gram"])
    except (KeyError, UserError):
        header = None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path} has a damaged header")
    if header.get("kind") != kind:
        raise CheckpointError(f"{path} holds a {str(header.get('kind'))[:40]}, not a {kind}")
    float_names = frozenset(name for name, dtype in dtypes.items() if dtype.startswith(("F", "BF")))
    return TensorFile(path, header, shapes, float_names, "BF16" in dtypes.values())


def _check_header_length(path: Path) -> None:
    """Check the header length in the first 8 bytes of a safetensors file. Raises ValueError if it is wrong."""
    size = path.stat().st_size
    with path.open("rb") as f:
        length = int.from_bytes(f.read(8), "little")
    if size < 8 or length > size - 8:
        raise ValueError(f"the file is cut short ({size:,} bytes), or of another kind")
    if length > MAX_HEADER_BYTES:
        raise ValueError(f"its header has {length:,} bytes, and at most {MAX_HEADER_BYTES:,} are read")
