"""Measure committed checkpoints on inputs that were never measured while settings were chosen.

Some settings were chosen when figures of the test split were known. Graphs and small Sudokus are therefore generated
again under another data seed, and none of them is symmetric to an input of any split (``Task.fresh_inputs``). For
queens this is impossible, because every input is in a split. The study then uses test inputs that no run measures (10
queens has 5,513 of them). Each checkpoint is sampled with its own tempering and depth, without halting, under several
seeds of the draws. A checkpoint is not measured again if the JSON has its results with the same settings.

    python experiments/studies/fresh.py
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch

import pyro_gram
from pyro_gram.diagnostics.metrics import measure
from pyro_gram.errors import ConfigError, UserError
from pyro_gram.solver import Solver
from pyro_gram.system.cli import Parser, call
from pyro_gram.system.files import check_writable, open_tensor_file, read_json, tensor_digest, write_json
from pyro_gram.system.machine import environment
from pyro_gram.tasks.base import PuzzleSet

HERE = Path(__file__).parent
CHECKPOINTS = HERE.parent.parent / "checkpoints"
NAMES = ("coloring8", "coloring10", "sudoku4", "sudoku6", "nqueens10")
NUM_SAMPLES = 20
METRICS = (
    "accuracy", "violations", "sample_accuracy", "vote_accuracy", "any_valid", "coverage", "coverage_limit",
    "total_variation", "total_variation_perfect",
)  # fmt: skip


def fresh_puzzles(solver: Solver, count: int, data_seed: int) -> tuple[PuzzleSet, str]:
    """Return up to ``count`` inputs on which no run was measured, and a description of them.

    Raises:
        ConfigError: the task has no such inputs, or fewer than ``count`` can be drawn.
    """
    try:
        return solver.task.fresh_inputs(count, data_seed), f"data_seed {data_seed}"
    except ConfigError:
        first, test = solver.config.evaluate.inputs, solver.task.split("test")
        if not 0 < first < len(test):
            raise
        test_indices = range(first, min(first + count, len(test)))
        return test.select(
            torch.tensor(test_indices)
        ), f"test inputs {test_indices.start + 1:,} to {test_indices.stop:,}"


def one_solution_share(puzzles: PuzzleSet) -> float:
    """Return the share of inputs that have one solution."""
    return (puzzles.num_solutions == 1).double().mean().item()


def measure_draws(solver: Solver, puzzles: PuzzleSet, seeds: int) -> dict[str, Any]:
    """Return the metrics of each seed of the draws, and their means and standard deviations over seeds."""
    draws: list[dict[str, Any]] = []
    for seed in range(seeds):
        print(f"  seed {seed}", file=sys.stderr)
        halt = 1.0 if solver.has_heads else None  # with P = 1 trajectories never halt
        samples = solver.sample(puzzles.inputs, NUM_SAMPLES, seed=100_000 * (seed + 1), halt=halt)
        metrics = measure(solver.task, puzzles, samples.tokens, samples.score).to_dict()
        draws.append({name: metrics[name] for name in METRICS})
    names = [name for name in METRICS if draws[0][name] is not None]
    return {
        "draws": draws,
        "mean": {name: fmean(s[name] for s in draws) for name in names},
        "sd": {name: stdev(s[name] for s in draws) for name in names},
    }


def checkpoint_path(name: str) -> Path:
    """Return the path of a committed checkpoint. Raises UserError if no checkpoint has this name."""
    path = CHECKPOINTS / f"{name}.safetensors"
    if not path.exists():
        raise UserError(f"no committed checkpoint {name!r}: there is no {path}")
    return path


def weights_digest(path: Path) -> str:
    """Return the SHA-256 of a checkpoint's tensors, without its header."""
    return tensor_digest(open_tensor_file(path, "model").tensors())


def study_settings(path: Path, arguments: Any) -> dict[str, Any]:
    """Return the checkpoint's digest and the study's settings. If the JSON has the same ones, its results are kept."""
    return {"sha256": weights_digest(path)} | {
        name: getattr(arguments, name) for name in ("inputs", "data_seed", "seeds")
    }


def measure_checkpoint(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Measure one checkpoint on fresh inputs. Return its part of the study's JSON."""
    solver = pyro_gram.load(path)
    puzzles, description = fresh_puzzles(solver, settings["inputs"], settings["data_seed"])
    return {
        **settings,
        "what": description,
        "num_inputs": len(puzzles),
        "num_samples": NUM_SAMPLES,
        "depth": solver.config.depth,
        "temper": [solver.config.temper.scale, solver.config.temper.transitions],
        "one_solution": one_solution_share(puzzles),
        "one_solution_test": one_solution_share(solver.task.split("test")),
        **measure_draws(solver, puzzles, settings["seeds"]),
        "environment": environment(),
    }


def main(argv: list[str]) -> int:
    parser = Parser("fresh.py", description=__doc__)
    parser.add_argument("--checkpoints", nargs="+", metavar="NAME", default=NAMES, help=f"default: {' '.join(NAMES)}")
    parser.add_argument(
        "--inputs", type=int, default=1000, metavar="B", help="fresh inputs for each checkpoint (default 1000)"
    )
    parser.add_argument("--data-seed", type=int, default=20_260, metavar="S", help="seed of the fresh inputs")
    parser.add_argument("--seeds", type=int, default=3, metavar="K", help="seeds of the draws (default 3)")
    parser.add_argument("--out", type=Path, default=HERE / "fresh.json", metavar="FILE")
    arguments = parser.parse_args(argv)
    for name, least in (("inputs", 1), ("seeds", 2), ("data_seed", 0)):
        if getattr(arguments, name) < least:
            option = name.replace("_", "-")
            raise UserError(f"--{option} must be at least {least}, not {getattr(arguments, name)}")
    check_writable(arguments.out)
    results = read_json(arguments.out) if arguments.out.exists() else {}
    for name in arguments.checkpoints:
        path = checkpoint_path(name)
        settings = study_settings(path, arguments)
        if all(results.get(name, {}).get(key) == value for key, value in settings.items()):
            continue
        print(name, file=sys.stderr)
        results[name] = measure_checkpoint(path, settings)
        write_json(arguments.out, results)
    for name in arguments.checkpoints:
        mean, sd = results[name]["mean"], results[name]["sd"]
        print(f"{name}: {results[name]['what']}, accuracy {mean['sample_accuracy']:.4f} ± {sd['sample_accuracy']:.4f}")
    print(f"results: {arguments.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(call(main))
