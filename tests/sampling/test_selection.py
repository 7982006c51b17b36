import pytest

from pyro_gram.sampling.selection import VALUE_CAP, Candidate, select_by_value, tally


def test_the_most_frequent_answer_wins():
    assert tally(["a", "b", "b", "c"], [0.0, -5.0, -4.0, -1.0]) == [
        Candidate(1, 2, -4.0),
        Candidate(0, 1, 0.0),
        Candidate(3, 1, -1.0),
    ]


def test_ties_go_to_the_better_score_and_then_to_the_first():
    assert [c.first for c in tally(["a", "b", "a", "b"], [-2.0, -3.0, -2.0, -1.0])] == [1, 0]
    assert [c.first for c in tally(["b", "a"], [-1.0, -1.0])] == [0, 1]


def test_counts_sum_to_the_number_of_samples():
    answers = [(n * n) % 7 for n in range(50)]
    assert sum(c.count for c in tally(answers, [0.0] * 50)) == 50
    assert tally([], []) == []


def test_an_answer_of_clearly_greater_weight_replaces_the_most_frequent_one():
    answers, scores = ["a", "b", "b", "c"], [-1.0, -5.0, -4.0, -0.5]
    assert select_by_value(answers, [0.2, 0.1, 0.9, 0.3], scores) == Candidate(1, 2, -4.0)
    assert select_by_value(answers, [0.9, 0.1, 0.2, 0.3], scores) == Candidate(0, 1, -1.0)
    assert select_by_value(answers, [0.7, 0.5, 0.5, 0.3], scores) == Candidate(
        1, 2, -4.0
    )  # "a" has the odds 2.33 and "b" the odds 1 + 1: the ratio is below 1.5
    assert select_by_value(answers, [0.76, 0.5, 0.5, 0.3], scores) == Candidate(0, 1, -1.0)  # "a" has the odds 3.17
    assert select_by_value(answers, [0.5] * 4, scores) == Candidate(1, 2, -4.0)
    assert select_by_value(answers, [0.0] * 4, scores) == Candidate(1, 2, -4.0)


def test_small_differences_of_weight_are_left_to_the_vote():
    assert select_by_value(["a", "c"], [0.5] * 2, [-1.0, -0.5]) == Candidate(1, 1, -0.5)  # the better score decides
    assert select_by_value(["a", "c"], [0.5] * 2, [-1.0] * 2) == Candidate(0, 1, -1.0)  # equal scores: the first wins
    assert select_by_value(["a", "c"], [0.59, 0.5], [-1.0, -0.5]).first == 1  # the difference is too small


def test_a_single_certain_sample_does_not_outweigh_several_nearly_certain_ones():
    """By the highest value alone, a wrong answer (value .9995) would beat a right one with four votes (.997 each)."""
    answers, values = ["wrong"] * 2 + ["right"] * 4, [0.9995, 0.99945, 0.9979, 0.9977, 0.9974, 0.9973]
    assert select_by_value(answers, values, [-0.01] * 6).first == 2
    assert select_by_value(["wrong", "right", "right"], [1.0, VALUE_CAP, VALUE_CAP], [0.0] * 3).first == 1
    assert (
        select_by_value(["right", "wrong", "wrong"], [VALUE_CAP, 0.9, 0.9], [0.0] * 3).first == 0
    )  # one sample with the value VALUE_CAP outweighs two samples with the value .9


def test_the_heaviest_of_many_answers_with_one_vote_wins():
    answers, values = list("abcdef"), [0.9, 0.5, 0.99, 0.6, 0.7, 0.1]
    assert select_by_value(answers, values, [0.0] * 6).first == 2


def test_a_missing_score_is_refused():
    with pytest.raises(ValueError, match="shorter"):
        tally(["a", "b"], [0.0])
