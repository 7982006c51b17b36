"""The diffusion baselines are tested step by step, with a network that records its calls."""

import itertools
import math

import pyro
import pytest
import torch
from pyro import poutine
from pyro_gram.models import d3pm, mdlm
from pyro_gram.models.mdlm import MIN_TIME, stratified_times

from tests.conftest import build_case

MASK = 3  # the token after the three classes


class RecordedDenoiser(torch.nn.Module):
    """Compute logits from the token, its place and the time; ``calls`` holds the tokens and times of each call."""

    def __init__(self, states):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.table = torch.randn(4, states, 3, generator=generator)
        self.calls = []

    def forward(self, e_x, tokens, time):
        self.calls.append((tokens, time))
        place = torch.arange(4).expand_as(tokens)
        return self.table[place, tokens] * (0.5 + time)[..., None, None]


def build_recorded(name, **settings):
    case = build_case(model_name=name, task={"edge_probability": 0.5}, model=settings)
    model = case.solver.model.eval()
    model.denoiser = RecordedDenoiser(3 if settings.get("kind") == "uniform" else 4)
    return case, model


def fix_times(monkeypatch, module, times):
    monkeypatch.setattr(module, "stratified_times", lambda shape, device: times.expand(shape))


def log_prob_of(log_p, tokens):
    return log_p.gather(-1, tokens[..., None]).squeeze(-1)


# ---- times -------------------------------------------------------------------------------------------------------


def test_stratified_times_are_even_and_shuffled_and_differ_between_calls():
    times = stratified_times(torch.Size((4, 25)), torch.device("cpu"))
    assert times.shape == (4, 25)
    assert ((times >= 0) & (times < 1)).all()
    sorted_times = times.flatten().sort().values
    torch.testing.assert_close(sorted_times.diff(), torch.full((99,), 0.01), atol=1e-6, rtol=0)
    assert not torch.equal(sorted_times, times.flatten())
    repeat_times = stratified_times(torch.Size((4, 25)), torch.device("cpu")).flatten().sort().values
    assert not torch.allclose(sorted_times, repeat_times)
    assert stratified_times(torch.Size(()), torch.device("cpu")).shape == ()
    single_times = torch.stack([stratified_times(torch.Size((1,)), torch.device("cpu"))[0] for _ in range(400)])
    assert abs(single_times.mean() - 0.5) < 0.05
    assert abs(single_times.std() - 1 / math.sqrt(12)) < 0.03


# ---- MDLM --------------------------------------------------------------------------------------------------------


def test_mdlms_loss_is_the_cross_entropy_of_masked_tokens_over_their_time():
    case, model = build_recorded("mdlm")
    y = case.y[:, None].expand(5, 40, 4)
    loss = model.loss(torch.zeros(5, 40, 4, 16), y)
    ((tokens, time),) = model.denoiser.calls
    is_masked = tokens == MASK
    assert torch.equal(tokens[~is_masked], y[~is_masked])
    assert is_masked.any()
    assert not is_masked.all()
    logits = model.denoiser(None, tokens, time)
    expected = -(log_prob_of(logits.log_softmax(-1), y) * is_masked).sum(-1) / time
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("time", [0.0, 0.3, 0.9])
def test_a_token_is_masked_with_the_probability_of_its_time(monkeypatch, time):
    case, model = build_recorded("mdlm")
    fix_times(monkeypatch, mdlm, torch.tensor(time))
    model.loss(torch.zeros(5, 800, 4, 16), case.y[:, None].expand(5, 800, 4))
    ((tokens, times),) = model.denoiser.calls
    assert times.unique().item() == pytest.approx(max(time, MIN_TIME))
    assert (tokens == MASK).float().mean().item() == pytest.approx(time, abs=0.02)


@pytest.mark.parametrize(("settings", "steps"), [({}, 4), ({"sampling_steps": 2}, 2)])
def test_mdlm_reveals_an_equal_share_of_tokens_at_each_step(settings, steps):
    _, model = build_recorded("mdlm", **settings)
    tokens, log_p = model.draw(torch.zeros(2, 1500, 4, 16))
    calls = list(model.denoiser.calls)
    assert [time.unique().item() for _, time in calls] == pytest.approx([(steps - s) / steps for s in range(steps)])
    expected = torch.zeros(2, 1500)
    for s, ((old_tokens, time), new_tokens) in enumerate(zip(calls, [*(t for t, _ in calls[1:]), tokens], strict=True)):
        assert (old_tokens == MASK).float().mean().item() == pytest.approx(1 - s / steps, abs=0.03)
        is_revealed = (old_tokens == MASK) & (new_tokens != MASK)
        assert torch.equal(old_tokens[old_tokens != MASK], new_tokens[old_tokens != MASK])  # revealed tokens stay
        log_q = model.denoiser(None, old_tokens, time).log_softmax(-1)
        expected = expected + (log_prob_of(log_q, new_tokens.clamp(max=2)) * is_revealed).sum(-1)
    assert (tokens != MASK).all()
    torch.testing.assert_close(log_p, expected)


