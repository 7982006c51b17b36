"""Where users go past this library's own programs, bounds and weights are Pyro's, or the call raises."""

import inspect
from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.contrib.autoname import scope
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoDelta, AutoNormal, AutoNormalMessenger
from pyro.infer.reparam import LocScaleReparam
from pyro.poutine.mask_messenger import MaskMessenger
from pyro_gram.guides.amortized import AmortizedGuide
from pyro_gram.models.gram import GRAM
from torch import nn
from torch.distributions import register_kl

from pyro_gram.diagnostics.bounds import bounds, terms
from pyro_gram.diagnostics.likelihood import rollout_log_prob
from pyro_gram.errors import ConfigError, UserError
from pyro_gram.inference.elbo import BalancedELBO, MeanFieldELBO, TraceELBO, scale_gradient
from pyro_gram.inference.guide import PriorGuide
from pyro_gram.inference.importance import guide_draws, log_evidence
from pyro_gram.inference.sites import data_plates
from pyro_gram.inference.terms import is_delta
from pyro_gram.runs.preflight import check_estimates
from pyro_gram.sampling.rollout import rollout
from pyro_gram.sampling.tempering import AtMean, NoGuidance, Temper, TemperConfig
from pyro_gram.training.beta_schedule import BetaConfig
from pyro_gram.training.config import TrainConfig
from pyro_gram.training.optimizer import OptimConfig, TorchOptim
from pyro_gram.training.trainer import Trainer
from tests.conftest import build_case, small_config
from tests.inference.test_own_latents import B, Biased, BiasedGuide, Shared, SharedGuide, pair

PLAIN = {"model": {"truncated": False}}


# ---- guides and masks that belong to one batch -----------------------------------------------------------------------


@pytest.mark.parametrize("make", [AutoNormal, AutoNormalMessenger, AutoDelta])
def test_weights_of_autoguides_are_pyros_however_few_are_traced_at_once(make):
    """Their parameters are of the whole batch, which therefore is not cut up."""
    model, _, x, y = pair(GRAM, AmortizedGuide, **PLAIN)
    guide = make(model)
    guide(x, y, truncated=False)
    found = guide_draws(model, guide, x, y, steps=1, num_samples=3, seed=4, max_traced=15).log_weight
    torch.manual_seed(4)
    pyros = Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1)
    with torch.no_grad():
        loss = pyros.loss(model, guide, x, y, truncated=False)
    assert found.sum().item() / 3 == pytest.approx(-loss, rel=1e-5)
    pieces = guide_draws(model, guide, x, y, steps=1, num_samples=3, seed=4, max_traced=1)
    assert pieces.log_weight.shape == (3, B)
    assert pieces.h.shape == (3, B, 4, 16)
    assert bounds(model, guide, x, y, steps=1, max_traced=1).full.shape == (B,)


class Masked(GRAM):
    """With a mask of one batch around y."""

    kept = torch.tensor([True, False, True, True, False])

    def answer(self, state, e_x, y, infer=None):
        with poutine.mask(mask=self.kept):
            return super().answer(state, e_x, y, infer)


def test_a_mask_around_y_counts_and_one_of_another_batch_is_refused():
    model, guide, x, y = pair(Masked, AmortizedGuide)
    found = rollout_log_prob(model, x, y, num_samples=3, depth=1)
    whole = guide_draws(model, guide, x, y, steps=1, num_samples=3)
    for log_p in (found, whole.log_likelihood):
        assert (log_p[:, ~model.kept] == 0).all()
        assert (log_p[:, model.kept] != 0).all()
    with pytest.raises(ConfigError, match=r"1 inputs were given, and y has \[1, 5\]"):
        guide_draws(model, guide, x, y, steps=1, num_samples=3, max_traced=1)
    with pytest.raises(ConfigError, match=r"1 inputs were given, and y has \[3, 5\]"):
        rollout_log_prob(model, x, y, num_samples=3, depth=1, max_trajectories=3)
    with pytest.raises(ConfigError, match="inputs were given"):
        bounds(model, guide, x, y, steps=1, max_traced=1)


# ---- distributions of the user's own ---------------------------------------------------------------------------------


