"""HRM, TRM, the flat recursion and the one-step programs agree with computations by hand."""

import pyro
import pytest
import torch
from pyro import poutine

from pyro_gram.errors import ConfigError
from pyro_gram.networks.core import LatentState
from tests.conftest import build_case, build_small

SIZES = {"transitions": 2, "low_steps": 3}


def trace_model(name, y=True, **changes):
    case = build_case(model_name=name, **changes)
    model = case.solver.model
    return case, model, poutine.trace(model).get_trace(case.x, case.y if y else None)


def start(model, case):
    e_x = model.encoder(case.x)
    return e_x, model.h0.expand_as(e_x), model.l0.expand_as(e_x)


def test_hrm_applies_its_low_level_network_several_times_in_a_transition():
    case, model, trace = trace_model("hrm", model=SIZES)
    e_x, h, l = start(model, case)
    for _ in range(2):
        for _ in range(3):
            l = model.core.f_L(l + (h + e_x))
        h = model.core.f_H(h + l)
    torch.testing.assert_close(trace.nodes["h"]["value"], h)
    torch.testing.assert_close(trace.nodes["l"]["value"], l)


def test_trm_updates_its_latent_then_its_answer_with_one_network():
    case, model, trace = trace_model("trm", model=SIZES)
    e_x, h, l = start(model, case)
    for _ in range(2):
        for _ in range(3):
            l = model.core.f(l + (h + e_x))
        h = model.core.f(h + l)
    torch.testing.assert_close(trace.nodes["h"]["value"], h)
    torch.testing.assert_close(trace.nodes["l"]["value"], l)


def test_a_flat_recursion_has_one_latent():
    case, model, trace = trace_model("flat", prior_name="none", guide_name="prior", model=SIZES)
    e_x, h, l = start(model, case)
    for _ in range(6):
        h = model.core.f(h + e_x)
    torch.testing.assert_close(trace.nodes["h"]["value"], h)
    torch.testing.assert_close(trace.nodes["l"]["value"], l)


@pytest.mark.parametrize(("name", "outputs"), [("trm", 1), ("hrm", 2)])
def test_a_halting_head_starts_with_a_small_probability(name, outputs):
    model = build_small(model_name=name).model
    fresh_model = type(model)(model.config, model.spec, model.prior)
    assert fresh_model.halting.out_features == outputs
    assert (fresh_model.halting.weight == 0).all()
    assert (fresh_model.halting.bias == -5).all()


@pytest.mark.parametrize("name", ["trm", "hrm"])
def test_the_halting_loss_has_half_the_weight_of_a_positions_cross_entropy(name):
    case, model, trace = trace_model(name)
    trace.compute_log_prob()
    logit = model.halting(trace.nodes["h"]["value"][:, 0])[:, 0]
    is_right = (model.decoder(trace.nodes["h"]["value"]).argmax(-1) == case.y).all(-1)
    log_p = torch.where(is_right, torch.nn.functional.logsigmoid(logit), torch.nn.functional.logsigmoid(-logit))
    torch.testing.assert_close(trace.nodes["halt"]["log_prob"], 0.5 * 4 * log_p)
    assert trace.nodes["halt"]["is_observed"]
    assert logit.requires_grad
    assert not trace.nodes["halted"]["value"].requires_grad
    if name == "hrm":
        assert trace.nodes["go_on"]["scale"] == 0.5 * 4


def test_the_halting_head_learns_to_halt_at_right_answers():
    case, model, trace = trace_model("trm")
    tokens = model.decoder(trace.nodes["h"]["value"]).argmax(-1)
    y = tokens.clone()
    y[0, -1] = (y[0, -1] + 1) % 3  # now one token of the first answer is wrong
    halt = poutine.trace(model).get_trace(case.x, y).nodes["halt"]["value"]
    assert halt.tolist() == [0, 1, 1, 1, 1]


@pytest.mark.parametrize(("name", "biases", "expected"), [
    ("trm", (0.5,), True), ("trm", (-0.5,), False), ("hrm", (0.5, 1.0), False), ("hrm", (-0.5, -1.0), True),
])  # fmt: skip
def test_a_trajectory_halts_if_halting_has_the_larger_value(name, biases, expected):
    case = build_case(model_name=name)
    model = case.solver.model
    with torch.no_grad():
        model.halting.weight.zero_()
        model.halting.bias.copy_(torch.tensor(biases))
    halted = poutine.trace(model).get_trace(case.x, case.y).nodes["halted"]["value"]
    assert (halted == expected).all()


@pytest.mark.parametrize("name", ["trm", "hrm"])
def test_the_halting_loss_takes_any_batch_dimensions(name):
    case, model, trace = trace_model(name)
    trace_2d = poutine.trace(model).get_trace(case.x.expand(2, *case.x.shape), case.y.expand(2, 5, 4))
    for site in ("halt", "halted"):
        assert torch.equal(trace_2d.nodes[site]["value"], trace.nodes[site]["value"].expand(2, 5))


def test_hrms_target_for_continuing_has_no_gradient_and_no_sites():
    _, model, trace = trace_model("hrm")
    names = [n for n, s in trace.nodes.items() if s["type"] == "sample" and n.startswith(("u_", "eps_"))]
    assert names == ["u_0", "eps_0", "u_1", "eps_1"]
    model.zero_grad()
    trace.nodes["go_on"]["fn"].log_factor.sum().backward()
    gradient = model.halting.weight.grad
    assert (gradient[0] == 0).all()
    assert gradient[1].any()


