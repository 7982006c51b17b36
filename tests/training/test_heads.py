import pyro
import pytest
import torch
from pyro.infer import Predictive, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO

from pyro_gram.errors import ConfigError
from pyro_gram.inference.elbo import BalancedELBO
from pyro_gram.runs.measure import sample_prior
from pyro_gram.runs.run import open_run
from pyro_gram.runs.scores import _head_metrics
from pyro_gram.sampling.rollout import rollout
from pyro_gram.sampling.tempering import TemperConfig
from pyro_gram.system.distributed import SINGLE_PROCESS
from pyro_gram.training.heads import (
    EARLY_STEPS,
    HeadsConfig,
    attach_heads,
    check_heads,
    fit_heads,
    sample_states,
    train_heads,
)
from tests.conftest import build_case, perturb_, small_config

HEADS = HeadsConfig(hidden=16, attention_heads=2, layers=1, rounds=2, trajectories=16)


def attach(case):
    attach_heads(case.solver.model, case.solver.config.model, case.solver.task, HEADS, seed=0)


def build_case_with_heads(**changes):
    """Return a small case whose model has heads with perturbed weights."""
    case = build_case(**changes)
    attach(case)
    perturb_(case.solver.model.heads, 0.3)
    return case


def test_the_heads_are_sites_only_if_no_answer_is_given():
    case = build_case_with_heads()
    model = case.solver.model
    trace_without_answer = pyro.poutine.trace(model).get_trace(case.x)
    trace_with_answer = pyro.poutine.trace(model).get_trace(case.x, case.y)
    assert {"halt", "value"} <= set(trace_without_answer.nodes)
    assert (
        trace_without_answer.nodes["halt"]["fn"].batch_shape
        == trace_without_answer.nodes["value"]["fn"].batch_shape
        == (5,)
    )
    assert not {"halt", "value"} & set(trace_with_answer.nodes)


def test_predictive_draws_the_sites_of_the_heads():
    case = build_case_with_heads()
    draws = Predictive(case.solver.model, num_samples=7, parallel=True)(case.x, steps=2)
    assert draws["halt"].shape == draws["value"].shape == (7, 5)
    assert set(draws["halt"].unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("elbo", [BalancedELBO(), Trace_ELBO(), TraceMeanField_ELBO(), RenyiELBO(0.0, num_particles=3)])
def test_heads_change_no_elbo(elbo):
    case = build_case()
    model, guide = case.solver.model, case.solver.guide

    def loss():
        pyro.set_rng_seed(1)
        return float(elbo.loss(model, guide, case.x, case.y, steps=2))

    loss_without_heads = loss()
    attach(case)
    assert loss() == pytest.approx(loss_without_heads, rel=1e-6)


def test_the_heads_send_no_gradient_into_the_core():
    case = build_case_with_heads()
    model = case.solver.model
    trace = pyro.poutine.trace(model).get_trace(case.x)
    (trace.nodes["halt"]["fn"].logits.sum() + trace.nodes["value"]["fn"].mean.sum()).backward()
    names_with_gradient = {
        name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0
    }
    assert names_with_gradient
    assert all(name.startswith("heads.") for name in names_with_gradient)


def test_zero_steps_decode_the_given_state():
    case = build_case_with_heads()
    model = case.solver.model
    trace = pyro.poutine.trace(model).get_trace(case.x, steps=3)
    state = (trace.nodes["h"]["value"], trace.nodes["l"]["value"])
    later_trace = pyro.poutine.trace(model).get_trace(
        case.x, None, type(model.initial_state(model.encode(case.x)))(*state), steps=0
    )
    torch.testing.assert_close(later_trace.nodes["halt"]["fn"].logits, trace.nodes["halt"]["fn"].logits)
    assert not [name for name in later_trace.nodes if name.startswith("eps_")]


def check_first(x, tokens):
    """Check answers. In these tests an answer is right if it begins with 0."""
    return tokens[..., 0] == 0


def test_states_are_those_of_the_prior_with_the_check_of_their_answers():
    case = build_case_with_heads()
    model = case.solver.model
    states = sample_states(model, case.x, check_first, depth=EARLY_STEPS, seed=3)
    samples = rollout(model, case.x, num_samples=1, depth=EARLY_STEPS, seed=3, history=True)
    assert len(states.x) == EARLY_STEPS * len(case.x)
    is_right = check_first(case.x, samples.history[:, 0])  # [depth, B]
    assert torch.equal(states.is_right.view(EARLY_STEPS, -1), is_right)
    assert torch.equal(states.is_end_right.view(EARLY_STEPS, -1), is_right[-1].expand(EARLY_STEPS, -1))
    assert torch.equal(states.x.view(EARLY_STEPS, *case.x.shape)[1], case.x)


def test_the_check_runs_on_the_cpu():
    """Tasks compare answers with CPU tensors, but a model may be on another device."""
    case = build_case_with_heads()
    devices = []

    def check(x, tokens):
        devices.append((x.device.type, tokens.device.type))
        return check_first(x, tokens)

    sample_states(case.solver.model, case.x, check, depth=2, seed=0)
    assert set(devices) == {("cpu", "cpu")}


def test_a_share_of_late_steps_is_sampled_and_no_random_state_changes():
    case = build_case_with_heads()
    x = case.x.repeat(40, 1, 1)
    random_state = torch.get_rng_state()
    states = sample_states(case.solver.model, x, check_first, depth=2 * EARLY_STEPS, seed=3)
    assert torch.equal(random_state, torch.get_rng_state())
    expected = len(x) * (EARLY_STEPS + sum(EARLY_STEPS / s for s in range(EARLY_STEPS + 1, 2 * EARLY_STEPS + 1)))
    assert len(states.x) == pytest.approx(expected, rel=0.1)


def test_training_changes_only_the_heads_and_they_learn_the_check():
    case = build_case_with_heads()
    model = case.solver.model
    x = case.x.repeat(40, 1, 1)
    wide_temper = TemperConfig(scale=30.0, transitions=100)  # a large scale, so that answers differ
    core = {k: v.clone() for k, v in model.state_dict().items() if not k.startswith("heads.")}
    heads = {k: v.clone() for k, v in model.heads.state_dict().items()}
    config = HeadsConfig(hidden=16, attention_heads=2, layers=1, rounds=25, lr=1e-2)
    losses = list(fit_heads(model, lambda _: x, check_first, config, depth=4, temper=wide_temper))
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in core.items())
    assert any(not torch.equal(v, model.heads.state_dict()[k]) for k, v in heads.items())
    assert all(p.grad is None for name, p in model.named_parameters() if not name.startswith("heads."))
    assert losses[-1] < losses[0]
    states = sample_states(model, x, check_first, depth=4, seed=99, temper=wide_temper)
    assert 0.1 < states.is_right.double().mean() < 0.9
    with torch.no_grad():
        trace = pyro.poutine.trace(model).get_trace(states.x, None, states.state, steps=0)
    p_right = trace.nodes["halt"]["fn"].probs
    assert p_right[states.is_right].mean() > p_right[~states.is_right].mean() + 0.25


