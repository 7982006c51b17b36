"""The lattice model: its bound is a bound, guide and prior decide the same positions, and clues stay."""

import itertools

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive, Trace_ELBO
from torch.distributions import kl_divergence

from pyro_gram.build import build
from pyro_gram.diagnostics.orders import sum_over_orders
from pyro_gram.errors import ConfigError, UserError
from pyro_gram.inference.decisions import Decisions
from pyro_gram.inference.elbo import MeanFieldELBO
from pyro_gram.networks.core import LatentState
from pyro_gram.networks.relations import CLOSED
from pyro_gram.sampling.rollout import rollout
from pyro_gram.sampling.tempering import AtMean, TemperConfig
from pyro_gram.training.heads import HeadsConfig, attach_heads, train_heads
from tests.conftest import small_config
from tests.training.test_trainer import make_trainer


def small(**changes):
    settings = {"model": {"low_steps": 2, **changes.pop("model", {})}, "heads": {"hidden": 0}}
    config = small_config(model_name="lattice", **{**settings, **changes})
    torch.manual_seed(0)
    return build(config)


def board_of(solver):
    """One input of four queens with several solutions, and one solution."""
    puzzles = solver.task.split("train")
    index = int(puzzles.num_solutions.argmax())
    return puzzles.inputs[index : index + 1], puzzles.solutions_of(index)[:1].long()


HEADS = HeadsConfig(hidden=16, attention_heads=2, layers=1, rounds=1)
QUEENS = {"task_name": "nqueens", "task": {"size": 4, "min_queens": 0, "max_queens": 1, "validation": 1}}


@pytest.mark.parametrize(("order", "certainty"), [(0.2, 1.0), (1e6, 1.0), (0.2, 0.6)])
def test_probabilities_of_all_answers_sum_to_one(order, certainty):
    solver = small(**QUEENS, prior={"certainty": certainty, "order": order})
    x = torch.zeros(1, 4, dtype=torch.long)  # an empty board: all 4^4 answers are open
    answers = torch.tensor(list(itertools.product(range(4), repeat=4)))
    sums = sum_over_orders(solver.model, x, answers)
    assert sums.log_p.exp().sum() == pytest.approx(1, abs=1e-4)
    assert (sums.elbo <= sums.log_p + 1e-6).all()
    samples = rollout(solver.model, x, num_samples=4000, depth=4, seed=1).tokens[:, 0]
    shares = (samples[:, None] == answers).all(-1).double().mean(0)
    p = sums.log_p.exp()
    assert ((shares - p).abs() <= 5 * (p / 4000).sqrt() + 1e-3).all()


@pytest.mark.parametrize("order", [0.2, 1e6])
@pytest.mark.parametrize("task_name", ["nqueens", "sudoku"])
def test_the_elbo_is_the_mean_over_orders_and_below_the_likelihood(task_name, order):
    settings = QUEENS if task_name == "nqueens" else {"task_name": "sudoku"}
    solver = small(**settings, prior={"certainty": 1.0, "order": order})
    x, y = board_of(solver)
    sums = sum_over_orders(solver.model, x, y)
    assert sums.elbo.item() < sums.log_p.item()
    elbo = MeanFieldELBO()
    torch.manual_seed(0)
    with torch.no_grad():
        elbo.loss(solver.model, solver.guide, x.expand(400, -1), y.expand(400, -1), steps=8)
    assert elbo.terms.reconstruction.abs().max() < 1e-3  # everything is decided
    bounds = elbo.terms.elbo
    error = bounds.std().item() / len(bounds) ** 0.5
    assert bounds.mean().item() == pytest.approx(sums.elbo.item(), abs=4 * error + 1e-3)


def test_a_sum_over_orders_needs_single_decisions_and_no_memory():
    x = torch.zeros(1, 4, dtype=torch.long)
    for settings in ({"prior": {"count": 2}}, {"model": {"is_carried": True}}):
        solver = small(**QUEENS, **settings)
        with pytest.raises(ConfigError, match="a sum over orders needs"):
            sum_over_orders(solver.model, x, x)
    with pytest.raises(UserError, match="8 answers with 16 open tokens have 524,288 states"):
        sum_over_orders(small(task_name="sudoku").model, torch.ones(1, 16).long(), torch.ones(8, 16).long())


