"""More compute at inference: ``python experiments/scaling/scaling.py --checkpoint PATH --out DIR``.

From one checkpoint with heads, on inputs that training never saw: accuracy against width, depth and the number of
solutions, and what selects; where trajectories halt by themselves, against the difficulty of the input; accuracy and
coverage against core evaluations, of many shallow trajectories, few deep ones, and such as halt, the settings of each
chosen on validation inputs; and draw schemes. It writes ``NAME.scaling.json`` and ``NAME.scaling.png``; rates are
means over seeds of the draws, with their standard deviation. Filtering is studied in ``studies/filtering.py``.
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
from experiments.scaling import frontier
from experiments.scaling.frontier import depths_of, judged, thresholds_of
from experiments.scaling.trajectories import WIDTHS, Walk, allowed, kept_in, walk
from pyro_gram.diagnostics.metrics import coverage_by_input, coverage_limit, selected_answers, solution_ids
from pyro_gram.diagnostics.plots.scaling import scaling_figure
from pyro_gram.errors import UserError
from pyro_gram.inference.sites import check_has_heads
from pyro_gram.sampling.draws import DrawScheme
from pyro_gram.sampling.memory import chunk_size
from pyro_gram.sampling.rollout import Rollout, rollout, to_device_of
from pyro_gram.sampling.tempering import AtMean
from pyro_gram.solver import Solver
from pyro_gram.system.cli import Parser, add_device_option, add_trust_option, call
from pyro_gram.system.files import check_writable, read_json, write_atomically, write_json
from pyro_gram.system.machine import environment, pick_device
from pyro_gram.tasks.base import PuzzleSet

SPREADS = ("antithetic", "sobol", "distinct")
SPREAD_OF = (5, 20)  # trajectories an input in the comparison of spreads
SELECTED_OF = 20  # trajectories, in what is told of selection and of halting
SEED = 100_000  # of the first draws of test inputs is once this, of the second twice


class Study:
    """Roll-outs of one checkpoint on some inputs, and what they are worth.

    Args:
        solver: the checkpoint, with heads.
        puzzles: inputs that training never saw.
        depth: the most supervision steps.
        halt: P(right) at which trajectories halt.
        kept: a folder of walks that are not to be run again; None for none.
        progress: called with the number of trajectories that have been run.
    """

    def __init__(
        self, solver: Solver, puzzles: PuzzleSet, depth: int, halt: float, kept: Path | None, progress: Any
    ) -> None:
        self.solver, self.puzzles, self.depth, self.halt = solver, puzzles, depth, halt
        self.kept, self.progress = kept, progress
        assert puzzles.inputs is not None
        self.x = puzzles.inputs

    def walk(self, name: str, seed: int) -> Walk:
        """The walk that everything but spreads is read from."""
        return walk(
            self.solver,
            self.x,
            num_samples=max(WIDTHS),
            depth=self.depth,
            seed=seed,
            halt=self.halt,
            folder=self.kept,
            name=name,
            progress=self.progress,
        )

    def judge(self, rolled: Rollout) -> dict[str, float]:
        """Accuracy of single samples, of what is selected, and coverage of all solutions."""
        task, x = self.solver.task, self.x
        valid = task.is_valid(x, rolled.tokens).double()
        canonical = task.canonical_form(x, rolled.tokens)
        found = {
            "sample": valid.mean().item(),
            "vote": task.is_valid(x, selected_answers(canonical, rolled.score)).double().mean().item(),
            "value": task.is_valid(x, selected_answers(canonical, rolled.score, rolled.value)).double().mean().item(),
            "verified": valid.amax(0).mean().item(),
        }
        if self.puzzles.has_all_solutions:
            ids = solution_ids(task, self.puzzles, rolled.tokens)
            found["coverage"] = coverage_by_input(ids, self.puzzles.num_solutions).mean().item()
        return found

    def width(self, walk: Walk) -> dict[int, dict[int, dict[str, float]]]:
        """What N trajectories of each depth are worth, by depth and N; not more work than whole ones of it."""
        return {
            depth: {n: self.judge(walk.first(n, depth).halted(1)) for n in WIDTHS if allowed(n, depth, self.depth)}
            for depth in depths_of(self.depth)
        }

    def halting(self, walk: Walk) -> dict[float, dict[str, float]]:
        """What a few trajectories are worth that halt at each threshold."""
        found = {}
        for threshold in thresholds_of(self.halt):
            rolled = walk.first(SELECTED_OF, self.depth).halted(threshold)
            found[threshold] = self.judge(rolled) | {"steps": rolled.steps.double().mean().item()}
        return found

    def spreads(self, walk: Walk, seed: int) -> dict[str, dict[int, dict[str, float]]]:
        """Trajectories that halt, spread in each way, as much work in all: by spread and N of independent ones."""
        found: dict[str, dict[int, dict[str, float]]] = {"independent": {}, **{kind: {} for kind in SPREADS}}
        for n in SPREAD_OF:
            independent = walk.first(n, self.depth).halted(self.halt)
            mean = independent.steps.double().mean().item()
            found["independent"][n] = self.judge(independent) | {"work": n * mean, "n": n}
            for kind in SPREADS:
                scheme = DrawScheme(kind)
                # Trajectories that are given up are paid for by fewer that go on.
                given_up = (scheme.oversample - 1) * scheme.steps if scheme.drops else 0
                count = max(1, round(n * mean / (mean + given_up)))
                rolled = self.rollout(count, seed=seed, draws=scheme)
                found[kind][n] = self.judge(rolled) | {"work": rolled.work.double().mean().item(), "n": count}
        return found

    def rollout(self, n: int, **settings: Any) -> Rollout:
        """n trajectories that halt, on the CPU."""
        settings = {"depth": self.depth, "halt": self.halt, "temper": self.solver.config.temper, **settings}
        limit = max(n * 3, chunk_size(self.solver.task.spec.input_length))
        asked = to_device_of(self.solver.model, self.x)
        rolled = rollout(self.solver.model, asked, num_samples=n, max_trajectories=limit, **settings).cpu()
        self.progress(n * len(self.x))
        return rolled

    def deterministic(self, n: int) -> dict[str, float]:
        """n trajectories without noise, none of which halts."""
        with AtMean():
            return self.judge(self.rollout(n, halt=None))


def one_seed(study: Study, seed: int, head_cost: float) -> dict[str, Any]:
    """Everything that is measured under one seed."""
    walk = study.walk("test", seed)
    halted = walk.first(SELECTED_OF, study.depth).halted(study.halt)
    return {
        "width": study.width(walk),
        "points": frontier.points(judged(study.solver, study.puzzles, walk), study.depth, study.halt, head_cost),
        "halting": study.halting(walk),
        "halted": study.judge(halted) | {"steps": halted.steps.double().mean().item()},
        "steps_by_input": halted.steps.double().mean(0).tolist(),
        "by_input": by_input(study, walk.first(SELECTED_OF, study.depth).halted(1)),
        "spreads": study.spreads(walk, seed + 1000),
    }


def by_input(study: Study, rolled: Rollout) -> dict[str, list[float]]:
    """What the samples of each input are worth."""
    valid = study.solver.task.is_valid(study.x, rolled.tokens).double()
    found = {"sample": valid.mean(0).tolist()}
    if study.puzzles.has_all_solutions:
        ids = solution_ids(study.solver.task, study.puzzles, rolled.tokens)
        for n in (1, 5, 10, SELECTED_OF):
            found[f"coverage_{n}"] = coverage_by_input(ids[:n], study.puzzles.num_solutions).tolist()
    return found


def over_seeds(found: list[Any]) -> Any:
    """Nested results of several seeds: each number replaced by its mean over them, with a neighbour ``*_sd``."""
    first = found[0]
    if isinstance(first, dict):
        joined: dict[Any, Any] = {}
        for key, value in first.items():
            joined[key] = over_seeds([f[key] for f in found])
            if isinstance(value, float) and len(found) > 1:
                joined[f"{key}_sd"] = statistics.stdev(f[key] for f in found)
        return joined
    if isinstance(first, list):
        return [over_seeds(list(values)) for values in zip(*found, strict=True)]
    return statistics.fmean(found) if isinstance(first, float) else first


def puzzles_of(solver: Solver, split: str, count: int | None) -> PuzzleSet:
    """The first inputs of a split, each once; all where ``count`` is None."""
    puzzles = solver.task.split(split).first_versions
    return puzzles.subset(count) if count else puzzles


def measure(solver: Solver, arguments: Any) -> dict[str, Any]:
    """All of the study, as it is written to JSON."""
    puzzles = puzzles_of(solver, "test", arguments.inputs)
    validation = puzzles_of(solver, "validation", arguments.validation)
    depth = arguments.depth or solver.config.depth
    halt = solver.config.heads.halt if arguments.halt is None else arguments.halt
    seeds = [SEED * (number + 1) for number in range(arguments.seeds)]
    each = max(WIDTHS) + len(SPREADS) * sum(SPREAD_OF)
    total = max(WIDTHS) * len(validation) + (each * len(seeds) + 1 + SELECTED_OF) * len(puzzles)
    start = time.perf_counter()
    kept = kept_in(arguments.keep, arguments.checkpoint, solver)
    with tqdm(total=total, unit="trajectory", unit_scale=True, desc="scaling", file=sys.stderr, mininterval=1.0) as bar:
        chooser, study = (Study(solver, p, depth, halt, kept, bar.update) for p in (validation, puzzles))
        head_cost = frontier.cost_of_heads(solver, study.x)
        by_validation = judged(solver, validation, chooser.walk("validation", 0))
        seen = frontier.points(by_validation, depth, halt, head_cost)
        found = over_seeds([one_seed(study, seed, head_cost) for seed in seeds])
        deterministic = {n: study.deterministic(n) for n in (1, SELECTED_OF)}
    m = puzzles.num_solutions
    difficulty = solver.task.difficulty(study.x)
    return {
        "checkpoint": label_of(arguments.checkpoint),
        "task": solver.config.names["task"],
        "inputs": len(puzzles),
        "seeds": arguments.seeds,
        "depth": depth,
        "halt": halt,
        "temper": [solver.config.temper.scale, solver.config.temper.transitions],
        "of": SELECTED_OF,
        "head_cost": head_cost,
        "validation": {"inputs": len(validation), "points": seen, "chosen": frontier.choose(seen, depth)},
        **found,
        "deterministic": deterministic,
        "coverage_limit": {n: coverage_limit(m, n).mean().item() for n in WIDTHS}
        if puzzles.has_all_solutions
        else None,
        "num_solutions": m.tolist(),
        "difficulty": None if difficulty is None else difficulty.tolist(),
        "difficulty_label": solver.task.difficulty_label,
        "seconds": time.perf_counter() - start,
        "environment": environment(),
    }


def make_parser() -> Parser:
    parser = Parser("scaling.py", description=__doc__.split("\n\n")[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--checkpoint", type=Path, metavar="PATH", help=".safetensors with heads, or a run's directory")
    what.add_argument("--draw", type=Path, metavar="JSON", help="only draw the figure of a study again")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: beside the checkpoint")
    parser.add_argument("--inputs", type=int, metavar="B", help="the first B test inputs (default: all)")
    parser.add_argument("--validation", type=int, metavar="B", help="the first B validation inputs (default: all)")
    parser.add_argument("--depth", type=int, metavar="S", help="supervision steps (default: as the run was measured)")
    parser.add_argument("--halt", type=float, metavar="P", help="halting probability (default: as the checkpoint says)")
    parser.add_argument("--seeds", type=int, default=3, metavar="K", help="(default 3)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep roll-outs there, and go on from those it holds")
    parser.add_argument("--data-dir", metavar="DIR", help="where a task that reads files finds them")
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
        raise UserError("this checkpoint is a model p(x): width and depth of answers need an input")
    check_has_heads(solver.model, "select")
    path = arguments.checkpoint
    out = (arguments.out or (path if path.is_dir() else path.parent)) / f"{label_of(path)}.scaling.json"
    check_writable(out)
    found = measure(solver, arguments)
    write_json(out, found)
    draw(out)
    print(f"{label_of(path)}: {summary(found)}; {out}")
    return 0


def label_of(checkpoint: Path) -> str:
    return checkpoint.name if checkpoint.is_dir() else checkpoint.stem


def draw(path: Path) -> None:
    """The figure of a study, beside its JSON. Raises UserError where there is none, or it cannot be written."""
    try:
        figure = scaling_figure(read_json(path))
    except (KeyError, TypeError, AttributeError) as e:
        raise UserError(f"{path} is no study of this program: {type(e).__name__} {e}") from None
    write_atomically(path.with_suffix(".png"), partial(figure.savefig, dpi=100))


def summary(found: dict[str, Any]) -> str:
    """One line on selection and halting."""
    full, halted = found["width"][found["depth"]][SELECTED_OF], found["halted"]
    return (
        f"of {SELECTED_OF} samples: one {full['sample']:.3f}, vote {full['vote']:.3f}, value {full['value']:.3f}; "
        f"halting at {found['halt']:g}: {halted['sample']:.3f} after {halted['steps']:.1f} of {found['depth']} steps"
    )


if __name__ == "__main__":
    raise SystemExit(call(main))
