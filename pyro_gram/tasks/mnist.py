"""Binarized MNIST, p(x) (Table 2 and Appendix B.1 of the paper): handwritten digits without an input.

The four IDX files are read from a folder of the user's or downloaded once. A pixel is 1 where the grey value exceeds a
threshold, as in the paper, so nothing is drawn at random: every run sees the same images. The sequence holds one
position a patch of pixels (the paper's patches are 2 x 2).
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

SIDE = 28  # of the images in the files
SIDES = (14, 28)
MIRROR = "https://ossci-datasets.s3.amazonaws.com/mnist/"
PUBLISHED = 2**26  # bytes; no published file has more, unpacked
MAX_BYTES = 2**30  # of a file of images of one's own: a million
MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}  # of the contents, whatever they are packed with
DOWNLOAD_MD5 = {
    "train-images-idx3-ubyte": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte": "ec29112dd5afa0611ce80d1b7f02629c",
}  # of the .gz files on the mirror
FOLDERS = ("mnist", "MNIST/raw", "MNIST", "mnist/raw", "raw")  # MNIST/raw is torchvision's
IMAGES, LABELS = 2051, 2049  # magic numbers


@dataclass(frozen=True)
class MNISTConfig:
    """Which images, how many, and how they become tokens.

    Attributes:
        threshold: a pixel is 1 where its grey value, as a fraction of white, is greater.
        side: 28, or 14: squares of 2 x 2 pixels are averaged before the threshold.
        patch: side of the square of pixels that one position of the sequence holds; the paper's is 2.
        train: training images; 0 for all that validation leaves.
        validation: images of the training files that are set aside.
        test: test images; 0 for all 10,000.
        data_seed: seed of the order of the images, and so of the split; the same for runs that are to be compared.
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
            fits = ", ".join(str(n) for n in range(1, self.side + 1) if self.side % n == 0)
            raise ConfigError(f"patch must divide side = {self.side} ({fits}), and {self.patch} does not")
        check_seed(self.data_seed, "data_seed")


