import pytest
from scipy.stats import binomtest

from pyro_gram.diagnostics.metrics import wilson_interval


@pytest.mark.parametrize(("hits", "count"), [(0, 1), (1, 1), (255, 255), (254, 255), (0, 773), (108, 1000), (7, 9)])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_it_is_scipys_where_the_share_is_a_count(hits, count, level):
    expected = binomtest(hits, count).proportion_ci(confidence_level=level, method="wilson")
    assert wilson_interval(hits / count, count, level) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_a_share_of_one_has_a_width_that_shrinks_with_the_inputs():
    few, many = wilson_interval(1.0, 255), wilson_interval(1.0, 1000)
    assert few[1] == many[1] == 1
    assert few[0] == pytest.approx(0.98516, abs=1e-5)
    assert few[0] < many[0] < 1


def test_a_mean_of_samples_lies_in_its_interval_between_those_of_the_counts_beside_it():
    low, high = wilson_interval(0.9982, 255)
    assert wilson_interval(254 / 255, 255)[0] < low < wilson_interval(1.0, 255)[0] < 0.9982 < high < 1


@pytest.mark.parametrize(("share", "count"), [(1.01, 5), (-0.1, 5), (float("nan"), 5), (0.5, 0)])
def test_what_is_no_share_of_inputs_is_refused(share, count):
    with pytest.raises(ValueError, match="a share of inputs lies between 0 and 1"):
        wilson_interval(share, count)
