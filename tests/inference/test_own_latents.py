"""Bounds and importance weights include a user's own latents, as Pyro's bounds and weights do."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from pyro_gram.guides.amortized import AmortizedGuide
from pyro_gram.models.gram import GRAM
from torch import nn

from pyro_gram.build import build
from pyro_gram.diagnostics.bounds import bounds, terms
from pyro_gram.diagnostics.likelihood import rollout_log_prob
from pyro_gram.errors import ConfigError
from pyro_gram.inference.elbo import BalancedELBO, MeanFieldELBO, make_elbo
from pyro_gram.inference.importance import guide_draws, log_evidence
from pyro_gram.training.beta_schedule import BetaConfig
from pyro_gram.training.config import TrainConfig
from pyro_gram.training.dry_run import dry_run
from pyro_gram.training.optimizer import OptimConfig
from pyro_gram.training.trainer import Trainer
from tests.conftest import perturb_, small_config, small_task

B = 5
ELBOS = ["balanced", "mean_field", "trace"]


class Biased(GRAM):
    """GRAM with a latent of a user: one number ``c`` for each input, which is added to the state."""

    measurements: torch.Tensor | None = None

    def answer(self, state, e_x, y, infer=None):
        c = pyro.sample("c", dist.Normal(torch.zeros(e_x.shape[:-2]), 1.0))
        if self.measurements is not None:
            pyro.sample("measured", dist.Normal(c, 0.5), obs=self.measurements)
        return super().answer(type(state)(state.h + c[..., None, None], state.l), e_x, y, infer)


class BiasedGuide(AmortizedGuide):
    def __init__(self, *args):
        super().__init__(*args)
        self.shift = nn.Parameter(torch.tensor(0.7))

    def get_posterior(self, name, prior):
        if name == "c":
            return dist.Normal(self.shift.expand(prior.batch_shape), 0.3)
        return super().get_posterior(name, prior)


class Coin(Biased):
    """A model with a discrete latent."""

    def answer(self, state, e_x, y, infer=None):
        pyro.sample("coin", dist.Bernoulli(torch.full(e_x.shape[:-2], 0.5)))
        return super().answer(state, e_x, y, infer)


class Shared(GRAM):
    """A model with one latent for all inputs, outside the plate of the inputs."""

    def forward(self, x, y=None, state=None, **settings):
        pyro.sample("all", dist.Normal(0.0, 1.0))
        return super().forward(x, y, state, **settings)


class SharedGuide(AmortizedGuide):
    def get_posterior(self, name, prior):
        return dist.Normal(0.5, 0.2) if name == "all" else super().get_posterior(name, prior)


def pair(model_class=Biased, guide_class=BiasedGuide, **changes):
    config = small_config(**changes)
    solver = build(config, task=small_task("coloring"))
    model = model_class(config.model, solver.task.spec, solver.model.prior)
    guide = guide_class(config.guide, solver.task.spec, model, 16)
    for module in (model, guide):
        perturb_(module, 0.1)
    puzzles = solver.task.split("train").subset(B)
    y = puzzles.sample_targets(torch.arange(B), torch.Generator().manual_seed(0))
    return model, guide, puzzles.inputs, y


def density(trace, names, shape):
    """Return the sum of the log densities of the sites ``names``, each expanded to ``shape``."""
    return sum(trace.nodes[n]["fn"].log_prob(trace.nodes[n]["value"]).expand(shape).double() for n in names)


def weights_by_hand(guide, x, y, latent, seed):
    """Return log p - log q of three trajectories of each input; ``latent`` is the name of the user's own latent."""
    torch.manual_seed(seed)
    with torch.no_grad(), pyro.plate("trajectories", 3, dim=-2):
        guide(x, y, truncated=False)
    p, q = guide.get_traces()
    latents, shape = ["eps_0", "eps_1", latent], (3, len(y))
    return density(p, [*latents, "y"], shape) - density(q, latents, shape)


def test_importance_weights_include_an_own_latent():
    model, guide, x, y = pair()
    weights = guide_draws(model, guide, x, y, steps=1, num_samples=3, seed=4).log_weight
    torch.testing.assert_close(weights, weights_by_hand(guide, x, y, "c", seed=4))