class Scaled(nn.Module):
    """A prior made of u times a parameter."""

    def __init__(self, make):
        super().__init__()
        self.make, self.w = make, nn.Parameter(torch.tensor(1.1))

    def forward(self, u):
        return self.make(u * self.w)


class ScaledGuide(AmortizedGuide):
    def posterior(self, u, code, prior):
        return self.make(u * self.w)


def of_kind(make, **changes):
    model, guide, x, y = pair(GRAM, ScaledGuide, **{"model": {"transitions": 1}, **changes})
    model.prior, guide.make, guide.w = Scaled(make), make, nn.Parameter(torch.tensor(0.8))
    return model, guide, x, y


def with_covariance(u):
    normal = dist.MultivariateNormal(u * 0.1, scale_tril=0.3 * torch.eye(16))
    assert normal.covariance_matrix.shape[-1] == 16  # from then on it holds that too
    return normal.to_event(1)


CLOSED = {
    "one-hot": lambda u: dist.OneHotCategoricalStraightThrough(logits=u).to_event(1),
    "beta": lambda u: dist.Beta(u.exp() + 1, torch.ones_like(u)).to_event(2),
    "log-normal": lambda u: dist.LogNormal(u * 0.1, 0.3 * torch.ones_like(u)).to_event(2),
    "masked": lambda u: dist.Normal(u * 0.1, 1.0).to_event(2).mask(torch.ones(u.shape[:-2]).bool()),
    "multivariate": with_covariance,
}


def loss_and_gradients(elbo, model, guide, x, y):
    model.zero_grad()
    guide.zero_grad()
    torch.manual_seed(1)
    loss = float(elbo.loss_and_grads(model, guide, x, y))
    return loss, model.prior.w.grad.item(), guide.w.grad.item()


@pytest.mark.parametrize("kind", CLOSED)
def test_every_closed_kl_is_used_and_balanced(kind):
    model, guide, x, y = of_kind(CLOSED[kind])
    pyros = loss_and_gradients(TraceMeanField_ELBO(), model, guide, x, y)
    full = BalancedELBO(1.0)
    loss, prior, reconstruction = loss_and_gradients(full, model, guide, x, y)
    assert full.estimated_kl is None
    assert (loss, prior) == pytest.approx(pyros[:2], rel=1e-5)
    loss, prior, posterior = loss_and_gradients(BalancedELBO(0.75), model, guide, x, y)
    assert loss == pytest.approx(pyros[0], rel=1e-5)
    assert prior == pytest.approx(0.75 * pyros[1], rel=1e-4)
    assert posterior == pytest.approx(reconstruction + 0.25 * (pyros[2] - reconstruction), rel=1e-3)


def test_a_straight_through_draw_keeps_its_density():
    """Its log density is that of the soft draw behind it, which a tensor carries as an attribute."""
    model, guide, x, y = of_kind(
        lambda u: dist.RelaxedBernoulliStraightThrough(torch.tensor(0.5), probs=u.sigmoid()).to_event(2)
    )
    expected = loss_and_gradients(MeanFieldELBO(), model, guide, x, y)
    full = BalancedELBO(1.0)
    assert loss_and_gradients(full, model, guide, x, y)[:2] == pytest.approx(expected[:2], rel=1e-4)
    assert full.estimated_kl == ("RelaxedBernoulliStraightThrough",) * 2
    balanced = loss_and_gradients(BalancedELBO(0.5), model, guide, x, y)
    assert balanced[:2] == pytest.approx((expected[0], expected[1] / 2), rel=1e-4)
    full, quarter = (loss_and_gradients(BalancedELBO(b), model, guide, x, y)[2] for b in (1.0, 0.25))
    assert quarter == pytest.approx(full + 0.75 * (expected[2] - full), rel=1e-3)


class Rough(dist.Normal):
    has_rsample = False


@pytest.mark.parametrize("validate", [True, False])
@pytest.mark.parametrize("elbo", [MeanFieldELBO, BalancedELBO])
def test_draws_without_gradient_are_refused_where_the_guide_follows_the_prior_too(elbo, validate):
    model, _, x, y = of_kind(lambda u: Rough(u, 1.0).to_event(2))
    guide = PriorGuide(model)
    with pyro.validation_enabled(validate), pytest.raises(NotImplementedError, match="'eps_0' from a Rough"):
        elbo().loss_and_grads(model, guide, x, y)
    TraceELBO().loss_and_grads(model, guide, x, y)
    with torch.no_grad():
        elbo().loss(model, guide, x, y)


