"""Trajectories halt when their halt head is sure enough (ACT), and a rollout keeps within its memory limit."""

import sys

import pyro
import pytest
import torch
from pyro_gram.models.gram import GRAM

from experiments.bench.bench_solve import CHECKPOINT, MANY, PEAK, output
from pyro_gram.errors import ConfigError, UserError
from pyro_gram.sampling.draws import DrawScheme
from pyro_gram.sampling.memory import trajectories_in_memory
from pyro_gram.sampling.rollout import rollout
from pyro_gram.sampling.tempering import TemperConfig
from tests.conftest import StateHeads, build_case, build_case_with_heads


def test_a_head_that_is_never_sure_halts_nothing_and_changes_no_draw():
    case = build_case_with_heads(shift=-50.0)
    model = case.solver.model
    full_samples = rollout(model, case.x, num_samples=4, depth=5, seed=2)
    samples = rollout(model, case.x, num_samples=4, depth=5, seed=2, halt=0.5)
    assert torch.equal(full_samples.tokens, samples.tokens)
    torch.testing.assert_close(full_samples.score, samples.score)
    torch.testing.assert_close(full_samples.value, samples.value)
    assert (samples.steps == full_samples.steps).all()
    assert torch.equal(samples.work, full_samples.work)
    assert (samples.work == 20).all()


def test_a_head_that_is_always_sure_halts_after_one_step():
    case = build_case_with_heads(shift=50.0)
    model = case.solver.model
    samples = rollout(model, case.x, num_samples=4, depth=5, seed=2, halt=0.99)
    one_step_samples = rollout(model, case.x, num_samples=4, depth=1, seed=2)
    assert torch.equal(samples.tokens, one_step_samples.tokens)
    assert (samples.steps == 1).all()
    assert (samples.work == 4).all()


def test_a_halted_trajectory_leaves_the_batch_and_keeps_its_answer():
    case = build_case_with_heads(strength=300.0)
    batch_sizes = []

    class RecordBatchSizes(pyro.poutine.messenger.Messenger):
        def _pyro_post_sample(self, msg):
            if msg["name"].startswith("eps_0"):
                batch_sizes.append(msg["value"][..., 0, 0].numel())

    with RecordBatchSizes():
        samples = rollout(case.solver.model, case.x, num_samples=30, depth=6, seed=2, halt=0.9)
    num_halted = [int((samples.steps == s).sum()) for s in range(1, 7)]
    assert batch_sizes == [150 - sum(num_halted[:s]) for s in range(len(batch_sizes))]
    assert 0 < num_halted[0] < 150
    assert samples.work.sum() == sum(batch_sizes) == samples.steps.sum()
    is_early = samples.steps < 6
    assert (samples.value[is_early] >= 0.9).all()  # this is the value at the halting step, not at a later step
    one_step_samples = rollout(case.solver.model, case.x, num_samples=30, depth=1, seed=2)
    is_first = samples.steps == 1
    assert torch.equal(samples.tokens[is_first], one_step_samples.tokens[is_first])


def test_chunks_of_halting_trajectories_are_repeatable():
    case = build_case_with_heads(strength=300.0)
    settings = {"num_samples": 7, "depth": 4, "seed": 1, "halt": 0.8}
    for limit in (3, 2048):
        a, b = (rollout(case.solver.model, case.x, **settings, max_trajectories=limit) for _ in range(2))
        assert a.tokens.shape == (7, 5, 4)
        assert a.steps.shape == a.value.shape == (7, 5)
        assert torch.equal(a.work, a.steps.sum(0))
        assert torch.equal(a.tokens, b.tokens)


def test_a_halt_needs_heads_a_probability_and_no_history():
    case = build_case()
    model = case.solver.model
    with pytest.raises(ConfigError, match="no heads to halt by: train with --heads.hidden"):
        rollout(model, case.x, num_samples=1, depth=1, halt=0.5)
    for halt in (-0.1, 1.1, float("nan"), "a"):
        with pytest.raises(UserError, match="halt is a probability"):
            rollout(model, case.x, num_samples=1, depth=1, halt=halt)
    with pytest.raises(UserError, match="whole number"):
        rollout(model, case.x, num_samples=1.5, depth=1)
    rollout(model, case.x, num_samples=1, depth=1, halt=1, history=True)  # with halt = 1 no trajectory halts
    model.heads = StateHeads()
    rollout(model, case.x, num_samples=1, depth=1, halt=0)
    with pytest.raises(UserError, match="leave out halt, draws"):
        rollout(model, case.x, num_samples=1, depth=1, halt=0.5, history=True)


def test_a_memory_limit_below_one_trajectory_is_refused():
    limits = ((100.0, 8, 128), (50.0, 8, 128), (50.0, 80, 128))
    large_count, small_count, long_count = (trajectories_in_memory(*limit) for limit in limits)
    assert large_count > small_count > long_count > 0
    for memory in (0.0, 8.0, -1.0, float("nan")):
        with pytest.raises(UserError, match="does not hold one trajectory"):
            trajectories_in_memory(memory, 8, 128)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(("trajectories", "limit"), [(40, 20.0), (MANY, 25.0)])
def test_trajectories_stay_within_the_users_memory(trajectories, limit):
    """Without the limit, 40 trajectories of each of four graphs would take about 40 MB."""
    peak = float(output([sys.executable, "-c", PEAK, str(CHECKPOINT), str(trajectories), str(limit)]))
    assert peak <= limit


@pytest.mark.parametrize("changes", [{"model": {"prefix": 3}}, {"task_name": "arc"}])
def test_models_with_a_prefix_or_puzzle_embeddings_halt(changes):
    case = build_case_with_heads(strength=300.0, **changes)
    model = case.solver.model
    wide_temper = TemperConfig(scale=4.0, transitions=3)
    full_samples = rollout(model, case.x, num_samples=6, depth=3, seed=2, temper=wide_temper)
    model.heads.shift = -50.0
    unsure_samples = rollout(model, case.x, num_samples=6, depth=3, seed=2, temper=wide_temper, halt=0.9)
    assert torch.equal(full_samples.tokens, unsure_samples.tokens)
    model.heads.shift = 0.0
    halted_samples = rollout(
        model, case.x, num_samples=6, depth=3, seed=2, temper=wide_temper, halt=0.9, draws=DrawScheme("sobol")
    )
    assert halted_samples.tokens.shape == full_samples.tokens.shape
    assert 1 <= halted_samples.steps.min() < halted_samples.steps.max() <= 3


def test_a_halt_of_1_never_halts():
    case = build_case_with_heads(shift=500.0)
    samples = rollout(case.solver.model, case.x, num_samples=2, depth=3, halt=1.0)
    assert (samples.steps == 3).all()


def test_a_program_that_does_not_sample_its_heads_is_refused():
    case = build_case(model_name="tests.sampling.test_halting:WithoutHeadSites")
    case.solver.model.heads = StateHeads()
    with pytest.raises(ConfigError, match="no site 'halt'"):
        rollout(case.solver.model, case.x, num_samples=2, depth=2, halt=0.5)


class WithoutHeadSites(GRAM):
    """A program that has heads and hides their sites."""

    def forward(self, x, y=None, state=None, **settings):
        with pyro.poutine.block(hide=["halt", "value"]):
            return super().forward(x, y, state, **settings)
