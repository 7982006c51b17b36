"""The GRAM program has the right sites, can be conditioned on them, and works with ordinary Pyro tools."""

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive

from pyro_gram.errors import ConfigError
from pyro_gram.networks.core import LatentState
from tests.conftest import build_case, build_small


def sites(trace, kind="sample"):
    return [n for n, s in trace.nodes.items() if s["type"] == kind]


def test_one_supervision_step_has_t_transitions_and_reads_its_answer_from_the_last(case):
    trace = poutine.trace(case.solver.model).get_trace(case.x, case.y)
    assert [n for n in sites(trace) if n != "data"] == ["u_0", "eps_0", "u_1", "eps_1", "h", "l", "y"]
    h = trace.nodes["u_1"]["value"] + trace.nodes["eps_1"]["value"]
    torch.testing.assert_close(trace.nodes["h"]["value"], h)
    torch.testing.assert_close(trace.nodes["y"]["fn"].base_dist.logits.exp().sum(-1), torch.ones(5, 4))
    assert trace.nodes["eps_0"]["fn"].batch_shape == (5,)
    assert trace.nodes["eps_0"]["fn"].event_shape == (4, 16)


def test_several_supervision_steps_in_one_call_equal_several_calls(case):
    model = case.solver.model
    with torch.no_grad():
        pyro.set_rng_seed(1)
        full_trace = poutine.trace(model).get_trace(case.x, case.y, steps=3)
        pyro.set_rng_seed(1)
        state, step_traces = None, []
        for _ in range(3):
            step_trace = poutine.trace(model).get_trace(case.x, case.y, state)
            state = LatentState(step_trace.nodes["h"]["value"], step_trace.nodes["l"]["value"])
            step_traces.append(step_trace)
    assert sum(n.startswith("eps_") for n in full_trace.nodes) == 6
    torch.testing.assert_close(full_trace.nodes["h"]["value"], state.h)
    torch.testing.assert_close(full_trace.nodes["eps_5"]["value"], step_traces[2].nodes["eps_1"]["value"])


def test_transitions_are_markov(case):
    """Pyro's enumeration needs the Markov scope of each site. A loop over a plain ``range`` would record no scope."""
    trace = poutine.trace(case.solver.model).get_trace(case.x, case.y, steps=2)
    assert [f for f in trace.nodes["eps_3"]["cond_indep_stack"] if not f.vectorized] == []  # markov adds no plate
    scopes = [{n for n, k in trace.nodes[f"eps_{t}"]["infer"]["_markov_scope"].items() if k} for t in range(4)]
    for t in range(4):
        assert scopes[t] == {f"u_{t}"} | ({f"u_{t - 1}", f"eps_{t - 1}"} if t else set())
    assert [trace.nodes[f"eps_{t}"]["infer"]["_markov_depth"] for t in range(4)] == [1] * 4
    assert "_markov_scope" not in trace.nodes["y"]["infer"]


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_the_model_takes_any_leading_batch_shape(batch):
    solver = build_small()
    x = solver.task.split("train").inputs[0].expand(*batch, 4, 4)
    trace = poutine.trace(solver.model).get_trace(x)
    trace.compute_log_prob()
    assert trace.nodes["y"]["value"].shape == (*batch, 4)
    assert trace.nodes["eps_0"]["log_prob"].shape == batch
    assert trace.nodes["h"]["value"].shape == (*batch, 4, 16)


def test_without_input_the_model_is_p_of_x():
    solver = build_small()
    y = torch.zeros(7, 4, dtype=torch.long)
    trace = poutine.trace(solver.model).get_trace(None, y)
    assert trace.nodes["y"]["fn"].batch_shape == (7,)
    assert (solver.model.encode(None, torch.Size([7])) == 0).all()
    samples = Predictive(solver.model, num_samples=6)(None)
    assert samples["y"].shape[0] == 6


def test_truncation_stops_the_gradient_and_the_kl_of_the_first_transitions():
    case = build_case(model={"transitions": 3})
    trace = poutine.trace(case.solver.model).get_trace(case.x, case.y)
    assert [trace.nodes[f"u_{t}"]["value"].requires_grad for t in range(3)] == [False, False, True]
    trace.compute_log_prob()
    assert [bool(trace.nodes[f"eps_{t}"]["log_prob_sum"] != 0) for t in range(3)] == [False, False, True]
    full_trace = poutine.trace(case.solver.model).get_trace(case.x, case.y, truncated=False)
    full_trace.compute_log_prob()
    assert all(full_trace.nodes[f"u_{t}"]["value"].requires_grad for t in range(3))
    assert all(bool(full_trace.nodes[f"eps_{t}"]["log_prob_sum"] != 0) for t in range(3))