# ---- scales and masks ------------------------------------------------------------------------------------------------


class Stretched(GRAM):
    """With a positive latent of the user's own, under a scale or a mask."""

    handler = poutine.scale(scale=0.1)

    def answer(self, state, e_x, y, infer=None):
        with self.handler:
            s = pyro.sample("s", dist.LogNormal(torch.zeros(e_x.shape[:-2]), 1.0))
        return super().answer(type(state)(state.h * s[..., None, None], state.l), e_x, y, infer)


@pytest.mark.parametrize("handler", [poutine.scale(scale=0.1), poutine.mask(mask=False)], ids=["scale", "mask"])
def test_an_autoguides_density_is_its_own_whatever_is_around_the_models_site(handler):
    model, _, x, y = pair(Stretched, AmortizedGuide, model={"truncated": False, "transitions": 1})
    model.handler = handler
    guide = AutoNormal(model)
    guide(x, y)
    losses = []
    for elbo in (Trace_ELBO(), MeanFieldELBO(), BalancedELBO()):
        torch.manual_seed(1)
        losses.append(float(elbo.loss(model, guide, x, y)))
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)
    if isinstance(handler, MaskMessenger):  # terms know no scale
        assert elbo.terms.elbo.sum().item() == pytest.approx(-losses[0], rel=1e-5)


def test_a_two_pass_guide_without_the_models_scale_is_charged_as_pyro_does():
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
    """Observes two of six parts of each input, one after the other."""

    def answer(self, state, e_x, y, infer=None):
        for i in pyro.plate("parts", 6, subsample_size=2):
            pyro.sample(f"part_{i}", dist.Normal(torch.zeros(e_x.shape[:-2]), 1.0), obs=torch.ones(e_x.shape[:-2]))
        return super().answer(state, e_x, y, infer)


def test_sequential_subsampled_plates_keep_their_weight():
    model, guide, x, y = pair(Sequential, AmortizedGuide, **PLAIN)
    elbo = BalancedELBO()
    loss = elbo.loss(model, guide, x, y)
    assert elbo.terms.elbo.sum().item() == pytest.approx(-loss, rel=1e-5)
    six = 6 * (0.5 + torch.tensor(2 * torch.pi).log().item() / 2)
    torch.testing.assert_close(elbo.terms.others, torch.full((B,), six))


# ---- plates ----------------------------------------------------------------------------------------------------------


def in_plate(name):
    """A program of the user's own whose plate of inputs is called so (None: it has none), with a latent they share."""

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
def test_inputs_that_share_a_latent_are_refused_whatever_their_plate_is_called(name):
    model = in_plate(name)
    guide = PriorGuide(model)
    x, y = torch.tensor([0.5, -1.0, 2.0]), torch.ones(3, 2)
    with pytest.raises(ConfigError, match="all inputs share the site 'all'"):
        guide_draws(model, guide, x, y, steps=1, num_samples=2)
    apart = poutine.block(model, hide=["all"])
    found = guide_draws(apart, PriorGuide(apart), x, y, steps=1, num_samples=4, seed=3)
    torch.testing.assert_close(found.log_weight, found.log_likelihood.double())
    assert found.log_weight.shape == (4, 3)


# ---- prior Monte Carlo -----------------------------------------------------------------------------------------------


class Penalised(GRAM):
    """With a factor of each trajectory."""

    def answer(self, state, e_x, y, infer=None):
        pyro.factor("penalty", torch.full(e_x.shape[:-2], -30.0))
        return super().answer(state, e_x, y, infer)


def test_of_p_of_x_each_datum_pays_a_factor_whole():
    case, found = build_case(task_name="sudoku_uncond"), []
    for model_class in (GRAM, Penalised):
        model = model_class(case.solver.config.model, case.solver.task.spec, case.solver.model.prior)
        model.load_state_dict(case.solver.model.state_dict())
        found.append(rollout_log_prob(model, None, case.y, num_samples=3, depth=1))
    torch.testing.assert_close(found[0] - 30, found[1])


