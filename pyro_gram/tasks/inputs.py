"""Convert a user's inputs to tokens. The inputs are one or several texts, bytes, graphs, arrays or tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_gram.errors import InputError
from pyro_gram.system.text import MAX_PUZZLE_BYTES, decode, normalize_text, read_text
from pyro_gram.tasks.base import Task

INPUT_TYPES = "give texts, a pathlib.Path, networkx graphs, or whole numbers as a tensor or an array"


def input_tokens(task: Task, x: Any) -> Tensor:
    """Convert one or several inputs to tokens, int64 ``[B, ...]``. The caller checks the tokens' shape and range.

    If the task has inputs of several sizes, smaller inputs are padded to the largest one.

    Args:
        task: parses texts and graphs.
        x: a text or its bytes, the path of a file of texts, a graph, a tensor or array of integers ``[B, *event]``; or
            an iterable of texts, of graphs, or of arrays ``[*event]``.

    Raises:
        InputError: ``x`` has another type, is empty, or holds something that is not an input of the task.
    """
    if isinstance(x, Path):
        return _stack(task, list(task.read_inputs(read_text(x, limit=MAX_PUZZLE_BYTES))))
    if isinstance(x, Tensor) or (isinstance(x, np.ndarray) and x.dtype.kind not in "OSU"):
        return _check_tokens(task, _to_integers(x))
    if isinstance(x, str | bytes | bytearray) or _is_graph(x):
        x = [x]
    if isinstance(x, Mapping | set | frozenset):
        raise InputError(f"a {type(x).__name__} of inputs has no order that answers could follow: give a list")
    if not isinstance(x, Iterable):
        raise InputError(f"an input is a text, not {x!r}: {INPUT_TYPES}")
    rows = [_parse_item(task, item, number) for number, item in enumerate(x, start=1)]
    if not rows:
        raise InputError("no input: give at least one")
    return _stack(task, rows)


def _stack(task: Task, rows: list[Tensor]) -> Tensor:
    """Stack inputs ``[*event]`` to ``[B, *event]``. Raises InputError if they differ in shape beyond padding."""
    if task.spec.padding is not None and all(has_event_shape(task, row.shape) for row in rows):
        size = max(row.shape[-1] for row in rows)
        rows = [task.spec.pad(row, size) for row in rows]
    if len({row.shape for row in rows}) > 1:
        raise InputError(f"inputs differ in shape: {', '.join(sorted({str(list(row.shape)) for row in rows}))}")
    return torch.stack(rows)


def input_with_colors(task: Task, x: Tensor, colors: int) -> Tensor:
    """Return inputs ``[B, *event]`` for answers with at most ``colors`` colours.

    Raises:
        InputError: the task has no such number of colours; or it is proved that an input needs more.
    """
    rows = []
    for number, row in enumerate(x, start=1):
        try:
            rows.append(task.with_colors(row, colors))
        except InputError as e:
            raise (InputError(f"input {number}: {e}") if len(x) > 1 and task.max_colors else e) from None
    return torch.stack(rows)


def has_event_shape(task: Task, shape: Sequence[int]) -> bool:
    """Return whether ``shape`` is the shape of one input; a task with ``max_size`` accepts every smaller size."""
    spec = task.spec
    if spec.padding is None or task.max_size is None:
        return tuple(shape) == spec.input_shape
    dims = len(spec.input_shape)
    return len(shape) == dims and len(set(shape)) == 1 and 1 <= shape[0] <= task.max_size


def _parse_item(task: Task, item: Any, number: int) -> Tensor:
    """Convert one input to tokens, int64 ``[*event]``. Raises InputError."""
    if isinstance(item, bytes | bytearray):
        item = decode(bytes(item), "an input of bytes")
    if isinstance(item, str):
        try:
            return task.parse(normalize_text(item))
        except InputError as e:
            raise (
                InputError(f"{e} (to read the file of this name, give pathlib.Path)") if _is_file(item) else e
            ) from None
    if _is_graph(item):
        return task.parse_graph(item)
    if isinstance(item, Tensor | np.ndarray | list | tuple):
        tokens = _to_integers(item)
        return _check_tokens(task, tokens[None], number)[0]
    raise InputError(f"an input is a text, not {item!r}: {INPUT_TYPES}")


def _check_tokens(task: Task, tokens: Tensor, first: int = 1) -> Tensor:
    """Return tokens ``[B, *event]`` if each row stays the same when it is written as text and parsed again.

    A row that changes is probably not made of tokens: the user has passed a board or an adjacency matrix. Tokens of a
    wrong shape or range are returned unchecked, because the caller refuses them.

    Raises:
        InputError: a row changes, or cannot be parsed. The message counts rows from ``first``.
    """
    spec = task.spec
    if not spec.has_input or not has_event_shape(task, tokens.shape[1:]):
        return tokens
    numbers = tokens[:, 1:] if spec.puzzles else tokens
    if numbers.numel() and not 0 <= int(numbers.min()) <= int(numbers.max()) < spec.input_vocabulary:
        return tokens
    if spec.puzzles:
        return tokens  # in a task with puzzle numbers (ARC), every grid may be an input of every puzzle
    for number, row in enumerate(tokens.cpu(), start=first):
        if not spec.sizes_of(row):
            raise InputError(f"input {number} has no token that is not padding")
        text = task.format_input(row)
        try:
            is_same = _is_same_input(task, task.parse(text), row)
        except InputError as e:
            raise InputError(f"input {number}, read as tokens, is {text[:40]!r}: {e}") from None
        if not is_same:
            raise InputError(
                f"the numbers of input {number} are not the tokens that task.parse returns for its text (an array of a "
                "board or a matrix is not read): give a text, such as str(array.tolist()), or a graph, such as "
                "networkx.from_numpy_array(array)"
            )
    return tokens


def _is_same_input(task: Task, parsed: Tensor, row: Tensor) -> bool:
    """Return whether ``row`` is an input that was parsed from its text, perhaps with fewer colours or more padding."""
    size = max(parsed.shape[-1], row.shape[-1])
    parsed, row = task.spec.pad(parsed, size), task.spec.pad(row, size)
    if torch.equal(parsed, row):
        return True
    for colors in range(1, task.max_colors + 1):
        with suppress(InputError):
            if torch.equal(task.with_colors(parsed, colors), row):
                return True
    return False


def _to_integers(values: Any) -> Tensor:
    """Convert whole numbers to int64. Raises InputError for other values."""
    try:
        array = values if isinstance(values, Tensor) else torch.from_numpy(np.array(values))
    except (TypeError, ValueError):
        raise InputError(f"an input is a text, not {values!r}: {INPUT_TYPES}") from None
    if array.ndim == 0:
        raise InputError(f"an input is a text, not {values!r}: {INPUT_TYPES}")
    if array.is_floating_point() or array.is_complex() or array.dtype == torch.bool:
        raise InputError(f"tokens are whole numbers, not {array.dtype}: {INPUT_TYPES}")
    return array.long()


def _is_file(text: str) -> bool:
    """Return whether a text is the name of a file."""
    try:
        return "\n" not in text and Path(text).is_file()
    except (OSError, ValueError):  # too long, or not a name
        return False


def _is_graph(x: Any) -> bool:
    """Return whether ``x`` is a networkx graph."""
    return callable(getattr(x, "is_directed", None)) and hasattr(x, "adj")