def test_beta_scales_only_the_guidance(case):
    trace = poutine.trace(case.solver.model).get_trace(case.x, case.y, beta=3.0)
    trace.compute_log_prob()
    assert trace.nodes["eps_1"]["scale"] == 3.0
    assert trace.nodes["y"]["scale"] == 1.0
    torch.testing.assert_close(trace.nodes["eps_1"]["log_prob"], 3 * trace.nodes["eps_1"]["unscaled_log_prob"])


def test_conditioning_on_no_guidance_is_the_deterministic_recursion(case):
    """TRM is GRAM conditioned on eps = 0."""
    model = case.solver.model
    zero_guidance = {f"eps_{t}": torch.zeros(5, 4, 16) for t in range(2)}
    trace = poutine.trace(poutine.condition(model, zero_guidance)).get_trace(case.x)
    h, l = model.h0.expand(5, 4, 16), model.l0.expand(5, 4, 16)
    e_x = model.encoder(case.x)
    for _ in range(2):
        for _ in range(2):
            l = model.core.f_L(l + (h + e_x))
        h = model.core.f_H(h + l)
    torch.testing.assert_close(trace.nodes["h"]["value"], h)


def test_z0_is_a_buffer_saved_with_the_weights_and_never_resampled(case):
    model = case.solver.model
    assert {"h0", "l0"} <= set(model.state_dict())
    old_h0 = model.h0.clone()
    model(case.x)
    assert torch.equal(model.h0, old_h0)
    assert abs(model.h0.std() - 1) < 0.3


@pytest.mark.parametrize("parallel", [False, True])
def test_predictive_draws_answers(case, parallel):
    samples = Predictive(case.solver.model, num_samples=3, parallel=parallel)(case.x)
    assert samples["y"].shape == (3, 5, 4)
    assert samples["eps_0"].shape == (3, 5, 4, 16)


def test_render_model_shows_the_program(case):
    graph = pyro.render_model(case.solver.model, (case.x, case.y))
    for site in ("eps_0", "u_1", "h", "y"):
        assert site in graph.source


def test_a_user_can_extend_the_model_in_plain_pyro(case):
    """The user adds a latent, a global temperature, in a few lines around the program."""
    model = case.solver.model
    log_normal = pyro.distributions.LogNormal(0.0, 0.1)

    def tempered_model(x, y=None):
        temperature = pyro.sample("temperature", log_normal)
        with poutine.scale(scale=1 / temperature.item()):
            return model(x, y)

    trace = poutine.trace(tempered_model).get_trace(case.x, case.y)
    draws = {n: trace.nodes[n]["value"] for n in ("eps_0", "eps_1")}
    plain_trace = poutine.trace(pyro.condition(model, draws)).get_trace(case.x, case.y)
    temperature = trace.nodes["temperature"]["value"]
    expected = log_normal.log_prob(temperature) + plain_trace.log_prob_sum() / temperature
    torch.testing.assert_close(trace.log_prob_sum(), expected)
    last_log_p = model.prior(trace.nodes["u_1"]["value"]).log_prob(draws["eps_1"])  # the loss has no KL of eps_0
    answer_log_p = model.likelihood(trace.nodes["h"]["value"]).log_prob(case.y)
    torch.testing.assert_close(plain_trace.log_prob_sum(), (last_log_p + answer_log_p).sum())


