"""Analyse trajectories of the prior: where they end, when they separate, and which draws decide the answer.

``plots.trajectories`` draws the results. All trajectories start at z_0 and are never given an answer. Two answers are
the same if their canonical forms are equal. All states of the inputs are in memory at once, so only a few inputs fit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_gram.checks import check_counts
from pyro_gram.inference.families import MeanOnly
from pyro_gram.inference.sites import ANSWER, transition_index
from pyro_gram.sampling.steps import Decode, isolated_rng, rollout_steps, run_steps, to_cpu
from pyro_gram.sampling.tempering import NO_TEMPER, AtMean, Temper, TemperConfig
from pyro_gram.tasks.base import Task

Recorded = TypeVar("Recorded")

MAX_POSITIONS, NUM_POSITIONS = 100, 32  # of a sequence with more than 100 positions, only 32 are resampled


# ---- recording ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trajectories:
    """Trajectories of the prior after each supervision step, on the CPU.

    Attributes:
        tokens: the most probable answer after each step, int64 ``[S, N, B, L_out]``.
        h: the high-level state, z_0 first, ``[S + 1, N, B, L, D]``. If a program starts anew at each call, there is no
            z_0; ``h[0]`` is then the state at the end of an additional call.
    """

    tokens: Tensor
    h: Tensor


def trace_trajectories(
    model: Callable[..., Any],
    x: Tensor | None,
    *,
    depth: int,
    num_samples: int = 1,
    seed: int = 0,
    temper: TemperConfig = NO_TEMPER,
    at_mean: bool = False,
) -> Trajectories:
    """Sample trajectories and record their answers and states after each supervision step.

    ``sampling.rollout`` samples the same trajectories under the same seed.

    Args:
        x: a few inputs, int64 ``[B, *event]``; None for p(x), where B is 1.
        depth: supervision steps, S.
        num_samples: N, the number of trajectories per input.
        temper: the scale of the prior in the first transitions.
        at_mean: record the deterministic trajectory instead: its guidance is the prior's mean, and N is 1.

    Raises:
        UserError: ``num_samples`` or ``depth`` is below 1.
        NotImplementedError: ``at_mean`` is set, and the prior has no mean.
    """
    check_counts(seed=seed, num_samples=num_samples, depth=depth)
    n, handler = (1, AtMean()) if at_mean else (num_samples, Temper(temper))
    records = record_steps(model, x, n, depth, seed, handler, lambda end: (answers_of(end), states_of(end)))
    tokens, h = zip(*records, strict=True)
    return Trajectories(torch.stack(tokens[1:]), torch.stack(h))


def record_steps(
    model: Callable[..., Any],
    x: Tensor | None,
    num_samples: int,
    depth: int,
    seed: int,
    handler: Messenger,
    record: Callable[[Decode], Recorded],
) -> list[Recorded]:
    """Run ``depth`` supervision steps under a handler. Apply ``record`` to z_0 and to the end of each step."""
    with isolated_rng(model, x):
        torch.manual_seed(seed)
        records = [record(run_steps(model, x, None, num_samples, 0))]
        torch.manual_seed(seed)  # the same seed again: a program that draws z_0 must draw the same one
        with handler:
            records += [record(end) for end in rollout_steps(model, x, depth=depth, num_samples=num_samples)]
    return records


def answers_of(end: Decode) -> Tensor:
    """Return the answers after a supervision step, on the CPU, int64 ``[N, B, L_out]``."""
    return end.values[ANSWER].cpu()


def states_of(end: Decode) -> Tensor:
    """Return h after a supervision step, on the CPU, ``[N, B, L, D]``. A shared state is repeated for each one."""
    n, b = end.values[ANSWER].shape[:2]
    return end.state.h.expand(n, b, -1, -1).cpu()


# ---- where trajectories end --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Attractors:
    """The answers in which the trajectories of an input end, and the steps at which trajectories reach their answers.

    Attributes:
        num_distinct: the number of distinct final answers, int64 ``[B]``.
        num_distinct_right: the number of distinct final answers that are right, int64 ``[B]``; equal to
            ``num_distinct`` if answers cannot be checked.
        effective_number: exp of the entropy of the frequencies of final answers, ``[B]``: the number of equally
            frequent answers that would have this entropy.
        right_by_step: share of trajectories with a right answer after each step, ``[S, B]``; NaN for inputs whose right
            answer is not known, None if the task cannot check answers.
        settled_by_step: share of trajectories that keep their answer from each step on, ``[S, B]``.
        settling_step: the step from which a trajectory keeps its final answer, 1 to S, int64 ``[N, B]``.
        unsettled_by_input: share of trajectories whose answer changes in the last quarter of the steps, ``[B]``.
    """

    num_distinct: Tensor
    num_distinct_right: Tensor
    effective_number: Tensor
    right_by_step: Tensor | None
    settled_by_step: Tensor
    settling_step: Tensor
    unsettled_by_input: Tensor

    @property
    def right_by_input(self) -> Tensor | None:
        """The share of trajectories that end in a right answer, ``[B]``."""
        return None if self.right_by_step is None else self.right_by_step[-1]

    @property
    def unsettled_fraction(self) -> float | None:
        """The mean of ``unsettled_by_input``; None for a single step, and for images, which never settle."""
        if self.right_by_step is None or len(self.settled_by_step) == 1:
            return None
        return self.unsettled_by_input.mean().item()


def attractors(task: Task, x: Tensor | None, tokens: Tensor) -> Attractors:
    """Compute where trajectories end and when they settle, from the answers after each step.

    Args:
        x: the inputs, int64 ``[B, *event]``; None for p(x).
        tokens: int64 ``[S, N, B, L_out]``, as in :class:`Trajectories`.
    """
    x = to_cpu(x)
    canonical = task.canonical_form(x, tokens)
    is_right = task.is_valid(x, tokens) if task.is_checkable else None
    steps, n = tokens.shape[:2]
    # The number of steps, counted from the last one, that give the final answer.
    steps_kept = (canonical == canonical[-1]).all(-1).flip(0).cumprod(0).sum(0)
    settling_step = steps - steps_kept + 1
    ends = number_answers(canonical[-1])
    counts = [column.bincount() for column in ends.T]
    is_counted = torch.ones_like(ends, dtype=torch.bool) if is_right is None else is_right[-1]
    right_ends = [column[mask] for column, mask in zip(ends.T, is_counted.T, strict=True)]
    quarter = min(-(-steps // 4), steps - 1)  # a single step cannot change an answer
    right_by_step = None
    if is_right is not None:
        right_by_step = is_right.double().mean(1).masked_fill(~task.has_known_answer(x, tokens[0, 0]), torch.nan)
    return Attractors(
        torch.tensor([len(c) for c in counts]),
        torch.tensor([len(numbers.unique()) for numbers in right_ends]),
        torch.stack([torch.special.entr(c.double() / n).sum().exp() for c in counts]),
        right_by_step,
        (settling_step <= torch.arange(1, steps + 1)[:, None, None]).double().mean(1),
        settling_step,
        (settling_step > steps - quarter).double().mean(0),
    )


def number_answers(answers: Tensor) -> Tensor:
    """Number the distinct answers to each input, 0 the most frequent: ``[N, B, L_out]`` to int64 ``[N, B]``."""
    columns = []
    for samples in answers.unbind(1):
        _, index, counts = samples.unique(dim=0, return_inverse=True, return_counts=True)
        columns.append(counts.argsort(descending=True, stable=True).argsort()[index])
    return torch.stack(columns, 1)


# ---- when trajectories separate ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Separation:
    """A comparison of pairs of trajectories of the same input.

    Means are over all pairs of all inputs; NaN if there are no pairs.

    Attributes:
        differ_by_step: among the pairs with different final answers, the share whose answers differ after each step,
            ``[S]``.
        distance_different: for the pairs with different final answers, the mean distance of their two states (root mean
            square over positions and channels), from z_0 on, ``[S + 1]``.
        distance_same: the mean distance for the pairs with the same final answer, ``[S + 1]``.
        num_different, num_same: the number of pairs of each kind.
    """

    differ_by_step: Tensor
    distance_different: Tensor
    distance_same: Tensor
    num_different: int
    num_same: int


def separation(task: Task, x: Tensor | None, trajectories: Trajectories) -> Separation:
    """Measure when trajectories that end in different answers separate, in their answers and in their states."""
    canonical = task.canonical_form(to_cpu(x), trajectories.tokens)
    n = trajectories.tokens.shape[1]
    i, j = torch.triu_indices(n, n, offset=1)
    differences, distances = [], []
    *_, num_inputs, length, width = trajectories.h.shape
    num_values = [length * width] * num_inputs
    if x is not None and task.spec.padding is not None:
        num_values = (task.spec.positions_of(x) * width).tolist()  # h is 0 at padding
    for answers, h, size in zip(canonical.unbind(2), trajectories.h.flatten(-2).unbind(2), num_values, strict=True):
        differences.append((answers[:, i] != answers[:, j]).any(-1))  # [S, pairs]
        distance = torch.cdist(h, h, compute_mode="donot_use_mm_for_euclid_dist")  # exact for states close together
        distances.append(distance[:, i, j] / size**0.5)
    all_differ, all_distances = torch.cat(differences, 1), torch.cat(distances, 1).double()
    is_different = all_differ[-1]
    return Separation(
        all_differ[:, is_different].double().mean(1),
        all_distances[:, is_different].mean(1),
        all_distances[:, ~is_different].mean(1),
        int(is_different.sum()),
        int((~is_different).sum()),
    )


# ---- which draws decide ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GuidanceInfluence:
    """How often a fork of a trajectory ends in the trajectory's answer.

    A fork is a second run of a trajectory. It keeps part of the guidance and draws the rest anew.

    Attributes:
        num_kept: how many of the first transitions keep their guidance, int64 ``[points]``, from 0 to all.
            At 0 no guidance is kept: the share there is the level of chance.
        by_transition: for each number in ``num_kept``, the share of forks with the same answer if the later transitions
            draw their guidance anew, ``[points, B]``.
        positions: positions of the sequence, prefix first, int64 ``[P]``; evenly spaced for a long sequence.
        by_position: for each position, the share of forks with the same answer if the guidance of this position alone
            is drawn anew in every transition, ``[P, B]``.
    """

    num_kept: Tensor
    by_transition: Tensor
    positions: Tensor
    by_position: Tensor


class _RecordGuidance(Messenger):
    """Record the guidance of every transition that draws it: transition -> ``eps``, ``[N, B, L, *]``."""

    def __init__(self) -> None:
        super().__init__()
        self.eps: dict[int, Tensor] = {}

    def _pyro_post_sample(self, msg: Any) -> None:
        t = transition_index(msg["name"])
        if t is not None and not isinstance(getattr(msg["fn"], "base_dist", msg["fn"]), dist.Delta | MeanOnly):
            self.eps[t] = msg["value"]


class _KeepTransitions(Messenger):
    """Set the guidance of some transitions to recorded values. The other transitions draw their guidance."""

    def __init__(self, eps: dict[int, Tensor]) -> None:
        super().__init__()
        self.eps = eps

    def _pyro_sample(self, msg: Any) -> None:
        t = transition_index(msg["name"])
        if t in self.eps:
            msg["value"] = self.eps[t]
            msg["done"] = True


class _KeepOtherPositions(Messenger):
    """Set the guidance to recorded values, except at one position of the sequence."""

    def __init__(self, eps: dict[int, Tensor], position: int) -> None:
        super().__init__()
        self.eps, self.position = eps, position

    def _pyro_post_sample(self, msg: Any) -> None:
        t = transition_index(msg["name"])
        if t in self.eps:
            mask = torch.arange(msg["value"].shape[-2], device=msg["value"].device) == self.position
            msg["value"] = torch.where(mask[:, None], msg["value"], self.eps[t])


def guidance_influence(
    model: Callable[..., Any],
    task: Task,
    x: Tensor | None,
    *,
    depth: int,
    num_samples: int,
    seed: int = 0,
    points: int = 8,
    places: int | None = None,
    temper: TemperConfig = NO_TEMPER,
) -> GuidanceInfluence | None:
    """Measure which draws decide the answer: run trajectories again with part of their guidance drawn anew.

    In each test every trajectory has one fork, which runs from the same z_0. The recorded guidance is added to the
    fork's own u. If the prior correlates positions, the new draw at one position is not conditioned on the recorded
    guidance of the other positions. Inputs with a single solution are not informative.

    Args:
        x: a few inputs of one size without padding, int64 ``[B, *event]``; None for p(x), where B is 1. All their
            guidance is in memory.
        num_samples: N, the number of trajectories per input.
        points: how many values of ``num_kept`` are tried, from 0 to all transitions; small values are denser.
        places: how many positions are tried, each in a run of the program; None for all, or for 32 if there are more
            than 100.

    Returns:
        None for a program that draws no guidance.
    """
    check_counts(seed=seed, num_samples=num_samples, depth=depth, points=points, places=1 if places is None else places)
    with isolated_rng(model, x):
        torch.manual_seed(seed)
        start = run_steps(model, x, None, num_samples, 0).state

        def final_answers(handler: Messenger) -> Tensor:
            with Temper(temper), handler:
                end = run_steps(model, x, start, num_samples, depth)
            return task.canonical_form(to_cpu(x), answers_of(end))

        recorder = _RecordGuidance()
        original_answers, eps = final_answers(recorder), recorder.eps
        if not eps:
            return None

        def same_share(handler: Messenger) -> Tensor:
            return (final_answers(handler) == original_answers).all(-1).double().mean(0)

        num_kept = early_counts(len(eps), points)
        positions = evenly_spaced(eps[min(eps)].shape[-2], places)
        transitions = sorted(eps)
        by_transition = [same_share(_KeepTransitions({t: eps[t] for t in transitions[:count]})) for count in num_kept]
        by_position = [same_share(_KeepOtherPositions(eps, position)) for position in positions]
    return GuidanceInfluence(
        torch.tensor(num_kept), torch.stack(by_transition), torch.tensor(positions), torch.stack(by_position)
    )


def early_counts(total: int, points: int) -> list[int]:
    """Return at most ``points`` numbers from 0 to ``total``; small numbers are denser: 0, 1, 2, 3, 4, 6, ..., total."""
    size = min(points, total + 1)
    counts = {0, total, *(round(total ** (i / (size - 2))) for i in range(1, size - 1))}
    counts |= set(
        sorted(set(range(total)) - counts)[: max(0, size - len(counts))]
    )  # rounding may repeat a number: add others
    return sorted(counts)


def evenly_spaced(length: int, places: int | None = None) -> list[int]:
    """Return at most ``places`` evenly spaced positions of a sequence."""
    if places is None:
        places = length if length <= MAX_POSITIONS else NUM_POSITIONS
    return torch.linspace(0, length - 1, min(places, length)).round().long().tolist()
