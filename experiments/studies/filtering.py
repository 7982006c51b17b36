"""Compare a particle filter with a single weighting: ``python experiments/studies/filtering.py --checkpoint PATH ...``.

Sequential Monte Carlo (``sampling.smc``) resamples trajectories after supervision steps. It is compared with
independent trajectories that are weighted once, at their end. A weight is a head's estimate, raised to the same power
as in the filter. Both methods end with resampling to N samples of equal weight, as in ``solve.py``. Two settings are
chosen on validation inputs, at a short depth where many trajectories are wrong: the setting of the most accurate
filter, and the setting with which weighting at the end is best. Both are then measured on test inputs, at the short
depth and at the full depth.
"""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import pyro_gram
from experiments.scaling.scaling import SEED, CheckpointStudy, checkpoint_label, first_puzzles, over_seeds
from experiments.scaling.trajectories import Trajectories, add_result, cache_folder
from experiments.tables.cells import by_checkpoint, point_and_sd, write_markdown
from pyro_gram.diagnostics.metrics import coverage_by_input, solution_ids
from pyro_gram.errors import UserError
from pyro_gram.inference.sites import VALUE, check_has_heads
from pyro_gram.sampling.memory import chunk_size
from pyro_gram.sampling.smc import FLOOR, POTENTIALS, SMCConfig, sample_ancestors, smc
from pyro_gram.solver import Solver
from pyro_gram.system.cli import Parser, add_trust_option, call
from pyro_gram.system.files import check_writable, read_json
from pyro_gram.tasks.base import PuzzleSet

NUM_SAMPLES = 20  # number of trajectories for each input
POWERS = (1.0, 4.0, 16.0)
THRESHOLD = 0.9  # filters resample if the effective sample size is below this share of N
INPUTS = 64  # largest number of inputs of each split
OUT = Path(__file__).with_suffix(".json")


def list_filters() -> list[SMCConfig]:
    """List the filters that are measured on validation inputs: the default, and others that resample more often."""
    return [SMCConfig(VALUE, 1.0, 0.5), *(SMCConfig(*words, THRESHOLD) for words in product(POTENTIALS, POWERS))]


