"""The amortized guide computes its posterior from u and y, and keeps the limit on its KL."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro_gram.guides.amortized import align_answer, limit_kl
from torch.distributions import TanhTransform, kl_divergence

from pyro_gram.diagnostics.bounds import terms
from pyro_gram.errors import ConfigError
from tests.conftest import build_case, build_small


def draw(seed, spread):
    generator = torch.Generator().manual_seed(seed)
    loc, prior_loc = (spread * torch.randn(6, 3, 5, generator=generator) for _ in range(2))
    scale, prior_scale = (torch.rand(6, 3, 5, generator=generator) + 0.1 for _ in range(2))
    return loc, prior_scale, dist.Normal(prior_loc, scale)


def kl_of(loc, scale, prior):
    return kl_divergence(dist.Normal(loc, scale), prior).sum((-1, -2))


@pytest.mark.parametrize("max_kl", [0.01, 0.5, 4.0])
def test_limit_kl_moves_only_posteriors_with_a_larger_kl(max_kl):
    loc, scale, prior = draw(0, 1.0)
    limited_kl = kl_of(*limit_kl(loc, scale, prior, max_kl), prior)
    assert (kl_of(loc, scale, prior) > max_kl).all()
    assert ((limited_kl > 0.9 * max_kl) & (limited_kl < 1.02 * max_kl)).all()  # the KL is about max_kl if scales differ
    same_scale = limit_kl(loc, prior.scale, prior, max_kl)
    torch.testing.assert_close(kl_of(*same_scale, prior), torch.full((6,), max_kl))  # exactly max_kl for equal scales
    small_kl = limit_kl(prior.loc + 1e-3, prior.scale, prior, max_kl)
    torch.testing.assert_close(small_kl, (prior.loc + 1e-3, prior.scale))


@pytest.mark.parametrize("ratio", [0.02, 0.2, 3.0, 20.0])
def test_limit_kl_holds_if_all_scales_differ_in_the_same_way(ratio):
    """A trained guide is narrower than the prior in every channel. Then errors of limit_kl add up over channels."""
    zeros, ones = torch.zeros(2, 8, 128), torch.ones(2, 8, 128)
    for max_kl in (0.01, 0.5):
        kl = kl_of(*limit_kl(zeros + 0.1, ratio * ones, dist.Normal(zeros, ones), max_kl), dist.Normal(zeros, ones))
        assert ((kl > 0.9 * max_kl) & (kl < 1.02 * max_kl)).all()


def test_limit_kl_has_no_gradient_into_the_prior():
    loc, scale, prior = draw(1, 1.0)
    prior.loc.requires_grad_(), prior.scale.requires_grad_(), loc.requires_grad_()
    sum(t.sum() for t in limit_kl(loc, scale, prior, 0.5)).backward()
    assert prior.loc.grad is None
    assert prior.scale.grad is None
    assert loc.grad.any()


def test_a_guide_with_fewer_transitions_than_training_is_refused():
    with pytest.raises(ConfigError, match="guide.guided_transitions = 3 is less than the 4 transitions of training"):
        build_small(guide={"guided_transitions": 3})  # training has N_sup * T = 2 * 2 transitions


@pytest.mark.parametrize("guide", ["amortized", "replay"])
@pytest.mark.parametrize("guided_transitions", [0, 4])
def test_after_guided_transitions_the_guide_follows_the_prior(guide, guided_transitions):
    case = build_case(guide_name=guide, guide={"guided_transitions": guided_transitions})
    with torch.no_grad():
        getattr(case.solver.guide, "inference", case.solver.guide).head.mlp.down.weight.normal_()
    kl = terms(case.solver.model, case.solver.guide, case.x, case.y, steps=3, truncated=False).kl
    assert (kl[:4] > 1).all()
    assert (kl[4:] == 0).all() if guided_transitions else (kl[4:] > 1).all()


def test_max_kl_needs_a_gaussian_prior():
    case = build_case(guide={"max_kl": 0.5})
    u = torch.zeros(5, *case.solver.model.h0.shape)
    tanh_prior = dist.TransformedDistribution(dist.Normal(u, 1.0), [TanhTransform()]).to_event(2)
    for prior in (dist.Laplace(u, 1.0).to_event(2), tanh_prior):
        with pytest.raises(ConfigError, match="guide.max_kl needs a Gaussian prior"):
            case.solver.guide.posterior(u, u, prior)


@pytest.mark.parametrize("max_kl", [0.0, 0.05])
def test_max_kl_holds_at_every_transition(max_kl):
    case = build_case(guide={"max_kl": max_kl})
    with torch.no_grad():
        case.solver.guide.head.mlp.down.weight.normal_()
    kl = terms(case.solver.model, case.solver.guide, case.x, case.y, steps=3, truncated=False).kl
    assert kl.shape[0] >= 3
    if max_kl:
        assert kl.max() < 1.02 * max_kl
    else:
        assert kl.min() > 1


def test_the_embedded_answer_is_aligned_with_the_last_positions_of_u():
    code, u = torch.randn(5, 2, 3), torch.randn(7, 5, 4, 6)
    code_at_u = align_answer(code, u)
    assert code_at_u.shape == (7, 5, 4, 3)
    assert (code_at_u[:, :, :2] == 0).all()
    assert torch.equal(code_at_u[:, :, 2:], code.expand(7, 5, 2, 3))


def test_the_posterior_is_the_head_of_u_and_the_embedded_answer():
    case = build_case(guide={"initial_scale": 0.3, "layers": 1})
    guide, u = case.solver.guide, torch.randn(5, 4, 16)
    code = guide.encode(case.x, case.y)
    torch.testing.assert_close(code, guide.mix(guide.answer(case.y)))
    loc, scale = guide.head(torch.cat((u, code), -1))
    q = guide.posterior(u, code, case.solver.model.prior(u))
    torch.testing.assert_close(q.mean, loc)
    torch.testing.assert_close(q.stddev, scale)
    assert q.event_shape == (4, 16)
    fresh_guide = type(guide)(guide.Config(hidden=16, initial_scale=0.3), case.solver.task.spec, case.solver.model, 16)
    torch.testing.assert_close(fresh_guide.posterior(u, code, None).stddev, torch.full((5, 4, 16), 0.3))
    assert len(guide.mix) == 1
    assert len(fresh_guide.mix) == 0


def test_limit_kl_moves_mean_and_log_scale_by_one_share():
    """Mean and log scale move towards the prior by the same share, in every position and channel."""
    loc, scale, prior = draw(2, 1.0)
    new_loc, new_scale = limit_kl(loc, scale, prior, 0.5)
    loc_share = (new_loc - prior.loc) / (loc - prior.loc)
    scale_share = (new_scale / prior.scale).log() / (scale / prior.scale).log()
    mean_share = loc_share.mean((-1, -2), keepdim=True)
    assert ((mean_share > 0) & (mean_share < 1)).all()
    assert mean_share.std() > 1e-3  # each input has a share of its own
    torch.testing.assert_close(loc_share, mean_share.expand_as(loc_share), atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(scale_share, mean_share.expand_as(scale_share), atol=2e-3, rtol=2e-3)


def test_limit_kl_leaves_a_posterior_at_the_limit_unchanged():
    loc, scale, prior = draw(3, 1.0)
    kl = kl_of(loc, scale, prior)
    new_parameters = limit_kl(loc, scale, prior, 1.001 * kl.max().item())
    torch.testing.assert_close(new_parameters, (loc, scale))


def test_the_gradient_of_limit_kl_keeps_the_kl():
    """However far loc is from the prior's mean, the KL equals the limit. The KL's gradient along this distance is 0."""
    loc, _, prior = draw(4, 1.0)
    factor = torch.tensor(1.0, requires_grad=True)
    new_parameters = limit_kl(prior.loc + factor * (loc - prior.loc), prior.scale, prior, 0.5)
    (gradient,) = torch.autograd.grad(kl_of(*new_parameters, prior).sum(), factor)
    assert gradient.abs() < 1e-3


@pytest.mark.parametrize("settings", [{}, {"steps": 2}, {"truncated": False, "steps": 2}, {"beta": 0.3}])
def test_the_two_pass_guide_equals_the_one_pass_guide(settings):
    """Both guides have the same draws under the same seed, and the same density, mask and scale at every site."""
    replay = build_case(guide_name="replay")
    model, guide = replay.solver.model, replay.solver.guide
    pyro.set_rng_seed(4)
    guide_trace = poutine.trace(guide).get_trace(replay.x, replay.y, **settings)
    pyro.set_rng_seed(4)
    one_pass_trace = poutine.trace(guide.inference).get_trace(replay.x, replay.y, **settings)
    guide_trace.compute_log_prob()
    one_pass_trace.compute_log_prob()
    names = [f"eps_{t}" for t in range(2 * settings.get("steps", 1))]
    assert [n for n in guide_trace.nodes if n.startswith("eps_")] == names
    for t, name in enumerate(names):
        torch.testing.assert_close(guide_trace.nodes[name]["value"], one_pass_trace.nodes[name]["value"])
        is_charged = settings.get("truncated") is False or t % 2 == 1
        assert guide_trace.nodes[name]["scale"] == settings.get("beta", 1.0)
        q = guide_trace.nodes[name]["fn"].log_prob(guide_trace.nodes[name]["value"])
        torch.testing.assert_close(guide_trace.nodes[name]["log_prob"], settings.get("beta", 1.0) * is_charged * q)
        assert guide_trace.nodes[name]["fn"].mean.requires_grad == is_charged
        scope = guide_trace.nodes[name]["infer"]["_markov_scope"]
        assert {n for n in scope if n.startswith("eps_") and scope[n]} == ({f"eps_{t - 1}"} if t else set())
    model_trace = poutine.trace(poutine.replay(model, guide_trace)).get_trace(replay.x, replay.y, **settings)
    parameter_names = [n for n in guide_trace.nodes if n.startswith("guide.inference.")]
    assert len(parameter_names) == len(list(guide.named_parameters()))
    for name in names:
        assert torch.equal(model_trace.nodes[name]["value"], guide_trace.nodes[name]["value"])
    with pytest.raises(ValueError, match="was called without y"):
        guide(replay.x, None)


def test_the_two_pass_guide_works_without_an_input():
    case = build_case(task_name="sudoku_uncond", guide_name="replay")
    trace = poutine.trace(case.solver.guide).get_trace(None, case.y)
    assert trace.nodes["eps_0"]["value"].shape == (5, 16, 16)
    assert trace.nodes["eps_1"]["fn"].batch_shape == (5,)


def test_the_two_pass_guide_has_gradient_where_the_model_has():
    case = build_case(guide_name="replay", model={"transitions": 3})
    trace = poutine.trace(case.solver.guide).get_trace(case.x, case.y, steps=2)
    has_gradient = [trace.nodes[f"eps_{t}"]["fn"].mean.requires_grad for t in range(6)]
    assert has_gradient == [False, False, True] * 2
