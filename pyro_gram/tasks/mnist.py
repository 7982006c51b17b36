"""Binarized MNIST, a task p(x): generate handwritten digits without an input (Table 2, Appendix B.1 of the paper).

The four IDX files are read from the user's folder or downloaded once. As in the paper, a pixel is 1 if its grey value
exceeds a fixed threshold, so every run sees the same images. The sequence has one position for each patch of pixels
(the paper's patches are 2 x 2).
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from pyro_gram.checks import AT_LEAST_0, AT_LEAST_1, check_range, check_seed
from pyro_gram.errors import ConfigError, InputError
from pyro_gram.registry import TASKS
from pyro_gram.spec import TaskSpec
from pyro_gram.system import files
from pyro_gram.system.download import DATA_VARIABLE, data_folder, download, find_file
from pyro_gram.system.text import is_gzip, read_bytes
from pyro_gram.tasks.base import PuzzleSet, Task, check_split
from pyro_gram.tasks.batches import generator_for
from pyro_gram.tasks.terminal import half_blocks, painter

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

SIDE = 28  # side in pixels of the images in the files
SIDES = (14, 28)
MIRROR = "https://ossci-datasets.s3.amazonaws.com/mnist/"
MAX_PUBLISHED_BYTES = 2**26  # every published file is smaller, even unpacked
MAX_BYTES = 2**30  # a user's own file may have this size, enough for a million images
MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}  # digests of the unpacked contents
DOWNLOAD_MD5 = {
    "train-images-idx3-ubyte": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte": "ec29112dd5afa0611ce80d1b7f02629c",
}  # digests of the .gz files on the mirror
FOLDERS = ("mnist", "MNIST/raw", "MNIST", "mnist/raw", "raw")  # torchvision stores MNIST in MNIST/raw
IMAGES_MAGIC, LABELS_MAGIC = 2051, 2049


@dataclass(frozen=True)
class MNISTConfig:
    """Settings of the images, their number, and their tokens.

    Attributes:
        threshold: a pixel is 1 if its grey value, as a fraction of white, is greater than this.
        side: side of an image in pixels: 28, or 14 (squares of 2 x 2 pixels are averaged before the threshold).
        patch: side in pixels of the square that one position of the sequence represents; in the paper it is 2.
        train: number of training images; 0 for all but the validation images.
        validation: number of images of the training file to validate on.
        test: number of test images; 0 for all 10,000.
        data_seed: seed of the order of the images and thus of the splits; runs with equal seeds can be compared.
    """

    threshold: float = 0.5
    side: int = 28
    patch: int = 4
    train: int = 0
    validation: int = 1000
    test: int = 0
    data_seed: int = 0

    def __post_init__(self) -> None:
        check_range(
            self,
            threshold=(0.0, 0.99),
            patch=AT_LEAST_1,
            train=AT_LEAST_0,
            validation=AT_LEAST_1,
            test=AT_LEAST_0,
        )
        if self.side not in SIDES:
            raise ConfigError(f"side must be {' or '.join(map(str, SIDES))}, not {self.side}")
        if self.side % self.patch:
            divisors = ", ".join(str(n) for n in range(1, self.side + 1) if self.side % n == 0)
            raise ConfigError(f"patch must divide side = {self.side} ({divisors}), and {self.patch} does not")
        check_seed(self.data_seed, "data_seed")


@TASKS.register("mnist")
class MNIST(Task):
    """Generate a handwritten digit. Tokens are pixels, row by row; 1 is ink.

    There is no augmentation: a mirrored or rotated digit may be another digit, or none.
    """

    Config = MNISTConfig
    violation_name = "fault"
    is_checkable: ClassVar[bool] = False  # no image is wrong
    classifier: ClassVar[str] = "digits"

    def __init__(self, config: MNISTConfig, data_dir: str | None = None) -> None:
        # The files are read only when they are needed: a trained model samples digits without them.
        self.config, self.data_dir = config, data_dir
        self._sources: dict[str, str] = {}
        side, patch = config.side, config.patch
        self.side = side
        self.paper_name = "mnist"
        self.spec = TaskSpec((side // patch) ** 2, None, 0, side**2, 2, image=(side, side), patch=patch)

    # ---- data --------------------------------------------------------------------------------------------------

    def split(self, name: str) -> PuzzleSet:
        """Return the images of a split as solutions, uint8 ``[M, side^2]`` to save memory.

        Raises:
            InputError: a file is damaged, or is not a file of MNIST.
            ConfigError: the folder or the file is missing, the download fails, or the config asks for more images than
                there are.
        """
        pixels = self._pixels(name)
        return PuzzleSet.from_data(pixels[self._slice(name, len(pixels))])

    def labels(self, name: str) -> Tensor:
        """Return the digits that the images of a split show, int64 ``[M]``. The model never sees these labels.

        Raises:
            InputError, ConfigError: as for :meth:`split`; InputError also if the numbers of labels and images differ.
        """
        pixels = self._pixels(name)
        file = "t10k-labels-idx1-ubyte" if name == "test" else "train-labels-idx1-ubyte"
        path = self._locate(file)
        labels = read_labels(path, self._read(file, path))
        if len(labels) != len(pixels):
            raise InputError(f"{path} holds {len(labels)} labels for {len(pixels)} images: they do not belong together")
        return labels[self._order(file, len(labels))][self._slice(name, len(labels))].long()

    def _pixels(self, name: str) -> Tensor:
        """Return the images of the file that the split comes from, in random order: uint8 ``[M, side^2]``."""
        check_split(name)
        return self._test_pixels if name == "test" else self._train_pixels

    @cached_property
    def _train_pixels(self) -> Tensor:
        return self._read_pixels("train-images-idx3-ubyte")

    @cached_property
    def _test_pixels(self) -> Tensor:
        return self._read_pixels("t10k-images-idx3-ubyte")

    def _read_pixels(self, file: str) -> Tensor:
        path = self._locate(file)
        pixels = binarize(read_images(path, self._read(file, path)), self.config.threshold, self.side)
        return pixels[self._order(file, len(pixels))]

    def _order(self, file: str, count: int) -> Tensor:
        """Return a random order. The order in a file is not random: the first half of the test file is easier."""
        return torch.randperm(count, generator=generator_for(self.config.data_seed, int(file.startswith("t10k"))))

    def _slice(self, name: str, count: int) -> slice:
        """Return which of the ``count`` shuffled images of a file belong to a split."""
        c = self.config
        first = c.validation if name == "train" else 0
        size = getattr(c, name)
        num_needed = first + max(1, size)
        if num_needed > count:
            raise ConfigError(
                f"the {'test' if name == 'test' else 'training'} file holds {count} images, fewer than the "
                f"{num_needed} that task.{name}{' + task.validation' if first else ''} asks for"
            )
        return slice(first, first + size if size else count)

    def _locate(self, file: str) -> Path:
        path = find_file(self.data_dir, *candidate_paths(file))
        if path is not None:
            return path
        folder = data_folder(self.data_dir)
        if folder is not None:
            raise ConfigError(
                f"{folder} does not hold {file} (plain or .gz, there or in {', '.join(FOLDERS)}): name another "
                f"folder with --data-dir, or leave it (and {DATA_VARIABLE}) out to download MNIST"
            )
        return download(f"{MIRROR}{file}.gz", f"md5:{DOWNLOAD_MD5[file]}", f"mnist/{file}.gz")

    def provenance(self) -> dict[str, str]:
        """Return the MD5 of the unpacked contents of each file that was read: ``{"train-images-idx3-ubyte": ...}``."""
        return dict(self._sources)

    def _read(self, file: str, path: Path) -> bytes:
        """Read ``file`` at ``path``, and record its digest for the provenance."""
        data = read_contents(path, MD5[file])
        self._sources[file] = f"md5:{md5(data)}"
        return data

    # ---- text and picture --------------------------------------------------------------------------------------

    def violations(self, x: Tensor | None, y: Tensor) -> Tensor:
        """Return zeros ``[...]``: no image is wrong."""
        return torch.zeros(y.shape[:-1], dtype=torch.long, device=y.device)

    def format_solution(self, x: Tensor | None, y: Tensor) -> str:
        """Return the rows of the image, joined by ``/``; ``#`` is ink, and ``.`` is empty."""
        return "/".join("".join(".#"[pixel] for pixel in row) for row in y.view(self.side, self.side).tolist())

    def plot(self, axes: Axes, x: Tensor | None, y: Tensor | None = None) -> None:
        if y is not None:
            axes.imshow(y.view(self.side, self.side).cpu().numpy(), cmap="gray", vmin=0, vmax=1)
        axes.set_axis_off()

    def render(self, x: Tensor | None, y: Tensor | None = None, colour: bool = False) -> str:
        """Return the image in half blocks, two rows of pixels on each line; an empty text if there is no answer."""
        return "" if y is None else half_blocks(y.view(self.side, self.side).tolist(), painter(colour))


