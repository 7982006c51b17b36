"""Measure the committed checkpoints without noise: ``python experiments/studies/no_noise.py``.

Every guidance is set to its prior's mean. An input then has one trajectory and one answer. This answer costs as much
as one sample. By default the whole test split is measured.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pyro_gram
from experiments.tables.headline import SOLVING_CHECKPOINTS
from pyro_gram.checkpoint import named_checkpoint
from pyro_gram.diagnostics.metrics import wilson_interval
from pyro_gram.errors import UserError
from pyro_gram.sampling.rollout import rollout
from pyro_gram.sampling.steps import to_device_of
from pyro_gram.sampling.tempering import AtMean
from pyro_gram.system.cli import Parser, call
from pyro_gram.system.files import check_writable, read_json, write_json
from pyro_gram.system.machine import environment

HERE = Path(__file__).parent


def measure_checkpoint(path: Path, max_inputs: int | None = None) -> dict[str, Any]:
    """Measure one checkpoint without noise on the first ``max_inputs`` test inputs (None: all)."""
    solver = pyro_gram.load(path)
    test = solver.task.split("test")
    puzzles = test if max_inputs is None else test.subset(max_inputs)
    settings: dict[str, Any] = {"depth": solver.config.depth, "temper": solver.config.temper}
    with AtMean():
        samples = rollout(solver.model, to_device_of(solver.model, puzzles.inputs), num_samples=1, **settings)
    accuracy = solver.task.is_valid(puzzles.inputs, samples.tokens).double().mean().item()
    return {
        "num_inputs": len(puzzles),
        "depth": solver.config.depth,
        "accuracy": accuracy,
        "interval": wilson_interval(accuracy, len(puzzles)),
        "environment": environment(),
    }


def main(argv: list[str]) -> int:
    parser = Parser("no_noise.py", description=__doc__)
    parser.add_argument("--checkpoints", nargs="+", metavar="NAME", default=SOLVING_CHECKPOINTS)
    parser.add_argument("--inputs", type=int, metavar="B", help="measure only the first B test inputs (default: all)")
    parser.add_argument(
        "--out", type=Path, default=HERE / "no_noise.json", metavar="FILE", help="results are added to it"
    )
    arguments = parser.parse_args(argv)
    if arguments.inputs is not None and arguments.inputs < 1:
        raise UserError(f"--inputs must be at least 1, not {arguments.inputs}")
    paths = {name: named_checkpoint(name) for name in arguments.checkpoints}
    check_writable(arguments.out)
    results: dict[str, Any] = read_json(arguments.out) if arguments.out.exists() else {}
    for name, path in paths.items():
        print(name, file=sys.stderr)
        results[name] = measure_checkpoint(path, arguments.inputs)
        write_json(arguments.out, results)
    for name in paths:
        study = results[name]
        print(f"{name}: {study['accuracy']:.4f} of {study['num_inputs']:,} test inputs")
    print(f"results: {arguments.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(call(main))
