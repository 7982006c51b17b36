"""The ELBOs have the right values and gradients in small cases with known answers."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch.distributions import kl_divergence

from pyro_gram.build import build
from pyro_gram.diagnostics.bounds import bounds, terms
from pyro_gram.diagnostics.likelihood import prior_log_likelihood
from pyro_gram.errors import ConfigError
from pyro_gram.inference.elbo import BalancedELBO, balanced_log_densities, make_elbo, scale_gradient
from pyro_gram.inference.importance import guide_draws, log_evidence
from tests.conftest import Case, build_case, perturb_, small_config


def double(case):
    case.solver.model.double()
    case.solver.guide.double()
    return case


def gaussians():
    parameters = [torch.randn(3, 2, dtype=torch.float64) for _ in range(4)]
    mq, sq, mp, sp = (p.clone().requires_grad_() for p in parameters)
    q = dist.Normal(mq, sq.exp()).to_event(2)
    p = dist.Normal(mp, sp.exp()).to_event(2)
    return (mq, sq, mp, sp), q, p


def test_gradient_scaling_keeps_the_kl_and_balances_its_gradient_as_the_closed_form_says():
    (mq, sq, mp, sp), q, p = gaussians()
    kl = kl_divergence(scale_gradient(q, 0.2), scale_gradient(p, 0.8))
    vq, vp, gap = (2 * sq).exp(), (2 * sp).exp(), mq - mp
    torch.testing.assert_close(kl, (sp - sq + (vq + gap**2) / (2 * vp) - 0.5).sum())
    gradients = torch.autograd.grad(kl, (mq, sq, mp, sp))
    expected = (
        0.2 * gap / vp,
        0.2 * (vq / vp - 1),
        -0.8 * gap / vp,
        0.8 * (1 - (vq + gap**2) / vp),
    )
    for g, e in zip(gradients, expected, strict=True):
        torch.testing.assert_close(g, e)


def test_gradient_scaling_equals_the_two_stop_gradient_terms_of_the_paper():
    parameters, q, p = gaussians()

    def stop_gradient(d):
        base = d.base_dist
        return dist.Normal(base.loc.detach(), base.scale.detach()).to_event(2)

    two_terms = 0.8 * kl_divergence(stop_gradient(q), p) + 0.2 * kl_divergence(q, stop_gradient(p))
    scaled_kl = kl_divergence(scale_gradient(q, 0.2), scale_gradient(p, 0.8))
    torch.testing.assert_close(scaled_kl, two_terms)
    for a, b in zip(
        torch.autograd.grad(scaled_kl, parameters, retain_graph=True),
        torch.autograd.grad(two_terms, parameters),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_scaling_reaches_distributions_given_by_logits():
    logits = torch.randn(4, requires_grad=True)
    scaled_categorical = scale_gradient(dist.Categorical(logits=logits), 0.5)
    (gradient,) = torch.autograd.grad(scaled_categorical.logits[0], logits)
    (full_gradient,) = torch.autograd.grad(dist.Categorical(logits=logits).logits[0], logits)
    torch.testing.assert_close(gradient, 0.5 * full_gradient)


def hand_written_loss(case, beta=1.0):
    """Compute -ELBO of one untruncated supervision step, summed over the batch, without Pyro's inference."""
    model, guide = case.solver.model, case.solver.guide
    e_x, code = model.encoder(case.x), guide.encode(case.x, case.y)
    h, l = model.initial_state(e_x)
    loss = torch.zeros((), dtype=h.dtype)
    for _ in range(2):
        for _ in range(2):
            l = model.core.f_L(l + (h + e_x))
        u = model.core.f_H(h + l)
        loc_q, scale_q = guide.head(torch.cat((u, code), -1))
        loc_p, scale_p = model.prior.head(u)
        kl = (scale_p / scale_q).log() + (scale_q**2 + (loc_q - loc_p) ** 2) / (2 * scale_p**2) - 0.5
        loss = loss + beta * kl.sum()
        h = u + loc_q + scale_q * torch.empty(loc_q.shape, dtype=torch.float64).normal_().to(h.dtype)
    log_p = model.decoder(h).log_softmax(-1).gather(-1, case.y[..., None]).sum()
    return loss - log_p


@pytest.mark.parametrize(
    ("elbo", "beta"),
    [(TraceMeanField_ELBO(), 2.5), (BalancedELBO(0.5), 1.0), (BalancedELBO(0.8), 2.5)],
    ids=["mean field", "even", "balanced"],
)
def test_the_bound_equals_a_hand_written_loss(elbo, beta):
    case = double(build_case(model={"truncated": False}))
    pyro.set_rng_seed(5)
    expected = hand_written_loss(case, beta)
    pyro.set_rng_seed(5)
    loss = elbo.loss(case.solver.model, case.solver.guide, case.x, case.y, beta=beta)
    assert float(loss) == pytest.approx(expected.item(), rel=1e-9)


