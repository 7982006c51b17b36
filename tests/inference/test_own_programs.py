"""For a user's own models, importance weights and densities of rollouts are exact, or the call raises an error."""

from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro_gram.guides.amortized import AmortizedGuide
from pyro_gram.models.gram import GRAM
from torch import nn

from pyro_gram.diagnostics.bounds import bounds
from pyro_gram.diagnostics.likelihood import rollout_log_prob
from pyro_gram.errors import ConfigError, UserError
from pyro_gram.inference.guide import PriorGuide
from pyro_gram.inference.importance import guide_draws, log_evidence
from pyro_gram.runs.preflight import check_estimates
from pyro_gram.sampling.tempering import NoGuidance
from tests.conftest import build_case, small_config
from tests.inference.test_own_latents import B, Shared, SharedGuide, pair

PLAIN = {"model": {"truncated": False}}


def in_plate(name):
    """Return a model with a latent that all inputs share. ``name`` names the plate of inputs (None for no plate)."""

    class Program(nn.Module):
        def forward(self, x, y=None, state=None, **settings):
            pyro.sample("all", dist.Normal(0.0, 1.0))
            if name is None:
                return self.inside(x, y)
            with pyro.plate(name, len(x), dim=-1):
                return self.inside(x, y)

        def inside(self, x, y):
            u = pyro.deterministic("u_0", x[..., None, None] + torch.zeros(2, 2), event_dim=2)
            h = u + pyro.sample("eps_0", dist.Normal(u, 1.0).to_event(2))
            for site in ("h", "l"):
                pyro.deterministic(site, h, event_dim=2)
            return pyro.sample("y", dist.Normal(h[..., 0], 1.0).to_event(1), obs=y)

    return Program()


@pytest.mark.parametrize("name", ["data", "batch", None])
def test_a_shared_latent_is_refused_for_any_name_of_the_plate_of_inputs(name):
    model = in_plate(name)
    guide = PriorGuide(model)
    x, y = torch.tensor([0.5, -1.0, 2.0]), torch.ones(3, 2)
    with pytest.raises(ConfigError, match="all inputs share the site 'all'"):
        guide_draws(model, guide, x, y, steps=1, num_samples=2)
    model_without_latent = poutine.block(model, hide=["all"])
    draws = guide_draws(model_without_latent, PriorGuide(model_without_latent), x, y, steps=1, num_samples=4, seed=3)
    torch.testing.assert_close(draws.log_weight, draws.log_likelihood.double())
    assert draws.log_weight.shape == (4, 3)


class Penalised(GRAM):
    """A model with a factor for each trajectory."""

    def answer(self, state, e_x, y, infer=None):
        pyro.factor("penalty", torch.full(e_x.shape[:-2], -30.0))
        return super().answer(state, e_x, y, infer)


def test_without_input_each_datum_has_the_full_factor():
    case, draws = build_case(task_name="sudoku_uncond"), []
    for model_class in (GRAM, Penalised):
        model = model_class(case.solver.config.model, case.solver.task.spec, case.solver.model.prior)
        model.load_state_dict(case.solver.model.state_dict())
        draws.append(rollout_log_prob(model, None, case.y, num_samples=3, depth=1))
    torch.testing.assert_close(draws[0] - 30, draws[1])


class SharedFactor(GRAM):
    """A model with one factor for all inputs."""

    def forward(self, x, y=None, state=None, **settings):
        pyro.factor("weight", torch.tensor(-30.0))
        return super().forward(x, y, state, **settings)


def test_an_observation_that_several_inputs_share_is_refused():
    model, _, x, y = pair(SharedFactor, AmortizedGuide)
    for max_trajectories in (3, 100):
        with pytest.raises(ConfigError, match="all inputs share the site 'weight'"):
            rollout_log_prob(model, x, y, num_samples=3, depth=1, max_trajectories=max_trajectories)
    log_p = rollout_log_prob(model, x[:1], y[:1], num_samples=3, depth=1)
    model.forward = lambda *args, **settings: GRAM.forward(model, *args, **settings)
    torch.testing.assert_close(log_p, rollout_log_prob(model, x[:1], y[:1], num_samples=3, depth=1) - 30)


class Counting(GRAM):
    """A model with a site ``total``. If y is passed, the site observes the sum of y."""

    def answer(self, state, e_x, y, infer=None):
        total = None if y is None else y.sum(-1).float()
        pyro.sample("total", dist.Normal(state.h.mean((-1, -2)), 1.0), obs=total)
        return super().answer(state, e_x, y, infer)


def test_a_site_that_is_observed_only_with_y_is_refused():
    model, _, x, y = pair(Counting, AmortizedGuide)
    with pytest.raises(ConfigError, match="observes 'total' only when it is given y"):
        rollout_log_prob(model, x, y, num_samples=3, depth=1)


