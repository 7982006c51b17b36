"""Sample a model p(x): ``python experiments/sample.py --checkpoint PATH --num-samples 64 --out boards.png``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

import pyro_gram
from pyro_gram.diagnostics.plots import run as figures
from pyro_gram.errors import UserError
from pyro_gram.sampling.result import Rollout
from pyro_gram.solver import Solver
from pyro_gram.system.cli import Parser, add_device_option, add_trust_option, call
from pyro_gram.system.files import write_atomically
from pyro_gram.system.machine import pick_device

SUFFIXES = (".npz", ".png")
FORMATION_ROWS = 6  # number of samples in a picture with --formation


def out_file(text: str) -> Path:
    """Read ``--out``. Raises ArgumentTypeError if its suffix is unknown."""
    path = Path(text)
    if path.suffix not in SUFFIXES:
        raise argparse.ArgumentTypeError(f"give a file ending in .npz (all samples) or .png (a picture), not {text!r}")
    return path


def make_parser() -> Parser:
    parser = Parser("sample.py", description=__doc__)
    parser.add_argument(
        "--checkpoint", type=Path, required=True, metavar="PATH", help=".safetensors, or a run's directory"
    )
    parser.add_argument("--num-samples", type=int, default=64, metavar="N", help="trajectories (default 64)")
    parser.add_argument("--out", type=out_file, required=True, metavar="FILE", help="FILE.npz or FILE.png")
    parser.add_argument(
        "--depth", type=int, metavar="S", help="supervision steps (default: those of the run's evaluation)"
    )
    parser.add_argument(
        "--formation",
        action="store_true",
        help=f"add the answer after each supervision step (.png: of the first {FORMATION_ROWS} samples only)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the draws (default 0)")
    parser.add_argument("--data-dir", metavar="DIR", help="directory of the data files, for tasks that read files")
    add_trust_option(parser)
    add_device_option(parser)
    return parser


def arrays(solver: Solver, samples: Rollout) -> dict[str, Any]:
    """Return the arrays of the .npz file.

    They are ``tokens [N, L_out]``, ``score [N]`` (nats), ``valid [N]`` if the task can check an answer, and, with
    ``--formation``, ``history [S, N, L_out]``.
    """
    tokens = samples.tokens[:, 0]
    contents = {"tokens": tokens.numpy().astype(np.uint8), "score": samples.score[:, 0].numpy()}
    if solver.task.is_checkable:
        contents["valid"] = solver.task.is_valid(None, tokens).numpy()
    if samples.history is not None:
        contents["history"] = samples.history[:, :, 0].numpy().astype(np.uint8)
    return contents


def plot_samples(solver: Solver, samples: Rollout) -> Any:
    """Return a figure of the samples. With a history it shows the first samples after each supervision step instead."""
    if samples.history is not None:
        return figures.formation_figure(solver.task, None, samples.history[:, :FORMATION_ROWS, 0])
    columns = min(8, max(1, round(len(samples.tokens) ** 0.5)))
    rows = -(-len(samples.tokens) // columns)
    return figures.samples_figure(solver.task, samples.tokens[:, 0], columns=columns, rows=rows)


def main(argv: list[str]) -> int:
    arguments = make_parser().parse_args(argv)
    device = pick_device(arguments.device)
    solver = pyro_gram.load(arguments.checkpoint, arguments.data_dir, trust_code=arguments.trust_code).to(device)
    if solver.task.spec.has_input:
        raise UserError(
            f"{arguments.checkpoint} solves inputs of the task {solver.config.names['task']}; it is not a model p(x): "
            "use experiments/solve.py"
        )
    if arguments.out.suffix == ".png" and arguments.num_samples > 400:
        raise UserError("a picture holds at most 400 samples: lower --num-samples, or write an .npz")
    samples = solver.sample(None, arguments.num_samples, arguments.depth, arguments.seed, history=arguments.formation)
    if arguments.out.suffix == ".npz":
        contents = arrays(solver, samples)
        write_atomically(arguments.out, lambda temporary: np.savez_compressed(temporary, **contents))
    else:
        figure = plot_samples(solver, samples)
        write_atomically(arguments.out, lambda temporary: figure.savefig(temporary, dpi=110))
    share = ""
    if solver.task.is_checkable:
        share = f", {solver.task.is_valid(None, samples.tokens).double().mean().item():.4f} of them valid"
    note = f", {FORMATION_ROWS} of them shown" if arguments.formation and arguments.out.suffix == ".png" else ""
    print(f"{len(samples.tokens)} samples{share}{note}: {arguments.out}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(call(main))
