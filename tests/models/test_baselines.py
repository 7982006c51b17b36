"""The baselines agree with brute force on a task whose answers are few enough to enumerate."""

import itertools
import math

import pyro
import pytest
import torch
from pyro import poutine
from torch.distributions import Categorical, kl_divergence

from pyro_gram.inference.sites import plate_shape
from pyro_gram.networks.core import RotaryAttention
from pyro_gram.sampling.rollout import rollout
from tests.conftest import build_case

TINY = {"vertices": 4, "train": 20, "validation": 4, "test": 4}  # 3 colors at 4 vertices: 81 answers


def build_tiny(name, **changes):
    case = build_case(model_name=name, task={**TINY, "edge_probability": 0.5}, **changes)
    case.solver.model.eval()
    case.solver.guide.eval()
    return case


def answers():
    return torch.tensor(list(itertools.product(range(3), repeat=4)))


def frequencies(tokens):
    return torch.bincount(number_of(tokens).flatten(), minlength=81) / tokens[..., 0].numel()


def number_of(tokens):
    return (tokens * torch.tensor([27, 9, 3, 1])).sum(-1)


def y_site(model, x, y):
    return poutine.trace(model).get_trace(x, y).nodes["y"]


# ---- autoregressive ----------------------------------------------------------------------------------------------


def test_a_prefix_language_model_attends_to_its_prefix_and_earlier_positions():
    layer = RotaryAttention(6, 8, 2, prefix=2)
    x = torch.randn(1, 6, 8)
    for position, first_affected in ((5, 5), (3, 3), (1, 0)):
        changed_x = x.clone()
        changed_x[0, position] += 1
        is_changed = (layer(x) - layer(changed_x)).abs().amax((0, 2)) > 1e-6
        assert not is_changed[:first_affected].any()
        assert is_changed[first_affected:].all() if position < 2 else is_changed[position:].all()


def test_the_autoregressive_density_sums_to_one_and_draws_follow_it():
    case = build_tiny("autoregressive")
    model, x = case.solver.model, case.x[:1]
    with torch.no_grad():
        p = y_site(model, x.expand(81, *x.shape[1:]), answers())["fn"].log_prob(answers()).exp()
    assert p.sum().item() == pytest.approx(1, abs=1e-5)
    samples = rollout(model, x, num_samples=4000, depth=1)
    torch.testing.assert_close(frequencies(samples.tokens), p, atol=0.03, rtol=0)
    first_tokens = samples.tokens[:50, 0]
    torch.testing.assert_close(samples.score[:50, 0], p[number_of(first_tokens)].log(), atol=1e-4, rtol=1e-4)


def test_the_log_likelihood_of_an_autoregressive_model_is_exact():
    from pyro_gram.diagnostics.bounds import terms
    from pyro_gram.diagnostics.likelihood import prior_log_likelihood

    case = build_tiny("autoregressive")
    model = case.solver.model
    exact_log_p = terms(model, case.solver.guide, case.x, case.y).elbo
    estimate = prior_log_likelihood(model, case.x, case.y, depth=1, num_samples=2)
    torch.testing.assert_close(estimate, exact_log_p, atol=1e-4, rtol=1e-4)


# ---- diffusion ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("mdlm", {}),
        ("d3pm", {"kind": "absorbing", "diffusion_steps": 4}),
        ("d3pm", {"kind": "uniform", "diffusion_steps": 4}),
    ],
)
def test_a_diffusion_bound_is_below_the_log_probability_of_draws(name, settings):
    case = build_tiny(name, model=settings)
    model, x = case.solver.model, case.x[:1]
    p = frequencies(rollout(model, x, num_samples=3000, depth=1).tokens)
    num_draws = 300
    with torch.no_grad():
        y = answers()[:, None].expand(81, num_draws, 4)
        bound = -model.loss(model.encoder(x).expand(81, num_draws, -1, -1), y).mean(1)
    likely_answers = p.topk(5).indices
    assert (bound[likely_answers] < p[likely_answers].log() + 0.3).all()
    assert bound.exp().sum() < 1.1  # exp(bound) is at most the probability of each answer
    assert bound.exp().sum() > 0.3  # the bound is not vacuous


