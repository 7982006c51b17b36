"""Padding changes no number, and the order of positions does not matter, with ``mixer = relations``."""

import pyro_gram.models.d3pm as d3pm
import pyro_gram.models.mdlm as mdlm
import pytest
import torch
from pyro import poutine

from pyro_gram.errors import ConfigError, InputError
from pyro_gram.inference.contract import model_traits
from pyro_gram.inference.importance import guide_draws
from pyro_gram.networks.heads import HaltValueHead
from tests.conftest import perturb_
from tests.networks.relational import (
    SIZES,
    SPECS,
    FixedGuidance,
    fix_draws,
    make_guidance,
    make_pairs,
    make_program,
    permute_input,
    positions_of,
)

TASKS = tuple(SPECS)
GUIDES = ("amortized", "additive", "global", "residual", "prior", "replay")
MODELS = ("gram", "flat", "looped", "trm", "hrm", "vae")
PRIORS = ("gaussian", "noise_only", "mean_only", "standard", "discrete")
PROGRAMS = [
    *({"guide": guide} for guide in GUIDES),
    *({"model": model} for model in MODELS[1:]),
    *({"prior": prior, "guide": guide} for prior in PRIORS[1:] for guide in ("amortized", "residual", "replay")),
    {"guide": "amortized", "guide_config": {"layers": 1}},
    {"guide": "additive", "guide_config": {"layers": 2}},
    {"guide": "global", "guide_config": {"layers": 0}},
    {"guide": "replay", "guide_config": {"layers": 1}},
    {"guide": "amortized", "guide_config": {"max_kl": 0.5}},
    {"guide": "replay", "guide_config": {"max_kl": 0.5}},
    {"model_config": {"mixer": "relation_terms"}},
    {"model": "looped", "prior": "discrete", "guide": "replay"},
    {"model": "vae", "prior": "standard", "guide": "amortized", "guide_config": {"layers": 2}},
]


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def name_of(program):
    return "-".join(str(value) for value in program.values()).translate(dict.fromkeys(map(ord, "{}':, ")))


def compare(a, b):
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-8)


def draws_of(program, x, y, eps):
    """Return the bounds of the pairs for guidance ``eps`` over two supervision steps (one for the VAE)."""
    model, guide = program
    steps = 1 if model_traits(model).is_one_step else 2
    with FixedGuidance(eps):
        return guide_draws(model, guide, x, y, steps=steps, num_samples=2)


def lone_inputs(task, x, y):
    """Yield the index, the cropped pair ``[1, ...]`` and the positions of each input of a padded batch."""
    for i in range(len(x)):
        x_i, y_i = SPECS[task].crop(x[i : i + 1], y[i : i + 1])
        assert y_i.shape[-1] == SIZES[task][i]
        yield i, x_i, y_i, positions_of(task, x[i])


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("program", PROGRAMS, ids=name_of)
def test_padding_changes_no_bound(task, program):
    model, guide = make_program(SPECS[task], **program)
    x, y = make_pairs(task)
    eps = make_guidance(model, len(x), SPECS[task].positions)
    padded = draws_of((model, guide), x, y, eps)
    assert padded.log_likelihood.min() > -100  # every answer has open values only
    for i, x_i, y_i, positions in lone_inputs(task, x, y):
        lone = draws_of((model, guide), x_i, y_i, eps[:, i : i + 1, positions])
        for name in ("log_weight", "log_likelihood"):
            compare(getattr(padded, name)[:, i], getattr(lone, name)[:, 0])
        for name in ("kl", "guidance"):
            compare(getattr(padded, name)[:, :, i], getattr(lone, name)[:, :, 0])
        compare(padded.h[:, i, positions], lone.h[:, 0])
        compare(padded.h[:, i].square().sum(), lone.h[:, 0].square().sum())  # h is 0 at padding
        size = y_i.shape[-1]
        assert torch.equal(padded.tokens[:, i, :size], lone.tokens[:, 0])
        assert not padded.tokens[:, i, size:].any()
    if program.get("guide") != "prior":
        assert (padded.kl[-1] > 1e-4).all()


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(("model", "prior"), [("gram", "none"), ("trm", "none"), ("hrm", "none"), ("trm", "gaussian")])
def test_padding_changes_no_halting_and_no_head(task, model, prior):
    spec = SPECS[task]
    program, _ = make_program(spec, model, prior, "prior")
    program.heads = perturb_(HaltValueHead(1, 12, spec.output_classes, 12, 2, 3, "relations", spec.has_value_positions))
    x, y = make_pairs(task)
    eps = make_guidance(program, len(x), spec.positions)

    def numbers(x, y, eps):
        with FixedGuidance(eps):
            trained = poutine.trace(program).get_trace(x, y)
            sampled = poutine.trace(program).get_trace(x, steps=2)
        names = [name for name in ("y", "halt", "go_on") if name in trained]
        values = {name: trained.nodes[name]["fn"].log_prob(trained.nodes[name]["value"]) for name in names}
        if "halted" in trained:
            values["halted"] = trained.nodes["halted"]["value"]
        heads = {f"head {name}": sampled.nodes[name]["fn"].mean for name in ("halt", "value")}
        return {**values, **heads}

    padded = numbers(x, y, eps)
    assert {"trm": "halted", "hrm": "go_on"}.get(model, "y") in padded
    assert padded["head value"].std() > 1e-4
    for i, x_i, y_i, positions in lone_inputs(task, x, y):
        lone = numbers(x_i, y_i, eps[:, i : i + 1, positions])
        assert lone.keys() == padded.keys()
        for name, value in lone.items():
            compare(padded[name][i], value[0])


