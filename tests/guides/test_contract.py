"""Every prior with every guide that is meaningful for it, and every model on every task, keep the same promises."""

import copy
import pickle

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO

from pyro_gram.diagnostics.bounds import terms
from pyro_gram.inference.contract import model_traits
from pyro_gram.inference.elbo import make_elbo
from tests.conftest import build_case, program_names


@pytest.fixture(params=program_names(), ids=lambda names: "-".join(names.values()))
def case(request):
    return build_case(**request.param)


def bounded(case):
    """Diffusion models estimate their bound by a draw of their own, anew at each call."""
    return not model_traits(case.solver.model).has_exact_likelihood


def parts(case):
    return case.solver.model, case.solver.guide


@pytest.mark.parametrize("batch", [(), (5,), (2, 5)])
def test_any_leading_batch_shape(case, batch):
    model, guide = parts(case)
    index = torch.arange(5).expand(*batch) if batch else torch.tensor(0)
    found = terms(model, guide, None if case.x is None else case.x[index], case.y[index])
    assert found.elbo.shape == batch
    assert found.kl.shape[1:] == batch
    assert torch.isfinite(found.elbo).all()


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO, RenyiELBO])
@pytest.mark.parametrize("vectorize", [False, True])
def test_pyros_own_bounds_are_finite(case, elbo, vectorize):
    model, guide = parts(case)
    settings = {"alpha": 0.0} if elbo is RenyiELBO else {}
    bound = elbo(num_particles=2, vectorize_particles=vectorize, max_plate_nesting=1, **settings)
    loss = bound.loss_and_grads(model, guide, case.x, case.y)
    assert torch.isfinite(torch.as_tensor(loss))


@pytest.mark.parametrize("name", ["balanced", "trace", "mean_field"])
def test_every_parameter_gets_a_gradient(case, name):
    model, guide = parts(case)
    make_elbo(name).loss_and_grads(model, guide, case.x, case.y)
    named = {**dict(model.named_parameters(prefix="model")), **dict(guide.named_parameters(prefix="guide"))}
    missing = [n for n, p in named.items() if p.grad is None or not p.grad.any()]
    assert missing == []


def test_plain_svi_with_pyros_adam_trains_model_and_guide(case):
    """Guide-only parameters are silently untrained under SVI unless the guide announces them."""
    model, guide = parts(case)
    before = {n: p.detach().clone() for m in (model, guide) for n, p in m.named_parameters()}
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    svi.step(case.x, case.y)
    same = [n for m in (model, guide) for n, p in m.named_parameters() if torch.equal(p, before[n])]
    assert same == []


def test_messenger_bound_equals_two_pass_bound(case):
    if bounded(case):
        pytest.skip("a second pass draws another bound")
    model, guide = parts(case)
    pyro.set_rng_seed(3)
    one = Trace_ELBO().loss(model, guide, case.x, case.y)

    def two_pass_guide(x, y):
        with poutine.block(hide_fn=lambda site: site["type"] == "sample" and site["is_observed"]):
            guide(x, y)

    pyro.set_rng_seed(3)
    two = Trace_ELBO().loss(model, two_pass_guide, case.x, case.y)
    assert one == pytest.approx(two, rel=1e-5)


@pytest.mark.parametrize("parallel", [False, True])
def test_predictive_shapes(case, parallel):
    model, _ = parts(case)
    drawn = Predictive(model, num_samples=3, parallel=parallel)(case.x)
    assert drawn["y"].shape == (3, *(case.y.shape if case.x is not None else case.y.shape[1:]))


def test_copies_and_pickles_keep_the_guide_on_its_model(case):
    case.solver.guide(case.x, case.y) if hasattr(case.solver.guide, "forget") else None
    for pair in (copy.deepcopy(parts(case)), pickle.loads(pickle.dumps(parts(case)))):
        model, guide = pair
        assert model is not case.solver.model
        inner = guide if hasattr(guide, "model") else guide.inference
        assert inner.model is model
        pyro.set_rng_seed(2)
        again = terms(model, guide, case.x, case.y).elbo
        pyro.set_rng_seed(2)
        torch.testing.assert_close(again, terms(*parts(case), case.x, case.y).elbo)


def test_a_missing_y_is_an_error_not_the_prior(case):
    with pytest.raises(ValueError, match="was called without y"):
        case.solver.guide(case.x, None)


def test_render_model_takes_the_pair(case):
    source = pyro.render_model(case.solver.model, (case.x, case.y)).source
    assert ("eps_0" in source) == model_traits(case.solver.model).has_guidance
