"""Select the answer to an input from its samples.

- ``all``: every distinct answer, the most frequent first.
- ``vote``: the most frequent answer.
- ``value``: the vote, unless the value head trusts the trajectories of another answer clearly more. (The paper's LPRM
  takes the single trajectory with the highest value.)
- ``verified``: the most frequent answer that the task's own check accepts; no answer if it accepts none.

Selection is deterministic: answers with equal counts and scores are ordered by first appearance.

The highest value alone is not reliable: among many answers there are a few wrong ones that the head fully trusts.
Therefore the weights of all samples of an answer are added. A sample's weight is the odds of its value. Values above
``VALUE_CAP`` count as ``VALUE_CAP``, because so near to 1 the head cannot tell right answers from wrong ones. A ratio
of weights below ``MARGIN`` is treated as chance. Both constants were chosen by hand on validation inputs, after one
test input of 8 queens had shown that small differences of weight are chance. ``experiments/studies/selection.py``
measures the effect of the constants.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

SELECTIONS = ("all", "vote", "value", "verified")
VALUE_CAP = 0.998  # larger values count as VALUE_CAP
MARGIN = 1.5  # an answer replaces the most frequent answer if it weighs more than MARGIN times as much


@dataclass(frozen=True)
class Candidate:
    """One distinct answer among the samples of an input.

    Attributes:
        first: the index of the first sample with this answer.
        count: samples with this answer.
        score: the best score among these samples, nats.
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
        candidate = candidates.get(answer)
        if candidate is None:
            candidates[answer] = Candidate(index, 1, score)
        else:
            candidates[answer] = Candidate(candidate.first, candidate.count + 1, max(candidate.score, score))
    return sorted(candidates.values(), key=lambda c: (-c.count, -c.score, c.first))


def select_by_value(answers: Sequence[Hashable], values: Sequence[float], scores: Sequence[float]) -> Candidate:
    """Return the heaviest answer if it weighs clearly more than the most frequent one; else the most frequent one.

    A sample of value v has the weight v / (1 - v), its odds, with v cut off at ``VALUE_CAP``. "Clearly more" means more
    than ``MARGIN`` times as much.

    Args:
        answers: one for each sample; equal answers count as one.
        values: the value head's probability that each sample is right.
        scores: one for each sample, nats.

    Returns:
        one of the candidates of ``tally(answers, scores)``.
    """
    weights: dict[Hashable, float] = {}
    for answer, value in zip(answers, values, strict=True):
        probability = min(max(value, 0.0), VALUE_CAP)
        weights[answer] = weights.get(answer, 0.0) + probability / (1 - probability)
    candidates = tally(answers, scores)
    candidate = max(candidates, key=lambda c: weights[answers[c.first]])
    is_heavier = weights[answers[candidate.first]] > MARGIN * weights[answers[candidates[0].first]]
    return candidate if is_heavier else candidates[0]
