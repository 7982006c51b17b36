"""What is claimed about a model, measured on fresh trajectories of its prior, on inputs that training never saw."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from pyro_gram.tasks.base import PuzzleSet, Task


@dataclass(frozen=True)
class Metrics:
    """Fractions lie in [0, 1]; ``*_se`` is a standard error over inputs.

    Attributes:
        accuracy: inputs whose first sample is right.
        violations: constraints broken by the first sample, summed over the inputs.
        sample_accuracy: right samples among all.
        any_valid: inputs with at least one right sample.
        coverage: mean over inputs of the share of all solutions that the samples found.
        coverage_limit: what i.i.d. uniform draws of solutions would cover: the mean of 1 - (1 - 1/m)^N.
        num_inputs, num_samples: B and N.
    """

    accuracy: float
    accuracy_se: float
    violations: int
    sample_accuracy: float
    any_valid: float
    coverage: float
    coverage_se: float
    coverage_limit: float
    num_inputs: int
    num_samples: int

    def to_dict(self) -> dict[str, float | int]:
        return asdict(self)


def solution_ids(task: Task, puzzles: PuzzleSet, tokens: Tensor) -> Tensor:
    """Which solution each sample is: its place among the solutions of its input, or -1. int64 ``[N, B]``."""
    canonical = task.canonical(puzzles.inputs, tokens)
    ids = torch.full(tokens.shape[:2], -1)
    for i in range(len(puzzles)):
        same = (canonical[:, i, None] == puzzles.solutions_of(i)).all(-1)  # [N, m]
        hit, which = same.max(-1)
        ids[:, i] = torch.where(hit, which, -1)
    return ids


def coverage_by_input(ids: Tensor, num_solutions: Tensor) -> Tensor:
    """The share of an input's solutions among its samples: ids ``[N, B]`` from :func:`solution_ids` to ``[B]``."""
    found = torch.tensor([len(set(column) - {-1}) for column in ids.T.tolist()])
    return found.double() / num_solutions


def coverage_limit(num_solutions: Tensor, num_samples: int) -> Tensor:
    """The coverage expected of ``num_samples`` i.i.d. uniform draws from m solutions, ``[B]``."""
    return 1 - (1 - 1 / num_solutions.double()) ** num_samples


def measure(task: Task, puzzles: PuzzleSet, tokens: Tensor) -> Metrics:
    """Metrics of the samples ``tokens``, int64 ``[N, B, L_out]``, drawn for the inputs of ``puzzles``."""
    broken = task.violations(puzzles.inputs, tokens)
    valid = (broken == 0).double()
    m = puzzles.num_solutions
    coverage = coverage_by_input(solution_ids(task, puzzles, tokens), m)
    n, b = tokens.shape[:2]

    def error(values: Tensor) -> float:
        return (values.std(correction=0) / b**0.5).item()

    return Metrics(
        accuracy=valid[0].mean().item(),
        accuracy_se=error(valid[0]),
        violations=int(broken[0].sum()),
        sample_accuracy=valid.mean().item(),
        any_valid=valid.amax(0).mean().item(),
        coverage=coverage.mean().item(),
        coverage_se=error(coverage),
        coverage_limit=coverage_limit(m, n).mean().item(),
        num_inputs=b,
        num_samples=n,
    )