def test_mdlms_first_tokens_follow_its_network():
    _, model = build_recorded("mdlm", sampling_steps=1)
    tokens, _ = model.draw(torch.zeros(6000, 4, 16))
    share = torch.nn.functional.one_hot(tokens, 3).float().mean(0)
    p = (model.denoiser.table[:, MASK] * 1.5).softmax(-1)
    torch.testing.assert_close(share, p, atol=0.03, rtol=0)


@pytest.mark.parametrize(("name", "settings"), [("mdlm", {}), ("d3pm", {"diffusion_steps": 3})])
def test_a_diffusion_model_has_a_factor_in_training_and_a_draw_otherwise(name, settings):
    case, model = build_recorded(name, **settings)
    pyro.set_rng_seed(1)
    trace = poutine.trace(model).get_trace(case.x, case.y)
    pyro.set_rng_seed(1)
    loss = model.loss(model.encoder(case.x), case.y)
    torch.testing.assert_close(trace.nodes["y"]["fn"].log_factor, -loss)
    with pyro.plate("trajectories", 7, dim=-2):
        site = poutine.trace(model).get_trace(case.x).nodes["y"]
    assert site["value"].shape == (7, 5, 4)
    assert site["fn"].event_shape == (4,)
    assert site["infer"]["draw_answer"]
    assert (site["fn"].log_prob(site["value"]) < 0).all()
    assert (site["value"] != site["value"][0]).any()  # each trajectory draws its own answer


@pytest.mark.parametrize(("name", "uses_time"), [("mdlm", False), ("d3pm", True)])
def test_only_the_network_of_d3pm_embeds_the_time(name, uses_time):
    """MDLM's network needs no embedding of the time, because the number of masked tokens tells it the time."""
    case = build_case(model_name=name)
    model = case.solver.model.eval()
    e_x = model.encoder(case.x)
    early_logits, late_logits = (model.denoiser(e_x, case.y, torch.full((5,), t)) for t in (0.1, 0.9))
    assert torch.allclose(early_logits, late_logits) != uses_time


# ---- D3PM --------------------------------------------------------------------------------------------------------

KINDS = ["absorbing", "uniform"]


def schedule(kind, T):
    """Return, for t = 0 .. T, the share of tokens that keep their value until time t (formula of the D3PM paper)."""
    if kind == "absorbing":
        return [1 - t / T for t in range(T + 1)]
    return [math.cos(math.pi * t / (2 * T)) ** 2 for t in range(T)] + [0.0]


def cumulative_transition(kind, T, t):
    """Return the matrix of q(y_t | y_0): a row for each y_0, a column for each y_t."""
    states = 3 if kind == "uniform" else 4
    m = torch.full((3,), 1 / 3) if kind == "uniform" else torch.tensor([0.0, 0.0, 0.0, 1.0])
    clean_share = schedule(kind, T)[t]
    return clean_share * torch.eye(states) + (1 - clean_share) * m


def transition(kind, T, t):
    """Return the matrix of q(y_t | y_{t-1}): a row for each y_{t-1}, a column for each y_t."""
    states = 3 if kind == "uniform" else 4
    m = torch.full((3,), 1 / 3) if kind == "uniform" else torch.tensor([0.0, 0.0, 0.0, 1.0])
    alpha = schedule(kind, T)[t] / schedule(kind, T)[t - 1]
    return alpha * torch.eye(states) + (1 - alpha) * m


def reverse_step(kind, T, t, clean, corrupted):
    """Return p(y_{t-1} | y_t) for y_t = ``corrupted``, if y_0 has the probabilities ``clean``."""
    joint = (clean @ cumulative_transition(kind, T, t - 1)) * transition(kind, T, t)[:, corrupted]
    return joint / joint.sum()


