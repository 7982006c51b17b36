"""The file that a checkpoint is: tensors in safetensors, the rest as JSON in its header. A stranger may have made it.

What it claims is compared with what it is before memory is taken for it: the header's length and the tensors' places
with the file's size here, the tensors' shapes with those of the settings by who reads them.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pyro_gram.errors import CheckpointError, UserError
from pyro_gram.system.files import parse_json, really, write_bytes
from pyro_gram.version import __version__

FORMAT = "pyro_gram/1"
MAX_HEADER = 16 * 2**20  # bytes; those of our own have some 50 KB


@dataclass(frozen=True)
class Container:
    """A checkpoint's file, read up to its tensors.

    Attributes:
        path: of the file.
        header: what else is saved.
        shapes: the shape of each tensor.
        floating: the names of those that hold floats.
        half: are weights kept as bfloat16?
    """

    path: Path
    header: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    floating: frozenset[str]
    half: bool

    def tensors(self) -> dict[str, Tensor]:
        """All tensors. Raises CheckpointError where they are not those that were written."""
        try:
            with safe_open(self.path, framework="pt") as f:
                tensors = {key: f.get_tensor(key) for key in self.shapes}
        except (SafetensorError, OSError, ValueError) as e:
            raise CheckpointError(f"{self.path} is not a readable safetensors file: {e}") from None
        if "digest" in self.header and self.header["digest"] != digest(tensors):  # earlier versions wrote none
            raise CheckpointError(f"{self.path} is damaged: its contents are not those that were written")
        return tensors

    def misfits(self, expected: dict[str, Tensor], prefix: str = "") -> list[str]:
        """The tensors under ``prefix`` that ``expected`` has not, or has in another shape or with other numbers."""
        held = {k.removeprefix(prefix): k for k in self.shapes if k.startswith(prefix)}
        return sorted(set(expected) ^ set(held)) or [
            k
            for k in expected
            if tuple(expected[k].shape) != self.shapes[held[k]]
            or expected[k].is_floating_point() != (held[k] in self.floating)  # half the precision is no other number
        ]


def write_container(path: Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """Write a checkpoint's file, atomically, with the version and the digest of its contents."""
    flat = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}  # safetensors refuses shared storage
    header = {"version": __version__, **header, "digest": digest(flat)}
    write_bytes(path, save(flat, metadata={"format": FORMAT, "pyro_gram": json.dumps(header, sort_keys=True)}))


def digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of names and contents; of contiguous tensors on the CPU."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(name.encode())
        found.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def open_container(path: Path, kind: str) -> Container:
    """The file of a checkpoint of ``kind``, without its tensors.

    Raises:
        CheckpointError: missing, no safetensors file, not written by pyro_gram, damaged, or of another kind.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is no file" if path.exists() else f"no checkpoint at {path}")
    try:
        _check_size(path)
        with safe_open(path, framework="pt") as f:
            metadata = f.metadata() or {}
            slices = {key: f.get_slice(key) for key in f.keys()}  # noqa: SIM118 (not a dict)
            shapes = {key: tuple(part.get_shape()) for key, part in slices.items()}
            dtypes = {key: str(part.get_dtype()) for key, part in slices.items()}
    except (SafetensorError, OSError, ValueError) as e:
        hint = f" (the weights that belong to it are in {path.with_suffix('.safetensors').name})"
        hint = hint if path.suffix == ".json" and path.with_suffix(".safetensors").exists() else ""
        raise CheckpointError(f"{path} is not a readable safetensors file{hint}: {really(path) or e}") from None
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
    floating = frozenset(k for k, name in dtypes.items() if name.startswith(("F", "BF")))
    return Container(path, header, shapes, floating, "BF16" in dtypes.values())


def _check_size(path: Path) -> None:
    """Raises ValueError where a file is shorter than its header says, or the header longer than any of ours."""
    size = path.stat().st_size
    with path.open("rb") as f:
        length = int.from_bytes(f.read(8), "little")
    if size < 8 or length > size - 8:
        raise ValueError(f"its {size:,} bytes are cut short, or of another kind of file")
    if length > MAX_HEADER:
        raise ValueError(f"its header has {length:,} bytes, and at most {MAX_HEADER:,} are read")
