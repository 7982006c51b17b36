"""How the trajectories of an input are spread: independently, or so that they differ more than chance makes them.

What each is worth at equal compute is measured by ``experiments/scaling/scaling.py``.
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

WIDTHS = ("independent", "antithetic", "sobol", "distinct")
UNBIASED = ("independent", "antithetic", "sobol")  # of which the frequencies of answers estimate p(y | x)


@dataclass(frozen=True)
class Width:
    """The spread of N trajectories of an input.

    Attributes:
        kind: ``independent``; ``antithetic``: at z_0, where all of them have the same u, the guidance of one half is
            that of the other mirrored about the prior's mean; ``sobol``: it is a scrambled Sobol sequence there,
            shifted at random for each input; ``distinct``: more of them begin, and those go on whose answers differ,
            token by token (frequencies then say nothing of p(y | x)).
        oversample: how many times as many begin (``distinct`` only).
        steps: supervision steps until that choice (``distinct`` only).
    """

    kind: str = "independent"
    oversample: int = 3
    steps: int = 2

    def __post_init__(self) -> None:
        check_choice("width", self.kind, WIDTHS)
        check_range(self, oversample=AT_LEAST_1, steps=AT_LEAST_1)

    @property
    def gives_up(self) -> bool:
        """Are there trajectories that do not go on to the end?"""
        return self.kind == "distinct"

    @property
    def before_choice(self) -> int:
        """Supervision steps that all trajectories take together."""
        return self.steps if self.gives_up else 1

    def begun(self, num_samples: int) -> int:
        """How many trajectories begin, for ``num_samples`` that end."""
        return num_samples * self.oversample if self.gives_up else num_samples

    def draws(self) -> AbstractContextManager[Any]:
        """The handler of the guidance at z_0."""
        return FirstDraws(self.kind) if self.kind in ("antithetic", "sobol") else nullcontext()

    def choose(self, tokens: Tensor, num_samples: int) -> Tensor:
        """Which trajectories go on: first one of each answer, then a second of each, and so on, in their order.

        Args:
            tokens: answers so far, int64 ``[M, B, L_out]``.

        Returns:
            int64 ``[num_samples, B]``, numbers in [0, M).
        """
        if not self.gives_up:
            return torch.arange(num_samples, device=tokens.device)[:, None].expand(-1, tokens.shape[1])
        return occurrence(tokens).argsort(dim=0, stable=True)[:num_samples]


def occurrence(tokens: Tensor) -> Tensor:
    """How many earlier trajectories of the same input have the same answer: ``[M, B, L_out]`` to int64 ``[M, B]``."""
    answers = tokens.flatten(0, 1).unique(dim=0, return_inverse=True)[1].view(tokens.shape[:2])
    order = answers.argsort(dim=0, stable=True)
    ordered = answers.gather(0, order)
    place = torch.arange(len(answers), device=tokens.device)[:, None].expand_as(answers)
    begins = torch.ones_like(ordered, dtype=torch.bool)
    begins[1:] = ordered[1:] != ordered[:-1]
    start = torch.where(begins, place, 0).cummax(0).values
    return torch.empty_like(place).scatter_(0, order, place - start)


class FirstDraws(Messenger):
    """Draws the first guidance that it sees, of trajectories at dim -2 of the batch, antithetically or by Sobol.

    Each trajectory by itself is one of the prior; together they are not independent.

    Raises:
        ConfigError: a prior that is not Gaussian, or a sequence of too many numbers for Sobol.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.seen = False

    def _pyro_sample(self, msg: Any) -> None:
        if self.seen or transition_index(msg["name"]) is None:
            return
        self.seen = True
        if msg["done"] or msg["is_observed"]:  # somebody has fixed it: a program conditioned on its guidance
            return
        base = getattr(msg["fn"], "base_dist", None)
        if not isinstance(base, torch.distributions.Normal) or isinstance(base, MeanOnly):
            raise ConfigError(
                f"{self.kind} trajectories need a Gaussian prior: use independent ones with another family"
            )
        noise = antithetic if self.kind == "antithetic" else sobol
        msg["value"] = base.loc + base.scale * noise(base.loc)
        msg["done"] = True


def antithetic(like: Tensor) -> Tensor:
    """Standard normal noise of the shape ``[N, ...]`` of ``like``, the second half of it the first one's negative."""
    half = torch.randn_like(like[: (len(like) + 1) // 2])
    return torch.cat((half, -half))[: len(like)]


def sobol(like: Tensor) -> Tensor:
    """Standard normal noise of the shape ``[N, B, L, D]`` of ``like``, for each input a Sobol sequence over L * D."""
    n, b, length, width = like.shape
    size = length * width
    if size > torch.quasirandom.SobolEngine.MAXDIM:
        raise ConfigError(
            f"a state of {size} numbers is too large for Sobol: use antithetic or independent trajectories"
        )
    engine = torch.quasirandom.SobolEngine(size, scramble=True, seed=int(torch.randint(2**31, ())))
    points = engine.draw(n).to(like)[:, None] + torch.rand(b, size, device=like.device, dtype=like.dtype)
    tiny = torch.finfo(like.dtype).eps
    return (2**0.5 * torch.erfinv(2 * (points % 1).clamp(tiny, 1 - tiny) - 1)).view(like.shape)
