import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive

from pyro_gram.diagnostics.likelihood import rollout_log_prob
from pyro_gram.errors import ConfigError, UserError
from pyro_gram.inference.sites import LOSS_ONLY
from pyro_gram.sampling.memory import chunk_size, trajectories_in_memory
from pyro_gram.sampling.rollout import rollout, rollout_steps, run_steps
from tests.conftest import build_case, build_case_with_heads


class Collect(pyro.poutine.messenger.Messenger):
    """Every value that passes, by site."""

    def __init__(self):
        super().__init__()
        self.values = {}

    def _pyro_post_sample(self, msg):
        self.values[msg["name"]] = msg["value"]


@pytest.mark.parametrize("transitions", [1, 3])
def test_rollout_agrees_site_for_site_with_predictive_under_the_same_seed(transitions):
    case = build_case(model={"transitions": transitions})
    model = case.solver.model

    def seeded(x):  # Predictive runs the model several times to learn its shapes; only the last one counts
        pyro.set_rng_seed(11)
        return model(x, steps=4)

    with Collect() as ours:
        rolled = rollout(model, case.x, num_samples=6, depth=4, seed=11)
    theirs = Predictive(seeded, num_samples=6, parallel=True)(case.x)
    names = [f"eps_{t}" for t in range(4 * transitions)] + ["h", "l"]
    for name in names:
        torch.testing.assert_close(ours.values[name], theirs[name])
    logits = model.decoder(theirs["h"])
    assert torch.equal(rolled.tokens, logits.argmax(-1))
    best = logits.log_softmax(-1).amax(-1).sum(-1)
    torch.testing.assert_close(rolled.score, best)


def test_history_ends_in_the_answer_and_changes_no_draw(case):
    model = case.solver.model
    plain = rollout(model, case.x, num_samples=4, depth=5, seed=2)
    kept = rollout(model, case.x, num_samples=4, depth=5, seed=2, history=True)
    assert kept.history.shape == (5, 4, 5, 4)
    assert torch.equal(kept.history[-1], kept.tokens)
    assert torch.equal(plain.tokens, kept.tokens)


def test_rollouts_are_the_same_whether_or_not_a_y_exists(case):
    """Nothing that the guide or an answer leaves behind reaches a roll-out."""
    model, guide = case.solver.model, case.solver.guide
    before = rollout(model, case.x, num_samples=4, depth=2, seed=3)
    guide(case.x, case.y)
    after = rollout(model, case.x, num_samples=4, depth=2, seed=3)
    assert torch.equal(before.score, after.score)
    assert torch.equal(before.tokens, after.tokens)


def test_a_rollout_refuses_to_see_y(case):
    model = poutine.condition(case.solver.model, {"y": case.y})
    with pytest.raises(UserError, match="must not be given y"):
        rollout(model, case.x, num_samples=2, depth=1)


def test_seeds_reproduce_and_differ_and_leave_the_callers_random_state_alone(case):
    model = case.solver.model
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    a = rollout(model, case.x, num_samples=3, depth=2, seed=1)
    assert torch.equal(torch.randn(3), expected)
    assert torch.equal(a.score, rollout(model, case.x, num_samples=3, depth=2, seed=1).score)
    assert not torch.equal(a.score, rollout(model, case.x, num_samples=3, depth=2, seed=2).score)


def test_chunks_bound_the_width_and_keep_the_shape(case):
    widths = []

    class Watch(pyro.poutine.messenger.Messenger):
        def _pyro_post_sample(self, msg):
            if msg["name"].startswith("eps"):
                widths.append(msg["value"][..., 0, 0].numel())

    done = []
    with Watch():
        rolled = rollout(case.solver.model, case.x, num_samples=7, depth=2, max_trajectories=3, progress=done.append)
    assert rolled.tokens.shape == (7, 5, 4)
    assert max(widths) <= 3
    assert sum(done) == 35


def test_unconditional_rollouts_have_one_column(case):
    rolled = rollout(case.solver.model, None, num_samples=9, depth=2, history=True)
    assert rolled.tokens.shape == (9, 1, 4)
    assert rolled.history.shape == (2, 9, 1, 4)


def test_no_gradient_and_no_trace_is_kept(case):
    rolled = rollout(case.solver.model, case.x, num_samples=2, depth=1)
    assert not rolled.score.requires_grad


@pytest.mark.parametrize("max_trajectories", [3, 9, 2048])
def test_log_prob_of_an_answer_is_that_of_the_same_trajectories(case, max_trajectories):
    model = case.solver.model
    settings = {"num_samples": 4, "depth": 2, "seed": 6, "max_trajectories": max_trajectories}
    rolled = rollout(model, case.x, **settings)
    log_p = rollout_log_prob(model, case.x, rolled.tokens[0], **settings)
    torch.testing.assert_close(log_p[0], rolled.score[0])
    assert (log_p <= rolled.score + 1e-6).all()


@pytest.mark.parametrize("settings", [{"num_samples": 0, "depth": 1}, {"num_samples": 1, "depth": 0}])
def test_nothing_to_do_is_an_error(case, settings):
    with pytest.raises(UserError, match="must be at least 1, not 0"):
        rollout(case.solver.model, case.x, **settings)


def test_data_without_input_are_scored_under_seeded_trajectories_in_chunks(case):
    model = case.solver.model
    settings = {"num_samples": 7, "depth": 2, "seed": 3}
    a, b = (rollout_log_prob(model, None, case.y, **settings) for _ in range(2))
    assert a.shape == (7, len(case.y))
    assert torch.equal(a, b)
    chunked = rollout_log_prob(model, None, case.y, **settings, max_trajectories=3)
    assert chunked.shape == a.shape
    torch.manual_seed(1)
    assert torch.equal(chunked, rollout_log_prob(model, None, case.y, **settings, max_trajectories=3))
    assert not torch.equal(a, rollout_log_prob(model, None, case.y, **{**settings, "seed": 4}))


