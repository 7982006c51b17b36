"""Measure the effect of more compute: ``python experiments/scaling/scaling.py --checkpoint PATH --out DIR``.

It takes one checkpoint with heads, and inputs that training never saw. It measures

- how accuracy depends on the number of samples, the depth, the number of solutions and the selection of an answer;
- after how many steps trajectories halt on easy and on difficult inputs;
- accuracy and coverage against core evaluations, for many shallow trajectories, few deep ones, and halting ones, with
  settings chosen on validation inputs;
- coverage and accuracy under each draw scheme.

It writes ``NAME.scaling.json`` and ``NAME.scaling.png``. Figures are means over seeds of the draws, with their standard
deviations. ``studies/filtering.py`` studies sequential Monte Carlo.
"""

from __future__ import annotations

import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

import pyro_gram
from experiments.scaling.frontier import (
    choose_points,
    depths_up_to,
    grade_answers,
    head_cost_per_step,
    measure_points,
    thresholds_up_to,
)
from experiments.scaling.trajectories import (
    SAMPLE_COUNTS,
    Trajectories,
    cache_folder,
    is_within_work,
    record_trajectories,
)
from pyro_gram.diagnostics.metrics import coverage_by_input, coverage_limit, selected_answers, solution_ids
from pyro_gram.diagnostics.plots.scaling import scaling_figure
from pyro_gram.errors import ConfigError, UserError
from pyro_gram.inference.sites import check_has_heads
from pyro_gram.sampling.draws import DrawScheme
from pyro_gram.sampling.memory import chunk_size
from pyro_gram.sampling.result import Rollout
from pyro_gram.sampling.rollout import rollout
from pyro_gram.sampling.steps import to_device_of
from pyro_gram.sampling.tempering import AtMean
from pyro_gram.solver import Solver
from pyro_gram.system.cli import Parser, add_device_option, add_trust_option, call
from pyro_gram.system.files import check_writable, read_json, write_atomically, write_json
from pyro_gram.system.machine import environment, pick_device
from pyro_gram.tasks.base import PuzzleSet

OTHER_SCHEMES = ("antithetic", "sobol", "distinct")
SCHEME_COUNTS = (5, 20)  # trajectories per input in the comparison of draw schemes
NUM_SELECTED = 20  # trajectories per input in the measurements of selection and halting
SEED = 100_000  # the k-th set of draws on test inputs has the seed k * SEED