def test_the_model_follows_its_equations_from_any_state(case):
    """Eq. 6-9 are computed by hand, from a given state and with a given beta. With steps = 0 the state is unchanged."""
    model = case.solver.model
    state = LatentState(torch.randn(5, 4, 16), torch.randn(5, 4, 16))
    trace = poutine.trace(model).get_trace(case.x, case.y, state, truncated=False, beta=0.5)
    e_x = model.encoder(case.x)
    h, l = state
    for t in range(2):
        for _ in range(model.config.low_steps):
            l = model.core.f_L(l + (h + e_x))
        u = model.core.f_H(h + l)
        torch.testing.assert_close(trace.nodes[f"u_{t}"]["value"], u)
        assert trace.nodes[f"u_{t}"]["fn"].event_dim == 2
        loc, scale = model.prior.head(u)
        normal = torch.distributions.Normal(loc, scale)
        eps = trace.nodes[f"eps_{t}"]
        torch.testing.assert_close(eps["fn"].log_prob(eps["value"]), normal.log_prob(eps["value"]).sum((-1, -2)))
        assert eps["scale"] == 0.5
        h = u + eps["value"]
    torch.testing.assert_close(trace.nodes["h"]["value"], h)
    torch.testing.assert_close(trace.nodes["l"]["value"], l)
    decoded_trace = poutine.trace(model).get_trace(case.x, None, state, steps=0)
    assert not any(n.startswith("eps_") for n in decoded_trace.nodes)
    expected = model.decoder(state.h).log_softmax(-1)
    torch.testing.assert_close(decoded_trace.nodes["y"]["fn"].base_dist.logits.log_softmax(-1), expected)
    log_p = expected.gather(-1, case.y[..., None]).sum((-1, -2))
    torch.testing.assert_close(decoded_trace.nodes["y"]["fn"].log_prob(case.y), log_p)


def test_reason_defaults_to_one_supervision_step_from_site_0_at_beta_1(case):
    model = case.solver.model
    e_x = model.encode(case.x)
    trace = poutine.trace(model.reason).get_trace(e_x, model.initial_state(e_x))
    assert sites(trace) == ["u_0", "eps_0", "u_1", "eps_1"]
    assert [trace.nodes[f"eps_{t}"]["scale"] for t in range(2)] == [1.0, 1.0]
    assert [trace.nodes[f"eps_{t}"]["mask"] for t in range(2)] == [False, True]  # truncated as the config says
    later_trace = poutine.trace(model.reason).get_trace(e_x, model.initial_state(e_x), first=4, steps=2)
    assert sites(later_trace) == [f"{kind}_{t}" for t in range(4, 8) for kind in ("u", "eps")]


def test_heads_are_sampled_without_y_and_without_gradient_into_the_state():
    case = build_case()
    model = case.solver.model
    calls = []

    class Heads(torch.nn.Module):
        def forward(self, h, e_x, probabilities):
            calls.append((h, e_x, probabilities))
            return h.mean((-1, -2)), e_x.mean((-1, -2))

    model.heads = Heads()
    assert not {"halt", "value"} & set(poutine.trace(model).get_trace(case.x, case.y).nodes)
    trace = poutine.trace(model).get_trace(case.x)
    ((h, e_x, probabilities),) = calls
    assert not any(t.requires_grad for t in (h, e_x, probabilities))
    torch.testing.assert_close(h, trace.nodes["h"]["value"].detach())
    torch.testing.assert_close(e_x, model.encoder(case.x).detach())
    torch.testing.assert_close(probabilities, model.decoder(h).softmax(-1).detach())
    halt, value = trace.nodes["halt"]["fn"], trace.nodes["value"]["fn"]
    torch.testing.assert_close(halt.probs, h.mean((-1, -2)).sigmoid())
    torch.testing.assert_close(value.mean, e_x.mean((-1, -2)).sigmoid())
    # The variance is one half: the negative log density is the squared error, up to a constant.
    error = -value.log_prob(value.mean + 0.3) + value.log_prob(value.mean)
    torch.testing.assert_close(error, torch.full((5,), 0.09))


@pytest.mark.parametrize("prefix", [0, 3])
def test_z0_has_the_length_of_the_input_and_its_prefix(prefix):
    case = build_case(model={"prefix": prefix})
    model = case.solver.model
    assert model.h0.shape == model.l0.shape == (4 + prefix, 16)
    assert not torch.equal(model.h0, model.l0)
    e_x = model.encode(case.x)
    assert e_x.shape == (5, 4 + prefix, 16)
    assert (e_x[:, :prefix] == 0).all()
    start = model.initial_state(e_x)
    assert torch.equal(start.h, model.h0.expand(5, -1, -1))
    assert torch.equal(start.l, model.l0.expand(5, -1, -1))


def test_a_config_without_transitions_is_an_error():
    with pytest.raises(ConfigError, match="transitions must be at least 1"):
        build_small(model={"transitions": 0})
