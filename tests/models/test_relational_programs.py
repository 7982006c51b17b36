"""Models with ``mixer = relations`` are Pyro programs as others are; the autoregressive one is causal."""

from copy import deepcopy
from dataclasses import replace
from itertools import product

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Importance, Predictive, Trace_ELBO, TraceMeanField_ELBO

from pyro_gram.inference.guide import EffectGuide
from pyro_gram.inference.importance import guide_draws
from pyro_gram.sampling.rollout import rollout
from tests.networks.relational import SPECS, make_pairs, make_program, positions_of

TASKS = tuple(SPECS)


@pytest.fixture(params=TASKS)
def task(request):
    return request.param


def test_predictive_draws_open_values_only_and_as_a_rollout_does(task):
    model, _ = make_program(SPECS[task])
    x, _ = make_pairs(task)

    def seeded_model(x):  # Predictive runs the model more than once
        pyro.set_rng_seed(0)
        return model(x)

    draws = Predictive(seeded_model, num_samples=6, parallel=True)(x)
    values = model.structure.values
    assert draws["y"].shape == (6, *x.shape[:1], SPECS[task].output_length)
    assert values.expand(6, *values.shape).gather(-1, draws["y"][..., None]).all()
    h = draws["h"]
    assert h.shape == (6, len(x), SPECS[task].positions, 12)
    assert not h[:, ~model.mask].any()
    largest = SPECS[task].sizes_of(x) == x.shape[-1]  # a rollout sorts inputs by size, and crops smaller ones
    end = Predictive(seeded_model, num_samples=6, parallel=True)(x[largest])
    expected_tokens = model.likelihood(end["h"]).mode
    assert torch.equal(rollout(model, x[largest], num_samples=6, depth=1, seed=0).tokens, expected_tokens)
    one_by_one = Predictive(model, num_samples=2)(x)
    assert one_by_one["y"].shape == (2, *x.shape[:1], SPECS[task].output_length)


def test_a_trace_has_the_sites_of_the_program(task):
    model, _ = make_program(SPECS[task])
    x, y = make_pairs(task)
    trace = poutine.trace(model).get_trace(x, y, steps=2)
    names = {"data", *(f"{kind}_{t}" for kind in ("u", "eps") for t in range(4)), "h", "l", "y"}
    assert {name for name, site in trace.nodes.items() if site["type"] == "sample"} == names
    trace.compute_log_prob()
    assert trace.nodes["y"]["log_prob"].shape == (len(x),)
    is_padding = ~model.mask
    for name in ("h", "l", "u_0", "u_3"):
        assert not trace.nodes[name]["value"][is_padding].any()
        assert trace.nodes[name]["value"][~is_padding].all()


def test_importance_weights_are_those_of_model_and_guide(task):
    model, guide = make_program(SPECS[task])
    x, y = make_pairs(task)
    pyro.set_rng_seed(0)
    importance = Importance(model, guide, num_samples=1).run(x, y)
    pyro.set_rng_seed(0)
    guide(x, y)
    p, q = guide.get_traces()
    expected = p.nodes["y"]["fn"].log_prob(y).sum()
    for b in range(len(x)):  # only what is not padding counts; the first transition has no density (Eq. 14)
        positions = positions_of(task, x[b])
        for trace, sign in ((p, 1), (q, -1)):
            normal = trace.nodes["eps_1"]["fn"].base_dist
            density = dist.Normal(normal.loc[b, positions], normal.scale[b, positions])
            expected = expected + sign * density.log_prob(trace.nodes["eps_1"]["value"][b, positions]).sum()
    assert importance.log_weights[0].item() == pytest.approx(expected.item(), rel=1e-4)


class Shift(EffectGuide):
    """A user's guide, which knows nothing of padding."""

    def posterior(self, u, code, prior):
        return dist.Normal(u * 0 + 0.3, 0.2).to_event(2)


def test_a_guide_of_ones_own_has_no_kl_at_padding(task):
    model, _ = make_program(SPECS[task])
    x, y = make_pairs(task)
    draws = guide_draws(model, Shift(model), x, y, steps=1, num_samples=1)
    for b in range(len(x)):
        x_b, y_b = SPECS[task].crop(x[b : b + 1], y[b : b + 1])
        lone_draws = guide_draws(model, Shift(model), x_b, y_b, steps=1, num_samples=1)
        torch.testing.assert_close(draws.kl[0, :, b], lone_draws.kl[0, :, 0], rtol=1e-4, atol=1e-4)


def test_render_model_shows_the_program(task):
    model, _ = make_program(SPECS[task])
    source = pyro.render_model(model, make_pairs(task)).source
    assert "eps_0 -> " in source
    assert "-> y" in source


@pytest.mark.parametrize("layers", [0, 1])
def test_copies_and_state_dicts_give_the_same_answers(task, layers):
    parts = {"guide_config": {"layers": layers}}
    model, guide = make_program(SPECS[task], **parts)
    x, y = make_pairs(task)
    guide(x, y)
    new_model, new_guide = make_program(SPECS[task], **parts)
    new_model.load_state_dict(model.state_dict())
    new_guide.load_state_dict(guide.state_dict())
    assert not {name for name in model.state_dict() if "structure" in name or "bias" in name.split(".")[0]}
    for other, other_guide in (deepcopy((model, guide)), (new_model, new_guide)):
        losses = []
        for a, b in ((model, guide), (other, other_guide)):
            pyro.set_rng_seed(0)
            losses.append(TraceMeanField_ELBO().loss(a, b, x, y))
        assert losses[0] == losses[1]


