"""Training that goes on from where the prior ended."""

import pyro
import pytest
import torch
from pyro.distributions import Categorical

from pyro_gram.errors import ConfigError
from pyro_gram.inference.beta import BetaConfig
from pyro_gram.inference.on_policy import draw_targets, prior_state
from pyro_gram.inference.optim import OptimConfig
from pyro_gram.inference.sampling import rollout
from pyro_gram.inference.training import TrainConfig, Trainer
from pyro_gram.tasks.stream import TargetStream
from tests.conftest import case_of, small


def make_trainer(assembly, **train):
    c = assembly.config
    stream = TargetStream(assembly.task, assembly.task.split("train"), c.train.batch, c.seed)
    config = TrainConfig(**{**vars(c.train), **train})
    return Trainer(assembly.model, assembly.guide, stream, config, OptimConfig(lr=1e-3, warmup=1), BetaConfig())


def test_targets_are_drawn_by_their_likelihood_and_only_where_there_is_one():
    logits = torch.tensor([[[2.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [3.0, 0.0]]]).log_softmax(-1)  # [B = 2, L = 2, C = 2]
    solutions = torch.tensor([[[0, 0], [1, 1]], [[1, 1], [0, 0]], [[0, 1], [0, 1]]])  # [K = 3, B, L]
    there = torch.tensor([[True, True], [True, False], [False, True]])
    likelihood = Categorical(logits=logits).to_event(1)
    torch.manual_seed(0)
    drawn = torch.stack([draw_targets(likelihood, solutions, there) for _ in range(4000)])
    p = likelihood.log_prob(solutions).exp().masked_fill(~there, 0)
    p = p / p.sum(0)
    for b in range(2):
        for k in range(3):
            share = (drawn[:, b] == solutions[k, b]).all(-1).double().mean().item()
            assert share == pytest.approx(p[k, b].item(), abs=0.03)


def test_the_state_is_that_of_a_roll_out_and_has_no_gradient():
    case = case_of()
    model = case.assembly.model
    torch.manual_seed(7)
    state, likelihood = prior_state(model, case.x, 3)
    assert not state.h.requires_grad
    assert state.h.shape == model.initial_state(model.encode(case.x)).h.shape
    rolled = rollout(model, case.x, num_samples=1, depth=3, seed=7)
    assert torch.equal(likelihood.mode, rolled.tokens[0])


def test_candidates_are_pure_and_hold_every_solution():
    task = small().task
    puzzles = task.split("train")
    stream = TargetStream(task, puzzles, 32, seed=1)
    one, two = stream.candidates(5), stream.candidates(5)
    assert torch.equal(one.x, two.x)
    assert not torch.equal(one.x, stream.candidates(6).x)
    assert (one.there.sum(0) > 1).any()
    for b in range(len(one.x)):
        (at,) = (puzzles.inputs == one.x[b]).flatten(1).all(1).nonzero()[0].tolist()
        assert torch.equal(one.solutions[one.there[:, b], b], puzzles.solutions_of(at))


def test_a_batch_of_the_on_policy_part_makes_as_many_updates_again_and_the_schedule_still_ends_at_one():
    trainer = make_trainer(small(), batches=4, supervision_steps=3, on_policy=2, on_policy_after=0.5)
    seen = []
    for _ in trainer.run():
        seen.append((trainer.optim.update, trainer.optim.done))
    assert [update for update, _ in seen] == [3, 6, 12, 18]
    assert seen[-1][1] == pytest.approx((3 + 2 / 3) / 4)


def test_it_starts_from_the_prior_and_ends_in_solutions_of_other_inputs():
    trainer = make_trainer(small(), batches=1, supervision_steps=2, on_policy=2, on_policy_after=0.0)
    task, calls = trainer.batches.task, []
    step = trainer.svi.step
    trainer.svi.step = lambda x, y, state, **kwargs: (calls.append((x, y, state)), step(x, y, state, **kwargs))[1]
    list(trainer.run())
    assert [state is None for _, _, state in calls] == [True, False, False, False]
    x, y, _ = calls[2]
    assert task.valid(x, y).all()
    assert not torch.equal(x, calls[0][0])


def test_the_probability_of_ending_right_rises():
    """From one fixed start, on-policy updates alone make valid answers more probable."""
    pyro.set_rng_seed(0)
    trainer = make_trainer(small(), batches=60, supervision_steps=2, on_policy=2, on_policy_after=0.0)
    task, model = trainer.batches.task, trainer.model
    x = task.split("train").subset(64).inputs

    def right():
        tokens = rollout(model, x, num_samples=8, depth=2, seed=1).tokens
        return task.valid(x, tokens).double().mean().item()

    before = right()
    for trainer.number in range(60):
        torch.manual_seed(trainer.number)
        trainer._supervise(*trainer._from_the_prior())
    assert right() > before + 0.1


def test_what_cannot_be_trained_on_policy_is_said_before_training():
    with pytest.raises(ConfigError, match="needs a task with inputs"):
        make_trainer(small(task_name="sudoku_uncond"), on_policy=2)
    case = case_of()
    with pytest.raises(ConfigError, match="needs batches that know every solution"):
        Trainer(
            case.assembly.model,
            case.assembly.guide,
            lambda number: (case.x, case.y),
            TrainConfig(on_policy=1),
            OptimConfig(),
            BetaConfig(),
        )
