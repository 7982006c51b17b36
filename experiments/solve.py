"""Solve your own puzzles: ``python experiments/solve.py --checkpoint PATH --input FILE``."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

import pyro_gram
from pyro_gram.cli import Parser, call
from pyro_gram.errors import InputError, UserError
from pyro_gram.solver import SELECTIONS, Solved, Solver

AT_ONCE = 64  # inputs solved together; answers stream out after each


def make_parser() -> Parser:
    parser = Parser("solve.py", description=__doc__)
    parser.add_argument(
        "--checkpoint", type=Path, required=True, metavar="PATH", help=".safetensors, or a run's directory"
    )
    parser.add_argument("--input", default="-", metavar="FILE", help="puzzles, one a line; - (the default) reads stdin")
    parser.add_argument("--num-samples", type=int, default=20, metavar="N", help="trajectories an input (default 20)")
    parser.add_argument("--depth", type=int, metavar="S", help="supervision steps (default: as the run was measured)")
    parser.add_argument(
        "--select", choices=SELECTIONS, default="all", help="all distinct answers, or the most frequent"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default 0)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line and input")
    parser.add_argument("--data-dir", metavar="DIR", help="where a task that reads files finds them")
    return parser


def read_text(source: str) -> str:
    """The whole input. Raises InputError where there is none."""
    try:
        text = sys.stdin.read() if source == "-" else Path(source).read_text()
    except (OSError, UnicodeDecodeError) as e:
        raise InputError(f"cannot read --input {source}: {getattr(e, 'strerror', None) or 'not a text file'}") from None
    if not text.strip():
        raise InputError(f"--input {source} is empty: give one puzzle a line")
    return text


def solve_all(solver: Solver, inputs: Iterable[Tensor], **settings: object) -> Iterator[Solved]:
    iterator = iter(inputs)
    while batch := list(itertools.islice(iterator, AT_ONCE)):
        yield from solver.solve(torch.stack(batch), **settings)  # type: ignore[arg-type]


def show(solved: Solved) -> str:
    """A few lines for a person."""
    lines = [f"{solved.input}: {len(solved.solutions)} distinct answers in {solved.num_samples} samples"]
    for a in solved.solutions:
        mark = "unknown" if a.valid is None else "valid  " if a.valid else "INVALID"
        lines.append(f"  {a.solution}  {mark}  {a.count:>4} of {solved.num_samples}   log p(y|h) {a.score:.3f}")
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    arguments = make_parser().parse_args(argv)
    for name in ("num_samples", "depth"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, not {value}")
    solver = pyro_gram.load(arguments.checkpoint, arguments.data_dir)
    inputs = list(solver.task.read(read_text(arguments.input)))  # all are checked before any is solved
    settings = {
        "num_samples": arguments.num_samples,
        "depth": arguments.depth,
        "seed": arguments.seed,
        "select": arguments.select,
    }
    for solved in solve_all(solver, inputs, **settings):
        print(json.dumps(solved.to_dict()) if arguments.json else show(solved), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(call(main))