class CheckpointStudy:
    """Sample trajectories of one checkpoint on a set of inputs, and measure them.

    Args:
        solver: the checkpoint, with heads.
        puzzles: inputs that training never saw.
        depth: the largest number of supervision steps.
        halt: P(right) at which trajectories halt.
        cache: a folder of recorded trajectories; with None nothing is stored.
        progress: called with the number of trajectories that have just been run.
    """

    def __init__(
        self, solver: Solver, puzzles: PuzzleSet, depth: int, halt: float, cache: Path | None, progress: Any
    ) -> None:
        self.solver, self.puzzles, self.depth, self.halt = solver, puzzles, depth, halt
        self.cache, self.progress = cache, progress
        assert puzzles.inputs is not None
        self.x = puzzles.inputs

    def record_trajectories(self, name: str, seed: int) -> Trajectories:
        """Record the trajectories from which all metrics except those of draw schemes are computed."""
        return record_trajectories(
            self.solver,
            self.x,
            num_samples=max(SAMPLE_COUNTS),
            depth=self.depth,
            seed=seed,
            halt=self.halt,
            folder=self.cache,
            name=name,
            progress=self.progress,
        )

    def measure(self, samples: Rollout) -> dict[str, float]:
        """Return the accuracy of single samples and of selected answers, and the coverage of all solutions."""
        task, x = self.solver.task, self.x
        valid = task.is_valid(x, samples.tokens).double()
        canonical_tokens = task.canonical_form(x, samples.tokens)
        results = {
            "sample": valid.mean().item(),
            "vote": task.is_valid(x, selected_answers(canonical_tokens, samples.score)).double().mean().item(),
            "value": task.is_valid(x, selected_answers(canonical_tokens, samples.score, samples.value))
            .double()
            .mean()
            .item(),
            "verified": valid.amax(0).mean().item(),
        }
        if self.puzzles.has_all_solutions:
            ids = solution_ids(task, self.puzzles, samples.tokens)
            results["coverage"] = coverage_by_input(ids, self.puzzles.num_solutions).mean().item()
        return results

    def by_depth_and_count(self, trajectories: Trajectories) -> dict[int, dict[int, dict[str, float]]]:
        """Measure N trajectories of each depth, for all N and depths that :func:`is_within_work` allows."""
        return {
            depth: {
                n: self.measure(trajectories.first(n, depth).halted(1))
                for n in SAMPLE_COUNTS
                if is_within_work(n, depth, self.depth)
            }
            for depth in depths_up_to(self.depth)
        }

    def by_threshold(self, trajectories: Trajectories) -> dict[float, dict[str, float]]:
        """Measure ``NUM_SELECTED`` trajectories that halt, once for each threshold."""
        results = {}
        for threshold in thresholds_up_to(self.halt):
            samples = trajectories.first(NUM_SELECTED, self.depth).halted(threshold)
            results[threshold] = self.measure(samples) | {"steps": samples.steps.double().mean().item()}
        return results

    def by_draw_scheme(self, trajectories: Trajectories, seed: int) -> dict[str, dict[int, dict[str, float]]]:
        """Measure trajectories that halt under each draw scheme. All schemes do the work of N independent trajectories.

        The result maps each scheme, and then each N, to the measurements.
        """
        schemes = [kind for kind in OTHER_SCHEMES if self.can_draw(kind)]
        results: dict[str, dict[int, dict[str, float]]] = {"independent": {}, **{kind: {} for kind in schemes}}
        for n in SCHEME_COUNTS:
            independent = trajectories.first(n, self.depth).halted(self.halt)
            mean = independent.steps.double().mean().item()
            results["independent"][n] = self.measure(independent) | {"work": n * mean, "n": n}
            for kind in schemes:
                scheme = DrawScheme(kind)
                # A scheme that drops trajectories early ends with fewer of them for the same work.
                lost_steps = (scheme.oversample - 1) * scheme.steps if scheme.is_selective else 0
                count = max(1, round(n * mean / (mean + lost_steps)))
                samples = self.rollout(count, seed=seed, draws=scheme)
                results[kind][n] = self.measure(samples) | {"work": samples.work.double().mean().item(), "n": count}
        return results

    def can_draw(self, kind: str) -> bool:
        """Return whether the prior allows a draw scheme; antithetic and Sobol draws need a Gaussian one."""
        inputs = to_device_of(self.solver.model, self.x[:1])
        try:
            rollout(self.solver.model, inputs, num_samples=2, depth=1, draws=DrawScheme(kind))
        except ConfigError:
            return False
        return True

    def rollout(self, n: int, **settings: Any) -> Rollout:
        """Sample n trajectories that halt; the result is on the CPU."""
        settings = {"depth": self.depth, "halt": self.halt, "temper": self.solver.config.temper, **settings}
        limit = max(n * 3, chunk_size(self.solver.task.spec.positions))
        inputs = to_device_of(self.solver.model, self.x)
        samples = rollout(self.solver.model, inputs, num_samples=n, max_trajectories=limit, **settings).cpu()
        self.progress(n * len(self.x))
        return samples

    def deterministic(self, n: int) -> dict[str, float]:
        """Measure n trajectories without noise and without halting."""
        with AtMean():
            return self.measure(self.rollout(n, halt=None))


def measure_seed(study: CheckpointStudy, seed: int, head_cost: float) -> dict[str, Any]:
    """Return all measurements of a checkpoint under one seed of the draws."""
    trajectories = study.record_trajectories("test", seed)
    halted_samples = trajectories.first(NUM_SELECTED, study.depth).halted(study.halt)
    return {
        "width": study.by_depth_and_count(trajectories),
        "points": measure_points(
            grade_answers(study.solver, study.puzzles, trajectories), study.depth, study.halt, head_cost
        ),
        "halting": study.by_threshold(trajectories),
        "halted": study.measure(halted_samples) | {"steps": halted_samples.steps.double().mean().item()},
        "steps_by_input": halted_samples.steps.double().mean(0).tolist(),
        "by_input": by_input(study, trajectories.first(NUM_SELECTED, study.depth).halted(1)),
        "spreads": study.by_draw_scheme(trajectories, seed + 1000),
    }


