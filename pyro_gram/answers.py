"""Group the samples of an input into distinct answers with their frequencies, and select among these answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from pyro_gram.errors import InputError
from pyro_gram.sampling.selection import select_by_value, tally
from pyro_gram.tasks.base import Task


@dataclass(frozen=True)
class Answer:
    """One distinct answer to one input.

    Attributes:
        solution: the text of the answer.
        count: the number of trajectories that ended in this answer. ``count / num_samples`` is its frequency, which
            estimates p(y | x) if :attr:`Answers.frequencies` says so.
        valid: does the task's check accept the answer? None if no right answer is known (a user's own ARC test).
        score: the highest decoder confidence log p(y | h_T) of a trajectory with this answer, nats.
        value: the highest probability of being right that the value head gives to a trajectory with this answer; None
            without heads.
        y: the tokens of the answer, int64 ``[L_out]``.
    """

    solution: str
    count: int
    valid: bool | None
    score: float
    value: float | None
    y: Tensor = field(repr=False, compare=False)


@dataclass(frozen=True)
class Answers:
    """The answers to one input, most frequent first.

    Attributes:
        input: the text of the input.
        solutions: the selected answers.
        num_samples: N, the number of trajectories.
        depth: the maximal number of supervision steps of a trajectory.
        select: the selection, as for :meth:`Solver.solve`.
        distinct: the number of distinct answers of all trajectories.
        distinct_valid: the number of distinct answers that are right; None if some answers cannot be checked.
        total: the exact number of right answers that the input has; None if they cannot be counted.
        mean_steps: the mean number of supervision steps of a trajectory.
        caveats: the reasons why frequencies do not estimate p(y | x), if any (:meth:`Solver.frequency_caveats`).
        x: the tokens of the input, int64 ``[*event]``.
        colors: the largest number of colours of an answer; None in tasks without such a number.
        fewer_colors: what came of each smaller number of colours that was tried: ``{3: "none found in 20 samples"}``.
    """

    input: str
    solutions: list[Answer]
    num_samples: int
    depth: int
    select: str
    distinct: int
    distinct_valid: int | None
    total: int | None
    mean_steps: float
    caveats: tuple[str, ...]
    x: Tensor = field(repr=False, compare=False)
    colors: int | None = None
    fewer_colors: dict[int, str] = field(default_factory=dict)

    @property
    def frequencies(self) -> str:
        """A text that says that frequencies of answers estimate p(y | x) at this depth, or why they do not."""
        return f"not p(y|x): {', '.join(self.caveats)}" if self.caveats else f"p(y|x) at depth {self.depth}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types, as ``solve.py --json`` prints them."""
        names = ("solution", "count", "valid", "score", "value")
        colors = {} if self.colors is None else {"colors": self.colors, "fewer_colors": self.fewer_colors}
        return {
            "input": self.input,
            "solutions": [{name: getattr(a, name) for name in names} for a in self.solutions],
            "num_samples": self.num_samples,
            "depth": self.depth,
            "mean_steps": self.mean_steps,
            "distinct": self.distinct,
            "distinct_valid": self.distinct_valid,
            "total": self.total,
            "frequencies": self.frequencies,
            **colors,
        }


def tally_answers(
    texts: list[str], scores: list[float], values: list[float] | None, is_valid: Tensor, tokens: Tensor
) -> list[Answer]:
    """Return the distinct answers among the samples of one input, the most frequent first.

    Args:
        texts, scores, values: one text, score and value for each sample.
        is_valid: 1 for a right sample, 0 for a wrong one, NaN if no right answer is known; ``[N]``.
        tokens: the tokens of each sample, int64 ``[N, L_out]``.
    """
    highest_values = {} if values is None else {texts[c.first]: c.score for c in tally(texts, values)}
    return [
        Answer(
            solution=texts[c.first],
            count=c.count,
            valid=None if is_valid[c.first].isnan() else bool(is_valid[c.first]),
            score=c.score,
            value=highest_values.get(texts[c.first]),
            y=tokens[c.first],
        )
        for c in tally(texts, scores)
    ]


def select_answers(
    select: str, answers: list[Answer], texts: list[str], scores: list[float], values: list[float] | None
) -> list[Answer]:
    """Return the answers that the selection ``select`` chooses among the distinct ``answers`` to one input."""
    if select == "vote":
        return answers[:1]
    if select == "verified":
        return [answer for answer in answers if answer.valid][:1]
    if select == "value":
        assert values is not None
        text = texts[select_by_value(texts, values, scores).first]
        return [answer for answer in answers if answer.solution == text]
    return answers


def solve_with_fewest_colors(task: Task, x: Tensor, solve: Callable[[Tensor], Iterable[Answers]]) -> list[Answers]:
    """Solve inputs ``[B, *event]`` with the fewest colours, then those without a right answer with one more, and so on.

    An input that says that it may use more colours begins with these.

    Args:
        task: a task with a number of colours.
        x: the inputs.
        solve: returns the answers to a batch of inputs.

    Raises:
        InputError: it is proved that an input cannot be coloured with the most colours of the task.
    """
    results: dict[int, Answers] = {}
    attempts: list[dict[int, str]] = [{} for _ in x]
    first_colors = [max(task.min_colors, int(task.colors_of(row))) for row in x]
    pending = list(range(len(x)))
    for colors in range(task.min_colors, task.max_colors + 1):
        rows: dict[int, Tensor] = {}
        for i in pending:
            if colors < first_colors[i]:
                continue
            try:
                rows[i] = task.with_colors(x[i], colors)
            except InputError:
                if colors == task.max_colors:
                    raise
                attempts[i][colors] = "proved impossible"
        for i, answers in zip(rows, solve(torch.stack(list(rows.values()))) if rows else (), strict=True):
            input_text = task.format_input(x[i])  # without the number of colours that is tried
            results[i] = replace(answers, input=input_text, colors=colors, fewer_colors=dict(attempts[i]))
            attempts[i][colors] = f"none found in {answers.num_samples} samples"
        pending = [i for i in pending if i not in results or not results[i].distinct_valid]
        if not pending:
            break
    return [results[i] for i in range(len(x))]