def test_the_importance_bound_equals_renyis():
    model, guide, x, y = pair()
    renyi = RenyiELBO(alpha=0.0, num_particles=6, vectorize_particles=True, max_plate_nesting=1)
    torch.manual_seed(9)
    with torch.no_grad():
        loss = renyi.loss(model, guide, x, y, truncated=False)
    weights = guide_draws(model, guide, x, y, steps=1, num_samples=6, seed=9).log_weight
    assert log_evidence(weights).sum().item() == pytest.approx(-loss, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "observed", "validate"),
    [("balanced", True, True), ("balanced", False, False), ("mean_field", False, True), ("trace", True, False)],
)
def test_terms_of_every_elbo_add_up_to_pyros_bound(name, observed, validate):
    model, guide, x, y = pair(model={"truncated": False})
    model.measurements = torch.linspace(-1, 1, B) if observed else None
    torch.manual_seed(1)
    expected = TraceMeanField_ELBO().loss(model, guide, x, y)
    elbo = make_elbo(name)
    with pyro.validation_enabled(validate):
        torch.manual_seed(1)
        loss = elbo.loss(model, guide, x, y)
    assert type(loss) is float  # Pyro's ELBOs return a float too
    assert elbo.terms.elbo.sum().item() == pytest.approx(-expected, rel=1e-5)
    if name != "trace":
        assert loss == pytest.approx(expected, rel=1e-5)
    c = (0.3**2 + 0.7**2 - 1) / 2 - torch.tensor(0.3).log()
    if not observed:
        torch.testing.assert_close(elbo.terms.other_terms, (c + (guide.shift.item() ** 2 - 0.49) / 2).expand(B))


def test_reported_bounds_include_an_own_latent():
    model, guide, x, y = pair()
    results = bounds(model, guide, x, y, steps=2, surrogate_steps=2)
    torch.manual_seed(0)
    terms(model, guide, x, y, steps=2, truncated=False)  # bounds() makes the draws of the full bound first
    state, step_terms = None, []
    for _ in range(2):
        step_terms.append(terms(model, guide, x, y, state))
        state = step_terms[-1].state
    expected = torch.stack([-s.reconstruction - s.kl.sum(0) - s.other_terms for s in step_terms]).mean(0)
    torch.testing.assert_close(results.surrogate, expected)
    torch.manual_seed(0)
    full_terms = terms(model, guide, x, y, steps=2, truncated=False)
    torch.testing.assert_close(results.full, full_terms.elbo)
    torch.testing.assert_close(results.other_terms, full_terms.other_terms)
    torch.testing.assert_close(results.full, -results.reconstruction - results.kl.sum(0) - results.other_terms)
    assert full_terms.other_terms.abs().min() > 0.1


def test_prior_monte_carlo_includes_an_own_observation():
    model, _, x, y = pair()
    model.measurements = torch.linspace(-1, 1, B)
    log_p = rollout_log_prob(model, x, y, num_samples=3, depth=1, seed=6)
    torch.manual_seed(6)
    with torch.no_grad(), pyro.plate("trajectories", 3, dim=-2):
        trace = poutine.trace(model).get_trace(x)
    expected = trace.nodes["y"]["fn"].log_prob(y) + trace.nodes["measured"]["fn"].log_prob(model.measurements)
    torch.testing.assert_close(log_p, expected)


@pytest.mark.parametrize("validate", [True, False])
def test_own_latents_have_pyros_gradient_under_the_balanced_elbo(validate):
    model, guide, x, y = pair(model={"truncated": False, "transitions": 1})
    gradients = {}
    for elbo in (BalancedELBO(0.9), MeanFieldELBO(), TraceMeanField_ELBO()):
        model.zero_grad()
        guide.zero_grad()
        torch.manual_seed(1)
        with pyro.validation_enabled(validate):
            elbo.loss_and_grads(model, guide, x, y)
        gradients[type(elbo).__name__] = guide.shift.grad.clone()
    torch.testing.assert_close(gradients["BalancedELBO"], gradients["TraceMeanField_ELBO"])
    torch.testing.assert_close(gradients["MeanFieldELBO"], gradients["TraceMeanField_ELBO"])
    assert gradients["BalancedELBO"].abs() > 0.1


@pytest.mark.parametrize(("name", "validate"), [("balanced", False), ("mean_field", True)])
def test_a_discrete_latent_is_refused_if_its_guide_would_get_no_gradient(name, validate):
    model, guide, x, y = pair(Coin)
    with pyro.validation_enabled(validate), pytest.raises(NotImplementedError, match=r"'coin' from a Bernoulli"):
        make_elbo(name).loss_and_grads(model, guide, x, y)
    make_elbo("trace").loss_and_grads(model, guide, x, y)
    assert torch.isfinite(guide.shift.grad)


def test_a_discrete_latent_is_refused_before_training_but_has_bounds():
    model, guide, x, y = pair(Coin)
    for name in ("balanced", "mean_field"):
        config = TrainConfig(supervision_steps=1, elbo=name)
        trainer = Trainer(model, guide, lambda number: (x, y), config, OptimConfig(warmup=1), BetaConfig())
        with pytest.raises(ConfigError, match="draws 'coin' from a Bernoulli"):
            dry_run(trainer)
    assert torch.isfinite(bounds(model, guide, x, y, steps=2).full).all()


