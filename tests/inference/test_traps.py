"""Effect guides could be silently wrong under Pyro's inference: each test shows how the library prevents one error."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import RenyiELBO, Trace_ELBO

from pyro_gram.diagnostics.bounds import terms
from pyro_gram.inference.elbo import make_elbo
from pyro_gram.inference.guide import EffectGuide
from pyro_gram.inference.importance import guide_draws, log_evidence
from pyro_gram.inference.sites import register_parameters
from tests.conftest import build_case, small_config


def test_handlers_must_be_around_the_model_before_the_guide_is_built(case):
    """For an effect guide, Pyro's ELBOs run the guide's own model and ignore the model that they get as an argument."""
    model, guide = case.solver.model, case.solver.guide
    masked_model = poutine.mask(model, mask=False)
    pyro.set_rng_seed(0)
    plain_loss = Trace_ELBO().loss(model, guide, case.x, case.y)
    pyro.set_rng_seed(0)
    assert Trace_ELBO().loss(masked_model, guide, case.x, case.y) == plain_loss  # the handler had no effect

    class Silent(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x, y=None, state=None):
            with poutine.mask(mask=False):
                return self.inner(x, y, state)

    rebuilt_guide = type(guide)(small_config().guide, case.solver.task.spec, Silent(), 16)
    assert Trace_ELBO().loss(model, rebuilt_guide, case.x, case.y) == 0


def test_sites_that_are_not_guidance_keep_their_prior(case):
    """A user's own latent, or an unobserved y, must not be drawn from a posterior over guidance."""
    inner = case.solver.model

    class Tempered(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = inner

        def forward(self, x, y=None, state=None):
            pyro.sample("temperature", dist.LogNormal(0.0, 0.1))
            return self.inner(x, y, state)

    guide = type(case.solver.guide)(small_config().guide, case.solver.task.spec, Tempered(), 16)
    values = guide(case.x, case.y)
    model_trace, guide_trace = guide.get_traces()
    assert "temperature" in values
    assert guide_trace.nodes["temperature"]["fn"] is model_trace.nodes["temperature"]["fn"]
    assert torch.isfinite(torch.as_tensor(make_elbo("balanced").loss_and_grads(guide.model, guide, case.x, case.y)))
    prior = dist.Normal(0.0, 1.0)
    assert guide.get_posterior("y", prior) is prior
    assert guide.get_posterior("eps_hat", prior) is prior


def test_weights_are_log_p_minus_log_q_of_each_datum(case):
    model, guide = case.solver.model, case.solver.guide
    torch.manual_seed(4)
    with torch.no_grad(), pyro.plate("trajectories", 3, dim=-2):
        guide(case.x, case.y, truncated=False)
    model_trace, guide_trace = guide.get_traces()
    expected = torch.zeros(3, 5, dtype=torch.double)
    for t in range(2):
        value = guide_trace.nodes[f"eps_{t}"]["value"]
        expected += model_trace.nodes[f"eps_{t}"]["fn"].log_prob(value) - guide_trace.nodes[f"eps_{t}"]["fn"].log_prob(
            value
        )
    expected += model_trace.nodes["y"]["fn"].log_prob(case.y)
    draws = guide_draws(model, guide, case.x, case.y, steps=1, num_samples=3, seed=4)
    torch.testing.assert_close(draws.log_weight, expected)


def test_renyi_elbo_is_a_bound_per_datum_not_on_the_joint_batch(case):
    """With a deterministic site outside the plate, Pyro would average the products of all inputs' weights."""
    model, guide = case.solver.model, case.solver.guide
    bound = RenyiELBO(alpha=0.0, num_particles=6, vectorize_particles=True, max_plate_nesting=1)
    torch.manual_seed(9)
    with torch.no_grad():
        loss = bound.loss(model, guide, case.x, case.y, truncated=False)
    weights = guide_draws(model, guide, case.x, case.y, steps=1, num_samples=6, seed=9).log_weight
    assert -loss == pytest.approx(log_evidence(weights).sum().item(), rel=1e-4)
    joint_bound = weights.sum(1).logsumexp(0) - torch.tensor(6.0).log()
    assert abs(joint_bound.item() + loss) > 1e-3


def test_two_models_in_one_process_do_not_share_parameters():
    """``pyro.module`` would give the second model the parameters of the first, because their names are equal."""
    a, b = build_case(), build_case()
    with poutine.trace(param_only=True) as first:
        register_parameters("model", a.solver.model)
    with poutine.trace(param_only=True) as second:
        register_parameters("model", b.solver.model)
    for name, site in second.trace.nodes.items():
        assert site["value"].unconstrained() is not first.trace.nodes[name]["value"].unconstrained()
    assert len(pyro.get_param_store()) == 0


def test_a_guides_model_must_name_x_and_y():
    class Blind(EffectGuide):
        def posterior(self, u, code, prior):
            return prior

    with pytest.raises(TypeError, match="must take x and y by name; y missing"):
        Blind(lambda x: None)


def test_reported_terms_do_not_depend_on_a_scale_around_the_program(case):
    pyro.set_rng_seed(1)
    plain_terms = terms(case.solver.model, case.solver.guide, case.x, case.y)
    with poutine.scale(scale=0.1):
        pyro.set_rng_seed(1)
        scaled_terms = terms(case.solver.model, case.solver.guide, case.x, case.y)
    torch.testing.assert_close(plain_terms.elbo, scaled_terms.elbo)