class Weighed(GRAM):
    """With one factor for all inputs together."""

    def forward(self, x, y=None, state=None, **settings):
        pyro.factor("weight", torch.tensor(-30.0))
        return super().forward(x, y, state, **settings)


def test_an_observation_that_inputs_share_is_refused_and_that_of_one_input_counts():
    model, _, x, y = pair(Weighed, AmortizedGuide)
    for most in (3, 100):
        with pytest.raises(ConfigError, match="all inputs share the site 'weight'"):
            rollout_log_prob(model, x, y, num_samples=3, depth=1, max_trajectories=most)
    one = rollout_log_prob(model, x[:1], y[:1], num_samples=3, depth=1)
    model.forward = lambda *args, **settings: GRAM.forward(model, *args, **settings)
    torch.testing.assert_close(one, rollout_log_prob(model, x[:1], y[:1], num_samples=3, depth=1) - 30)


class Counting(GRAM):
    """Observes something of y, where it is given y."""

    def answer(self, state, e_x, y, infer=None):
        total = None if y is None else y.sum(-1).float()
        pyro.sample("total", dist.Normal(state.h.mean((-1, -2)), 1.0), obs=total)
        return super().answer(state, e_x, y, infer)


def test_what_is_observed_only_with_y_is_refused():
    model, _, x, y = pair(Counting, AmortizedGuide)
    with pytest.raises(ConfigError, match="observes 'total' only where it is given y"):
        rollout_log_prob(model, x, y, num_samples=3, depth=1)


class Valued(GRAM):
    """With an observed site that has the name of a head's."""

    def answer(self, state, e_x, y, infer=None):
        pyro.sample("value", dist.Normal(torch.zeros(e_x.shape[:-2]), 1.0), obs=torch.ones(e_x.shape[:-2]))
        return super().answer(state, e_x, y, infer)


def test_an_observed_site_called_as_a_heads_counts():
    model, _, x, y = pair(Valued, AmortizedGuide)
    found = rollout_log_prob(model, x, y, num_samples=3, depth=1)
    model.answer = lambda *args, **settings: GRAM.answer(model, *args, **settings)
    torch.testing.assert_close(found, rollout_log_prob(model, x, y, num_samples=3, depth=1) - 1.4189385)


@pytest.mark.parametrize("truncated", [True, False])
def test_conditioned_guidance_counts_in_both_estimates_alike(truncated):
    model, _, x, y = pair(GRAM, AmortizedGuide, model={"truncated": truncated})
    fixed = NoGuidance()(model)
    guide = AmortizedGuide(small_config().guide, model.spec, fixed, 16)
    found = guide_draws(fixed, guide, x, y, steps=2, num_samples=2)
    assert found.guidance.shape == found.kl.shape == (0, 2, B)
    by_prior = rollout_log_prob(fixed, x, y, num_samples=2, depth=2)
    torch.testing.assert_close(log_evidence(found.log_weight).float(), log_evidence(by_prior))
    torch.testing.assert_close(by_prior[0], by_prior[1])


def test_guidance_is_noted_of_the_transitions_that_are_drawn():
    model, _, x, y = pair(GRAM, AmortizedGuide, model={"transitions": 3})
    fixed = poutine.condition(model, {"eps_1": torch.full((1, 4, 16), 7.0)})
    found = guide_draws(
        fixed, AmortizedGuide(small_config().guide, model.spec, fixed, 16), x, y, steps=1, num_samples=2
    )
    assert found.guidance.shape == found.kl.shape == (2, 2, B)
    assert (found.guidance < 6).all()
    free = AmortizedGuide(small_config().guide, model.spec, model, 16)
    all_three = guide_draws(model, free, x, y, steps=1, num_samples=2)
    torch.manual_seed(0)
    with torch.no_grad(), pyro.plate("trajectories", 2, dim=-2):
        free(x, y, truncated=False)
    by_hand = [free.trace.nodes[f"eps_{t}"]["value"].square().mean((-1, -2)).sqrt() for t in range(3)]
    torch.testing.assert_close(all_three.guidance, torch.stack(by_hand))


