"""From the shapes of a task to the networks at the rim of a model: x in, y in (for guides), answers out.

Models and guides call these, so that each works on every task: tokens, several tokens a position, puzzles with an
embedding of their own, and images.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyro_gram.errors import ConfigError
from pyro_gram.networks.decoders import TokenDecoder
from pyro_gram.networks.encoders import FeatureEncoder, PaddedEncoder, PuzzleEncoder, TokenEncoder
from pyro_gram.networks.images import PatchDecoder, PatchEncoder
from pyro_gram.spec import TaskSpec


def input_encoder(spec: TaskSpec, width: int, prefix: int = 0) -> nn.Module | None:
    """x to e_x ``[..., prefix + L, D]``; None where the task has no input.

    Raises:
        ConfigError: puzzle embeddings without a prefix to stand in.
    """
    if not spec.has_input:
        return None
    tokens: nn.Module
    if spec.input_features is None:
        tokens = TokenEncoder(spec.input_vocabulary, width)
    else:
        tokens = FeatureEncoder(spec.input_features, spec.input_vocabulary, width)
    if not spec.puzzles:
        return PaddedEncoder(tokens, prefix)
    if prefix < 1:
        raise ConfigError("this task learns an embedding a puzzle: set model.prefix to 1 or more (the paper's is 16)")
    return PuzzleEncoder(tokens, spec.puzzles, prefix, width)


def encoded(encoder: nn.Module | None, x: Tensor | None, like: Tensor, batch: torch.Size | None) -> Tensor:
    """e_x of an input, ``[..., L, D]``; for the empty condition zeros ``[*batch, L, D]``, their shape that of ``like``.

    Raises:
        ValueError: an input for a task without input.
    """
    if x is None:
        return like.new_zeros(*(batch or ()), *like.shape)
    if encoder is None:
        raise ValueError("this task has no input: the program is p(x), call it with x = None")
    return encoder(x)


def answer_encoder(spec: TaskSpec, width: int, further: int = 0) -> nn.Module:
    """y to its embedding ``[..., L', D]``, which stands at the last L' positions of the sequence.

    ``further`` classes beyond the task's own may stand in it (a mask).
    """
    classes = spec.output_classes + further
    if spec.image is not None:
        return PatchEncoder(spec.image, spec.patch, classes, _channels(width), width)
    return TokenEncoder(classes, width)


def answer_decoder(spec: TaskSpec, width: int) -> nn.Module:
    """h to logits over answers, ``[..., L_out, classes]``."""
    if spec.image is not None:
        return PatchDecoder(spec.image, spec.patch, spec.output_classes, _channels(width), width)
    return TokenDecoder(spec.output_length, spec.output_classes, width)


def _channels(width: int) -> int:
    return max(8, width // 8)
