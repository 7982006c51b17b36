"""A lattice on inputs of several sizes, on images, and with the settings of samplers: padding, heads, SMC, history."""

from dataclasses import replace

import networkx
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch.nn.functional import one_hot

from pyro_gram.build import build
from pyro_gram.errors import ConfigError, UserError
from pyro_gram.inference.importance import guide_draws
from pyro_gram.inference.sites import HALT
from pyro_gram.sampling import halting
from pyro_gram.sampling.rollout import rollout
from pyro_gram.sampling.smc import smc
from pyro_gram.training.heads import HeadsConfig, attach_heads
from tests.conftest import build_case, build_small, perturb_, small_config
from tests.networks.relational import SIZES, SPECS, FixedGuidance, make_pairs, make_program
from tests.training.test_trainer import make_trainer

HEADS = HeadsConfig(hidden=16, attention_heads=2, layers=1, rounds=1)
ONE_ORDER = {"certainty": 1.0, "order": 0.0}  # the most certain token is decided: a trajectory is known from y
ALL_SETTINGS = [
    {},
    {"model": {"is_carried": True}},
    {"model": {"transitions": 3}},
    {"prior": {"count": 3}},
    {"model": {"truncated": True}},
]


def lattice_of(task, **config):
    return make_program(SPECS[task], "lattice", "decisions", "reveal", prior_config={**ONE_ORDER, **config})


def with_heads(**changes):
    solver = build_small(model_name="lattice", task_name="sudoku", **changes)
    attach_heads(solver.model, solver.config.model, solver.task, HEADS, seed=0)
    return solver, solver.task.split("test").inputs


def decisions_in_turn(task, x, y):
    """Return guidance ``[transitions, B, L_out, V]`` that decides the open tokens from left to right, for y."""
    values = SPECS[task].structure(x).values
    is_open = values.sum(-1) > 1
    turn = torch.where(is_open, is_open.cumsum(-1) - 1, -1)
    decided = torch.stack([turn == t for t in range(y.shape[-1] + 1)])
    return decided[..., None] * one_hot(y, values.shape[-1]).float()


