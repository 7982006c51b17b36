"""Pyro's handlers and optimizers act on models and guides as on any Pyro program, or the call raises an error."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.contrib.autoname import scope
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.reparam import LocScaleReparam
from pyro_gram.guides.amortized import AmortizedGuide
from pyro_gram.models.gram import GRAM
from torch import nn

from pyro_gram.diagnostics.bounds import bounds, terms
from pyro_gram.diagnostics.likelihood import rollout_log_prob
from pyro_gram.errors import ConfigError
from pyro_gram.inference.elbo import BalancedELBO, MeanFieldELBO, TraceELBO, make_elbo
from pyro_gram.inference.guide import PriorGuide
from pyro_gram.inference.importance import guide_draws
from pyro_gram.inference.sites import data_plates
from pyro_gram.sampling.rollout import rollout
from pyro_gram.sampling.tempering import AtMean, NoGuidance, Temper, TemperConfig
from pyro_gram.training.beta_schedule import BetaConfig
from pyro_gram.training.config import TrainConfig
from pyro_gram.training.loop import train_batches
from pyro_gram.training.optimizer import OptimConfig, TorchOptim
from pyro_gram.training.trainer import Trainer
from tests.conftest import perturb_, small_config
from tests.inference.test_own_latents import ELBOS, B, Biased, BiasedGuide, pair
from tests.inference.test_own_programs import in_plate

PLAIN = {"model": {"truncated": False}}


def test_pyros_optimizers_get_the_names_of_parameters(tmp_path):
    model, guide, x, y = pair()

    def options(name):
        return {"lr": 0.5 if name == "guide.shift" else 0.0}

    old_values = model.h0, guide.shift.item(), model.decoder.head.bias.clone()
    optimizer = pyro.optim.Adam(options)
    SVI(model, guide, optimizer, Trace_ELBO()).step(x, y)
    assert abs(guide.shift.item() - old_values[1]) == pytest.approx(0.5, rel=1e-3)
    assert torch.equal(model.decoder.head.bias, old_values[2])
    state = optimizer.get_state()
    names = {f"model.{n}" for n, _ in model.named_parameters()} | {f"guide.{n}" for n, _ in guide.named_parameters()}
    assert set(state) == names
    restored_optimizer = pyro.optim.Adam(options)
    restored_optimizer.set_state(state)
    SVI(model, guide, restored_optimizer, Trace_ELBO()).step(x, y)
    steps = {name: s["state"][0]["step"].item() for name, s in restored_optimizer.get_state().items() if s["state"]}
    assert steps["guide.shift"] == 2
    assert not dict(pyro.get_param_store().items())  # this library puts no parameter into the store


def test_the_librarys_optimizer_leaves_no_parameter_in_the_store():
    model, guide, x, y = pair()
    trainer = Trainer(
        model, guide, lambda _: (x, y), TrainConfig(batches=1, supervision_steps=1), OptimConfig(warmup=1), BetaConfig()
    )
    list(train_batches(trainer))
    assert pyro.get_param_store().param_name(guide.shift) is None


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


def test_a_scope_that_renames_a_latent_is_refused_unless_the_guide_knows_it():
    model, guide, x, y = pair(Scoped, BiasedGuide)
    with pytest.raises(ValueError, match=r"pyro.contrib.autoname has made the site 'mine/c'"):
        Trace_ELBO().loss(model, guide, x, y)
    model, guide, x, y = pair(Scoped, ScopedGuide, **PLAIN)
    assert (terms(model, guide, x, y).other_terms > 0.1).all()


def test_a_temper_cannot_decorate_a_model(case):
    with pytest.raises(TypeError, match="serves one batch of trajectories and cannot wrap a model"):
        Predictive(Temper(TemperConfig(2.0, 1))(case.solver.model), num_samples=2)


def test_at_mean_around_a_guide_takes_the_priors_mean(case):
    guide, model = case.solver.guide, case.solver.model
    with AtMean():
        guide(case.x, case.y)
    p, q = guide.get_traces()
    assert "eps_0" not in q.nodes
    for t in range(2):
        torch.testing.assert_close(p.nodes[f"eps_{t}"]["value"], model.prior(p.nodes[f"u_{t}"]["value"]).mean)


def test_handlers_that_replace_the_guides_draws_are_refused(case):
    model, guide = case.solver.model, case.solver.guide
    trace = poutine.trace(model).get_trace(case.x)
    with pytest.raises(ConfigError, match="replaced its draw at 'eps_0'"):
        Trace_ELBO().loss(model, poutine.replay(guide, trace=trace), case.x, case.y)
    with pytest.raises(ConfigError, match="put the handler around the model"):
        Trace_ELBO().loss(model, poutine.uncondition(guide), case.x, case.y)


def test_a_model_without_the_sites_of_the_state_is_refused():
    model = poutine.block(in_plate("data"), hide=["l", "all"])
    guide = PriorGuide(model)
    for call in (
        lambda: guide_draws(model, guide, torch.zeros(3), torch.zeros(3, 2), steps=1, num_samples=2),
        lambda: bounds(model, guide, torch.zeros(3), torch.zeros(3, 2), steps=1),
    ):
        with pytest.raises(ConfigError, match="the program needs the sites 'y', 'h' and 'l'"):
            call()


def test_a_latent_with_a_name_like_guidance_is_refused():
    class Misnamed(GRAM):
        def answer(self, state, e_x, y, infer=None):
            pyro.sample("eps_0_b", dist.Normal(torch.zeros(e_x.shape[:-2]), 1.0))
            return super().answer(state, e_x, y, infer)

    model, guide, x, y = pair(Misnamed, AmortizedGuide)
    with pytest.raises(ValueError, match="give it a name without 'eps_'"):
        BalancedELBO().loss(model, guide, x, y)


def guide_outside_plates(x, y, **_):
    for t in range(2):
        pyro.sample(f"eps_{t}", dist.Normal(torch.zeros(4, 16), 0.2).to_event(2))


def test_a_guide_outside_the_models_plates_is_refused():
    """The entropy of such a guide would count once for each input. Pyro's validation also refuses such a guide."""
    model, _, x, y = pair(GRAM, AmortizedGuide, **PLAIN)
    with pyro.validation_enabled(False):
        for elbo in (MeanFieldELBO(), BalancedELBO(), TraceELBO()):
            with pytest.raises(ConfigError, match=r"'eps_0' with the batch shape \[\], and the model has \[5\]"):
                elbo.loss(model, guide_outside_plates, x, y)
    with pytest.raises(ConfigError, match="sample it in the same plates"):
        bounds(model, guide_outside_plates, x, y, steps=1)


