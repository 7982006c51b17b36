import gzip
import hashlib
import os
import struct
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from pyro_gram.errors import ConfigError, InputError
from pyro_gram.registry import TASKS
from pyro_gram.tasks import mnist
from pyro_gram.tasks.batches import TargetStream
from pyro_gram.tasks.mnist import DOWNLOAD_MD5, MD5, MNIST, MNISTConfig, binarize, read_images, read_labels
from tests.conftest import ROOT

DATA = Path(os.environ.get("PYRO_GRAM_DATA") or ROOT.parent / "shared" / "data")
needs_data = pytest.mark.skipif(
    not any((DATA / folder / "train-images-idx3-ubyte.gz").is_file() for folder in ("mnist", ".")),
    reason=f"the MNIST files are not in {DATA}: set PYRO_GRAM_DATA",
)
COUNTS = {"train": 30, "t10k": 12}
IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def write_images(path, images, magic=2051, sizes=None):
    path.write_bytes(struct.pack(">IIII", magic, *(sizes or images.shape)) + images.tobytes())


def write_labels(path, labels, magic=2049, count=None):
    path.write_bytes(struct.pack(">II", magic, len(labels) if count is None else count) + labels.tobytes())


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a test must not download")

    monkeypatch.delenv("PYRO_GRAM_DATA", raising=False)
    monkeypatch.setattr(mnist, "download", refuse)


@pytest.fixture
def folder(tmp_path):
    """Return a folder with four small files in MNIST's format: an image of the digit d has d bright pixels."""
    rng = np.random.default_rng(0)
    for part, count in COUNTS.items():
        labels = rng.integers(0, 10, count).astype(np.uint8)
        images = rng.integers(0, 128, (count, 28, 28)).astype(np.uint8)
        for image, label in zip(images, labels, strict=True):
            image.reshape(-1)[rng.choice(784, label, replace=False)] = rng.integers(128, 256, label)
        write_images(tmp_path / f"{part}-images-idx3-ubyte", images)
        write_labels(tmp_path / f"{part}-labels-idx1-ubyte", labels)
    return tmp_path


def make(folder, **changes) -> MNIST:
    return MNIST(MNISTConfig(**{"validation": 5, **changes}), str(folder))


def read_files(folder, part="train"):
    """Read images and labels from the files of the fixture, without using the task."""
    images = np.frombuffer((folder / f"{part}-images-idx3-ubyte").read_bytes()[16:], np.uint8).reshape(-1, 784)
    return images, np.frombuffer((folder / f"{part}-labels-idx1-ubyte").read_bytes()[8:], np.uint8)


def count_rows(pixels):
    return Counter(bytes(row) for row in np.asarray(pixels, dtype=np.uint8))


# ---- data --------------------------------------------------------------------------------------------------------


def test_it_is_registered_and_generative():
    assert TASKS.get("mnist") is MNIST
    task = MNIST(MNISTConfig())
    assert not task.is_checkable
    assert task.classifier == "digits"
    assert not task.spec.has_input
    with pytest.raises(InputError, match="takes no input"):
        task.parse("....")


@pytest.mark.parametrize(("side", "patch", "length"), [(28, 4, 49), (14, 7, 4)])
def test_the_shapes_follow_side_and_patch(side, patch, length):
    spec = MNIST(MNISTConfig(side=side, patch=patch)).spec
    assert (spec.input_length, spec.output_length, spec.output_classes) == (length, side**2, 2)
    assert (spec.image, spec.patch, spec.input_vocabulary) == ((side, side), patch, 0)


def test_written_files_come_back_as_pixels_above_the_threshold(folder):
    task = make(folder)
    splits = {name: task.split(name) for name in ("train", "validation", "test")}
    assert {name: len(p.solutions) for name, p in splits.items()} == {"train": 25, "validation": 5, "test": 12}
    for puzzles in splits.values():
        assert (puzzles.inputs, puzzles.has_all_solutions, len(puzzles)) == (None, False, 1)
        assert puzzles.solutions.dtype == torch.uint8
    pixels = torch.cat((splits["train"].solutions, splits["validation"].solutions))
    assert count_rows(pixels) == count_rows(read_files(folder)[0] > 127)
    assert count_rows(splits["test"].solutions) == count_rows(read_files(folder, "t10k")[0] > 127)


def test_labels_stay_with_their_images(folder):
    task = make(folder)
    for name in ("train", "validation", "test"):
        labels = task.labels(name)
        assert labels.dtype == torch.int64
        assert torch.equal(task.split(name).solutions.long().sum(-1), labels)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5])