def test_pyros_elbo_is_the_same_bound():
    solver = small(**QUEENS, model={"recursion_weight": 0.0}, prior={"certainty": 1.0, "order": 0.2})
    x, y = board_of(solver)
    exact = sum_over_orders(solver.model, x, y).elbo.item()
    x, y = x.expand(500, -1), y.expand(500, -1)
    pyro.set_rng_seed(0)
    with torch.no_grad(), poutine.scale(scale=1 / 500):
        # Pyro takes log p of the decided values; the closed form takes its expectation over the choice of the position.
        pyros = Trace_ELBO().loss(solver.model, solver.guide, x, y, steps=4)
        ours = MeanFieldELBO().loss(solver.model, solver.guide, x, y, steps=4)
    assert -pyros == pytest.approx(exact, abs=0.1)
    assert -ours == pytest.approx(exact, abs=0.02)


def test_decisions_with_other_orders_have_no_closed_kl():
    logits = torch.randn(5, 6, 4)
    p = Decisions(logits, 0.9, 0.5)
    for q in (Decisions(logits, 0.9, 0.1), Decisions(logits + torch.randn(5, 6, 4), 0.9, 0.5)):
        with pytest.raises(NotImplementedError, match="equal orders"):
            kl_divergence(q, p)
    assert not p.has_rsample
    assert p.reveal(torch.zeros(5, 6).long()).has_rsample


def test_a_lattice_is_not_trained_on_trajectories_of_the_prior():
    with pytest.raises(ConfigError, match="set train.on_policy_depth to 0"):
        build(small_config(model_name="lattice", train={"on_policy_depth": 4}))


def test_sweeps_draw_half_of_a_whole_board_again():
    solver = small(task_name="sudoku_uncond", prior={"certainty": 0.6})
    before, after = (rollout(solver.model, None, num_samples=16, depth=40, seed=3, sweeps=n) for n in (0, 1))
    assert 0.2 < (before.tokens != after.tokens).double().mean().item() < 0.6


def test_trajectories_do_not_stay_in_step():
    solver = small(**QUEENS, prior={"certainty": 1.0}, model={"transitions": 1}, train={"supervision_steps": 64})
    trainer = make_trainer(solver, supervision_steps=64, act=True, batch=8)
    for number in range(30):
        trainer.train_batch(*trainer.batches(number))
    assert len(trainer.carry.steps.unique()) > 2


def test_guide_and_prior_decide_the_same_positions_and_their_weights_cancel():
    logits = torch.randn(5, 6, 4)
    logits[:, 0, 1:] = CLOSED
    p = Decisions(logits, 0.9, 0.5)
    y = torch.randint(4, (5, 6))
    q = p.reveal(y)
    draw = q.sample()
    is_decided = draw.sum(-1) > 0
    assert not is_decided[:, 0].any()  # only one value is open
    assert torch.equal(draw.argmax(-1)[is_decided], y[is_decided])
    log_values = (p.logits.gather(-1, y[..., None]).squeeze(-1) * is_decided).sum(-1)
    assert torch.allclose(p.log_prob(draw) - q.log_prob(draw), log_values)
    assert q.log_prob(p.reveal((y + 1) % 4).sample()).max() < CLOSED / 2


@pytest.mark.parametrize("count", [1, 2])
def test_the_probabilities_of_all_decisions_sum_to_one(count):
    torch.manual_seed(1)
    p = Decisions(torch.randn(3, 2), 0.999, 0.3, count)
    draws = [torch.tensor(rows) for rows in itertools.product([(0.0, 0.0), (1.0, 0.0), (0.0, 1.0)], repeat=3)]
    log_p = torch.stack([p.log_prob(draw) for draw in draws])
    assert log_p.exp().sum() == pytest.approx(1, abs=1e-5)
    samples = p.sample((20_000,))
    for draw, expected in zip(draws, log_p.exp(), strict=True):
        share = (samples == draw).all(-1).all(-1).float().mean()
        assert share == pytest.approx(expected.item(), abs=0.02)


def test_clues_stay_and_a_decided_position_never_changes():
    solver = small(task_name="sudoku")
    x = solver.task.split("test").inputs
    with torch.no_grad():
        trace = poutine.trace(solver.model).get_trace(x, steps=12)
    decided = None
    for name, site in trace.nodes.items():
        if name.startswith("eps_"):
            rows = site["value"].sum(-1)
            assert decided is None or not ((rows > 0) & decided).any()
            decided = rows > 0 if decided is None else decided | (rows > 0)
    answers = trace.nodes["y"]["value"]
    is_clue = x > 1
    assert torch.equal(answers[is_clue], x[is_clue])


def test_predictive_draws_answers():
    solver = small(**QUEENS)
    x, _ = board_of(solver)
    answers = Predictive(solver.model, num_samples=7, parallel=True)(x, steps=4)["y"]
    assert answers.shape == (7, 1, 4)
    assert len(answers.unique(dim=0)) > 1


