"""Trajectories as ArviZ sees them; the only module that imports ArviZ.

``chain`` is an independent batch of trajectories, ``draw`` a trajectory, ``instance`` an input, ``transition`` one step
of the recursion. Works with ArviZ 0.23 (InferenceData) and 1.x (DataTree).
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # 0.23 announces 1.x at import
    import arviz as az

from pyro_gram.files import write_via

if TYPE_CHECKING:
    import torch

    from pyro_gram.tasks.base import PuzzleSet, Task

ARVIZ_MAJOR = int(az.__version__.split(".")[0])
STATE_INSTANCES = 2  # the final state is large: kept for this many inputs
DIMS = {
    "guidance": ["instance", "transition"],
    "h": ["state_instance", "latent_position", "channel"],
    "kl": ["instance", "transition"],
    "log_p_y": ["instance"],
    "log_weight": ["instance"],
    "score": ["instance"],
    "y": ["instance", "position"],
    "violations": ["instance"],
    "valid": ["instance"],
    "solution": ["instance"],
    "num_solutions": ["instance"],
}
UNITS = {
    "log_p_y": "nats, log p(y | h_T)",
    "guidance": "root mean square of eps_t over positions and channels",
    "h": "final high-level state h_T",
    "kl": "nats, KL(q || p) of one transition",
    "log_weight": "nats, log p(y, tau | x) - log q(tau | x, y)",
    "score": "nats, log p(y_hat | h_T); of diffusion models, of the path to y_hat",
    "solution": "index among the input's solutions, -1 for none of them",
    "violations": "number of violated constraints",
    "valid": "1 where the answer is right",
}


def from_groups(groups: dict[str, dict[str, Any]], dims: dict[str, list[str]] | None = None) -> Any:
    """Groups of named arrays to an InferenceData (0.23) or a DataTree (1.x); ``dims`` names what follows chain, draw.

    Args:
        groups: group name -> variable name -> array. Arrays of ``observed_data`` and ``constant_data`` start with the
            instance, all others with ``[chain, draw]``.
    """
    arrays: dict[str, Any] = {g: {k: np.asarray(v) for k, v in variables.items()} for g, variables in groups.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # "more chains than draws" and the like are no news here
        if ARVIZ_MAJOR == 0:
            data = az.from_dict(**arrays, dims=dims or {})
        else:
            data = az.from_dict(arrays, dims=dims or {})
    for group, variables in arrays.items():
        for name in variables:
            if name in UNITS:
                data[group][name].attrs["description"] = UNITS[name]
    return data


def pareto_smoothed(log_weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pareto-smoothed log weights, ``[S, B]`` float64, and k-hat, ``[B]`` (PSIS; Vehtari et al., 2024).

    Their scale is kept: the mean of the smoothed weights estimates what the mean of the raw ones does. A tail that
    cannot be fitted stays as it is: with k-hat infinite where there are too few draws, and 0 where they are all equal.
    """
    import torch

    rows = np.array(log_weight.detach().cpu().T, dtype=np.float64)
    smoothed, khat = rows.copy(), np.full(len(rows), np.inf)
    for i, row in enumerate(rows):
        tail = np.sort(row)[-max(1, int(min(len(row) / 5, 3 * len(row) ** 0.5))) :]
        if tail[-1] - tail[0] < 1e-9:
            khat[i] = 0.0
        elif len(row) >= LEAST_DRAWS:
            found, khat[i] = _psis(row)
            lowest = row.argmin()  # of the body, which is not smoothed
            smoothed[i] = found - found[lowest] + row[lowest]
    return torch.from_numpy(smoothed.T.copy()), torch.from_numpy(khat)


LEAST_DRAWS = 25  # a fifth of them is fitted


def _psis(row: np.ndarray) -> tuple[np.ndarray, float]:
    """Smoothed log weights up to a constant, and k-hat."""
    if ARVIZ_MAJOR == 0:
        found, k = az.psislw(row[None])
        return found[0], float(k[0])
    from arviz_stats.base import array_stats

    found, k = array_stats.psislw(-row)  # takes log-likelihoods, and turns their sign itself
    return found, float(k)


