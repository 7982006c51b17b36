"""More compute at inference: ``python experiments/scaling.py --checkpoint PATH --out DIR``.

From one checkpoint with heads, on inputs that training never saw: accuracy against width and depth and the number of
solutions, where trajectories halt by themselves against the difficulty of the input, and, at equal numbers of core
evaluations, independent trajectories beside sequential Monte Carlo and diversified width. It writes
``NAME.scaling.json`` and ``NAME.scaling.png``; rates are means over seeds of the draws, with their standard deviation.
"""

from __future__ import annotations

import statistics
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import pyro_gram
from pyro_gram.cli import Parser, add_device, call
from pyro_gram.device import pick_device
from pyro_gram.diagnostics.metrics import coverage_by_input, coverage_limit, solution_ids, winners
from pyro_gram.diagnostics.scaling import scaling_figure
from pyro_gram.errors import UserError
from pyro_gram.files import check_writable, read_json, write_json, write_via
from pyro_gram.inference.sampling import at_once, beside, check_has_heads, quiet, rollout, unrolled
from pyro_gram.inference.sites import HALT, OBSERVED, VALUE
from pyro_gram.inference.smc import SMCConfig, smc
from pyro_gram.inference.temper import AtMean, Temper, TemperConfig
from pyro_gram.inference.width import Width
from pyro_gram.machine import environment
from pyro_gram.solver import Solver
from pyro_gram.tasks.base import PuzzleSet

WIDTHS = (1, 2, 5, 10, 20, 50, 100)
EQUAL = (5, 10, 20)  # trajectories an input in the comparison at equal compute
SHALLOW = 4  # supervision steps of its second depth
HALTS = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999)
SELECTED_OF = 20  # trajectories, in what is told of selection and of halting


@dataclass(frozen=True)
class Drawn:
    """Samples with what ranks them: tokens int64 ``[N, B, L_out]``, the others ``[N, B]``; weights sum to 1 over N.

    ``halt`` is the halt head's P(right). All are kept on the CPU, where answers are judged.
    """

    tokens: Tensor
    score: Tensor
    value: Tensor
    halt: Tensor | None = None
    weight: Tensor | None = None

    def __post_init__(self) -> None:
        for name, tensor in vars(self).items():
            object.__setattr__(self, name, None if tensor is None else tensor.cpu())

    def first(self, n: int) -> Drawn:
        """The first n trajectories of each input, unweighted ones."""
        assert self.weight is None
        return Drawn(self.tokens[:n], self.score[:n], self.value[:n], None if self.halt is None else self.halt[:n])