def test_gradients_at_balance_b_and_1_minus_b_sum_to_the_plain_gradient_plus_one_reconstruction_gradient():
    """With balance b, the prior gets the share b of the KL's gradient, and the guide gets the share 1 - b."""
    case = double(build_case(model={"truncated": False, "transitions": 1}))
    model, guide = case.solver.model, case.solver.guide

    def gradients(elbo, beta):
        pyro.set_rng_seed(5)
        model.zero_grad()
        guide.zero_grad()
        elbo.loss_and_grads(model, guide, case.x, case.y, beta=beta)
        return [p.grad.clone() for m in (model, guide) for p in m.parameters()]

    a, b = gradients(BalancedELBO(0.8), 1.0), gradients(BalancedELBO(0.2), 1.0)
    plain_gradients, reconstruction_gradients = (
        gradients(TraceMeanField_ELBO(), 1.0),
        gradients(TraceMeanField_ELBO(), 1e-15),
    )
    for ga, gb, gp, g0 in zip(a, b, plain_gradients, reconstruction_gradients, strict=True):
        torch.testing.assert_close(ga + gb, gp + g0)


def test_messenger_and_replay_guide_give_the_same_bound_and_gradients():
    one_pass_case = double(build_case(guide_name="amortized"))
    two_pass_case = double(build_case(guide_name="replay"))
    two_pass_case.solver.model.load_state_dict(one_pass_case.solver.model.state_dict())
    two_pass_case.solver.guide.inference.load_state_dict(one_pass_case.solver.guide.state_dict())
    losses, gradients = [], []
    for case in (one_pass_case, two_pass_case):
        pyro.set_rng_seed(7)
        losses.append(float(TraceMeanField_ELBO().loss_and_grads(case.solver.model, case.solver.guide, case.x, case.y)))
        modules = (case.solver.model, case.solver.guide)
        gradients.append([p.grad for m in modules for p in m.parameters()])
    assert losses[0] == pytest.approx(losses[1], rel=1e-10)
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_trace_elbo_and_analytic_elbo_agree_on_average():
    case = double(build_case(model={"truncated": False}))
    model, guide = case.solver.model, case.solver.guide
    trace_elbo = Trace_ELBO(num_particles=1000, vectorize_particles=True, max_plate_nesting=1)
    analytic_elbo = TraceMeanField_ELBO(num_particles=1000, vectorize_particles=True, max_plate_nesting=1)
    with torch.no_grad():
        a = trace_elbo.loss(model, guide, case.x, case.y)
        b = analytic_elbo.loss(model, guide, case.x, case.y)
    assert a == pytest.approx(float(b), rel=0.03)


def gentle_case():
    """Return a case whose guide is near its prior, so that a few thousand weights estimate log p well."""
    solver = build(small_config())
    perturb_(solver.model.prior, 0.002)
    perturb_(solver.guide, 0.002)
    puzzles = solver.task.split("train").subset(5)
    return Case(solver, puzzles.inputs, puzzles.sample_targets(torch.arange(5), torch.Generator().manual_seed(0)))


def test_full_elbo_is_below_the_importance_bound_which_is_below_log_p():
    case = gentle_case()
    model, guide = case.solver.model, case.solver.guide
    full_bound = torch.stack([bounds(model, guide, case.x, case.y, steps=2, seed=s).full for s in range(12)]).mean(0)
    weights = guide_draws(model, guide, case.x, case.y, steps=2, num_samples=1000).log_weight
    log_p = prior_log_likelihood(model, case.x, case.y, depth=2, num_samples=3000)
    iwae5 = log_evidence(weights.view(5, 200, -1)).mean(0)
    iwae = log_evidence(weights)
    assert full_bound.mean() < iwae5.mean()
    assert iwae5.mean() < iwae.mean() + 0.02
    assert full_bound.mean() < log_p.mean()
    torch.testing.assert_close(iwae.mean(), log_p.double().mean(), atol=0.15, rtol=0)


def test_terms_are_at_beta_one_for_any_beta_of_training(case):
    model, guide = case.solver.model, case.solver.guide
    elbo = make_elbo("balanced")
    pyro.set_rng_seed(1)
    elbo.loss(model, guide, case.x, case.y, beta=9.0)
    weighted_terms = elbo.terms
    pyro.set_rng_seed(1)
    plain_terms = terms(model, guide, case.x, case.y)
    torch.testing.assert_close(weighted_terms.kl, plain_terms.kl)
    torch.testing.assert_close(weighted_terms.elbo, plain_terms.elbo)


def test_terms_are_unscaled_under_the_trainers_scale(case):
    model, guide = case.solver.model, case.solver.guide
    elbo = make_elbo("balanced")
    with poutine.scale(scale=0.2):
        pyro.set_rng_seed(1)
        loss = float(elbo.loss(model, guide, case.x, case.y))
    assert loss == pytest.approx(-elbo.terms.elbo.mean().item(), rel=1e-5)


