"""From task tokens to ``[..., L, D]``: the embedding e_x of x, and the embedding of y for guides."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_gram.networks.layers import make_embedding


class TokenEncoder(nn.Module):
    """One token a position. ``int64 [..., L] -> [..., L, D]``, scaled by sqrt(D)."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.embedding = make_embedding(vocabulary, width)
        self.scale = math.sqrt(width)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.embedding(tokens) * self.scale


class FeatureEncoder(nn.Module):
    """Several tokens a position: the mean of one embedding per (feature, value), scaled to unit variance.

    ``int64 [..., L, F] -> [..., L, D]``. A matrix product over one-hot features; at the sizes of a puzzle
    (F * V <= 100) it is faster than F look-ups and its gradient is dense.
    """

    def __init__(self, features: int, vocabulary: int, width: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.table = nn.Parameter(torch.empty(features * vocabulary, width))
        nn.init.trunc_normal_(self.table, std=features**-0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        return F.one_hot(tokens, self.vocabulary).flatten(-2).to(self.table.dtype) @ self.table


class PaddedEncoder(nn.Module):
    """Puts ``prefix`` zero positions before what ``encoder`` returns (the 16 puzzle tokens of Appendix B.2)."""

    def __init__(self, encoder: nn.Module, prefix: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.prefix = prefix

    def forward(self, tokens: Tensor) -> Tensor:
        e = self.encoder(tokens)
        return F.pad(e, (0, 0, self.prefix, 0)) if self.prefix else e


def make_encoder(length: int, features: int | None, vocabulary: int, width: int, prefix: int) -> nn.Module:
    """The encoder of an input of ``features`` tokens a position (``None``: a plain sequence of tokens)."""
    if features is None:
        return PaddedEncoder(TokenEncoder(vocabulary, width), prefix)
    return PaddedEncoder(FeatureEncoder(features, vocabulary, width), prefix)