@pytest.mark.parametrize("kind", ["absorbing", "uniform"])
def test_d3pms_backward_step_is_bayes_rule_over_its_transition_matrices(kind):
    case = build_tiny("d3pm", model={"kind": kind, "diffusion_steps": 6})
    model = case.solver.model
    classes = len(model.stationary)
    alpha_bar = model.alpha_bar
    for t in (1, 2, 4, 6):
        alpha = alpha_bar[t] / alpha_bar[t - 1]
        transition = alpha * torch.eye(classes) + (1 - alpha) * model.stationary  # [y_{t-1}, y_t]: q(y_t | y_{t-1})
        cumulative = alpha_bar[t - 1] * torch.eye(classes) + (1 - alpha_bar[t - 1]) * model.stationary
        for clean_token, corrupted_token in itertools.product(range(3), range(classes)):
            joint = cumulative[clean_token] * transition[:, corrupted_token]
            if joint.sum() < 1e-6:
                continue
            one_hot = torch.nn.functional.one_hot(torch.tensor([clean_token]), classes).float()
            reverse = model._reverse(one_hot, torch.tensor([corrupted_token]), torch.tensor(t))
            torch.testing.assert_close(reverse[0], joint / joint.sum(), atol=1e-5, rtol=1e-4)


def test_mdlms_bound_is_tight_for_a_network_with_constant_logits():
    """With constant logits, a token costs the same cross-entropy at whatever time it is revealed."""
    case = build_tiny("mdlm")
    model = case.solver.model
    logits = torch.randn(3, 3)

    class Fixed(torch.nn.Module):
        def forward(self, e_x, tokens, time):
            return logits.expand(*tokens.shape, 3)

    model.denoiser = Fixed()
    y = torch.tensor([[0, 1, 2]]).expand(20_000, 3)
    with torch.no_grad():
        loss = model.loss(torch.zeros(20_000, 3, 16), y).mean()
    expected = -Categorical(logits=logits).log_prob(torch.tensor([0, 1, 2])).sum()
    assert loss.item() == pytest.approx(expected.item(), rel=0.05)


@pytest.mark.parametrize(("steps", "low", "high"), [(64, 0.9, 1.0), (0, 0.2, 0.6)])
def test_mdlm_reveals_most_tokens_alone_if_there_are_many_more_steps_than_tokens(steps, low, high):
    """The share of tokens that are revealed alone, at a step of their own, lies between ``low`` and ``high``."""
    case = build_tiny("mdlm", model={"sampling_steps": steps})
    model = case.solver.model
    num_masked = []
    model.denoiser.register_forward_pre_hook(
        lambda _, inputs: num_masked.append((inputs[1] == model.mask_token).sum(-1))
    )
    rollout(model, case.x, num_samples=200, depth=1)
    assert len(num_masked) == (steps or 4)
    num_revealed = -torch.stack([*num_masked, torch.zeros_like(num_masked[0])]).diff(dim=0)
    assert (num_revealed.sum(0) == 4).all()
    single_share = (num_revealed == 1).sum() / num_revealed.sum()
    assert low < single_share < high


@pytest.mark.parametrize("model", ["autoregressive", "mdlm"])
def test_tokens_below_the_floor_are_not_drawn(model):
    logits = torch.tensor([0.5, 0.3, 0.2]).log()
    answers = {}
    for floor in (0.0, 0.25, 0.45):
        program = build_tiny(model, model={"floor": floor}).solver.model
        program.predict = lambda e_x, tokens, time: logits.expand(*tokens.shape, 3)
        program.logits = lambda e_x, tokens, **_: logits.expand(*tokens.shape[:-1], tokens.shape[-1] + 1, 3)
        x = build_tiny(model).x
        answers[floor] = set(rollout(program, x, num_samples=50, depth=1).tokens.unique().tolist())
    assert answers == {0.0: {0, 1, 2}, 0.25: {0, 1}, 0.45: {0}}


