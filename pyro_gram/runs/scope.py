"""Decide how much of a solver is examined: which inputs, what depth, and how many trajectories a budget allows."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor

from pyro_gram.inference.contract import model_sizes
from pyro_gram.sampling.memory import chunk_size
from pyro_gram.sampling.steps import to_device_of
from pyro_gram.solver import Solver
from pyro_gram.tasks.base import PuzzleSet
from pyro_gram.tasks.batches import generator_for


@dataclass
class Scope:
    """The part of a solver's test split that is examined.

    Attributes:
        solver: the model with its task and guide.
        depth: supervision steps of a trajectory.
        max_inputs: the maximal number of test inputs in each part of the examination.
        seed: the seed of the draws.
        rows: the lines of the run's ``metrics.jsonl``; empty if there is no such file.
    """

    solver: Solver
    depth: int
    max_inputs: int = 200
    seed: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)

    @cached_property
    def test(self) -> PuzzleSet:
        """The test split, with the first version of each puzzle only (ARC lists puzzles in several versions)."""
        return self.solver.task.split("test").first_versions

    @property
    def has_input(self) -> bool:
        """Does the task have an input x?"""
        return self.solver.task.spec.has_input

    def chunk_size(self, max_trajectories: int | None = None) -> int:
        """Return how many trajectories run at once."""
        length = self.solver.task.spec.positions
        return chunk_size(length) if max_trajectories is None else chunk_size(length, max_trajectories)

    def num_trajectories(self, budget: int) -> int:
        """Return how many trajectories a budget allows.

        The unit of a budget is the work of one supervision step of one trajectory at 8 positions of width 128, with
        T = 1, K = 2 and two layers.
        """
        sizes = model_sizes(self.solver.config.model)
        size = max(1.0, self.solver.task.spec.positions / 8) * sizes.width / 128
        layers = sizes.transitions * (1 + sizes.low_steps) / 3 * sizes.layers / 2
        return int(budget / (self.depth * size * layers))

    def num_inputs(self, budget: int, per_input: int, least: int = 4, limit: int = 10**6) -> int:
        """Return how many inputs a budget allows if each takes ``per_input`` trajectories."""
        return min(max(least, self.num_trajectories(budget) // per_input), limit, self.max_inputs)

    def with_several_solutions(self, count: int) -> PuzzleSet:
        """Return the first ``count`` test inputs with several solutions; if there are none, the first ``count``."""
        rows = (self.test.num_solutions > 1).nonzero().flatten()
        return self.test.select(rows[:count]) if len(rows) else self.test.subset(count)

    def inputs_of_one_size(self, count: int) -> Tensor | None:
        """Return up to ``count`` test inputs of one size, without padding, on the model's device; None for p(x).

        They have the size that most inputs with several solutions have.
        """
        if not self.has_input:
            return None
        x, spec = self.with_several_solutions(len(self.test)).inputs, self.solver.task.spec
        assert x is not None
        sizes = spec.sizes_of(x)
        x = x[sizes == sizes.mode().values][:count]
        return self.on_device(spec.crop(x, x)[0])

    def sample_pairs(self, puzzles: PuzzleSet, count: int) -> tuple[Tensor | None, Tensor]:
        """Return up to ``count`` pairs (x, y) on the model's device. y is drawn uniformly from the solutions of x."""
        x, y = puzzles.sample_pairs(count, generator_for(self.seed, len(puzzles)))
        return self.on_device(x), self.on_device(y)

    def on_device(self, tensor: Any) -> Any:
        """Return a tensor on the model's device; None stays None."""
        return to_device_of(self.solver.model, tensor)