# ---- optimizers ------------------------------------------------------------------------------------------------------


def test_pyros_optimizers_know_parameters_by_name(tmp_path):
    model, guide, x, y = pair()

    def options(name):
        return {"lr": 0.5 if name == "guide.shift" else 0.0}

    before = model.h0, guide.shift.item(), model.decoder.head.bias.clone()
    optimizer = pyro.optim.Adam(options)
    SVI(model, guide, optimizer, Trace_ELBO()).step(x, y)
    assert abs(guide.shift.item() - before[1]) == pytest.approx(0.5, rel=1e-3)
    assert torch.equal(model.decoder.head.bias, before[2])
    state = optimizer.get_state()
    named = {f"model.{n}" for n, _ in model.named_parameters()} | {f"guide.{n}" for n, _ in guide.named_parameters()}
    assert set(state) == named
    again = pyro.optim.Adam(options)
    again.set_state(state)
    SVI(model, guide, again, Trace_ELBO()).step(x, y)
    steps = {name: s["state"][0]["step"].item() for name, s in again.get_state().items() if s["state"]}
    assert steps["guide.shift"] == 2
    assert not dict(pyro.get_param_store().items())  # no parameter of ours lies there


def test_our_own_optimizer_leaves_no_parameter_in_the_store():
    model, guide, x, y = pair()
    trainer = Trainer(
        model, guide, lambda _: (x, y), TrainConfig(batches=1, supervision_steps=1), OptimConfig(warmup=1), BetaConfig()
    )
    list(trainer.run())
    assert pyro.get_param_store().param_name(guide.shift) is None


# ---- handlers --------------------------------------------------------------------------------------------------------


class Observing(BiasedGuide):
    def get_posterior(self, name, prior):
        if name == "c":
            pyro.factor("more", torch.full(prior.batch_shape, -7.0))
        return super().get_posterior(name, prior)


class ObservingFirst(BiasedGuide):
    def encode(self, x, y):
        pyro.factor("more", torch.tensor(-7.0))
        return super().encode(x, y)


@pytest.mark.parametrize("guide_class", [Observing, ObservingFirst])
def test_observations_inside_a_guide_are_refused(guide_class):
    model, guide, x, y = pair(Biased, guide_class)
    with pytest.raises(NotImplementedError, match="the guide observes 'more'"):
        Trace_ELBO().loss(model, guide, x, y)


class Scoped(Biased):
    def answer(self, state, e_x, y, infer=None):
        with scope(prefix="mine"):
            pyro.sample("c", dist.Normal(torch.zeros(e_x.shape[:-2]), 1.0))
        return GRAM.answer(self, state, e_x, y, infer)


class ScopedGuide(BiasedGuide):
    def get_posterior(self, name, prior):
        return super().get_posterior(name.removeprefix("mine/"), prior)


def test_a_scope_that_hides_the_guides_answer_is_refused():
    model, guide, x, y = pair(Scoped, BiasedGuide)
    with pytest.raises(ValueError, match=r"pyro.contrib.autoname has made the site 'mine/c'"):
        Trace_ELBO().loss(model, guide, x, y)
    model, guide, x, y = pair(Scoped, ScopedGuide, **PLAIN)
    assert (terms(model, guide, x, y).others > 0.1).all()


def test_a_temper_is_no_decorator(case):
    with pytest.raises(TypeError, match="one batch of trajectories"):
        Predictive(Temper(TemperConfig(2.0, 1))(case.solver.model), num_samples=2)


def test_the_mean_around_a_guide_is_the_priors(case):
    guide, model = case.solver.guide, case.solver.model
    with AtMean():
        guide(case.x, case.y)
    p, q = guide.get_traces()
    assert "eps_0" not in q.nodes
    for t in range(2):
        torch.testing.assert_close(p.nodes[f"eps_{t}"]["value"], model.prior(p.nodes[f"u_{t}"]["value"]).mean)