def test_plate_shape_is_that_of_the_plates_around():
    assert plate_shape() == ()
    with pyro.plate("a", 3, dim=-1), pyro.plate("b", 5, dim=-3):
        assert plate_shape() == (5, 1, 3)


def test_samples_differ_if_answers_are_drawn_and_not_if_they_are_modes():
    for name, should_differ in (("mdlm", True), ("autoregressive", True), ("direct", False), ("vae", True)):
        tokens = rollout(build_tiny(name).solver.model, build_tiny(name).x, num_samples=50, depth=1).tokens
        assert bool((tokens != tokens[:1]).any()) == should_differ, name


# ---- recursions --------------------------------------------------------------------------------------------------


def gradients(model, names):
    return {n: p.grad for n, p in model.named_parameters() if n in names}


def test_hrms_gradient_is_that_of_its_last_two_steps():
    case = build_tiny("hrm", model={"transitions": 2, "low_steps": 3})
    model = case.solver.model
    trace = poutine.trace(model).get_trace(case.x, case.y)
    trace.nodes["y"]["fn"].log_prob(case.y).sum().backward()
    gradient = model.core.f_L[0].channels.down.weight.grad.clone()
    model.zero_grad()
    e_x = model.encoder(case.x)
    with torch.no_grad():
        h, l = model.initial_state(e_x)
        for _ in range(3):
            l = model.core.f_L(l + h + e_x)
        h = model.core.f_H(h + l)
        for _ in range(2):
            l = model.core.f_L(l + h + e_x)
    l = model.core.f_L(l + (h + e_x))
    model.likelihood(model.core.f_H(h + l)).log_prob(case.y).sum().backward()
    torch.testing.assert_close(gradient, model.core.f_L[0].channels.down.weight.grad)


def test_trm_has_one_network_and_gradient_through_its_last_transition():
    case = build_tiny("trm", model={"transitions": 2})
    model = case.solver.model
    assert sum(name.startswith("core.") for name in model.state_dict()) == len(model.core.f.state_dict())
    trace = poutine.trace(model).get_trace(case.x, case.y)
    assert [trace.nodes[f"u_{t}"]["value"].requires_grad for t in range(2)] == [False, True]


def test_the_looped_transformer_has_gradient_through_every_loop_and_one_network():
    case = build_tiny("looped", model={"transitions": 3, "low_steps": 1, "truncated": False})
    trace = poutine.trace(case.solver.model).get_trace(case.x, case.y)
    assert all(trace.nodes[f"u_{t}"]["value"].requires_grad for t in range(3))
    e_x = case.solver.model.encoder(case.x)
    h = case.solver.model.h0.expand_as(e_x)
    for _ in range(3):
        h = case.solver.model.core.f(h + e_x)
    torch.testing.assert_close(trace.nodes["h"]["value"], h)


@pytest.mark.parametrize(("name", "outputs"), [("trm", 1), ("hrm", 2)])
def test_halting_is_an_observed_site_that_no_bound_counts(name, outputs):
    from pyro_gram.diagnostics.bounds import terms

    case = build_tiny(name)
    model = case.solver.model
    trace = poutine.trace(model).get_trace(case.x, case.y)
    logits = model.halting(trace.nodes["h"]["value"][:, 0])
    assert logits.shape == (5, outputs)
    is_right = (trace.nodes["y"]["fn"].base_dist.logits.argmax(-1) == case.y).all(-1)
    assert (trace.nodes["halt"]["value"] == is_right.float()).all()
    threshold = logits[:, 1] if outputs > 1 else 0
    assert (trace.nodes["halted"]["value"] == (logits[:, 0] > threshold)).all()
    assert trace.nodes["halt"]["scale"] == 0.5 * 4
    elbo_terms = terms(model, case.solver.guide, case.x, case.y)
    torch.testing.assert_close(elbo_terms.elbo, trace.nodes["y"]["fn"].log_prob(case.y))
    assert "halt" not in poutine.trace(model).get_trace(case.x).nodes


