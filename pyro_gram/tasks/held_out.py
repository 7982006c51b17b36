"""Inputs that are images of one another: an augmentation that never shows a held-out one, and fresh inputs."""

from __future__ import annotations

from collections.abc import Hashable, Iterable

import numpy as np
import torch
from torch import Tensor


class InputSet:
    """A set of inputs, compared by a 64-bit hash of their tokens.

    Two inputs collide with a probability of about 2^-63; a collision would only cost an augmentation.

    Args:
        inputs: int64 ``[N, *event]``.
        vocabulary: tokens lie in ``[0, vocabulary)``.
    """

    def __init__(self, inputs: Tensor, vocabulary: int) -> None:
        self.event_dims = inputs.ndim - 1
        positions = inputs[0].numel()
        rng = np.random.default_rng(positions * 1_000 + vocabulary)
        table = rng.integers(-(2**62), 2**62, size=(positions, vocabulary), dtype=np.int64)
        self._table = torch.from_numpy(table)
        self._positions = torch.arange(positions)
        self._keys = self._hash(inputs).unique()  # sorted

    def _hash(self, x: Tensor) -> Tensor:
        flat = x.flatten(-self.event_dims) if self.event_dims > 1 else x
        return self._table[self._positions, flat].sum(-1)  # wraps around: a sum of independent random words

    def contains(self, x: Tensor) -> Tensor:
        """int64 ``[..., *event]`` -> bool ``[...]``."""
        keys = self._hash(x)
        place = torch.searchsorted(self._keys, keys).clamp(max=len(self._keys) - 1)
        return self._keys[place] == keys


def unless_held_out(
    held_out: InputSet, x: Tensor, y: Tensor, image_x: Tensor, image_y: Tensor
) -> tuple[Tensor, Tensor]:
    """The images of the pairs (x, y), but the pairs themselves where the image is a held-out input. ``[B, ...]``."""
    held = held_out.contains(image_x)
    keep_x = held.view(-1, *[1] * (x.ndim - 1))
    keep_y = held.view(-1, *[1] * (y.ndim - 1))
    return torch.where(keep_x, x, image_x), torch.where(keep_y, y, image_y)


def first_of_class(keys: Iterable[Hashable], classes: set[Hashable]) -> list[int]:
    """The places of the keys that ``classes`` lacks, of equal ones the first; ``classes`` has them from then on."""
    places = []
    for place, key in enumerate(keys):
        if key not in classes:
            classes.add(key)
            places.append(place)
    return places