def test_handlers_that_take_the_guides_place_are_named(case):
    model, guide = case.solver.model, case.solver.guide
    drawn = poutine.trace(model).get_trace(case.x)
    with pytest.raises(ConfigError, match="replaced its draw at 'eps_0'"):
        Trace_ELBO().loss(model, poutine.replay(guide, trace=drawn), case.x, case.y)
    with pytest.raises(ConfigError, match="put the handler around the model"):
        Trace_ELBO().loss(model, poutine.uncondition(guide), case.x, case.y)


def test_a_program_without_the_state_is_told_what_it_lacks():
    model = poutine.block(in_plate("data"), hide=["l", "all"])
    guide = PriorGuide(model)
    for call in (
        lambda: guide_draws(model, guide, torch.zeros(3), torch.zeros(3, 2), steps=1, num_samples=2),
        lambda: bounds(model, guide, torch.zeros(3), torch.zeros(3, 2), steps=1),
    ):
        with pytest.raises(ConfigError, match="the program needs the sites 'y', 'h' and 'l'"):
            call()


def test_a_latent_called_as_guidance_is_told_to_take_another_name():
    class Misnamed(GRAM):
        def answer(self, state, e_x, y, infer=None):
            pyro.sample("eps_0_b", dist.Normal(torch.zeros(e_x.shape[:-2]), 1.0))
            return super().answer(state, e_x, y, infer)

    model, guide, x, y = pair(Misnamed, AmortizedGuide)
    with pytest.raises(ValueError, match="a latent of your own needs a name without 'eps_'"):
        BalancedELBO().loss(model, guide, x, y)


# ---- found by a second reading ---------------------------------------------------------------------------------------


def in_no_plate(x, y, **_):
    for t in range(2):
        pyro.sample(f"eps_{t}", dist.Normal(torch.zeros(4, 16), 0.2).to_event(2))


def test_a_guide_outside_the_models_plates_is_refused():
    """Its entropy would count once an input. (Pyro's validation refuses it too, where that is on.)"""
    model, _, x, y = pair(GRAM, AmortizedGuide, **PLAIN)
    with pyro.validation_enabled(False):
        for elbo in (MeanFieldELBO(), BalancedELBO(), TraceELBO()):
            with pytest.raises(ConfigError, match=r"'eps_0' with the batch shape \[\], and the model has \[5\]"):
                elbo.loss(model, in_no_plate, x, y)
    with pytest.raises(ConfigError, match="sample it in the same plates"):
        bounds(model, in_no_plate, x, y, steps=1)


def test_a_guide_for_more_steps_and_one_that_draws_what_is_observed_are_refused():
    model, _, x, y = pair(**PLAIN)
    fixed = poutine.condition(model, {"c": torch.full((B,), 0.4)})

    def answers(x, y, **_):
        with data_plates(y.shape[:-1]):
            pyro.sample("c", dist.Normal(torch.zeros(B), 1.0))
            for t in range(3):
                pyro.sample(f"eps_{t}", dist.Normal(torch.zeros(B, 4, 16), 0.2).to_event(2))

    with pyro.validation_enabled(False):
        with pytest.raises(ConfigError, match="observes 'c', which the guide draws"):
            BalancedELBO().loss(fixed, answers, x, y)
        with pytest.raises(ConfigError, match="'eps_2', which the program has not: it has fewer supervision steps"):
            BalancedELBO().loss(model, answers, x, y)


@pytest.mark.parametrize("name", ["data", "batch"])
def test_a_guides_plates_may_have_other_names(name):
    model, _, x, y = pair(GRAM, AmortizedGuide, **PLAIN)

    def guide(x, y, **_):
        with pyro.plate(name, len(y), dim=-1):
            for t in range(2):
                pyro.sample(f"eps_{t}", dist.Normal(torch.zeros(B, 4, 16), 0.2).to_event(2))

    found = guide_draws(model, guide, x, y, steps=1, num_samples=2, seed=3).log_weight
    torch.manual_seed(3)
    with torch.no_grad(), pyro.validation_enabled(False):  # which warns of the name
        loss = Trace_ELBO(num_particles=2, vectorize_particles=True, max_plate_nesting=1).loss(
            model, guide, x, y, truncated=False
        )
    assert found.sum().item() / 2 == pytest.approx(-loss, rel=1e-5)