class Valued(GRAM):
    """A model with an observed site that is named like the value head's site."""

    def answer(self, state, e_x, y, infer=None):
        pyro.sample("value", dist.Normal(torch.zeros(e_x.shape[:-2]), 1.0), obs=torch.ones(e_x.shape[:-2]))
        return super().answer(state, e_x, y, infer)


def test_an_observed_site_that_is_named_like_a_head_counts():
    model, _, x, y = pair(Valued, AmortizedGuide)
    draws = rollout_log_prob(model, x, y, num_samples=3, depth=1)
    model.answer = lambda *args, **settings: GRAM.answer(model, *args, **settings)
    torch.testing.assert_close(draws, rollout_log_prob(model, x, y, num_samples=3, depth=1) - 1.4189385)


@pytest.mark.parametrize("truncated", [True, False])
def test_conditioned_guidance_counts_equally_in_both_estimates(truncated):
    model, _, x, y = pair(GRAM, AmortizedGuide, model={"truncated": truncated})
    conditioned_model = NoGuidance()(model)
    guide = AmortizedGuide(small_config().guide, model.spec, conditioned_model, 16)
    draws = guide_draws(conditioned_model, guide, x, y, steps=2, num_samples=2)
    assert draws.guidance.shape == draws.kl.shape == (0, 2, B)
    prior_log_p = rollout_log_prob(conditioned_model, x, y, num_samples=2, depth=2)
    torch.testing.assert_close(log_evidence(draws.log_weight).float(), log_evidence(prior_log_p))
    torch.testing.assert_close(prior_log_p[0], prior_log_p[1])


def test_guidance_scales_are_those_of_the_sampled_transitions():
    model, _, x, y = pair(GRAM, AmortizedGuide, model={"transitions": 3})
    conditioned_model = poutine.condition(model, {"eps_1": torch.full((1, 4, 16), 7.0)})
    draws = guide_draws(
        conditioned_model,
        AmortizedGuide(small_config().guide, model.spec, conditioned_model, 16),
        x,
        y,
        steps=1,
        num_samples=2,
    )
    assert draws.guidance.shape == draws.kl.shape == (2, 2, B)
    assert (draws.guidance < 6).all()
    free_guide = AmortizedGuide(small_config().guide, model.spec, model, 16)
    free_draws = guide_draws(model, free_guide, x, y, steps=1, num_samples=2)
    torch.manual_seed(0)
    with torch.no_grad(), pyro.plate("trajectories", 2, dim=-2):
        free_guide(x, y, truncated=False)
    expected = [free_guide.trace.nodes[f"eps_{t}"]["value"].square().mean((-1, -2)).sqrt() for t in range(3)]
    torch.testing.assert_close(free_draws.guidance, torch.stack(expected))


class Summed(GRAM):
    """A model that observes the sum of its answer."""

    def answer(self, state, e_x, y, infer=None):
        y = super().answer(state, e_x, y, infer)
        pyro.sample("sum", dist.Normal(y.sum(-1).float(), 1.0), obs=torch.full(e_x.shape[:-2], 2.0))
        return y


class Checked(GRAM):
    """A model with a factor that depends on y."""

    def answer(self, state, e_x, y, infer=None):
        pyro.factor("check", torch.zeros(e_x.shape[:-2]) if y is None else -y.sum(-1).float())
        return super().answer(state, e_x, y, infer)


@pytest.mark.parametrize("model_class", [Summed, Checked])
def test_an_observation_that_depends_on_y_is_refused_in_rollouts(model_class):
    model, guide, x, y = pair(model_class, AmortizedGuide)
    with pytest.raises(ConfigError, match="has another density when it is given y"):
        rollout_log_prob(model, x, y, num_samples=2, depth=1)
    guide_draws(model, guide, x, y, steps=1, num_samples=2)


def test_a_rollout_passes_a_state_to_a_model_that_requires_one():
    model, _, x, y = pair(GRAM, AmortizedGuide)

    def program(x, y, state, *, steps):
        return model(x, y, state, steps=steps)

    draws, expected = (rollout_log_prob(m, x, y, num_samples=2, depth=1) for m in (program, model))
    assert torch.equal(draws, expected)


class Latent(GRAM):
    """A model with a latent whose name can be set."""

    name = "v"

    def answer(self, state, e_x, y, infer=None):
        v = pyro.sample(self.name, dist.Normal(torch.zeros(e_x.shape[:-2]), 3.0))
        return super().answer(type(state)(state.h + v[..., None, None], state.l), e_x, y, infer)