def tuning_depth(full_depth: int) -> int:
    """Return the short depth at which the filter's settings are chosen."""
    return min(full_depth, max(3, full_depth // 4))


class Filtering:
    """Measure one checkpoint on a set of inputs, with filtered trajectories or with trajectories weighted once.

    Args:
        study: the checkpoint, and its recorded trajectories.
        split: name of the split that the inputs belong to.
        seed: seed of the recorded trajectories. The filter's seed is computed from it.
    """

    def __init__(self, study: CheckpointStudy, split: str, seed: int) -> None:
        self.study, self.seed = study, seed
        trajectories = study.record_trajectories(split, seed).first(NUM_SAMPLES, study.depth)
        self.puzzles = study.puzzles.subset(INPUTS)
        self.trajectories = Trajectories(*(part[:, :, : len(self.puzzles)] for part in vars(trajectories).values()))

    def measure(self, tokens: Tensor, weight: Tensor) -> dict[str, float]:
        """Resample trajectories by their weights ``[N, B]``, and measure the N samples of equal weight that result."""
        ancestors = sample_ancestors(weight, self.seed)
        tokens = tokens[ancestors, torch.arange(ancestors.shape[1])]
        puzzles, task = self.puzzles, self.study.solver.task
        results = {"sample": task.is_valid(puzzles.inputs, tokens).double().mean().item()}
        if puzzles.has_all_solutions:
            ids = solution_ids(task, puzzles, tokens)
            results["coverage"] = coverage_by_input(ids, puzzles.num_solutions).mean().item()
        return results

    def independent(self, depth: int) -> dict[str, float]:
        """Measure independent trajectories, all of the same weight."""
        tokens = self.trajectories.tokens[depth - 1]
        return self.measure(tokens, torch.full(tokens.shape[:2], 1 / NUM_SAMPLES))

    def reweighted(self, depth: int, config: SMCConfig) -> dict[str, float]:
        """Measure independent trajectories that are weighted once, at their end."""
        psi = {"value": self.trajectories.value, "halt": self.trajectories.halt}[config.potential][depth - 1]
        return self.measure(self.trajectories.tokens[depth - 1], (psi.clamp(min=FLOOR).log() * config.power).softmax(0))

    def filtered(self, depth: int, config: SMCConfig) -> dict[str, float]:
        """Measure filtered trajectories. ``resampled`` is the share of steps that resample, over all inputs."""
        solver = self.study.solver
        assert self.puzzles.inputs is not None
        particles = smc(
            solver.model,
            self.puzzles.inputs,
            num_samples=NUM_SAMPLES,
            depth=depth,
            seed=self.seed + 5000,
            config=config,
            temper=solver.config.temper,
            max_trajectories=max(NUM_SAMPLES, chunk_size(solver.task.spec.positions)),
        )
        self.study.progress(NUM_SAMPLES * depth * len(self.puzzles))
        results = self.measure(particles.tokens, particles.weight)
        least = particles.ess.min().item()
        return results | {"resampled": particles.is_resampled.double().mean().item(), "least_ess": least}

    def pair(self, depth: int, config: SMCConfig) -> dict[str, Any]:
        """Measure the filter, and independent trajectories that are weighted once, with the same settings."""
        return {
            "settings": vars(config),
            "filtered": self.filtered(depth, config),
            "reweighted": self.reweighted(depth, config),
        }


def best_filter(pairs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the settings of the most accurate filter; coverage breaks ties."""
    return max(pairs, key=lambda pair: (pair["filtered"]["sample"], accuracy_plus_coverage(pair["filtered"])))[
        "settings"
    ]


def best_weights(pairs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the settings with which weighting at the end has the highest :func:`accuracy_plus_coverage`."""
    return max(pairs, key=lambda pair: accuracy_plus_coverage(pair["reweighted"]))["settings"]


def accuracy_plus_coverage(point: dict[str, float]) -> float:
    """Return the sum of accuracy and coverage."""
    return point["sample"] + point.get("coverage", 0.0)


def make_study(solver: Solver, puzzles: PuzzleSet, cache: Path | None, progress: Any) -> CheckpointStudy:
    """Return the study of a checkpoint at its own depth and halting threshold."""
    return CheckpointStudy(solver, puzzles, solver.config.depth, solver.config.heads.halt, cache, progress)


def measure(path: Path, arguments: Any) -> dict[str, Any]:
    """Choose settings for one checkpoint on validation inputs, and measure them on test inputs. Return the JSON."""
    solver = pyro_gram.load(path, trust_code=arguments.trust_code)
    check_has_heads(solver.model, "filter")
    full_depth = solver.config.depth
    short_depth, cache = tuning_depth(full_depth), cache_folder(arguments.keep, path, solver)
    with tqdm(unit="step", unit_scale=True, desc=checkpoint_label(path), file=sys.stderr, mininterval=1.0) as bar:
        validation_study = make_study(
            solver, first_puzzles(solver, "validation", arguments.validation), cache, bar.update
        )
        validation = Filtering(validation_study, "validation", 0)
        pairs = [validation.pair(short_depth, config) for config in list_filters()]
        filter_config, weight_config = SMCConfig(**best_filter(pairs)), SMCConfig(**best_weights(pairs))
        study = make_study(solver, first_puzzles(solver, "test", arguments.inputs), cache, bar.update)
        results = []
        for number in range(arguments.seeds):
            test = Filtering(study, "test", SEED * (number + 1))
            results.append(
                {depth: test_rows(test, depth, filter_config, weight_config) for depth in (short_depth, full_depth)}
            )
    return {
        "short": short_depth,
        "depth": full_depth,
        "num_samples": NUM_SAMPLES,
        "seeds": arguments.seeds,
        "validation_inputs": len(validation.puzzles),
        "inputs": len(test.puzzles),
        "tried": pairs,
        "tuned": vars(filter_config),
        "weighed": vars(weight_config),
        "test": over_seeds(results),
    }


def test_rows(
    test: Filtering, depth: int, filter_config: SMCConfig, weight_config: SMCConfig
) -> dict[str, dict[str, float]]:
    """Measure four methods at one depth: the filter, and three ways to use independent trajectories.

    These are ``independent`` (no weights), ``reweighted`` (weighted once, at their end, with the filter's settings) and
    ``weighed`` (weighted once, at their end, with the settings that were best for weighting at the end).
    """
    return {
        "independent": test.independent(depth),
        "filtered": test.filtered(depth, filter_config),
        "reweighted": test.reweighted(depth, filter_config),
        "weighed": test.reweighted(depth, weight_config),
    }


def markdown(study: dict[str, Any]) -> str:
    """Return a Markdown table that compares the filter with independent trajectories and with weights at the end."""
    lines = [
        "| checkpoint, steps (test inputs) | independent | filtered: potential, power, threshold | resampled after "
        "| the same weights at the end only | the best weights at the end only: potential, power |",
        "|---|---|---|---|---|---|",
    ]
    for name, s in by_checkpoint(study):
        t, weight_config = s["tuned"], s["weighed"]
        for depth, rows in s["test"].items():
            cells = {key: f"{point_and_sd(row, 'sample')}; {row['coverage']:.3f}" for key, row in rows.items()}
            resampled = rows["filtered"]["resampled"]
            lines.append(
                f"| `{name}`, {depth} ({s['inputs']}) | {cells['independent']} "
                f"| {cells['filtered']}: {t['potential']}, {t['power']:g}, {t['threshold']:g} "
                f"| {resampled:.1%} of steps | {cells['reweighted']} "
                f"| {cells['weighed']}: {weight_config['potential']}, {weight_config['power']:g} |"
            )
    return "\n".join(lines)


def make_parser() -> Parser:
    parser = Parser("filtering.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("--checkpoint", type=Path, nargs="+", required=True, metavar="PATH", help="with heads")
    parser.add_argument("--out", type=Path, default=OUT, metavar="JSON", help="results are added to this file")
    parser.add_argument("--inputs", type=int, metavar="B", help=f"test inputs to record (at most {INPUTS} are used)")
    parser.add_argument(
        "--validation", type=int, metavar="B", help=f"validation inputs to record (at most {INPUTS} are used)"
    )
    parser.add_argument("--seeds", type=int, default=3, metavar="K", help="(default 3)")
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="cache of recorded trajectories, shared with scaling.py --keep"
    )
    add_trust_option(parser)
    return parser


def main(argv: list[str]) -> int:
    arguments = make_parser().parse_args(argv)
    if arguments.seeds < 1:
        raise UserError(f"--seeds must be at least 1, not {arguments.seeds}")
    check_writable(arguments.out)
    for path in arguments.checkpoint:
        results = measure(path, arguments)
        add_result(arguments.out, checkpoint_label(path), results)
        write_markdown(arguments.out, markdown(read_json(arguments.out)))
        print(f"{checkpoint_label(path)}: tuned to {results['tuned']}; {arguments.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(call(main))
