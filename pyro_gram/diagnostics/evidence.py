"""log p(y | x) of held-out pairs, two ways that must agree: importance weights of the guide, and prior Monte Carlo.

Everything is at beta = 1 and in nats. The prior's estimate has no guide in it, and the guide's weights see y: each can
fail where the other does not. ``az.loo`` on the guide's draws is no such estimate: they were made with y in sight.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from pyro_gram.diagnostics.inference_data import good_khat, pareto_smoothed
from pyro_gram.diagnostics.likelihood import rollout_log_prob
from pyro_gram.inference.importance import MAX_TRACED, guide_draws, log_evidence
from pyro_gram.sampling.memory import MAX_TRAJECTORIES
from pyro_gram.tasks.batches import derive_seed

HITS = 10.0  # effective draws of the prior below which their mean is one of a few lucky ones
ERRORS = 3.0  # standard errors of the difference within which two estimates agree

ROUNDING = 0.01  # nats: sums of thousands of float32 densities are no more exact

GUIDE, PRIOR, NEITHER = "importance weights", "prior Monte Carlo", "neither"


@dataclass(frozen=True)
class Estimate:
    """Estimates of log p(y | x) from S weights w of mean p(y | x); ``[B]`` each.

    Attributes:
        log_p: the log of the mean weight, nats. The mean is unbiased, so this is below log p on average.
        se: its standard error by the delta method: that of the mean, relative to it.
        ess: effective sample size, (sum w)^2 / sum w^2.
        khat: shape of the generalized Pareto distribution that fits the largest weights.
        num_samples: S.
    """

    log_p: Tensor
    se: Tensor
    ess: Tensor
    khat: Tensor
    num_samples: int

    @property
    def smooth_enough(self) -> Tensor:
        """bool ``[B]``: is the tail of the weights short enough for their mean to be trusted?"""
        return self.khat <= good_khat(self.num_samples)

    @classmethod
    def of(cls, log_weight: Tensor, smooth: bool) -> Estimate:
        """From log weights ``[S, B]``; ``smooth`` replaces the largest by quantiles of the Pareto fit (PSIS)."""
        smoothed, khat = pareto_smoothed(log_weight)
        used = smoothed if smooth else log_weight.double()
        share = used.softmax(0)
        s = len(used)
        relative = (share.square().sum(0) - 1 / s).clamp(min=0).sqrt() * math.sqrt(s / max(1, s - 1))
        return cls(log_evidence(used), relative, 1 / share.square().sum(0), khat, s)


@dataclass(frozen=True)
class Evidence:
    """What is known of log p(y | x) of B pairs.

    Attributes:
        counts: k of the bounds, rising from 1.
        iwae: IWAE_k of each pair, the mean over disjoint blocks of k weights, ``[len(counts), B]``; the first is the
            ELBO. None without a guide.
        guide: from the guide's weights, Pareto-smoothed; None without a guide.
        prior: from trajectories of the prior.
    """

    counts: tuple[int, ...]
    iwae: Tensor | None
    guide: Estimate | None
    prior: Estimate

    @property
    def believed(self) -> list[str]:
        """Which estimate of each pair to believe: of two that agree the one of the smaller error, if it can be trusted.

        Of two that differ the greater, and neither where that one cannot be trusted: either is the log of an unbiased
        mean, above log p by t nats with a probability of exp(-t) at most (Markov), so that the lesser has missed
        something, whatever its own tests say.
        """
        prior_holds = self.prior.ess >= HITS
        if self.guide is None:
            return [PRIOR if holds else NEITHER for holds in prior_holds.tolist()]
        guide_holds = self.guide.smooth_enough
        sharper = guide_holds & (~prior_holds | (self.guide.se <= self.prior.se))
        guide_first = torch.where(self.agree, sharper, guide_holds & (self.difference > 0))
        prior_second = torch.where(self.agree, prior_holds, prior_holds & (self.difference < 0))
        return [
            GUIDE if first else PRIOR if second else NEITHER
            for first, second in zip(guide_first.tolist(), prior_second.tolist(), strict=True)
        ]

    @property
    def log_p(self) -> Tensor:
        """The believed estimate of each pair, nats, ``[B]``. Where neither holds the greater: both err downwards."""
        if self.guide is None:
            return self.prior.log_p
        named = {GUIDE: self.guide.log_p, PRIOR: self.prior.log_p}
        named[NEITHER] = torch.maximum(self.guide.log_p, self.prior.log_p)
        return torch.stack([named[name][i] for i, name in enumerate(self.believed)])

    @property
    def order(self) -> Tensor:
        """The pairs by what is believed of them, from the least likely on, int64 ``[B]``."""
        return self.log_p.argsort(stable=True)

    @property
    def difference(self) -> Tensor:
        """The guide's estimate less the prior's, in standard errors of the difference, ``[B]``."""
        assert self.guide is not None
        error = (self.guide.se.square() + self.prior.se.square()).sqrt()
        return (self.guide.log_p - self.prior.log_p) / error.clamp(min=ROUNDING)

    @property
    def both(self) -> Tensor:
        """bool ``[B]``: can both estimates of a pair be trusted?"""
        assert self.guide is not None
        return self.guide.smooth_enough & (self.prior.ess >= HITS)

    @property
    def agree(self) -> Tensor:
        """bool ``[B]``: do the two agree within their errors?"""
        return self.difference.abs() <= ERRORS

    def summary(self) -> dict[str, Any]:
        """Means over the pairs, and how far they can be believed."""
        b = len(self.prior.log_p)
        found: dict[str, Any] = {
            "pairs": b,
            "log_p": self.log_p.mean().item(),
            "log_p_se": (self.log_p.std(correction=0) / b**0.5).item(),
            "log_p_prior": self.prior.log_p.mean().item(),
            "prior_samples": self.prior.num_samples,
            "prior_trusted": (self.prior.ess >= HITS).double().mean().item(),
            "believed": {name: self.believed.count(name) for name in (GUIDE, PRIOR, NEITHER)},
        }
        if self.guide is None or self.iwae is None:
            return found
        means = self.iwae.mean(1).tolist()
        both = self.both
        return found | {
            "iwae": dict(zip(map(str, self.counts), means, strict=True)),
            "log_p_guide": self.guide.log_p.mean().item(),
            "guide_samples": self.guide.num_samples,
            "khat_limit": good_khat(self.guide.num_samples),
            "khat_above": (~self.guide.smooth_enough).double().mean().item(),
            "ess_median": self.guide.ess.median().item(),
            "both_trusted": int(both.sum()),
            "agree": int((self.agree & both).sum()),
        }


def iwae(log_weight: Tensor, counts: tuple[int, ...]) -> Tensor:
    """IWAE_k for each k of ``counts``: the mean over disjoint blocks of k weights; ``[S, B] -> [len(counts), B]``.

    ELBO = IWAE_1 <= IWAE_k <= log p(y | x) in expectation, rising in k (Burda et al., 2016).
    """
    s, b = log_weight.shape
    rows = []
    for k in counts:
        blocks = log_weight[: s // k * k].double().view(s // k, k, b)
        rows.append((blocks.logsumexp(1) - math.log(k)).mean(0))
    return torch.stack(rows)


def block_counts(num_samples: int) -> tuple[int, ...]:
    """1, 4, 16, ... up to S, and S itself."""
    counts = [4**i for i in range(16) if 4**i < num_samples]
    return (*counts, num_samples)


def evidence(
    model: nn.Module,
    guide: nn.Module | None,
    x: Tensor | None,
    y: Tensor,
    *,
    depth: int,
    guide_samples: int,
    prior_samples: int,
    seed: int = 0,
    max_traced: int = MAX_TRACED,
    max_trajectories: int = MAX_TRAJECTORIES,
) -> Evidence:
    """log p(y | x) of pairs, from both ends.

    Args:
        guide: the inference program; None for a model that has none.
        x: inputs, ``[B, *event]``; None for p(x).
        y: answers, int64 ``[B, L_out]``.
        depth: supervision steps.
        guide_samples, prior_samples: draws a pair.
        max_traced, max_trajectories: the most trajectories at once, which bounds the memory.
    """
    log_p = rollout_log_prob(
        model,
        x,
        y,
        depth=depth,
        num_samples=prior_samples,
        seed=derive_seed(seed, 0),
        max_trajectories=max_trajectories,
    )
    prior = Estimate.of(log_p.cpu(), smooth=False)
    if guide is None:
        return Evidence((), None, None, prior)
    drawn = guide_draws(
        model, guide, x, y, steps=depth, num_samples=guide_samples, seed=derive_seed(seed, 1), max_traced=max_traced
    ).log_weight
    counts = block_counts(guide_samples)
    return Evidence(counts, iwae(drawn, counts), Estimate.of(drawn, smooth=True), prior)


def to_dict(found: Evidence) -> dict[str, Any]:
    """The figures of each pair as lists, and the summary."""

    def rows(estimate: Estimate | None) -> dict[str, Any] | None:
        if estimate is None:
            return None
        held = {f.name: getattr(estimate, f.name) for f in fields(estimate)}
        return {k: v.tolist() if isinstance(v, Tensor) else v for k, v in held.items()}

    return {
        "summary": found.summary(),
        "guide": rows(found.guide),
        "prior": rows(found.prior),
        "believed": found.believed,
    }