def test_a_guide_that_samples_sites_which_are_not_latents_is_refused():
    model, _, x, y = pair(**PLAIN)
    conditioned_model = poutine.condition(model, {"c": torch.full((B,), 0.4)})

    def wrong_guide(x, y, **_):
        with data_plates(y.shape[:-1]):
            pyro.sample("c", dist.Normal(torch.zeros(B), 1.0))
            for t in range(3):
                pyro.sample(f"eps_{t}", dist.Normal(torch.zeros(B, 4, 16), 0.2).to_event(2))

    with pyro.validation_enabled(False):
        with pytest.raises(ConfigError, match="observes 'c', which the guide draws"):
            BalancedELBO().loss(conditioned_model, wrong_guide, x, y)
        with pytest.raises(ConfigError, match="'eps_2', which the program lacks: it has fewer supervision steps"):
            BalancedELBO().loss(model, wrong_guide, x, y)


@pytest.mark.parametrize("name", ["data", "batch"])
def test_a_guides_plates_may_have_other_names(name):
    model, _, x, y = pair(GRAM, AmortizedGuide, **PLAIN)

    def guide(x, y, **_):
        with pyro.plate(name, len(y), dim=-1):
            for t in range(2):
                pyro.sample(f"eps_{t}", dist.Normal(torch.zeros(B, 4, 16), 0.2).to_event(2))

    weights = guide_draws(model, guide, x, y, steps=1, num_samples=2, seed=3).log_weight
    torch.manual_seed(3)
    # Pyro's validation would warn if guide and model name their plates differently.
    with torch.no_grad(), pyro.validation_enabled(False):
        loss = Trace_ELBO(num_particles=2, vectorize_particles=True, max_plate_nesting=1).loss(
            model, guide, x, y, truncated=False
        )
    assert weights.sum().item() / 2 == pytest.approx(-loss, rel=1e-5)