@pytest.mark.parametrize("name", ["value", "halt"])
def test_a_latent_that_is_named_like_a_head_is_sampled(name):
    model, _, x, y = pair(Latent, AmortizedGuide)
    expected = rollout_log_prob(model, x, y, num_samples=3, depth=1)
    model.name = name
    torch.testing.assert_close(rollout_log_prob(model, x, y, num_samples=3, depth=1), expected)
    assert expected.std(0).min() > 0


class Subsampled(nn.Module):
    """A model that treats its inputs as a subsample of fifty inputs."""

    def forward(self, x, y=None, state=None, **settings):
        subsample = torch.arange(len(x))
        with pyro.plate("data", 50, subsample=subsample, dim=-1):
            u = pyro.deterministic("u_0", x[..., None, None] + torch.zeros(2, 2), event_dim=2)
            h = u + pyro.sample("eps_0", dist.Normal(u, 1.0).to_event(2))
            for site in ("h", "l"):
                pyro.deterministic(site, h, event_dim=2)
            pyro.factor("f", torch.full(x.shape, -2.0))
            return pyro.sample("y", dist.Normal(h[..., 0], 1.0).to_event(1), obs=y)


def test_each_input_of_a_subsample_counts_once():
    model = Subsampled()
    x, y = torch.tensor([0.5, -1.0, 2.0]), torch.ones(3, 2)
    guide = PriorGuide(model)
    exact_log_p = dist.Normal(2 * x[:, None], 2**0.5).log_prob(y).sum(-1) - 2
    for draws in (
        log_evidence(guide_draws(model, guide, x, y, steps=1, num_samples=6000, max_traced=20_000).log_weight).float(),
        log_evidence(rollout_log_prob(model, x, y, num_samples=6000, depth=1, max_trajectories=20_000)),
    ):
        torch.testing.assert_close(draws, exact_log_p, atol=0.2, rtol=0)
    torch.manual_seed(2)
    one_sample_bounds = bounds(model, guide, x, y, steps=1)
    torch.testing.assert_close(one_sample_bounds.other_terms, torch.full((3,), 2.0))
    assert (one_sample_bounds.full > -60).all()


def test_a_partly_observed_answer_is_refused():
    class Partly(GRAM):
        def answer(self, state, e_x, y, infer=None):
            obs_mask = torch.tensor([True, True, False, True, True])
            return pyro.sample("y", self.likelihood(state.h), obs=y, obs_mask=obs_mask if y is not None else None)

    model, guide, x, y = pair(Partly, AmortizedGuide)
    with pytest.raises(ConfigError, match="observed only in part"):
        guide_draws(model, guide, x, y, steps=1, num_samples=2)


def test_counts_below_one_are_refused(case):
    for call in (guide_draws, bounds):
        for settings, message in (
            ({"steps": 0}, "steps must be at least 1, not 0"),
            ({"max_traced": 0}, "max_traced must be at least 1"),
            ({"seed": -5}, "seed"),
        ):
            required = {"steps": 1} | ({"num_samples": 1} if call is guide_draws else {})
            with pytest.raises(UserError, match=message):
                call(case.solver.model, case.solver.guide, case.x, case.y, **{**required, **settings})
    with pytest.raises(UserError, match="num_samples must be at least 1"):
        guide_draws(case.solver.model, case.solver.guide, case.x, case.y, steps=1, num_samples=0)


def test_x_and_y_that_are_not_pairs_are_refused(case):
    model, guide = case.solver.model, case.solver.guide
    calls = (
        lambda x, y: guide_draws(model, guide, x, y, steps=1, num_samples=1),
        lambda x, y: bounds(model, guide, x, y, steps=1),
        lambda x, y: rollout_log_prob(model, x, y, depth=1, num_samples=1),
    )
    for call in calls:
        for y, message in (
            (case.y[:3], "5 inputs and y 3 answers"),
            (case.y[0], r"not of shape \[4\]"),
            (None, "a NoneType"),
        ):
            with pytest.raises(UserError, match=message):
                call(case.x, y)


@pytest.mark.parametrize("model_class", [Shared, Summed])
def test_a_model_that_cannot_be_evaluated_is_refused_before_training(model_class):
    model, guide, x, y = pair(model_class, SharedGuide if model_class is Shared else AmortizedGuide)
    solver = replace(build_case().solver, model=model, guide=guide)
    with pytest.raises(ConfigError, match="all inputs share the site 'all'|has another density when it is given y"):
        check_estimates(solver, x, y)
    plain_case = build_case()
    random_state = torch.get_rng_state()
    check_estimates(plain_case.solver, plain_case.x, plain_case.y)
    assert torch.equal(torch.get_rng_state(), random_state)
