"""Trajectories that stop by themselves (ACT), and the memory that those which run at once may take."""

import resource
import subprocess
import sys

import pyro
import pytest
import torch
from torch import nn

from pyro_gram.errors import ConfigError, UserError
from pyro_gram.inference.sampling import rollout, within
from tests.conftest import ROOT, case_of


class Opinion(nn.Module):
    """Heads that trust a state by one number of it, which differs between the trajectories of an input."""

    def __init__(self, strength=0.0, shift=0.0):
        super().__init__()
        self.strength, self.shift = strength, shift

    def forward(self, h, e_x, probabilities):
        logits = 4 * (self.strength * h.mean((-1, -2))).sin() + self.shift
        return logits, logits


def headed(strength=0.0, shift=0.0, **changes):
    case = case_of(**changes)
    case.assembly.model.verdict = Opinion(strength, shift)
    return case


def test_never_sure_is_never_halted_and_draws_the_same():
    case = headed(shift=-50.0)
    model = case.assembly.model
    plain = rollout(model, case.x, num_samples=4, depth=5, seed=2)
    halted = rollout(model, case.x, num_samples=4, depth=5, seed=2, halt=0.5)
    assert torch.equal(plain.tokens, halted.tokens)
    torch.testing.assert_close(plain.score, halted.score)
    torch.testing.assert_close(plain.value, halted.value)
    assert (halted.steps == plain.steps).all()
    assert torch.equal(halted.work, plain.work)
    assert (halted.work == 20).all()


def test_sure_at_once_is_one_step_deep():
    case = headed(shift=50.0)
    model = case.assembly.model
    halted = rollout(model, case.x, num_samples=4, depth=5, seed=2, halt=0.99)
    shallow = rollout(model, case.x, num_samples=4, depth=1, seed=2)
    assert torch.equal(halted.tokens, shallow.tokens)
    assert (halted.steps == 1).all()
    assert (halted.work == 4).all()


def test_who_has_ended_leaves_the_batch_and_keeps_the_answer_of_that_step():
    case = headed(strength=300.0)
    widths = []

    class Watch(pyro.poutine.messenger.Messenger):
        def _pyro_post_sample(self, msg):
            if msg["name"].startswith("eps_0"):
                widths.append(msg["value"][..., 0, 0].numel())

    with Watch():
        halted = rollout(case.assembly.model, case.x, num_samples=30, depth=6, seed=2, halt=0.9)
    ended = [int((halted.steps == s).sum()) for s in range(1, 7)]
    assert widths == [150 - sum(ended[:s]) for s in range(len(widths))]
    assert 0 < ended[0] < 150
    assert halted.work.sum() == sum(widths) == halted.steps.sum()
    early = halted.steps < 6
    assert (halted.value[early] >= 0.9).all()  # what was said when it ended, not of a later state
    first = rollout(case.assembly.model, case.x, num_samples=30, depth=1, seed=2)
    once = halted.steps == 1
    assert torch.equal(halted.tokens[once], first.tokens[once])


def test_chunks_of_halting_trajectories_keep_their_shape_and_repeat():
    case = headed(strength=300.0)
    settings = {"num_samples": 7, "depth": 4, "seed": 1, "halt": 0.8}
    for limit in (3, 14, 2048):
        a, b = (rollout(case.assembly.model, case.x, **settings, max_trajectories=limit) for _ in range(2))
        assert a.tokens.shape == (7, 5, 4)
        assert a.steps.shape == a.value.shape == (7, 5)
        assert torch.equal(a.work, a.steps.sum(0))
        assert torch.equal(a.tokens, b.tokens)


def test_a_halt_needs_heads_a_probability_and_no_history():
    case = case_of()
    model = case.assembly.model
    with pytest.raises(ConfigError, match="no halt head: train with --verdict.hidden"):
        rollout(model, case.x, num_samples=1, depth=1, halt=0.5)
    for halt in (-0.1, 1.1, float("nan")):
        with pytest.raises(UserError, match="halt is a probability"):
            rollout(model, case.x, num_samples=1, depth=1, halt=halt)
    model.verdict = Opinion()
    with pytest.raises(UserError, match="leave out halt and width"):
        rollout(model, case.x, num_samples=1, depth=1, halt=0.5, history=True)


def test_a_memory_limit_below_one_trajectory_is_refused():
    assert within(100.0, 8, 128) > within(50.0, 8, 128) > within(50.0, 80, 128) > 0
    for memory in (0.0, 0.01, -1.0, float("nan")):
        with pytest.raises(UserError, match="does not hold one trajectory"):
            within(memory, 8, 128)


MEASURE = """
import resource, sys, torch, pyro_gram
solver = pyro_gram.load("checkpoints/coloring8.safetensors")
x = solver.task.split("test").inputs[:4]
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
solver.sample(x[:1], num_samples=1, depth=2)  # what the first call takes once and for all
before = peak()
solver.sample(x, num_samples=1000, depth=2, memory=float(sys.argv[1]))
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no ru_maxrss")
@pytest.mark.parametrize("memory", [25.0, 100.0])
def test_a_thousand_trajectories_stay_within_the_users_memory(memory):
    assert resource is not None
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(memory)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert float(done.stdout) <= memory
