"""Study which changes close the gap between guide and prior: train variants of a preset for equal minutes.

Each variant of ``gap.toml`` changes a few settings of its preset and tests one hypothesis. Every run is measured on the
*validation* split only, on fresh trajectories of the prior, at several depths. The first command trains and measures
the variants of a study; the second prints its table:

    python experiments/studies/gap.py --study queens8
    python experiments/studies/gap.py --study queens8 --table

Runs are kept under ``--runs``, where they can be resumed. A run is not repeated if the JSON has its results.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from experiments.run import PRESETS
from experiments.tables.cells import write_markdown
from pyro_gram.config import RunConfig, with_settings
from pyro_gram.diagnostics.inference_data import pareto_smooth
from pyro_gram.diagnostics.metrics import excess, measure
from pyro_gram.errors import ConfigError
from pyro_gram.inference.importance import guide_draws
from pyro_gram.presets import read_preset
from pyro_gram.runs.measure import bounds_of, sample_prior
from pyro_gram.runs.run import Run, check_same_settings, open_run
from pyro_gram.runs.train import InterruptedRunError, train
from pyro_gram.system.cli import Parser, call
from pyro_gram.system.files import read_json, write_json
from pyro_gram.system.machine import environment
from pyro_gram.tasks.batches import generator_for

HERE = Path(__file__).parent
TRANSITIONS = 16  # number of transitions in the rollouts that are compared; the same for every T
LENGTHS = (2, 4, 8, TRANSITIONS, 2 * TRANSITIONS)  # numbers of transitions of all rollouts
NUM_WEIGHTED_INPUTS, NUM_DRAWS = 24, 100  # number of inputs with importance weights, and of weights for each


def read_study(name: str) -> dict[str, Any]:
    """Read a study from ``gap.toml``. Raises ConfigError if no study has this name."""
    studies = tomllib.loads((HERE / "gap.toml").read_text())
    if name not in studies:
        raise ConfigError(f"unknown study {name!r}; known: {', '.join(studies)}")
    return {"name": name, **studies[name]}


def config_of(study: dict[str, Any], variant: str, seed: int) -> RunConfig:
    """Return the preset with the variant's settings, to be trained for the study's minutes.

    Raises:
        ConfigError: the variant, or one of its settings, does not exist.
    """
    if variant not in study["variants"]:
        raise ConfigError(f"unknown variant {variant!r}; known: {', '.join(study['variants'])}")
    config = read_preset(PRESETS, study["task"], study["preset"], seed=seed)
    config = with_settings(config, changes_of(study, variant))
    # The settings below replace a variant's own: all variants have equal minutes and depth, and no tempering.
    return with_settings(
        config,
        {
            "train": {"batches": 0, "minutes": study["minutes"]},
            "temper": {"scale": 1.0, "transitions": 0},
            "evaluate": {"depth": TRANSITIONS // config.model.transitions},
        },
    )


def changes_of(study: dict[str, Any], variant: str) -> dict[str, dict[str, Any]]:
    """Return the settings in which a variant differs from its preset."""
    return {part: fields for part, fields in study["variants"][variant].items() if part != "asks"}


def measure_run(run: Run) -> dict[str, Any]:
    """Measure a run on the validation split: the prior's answers after ``LENGTHS`` transitions, bounds and k-hat.

    The result also holds the measurements that were made during training.
    """
    task = run.solver.task
    puzzles = task.split("validation")
    by_length = {}
    for length in LENGTHS:
        samples = sample_prior(run.averaged_solver, puzzles.inputs, depth=length // run.solver.config.model.transitions)
        metrics = measure(task, puzzles, samples.tokens, samples.score).to_dict()
        by_length[str(length)] = {
            k: v for k, v in metrics.items() if v is not None and k not in ("num_inputs", "num_samples")
        }
    seed = run.solver.config.evaluate.seed
    x, y = puzzles.sample_pairs(len(puzzles), generator_for(seed, len(puzzles)))
    bounds = bounds_of(run.averaged_solver, x, y, run.solver.config.depth, seed)
    k_hat = pareto_k_of(run, x, y)
    rows = run.rows()
    measurements = [row for row in rows if "prior_accuracy" in row]
    return {
        "by_length": by_length,
        "elbo_full": bounds.full.mean().item(),
        "elbo_surrogate": bounds.surrogate.mean().item(),
        "excess": excess(bounds.full, puzzles.num_solutions).mean().item(),
        "k_hat": {"median": k_hat.median().item(), "above_0.7": (k_hat > 0.7).float().mean().item()},
        "batches": run.trainer.number,
        "updates": run.trainer.optimizer.num_updates,
        "seconds": run.trainer.elapsed,
        "curve": [
            [round(row["seconds"]), *(round(row[k], 4) for k in ("prior_accuracy", "prior_coverage", "elbo_full"))]
            for row in measurements
        ],
        "last": {k: mean(row[k] for row in rows[-20:]) for k in ("reconstruction", "kl", "beta")},
    }


def pareto_k_of(run: Run, x: Tensor | None, y: Tensor) -> Tensor:
    """Return k-hat of the guide's importance weights for each of the first ``NUM_WEIGHTED_INPUTS`` inputs."""
    model, guide = run.trainer.averaged_modules
    subset = slice(NUM_WEIGHTED_INPUTS)
    seed = run.solver.config.evaluate.seed
    draws = guide_draws(
        model,
        guide,
        None if x is None else x[subset],
        y[subset],
        steps=run.solver.config.depth,
        num_samples=NUM_DRAWS,
        seed=seed,
    )
    return pareto_smooth(draws.log_weight)[1]


