"""Each prior p(eps | u) has the right density, draws, KL and traits."""

import math

import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from pyro import poutine
from torch.distributions import kl_divergence

from pyro_gram.inference.contract import prior_traits
from pyro_gram.inference.families import (
    MeanOnly,
    embed_guidance,
)
from pyro_gram.registry import PRIORS
from tests.conftest import build_case, perturb_

D, L = 8, 3
STATE_PRIORS = [name for name in PRIORS.names() if prior_traits(PRIORS.get(name)).guidance == "state"]


def prior_of(name, **settings):
    cls = PRIORS.get(name)
    fields = {"hidden": 16, **settings} if name not in ("none", "standard") else settings
    return perturb_(cls(cls.Config(**fields), D), 0.2)


def diagonal(shape=(5, L, D), spread=0.3):
    return dist.Normal(spread * torch.randn(shape), (spread * torch.randn(shape)).exp()).to_event(2)


@pytest.mark.parametrize("name", STATE_PRIORS)
def test_every_prior_is_a_distribution_over_guidance_that_is_added_to_u(name):
    prior = prior_of(name)
    u = torch.randn(2, 5, L, D)
    p = prior(u)
    eps = p.sample()
    assert p.batch_shape == (2, 5)
    assert p.event_shape == eps.shape[2:]
    assert embed_guidance(prior, eps).shape == u.shape
    assert torch.isfinite(p.log_prob(eps)).all()
    expanded_p = p.expand((4, 2, 5))
    assert expanded_p.sample().shape == (4, *eps.shape)
    assert expanded_p.batch_shape == (4, 2, 5)


def test_ablations_of_the_gaussian_have_no_mean_or_no_noise():
    u = torch.randn(5, L, D)
    noise, mean = prior_of("noise_only")(u), prior_of("mean_only")(u)
    assert (noise.mean == 0).all()
    assert noise.stddev.std() > 0
    assert isinstance(mean.base_dist, MeanOnly)
    torch.testing.assert_close(mean.sample(), mean.mean)
    torch.testing.assert_close(mean.sample(), mean.sample())
    standard_normal = prior_of("standard", scale=2.0)(u)
    assert (standard_normal.mean == 0).all()
    assert (standard_normal.stddev == 2).all()


def test_prior_none_is_gram_conditioned_on_no_guidance():
    case = build_case(prior_name="none", guide_name="prior", model={"transitions": 2, "low_steps": 3})
    model = case.solver.model
    zero_guidance = {f"eps_{t}": torch.zeros(5, 4, 16) for t in range(4)}
    guided_model = build_case(model={"transitions": 2, "low_steps": 3}).solver.model
    state = {k: v for k, v in model.state_dict().items() if k in guided_model.state_dict()}
    guided_model.load_state_dict(state, strict=False)
    with torch.no_grad():
        plain_trace = poutine.trace(model).get_trace(case.x, case.y, steps=2)
        conditioned_trace = poutine.trace(pyro.condition(guided_model, zero_guidance)).get_trace(
            case.x, case.y, steps=2
        )
        # TRM by hand: in each transition, refine the latent three times, given the answer; then refine the answer.
        e_x = model.encoder(case.x)
        answer, latent = model.h0.expand_as(e_x), model.l0.expand_as(e_x)
        for _ in range(4):
            for _ in range(3):
                latent = model.core.f_L(latent + answer + e_x)
            answer = model.core.f_H(answer + latent)
    torch.testing.assert_close(plain_trace.nodes["h"]["value"], answer)
    torch.testing.assert_close(conditioned_trace.nodes["h"]["value"], answer)
    torch.testing.assert_close(
        plain_trace.nodes["y"]["fn"].base_dist.logits, conditioned_trace.nodes["y"]["fn"].base_dist.logits
    )


def test_student_t_jumps_farther_than_a_gaussian_of_its_scale():
    u = torch.randn(200, L, D)
    p = prior_of("student_t", degrees_of_freedom=3.0)(u)
    is_far = ((p.sample() - p.base_dist.loc) / p.base_dist.scale).abs() > 4
    assert 0.005 < is_far.float().mean() < 0.1  # the share would be 0.00006 for a Gaussian


def test_the_density_of_a_student_t_is_scipys():
    prior, u = prior_of("student_t", degrees_of_freedom=3.0), torch.randn(5, L, D)
    p, (loc, scale) = prior(u), prior.head(u)
    value = torch.randn(5, L, D)
    z = ((value - loc) / scale).detach().double().numpy()
    expected = torch.tensor(scipy.stats.t.logpdf(z, 3.0)) - scale.detach().double().log()
    torch.testing.assert_close(p.log_prob(value).detach().double(), expected.sum((-1, -2)), atol=1e-3, rtol=1e-4)