def test_hrm_learns_the_value_of_continuing_from_its_next_step():
    case = build_tiny("hrm")
    model = case.solver.model
    trace = poutine.trace(model).get_trace(case.x, case.y)
    with torch.no_grad():
        next_h = poutine.trace(model).get_trace(case.x, None, _state(trace)).nodes["h"]["value"]
        target = model.halting(next_h[:, 0]).amax(-1).sigmoid()
        q = model.halting(trace.nodes["h"]["value"][:, 0])[:, 1].sigmoid()
    expected = target * q.log() + (1 - target) * (1 - q).log()
    torch.testing.assert_close(trace.nodes["go_on"]["fn"].log_factor, expected, atol=1e-5, rtol=1e-5)


def _state(trace):
    from pyro_gram.networks.core import LatentState

    return LatentState(trace.nodes["h"]["value"], trace.nodes["l"]["value"])


def test_both_stochastic_trms_have_different_samples():
    plain_case, sampled_case, random_case = (
        build_tiny("trm"),
        build_tiny("trm", model={"decoding": "sampled"}),
        build_tiny("trm", model={"initial_state": "random"}),
    )
    for case in (sampled_case, random_case):
        case.solver.model.load_state_dict(plain_case.solver.model.state_dict())
    samples = {n: rollout(c.solver.model, plain_case.x, num_samples=200, depth=2) for n, c in
              (("plain", plain_case), ("sampled", sampled_case), ("random", random_case))}  # fmt: skip
    assert (samples["plain"].tokens == samples["plain"].tokens[:1]).all()
    assert (samples["sampled"].tokens != samples["sampled"].tokens[:1]).any()
    starts = poutine.trace(random_case.solver.model).get_trace(plain_case.x).nodes
    assert starts["z0_h"]["value"].shape == (5, 4, 16)
    assert not torch.equal(starts["z0_h"]["value"][0], starts["z0_h"]["value"][1])
    # Without noise, all trajectories end in the same state. Drawn answers follow the likelihood of that state.
    p = poutine.trace(plain_case.solver.model).get_trace(plain_case.x, None, steps=2).nodes["y"]["fn"].base_dist.probs
    share = torch.nn.functional.one_hot(samples["sampled"].tokens, 3).double().mean(0)
    torch.testing.assert_close(share, p.double(), atol=0.12, rtol=0)


def test_a_vae_has_one_latent_with_a_standard_normal_prior():
    from pyro_gram.diagnostics.bounds import terms

    case = build_tiny("vae")
    torch.manual_seed(0)
    elbo_terms = terms(case.solver.model, case.solver.guide, case.x, case.y, steps=5)
    assert elbo_terms.kl.shape == (1, 5)
    guide, model = case.solver.guide, case.solver.model
    with torch.no_grad():
        q = guide.posterior(model.f(model.encoder(case.x)), guide.encode(case.x, case.y), None)
        standard_normal = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(5, 4, 16), 1.0), 2)
    torch.testing.assert_close(elbo_terms.kl[0], kl_divergence(q, standard_normal))


def test_direct_prediction_has_an_exact_density():
    case = build_tiny("direct")
    model, x = case.solver.model, case.x[:1]
    with torch.no_grad():
        logits = model.decoder(model.f(model.encoder(x)))
    site = y_site(model, x, torch.tensor([[0, 1, 2, 0]]))
    expected = logits.log_softmax(-1)[0, range(4), [0, 1, 2, 0]].sum()
    assert math.isclose(site["fn"].log_prob(site["value"]).item(), expected.item(), rel_tol=1e-5)
