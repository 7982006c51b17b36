"""Model and guide are ordinary Pyro programs: Pyro's results for them are right, or the call raises an error."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.contrib.autoname import scope
from pyro.infer import (
    SVI,
    Importance,
    JitTrace_ELBO,
    JitTraceMeanField_ELBO,
    Predictive,
    Trace_ELBO,
    TraceMeanField_ELBO,
    WeighedPredictive,
    autoguide,
)
from pyro.infer.importance import vectorized_importance_weights
from pyro.infer.reparam import LocScaleReparam
from pyro.infer.reparam.reparam import Reparam
from pyro.poutine.messenger import Messenger

from pyro_gram.inference.elbo import BalancedELBO, MeanFieldELBO
from pyro_gram.sampling.tempering import AtMean, NoGuidance
from tests.conftest import build_case, small_config


def log_weight(guide, x, y):
    """Draw tau under the caller's seed. Return log p(y, tau | x) - log q(tau | x, y), summed over the batch."""
    guide(x, y)
    p, q = guide.get_traces()
    latents = [n for n in q.nodes if n.startswith("eps_")]
    log_p = sum((p.nodes[n]["fn"].log_prob(p.nodes[n]["value"]) * (n == "eps_1")).sum() for n in latents)
    log_q = sum((q.nodes[n]["fn"].log_prob(q.nodes[n]["value"]) * (n == "eps_1")).sum() for n in latents)
    return (log_p - log_q + p.nodes["y"]["fn"].log_prob(y).sum()).item()  # eps_0 is masked: Eq. 14


# ---- importance ------------------------------------------------------------------------------------------------------


def test_importance_weights_of_pyro_are_right(case):
    model, guide = case.solver.model, case.solver.guide
    pyro.set_rng_seed(0)
    expected = log_weight(guide, case.x, case.y)
    pyro.set_rng_seed(0)
    importance = Importance(model, guide, num_samples=1).run(case.x, case.y)
    assert importance.log_weights[0].item() == pytest.approx(expected, rel=1e-5)


def test_vectorized_importance_weights_of_pyro_are_right(case):
    model, guide = case.solver.model, case.solver.guide
    pyro.set_rng_seed(0)
    weights, p, q = vectorized_importance_weights(model, guide, case.x, case.y, num_samples=3, max_plate_nesting=1)
    expected = p.nodes["y"]["unscaled_log_prob"].sum(-1).squeeze()
    for name in ("eps_0", "eps_1"):
        expected = expected + (p.nodes[name]["log_prob"] - q.nodes[name]["log_prob"]).sum(-1).squeeze()
    assert "y" not in q.nodes
    torch.testing.assert_close(weights, expected.view(3))


@pytest.mark.parametrize("parallel", [False, True])
def test_weighed_predictive_of_pyro_is_right(case, parallel):
    model, guide = case.solver.model, case.solver.guide
    with torch.no_grad():
        weighted_samples = WeighedPredictive(model, guide=guide, num_samples=2, parallel=parallel)(case.x, case.y)
        samples = {k: v for k, v in weighted_samples.samples.items() if k.startswith("eps_")}
        expected = []
        for i in range(2):
            guidance = {name: value[i] for name, value in samples.items()}
            p = poutine.trace(poutine.condition(model, guidance)).get_trace(case.x, case.y)
            with poutine.trace() as q, Answers(guidance):
                guide(case.x, case.y)
            expected.append(p.log_prob_sum() - q.trace.log_prob_sum())
    torch.testing.assert_close(weighted_samples.log_weights.view(-1), torch.stack(expected))


class Answers(poutine.messenger.Messenger):
    """Give sites fixed values without making the sites observed."""

    def __init__(self, values):
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg):
        if msg["name"] in self.values:
            msg["value"], msg["done"] = self.values[msg["name"]], True


def test_a_trace_of_the_guide_holds_its_draws_and_nothing_observed(case):
    with poutine.scale(scale=0.5):
        trace = poutine.trace(case.solver.guide).get_trace(case.x, case.y)
    assert [n for n, s in trace.nodes.items() if s["type"] == "sample"] == ["data", "eps_0", "eps_1"]
    model_trace, _ = case.solver.guide.get_traces()
    assert model_trace.nodes["y"]["scale"] == 0.5  # the scale around the guide still applies to the likelihood


