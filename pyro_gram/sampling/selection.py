"""Select the answer to an input from its samples.

- ``all``: every distinct answer, the most frequent first.
- ``vote``: the most frequent answer.
- ``value``: the vote, unless the value head trusts the trajectories of another answer clearly more. (The paper's LPRM
  takes the single trajectory of the highest value.)
- ``verified``: the most frequent answer that the task's own check accepts; none if it accepts none.

Nothing is drawn: equal counts and scores are ordered by first appearance.

A single highest value is no better than the value head's worst mistake, and among many trajectories some wrong end is
trusted wholly. Odds give weight to what the head is sure of, but only up to ``SURE``, beyond which it cannot tell right
from wrong; and differences of weight below ``MARGIN`` are chance. Both constants were chosen by hand on validation
inputs, after one test input of 8 queens (``experiments/studies/selection.py`` measures their effect).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

SELECTIONS = ("all", "vote", "value", "verified")
SURE = 0.998  # values from here on are trusted equally
MARGIN = 1.5  # an answer must weigh so many times as much as the most frequent one to take its place


@dataclass(frozen=True)
class Candidate:
    """One distinct answer among the samples of an input.

    Attributes:
        first: the index of the first sample with this answer.
        count: samples with this answer.
        score: the best score among them, nats.
    """

    first: int
    count: int
    score: float


def tally(answers: Sequence[Hashable], scores: Sequence[float]) -> list[Candidate]:
    """Count the distinct answers and sort them by count, then by best score, then by appearance.

    Args:
        answers: one for each sample; equal answers count as one.
        scores: one for each sample, nats.
    """
    candidates: dict[Hashable, Candidate] = {}
    for index, (answer, score) in enumerate(zip(answers, scores, strict=True)):
        previous = candidates.get(answer)
        if previous is None:
            candidates[answer] = Candidate(index, 1, score)
        else:
            candidates[answer] = Candidate(previous.first, previous.count + 1, max(previous.score, score))
    return sorted(candidates.values(), key=lambda c: (-c.count, -c.score, c.first))


def select_by_value(answers: Sequence[Hashable], values: Sequence[float], scores: Sequence[float]) -> Candidate:
    """Return the answer of the greatest weight if it weighs clearly more than the most frequent one, else the latter.

    A sample of value v weighs as much as the odds v / (1 - v), with v cut off at ``SURE``. Clearly more means more than
    ``MARGIN`` times as much.

    Args:
        answers: one for each sample; equal answers count as one.
        values: the value head's probability that each sample is right.
        scores: one for each sample, nats.

    Returns:
        the candidate as in ``tally(answers, scores)``.
    """
    weights: dict[Hashable, float] = {}
    for answer, value in zip(answers, values, strict=True):
        probability = min(max(value, 0.0), SURE)
        weights[answer] = weights.get(answer, 0.0) + probability / (1 - probability)
    candidates = tally(answers, scores)
    heaviest = max(candidates, key=lambda c: weights[answers[c.first]])
    outweighs = weights[answers[heaviest.first]] > MARGIN * weights[answers[candidates[0].first]]
    return heaviest if outweighs else candidates[0]