def test_a_pixel_is_ink_above_the_threshold(threshold):
    grey = torch.arange(784).view(1, 28, 28).remainder(256).to(torch.uint8)
    expected = [int(v / 255 > threshold) for v in grey.flatten().tolist()]
    assert binarize(grey, threshold).tolist() == [expected]


def test_side_14_averages_squares_before_the_threshold(folder):
    task = make(folder, side=14, patch=2)
    images = read_files(folder, "t10k")[0].reshape(-1, 14, 2, 14, 2).astype(float).mean((2, 4))
    assert count_rows(task.split("test").solutions) == count_rows((images > 127.5).reshape(len(images), -1))
    square = torch.zeros(1, 28, 28, dtype=torch.uint8)
    square[0, :2, :2] = torch.tensor([[255, 255], [1, 0]])  # the mean is just above 1/2, though two pixels are dark
    assert binarize(square, 0.5, 14)[0].nonzero().flatten().tolist() == [0]


def test_a_count_cuts_its_split_and_leaves_the_others_alone(folder):
    full_task, cut_task = make(folder), make(folder, train=7, test=4)
    assert torch.equal(cut_task.split("train").solutions, full_task.split("train").solutions[:7])
    assert torch.equal(cut_task.split("test").solutions, full_task.split("test").solutions[:4])
    assert torch.equal(cut_task.split("validation").solutions, full_task.split("validation").solutions)
    assert torch.equal(cut_task.labels("train"), full_task.labels("train")[:7])


def test_the_split_is_reproducible_and_follows_its_seed(folder):
    a, b, c = (make(folder, data_seed=seed).split("validation").solutions for seed in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_training_batches_are_int64(folder):
    task = make(folder)
    x, y = TargetStream(task, task.split("train"), 8, seed=0)(1)
    assert (x, y.dtype, y.shape) == (None, torch.int64, (8, 784))
    assert count_rows(y) <= count_rows(task.split("train").solutions)


PLACES = [(".", "{}"), ("mnist", "{dot}"), ("MNIST/raw", "{}/{}"), ("raw", "{}/{dot}"), ("MNIST", "{dot}/{}")]


@pytest.mark.parametrize(("subfolder", "name"), PLACES)
def test_files_are_found_in_the_usual_places_and_through_the_environment(
    folder, tmp_path_factory, subfolder, name, monkeypatch
):
    data = tmp_path_factory.mktemp("data")
    for path in folder.iterdir():
        target = data / subfolder / name.format(*[path.name] * 2, dot=path.name.replace("-idx", ".idx"))
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    monkeypatch.setenv("PYRO_GRAM_DATA", str(data))
    task = MNIST(MNISTConfig(validation=5))
    assert len(task.split("train").solutions) == 25
    assert len(task.labels("test")) == 12
    assert set(task.provenance()) == {IMAGES, "t10k-labels-idx1-ubyte", "t10k-images-idx3-ubyte"}


def test_a_file_with_the_usual_name_is_preferred_to_kaggles(folder):
    kaggle_name = folder / IMAGES.replace("-idx", ".idx")
    write_images(kaggle_name, np.zeros((7, 28, 28), np.uint8))
    assert len(make(folder).split("train").solutions) == 25
    (folder / IMAGES).unlink()
    assert len(make(folder).split("train").solutions) == 2


def test_without_a_folder_files_are_fetched_with_their_checksum(monkeypatch):
    downloads = []

    def fetch(url, known_hash, name):
        downloads.append((url, known_hash, name))
        raise ConfigError("offline")

    monkeypatch.setattr(mnist, "download", fetch)
    task = MNIST(MNISTConfig())  # building a task reads nothing
    with pytest.raises(ConfigError, match="offline"):
        task.split("test")
    file = "t10k-images-idx3-ubyte"
    assert downloads == [
        (f"https://ossci-datasets.s3.amazonaws.com/mnist/{file}.gz", f"md5:{DOWNLOAD_MD5[file]}", f"mnist/{file}.gz")
    ]


@pytest.mark.parametrize("source", ["argument", "environment"])
def test_a_folder_without_the_files_is_an_error_and_no_download(tmp_path, monkeypatch, source):
    (tmp_path / "sudoku").mkdir()
    if source == "environment":
        monkeypatch.setenv("PYRO_GRAM_DATA", str(tmp_path))
    task = MNIST(MNISTConfig(), str(tmp_path) if source == "argument" else None)
    with pytest.raises(ConfigError, match=f"{tmp_path} does not hold {IMAGES} .*--data-dir") as error_info:
        task.split("train")
    assert "\n" not in str(error_info.value)


def test_provenance_is_the_digests_of_the_files_that_were_read(folder, monkeypatch):
    gzip_file = folder / f"{LABELS}.gz"
    gzip_file.write_bytes(gzip.compress((folder / LABELS).read_bytes()))
    (folder / LABELS).unlink()
    monkeypatch.setitem(MD5, LABELS, contents := hashlib.md5(gzip.decompress(gzip_file.read_bytes())).hexdigest())
    task = make(folder)
    assert task.provenance() == {}
    task.split("train")
    expected = {IMAGES: f"md5:{hashlib.md5((folder / IMAGES).read_bytes()).hexdigest()}"}
    assert task.provenance() == expected
    for name in ("train", "validation", "test"):
        task.split(name)
        task.labels(name)
    files = [IMAGES, "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]
    expected = {file: f"md5:{hashlib.md5((folder / file).read_bytes()).hexdigest()}" for file in files}
    expected[LABELS] = f"md5:{contents}"
    assert task.provenance() == expected


def test_an_error_names_a_missing_directory(tmp_path):
    with pytest.raises(ConfigError, match="nowhere' is not a directory"):
        make(tmp_path / "nowhere").split("train")


# ---- faults ------------------------------------------------------------------------------------------------------


def image_file(folder, change):
    path = folder / IMAGES
    path.write_bytes(change(path.read_bytes()))
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b"", "is cut short: 0 bytes, its header alone has 16"),
        (lambda b: b[:11], "is cut short: 11 bytes, its header alone has 16"),
        (lambda b: b[:-1], "is cut short: 23535 bytes, its header announces 23536"),
        (lambda b: b + b"\0", "goes on too long: 23537 bytes, its header announces 23536"),
        (lambda b: struct.pack(">I", 2049) + b[4:], "no IDX file of this kind: it begins with 2049 instead of 2051"),
        (lambda b: struct.pack("<I", 2051) + b[4:], "it begins with 50855936 instead of 2051"),
        (lambda b: struct.pack(">IIII", 2051, 60, 14, 28) + b[16:], "images of 14 x 28 pixels; MNIST's are 28 x 28"),
        (lambda b: struct.pack(">IIII", 2051, 0, 28, 28), "holds nothing"),
        (lambda b: gzip.compress(b), "damaged or another file"),
        (lambda b: gzip.compress(b)[:-9], "the .gz is damaged or cut short"),
    ],
)
def test_each_fault_of_an_image_file_has_its_own_message(folder, change, message):
    path = image_file(folder, change)
    with pytest.raises(InputError, match=message) as error_info:
        make(folder).split("train")
    assert str(path) in str(error_info.value)
    assert "\n" not in str(error_info.value)


