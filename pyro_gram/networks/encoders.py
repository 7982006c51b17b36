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


class PuzzleEncoder(nn.Module):
    """Puts the learned embedding of a puzzle before the encoded tokens (ARC, Appendix B.2).

    ``int64 [..., 1 + L] -> [..., prefix + L, D]``; the first token is the number of the puzzle. As in TRM the embedding
    is one vector and stands at the first of ``prefix`` positions, the others are zero: with a puzzle for each of 1,000
    versions of a task, 16 vectors each would be tens of gigabytes. Embeddings start at zero, and the optimizer gives
    them a rate of their own by their name.
    """

    def __init__(self, encoder: nn.Module, puzzles: int, prefix: int, width: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.prefix = prefix
        self.puzzle_embedding = nn.Parameter(torch.zeros(puzzles, width))

    def forward(self, tokens: Tensor) -> Tensor:
        puzzle = self.puzzle_embedding[tokens[..., 0]] * math.sqrt(self.puzzle_embedding.shape[-1])
        puzzle = F.pad(puzzle[..., None, :], (0, 0, 0, self.prefix - 1))
        return torch.cat((puzzle, self.encoder(tokens[..., 1:])), dim=-2)