def test_a_temper_around_rollouts_is_refused(case):
    with Temper(TemperConfig(2.0, 1)):
        for call in (
            lambda: rollout_log_prob(case.solver.model, case.x, case.y, num_samples=2, depth=1),
            lambda: rollout(case.solver.model, case.x, num_samples=2, depth=1),
        ):
            with pytest.raises(ConfigError, match="change its first batch of trajectories only"):
                call()


def test_a_latents_name_may_begin_with_that_of_a_reparameterized_latent():
    class Two(Biased):
        def answer(self, state, e_x, y, infer=None):
            with poutine.reparam(config={"b": LocScaleReparam(0.0)}):
                pyro.sample("b_other", dist.Normal(torch.zeros(e_x.shape[:-2]), 1.0))
            return super().answer(state, e_x, y, infer)

    model, guide, x, y = pair(Two, BiasedGuide)
    Trace_ELBO().loss(model, guide, x, y)


def test_a_guide_that_holds_its_model_trains_each_parameter_once():
    model, guide, _, _ = pair()
    guide.module = model
    optim = TorchOptim({"model": model, "guide": guide}, OptimConfig(warmup=1))
    assert len(optim.parameters_by_name) == len({id(p) for p in optim.parameters_by_name.values()})
    assert not any(name.startswith("guide.module") for name in optim.parameters_by_name)
    assert sum(len(group["params"]) for o in optim.optimizers for group in o.param_groups) == len(
        optim.parameters_by_name
    )


def test_guidance_that_a_handler_around_the_guide_observes_has_the_priors_density():
    model, guide, x, y = pair(model={"truncated": False})
    fixed_eps = torch.full((B, 4, 16), 0.1)
    conditioned_trace = poutine.trace(poutine.condition(model, {"eps_0": fixed_eps})).get_trace(x, y)
    conditioned_trace.compute_log_prob()
    with poutine.condition(data={"eps_0": fixed_eps}):
        guide(x, y)
        p, q = guide.get_traces()
        elbo = BalancedELBO()
        loss = elbo.loss(model, guide, x, y)
    p.compute_log_prob()
    torch.testing.assert_close(p.nodes["eps_0"]["log_prob"], conditioned_trace.nodes["eps_0"]["log_prob"])
    assert "eps_0" not in q.nodes
    assert elbo.terms.elbo.sum().item() == pytest.approx(-float(loss), rel=1e-5)


def test_handlers_around_the_model_need_a_guide_that_is_built_with_them():
    model, plain_guide, x, y = pair(model={"truncated": False})
    conditioned_model = poutine.condition(model, {"c": torch.full((B,), 0.4)})
    guide = BiasedGuide(small_config().guide, model.spec, conditioned_model, 16)
    perturb_(guide, 0.1)
    for name in ELBOS:
        elbo = make_elbo(name)
        torch.manual_seed(1)
        elbo.loss(conditioned_model, guide, x, y)
        torch.testing.assert_close(elbo.terms.other_terms, -dist.Normal(0.0, 1.0).log_prob(torch.full((B,), 0.4)))
        with pytest.raises(ConfigError, match="runs the model that it was built with"):
            elbo.loss(conditioned_model, plain_guide, x, y)
    with pytest.raises(ConfigError, match="runs the model that it was built with"):
        guide_draws(NoGuidance()(model), plain_guide, x, y, steps=1, num_samples=2)
    guide_without_guidance = BiasedGuide(small_config().guide, model.spec, NoGuidance()(model), 16)
    assert terms(guide_without_guidance.model, guide_without_guidance, x, y).kl.shape == (0, B)


def test_a_reparameterized_latent_for_which_the_guide_has_a_posterior_is_refused():
    model, _, x, y = pair()

    class Handled(nn.Module):
        prior = model.prior

        def forward(self, x, y=None):
            with poutine.reparam(config={"c": LocScaleReparam(0.0)}):
                return model(x, y)

    handled_model = Handled()
    guide = BiasedGuide(small_config().guide, model.spec, handled_model, 16)
    with pytest.raises(ValueError, match="reparam has made the site 'c_decentered'"):
        Trace_ELBO().loss(handled_model, guide, x, y)


def test_only_sites_that_the_guide_observed_are_hidden_from_outer_traces():
    _, guide, x, y = pair()

    def outer():
        with poutine.block():
            guide(x, y)
        pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.tensor(1.0))
        with poutine.block(hide=["y"]):
            guide(x, y)

    assert poutine.trace(outer).get_trace().nodes["y"]["is_observed"]