BASELINES = [
    ("direct", {}, TASKS),
    ("mdlm", {}, TASKS),
    ("mdlm", {"sampling_steps": 3}, TASKS),
    ("d3pm", {"diffusion_steps": 4}, TASKS),
    ("d3pm", {"diffusion_steps": 4, "kind": "uniform"}, ("graphs",)),
    ("autoregressive", {}, ("graphs",)),
]


@pytest.mark.parametrize(
    ("model", "config", "task"), [(model, config, task) for model, config, tasks in BASELINES for task in tasks]
)
def test_padding_changes_no_density_and_no_draw_of_a_baseline(monkeypatch, task, model, config):
    spec = SPECS[task]
    program, _ = make_program(spec, model, "none", "prior", model_config=config)
    x, y = make_pairs(task)
    for module in (mdlm, d3pm):
        monkeypatch.setattr(module, "stratified_times", lambda shape, device: torch.full(shape, 0.6))
    fix_draws(monkeypatch, spec.output_length, by_position=model != "autoregressive")

    def numbers(x, y):
        trained = poutine.trace(program).get_trace(x, y)
        trained.compute_log_prob()
        sites = [site for name, site in trained.nodes.items() if site["type"] == "sample" and name not in ("h", "l")]
        losses = [site["log_prob"] for site in sites if site["log_prob"].shape == x.shape[:1]]
        assert len(losses) == 1 + (model == "d3pm")
        sampled = poutine.trace(program).get_trace(x)
        tokens = sampled.nodes["y"]["value"]
        return torch.stack((*losses, sampled.nodes["y"]["fn"].log_prob(tokens)), -1), tokens

    padded, tokens = numbers(x, y)
    assert (padded < 0).all()
    assert (padded > -100).all()
    for i, x_i, y_i, _ in lone_inputs(task, x, y):
        lone, lone_tokens = numbers(x_i, y_i)
        compare(padded[i], lone[0])
        size = y_i.shape[-1]
        assert torch.equal(tokens[i, :size], lone_tokens[0])
        assert not tokens[i, size:].any()


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("model", [*MODELS, "direct", "mdlm"])
def test_the_order_of_positions_does_not_matter(task, model):
    spec = SPECS[task]
    has_guidance = model not in ("direct", "mdlm")
    parts = {} if has_guidance else {"prior": "none", "guide": "prior"}
    program, guide = make_program(spec, model, **parts, **({"guide_config": {"layers": 1}} if has_guidance else {}))
    x, y = make_pairs(task)
    # The smallest graph has three tokens, the smallest board two.
    order = torch.tensor([2, 0, 1, 3, 4, 5] if task == "graphs" else [1, 0, 2, 3, 4])
    x_new, positions = permute_input(task, x, order)
    y_new = y[:, order]
    if model == "mdlm":
        e_x = program.encoder(x_of(program, x))
        tokens = torch.where(torch.arange(len(order)) % 2 == 0, program.mask_token, y)
        logits = program.predict(e_x, tokens, torch.ones(len(x)))
        new_logits = program.predict(program.encoder(x_of(program, x_new)), tokens[:, order], torch.ones(len(x)))
        compare(new_logits, logits[:, order])
        return
    if model == "direct":
        traces = [poutine.trace(program).get_trace(a, b) for a, b in ((x, y), (x_new, y_new))]
        old, new = (trace.nodes["y"]["fn"].base_dist.logits for trace in traces)
        compare(new, old[:, order])
        return
    eps = make_guidance(program, len(x), spec.positions)
    old = draws_of((program, guide), x, y, eps)
    new = draws_of((program, guide), x_new, y_new, eps[:, :, positions])
    for name in ("log_weight", "log_likelihood", "kl"):
        compare(getattr(new, name), getattr(old, name))
    compare(new.h, old.h[..., positions, :])
    assert not torch.allclose(new.h, old.h)


