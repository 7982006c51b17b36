import math

import pyro
import pytest
import torch

from pyro_gram.errors import ConfigError, UserError
from pyro_gram.networks.core import LatentState
from pyro_gram.sampling.rollout import rollout
from pyro_gram.sampling.smc import FLOOR, SMCConfig, effective_sample_size, smc, systematic_resample, to_rollout
from pyro_gram.sampling.steps import rollout_steps, run_steps
from tests.conftest import build_case, build_case_with_heads


def filtered_case(strength=200.0, **changes):
    return build_case_with_heads(strength, **{"model": {"transitions": 1}, **changes})


class TwoHeads(torch.nn.Module):
    """Halt and value heads with different outputs."""

    def forward(self, h, e_x, probabilities):
        mean = h.mean((-1, -2))
        return 3 * (100 * mean).sin(), 3 * (70 * mean).cos() - 1


@pytest.mark.parametrize(("potential", "power"), [("value", 1.0), ("halt", 2.5)])
def test_without_resampling_a_weight_is_the_power_of_the_potential(potential, power):
    case = build_case(model={"transitions": 1})
    case.solver.model.heads = TwoHeads()
    config = SMCConfig(potential, power=power, threshold=0.0)
    particles = smc(case.solver.model, case.x, num_samples=6, depth=3, seed=2, config=config)
    assert not particles.is_resampled.any()
    torch.manual_seed(2)
    with pyro.validation_enabled(False), torch.no_grad():
        ends = list(rollout_steps(case.solver.model, case.x, depth=3, num_samples=6))
    for step, end in enumerate(ends):
        weight = end.values[potential].clamp(min=FLOOR) ** power
        weight = weight / weight.sum(0)
        torch.testing.assert_close(particles.ess[step], 1 / weight.square().sum(0), atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(particles.weight, weight, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(particles.value, ends[-1].values["value"])
    assert torch.equal(particles.tokens, ends[-1].values["y"])
    torch.testing.assert_close(particles.score, ends[-1].likelihood.log_prob(particles.tokens))


def test_a_head_that_trusts_nothing_gives_equal_weights():
    case = build_case_with_heads(shift=-200.0, model={"transitions": 1})
    particles = smc(case.solver.model, case.x, num_samples=4, depth=3, config=SMCConfig(threshold=1.0))
    torch.testing.assert_close(particles.weight, torch.full((4, 5), 0.25))
    torch.testing.assert_close(particles.ess, torch.full((3, 5), 4.0), atol=1e-4, rtol=1e-4)


def test_after_resampling_weights_are_relative_to_the_ancestors_potential():
    """If only the first step resamples, the final weight is psi(z_2) / psi(z_1), where z_1 is the ancestor's state."""
    case = filtered_case()
    model, n = case.solver.model, 50
    particles = smc(model, case.x, num_samples=n, depth=2, seed=4, config=SMCConfig(threshold=1.0))
    torch.manual_seed(4)
    with pyro.validation_enabled(False), torch.no_grad():
        first_end = run_steps(model, case.x, None, n, 1)
        psi = first_end.values["value"].clamp(min=FLOOR)
        assert (effective_sample_size(psi.log()) < n).all()
        ancestors = systematic_resample(psi / psi.sum(0))
        columns = torch.arange(5)
        state = LatentState(*(part.expand(n, 5, -1, -1)[ancestors, columns] for part in first_end.state))
        second_end = run_steps(model, case.x, state, n, 1)
    torch.testing.assert_close(particles.value, second_end.values["value"])
    weight = second_end.values["value"].clamp(min=FLOOR) / psi.gather(0, ancestors)
    torch.testing.assert_close(particles.weight, weight / weight.sum(0), atol=1e-5, rtol=1e-4)
    assert particles.is_resampled.tolist() == [[True] * 5, [False] * 5]


def test_chunks_of_inputs_draw_under_successive_seeds():
    case = filtered_case()
    model = case.solver.model
    particles = smc(model, case.x, num_samples=4, depth=2, seed=7, max_trajectories=9)
    for chunk, part in enumerate((slice(0, 2), slice(2, 4), slice(4, 5))):
        part_samples = smc(model, case.x[part], num_samples=4, depth=2, seed=7 + chunk)
        for name in vars(part_samples):
            assert torch.equal(getattr(particles, name)[:, part], getattr(part_samples, name)), name
    assert torch.equal(
        smc(model, case.x, num_samples=4, depth=2).tokens, smc(model, case.x, num_samples=4, depth=2, seed=0).tokens
    )


def test_systematic_resampling_copies_each_trajectory_about_as_often_as_its_weight_says():
    weight = torch.rand(50, 7).softmax(0)
    for _ in range(5):
        ancestors = systematic_resample(weight)
        counts = torch.stack([(ancestors == i).sum(0) for i in range(50)])
        assert (counts >= (50 * weight).floor() - 1e-6).all()
        assert (counts <= (50 * weight).ceil() + 1e-6).all()
        assert (ancestors.diff(dim=0) >= 0).all()


def test_systematic_resampling_is_unbiased():
    weight = torch.tensor([[0.55], [0.3], [0.15]]).expand(3, 3000)
    ancestors = systematic_resample(weight)
    mean = torch.stack([(ancestors == i).double().mean() for i in range(3)])
    torch.testing.assert_close(mean, weight[:, 0].double(), atol=0.02, rtol=0)


def test_effective_sample_size_runs_from_1_to_n():
    equal_weights, one_weight = torch.zeros(8, 2), torch.full((8, 2), -torch.inf)
    one_weight[3] = 5.0
    torch.testing.assert_close(effective_sample_size(equal_weights), torch.full((2,), 8.0))
    torch.testing.assert_close(effective_sample_size(one_weight), torch.ones(2))
    unequal_weights = torch.tensor([[0.0], [math.log(3)]])
    torch.testing.assert_close(effective_sample_size(unequal_weights), torch.tensor([16 / 10]))


def test_without_potential_the_filter_draws_independent_trajectories():
    case = filtered_case()
    model = case.solver.model
    particles = smc(model, case.x, num_samples=6, depth=4, seed=2, config=SMCConfig(power=0.0))
    samples = rollout(model, case.x, num_samples=6, depth=4, seed=2)
    assert torch.equal(particles.tokens, samples.tokens)
    torch.testing.assert_close(particles.score, samples.score)
    torch.testing.assert_close(particles.weight, torch.full((6, 5), 1 / 6))
    torch.testing.assert_close(particles.ess, torch.full((4, 5), 6.0))
    assert not particles.is_resampled.any()


@pytest.mark.parametrize("potential", ["value", "halt"])
def test_the_filter_favours_trajectories_that_the_head_trusts(potential):
    case = filtered_case()
    model = case.solver.model
    config = SMCConfig(potential, power=1.0, threshold=0.9)
    particles = smc(model, case.x, num_samples=200, depth=4, seed=2, config=config)
    samples = rollout(model, case.x, num_samples=200, depth=4, seed=2)
    assert particles.is_resampled.any()
    assert not particles.is_resampled[-1].any()
    assert ((particles.ess >= 1 - 1e-4) & (particles.ess <= 200 + 1e-2)).all()
    assert torch.equal(particles.is_resampled[:-1], particles.ess[:-1] < 0.9 * 200)
    mean_value = (particles.weight * particles.value).sum(0)
    assert (mean_value > samples.value.mean(0)).all()
    torch.testing.assert_close(particles.weight.sum(0), torch.ones(5))


def test_the_filter_agrees_with_importance_weights_of_independent_trajectories():
    """However often it resamples, the filter's target after the last step is the prior times the last potential."""
    case = filtered_case(100.0)
    model = case.solver.model
    config = SMCConfig(threshold=0.95)
    particles = smc(model, case.x, num_samples=2000, depth=3, seed=5, config=config)
    samples = rollout(model, case.x, num_samples=2000, depth=3, seed=6)
    weight = samples.value / samples.value.sum(0)
    expected = (weight * samples.value).sum(0)
    assert particles.is_resampled.any()
    assert (expected - samples.value.mean(0)).min() > 0.1  # the weights raise the mean value
    torch.testing.assert_close((particles.weight * particles.value).sum(0), expected, atol=0.05, rtol=0)


def test_resampled_particles_are_samples_of_equal_weight():
    case = filtered_case()
    particles = smc(case.solver.model, case.x, num_samples=2000, depth=1, seed=5, config=SMCConfig(threshold=0.0))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    samples = to_rollout(particles, depth=1, seed=3)
    assert torch.equal(before, torch.get_rng_state())
    assert samples.tokens.shape == particles.tokens.shape
    expected = (particles.weight * particles.value).sum(0)
    assert (particles.value.mean(0) - expected).abs().max() > 0.05
    torch.testing.assert_close(samples.value.mean(0), expected, atol=0.01, rtol=0)
    assert (samples.work == 2000).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_samples": 0, "depth": 1}, "at least 1"),
        ({"num_samples": 1, "depth": 0}, "at least 1"),
        (
            {"num_samples": 9, "depth": 1, "max_trajectories": 8},
            "filters all 9 .* together, and 8 fit",
        ),
    ],
)
def test_counts_that_cannot_be_filtered_are_refused(settings, message):
    case = filtered_case()
    with pytest.raises(UserError, match=message):
        smc(case.solver.model, case.x, **settings)


def test_a_program_without_heads_is_refused():
    case = build_case()
    with pytest.raises(ConfigError, match="no heads to filter by"):
        smc(case.solver.model, case.x, num_samples=2, depth=1)


@pytest.mark.parametrize("settings", [{"potential": "hope"}, {"power": -1.0}, {"threshold": 2.0}])
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        SMCConfig(**settings)