class Summed(GRAM):
    """Observes the sum of its answer."""

    def answer(self, state, e_x, y, infer=None):
        y = super().answer(state, e_x, y, infer)
        pyro.sample("sum", dist.Normal(y.sum(-1).float(), 1.0), obs=torch.full(e_x.shape[:-2], 2.0))
        return y


class Judged(GRAM):
    """With a factor that knows y."""

    def answer(self, state, e_x, y, infer=None):
        pyro.factor("judged", torch.zeros(e_x.shape[:-2]) if y is None else -y.sum(-1).float())
        return super().answer(state, e_x, y, infer)


@pytest.mark.parametrize("model_class", [Summed, Judged])
def test_an_observation_that_depends_on_y_is_refused_in_roll_outs(model_class):
    model, guide, x, y = pair(model_class, AmortizedGuide)
    with pytest.raises(ConfigError, match="has another density where it is given y"):
        rollout_log_prob(model, x, y, num_samples=2, depth=1)
    guide_draws(model, guide, x, y, steps=1, num_samples=2)


def test_a_random_subsample_of_observations_is_no_dependence_on_y():
    model, _, x, y = pair(Sequential, AmortizedGuide)
    for seed in range(4):
        assert torch.isfinite(rollout_log_prob(model, x, y, num_samples=2, depth=1, seed=seed)).all()


def test_roll_outs_need_no_default_of_the_state():
    model, _, x, y = pair(GRAM, AmortizedGuide)

    def program(x, y, state, *, steps):
        return model(x, y, state, steps=steps)

    found, expected = (rollout_log_prob(m, x, y, num_samples=2, depth=1) for m in (program, model))
    assert torch.equal(found, expected)


class Latent(GRAM):
    """With a latent whose name the test chooses."""

    name = "v"

    def answer(self, state, e_x, y, infer=None):
        v = pyro.sample(self.name, dist.Normal(torch.zeros(e_x.shape[:-2]), 3.0))
        return super().answer(type(state)(state.h + v[..., None, None], state.l), e_x, y, infer)


@pytest.mark.parametrize("name", ["value", "halt"])
def test_a_latent_that_is_called_as_a_heads_site_is_drawn(name):
    model, _, x, y = pair(Latent, AmortizedGuide)
    expected = rollout_log_prob(model, x, y, num_samples=3, depth=1)
    model.name = name
    torch.testing.assert_close(rollout_log_prob(model, x, y, num_samples=3, depth=1), expected)
    assert expected.std(0).min() > 0


def test_a_temper_around_roll_outs_is_refused(case):
    with Temper(TemperConfig(2.0, 1)):
        for call in (
            lambda: rollout_log_prob(case.solver.model, case.x, case.y, num_samples=2, depth=1),
            lambda: rollout(case.solver.model, case.x, num_samples=2, depth=1),
        ):
            with pytest.raises(ConfigError, match="change its first batch of trajectories only"):
                call()


class Hidden(dist.Normal):
    """A user's own Gaussian, a parameter of which lies in a module."""

    def __init__(self, u, net):
        super().__init__(u, 1.0)
        self.net = net

    def expand(self, batch_shape, _instance=None):
        return self


@register_kl(Hidden, Hidden)
def _kl_hidden(q, p):
    return (q.net.weight.sum() * q.loc - p.net.weight.sum() * p.loc).square() / 2


def test_a_distribution_that_hides_its_parameters_is_balanced_by_its_draws():
    net = nn.Linear(1, 1)
    with pytest.raises(NotImplementedError):
        scale_gradient(Hidden(torch.zeros(3), net), 0.5)
    for kept in ([torch.zeros(1)], {"a": torch.zeros(1)}):
        plain = dist.Normal(torch.zeros(3), 1.0)
        plain.kept = kept
        with pytest.raises(NotImplementedError):
            scale_gradient(plain, 0.5)


class Subsampled(nn.Module):
    """A program whose inputs are three of fifty."""

    def forward(self, x, y=None, state=None, **settings):
        subsample = torch.arange(len(x))
        with pyro.plate("data", 50, subsample=subsample, dim=-1):
            u = pyro.deterministic("u_0", x[..., None, None] + torch.zeros(2, 2), event_dim=2)
            h = u + pyro.sample("eps_0", dist.Normal(u, 1.0).to_event(2))
            for site in ("h", "l"):
                pyro.deterministic(site, h, event_dim=2)
            pyro.factor("f", torch.full(x.shape, -2.0))
            return pyro.sample("y", dist.Normal(h[..., 0], 1.0).to_event(1), obs=y)