def by_input(study: CheckpointStudy, samples: Rollout) -> dict[str, list[float]]:
    """Return, for each input, the accuracy of a sample and the coverage of several numbers of samples."""
    valid = study.solver.task.is_valid(study.x, samples.tokens).double()
    results = {"sample": valid.mean(0).tolist()}
    if study.puzzles.has_all_solutions:
        ids = solution_ids(study.solver.task, study.puzzles, samples.tokens)
        for n in (1, 5, 10, NUM_SELECTED):
            results[f"coverage_{n}"] = coverage_by_input(ids[:n], study.puzzles.num_solutions).tolist()
    return results


def over_seeds(results: list[Any]) -> Any:
    """Average nested results over seeds. A float becomes its mean; its standard deviation gets the key ``*_sd``."""
    first = results[0]
    if isinstance(first, dict):
        averages: dict[Any, Any] = {}
        for key, value in first.items():
            averages[key] = over_seeds([f[key] for f in results])
            if isinstance(value, float) and len(results) > 1:
                averages[f"{key}_sd"] = statistics.stdev(f[key] for f in results)
        return averages
    if isinstance(first, list):
        return [over_seeds(list(values)) for values in zip(*results, strict=True)]
    return statistics.fmean(results) if isinstance(first, float) else first


def first_puzzles(solver: Solver, split: str, count: int | None) -> PuzzleSet:
    """Return the first ``count`` puzzles of a split (None: all). A puzzle of several versions is taken once."""
    puzzles = solver.task.split(split).first_versions
    return puzzles.subset(count) if count else puzzles


def measure(solver: Solver, arguments: Any) -> dict[str, Any]:
    """Measure a checkpoint with the options of the command line. Return the JSON of the study."""
    puzzles = first_puzzles(solver, "test", arguments.inputs)
    validation = first_puzzles(solver, "validation", arguments.validation)
    depth = arguments.depth or solver.config.depth
    halt = solver.config.heads.halt if arguments.halt is None else arguments.halt
    seeds = [SEED * (number + 1) for number in range(arguments.seeds)]
    per_input = max(SAMPLE_COUNTS) + len(OTHER_SCHEMES) * sum(SCHEME_COUNTS)
    total = max(SAMPLE_COUNTS) * len(validation) + (per_input * len(seeds) + 1 + NUM_SELECTED) * len(puzzles)
    start = time.perf_counter()
    cache = cache_folder(arguments.keep, arguments.checkpoint, solver)
    with tqdm(total=total, unit="trajectory", unit_scale=True, desc="scaling", file=sys.stderr, mininterval=1.0) as bar:
        validation_study, study = (
            CheckpointStudy(solver, p, depth, halt, cache, bar.update) for p in (validation, puzzles)
        )
        head_cost = head_cost_per_step(solver, study.x)
        validation_answers = grade_answers(solver, validation, validation_study.record_trajectories("validation", 0))
        validation_points = measure_points(validation_answers, depth, halt, head_cost)
        results = over_seeds([measure_seed(study, seed, head_cost) for seed in seeds])
        deterministic = {n: study.deterministic(n) for n in (1, NUM_SELECTED)}
    num_solutions = puzzles.num_solutions
    difficulty = solver.task.difficulty(study.x)
    return {
        "checkpoint": checkpoint_label(arguments.checkpoint),
        "task": solver.config.names["task"],
        "inputs": len(puzzles),
        "seeds": arguments.seeds,
        "depth": depth,
        "halt": halt,
        "temper": [solver.config.temper.scale, solver.config.temper.transitions],
        "of": NUM_SELECTED,
        "head_cost": head_cost,
        "validation": {
            "inputs": len(validation),
            "points": validation_points,
            "chosen": choose_points(validation_points, depth),
        },
        **results,
        "deterministic": deterministic,
        "coverage_limit": {n: coverage_limit(num_solutions, n).mean().item() for n in SAMPLE_COUNTS}
        if puzzles.has_all_solutions
        else None,
        "num_solutions": num_solutions.tolist(),
        "difficulty": None if difficulty is None else difficulty.tolist(),
        "difficulty_label": solver.task.difficulty_label,
        "seconds": time.perf_counter() - start,
        "environment": environment(),
    }