class Study:
    """Roll-outs of one checkpoint on some test inputs, and what they are worth.

    Args:
        solver: the checkpoint, with heads.
        puzzles: test inputs.
        depth: the most supervision steps.
        temper: of the prior.
        progress: called with the supervision steps that have been run.
    """

    def __init__(self, solver: Solver, puzzles: PuzzleSet, depth: int, temper: TemperConfig, progress: Any) -> None:
        self.solver, self.puzzles, self.depth, self.temper, self.progress = solver, puzzles, depth, temper, progress
        assert puzzles.inputs is not None
        self.x = puzzles.inputs
        self.asked = beside(solver.model, self.x)
        self.limit = at_once(solver.task.spec.input_length)

    def walk(self, seed: int, n: int) -> list[Drawn]:
        """The samples after each supervision step of n trajectories an input."""
        parts: list[list[Drawn]] = []
        with quiet(self.solver.model, self.asked):
            for chunk, x in enumerate(self.asked.split(max(1, self.limit // n))):
                torch.manual_seed(seed + chunk)
                steps = []
                with Temper(self.temper):
                    for end in unrolled(self.solver.model, x, depth=self.depth, num_samples=n):
                        tokens, values = end.values[OBSERVED], end.values
                        steps.append(Drawn(tokens, end.likelihood.log_prob(tokens), values[VALUE], values[HALT]))
                        self.progress(n * len(x))
                parts.append(steps)
        names = ("tokens", "score", "value", "halt")
        return [
            Drawn(*(torch.cat([getattr(p, k) for p in step], 1) for k in names)) for step in zip(*parts, strict=True)
        ]

    def judge(self, drawn: Drawn) -> dict[str, float]:
        """Accuracy of single samples, of what is selected, and coverage of all solutions."""
        task, x = self.solver.task, self.x
        valid = task.valid(x, drawn.tokens).double()
        weight = torch.full_like(valid, 1 / len(valid)) if drawn.weight is None else drawn.weight.double()
        canonical = task.canonical(x, drawn.tokens)
        found = {
            "sample": (valid * weight).sum(0).mean().item(),
            "value": task.valid(x, winners(canonical, drawn.score, drawn.value)).double().mean().item(),
            "verified": valid.amax(0).mean().item(),
        }
        if drawn.weight is None:
            found["vote"] = task.valid(x, winners(canonical, drawn.score)).double().mean().item()
        if self.puzzles.complete:
            ids = solution_ids(task, self.puzzles, drawn.tokens)
            found["coverage"] = coverage_by_input(ids, self.puzzles.num_solutions).mean().item()
        return found

    def halted(self, steps: list[Drawn], halt: float) -> tuple[Drawn, Tensor]:
        """The same, had each stopped at its first step with P(right) >= halt; and its steps, int64 ``[N, B]``."""
        every = {name: torch.stack([getattr(d, name) for d in steps]) for name in ("tokens", "score", "value", "halt")}
        sure = every["halt"] >= halt if halt < 1 else torch.zeros_like(every["halt"], dtype=torch.bool)
        sure[-1] = True
        when = sure.int().argmax(0)[None]  # the first one

        def at(name: str) -> Tensor:
            values = every[name]
            index = when if values.dim() == 3 else when[..., None].expand(1, *values.shape[1:])
            return values.gather(0, index)[0]

        return Drawn(at("tokens"), at("score"), at("value")), when[0] + 1

    def deterministic(self, n: int) -> dict[str, float]:
        """n trajectories without noise."""
        with AtMean():
            rolled = rollout(
                self.solver.model, self.asked, num_samples=n, depth=self.depth, max_trajectories=self.limit
            )
        self.progress(n * self.depth * len(self.x))
        assert rolled.value is not None
        return self.judge(Drawn(rolled.tokens, rolled.score, rolled.value))

    def diversified(self, kind: str, n: int, depth: int, seed: int) -> tuple[Drawn, float]:
        """n trajectories that are spread, or filtered, as ``kind`` says; and the supervision steps run for an input."""
        settings: dict[str, Any] = {"depth": depth, "seed": seed, "temper": self.temper}
        settings["max_trajectories"] = max(self.limit, n)
        model = self.solver.model
        self.progress(n * depth * len(self.x))
        if kind == "smc":
            particles = smc(model, self.asked, num_samples=n, config=SMCConfig(), **settings)
            return Drawn(particles.tokens, particles.score, particles.value, weight=particles.weight), float(n * depth)
        width = Width(kind)
        # As much work in all: trajectories that are given up are paid for by fewer that go on.
        kept = max(1, round(n * depth / (depth + (width.oversample - 1) * width.steps))) if width.gives_up else n
        rolled = rollout(model, self.asked, num_samples=kept, width=width, **settings)
        assert rolled.value is not None
        return Drawn(rolled.tokens, rolled.score, rolled.value), rolled.work.double().mean().item()


METHODS = ("independent", "halting", "smc", "antithetic", "sobol", "distinct")


def one_seed(study: Study, seed: int, halt: float) -> dict[str, Any]:
    """Everything that is measured under one seed."""
    most = max(WIDTHS)
    steps = study.walk(seed, most)
    depths = [d for d in (1, 2, 4, 8, 16, 32, 64) if d < study.depth] + [study.depth]
    width = {d: {n: study.judge(steps[d - 1].first(n)) for n in WIDTHS} for d in depths}
    compared = {d: compare(study, steps, d, seed, halt) for d in sorted({min(SHALLOW, study.depth), study.depth})}
    few = [drawn.first(SELECTED_OF) for drawn in steps]
    halting = {}
    for threshold in HALTS:
        drawn, when = study.halted(few, threshold)
        halting[threshold] = study.judge(drawn) | {"steps": when.double().mean().item()}
    drawn, when = study.halted(few, halt)
    return {
        "width": width,
        "compared": compared,
        "halting": halting,
        "halted": study.judge(drawn) | {"steps": when.double().mean().item()},
        "steps_by_input": when.double().mean(0).tolist(),
        "by_input": by_input(study, few[-1]),
    }


def compare(study: Study, steps: list[Drawn], depth: int, seed: int, halt: float) -> dict[str, list[dict[str, float]]]:
    """Each method at several amounts of work; a list of points."""
    points: dict[str, list[dict[str, float]]] = {method: [] for method in METHODS}
    for n in (*EQUAL, max(WIDTHS)):
        drawn, when = study.halted([drawn.first(n) for drawn in steps[:depth]], halt)
        points["halting"].append(study.judge(drawn) | {"work": when.double().sum(0).mean().item(), "n": n})
    for n in EQUAL:
        points["independent"].append(study.judge(steps[depth - 1].first(n)) | {"work": float(n * depth), "n": n})
        for method in METHODS[2:]:
            drawn, work = study.diversified(method, n, depth, seed + 1000)
            points[method].append(study.judge(drawn) | {"work": work, "n": len(drawn.tokens)})
    return points


def by_input(study: Study, drawn: Drawn) -> dict[str, list[float]]:
    """What the samples of each input are worth."""
    valid = study.solver.task.valid(study.x, drawn.tokens).double()
    found = {"sample": valid.mean(0).tolist()}
    if study.puzzles.complete:
        ids = solution_ids(study.solver.task, study.puzzles, drawn.tokens)
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


def measure(solver: Solver, arguments: Any) -> dict[str, Any]:
    """All of the study, as it is written to JSON."""
    puzzles = solver.task.split("test")
    if puzzles.primary is not None:
        puzzles = puzzles.select(puzzles.primary)
    puzzles = puzzles.subset(arguments.inputs) if arguments.inputs else puzzles
    depth = arguments.depth or solver.default_depth
    halt = solver.config.verdict.halt if arguments.halt is None else arguments.halt
    methods = (len(METHODS) - 2) * sum(EQUAL) * (depth + (SHALLOW if depth > SHALLOW else 0))
    total = (arguments.seeds * (max(WIDTHS) * depth + methods) + (1 + SELECTED_OF) * depth) * len(puzzles)
    start = time.perf_counter()
    with tqdm(total=total, unit="step", unit_scale=True, desc="scaling", file=sys.stderr, mininterval=1.0) as bar:
        study = Study(solver, puzzles, depth, solver.config.temper, bar.update)
        found = [one_seed(study, 100_000 * (seed + 1), halt) for seed in range(arguments.seeds)]
        deterministic = {n: study.deterministic(n) for n in (1, SELECTED_OF)}
    m = puzzles.num_solutions
    difficulty = solver.task.difficulty(study.x)
    return {
        "checkpoint": name_of(arguments.checkpoint),
        "task": solver.config.names["task"],
        "inputs": len(puzzles),
        "seeds": arguments.seeds,
        "depth": depth,
        "halt": halt,
        "temper": [solver.config.temper.scale, solver.config.temper.transitions],
        "of": SELECTED_OF,
        **over_seeds(found),
        "deterministic": deterministic,
        "coverage_limit": {n: coverage_limit(m, n).mean().item() for n in WIDTHS} if puzzles.complete else None,
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
    parser.add_argument("--depth", type=int, metavar="S", help="supervision steps (default: as the run was measured)")
    parser.add_argument("--halt", type=float, metavar="P", help="halting probability (default: as the checkpoint says)")
    parser.add_argument("--seeds", type=int, default=3, metavar="K", help="(default 3)")
    parser.add_argument("--data-dir", metavar="DIR", help="where a task that reads files finds them")
    add_device(parser)
    return parser


def main(argv: list[str]) -> int:
    arguments = make_parser().parse_args(argv)
    if arguments.draw:
        draw(arguments.draw)
        return 0
    for name, least in (("inputs", 1), ("seeds", 1), ("depth", 1)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise UserError(f"--{name} must be at least {least}, not {value}")
    if arguments.halt is not None and not 0 <= arguments.halt <= 1:
        raise UserError(f"--halt is a probability, from 0 to 1, not {arguments.halt:g}")
    device = pick_device(arguments.device)
    solver = pyro_gram.load(arguments.checkpoint, arguments.data_dir).to(device)
    if not solver.task.spec.conditional:
        raise UserError("this checkpoint is a model p(x): width and depth of answers need an input")
    check_has_heads(solver.model, "select")
    path = arguments.checkpoint
    out = (arguments.out or (path if path.is_dir() else path.parent)) / f"{name_of(path)}.scaling.json"
    check_writable(out)
    found = measure(solver, arguments)
    write_json(out, found)
    draw(out)
    print(f"{name_of(path)}: {summary(found)}; {out}")
    return 0


def name_of(checkpoint: Path) -> str:
    return checkpoint.name if checkpoint.is_dir() else checkpoint.stem


def draw(path: Path) -> None:
    """The figure of a study, beside its JSON. Raises UserError where there is none, or it cannot be written."""
    try:
        figure = scaling_figure(read_json(path))
    except (KeyError, TypeError, AttributeError) as e:
        raise UserError(f"{path} is no study of this program: {type(e).__name__} {e}") from None
    write_via(path.with_suffix(".png"), partial(figure.savefig, dpi=100))


def summary(found: dict[str, Any]) -> str:
    """One line on selection and halting."""
    full, halted = found["width"][found["depth"]][SELECTED_OF], found["halted"]
    return (
        f"of {SELECTED_OF} samples: one {full['sample']:.3f}, vote {full['vote']:.3f}, value {full['value']:.3f}; "
        f"halting at {found['halt']:g}: {halted['sample']:.3f} after {halted['steps']:.1f} of {found['depth']} steps"
    )


if __name__ == "__main__":
    raise SystemExit(call(main))
