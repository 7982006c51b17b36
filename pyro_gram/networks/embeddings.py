"""Networks between tokens and states: from x to e_x, from y to its embedding (for guides), from h to logits of y.

Models and guides call the functions at the top. These functions choose the network for a task. A task may
have one token or several tokens per position, a learned embedding of each puzzle, or images.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_gram.errors import ConfigError
from pyro_gram.networks.core import init_linear_, make_embedding
from pyro_gram.networks.relations import PositionDecoder, ValuePositionEncoder
from pyro_gram.spec import TaskSpec


def input_encoder(spec: TaskSpec, width: int, prefix: int = 0, has_relations: bool = False) -> nn.Module | None:
    """Make the network that embeds an input x as e_x, ``[..., prefix + L, D]``; None for a task without input.

    With ``has_relations`` the network embeds the tokens of the input's structure instead of x.

    Raises:
        ConfigError: the task has puzzle embeddings, and ``prefix`` is 0.
    """
    if not spec.has_input:
        return None
    if has_relations:
        return TokenEncoder(spec.input_vocabulary, width)
    tokens: nn.Module
    if spec.input_features is None:
        tokens = TokenEncoder(spec.input_vocabulary, width)
    else:
        tokens = FeatureEncoder(spec.input_features, spec.input_vocabulary, width)
    if not spec.puzzles:
        return PaddedEncoder(tokens, prefix)
    if prefix < 1:
        raise ConfigError("this task learns an embedding for each puzzle: set model.prefix to 1 or more (paper: 16)")
    return PuzzleEncoder(tokens, spec.puzzles, prefix, width)


def embed_input(encoder: nn.Module | None, x: Tensor | None, like: Tensor, batch: torch.Size | None) -> Tensor:
    """Return e_x of an input, ``[..., L, D]``; in a model without input e_x is zeros ``[*batch, *like.shape]``.

    Raises:
        ValueError: x is given, and the task has no input.
    """
    if x is None:
        return like.new_zeros(*(batch or ()), *like.shape)
    if encoder is None:
        raise ValueError("this task has no input: the program is p(x), call it with x = None")
    return encoder(x)


def answer_encoder(spec: TaskSpec, width: int, extra_classes: int = 0) -> nn.Module:
    """Make the network that embeds an answer: y to ``[..., L', D]``, for the last L' positions of the sequence.

    Args:
        extra_classes: number of tokens that an answer may hold besides the task's own (1 for a mask).
    """
    classes = spec.output_classes + extra_classes
    if spec.image is not None:
        from pyro_gram.networks.images import PatchEncoder

        return PatchEncoder(spec.image, spec.patch, classes, _stem_channels(width), width)
    if spec.has_value_positions:
        return ValuePositionEncoder(width)
    return TokenEncoder(classes, width)


def image_encoder(spec: TaskSpec, width: int) -> Any:
    """Make the network that embeds an image whose pixels have some of their values, as planes 0 or 1."""
    from pyro_gram.networks.images import PatchEncoder

    assert spec.image is not None
    classes = spec.output_classes
    return PatchEncoder(spec.image, spec.patch, classes, _stem_channels(width), width, planes=classes)


def answer_decoder(
    spec: TaskSpec, width: int, has_relations: bool = False, has_pixel_features: bool = False
) -> nn.Module:
    """Make the network from h to the logits of an answer, ``[..., L_out, classes]``.

    With ``has_relations`` an answer has a token for each position, whatever the number of positions is. With
    ``has_pixel_features`` the decoder of an image also reads features, as many as :func:`image_encoder` makes.
    """
    if has_relations:
        return PositionDecoder(spec, width)
    if spec.image is not None:
        from pyro_gram.networks.images import PatchDecoder

        channels = _stem_channels(width)
        features = channels if has_pixel_features else 0
        return PatchDecoder(spec.image, spec.patch, spec.output_classes, channels, width, features)
    return TokenDecoder(spec.output_length, spec.output_classes, width)


def _stem_channels(width: int) -> int:
    """Return the number of channels of an image's convolutions."""
    return max(8, width // 8)


class TokenEncoder(nn.Module):
    """Embed one token per position, scaled by sqrt(D). ``int64 [..., L] -> [..., L, D]``."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.embedding = make_embedding(vocabulary, width)
        self.scale = math.sqrt(width)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.embedding(tokens) * self.scale


class FeatureEncoder(nn.Module):
    """Embed several tokens (features) per position by the sum of their embeddings. The sum has unit variance.

    ``int64 [..., L, F] -> [..., L, D]``. The layer is a matrix product over one-hot features. At the sizes of a
    puzzle (F * vocabulary <= 100) this is faster than F look-ups, and the gradient is dense.
    """

    def __init__(self, features: int, vocabulary: int, width: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.table = nn.Parameter(torch.empty(features * vocabulary, width))
        nn.init.trunc_normal_(self.table, std=features**-0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        return F.one_hot(tokens, self.vocabulary).flatten(-2).to(self.table.dtype) @ self.table


class PaddedEncoder(nn.Module):
    """Put ``prefix`` positions of zeros before the output of ``encoder`` (the 16 puzzle tokens of Appendix B.2)."""

    def __init__(self, encoder: nn.Module, prefix: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.prefix = prefix

    def forward(self, tokens: Tensor) -> Tensor:
        e = self.encoder(tokens)
        return F.pad(e, (0, 0, self.prefix, 0)) if self.prefix else e


class PuzzleEncoder(nn.Module):
    """Put the learned embedding of a puzzle before the encoded tokens (ARC, Appendix B.2).

    ``int64 [..., 1 + L] -> [..., prefix + L, D]``; the first token is the number of the puzzle. The embedding is one
    vector, as in TRM, and stands at the first of ``prefix`` positions; the other positions are zero. (16 vectors for
    each version of an ARC task would be tens of gigabytes.) The embeddings start at zero. The optimizer finds the
    parameter by its name ``puzzle_embedding`` and gives it a learning rate of its own.
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


class TokenDecoder(nn.Module):
    """Turn the last ``length`` positions of h into logits. ``[..., L, D] -> [..., length, classes]``.

    The answer stands at the end of the sequence; before it come puzzle tokens and positions that only the input has.
    """

    def __init__(self, length: int, classes: int, width: int) -> None:
        super().__init__()
        self.length = length
        self.head = init_linear_(nn.Linear(width, classes))

    def forward(self, h: Tensor) -> Tensor:
        return self.head(h[..., -self.length :, :])
