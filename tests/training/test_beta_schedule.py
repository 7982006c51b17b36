"""Compare beta, the weight of the KL, after each batch with a value that the test computes itself."""

import pytest

from pyro_gram.errors import ConfigError
from pyro_gram.training.beta_schedule import BetaConfig, BetaController


def test_beta_rises_under_the_target_of_the_running_mean_and_falls_over_it():
    config = BetaConfig(start=0.5, target=1.0, raise_factor=1.5, lower_factor=0.8, smoothing=0.75, max=2.0)
    beta, mean, value = BetaController(config), None, 0.5
    for reconstruction in (2.0, 0.4, 0.0, 0.0, 0.1, 0.0, 0.2, 8.0, 3.0, 0.0, 1.0):
        beta.update(reconstruction)
        mean = reconstruction if mean is None else 0.75 * mean + 0.25 * reconstruction
        value = min(max(value * (1.5 if mean < 1.0 else 0.8), 0.5), 2.0)
        assert beta.mean == pytest.approx(mean)
        assert beta.value == pytest.approx(value)
    assert 0.5 < beta.value < 2.0


def test_a_running_mean_at_the_target_is_not_under_it():
    beta = BetaController(BetaConfig(start=1.0, target=0.5, raise_factor=2.0, lower_factor=0.5, smoothing=0.0, max=8.0))
    beta.update(0.25)
    assert beta.value == 2.0
    beta.update(0.5)
    assert beta.value == 1.0
    for _ in range(5):
        beta.update(0.25)
    assert beta.value == 8.0


def test_beta_is_constant_without_a_target_and_never_less_than_its_start():
    constant_beta = BetaController(BetaConfig(start=3.0, target=0.0))
    constant_beta.update(0.0)
    assert (constant_beta.value, constant_beta.mean) == (3.0, 0.0)
    large_beta = BetaController(BetaConfig(start=30.0, target=0.3, max=20.0))
    large_beta.update(0.0)
    assert large_beta.value == 30.0
    assert BetaController(BetaConfig()).value == 1.0


def test_in_the_silent_part_beta_is_the_greatest_and_reconstructions_do_not_count():
    beta = BetaController(BetaConfig(start=0.5, target=1.0, max=4.0, silent_fraction=0.25))
    assert beta.value == 4.0
    for progress in (0.0, 0.2):
        beta.start_batch(progress)
        beta.update(0.0)
        assert (beta.value, beta.mean) == (4.0, None)
    beta.start_batch(0.25)
    assert beta.value == 0.5
    beta.update(0.5)
    assert beta.mean == 0.5
    assert beta.value == pytest.approx(0.5 * 1.02)
    assert not BetaController(BetaConfig()).is_silent


def test_beta_is_restored_from_its_state_dict():
    config = BetaConfig(start=0.5, target=1.0)
    beta, loaded_beta = BetaController(config), BetaController(config)
    beta.update(0.2)
    beta.update(0.4)
    loaded_beta.load_state_dict(beta.state_dict())
    assert (loaded_beta.value, loaded_beta.mean) == (beta.value, beta.mean) != (0.5, None)
    with pytest.raises(ValueError, match="nan"):
        loaded_beta.load_state_dict({"value": float("nan"), "mean": None})
    loaded_beta.update(0.1)
    beta.update(0.1)
    assert (loaded_beta.value, loaded_beta.mean) == (beta.value, beta.mean)


def test_a_silencing_beta_below_the_start_is_refused():
    with pytest.raises(ConfigError, match="beta.max = 20 is below beta.start = 50, so no guide would be silent"):
        BetaConfig(start=50.0, silent_fraction=0.1)
    BetaConfig(start=50.0)