@pytest.mark.parametrize("most", [2, 3, 8, 12])
def test_chunks_draw_under_successive_seeds_and_are_joined_in_their_order(case, most):
    """Inputs first: as many as fit together, and for each of these pieces its trajectories."""
    model = case.solver.model
    whole = rollout(model, case.x, num_samples=4, depth=2, seed=7, max_trajectories=most, history=True)
    inputs = case.x.split(max(1, most // 4))
    chunk, at = 0, 0
    for part in inputs:
        for start in range(0, 4, most):
            count = min(most, 4 - start)
            one = rollout(model, part, num_samples=count, depth=2, seed=7 + chunk, history=True)
            rows, columns = slice(start, start + count), slice(at, at + len(part))
            for name in ("tokens", "score", "steps"):
                assert torch.equal(getattr(whole, name)[rows, columns], getattr(one, name)), name
            assert torch.equal(whole.history[:, rows, columns], one.history)
            chunk += 1
        at += len(part)
    assert (whole.steps == 2).all()
    assert whole.work.tolist() == [8] * 5
    log_p = rollout_log_prob(model, case.x, case.y, num_samples=4, depth=2, seed=7, max_trajectories=most)
    again = rollout_log_prob(model, case.x[:1], case.y[:1], num_samples=min(4, most), depth=2, seed=7)
    if len(inputs) == 5:
        torch.testing.assert_close(log_p[: min(4, most), :1], again)
    default = [f(model, case.x, *y, num_samples=2, depth=1) for f, y in ((rollout, ()), (rollout_log_prob, (case.y,)))]
    seeded = [
        f(model, case.x, *y, num_samples=2, depth=1, seed=0) for f, y in ((rollout, ()), (rollout_log_prob, (case.y,)))
    ]
    assert torch.equal(default[0].score, seeded[0].score)
    assert torch.equal(default[1], seeded[1])


def test_successive_steps_go_on_from_where_the_last_one_ended(case):
    model = case.solver.model
    torch.manual_seed(3)
    with torch.no_grad():
        ends = list(rollout_steps(model, case.x, depth=3))
        torch.manual_seed(3)
        whole = run_steps(model, case.x, None, None, 3)
    assert ends[-1].state.h.shape == (5, 4, 16)
    torch.testing.assert_close(ends[-1].state.h, whole.state.h)
    torch.testing.assert_close(ends[-1].likelihood.log_prob(case.y), whole.log_prob(case.y))
    assert torch.equal(ends[-1].values["y"], model.decoder(whole.state.h).argmax(-1))


def test_what_fits_into_memory_is_counted_in_numbers_of_a_state():
    assert [chunk_size(length) for length in (4, 8, 16, 128)] == [2048, 2048, 1024, 128]
    assert chunk_size(10**9) == 1
    assert chunk_size(8, 100) == 100
    assert chunk_size(16, 100) == 50
    each = 64 * 4 * 8 * 128 / 2**20  # MB: 64 tensors of [8, 128] float32
    assert trajectories_in_memory(8 + 10.5 * each, 8, 128) == 10
    assert trajectories_in_memory(8 + each, 8, 128) == 1
    with pytest.raises(UserError, match=r"give at least 8\.2"):
        trajectories_in_memory(8 + 0.99 * each, 8, 128)
    assert trajectories_in_memory(float("inf"), 8, 128) == 2**31


HALTS = [(None, True), (0, True), (1, True), (0.5, True), (-0.1, False), (1.1, False), ("a", False)]


@pytest.mark.parametrize(("halt", "fits"), HALTS)
def test_a_halt_is_a_probability(halt, fits):
    case = build_case_with_heads()
    if fits:
        rollout(case.solver.model, case.x, num_samples=1, depth=1, halt=halt)
    else:
        with pytest.raises(UserError, match="halt is a probability"):
            rollout(case.solver.model, case.x, num_samples=1, depth=1, halt=halt)


def test_only_a_halt_below_one_needs_heads(case):
    rollout(case.solver.model, case.x, num_samples=1, depth=1, halt=1, history=True)
    with pytest.raises(ConfigError, match="no heads to halt by"):
        rollout(case.solver.model, case.x, num_samples=1, depth=1, halt=0.5)
    with pytest.raises(UserError, match="whole number"):
        rollout(case.solver.model, case.x, num_samples=1.5, depth=1)


def test_a_users_observations_count_and_losses_of_heads_do_not(case):
    model = case.solver.model
    seen = torch.linspace(-1, 1, 5)

    def program(infer):
        def run(x, y=None, state=None, *, steps=1):
            with pyro.plate("data", 5, dim=-1):
                pyro.sample("more", pyro.distributions.Normal(0.0, 2.0), obs=seen, infer=infer)
            return model(x, y, state, steps=steps)

        return run

    settings = {"num_samples": 3, "depth": 2, "seed": 4}
    plain = rollout_log_prob(model, case.x, case.y, **settings)
    torch.testing.assert_close(rollout_log_prob(program({LOSS_ONLY: True}), case.x, case.y, **settings), plain)
    observed = rollout_log_prob(program({}), case.x, case.y, **settings)
    torch.testing.assert_close(observed, plain + torch.distributions.Normal(0.0, 2.0).log_prob(seen))
