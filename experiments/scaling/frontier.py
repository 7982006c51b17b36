"""Measure accuracy and coverage against core evaluations, for many settings of N, depth and halting threshold.

A *point* is one such setting. All points are computed from the same recorded trajectories (``trajectories.py``). For
each method and budget a point is chosen on validation inputs, and measured on test inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from experiments.scaling.trajectories import SAMPLE_COUNTS, Trajectories, halting_steps, is_within_work
from pyro_gram.diagnostics.metrics import coverage_by_input, solution_ids
from pyro_gram.networks.core import LatentState
from pyro_gram.networks.fused import plain_forms
from pyro_gram.sampling.steps import isolated_rng, run_steps, to_device_of
from pyro_gram.solver import Solver
from pyro_gram.tasks.base import PuzzleSet

DEPTHS = (1, 2, 4, 8, 16, 32, 64)
THRESHOLDS = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999)
MIN_TRAJECTORIES = 5  # smallest number of trajectories (N) of a point
BUDGETS = (5, 10, 20)  # a budget of b is the work of b trajectories of full depth
TOLERANCE = 0.005  # largest loss of accuracy, compared with full depth, of a point that counts as "as accurate"
METHODS = ("whole", "shallower", "halting")

Points = dict[str, dict[str, float]]


@dataclass(frozen=True)
class GradedAnswers:
    """The answers of recorded trajectories, compared with the solutions.

    Attributes:
        halt: the halt head's P(right), ``[S, N, B]``.
        valid: whether the answer is right, bool ``[S, N, B]``.
        ids: the index of the solution that equals the answer, or -1 for a wrong answer, int64 ``[S, N, B]``; None if
            not all solutions are known.
        num_solutions: the number of solutions of each input, int64 ``[B]``.
    """

    halt: Tensor
    valid: Tensor
    ids: Tensor | None
    num_solutions: Tensor


def grade_answers(solver: Solver, puzzles: PuzzleSet, trajectories: Trajectories) -> GradedAnswers:
    """Compare the recorded answers with the solutions of their inputs."""
    task, x = solver.task, puzzles.inputs
    valid = torch.stack([task.is_valid(x, tokens) for tokens in trajectories.tokens])
    ids = (
        torch.stack([solution_ids(task, puzzles, t) for t in trajectories.tokens])
        if puzzles.has_all_solutions
        else None
    )
    return GradedAnswers(trajectories.halt, valid, ids, puzzles.num_solutions)


def depths_up_to(full_depth: int) -> list[int]:
    """List the depths that are compared, up to the full depth."""
    return [d for d in DEPTHS if d < full_depth] + [full_depth]


def thresholds_up_to(halt: float) -> list[float]:
    """List the halting thresholds that are compared, up to ``halt``, the threshold of the recording."""
    return [p for p in THRESHOLDS if p < halt] + ([halt] if halt < 1 else [])


def point_name(n: int, depth: int, halt: float) -> str:
    """Return the name of a point: ``20 x 16``, or ``20 x 16, P = 0.99`` if trajectories halt."""
    return f"{n} x {depth}" + (f", P = {halt:g}" if halt < 1 else "")


def measure_points(answers: GradedAnswers, full_depth: int, halt: float, head_cost: float) -> Points:
    """Measure every point: every setting of N, depth and halting threshold that is compared.

    Args:
        answers: the answers of the recorded trajectories.
        full_depth: the largest number of supervision steps.
        halt: the highest threshold.
        head_cost: the work of the heads at one step, as a share of the work of a supervision step.

    Returns:
        The numbers of each point, under its name. ``n``, ``depth`` and ``halt`` (1 for no halting) are its setting.
        ``work`` is its number of core evaluations per input; it includes the work of the heads if trajectories halt.
        ``sample`` is the accuracy of one sample. If all solutions are known, ``coverage`` is the share of them that
        the n trajectories find. If not, ``verified`` is the share of inputs with a right sample.
    """
    points: Points = {}
    for depth in depths_up_to(full_depth):
        for threshold in (1.0, *thresholds_up_to(halt)):
            steps = halting_steps(answers.halt[:depth], threshold)
            last_step = steps[None] - 1
            valid = answers.valid.gather(0, last_step)[0]
            ids = None if answers.ids is None else answers.ids.gather(0, last_step)[0]
            cost = 1 + head_cost if threshold < 1 else 1.0
            for n in SAMPLE_COUNTS:
                if n < MIN_TRAJECTORIES or (threshold == 1 and not is_within_work(n, depth, full_depth)):
                    continue
                point = {"n": n, "depth": depth, "halt": threshold}
                point["work"] = steps[:n].sum(0).double().mean().item() * cost
                point["sample"] = valid[:n].double().mean().item()
                if ids is None:
                    point["verified"] = valid[:n].any(0).double().mean().item()
                else:
                    point["coverage"] = coverage_by_input(ids[:n], answers.num_solutions).mean().item()
                points[point_name(n, depth, threshold)] = point
    return points


def goal_metric(points: Points) -> str:
    """Return the metric that the choice of points maximizes: coverage, or ``verified`` if there is no coverage."""
    return "coverage" if "coverage" in next(iter(points.values())) else "verified"


def choose_points(points: Points, full_depth: int) -> dict[int, dict[str, str | None]]:
    """Choose the point that finds the most solutions, for each method and budget. Accuracy breaks ties.

    The method ``whole`` uses trajectories of full depth, ``shallower`` trajectories of any depth, and ``halting``
    trajectories of any depth and threshold. For the methods ``*_as_right`` the choice is
    restricted to points whose accuracy is at most ``TOLERANCE`` below the accuracy of trajectories of full depth.

    Args:
        points: the points, measured on validation inputs.
        full_depth: the largest number of supervision steps.

    Returns:
        For each budget in core evaluations, and each method, the name of the chosen point; None if no point fits.
    """
    goal = goal_metric(points)
    largest_points: dict[
        tuple[float, float], dict[str, float]
    ] = {}  # the point with the largest N, by depth and threshold
    for point in points.values():
        key = point["depth"], point["halt"]
        largest_points[key] = max(largest_points.get(key, point), point, key=lambda p: p["n"])
    min_accuracy = largest_points[full_depth, 1]["sample"] - TOLERANCE
    methods = {
        "whole": lambda p: p["halt"] == 1 and p["depth"] == full_depth,
        "shallower": lambda p: p["halt"] == 1,
        "halting": lambda p: p["halt"] < 1,
    }
    choices: dict[int, dict[str, str | None]] = {}
    for budget in (b * full_depth for b in BUDGETS):
        choice: dict[str, str | None] = {}
        for method, uses in methods.items():
            budget_points = {name: p for name, p in points.items() if uses(p) and p["work"] <= budget}
            accurate_points = {
                name: p
                for name, p in budget_points.items()
                if largest_points[p["depth"], p["halt"]]["sample"] >= min_accuracy
            }
            for column, candidates in ((method, budget_points), (f"{method}_as_right", accurate_points)):
                ranking = sorted(
                    candidates, key=lambda name: (candidates[name][goal], candidates[name]["sample"]), reverse=True
                )
                choice[column] = ranking[0] if ranking else None
        del choice["whole_as_right"]
        choices[budget] = choice
    return choices


def head_cost_per_step(solver: Solver, x: Tensor) -> float:
    """Return the operations of the heads at one supervision step, divided by those of the step without heads.

    Floating-point operations are counted in the second step, because trajectories share much of the
    work of the first step. The ratio is the same on all machines and for any number of trajectories.
    """
    model: Any = solver.model
    inputs = to_device_of(model, x[:2])
    heads, operations = model.heads, []
    try:
        with isolated_rng(model, inputs), plain_forms():  # FlopCounterMode cannot count fused kernels
            state = run_steps(model, inputs, None, 2, 1).state
            state = LatentState(*(part.expand(2, len(inputs), -1, -1) for part in state))
            for heads_or_none in (None, heads):
                model.heads = heads_or_none
                with FlopCounterMode(display=False) as counter:
                    run_steps(model, inputs, state, 2, 1)
                operations.append(counter.get_total_flops())
    finally:
        model.heads = heads
    return operations[1] / operations[0] - 1
