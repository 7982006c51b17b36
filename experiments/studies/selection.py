"""Compare selection by the value head with the vote: ``python experiments/studies/selection.py --checkpoint PATH ...``.

Both select from the same samples, which are drawn as ``solve.py`` draws them. The inputs are those of the test split.
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
from experiments.scaling.scaling import checkpoint_label
from experiments.scaling.trajectories import add_result, cache_folder, cached_tensors
from experiments.tables.cells import by_checkpoint, write_markdown
from pyro_gram.diagnostics.metrics import selected_answers, wilson_interval
from pyro_gram.errors import UserError
from pyro_gram.inference.sites import check_has_heads
from pyro_gram.solver import Solver
from pyro_gram.system.cli import Parser, add_trust_option, call
from pyro_gram.system.files import check_writable, read_json

NUM_SAMPLES = 20  # number of trajectories for each input
INPUTS = 1000
SEED = 700_000  # seed of the first set of draws; the k-th set has the seed k * SEED
OUT = Path(__file__).with_suffix(".json")


def measure(path: Path, arguments: Any) -> dict[str, Any]:
    """Measure both selections on test inputs. Return accuracies, deviations over seeds, and Wilson intervals."""
    solver = pyro_gram.load(path, trust_code=arguments.trust_code)
    check_has_heads(solver.model, "select")
    x = solver.task.split("test").subset(arguments.inputs).inputs
    assert x is not None
    folder = cache_folder(arguments.keep, path, solver)
    is_right: dict[str, list[Tensor]] = {"vote": [], "value": []}
    steps = []
    total = arguments.seeds * len(x) * NUM_SAMPLES
    with tqdm(total=total, unit="trajectory", desc=checkpoint_label(path), file=sys.stderr, mininterval=1.0) as bar:
        for number in range(arguments.seeds):
            settings = {"num_samples": NUM_SAMPLES, "seed": SEED * (number + 1)}
            samples = draw_samples(solver, x, folder, settings, bar.update)
            canonical_tokens = solver.task.canonical_form(x, samples["tokens"])
            for name, value in (("vote", None), ("value", samples["value"])):
                is_right[name].append(
                    solver.task.is_valid(x, selected_answers(canonical_tokens, samples["score"], value))
                )
            steps.append(samples["steps"].double().mean().item())
    vote, value = (torch.stack(rows) for rows in is_right.values())
    return {
        "inputs": len(x),
        "num_samples": NUM_SAMPLES,
        "seeds": arguments.seeds,
        "halt": solver.config.heads.halt,
        "steps": statistics.fmean(steps),
        "vote": share_of_inputs(vote),
        "value": share_of_inputs(value),
        "only_vote_right": int((vote & ~value).sum()),
        "only_value_right": int((value & ~vote).sum()),
    }


def draw_samples(
    solver: Solver, x: Tensor, folder: Path | None, settings: dict[str, Any], progress: Any
) -> dict[str, Tensor]:
    """Draw samples as ``solve.py`` does by default. Return their ``tokens``, ``score``, ``value`` and ``steps``."""

    def sample_tensors() -> dict[str, Tensor]:
        samples = solver.sample(x, progress=progress, **settings)
        return {name: getattr(samples, name) for name in ("tokens", "score", "value", "steps")}

    return cached_tensors(folder, f"test-inputs{len(x)}", settings, sample_tensors)


def share_of_inputs(is_right: Tensor) -> dict[str, Any]:
    """Return the mean of bool ``[seeds, B]``, its deviation over seeds, and its Wilson interval over inputs."""
    by_seed = is_right.double().mean(1).tolist()
    accuracy = statistics.fmean(by_seed)
    sd = statistics.stdev(by_seed) if len(by_seed) > 1 else None
    return {"accuracy": accuracy, "sd": sd, "interval": wilson_interval(accuracy, is_right.shape[1])}


def markdown(study: dict[str, Any]) -> str:
    """Return a Markdown table of the accuracies of the vote and of the value head."""
    lines = [
        "| checkpoint | test inputs | seeds | vote of 20 | by value, of 20 | only the vote right, only value right |",
        "|---|---|---|---|---|---|",
    ]
    for name, s in by_checkpoint(study):
        lines.append(
            f"| `{name}` | {s['inputs']:,} | {s['seeds']} "
            f"| {_share_cell(s['vote'])} | {_share_cell(s['value'])} "
            f"| {s['only_vote_right']}, {s['only_value_right']} of {s['inputs'] * s['seeds']:,} |"
        )
    return "\n".join(lines)


def _share_cell(share_of_inputs: dict[str, Any]) -> str:
    low, high = share_of_inputs["interval"]
    sd = f" ± {share_of_inputs['sd']:.4f}" if round(share_of_inputs["sd"] or 0, 4) else ""
    return f"{share_of_inputs['accuracy']:.4f}{sd} [{low:.4f}, {high:.4f}]"


def make_parser() -> Parser:
    parser = Parser("selection.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("--checkpoint", type=Path, nargs="+", required=True, metavar="PATH", help="with heads")
    parser.add_argument("--out", type=Path, default=OUT, metavar="JSON", help="results are added to this file")
    parser.add_argument("--inputs", type=int, default=INPUTS, metavar="B", help=f"test inputs (default {INPUTS:,})")
    parser.add_argument("--seeds", type=int, default=3, metavar="K", help="seeds of the draws (default 3)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="cache samples in DIR, and use those that it holds")
    add_trust_option(parser)
    return parser


def main(argv: list[str]) -> int:
    arguments = make_parser().parse_args(argv)
    for name in ("inputs", "seeds"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name} must be at least 1, not {getattr(arguments, name)}")
    check_writable(arguments.out)
    for path in arguments.checkpoint:
        results = measure(path, arguments)
        add_result(arguments.out, checkpoint_label(path), results)
        write_markdown(arguments.out, markdown(read_json(arguments.out)))
        vote, value = (results[name]["accuracy"] for name in ("vote", "value"))
        print(f"{checkpoint_label(path)}: vote {vote:.4f}, value {value:.4f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(call(main))
