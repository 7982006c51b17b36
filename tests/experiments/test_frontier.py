"""Test recorded trajectories, and the accuracy and coverage that are computed from them."""

import pytest
import torch

import pyro_gram
from experiments.scaling import frontier
from experiments.scaling.frontier import (
    GradedAnswers,
    choose_points,
    grade_answers,
    head_cost_per_step,
    measure_points,
    point_name,
    thresholds_up_to,
)
from experiments.scaling.trajectories import FULL_TRAJECTORIES, cache_folder, min_depth, record_trajectories
from pyro_gram.sampling.rollout import rollout


@pytest.fixture
def solver(heads_checkpoint):
    return pyro_gram.load(heads_checkpoint)


@pytest.fixture
def x(solver):
    return solver.task.split("test").inputs


def test_recorded_steps_are_those_of_a_roll_out(solver, x):
    trajectories = record_trajectories(solver, x, num_samples=5, depth=3, seed=4, halt=0.5)
    samples = rollout(solver.model, x, num_samples=5, depth=3, seed=4, history=True)
    assert torch.equal(trajectories.tokens, samples.history)
    assert ((trajectories.halt >= 0) & (trajectories.halt <= 1)).all()
    torch.testing.assert_close(trajectories.value[-1], samples.value)
    torch.testing.assert_close(trajectories.score[-1], samples.score)


def test_only_later_trajectories_stop_early_and_only_once_their_halt_head_is_sure(solver, x):
    depth, halt = 5, solver.sample(x, num_samples=40, halt=1).value.median().item()
    trajectories = record_trajectories(solver, x, num_samples=100, depth=depth, seed=4, halt=halt)
    has_moved = (trajectories.value.diff(dim=0) != 0).any(0)
    assert has_moved[:FULL_TRAJECTORIES].all()
    is_sure = trajectories.halt >= halt
    for n in range(100):
        for b in range(len(x)):
            first = next((s for s in range(depth) if is_sure[s, n, b]), depth - 1)
            last = next(
                s
                for s in range(depth)
                if torch.equal(trajectories.value[s:, n, b].unique(), trajectories.value[s, n, b][None])
            )
            assert last >= min(first, depth - 1)
            assert last >= min_depth(n, depth) - 1 or n < FULL_TRAJECTORIES
    assert (
        is_sure[:-1, FULL_TRAJECTORIES:]
        & (trajectories.value[1:, FULL_TRAJECTORIES:] == trajectories.value[:-1, FULL_TRAJECTORIES:])
    ).any()  # the recording has trajectories that stopped early


def test_each_trajectory_is_recorded_to_the_depth_that_every_point_needs():
    for full_depth in (6, 16, 32):
        for n in (20, 50, 100):
            for depth in range(1, full_depth + 1):
                if frontier.is_within_work(n, depth, full_depth):
                    assert all(min_depth(number, full_depth) >= depth for number in range(n))


def test_halting_afterwards_takes_the_first_sure_step(solver, x):
    trajectories = record_trajectories(solver, x, num_samples=5, depth=3, seed=4, halt=0.5)
    halt = trajectories.halt.median().item()
    samples = trajectories.halted(halt)
    for n in range(5):
        for b in range(len(x)):
            first = next((s for s in range(3) if trajectories.halt[s, n, b] >= halt), 2)
            assert samples.steps[n, b] == first + 1
            assert torch.equal(samples.tokens[n, b], trajectories.tokens[first, n, b])
            assert samples.value[n, b] == trajectories.value[first, n, b]
            assert samples.score[n, b] == trajectories.score[first, n, b]
    assert (trajectories.halted(1).steps == 3).all()


def test_cached_trajectories_are_reused_for_the_same_checkpoint_only(
    solver, x, plain_checkpoint, tmp_path, monkeypatch
):
    folder = cache_folder(tmp_path, plain_checkpoint, solver)
    settings = {"num_samples": 20, "depth": 2, "halt": 0.5, "folder": folder, "name": "test"}
    first = record_trajectories(solver, x, seed=4, **settings)
    monkeypatch.setattr("experiments.scaling.trajectories._roll_chunk", None)
    second = record_trajectories(solver, x, seed=4, **settings)
    assert all(torch.equal(a, b) for a, b in zip(vars(first).values(), vars(second).values(), strict=True))
    with pytest.raises(TypeError):
        record_trajectories(solver, x, seed=5, **settings)
    with torch.no_grad():
        next(solver.model.parameters()).add_(1)
    assert cache_folder(tmp_path, plain_checkpoint, solver) != folder
    assert cache_folder(None, plain_checkpoint, solver) is None