def test_z0_of_a_random_start_is_standard_normal_for_every_trajectory():
    case = build_case(model_name="trm", model={"initial_state": "random"})
    with pyro.plate("trajectories", 300, dim=-2):
        trace = poutine.trace(case.solver.model).get_trace(case.x)
    for name in ("z0_h", "z0_l"):
        site = trace.nodes[name]
        assert site["value"].shape == (300, 5, 4, 16)
        assert site["fn"].event_shape == (4, 16)
        assert abs(site["value"].mean()) < 0.02
        assert abs(site["value"].std() - 1) < 0.02
    assert trace.nodes["h"]["value"].shape == (300, 5, 4, 16)
    assert "draw_answer" not in trace.nodes["y"]["infer"]
    sampled_case = build_case(model_name="trm", model={"decoding": "sampled"})
    assert poutine.trace(sampled_case.solver.model).get_trace(sampled_case.x).nodes["y"]["infer"]["draw_answer"]


def test_cores_follow_their_equations_from_any_state():
    _, model, _ = trace_model("trm", model=SIZES)
    state = LatentState(torch.randn(5, 4, 16), torch.randn(5, 4, 16))
    e_x = torch.randn(5, 4, 16)
    u, l = model.core(state, e_x)
    expected = state.l
    for _ in range(3):
        expected = model.core.f(expected + state.h + e_x)
    torch.testing.assert_close(l, expected)
    torch.testing.assert_close(u, model.core.f(state.h + expected))


# ---- one step ----------------------------------------------------------------------------------------------------


def test_a_vae_is_two_stacks_and_a_latent():
    case, model, _ = trace_model("vae")
    trace = poutine.trace(model).get_trace(case.x, case.y, steps=3, beta=0.5)
    u = model.f(model.encoder(case.x))
    torch.testing.assert_close(trace.nodes["u_0"]["value"], u)
    eps = trace.nodes["eps_0"]
    h = model.g(u + eps["value"])
    for state in ("h", "l"):
        torch.testing.assert_close(trace.nodes[state]["value"], h)
    log_p = model.decoder(h).log_softmax(-1).gather(-1, case.y[..., None]).sum((-1, -2))
    trace.compute_log_prob()
    torch.testing.assert_close(trace.nodes["y"]["log_prob"], log_p)
    normal = torch.distributions.Normal(0.0, 1.0).log_prob(eps["value"]).sum((-1, -2))
    torch.testing.assert_close(eps["log_prob"], 0.5 * normal)
    assert trace.nodes["u_0"]["fn"].event_dim == 2


def test_the_latent_of_a_vae_is_embedded_by_its_prior():
    _, model, trace = trace_model("vae", prior_name="discrete", guide_name="amortized")
    eps = trace.nodes["eps_0"]["value"]
    h = model.g(trace.nodes["u_0"]["value"] + model.prior.embed_guidance(eps))
    torch.testing.assert_close(trace.nodes["h"]["value"], h)


@pytest.mark.parametrize("prefix", [0, 2])
def test_direct_prediction_ignores_state_and_steps(prefix):
    case, model, _ = trace_model("direct", model={"prefix": prefix})
    other_state = LatentState(torch.randn(5, 4 + prefix, 16), torch.randn(5, 4 + prefix, 16))
    trace = poutine.trace(model).get_trace(case.x, case.y, other_state, steps=4)
    h = model.f(model.encoder(case.x))
    assert h.shape == (5, 4 + prefix, 16)
    torch.testing.assert_close(trace.nodes["h"]["value"], h)
    log_p = model.decoder(h).log_softmax(-1).gather(-1, case.y[..., None]).sum((-1, -2))
    torch.testing.assert_close(trace.nodes["y"]["fn"].log_prob(case.y), log_p)


def test_without_input_a_one_step_model_starts_from_learned_embeddings():
    case = build_case(model_name="direct", task_name="sudoku_uncond")
    model = case.solver.model
    trace = poutine.trace(model).get_trace(None, case.y)
    assert model.start.shape == (16, 16)
    torch.testing.assert_close(trace.nodes["h"]["value"], model.f(model.start.expand(5, -1, -1)))
    assert build_case(model_name="direct").solver.model.start is None
    assert build_small(model_name="autoregressive", task_name="sudoku_uncond").model.start is None


def test_a_stack_has_the_layers_of_its_config():
    model = build_small(model_name="direct", model={"layers": 3}).model
    assert len(model.f) == 3
    assert model.stack(7, prefix=2)(torch.randn(1, 7, 16)).shape == (1, 7, 16)
    with pytest.raises(ConfigError, match="layers must be at least 1"):
        build_small(model_name="direct", model={"layers": 0})


@pytest.mark.parametrize("name", ["gram", "direct", "vae", "trm", "mdlm"])
def test_every_parameter_of_a_program_is_a_site_that_svi_sees(name):
    _, model, trace = trace_model(name)
    assert set(trace.param_nodes) == {f"model.{n}" for n, _ in model.named_parameters()}
