"""Training with halting: a trajectory stays in the batch until it is finished."""

from dataclasses import replace

import pytest
import torch

from pyro_gram.inference.sites import plate_shape, record_state
from pyro_gram.inference.terms import StepTerms
from pyro_gram.networks.core import LatentState
from pyro_gram.system.distributed import SINGLE_PROCESS
from pyro_gram.training.act import Carry
from pyro_gram.training.dry_run import dry_run
from pyro_gram.training.loop import train_batches
from tests.conftest import build_small
from tests.training.test_trainer import make_trainer


def terms(halted, value=7.0):
    state = LatentState(torch.full((len(halted), 3, 4), value), torch.full((len(halted), 3, 4), -value))
    zeros = torch.zeros(len(halted))
    return StepTerms(zeros, torch.zeros(0, len(halted)), state, torch.tensor(halted), zeros, zeros)


def start(count):
    return Carry.start(None, torch.zeros(count, 1, dtype=torch.long))


def program(x, y=None, state=None, *, steps):
    """Record a z_0 of zeros and ones."""
    assert steps == 0
    shape = (*(plate_shape() if x is None else x.shape[:1]), 3, 4)
    record_state(LatentState(torch.zeros(shape), torch.ones(shape)))


def test_a_new_pair_replaces_a_finished_trajectory_and_no_other():
    torch.manual_seed(1)  # a seed at which no trajectory explores
    x, y = torch.arange(3)[:, None], torch.arange(3)[:, None]
    carry = Carry.start(x, y)
    assert carry.steps.dtype == torch.long
    carry = carry.advance(terms([True, False, False]), max_steps=4)
    assert carry.finished.tolist() == [True, False, False]
    carry = carry.replace_finished(program, x + 10, y + 10)
    assert carry.x.flatten().tolist() == carry.y.flatten().tolist() == [10, 1, 2]
    assert carry.steps.tolist() == [0, 1, 1]
    assert (carry.state.h[0] == 0).all()
    assert (carry.state.l[0] == 1).all()
    assert (carry.state.h[1:] == 7).all()


def test_no_trajectory_takes_more_than_the_greatest_number_of_steps():
    carry = start(2)
    for step in range(1, 4):
        carry = carry.advance(terms([False, False]), max_steps=3)
        assert carry.finished.tolist() == [step == 3] * 2


def test_a_tenth_of_the_trajectories_must_explore_for_at_least_two_steps():
    carry = start(5000).advance(terms([True] * 5000), max_steps=8)
    assert 0.07 < (~carry.finished).float().mean() < 0.13


def test_an_exploring_trajectory_makes_a_uniform_number_of_steps():
    n, max_steps = 4000, 5
    carry = start(n)
    shares = []
    for step in range(1, max_steps + 1):
        carry = Carry(None, carry.y, torch.full((n,), step - 1), carry.finished)
        carry = carry.advance(terms([True] * n), max_steps, exploration=1.0)
        shares.append(carry.finished.float().mean().item())
    assert shares == pytest.approx([0, 1 / 4, 2 / 4, 3 / 4, 1], abs=0.04)  # a minimum of 2 to 5 steps is drawn
    assert start(n).advance(terms([True] * n), max_steps=1).finished.all()


def test_a_batch_is_one_update_from_the_state_of_the_last():
    trainer = make_trainer(build_small(model_name="trm"), batches=6, supervision_steps=2)
    reports = list(train_batches(trainer))
    assert len(reports) == trainer.optimizer.num_updates == 6
    assert trainer.carry.steps.max() <= 2
    # At first the heads halt no trajectory, so each makes two steps. Therefore every second batch has new pairs.
    assert torch.equal(trainer.carry.x, trainer.batches(4)[0])


def test_trajectories_of_a_model_that_does_not_halt_end_at_different_updates():
    torch.manual_seed(0)
    n, max_steps = 4000, 4
    carry, finished = start(n), []
    for _ in range(2 * max_steps):
        carry = carry.advance(replace(terms([False] * n), halted=None), max_steps)
        assert 0.2 < carry.finished.float().mean() < 0.3
        finished.append(carry.finished)
        carry = carry.replace_finished(program, None, carry.y)
    assert torch.stack(finished[:max_steps]).sum(0).eq(1).all()
    assert torch.equal(torch.stack(finished[:max_steps]), torch.stack(finished[max_steps:]))


def test_on_policy_updates_follow_every_supervision_steps_th_batch():
    trainer = make_trainer(
        build_small(),
        act=True,
        batches=8,
        supervision_steps=2,
        on_policy_depth=4,
        on_policy_updates=2,
        on_policy_after=0.5,
    )
    dry_run(trainer)
    reports = list(train_batches(trainer))
    assert [report.on_policy is not None for report in reports] == [False] * 4 + [True, False, True, False]
    assert trainer.optimizer.num_updates == 8 + 2 * 2


def test_a_carry_is_rebuilt_from_its_state_dict():
    carry = Carry.start(torch.ones(5, 2), torch.zeros(5, 1)).advance(terms([False] * 5), max_steps=4)
    tensors = carry.state_dict()
    loaded_carry = Carry.from_state_dict(tensors).shard(SINGLE_PROCESS, torch.device("cpu")).all_gather(SINGLE_PROCESS)
    assert loaded_carry.state_dict().keys() == tensors.keys() == {"x", "y", "steps", "finished", "h", "l"}
    assert all(torch.equal(tensors[name], tensor) for name, tensor in loaded_carry.state_dict().items())
    with pytest.raises(KeyError, match="steps"):
        Carry.from_state_dict({name: tensor for name, tensor in tensors.items() if name != "steps"})
    with pytest.raises(ValueError, match="unfinished trajectories: .* in h"):
        Carry.from_state_dict({**tensors, "h": tensors["h"][:1]})
