"""Draw schemes: an input's trajectories are drawn independently, or so that they differ more than independent draws.

``experiments/scaling/scaling.py`` compares the schemes at equal compute.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_gram.checks import AT_LEAST_1, check_choice, check_range
from pyro_gram.errors import ConfigError
from pyro_gram.inference.families import MeanOnly
from pyro_gram.inference.sites import transition_index

SCHEMES = ("independent", "antithetic", "sobol", "distinct")
UNBIASED = ("independent", "antithetic", "sobol")  # schemes whose answer frequencies estimate p(y | x)


@dataclass(frozen=True)
class DrawScheme:
    """How the N trajectories of an input are drawn together.

    Attributes:
        kind: with ``independent``, no trajectory depends on another. With ``antithetic``, one half of the
            trajectories takes the first guidance of the other half, mirrored about the prior's mean. (Both halves
            have the same first u.) With ``sobol``, the first guidance comes from a scrambled Sobol sequence, shifted at
            random for each input. With ``distinct``, more than N trajectories start, and N with answers as different as
            possible go on: the frequencies of the answers do not estimate p(y | x).
        oversample: how many trajectories start for each one that goes on (``distinct`` only).
        steps: supervision steps before the selection (``distinct`` only).
    """

    kind: str = "independent"
    oversample: int = 3
    steps: int = 2

    def __post_init__(self) -> None:
        check_choice("draw scheme", self.kind, SCHEMES)
        check_range(self, oversample=AT_LEAST_1, steps=AT_LEAST_1)

    @property
    def is_selective(self) -> bool:
        """Whether some trajectories are dropped before the full depth."""
        return self.kind == "distinct"

    @property
    def shared_steps(self) -> int:
        """Supervision steps that all trajectories take together, before any is dropped."""
        return self.steps if self.is_selective else 1

    def num_proposals(self, num_samples: int) -> int:
        """Return how many trajectories must start so that ``num_samples`` of them reach the end."""
        return num_samples * self.oversample if self.is_selective else num_samples

    def handler(self) -> AbstractContextManager[Any]:
        """Return the handler that draws the guidance of the first transition; a null context for independent draws."""
        return CoupledDraws(self.kind) if self.kind in ("antithetic", "sobol") else nullcontext()

    def select(self, tokens: Tensor, num_samples: int) -> Tensor:
        """Select N trajectories that go on: first one for each distinct answer, then a second one for each, and so on.

        Args:
            tokens: answers after the shared steps, int64 ``[M, B, L_out]``.
            num_samples: N.

        Returns:
            int64 ``[N, B]``, indices in [0, M).
        """
        if not self.is_selective:
            return torch.arange(num_samples, device=tokens.device)[:, None].expand(-1, tokens.shape[1])
        return count_repeats(tokens).argsort(dim=0, stable=True)[:num_samples]


def count_repeats(tokens: Tensor) -> Tensor:
    """Count, for each trajectory, the earlier trajectories of its input with the same answer.

    Args:
        tokens: int64 ``[M, B, L_out]``.

    Returns:
        int64 ``[M, B]``.
    """
    answers = tokens.flatten(0, 1).unique(dim=0, return_inverse=True)[1].view(tokens.shape[:2])
    order = answers.argsort(dim=0, stable=True)
    sorted_answers = answers.gather(0, order)
    index = torch.arange(len(answers), device=tokens.device)[:, None].expand_as(answers)
    is_first = torch.ones_like(sorted_answers, dtype=torch.bool)
    is_first[1:] = sorted_answers[1:] != sorted_answers[:-1]
    start = torch.where(is_first, index, 0).cummax(0).values
    return torch.empty_like(index).scatter_(0, order, index - start)


class CoupledDraws(Messenger):
    """Draw the guidance of the first transition antithetically or from a Sobol sequence.

    The trajectories lie along dim -2 of the batch. Each trajectory by itself follows the prior, but
    the trajectories are not independent of each other.

    Raises:
        ConfigError: the prior is not Gaussian, or the state has too many numbers for Sobol.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.is_done = False

    def _pyro_sample(self, msg: Any) -> None:
        if self.is_done or transition_index(msg["name"]) is None:
            return
        self.is_done = True
        if msg["done"] or msg["is_observed"]:  # the program is conditioned on this guidance
            return
        base = getattr(msg["fn"], "base_dist", None)
        if not isinstance(base, torch.distributions.Normal) or isinstance(base, MeanOnly):
            raise ConfigError(
                f"{self.kind} trajectories need a Gaussian prior: use independent trajectories with other priors"
            )
        noise = antithetic_noise if self.kind == "antithetic" else sobol_noise
        msg["value"] = base.loc + base.scale * noise(base.loc)
        msg["done"] = True


def antithetic_noise(like: Tensor) -> Tensor:
    """Draw standard normal noise of the shape of ``like``, ``[N, ...]``. The second half is minus the first."""
    half = torch.randn_like(like[: (len(like) + 1) // 2])
    return torch.cat((half, -half))[: len(like)]


def sobol_noise(like: Tensor) -> Tensor:
    """Draw standard normal noise of the shape of ``like``, ``[N, B, L, D]``, from N Sobol points for each input."""
    n, b, length, channels = like.shape
    size = length * channels
    if size > torch.quasirandom.SobolEngine.MAXDIM:
        raise ConfigError(
            f"a state of {size} numbers is too large for Sobol: use antithetic or independent trajectories"
        )
    engine = torch.quasirandom.SobolEngine(size, scramble=True, seed=int(torch.randint(2**31, ())))
    points = engine.draw(n).to(like)[:, None] + torch.rand(b, size, device=like.device, dtype=like.dtype)
    eps = torch.finfo(like.dtype).eps
    return (2**0.5 * torch.erfinv(2 * (points % 1).clamp(eps, 1 - eps) - 1)).view(like.shape)


INDEPENDENT = DrawScheme()
