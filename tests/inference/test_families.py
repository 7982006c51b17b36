"""The variational families (codes, points and Gaussians) are correct, and a prior names the family for its guides."""

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import kl_divergence

from pyro_gram.errors import ConfigError
from pyro_gram.inference.contract import family_of
from pyro_gram.inference.families import (
    NORMAL,
    CodeFamily,
    Codes,
    MeanFamily,
    NormalFamily,
    embed_guidance,
    type_of,
)
from pyro_gram.registry import PRIORS
from tests.conftest import perturb_

D, L = 8, 3


def prior_of(name, **settings):
    cls = PRIORS.get(name)
    fields = {"hidden": 16, **settings} if name not in ("none", "standard") else settings
    return perturb_(cls(cls.Config(**fields), D), 0.2)


def diagonal(shape=(5, L, D), spread=0.3):
    return dist.Normal(spread * torch.randn(shape), (spread * torch.randn(shape)).exp()).to_event(2)


def codes(temperature=0.0, grad=True):
    logits = torch.randn(5, L, 2, 4).requires_grad_(grad)
    return logits, Codes(logits.log_softmax(-1), temperature)


def test_codes_are_one_hot_draws_of_their_categoricals():
    _, p = codes(grad=False)
    samples = p.expand((4000, 5)).sample().unflatten(-1, (2, 4))
    assert (samples.sum(-1) == 1).all()
    assert ((samples == 0) | (samples == 1)).all()
    torch.testing.assert_close(samples.mean(0), p.logits.exp(), rtol=0.1, atol=0.04)
    torch.testing.assert_close(p.log_prob(p.mode), p.logits.amax(-1).sum((-1, -2)))


def test_the_kl_of_codes_is_that_of_their_categoricals():
    (_, q), (_, p) = codes(), codes()
    expected = kl_divergence(
        torch.distributions.Categorical(logits=q.logits), torch.distributions.Categorical(logits=p.logits)
    ).sum((-1, -2))
    torch.testing.assert_close(kl_divergence(q, p), expected)


def test_straight_through_draws_are_one_hot_and_have_the_gradient_of_the_probabilities():
    logits, p = codes()
    weights = torch.randn(5, L, 8)
    samples = p.rsample()
    torch.testing.assert_close(samples, samples.round(), atol=1e-6, rtol=0)
    (gradient,) = torch.autograd.grad((samples * weights).sum(), logits, retain_graph=True)
    (expected,) = torch.autograd.grad((logits.softmax(-1).flatten(-2) * weights).sum(), logits)
    torch.testing.assert_close(gradient, expected)


def test_relaxed_draws_are_relaxed_in_training_and_one_hot_in_rollouts():
    _, p = codes(temperature=1.0)
    soft_draws = p.rsample()
    assert ((soft_draws > 0.01) & (soft_draws < 0.99)).any()
    torch.testing.assert_close(soft_draws.unflatten(-1, (2, 4)).sum(-1), torch.ones(5, L, 2))
    with torch.no_grad():
        hard_draws = p.rsample()
    assert ((hard_draws == 0) | (hard_draws == 1)).all()


def test_discrete_guidance_has_finite_kls():
    prior = prior_of("discrete", groups=2, classes=4, uniform_mix=0.04)
    with torch.no_grad():
        prior.head.mlp.down.weight.mul_(1e4)
    assert prior(torch.randn(5, L, D)).logits.exp().min() >= 0.0099


def test_a_code_has_its_share_of_the_softmax_and_of_the_uniform():
    raw = torch.randn(5, L, 2, 4)
    p = CodeFamily(2, 4, temperature=0.7, uniform_mix=0.2).distribution(raw)
    torch.testing.assert_close(p.logits.exp(), 0.8 * raw.softmax(-1) + 0.05)
    assert p.temperature == 0.7
    assert (p.batch_shape, p.event_shape) == ((5,), (L, 8))
    residual_codes = CodeFamily(2, 4, uniform_mix=0.2).residual(p, raw)
    torch.testing.assert_close(residual_codes.logits.exp(), 0.8 * (p.logits + raw).softmax(-1) + 0.05)


