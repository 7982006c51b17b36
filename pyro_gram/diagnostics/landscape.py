"""The loss along trajectories of one input, in the plane of their first two principal components (Fig. 18, 19)."""

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
from pyro_gram.diagnostics.trajectories import answers_of, number_answers, record_steps, states_of
from pyro_gram.errors import ConfigError
from pyro_gram.inference.sites import ANSWER
from pyro_gram.sampling.steps import Decode, to_cpu
from pyro_gram.sampling.tempering import NO_TEMPER, AtMean, Temper, TemperConfig
from pyro_gram.tasks.base import Task

SOLUTION_CHUNK = 64  # solutions that are scored at once; their log-probabilities are [N, SOLUTION_CHUNK, L_out]
LEAST_LOSS = 1e-4  # nats: smaller losses are raised to this value, because the logarithm of the loss is interpolated
GRID = 100  # grid points along each component
# Relative to the range of the states, MARGIN is the margin of the picture. The loss is drawn only where a state is
# nearer than REACH.
MARGIN, REACH = 0.08, 0.12
SMOOTHING = 0.02  # smooths the interpolation: states with the same projection may have different losses


@dataclass(frozen=True)
class Landscape:
    """Trajectories of one input, projected on the plane in which they differ most, and their losses.

    Attributes:
        points: projections of h, z_0 first, float64 ``[S + 1, N, 2]``.
        loss: the loss at each point, nats, float64 ``[S + 1, N]``: -log of the probability of all known solutions
            together or, if none is known, of the decoded answer.
        answer: the number of the answer in which each trajectory ends, 0 the most frequent, int64 ``[N]``.
        is_right: is the answer right? bool ``[N]``; None if the right answers are not known.
        mean_points, mean_loss: points and loss of the deterministic trajectory, ``[S + 1, 2]`` and ``[S + 1]``; None
            for a prior without a mean.
        mean_is_right: is the answer of the deterministic trajectory right? None if there is no such trajectory, or if
            the right answer is not known.
        explained_variance: the share of the variance of h that each component explains, in the last half of the steps.
        grid_x, grid_y: grid points along the components, float64 ``[G]``.
        grid: the loss at the grid points, nats, float64 ``[G, G]``; the rows run along y. It is interpolated between
            visited states. The states also differ in other directions, so the grid is not a slice through the loss.
            Grid points far from all states are NaN.
        num_solutions: the number of solutions whose probability is in ``loss``; 0 if none is known.
    """

    points: Tensor
    loss: Tensor
    answer: Tensor
    is_right: Tensor | None
    mean_points: Tensor | None
    mean_loss: Tensor | None
    mean_is_right: bool | None
    explained_variance: tuple[float, float]
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
    """Project trajectories of one input on a plane, and compute the loss at every state.

    The deterministic trajectory, whose draws are all the prior's mean, is projected too.

    Args:
        x: one input, int64 ``[1, *event]``; None for p(x).
        solutions: all solutions of the input, ``[m, L_out]``, from ``PuzzleSet.solutions_of``; None if they are not
            known. The loss uses the solutions; the trajectories do not see them.
        depth: supervision steps.
        num_samples: N, the number of trajectories.

    Returns:
        the landscape; None if all states are equal, because then there is no plane.

    Raises:
        ConfigError: scikit-learn is not installed.
    """
    check_installed()
    check_counts(seed=seed, num_samples=num_samples, depth=depth)
    samples = _record_paths(model, x, solutions, num_samples, depth, seed, Temper(temper))
    if (samples.h == samples.h[0, 0]).all():
        return None
    try:
        mean = _record_paths(model, x, solutions, 1, depth, seed, AtMean())
    except NotImplementedError:
        mean = None
    plane = _fit_plane(samples.h)
    points = _project(plane, samples.h)
    mean_points = None if mean is None else _project(plane, mean.h)[:, 0]
    mean_is_right = None if mean is None else _is_right(task, x, mean.tokens)
    first, second = plane.explained_variance_ratio_.tolist()
    return Landscape(
        points,
        samples.loss,
        number_answers(task.canonical_form(to_cpu(x), samples.tokens[:, None]))[:, 0],
        _is_right(task, x, samples.tokens),
        mean_points,
        None if mean is None else mean.loss[:, 0],
        None if mean_is_right is None else bool(mean_is_right),
        (first, second),
        *interpolate_loss(points.flatten(0, 1), samples.loss.flatten()),
        num_solutions=0 if solutions is None else len(solutions),
    )


