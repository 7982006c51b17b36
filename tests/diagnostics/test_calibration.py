import math

import numpy as np
import pytest
import torch
from scipy.stats import kstest, multinomial

from pyro_gram.diagnostics.calibration import uniformity
from pyro_gram.diagnostics.plots.calibration import uniformity_figure
from pyro_gram.tasks.uniform import expected_total_variation


def sample_ids(m, n, inputs, weights=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weights = torch.ones(m) if weights is None else torch.tensor(weights)
    return torch.multinomial(weights.expand(inputs, m), n, replacement=True, generator=generator).T


def test_uniform_samples_are_not_rejected_and_their_p_values_are_uniform():
    m = torch.tensor([2, 12, 40]).repeat_interleave(150)
    ids = torch.cat([sample_ids(k, 20, 150, seed=k) for k in (2, 12, 40)], 1)
    result = uniformity(ids, m)
    assert result.is_tested.all()
    assert result.is_rejected.sum() <= 2
    assert ((result.p_value > 0) & (result.p_value <= 1)).all()
    # The statistic is discrete. So p-values are never too small, but they may be too large if few counts are possible.
    for level in (0.05, 0.2, 0.5):
        assert (result.p_value <= level).double().mean() < level + 0.03
    assert abs(result.summary()["excess"]) < 0.01
    large = uniformity(sample_ids(12, 200, 200), torch.full((200,), 12))
    assert kstest(large.p_value.numpy(), "uniform").pvalue > 0.01


def test_samples_that_favour_one_solution_are_rejected():
    m = torch.full((40,), 3)
    result = uniformity(sample_ids(3, 60, 40, weights=[0.8, 0.1, 0.1]), m)
    assert result.is_rejected.double().mean() > 0.95
    assert result.summary()["excess"] > 0.35
    assert 0.6 < result.summary()["uneven"] < 0.8
    assert result.summary()["rejected"] == int(result.is_rejected.sum())


@pytest.mark.parametrize(("m", "n"), [(256, 20), (30, 3), (2, 20)])
def test_unevenness_is_1_for_a_single_answer_and_0_for_uniform_samples(m, n):
    single = uniformity(torch.zeros(n, 40, dtype=torch.long), torch.full((40,), m), num_draws=99).summary()
    assert single["uneven"] == pytest.approx(1)
    uniform = uniformity(sample_ids(m, n, 1500, seed=m), torch.full((1500,), m), num_draws=99).summary()
    assert abs(uniform["uneven"]) < 0.15


def test_one_uneven_input_among_many_is_rejected_with_enough_draws():
    even, uneven = sample_ids(6, 20, 299), torch.zeros(20, 1, dtype=torch.long)
    result = uniformity(torch.cat((even, uneven), 1), torch.full((300,), 6))
    assert result.is_rejected[-1]
    assert result.is_rejected.sum() <= 3
    assert not uniformity(torch.cat((even, uneven), 1), torch.full((300,), 6), num_draws=999).is_rejected.any()


def test_the_p_value_is_exact_within_the_error_of_the_simulation():
    counts = [5, 1, 0]
    ids = torch.tensor([0] * 5 + [1])[:, None]
    tables = [(a, b, 6 - a - b) for a in range(7) for b in range(7 - a)]
    observed = sum(c * c for c in counts)
    exact = sum(multinomial.pmf(t, 6, [1 / 3] * 3) for t in tables if sum(c * c for c in t) >= observed)
    result = uniformity(ids, torch.tensor([3]), num_draws=20_000).p_value.item()
    assert result == pytest.approx(exact, abs=4 * math.sqrt(exact / 20_000))


def test_the_least_p_value_is_1_divided_by_the_number_of_draws_plus_1():
    ids = torch.zeros(40, 1, dtype=torch.long)
    for draws in (99, 199):
        assert uniformity(ids, torch.tensor([5]), num_draws=draws).p_value.item() == 1 / (draws + 1)
    assert (
        uniformity(torch.tensor([[0], [1]]), torch.tensor([2]), num_draws=99).p_value.item() == 1
    )  # one sample of each solution: perfectly even


def test_adjusted_p_values_are_those_of_benjamini_and_hochberg():
    ids = torch.cat((sample_ids(2, 40, 3), sample_ids(2, 40, 3, weights=[0.75, 0.25])), 1)
    result = uniformity(ids, torch.full((6,), 2))
    p = result.p_value.numpy()
    order = np.argsort(p)
    expected = np.empty(6)
    running_minimum = 1.0
    for rank in range(6, 0, -1):
        running_minimum = min(running_minimum, p[order[rank - 1]] * 6 / rank)
        expected[order[rank - 1]] = running_minimum
    np.testing.assert_allclose(result.adjusted_p_value.numpy(), expected)


def test_inputs_with_one_solution_or_few_right_samples_are_not_tested():
    ids = torch.tensor([[0, -1, 0, 1], [0, -1, -1, 0], [0, -1, -1, 1]])
    result = uniformity(ids, torch.tensor([1, 4, 4, 2]))
    assert result.is_tested.tolist() == [False, False, False, True]
    assert result.num_right.tolist() == [3, 0, 1, 3]
    assert result.adjusted_p_value.isnan().tolist() == [True, True, True, False]
    assert not result.is_rejected[:3].any()
    assert result.total_variation.tolist()[:2] == [0, 1]
    assert result.expected_variation.tolist()[:2] == [0, 1]
    untested_result = uniformity(ids[:, :3], torch.tensor([1, 4, 4]))
    assert untested_result.summary() == {"tested": 0, "rejected": 0, "level": 0.05}


def test_wrong_samples_do_not_change_the_test():
    ids = sample_ids(4, 30, 5)
    with_wrong = torch.cat((ids, torch.full((50, 5), -1)))
    a, b = (uniformity(i, torch.full((5,), 4)) for i in (ids, with_wrong))
    assert torch.equal(a.p_value, b.p_value)
    assert torch.equal(a.excess_variation, b.excess_variation)
    torch.testing.assert_close(a.expected_variation, expected_total_variation(torch.full((5,), 4), 30))


def test_the_seed_fixes_the_test():
    ids, m = sample_ids(5, 10, 8), torch.full((8,), 5)
    assert torch.equal(uniformity(ids, m, seed=3).p_value, uniformity(ids, m, seed=3).p_value)
    assert not torch.equal(uniformity(ids, m, seed=3).p_value, uniformity(ids, m, seed=4).p_value)


def test_the_figure_states_how_many_inputs_are_uneven():
    figure = uniformity_figure(uniformity(sample_ids(3, 60, 10, weights=[0.9, 0.05, 0.05]), torch.full((10,), 3)))
    titles = [axes.get_title() for axes in figure.axes]
    assert "10 of 10 inputs uneven" in titles[1]
    uniformity_figure(uniformity(sample_ids(3, 1, 4), torch.full((4,), 3)))  # no input can be tested