@TASKS.register("mnist")
class MNIST(Task):
    """Draw a handwritten digit. Tokens are pixels, row by row: 1 is ink.

    Nothing is augmented: a digit mirrored or turned is another, or none.
    """

    Config = MNISTConfig
    violation_name = "fault"
    is_checkable: ClassVar[bool] = False  # no image is wrong
    classifier: ClassVar[str] = "digits"

    def __init__(self, config: MNISTConfig, data_dir: str | None = None) -> None:
        # Nothing is read yet: a trained model draws digits without the data.
        self.config, self.data_dir = config, data_dir
        self._sources: dict[str, str] = {}
        side, patch = config.side, config.patch
        self.side = side
        self.paper_name = "mnist"
        self.spec = TaskSpec((side // patch) ** 2, None, 0, side**2, 2, image=(side, side), patch=patch)

    # ---- data --------------------------------------------------------------------------------------------------

    def split(self, name: str) -> PuzzleSet:
        """The images of a split, uint8 ``[M, side^2]`` to save memory: convert what you take with ``long()``.

        Raises:
            InputError: a file is damaged or holds something else.
            ConfigError: no such folder, none of its files in it, no download, or fewer images than the config asks for.
        """
        pixels = self._shuffled(name)
        return PuzzleSet.from_data(pixels[self._rows(name, len(pixels))])

    def labels(self, name: str) -> Tensor:
        """The digits that the images of a split show, int64 ``[M]``. Raises as :meth:`split`, and where counts differ.

        The model never sees them; they are for measuring.
        """
        pixels = self._shuffled(name)
        file = "t10k-labels-idx1-ubyte" if name == "test" else "train-labels-idx1-ubyte"
        path = self._locate(file)
        data = self._contents(file, path)
        labels = read_labels(path, data)
        if len(labels) != len(pixels):
            raise InputError(f"{path} holds {len(labels)} labels for {len(pixels)} images: they do not belong together")
        return labels[self._order(file, len(labels))][self._rows(name, len(labels))].long()

    def _shuffled(self, name: str) -> Tensor:
        check_split(name)
        return self._test_pixels if name == "test" else self._train_pixels

    @cached_property
    def _train_pixels(self) -> Tensor:
        return self._pixels("train-images-idx3-ubyte")

    @cached_property
    def _test_pixels(self) -> Tensor:
        return self._pixels("t10k-images-idx3-ubyte")

    def _pixels(self, file: str) -> Tensor:
        path = self._locate(file)
        pixels = binarize(read_images(path, self._contents(file, path)), self.config.threshold, self.side)
        return pixels[self._order(file, len(pixels))]

    def _order(self, file: str, count: int) -> Tensor:
        """Shuffled: the files have an order of their own (the first half of the test file is easier)."""
        return torch.randperm(count, generator=generator_for(self.config.data_seed, int(file.startswith("t10k"))))

    def _rows(self, name: str, count: int) -> slice:
        """Where a split lies among the ``count`` shuffled images of its file."""
        c = self.config
        first = c.validation if name == "train" else 0
        wanted = getattr(c, name)
        at_least = first + max(1, wanted)
        if at_least > count:
            raise ConfigError(
                f"the {'test' if name == 'test' else 'training'} file holds {count} images, fewer than the {at_least} "
                f"that task.{name}{' + task.validation' if first else ''} asks for"
            )
        return slice(first, first + wanted if wanted else count)

    def _locate(self, file: str) -> Path:
        found = find_file(self.data_dir, *places(file))
        if found is not None:
            return found
        folder = data_folder(self.data_dir)
        if folder is not None:
            raise ConfigError(
                f"{folder} does not hold {file} (plain or .gz, there or in {', '.join(FOLDERS)}): name another "
                f"folder with --data-dir, or leave it (and {DATA_VARIABLE}) out to download MNIST"
            )
        return download(f"{MIRROR}{file}.gz", f"md5:{DOWNLOAD_MD5[file]}", f"mnist/{file}.gz")

    def provenance(self) -> dict[str, str]:
        """The MD5 of each file that was read, unpacked, by its usual name: ``{"train-images-idx3-ubyte": "md5:..."}``.

        Images are read by :meth:`split` and labels by :meth:`labels`, so four files at most.
        """
        return dict(self._sources)

    def _contents(self, file: str, path: Path) -> bytes:
        """The bytes of ``path``, which holds ``file``; their digest becomes part of the provenance."""
        data = read_contents(path, MD5[file])
        self._sources[file] = f"md5:{md5(data)}"
        return data

    # ---- what is right, text and picture -----------------------------------------------------------------------

    def violations(self, x: Tensor | None, y: Tensor) -> Tensor:
        """Zeros ``[...]``: see ``checkable``."""
        return torch.zeros(y.shape[:-1], dtype=torch.long, device=y.device)

    def format_solution(self, x: Tensor | None, y: Tensor) -> str:
        """Rows of ``#`` (ink) and ``.``, joined by ``/``."""
        return "/".join("".join(".#"[pixel] for pixel in row) for row in y.view(self.side, self.side).tolist())

    def plot(self, axes: Axes, x: Tensor | None, y: Tensor | None = None) -> None:
        if y is not None:
            axes.imshow(y.view(self.side, self.side).cpu().numpy(), cmap="gray", vmin=0, vmax=1)
        axes.set_axis_off()

    def render(self, x: Tensor | None, y: Tensor | None = None, colour: bool = False) -> str:
        """The image in half blocks, two rows of pixels a line; nothing without an answer."""
        return "" if y is None else half_blocks(y.view(self.side, self.side).tolist(), painter(colour))


# ---- files -------------------------------------------------------------------------------------------------------


def binarize(images: Tensor, threshold: float, side: int = SIDE) -> Tensor:
    """Grey images uint8 ``[M, 28, 28]`` to pixels uint8 ``[M, side^2]`` of 0 and 1."""
    parts = []
    for part in images.split(4096):  # as floats, all at once would take 188 MB
        grey = part.float()
        if side != SIDE:
            grey = torch.nn.functional.avg_pool2d(grey, SIDE // side)
        parts.append((grey > 255 * threshold).flatten(1).to(torch.uint8))
    return torch.cat(parts)


def places(file: str) -> list[str]:
    """Where a data folder may hold one of MNIST's files, the usual places first.

    The dot before ``idx`` is that of the archives of old; Kaggle's, unpacked, has a folder of the file's name.
    """
    names = (file, file.replace("-idx", ".idx"))
    inner = (*names, *(f"{folder}/{name}" for folder in names for name in names))
    return [f"{folder}/{name}" for folder in (*FOLDERS, ".") for name in inner]


def read_images(path: Path, data: bytes | None = None) -> Tensor:
    """An IDX file of images: uint8 ``[M, 28, 28]``. Raises InputError naming the fault.

    Args:
        path: the file, plain.
        data: its contents, where they are read already.
    """
    data = read_bytes(path, MAX_BYTES) if data is None else data
    count, rows, columns = _header(path, data, IMAGES, 3)
    if (rows, columns) != (SIDE, SIDE):
        raise InputError(f"{path} holds images of {rows} x {columns} pixels; MNIST's are {SIDE} x {SIDE}")
    return _body(path, data, 16, count * SIDE**2).view(count, SIDE, SIDE)


def read_labels(path: Path, data: bytes | None = None) -> Tensor:
    """An IDX file of labels: uint8 ``[M]``. Arguments and errors as those of :func:`read_images`."""
    data = read_bytes(path, MAX_BYTES) if data is None else data
    (count,) = _header(path, data, LABELS, 1)
    labels = _body(path, data, 8, count)
    if labels.max() > 9:
        raise InputError(f"{path} holds the label {int(labels.max())}; MNIST's are 0 to 9")
    return labels


def read_contents(path: Path, expected: str) -> bytes:
    """The contents of a plain file; of a gzipped one only where they are the published ones.

    Args:
        path: the file.
        expected: MD5 of the published contents, in hexadecimal.

    Raises:
        InputError: the file cannot be read, is damaged, or is gzipped and holds something else.
    """
    if not is_gzip(path):
        return read_bytes(path, MAX_BYTES)
    data = read_bytes(path, PUBLISHED)
    if md5(data) != expected:
        raise InputError(
            f"{path} is damaged or another file: the MD5 of its contents is {md5(data)}, MNIST's is {expected}; delete "
            "it and get it again (files of your own are read uncompressed)"
        )
    return data


def md5(data: bytes) -> str:
    """The digest that MNIST's files are published with, in hexadecimal."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _header(path: Path, data: bytes, magic: int, dimensions: int) -> tuple[int, ...]:
    """The sizes in an IDX header: big-endian, a magic number and then one size a dimension."""
    length = 4 * (1 + dimensions)
    if len(data) < length:
        raise InputError(f"{path} is cut short: {len(data)} bytes, its header alone has {length}")
    found, *sizes = struct.unpack(f">{1 + dimensions}I", data[:length])
    if found != magic:
        what = files.explain_file_type(path) or f"it begins with {found} instead of {magic}"
        raise InputError(f"{path} is no IDX file of this kind: {what}")
    if sizes[0] == 0:
        raise InputError(f"{path} holds nothing: its header says 0 items")
    return tuple(sizes)


def _body(path: Path, data: bytes, start: int, length: int) -> Tensor:
    if len(data) - start != length:
        what = "is cut short" if len(data) - start < length else "goes on too long"
        raise InputError(f"{path} {what}: {len(data)} bytes, its header announces {start + length}")
    return torch.from_numpy(np.frombuffer(data, dtype=np.uint8, offset=start).copy())
