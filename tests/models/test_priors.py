"""The families p(eps | u): what each one is, and its KL."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch.distributions import kl_divergence

from pyro_gram.inference.families import Codes, MeanOnly
from pyro_gram.registry import PRIORS
from tests.conftest import case_of, warm_

D, L = 8, 3


def prior_of(name, **settings):
    cls = PRIORS.get(name)
    fields = {"hidden": 16, **settings} if name not in ("none", "standard") else settings
    return warm_(cls(cls.Config(**fields), D), 0.2)


def diagonal(shape=(5, L, D), spread=0.3):
    return dist.Normal(spread * torch.randn(shape), (spread * torch.randn(shape)).exp()).to_event(2)


@pytest.mark.parametrize("name", PRIORS.names())
def test_every_prior_is_a_distribution_over_guidance_that_is_added_to_u(name):
    prior = prior_of(name)
    u = torch.randn(2, 5, L, D)
    p = prior(u)
    eps = p.sample()
    assert p.batch_shape == (2, 5)
    assert p.event_shape == eps.shape[2:]
    assert prior.embed(eps).shape == u.shape
    assert torch.isfinite(p.log_prob(eps)).all()
    wide = p.expand((4, 2, 5))
    assert wide.sample().shape == (4, *eps.shape)
    assert wide.batch_shape == (4, 2, 5)


def test_ablations_of_the_gaussian_lack_what_they_say():
    u = torch.randn(5, L, D)
    noise, mean = prior_of("noise_only")(u), prior_of("mean_only")(u)
    assert (noise.mean == 0).all()
    assert noise.stddev.std() > 0
    assert isinstance(mean.base_dist, MeanOnly)
    torch.testing.assert_close(mean.sample(), mean.mean)
    torch.testing.assert_close(mean.sample(), mean.sample())
    standard = prior_of("standard", scale=2.0)(u)
    assert (standard.mean == 0).all()
    assert (standard.stddev == 2).all()


def test_no_prior_is_the_program_conditioned_on_no_guidance_which_is_a_plain_recursion():
    case = case_of(prior_name="none", guide_name="prior", model={"transitions": 2, "low_steps": 3})
    model = case.assembly.model
    zero = {f"eps_{t}": torch.zeros(5, 4, 16) for t in range(4)}
    guided = case_of(model={"transitions": 2, "low_steps": 3}).assembly.model
    state = {k: v for k, v in model.state_dict().items() if k in guided.state_dict()}
    guided.load_state_dict(state, strict=False)
    with torch.no_grad():
        plain = poutine.trace(model).get_trace(case.x, case.y, steps=2)
        conditioned = poutine.trace(pyro.condition(guided, zero)).get_trace(case.x, case.y, steps=2)
        # TRM's step, by hand: n refinements of the latent given the answer and the question, then a new answer.
        e_x = model.encoder(case.x)
        answer, latent = model.h0.expand_as(e_x), model.l0.expand_as(e_x)
        for _ in range(4):
            for _ in range(3):
                latent = model.core.f_L(latent + answer + e_x)
            answer = model.core.f_H(answer + latent)
    torch.testing.assert_close(plain.nodes["h"]["value"], answer)
    torch.testing.assert_close(conditioned.nodes["h"]["value"], answer)
    torch.testing.assert_close(plain.nodes["y"]["fn"].base_dist.logits, conditioned.nodes["y"]["fn"].base_dist.logits)


def test_student_t_jumps_farther_than_a_gaussian_of_its_scale():
    u = torch.randn(200, L, D)
    p = prior_of("student_t", freedom=3.0)(u)
    far = ((p.sample() - p.base_dist.loc) / p.base_dist.scale).abs() > 4
    assert 0.005 < far.float().mean() < 0.1  # of a Gaussian, 0.00006


def test_a_mixture_chooses_one_component_for_all_positions():
    prior = prior_of("mixture", components=2, initial_scale=0.01)
    with torch.no_grad():
        prior.offset[0], prior.offset[1] = -50.0, 50.0
    drawn = prior(torch.randn(300, L, D)).sample()
    high = drawn > 0
    assert (high.all((-1, -2)) | ~high.any((-1, -2))).all()
    assert 0.05 < high[:, 0, 0].float().mean() < 0.95


def test_a_low_rank_gaussian_has_the_density_and_kl_of_its_dense_covariance():
    prior = prior_of("low_rank", rank=2, initial_scale=0.5)
    p, q = prior(torch.randn(5, L, D)), diagonal()
    factor = p.factor.flatten(-3, -2)
    dense = torch.distributions.MultivariateNormal(
        p.loc.flatten(-2), factor @ factor.mT + torch.diag_embed(p.scale.flatten(-2).square())
    )
    q_dense = torch.distributions.MultivariateNormal(
        q.base_dist.loc.flatten(-2), torch.diag_embed(q.base_dist.scale.flatten(-2).square())
    )
    torch.testing.assert_close(kl_divergence(q, p), kl_divergence(q_dense, dense), rtol=1e-3, atol=1e-3)
    value = q.sample()
    torch.testing.assert_close(p.log_prob(value), dense.log_prob(value.flatten(-2)), rtol=1e-3, atol=1e-3)
    drawn = p.expand((20_000, 5)).sample()[:, 0].flatten(-2)
    torch.testing.assert_close(drawn.T.cov(), dense.covariance_matrix[0], rtol=0.2, atol=0.05)


def test_a_flow_starts_as_its_gaussian_and_keeps_a_density_when_warm():
    cls = PRIORS.get("flow")
    prior = cls(cls.Config(hidden=16), D)
    u = torch.randn(5, L, D)
    eps = prior(u).sample()
    plain = dist.Normal(*prior.head(u)).to_event(2)
    order = prior.order0.argsort()
    torch.testing.assert_close(prior(u).log_prob(eps), plain.log_prob(eps[..., order]), rtol=1e-4, atol=1e-4)
    # Warm: the density at a draw is the base's, less the log of how much the map stretches there.
    warm_(prior, 0.3)
    one = u[0, :1]
    p = prior(one)
    base = p.base_dist.base_dist if hasattr(p, "reinterpreted_batch_ndims") else p.base_dist
    z = base.sample()

    def forward(z):
        for transform in p.base_dist.transforms:
            z = transform(z)
        return z

    stretched = torch.autograd.functional.jacobian(forward, z)[0, :, 0].det().abs().log()
    expected = base.log_prob(z).sum() - stretched
    torch.testing.assert_close(p.log_prob(forward(z)), expected.squeeze(), rtol=1e-3, atol=1e-3)


def codes(temperature=0.0, grad=True):
    logits = torch.randn(5, L, 2, 4).requires_grad_(grad)
    return logits, Codes(logits.log_softmax(-1), temperature)


def test_codes_are_one_hot_draws_of_their_categoricals():
    _, p = codes(grad=False)
    drawn = p.expand((4000, 5)).sample().unflatten(-1, (2, 4))
    assert (drawn.sum(-1) == 1).all()
    assert ((drawn == 0) | (drawn == 1)).all()
    torch.testing.assert_close(drawn.mean(0), p.logits.exp(), rtol=0.1, atol=0.04)
    torch.testing.assert_close(p.log_prob(p.mode), p.logits.amax(-1).sum((-1, -2)))


def test_the_kl_of_codes_is_that_of_their_categoricals():
    (_, q), (_, p) = codes(), codes()
    expected = kl_divergence(
        torch.distributions.Categorical(logits=q.logits), torch.distributions.Categorical(logits=p.logits)
    ).sum((-1, -2))
    torch.testing.assert_close(kl_divergence(q, p), expected)


def test_straight_through_draws_are_hard_and_have_the_gradient_of_the_probabilities():
    logits, p = codes()
    weights = torch.randn(5, L, 8)
    drawn = p.rsample()
    torch.testing.assert_close(drawn, drawn.round(), atol=1e-6, rtol=0)
    (gradient,) = torch.autograd.grad((drawn * weights).sum(), logits, retain_graph=True)
    (expected,) = torch.autograd.grad((logits.softmax(-1).flatten(-2) * weights).sum(), logits)
    torch.testing.assert_close(gradient, expected)


def test_relaxed_draws_are_soft_in_training_and_hard_in_roll_outs():
    _, p = codes(temperature=1.0)
    soft = p.rsample()
    assert ((soft > 0.01) & (soft < 0.99)).any()
    torch.testing.assert_close(soft.unflatten(-1, (2, 4)).sum(-1), torch.ones(5, L, 2))
    with torch.no_grad():
        hard = p.rsample()
    assert ((hard == 0) | (hard == 1)).all()


def test_discrete_guidance_is_spread_so_that_no_kl_is_infinite():
    prior = prior_of("discrete", groups=2, classes=4, uniform=0.04)
    with torch.no_grad():
        prior.head.mlp.down.weight.mul_(1e4)
    assert prior(torch.randn(5, L, D)).logits.exp().min() >= 0.0099