@pytest.mark.parametrize("kind", KINDS)
def test_d3pms_schedule_and_stationary_distribution_are_the_papers(kind):
    _, model = build_recorded("d3pm", kind=kind, diffusion_steps=6)
    torch.testing.assert_close(model.alpha_bar, torch.tensor(schedule(kind, 6)), atol=1e-6, rtol=0)
    expected = [1 / 3] * 3 if kind == "uniform" else [0.0, 0.0, 0.0, 1.0]
    torch.testing.assert_close(model.stationary, torch.tensor(expected))
    assert model.alpha_bar[-1] == 0  # exactly 0: at time T nothing of y is left
    assert not {"alpha_bar", "stationary", "floor"} & set(model.state_dict())  # the config determines these buffers
    assert (model.floor[:3] > 0).all()
    assert (model.floor[3:] == 0).all()  # an answer is never the mask


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("share", "t"), [(0.0, 1), (0.3, 2), (0.5, 4), (0.999, 6)])
def test_d3pms_loss_is_t_times_the_kl_of_one_backward_step(monkeypatch, kind, share, t):
    T = 6
    case, model = build_recorded("d3pm", kind=kind, diffusion_steps=T)
    fix_times(monkeypatch, d3pm, torch.tensor(share))
    y = case.y[:, None].expand(5, 60, 4)
    loss = model.loss(torch.zeros(5, 60, 4, 16), y)
    ((corrupted, time),) = model.denoiser.calls
    assert time.unique().item() == pytest.approx(t / T)
    prediction = model.denoiser(None, corrupted, time).softmax(-1)
    if kind == "absorbing":
        prediction = torch.nn.functional.pad(prediction, (0, 1))
    for i, j in itertools.product(range(5), range(8)):
        kl = 0.0
        for k in range(4):
            clean = torch.eye(len(model.stationary))[y[i, j, k]]
            q = reverse_step(kind, T, t, clean, corrupted[i, j, k])
            p = reverse_step(kind, T, t, prediction[i, j, k], corrupted[i, j, k])
            kl += (q * ((q + 1e-30).log() - (p + 1e-30).log())).sum().item()
        assert loss[i, j].item() == pytest.approx(T * kl, abs=2e-4, rel=1e-3)
    clean_share = (corrupted == y).float().mean().item()
    expected = schedule(kind, T)[t] + (1 - schedule(kind, T)[t]) * (1 / 3 if kind == "uniform" else 0)
    assert clean_share == pytest.approx(expected, abs=0.05)


def test_d3pms_auxiliary_loss_is_the_cross_entropy_of_the_clean_answer_in_training(monkeypatch):
    case, model = build_recorded("d3pm", diffusion_steps=6, auxiliary_weight=0.25)
    fix_times(monkeypatch, d3pm, torch.tensor(0.5))
    assert "auxiliary" not in poutine.trace(model).get_trace(case.x, case.y).nodes
    model.train()
    model.denoiser.calls.clear()
    factor = poutine.trace(model).get_trace(case.x, case.y).nodes["auxiliary"]["fn"].log_factor
    ((tokens, time),) = model.denoiser.calls
    log_p = log_prob_of(model.denoiser(None, tokens, time).log_softmax(-1), case.y)
    torch.testing.assert_close(factor, 0.25 * log_p.sum(-1))


@pytest.mark.parametrize("kind", KINDS)
def test_a_draw_of_d3pm_has_a_step_for_every_time(kind):
    T = 5
    _, model = build_recorded("d3pm", kind=kind, diffusion_steps=T)
    tokens, log_p = model.draw(torch.zeros(400, 4, 16))
    calls = list(model.denoiser.calls)
    assert [time.unique().item() for _, time in calls] == pytest.approx([t / T for t in range(T, 0, -1)])
    if kind == "absorbing":
        assert (calls[0][0] == MASK).all()
        assert (tokens != MASK).all()
    else:
        share = torch.bincount(calls[0][0].flatten(), minlength=3) / 1600
        torch.testing.assert_close(share, torch.full((3,), 1 / 3), atol=0.05, rtol=0)
    expected = torch.zeros(12)
    next_tokens = [*(t for t, _ in calls[1:]), tokens]
    for t, (tokens_now, time), tokens_next in zip(range(T, 0, -1), calls, next_tokens, strict=True):
        prediction = model.denoiser(None, tokens_now, time).softmax(-1)
        if kind == "absorbing":
            prediction = torch.nn.functional.pad(prediction, (0, 1))
        for i, k in itertools.product(range(12), range(4)):
            if tokens_next[i, k] != tokens_now[i, k]:
                expected[i] += reverse_step(kind, T, t, prediction[i, k], tokens_now[i, k])[tokens_next[i, k]].log()
    torch.testing.assert_close(log_p[:12], expected, atol=2e-4, rtol=1e-3)
    # the first step's draws follow its probabilities
    tokens_now, time = calls[0]
    prediction = model.denoiser(None, tokens_now, time).softmax(-1)
    prediction = torch.nn.functional.pad(prediction, (0, 1)) if kind == "absorbing" else prediction
    mean = torch.stack([reverse_step(kind, T, T, prediction[i, 0], tokens_now[i, 0]) for i in range(400)]).mean(0)
    share = torch.bincount(next_tokens[0][:, 0], minlength=len(mean)) / 400
    torch.testing.assert_close(share, mean, atol=0.1, rtol=0)