def test_an_input_of_a_subsample_has_the_density_of_one():
    model = Subsampled()
    x, y = torch.tensor([0.5, -1.0, 2.0]), torch.ones(3, 2)
    guide = PriorGuide(model)
    exact = dist.Normal(2 * x[:, None], 2**0.5).log_prob(y).sum(-1) - 2
    for found in (
        log_evidence(guide_draws(model, guide, x, y, steps=1, num_samples=6000, max_traced=20_000).log_weight).float(),
        log_evidence(rollout_log_prob(model, x, y, num_samples=6000, depth=1, max_trajectories=20_000)),
    ):
        torch.testing.assert_close(found, exact, atol=0.2, rtol=0)
    torch.manual_seed(2)
    one = bounds(model, guide, x, y, steps=1)
    torch.testing.assert_close(one.others, torch.full((3,), 2.0))
    assert (one.full > -60).all()


def test_a_point_within_two_events_is_a_point():
    assert is_delta(dist.Delta(torch.zeros(2, 3, 4)).to_event(1).to_event(1))


def test_an_answer_observed_in_part_is_refused():
    class Partly(GRAM):
        def answer(self, state, e_x, y, infer=None):
            seen = torch.tensor([True, True, False, True, True])
            return pyro.sample("y", self.likelihood(state.h), obs=y, obs_mask=seen if y is not None else None)

    model, guide, x, y = pair(Partly, AmortizedGuide)
    with pytest.raises(ConfigError, match="observed only in part"):
        guide_draws(model, guide, x, y, steps=1, num_samples=2)


def test_a_latent_beside_a_reparameterized_one_may_have_its_name_as_a_prefix():
    class Two(Biased):
        def answer(self, state, e_x, y, infer=None):
            with poutine.reparam(config={"b": LocScaleReparam(0.0)}):
                pyro.sample("b_other", dist.Normal(torch.zeros(e_x.shape[:-2]), 1.0))
            return super().answer(state, e_x, y, infer)

    model, guide, x, y = pair(Two, BiasedGuide)
    Trace_ELBO().loss(model, guide, x, y)


@pytest.mark.parametrize("call", [guide_draws, bounds])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, not 0"),
        ({"max_traced": 0}, "max_traced must be at least 1"),
        ({"seed": -5}, "seed"),
        ({"num_samples": 0}, "num_samples must be at least 1"),
        ({"trained": -1}, "trained must be at least 1"),
    ],
)
def test_counts_below_one_are_refused(case, call, settings, message):
    parameters = {"steps": 1, **({"num_samples": 1} if call is guide_draws else {}), **settings}
    if not parameters.keys() <= inspect.signature(call).parameters.keys():
        return
    with pytest.raises(UserError, match=message):
        call(case.solver.model, case.solver.guide, case.x, case.y, **parameters)


def test_what_is_no_pair_is_refused(case):
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
def test_what_an_evaluation_could_not_score_is_refused_before_training(model_class):
    model, guide, x, y = pair(model_class, SharedGuide if model_class is Shared else AmortizedGuide)
    held = replace(build_case().solver, model=model, guide=guide)
    with pytest.raises(ConfigError, match="all inputs share the site 'all'|has another density where it is given y"):
        check_estimates(held, x, y)
    plain = build_case()
    before = torch.get_rng_state()
    check_estimates(plain.solver, plain.x, plain.y)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_guide_that_holds_its_model_trains_each_parameter_once():
    model, guide, _, _ = pair()
    guide.held = model
    optim = TorchOptim({"model": model, "guide": guide}, OptimConfig(warmup=1))
    assert len(optim.named) == len({id(p) for p in optim.named.values()})
    assert not any(name.startswith("guide.held") for name in optim.named)
    assert sum(len(group["params"]) for o in optim.optimizers for group in o.param_groups) == len(optim.named)