def test_no_size_is_in_the_parameters(task):
    """A model and a guide for larger inputs have the same weights."""
    spec, parts = SPECS[task], {"guide_config": {"layers": 1}}
    features = None if spec.input_features is None else 9
    larger_spec = replace(spec, input_length=9, input_features=features, output_length=9)
    for part, larger_part in zip(make_program(spec, **parts), make_program(larger_spec, **parts), strict=True):
        larger_part.load_state_dict(part.state_dict())


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
@pytest.mark.parametrize("model", ["gram", "trm", "vae", "autoregressive", "d3pm"])
def test_svi_trains_every_parameter(model, elbo):
    parts = {} if model in ("gram", "vae") else {"prior": "none", "guide": "prior"}
    program, guide = make_program(SPECS["graphs"], model, **parts)
    x, y = make_pairs("graphs")
    before = deepcopy(dict(program.named_parameters()) | {f"guide.{k}": v for k, v in guide.named_parameters()})
    loss = SVI(program, guide, pyro.optim.SGD({"lr": 1e-3}), elbo()).step(x, y)
    assert torch.tensor(loss).isfinite()
    after = dict(program.named_parameters()) | {f"guide.{k}": v for k, v in guide.named_parameters()}
    unchanged = {name for name, value in after.items() if torch.equal(value, before[name])}
    assert unchanged == set()
    assert all(value.isfinite().all() for value in after.values())


def test_training_with_padding_has_the_gradient_of_lone_inputs():
    """The sum of the gradients of cropped inputs is that of the padded batch (guidance is 0 in both)."""
    model, _ = make_program(SPECS["graphs"], prior="none", guide="prior")
    x, y = make_pairs("graphs")

    def gradient(pairs):
        total = sum(poutine.trace(model).get_trace(a, b).log_prob_sum() for a, b in pairs)
        parameters = [p for name, p in model.named_parameters() if not name.startswith("prior")]
        return torch.autograd.grad(total, parameters)

    lone = [SPECS["graphs"].crop(x[i : i + 1], y[i : i + 1]) for i in range(len(x))]
    for a, b in zip(gradient([(x, y)]), gradient(lone), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


# ---- the autoregressive model ----------------------------------------------------------------------------------------


@pytest.fixture
def causal():
    """Return an autoregressive model that has read graphs, their pairs, and its distribution."""
    model, _ = make_program(SPECS["graphs"], "autoregressive", "none", "prior", model_config={"layers": 2})
    x, y = make_pairs("graphs")
    trace = poutine.trace(model.double()).get_trace(x, y)
    return model, x, y, trace.nodes["y"]["fn"]


def test_logits_depend_on_earlier_tokens_and_on_the_input_only(causal):
    _, _, y, answers = causal
    logits = answers.logits(answers.e_x, y[:, :-1])
    n = y.shape[-1]
    later, earlier = torch.zeros(n, n), torch.zeros(n, n)
    for j in range(n - 1):
        for token in range(3):
            changed = y[:, :-1].clone()
            changed[1, j] = token  # the largest graph
            difference = (answers.logits(answers.e_x, changed) - logits).abs()
            assert not difference[[0, 2, 3]].any()
            later[:, j] += difference[1].sum(-1) * (torch.arange(n) <= j)
            earlier[:, j] += difference[1].sum(-1) * (torch.arange(n) > j)
    assert not later.any()
    assert (earlier > 1e-9).sum() == n * (n - 1) // 2


def test_logits_depend_on_the_whole_input(causal):
    model, x, y, answers = causal
    log_p = answers.log_prob(y)
    for j in range(x.shape[-1]):
        changed = x.clone()
        changed[1, j, (j + 1) % 6] = changed[1, (j + 1) % 6, j] = 1 - x[1, j, (j + 1) % 6]  # add or remove an edge
        new_log_p = poutine.trace(model).get_trace(changed, y).nodes["y"]["fn"].log_prob(y)
        assert (new_log_p - log_p)[1].abs() > 1e-9
        torch.testing.assert_close(new_log_p[[0, 2, 3]], log_p[[0, 2, 3]])


def test_a_distribution_keeps_the_structure_of_its_input(causal):
    model, x, y, answers = causal
    log_p = answers.log_prob(y)
    model(x.flip(0), y.flip(0))
    torch.testing.assert_close(answers.log_prob(y), log_p)


def test_probabilities_of_all_answers_sum_to_one(causal):
    model, x, _, _ = causal
    x = SPECS["graphs"].crop(x[[0, 2]], x[[0, 2]])[0]  # three and four vertices, of which some have closed values
    answers = poutine.trace(model).get_trace(x).nodes["y"]["fn"]
    all_tokens = torch.tensor(list(product(range(3), repeat=4)))
    probabilities = answers.log_prob(all_tokens[:, None].expand(-1, 2, -1)).exp()
    torch.testing.assert_close(probabilities.sum(0), torch.ones(2, dtype=torch.double))
    values = model.structure.values.expand(len(all_tokens), -1, -1, -1)
    is_open = values.gather(-1, all_tokens[:, None, :, None].expand(-1, 2, -1, -1)).all(-1).all(-1)
    assert torch.equal(probabilities > 0, is_open)
    assert not is_open.all()
    draws = answers.sample((200,))
    assert not draws[:, 0, 3].any()  # padding
    assert (answers.log_prob(draws) > -100).all()
