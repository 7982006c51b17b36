"""Estimate log p(y | x) of held-out pairs in two ways that must agree: importance weights and prior Monte Carlo.

All values are in nats, at beta = 1. The importance weights come from draws of the guide, which depend on y. Prior Monte
Carlo uses no guide. Each estimate can succeed where the other fails. (``az.loo`` on the guide's draws would not
estimate log p(y | x).)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from pyro_gram.diagnostics.inference_data import khat_threshold, pareto_smooth
from pyro_gram.diagnostics.likelihood import rollout_log_prob
from pyro_gram.inference.importance import MAX_TRACED, guide_draws, log_evidence
from pyro_gram.sampling.memory import MAX_TRAJECTORIES
from pyro_gram.tasks.batches import derive_seed

MIN_ESS = 10.0  # with fewer effective draws of the prior, a few lucky draws make up the mean
MAX_Z_SCORE = 3.0  # two estimates agree if they differ by at most three standard errors

ROUNDING = 0.01  # nats: the rounding error of a sum of thousands of float32 densities

GUIDE, PRIOR, NEITHER = "importance weights", "prior Monte Carlo", "neither"


@dataclass(frozen=True)
class Estimate:
    """Estimates of log p(y | x) for B pairs, each from S weights w. The expectation of a weight is p(y | x).

    Attributes:
        log_p: log of the mean weight, nats. The mean is unbiased, so its log is below log p on average.
        se: the standard error of ``log_p`` by the delta method: the standard error of the mean weight, divided
            by the mean weight.
        ess: effective sample size, (sum w)^2 / sum w^2.
        khat: shape of the generalized Pareto distribution fitted to the largest weights.
        num_samples: S, the number of weights. The other fields are tensors ``[B]``.
    """

    log_p: Tensor
    se: Tensor
    ess: Tensor
    khat: Tensor
    num_samples: int

    @property
    def is_trusted(self) -> Tensor:
        """Is the tail of the weights short enough to trust their mean? bool ``[B]``."""
        return self.khat <= khat_threshold(self.num_samples)

    @classmethod
    def from_log_weights(cls, log_weight: Tensor, smooth: bool) -> Estimate:
        """Make an estimate from log weights ``[S, B]``; ``smooth`` applies Pareto smoothing (PSIS)."""
        smoothed_log_weight, khat = pareto_smooth(log_weight)
        log_weight = smoothed_log_weight if smooth else log_weight.double()
        share = log_weight.softmax(0)
        s = len(log_weight)
        relative_error = (share.square().sum(0) - 1 / s).clamp(min=0).sqrt() * math.sqrt(s / max(1, s - 1))
        return cls(log_evidence(log_weight), relative_error, 1 / share.square().sum(0), khat, s)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value.tolist() if isinstance(value, Tensor) else value for name, value in values.items()}


@dataclass(frozen=True)
class Evidence:
    """Estimates of log p(y | x) for B pairs.

    Attributes:
        counts: the numbers k of the bounds IWAE_k, increasing from 1.
        iwae: IWAE_k of each pair, the mean over disjoint blocks of k weights, ``[len(counts), B]``; the first is the
            ELBO. None without a guide.
        guide: the estimate from the guide's weights, Pareto-smoothed; None without a guide.
        prior: the estimate from trajectories of the prior.
    """

    counts: tuple[int, ...]
    iwae: Tensor | None
    guide: Estimate | None
    prior: Estimate

    @property
    def choices(self) -> list[str]:
        """The estimate to believe for each pair: ``GUIDE``, ``PRIOR`` or ``NEITHER``.

        If the two estimates agree, the trusted one with the smaller error is chosen. If they differ, the greater one is
        chosen, or neither if the greater one cannot be trusted. The greater one is preferred because each estimate is
        the log of an unbiased mean: such an estimate exceeds log p by t nats with probability at most exp(-t) (Markov),
        but it may be far too low.
        """
        prior_is_trusted = self.prior.ess >= MIN_ESS
        if self.guide is None:
            return [PRIOR if is_trusted else NEITHER for is_trusted in prior_is_trusted.tolist()]
        guide_is_trusted = self.guide.is_trusted
        guide_is_sharper = guide_is_trusted & (~prior_is_trusted | (self.guide.se <= self.prior.se))
        take_guide = torch.where(self.agrees, guide_is_sharper, guide_is_trusted & (self.z_score > 0))
        take_prior = torch.where(self.agrees, prior_is_trusted, prior_is_trusted & (self.z_score < 0))
        return [
            GUIDE if guide_first else PRIOR if prior_second else NEITHER
            for guide_first, prior_second in zip(take_guide.tolist(), take_prior.tolist(), strict=True)
        ]

    @property
    def log_p(self) -> Tensor:
        """The chosen estimate of each pair, nats, ``[B]``. For ``NEITHER`` the greater estimate is taken."""
        if self.guide is None:
            return self.prior.log_p
        by_choice = {GUIDE: self.guide.log_p, PRIOR: self.prior.log_p}
        by_choice[NEITHER] = torch.maximum(self.guide.log_p, self.prior.log_p)
        return torch.stack([by_choice[choice][i] for i, choice in enumerate(self.choices)])

    @property
    def ranking(self) -> Tensor:
        """The pairs in order of ``log_p``, the least likely first, int64 ``[B]``."""
        return self.log_p.argsort(stable=True)

    @property
    def z_score(self) -> Tensor:
        """The guide's estimate minus the prior's, in standard errors of the difference, ``[B]``."""
        assert self.guide is not None
        error = (self.guide.se.square() + self.prior.se.square()).sqrt()
        return (self.guide.log_p - self.prior.log_p) / error.clamp(min=ROUNDING)

    @property
    def is_comparable(self) -> Tensor:
        """Can both estimates of a pair be trusted? bool ``[B]``."""
        assert self.guide is not None
        return self.guide.is_trusted & (self.prior.ess >= MIN_ESS)

    @property
    def agrees(self) -> Tensor:
        """Do the two estimates agree within their errors? bool ``[B]``."""
        return self.z_score.abs() <= MAX_Z_SCORE

    def summary(self) -> dict[str, Any]:
        """Return means over the pairs, and the numbers of pairs with trusted estimates, as JSON values."""
        b, choices = len(self.prior.log_p), self.choices
        values: dict[str, Any] = {
            "pairs": b,
            "log_p": self.log_p.mean().item(),
            "log_p_se": (self.log_p.std(correction=0) / b**0.5).item(),
            "log_p_prior": self.prior.log_p.mean().item(),
            "prior_samples": self.prior.num_samples,
            "prior_trusted": (self.prior.ess >= MIN_ESS).double().mean().item(),
            "believed": {name: choices.count(name) for name in (GUIDE, PRIOR, NEITHER)},
        }
        if self.guide is None or self.iwae is None:
            return values
        return values | {
            "iwae": dict(zip(map(str, self.counts), self.iwae.mean(1).tolist(), strict=True)),
            "log_p_guide": self.guide.log_p.mean().item(),
            "guide_samples": self.guide.num_samples,
            "khat_limit": khat_threshold(self.guide.num_samples),
            "khat_above": (~self.guide.is_trusted).double().mean().item(),
            "ess_median": self.guide.ess.median().item(),
            "both_trusted": int(self.is_comparable.sum()),
            "agree": int((self.agrees & self.is_comparable).sum()),
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the summary and the estimates of each pair as JSON values."""
        return {
            "summary": self.summary(),
            "guide": None if self.guide is None else self.guide.to_dict(),
            "prior": self.prior.to_dict(),
            "believed": self.choices,
        }


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
    """Estimate log p(y | x) of pairs by importance weights of the guide and by prior Monte Carlo.

    Args:
        guide: the guide; None for a model without a guide.
        x: inputs, ``[B, *event]``; None for p(x).
        y: answers, int64 ``[B, L_out]``.
        depth: supervision steps.
        guide_samples, prior_samples: trajectories for each pair.
        max_traced, max_trajectories: the maximal numbers of trajectories of guide and prior in memory at once.
    """
    prior_seed, guide_seed = derive_seed(seed, 0), derive_seed(seed, 1)
    log_p = rollout_log_prob(
        model, x, y, depth=depth, num_samples=prior_samples, seed=prior_seed, max_trajectories=max_trajectories
    )
    prior = Estimate.from_log_weights(log_p.cpu(), smooth=False)
    if guide is None:
        return Evidence((), None, None, prior)
    log_weight = guide_draws(
        model, guide, x, y, steps=depth, num_samples=guide_samples, seed=guide_seed, max_traced=max_traced
    ).log_weight
    counts = block_counts(guide_samples)
    return Evidence(counts, iwae(log_weight, counts), Estimate.from_log_weights(log_weight, smooth=True), prior)


def iwae(log_weight: Tensor, counts: tuple[int, ...]) -> Tensor:
    """Return the bound IWAE_k for each k of ``counts``.

    The weights are split into disjoint blocks of k. The bound is the mean, over the blocks, of the log of a block's
    mean weight. In expectation, ELBO = IWAE_1 <= IWAE_k <= log p(y | x), and IWAE_k increases in k (Burda et al.,
    2016).

    Args:
        log_weight: ``[S, B]``.

    Returns:
        nats, ``[len(counts), B]``.
    """
    s, b = log_weight.shape
    bounds = []
    for k in counts:
        blocks = log_weight[: s // k * k].double().view(s // k, k, b)
        bounds.append((blocks.logsumexp(1) - math.log(k)).mean(0))
    return torch.stack(bounds)


def block_counts(num_samples: int) -> tuple[int, ...]:
    """Return the powers of 4 (1, 4, 16, ...) that are below S, and S itself."""
    counts = [4**i for i in range(16) if 4**i < num_samples]
    return (*counts, num_samples)
