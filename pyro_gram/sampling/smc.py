r"""Sequential Monte Carlo over the recursion: trajectories that look wrong give way to copies of those that look right.

One stage a supervision step n. The target after it is :math:`p(\tau_{1:n} | x)\, \psi(z_n)^\alpha`, its twisting
potential :math:`\psi` what a head says of the state: the value head's estimate that the trajectory will end in a right
answer (the optimal potential, were it exact), or the halt head's that its answer is right now. Trajectories are
proposed by the prior, so that a stage multiplies the weight by :math:`(\psi(z_n) / \psi(z_{n-1}))^\alpha`; where the
effective sample size of an input's weights falls below a share of N, its trajectories are resampled systematically.

``pyro.infer.SMCFilter`` does not fit: it keeps one weight a particle, the sum over everything else, so that a batch of
inputs would be resampled as one; it would take a filter for each input, one after another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_gram.checks import AT_LEAST_0, FRACTION, check_choice, check_counts, check_range
from pyro_gram.errors import UserError
from pyro_gram.inference.sites import ANSWER, HALT, VALUE
from pyro_gram.networks.core import LatentState
from pyro_gram.sampling.decode import advance, quiet
from pyro_gram.sampling.rollout import AS_IT_IS, MAX_TRAJECTORIES, Rollout, check_has_heads
from pyro_gram.sampling.tempering import Temper, TemperConfig

POTENTIALS = (VALUE, HALT)
FLOOR = 1e-4  # of a potential: a head that is sure of nothing good must not end an input


@dataclass(frozen=True)
class SMCConfig:
    """The filter.

    Attributes:
        potential: the head that twists, ``value`` or ``halt``.
        power: alpha, of the potential; 0 for none.
        threshold: resample where the effective sample size falls below this share of N.
    """

    potential: str = VALUE
    power: float = 1.0
    threshold: float = 0.5

    def __post_init__(self) -> None:
        check_choice("potential", self.potential, POTENTIALS)
        check_range(self, power=AT_LEAST_0, threshold=FRACTION)


@dataclass(frozen=True)
class Particles:
    """Weighted trajectories.

    Attributes:
        tokens: the most probable answer at each one's end, int64 ``[N, B, L_out]``.
        score: log p(tokens | h_T), nats, ``[N, B]``.
        value: the value head's estimate at the end, ``[N, B]``.
        weight: normalised for each input, ``[N, B]``.
        ess: effective sample size after each stage, before resampling, ``[depth, B]``.
        resampled: after which stages, bool ``[depth, B]``; never after the last one.
    """

    tokens: Tensor
    score: Tensor
    value: Tensor
    weight: Tensor
    ess: Tensor
    resampled: Tensor


def smc(
    model: Callable[..., Any],
    x: Tensor,
    *,
    num_samples: int,
    depth: int,
    seed: int = 0,
    config: SMCConfig | None = None,
    temper: TemperConfig = AS_IT_IS,
    max_trajectories: int = MAX_TRAJECTORIES,
) -> Particles:
    """Filter ``num_samples`` trajectories of each input through ``depth`` supervision steps.

    Args:
        model: a program with heads.
        x: inputs, int64 ``[B, *event]``.
        num_samples: N.
        depth: supervision steps, each a stage.
        seed: of the draws and of the resampling; the caller's random state is left as it was.
        config: the filter.
        temper: the scale of the prior at the start of each trajectory; the weights are relative to the prior so
            tempered.
        max_trajectories: the most that run at once: all of an input's must.

    Raises:
        ConfigError: a program without heads.
        UserError: ``num_samples`` or ``depth`` below 1, or more trajectories an input than may run at once.
    """
    config = config or SMCConfig()
    check_counts(seed=seed, num_samples=num_samples, depth=depth, max_trajectories=max_trajectories)
    check_fits(num_samples, max_trajectories)
    check_has_heads(model, "filter")
    parts = []
    with quiet(model, x):
        for chunk, some in enumerate(x.split(max(1, max_trajectories // num_samples))):
            torch.manual_seed(seed + chunk)
            parts.append(_filter(model, some, num_samples, depth, config, temper))
    joined = {name: torch.cat([getattr(p, name) for p in parts], dim=1) for name in vars(parts[0])}
    return Particles(**joined)


def check_fits(num_samples: int, max_trajectories: int) -> None:
    """Raises UserError where the trajectories of one input are more than may run at once."""
    if num_samples > max_trajectories:
        raise UserError(
            f"smc filters all {num_samples} trajectories of an input together, and {max_trajectories} fit at once: "
            "take fewer samples, or allow more memory (--memory MB)"
        )


def resampled(particles: Particles, depth: int, seed: int = 0) -> Rollout:
    """Particles as equally weighted samples, by one more systematic resampling; the caller's random state stays."""
    ancestors = resampled_ancestors(particles.weight, seed)
    columns = torch.arange(ancestors.shape[1], device=ancestors.device)
    steps = torch.full_like(ancestors, depth)
    tokens, score, value = (part[ancestors, columns] for part in (particles.tokens, particles.score, particles.value))
    return Rollout(tokens, score, steps, steps.sum(0), value)


def resampled_ancestors(weight: Tensor, seed: int) -> Tensor:
    """:func:`systematic` of normalised weights ``[N, B]`` under a seed; the caller's random state stays."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return systematic(weight.cpu()).to(weight.device)


def _filter(
    model: Callable[..., Any], x: Tensor, n: int, depth: int, config: SMCConfig, temper: TemperConfig
) -> Particles:
    state: LatentState | None = None
    log_weight = torch.zeros(n, len(x), device=x.device)
    before = torch.zeros_like(log_weight)  # log psi of z_0, which all trajectories share
    sizes, resampled = [], []
    with Temper(temper):
        for stage in range(depth):
            end = advance(model, x, state, n, 1)
            now = end.values[config.potential].clamp(min=FLOOR).log() * config.power
            log_weight, before = log_weight + now - before, now
            size = effective_sample_size(log_weight)
            low = (size < config.threshold * n) & (stage < depth - 1)
            sizes.append(size)
            resampled.append(low)
            state = LatentState(*(part.expand(n, len(x), -1, -1) for part in end.state))
            if low.any():
                kept = torch.arange(n, device=x.device)[:, None]
                ancestors = torch.where(low, systematic(log_weight.softmax(0)), kept)
                columns = torch.arange(len(x), device=x.device)
                state = LatentState(*(part[ancestors, columns] for part in state))
                before = before.gather(0, ancestors)
                log_weight = log_weight.masked_fill(low, 0.0)
    tokens = end.values[ANSWER]
    return Particles(
        tokens,
        end.likelihood.log_prob(tokens),
        end.values[VALUE],
        log_weight.softmax(0),
        torch.stack(sizes),
        torch.stack(resampled),
    )


def effective_sample_size(log_weight: Tensor) -> Tensor:
    """(sum w)^2 / sum w^2 of each input's weights: ``[N, B]`` to ``[B]``, from 1 to N."""
    return (2 * log_weight.logsumexp(0) - (2 * log_weight).logsumexp(0)).exp()


def systematic(weight: Tensor) -> Tensor:
    """Systematic resampling: each trajectory is copied N w times, rounded up or down, by one uniform draw an input.

    Args:
        weight: normalised, ``[N, B]``.

    Returns:
        the ancestor of each, int64 ``[N, B]``, in order.
    """
    n, b = weight.shape
    places = (torch.rand(b, 1, device=weight.device) + torch.arange(n, device=weight.device)) / n
    found = torch.searchsorted(weight.T.cumsum(1).contiguous(), places.contiguous())
    return found.clamp(max=n - 1).T