def test_the_density_of_a_mixture_is_a_weighted_sum_over_its_components():
    prior, u = prior_of("mixture", components=3, initial_scale=0.5), torch.randn(5, L, D)
    value = torch.randn(5, L, D)
    loc, scale = prior.head(u)  # each [5, L, 3 * D]
    log_w = prior.weights(u.mean(1)).log_softmax(-1)
    parts = []
    for k in range(3):
        part = slice(k * D, (k + 1) * D)
        normal = torch.distributions.Normal(loc[..., part] + prior.offset[k], scale[..., part])
        parts.append(log_w[:, k] + normal.log_prob(value).sum((-1, -2)))
    torch.testing.assert_close(prior(u).log_prob(value), torch.stack(parts).logsumexp(0))
    assert prior(u).event_shape == (L, D)


def test_a_mixtures_components_start_at_different_means():
    for scale in (0.1, 1.0):
        prior = PRIORS.get("mixture")
        offset = prior(prior.Config(hidden=4, components=50, initial_scale=scale), 40).offset
        assert offset.shape == (50, 1, 40)
        assert offset.std().item() == pytest.approx(scale, rel=0.1)


@pytest.mark.parametrize("name", ["gaussian", "noise_only", "student_t", "flow"])
def test_a_prior_starts_at_its_initial_scale(name):
    cls = PRIORS.get(name)
    prior, u = cls(cls.Config(hidden=16, initial_scale=0.3), D), torch.randn(5, L, D)
    *loc, scale = prior.head(u)
    torch.testing.assert_close(scale, torch.full((5, L, D), 0.3))
    assert all((m == 0).all() for m in loc)


@pytest.mark.parametrize("rank", [1, 16])
def test_a_low_rank_prior_starts_with_small_correlations_for_any_rank(rank):
    """F is a layer's output times initial_scale / sqrt(rank). The covariance F F^T then does not grow with the rank."""
    cls = PRIORS.get("low_rank")
    u = torch.randn(5, L, 64)

    def factor(scale):
        torch.manual_seed(3)
        return cls(cls.Config(hidden=64, rank=rank, initial_scale=scale), 64)(u).factor

    small_factor, large_factor = factor(0.1), factor(0.2)
    torch.testing.assert_close(large_factor, 2 * small_factor)
    assert small_factor.shape == (5, L, 64, rank)
    torch.manual_seed(3)
    prior = cls(cls.Config(hidden=64, rank=rank, initial_scale=0.1), 64)
    with torch.no_grad():
        prior.directions.down.weight.mul_(math.sqrt(rank) / 0.1)
    torch.testing.assert_close(small_factor * math.sqrt(rank) / 0.1, prior(u).factor)
    weight_scale = prior.directions.down.weight.std() * math.sqrt(64)
    assert 0.5 < weight_scale < 2  # without the factor, the layer has its usual scale


def test_the_kl_from_a_low_rank_gaussian_is_the_same_with_two_batch_dimensions():
    prior, u = prior_of("low_rank", rank=2, initial_scale=0.5), torch.randn(2, 5, L, D)
    q = diagonal((2, 5, L, D))
    rows = [kl_divergence(dist.Normal(q.mean[i], q.stddev[i]).to_event(2), prior(u[i])) for i in range(2)]
    torch.testing.assert_close(kl_divergence(q, prior(u)), torch.stack(rows))


def test_a_low_rank_gaussian_expands_and_has_draws_with_gradient():
    prior, u = prior_of("low_rank", rank=2, initial_scale=0.5), torch.randn(5, L, D)
    p = prior(u)
    expanded_p = p.expand((3, 5))
    assert (expanded_p.batch_shape, expanded_p.event_shape) == ((3, 5), (L, D))
    assert expanded_p.factor.shape == (3, 5, L, D, 2)
    value = torch.randn(3, 5, L, D)
    torch.testing.assert_close(expanded_p.log_prob(value), p.log_prob(value))
    assert torch.equal(p.mean, p.loc)
    samples = p.rsample((7,))
    assert samples.shape == (7, 5, L, D)
    samples.sum().backward()
    assert prior.directions.down.weight.grad.any()
    assert p.has_rsample
    assert p.support.event_dim == 2
    with pytest.raises(NotImplementedError):
        kl_divergence(dist.Laplace(torch.zeros(5, L, D), 1.0).to_event(2), p)


def test_a_mixture_chooses_one_component_for_all_positions():
    prior = prior_of("mixture", components=2, initial_scale=0.01)
    with torch.no_grad():
        prior.offset[0], prior.offset[1] = -50.0, 50.0
    samples = prior(torch.randn(300, L, D)).sample()
    is_high = samples > 0
    assert (is_high.all((-1, -2)) | ~is_high.any((-1, -2))).all()
    assert 0.05 < is_high[:, 0, 0].float().mean() < 0.95


