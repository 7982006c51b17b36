"""Metrics of generated digits (binarized MNIST): how digit-like, how varied and how new samples of p(x) are.

These are the usual scores of generated images, but with a small digit classifier instead of the Inception network,
which was trained on photographs. The classifier's weights are part of the package and come from
``experiments/studies/train_classifier.py``. **The Frechet distance and the Inception score below are therefore
not the FID and IS of the literature, nor of Table 2 of the paper. Compare them only with each other, and with the
values of real images in the same results.**
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pyro_gram.errors import CheckpointError, ConfigError, InputError
from pyro_gram.tasks.base import Task

SIDE, DIGITS = 28, 10
WEIGHTS = Path(__file__).with_name("digits.safetensors")
CONFIDENT = 0.9  # a digit with at least this probability counts as recognized
NUM_REFERENCE = 1000  # real images whose nearest training image is searched
CHUNK = 4096


class DigitClassifier(nn.Module):
    """Classify binary images ``[..., side^2]`` with three convolutions and two linear layers into logits ``[..., 10]``.

    Attributes:
        num_features: the size of the layer before the logits.
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
        """Map pixels of any integer type, ``[..., side^2]``, to features ``[..., 64]``."""
        images = as_images(pixels).to(self.head.weight.dtype)
        return self.body(images * 2 - 1).view(*pixels.shape[:-1], self.num_features)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.features(pixels))