def make_parser() -> Parser:
    parser = Parser("scaling.py", description=__doc__.split("\n\n")[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", type=Path, metavar="PATH", help=".safetensors with heads, or a run's directory")
    source.add_argument("--draw", type=Path, metavar="JSON", help="only draw the figure again from its JSON")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: beside the checkpoint")
    parser.add_argument("--inputs", type=int, metavar="B", help="the first B test inputs (default: all)")
    parser.add_argument("--validation", type=int, metavar="B", help="the first B validation inputs (default: all)")
    parser.add_argument(
        "--depth", type=int, metavar="S", help="supervision steps (default: those of the run's evaluation)"
    )
    parser.add_argument("--halt", type=float, metavar="P", help="halting probability (default: the checkpoint's)")
    parser.add_argument("--seeds", type=int, default=3, metavar="K", help="(default 3)")
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="cache recorded trajectories in DIR, and use those that it holds"
    )
    parser.add_argument("--data-dir", metavar="DIR", help="directory of the data files, for tasks that read files")
    add_trust_option(parser)
    add_device_option(parser)
    return parser


def main(argv: list[str]) -> int:
    arguments = make_parser().parse_args(argv)
    if arguments.draw:
        draw(arguments.draw)
        return 0
    for name, least in (("inputs", 1), ("validation", 1), ("seeds", 1), ("depth", 1)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise UserError(f"--{name} must be at least {least}, not {value}")
    if arguments.halt is not None and not 0 <= arguments.halt <= 1:
        raise UserError(f"--halt is a probability, from 0 to 1, not {arguments.halt:g}")
    device = pick_device(arguments.device)
    solver = pyro_gram.load(arguments.checkpoint, arguments.data_dir, trust_code=arguments.trust_code).to(device)
    if not solver.task.spec.has_input:
        raise UserError("this checkpoint is a model p(x): this study needs a model that solves inputs")
    check_has_heads(solver.model, "select")
    path = arguments.checkpoint
    out = (arguments.out or (path if path.is_dir() else path.parent)) / f"{checkpoint_label(path)}.scaling.json"
    check_writable(out)
    results = measure(solver, arguments)
    write_json(out, results)
    draw(out)
    print(f"{checkpoint_label(path)}: {summary(results)}; {out}")
    return 0


def checkpoint_label(checkpoint: Path) -> str:
    """Return the name of a checkpoint in results: the name of its file, or of the run's directory."""
    return checkpoint.name if checkpoint.is_dir() else checkpoint.stem


def draw(path: Path) -> None:
    """Draw the figure of a study beside its JSON. Raises UserError if this program did not write the JSON."""
    try:
        figure = scaling_figure(read_json(path))
    except (KeyError, TypeError, AttributeError) as e:
        raise UserError(f"{path} was not written by this program: {type(e).__name__} {e}") from None
    write_atomically(path.with_suffix(".png"), partial(figure.savefig, dpi=100))


def summary(results: dict[str, Any]) -> str:
    """Return one line of text: the accuracies with each selection, and with halting."""
    full_point, halted_point = results["width"][results["depth"]][NUM_SELECTED], results["halted"]
    return (
        f"of {NUM_SELECTED} samples: one {full_point['sample']:.3f}, vote {full_point['vote']:.3f}, "
        f"value {full_point['value']:.3f}; "
        f"halting at {results['halt']:g}: {halted_point['sample']:.3f} "
        f"after {halted_point['steps']:.1f} of {results['depth']} steps"
    )


if __name__ == "__main__":
    raise SystemExit(call(main))
