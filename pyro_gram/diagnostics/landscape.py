"""The loss that trajectories of one input cross, in the plane of their two principal components (Fig. 18, 19)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from pyro.poutine.messenger import Messenger
from scipy.interpolate import RBFInterpolator
from scipy.spatial import KDTree
from torch import Tensor

from pyro_gram.checks import check_counts
from pyro_gram.diagnostics.trajectories import answers_of, followed, numbered, on_cpu, states_of
from pyro_gram.errors import ConfigError
from pyro_gram.inference.sites import ANSWER
from pyro_gram.sampling.rollout import Decode
from pyro_gram.sampling.tempering import NO_TEMPER, AtMean, Temper, TemperConfig
from pyro_gram.tasks.base import Task

SCORED = 64  # solutions scored at once: [N, SCORED, L_out] log-probabilities
LEAST_LOSS = 1e-4  # nats: less counts as this in the interpolation, which is of logarithms
GRID = 100  # places along each component
# In units of the picture: what it shows around the states, and how far from one of them the loss is told.
MARGIN, REACH = 0.08, 0.12
SMOOTHING = 0.02  # of the interpolation: states that project to one place need not have one loss


@dataclass(frozen=True)
class Landscape:
    """Trajectories of one input in the plane in which they come to differ most, and the loss that they cross.

    Attributes:
        points: projections of h, z_0's first, float64 ``[S + 1, N, 2]``.
        loss: at each, nats, float64 ``[S + 1, N]``: -log of the probability of all known solutions together or, where
            none are known, of the decoded answer.
        answer: which distinct answer each trajectory ends in, 0 the most frequent, int64 ``[N]``.
        right: is it right? bool ``[N]``; None where that is not known.
        mean_points, mean_loss: of the deterministic path, ``[S + 1, 2]`` and ``[S + 1]``; None where the prior has no
            mean.
        mean_right: is the answer of the deterministic path right? None where there is no such path, or it is not known.
        explained: the share of the variance of h, in the last half of the steps, that each component explains.
        grid_x, grid_y: places along the components, float64 ``[G]``.
        grid: the loss there, nats, float64 ``[G, G]``, rows along y. It is interpolated between the visited states,
            whatever else sets them apart, and so no slice through the landscape; NaN far from all of them.
        num_solutions: the known solutions behind the loss, 0 where none are.
    """

    points: Tensor
    loss: Tensor
    answer: Tensor
    right: Tensor | None
    mean_points: Tensor | None
    mean_loss: Tensor | None
    mean_right: bool | None
    explained: tuple[float, float]
    grid_x: Tensor
    grid_y: Tensor
    grid: Tensor
    num_solutions: int


def landscape(
    model: Callable[..., Any],
    task: Task,
    x: Tensor | None,
    solutions: Tensor | None,
    *,
    depth: int,
    num_samples: int = 64,
    seed: int = 0,
    temper: TemperConfig = NO_TEMPER,
) -> Landscape | None:
    """Project trajectories of one input, and the deterministic path, and score every state on the way.

    Args:
        x: one input, int64 ``[1, *event]``; None for p(x).
        solutions: all solutions of the input, as training lists them, integers ``[m, L_out]``; None where they are not
            known. No trajectory sees them.
        depth: supervision steps.
        num_samples: N.

    Returns:
        None where no state differs from another: there is no plane then.

    Raises:
        ConfigError: scikit-learn is not installed.
    """
    check_installed()
    check_counts(seed=seed, num_samples=num_samples, depth=depth)
    many = _path(model, x, solutions, num_samples, depth, seed, Temper(temper))
    if (many.h == many.h[0, 0]).all():
        return None
    try:
        mean = _path(model, x, solutions, 1, depth, seed, AtMean())
    except NotImplementedError:
        mean = None
    plane = _plane(many.h)
    points = _projected(plane, many.h)
    mean_points = None if mean is None else _projected(plane, mean.h)[:, 0]
    mean_right = None if mean is None else _right(task, x, mean.tokens)
    first, second = plane.explained_variance_ratio_.tolist()
    return Landscape(
        points,
        many.loss,
        numbered(task.canonical_form(on_cpu(x), many.tokens[:, None]))[:, 0],
        _right(task, x, many.tokens),
        mean_points,
        None if mean is None else mean.loss[:, 0],
        None if mean_right is None else bool(mean_right),
        (first, second),
        *surface(points.flatten(0, 1), many.loss.flatten()),
        num_solutions=0 if solutions is None else len(solutions),
    )


@dataclass(frozen=True)
class _Path:
    """Final ``tokens`` int64 ``[N, L_out]``; flattened ``h`` ``[S + 1, N, L D]`` and ``loss`` ``[S + 1, N]``."""

    tokens: Tensor
    h: Tensor
    loss: Tensor


def _path(
    model: Callable[..., Any],
    x: Tensor | None,
    solutions: Tensor | None,
    n: int,
    depth: int,
    seed: int,
    handler: Messenger,
) -> _Path:
    def keep(end: Decode) -> tuple[Tensor, Tensor, Tensor]:
        return answers_of(end)[:, 0], states_of(end)[:, 0].flatten(1), loss_of(end, solutions)[:, 0]

    tokens, h, loss = zip(*followed(model, x, n, depth, seed, handler, keep), strict=True)
    return _Path(tokens[-1], torch.stack(h), torch.stack(loss))


def _plane(h: Tensor) -> Any:
    """The two principal components in which trajectories come to differ: of the states in the last half of the steps.

    Over all steps they would be those in which all trajectories move together, away from z_0. Such a component is
    all that there is where trajectories are one (a deterministic program).
    """
    late = h[(len(h) + 1) // 2 :]
    apart = (late - late[:, :1]).abs().max() > 1e-3 * late.abs().max()
    return _decomposition().PCA(2, random_state=0).fit((late if apart else h).flatten(0, 1).numpy())


def _projected(plane: Any, h: Tensor) -> Tensor:
    return torch.from_numpy(plane.transform(h.flatten(0, 1).numpy())).double().view(*h.shape[:2], 2)


def loss_of(end: Decode, solutions: Tensor | None) -> Tensor:
    """-log sum_m p(y_m | h) over ``solutions`` ``[m, L_out]``; without, of the decoded answer. Nats, ``[N, B]``."""
    if solutions is None:
        log_p = end.likelihood.log_prob(end.values[ANSWER])
    else:
        parts = solutions.long().to(end.state.h.device).split(SCORED)
        scored = [end.likelihood.log_prob(part[:, None, None]).cpu().double().logsumexp(0) for part in parts]
        log_p = torch.stack(scored).logsumexp(0)
    return -log_p.cpu().double().clamp(max=0)  # MPS has no float64


def _right(task: Task, x: Tensor | None, tokens: Tensor) -> Tensor | None:
    """bool ``[N]``."""
    x, tokens = on_cpu(x), tokens[:, None]
    if not task.is_checkable or not task.has_known_answer(x, tokens).all():
        return None
    return task.is_valid(x, tokens)[:, 0]


def surface(points: Tensor, loss: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The loss between the states: geometric means over the cells of a grid, and radial basis functions through them.

    Args:
        points: ``[M, 2]``; many of them may coincide.
        loss: nats, ``[M]``.

    Returns:
        places along x and along y, ``[GRID]`` each, and the loss, ``[GRID, GRID]``, rows along y: float64.
    """
    low, size = points.amin(0), points.amax(0) - points.amin(0)
    size = size.clamp(min=1e-3 * size.max())  # a component may be empty
    scaled = ((points - low) / size).numpy()
    _, cell = np.unique((scaled * GRID).round(), axis=0, return_inverse=True)
    count = np.bincount(cell)
    centres = np.stack([np.bincount(cell, along) / count for along in scaled.T], 1)
    logs = np.bincount(cell, loss.clamp(min=LEAST_LOSS).log().numpy()) / count
    places = np.linspace(-MARGIN, 1 + MARGIN, GRID)
    asked = np.stack(np.meshgrid(places, places), -1).reshape(-1, 2)
    found = RBFInterpolator(centres, logs, kernel="linear", degree=0, smoothing=SMOOTHING)(asked)
    found[KDTree(centres).query(asked)[0] > REACH] = np.nan
    along_x, along_y = low[:, None] + torch.from_numpy(places) * size[:, None]
    return along_x, along_y, torch.from_numpy(found).exp().view(GRID, GRID)


def check_installed() -> None:
    """Raises ConfigError unless scikit-learn is there."""
    _decomposition()


def _decomposition() -> ModuleType:
    try:
        import sklearn.decomposition
    except ImportError:
        raise ConfigError(
            "projecting trajectories needs the package scikit-learn: pip install -e '.[diagnose]'"
        ) from None
    return sklearn.decomposition