def about_study(study: dict[str, Any]) -> dict[str, Any]:
    """Return the name, task, preset and minutes of a study, which all its runs share."""
    return {"study": study["name"]} | {key: study[key] for key in ("task", "preset", "minutes")}


def read_results(path: Path, study: dict[str, Any]) -> dict[str, Any]:
    """Read the study's JSON. Raises ConfigError if its study, task, preset or minutes of training are different."""
    if not path.exists():
        return {"variants": {}}
    results = read_json(path)
    for key, value in about_study(study).items():
        if results.get(key) != value:
            raise ConfigError(f"{path} has {key} = {results.get(key)}, not {value}: give another --out and --runs")
    return results


def shared_settings(config: RunConfig) -> dict[str, Any]:
    """Return the settings that all seeds of a variant share."""
    return {part: fields for part, fields in config.to_dict().items() if part != "seed"}


def is_done(results: dict[str, Any], variant: str, config: RunConfig) -> bool:
    """Return whether the JSON has the results of this run.

    Raises:
        ConfigError: the JSON has results of this variant under other settings.
    """
    entry = results["variants"].get(variant)
    if entry is None:
        return False
    stored_settings = shared_settings(
        RunConfig.from_dict(entry["config"], config.names.values())
    )  # a setting that is missing in the JSON gets its default
    differing_parts = [part for part, fields in shared_settings(config).items() if stored_settings.get(part) != fields]
    if differing_parts:
        raise ConfigError(f"{variant!r} was run with other settings of {differing_parts[0]!r}: give another --out")
    return str(config.seed) in entry["seeds"]


def collect(out: Path, study: dict[str, Any], runs: Path) -> None:
    """Put every measured run of the study into its JSON, in the order of ``gap.toml``.

    Each run writes a file of its own, so several processes can work on one study. Runs whose settings are not those of
    the study (a different training time, or a variant that was removed) are ignored.
    """
    results = read_results(out, study)
    for path in sorted(runs.glob(f"{study['name']}-*-seed*/measured.json")):
        run = read_json(path)
        variant, seed = run.pop("variant"), run.pop("seed")
        if variant not in study["variants"] or run["config"] != shared_settings(config_of(study, variant, seed)):
            continue
        description = {"asks": study["variants"][variant]["asks"], "changes": changes_of(study, variant)}
        entry = results["variants"].setdefault(variant, {})
        entry |= description | {"config": run.pop("config"), "seeds": entry.get("seeds", {}) | {str(seed): run}}
    results["variants"] = {name: results["variants"][name] for name in study["variants"] if name in results["variants"]}
    write_json(out, results | about_study(study))