def test_a_low_rank_gaussian_has_the_density_and_kl_of_its_dense_covariance():
    prior = prior_of("low_rank", rank=2, initial_scale=0.5)
    p, q = prior(torch.randn(5, L, D)), diagonal()
    factor = p.factor.flatten(-3, -2)
    dense_p = torch.distributions.MultivariateNormal(
        p.loc.flatten(-2), factor @ factor.mT + torch.diag_embed(p.scale.flatten(-2).square())
    )
    dense_q = torch.distributions.MultivariateNormal(
        q.base_dist.loc.flatten(-2), torch.diag_embed(q.base_dist.scale.flatten(-2).square())
    )
    torch.testing.assert_close(kl_divergence(q, p), kl_divergence(dense_q, dense_p), rtol=1e-3, atol=1e-3)
    value = q.sample()
    torch.testing.assert_close(p.log_prob(value), dense_p.log_prob(value.flatten(-2)), rtol=1e-3, atol=1e-3)
    samples = p.expand((20_000, 5)).sample()[:, 0].flatten(-2)
    torch.testing.assert_close(samples.T.cov(), dense_p.covariance_matrix[0], rtol=0.2, atol=0.05)


def test_a_flow_starts_as_its_gaussian_and_has_a_density_after_training():
    cls = PRIORS.get("flow")
    prior = cls(cls.Config(hidden=16), D)
    u = torch.randn(5, L, D)
    eps = prior(u).sample()
    base_normal = dist.Normal(*prior.head(u)).to_event(2)
    order = prior.order0.argsort()
    torch.testing.assert_close(prior(u).log_prob(eps), base_normal.log_prob(eps[..., order]), rtol=1e-4, atol=1e-4)
    # With changed weights, the log density at a draw is the base's log density minus the log Jacobian determinant.
    perturb_(prior, 0.3)
    one_u = u[0, :1]
    p = prior(one_u)
    base = p.base_dist.base_dist if hasattr(p, "reinterpreted_batch_ndims") else p.base_dist
    z = base.sample()

    def forward(z):
        for transform in p.base_dist.transforms:
            z = transform(z)
        return z

    log_stretch = torch.autograd.functional.jacobian(forward, z)[0, :, 0].det().abs().log()
    expected = base.log_prob(z).sum() - log_stretch
    torch.testing.assert_close(p.log_prob(forward(z)), expected.squeeze(), rtol=1e-3, atol=1e-3)


def test_a_flow_is_two_couplings_with_a_permutation_between_them():
    cls = PRIORS.get("flow")
    prior, u, value = cls(cls.Config(hidden=16), D), torch.randn(5, L, D), torch.randn(5, L, D)
    assert [n for n, _ in prior.named_buffers()] == ["order0"]
    assert prior.order0.sort().values.tolist() == list(range(D))
    perturb_(prior.head, 0.3)  # fresh couplings are the identity: only the permutation acts
    base_normal = dist.Normal(*prior.head(u)).to_event(2)
    expected = base_normal.log_prob(value[..., prior.order0.argsort()])
    torch.testing.assert_close(prior(u).log_prob(value), expected, atol=1e-3, rtol=1e-4)
    perturb_(prior.couplings, 0.3)
    first, second = (c.condition(u) for c in prior.couplings)
    middle_value = second.inv(value)
    permuted_value = middle_value[..., prior.order0.argsort()]
    base = first.inv(permuted_value)
    log_stretch = first.log_abs_det_jacobian(base, permuted_value) + second.log_abs_det_jacobian(middle_value, value)
    expected = base_normal.log_prob(base) - log_stretch.sum(-1)
    torch.testing.assert_close(prior(u).log_prob(value), expected, atol=1e-3, rtol=1e-4)
    is_unchanged = (first(base) == base).all((0, 1))
    assert is_unchanged.tolist() == [True] * (D // 2) + [False] * (D // 2)


def test_codes_are_embedded_by_weights_of_unit_norm_and_no_bias():
    cls = PRIORS.get("discrete")
    embedding = cls(cls.Config(hidden=16, groups=4, classes=16), 64).embedding
    assert embedding.bias is None
    assert embedding.weight.std().item() == pytest.approx(1 / 8, rel=0.1)


def test_mean_only_has_the_kl_of_its_initial_scale():
    p = prior_of("mean_only", initial_scale=0.3)(torch.randn(5, L, D))
    torch.testing.assert_close(p.stddev, torch.full((5, L, D), 0.3))
    assert prior_of("mean_only", initial_scale=0.3).traits.family.scale == 0.3


@pytest.mark.parametrize("name", STATE_PRIORS)
def test_traits_of_priors_are_true(name):
    prior = prior_of(name)
    p = prior(torch.randn(5, L, D))
    if name != "none":
        assert prior_traits(prior).has_rsample == p.has_rsample
    assert prior_traits(prior).has_density == (name != "mean_only")
    if name in ("standard", "none"):
        return
    parameters = (
        prior(torch.randn(5, L, D)).mean if name not in ("flow", "noise_only") else prior.head(torch.randn(5, L, D))[-1]
    )
    assert not torch.allclose(parameters[0], parameters[1])  # the prior depends on u