@pytest.mark.parametrize("task", SPECS)
def test_padding_changes_no_bound(task):
    model, guide = lattice_of(task, order=1.0)
    x, y = make_pairs(task)

    def log_weights(x, y):
        with FixedGuidance(decisions_in_turn(task, x, y)):
            return guide_draws(model, guide, x, y, steps=(y.shape[-1] + 1) // 2, num_samples=1).log_weight[0]

    padded = log_weights(x, y)
    for i, size in enumerate(SIZES[task]):
        x_i, y_i = SPECS[task].crop(x[i : i + 1], y[i : i + 1])
        assert y_i.shape[-1] == size
        torch.testing.assert_close(padded[i], log_weights(x_i, y_i)[0], atol=1e-4, rtol=1e-4)
    assert (padded < -0.1).all()


@pytest.mark.parametrize("task", SPECS)
def test_padding_is_never_decided_and_closed_values_are_never_taken(task):
    model, _ = lattice_of(task, order=1.0)
    x, _ = make_pairs(task)
    samples = rollout(model, x, num_samples=30, depth=6)
    for i, size in enumerate(SIZES[task]):
        values = SPECS[task].structure(x[i]).values
        assert values.expand(30, *values.shape).gather(-1, samples.tokens[:, i, :, None]).all()
        assert not samples.tokens[:, i, size:].any()
        assert samples.steps[:, i].max() <= (size + 1) // 2  # two tokens in a step


def test_an_image_is_drawn_many_pixels_at_once():
    case = build_case(model_name="lattice", task_name="mnist")
    solver = case.solver
    samples = solver.sample(None, num_samples=12, seed=3)
    assert samples.tokens.shape == (12, 1, 14 * 14)
    assert set(samples.tokens.unique().tolist()) == {0, 1}
    assert (samples.steps < 64).all()  # three pixels in a transition, and two transitions in a step
    assert samples.score.max() < -1
    trainer = make_trainer(solver, supervision_steps=64, act=True, batch=8)
    trainer.train_batch(*trainer.batches(0))
    assert trainer.carry.state.h.shape == (8, 14 * 14, 2)
    trainer.carry.finished[:] = torch.arange(8) < 3
    restarted = trainer.carry.replace_finished(solver.model, *trainer.batches(1))
    assert restarted.state.h[:3].min() == 1  # all values are open again
    assert restarted.state.h[3:].sum() == trainer.carry.state.h[3:].sum() < 8 * 14 * 14 * 2


def test_a_lattice_that_cannot_be_complete_is_refused():
    with pytest.raises(ConfigError, match="has 196 tokens, and .* allow 180 decisions: raise prior.count"):
        build_small(model_name="lattice", task_name="mnist", evaluate={"depth": 30})


@pytest.mark.parametrize("changes", ALL_SETTINGS, ids=str)
def test_every_setting_trains_and_completes_answers(changes):
    case = build_case(model_name="lattice", task_name="sudoku", **changes)
    solver, x, y = case.solver, case.x, case.y
    assert torch.isfinite(torch.tensor(Trace_ELBO().loss(solver.model, solver.guide, x, y, steps=4)))
    before = [p.clone() for p in solver.model.parameters()]
    trainer = make_trainer(solver, supervision_steps=64, act=True, batch=8, exact_targets=True)
    for number in range(3):
        trainer.train_batch(*trainer.batches(number))
    assert all(not torch.equal(p, old) for p, old in zip(solver.model.parameters(), before, strict=True))
    samples = rollout(solver.model, x, num_samples=4, depth=64)
    assert (samples.steps < 64).all()
    is_clue = x > 1
    assert torch.equal(samples.tokens[:, is_clue], x[is_clue].expand(4, -1))


def test_a_carried_memory_changes_the_predictions_of_later_transitions():
    model, guide = make_program(SPECS["graphs"], "lattice", "decisions", "reveal")
    x, y = make_pairs("graphs")
    losses = []
    for is_carried in (False, True):
        model.config = replace(model.config, is_carried=is_carried)
        with FixedGuidance(decisions_in_turn("graphs", x, y)):
            losses.append(guide_draws(model, guide, x, y, steps=1, num_samples=1).kl)
    torch.testing.assert_close(losses[0][0], losses[1][0])  # the first transition starts at l_0 in any case
    assert ((losses[0][1] - losses[1][1]).abs() > 1e-3).any()


def test_heads_judge_sweeps_and_filter_trajectories():
    solver, x = with_heads()
    plain, swept = (rollout(solver.model, x, num_samples=6, depth=20, halt=0.999, sweeps=n) for n in (0, 1))
    assert (swept.steps > plain.steps).any()
    assert ((swept.value > 0) & (swept.value < 1)).all()
    particles = smc(solver.model, x, num_samples=6, depth=12)
    assert particles.score.max() < 0
    is_clue = x > 1
    assert torch.equal(particles.tokens[:, is_clue], x[is_clue].expand(6, -1))
    assert (solver.sample(x, num_samples=6, draws="smc").steps == solver.config.depth).all()


def test_a_trajectory_whose_answer_is_thought_wrong_starts_anew(monkeypatch):
    ends, run_rows = [], halting._run_rows
    monkeypatch.setattr(halting, "_run_rows", lambda *args: ends.append((end := run_rows(*args))[0]) or end)
    solver, x = with_heads()
    perturb_(solver.model.heads, 1.0)
    once, again = (rollout(solver.model, x, num_samples=20, depth=20, seed=3, restarts=n) for n in (0, 3))
    is_restarted = again.steps > once.steps
    assert 0.1 < is_restarted.double().mean() < 0.9
    assert torch.equal(again.tokens[~is_restarted], once.tokens[~is_restarted])
    assert not torch.equal(again.tokens[is_restarted], once.tokens[is_restarted])
    assert torch.equal(again.steps[~is_restarted], once.steps[~is_restarted])
    assert torch.equal(ends[1][HALT].view(20, -1) < 0.5, is_restarted)
    num_wrong = [int((end[HALT] < 0.5).sum()) for end in ends[1:]]
    assert [len(end[HALT]) for end in ends[2:]] == num_wrong[: len(ends) - 2]


def test_restarts_need_heads():
    with pytest.raises(ConfigError, match="set heads.hidden, or evaluate.restarts to 0"):
        build_small(model_name="lattice", task_name="sudoku", evaluate={"restarts": 1})
    solver = build_small(model_name="lattice", task_name="sudoku")
    x = solver.task.split("test").inputs
    with pytest.raises(ConfigError, match="heads"):
        solver.sample(x, restarts=1)
    with pytest.raises(UserError, match="restarts must be at least 0, not -1"):
        solver.sample(x, restarts=-1)
    solver, x = with_heads()
    assert solver.frequency_caveats(restarts=2, halt=1) == ("2 restarts",)
    with pytest.raises(UserError, match="leave out halt, draws, restarts"):
        solver.sample(x, history=True, restarts=1)


def test_sweeps_that_cannot_be_made_are_refused():
    solver, x = with_heads(evaluate={"sweeps": 1})
    with pytest.raises(UserError, match="takes no history, halt, restarts or sweeps"):
        solver.sample(x, num_samples=3, draws="smc", sweeps=2)
    with pytest.raises(UserError, match="they need a model with a lattice, and no history"):
        solver.sample(x, num_samples=3, history=True, sweeps=2)
    history = solver.sample(x, num_samples=3, history=True).history  # the sweeps of the config are left out
    assert torch.equal(history[-1], history[-2])
    assert not torch.equal(history[0], history[-1])


def test_a_graph_larger_than_the_training_graphs_is_complete():
    task = {"layout": "graph", "min_vertices": 4, "vertices": 6, "train": 40, "validation": 4, "test": 4}
    solver = build(small_config(model_name="lattice", task=task, model={"mixer": "relations", "width": 18, "heads": 3}))
    answers = solver.solve([networkx.cycle_graph(16)], num_samples=5, colors=3)[0]
    assert answers.mean_steps <= 16