def test_the_surrogate_charges_the_last_transition_only():
    case = build_case(model={"transitions": 3})
    results = bounds(case.solver.model, case.solver.guide, case.x, case.y, steps=2)
    assert results.kl.shape == (6, 5)  # the full bound has the KL of all six transitions
    assert terms(case.solver.model, case.solver.guide, case.x, case.y).kl.shape == (1, 5)


def test_the_surrogate_takes_the_supervision_steps_of_training():
    case = build_case()
    model, guide = case.solver.model, case.solver.guide
    short_bounds, long_bounds = (bounds(model, guide, case.x, case.y, steps=4, surrogate_steps=n) for n in (1, 3))
    assert torch.equal(short_bounds.full, long_bounds.full)
    torch.manual_seed(0)
    # bounds() makes the draws of the full bound first
    full_terms = terms(model, guide, case.x, case.y, steps=4, truncated=False)
    torch.testing.assert_close(full_terms.elbo, short_bounds.full)
    torch.testing.assert_close(terms(model, guide, case.x, case.y).elbo, short_bounds.surrogate)
    assert not torch.equal(short_bounds.surrogate, long_bounds.surrogate)


def test_the_state_in_the_terms_is_detached(case):
    elbo = make_elbo("balanced")
    elbo.loss_and_grads(case.solver.model, case.solver.guide, case.x, case.y)
    state = elbo.terms.state
    assert state.h.shape == state.l.shape == (5, 4, 16)
    assert not state.h.requires_grad
    assert not state.l.requires_grad


def test_the_guide_forgets_its_trace_after_a_step(case):
    guide = case.solver.guide
    make_elbo("balanced").loss_and_grads(case.solver.model, guide, case.x, case.y)
    assert len(guide.trace.nodes) == 0


@pytest.mark.parametrize("balance", [0.8, 0.5, 0.0, 1.0])
def test_an_estimated_kl_is_balanced_like_one_in_closed_form(balance):
    """For Gaussians the KL has a closed form. Averaged over draws, the estimate has the same value and gradients."""
    (mq, sq, mp, sp), q, p = gaussians()
    expected = torch.autograd.grad(
        kl_divergence(scale_gradient(q, 1 - balance), scale_gradient(p, balance)), (mq, sq, mp, sp), retain_graph=True
    )
    num_draws = 200_000
    value = q.expand((num_draws,)).rsample()
    log_q, log_p = balanced_log_densities(q, p, value, balance)
    estimate = log_q - log_p
    torch.testing.assert_close(estimate.mean(), kl_divergence(q, p), rtol=0.02, atol=0.02)
    gradients = torch.autograd.grad(estimate.mean(), (mq, sq, mp, sp))
    largest = max(e.abs().max() for e in expected)
    for f, e in zip(gradients, expected, strict=True):
        torch.testing.assert_close(f, e, rtol=0.05, atol=0.03 * largest.item())


def test_the_balanced_elbo_names_the_distributions_of_an_estimated_kl(case):
    model = case.solver.model
    bound = make_elbo("balanced")
    bound.loss(model, case.solver.guide, case.x, case.y)
    assert bound.estimated_kl is None

    class Heavy(torch.nn.Module):
        def forward(self, u):
            return dist.StudentT(3.0, torch.zeros_like(u), torch.ones_like(u)).to_event(2)

    model.prior = Heavy()
    torch.manual_seed(0)
    loss = bound.loss(model, case.solver.guide, case.x, case.y)
    assert bound.estimated_kl == ("Normal", "StudentT")
    torch.manual_seed(0)
    trace_loss = make_elbo("trace").loss(model, case.solver.guide, case.x, case.y)
    assert loss == pytest.approx(trace_loss, rel=1e-4)


def test_a_guide_of_deltas_has_pyros_gradient_without_balance():
    """A guide of Deltas gives maximum a posteriori estimation. A Delta has no KL that could be balanced."""
    results = []
    for name in ("balanced", "mean_field"):
        pyro.set_rng_seed(0)
        case = build_case()
        guide, point = case.solver.guide, torch.full((4, 16), 0.3, requires_grad=True)
        guide.posterior = lambda u, code, prior, point=point: dist.Delta(point.expand_as(u), event_dim=2)
        bound = make_elbo(name)
        loss = bound.loss_and_grads(case.solver.model, guide, case.x, case.y)
        results.append((float(loss), point.grad, case.solver.model.prior.head.mlp.down.weight.grad, bound.terms.elbo))
    for result, expected in zip(*results, strict=True):
        torch.testing.assert_close(result, expected)
    assert results[0][1].any()


def test_unknown_elbo_and_bad_balance_are_named():
    with pytest.raises(ConfigError, match="unknown elbo 'iwae'"):
        make_elbo("iwae")
    with pytest.raises(ConfigError, match="balance"):
        BalancedELBO(1.5)