# ---- files -------------------------------------------------------------------------------------------------------


def binarize(images: Tensor, threshold: float, side: int = SIDE) -> Tensor:
    """Convert grey images uint8 ``[M, 28, 28]`` to pixels uint8 ``[M, side^2]`` of 0 and 1."""
    parts = []
    for chunk in images.split(4096):  # all images at once would take 188 MB as floats
        grey = chunk.float()
        if side != SIDE:
            grey = torch.nn.functional.avg_pool2d(grey, SIDE // side)
        parts.append((grey > 255 * threshold).flatten(1).to(torch.uint8))
    return torch.cat(parts)


def candidate_paths(file: str) -> list[str]:
    """List the paths in a data folder at which one of MNIST's files may be, the most frequent first.

    In old archives a dot precedes ``idx`` in the name. Kaggle's archive unpacks each file into a folder that has the
    name of the file.
    """
    names = (file, file.replace("-idx", ".idx"))
    paths = (*names, *(f"{folder}/{name}" for folder in names for name in names))
    return [f"{folder}/{path}" for folder in (*FOLDERS, ".") for path in paths]


def read_images(path: Path, data: bytes | None = None) -> Tensor:
    """Parse an IDX file of images: uint8 ``[M, 28, 28]``.

    Args:
        path: the unpacked file.
        data: the contents of the file, if the caller has already read them.

    Raises:
        InputError: the file is not an IDX file of images, or is damaged.
    """
    data = read_bytes(path, MAX_BYTES) if data is None else data
    count, rows, columns = _parse_header(path, data, IMAGES_MAGIC, 3)
    if (rows, columns) != (SIDE, SIDE):
        raise InputError(f"{path} holds images of {rows} x {columns} pixels; MNIST's are {SIDE} x {SIDE}")
    return _parse_items(path, data, 16, count * SIDE**2).view(count, SIDE, SIDE)


def read_labels(path: Path, data: bytes | None = None) -> Tensor:
    """Parse an IDX file of labels: uint8 ``[M]``. Arguments and errors are those of :func:`read_images`."""
    data = read_bytes(path, MAX_BYTES) if data is None else data
    (count,) = _parse_header(path, data, LABELS_MAGIC, 1)
    labels = _parse_items(path, data, 8, count)
    if labels.max() > 9:
        raise InputError(f"{path} holds the label {int(labels.max())}; MNIST's are 0 to 9")
    return labels


def read_contents(path: Path, expected: str) -> bytes:
    """Read a file. A plain file may have any contents; a gzipped file must have the published contents.

    Args:
        path: the file.
        expected: MD5 of the published contents, in hexadecimal.

    Raises:
        InputError: the file cannot be read, or is gzipped and has other contents.
    """
    if not is_gzip(path):
        return read_bytes(path, MAX_BYTES)
    data = read_bytes(path, MAX_PUBLISHED_BYTES)
    if md5(data) != expected:
        raise InputError(
            f"{path} is damaged or another file: the MD5 of its contents is {md5(data)}, MNIST's is {expected}; delete "
            "it and get it again (files of your own are read uncompressed)"
        )
    return data


def md5(data: bytes) -> str:
    """Return the MD5 in hexadecimal. (MNIST's files are published with their MD5.)"""
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _parse_header(path: Path, data: bytes, magic: int, dimensions: int) -> tuple[int, ...]:
    """Return the sizes of an IDX header: a magic number and one size for each dimension, big-endian."""
    length = 4 * (1 + dimensions)
    if len(data) < length:
        raise InputError(f"{path} is cut short: {len(data)} bytes, its header alone has {length}")
    actual_magic, *sizes = struct.unpack(f">{1 + dimensions}I", data[:length])
    if actual_magic != magic:
        reason = files.explain_file_type(path) or f"it begins with {actual_magic} instead of {magic}"
        raise InputError(f"{path} is no IDX file of this kind: {reason}")
    if sizes[0] == 0:
        raise InputError(f"{path} holds nothing: its header says 0 items")
    return tuple(sizes)


def _parse_items(path: Path, data: bytes, start: int, length: int) -> Tensor:
    if len(data) - start != length:
        fault = "is cut short" if len(data) - start < length else "goes on too long"
        raise InputError(f"{path} {fault}: {len(data)} bytes, its header announces {start + length}")
    return torch.from_numpy(np.frombuffer(data, dtype=np.uint8, offset=start).copy())
