"""How digit-like, how varied and how new samples of p(x) are, for binarized MNIST.

The usual scores of generated images, with a small digit classifier in the place of the Inception network (which has
seen photographs, and is not what one downloads to look at 28 x 28 pixels). Its weights are in the package and come from
``experiments/studies/train_classifier.py``. **The Frechet distance and the Inception score below are therefore no FID
and no IS of the literature, the paper's Table 2 included: they compare with each other, and with the figures of real
data that stand beside them, only.**
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from matplotlib.figure import Figure
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pyro_gram.errors import CheckpointError, ConfigError, InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes

    from pyro_gram.tasks.base import Task

SIDE, DIGITS = 28, 10
WEIGHTS = Path(__file__).with_name("digits.safetensors")
CONFIDENT = 0.9  # a sample counts as recognized from this probability on
YARDSTICK = 1000  # real test images whose nearest training images are looked for
CHUNK = 4096


class DigitClassifier(nn.Module):
    """Three convolutions and two linear layers: binary images ``[..., side^2]`` to logits of the digits ``[..., 10]``.

    Attributes:
        num_features: of :meth:`features`, the layer before the logits.
    """

    num_features = 64

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64 * 9, self.num_features),
            nn.ReLU(),
        )
        self.head = nn.Linear(self.num_features, DIGITS)

    def features(self, pixels: Tensor) -> Tensor:
        """Pixels of any integer type, ``[..., side^2]``, to ``[..., 64]``."""
        images = as_images(pixels).to(self.head.weight.dtype)
        return self.body(images * 2 - 1).view(*pixels.shape[:-1], self.num_features)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.features(pixels))


def as_images(pixels: Tensor) -> Tensor:
    """Pixels ``[..., side^2]`` to float32 ``[N, 1, 28, 28]``; smaller images are enlarged, each pixel to a square.

    Raises:
        InputError: the images are not square, or 28 is no multiple of their side.
    """
    side = math.isqrt(pixels.shape[-1])
    if side == 0 or side**2 != pixels.shape[-1] or SIDE % side:
        raise InputError(f"images of {pixels.shape[-1]} pixels: the classifier reads squares whose side divides {SIDE}")
    images = pixels.reshape(-1, 1, side, side).float()
    return images.repeat_interleave(SIDE // side, -2).repeat_interleave(SIDE // side, -1)


@lru_cache(maxsize=1)
def load_classifier(path: Path = WEIGHTS) -> DigitClassifier:
    """The classifier of the package, for evaluation. Raises CheckpointError where its file is missing or damaged."""
    classifier = DigitClassifier()
    try:
        classifier.load_state_dict(load_file(path))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} is missing: reinstall, or make it with experiments/studies/train_classifier.py"
        ) from None
    except (SafetensorError, RuntimeError, OSError) as e:
        reason = str(e).splitlines()[0]
        raise CheckpointError(f"{path} does not hold the weights of the digit classifier: {reason}") from None
    return classifier.eval().requires_grad_(False)


def look(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """What the classifier makes of images ``[N, side^2]``: features float64 ``[N, 64]``, logits float64 ``[N, 10]``."""
    classifier = load_classifier()
    with torch.no_grad():
        features = torch.cat([classifier.features(part.cpu()) for part in pixels.split(1024)])
        return features.double(), classifier.head(features).double()


# ---- the two scores ----------------------------------------------------------------------------------------------


class _AsGiven(nn.Module):
    """The feature extractor that torchmetrics is given: its inputs are features already, each image is seen once."""

    num_features = DigitClassifier.num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def frechet_distance(real: Tensor, fake: Tensor) -> float:
    """The Frechet distance between Gaussians fitted to the classifier's features of two sets of binary images.

    Not an FID (see the module). It is larger for smaller sets, even if both are real: compare equal numbers of samples,
    and with :func:`frechet_floor`.

    Args:
        real: integers ``[M, side^2]``, at least 2 images.
        fake: integers ``[N, side^2]``, at least 2 images.

    Raises:
        InputError: fewer than 2 images.
        ConfigError: torchmetrics is not installed.
    """
    return _frechet(look(real)[0], look(fake)[0])


def frechet_floor(real: Tensor, count: int) -> float:
    """The distance between real images and real images: ``count`` of them, at most half, against the rest.

    What a perfect sampler's ``count`` samples would be expected to score (a little less, where ``count`` is more than
    half of ``real``). The images must be in random order.
    """
    return _frechet_floor(look(real)[0], count)


def inception_score(fake: Tensor) -> float:
    """exp E KL(p(digit | image) || p(digit)) of the classifier: 1 (all alike, or unsure) to 10 (sure, and all digits).

    Not an IS (see the module). One split, so that few samples are not scored too low.

    Args:
        fake: integers ``[N, side^2]``.

    Raises:
        InputError: no images.
        ConfigError: torchmetrics is not installed.
    """
    return _inception_score(look(fake)[1])


def _frechet(real: Tensor, fake: Tensor) -> float:
    if min(len(real), len(fake)) < 2:
        raise InputError(f"a Frechet distance needs at least 2 images a side, not {len(real)} and {len(fake)}")
    metric = _torchmetrics().fid.FrechetInceptionDistance(feature=_AsGiven())
    metric.update(real, real=True)
    metric.update(fake, real=False)
    return max(0.0, metric.compute().item())  # rounding can take the distance of a set to itself below 0


def _frechet_floor(real: Tensor, count: int) -> float:
    count = min(count, len(real) // 2)
    return _frechet(real[count:], real[:count])


def _inception_score(logits: Tensor) -> float:
    if len(logits) == 0:
        raise InputError("an Inception score needs at least 1 image")
    module = _torchmetrics()
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):  # it shuffles by the global generator
        warnings.simplefilter("ignore")  # "buffers all features"; the deviation over one split is not defined
        metric = module.inception.InceptionScore(feature=_AsGiven(), splits=1)
        metric.update(logits)
        return metric.compute()[0].item()


def check_installed() -> None:
    """Raises ConfigError unless torchmetrics is there."""
    _torchmetrics()


def _torchmetrics() -> ModuleType:
    try:
        import torchmetrics.image.fid
        import torchmetrics.image.inception  # not in torchmetrics.image itself unless torch-fidelity is there too
    except ImportError:
        raise ConfigError(
            "scoring generated digits needs the package torchmetrics: pip install -e '.[mnist]'"
        ) from None
    return torchmetrics.image


# ---- memorization ------------------------------------------------------------------------------------------------


def nearest_neighbours(fake: Tensor, train: Tensor) -> tuple[Tensor, Tensor]:
    """The training image nearest to each sample, in pixels that differ.

    Args:
        fake: integers 0 and 1, ``[N, P]``.
        train: integers 0 and 1, ``[M, P]``.

    Returns:
        which training image (the first of several), int64 ``[N]``, and its Hamming distance, int64 ``[N]``.

    Raises:
        InputError: no training images, or images of another size.
    """
    if len(train) == 0 or fake.shape[-1] != train.shape[-1]:
        raise InputError(f"cannot compare images {list(fake.shape)} with training images {list(train.shape)}")
    # With pixels as -1 and 1, agreements less disagreements are a product of matrices, exact in float32.
    signs = 2 * fake.float() - 1
    best = signs.new_full((len(fake),), -math.inf)
    index = torch.zeros(len(fake), dtype=torch.long, device=fake.device)
    for start in range(0, len(train), CHUNK):
        columns = (2 * train[start : start + CHUNK].to(fake.device).float() - 1).T
        for rows in torch.arange(len(fake), device=fake.device).split(CHUNK):
            value, found = (signs[rows] @ columns).max(-1)
            closer = value > best[rows]
            best[rows] = torch.where(closer, value, best[rows])
            index[rows] = torch.where(closer, found + start, index[rows])
    return index, ((fake.shape[-1] - best) / 2).round().long()


@dataclass(frozen=True)
class Reference:
    """What samples are compared with, computed once.

    Attributes:
        features, logits: what the classifier makes of real images that training did not see, float64 ``[R, .]``.
        train: the training images, ``[M, P]``.
        distance: of some of the real images to their nearest training images, int64.
    """

    features: Tensor
    logits: Tensor
    train: Tensor
    distance: Tensor


@lru_cache(maxsize=4)
def reference(task: Task, split: str) -> Reference:
    """The real images of ``split``: ``validation`` while a model is being made, ``test`` once it is done."""
    real, train = task.split(split).solutions, task.split("train").solutions
    features, logits = look(real)
    return Reference(features, logits, train, nearest_neighbours(real[:YARDSTICK], train)[1])


def assess(real: Reference, tokens: Tensor) -> dict[str, float]:
    """All figures of a set of samples, each beside what real data score.

    Args:
        real: what to compare with.
        tokens: the samples, int64 ``[N, P]``, at least 2.

    Returns:
        Each figure by its name:

        - ``frechet_distance``: of the samples to the real images.
        - ``frechet_distance_floor``: of as many real images, at most half, to the other real images.
        - ``inception_score``, ``inception_score_real``: 1 to 10.
        - ``digits_recognized``, ``digits_recognized_real``: the share that the classifier is at least 90 % sure of.
          Never read it alone: it is sure of some noise as well (drawing every pixel by its own mean scores .88).
        - ``classes_found``: how many of the ten digits are among the samples that it is sure of.
        - ``class_entropy``: of the digits it sees most likely in each sample, nats; log 10 = 2.30 at most.
        - ``nearest_distance``, ``nearest_distance_real``: mean of the pixels that differ from the nearest training
          image. Samples far nearer than real images are copies.
        - ``exact_copies``, ``exact_copies_real``: the share of images that are training images to the pixel.
        - ``real_images``: how many.

    Raises:
        InputError: fewer than 2 samples, or images of the wrong size.
        ConfigError: torchmetrics is not installed.
    """
    check_installed()  # before any work
    pixels = real.train.shape[-1]
    if tokens.dim() != 2 or tokens.shape[-1] != pixels or len(tokens) < 2:
        raise InputError(f"samples of shape {list(tokens.shape)}: expected at least 2 images of {pixels} pixels")
    features, logits = look(tokens)
    confidence, digit = logits.softmax(-1).max(-1)
    distance = nearest_neighbours(tokens, real.train)[1]
    return {
        "frechet_distance": _frechet(real.features, features),
        "frechet_distance_floor": _frechet_floor(real.features, len(tokens)),
        "inception_score": _inception_score(logits),
        "inception_score_real": _inception_score(real.logits),
        "digits_recognized": _share(confidence >= CONFIDENT),
        "digits_recognized_real": _share(real.logits.softmax(-1).amax(-1) >= CONFIDENT),
        "classes_found": len(digit[confidence >= CONFIDENT].unique()),
        "class_entropy": torch.special.entr(digit.bincount(minlength=DIGITS) / len(digit)).sum().item(),
        "nearest_distance": distance.double().mean().item(),
        "nearest_distance_real": real.distance.double().mean().item(),
        "exact_copies": _share(distance == 0),
        "exact_copies_real": _share(real.distance == 0),
        "real_images": len(real.features),
    }


def _share(flags: Tensor) -> float:
    return flags.double().mean().item()


# ---- figures -----------------------------------------------------------------------------------------------------


def neighbours(tokens: Tensor, train: Tensor, side: int, count: int = 24, columns: int = 6) -> Figure:
    """Samples, each beside the training image that is nearest to it; pixels that differ are marked in the second.

    Args:
        tokens: integers ``[N, side^2]``; the first ``count`` are shown.
        train: integers ``[M, side^2]``.
    """
    shown = tokens[:count].cpu()
    index, distance = nearest_neighbours(shown, train.cpu())
    rows = max(1, math.ceil(len(shown) / columns))
    figure = Figure(figsize=(1.8 * columns, 1.15 * rows + 0.4), layout="constrained")
    gap = 2
    for number, (axes, image) in enumerate(_panels(figure, rows, columns, shown)):
        near = train[index[number]].cpu()
        pair = [image.view(side, side).float(), torch.full((side, gap), math.nan), near.view(side, side).float()]
        _show(axes, torch.cat(pair, 1), side)
        differ = (image != near).view(side, side).nonzero()
        axes.scatter(differ[:, 1] + side + gap, differ[:, 0], s=1.2, color="#E69F00", linewidths=0)
        axes.set_title(f"{int(distance[number])} pixels", fontsize=8)
    figure.suptitle("Samples (left of each pair) and their nearest training images; dots mark pixels that differ")
    return figure


def _panels(figure: Figure, rows: int, columns: int, images: Tensor) -> Iterator[tuple[Axes, Tensor]]:
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in grid:
        axes.set_axis_off()
    yield from zip(grid, images.cpu(), strict=False)


def _show(axes: Axes, image: Tensor, side: int) -> None:
    axes.imshow(image.reshape(side, -1).numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