# ---- Predictive ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parallel", [False, True])
def test_predictive_with_a_guide_follows_it(case, parallel):
    model, guide = case.solver.model, case.solver.guide
    samples = Predictive(model, guide=guide, num_samples=3, parallel=parallel)(case.x, case.y)
    assert torch.equal(samples["y"], case.y.expand(3, -1, -1))
    guidance = {name: samples[name][1] for name in ("eps_0", "eps_1")}
    model_trace = poutine.trace(poutine.condition(model, guidance)).get_trace(case.x, case.y)
    torch.testing.assert_close(model_trace.nodes["h"]["value"], samples["h"][1])


def test_predictive_with_a_guide_needs_y(case):
    predictive = Predictive(case.solver.model, guide=case.solver.guide, num_samples=3)
    with pytest.raises(ValueError, match=r"Predictive\(model, num_samples=N\)\(x\)"):
        predictive(case.x)


# ---- handlers that rename --------------------------------------------------------------------------------------------

RENAMING_HANDLERS = {"reparam": poutine.reparam(config={"eps_0": LocScaleReparam()}), "scope": scope(prefix="mine")}


@pytest.mark.parametrize("handler", RENAMING_HANDLERS.values(), ids=RENAMING_HANDLERS)
@pytest.mark.parametrize("is_around_model", [True, False], ids=["around the model", "around the guide"])
def test_renamed_guidance_is_refused(case, handler, is_around_model):
    model, guide = case.solver.model, case.solver.guide

    class Handled(torch.nn.Module):
        prior = model.prior

        def forward(self, x, y=None):
            with handler:
                return model(x, y)

    if is_around_model:
        guide = type(guide)(small_config().guide, model.spec, Handled(), 16)
        with pytest.raises(ValueError, match=r"renamed.*eps_\d"):
            Trace_ELBO().loss(guide.model, guide, case.x, case.y)
    else:
        with handler, pytest.raises(ValueError, match=r"renamed.*eps_0"):
            Trace_ELBO().loss(model, guide, case.x, case.y)


class Elsewhere(Reparam):
    """Replace a site by the site "elsewhere": a user's reparameterization may drop the old name of a site."""

    def apply(self, msg):
        value = pyro.sample("elsewhere", msg["fn"])
        return {"fn": dist.Delta(value, event_dim=2).mask(False), "value": value, "is_observed": True}


def test_guidance_that_a_users_own_strategy_has_renamed_is_refused(case):
    model, guide = case.solver.model, case.solver.guide

    class Handled(torch.nn.Module):
        prior = model.prior

        def forward(self, x, y=None):
            with poutine.reparam(config={"eps_0": Elsewhere()}):
                return model(x, y)

    guide = type(guide)(small_config().guide, model.spec, Handled(), 16)
    with pytest.raises(ValueError, match=r"poutine.reparam has made the site 'elsewhere'"):
        Trace_ELBO().loss(guide.model, guide, case.x, case.y)


# ---- losses ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jit_elbo", [JitTrace_ELBO, JitTraceMeanField_ELBO])
def test_jit_losses_are_refused(case, jit_elbo):
    model, guide = case.solver.model, case.solver.guide
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), jit_elbo())
    with pytest.raises(NotImplementedError, match=r"JIT losses .* use Trace_ELBO"):
        svi.step(case.x, case.y)


def program(data):
    """A model with a real and a positive global latent, and a real latent for each datum."""
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.LogNormal(0.0, 0.5))
    with pyro.plate("data", len(data)):
        c = pyro.sample("c", dist.Normal(a, b))
        pyro.sample("obs", dist.Normal(c, 0.3), obs=data)


AUTOGUIDES = {
    "normal": autoguide.AutoNormal,
    "delta": autoguide.AutoDelta,
    "diagonal": autoguide.AutoDiagonalNormal,
    "multivariate": autoguide.AutoMultivariateNormal,
    "low rank": autoguide.AutoLowRankMultivariateNormal,
    "iaf": lambda model: autoguide.AutoIAFNormal(model, hidden_dim=[16]),
    "laplace": autoguide.AutoLaplaceApproximation,
    "structured": lambda model: autoguide.AutoStructured(model, conditionals="normal", dependencies="linear"),
    "gaussian": autoguide.AutoGaussian,
    "normal messenger": autoguide.AutoNormalMessenger,
    "hierarchical messenger": autoguide.AutoHierarchicalNormalMessenger,
    "regressive messenger": autoguide.AutoRegressiveMessenger,
}


