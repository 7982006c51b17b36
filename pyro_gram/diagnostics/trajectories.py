"""What trajectories of the prior do: where they end, when they part, and which draws decide.

Numbers alone; ``trajectory_figures`` draws them. All trajectories are fresh ones from z_0 that never see an answer, and
two answers are one where their canonical forms are. All states of the given inputs are held at once: give few.
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
from pyro_gram.sampling.rollout import Decode, isolated_rng, rollout_steps, run_steps
from pyro_gram.sampling.tempering import NO_TEMPER, AtMean, Temper, TemperConfig
from pyro_gram.tasks.base import Task

Kept = TypeVar("Kept")

MOST_POSITIONS, SOME_POSITIONS = 100, 32  # of a longer sequence so many positions are looked at


# ---- following them ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Walk:
    """Trajectories of the prior, step by step; on the CPU.

    Attributes:
        tokens: the most probable answer after each supervision step, int64 ``[S, N, B, L_out]``.
        h: the high-level state, z_0's first, ``[S + 1, N, B, L, D]``. A program that starts anew at each call has no
            z_0; it shows one call more.
    """

    tokens: Tensor
    h: Tensor


def walk(
    model: Callable[..., Any],
    x: Tensor | None,
    *,
    depth: int,
    num_samples: int = 1,
    seed: int = 0,
    temper: TemperConfig = NO_TEMPER,
    at_mean: bool = False,
) -> Walk:
    """Follow ``num_samples`` trajectories an input over ``depth`` supervision steps, all of them at once.

    They are those of ``sampling.rollout`` under the same seed.

    Args:
        x: a few inputs, int64 ``[B, *event]``; None for p(x), where B is 1.
        temper: the scale of the prior at the start of each trajectory.
        at_mean: the deterministic path instead: every guidance at its prior's mean, and N is 1.

    Raises:
        UserError: ``num_samples`` or ``depth`` below 1.
        NotImplementedError: ``at_mean`` of a prior that has none.
    """
    check_counts(seed=seed, num_samples=num_samples, depth=depth)
    n, handler = (1, AtMean()) if at_mean else (num_samples, Temper(temper))
    seen = followed(model, x, n, depth, seed, handler, lambda end: (answers_of(end), states_of(end)))
    tokens, h = zip(*seen, strict=True)
    return Walk(torch.stack(tokens[1:]), torch.stack(h))


def followed(
    model: Callable[..., Any],
    x: Tensor | None,
    n: int,
    depth: int,
    seed: int,
    handler: Messenger,
    keep: Callable[[Decode], Kept],
) -> list[Kept]:
    """What ``keep`` takes of z_0 and of the end of each supervision step: S + 1 of them."""
    with isolated_rng(model, x):
        torch.manual_seed(seed)
        kept = [keep(run_steps(model, x, None, n, 0))]
        torch.manual_seed(seed)  # again: a program that draws its z_0 draws the same one
        with handler:
            kept += [keep(end) for end in rollout_steps(model, x, depth=depth, num_samples=n)]
    return kept


def answers_of(end: Decode) -> Tensor:
    """y, int64 ``[N, B, L_out]``."""
    return end.values[ANSWER].cpu()


def states_of(end: Decode) -> Tensor:
    """h, ``[N, B, L, D]``, also where trajectories share it still."""
    n, b = end.values[ANSWER].shape[:2]
    return end.state.h.expand(n, b, -1, -1).cpu()


def on_cpu(x: Tensor | None) -> Tensor | None:
    """Inputs where tasks look at them."""
    return None if x is None else x.cpu()


# ---- where they end, and when they part --------------------------------------------------------------------------


@dataclass(frozen=True)
class Attractors:
    """The answers that the trajectories of an input end in, and when they have them.

    Attributes:
        distinct: final answers that differ, int64 ``[B]``.
        distinct_right: the right ones among them; all, where no answer is right or wrong.
        effective: exp of the entropy of their frequencies, ``[B]``: so many equally frequent ones are as varied.
        right_at: the share of trajectories with a right answer after each step, ``[S, B]``; NaN where it is not known
            what is right, None where no answer is right or wrong.
        settled_at: the share of trajectories that have their final answer for good after each step, ``[S, B]``.
        settling: the step at which a trajectory reaches its final answer for good, 1 to S, int64 ``[N, B]``.
        unsettled: the share of trajectories whose answer still changed in the last quarter of the steps, ``[B]``.
    """

    distinct: Tensor
    distinct_right: Tensor
    effective: Tensor
    right_at: Tensor | None
    settled_at: Tensor
    settling: Tensor
    unsettled: Tensor

    @property
    def right(self) -> Tensor | None:
        """The share of trajectories that end in a right answer, ``[B]``."""
        return None if self.right_at is None else self.right_at[-1]

    @property
    def unsettled_fraction(self) -> float | None:
        """The mean of ``unsettled``. None of a single step, which cannot change, and of images, which never settle."""
        return None if self.right_at is None or len(self.settled_at) == 1 else self.unsettled.mean().item()


def attractors(task: Task, x: Tensor | None, tokens: Tensor) -> Attractors:
    """From the answers after each step.

    Args:
        x: the inputs, int64 ``[B, *event]``; None for p(x).
        tokens: int64 ``[S, N, B, L_out]``, as in :class:`Walk`.
    """
    x = on_cpu(x)
    canonical = task.canonical_form(x, tokens)
    right = task.is_valid(x, tokens) if task.is_checkable else None
    steps, n = tokens.shape[:2]
    kept = (canonical == canonical[-1]).all(-1).flip(0).cumprod(0).sum(0)  # steps at the end with the final answer
    settling = steps - kept + 1
    ends = numbered(canonical[-1])
    counts = [which.bincount() for which in ends.T]
    counted = torch.ones_like(ends, dtype=torch.bool) if right is None else right[-1]
    kinds = [which[at] for which, at in zip(ends.T, counted.T, strict=True)]
    quarter = min(-(-steps // 4), steps - 1)  # one step alone cannot change
    return Attractors(
        torch.tensor([len(c) for c in counts]),
        torch.tensor([len(k.unique()) for k in kinds]),
        torch.stack([torch.special.entr(c.double() / n).sum().exp() for c in counts]),
        None
        if right is None
        else right.double().mean(1).masked_fill(~task.has_known_answer(x, tokens[0, 0]), torch.nan),
        (settling <= torch.arange(1, steps + 1)[:, None, None]).double().mean(1),
        settling,
        (settling > steps - quarter).double().mean(0),
    )


def numbered(answers: Tensor) -> Tensor:
    """Which distinct answer to its input each is, 0 the most frequent: ``[N, B, L_out]`` to int64 ``[N, B]``."""
    columns = []
    for samples in answers.unbind(1):
        _, which, counts = samples.unique(dim=0, return_inverse=True, return_counts=True)
        columns.append(counts.argsort(descending=True, stable=True).argsort()[which])
    return torch.stack(columns, 1)


@dataclass(frozen=True)
class Parting:
    """Pairs of trajectories of one input; all pairs of all inputs count alike, and NaN stands where there are none.

    Attributes:
        differ: of the pairs that end in different answers the share that has different ones after each step, ``[S]``.
        apart: their mean distance, root mean square over positions and channels, from z_0 on, ``[S + 1]``.
        alike: the mean distance of the pairs that end in the same answer, ``[S + 1]``.
        num_apart, num_alike: how many pairs.
    """

    differ: Tensor
    apart: Tensor
    alike: Tensor
    num_apart: int
    num_alike: int


def parting(task: Task, x: Tensor | None, walked: Walk) -> Parting:
    """When trajectories that end in different answers part, in their answers and in their states."""
    canonical = task.canonical_form(on_cpu(x), walked.tokens)
    n = walked.tokens.shape[1]
    i, j = torch.triu_indices(n, n, offset=1)
    differ, distance = [], []
    for answers, h in zip(canonical.unbind(2), walked.h.flatten(-2).unbind(2), strict=True):
        differ.append((answers[:, i] != answers[:, j]).any(-1))  # [S, pairs]
        gap = torch.cdist(h, h, compute_mode="donot_use_mm_for_euclid_dist")  # near ones would be lost in rounding
        distance.append(gap[:, i, j] / h.shape[-1] ** 0.5)
    answered, gaps = torch.cat(differ, 1), torch.cat(distance, 1).double()
    ends = answered[-1]
    return Parting(
        answered[:, ends].double().mean(1),
        gaps[:, ends].mean(1),
        gaps[:, ~ends].mean(1),
        int(ends.sum()),
        int((~ends).sum()),
    )


# ---- which draws decide ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Deciding:
    """The share of forks of a trajectory that end in its answer.

    Attributes:
        kept: how many of the first transitions' guidance a fork keeps, int64 ``[points]``: 0, the level of chance, to
            all.
        by_transition: the share for each, of forks with the rest drawn anew, ``[points, B]``.
        positions: of the sequence (prefix positions first), int64 ``[P]``; evenly spaced ones of a long sequence.
        by_position: the share for each, of forks that keep all guidance but that of the position, which is drawn anew
            at every transition, ``[P, B]``.
    """

    kept: Tensor
    by_transition: Tensor
    positions: Tensor
    by_position: Tensor


class _Record(Messenger):
    """Keeps the guidance of every transition in which some is drawn: ``eps`` by transition, ``[N, B, L, *]``."""

    def __init__(self) -> None:
        super().__init__()
        self.eps: dict[int, Tensor] = {}

    def _pyro_post_sample(self, msg: Any) -> None:
        t = transition_index(msg["name"])
        if t is not None and not isinstance(getattr(msg["fn"], "base_dist", msg["fn"]), dist.Delta | MeanOnly):
            self.eps[t] = msg["value"]


class _Keep(Messenger):
    """Answers the guidance of some transitions with what was recorded; the others are drawn."""

    def __init__(self, eps: dict[int, Tensor]) -> None:
        super().__init__()
        self.eps = eps

    def _pyro_sample(self, msg: Any) -> None:
        t = transition_index(msg["name"])
        if t in self.eps:
            msg["value"] = self.eps[t]
            msg["done"] = True


class _KeepElsewhere(Messenger):
    """Puts back what was recorded of all guidance, but at one position of the sequence."""

    def __init__(self, eps: dict[int, Tensor], position: int) -> None:
        super().__init__()
        self.eps, self.position = eps, position

    def _pyro_post_sample(self, msg: Any) -> None:
        t = transition_index(msg["name"])
        if t in self.eps:
            here = torch.arange(msg["value"].shape[-2], device=msg["value"].device) == self.position
            msg["value"] = torch.where(here[:, None], msg["value"], self.eps[t])


def deciding(
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
) -> Deciding | None:
    """Which draws decide the answer: trajectories are run again with part of their guidance kept, the rest drawn anew.

    Every trajectory has a fork of its own, from the same z_0. Kept guidance is added to whatever u the fork reaches.
    Where a prior correlates positions, a position's new draw is not conditioned on what the others keep. Inputs with a
    single solution tell nothing: there is nothing to decide.

    Args:
        x: a few inputs, int64 ``[B, *event]``; None for p(x), where B is 1. All guidance of theirs is held.
        num_samples: N, trajectories an input.
        points: how many numbers of transitions are looked at, denser early; at least 0 and all.
        places: how many positions, each a run of the program; None for all, and for 32 of more than 100.

    Returns:
        None for a program that draws no guidance.
    """
    wanted = 1 if places is None else places
    check_counts(seed=seed, num_samples=num_samples, depth=depth, points=points, places=wanted)
    with isolated_rng(model, x):
        torch.manual_seed(seed)
        start = run_steps(model, x, None, num_samples, 0).state

        def final(handler: Messenger) -> Tensor:
            with Temper(temper), handler:
                end = run_steps(model, x, start, num_samples, depth)
            return task.canonical_form(on_cpu(x), answers_of(end))

        record = _Record()
        base, eps = final(record), record.eps
        if not eps:
            return None

        def same(handler: Messenger) -> Tensor:
            return (final(handler) == base).all(-1).double().mean(0)

        kept = early(len(eps), points)
        positions = spaced(eps[min(eps)].shape[-2], places)
        first = sorted(eps)
        by_transition = torch.stack([same(_Keep({t: eps[t] for t in first[:count]})) for count in kept])
        by_position = torch.stack([same(_KeepElsewhere(eps, position)) for position in positions])
    return Deciding(torch.tensor(kept), by_transition, torch.tensor(positions), by_position)


def early(total: int, points: int) -> list[int]:
    """At most ``points`` numbers from 0 to ``total``, both among them, denser early: 0, 1, 2, 3, 4, 6, ..."""
    wanted = min(points, total + 1)
    found = {0, total, *(round(total ** (i / (wanted - 2))) for i in range(1, wanted - 1))}
    found |= set(sorted(set(range(total)) - found)[: max(0, wanted - len(found))])  # rounding merged some
    return sorted(found)


def spaced(length: int, places: int | None = None) -> list[int]:
    """Positions of a sequence at even distances, at most ``places`` of them."""
    if places is None:
        places = length if length <= MOST_POSITIONS else SOME_POSITIONS
    return torch.linspace(0, length - 1, min(places, length)).round().long().tolist()
