"""What the amortized guide may say: its budget."""

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import TanhTransform, kl_divergence

from guides.amortized import within_budget
from pyro_gram.errors import ConfigError
from pyro_gram.inference.bounds import terms
from tests.conftest import case_of, small


def draw(seed, spread):
    generator = torch.Generator().manual_seed(seed)
    loc, other = (spread * torch.randn(6, 3, 5, generator=generator) for _ in range(2))
    scale, narrow = (torch.rand(6, 3, 5, generator=generator) + 0.1 for _ in range(2))
    return loc, narrow, dist.Normal(other, scale)


def said(loc, scale, prior):
    return kl_divergence(dist.Normal(loc, scale), prior).sum((-1, -2))


@pytest.mark.parametrize("budget", [0.01, 0.5, 4.0])
def test_what_says_too_much_is_drawn_to_the_budget_and_what_does_not_is_left_alone(budget):
    loc, scale, prior = draw(0, 1.0)
    limited = said(*within_budget(loc, scale, prior, budget), prior)
    assert (said(loc, scale, prior) > budget).all()
    assert ((limited > 0.9 * budget) & (limited < 1.02 * budget)).all()  # close where the scales differ ...
    same = within_budget(loc, prior.scale, prior, budget)
    torch.testing.assert_close(said(*same, prior), torch.full((6,), budget))  # ... and exact where they do not
    little = within_budget(prior.loc + 1e-3, prior.scale, prior, budget)
    torch.testing.assert_close(little, (prior.loc + 1e-3, prior.scale))


@pytest.mark.parametrize("ratio", [0.02, 0.2, 3.0, 20.0])
def test_the_budget_holds_where_every_scale_differs_the_same_way(ratio):
    """A guide is narrower than the prior in every channel at once: nothing cancels."""
    zero, one = torch.zeros(2, 8, 128), torch.ones(2, 8, 128)
    for budget in (0.01, 0.5):
        kept = said(*within_budget(zero + 0.1, ratio * one, dist.Normal(zero, one), budget), dist.Normal(zero, one))
        assert ((kept > 0.9 * budget) & (kept < 1.02 * budget)).all()


def test_the_prior_is_not_trained_through_the_budget():
    loc, scale, prior = draw(1, 1.0)
    prior.loc.requires_grad_(), prior.scale.requires_grad_(), loc.requires_grad_()
    sum(t.sum() for t in within_budget(loc, scale, prior, 0.5)).backward()
    assert prior.loc.grad is None
    assert prior.scale.grad is None
    assert loc.grad.any()


def test_a_guide_that_stops_before_training_does_is_refused():
    with pytest.raises(ConfigError, match="guide.until = 3 is less than the 4 transitions that training makes"):
        small(guide={"until": 3})  # T = 2, N_sup = 2


@pytest.mark.parametrize("guide", ["amortized", "replay"])
@pytest.mark.parametrize("until", [0, 4])
def test_from_some_transition_on_the_guide_follows_the_prior(guide, until):
    case = case_of(guide_name=guide, guide={"until": until})
    with torch.no_grad():
        getattr(case.assembly.guide, "inference", case.assembly.guide).head.mlp.down.weight.normal_()
    kl = terms(case.assembly.model, case.assembly.guide, case.x, case.y, steps=3, truncated=False).kl
    assert (kl[:4] > 1).all()
    assert (kl[4:] == 0).all() if until else (kl[4:] > 1).all()


def test_a_prior_that_is_no_gaussian_is_refused():
    case = case_of(guide={"budget": 0.5})
    u = torch.zeros(5, *case.assembly.model.h0.shape)
    bent = dist.TransformedDistribution(dist.Normal(u, 1.0), [TanhTransform()]).to_event(2)
    for prior in (dist.Laplace(u, 1.0).to_event(2), bent):
        with pytest.raises(ConfigError, match="guide.budget needs a Gaussian prior"):
            case.assembly.guide.posterior(u, u, prior)


@pytest.mark.parametrize("budget", [0.0, 0.05])
def test_a_guide_keeps_its_budget_at_every_transition(budget):
    case = case_of(guide={"budget": budget})
    with torch.no_grad():
        case.assembly.guide.head.mlp.down.weight.normal_()
    found = terms(case.assembly.model, case.assembly.guide, case.x, case.y, steps=3, truncated=False).kl
    assert found.shape[0] >= 3
    if budget:
        assert found.max() < 1.02 * budget
    else:
        assert found.min() > 1
