"""Compute exact figures of lattice checkpoints: ``python experiments/studies/orders.py CHECKPOINT [CHECKPOINT ...]``.

Most inputs leave few tokens open. For these the probability of each answer can be summed over all orders in which its
tokens may be decided. So the study needs no samples: the accuracy of a sample is the probability of all solutions, the
evenness is the total variation of the solutions' shares to uniform, and the ELBO is compared with log p(y|x).
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from statistics import mean
from typing import Any

from torch import Tensor

import pyro_gram
from experiments.tables.cells import mean_and_sd, write_study
from pyro_gram.diagnostics.orders import sum_over_orders
from pyro_gram.errors import ConfigError, UserError
from pyro_gram.solver import Solver
from pyro_gram.system.cli import Parser, call
from pyro_gram.system.files import check_writable

HERE = Path(__file__).parent
COLUMNS = {
    "right": "P(a right answer)",
    "log_p": "log p(y given x)",
    "elbo": "ELBO",
    "gap": "gap",
    "perfect": "perfect model",
    "total_variation": "total variation to uniform",
    "steps": "transitions",
}


def measure_input(solver: Solver, x: Tensor, solutions: Tensor) -> dict[str, float] | None:
    """Measure one input ``[1, *event]`` with all its ``solutions [m, L_out]``; None if it has too many states."""
    x, solutions = solver.task.spec.crop(x, solutions.long())
    answers = solver.task.with_all_names(x[0], solutions)
    try:
        sums = sum_over_orders(solver.model, x, answers)
    except ConfigError:
        raise
    except UserError:  # too many states
        return None
    log_perfect = -(math.log(len(solutions)) + solver.task.log_namings(x, answers))
    perfect, shares = log_perfect.exp(), sums.log_p.softmax(0)
    return {
        "right": sums.log_p.logsumexp(0).exp().item(),
        "log_p": (perfect * sums.log_p).sum().item(),
        "elbo": (perfect * sums.elbo).sum().item(),
        "gap": (perfect * (sums.log_p - sums.elbo)).sum().item(),
        "perfect": (perfect * log_perfect).sum().item(),
        "total_variation": (shares - perfect).abs().sum().item() / 2,
        "steps": (shares * sums.steps).sum().item(),
    }


def measure_checkpoint(solver: Solver, count: int) -> dict[str, Any]:
    """Measure the first ``count`` test inputs; those with too many states are left out."""
    puzzles = solver.task.split("test").subset(count)
    if puzzles.inputs is None or not puzzles.has_all_solutions:
        raise UserError("this study needs inputs whose solutions are all known")
    rows = []
    for i in range(len(puzzles)):
        rows.append(measure_input(solver, puzzles.inputs[i : i + 1], puzzles.solutions_of(i)))
        print(f"\r{i + 1} of {len(puzzles)} inputs", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    measured = [row for row in rows if row]
    if not measured:
        raise UserError("every input has too many states: measure a task with fewer open tokens")
    task = f"{solver.config.names['task']}, {solver.task.spec.output_length} tokens"
    means = {key: mean(row[key] for row in measured) for key in COLUMNS}
    return {
        "task": task,
        "seed": solver.config.seed,
        "inputs": len(puzzles),
        "measured": len(measured),
        **means,
    }


def markdown(study: dict[str, Any]) -> str:
    """Return a table with a row for each task: means over seeds, with standard deviations. Likelihoods are in nats."""
    lines = [f"| task | seeds | inputs | {' | '.join(COLUMNS.values())} |", "|---" * (3 + len(COLUMNS)) + "|"]
    runs = study["checkpoints"]
    for task in dict.fromkeys(run["task"] for run in runs):
        own = [run for run in runs if run["task"] == task]
        cells = [task, str(len(own)), f"{own[0]['measured']} of {own[0]['inputs']}"]
        cells += [mean_and_sd([run[key] for run in own]) for key in COLUMNS]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    parser = Parser("orders.py", description=__doc__)
    parser.add_argument("checkpoints", nargs="+", type=Path, metavar="CHECKPOINT", help=".safetensors, or a run")
    parser.add_argument("--inputs", type=int, default=50, metavar="B", help="test inputs (default 50)")
    parser.add_argument("--out", type=Path, default=HERE / "orders.json", metavar="FILE.json")
    arguments = parser.parse_args(argv)
    if arguments.inputs < 1:
        raise UserError(f"--inputs must be at least 1, not {arguments.inputs}")
    check_writable(arguments.out)
    solvers = [pyro_gram.load(path) for path in arguments.checkpoints]
    runs = [measure_checkpoint(solver, arguments.inputs) for solver in solvers]
    results = {"checkpoints": runs}
    write_study(arguments.out, results, markdown(results))
    return 0


if __name__ == "__main__":
    raise SystemExit(call(main))