@pytest.mark.parametrize("task", ["nqueens", "sudoku_uncond"])
def test_a_rollout_ends_when_everything_is_decided(task):
    solver = small(task_name=task, prior={"certainty": 0.6})
    x = solver.task.split("test").inputs
    result = rollout(solver.model, x, num_samples=6, depth=40, seed=3)
    assert result.steps.max() < 40


@pytest.mark.parametrize("settings", [{}, {"history": True}, {"halt": 0.999}])
def test_the_score_is_log_p_of_the_answer_if_the_order_is_known(settings):
    solver = small(**QUEENS, prior={"certainty": 1.0, "order": 0.0})
    attach_heads(solver.model, solver.config.model, solver.task, HEADS, seed=0)
    x, _ = board_of(solver)
    samples = rollout(solver.model, x, num_samples=12, depth=5, **settings)
    log_p = sum_over_orders(solver.model, x, samples.tokens[:, 0]).log_p
    torch.testing.assert_close(samples.score[:, 0].double(), log_p, atol=1e-4, rtol=0)


def test_a_sum_over_orders_counts_the_transitions_of_a_trajectory():
    solver = small(**QUEENS, model={"transitions": 1}, prior={"certainty": 0.5, "order": 0.5})
    x = torch.zeros(1, 4, dtype=torch.long)
    samples = rollout(solver.model, x, num_samples=3000, depth=8, seed=2)
    answers, index = samples.tokens[:, 0].unique(dim=0, return_inverse=True)
    steps = sum_over_orders(solver.model, x, answers).steps
    for answer in (index.bincount() > 100).nonzero().flatten().tolist():
        of_answer = samples.steps[index == answer, 0].double()
        assert 1 <= steps[answer] <= 4
        assert of_answer.mean().item() == pytest.approx(steps[answer].item(), abs=0.2)


def test_a_sweep_draws_half_of_an_answer_again_and_keeps_the_clues():
    solver = small(task_name="sudoku", prior={"certainty": 0.6})
    x = solver.task.split("test").inputs
    before, after = (rollout(solver.model, x, num_samples=20, depth=40, seed=3, sweeps=n) for n in (0, 1))
    is_clue = x > 1
    assert torch.equal(after.tokens[:, is_clue], x[is_clue].expand(20, -1))
    assert (after.steps > before.steps).any(-1).all()
    share = (after.tokens != before.tokens)[:, ~is_clue].double().mean().item()
    assert 0.2 < share < 0.5  # half of the blanks; a new draw of four digits may be the old one


def test_a_sweep_that_does_not_end_leaves_the_answer():
    solver = small(task_name="sudoku", prior={"certainty": 1.0})
    x = torch.ones(1, 16, dtype=torch.long)  # a board of blanks
    before, after = (rollout(solver.model, x, num_samples=6, depth=1, seed=3, sweeps=n) for n in (0, 2))
    assert torch.equal(before.tokens, after.tokens)  # two transitions do not decide half of the cells
    assert (after.steps == 3).all()


def test_a_solver_takes_sweeps_from_its_config_or_the_caller():
    solver = small(task_name="sudoku", evaluate={"sweeps": 2, "depth": 30})
    x = solver.task.split("test").inputs
    default, two, none = (solver.sample(x, num_samples=3, sweeps=n) for n in (None, 2, 0))
    assert torch.equal(default.tokens, two.tokens)
    assert (default.steps > none.steps).all()
    assert solver.frequency_caveats() == ("2 sweeps",)
    assert solver.frequency_caveats(sweeps=0) == ()
    with pytest.raises(UserError, match="sweeps must be at least 0, not -1"):
        solver.sample(x, sweeps=-1)
    with pytest.raises(UserError, match="they need a model with a lattice"):
        build(small_config()).sample("Cr", sweeps=1)
    with pytest.raises(ConfigError, match="set evaluate.sweeps to 0"):
        build(small_config(evaluate={"sweeps": 1}))


@pytest.mark.parametrize(
    ("names", "advice"),
    [
        ({"model_name": "lattice", "prior_name": "gaussian"}, "--prior decisions --guide reveal"),
        ({"model_name": "lattice", "guide_name": "prior"}, "--prior decisions --guide reveal"),
        ({"prior_name": "decisions"}, "--prior gaussian --guide amortized"),
        ({"guide_name": "reveal"}, "--prior gaussian --guide amortized"),
    ],
)
def test_parts_of_another_kind_of_guidance_are_refused(names, advice):
    with pytest.raises(ConfigError, match=f"do not fit model .*: use {advice} with it"):
        build(small_config(**names))