@pytest.mark.parametrize(
    ("labels", "settings", "message"),
    [
        (np.zeros(29, np.uint8), {}, "29 labels for 30 images"),
        (np.full(30, 10, np.uint8), {}, "holds the label 10; MNIST's are 0 to 9"),
        (np.zeros(30, np.uint8), {"count": 31}, "is cut short: 38 bytes, its header announces 39"),
        (np.zeros(30, np.uint8), {"magic": 2051}, "it begins with 2051 instead of 2049"),
        (np.zeros(0, np.uint8), {}, "holds nothing"),
    ],
)
def test_each_fault_of_a_label_file_has_its_own_message(folder, labels, settings, message):
    write_labels(folder / LABELS, labels, **settings)
    with pytest.raises(InputError, match=message):
        make(folder).labels("train")


def test_a_compressed_file_must_have_the_published_contents(folder, monkeypatch):
    plain_file = folder / IMAGES
    gzip_file = folder / f"{IMAGES}.gz"
    contents = plain_file.read_bytes()
    gzip_file.write_bytes(gzip.compress(contents))
    expected = make(folder).split("train").solutions
    plain_file.unlink()
    digest = hashlib.md5(contents).hexdigest()
    with pytest.raises(InputError, match=f"damaged or another file: .* {digest}, MNIST's is {MD5[IMAGES]}"):
        make(folder).split("train")
    monkeypatch.setitem(MD5, IMAGES, digest)
    task = make(folder)
    assert torch.equal(task.split("train").solutions, expected)
    assert task.provenance() == {IMAGES: f"md5:{digest}"}
    gzip_file.write_bytes(gzip_file.read_bytes()[:-10])
    with pytest.raises(InputError, match="cannot read .*ubyte.gz: the .gz is damaged or cut short"):
        make(folder).split("train")


def test_no_more_bytes_are_unpacked_than_the_published_files_have(folder, monkeypatch):
    monkeypatch.setattr(mnist, "MAX_PUBLISHED_BYTES", 10_000)
    (folder / IMAGES).write_bytes(gzip.compress(bytes(10_001)))
    with pytest.raises(InputError, match="holds more than 10000 bytes"):
        make(folder).split("train")


