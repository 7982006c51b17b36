"""Tests of on-policy training: updates along trajectories of the prior."""

import itertools
import math

import pyro
import pytest
import torch
from pyro.distributions import Categorical

from pyro_gram.errors import ConfigError
from pyro_gram.sampling.rollout import rollout
from pyro_gram.tasks.batches import Candidates, TargetStream
from pyro_gram.training import trainer as trainer_module
from pyro_gram.training.beta_schedule import BetaConfig
from pyro_gram.training.config import TrainConfig
from pyro_gram.training.loop import train_batches
from pyro_gram.training.on_policy import draw_targets, prior_end
from pyro_gram.training.optimizer import OptimConfig
from pyro_gram.training.trainer import Trainer
from tests.conftest import build_case, build_small


def make_trainer(solver, **train):
    c = solver.config
    stream = TargetStream(solver.task, solver.task.split("train"), c.train.batch, c.seed)
    config = TrainConfig(**{**vars(c.train), **train})
    return Trainer(solver.model, solver.guide, stream, config, OptimConfig(lr=1e-3, warmup=1), BetaConfig())


def test_targets_are_drawn_by_likelihood_from_the_solutions_of_each_input():
    logits = torch.tensor([[[2.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [3.0, 0.0]]]).log_softmax(-1)  # [B = 2, L = 2, C = 2]
    solutions = torch.tensor([[[0, 0], [1, 1]], [[1, 1], [0, 0]], [[0, 1], [0, 1]]])  # [K = 3, B, L]
    mask = torch.tensor([[True, True], [True, False], [False, True]])
    likelihood = Categorical(logits=logits).to_event(1)
    torch.manual_seed(0)
    targets = torch.stack([draw_targets(likelihood, Candidates(solutions[0], solutions, mask)) for _ in range(1000)])
    p = likelihood.log_prob(solutions).exp().masked_fill(~mask, 0)
    p = p / p.sum(0)
    for b in range(2):
        for k in range(3):
            share = (targets[:, b] == solutions[k, b]).all(-1).double().mean().item()
            assert share == pytest.approx(p[k, b].item(), abs=0.05)


def test_the_state_is_that_of_a_rollout_and_has_no_gradient():
    case = build_case()
    model = case.solver.model
    torch.manual_seed(7)
    end = prior_end(model, case.x, 3)
    assert not end.state.h.requires_grad
    assert end.state.h.shape == model.initial_state(model.encode(case.x)).h.shape
    samples = rollout(model, case.x, num_samples=1, depth=3, seed=7)
    assert torch.equal(end.likelihood.mode, samples.tokens[0])


def test_candidates_are_pure_and_hold_every_solution():
    task = build_small().task
    puzzles = task.split("train")
    stream = TargetStream(task, puzzles, 32, seed=1)
    candidates, same_candidates = stream.candidates(5), stream.candidates(5)
    assert torch.equal(candidates.x, same_candidates.x)
    assert not torch.equal(candidates.x, stream.candidates(6).x)
    assert (candidates.mask.sum(0) > 1).any()
    for b in range(len(candidates.x)):
        (index,) = (puzzles.inputs == candidates.x[b]).flatten(1).all(1).nonzero()[0].tolist()
        assert torch.equal(candidates.solutions[candidates.mask[:, b], b], puzzles.solutions_of(index))


def test_without_a_likelihood_targets_are_uniform():
    solutions = torch.tensor([[[0, 0]], [[1, 1]], [[0, 1]], [[0, 0]]])  # [K = 4, B = 1, L]
    mask = torch.tensor([[True], [True], [True], [False]])
    torch.manual_seed(0)
    targets = torch.stack([draw_targets(None, Candidates(solutions[0], solutions, mask))[0] for _ in range(1000)])
    for k in range(3):
        assert (targets == solutions[k, 0]).all(-1).double().mean().item() == pytest.approx(1 / 3, abs=0.05)


def test_zero_steps_return_the_given_state():
    case = build_case()
    model = case.solver.model
    end = prior_end(model, case.x, 2)
    same_end = prior_end(model, case.x, 0, end.state)
    assert torch.equal(same_end.state.h, end.state.h)
    assert torch.equal(same_end.likelihood.base_dist.logits, end.likelihood.base_dist.logits)


def test_a_batch_of_the_on_policy_part_makes_more_updates_at_the_rate_of_its_last_step():
    trainer = make_trainer(
        build_small(), batches=4, supervision_steps=3, on_policy_depth=4, on_policy_updates=2, on_policy_after=0.5
    )
    shares, update = [], trainer.update

    def spy(guide, *args):
        if guide is trainer.prior_guide:
            shares.append(trainer.optimizer.progress)
        return update(guide, *args)

    trainer.update = spy
    reports = [(trainer.optimizer.num_updates, report.on_policy) for report in train_batches(trainer)]
    assert [update for update, _ in reports] == [3, 6, 11, 16]
    assert shares == pytest.approx([(2 + 2 / 3) / 4] * 2 + [(3 + 2 / 3) / 4] * 2)
    assert [loss is None for _, loss in reports] == [True, True, False, False]
    assert all(loss > 0 for _, loss in reports[2:])


def test_on_policy_updates_follow_the_prior_from_every_depth_towards_solutions_of_other_inputs(monkeypatch):
    depths, calls = [], []

    def spy(model, x, steps, state=None):
        if state is None:
            depths.append(steps)
        return prior_end(model, x, steps, state)

    monkeypatch.setattr(trainer_module, "prior_end", spy)
    trainer = make_trainer(
        build_small(), batches=12, supervision_steps=2, on_policy_depth=4, on_policy_updates=2, on_policy_after=0.0
    )
    update = trainer.update

    def record(guide, x, y, state, step):
        if guide is trainer.prior_guide:
            calls.append((x, y, state))
        return update(guide, x, y, state, step)

    trainer.update = record
    list(train_batches(trainer))
    assert set(depths) == {0, 1, 2}
    assert len(calls) == 2 * len(depths) == 24
    for batch, depth in enumerate(depths):
        (x, y, state), (_, later_y, later_state) = calls[2 * batch : 2 * batch + 2]
        start = trainer.model.initial_state(trainer.model.encode(x))
        assert torch.equal(state.h, start.h) == (depth == 0)
        assert not torch.equal(later_state.h, state.h)
        assert trainer.batches.task.is_valid(x, y).all()
        assert trainer.batches.task.is_valid(x, later_y).all()
        assert not torch.equal(x, trainer.batches(batch)[0])


def test_on_policy_updates_do_not_train_the_guide():
    trainer = make_trainer(build_small(), batches=9, on_policy_depth=2, on_policy_updates=2)
    trainer.supervise_on_policy()
    assert not trainer.elbo.terms.kl.any()
    moments = {name for name in trainer.optimizer.state_dict() if name.endswith("/exp_avg")}
    assert any(name.startswith("model.core") for name in moments)
    assert any(name.startswith("model.prior") for name in moments)
    assert not any(name.startswith("guide") for name in moments)


def test_only_updates_under_the_guide_are_reported_and_move_beta():
    trainer = make_trainer(
        build_small(), batches=1, supervision_steps=2, on_policy_depth=2, on_policy_updates=2, on_policy_after=0.0
    )
    supervise, terms = trainer.supervise, []
    trainer.supervise = lambda *a: (terms.append(supervise(*a)), terms[-1])[1]
    (report,) = train_batches(trainer)
    assert trainer.optimizer.num_updates == 4
    assert [report.reconstruction, report.kl] == terms[0].mean(0).tolist()
    assert trainer.beta.mean == report.reconstruction


def test_if_the_clock_ends_the_run_on_policy_training_begins_after_its_share_of_the_minutes():
    trainer = make_trainer(
        build_small(),
        batches=0,
        minutes=1.0,
        supervision_steps=1,
        on_policy_depth=1,
        on_policy_updates=1,
        on_policy_after=0.5,
    )
    updates = []
    for share in (0.1, 0.6):
        trainer.elapsed, num_updates = share * 60, trainer.optimizer.num_updates
        trainer.train_batch(*trainer.batches(0))
        updates.append(trainer.optimizer.num_updates - num_updates)
    assert updates == [1, 2]


@pytest.mark.slow
def test_on_policy_training_makes_trajectories_end_right_more_often_than_those_trained_under_the_guide():
    """Both trainings start from the same model and make equally many updates."""
    accuracy = {}
    for is_on_policy in (True, False):
        pyro.set_rng_seed(0)
        trainer = make_trainer(build_small(), batches=400, supervision_steps=2, on_policy_depth=4, on_policy_updates=2)
        for trainer.number in range(120):
            torch.manual_seed(trainer.number)
            if is_on_policy and trainer.number >= 60:
                trainer.supervise_on_policy()
            else:
                trainer.supervise(*trainer.batches(trainer.number))
        task, x = trainer.batches.task, trainer.batches.task.split("train").subset(64).inputs
        tokens = rollout(trainer.model, x, num_samples=16, depth=4, seed=1).tokens
        accuracy[is_on_policy] = task.is_valid(x, tokens).double().mean().item()
    assert accuracy[True] > accuracy[False] + 0.05


def test_tasks_without_inputs_or_all_solutions_are_refused_before_training():
    with pytest.raises(ConfigError, match="needs a task with inputs"):
        make_trainer(build_small(task_name="sudoku_uncond"), on_policy_depth=2, on_policy_updates=2)
    with pytest.raises(ConfigError, match="needs every solution of every input"):
        make_trainer(
            build_small(task_name="nqueens", task={"size": 13, "solutions": 200, "validation": 8}), on_policy_depth=4
        )
    with pytest.raises(
        ConfigError, match="train.on_policy_updates = 4 steps do not fit into train.on_policy_depth = 2"
    ):
        TrainConfig(on_policy_depth=2)
    case = build_case()
    with pytest.raises(ConfigError, match="needs batches with every solution"):
        Trainer(
            case.solver.model,
            case.solver.guide,
            lambda number: (case.x, case.y),
            TrainConfig(on_policy_depth=1, on_policy_updates=1),
            OptimConfig(),
            BetaConfig(),
        )


def test_targets_are_drawn_with_their_names_each_distinct_answer_once():
    """Two solutions with three exchangeable values, of which the second solution uses one only."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 4, 3, generator=generator).log_softmax(-1)
    solutions = torch.tensor([[[0, 1, 1, 0]], [[0, 0, 0, 0]]])  # [K = 2, B = 1, L = 4]; the last token is padding
    is_token = torch.tensor([[True, True, True, False]])
    namings = torch.tensor(list(itertools.permutations(range(3))))
    candidates = Candidates(
        solutions[0], solutions, torch.ones(2, 1).bool(), namings, torch.ones(6, 1).bool(), is_token
    )
    log_p = logits * is_token[..., None]
    likelihood = Categorical(logits=logits).to_event(1)
    answers = {tuple(naming[solution[0, :3]].tolist()) for solution in solutions for naming in namings}
    p = {a: sum(log_p[0, i, v].item() for i, v in enumerate(a)) for a in answers}
    total = torch.tensor(list(p.values())).logsumexp(0).item()
    torch.manual_seed(0)
    targets = [tuple(draw_targets(likelihood, candidates)[0].tolist()) for _ in range(3000)]
    assert {t[3] for t in targets} == {0}
    for answer, value in p.items():
        share = sum(t[:3] == answer for t in targets) / len(targets)
        assert share == pytest.approx(math.exp(value - total), abs=0.03)
    uniform = [tuple(draw_targets(None, candidates)[0].tolist())[:3] for _ in range(3000)]
    for answer in answers:  # a solution is uniform, then its naming
        expected = 1 / 2 / 3 if len(set(answer)) == 1 else 1 / 2 / 6
        assert uniform.count(answer) / 3000 == pytest.approx(expected, abs=0.03)
