"""Does a particle filter beat weighing once? ``python experiments/studies/filtering.py --checkpoint PATH ...``.

Sequential Monte Carlo (``sampling.smc``) resamples trajectories on their way; "reweighted once" gives independent ones
the very weights that the filter aims at, at their end. Both are judged as ``solve.py`` answers: resampled to N samples
of equal weight. Settings are chosen on validation inputs, at a depth where many trajectories are wrong: the filter's so
that its samples are right most often, and the best weights to give once. What they are worth is measured
on test inputs, there and at the full depth, beside how often the filter resampled.
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
from experiments.scaling.scaling import SEED, Study, label_of, over_seeds, puzzles_of
from experiments.scaling.trajectories import Walk, add_result, kept_in
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

OF = 20  # trajectories an input
POWERS = (1.0, 4.0, 16.0)
THRESHOLD = 0.9  # resample where the effective sample size falls below this share
INPUTS = 64  # of each split, at the most
OUT = Path(__file__).with_suffix(".json")


def settings() -> list[SMCConfig]:
    """Every filter that is tried on validation inputs: the usual one, and such as resample more."""
    return [SMCConfig(VALUE, 1.0, 0.5), *(SMCConfig(*words, THRESHOLD) for words in product(POTENTIALS, POWERS))]


def short_of(whole: int) -> int:
    """The depth at which the filter is tuned."""
    return min(whole, max(3, whole // 4))


class Filtering:
    """One checkpoint on some inputs.

    Args:
        study: with its walks.
        split: the inputs' split.
        seed: of the walk of its inputs, and of the filter's draws.
    """

    def __init__(self, study: Study, split: str, seed: int) -> None:
        self.study, self.seed = study, seed
        walk = study.walk(split, seed).first(OF, study.depth)
        self.puzzles = study.puzzles.subset(INPUTS)
        self.walk = Walk(*(part[:, :, : len(self.puzzles)] for part in vars(walk).values()))

    def judge(self, tokens: Tensor, weight: Tensor) -> dict[str, float]:
        """What weighted trajectories ``[N, B]`` are worth, resampled to as many of equal weight."""
        ancestors = sample_ancestors(weight, self.seed)
        tokens = tokens[ancestors, torch.arange(ancestors.shape[1])]
        puzzles, task = self.puzzles, self.study.solver.task
        found = {"sample": task.is_valid(puzzles.inputs, tokens).double().mean().item()}
        if puzzles.has_all_solutions:
            ids = solution_ids(task, puzzles, tokens)
            found["coverage"] = coverage_by_input(ids, puzzles.num_solutions).mean().item()
        return found

    def independent(self, depth: int) -> dict[str, float]:
        """As they are."""
        tokens = self.walk.tokens[depth - 1]
        return self.judge(tokens, torch.full(tokens.shape[:2], 1 / OF))

    def reweighted(self, depth: int, config: SMCConfig) -> dict[str, float]:
        """Independent trajectories, weighed once."""
        psi = {"value": self.walk.value, "halt": self.walk.halt}[config.potential][depth - 1]
        return self.judge(self.walk.tokens[depth - 1], (psi.clamp(min=FLOOR).log() * config.power).softmax(0))

    def filtered(self, depth: int, config: SMCConfig) -> dict[str, float]:
        """Filtered ones; ``resampled``: the share of stages and inputs after which they were resampled."""
        solver = self.study.solver
        assert self.puzzles.inputs is not None
        particles = smc(
            solver.model,
            self.puzzles.inputs,
            num_samples=OF,
            depth=depth,
            seed=self.seed + 5000,
            config=config,
            temper=solver.config.temper,
            max_trajectories=max(OF, chunk_size(solver.task.spec.input_length)),
        )
        self.study.progress(OF * depth * len(self.puzzles))
        found = self.judge(particles.tokens, particles.weight)
        least = particles.ess.min().item()
        return found | {"resampled": particles.resampled.double().mean().item(), "least_ess": least}

    def pair(self, depth: int, config: SMCConfig) -> dict[str, Any]:
        """The filter beside the same weights given once."""
        return {
            "settings": vars(config),
            "filtered": self.filtered(depth, config),
            "reweighted": self.reweighted(depth, config),
        }


def tuned(tried: list[dict[str, Any]]) -> dict[str, Any]:
    """The settings under which the filter's samples are right most often, of equals those that cover more."""
    return max(tried, key=lambda pair: (pair["filtered"]["sample"], worth(pair["filtered"])))["settings"]


