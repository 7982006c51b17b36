import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive

from pyro_gram.diagnostics.likelihood import rollout_log_prob
from pyro_gram.errors import UserError
from pyro_gram.inference.sites import LOSS_ONLY
from pyro_gram.sampling.memory import chunk_size, trajectories_in_memory
from pyro_gram.sampling.rollout import rollout
from pyro_gram.sampling.steps import rollout_steps, run_steps
from tests.conftest import build_case


class RecordValues(pyro.poutine.messenger.Messenger):
    """Record the values of all sites."""

    def __init__(self):
        super().__init__()
        self.values = {}

    def _pyro_post_sample(self, msg):
        self.values[msg["name"]] = msg["value"]


@pytest.mark.parametrize("transitions", [1, 3])
def test_rollout_agrees_site_for_site_with_predictive_under_the_same_seed(transitions):
    case = build_case(model={"transitions": transitions})
    model = case.solver.model

    def seeded_model(x):  # Predictive runs the model more than once: every run starts from seed 11
        pyro.set_rng_seed(11)
        return model(x, steps=4)

    with RecordValues() as recorder:
        samples = rollout(model, case.x, num_samples=6, depth=4, seed=11)
    expected = Predictive(seeded_model, num_samples=6, parallel=True)(case.x)
    names = [f"eps_{t}" for t in range(4 * transitions)] + ["h", "l"]
    for name in names:
        torch.testing.assert_close(recorder.values[name], expected[name])
    logits = model.decoder(expected["h"])
    assert torch.equal(samples.tokens, logits.argmax(-1))
    best_score = logits.log_softmax(-1).amax(-1).sum(-1)
    torch.testing.assert_close(samples.score, best_score)


def test_history_ends_in_the_answer_and_changes_no_draw(case):
    model = case.solver.model
    plain_samples = rollout(model, case.x, num_samples=4, depth=5, seed=2)
    history_samples = rollout(model, case.x, num_samples=4, depth=5, seed=2, history=True)
    assert history_samples.history.shape == (5, 4, 5, 4)
    assert torch.equal(history_samples.history[-1], history_samples.tokens)
    assert torch.equal(plain_samples.tokens, history_samples.tokens)


def test_the_guide_leaves_nothing_that_changes_a_rollout(case):
    model, guide = case.solver.model, case.solver.guide
    samples_before = rollout(model, case.x, num_samples=4, depth=2, seed=3)
    guide(case.x, case.y)
    samples_after = rollout(model, case.x, num_samples=4, depth=2, seed=3)
    assert torch.equal(samples_before.score, samples_after.score)
    assert torch.equal(samples_before.tokens, samples_after.tokens)


def test_a_program_conditioned_on_y_is_refused(case):
    model = poutine.condition(case.solver.model, {"y": case.y})
    with pytest.raises(UserError, match="must not be given y"):
        rollout(model, case.x, num_samples=2, depth=1)


def test_the_seed_fixes_the_samples_and_the_callers_random_state_is_restored(case):
    model = case.solver.model
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    a = rollout(model, case.x, num_samples=3, depth=2, seed=1)
    assert torch.equal(torch.randn(3), expected)
    assert torch.equal(a.score, rollout(model, case.x, num_samples=3, depth=2, seed=1).score)
    assert not torch.equal(a.score, rollout(model, case.x, num_samples=3, depth=2, seed=2).score)


def test_chunks_bound_the_number_of_trajectories_at_once(case):
    batch_sizes = []

    class RecordBatchSizes(pyro.poutine.messenger.Messenger):
        def _pyro_post_sample(self, msg):
            if msg["name"].startswith("eps"):
                batch_sizes.append(msg["value"][..., 0, 0].numel())

    progress = []
    with RecordBatchSizes():
        samples = rollout(
            case.solver.model, case.x, num_samples=7, depth=2, max_trajectories=3, progress=progress.append
        )
    assert samples.tokens.shape == (7, 5, 4)
    assert max(batch_sizes) <= 3
    assert sum(progress) == 35


def test_a_rollout_without_input_has_one_column(case):
    samples = rollout(case.solver.model, None, num_samples=9, depth=2, history=True)
    assert samples.tokens.shape == (9, 1, 4)
    assert samples.history.shape == (2, 9, 1, 4)


def test_a_rollout_has_no_gradient(case):
    samples = rollout(case.solver.model, case.x, num_samples=2, depth=1)
    assert not samples.score.requires_grad


@pytest.mark.parametrize("max_trajectories", [3, 2048])
def test_the_log_prob_of_a_sample_equals_its_score_under_the_same_trajectories(case, max_trajectories):
    model = case.solver.model
    settings = {"num_samples": 4, "depth": 2, "seed": 6, "max_trajectories": max_trajectories}
    samples = rollout(model, case.x, **settings)
    log_p = rollout_log_prob(model, case.x, samples.tokens[0], **settings)
    torch.testing.assert_close(log_p[0], samples.score[0])
    assert (log_p <= samples.score + 1e-6).all()


@pytest.mark.parametrize("settings", [{"num_samples": 0, "depth": 1}, {"num_samples": 1, "depth": 0}])
def test_counts_below_1_are_refused(case, settings):
    with pytest.raises(UserError, match="must be at least 1, not 0"):
        rollout(case.solver.model, case.x, **settings)