def save(data: Any, path: Path) -> None:
    """Write netCDF through h5netcdf, atomically."""
    write_via(path, lambda temporary: data.to_netcdf(str(temporary), engine="h5netcdf"))


def load(path: str | Path) -> Any:
    """Read what :func:`save` wrote."""
    return az.from_netcdf(str(path), engine="h5netcdf")


def collect(
    task: Task,
    model: torch.nn.Module,
    guide: torch.nn.Module,
    puzzles: PuzzleSet,
    *,
    depth: int,
    inputs: int = 32,
    chains: int = 4,
    draws: int = 25,
    seed: int = 0,
) -> Any:
    """The guide's and the prior's trajectories on the first ``inputs`` puzzles, each with one target drawn uniformly.

    Without input (p(x)) an instance is a datum for the guide; the prior's trajectories belong to no datum, and its
    groups have one instance.

    Groups ``posterior``, ``posterior_predictive``, ``log_likelihood`` and ``sample_stats`` come from the guide, which
    has seen y, and say nothing about accuracy (a model without an inference network has none of them); ``prior``,
    ``prior_predictive`` and ``sample_stats_prior`` from fresh trajectories.
    """
    import torch

    from pyro_gram.inference.importance import MAX_TRACED, GuidanceScale, guide_draws
    from pyro_gram.inference.sampling import at_once, rollout
    from pyro_gram.tasks.stream import generator_for

    puzzles = puzzles.subset(inputs)
    x, y = puzzles.pairs(inputs, generator_for(seed, len(puzzles)))
    max_traced = at_once(task.spec.input_length, MAX_TRACED)
    groups: dict[str, dict[str, list[Any]]] = {}

    def keep(group: str, **values: Any) -> None:
        for name, value in values.items():
            groups.setdefault(group, {}).setdefault(name, []).append(np.asarray(value))

    infers = getattr(guide, "infers", True)
    for chain in range(chains):
        if infers:
            q = guide_draws(
                model, guide, x, y, steps=depth, num_samples=draws, seed=seed + chain, max_traced=max_traced
            )
            keep("posterior", guidance=q.guidance.permute(1, 2, 0), h=q.h[:, :STATE_INSTANCES])
            keep("posterior_predictive", **_decoded(task, puzzles, q.tokens))
            keep("log_likelihood", log_p_y=q.log_likelihood)
            keep("sample_stats", log_weight=q.log_weight, kl=q.kl.permute(1, 2, 0))
        with GuidanceScale() as scale:
            whole = draws * len(puzzles)
            p = rollout(model, x, num_samples=draws, depth=depth, seed=seed + chain, max_trajectories=whole)
        if scale.by_transition:
            guidance = torch.stack([t.expand(draws, len(puzzles)) for t in scale.by_transition])
            keep("prior", guidance=guidance.permute(1, 2, 0))
        keep("prior_predictive", **_decoded(task, puzzles, p.tokens))
        keep("sample_stats_prior", score=p.score)
    stacked: dict[str, dict[str, Any]] = {g: {k: np.stack(v) for k, v in vs.items()} for g, vs in groups.items()}
    stacked["observed_data"] = {"y": y}
    dims = dict(DIMS)
    if x is not None:
        stacked["constant_data"] = {"x": x, "num_solutions": puzzles.num_solutions}
        dims["x"] = ["instance", "position_in"] + ["feature"] * (x.ndim - 2)
    return from_groups(stacked, dims)


def _decoded(task: Task, puzzles: PuzzleSet, tokens: torch.Tensor) -> dict[str, Any]:
    from pyro_gram.diagnostics.metrics import solution_ids

    decoded: dict[str, Any] = {"y": tokens}
    if task.checkable:
        broken = task.violations(puzzles.inputs, tokens)
        decoded |= {"violations": broken, "valid": (broken == 0).long()}
    if puzzles.complete:
        decoded["solution"] = solution_ids(task, puzzles, tokens)
    return decoded
