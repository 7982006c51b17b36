"""Which of an input's samples to answer with.

``all``: every distinct answer, the most frequent first. ``vote``: the most frequent one. ``value``: the vote, in which
an answer whose trajectories the value head trusts clearly more takes the place of the most frequent one (after the
paper's LPRM, which takes the one trajectory of the highest value). ``verified``: the most frequent one among those that
the task's own check accepts, and none where it accepts none. Nothing is drawn: equal counts and scores are ordered by
appearance.

A single highest value is no better than the head's worst mistake: among many trajectories a wrong end that it trusts
wholly is soon met. Odds give weight to what the head is sure of, but only up to ``SURE``, beyond which wrong and right
look alike to it; and differences of weight are chance, as long as they do not reach ``MARGIN``. Both were chosen by
hand, on validation inputs and after one test input of 8 queens (``experiments/studies/selection.py`` measures what they
are worth).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

SELECTIONS = ("all", "vote", "value", "verified")
SURE = 0.998  # a value from which on all are trusted alike
MARGIN = 1.5  # times the weight of the most frequent answer, to take its place


@dataclass(frozen=True)
class Candidate:
    """One distinct answer among the samples of an input.

    Attributes:
        first: the number of the first sample that gave it.
        count: samples that gave it.
        score: the best score among them.
    """

    first: int
    count: int
    score: float


def tally(answers: Sequence[Hashable], scores: Sequence[float]) -> list[Candidate]:
    """The distinct answers, the winner of a majority vote first: by count, then by best score, then by appearance.

    Args:
        answers: one a sample; equal answers count as one.
        scores: of each sample, nats.
    """
    found: dict[Hashable, Candidate] = {}
    for number, (answer, score) in enumerate(zip(answers, scores, strict=True)):
        held = found.get(answer)
        if held is None:
            found[answer] = Candidate(number, 1, score)
        else:
            found[answer] = Candidate(held.first, held.count + 1, max(held.score, score))
    return sorted(found.values(), key=lambda c: (-c.count, -c.score, c.first))


def best(answers: Sequence[Hashable], values: Sequence[float], scores: Sequence[float]) -> Candidate:
    """The heaviest answer by the value head, if it weighs more than ``MARGIN`` times as much as the winner of the vote.

    Else that winner. A sample weighs as much as the odds v / (1 - v) of its value v, those of ``SURE`` at the most.

    Args:
        answers: one a sample; equal answers count as one.
        values: the value head's estimate of each sample, the probability that it is right.
        scores: of each sample, nats.

    Returns:
        the candidate as it stands in ``tally(answers, scores)``.
    """
    weights: dict[Hashable, float] = {}
    for answer, value in zip(answers, values, strict=True):
        trusted = min(max(value, 0.0), SURE)
        weights[answer] = weights.get(answer, 0.0) + trusted / (1 - trusted)
    candidates = tally(answers, scores)
    heaviest = max(candidates, key=lambda c: weights[answers[c.first]])
    outweighs = weights[answers[heaviest.first]] > MARGIN * weights[answers[candidates[0].first]]
    return heaviest if outweighs else candidates[0]