def graded_case():
    """Return graded answers of 100 trajectories of two steps, for one input with two solutions.

    After the first step all answers are wrong. After the second step every third trajectory has a right answer.
    """
    ids = torch.full((2, 100, 1), -1)
    ids[1, ::3] = 0
    ids[1, 33] = 1
    halt = torch.full((2, 100, 1), 0.3)
    halt[1] = 0.95
    halt[0, 0] = 0.95  # a wrong answer that the halt head trusts
    return GradedAnswers(halt, ids >= 0, ids, torch.tensor([2]))


def test_points_count_work_accuracy_and_coverage():
    points = measure_points(graded_case(), full_depth=2, halt=0.9, head_cost=0.25)
    assert points[point_name(5, 2, 1)] == {"n": 5, "depth": 2, "halt": 1.0, "work": 10, "sample": 0.4, "coverage": 0.5}
    halting_point = points[point_name(50, 2, 0.9)]
    assert halting_point["work"] == pytest.approx((49 * 2 + 1) * 1.25)
    assert halting_point["sample"] == pytest.approx(16 / 50)  # one of the 17 right trajectories stopped too early
    assert halting_point["coverage"] == 1
    assert point_name(50, 2, 1) not in points  # this point needs more work than 20 trajectories of full depth
    assert points[point_name(20, 1, 1)]["sample"] == 0
    assert {p["halt"] for p in points.values()} == {1.0, *thresholds_up_to(0.9)}


def point(n, depth, halt, work, sample, coverage):
    return {"n": n, "depth": depth, "halt": halt, "work": work, "sample": sample, "coverage": coverage}


def test_the_best_point_of_each_method_within_a_budget_is_chosen():
    points = {
        "whole": point(5, 10, 1, 50, 0.9, 0.5),
        "whole 10": point(10, 10, 1, 100, 0.9, 0.7),
        "shallow": point(50, 1, 1, 50, 0.2, 0.9),
        "half": point(10, 5, 1, 50, 0.899, 0.6),
        "eager": point(20, 10, 0.5, 40, 0.8, 0.8),
        "sure": point(10, 10, 0.9, 45, 0.896, 0.65),
        "sure, wide": point(20, 10, 0.9, 90, 0.896, 0.75),
    }
    choices = choose_points(points, 10)
    assert list(choices) == [50, 100, 200]
    assert choices[50] == {
        "whole": "whole",
        "shallower": "shallow",
        "shallower_as_right": "half",
        "halting": "eager",
        "halting_as_right": "sure",
    }
    assert choices[100]["whole"] == "whole 10"
    assert choices[100]["shallower_as_right"] == "whole 10"
    assert choices[100]["halting_as_right"] == "sure, wide"
    del points["sure"], points["sure, wide"]
    assert choose_points(points, 10)[50]["halting_as_right"] is None


def test_recorded_answers_are_compared_as_the_task_does(solver, x):
    puzzles = solver.task.split("test")
    trajectories = record_trajectories(solver, x, num_samples=20, depth=2, seed=4, halt=0.5)
    answers = grade_answers(solver, puzzles, trajectories)
    assert torch.equal(answers.valid, solver.task.is_valid(x, trajectories.tokens))
    assert torch.equal(answers.valid, answers.ids >= 0)


def test_the_cost_of_the_heads_is_measured_and_the_model_keeps_them(solver, x):
    heads = solver.model.heads
    cost = head_cost_per_step(solver, x)
    assert 0 < cost < 2
    assert head_cost_per_step(solver, x[:1]) == cost  # the ratio does not depend on the number of inputs
    assert solver.model.heads is heads
    solver.model.heads = None
    assert head_cost_per_step(solver, x) == 0
