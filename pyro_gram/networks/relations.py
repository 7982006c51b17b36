"""Inputs of any size: what networks do with the relations, the padding and the closed values of an input.

A model with ``mixer = relations`` reads the :class:`~pyro_gram.spec.Structure` of its inputs. The relations become a
bias on attention scores, so that no position sees padding. The state is 0 at padding, the guidance there has the same
distribution under prior and guide, and an answer has only its open values. So padding changes no answer and no bound.
"""

from __future__ import annotations

import math
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from pyro_gram.errors import ConfigError
from pyro_gram.networks.core import MAX_RELATIONS, init_linear_, make_embedding
from pyro_gram.spec import Structure, TaskSpec

CLOSED = -1e4  # the logit of a closed value: its probability is 0 in float32, and its log density is finite


def reads_relations(mixer: str) -> bool:
    """Return whether networks with this mixer (``networks.core.CoreConfig``) read the structure of inputs."""
    return mixer in ("relations", "relation_terms")


def check_mixer(mixer: str, spec: TaskSpec, heads: int = 0, prefix: int = 0, field: str = "model.heads") -> None:
    """Raise ConfigError if a mixer and a task do not fit together.

    Args:
        mixer: how positions are mixed (``networks.core.CoreConfig``).
        spec: the shapes of the task.
        heads: attention heads of each layer; 0 if the caller has none.
        prefix: positions of zeros before the input.
        field: the setting that says how many heads there are.
    """
    if not reads_relations(mixer):
        if spec.padding is not None or spec.has_value_positions:
            raise ConfigError(f"inputs of several sizes, or of squares, need --model.mixer relations, not {mixer}")
        return
    if spec.structure is None:
        raise ConfigError(f"mixer {mixer} needs a task whose inputs have relations: use --model.mixer attention")
    if prefix:
        raise ConfigError(f"mixer {mixer} takes no positions before the input: set model.prefix to 0")
    if mixer == "relations" and 0 < heads < spec.relations:
        raise ConfigError(
            f"{heads} heads cannot see the {spec.relations} relations of this task: raise {field} to "
            f"{spec.relations} or more"
        )
    if mixer == "relation_terms" and spec.relations > MAX_RELATIONS:
        raise ConfigError(f"mixer relation_terms takes at most {MAX_RELATIONS} relations, not {spec.relations}")


class RelationalModule(nn.Module):
    """Base class of models that read the structure of their inputs, if ``config.mixer`` asks for relations.

    Attributes:
        structure: the structure of the inputs of this call; None with another mixer.
        bias: what attention gets of the structure, ``[..., heads, L, L]``, or ``[..., R, L, L]`` for learned terms.
    """

    structure: Structure | None = None
    bias: Tensor | None = None

    def __init__(self, config: Any, spec: TaskSpec) -> None:
        super().__init__()
        self.config, self.spec = config, spec
        check_mixer(config.mixer, spec, config.heads, config.prefix)
        self.has_relations = reads_relations(config.mixer)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy keeps: not what belongs to the inputs of the last call."""
        return self.__dict__ | {"structure": None, "bias": None}

    def read(self, x: Tensor | None) -> Tensor | None:
        """Set :attr:`structure` and :attr:`bias` for the inputs ``x [..., *event]``. Return the tokens to embed."""
        if not self.has_relations or x is None:
            return x
        assert self.spec.structure is not None
        self.structure = self.spec.structure(x)
        if self.config.mixer == "relations":
            self.bias = self.structure.attention_bias(self.config.heads)
        else:
            self.bias = self.structure.indicators()
        return self.structure.tokens

    @property
    def context(self) -> tuple[Tensor, ...]:
        """The further arguments of a core: :attr:`bias`, or none with a mixer that knows no bias."""
        return () if self.bias is None else (self.bias,)

    @property
    def mask(self) -> Tensor | None:
        """The positions that are not padding, bool ``[..., L]``; None if no position is padding."""
        return None if self.structure is None else self.structure.mask

    def answer_mask(self, e_x: Tensor) -> Tensor:
        """Return the tokens of an answer that are not padding, bool ``[..., L_out]``, for e_x ``[..., L, D]``."""
        if self.structure is None:
            return e_x.new_ones(self.spec.output_length, dtype=torch.bool)
        mask = e_x.new_ones(e_x.shape[-2], dtype=torch.bool) if self.mask is None else self.mask
        return mask.unflatten(-1, (isqrt(mask.shape[-1]), -1)).any(-1) if self.spec.has_value_positions else mask

    def at_positions(self, state: Tensor) -> Tensor:
        """Return a state ``[..., L, D]`` with zeros at padding."""
        return state if self.mask is None else state * self.mask[..., None]

    def open_values(self, logits: Tensor) -> Tensor:
        """Return the logits of an answer ``[..., L_out, classes]`` with a probability of 0 for each closed value."""
        return open_values(logits, self.structure)


def open_values(logits: Tensor, structure: Structure | None) -> Tensor:
    """Return the logits of the first n tokens of an answer, ``[..., n, classes]``; closed values get probability 0."""
    if structure is None or structure.values is None:
        return logits
    return logits.masked_fill(~structure.values[..., : logits.shape[-2], :], CLOSED)


def close_improbable(logits: Tensor, floor: float) -> Tensor:
    """Close the values whose probability is below ``floor``; the most probable value of a token stays open.

    Args:
        logits: ``[..., classes]``.
        floor: a probability; 0 closes nothing.
    """
    if not floor:
        return logits
    log_p = logits.log_softmax(-1)
    return logits.masked_fill(log_p < log_p.amax(-1, keepdim=True).clamp(max=math.log(floor)), CLOSED)


class ValuePositionEncoder(nn.Module):
    """Embed an answer at positions (token, value): ``int64 [..., n] -> [..., n * n, D]``.

    Each position gets one of three embeddings: the token has this value, it has another one, or it is masked.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = make_embedding(3, width)
        self.scale = width**0.5

    def forward(self, tokens: Tensor) -> Tensor:
        n = tokens.shape[-1]
        has_value = one_hot(tokens.clamp(max=n - 1), n)
        is_masked = (tokens >= n)[..., None]
        return self.embedding(torch.where(is_masked, 2, has_value).flatten(-2)) * self.scale


class PositionDecoder(nn.Module):
    """Turn h into logits at each position, ``[..., L, D] -> [..., L, classes]`` (value positions: ``[..., n, n]``)."""

    def __init__(self, spec: TaskSpec, width: int) -> None:
        super().__init__()
        self.has_value_positions = spec.has_value_positions
        self.head = init_linear_(nn.Linear(width, 1 if spec.has_value_positions else spec.output_classes))

    def forward(self, h: Tensor) -> Tensor:
        logits = self.head(h)
        if not self.has_value_positions:
            return logits
        return logits.squeeze(-1).unflatten(-1, (isqrt(h.shape[-2]), -1))


def mean_over(values: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean over the positions that are not padding, ``[..., L, D] -> [..., D]``."""
    if mask is None:
        return values.mean(-2)
    return (values * mask[..., None]).sum(-2) / mask.sum(-1, keepdim=True)


def max_over(values: Tensor, mask: Tensor | None) -> Tensor:
    """Return the maximum over the positions that are not padding, ``[..., L, D] -> [..., D]``."""
    return (values if mask is None else values.masked_fill(~mask[..., None], -torch.inf)).amax(-2)
