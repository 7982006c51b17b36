"""The shapes of a task's inputs and answers. Networks, models and guides need to know only these shapes of a task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Structure:
    """How the positions of a batch of inputs relate to each other, and which values an answer may take.

    Networks with ``mixer = relations`` know only this of an input, so that they work for inputs of any size.

    >>> edges = torch.tensor([[0, 1, 0], [1, 0, 1], [0, 1, 0]]).bool()  # a path of three vertices
    >>> is_self = torch.eye(3).bool()
    >>> structure = Structure(torch.zeros(3).long(), torch.stack((edges | is_self, torch.ones(3, 3).bool())))
    >>> structure.attention_bias(heads=2)[0]
    tensor([[0., 0., -inf],
            [0., 0., 0.],
            [-inf, 0., 0.]])

    Attributes:
        tokens: the token that is embedded at each position, int64 ``[..., L]``.
        relations: bool ``[..., R, L, L]``: whether position i sees position j in a relation. Every position sees itself
            in every relation, and no position sees padding. Batch dimensions may be 1 if inputs have equal relations.
        mask: bool ``[..., L]``, False at padding; None if no position is padding.
        values: bool ``[..., L_out, classes]``, the values that each token of an answer may take; at padding only 0.
            None if all values are open; not with a mask.

    Raises:
        ValueError: the structure has a mask and no values, so that an answer would have a density at padding.
    """

    tokens: Tensor
    relations: Tensor
    mask: Tensor | None = None
    values: Tensor | None = None

    def __post_init__(self) -> None:
        if self.mask is not None and self.values is None:
            raise ValueError("a structure with a mask needs values: leave only the value 0 open at padding")

    def indicators(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return each relation as 1 for a visible position, else 0; -inf if it is padding, ``[..., R, L, L]``."""
        indicators = self.relations.to(dtype)
        if self.mask is None:
            return indicators
        is_other = ~torch.eye(self.mask.shape[-1], dtype=torch.bool, device=self.mask.device)
        return indicators.masked_fill((~self.mask[..., None, :] & is_other)[..., None, :, :], -torch.inf)

    def attention_bias(self, heads: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return what is added to the attention scores, ``[..., heads, L, L]``: 0 for a visible position, else -inf.

        Head k sees the positions of relation k, k modulo R.
        """
        index = torch.arange(heads, device=self.relations.device) % self.relations.shape[-3]
        is_visible = self.relations.index_select(-3, index)
        return torch.zeros(is_visible.shape, dtype=dtype, device=is_visible.device).masked_fill_(
            ~is_visible, -torch.inf
        )


@dataclass(frozen=True)
class TaskSpec:
    """The shapes and vocabularies that networks are built for.

    Four examples:

    >>> sequence = TaskSpec(input_length=9, input_features=None, input_vocabulary=5, output_length=9, output_classes=4)
    >>> sequence.input_shape
    (9,)
    >>> TaskSpec(8, 8, 3, 8, 3).input_shape  # eight tokens at each of eight positions: an adjacency matrix
    (8, 8)
    >>> TaskSpec(9, None, 5, 9, 5, puzzles=7).input_shape  # the number of the puzzle, then nine tokens
    (10,)
    >>> TaskSpec(49, None, 0, 784, 2, image=(28, 28), patch=4).has_input  # p(x) of images
    False

    Inputs of a task may have several sizes. Smaller inputs are then padded to the largest one:

    >>> sizes = TaskSpec(4, None, 3, 4, 2, structure=lambda x: Structure(x, torch.eye(4).bool()[None]), padding=2)
    >>> x, y = torch.tensor([[0, 1, 2, 2], [1, 1, 0, 2]]), torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0]])
    >>> sizes.sizes_of(x)
    tensor([2, 3])
    >>> sizes.crop(x, y)
    (tensor([[0, 1, 2],
            [1, 1, 0]]), tensor([[1, 0, 0],
            [1, 1, 0]]))

    Attributes:
        input_length: L, the positions of the sequence (of the largest input, if inputs have several sizes).
        input_features: F, the tokens at each position (x is ``[B, L, F]``), or None for one token (x is ``[B, L]``).
        input_vocabulary: input tokens lie in ``[0, input_vocabulary)``; 0 if the task has no input (p(x)).
        output_length: L_out, the tokens of an answer. They stand at the last positions of the sequence.
        output_classes: output tokens lie in ``[0, output_classes)``.
        puzzles: if positive, x is ``[B, 1 + L]`` and its first token is the number of the puzzle, in
            ``[0, puzzles)``; each puzzle has a learned embedding (ARC).
        image: rows and columns, if an answer is an image; else None. The L_out pixels are stored row by row.
        patch: side in pixels of the square that one position of the sequence represents (images only).
        structure: maps inputs ``[..., *event]`` to their :class:`Structure`; None if positions have no relations.
        relations: R, the number of relations of a structure.
        padding: the input token of padding; None if all inputs have one size. If F is not None, an input is a square
            matrix, and the tokens on its diagonal say which positions are padding. Answers have 0 at padding.
        has_value_positions: True: a position stands for a token of the answer together with a value. The L_out^2
            positions of a state are then all pairs (token, value), row by row.
    """

    input_length: int
    input_features: int | None
    input_vocabulary: int
    output_length: int
    output_classes: int
    puzzles: int = 0
    image: tuple[int, int] | None = None
    patch: int = 1
    structure: Callable[[Tensor], Structure] | None = None
    relations: int = 0
    padding: int | None = None
    has_value_positions: bool = False

    @property
    def has_input(self) -> bool:
        """True for p(y | x); False for a program p(x), whose answers are the data."""
        return self.input_vocabulary > 0

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Return the event shape of x."""
        if self.puzzles:
            return (1 + self.input_length,)
        return (self.input_length,) if self.input_features is None else (self.input_length, self.input_features)

    @property
    def positions(self) -> int:
        """Return the positions of a state, without a prefix; for the largest input, if there are several sizes."""
        return self.output_length**2 if self.has_value_positions else self.input_length

    def sizes_of(self, x: Tensor) -> Tensor:
        """Return the number of tokens of each input that are not padding, int64 ``[...]``, for ``x [..., *event]``."""
        tokens = x if self.input_features is None else x.diagonal(dim1=-2, dim2=-1)
        if self.padding is None:
            return torch.full(tokens.shape[:-1], tokens.shape[-1], device=x.device)
        return (tokens != self.padding).sum(-1)

    def positions_of(self, x: Tensor) -> Tensor:
        """Return the number of positions of a state of each input that are not padding, int64 ``[...]``."""
        sizes = self.sizes_of(x)
        if self.padding is None:
            return torch.full_like(sizes, self.positions)
        return sizes**2 if self.has_value_positions else sizes

    def token_mask(self, x: Tensor) -> Tensor:
        """Return which tokens of inputs are not padding, bool ``[..., L]``; they come first."""
        return torch.arange(x.shape[-1], device=x.device) < self.sizes_of(x)[..., None]

    def crop(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Remove padding that all inputs of a batch share, from inputs and from answers ``[..., L_out]``."""
        if self.padding is None:
            return x, y
        size = int(self.sizes_of(x).max())
        return x[..., :size] if self.input_features is None else x[..., :size, :size], y[..., :size]

    def pad(self, x: Tensor, size: int) -> Tensor:
        """Add padding to inputs until they have ``size`` tokens, as the inverse of :meth:`crop`.

        In a matrix, the new tokens on the diagonal are ``padding`` and all others are 0. Inputs that have ``size``
        tokens or more stay unchanged.

        >>> matrices = TaskSpec(3, 3, 4, 3, 2, structure=lambda x: Structure(x, x[None] >= 0), padding=3)
        >>> matrices.pad(torch.tensor([[2, 1], [1, 2]]), 3)
        tensor([[2, 1, 0],
                [1, 2, 0],
                [0, 0, 3]])
        """
        num_missing = size - x.shape[-1]
        if self.padding is None or num_missing <= 0:
            return x
        if self.input_features is None:
            return torch.nn.functional.pad(x, (0, num_missing), value=self.padding)
        x = torch.nn.functional.pad(x, (0, num_missing, 0, num_missing))
        x.diagonal(dim1=-2, dim2=-1)[..., -num_missing:] = self.padding
        return x