def as_images(pixels: Tensor) -> Tensor:
    """Reshape pixels ``[..., side^2]`` to float32 ``[N, 1, 28, 28]``; smaller images are enlarged pixel by pixel.

    Raises:
        InputError: the images are not square, or 28 is not a multiple of their side.
    """
    side = math.isqrt(pixels.shape[-1])
    if side == 0 or side**2 != pixels.shape[-1] or SIDE % side:
        raise InputError(f"images of {pixels.shape[-1]} pixels: the classifier reads squares whose side divides {SIDE}")
    images = pixels.reshape(-1, 1, side, side).float()
    return images.repeat_interleave(SIDE // side, -2).repeat_interleave(SIDE // side, -1)


@lru_cache(maxsize=1)
def load_classifier(path: Path = WEIGHTS) -> DigitClassifier:
    """Load the package's digit classifier in evaluation mode, with frozen weights.

    Raises:
        CheckpointError: the classifier's file is missing or damaged.
    """
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


def classify(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Return features, float64 ``[N, 64]``, and logits, float64 ``[N, 10]``, of images ``[N, side^2]``."""
    classifier = load_classifier()
    with torch.no_grad():
        features = torch.cat([classifier.features(part.cpu()) for part in pixels.split(1024)])
        return features.double(), classifier.head(features).double()


# ---- Frechet distance and Inception score ------------------------------------------------------------------------


class _Identity(nn.Module):
    """Return the input. torchmetrics wants a feature extractor, but here the inputs are features already."""

    num_features = DigitClassifier.num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def frechet_distance(real: Tensor, fake: Tensor) -> float:
    """Return the Frechet distance between Gaussians fitted to the features of two sets of binary images.

    It is not the usual FID (see the module). It is larger for smaller sets, even for sets of real images. So compare
    equal numbers of samples, and compare with :func:`frechet_floor`.

    Args:
        real: integers ``[M, side^2]``, at least 2 images.
        fake: integers ``[N, side^2]``, at least 2 images.

    Raises:
        InputError: fewer than 2 images.
        ConfigError: torchmetrics is not installed.
    """
    return _frechet(classify(real)[0], classify(fake)[0])


def frechet_floor(real: Tensor, count: int) -> float:
    """Return the Frechet distance of ``count`` real images (at most half of ``real``) to the other real images.

    The samples of a perfect sampler have this distance on average, or a slightly smaller one if ``count`` is more than
    half of ``real``. The images must be in random order.
    """
    return _frechet_floor(classify(real)[0], count)


def inception_score(fake: Tensor) -> float:
    """Return exp E KL(p(digit | image) || p(digit)).

    It is 1 if the classifier is unsure or finds only one digit, and 10 if it is sure and finds all digits equally
    often. It is not the usual IS (see the module). It uses a single split, because several splits of few samples
    would lower the score.

    Args:
        fake: integers ``[N, side^2]``.

    Raises:
        InputError: no images.
        ConfigError: torchmetrics is not installed.
    """
    return _inception_score(classify(fake)[1])


def _frechet(real: Tensor, fake: Tensor) -> float:
    if min(len(real), len(fake)) < 2:
        raise InputError(f"a Frechet distance needs at least 2 images in each set, not {len(real)} and {len(fake)}")
    metric = _torchmetrics().fid.FrechetInceptionDistance(feature=_Identity())
    metric.update(real, real=True)
    metric.update(fake, real=False)
    return max(0.0, metric.compute().item())  # rounding can make the distance of a set to itself negative


def _frechet_floor(real: Tensor, count: int) -> float:
    count = min(count, len(real) // 2)
    return _frechet(real[count:], real[:count])


def _inception_score(logits: Tensor) -> float:
    if len(logits) == 0:
        raise InputError("an Inception score needs at least 1 image")
    module = _torchmetrics()
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):  # the metric shuffles with torch's generator
        warnings.simplefilter("ignore")  # torchmetrics warns of buffered features and of the single split
        metric = module.inception.InceptionScore(feature=_Identity(), splits=1)
        metric.update(logits)
        return metric.compute()[0].item()


def check_installed() -> None:
    """Raise ConfigError unless torchmetrics is installed."""
    _torchmetrics()


def _torchmetrics() -> ModuleType:
    try:
        import torchmetrics.image.fid
        import torchmetrics.image.inception  # torchmetrics.image imports this module only with torch-fidelity
    except ImportError:
        raise ConfigError(
            "scoring generated digits needs the package torchmetrics: pip install -e '.[mnist]'"
        ) from None
    return torchmetrics.image


# ---- memorization ------------------------------------------------------------------------------------------------


def nearest_neighbours(fake: Tensor, train: Tensor) -> tuple[Tensor, Tensor]:
    """Find the training image nearest to each sample, by the number of pixels that differ.

    Args:
        fake: integers 0 and 1, ``[N, P]``.
        train: integers 0 and 1, ``[M, P]``.

    Returns:
        for each sample the index of the nearest training image (the first if several are equally near), and the Hamming
            distance, int64 ``[N]`` each.

    Raises:
        InputError: no training images, or images of another size.
    """
    if len(train) == 0 or fake.shape[-1] != train.shape[-1]:
        raise InputError(f"cannot compare images {list(fake.shape)} with training images {list(train.shape)}")
    # With pixels of -1 and 1, the dot product of two images is the number of equal pixels minus the number of different
    # pixels. The dot product is exact in float32.
    signs = 2 * fake.float() - 1
    best_values = signs.new_full((len(fake),), -math.inf)
    index = torch.zeros(len(fake), dtype=torch.long, device=fake.device)
    for start in range(0, len(train), CHUNK):
        columns = (2 * train[start : start + CHUNK].to(fake.device).float() - 1).T
        for rows in torch.arange(len(fake), device=fake.device).split(CHUNK):
            value, nearest = (signs[rows] @ columns).max(-1)
            is_closer = value > best_values[rows]
            best_values[rows] = torch.where(is_closer, value, best_values[rows])
            index[rows] = torch.where(is_closer, nearest + start, index[rows])
    return index, ((fake.shape[-1] - best_values) / 2).round().long()


@dataclass(frozen=True)
class Reference:
    """Real images that samples are compared with.

    Attributes:
        features, logits: the classifier's outputs for R real images that the model has not seen, float64 ``[R, .]``.
        train: the training images, ``[M, P]``.
        distance: for each of the first ``NUM_REFERENCE`` of these R images, the number of pixels that differ from the
            nearest training image, int64.
    """

    features: Tensor
    logits: Tensor
    train: Tensor
    distance: Tensor


@lru_cache(maxsize=4)
def reference(task: Task, split: str) -> Reference:
    """Return the real images of a split: ``validation`` during development, ``test`` for final results."""
    real, train = task.split(split).solutions, task.split("train").solutions
    features, logits = classify(real)
    return Reference(features, logits, train, nearest_neighbours(real[:NUM_REFERENCE], train)[1])


def assess(real: Reference, tokens: Tensor) -> dict[str, float]:
    """Return all metrics of a set of samples and, for comparison, of real images.

    Args:
        real: the real images.
        tokens: the samples, int64 ``[N, P]``, at least 2.

    Returns:
        Each metric by its name:

        - ``frechet_distance``: distance of the samples to the real images.
        - ``frechet_distance_floor``: :func:`frechet_floor` of as many real images as there are samples.
        - ``inception_score``, ``inception_score_real``: the scores of the samples and of real images, 1 to 10.
        - ``digits_recognized``, ``digits_recognized_real``: share of images that the classifier is at least 90 % sure
          of. Do not use this share alone: the classifier is also sure of 88 % of images with independent pixels.
        - ``classes_found``: number of distinct digits among the samples that the classifier is at least 90 % sure of.
        - ``class_entropy``: entropy of the samples' most likely digits, nats; log 10 = 2.30 at most.
        - ``nearest_distance``, ``nearest_distance_real``: mean number of pixels that differ from the nearest training
          image. Samples that are much nearer than real images are copies.
        - ``exact_copies``, ``exact_copies_real``: share of images that equal a training image.
        - ``real_images``: the number of real images.

    Raises:
        InputError: fewer than 2 samples, or images of the wrong size.
        ConfigError: torchmetrics is not installed.
    """
    check_installed()
    pixels = real.train.shape[-1]
    if tokens.dim() != 2 or tokens.shape[-1] != pixels or len(tokens) < 2:
        raise InputError(f"samples of shape {list(tokens.shape)}: expected at least 2 images of {pixels} pixels")
    features, logits = classify(tokens)
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
