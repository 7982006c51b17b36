"""With a user's own distributions, masks, scales and plates, bounds equal Pyro's, or the call raises an error."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoDelta, AutoNormal, AutoNormalMessenger
from pyro.poutine.mask_messenger import MaskMessenger
from pyro_gram.guides.amortized import AmortizedGuide
from pyro_gram.models.gram import GRAM
from torch import nn
from torch.distributions import register_kl

from pyro_gram.diagnostics.bounds import bounds
from pyro_gram.diagnostics.likelihood import rollout_log_prob
from pyro_gram.errors import ConfigError
from pyro_gram.inference.elbo import BalancedELBO, MeanFieldELBO, TraceELBO, scale_gradient
from pyro_gram.inference.guide import PriorGuide
from pyro_gram.inference.importance import guide_draws
from pyro_gram.inference.sites import data_plates
from pyro_gram.inference.terms import is_delta
from tests.inference.test_own_latents import B, pair

PLAIN = {"model": {"truncated": False}}


@pytest.mark.parametrize("guide_class", [AutoNormal, AutoNormalMessenger, AutoDelta])
def test_importance_weights_of_autoguides_are_pyros_for_any_chunk_size(guide_class):
    """The parameters of an autoguide belong to one batch. Each chunk therefore has all inputs of the batch."""
    model, _, x, y = pair(GRAM, AmortizedGuide, **PLAIN)
    guide = guide_class(model)
    guide(x, y, truncated=False)
    log_weight = guide_draws(model, guide, x, y, steps=1, num_samples=3, seed=4, max_traced=15).log_weight
    torch.manual_seed(4)
    pyro_elbo = Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1)
    with torch.no_grad():
        loss = pyro_elbo.loss(model, guide, x, y, truncated=False)
    assert log_weight.sum().item() / 3 == pytest.approx(-loss, rel=1e-5)
    chunks = guide_draws(model, guide, x, y, steps=1, num_samples=3, seed=4, max_traced=1)
    assert chunks.log_weight.shape == (3, B)
    assert chunks.h.shape == (3, B, 4, 16)
    assert bounds(model, guide, x, y, steps=1, max_traced=1).full.shape == (B,)


class Masked(GRAM):
    """A model that observes y under a mask for exactly five inputs."""

    is_observed = torch.tensor([True, False, True, True, False])

    def answer(self, state, e_x, y, infer=None):
        with poutine.mask(mask=self.is_observed):
            return super().answer(state, e_x, y, infer)


def test_a_mask_around_y_counts_and_must_fit_the_inputs():
    model, guide, x, y = pair(Masked, AmortizedGuide)
    prior_log_p = rollout_log_prob(model, x, y, num_samples=3, depth=1)
    draws = guide_draws(model, guide, x, y, steps=1, num_samples=3)
    for log_p in (prior_log_p, draws.log_likelihood):
        assert (log_p[:, ~model.is_observed] == 0).all()
        assert (log_p[:, model.is_observed] != 0).all()
    with pytest.raises(ConfigError, match=r"1 inputs were given, and y has \[1, 5\]"):
        guide_draws(model, guide, x, y, steps=1, num_samples=3, max_traced=1)
    with pytest.raises(ConfigError, match=r"1 inputs were given, and y has \[3, 5\]"):
        rollout_log_prob(model, x, y, num_samples=3, depth=1, max_trajectories=3)
    with pytest.raises(ConfigError, match="inputs were given"):
        bounds(model, guide, x, y, steps=1, max_traced=1)


class Scaled(nn.Module):
    """A prior that makes its distribution from u * w, where w is a learned number."""

    def __init__(self, make_distribution):
        super().__init__()
        self.make, self.w = make_distribution, nn.Parameter(torch.tensor(1.1))

    def forward(self, u):
        return self.make(u * self.w)


class ScaledGuide(AmortizedGuide):
    def posterior(self, u, code, prior):
        return self.make(u * self.w)


def build_scaled(make_distribution, **changes):
    model, guide, x, y = pair(GRAM, ScaledGuide, **{"model": {"transitions": 1}, **changes})
    model.prior, guide.make, guide.w = Scaled(make_distribution), make_distribution, nn.Parameter(torch.tensor(0.8))
    return model, guide, x, y


def normal_with_covariance(u):
    normal = dist.MultivariateNormal(u * 0.1, scale_tril=0.3 * torch.eye(16))
    assert normal.covariance_matrix.shape[-1] == 16  # torch computes this matrix when it is first read, and stores it
    return normal.to_event(1)


CLOSED_FORMS = {
    "one-hot": lambda u: dist.OneHotCategoricalStraightThrough(logits=u).to_event(1),
    "beta": lambda u: dist.Beta(u.exp() + 1, torch.ones_like(u)).to_event(2),
    "log-normal": lambda u: dist.LogNormal(u * 0.1, 0.3 * torch.ones_like(u)).to_event(2),
    "masked": lambda u: dist.Normal(u * 0.1, 1.0).to_event(2).mask(torch.ones(u.shape[:-2]).bool()),
    "multivariate": normal_with_covariance,
}


def loss_and_gradients(elbo, model, guide, x, y):
    model.zero_grad()
    guide.zero_grad()
    torch.manual_seed(1)
    loss = float(elbo.loss_and_grads(model, guide, x, y))
    return loss, model.prior.w.grad.item(), guide.w.grad.item()


@pytest.mark.parametrize("kind", CLOSED_FORMS)
def test_closed_form_kls_are_used_and_balanced(kind):
    model, guide, x, y = build_scaled(CLOSED_FORMS[kind])
    pyro_results = loss_and_gradients(TraceMeanField_ELBO(), model, guide, x, y)
    elbo = BalancedELBO(1.0)
    loss, prior, reconstruction = loss_and_gradients(elbo, model, guide, x, y)
    assert elbo.estimated_kl is None
    assert (loss, prior) == pytest.approx(pyro_results[:2], rel=1e-5)
    loss, prior, posterior = loss_and_gradients(BalancedELBO(0.75), model, guide, x, y)
    assert loss == pytest.approx(pyro_results[0], rel=1e-5)
    assert prior == pytest.approx(0.75 * pyro_results[1], rel=1e-4)
    assert posterior == pytest.approx(reconstruction + 0.25 * (pyro_results[2] - reconstruction), rel=1e-3)


def test_a_straight_through_draw_keeps_its_density():
    """A straight-through draw has the relaxed draw as an attribute. Pyro takes the log density of the relaxed draw."""
    model, guide, x, y = build_scaled(
        lambda u: dist.RelaxedBernoulliStraightThrough(torch.tensor(0.5), probs=u.sigmoid()).to_event(2)
    )
    expected = loss_and_gradients(MeanFieldELBO(), model, guide, x, y)
    elbo = BalancedELBO(1.0)
    assert loss_and_gradients(elbo, model, guide, x, y)[:2] == pytest.approx(expected[:2], rel=1e-4)
    assert elbo.estimated_kl == ("RelaxedBernoulliStraightThrough",) * 2
    half_results = loss_and_gradients(BalancedELBO(0.5), model, guide, x, y)
    assert half_results[:2] == pytest.approx((expected[0], expected[1] / 2), rel=1e-4)
    full_gradient, quarter_gradient = (loss_and_gradients(BalancedELBO(b), model, guide, x, y)[2] for b in (1.0, 0.25))
    assert quarter_gradient == pytest.approx(full_gradient + 0.75 * (expected[2] - full_gradient), rel=1e-3)


class Rough(dist.Normal):
    has_rsample = False


@pytest.mark.parametrize(("elbo", "validate"), [(MeanFieldELBO, True), (BalancedELBO, False)])
def test_draws_of_the_prior_without_gradient_are_refused(elbo, validate):
    model, _, x, y = build_scaled(lambda u: Rough(u, 1.0).to_event(2))
    guide = PriorGuide(model)
    with pyro.validation_enabled(validate), pytest.raises(NotImplementedError, match="'eps_0' from a Rough"):
        elbo().loss_and_grads(model, guide, x, y)
    TraceELBO().loss_and_grads(model, guide, x, y)
    with torch.no_grad():
        elbo().loss(model, guide, x, y)


class Stretched(GRAM):
    """A model with a positive latent under a scale or a mask."""

    handler = poutine.scale(scale=0.1)

    def answer(self, state, e_x, y, infer=None):
        with self.handler:
            s = pyro.sample("s", dist.LogNormal(torch.zeros(e_x.shape[:-2]), 1.0))
        return super().answer(type(state)(state.h * s[..., None, None], state.l), e_x, y, infer)


@pytest.mark.parametrize("handler", [poutine.scale(scale=0.1), poutine.mask(mask=False)], ids=["scale", "mask"])
def test_an_autoguides_density_ignores_handlers_around_the_models_site(handler):
    model, _, x, y = pair(Stretched, AmortizedGuide, model={"truncated": False, "transitions": 1})
    model.handler = handler
    guide = AutoNormal(model)
    guide(x, y)
    losses = []
    for elbo in (Trace_ELBO(), MeanFieldELBO(), BalancedELBO()):
        torch.manual_seed(1)
        losses.append(float(elbo.loss(model, guide, x, y)))
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)
    if isinstance(handler, MaskMessenger):  # the terms of the ELBO contain no scales
        assert elbo.terms.elbo.sum().item() == pytest.approx(-losses[0], rel=1e-5)


def test_a_two_pass_guide_without_the_models_scale_counts_as_in_pyro():
    model, _, x, y = pair(GRAM, AmortizedGuide, **PLAIN)

    def guide(x, y, **_):
        with data_plates(y.shape[:-1]), poutine.mask(mask=torch.tensor([True, True, False, True, True])):
            for t in range(2):
                pyro.sample(f"eps_{t}", dist.Normal(torch.zeros(B, 4, 16), 0.2).to_event(2))

    losses = []
    for elbo in (TraceMeanField_ELBO(), MeanFieldELBO(), BalancedELBO()):
        torch.manual_seed(1)
        losses.append(float(elbo.loss(model, guide, x, y, beta=0.1)))
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)


class Sequential(GRAM):
    """A model that observes two of the six parts of each input, one after the other, in a sequential plate."""

    def answer(self, state, e_x, y, infer=None):
        for i in pyro.plate("parts", 6, subsample_size=2):
            pyro.sample(f"part_{i}", dist.Normal(torch.zeros(e_x.shape[:-2]), 1.0), obs=torch.ones(e_x.shape[:-2]))
        return super().answer(state, e_x, y, infer)


def test_sequential_subsampled_plates_keep_their_weight():
    model, guide, x, y = pair(Sequential, AmortizedGuide, **PLAIN)
    elbo = BalancedELBO()
    loss = elbo.loss(model, guide, x, y)
    assert elbo.terms.elbo.sum().item() == pytest.approx(-loss, rel=1e-5)
    cost_of_parts = 6 * (0.5 + torch.tensor(2 * torch.pi).log().item() / 2)
    torch.testing.assert_close(elbo.terms.other_terms, torch.full((B,), cost_of_parts))


def test_a_random_subsample_of_observations_does_not_depend_on_y():
    model, _, x, y = pair(Sequential, AmortizedGuide)
    for seed in range(4):
        assert torch.isfinite(rollout_log_prob(model, x, y, num_samples=2, depth=1, seed=seed)).all()


class Hidden(dist.Normal):
    """A user's own Gaussian. One of its attributes is a module with parameters."""

    def __init__(self, u, net):
        super().__init__(u, 1.0)
        self.net = net

    def expand(self, batch_shape, _instance=None):
        return self


@register_kl(Hidden, Hidden)
def _kl_hidden(q, p):
    return (q.net.weight.sum() * q.loc - p.net.weight.sum() * p.loc).square() / 2


def test_a_distribution_with_hidden_parameters_cannot_be_scaled():
    net = nn.Linear(1, 1)
    with pytest.raises(NotImplementedError):
        scale_gradient(Hidden(torch.zeros(3), net), 0.5)
    for attribute in ([torch.zeros(1)], {"a": torch.zeros(1)}):
        normal = dist.Normal(torch.zeros(3), 1.0)
        normal.extra = attribute
        with pytest.raises(NotImplementedError):
            scale_gradient(normal, 0.5)


def test_a_delta_inside_two_independents_is_a_delta():
    assert is_delta(dist.Delta(torch.zeros(2, 3, 4)).to_event(1).to_event(1))