def test_data_without_input_are_scored_under_seeded_trajectories_in_chunks(case):
    model = case.solver.model
    settings = {"num_samples": 7, "depth": 2, "seed": 3}
    a, b = (rollout_log_prob(model, None, case.y, **settings) for _ in range(2))
    assert a.shape == (7, len(case.y))
    assert torch.equal(a, b)
    chunked_log_p = rollout_log_prob(model, None, case.y, **settings, max_trajectories=3)
    assert chunked_log_p.shape == a.shape
    torch.manual_seed(1)
    assert torch.equal(chunked_log_p, rollout_log_prob(model, None, case.y, **settings, max_trajectories=3))
    assert not torch.equal(a, rollout_log_prob(model, None, case.y, **{**settings, "seed": 4}))


@pytest.mark.parametrize("max_trajectories", [3, 12])
def test_chunks_draw_under_successive_seeds_and_are_joined_in_their_order(case, max_trajectories):
    """Inputs are split into groups, and the trajectories of a group into chunks. Chunks are numbered group by group."""
    model = case.solver.model
    samples = rollout(model, case.x, num_samples=4, depth=2, seed=7, max_trajectories=max_trajectories, history=True)
    inputs = case.x.split(max(1, max_trajectories // 4))
    chunk, first_input = 0, 0
    for part in inputs:
        for start in range(0, 4, max_trajectories):
            count = min(max_trajectories, 4 - start)
            chunk_samples = rollout(model, part, num_samples=count, depth=2, seed=7 + chunk, history=True)
            rows, columns = slice(start, start + count), slice(first_input, first_input + len(part))
            for name in ("tokens", "score", "steps"):
                assert torch.equal(getattr(samples, name)[rows, columns], getattr(chunk_samples, name)), name
            assert torch.equal(samples.history[:, rows, columns], chunk_samples.history)
            chunk += 1
        first_input += len(part)
    assert (samples.steps == 2).all()
    assert samples.work.tolist() == [8] * 5
    log_p = rollout_log_prob(model, case.x, case.y, num_samples=4, depth=2, seed=7, max_trajectories=max_trajectories)
    first = rollout_log_prob(model, case.x[:1], case.y[:1], num_samples=min(4, max_trajectories), depth=2, seed=7)
    if len(inputs) == 5:
        torch.testing.assert_close(log_p[: min(4, max_trajectories), :1], first)


def test_the_default_seed_is_0(case):
    model, settings = case.solver.model, {"num_samples": 2, "depth": 1}
    scores = [rollout(model, case.x, **settings, **seed).score for seed in ({}, {"seed": 0})]
    log_probs = [rollout_log_prob(model, case.x, case.y, **settings, **seed) for seed in ({}, {"seed": 0})]
    assert torch.equal(*scores)
    assert torch.equal(*log_probs)


def test_each_supervision_step_starts_from_the_end_of_the_last_one(case):
    model = case.solver.model
    torch.manual_seed(3)
    with torch.no_grad():
        ends = list(rollout_steps(model, case.x, depth=3))
        torch.manual_seed(3)
        end = run_steps(model, case.x, None, None, 3)
    assert ends[-1].state.h.shape == (5, 4, 16)
    torch.testing.assert_close(ends[-1].state.h, end.state.h)
    torch.testing.assert_close(ends[-1].likelihood.log_prob(case.y), end.log_prob(case.y))
    assert torch.equal(ends[-1].values["y"], model.decoder(end.state.h).argmax(-1))


def test_memory_is_proportional_to_the_size_of_a_state():
    assert [chunk_size(length) for length in (4, 8, 16, 128)] == [2048, 2048, 1024, 128]
    assert chunk_size(10**9) == 1
    assert chunk_size(8, 100) == 100
    assert chunk_size(16, 100) == 50
    per_trajectory = 64 * 4 * 8 * 128 / 2**20  # in MB; a trajectory takes 64 float32 tensors of [8, 128]
    assert trajectories_in_memory(8 + 10.5 * per_trajectory, 8, 128) == 10
    assert trajectories_in_memory(8 + per_trajectory, 8, 128) == 1
    with pytest.raises(UserError, match=r"give at least 8\.2"):
        trajectories_in_memory(8 + 0.99 * per_trajectory, 8, 128)
    assert trajectories_in_memory(float("inf"), 8, 128) == 2**31


def test_a_users_observations_count_and_training_losses_do_not(case):
    model = case.solver.model
    data = torch.linspace(-1, 1, 5)

    def program(infer):
        def run(x, y=None, state=None, *, steps=1):
            with pyro.plate("data", 5, dim=-1):
                pyro.sample("more", pyro.distributions.Normal(0.0, 2.0), obs=data, infer=infer)
            return model(x, y, state, steps=steps)

        return run

    settings = {"num_samples": 3, "depth": 2, "seed": 4}
    plain_log_p = rollout_log_prob(model, case.x, case.y, **settings)
    torch.testing.assert_close(rollout_log_prob(program({LOSS_ONLY: True}), case.x, case.y, **settings), plain_log_p)
    observed_log_p = rollout_log_prob(program({}), case.x, case.y, **settings)
    torch.testing.assert_close(observed_log_p, plain_log_p + torch.distributions.Normal(0.0, 2.0).log_prob(data))