def test_a_file_with_gz_in_its_name_may_be_plain(folder):
    (folder / IMAGES).rename(folder / f"{IMAGES}.gz")
    assert len(make(folder).split("train").solutions) == 25
    (folder / f"{IMAGES}.gz").write_bytes(b"<!DOCTYPE html>\n<html></html>")
    with pytest.raises(InputError, match="this is a web page: download the file itself"):
        make(folder).split("train")


def test_an_error_names_a_file_that_cannot_be_read(tmp_path):
    for read in (read_images, read_labels):
        with pytest.raises(InputError, match=f"cannot read {tmp_path}"):
            read(tmp_path)


@pytest.mark.parametrize(
    ("settings", "name", "message"),
    [
        ({"train": 26}, "train", r"the training file holds 30 images, fewer than the 31 that task.train \+ task.valid"),
        ({"validation": 30}, "train", "fewer than the 31"),
        ({"validation": 31}, "validation", "fewer than the 31 that task.validation asks for"),
        ({"test": 13}, "test", "the test file holds 12 images, fewer than the 13 that task.test asks for"),
    ],
)
def test_asking_for_more_images_than_the_file_holds_is_an_error(folder, settings, name, message):
    with pytest.raises(ConfigError, match=message):
        make(folder, **settings).split(name)


BAD_SETTINGS = [
    ({"threshold": 1.0}, "threshold must lie between 0 and 0.99"),
    ({"threshold": float("nan")}, "threshold"),
    ({"side": 20}, "side must be 14 or 28, not 20"),
    ({"patch": 3}, "patch must divide side = 28 .*, and 3 does not"),
    ({"side": 14, "patch": 4}, r"side = 14 \(1, 2, 7, 14\), and 4 does not"),
    ({"patch": 0}, "patch must be at least 1"),
    ({"validation": 0}, "validation must be at least 1"),
    ({"train": -1}, "train must be at least 0"),
    ({"data_seed": -1}, "data_seed"),
]


def test_errors_name_bad_settings():
    for settings, message in BAD_SETTINGS:
        with pytest.raises(ConfigError, match=message):
            MNISTConfig(**settings)


def test_an_error_names_an_unknown_split(folder):
    for ask in (make(folder).split, make(folder).labels):
        with pytest.raises(ConfigError, match="holdout"):
            ask("holdout")


# ---- right answers, text and picture -----------------------------------------------------------------------------


def test_no_image_is_wrong():
    violations = MNIST(MNISTConfig()).violations(None, torch.randint(0, 2, (2, 3, 784)))
    assert torch.equal(violations, torch.zeros(2, 3, dtype=torch.int64))


def test_text_shows_the_ink_row_by_row():
    task = MNIST(MNISTConfig(side=14, patch=2))
    y = torch.zeros(196, dtype=torch.long)
    y[14 + 3] = 1
    rows = task.format_solution(None, y).split("/")
    assert rows == ["." * 14, "...#" + "." * 10, *["." * 14] * 12]
    assert task.format_input(None) == ""


def test_pictures_show_the_image_or_nothing_without_an_answer():
    from matplotlib.figure import Figure

    axes_none, axes_y = Figure().subplots(1, 2)
    task = MNIST(MNISTConfig())
    y = torch.randint(0, 2, (784,))
    task.plot(axes_none, None)
    task.plot(axes_y, None, y)
    assert not axes_none.images
    assert np.array_equal(axes_y.images[0].get_array(), y.view(28, 28).numpy())


# ---- the real files ----------------------------------------------------------------------------------------------


@needs_data
def test_the_real_files_hold_70000_digits_thresholded_at_one_half():
    task = MNIST(MNISTConfig(validation=2000), str(DATA))
    pixels = {name: task.split(name).solutions for name in ("train", "validation", "test")}
    assert [tuple(p.shape) for p in pixels.values()] == [(58000, 784), (2000, 784), (10000, 784)]
    path = next(DATA.rglob("t10k-images-idx3-ubyte.gz"))
    grey = np.frombuffer(gzip.decompress(path.read_bytes())[16:], np.uint8).reshape(-1, 784)
    assert count_rows(pixels["test"]) == count_rows(grey / 255 > 0.5)
    assert task.labels("test").bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    label_counts = torch.cat((task.labels("train"), task.labels("validation"))).bincount()
    assert label_counts.tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert 0.13 < pixels["train"].float().mean() < 0.135
    assert task.provenance() == {file: f"md5:{digest}" for file, digest in MD5.items()}
