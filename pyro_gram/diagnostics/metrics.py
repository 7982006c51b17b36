"""Metrics of a model: accuracy, coverage and evenness of samples of the prior, on inputs that training never saw."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from math import sqrt
from typing import Any

import torch
from scipy.stats import norm
from torch import Tensor, nn

from pyro_gram.networks.core import Block
from pyro_gram.sampling.selection import select_by_value, tally
from pyro_gram.sampling.steps import isolated_rng, run_steps, to_device_of
from pyro_gram.tasks.base import PuzzleSet, Task
from pyro_gram.tasks.uniform import expected_total_variation, total_variation


@dataclass(frozen=True)
class Metrics:
    """Metrics of samples. Shares lie in [0, 1]. ``*_se`` are standard errors over inputs. Undefined metrics are None.

    Attributes:
        accuracy: share of inputs whose first sample is right; without input (p(x)), share of right samples.
        violations: number of violated constraints, summed over the samples that ``accuracy`` uses.
        sample_accuracy: share of right answers among all samples.
        any_valid: share of inputs with at least one right sample.
        vote_accuracy: share of inputs whose most frequent sample is right; ties go to the better score.
        coverage: share of an input's solutions that its samples contain, mean over inputs.
        coverage_limit: expected coverage of i.i.d. uniform draws of solutions: the mean of 1 - (1 - 1/m)^N.
        total_variation: distance between the frequencies of an input's right samples and the uniform distribution over
            its m solutions (1 if no sample is right), mean over inputs.
        total_variation_perfect: expected total variation of N i.i.d. uniform draws; above 0 only because N is finite.
        num_inputs, num_samples: B, the number of inputs, and N, the number of samples per input.
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


def measure(task: Task, puzzles: PuzzleSet, tokens: Tensor, score: Tensor | None = None) -> Metrics:
    """Compute the metrics of samples.

    Without input, B is 1 and each sample of p(x) is measured by itself. If an input has several versions, only the
    first version is measured.

    Args:
        tokens: int64 ``[N, B, L_out]``, sampled for the inputs of ``puzzles``.
        score: the score of each sample, nats, ``[N, B]``; it breaks ties of the vote.
    """
    is_first = puzzles.is_first_version
    if is_first is not None:
        puzzles, tokens = puzzles.first_versions, tokens[:, is_first]
        score = None if score is None else score[:, is_first]
    n, b = tokens.shape[:2]
    x = puzzles.inputs
    values: dict[str, Any] = dict.fromkeys(f.name for f in fields(Metrics))

    def set_mean(name: str, by_input: Tensor) -> None:
        values[name] = by_input.double().mean().item()
        if len(by_input) > 1:
            values[f"{name}_se"] = (by_input.double().std(correction=0) / len(by_input) ** 0.5).item()

    if task.is_checkable:
        violations = task.violations(x, tokens)
        is_valid = (violations == 0).double()
        first = (slice(None), 0) if x is None else (0,)
        set_mean("accuracy", is_valid[first])
        values["violations"] = int(violations[first].sum())
        values["sample_accuracy"] = is_valid.mean().item()
        if x is not None:
            votes = selected_answers(task.canonical_form(x, tokens), score)
            values["any_valid"] = is_valid.amax(0).mean().item()
            values["vote_accuracy"] = task.is_valid(x, votes).double().mean().item()
    if puzzles.has_all_solutions:
        m = puzzles.num_solutions
        ids = solution_ids(task, puzzles, tokens)
        set_mean("coverage", coverage_by_input(ids, m))
        values["coverage_limit"] = coverage_limit(m, n).mean().item()
        values["total_variation"] = total_variation(ids, m).mean().item()
        values["total_variation_perfect"] = expected_total_variation(m, n).mean().item()
    return Metrics(**{**values, "num_inputs": b, "num_samples": n})


def solution_ids(task: Task, puzzles: PuzzleSet, tokens: Tensor) -> Tensor:
    """Return the index of each sample among the solutions of its input (without input: among the data), or -1 for none.

    Args:
        tokens: int64 ``[N, B, L_out]``.

    Returns:
        int64 ``[N, B]``.
    """
    canonical = task.canonical_form(puzzles.inputs, tokens)
    ids = torch.empty(tokens.shape[:2], dtype=torch.long)
    for i in range(tokens.shape[1]):
        solutions = puzzles.solutions if puzzles.inputs is None else puzzles.solutions_of(i)
        for part_ids, part in zip(ids[:, i].split(1000), canonical[:, i].split(1000), strict=True):
            is_equal, index = (part[:, None] == solutions).all(-1).max(-1)  # [N, m] to [N]
            part_ids.copy_(torch.where(is_equal, index, -1))
    return ids