def loss_and_gradients(elbo, model, guide, arguments, validate):
    pyro.set_rng_seed(3)
    with pyro.validation_enabled(validate), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with poutine.trace(param_only=True) as recorder:
            loss = float(elbo.loss_and_grads(model, guide, *arguments))
    parameters = {name: site["value"].unconstrained() for name, site in recorder.trace.nodes.items()}
    gradients = {name: p.grad.clone() for name, p in parameters.items() if p.grad is not None}
    for p in parameters.values():
        p.grad = None
    return loss, gradients


def check_equal(model, guide, arguments, validate):
    guide(*arguments)  # an autoguide makes its parameters at the first call
    # Pyro's mean-field ELBO omits the log density of a Delta in the guide; Trace_ELBO does not.
    pyro_elbo = TraceMeanField_ELBO if isinstance(guide, Messenger) else Trace_ELBO
    expected = loss_and_gradients(pyro_elbo(num_particles=2), model, guide, arguments, validate)
    for elbo in (BalancedELBO(0.8, num_particles=2), MeanFieldELBO(num_particles=2)):
        result = loss_and_gradients(elbo, model, guide, arguments, validate)
        assert result[0] == pytest.approx(expected[0], rel=1e-5)
        assert result[1].keys() == expected[1].keys()
        for name, gradient in expected[1].items():
            torch.testing.assert_close(result[1][name], gradient, msg=name)


@pytest.mark.parametrize("name", AUTOGUIDES)
def test_the_balanced_bound_equals_pyros_for_every_autoguide(name):
    validate = list(AUTOGUIDES).index(name) % 2 == 0
    check_equal(program, AUTOGUIDES[name](program), (torch.tensor([0.3, -1.0, 2.0]),), validate)


@pytest.mark.parametrize("name", ["normal", "low rank", "delta"])
def test_the_balanced_bound_of_gram_under_an_autoguide_is_pyros(case, name):
    """An autoguide samples guidance from a Delta at the value of an auxiliary site."""
    model = case.solver.model

    def full_model(x, y):
        return model(x, y, truncated=False)

    guide = AUTOGUIDES[name](full_model)
    check_equal(full_model, guide, (case.x, case.y), validate=False)
    elbo = BalancedELBO()
    pyro.set_rng_seed(5)
    loss = float(elbo.loss(full_model, guide, case.x, case.y))
    pyro.set_rng_seed(5)
    assert loss == pytest.approx(Trace_ELBO().loss(full_model, guide, case.x, case.y), rel=1e-5)
    assert elbo.terms.elbo.sum().item() == pytest.approx(-loss, rel=1e-5)


# ---- conditions ------------------------------------------------------------------------------------------------------


def test_no_guidance_conditions_every_transition(case):
    """TRM is GRAM conditioned on eps = 0, at any depth."""
    steps = 4
    model = case.solver.model
    trace = poutine.trace(NoGuidance()(model)).get_trace(case.x, steps=steps)
    guidance = [site for name, site in trace.nodes.items() if name.startswith("eps_")]
    assert len(guidance) == 2 * steps
    assert all(site["is_observed"] and (site["value"] == 0).all() for site in guidance)
    assert torch.equal(trace.nodes["h"]["value"], trace.nodes[f"u_{2 * steps - 1}"]["value"])
    samples = Predictive(NoGuidance()(model), num_samples=4, parallel=True)(case.x, steps=steps)
    assert (samples["eps_0"] == 0).all()
    zeros = {f"eps_{t}": torch.zeros(5, 4, 16) for t in range(2 * steps)}
    expected = poutine.trace(poutine.condition(model, zeros)).get_trace(case.x, steps=steps)
    torch.testing.assert_close(trace.nodes["h"]["value"], expected.nodes["h"]["value"])


def test_at_mean_conditions_guidance_on_the_priors_mean(case):
    trace = poutine.trace(AtMean()(case.solver.model)).get_trace(case.x)
    for t in range(2):
        site = trace.nodes[f"eps_{t}"]
        torch.testing.assert_close(site["value"], site["fn"].mean)
        assert site["is_observed"]


def test_no_guidance_works_on_codes_too():
    case = build_case(prior_name="discrete", prior={"groups": 2, "classes": 3})
    trace = poutine.trace(NoGuidance()(case.solver.model)).get_trace(case.x)
    torch.testing.assert_close(trace.nodes["h"]["value"], trace.nodes["u_1"]["value"])