COLUMNS: dict[str, Callable[[dict[str, Any]], float]] = {
    "coverage": lambda run: main_metrics(run)["coverage"],
    "its limit": lambda run: main_metrics(run)["coverage_limit"],
    "total variation above perfect": lambda run: (
        main_metrics(run)["total_variation"] - main_metrics(run)["total_variation_perfect"]
    ),
    "accuracy, 32 transitions": lambda run: run["by_length"][str(2 * TRANSITIONS)]["sample_accuracy"],
    "accuracy lost": lambda run: max(point[1] for point in run["curve"]) - run["curve"][-1][1],
    "excess, nats": lambda run: run["excess"],
    "share of inputs with k-hat > 0.7": lambda run: run["k_hat"]["above_0.7"],
    "KL, nats a step": lambda run: run["last"]["kl"],
    "updates": lambda run: run["updates"],
}


def main_metrics(run: dict[str, Any]) -> dict[str, Any]:
    """Return the metrics of a run after TRANSITIONS transitions."""
    return run["by_length"][str(TRANSITIONS)]


def markdown(results: dict[str, Any]) -> str:
    """Return a Markdown table with a row for each variant: means over seeds, and the range of accuracies."""
    lines = [f"| variant | seeds | accuracy | {' | '.join(COLUMNS)} |", "|---" * (3 + len(COLUMNS)) + "|"]
    for name, variant in results["variants"].items():
        runs = list(variant["seeds"].values())
        accuracy = [main_metrics(run)["sample_accuracy"] for run in runs]
        means = {column: mean(value(run) for run in runs) for column, value in COLUMNS.items()}
        cells = [f"{value:.0f}" if column == "updates" else f"{value:.3f}" for column, value in means.items()]
        spread = f"{mean(accuracy):.3f} ({min(accuracy):.3f} to {max(accuracy):.3f})"
        lines.append(f"| `{name}` | {len(runs)} | {spread} | {' | '.join(cells)} |")
    lines += ["", *(f"- `{name}`: {variant['asks']}" for name, variant in results["variants"].items())]
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    parser = Parser("gap.py", description=__doc__)
    parser.add_argument("--study", required=True, help="a table of gap.toml")
    parser.add_argument("--variants", nargs="+", metavar="NAME", help="run only these variants (default: all)")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="S", help="seeds, instead of the study's")
    parser.add_argument("--minutes", type=float, metavar="M", help="train for M minutes, instead of the study's")
    parser.add_argument("--runs", type=Path, default=Path("runs/studies"), metavar="DIR")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: experiments/studies/gap_STUDY.json")
    parser.add_argument("--table", action="store_true", help="print the table of the results in FILE, and exit")
    arguments = parser.parse_args(argv)
    study = read_study(arguments.study)
    out = arguments.out or HERE / f"gap_{arguments.study}.json"
    if arguments.table:
        print(markdown(read_json(out)))
        return 0
    if arguments.minutes is not None:
        study["minutes"] = arguments.minutes
    names = arguments.variants or list(study["variants"])
    seeds = arguments.seeds or study["seeds"]
    configs = {(seed, name): config_of(study, name, seed) for seed in seeds for name in names}
    results = read_results(out, study)
    missing_configs = {key: config for key, config in configs.items() if not is_done(results, key[1], config)}
    folders = {key: arguments.runs / f"{arguments.study}-{key[1]}-seed{key[0]}" for key in missing_configs}
    for key, config in missing_configs.items():
        check_same_settings(folders[key], config, "--runs")
    for (seed, name), config in missing_configs.items():  # first all variants with the first seed
        print(f"{arguments.study}: {name}, seed {seed}", file=sys.stderr)
        folder = folders[seed, name]
        with open_run(config, folder, resume=True, data_dir=None, device=torch.device("cpu")) as run:
            try:
                train(run)
            except InterruptedRunError as interruption:
                print("stopped; to continue, run the same command", file=sys.stderr)
                return interruption.exit_code
            description = {
                "variant": name,
                "seed": seed,
                "config": shared_settings(config),
                "environment": environment(),
            }
            write_json(folder / "measured.json", description | measure_run(run))
        collect(out, study, arguments.runs)
    table = markdown(read_json(out))
    write_markdown(out, table)
    print(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(call(main))
