"""Held-out inputs: how many there are of each size, and that augmentation must not produce them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from pyro_gram.tasks.base import Task


def even_shares(total: int, limits: Sequence[int]) -> list[int]:
    """Divide a total evenly, with a limit for each share. The shares add up to less than the total if the limits do.

    >>> even_shares(10, [1, 6, 7])
    [1, 4, 5]
    """
    shares = [0] * len(limits)
    for rank, i in enumerate(sorted(range(len(limits)), key=limits.__getitem__)):  # the smallest limit first
        shares[i] = min(limits[i], total // (len(limits) - rank))
        total -= shares[i]
    return shares


class InputSet:
    """A set of inputs; :meth:`contains` says which of many given inputs are members.

    Inputs are compared by 64-bit hashes of their tokens. Two different inputs have the same hash with a probability
    of about 2^-63, which is negligible.

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
        self._hashes = self._hash(inputs).unique()  # sorted

    def _hash(self, x: Tensor) -> Tensor:
        tokens = x.flatten(-self.event_dims) if self.event_dims > 1 else x
        return self._table[self._positions, tokens].sum(-1)  # a sum of random 64-bit integers; overflow wraps around

    def contains(self, x: Tensor) -> Tensor:
        """Return for each input of ``x``, int64 ``[..., *event]``, whether it is a member: bool ``[...]``."""
        hashes = self._hash(x)
        position = torch.searchsorted(self._hashes, hashes).clamp(max=len(self._hashes) - 1)
        return self._hashes[position] == hashes


def held_out_inputs(task: Task) -> InputSet:
    """Return the inputs of the validation and the test split."""
    inputs = [task.split(name).inputs for name in ("validation", "test")]
    return InputSet(torch.cat([x for x in inputs if x is not None]), task.spec.input_vocabulary)


def replace_unless_held_out(
    held_out: InputSet, x: Tensor, y: Tensor, image_x: Tensor, image_y: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the image of each pair (x, y) under a symmetry, or the pair itself if the image of x is held out.

    Inputs are ``[B, ...]``, and answers ``[..., B, L_out]``.
    """
    is_held_out = held_out.contains(image_x)
    is_kept_x = is_held_out.view(-1, *[1] * (x.ndim - 1))
    return torch.where(is_kept_x, x, image_x), torch.where(is_held_out[:, None], y, image_y)
