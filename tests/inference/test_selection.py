import pytest

from pyro_gram.inference.selection import Candidate, best, tally


def test_the_most_frequent_answer_wins():
    assert tally(["a", "b", "b", "c"], [0.0, -5.0, -4.0, -1.0]) == [
        Candidate(1, 2, -4.0),
        Candidate(0, 1, 0.0),
        Candidate(3, 1, -1.0),
    ]


def test_ties_go_to_the_better_score_and_then_to_the_first():
    assert [c.first for c in tally(["a", "b", "a", "b"], [-2.0, -3.0, -2.0, -1.0])] == [1, 0]
    assert [c.first for c in tally(["b", "a"], [-1.0, -1.0])] == [0, 1]


def test_counts_add_up_and_nothing_gives_nothing():
    answers = [(n * n) % 7 for n in range(50)]
    assert sum(c.count for c in tally(answers, [0.0] * 50)) == 50
    assert tally([], []) == []


def test_the_best_value_wins_and_equal_ones_are_ordered_as_the_vote_is():
    answers, scores = ["a", "b", "b", "c"], [-1.0, -5.0, -4.0, -0.5]
    assert best(answers, [0.2, 0.1, 0.9, 0.3], scores) == Candidate(1, 2, -4.0)
    assert best(answers, [0.9, 0.1, 0.2, 0.3], scores) == Candidate(0, 1, -1.0)
    assert best(answers, [0.5] * 4, scores) == Candidate(1, 2, -4.0)  # the most frequent
    assert best(["a", "c"], [0.5] * 2, [-1.0, -0.5]) == Candidate(1, 1, -0.5)  # then the better score
    assert best(["a", "c"], [0.5] * 2, [-1.0] * 2) == Candidate(0, 1, -1.0)  # then the first


def test_every_answer_has_a_score():
    with pytest.raises(ValueError, match="shorter"):
        tally(["a", "b"], [0.0])
