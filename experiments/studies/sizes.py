"""Measure checkpoints on inputs of many sizes, also sizes that training never saw, beside a greedy and an exact solver.

``python experiments/studies/sizes.py CHECKPOINT [CHECKPOINT ...]``: checkpoints of one task that differ in their seed.
Answers are sampled as ``solve.py`` samples them by default, with halting. Graphs are also coloured by DSATUR
(networkx), and graphs and boards of queens solved by python-sat, which must be installed (extra ``sat``).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from statistics import mean, median
from typing import Any

import networkx as nx
import numpy as np
import torch

import pyro_gram
from experiments.tables.cells import mean_and_sd, write_study
from pyro_gram.answers import Answers
from pyro_gram.diagnostics.metrics import coverage_limit
from pyro_gram.errors import UserError
from pyro_gram.solver import Solver
from pyro_gram.system.cli import Parser, call
from pyro_gram.system.files import check_writable, read_json
from pyro_gram.tasks.coloring.exact import has_sat_solver, is_colorable
from pyro_gram.tasks.nqueens.exact import has_completion

HERE = Path(__file__).parent
NUM_SAMPLES, SEED = 20, 1
RANDOM_SIZES, TIMED_SIZE = (16, 24, 32), 32
QUEENS_SIZES = (11, 12, 14, 16)  # boards that training never saw
TITLES = {"right": "right samples", "vote": "vote", "solved": "solved"}
# The title of a column, the key of its figure, and the factor and digits with which the figure is shown.
BASELINES = (
    ("DSATUR solves", "dsatur_solved", 1, 3),
    ("DSATUR, ms", "dsatur_seconds", 1000, 1),
    ("exact, ms", "exact_seconds", 1000, 1),
)
PLANTED_VERTICES, PLANTED_DEGREES = 20, {4: 7.0, 5: 10.0}  # mean degree of planted graphs by number of colours


@dataclass(frozen=True)
class Group:
    """Inputs that are measured together.

    Attributes:
        name: the name of the group, a row of the table.
        inputs: graphs, or texts of boards.
        colors: the number of colours; 0 for boards.
    """

    name: str
    inputs: list[Any]
    colors: int = 0


def texts_by_size(solver: Solver, count: int) -> Iterator[tuple[int, list[str]]]:
    """Yield the texts of up to ``count`` inputs of each size in the test split."""
    inputs = solver.task.split("test").inputs
    assert inputs is not None
    sizes = solver.task.spec.sizes_of(inputs)
    for n in sizes.unique().tolist():
        yield n, [solver.task.format_input(x) for x in inputs[sizes == n][:count]]


# ---- graphs ------------------------------------------------------------------------------------------------------


def coloring_groups(solver: Solver, count: int) -> Iterator[Group]:
    """Yield unseen test graphs by size, larger random graphs, planted graphs, and graphs with names."""
    for n, texts in texts_by_size(solver, count):
        yield Group(f"random, {n} vertices", [nx.from_graph6_bytes(text.encode()) for text in texts], 3)
    for n in RANDOM_SIZES:
        yield Group(f"random, {n} vertices", random_colorable_graphs(n, count), 3)
    for k, degree in PLANTED_DEGREES.items():
        graphs = [planted_graph(np.random.default_rng((SEED, k, i)), k, degree) for i in range(count)]
        yield Group(f"planted, {PLANTED_VERTICES} vertices, {k} colours", graphs, k)
    for name, graph, k in named_graphs():
        yield Group(name, [graph], k)


def random_colorable_graphs(n: int, count: int) -> list[nx.Graph]:
    """Draw graphs from G(n, 4/n) until ``count`` of them have three colours enough, by the exact solver."""
    graphs: list[nx.Graph] = []
    number = 0
    while len(graphs) < count:
        graph = nx.gnp_random_graph(n, 4 / n, seed=1_000_003 * n + number)
        number += 1
        if exact_coloring(graph, 3):
            graphs.append(graph)
    return graphs


def planted_graph(rng: np.random.Generator, colors: int, degree: float) -> nx.Graph:
    """Draw a random colouring, then edges between vertices of different colours, of this mean degree."""
    color = rng.integers(colors, size=PLANTED_VERTICES)
    is_allowed = np.triu(color[:, None] != color, 1)
    probability = min(1.0, degree * PLANTED_VERTICES / 2 / is_allowed.sum())
    edges = np.argwhere(is_allowed & (rng.random(is_allowed.shape) < probability))
    graph = nx.empty_graph(PLANTED_VERTICES)
    graph.add_edges_from(edges.tolist())
    return graph


def named_graphs() -> Iterator[tuple[str, nx.Graph, int]]:
    """Yield well-known graphs with the number of colours that they need, at least 3."""
    yield "Petersen graph", nx.petersen_graph(), 3
    yield "Grötzsch graph (Mycielski, 11 vertices)", nx.mycielski_graph(4), 4
    yield "Mycielski graph, 23 vertices", nx.mycielski_graph(5), 5
    yield "grid 5 x 5", nx.convert_node_labels_to_integers(nx.grid_2d_graph(5, 5)), 3
    squares = [(r, c) for r in range(5) for c in range(5)]
    queens: nx.Graph = nx.Graph(
        (a, b)
        for i, a in enumerate(squares)
        for b in squares[:i]
        if a[0] == b[0] or a[1] == b[1] or abs(a[0] - b[0]) == abs(a[1] - b[1])
    )
    yield "queen graph 5 x 5", nx.convert_node_labels_to_integers(queens), 5


def exact_coloring(graph: nx.Graph, colors: int) -> bool:
    """Return whether a graph can be coloured, by the exact solver of the task."""
    return bool(is_colorable(nx.to_numpy_array(graph) > 0, np.full(len(graph), -1), colors)[0])


def dsatur(graph: nx.Graph, colors: int) -> bool:
    """Return whether the greedy colouring DSATUR needs no more than these colours."""
    return max(nx.greedy_color(graph, strategy="DSATUR").values()) < colors


# ---- boards ------------------------------------------------------------------------------------------------------


def board_groups(solver: Solver, count: int) -> Iterator[Group]:
    """Yield unseen test boards by size; of queens, also boards of sizes that training never saw."""
    task: Any = solver.task
    is_queens = task.registered_name == "nqueens"
    for length, texts in texts_by_size(solver, count):
        rows = length if is_queens else isqrt(length)  # an input has a token for each row, or for each cell
        yield Group(f"{rows} rows", texts)
    if is_queens:
        for n in QUEENS_SIZES:
            if n in task.config.sizes:
                continue
            boards = task.fresh_boards(n, count, SEED)
            yield Group(f"{n} rows, never trained", [task.format_input(x) for x in boards.inputs])


def exact_queens(text: str) -> bool:
    """Return whether a board, given as rows joined by ``/``, can be completed, by the exact solver of the task."""
    return bool(has_completion([row.find("Q") for row in text.split("/")]))


# ---- measuring ---------------------------------------------------------------------------------------------------


def measure_group(solver: Solver, group: Group) -> dict[str, Any]:
    """Sample answers to the inputs of a group, and run the other solvers on them."""
    settings: dict[str, Any] = {"num_samples": NUM_SAMPLES, "seed": SEED}
    if group.colors:
        settings["colors"] = group.colors
    start = time.perf_counter()
    answers = solver.solve(group.inputs, **settings)
    row: dict[str, Any] = {
        "inputs": len(group.inputs),
        "right": mean(sum(a.count for a in one.solutions if a.valid) / NUM_SAMPLES for one in answers),
        "vote": mean(bool(one.solutions[0].valid) for one in answers),
        "solved": mean(bool(one.distinct_valid) for one in answers),
        "steps": mean(one.mean_steps for one in answers),
        "seconds_per_input": (time.perf_counter() - start) / len(answers),
    }
    row |= _coverage(answers)
    if group.colors:
        row |= _time_baseline("dsatur", group.inputs, lambda graph: dsatur(graph, group.colors))
        row |= _time_baseline("exact", group.inputs, lambda graph: exact_coloring(graph, group.colors))
    elif solver.task.registered_name == "nqueens":
        row |= _time_baseline("exact", group.inputs, exact_queens)
    return row


def _coverage(answers: list[Answers]) -> dict[str, float]:
    """Return the mean coverage and its limit, if the solutions of all inputs can be counted."""
    totals = [one.total for one in answers]
    if any(total is None for total in totals):
        return {}
    counts = torch.tensor([int(total or 0) for total in totals])
    coverage = mean((one.distinct_valid or 0) / (one.total or 1) for one in answers)
    limit = coverage_limit(counts, NUM_SAMPLES).mean().item()
    return {"coverage": coverage, "coverage_limit": limit, "coverage_ratio": coverage / limit}


def _time_baseline(name: str, inputs: list[Any], solve: Callable[[Any], bool]) -> dict[str, float]:
    start = time.perf_counter()
    solved = [solve(one) for one in inputs]
    return {f"{name}_solved": mean(solved), f"{name}_seconds": (time.perf_counter() - start) / len(inputs)}


def time_single_inputs(solver: Solver, group: Group, repeats: int = 5) -> float:
    """Return the median seconds of one call for one input."""
    settings: dict[str, Any] = {"colors": group.colors} if group.colors else {}
    seconds = []
    for one in (group.inputs * repeats)[: repeats + 1]:
        start = time.perf_counter()
        solver.solve([one], num_samples=NUM_SAMPLES, **settings)
        seconds.append(time.perf_counter() - start)
    return median(seconds[1:])


def measure_checkpoint(solver: Solver, count: int) -> dict[str, Any]:
    """Measure one checkpoint on all groups of its task."""
    name = solver.config.names["task"]
    if solver.task.spec.padding is None:
        raise UserError(f"this checkpoint of {name} solves inputs of one size: the study is of those of many sizes")
    groups = coloring_groups if name == "coloring" else board_groups
    study: dict[str, Any] = {"task": name, "seed": solver.config.seed, "depth": solver.config.depth, "groups": {}}
    for group in groups(solver, count):
        study["groups"][group.name] = row = measure_group(solver, group)
        print(f"{group.name}: {row['right']:.3f} right, {row['solved']:.3f} solved", file=sys.stderr, flush=True)
        if group.name == f"random, {TIMED_SIZE} vertices":
            study["single_seconds"] = time_single_inputs(solver, group)
    return study


def markdown(study: dict[str, Any]) -> str:
    """Return the table of a task: means over checkpoints, with standard deviations."""
    runs = list(study["checkpoints"].values())
    baselines = [column for column in BASELINES if column[1] in next(iter(runs[0]["groups"].values()))]
    columns = ["inputs", "number", *TITLES.values(), "coverage (limit)", "steps", *(title for title, *_ in baselines)]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for name, row in runs[0]["groups"].items():
        rows = [run["groups"][name] for run in runs]
        coverage = ""
        if "coverage" in row:
            coverage = f"{mean_and_sd([r['coverage'] for r in rows])} ({row['coverage_limit']:.3f})"
        shares = [mean_and_sd([r[key] for r in rows]) for key in TITLES]
        cells = [name, str(row["inputs"]), *shares, coverage, f"{mean(r['steps'] for r in rows):.1f}"]
        cells += [f"{factor * mean(r[key] for r in rows):.{digits}f}" for _, key, factor, digits in baselines]
        lines.append(f"| {' | '.join(cells)} |")
    times = [run["single_seconds"] for run in runs if "single_seconds" in run]
    if times:
        lines += ["", f"{NUM_SAMPLES} samples for a single graph of {TIMED_SIZE} vertices take {mean(times):.1f} s."]
    return "\n".join(lines)


def read_studies(path: Path, task: str, count: int) -> dict[str, Any]:
    """Return the checkpoints that were measured before. Raises UserError if they were measured on other inputs."""
    results = read_json(path)
    tasks = {study["task"] for study in results["checkpoints"].values()}
    if tasks != {task} or results["inputs"] != count:
        raise UserError(f"{path} holds other inputs: measure all checkpoints again, without --add")
    return results["checkpoints"]


def main(argv: list[str]) -> int:
    parser = Parser("sizes.py", description=__doc__)
    parser.add_argument("checkpoints", nargs="+", type=Path, metavar="CHECKPOINT", help=".safetensors, or a run")
    parser.add_argument("--inputs", type=int, default=100, metavar="B", help="inputs of each group (default 100)")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="default: sizes_TASK.json beside this script")
    parser.add_argument("--add", action="store_true", help="keep the other seeds of the file that --out names")
    arguments = parser.parse_args(argv)
    if arguments.inputs < 1:
        raise UserError(f"--inputs must be at least 1, not {arguments.inputs}")
    if not has_sat_solver():
        raise UserError("the exact solver is missing: pip install python-sat")
    if arguments.out is not None:
        check_writable(arguments.out)
    solvers = [pyro_gram.load(path) for path in arguments.checkpoints]
    tasks = {solver.config.names["task"] for solver in solvers}
    if len(tasks) > 1:
        raise UserError(f"checkpoints of several tasks ({', '.join(sorted(tasks))}): give those of one task")
    if len({solver.config.seed for solver in solvers}) < len(solvers):
        raise UserError("two of the checkpoints have the same seed: give those of one preset")
    task = tasks.pop()
    out = arguments.out or HERE / f"sizes_{task}.json"
    studies = read_studies(out, task, arguments.inputs) if arguments.add else {}
    studies |= {f"seed{solver.config.seed}": measure_checkpoint(solver, arguments.inputs) for solver in solvers}
    results = {"checkpoints": studies, "inputs": arguments.inputs}
    write_study(out, results, markdown(results))
    return 0


if __name__ == "__main__":
    raise SystemExit(call(main))
