"""What closes the gap between guide and prior: variants of a preset at equal minutes, over seeds.

Each variant of ``gap.toml`` changes a few settings of its preset and asks one question. Every run is measured on the
*validation* split alone, on fresh trajectories of the prior, at several depths:

    python experiments/studies/gap.py --study queens8 --seeds 0 1 2
    python experiments/studies/gap.py --study queens8 --table

Runs lie under ``--runs`` and resume; a run that is in the JSON already is not made again.
"""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from experiments.run import PRESETS
from pyro_gram.cli import Parser, call
from pyro_gram.config import RunConfig, read_preset, with_settings
from pyro_gram.diagnostics.metrics import excess, measure
from pyro_gram.errors import ConfigError
from pyro_gram.evaluate import bounds_of, environment, roll
from pyro_gram.files import read_json, write_json
from pyro_gram.run import InterruptedRunError, Run, open_run, train
from pyro_gram.tasks.stream import generator_for

HERE = Path(__file__).parent
DEPTHS = (1, 2, 4, 8, 16, 32)


def read_study(name: str) -> dict[str, Any]:
    """The table of a study. Raises ConfigError where there is none."""
    studies = tomllib.loads((HERE / "gap.toml").read_text())
    if name not in studies:
        raise ConfigError(f"unknown study {name!r}; known: {', '.join(studies)}")
    return studies[name]


def config_of(study: dict[str, Any], variant: str, seed: int) -> RunConfig:
    """The preset with the variant's settings, to be trained for the study's minutes.

    Raises:
        ConfigError: no such variant, or a setting that does not exist.
    """
    if variant not in study["variants"]:
        raise ConfigError(f"unknown variant {variant!r}; known: {', '.join(study['variants'])}")
    changes = changes_of(study, variant)
    config = read_preset(PRESETS, study["task"], study["preset"], seed=seed)
    unknown = set(changes) - set(config.parts)
    if unknown:
        known = ", ".join(config.parts)
        raise ConfigError(f"unknown part {sorted(unknown)[0]!r} in variant {variant!r}; known: {known}")
    length = {"batches": 0, "minutes": study["minutes"]}
    return with_settings(with_settings(config, {"train": length}), changes)


def changes_of(study: dict[str, Any], variant: str) -> dict[str, dict[str, Any]]:
    """The settings in which a variant differs from its preset."""
    return {part: fields for part, fields in study["variants"][variant].items() if part != "asks"}


def measure_run(run: Run) -> dict[str, Any]:
    """The validation split under the prior at every depth, the bounds, and how accuracy went over training."""
    task = run.assembly.task
    puzzles = task.split("validation")
    depths = {}
    for depth in sorted({*DEPTHS, run.depth}):
        rolled = roll(run, puzzles.inputs, depth=depth)
        found = measure(task, puzzles, rolled.tokens, rolled.score).to_dict()
        depths[str(depth)] = {
            k: v for k, v in found.items() if v is not None and k not in ("num_inputs", "num_samples")
        }
    x, y = puzzles.pairs(len(puzzles), generator_for(run.assembly.config.evaluate.seed, len(puzzles)))
    bounds = bounds_of(run, x, y)
    rows = [json.loads(line) for line in run.metrics_path.read_text().splitlines()]
    looks = [row for row in rows if "prior_accuracy" in row]
    return {
        "depth": run.depth,
        "by_depth": depths,
        "elbo_full": bounds.full.mean().item(),
        "elbo_surrogate": bounds.surrogate.mean().item(),
        "excess": excess(bounds.full, puzzles.num_solutions).mean().item(),
        "batches": run.trainer.number,
        "updates": run.trainer.optim.update,
        "seconds": run.trainer.elapsed,
        "curve": [
            [round(row["seconds"]), *(round(row[k], 4) for k in ("prior_accuracy", "prior_coverage", "elbo_full"))]
            for row in looks
        ],
        "last": {k: mean(row[k] for row in rows[-20:]) for k in ("reconstruction", "kl", "beta")},
    }


def so_far(path: Path) -> dict[str, Any]:
    """What is in the JSON already."""
    return read_json(path) if path.exists() else {"variants": {}}


def table(results: dict[str, Any]) -> str:
    """Markdown: a line a variant, mean over seeds, with the least and the greatest accuracy."""
    lines = [
        "| variant | seeds | accuracy, one sample | coverage (limit) | excess, nats | KL a step | updates | question |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, variant in results["variants"].items():
        runs = list(variant["seeds"].values())
        at = [run["by_depth"][str(run["depth"])] for run in runs]
        accuracy = [found["sample_accuracy"] for found in at]
        lines.append(
            f"| `{name}` | {len(runs)} | {mean(accuracy):.3f} ({min(accuracy):.3f} to {max(accuracy):.3f}) "
            f"| {mean(f['coverage'] for f in at):.3f} ({at[0]['coverage_limit']:.3f}) "
            f"| {mean(run['excess'] for run in runs):.2f} | {mean(run['last']['kl'] for run in runs):.2f} "
            f"| {mean(run['updates'] for run in runs):.0f} | {variant['asks']} |"
        )
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    parser = Parser("gap.py", description=__doc__)
    parser.add_argument("--study", required=True, help="a table of gap.toml")
    parser.add_argument("--variants", nargs="+", metavar="NAME", help="only these (default: all)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="S")
    parser.add_argument("--minutes", type=float, metavar="M", help="of training a run, instead of the study's")
    parser.add_argument("--runs", type=Path, default=Path("runs/studies"), metavar="DIR")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: experiments/studies/gap_STUDY.json")
    parser.add_argument("--table", action="store_true", help="print the table of what is in FILE, and exit")
    arguments = parser.parse_args(argv)
    study = read_study(arguments.study)
    out = arguments.out or HERE / f"gap_{arguments.study}.json"
    if arguments.table:
        print(table(read_json(out)))
        return 0
    if arguments.minutes is not None:
        study["minutes"] = arguments.minutes
    names = arguments.variants or list(study["variants"])
    configs = {(seed, name): config_of(study, name, seed) for seed in arguments.seeds for name in names}
    for (seed, name), config in configs.items():  # every variant once, then the next seed
        if str(seed) in so_far(out)["variants"].get(name, {}).get("seeds", {}):
            continue
        print(f"{arguments.study}: {name}, seed {seed}", file=sys.stderr)
        folder = arguments.runs / f"{arguments.study}-{name}-seed{seed}"
        run = open_run(config, folder, resume=True, data_dir=None, device=torch.device("cpu"))
        try:
            train(run)
        except InterruptedRunError as stopped:
            print("stopped; the same command goes on", file=sys.stderr)
            return stopped.exit_code
        found = measure_run(run)
        results = so_far(out)  # read again: another process may write to the same file
        variant = results["variants"].setdefault(name, {"seeds": {}})
        variant["asks"] = study["variants"][name]["asks"]
        variant["changes"] = changes_of(study, name)
        variant["seeds"][str(seed)] = found
        results |= (
            {"study": arguments.study}
            | {key: study[key] for key in ("task", "preset", "minutes")}
            | {"environment": environment()}
        )
        write_json(out, results)
    print(table(read_json(out)))
    return 0


if __name__ == "__main__":
    raise SystemExit(call(main))