@pytest.mark.parametrize("name", ELBOS)
def test_a_latent_that_all_inputs_share_counts_once(name):
    model, guide, x, y = pair(Shared, SharedGuide, model={"truncated": False})
    torch.manual_seed(1)
    expected = float(TraceMeanField_ELBO().loss(model, guide, x, y))
    elbo = make_elbo(name)
    torch.manual_seed(1)
    elbo.loss(model, guide, x, y)
    assert elbo.terms.elbo.sum().item() == pytest.approx(-expected, rel=1e-5)
    bound = (0.2**2 + 0.5**2 - 1) / 2 - torch.tensor(0.2).log().item()
    assert elbo.terms.other_terms.sum().item() == pytest.approx(bound, rel=1e-4)


def test_importance_weights_refuse_a_latent_that_several_inputs_share():
    model, guide, x, y = pair(Shared, SharedGuide)
    for max_traced in (1, 256):
        with pytest.raises(ConfigError, match="all inputs share the site 'all'"):
            guide_draws(model, guide, x, y, steps=1, num_samples=3, max_traced=max_traced)
    weights = guide_draws(model, guide, x[:1], y[:1], steps=1, num_samples=3, seed=2)
    torch.testing.assert_close(weights.log_weight, weights_by_hand(guide, x[:1], y[:1], "all", seed=2))


def test_masks_change_importance_weights_and_terms_but_scales_do_not():
    model, guide, x, y = pair()
    mask = torch.tensor([True, False, True, True, False])
    plain_weights = guide_draws(model, guide, x, y, steps=1, num_samples=2).log_weight
    with poutine.mask(mask=mask):
        masked_weights = guide_draws(model, guide, x, y, steps=1, num_samples=2).log_weight
        torch.manual_seed(0)
        masked_terms = terms(model, guide, x, y)
    with poutine.scale(scale=0.1):
        scaled_weights = guide_draws(model, guide, x, y, steps=1, num_samples=2).log_weight
    torch.testing.assert_close(masked_weights, torch.where(mask, plain_weights, 0.0))
    torch.testing.assert_close(scaled_weights, plain_weights)
    assert (masked_terms.elbo[~mask] == 0).all()
    assert (masked_terms.elbo[mask] != 0).all()


def test_a_latent_that_a_two_pass_guide_does_not_sample_is_named():
    model, _, x, y = pair()
    config = small_config(guide_name="replay")
    two_pass_guide = type(build(config).guide)(config.guide, model.spec, model, 16)
    with pyro.validation_enabled(False), pytest.raises(ConfigError, match="does not sample 'c'"):
        guide_draws(model, two_pass_guide, x, y, steps=1, num_samples=2)
    for name in ELBOS:
        with pyro.validation_enabled(False), pytest.raises(ConfigError, match="does not sample 'c'"):
            make_elbo(name).loss(model, two_pass_guide, x, y)


class OwnPlates(GRAM):
    """A model with two plates of its own: "classes", which all inputs share, and "parts" of each input."""

    classes = 5

    def forward(self, x, y=None, state=None, **settings):
        with pyro.plate("classes", self.classes, dim=-1):
            pyro.sample("w", dist.Normal(0.0, 1.0))
        return super().forward(x, y, state, **settings)

    def answer(self, state, e_x, y, infer=None):
        with pyro.plate("parts", 6, subsample_size=2, dim=-3):
            pyro.sample("part", dist.Normal(0.0, 1.0), obs=torch.ones(2, 1, 1))
        return super().answer(state, e_x, y, infer)


class OwnPlatesGuide(AmortizedGuide):
    def get_posterior(self, name, prior):
        return dist.Normal(0.5, 0.2).expand(prior.batch_shape) if name == "w" else super().get_posterior(name, prior)


