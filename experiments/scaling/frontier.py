"""Accuracy and coverage of every number of samples, depth and halting threshold, against core evaluations.

All points come from one recording of trajectories (``trajectories.py``). The point of a method at a budget is chosen on
validation inputs and measured on test inputs.
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
from pyro_gram.sampling.rollout import isolated_rng, run_steps, to_device_of
from pyro_gram.solver import Solver
from pyro_gram.tasks.base import PuzzleSet

DEPTHS = (1, 2, 4, 8, 16, 32, 64)
THRESHOLDS = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999)
MIN_TRAJECTORIES = 5  # trajectories of a point
BUDGETS = (5, 10, 20)  # in whole trajectories
TOLERANCE = 0.005  # of accuracy, where a method is to be as right as whole trajectories are
METHODS = ("whole", "shallower", "halting")

Points = dict[str, dict[str, float]]


@dataclass(frozen=True)
class GradedAnswers:
    """The answers of recorded trajectories, compared with the solutions.

    Attributes:
        halt: P(right) by the halt head, ``[S, N, B]``.
        valid: is the answer right? bool ``[S, N, B]``.
        ids: which solution it is, -1 for none, int64 ``[S, N, B]``; None where not every solution is known.
        num_solutions: of each input, int64 ``[B]``.
    """

    halt: Tensor
    valid: Tensor
    ids: Tensor | None
    num_solutions: Tensor


def grade_answers(solver: Solver, puzzles: PuzzleSet, trajectories: Trajectories) -> GradedAnswers:
    """Compare recorded answers with the solutions of their inputs."""
    task, x = solver.task, puzzles.inputs
    valid = torch.stack([task.is_valid(x, tokens) for tokens in trajectories.tokens])
    ids = (
        torch.stack([solution_ids(task, puzzles, t) for t in trajectories.tokens])
        if puzzles.has_all_solutions
        else None
    )
    return GradedAnswers(trajectories.halt, valid, ids, puzzles.num_solutions)


def depths_up_to(full_depth: int) -> list[int]:
    """List the depths that are compared, up to the full one."""
    return [d for d in DEPTHS if d < full_depth] + [full_depth]


def thresholds_up_to(halt: float) -> list[float]:
    """List the halting thresholds that are compared, up to the one at which recorded trajectories stop."""
    return [p for p in THRESHOLDS if p < halt] + ([halt] if halt < 1 else [])


def point_name(n: int, depth: int, halt: float) -> str:
    """Name a point ``20 x 16`` or, where trajectories halt, ``20 x 16, P = 0.99``."""
    return f"{n} x {depth}" + (f", P = {halt:g}" if halt < 1 else "")


def measure_points(graded: GradedAnswers, full_depth: int, halt: float, head_cost: float) -> Points:
    """Measure every point of the comparison, by name.

    ``work``: core evaluations an input, in supervision steps, with those of the heads where trajectories halt;
    ``sample``: accuracy of one sample; ``coverage`` of all solutions, or where these are not known ``verified``: is any
    sample right; ``n``, ``depth`` and ``halt``, 1 where nothing halts.

    Args:
        full_depth: the most supervision steps.
        halt: the highest threshold.
        head_cost: work of the heads at one step, in supervision steps.
    """
    points: Points = {}
    for depth in depths_up_to(full_depth):
        for threshold in (1.0, *thresholds_up_to(halt)):
            steps = halting_steps(graded.halt[:depth], threshold)
            at = steps[None] - 1
            valid = graded.valid.gather(0, at)[0]
            ids = None if graded.ids is None else graded.ids.gather(0, at)[0]
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
                    point["coverage"] = coverage_by_input(ids[:n], graded.num_solutions).mean().item()
                points[point_name(n, depth, threshold)] = point
    return points


def goal_metric(points: Points) -> str:
    """Return the metric that a budget is to maximize: coverage, or ``verified`` where there is none."""
    return "coverage" if "coverage" in next(iter(points.values())) else "verified"


def choose_points(points: Points, full_depth: int) -> dict[int, dict[str, str | None]]:
    """Name, for each budget in core evaluations, the points that find the most solutions within it.

    ``whole``: trajectories of the full depth. ``shallower``: of any one depth. ``halting``: at any threshold, within
    any depth. ``*_as_right``: of those whose samples are right as often as whole trajectories' but for ``TOLERANCE``;
    None where there is none. Of equals, the more accurate.

    Args:
        points: measured on validation inputs.
        full_depth: the most supervision steps.
    """
    goal = goal_metric(points)
    largest: dict[
        tuple[float, float], dict[str, float]
    ] = {}  # the point of a depth and threshold with the most samples
    for point in points.values():
        key = point["depth"], point["halt"]
        largest[key] = max(largest.get(key, point), point, key=lambda p: p["n"])
    least = largest[full_depth, 1]["sample"] - TOLERANCE
    kinds = {
        "whole": lambda p: p["halt"] == 1 and p["depth"] == full_depth,
        "shallower": lambda p: p["halt"] == 1,
        "halting": lambda p: p["halt"] < 1,
    }
    choices: dict[int, dict[str, str | None]] = {}
    for budget in (b * full_depth for b in BUDGETS):
        row: dict[str, str | None] = {}
        for method, belongs in kinds.items():
            within = {name: p for name, p in points.items() if belongs(p) and p["work"] <= budget}
            right = {name: p for name, p in within.items() if largest[p["depth"], p["halt"]]["sample"] >= least}
            for column, fitting in ((method, within), (f"{method}_as_right", right)):
                ranked = sorted(fitting, key=lambda name: (fitting[name][goal], fitting[name]["sample"]), reverse=True)
                row[column] = ranked[0] if ranked else None
        del row["whole_as_right"]
        choices[budget] = row
    return choices


def head_cost_per_step(solver: Solver, x: Tensor) -> float:
    """Return the floating-point operations of the heads at one supervision step, as a share of the step's own.

    The step starts from a state of each trajectory's own: the first one, from z_0, shares much of its work among them.
    The ratio depends neither on the machine nor on the number of trajectories.
    """
    model: Any = solver.model
    inputs = to_device_of(model, x[:2])
    heads, operations = model.heads, []
    try:
        with isolated_rng(model, inputs), plain_forms():  # whose products are counted
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
