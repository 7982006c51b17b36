"""Diagnose whether a checkpoint's answers, guide and likelihood estimates can be trusted.

    python experiments/diagnose.py --checkpoint PATH

It writes ``report.html`` (start there), ``diagnosis.json``, ``inference.nc`` for ArviZ, and ``figures/``.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tqdm import tqdm

import pyro_gram
from pyro_gram.checks import check_seed
from pyro_gram.errors import UserError
from pyro_gram.runs.diagnose import check_ready, diagnose
from pyro_gram.runs.findings import Findings
from pyro_gram.runs.run import read_rows
from pyro_gram.runs.scope import Scope
from pyro_gram.system.cli import Parser, add_device_option, add_trust_option, call, directory
from pyro_gram.system.files import check_directory, check_writable
from pyro_gram.system.machine import pick_device


def make_parser() -> Parser:
    parser = Parser("diagnose.py", description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--checkpoint", type=Path, required=True, metavar="PATH", help=".safetensors, or a run's directory"
    )
    parser.add_argument(
        "--out",
        type=directory,
        metavar="DIR",
        help="default: diagnosis/ in the run's directory, NAME.diagnosis/ beside a file",
    )
    parser.add_argument(
        "--inputs",
        type=int,
        default=200,
        metavar="B",
        help="largest number of test inputs (default 200); slow parts use fewer",
    )
    parser.add_argument(
        "--depth", type=int, metavar="S", help="supervision steps (default: those of the run's evaluation)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the draws (default 0)")
    parser.add_argument("--data-dir", metavar="DIR", help="directory of the data files, for tasks that read files")
    add_trust_option(parser)
    add_device_option(parser)
    return parser


def path_next_to(checkpoint: Path, name: str) -> Path:
    """Return the path of a file that belongs to a checkpoint: ``DIR/name`` for a run, else ``CHECKPOINT.name``."""
    if checkpoint.is_dir():
        return checkpoint / name
    return checkpoint.with_name(f"{checkpoint.stem}.{name}")


def main(argv: list[str]) -> int:
    arguments = make_parser().parse_args(argv)
    for name in ("inputs", "depth"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} must be at least 1, not {value}")
    check_seed(arguments.seed, "--seed")
    device = pick_device(arguments.device)
    solver = pyro_gram.load(arguments.checkpoint, arguments.data_dir, trust_code=arguments.trust_code).to(device)
    solver.check_depth(arguments.depth)
    is_run_file = arguments.checkpoint.name == "model.safetensors"  # model.safetensors means its run
    checkpoint = arguments.checkpoint.parent if is_run_file else arguments.checkpoint
    out = arguments.out or path_next_to(checkpoint, "diagnosis")
    check_directory(out, "--out")
    if (out / "config.json").exists():
        raise UserError(f"{out} holds a run: give another --out")
    check_ready(solver)
    check_writable(out / "report.html")
    rows = read_rows(path_next_to(checkpoint, "metrics.jsonl"))
    scope = Scope(solver, arguments.depth or solver.config.depth, arguments.inputs, arguments.seed, rows)
    findings = Findings(out)
    name = checkpoint.stem if checkpoint.is_file() else checkpoint.resolve().name
    with tqdm(file=sys.stderr, desc="diagnose", unit="part", bar_format="{desc}: {n_fmt}/{total_fmt} {postfix}") as bar:
        diagnose(scope, findings, name, bar)
    width = max(len(v.level) for v in findings.verdicts.values())
    for verdict in findings.verdicts.values():
        print(f"{verdict.level:{width}}  {verdict.name}: {verdict.value}")
    print(f"report: {out / 'report.html'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(call(main))