@dataclass(frozen=True)
class _Paths:
    """Trajectories: final ``tokens`` int64 ``[N, L_out]``, flat ``h`` ``[S + 1, N, L D]``, ``loss`` ``[S + 1, N]``."""

    tokens: Tensor
    h: Tensor
    loss: Tensor


def _record_paths(
    model: Callable[..., Any],
    x: Tensor | None,
    solutions: Tensor | None,
    num_samples: int,
    depth: int,
    seed: int,
    handler: Messenger,
) -> _Paths:
    def record(end: Decode) -> tuple[Tensor, Tensor, Tensor]:
        return answers_of(end)[:, 0], states_of(end)[:, 0].flatten(1), loss_of(end, solutions)[:, 0]

    tokens, h, loss = zip(*record_steps(model, x, num_samples, depth, seed, handler, record), strict=True)
    return _Paths(tokens[-1], torch.stack(h), torch.stack(loss))


def _fit_plane(h: Tensor) -> Any:
    """Fit the two principal components of the states in the last half of the steps, where trajectories differ.

    Components of all steps would show how the trajectories move away from z_0 together. All steps are used only if
    all trajectories are the same (a deterministic program).
    """
    late_states = h[(len(h) + 1) // 2 :]
    is_spread = (late_states - late_states[:, :1]).abs().max() > 1e-3 * late_states.abs().max()
    return _decomposition().PCA(2, random_state=0).fit((late_states if is_spread else h).flatten(0, 1).numpy())


def _project(plane: Any, h: Tensor) -> Tensor:
    return torch.from_numpy(plane.transform(h.flatten(0, 1).numpy())).double().view(*h.shape[:2], 2)


def loss_of(end: Decode, solutions: Tensor | None) -> Tensor:
    """Return -log sum_m p(y_m | h) over ``solutions`` ``[m, L_out]``, or -log p(decoded answer | h) without solutions.

    Returns:
        nats, ``[N, B]``.
    """
    if solutions is None:
        log_p = end.likelihood.log_prob(end.values[ANSWER])
    else:
        parts = solutions.long().to(end.state.h.device).split(SOLUTION_CHUNK)
        sums = [end.likelihood.log_prob(part[:, None, None]).cpu().double().logsumexp(0) for part in parts]
        log_p = torch.stack(sums).logsumexp(0)
    return -log_p.cpu().double().clamp(max=0)  # moved to the CPU first, because MPS has no float64


def _is_right(task: Task, x: Tensor | None, tokens: Tensor) -> Tensor | None:
    """Return the mask of right answers, bool ``[N]``; None if the right answers are not known."""
    x, tokens = to_cpu(x), tokens[:, None]
    if not task.is_checkable or not task.has_known_answer(x, tokens).all():
        return None
    return task.is_valid(x, tokens)[:, 0]


def interpolate_loss(points: Tensor, loss: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Interpolate the loss between states.

    The loss is first averaged (geometrically) over the states in each grid cell. Radial basis functions then
    interpolate between these means.

    Args:
        points: the projected states, ``[M, 2]``; many points may coincide.
        loss: nats, ``[M]``.

    Returns:
        the grid points along x and along y, ``[GRID]`` each, and the loss, ``[GRID, GRID]``; float64. The rows of the
            loss run along y.
    """
    low, size = points.amin(0), points.amax(0) - points.amin(0)
    size = size.clamp(min=1e-3 * size.max())  # a component may be constant
    scaled_points = ((points - low) / size).numpy()
    _, cell = np.unique((scaled_points * GRID).round(), axis=0, return_inverse=True)
    count = np.bincount(cell)
    centres = np.stack([np.bincount(cell, coordinate) / count for coordinate in scaled_points.T], 1)
    log_loss = np.bincount(cell, loss.clamp(min=LEAST_LOSS).log().numpy()) / count
    axis = np.linspace(-MARGIN, 1 + MARGIN, GRID)
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    values = RBFInterpolator(centres, log_loss, kernel="linear", degree=0, smoothing=SMOOTHING)(grid)
    values[KDTree(centres).query(grid)[0] > REACH] = np.nan
    along_x, along_y = low[:, None] + torch.from_numpy(axis) * size[:, None]
    return along_x, along_y, torch.from_numpy(values).exp().view(GRID, GRID)


def check_installed() -> None:
    """Raise ConfigError unless scikit-learn is installed."""
    _decomposition()


def _decomposition() -> ModuleType:
    try:
        import sklearn.decomposition
    except ImportError:
        raise ConfigError(
            "projecting trajectories needs the package scikit-learn: pip install -e '.[diagnose]'"
        ) from None
    return sklearn.decomposition
