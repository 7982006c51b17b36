"""A checkpoint under examination: how much of it is looked at, and what has been found."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor, nn

from pyro_gram.inference.contract import model_sizes
from pyro_gram.diagnostics.report import Section
from pyro_gram.diagnostics.verdicts import Verdict
from pyro_gram.system.files import write_atomically
from pyro_gram.sampling.rollout import to_device_of
from pyro_gram.inference.guide import why_no_guide
from pyro_gram.sampling.tempering import TemperConfig
from pyro_gram.solver import Solver
from pyro_gram.tasks.base import PuzzleSet
from pyro_gram.tasks.batches import generator_for


@dataclass(frozen=True)
class Settings:
    """What is diagnosed: ``inputs`` test inputs at the most, ``depth`` supervision steps deep, under ``seed``."""

    depth: int
    inputs: int = 200
    seed: int = 0


@dataclass
class Study:
    """A checkpoint under examination, and what has been found.

    Attributes:
        solver: the checkpoint.
        settings: how much of it is looked at.
        out: the directory that is written.
        rows: the lines of the run's ``metrics.jsonl``; none where it is not at hand.
        verdicts: by name, in the order in which they were found.
        numbers: of each part, for ``diagnosis.json``.
    """

    solver: Solver
    settings: Settings
    out: Path
    rows: list[dict[str, Any]]
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    numbers: dict[str, Any] = field(default_factory=dict)
    drawn: dict[str, Path | str] = field(default_factory=dict)

    @property
    def guide(self) -> nn.Module | None:
        """The inference network; None where the model has none, or where densities mean nothing."""
        return None if self.why_no_guide else self.solver.guide

    @property
    def why_no_guide(self) -> str:
        """Why nothing is said of a guide; nothing where there is one."""
        return why_no_guide(self.solver.model, self.solver.guide)

    @cached_property
    def test(self) -> PuzzleSet:
        """The test split; of versions of an input the plain one."""
        return self.solver.task.split("test").first_versions

    @property
    def positions(self) -> int:
        return self.solver.task.spec.input_length

    @property
    def temper(self) -> TemperConfig:
        """As the run was measured."""
        return self.solver.config.temper

    @property
    def halt(self) -> float | None:
        """Nothing halts: every trajectory is followed to its end."""
        return 1.0 if self.solver.has_heads else None

    def fit(self, budget: int) -> int:
        """How many trajectories ``budget`` allows, in supervision steps of ``coloring8``'s trajectories."""
        sizes = model_sizes(self.solver.config.model)
        size = max(1.0, self.positions / 8) * sizes.width / 128
        recursions = sizes.transitions * (1 + sizes.low_steps) / 3
        return int(budget / (self.settings.depth * size * recursions * sizes.layers / 2))

    def at_most(self, budget: int, each: int, least: int = 4, most: int = 10**6) -> int:
        """How many inputs ``budget`` allows, with ``each`` trajectories an input."""
        return min(max(least, self.fit(budget) // each), most, self.settings.inputs)

    def several(self, count: int) -> PuzzleSet:
        """The first ``count`` test inputs with several solutions; any, where none is known to have some."""
        with_several = (self.test.num_solutions > 1).nonzero().flatten()
        return self.test.select(with_several[:count]) if len(with_several) else self.test.subset(count)

    def on_device(self, tensor: Any) -> Any:
        """The tensor on the model's device; None stays None."""
        return to_device_of(self.solver.model, tensor)

    def pairs(self, count: int, several: bool = False) -> tuple[PuzzleSet, Tensor | None, Tensor]:
        """The first ``count`` test inputs with a target each, drawn uniformly, beside the model; or data of p(x).

        ``several``: those with several solutions, where some are known to have them.
        """
        puzzles = self.several(count) if several and self.test.inputs is not None else self.test.subset(count)
        x, y = puzzles.sample_pairs(count, generator_for(self.settings.seed, len(puzzles)))
        return puzzles, self.on_device(x), self.on_device(y)

    def found(self, *found: Verdict, **numbers: Any) -> None:
        """Keep verdicts and numbers."""
        self.verdicts |= {v.name: v for v in found}
        self.numbers |= numbers

    def draw(self, name: str, figure: Figure | Path) -> None:
        """Keep a figure, as a PNG file."""
        path = figure if isinstance(figure, Path) else self.out / "figures" / f"{name}.png"
        if isinstance(figure, Figure):
            write_atomically(path, partial(figure.savefig, dpi=110))
        self.drawn[name] = path

    def skip(self, name: str, reason: str) -> None:
        """There is no such figure of this checkpoint, and the report says why."""
        self.drawn[name] = reason

    def sections(self) -> list[Section]:
        """The figures in order, with what they show."""
        return [
            Section.of(name, what, self.verdicts) if isinstance(what, Path) else Section.without(name, what)
            for name, what in self.drawn.items()
        ]