@pytest.mark.parametrize(("name", "classes"), [("balanced", B), ("mean_field", 3), ("trace", B)])
def test_own_plates_are_summed_even_if_they_are_as_long_as_the_batch(name, classes):
    """The plate "classes" is not mistaken for the plate of the inputs. Two subsampled "parts" stand for all six."""
    model, guide, x, y = pair(OwnPlates, OwnPlatesGuide, model={"truncated": False})
    model.classes = classes
    torch.manual_seed(1)
    expected = float(TraceMeanField_ELBO().loss(model, guide, x, y))
    elbo = make_elbo(name)
    torch.manual_seed(1)
    elbo.loss(model, guide, x, y)
    assert elbo.terms.elbo.sum().item() == pytest.approx(-expected, rel=1e-5)
    class_kl = (0.2**2 + 0.5**2 - 1) / 2 - torch.tensor(0.2).log().item()
    assert elbo.terms.shared_terms.sum().item() == pytest.approx(classes * class_kl, rel=1e-4)
    cost_of_parts = 6 * (0.5 + torch.tensor(2 * torch.pi).log().item() / 2)  # for each input
    torch.testing.assert_close(elbo.terms.other_terms - elbo.terms.shared_terms, torch.full((B,), cost_of_parts))
    with pytest.raises(ConfigError, match="all inputs share the site 'w'"):
        guide_draws(model, guide, x, y, steps=1, num_samples=2)


def test_shared_latents_count_once_however_many_chunks_of_inputs():
    model, guide, x, y = pair(Shared, SharedGuide)
    whole_bounds = bounds(model, guide, x, y, steps=1)
    chunked_bounds = bounds(model, guide, x, y, steps=1, max_traced=2)
    torch.testing.assert_close(whole_bounds.other_terms.sum(), chunked_bounds.other_terms.sum())
    for results in (whole_bounds, chunked_bounds):
        torch.testing.assert_close(results.full, -results.reconstruction - results.kl.sum(0) - results.other_terms)
    torch.manual_seed(0)
    terms(model, guide, x, y, truncated=False)
    bound = terms(model, guide, x, y).elbo
    torch.testing.assert_close(whole_bounds.surrogate, bound)


def test_observations_for_another_number_of_inputs_than_y_are_refused():
    """Inputs are split into chunks, but other data that a model observes are not."""
    model, guide, x, y = pair()
    model.measurements = torch.linspace(-1, 1, B)
    with pytest.raises(ConfigError, match="'measured' has values for 5 inputs where y has 1"):
        bounds(model, guide, x, y, steps=1, max_traced=1)
    with pytest.raises(ConfigError, match="'measured' has values for 5 inputs where y has 1"):
        guide_draws(model, guide, x, y, steps=1, num_samples=2, max_traced=2)


class Auxiliary(AmortizedGuide):
    """A guide with an auxiliary draw ``a``. Pyro puts ``a`` into the traces of guide and model with equal densities."""

    def get_posterior(self, name, prior):
        if name == "c":
            a = pyro.sample("a", dist.Normal(torch.zeros(prior.batch_shape), 2.0), infer={"is_auxiliary": True})
            return dist.Normal(a, 0.3)
        return super().get_posterior(name, prior)


def test_auxiliary_draws_of_an_effect_guide_cancel_as_in_pyro():
    model, guide, x, y = pair(guide_class=Auxiliary)
    weights = guide_draws(model, guide, x, y, steps=1, num_samples=3, seed=4).log_weight
    torch.testing.assert_close(weights, weights_by_hand(guide, x, y, "c", seed=4))
    torch.manual_seed(4)
    settings = {"num_particles": 3, "vectorize_particles": True, "max_plate_nesting": 1}
    with pyro.validation_enabled(False):  # Pyro's validation warns of auxiliary sites in a model
        pyro_loss = Trace_ELBO(**settings).loss(model, guide, x, y, truncated=False)
    assert weights.sum().item() / 3 == pytest.approx(-pyro_loss, rel=1e-5)


def test_guidance_whose_draws_have_no_gradient_is_refused():
    model, guide, x, y = pair(model={"transitions": 1})

    class Rough(dist.Normal):
        has_rsample = False

    guide.posterior = lambda u, code, prior: Rough(u, 0.1).to_event(2)
    with pyro.validation_enabled(False), pytest.raises(NotImplementedError, match="'eps_0' from a Rough"):
        BalancedELBO().loss_and_grads(model, guide, x, y)


@pytest.mark.parametrize("vectorize", [False, True])
def test_particles_give_pyros_bound(vectorize):
    model, guide, x, y = pair(model={"truncated": False})
    settings = {"num_particles": 3, "vectorize_particles": vectorize, "max_plate_nesting": 1}
    losses = []
    for elbo in (TraceMeanField_ELBO(**settings), BalancedELBO(**settings)):
        torch.manual_seed(2)
        losses.append(float(elbo.loss(model, guide, x, y)))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_the_trace_elbo_has_the_loss_of_pyros():
    model, guide, x, y = pair(model={"truncated": False})
    torch.manual_seed(3)
    pyro_loss = Trace_ELBO().loss(model, guide, x, y)
    torch.manual_seed(3)
    loss = make_elbo("trace").loss(model, guide, x, y)
    assert loss == pytest.approx(pyro_loss, rel=1e-6)
