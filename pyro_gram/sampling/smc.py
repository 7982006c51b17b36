r"""Sequential Monte Carlo over supervision steps: resample trajectories by the output of a head.

After supervision step n the target is :math:`p(\tau_{1:n} | x)\, \psi(z_n)^\alpha`. The (twisting) potential
:math:`\psi` is the output of a head. The value head gives the probability that the trajectory will end in a right
answer; if this probability is exact, it is the optimal potential. The halt head gives the probability that the present
answer is right. Trajectories are drawn from the prior. A step therefore multiplies the weight of a trajectory by
:math:`(\psi(z_n) / \psi(z_{n-1}))^\alpha`. If the effective sample size of an input falls below a share of N, the
trajectories of this input are resampled systematically.

``pyro.infer.SMCFilter`` keeps one weight for each particle, summed over the inputs of a batch. It would resample all
inputs of a batch together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_gram.checks import AT_LEAST_0, FRACTION, check_choice, check_counts, check_range
from pyro_gram.errors import UserError
from pyro_gram.inference.sites import ANSWER, HALT, VALUE, check_has_heads
from pyro_gram.networks.core import LatentState
from pyro_gram.sampling.memory import MAX_TRAJECTORIES
from pyro_gram.sampling.result import Rollout
from pyro_gram.sampling.steps import isolated_rng, run_steps
from pyro_gram.sampling.tempering import NO_TEMPER, Temper, TemperConfig

POTENTIALS = (VALUE, HALT)
FLOOR = 1e-4  # least potential: a head that trusts no trajectory must not give all of them the weight 0


@dataclass(frozen=True)
class SMCConfig:
    """Settings of the filter.

    Attributes:
        potential: the head whose output is the potential, ``value`` or ``halt``.
        power: alpha, the exponent of the potential; 0 ignores the potential.
        threshold: resample if the effective sample size is below this share of N.
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
        tokens: the most probable answer at the end of each trajectory, int64 ``[N, B, L_out]``.
        score: as in a rollout, nats, ``[N, B]``.
        value: the value head's estimate at the end, ``[N, B]``.
        weight: importance weights, normalised for each input, ``[N, B]``.
        ess: effective sample size after each supervision step, before resampling, ``[depth, B]``.
        is_resampled: whether each input was resampled after each step, bool ``[depth, B]``; never after the last step.
    """

    tokens: Tensor
    score: Tensor
    value: Tensor
    weight: Tensor
    ess: Tensor
    is_resampled: Tensor


def smc(
    model: Callable[..., Any],
    x: Tensor,
    *,
    num_samples: int,
    depth: int,
    seed: int = 0,
    config: SMCConfig | None = None,
    temper: TemperConfig = NO_TEMPER,
    max_trajectories: int = MAX_TRAJECTORIES,
) -> Particles:
    """Filter ``num_samples`` trajectories of each input through ``depth`` supervision steps.

    Args:
        model: a program with heads.
        x: inputs, int64 ``[B, *event]``.
        num_samples: N.
        depth: supervision steps.
        seed: seed of the draws and of the resampling. The caller's random state is restored.
        config: settings of the filter.
        temper: how the prior differs from the trained one; weights are relative to the tempered prior.
        max_trajectories: the largest number of trajectories that run at once. All those of one input run together.

    Raises:
        ConfigError: the program has no heads.
        UserError: ``num_samples`` or ``depth`` is below 1, or an input has more trajectories than may run at once.
    """
    config = config or SMCConfig()
    check_counts(seed=seed, num_samples=num_samples, depth=depth, max_trajectories=max_trajectories)
    check_fits(num_samples, max_trajectories)
    check_has_heads(model, "filter")
    parts = []
    with isolated_rng(model, x):
        for chunk, inputs in enumerate(x.split(max(1, max_trajectories // num_samples))):
            torch.manual_seed(seed + chunk)
            parts.append(_filter(model, inputs, num_samples, depth, config, temper))
    tensors = {name: torch.cat([getattr(p, name) for p in parts], dim=1) for name in vars(parts[0])}
    return Particles(**tensors)


def check_fits(num_samples: int, max_trajectories: int) -> None:
    """Raise UserError if one input has more trajectories than may run at once."""
    if num_samples > max_trajectories:
        raise UserError(
            f"smc filters all {num_samples} trajectories of an input together, and {max_trajectories} fit at once: "
            "take fewer samples, or allow more memory (--memory MB)"
        )


def to_rollout(particles: Particles, depth: int, seed: int = 0) -> Rollout:
    """Resample particles once more, systematically, and return equally weighted samples.

    Args:
        particles: the result of :func:`smc`.
        depth: supervision steps of the filter.
        seed: seed of the resampling. The caller's random state is restored.
    """
    ancestors = sample_ancestors(particles.weight, seed)
    columns = torch.arange(ancestors.shape[1], device=ancestors.device)
    steps = torch.full_like(ancestors, depth)
    tokens, score, value = (part[ancestors, columns] for part in (particles.tokens, particles.score, particles.value))
    return Rollout(tokens, score, steps, steps.sum(0), value)


def sample_ancestors(weight: Tensor, seed: int) -> Tensor:
    """Apply :func:`systematic_resample` under a seed, and restore the caller's random state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return systematic_resample(weight.cpu()).to(weight.device)


