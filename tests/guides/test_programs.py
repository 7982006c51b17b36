"""Every prior, guide, model and task keeps the contract. Each is tested together with several of the others."""

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
from tests.conftest import Case, build_case, program_names

PROGRAMS = program_names()
ELBOS = ("balanced", "trace", "mean_field")
PYRO_BOUNDS = [
    (kind, settings | {"vectorize_particles": vectorize})
    for kind, settings in ((Trace_ELBO, {}), (TraceMeanField_ELBO, {}), (RenyiELBO, {"alpha": 0.0}))
    for vectorize in (False, True)
]


@pytest.fixture(scope="module", params=range(len(PROGRAMS)), ids=["-".join(p.values()) for p in PROGRAMS])
def built_case(request):
    case = build_case(**PROGRAMS[request.param])
    return request.param, case


@pytest.fixture
def case(built_case):
    """Return a copy of ``built_case``. A test may train the copy."""
    case = built_case[1]
    return Case(copy.deepcopy(case.solver, {id(case.solver.task): case.solver.task}), case.x, case.y)


@pytest.fixture
def number(built_case):
    return built_case[0]


def parts(case):
    return case.solver.model, case.solver.guide


def test_programs_take_any_leading_batch_shape(case):
    for batch in ((), (5,), (2, 5)):
        index = torch.arange(5).expand(*batch) if batch else torch.tensor(0)
        bound = terms(*parts(case), None if case.x is None else case.x[index], case.y[index])
        assert bound.elbo.shape == batch
        assert bound.kl.shape[1:] == batch
        assert torch.isfinite(bound.elbo).all()


def test_pyros_own_bounds_are_finite(case, number):
    kind, settings = PYRO_BOUNDS[number % len(PYRO_BOUNDS)]
    bound = kind(num_particles=2, max_plate_nesting=1, **settings)
    assert torch.isfinite(torch.as_tensor(bound.loss_and_grads(*parts(case), case.x, case.y)))


def test_every_parameter_gets_a_gradient(case, number):
    model, guide = parts(case)
    make_elbo(ELBOS[number % len(ELBOS)]).loss_and_grads(model, guide, case.x, case.y)
    parameters = {**dict(model.named_parameters(prefix="model")), **dict(guide.named_parameters(prefix="guide"))}
    assert [n for n, p in parameters.items() if p.grad is None or not p.grad.any()] == []


def test_plain_svi_with_pyros_adam_trains_model_and_guide(case):
    """If a guide did not register a parameter, SVI would silently leave this parameter untrained."""
    before = {n: p.detach().clone() for m in parts(case) for n, p in m.named_parameters()}
    SVI(*parts(case), pyro.optim.Adam({"lr": 0.01}), Trace_ELBO()).step(case.x, case.y)
    assert [n for m in parts(case) for n, p in m.named_parameters() if torch.equal(p, before[n])] == []


def test_the_one_pass_bound_equals_the_two_pass_bound(case):
    model, guide = parts(case)
    if not model_traits(model).has_exact_likelihood:
        pytest.skip("a diffusion model estimates its bound anew in each pass")

    def two_pass_guide(x, y):
        with poutine.block(hide_fn=lambda site: site["type"] == "sample" and site["is_observed"]):
            guide(x, y)

    pyro.set_rng_seed(3)
    loss = Trace_ELBO().loss(model, guide, case.x, case.y)
    pyro.set_rng_seed(3)
    assert loss == pytest.approx(Trace_ELBO().loss(model, two_pass_guide, case.x, case.y), rel=1e-5)


def test_predictive_adds_a_dimension_of_samples(case, number):
    samples = Predictive(case.solver.model, num_samples=3, parallel=bool(number % 2))(case.x)
    assert samples["y"].shape == (3, *(case.y.shape if case.x is not None else case.y.shape[1:]))


def test_copies_and_pickles_keep_the_guide_on_its_model(case, number):
    if hasattr(case.solver.guide, "forget"):
        case.solver.guide(case.x, case.y)  # the guide now holds a trace, which copies do not get
    model, guide = copy.deepcopy(parts(case)) if number % 2 else pickle.loads(pickle.dumps(parts(case)))
    assert model is not case.solver.model
    assert (guide if hasattr(guide, "model") else guide.inference).model is model
    pyro.set_rng_seed(2)
    elbo = terms(model, guide, case.x, case.y).elbo
    pyro.set_rng_seed(2)
    torch.testing.assert_close(elbo, terms(*parts(case), case.x, case.y).elbo)


def test_a_missing_y_raises_instead_of_sampling_the_prior(case):
    with pytest.raises(ValueError, match="was called without y"):
        case.solver.guide(case.x, None)


@pytest.mark.parametrize("model", ["gram", "direct", "vae", "mdlm"])
def test_render_model_shows_the_guidance_of_models_that_have_it(model):
    case = build_case(model_name=model)
    source = pyro.render_model(case.solver.model, (case.x, case.y)).source
    assert ("eps_0" in source) == model_traits(case.solver.model).has_guidance
