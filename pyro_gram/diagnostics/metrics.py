"""What is claimed about a model, measured on fresh trajectories of its prior, on inputs that training never saw."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor

from pyro_gram.sampling.selection import select_by_value, tally
from pyro_gram.tasks.base import PuzzleSet, Task
from pyro_gram.tasks.uniform import expected_total_variation, total_variation


@dataclass(frozen=True)
class Metrics:
    """Fractions lie in [0, 1]; ``*_se`` is a standard error over inputs. None where a figure has no meaning.

    Attributes:
        accuracy: inputs whose first sample is right. Without input (p(x)): right samples among all.
        violations: constraints broken by those same samples, summed.
        sample_accuracy: right samples among all.
        any_valid: inputs with at least one right sample.
        vote_accuracy: inputs whose most frequent sample is right; ties go to the better score.
        coverage: mean over inputs of the share of all solutions that the samples found.
        coverage_limit: what i.i.d. uniform draws of solutions would cover: the mean of 1 - (1 - 1/m)^N.
        total_variation: between the frequencies of an input's solutions among its right samples and uniform over its m
            solutions, 1 where no sample is right; the mean over inputs.
        total_variation_perfect: its expectation for N i.i.d. uniform draws: what finitely many samples cost.
        num_inputs, num_samples: B and N.
    """

    accuracy: float | None
    accuracy_se: float | None
    violations: int | None
    sample_accuracy: float | None
    any_valid: float | None
    vote_accuracy: float | None
    coverage: float | None
    coverage_se: float | None
    coverage_limit: float | None
    total_variation: float | None
    total_variation_perfect: float | None
    num_inputs: int
    num_samples: int

    def to_dict(self) -> dict[str, float | int | None]:
        return asdict(self)


def solution_ids(task: Task, puzzles: PuzzleSet, tokens: Tensor) -> Tensor:
    """Which solution each sample is: its place among the solutions of its input, or -1. int64 ``[N, B]``.

    Without input, among the data.
    """
    canonical = task.canonical_form(puzzles.inputs, tokens)
    ids = torch.empty(tokens.shape[:2], dtype=torch.long)
    for i in range(tokens.shape[1]):
        solutions = puzzles.solutions if puzzles.inputs is None else puzzles.solutions_of(i)
        for at, part in zip(ids[:, i].split(1000), canonical[:, i].split(1000), strict=True):
            hit, which = (part[:, None] == solutions).all(-1).max(-1)  # [N, m]
            at.copy_(torch.where(hit, which, -1))
    return ids


def coverage_by_input(ids: Tensor, num_solutions: Tensor) -> Tensor:
    """The share of an input's solutions among its samples: ids ``[N, B]`` from :func:`solution_ids` to ``[B]``."""
    found = torch.tensor([len(set(column) - {-1}) for column in ids.T.tolist()])
    return found.double() / num_solutions


def coverage_limit(num_solutions: Tensor, num_samples: int) -> Tensor:
    """The coverage expected of ``num_samples`` i.i.d. uniform draws from m solutions, ``[B]``."""
    return 1 - (1 - 1 / num_solutions.double()) ** num_samples


def excess(full: Tensor, num_solutions: Tensor) -> Tensor:
    """What the full bound (Eq. 13) of targets drawn uniformly is short of a perfect model's: -ELBO - log m, ``[B]``.

    Nats. Each is an estimate from one target and one draw of the guide; their mean e over inputs is 0 for a perfect
    model, and an answer *drawn* at the end of a prior trajectory is right with probability exp(-e) at least (Jensen).
    Accuracy is of the most probable answer there, which no theorem puts above that.
    """
    return -full.double() - num_solutions.double().log()


def winners(canonical: Tensor, score: Tensor | None = None, value: Tensor | None = None) -> Tensor:
    """What each input is answered with: the winner of the vote, or what the values select.

    Args:
        canonical: int64 ``[N, B, L_out]``.
        score: of each sample, nats, ``[N, B]``; it breaks ties. Without, they go to the first.
        value: the value head's estimates, ``[N, B]``; None for the vote (``sampling.selection``).

    Returns:
        int64 ``[B, L_out]``.
    """
    score = torch.zeros(canonical.shape[:2]) if score is None else score
    won = []
    for i, samples in enumerate(canonical.unbind(1)):
        answers, scores = [tuple(row) for row in samples.tolist()], score[:, i].tolist()
        found = tally(answers, scores)[0] if value is None else select_by_value(answers, value[:, i].tolist(), scores)
        won.append(samples[found.first])
    return torch.stack(won)


def measure(task: Task, puzzles: PuzzleSet, tokens: Tensor, score: Tensor | None = None) -> Metrics:
    """Metrics of the samples of a roll-out.

    Without input B is 1: the samples of p(x) are measured one by one. Versions of an input are left out.

    Args:
        tokens: int64 ``[N, B, L_out]``, drawn for the inputs of ``puzzles``.
        score: of each sample, nats, ``[N, B]``; it breaks ties of the vote.
    """
    plain = puzzles.is_first_version
    if plain is not None:
        puzzles, tokens, score = puzzles.select(plain), tokens[:, plain], None if score is None else score[:, plain]
    n, b = tokens.shape[:2]
    x = puzzles.inputs
    found: dict[str, Any] = dict.fromkeys(f.name for f in fields(Metrics))

    def mean_of(name: str, values: Tensor) -> None:
        found[name] = values.double().mean().item()
        if len(values) > 1:
            found[f"{name}_se"] = (values.double().std(correction=0) / len(values) ** 0.5).item()

    if task.is_checkable:
        broken = task.violations(x, tokens)
        valid = (broken == 0).double()
        first = (slice(None), 0) if x is None else (0,)
        mean_of("accuracy", valid[first])
        found["violations"] = int(broken[first].sum())
        found["sample_accuracy"] = valid.mean().item()
        if x is not None:
            found["any_valid"] = valid.amax(0).mean().item()
            found["vote_accuracy"] = (
                task.is_valid(x, winners(task.canonical_form(x, tokens), score)).double().mean().item()
            )
    if puzzles.has_all_solutions:
        m = puzzles.num_solutions
        ids = solution_ids(task, puzzles, tokens)
        mean_of("coverage", coverage_by_input(ids, m))
        found["coverage_limit"] = coverage_limit(m, n).mean().item()
        found["total_variation"] = total_variation(ids, m).mean().item()
        found["total_variation_perfect"] = expected_total_variation(m, n).mean().item()
    return Metrics(**{**found, "num_inputs": b, "num_samples": n})