def x_of(program, x):
    """Read the structure of inputs into a model; return the tokens that it embeds."""
    program.read(x)
    return program.structure.tokens


@pytest.mark.parametrize("model", ["trm", "hrm"])
def test_the_order_of_positions_does_not_matter_to_halting(model):
    program, _ = make_program(SPECS["graphs"], model, "none", "prior")
    x, y = make_pairs("graphs")
    order = torch.tensor([2, 0, 1, 3, 4, 5])
    x_new, _ = permute_input("graphs", x, order)
    traces = [poutine.trace(program).get_trace(a, b) for a, b in ((x, y), (x_new, y[:, order]))]
    for name in ("halt", "go_on")[: 1 + (model == "hrm")]:
        old, new = (trace.nodes[name]["fn"].log_prob(trace.nodes[name]["value"]) for trace in traces)
        compare(old, new)
        assert old.std() > 1e-6


def test_the_mean_field_guide_refuses_boards_of_several_sizes():
    with pytest.raises(ConfigError, match="needs boards of one size.*--guide amortized"):
        make_program(SPECS["boards"], guide="mean_field")


def test_a_pair_of_the_mean_field_guide_has_the_same_parameters_with_any_padding():
    model, guide = make_program(SPECS["graphs"], guide="mean_field", guide_config={"num_pairs": 8})
    x, y = make_pairs("graphs")
    x = torch.cat([SPECS["graphs"].pad(x_i, x.shape[-1]) for _, x_i, _, _ in lone_inputs("graphs", x, y)])
    rows = guide.encode(x, y)
    assert rows.min() >= 0
    perturb_(guide)
    eps = make_guidance(model, len(x), SPECS["graphs"].positions)
    padded = draws_of((model, guide), x, y, eps)
    for i, x_i, y_i, positions in lone_inputs("graphs", x, y):
        assert guide.encode(x_i, y_i) == rows[i]
        lone = draws_of((model, guide), x_i, y_i, eps[:, i : i + 1, positions])
        compare(padded.kl[:, :, i], lone.kl[:, :, 0])
    assert (padded.kl.amax(0) > 1e-4).all()


@pytest.mark.parametrize("model", ["mdlm", "d3pm"])
def test_a_diffusion_model_refuses_boards_with_more_values_than_it_knows(model):
    program, _ = make_program(SPECS["boards"], model, "none", "prior")
    with pytest.raises(InputError, match="boards of at most 5 rows"):
        program(torch.zeros(1, 6).long())


def test_uniform_corruption_needs_a_position_for_each_value():
    with pytest.raises(ConfigError, match="use --model.kind absorbing"):
        make_program(SPECS["boards"], "d3pm", "none", "prior", model_config={"kind": "uniform"})


@pytest.mark.parametrize("prior", ["student_t", "mixture", "low_rank", "flow"])
def test_other_priors_have_no_form_for_padding(prior):
    program, _ = make_program(SPECS["graphs"], prior=prior)
    with pytest.raises(ConfigError, match="no form for padding: use --prior gaussian, or a task with inputs of one"):
        program(*make_pairs("graphs"))