@pytest.mark.parametrize("order", [0.0, 0.05, 100.0])
def test_as_many_tokens_are_decided_as_count_says(order):
    torch.manual_seed(0)
    logits = torch.randn(3, 30, 4)
    logits[0, 2:, 1:] = CLOSED  # two tokens are open
    p = Decisions(logits, 1.0, order, 4)
    expected = torch.tensor([2.0, 4.0, 4.0])
    torch.testing.assert_close(p.decision_probability.sum(-1), expected, atol=1e-3, rtol=0)
    assert (p.decision_probability <= 1).all()
    torch.testing.assert_close(p.sample((4000,)).sum((-1, -2)).mean(0), expected, atol=0.1, rtol=0)
    assert p.mode.sum((-1, -2)).tolist() == [2, 4, 4]
    assert p.log_prob(p.mode).isfinite().all()


def test_values_below_the_floor_are_not_drawn_and_the_order_stays():
    torch.manual_seed(0)
    logits = torch.randn(4, 3, 5)
    p = Decisions(logits, 0.9, 0.5)
    high = p.with_floor(0.1)
    assert torch.equal(high.decision_probability, p.decision_probability)
    draws = high.sample((2000,))
    is_low = p.logits.exp() < 0.1
    assert not (draws.bool() & is_low).any()
    expected = p.logits.exp().masked_fill(is_low, 0.0)
    torch.testing.assert_close(high.logits.exp(), expected / expected.sum(-1, keepdim=True))
    assert high.log_prob(p.mode).isfinite().all()
    torch.testing.assert_close(high.expand((7, 4)).logits, high.logits.expand(7, 4, 3, 5))
    solver = small(**QUEENS, prior={"certainty": 1.0})
    x, _ = board_of(solver)
    caveats = solver.frequency_caveats(temper=TemperConfig(floor=0.3))
    assert caveats == ("no values below p = 0.3",)
    plain, floor = (solver.sample(x, num_samples=200, temper=TemperConfig(floor=f)) for f in (0.0, 0.3))
    assert len(floor.tokens.unique(dim=0)) < len(plain.tokens.unique(dim=0))


def test_heads_are_trained_and_stop_trajectories():
    solver = small(**QUEENS, prior={"certainty": 1.0})
    train_heads(solver.model, solver.config.model, solver.task, HEADS, depth=5)
    x, _ = board_of(solver)
    samples = rollout(solver.model, x, num_samples=8, depth=9, halt=0.0)
    assert (samples.steps == 1).all()
    assert ((samples.value > 0) & (samples.value < 1)).all()
    samples = rollout(solver.model, x, num_samples=8, depth=9, halt=1)
    assert (samples.steps == 2).all()  # a row in each transition, and two transitions in a step


def test_a_complete_lattice_keeps_its_low_level_and_costs_no_application_of_f():
    solver = small(task_name="sudoku", prior={"certainty": 0.6})
    x = solver.task.split("test").inputs[:2]
    num_calls = 0

    def count(*_):
        nonlocal num_calls
        num_calls += 1

    solver.model.f.register_forward_hook(count)
    with torch.no_grad():
        torch.manual_seed(0)
        end = poutine.trace(solver.model).get_trace(x, steps=16)
        assert num_calls < 16 * 2 * 2
        state = LatentState(end.nodes["h"]["value"], end.nodes["l"]["value"])
        assert (state.h.sum(-1) == 1).all()
        num_calls = 0
        later = poutine.trace(solver.model).get_trace(x, None, state, steps=3)
    assert num_calls == 0
    assert torch.equal(later.nodes["l"]["value"], state.l)
    assert torch.equal(later.nodes["y"]["value"], end.nodes["y"]["value"])
    open_state = LatentState(state.h.clone(), state.l)
    open_state.h[0, (x[0] == 1).nonzero()[0]] = 1.0  # one board has an open cell again, the other has none
    with torch.no_grad():
        later = poutine.trace(solver.model).get_trace(x, None, open_state, steps=1)
    assert torch.equal(later.nodes["l"]["value"][1], state.l[1])
    assert not torch.equal(later.nodes["l"]["value"][0], state.l[0])


def test_without_noise_the_most_probable_values_are_decided():
    solver = small(**QUEENS, prior={"certainty": 1.0, "order": 0.0})
    x, _ = board_of(solver)
    with AtMean():
        answers = rollout(solver.model, x, num_samples=5, depth=8).tokens
    assert (answers == answers[:1]).all()
    logits = torch.tensor([[0.0, 1.0, 2.0], [5.0, 0.0, 0.0], [0.0, 0.0, 0.1]])
    assert Decisions(logits, 1.0, 0.0).mode.tolist() == [[0, 0, 0], [1, 0, 0], [0, 0, 0]]
    assert Decisions(logits, 0.6, 0.0).mode.tolist() == [[0, 0, 1], [1, 0, 0], [0, 0, 1]]
