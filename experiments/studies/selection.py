"""Is the value head's choice as good as the vote? ``python experiments/studies/selection.py --checkpoint PATH ...``.

Both choose from the same samples, as ``solve.py`` draws them, on fresh inputs: made under another ``data_seed``, none
isomorphic or symmetric to an input of any split. Queens have no others than those of their test split, so that these
are measured, as many as there are.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import pyro_gram
from experiments.scaling.scaling import label_of
from experiments.scaling.trajectories import add_result, kept, kept_in
from experiments.tables.cells import by_checkpoint, write_markdown
from pyro_gram.diagnostics.metrics import selected_answers, wilson_interval
from pyro_gram.errors import UserError
from pyro_gram.inference.sites import check_has_heads
from pyro_gram.solver import Solver
from pyro_gram.system.cli import Parser, add_trust_option, call
from pyro_gram.system.files import check_writable, read_json
from pyro_gram.tasks.nqueens.task import NQueens

OF = 20  # trajectories an input
INPUTS = 1000
DATA_SEED = 2000  # of the inputs
SEED = 700_000  # of the first draws
OUT = Path(__file__).with_suffix(".json")


def fresh_inputs(solver: Solver, count: int) -> tuple[Tensor, str]:
    """Up to ``count`` inputs that were no training or validation input, nor symmetric to one; and which these are.

    Queens have none but those of the test split: of these, where that is enough, such as runs are not measured on.
    """
    if not isinstance(solver.task, NQueens):
        inputs = solver.task.fresh_inputs(count, DATA_SEED).inputs
        assert inputs is not None
        return inputs, f"data_seed {DATA_SEED}"
    inputs = solver.task.split("test").inputs
    assert inputs is not None
    measured = solver.config.evaluate.inputs or len(inputs)
    first = measured if len(inputs) - measured >= count else 0
    last = min(first + count, len(inputs))
    return inputs[first:last], f"test inputs {first + 1:,} to {last:,}"


def measure(path: Path, arguments: Any) -> dict[str, Any]:
    """Vote and value on fresh inputs: accuracies, with their deviation over seeds and Wilson interval over inputs."""
    solver = pyro_gram.load(path, trust_code=arguments.trust_code)
    check_has_heads(solver.model, "select")
    x, which = fresh_inputs(solver, arguments.inputs)
    folder = kept_in(arguments.keep, path, solver)
    right: dict[str, list[Tensor]] = {"vote": [], "value": []}
    steps = []
    total = arguments.seeds * len(x) * OF
    with tqdm(total=total, unit="trajectory", desc=label_of(path), file=sys.stderr, mininterval=1.0) as bar:
        for number in range(arguments.seeds):
            settings = {"num_samples": OF, "seed": SEED * (number + 1)}
            rolled = drawn(solver, x, folder, settings, bar.update)
            canonical = solver.task.canonical_form(x, rolled["tokens"])
            for name, value in (("vote", None), ("value", rolled["value"])):
                right[name].append(solver.task.is_valid(x, selected_answers(canonical, rolled["score"], value)))
            steps.append(rolled["steps"].double().mean().item())
    vote, value = (torch.stack(rows) for rows in right.values())
    return {
        "inputs": len(x),
        "which": which,
        "num_samples": OF,
        "seeds": arguments.seeds,
        "halt": solver.config.heads.halt,
        "steps": statistics.fmean(steps),
        "vote": share(vote),
        "value": share(value),
        "only_vote_right": int((vote & ~value).sum()),
        "only_value_right": int((value & ~vote).sum()),
    }


def drawn(solver: Solver, x: Tensor, folder: Path | None, settings: dict[str, Any], progress: Any) -> dict[str, Tensor]:
    """Samples as ``solve.py`` draws them by default: ``tokens``, ``score``, ``value``, ``steps``."""

    def made() -> dict[str, Tensor]:
        rolled = solver.sample(x, progress=progress, **settings)
        return {name: getattr(rolled, name) for name in ("tokens", "score", "value", "steps")}

    return kept(folder, f"fresh-inputs{len(x)}", settings, made)


def share(right: Tensor) -> dict[str, Any]:
    """Of bool ``[seeds, B]``: the share, its deviation over seeds, and its Wilson interval, of B inputs."""
    by_seed = right.double().mean(1).tolist()
    accuracy = statistics.fmean(by_seed)
    sd = statistics.stdev(by_seed) if len(by_seed) > 1 else None
    return {"accuracy": accuracy, "sd": sd, "interval": wilson_interval(accuracy, right.shape[1])}


def markdown(study: dict[str, Any]) -> str:
    """Show vote and value on fresh inputs as a Markdown table."""
    lines = [
        "| checkpoint | fresh inputs | seeds | vote of 20 | by value, of 20 | only the vote right, only value right |",
        "|---|---|---|---|---|---|",
    ]
    for name, s in by_checkpoint(study):
        lines.append(
            f"| `{name}` | {s['inputs']:,} ({s['which']}) | {s['seeds']} "
            f"| {_share_cell(s['vote'])} | {_share_cell(s['value'])} "
            f"| {s['only_vote_right']}, {s['only_value_right']} of {s['inputs'] * s['seeds']:,} |"
        )
    return "\n".join(lines)


def _share_cell(share: dict[str, Any]) -> str:
    low, high = share["interval"]
    sd = f" ± {share['sd']:.4f}" if round(share["sd"] or 0, 4) else ""
    return f"{share['accuracy']:.4f}{sd} [{low:.4f}, {high:.4f}]"


def make_parser() -> Parser:
    parser = Parser("selection.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("--checkpoint", type=Path, nargs="+", required=True, metavar="PATH", help="with heads")
    parser.add_argument("--out", type=Path, default=OUT, metavar="JSON", help="added to, if it is there")
    parser.add_argument("--inputs", type=int, default=INPUTS, metavar="B", help=f"fresh inputs (default {INPUTS:,})")
    parser.add_argument("--seeds", type=int, default=3, metavar="K", help="of the draws (default 3)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep roll-outs there, and go on from those it holds")
    add_trust_option(parser)
    return parser


def main(argv: list[str]) -> int:
    arguments = make_parser().parse_args(argv)
    for name in ("inputs", "seeds"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name} must be at least 1, not {getattr(arguments, name)}")
    check_writable(arguments.out)
    for path in arguments.checkpoint:
        found = measure(path, arguments)
        add_result(arguments.out, label_of(path), found)
        write_markdown(arguments.out, markdown(read_json(arguments.out)))
        print(f"{label_of(path)}: vote {found['vote']['accuracy']:.4f}, value {found['value']['accuracy']:.4f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(call(main))
