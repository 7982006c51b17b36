"""The importance weights of the guide's draws equal weights computed by hand from the densities of these draws."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions.testing.fakes import NonreparameterizedNormal

from pyro_gram.diagnostics.bounds import bounds, terms
from pyro_gram.inference.elbo import make_elbo
from pyro_gram.inference.importance import guide_draws, log_evidence, split_pairs
from tests.conftest import build_case, perturb_


def expected_draws(case, n, steps, seed):
    """Return the draws and weights of one chunk, computed from the traces of model and guide."""
    torch.manual_seed(seed)
    guide = case.solver.guide
    with torch.no_grad(), pyro.plate("trajectories", n, dim=-2):
        guide(case.x, case.y, steps=steps, truncated=False)
    p, q = guide.get_traces()
    names = [f"eps_{t}" for t in range(steps * 2)]
    value = {name: p.nodes[name]["value"] for name in names}
    log_p = sum(p.nodes[name]["fn"].log_prob(value[name]) for name in names)
    log_q = sum(q.nodes[name]["fn"].log_prob(value[name]) for name in names)
    likelihood = p.nodes["y"]["fn"]
    kl = torch.stack([torch.distributions.kl_divergence(q.nodes[name]["fn"], p.nodes[name]["fn"]) for name in names])
    return {
        "log_weight": (log_p - log_q + likelihood.log_prob(case.y)).double(),
        "log_likelihood": likelihood.log_prob(case.y),
        "kl": kl,
        "guidance": torch.stack([value[name].square().mean((-1, -2)).sqrt() for name in names]),
        "tokens": likelihood.base_dist.logits.argmax(-1),
        "h": p.nodes["h"]["value"],
    }


@pytest.fixture
def far_case():
    """Return a case whose guide differs clearly from its prior."""
    case = build_case()
    perturb_(case.solver.guide, 0.3)
    return case


def test_guide_draws_are_computed_from_the_densities(far_case):
    draws = guide_draws(
        far_case.solver.model, far_case.solver.guide, far_case.x, far_case.y, steps=2, num_samples=6, seed=3
    )
    assert len(far_case.solver.guide.trace.nodes) == 0
    assert far_case.solver.guide._code is None  # the guide keeps neither trace nor code
    for name, expected in expected_draws(far_case, 6, 2, 3).items():
        torch.testing.assert_close(getattr(draws, name), expected, atol=1e-3, rtol=1e-4, msg=name)
    assert draws.log_weight.dtype == torch.double
    assert draws.log_weight.shape == (6, 5)
    assert draws.kl.shape == draws.guidance.shape == (4, 6, 5)
    assert (draws.kl > 0).all()


def test_chunks_of_draws_are_concatenated_in_order(far_case):
    """A chunk holds all draws of at most two inputs, or at most two of the five draws of one input."""
    model, guide = far_case.solver.model, far_case.solver.guide
    draws = guide_draws(model, guide, far_case.x, far_case.y, steps=1, num_samples=3, seed=8, max_traced=7)
    for chunk, part in enumerate((slice(0, 2), slice(2, 4), slice(4, 5))):
        chunk_draws = guide_draws(
            model, guide, far_case.x[part], far_case.y[part], steps=1, num_samples=3, seed=8 + chunk
        )
        for name in vars(chunk_draws):
            index = (slice(None), slice(None), part) if name in ("kl", "guidance") else (slice(None), part)
            torch.testing.assert_close(getattr(draws, name)[index], getattr(chunk_draws, name))
    draws_of_one = guide_draws(
        model, guide, far_case.x[:1], far_case.y[:1], steps=1, num_samples=5, seed=8, max_traced=2
    )
    assert draws_of_one.log_weight.shape == (5, 1)
    assert draws_of_one.kl.shape == (2, 5, 1)
    for chunk, part in enumerate((slice(0, 2), slice(2, 4), slice(4, 5))):
        size = part.stop - part.start
        chunk_draws = guide_draws(
            model, guide, far_case.x[:1], far_case.y[:1], steps=1, num_samples=size, seed=8 + chunk
        )
        torch.testing.assert_close(draws_of_one.log_weight[part], chunk_draws.log_weight)
        torch.testing.assert_close(draws_of_one.kl[:, part], chunk_draws.kl)
    draws_of_two = guide_draws(
        model, guide, far_case.x[:2], far_case.y[:2], steps=1, num_samples=5, seed=8, max_traced=2
    )
    torch.testing.assert_close(draws_of_two.log_weight[:, :1], draws_of_one.log_weight)
    other_draws = guide_draws(
        model, guide, far_case.x[1:2], far_case.y[1:2], steps=1, num_samples=5, seed=11, max_traced=2
    )
    torch.testing.assert_close(draws_of_two.log_weight[:, 1:], other_draws.log_weight)


def test_the_callers_random_state_is_restored(far_case):
    before = torch.get_rng_state()
    draws = guide_draws(far_case.solver.model, far_case.solver.guide, far_case.x, far_case.y, steps=1, num_samples=2)
    assert torch.equal(before, torch.get_rng_state())
    repeat = guide_draws(
        far_case.solver.model, far_case.solver.guide, far_case.x, far_case.y, steps=1, num_samples=2, seed=0
    )
    assert torch.equal(draws.log_weight, repeat.log_weight)  # the default seed is 0


def test_a_two_pass_guide_has_the_same_draws():
    replay = build_case(guide_name="replay")
    perturb_(replay.solver.guide, 0.3)
    two_pass_draws = guide_draws(
        replay.solver.model, replay.solver.guide, replay.x, replay.y, steps=2, num_samples=3, seed=2
    )
    one_pass_guide = replay.solver.guide.inference
    one_pass_draws = guide_draws(
        replay.solver.model, one_pass_guide, replay.x, replay.y, steps=2, num_samples=3, seed=2
    )
    for name in vars(one_pass_draws):
        torch.testing.assert_close(
            getattr(two_pass_draws, name), getattr(one_pass_draws, name), atol=1e-4, rtol=1e-4, msg=name
        )


def test_the_evidence_is_the_log_of_the_mean_weight():
    weight = torch.tensor([[1.0, 2.0], [3.0, 2.0], [5.0, 8.0]], dtype=torch.double)
    assert log_evidence(weight.log()).tolist() == pytest.approx([math.log(3), math.log(4)])


def test_pairs_are_split_with_their_inputs_or_without():
    x, y = torch.arange(10).view(5, 2), torch.arange(5)[:, None]
    parts = split_pairs(x, y, 2)
    assert [b.flatten().tolist() for _, b in parts] == [[0, 1], [2, 3], [4]]
    assert [a[:, 0].tolist() for a, _ in parts] == [[0, 2], [4, 6], [8]]
    assert [a for a, _ in split_pairs(None, y, 2)] == [None] * 3


def test_guidance_that_would_not_be_trained_is_refused_by_the_balanced_bound():
    case = build_case()
    guide = case.solver.guide

    def posterior(u, code, prior):
        return NonreparameterizedNormal(prior.base_dist.loc + 1, prior.base_dist.scale).to_event(2)

    guide.posterior = posterior
    with pytest.raises(NotImplementedError, match="draws 'eps_1' from a NonreparameterizedNormal"):
        make_elbo("balanced").loss_and_grads(case.solver.model, guide, case.x, case.y)
    make_elbo("trace").loss_and_grads(case.solver.model, guide, case.x, case.y)


def test_a_site_with_the_prior_as_posterior_costs_nothing():
    case = build_case(guide_name="prior")
    draws = guide_draws(case.solver.model, case.solver.guide, case.x, case.y, steps=2, num_samples=3, seed=5)
    torch.testing.assert_close(draws.log_weight, draws.log_likelihood.double(), atol=1e-4, rtol=1e-5)
    assert (draws.kl == 0).all()
    with poutine.trace() as trace, pyro.plate("trajectories", 3, dim=-2):
        case.solver.model(case.x, case.y)
    assert isinstance(trace.trace.nodes["eps_0"]["fn"].base_dist, dist.Normal)


def test_chunks_of_bounds_are_concatenated_in_order(far_case):
    model, guide = far_case.solver.model, far_case.solver.guide
    joint_bounds = bounds(model, guide, far_case.x, far_case.y, 2, surrogate_steps=3, seed=7, max_traced=2)
    assert joint_bounds.kl.shape == (4, 5)
    for chunk, part in enumerate((slice(0, 2), slice(2, 4), slice(4, 5))):
        chunk_bounds = bounds(model, guide, far_case.x[part], far_case.y[part], 2, surrogate_steps=3, seed=7 + chunk)
        for name, value in vars(chunk_bounds).items():
            index = (slice(None), part) if name == "kl" else (part,)
            torch.testing.assert_close(getattr(joint_bounds, name)[index], value, msg=name)
    torch.testing.assert_close(joint_bounds.full, -joint_bounds.reconstruction - joint_bounds.kl.sum(0))
    torch.manual_seed(7)
    state, by_step = None, []
    terms(model, guide, far_case.x[:2], far_case.y[:2], steps=2, truncated=False)
    for _ in range(3):
        step = terms(model, guide, far_case.x[:2], far_case.y[:2], state)
        state = step.state
        by_step.append(step.elbo)
    torch.testing.assert_close(joint_bounds.surrogate[:2], torch.stack(by_step).mean(0))
    torch.testing.assert_close(
        bounds(model, guide, far_case.x, far_case.y, 2).surrogate,
        bounds(model, guide, far_case.x, far_case.y, 2, surrogate_steps=2, seed=0).surrogate,
    )


def test_conditioned_guidance_has_the_priors_density():
    case = build_case(model={"truncated": False})
    fixed_eps = torch.full((5, 4, 16), 0.25)
    guide = case.solver.guide
    with poutine.condition(data={"eps_0": fixed_eps}):
        guide(case.x, case.y)
    p, _ = guide.get_traces()
    site = p.nodes["eps_0"]
    assert torch.equal(site["value"], fixed_eps)
    prior = case.solver.model.prior(p.nodes["u_0"]["value"])
    torch.testing.assert_close(site["fn"].log_prob(fixed_eps), prior.log_prob(fixed_eps))
