import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceMeanField_ELBO
from torch.distributions import kl_divergence

from pyro_gram.inference.contract import PriorTraits
from pyro_gram.inference.deferred import Deferred, effect_guide_draws, prior_at
from pyro_gram.inference.elbo import BalancedELBO, TraceELBO
from tests.conftest import build_case


def counted(case):
    """How often the prior's head has been computed, in a list of one."""
    calls = [0]

    def count(*_):
        calls[0] += 1

    case.solver.model.prior.head.register_forward_hook(count)
    return calls


@pytest.fixture
def truncated():
    return build_case(model={"transitions": 3, "truncated": True})


def test_the_heads_of_transitions_that_are_not_charged_are_not_computed(truncated):
    calls = counted(truncated)
    with pyro.validation_enabled(False):  # as in training; a check of the traces looks at every distribution
        BalancedELBO().differentiable_loss(truncated.solver.model, truncated.solver.guide, truncated.x, truncated.y)
    assert calls == [1]


def test_every_head_is_computed_where_all_are_charged_or_the_prior_draws(truncated):
    model, calls = truncated.solver.model, counted(truncated)
    with torch.no_grad():
        model(truncated.x)
        assert calls == [3]
        poutine.trace(truncated.solver.guide).get_trace(truncated.x, truncated.y, truncated=False)
    assert calls == [6]


LOOKING = [  # guides that read the prior, and one that does not
    {},
    {"guide_name": "residual"},
    {"guide": {"max_kl": 0.5}},
    {"prior_name": "noise_only"},
    {"prior_name": "noise_only", "guide_name": "residual"},
]


@pytest.mark.parametrize("elbo", [BalancedELBO, TraceELBO, TraceMeanField_ELBO])
@pytest.mark.parametrize("names", LOOKING, ids=str)
def test_bounds_and_gradients_are_what_they_are_at_once(names, monkeypatch, elbo):
    truncated = build_case(model={"transitions": 3, "truncated": True}, **names)
    model, guide = truncated.solver.model, truncated.solver.guide

    def loss_and_gradients():
        pyro.set_rng_seed(3)
        loss = elbo().differentiable_loss(model, guide, truncated.x, truncated.y)
        return loss, *torch.autograd.grad(loss, [*model.parameters(), *guide.parameters()], allow_unused=True)

    later = loss_and_gradients()
    monkeypatch.setattr(type(model.prior), "traits", PriorTraits())
    for a, b in zip(later, loss_and_gradients(), strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b)


def test_it_is_the_distribution_that_it_defers():
    u = torch.randn(2, 3, 4)
    at_once = dist.Normal(u, 1.0).to_event(2)
    later = Deferred(lambda u: dist.Normal(u, 1.0).to_event(2), u)
    assert (later.batch_shape, later.event_shape) == (at_once.batch_shape, at_once.event_shape)
    value, other = torch.randn(2, 3, 4), dist.Normal(0 * u, 2.0).to_event(2)
    assert torch.equal(later.log_prob(value), at_once.log_prob(value))
    assert torch.equal(kl_divergence(other, later), kl_divergence(other, at_once))
    torch.manual_seed(0)
    value = later()
    torch.manual_seed(0)
    assert torch.equal(value, at_once())
    assert torch.equal(later.mean, at_once.mean)
    assert torch.equal(later.variance, at_once.variance)
    assert torch.equal(later.entropy(), at_once.entropy())
    assert later.expand((5, 2)).batch_shape == (5, 2)
    assert later.has_rsample
    assert later.support.event_dim == 2


def test_only_under_a_guide_and_for_priors_that_allow_it(truncated):
    u, prior = torch.randn(2, 8, 16), truncated.solver.model.prior
    assert not isinstance(prior_at(prior, u, has_kl=False), Deferred)
    with effect_guide_draws():
        assert isinstance(prior_at(prior, u, has_kl=False), Deferred)
        assert not isinstance(prior_at(prior, u, has_kl=True), Deferred)
        assert not isinstance(prior_at(lambda u: dist.Normal(u, 1).to_event(2), u, has_kl=False), Deferred)
    assert not isinstance(prior_at(prior, u, has_kl=False), Deferred)