def weighed(tried: list[dict[str, Any]]) -> dict[str, Any]:
    """The settings whose weights, given once, are worth most."""
    return max(tried, key=lambda pair: worth(pair["reweighted"]))["settings"]


def worth(point: dict[str, float]) -> float:
    """Accuracy and coverage, added."""
    return point["sample"] + point.get("coverage", 0.0)


def study_of(solver: Solver, puzzles: PuzzleSet, kept: Path | None, progress: Any) -> Study:
    return Study(solver, puzzles, solver.config.depth, solver.config.heads.halt, kept, progress)


def measure(path: Path, arguments: Any) -> dict[str, Any]:
    """One checkpoint."""
    solver = pyro_gram.load(path, trust_code=arguments.trust_code)
    check_has_heads(solver.model, "filter")
    whole = solver.config.depth
    short, kept = short_of(whole), kept_in(arguments.keep, path, solver)
    with tqdm(unit="step", unit_scale=True, desc=label_of(path), file=sys.stderr, mininterval=1.0) as bar:
        chooser = study_of(solver, puzzles_of(solver, "validation", arguments.validation), kept, bar.update)
        validation = Filtering(chooser, "validation", 0)
        tried = [validation.pair(short, config) for config in settings()]
        chosen, best = SMCConfig(**tuned(tried)), SMCConfig(**weighed(tried))
        study = study_of(solver, puzzles_of(solver, "test", arguments.inputs), kept, bar.update)
        found = []
        for number in range(arguments.seeds):
            test = Filtering(study, "test", SEED * (number + 1))
            found.append({depth: test_rows(test, depth, chosen, best) for depth in (short, whole)})
    return {
        "short": short,
        "depth": whole,
        "num_samples": OF,
        "seeds": arguments.seeds,
        "validation_inputs": len(validation.puzzles),
        "inputs": len(test.puzzles),
        "tried": tried,
        "tuned": vars(chosen),
        "weighed": vars(best),
        "test": over_seeds(found),
    }


def test_rows(test: Filtering, depth: int, chosen: SMCConfig, best: SMCConfig) -> dict[str, dict[str, float]]:
    """The methods at one depth: the filter, its weights given once, and the best weights given once."""
    return {
        "independent": test.independent(depth),
        "filtered": test.filtered(depth, chosen),
        "reweighted": test.reweighted(depth, chosen),
        "weighed": test.reweighted(depth, best),
    }


def markdown(study: dict[str, Any]) -> str:
    """Show the filter and weighing once, as a Markdown table."""
    lines = [
        "| checkpoint, steps (test inputs) | independent | filtered: potential, power, threshold | resampled after "
        "| the same weights once, at the end | the best weights once, at the end: potential, power |",
        "|---|---|---|---|---|---|",
    ]
    for name, s in by_checkpoint(study):
        t, best = s["tuned"], s["weighed"]
        for depth, rows in s["test"].items():
            cells = {key: f"{point_and_sd(row, 'sample')}; {row['coverage']:.3f}" for key, row in rows.items()}
            resampled = rows["filtered"]["resampled"]
            lines.append(
                f"| `{name}`, {depth} ({s['inputs']}) | {cells['independent']} "
                f"| {cells['filtered']}: {t['potential']}, {t['power']:g}, {t['threshold']:g} "
                f"| {resampled:.1%} of stages | {cells['reweighted']} "
                f"| {cells['weighed']}: {best['potential']}, {best['power']:g} |"
            )
    return "\n".join(lines)


def make_parser() -> Parser:
    parser = Parser("filtering.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("--checkpoint", type=Path, nargs="+", required=True, metavar="PATH", help="with heads")
    parser.add_argument("--out", type=Path, default=OUT, metavar="JSON", help="added to, if it is there")
    parser.add_argument("--inputs", type=int, metavar="B", help=f"test inputs that are walked (at most {INPUTS} count)")
    parser.add_argument("--validation", type=int, metavar="B", help="validation inputs, likewise")
    parser.add_argument("--seeds", type=int, default=3, metavar="K", help="(default 3)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="as for scaling.py, whose roll-outs are taken from it")
    add_trust_option(parser)
    return parser


def main(argv: list[str]) -> int:
    arguments = make_parser().parse_args(argv)
    if arguments.seeds < 1:
        raise UserError(f"--seeds must be at least 1, not {arguments.seeds}")
    check_writable(arguments.out)
    for path in arguments.checkpoint:
        found = measure(path, arguments)
        add_result(arguments.out, label_of(path), found)
        write_markdown(arguments.out, markdown(read_json(arguments.out)))
        print(f"{label_of(path)}: tuned to {found['tuned']}; {arguments.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(call(main))
