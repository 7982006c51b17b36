"""Which of an input's samples to answer with.

``all``: every distinct answer, the most frequent first. ``vote``: the most frequent one. ``value``: the one whose
trajectory the value head trusts most (the paper's LPRM). ``verified``: the most frequent one among those that the
task's own check accepts, and none where it accepts none. Nothing is drawn: equal counts and scores are ordered by
appearance.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

SELECTIONS = ("all", "vote", "value", "verified")


@dataclass(frozen=True)
class Candidate:
    """One distinct answer among the samples of an input.

    Attributes:
        first: the number of the first sample that gave it.
        count: samples that gave it; over all samples, an estimate of p(y | x).
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
    """The answer of the highest value; among equals the most frequent, then of the best score, then the first.

    Args:
        answers: one a sample; equal answers count as one.
        values: the value head's estimate of each sample.
        scores: of each sample, nats.

    Returns:
        the candidate as it stands in ``tally(answers, scores)``.
    """
    highest = {candidate.first: candidate.score for candidate in tally(answers, values)}
    return max(tally(answers, scores), key=lambda c: highest[c.first])