def test_heads_are_the_same_under_the_same_seed():
    states, losses = [], []
    for _ in range(2):
        pyro.set_rng_seed(0)
        case = build_case()
        train_heads(
            case.solver.model,
            case.solver.config.model,
            case.solver.task,
            HEADS,
            depth=2,
            progress=lambda number, loss: losses.append((number, loss)),
        )
        states.append(case.solver.model.heads.state_dict())
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert losses[:2] == losses[2:]
    assert [number for number, _ in losses[:2]] == [0, 1]


@pytest.mark.parametrize(
    ("changes", "settings", "message"),
    [
        ({"task_name": "mnist"}, {}, "heads.hidden to 0 for p\\(x\\)"),
        ({"task_name": "sudoku_uncond"}, {}, "heads.hidden to 0 for p\\(x\\)"),
        ({}, {"hidden": 10}, "multiple of 2 \\* heads.attention_heads = 8"),
    ],
)
def test_impossible_heads_are_refused(changes, settings, message):
    solver = build_case(**changes).solver
    with pytest.raises(ConfigError, match=message):
        check_heads(solver.model, solver.task, HeadsConfig(**{"hidden": 16, **settings}))


def test_an_error_names_a_program_without_a_place_for_heads():
    solver = build_case().solver
    with pytest.raises(ConfigError, match="Linear has no attribute 'heads'"):
        check_heads(torch.nn.Linear(1, 1), solver.task, HEADS)


@pytest.mark.parametrize(
    "settings", [{"hidden": -1}, {"rounds": 0}, {"halt": 1.5}, {"lr": 0.0}, {"attention_heads": 0}]
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        HeadsConfig(**settings)


def test_heads_are_measured_on_first_versions_of_inputs(tmp_path):
    """On ARC, the answers that the heads select are measured on the plain version of each input only."""
    config = small_config(task_name="arc", heads={"hidden": 16, "attention_heads": 2, "rounds": 1, "trajectories": 8})
    run = open_run(config, tmp_path / "run", resume=False, data_dir=None, device=torch.device("cpu"))
    solver = run.averaged_solver
    train_heads(solver.model, config.model, solver.task, config.heads, **config.head_settings)
    puzzles = run.solver.task.split("test")
    assert not puzzles.is_first_version.all()
    samples = sample_prior(solver, puzzles.inputs, num_samples=3)
    metrics = _head_metrics(solver, puzzles, samples, SINGLE_PROCESS, lambda count: None)
    count = int(puzzles.is_first_version.sum())
    assert metrics["value_accuracy"] * count == pytest.approx(round(metrics["value_accuracy"] * count))
    assert metrics["halt_steps"] <= run.solver.config.depth
