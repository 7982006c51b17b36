"""What compute buys: accuracy and coverage of every width, depth and halting threshold against core evaluations.

All points come from one walk (``trajectories.py``). Which of them a method would have taken at a budget is chosen
on validation inputs, where the points are measured as well; what that choice is worth, on test inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from experiments.scaling.trajectories import WIDTHS, Walk, allowed, halted_steps
from pyro_gram.diagnostics.metrics import coverage_by_input, solution_ids
from pyro_gram.networks.core import LatentState
from pyro_gram.networks.fused import plain_forms
from pyro_gram.sampling.rollout import isolated_rng, run_steps, to_device_of
from pyro_gram.solver import Solver
from pyro_gram.tasks.base import PuzzleSet

DEPTHS = (1, 2, 4, 8, 16, 32, 64)
THRESHOLDS = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999)
FEWEST = 5  # trajectories of a point
BUDGETS = (5, 10, 20)  # in whole trajectories
TOLERANCE = 0.005  # of accuracy, where a method is to be as right as whole trajectories are
METHODS = ("whole", "shallower", "halting")

Points = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Judged:
    """A walk, judged.

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


def judged(solver: Solver, puzzles: PuzzleSet, walk: Walk) -> Judged:
    """The walk's answers, compared with the solutions of its inputs."""
    task, x = solver.task, puzzles.inputs
    valid = torch.stack([task.is_valid(x, tokens) for tokens in walk.tokens])
    ids = torch.stack([solution_ids(task, puzzles, t) for t in walk.tokens]) if puzzles.has_all_solutions else None
    return Judged(walk.halt, valid, ids, puzzles.num_solutions)


def depths_of(whole: int) -> list[int]:
    """The depths that are compared, up to the whole one."""
    return [d for d in DEPTHS if d < whole] + [whole]


def thresholds_of(halt: float) -> list[float]:
    """The halting thresholds that are compared, up to the one at which the walk lets trajectories stop."""
    return [p for p in THRESHOLDS if p < halt] + ([halt] if halt < 1 else [])


def name_of(n: int, depth: int, halt: float) -> str:
    """A point's name, ``20 x 16`` or, halting, ``20 x 16, P = 0.99``."""
    return f"{n} x {depth}" + (f", P = {halt:g}" if halt < 1 else "")


def points(walk: Judged, whole: int, halt: float, head_cost: float) -> Points:
    """Every point of the comparison, by name.

    ``work``: core evaluations an input, in supervision steps, with those of the heads where trajectories halt;
    ``sample``: accuracy of one sample; ``coverage`` of all solutions, or where these are not known ``verified``: is any
    sample right; ``n``, ``depth`` and ``halt``, 1 where nothing halts.

    Args:
        whole: the full depth.
        halt: the highest threshold.
        head_cost: of a look by the heads, in supervision steps.
    """
    found: Points = {}
    for depth in depths_of(whole):
        for threshold in (1.0, *thresholds_of(halt)):
            steps = halted_steps(walk.halt[:depth], threshold)
            at = steps[None] - 1
            valid = walk.valid.gather(0, at)[0]
            ids = None if walk.ids is None else walk.ids.gather(0, at)[0]
            cost = 1 + head_cost if threshold < 1 else 1.0
            for n in WIDTHS:
                if n < FEWEST or (threshold == 1 and not allowed(n, depth, whole)):
                    continue
                point = {"n": n, "depth": depth, "halt": threshold}
                point["work"] = steps[:n].sum(0).double().mean().item() * cost
                point["sample"] = valid[:n].double().mean().item()
                if ids is None:
                    point["verified"] = valid[:n].any(0).double().mean().item()
                else:
                    point["coverage"] = coverage_by_input(ids[:n], walk.num_solutions).mean().item()
                found[name_of(n, depth, threshold)] = point
    return found


def goal_of(found: Points) -> str:
    """What is sought at a budget."""
    return "coverage" if "coverage" in next(iter(found.values())) else "verified"


def choose(found: Points, whole: int) -> dict[int, dict[str, str | None]]:
    """For each budget, in core evaluations, the names of the points that find the most solutions within it.

    ``whole``: trajectories of the full depth. ``shallower``: of any one depth. ``halting``: at any threshold, within
    any depth. ``*_as_right``: of those whose samples are right as often as whole trajectories' but for ``TOLERANCE``;
    None where there is none. Of equals, the more accurate.

    Args:
        found: points on validation inputs.
        whole: the full depth.
    """
    goal = goal_of(found)
    widest: dict[tuple[float, float], dict[str, float]] = {}  # whose accuracy is the surest of a depth and threshold
    for point in found.values():
        key = point["depth"], point["halt"]
        widest[key] = max(widest.get(key, point), point, key=lambda p: p["n"])
    least = widest[whole, 1]["sample"] - TOLERANCE
    kinds = {
        "whole": lambda p: p["halt"] == 1 and p["depth"] == whole,
        "shallower": lambda p: p["halt"] == 1,
        "halting": lambda p: p["halt"] < 1,
    }
    chosen: dict[int, dict[str, str | None]] = {}
    for budget in (b * whole for b in BUDGETS):
        row: dict[str, str | None] = {}
        for method, belongs in kinds.items():
            within = {name: p for name, p in found.items() if belongs(p) and p["work"] <= budget}
            right = {name: p for name, p in within.items() if widest[p["depth"], p["halt"]]["sample"] >= least}
            for column, fitting in ((method, within), (f"{method}_as_right", right)):
                ranked = sorted(fitting, key=lambda name: (fitting[name][goal], fitting[name]["sample"]), reverse=True)
                row[column] = ranked[0] if ranked else None
        del row["whole_as_right"]
        chosen[budget] = row
    return chosen


def cost_of_heads(solver: Solver, x: Tensor) -> float:
    """What a look by the heads costs, in supervision steps: the floating-point operations that it adds to one.

    Of a step from a state of each trajectory's own: the first one, from z_0, computes much of it once for all of them.
    The ratio does not depend on the machine, nor on how many trajectories run.
    """
    model: Any = solver.model
    asked = to_device_of(model, x[:2])
    heads, operations = model.heads, []
    try:
        with isolated_rng(model, asked), plain_forms():  # whose products are counted
            state = run_steps(model, asked, None, 2, 1).state
            state = LatentState(*(part.expand(2, len(asked), -1, -1) for part in state))
            for verdict in (None, heads):
                model.heads = verdict
                with FlopCounterMode(display=False) as counter:
                    run_steps(model, asked, state, 2, 1)
                operations.append(counter.get_total_flops())
    finally:
        model.heads = heads
    return operations[1] / operations[0] - 1