def test_the_density_of_a_code_is_the_product_of_its_categoricals():
    _, p = codes(grad=False)
    index = torch.randint(4, (5, L, 2))
    value = torch.nn.functional.one_hot(index, 4).float().flatten(-2)
    expected = torch.distributions.Categorical(logits=p.logits).log_prob(index).sum((-1, -2))
    torch.testing.assert_close(p.log_prob(value), expected)
    assert torch.equal(p.mode.unflatten(-1, (2, 4)).argmax(-1), p.logits.argmax(-1))
    torch.testing.assert_close(p.mean, p.logits.softmax(-1).flatten(-2))
    assert p.support.event_dim == 2
    assert p.has_rsample
    codes_2d = Codes(p.logits.expand(7, 5, L, 2, 4))  # two batch dimensions
    torch.testing.assert_close(codes_2d.mean, p.mean.expand(7, 5, L, 8))
    assert torch.equal(codes_2d.mode, p.mode.expand(7, 5, L, 8))
    assert codes_2d.log_prob(value).shape == kl_divergence(codes_2d, codes_2d).shape == (7, 5)
    expanded_codes = Codes(p.logits, 0.3).expand((7, 5))
    assert expanded_codes.temperature == 0.3
    assert expanded_codes.rsample((2,)).shape == (2, 7, 5, L, 8)


def test_relaxed_draws_are_gumbel_softmax_at_their_temperature():
    logits, p = codes(temperature=0.5)
    torch.manual_seed(3)
    soft_draws = p.rsample()
    torch.manual_seed(3)
    gumbel = -torch.empty(5, L, 2, 4).exponential_().log()  # minus the log of an exponential variable
    torch.testing.assert_close(soft_draws, ((p.logits + gumbel) / 0.5).softmax(-1).flatten(-2))
    hard_draws = p.sample()
    assert ((hard_draws == 0) | (hard_draws == 1)).all()
    assert not hard_draws.requires_grad
    (gradient,) = torch.autograd.grad((soft_draws * torch.randn(5, L, 8)).sum(), logits)
    assert gradient.any()


def test_points_have_the_kl_of_gaussians():
    loc = torch.randn(5, L, D).requires_grad_()
    family = MeanFamily(scale=0.3)
    p = family.distribution(loc)
    assert (p.batch_shape, p.event_shape) == ((5,), (L, D))
    assert torch.equal(p.rsample((4,)), loc.expand(4, 5, L, D))
    assert p.rsample().requires_grad
    assert not p.sample().requires_grad
    value = torch.randn(5, L, D)
    expected = torch.distributions.Normal(loc, 0.3).log_prob(value).sum((-1, -2))
    torch.testing.assert_close(p.log_prob(value), expected)
    shifted_point = family.residual(p, torch.ones(5, L, D))
    torch.testing.assert_close(shifted_point.mean, loc + 1)
    torch.testing.assert_close(kl_divergence(shifted_point, p), torch.full((5,), L * D / (2 * 0.3**2)))
    (loc_output,) = family.head(D, 16, D, 0.1)(loc)
    assert loc_output.shape == loc.shape


def test_gaussian_families_have_a_start_scale_and_residual_distributions():
    features = torch.randn(5, L, 2 * D)
    for family, scale in (
        (NormalFamily(), 0.25),
        (NormalFamily(2.0), 2.0),
        (prior_of("standard", scale=3.0).traits.family, 3),
    ):
        loc, sigma = family.head(2 * D, 16, D, 0.25)(features)
        assert (loc == 0).all()
        torch.testing.assert_close(sigma, torch.full((5, L, D), float(scale)))
    prior, loc, scale = diagonal(), torch.randn(5, L, D), torch.rand(5, L, D) + 0.1
    residual_normal = NORMAL.residual(prior, loc, scale)
    torch.testing.assert_close(residual_normal.mean, prior.mean + loc)
    torch.testing.assert_close(residual_normal.stddev, scale)
    value = torch.randn(5, L, D)
    expected = torch.distributions.Normal(loc, scale).log_prob(value).sum((-1, -2))
    torch.testing.assert_close(NORMAL.distribution(loc, scale).log_prob(value), expected)


def test_the_family_of_a_model_is_that_of_its_prior():
    class Model:
        prior = prior_of("discrete", groups=2, classes=4)

    assert family_of(Model()) is Model.prior.traits.family
    assert family_of(object()) is NORMAL
    Model.prior = lambda u: dist.Normal(u, 1.0).to_event(2)
    assert family_of(Model()) is NORMAL
    Model.prior = prior_of("none")
    with pytest.raises(ConfigError, match="leaves nothing to infer: use --guide prior"):
        family_of(Model())
    assert [type_of(p) for p in (diagonal(), Codes(torch.zeros(1, 2, 2)))] == ["Normal", "Codes"]


def test_guidance_is_added_as_it_is_unless_the_prior_embeds_it():
    discrete, eps = prior_of("discrete", groups=2, classes=4), torch.randn(5, L, 8)
    torch.testing.assert_close(embed_guidance(discrete, eps), eps @ discrete.embedding.weight.T)
    assert embed_guidance(prior_of("gaussian"), eps) is eps
    assert embed_guidance(lambda u: None, eps) is eps