def coverage_by_input(ids: Tensor, num_solutions: Tensor) -> Tensor:
    """Return the share of each input's solutions that its samples contain. ``ids`` come from :func:`solution_ids`."""
    counts = torch.tensor([len(set(column) - {-1}) for column in ids.T.tolist()])
    return counts.double() / num_solutions


def coverage_limit(num_solutions: Tensor, num_samples: int) -> Tensor:
    """Return the expected coverage of ``num_samples`` i.i.d. uniform draws from m solutions, ``[B]``."""
    return 1 - (1 - 1 / num_solutions.double()) ** num_samples


def excess(full: Tensor, num_solutions: Tensor, log_namings: Tensor | float = 0.0) -> Tensor:
    """Return how far the full bound (Eq. 13) is below the bound of a perfect model: -ELBO - log m, nats, ``[B]``.

    m is the number of solutions, counting all names of exchangeable values.

    Each value is an estimate from one uniformly drawn target and one draw of the guide. The mean e of the values over
    inputs is 0 for a perfect model. By Jensen's inequality an answer *sampled* at the end of a prior trajectory is
    right with probability exp(-e) at least. Accuracy counts the most probable answer; this bound does not hold for it.

    Args:
        full: the full bound of one pair (x, y) of each input, nats, ``[B]``.
        num_solutions: m, ``[B]``.
        log_namings: ``Task.log_namings`` of the pairs: a perfect model splits the probability of a solution among them.
    """
    return -full.double() - num_solutions.double().log() - log_namings


def selected_answers(canonical: Tensor, score: Tensor | None = None, value: Tensor | None = None) -> Tensor:
    """Select one answer to each input from its samples: by majority vote or, with values, by the value head.

    Args:
        canonical: int64 ``[N, B, L_out]``.
        score: the score of each sample, nats, ``[N, B]``, to break ties. Without it ties go to the first sample.
        value: the value head's estimates, ``[N, B]``; None for the vote (``sampling.selection``).

    Returns:
        int64 ``[B, L_out]``.
    """
    score = torch.zeros(canonical.shape[:2]) if score is None else score
    selected_rows = []
    for i, samples in enumerate(canonical.unbind(1)):
        answers, scores = [tuple(row) for row in samples.tolist()], score[:, i].tolist()
        if value is None:
            candidate = tally(answers, scores)[0]
        else:
            candidate = select_by_value(answers, value[:, i].tolist(), scores)
        selected_rows.append(samples[candidate.first])
    return torch.stack(selected_rows)


def wilson_interval(share: float, count: int, level: float = 0.95) -> tuple[float, float]:
    """Return the Wilson score interval of a share of ``count`` independent inputs.

    The interval stays within [0, 1] and has a positive width for shares of 0 and 1. If the share is a number of inputs
    divided by ``count``, the interval equals that of scipy's ``binomtest``. If the share is a mean of other
    values between 0 and 1 (such as each input's share of right samples), the interval is wider than needed.

    Args:
        share: between 0 and 1.
        count: the number of independent inputs (not samples).
        level: the confidence level.

    Raises:
        ValueError: the share is outside [0, 1], or there is no input.
    """
    if not 0 <= share <= 1 or count < 1:
        raise ValueError(f"a share of inputs lies between 0 and 1, of at least one input: not {share} of {count}")
    z = norm.ppf(0.5 + level / 2)
    denominator = 1 + z * z / count
    centre = (share + z * z / (2 * count)) / denominator
    half = z / denominator * sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    return max(0.0, centre - half), min(1.0, centre + half)


def count_layers(model: nn.Module, x: Tensor | None, depth: int) -> int:
    """Count the layers that one sample passes through: a measure of its cost that does not depend on the machine.

    A layer is a ``networks.core.Block``: attention (or SwiGLU over positions), then SwiGLU over channels. Heads,
    embeddings and decoders are not counted. Every pass through a layer counts as one, although the passes of
    an autoregressive model cover fewer positions than the passes of a recursion.

    Args:
        model: the program, with a prior that can be sampled.
        x: one input, int64 ``[1, *event]``; None for p(x).
        depth: supervision steps.
    """
    count = 0

    def increment(*_: object) -> None:
        nonlocal count
        count += 1

    hooks = [module.register_forward_hook(increment) for module in model.modules() if isinstance(module, Block)]
    try:
        with isolated_rng(model, x):
            run_steps(model, to_device_of(model, x), None, 1, depth)
    finally:
        for hook in hooks:
            hook.remove()
    return count
