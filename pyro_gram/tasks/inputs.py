"""What a solver takes as inputs: texts, bytes, graphs, arrays and tensors, alone or several of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_gram.errors import InputError, UserError
from pyro_gram.system.text import decode, normalize_text
from pyro_gram.tasks.base import Task

KINDS = "give texts, networkx graphs, or whole numbers as a tensor or an array"


def input_tokens(task: Task, x: Any) -> Tensor:
    """The tokens of one or several inputs, int64 ``[B, ...]``; each is an input, its range yet to be checked.

    Args:
        task: reads texts and graphs.
        x: a text or its bytes, a graph, a tensor or array of integers ``[B, *event]``; or an iterable of texts, of
            graphs, or of arrays ``[*event]``.

    Raises:
        InputError: nothing of these, or no input at all.
    """
    if isinstance(x, Tensor) or (isinstance(x, np.ndarray) and x.dtype.kind not in "OSU"):
        return _checked(task, _integers(x))
    if isinstance(x, str | bytes | bytearray) or _is_graph(x):
        x = [x]
    if isinstance(x, Mapping | set | frozenset):
        raise InputError(f"a {type(x).__name__} of inputs has no order that answers could follow: give a list")
    if not isinstance(x, Iterable):
        raise InputError(f"an input is a text, not {x!r}: {KINDS}")
    rows = [_one(task, item, number) for number, item in enumerate(x, start=1)]
    if not rows:
        raise InputError("no input: give at least one")
    if len({row.shape for row in rows}) > 1:
        raise InputError(f"inputs differ in shape: {', '.join(sorted({str(list(row.shape)) for row in rows}))}")
    return torch.stack(rows)


def _one(task: Task, item: Any, number: int) -> Tensor:
    """The tokens of one input, int64 ``[*event]``. Raises InputError."""
    if isinstance(item, bytes | bytearray):
        item = decode(bytes(item), "an input of bytes")
    if isinstance(item, str):
        return task.parse(normalize_text(item))
    if _is_graph(item):
        return task.parse_graph(item)
    if isinstance(item, Tensor | np.ndarray | list | tuple):
        tokens = _integers(item)
        return _checked(task, tokens[None], number)[0]
    raise InputError(f"an input is a text, not {item!r}: {KINDS}")


def _checked(task: Task, tokens: Tensor, first: int = 1) -> Tensor:
    """Tokens ``[B, *event]`` that are an input each, as a text is. Raises InputError for others.

    Numbers may be a board or a matrix of their author's, which would be read as another input here.
    """
    spec = task.spec
    if tuple(tokens.shape[1:]) != spec.input_shape or not spec.has_input:
        return tokens  # is refused by its shape
    numbers = tokens[:, 1:] if spec.puzzles else tokens
    if numbers.numel() and not 0 <= int(numbers.min()) <= int(numbers.max()) < spec.input_vocabulary:
        return tokens  # by its range
    if spec.puzzles:
        return tokens  # any grid may be asked of any puzzle
    for number, row in enumerate(tokens.cpu(), start=first):
        text = task.format_input(row)
        try:
            same = torch.equal(task.parse(text), row)
        except InputError as e:
            raise InputError(f"the numbers of input {number}, as tokens, are {text[:40]!r}: {e}") from None
        if not same:
            raise InputError(
                f"the numbers of input {number} are no tokens as task.parse(text) returns them, and a board or a "
                "matrix is not read: give a text, such as str(array.tolist()), or a networkx graph"
            )
    return tokens


def _integers(values: Any) -> Tensor:
    """Whole numbers as int64. Raises InputError for others."""
    try:
        array = values if isinstance(values, Tensor) else torch.from_numpy(np.array(values))
    except (TypeError, ValueError):
        raise InputError(f"an input is a text, not {values!r}: {KINDS}") from None
    if array.ndim == 0:
        raise InputError(f"an input is a text, not {values!r}: {KINDS}")
    if array.is_floating_point() or array.is_complex() or array.dtype == torch.bool:
        raise InputError(f"tokens are whole numbers, not {array.dtype}: {KINDS}")
    return array.long()


def _is_graph(x: Any) -> bool:
    """Is it a graph of networkx?"""
    return callable(getattr(x, "is_directed", None)) and hasattr(x, "adj")


def whole_number(name: str, value: Any) -> int:
    """A whole number of whatever type, numpy's too, as an int. Raises UserError for others."""
    if isinstance(value, bool | np.bool_) or not hasattr(value, "__index__"):
        raise UserError(f"{name} must be a whole number, not {value!r}")
    return int(value.__index__())