def _filter(
    model: Callable[..., Any], x: Tensor, n: int, depth: int, config: SMCConfig, temper: TemperConfig
) -> Particles:
    state: LatentState | None = None
    log_weight = torch.zeros(n, len(x), device=x.device)
    log_decided = torch.zeros_like(log_weight)  # of the values that a lattice decided in earlier steps
    log_potential = torch.zeros_like(log_weight)  # all trajectories share z_0: any constant may be its potential
    sizes, is_resampled = [], []
    with Temper(temper):
        for step in range(depth):
            end = run_steps(model, x, state, n, 1)
            score, log_decided = end.score + log_decided, log_decided + end.log_decided
            last_potential = log_potential
            log_potential = end.values[config.potential].clamp(min=FLOOR).log() * config.power
            log_weight = log_weight + log_potential - last_potential
            size = effective_sample_size(log_weight)
            is_low = (size < config.threshold * n) & (step < depth - 1)
            sizes.append(size)
            is_resampled.append(is_low)
            state = LatentState(*(part.expand(n, len(x), -1, -1) for part in end.state))
            if is_low.any():
                identity = torch.arange(n, device=x.device)[:, None]
                ancestors = torch.where(is_low, systematic_resample(log_weight.softmax(0)), identity)
                columns = torch.arange(len(x), device=x.device)
                state = LatentState(*(part[ancestors, columns] for part in state))
                log_potential, log_decided = log_potential.gather(0, ancestors), log_decided.gather(0, ancestors)
                log_weight = log_weight.masked_fill(is_low, 0.0)
    return Particles(
        end.values[ANSWER],
        score,
        end.values[VALUE],
        log_weight.softmax(0),
        torch.stack(sizes),
        torch.stack(is_resampled),
    )


def effective_sample_size(log_weight: Tensor) -> Tensor:
    """Return (sum w)^2 / sum w^2 for the weights w of each input, a number from 1 to N: ``[N, B] -> [B]``."""
    return (2 * log_weight.logsumexp(0) - (2 * log_weight).logsumexp(0)).exp()


def systematic_resample(weight: Tensor) -> Tensor:
    """Choose each trajectory N * weight times (rounded up or down) as an ancestor. Each input takes one random number.

    Args:
        weight: normalised, ``[N, B]``.

    Returns:
        the ancestor of each trajectory, int64 ``[N, B]``, in ascending order.
    """
    n, b = weight.shape
    points = (torch.rand(b, 1, device=weight.device) + torch.arange(n, device=weight.device)) / n
    ancestors = torch.searchsorted(weight.T.cumsum(1).contiguous(), points.contiguous())
    return ancestors.clamp(max=n - 1).T
