"""Collect trajectories of the guide and the prior as ArviZ data, save and load them, and prepare them for plots.

This is the only module that imports ArviZ. It supports ArviZ 0.23 (InferenceData) and 1.x (DataTree). In the data,
``chain`` is an independent batch of trajectories, ``draw`` a trajectory, ``instance`` an input, ``transition`` one
transition of the latent process, and ``step`` one supervision step (T transitions).
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyro_gram.diagnostics.metrics import solution_ids
from pyro_gram.errors import InputError, UserError
from pyro_gram.inference.guide import padding_mask, why_no_guide
from pyro_gram.inference.importance import MAX_TRACED, guidance_scale, guide_draws
from pyro_gram.inference.sites import ANSWER, HALT, VALUE, transition_index
from pyro_gram.sampling.memory import chunk_size
from pyro_gram.sampling.steps import isolated_rng, rollout_steps, to_device_of
from pyro_gram.system.files import explain_file_type, write_atomically
from pyro_gram.system.text import convert_read_errors
from pyro_gram.tasks.base import PuzzleSet, Task
from pyro_gram.tasks.batches import derive_seed, generator_for

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # ArviZ 0.23 announces 1.x at import
    import arviz as az

ARVIZ_MAJOR = int(az.__version__.split(".")[0])
HDF5 = b"\x89HDF\r\n\x1a\n"
STATE_INSTANCES = 2  # final states are stored for this many inputs only, because states are large
PROJECTIONS = 2
LEAST_DRAWS = 25  # PSIS fits the largest fifth of the weights, and this fifth must hold at least five weights
GROUPS = (  # all groups that `collect` can make
    "posterior",
    "posterior_predictive",
    "sample_stats",
    "log_likelihood",
    "prior",
    "prior_predictive",
    "sample_stats_prior",
    "observed_data",
    "constant_data",
)
DIMS = {
    "guidance": ["instance", "transition"],
    "path": ["instance", "step", "projection"],
    "h": ["state_instance", "latent_position", "channel"],
    "kl": ["instance", "transition"],
    "log_p_y": ["instance"],
    "log_weight": ["instance"],
    "score": ["instance", "step"],
    "halt": ["instance", "step"],
    "value": ["instance", "step"],
    "y": ["instance", "position"],
    "violations": ["instance"],
    "valid": ["instance"],
    "solution": ["instance"],
    "num_solutions": ["instance"],
}
UNITS = {
    "guidance": "root mean square of eps_t over positions and channels",
    "path": "projections of h after a supervision step on fixed random unit directions",
    "h": "final high-level state h_T",
    "kl": "nats, KL(q || p) of one transition",
    "log_p_y": "nats, log p(y | h_T)",
    "log_weight": "nats, log p(y, tau | x) - log q(tau | x, y)",
    "score": "nats, log p(y_hat | h) after a supervision step; for diffusion models, that of the path to y_hat",
    "halt": "P(the answer after a supervision step is right), by the halt head",
    "value": "P(the trajectory's last answer is right), by the value head after a supervision step",
    "solution": "index among the input's solutions, -1 for none of them",
    "violations": "number of violated constraints",
    "valid": "1 if the answer is right, else 0",
    "num_solutions": "number of solutions of the input, if all are known",
}

Groups = dict[str, dict[str, Any]]


# ---- collecting trajectories -------------------------------------------------------------------------------------


def collect(
    task: Task,
    model: nn.Module,
    guide: nn.Module,
    puzzles: PuzzleSet,
    *,
    depth: int,
    inputs: int = 32,
    chains: int = 4,
    draws: int = 25,
    seed: int = 0,
) -> Any:
    """Sample trajectories of the guide and of the prior on a few inputs. Each input has one target y.

    The target is drawn uniformly from the solutions. The groups ``posterior``, ``posterior_predictive``,
    ``log_likelihood`` and ``sample_stats`` come from the guide, which is given y. They say nothing about accuracy, and
    are missing without an inference network. The groups ``prior``, ``prior_predictive`` and ``sample_stats_prior`` come
    from trajectories of the untempered prior. A model p(x) has no inputs: the instances of the guide's groups are then
    data y, and the groups of the prior have one instance.

    Args:
        puzzles: the first ``inputs`` inputs are used.
        depth: supervision steps.
        chains, draws: the number of batches, and the number of trajectories of each input in a batch.

    Returns:
        an InferenceData (ArviZ 0.23) or a DataTree (1.x).
    """
    puzzles = puzzles.subset(inputs)
    x, y = puzzles.sample_pairs(inputs, generator_for(seed, len(puzzles)))
    batches: list[Groups] = []
    for chain in range(chains):
        groups = _prior_groups(task, model, puzzles, depth=depth, draws=draws, seed=derive_seed(seed, chain, 0))
        if not why_no_guide(model, guide):
            guide_seed = derive_seed(seed, chain, 1)
            groups |= _guide_groups(task, model, guide, puzzles, y, depth=depth, draws=draws, seed=guide_seed)
        batches.append(groups)
    stacked_groups: Groups = {g: {k: np.stack([b[g][k] for b in batches]) for k in batches[0][g]} for g in batches[0]}
    stacked_groups["observed_data"] = {"y": y}
    if task.is_checkable:
        stacked_groups["observed_data"]["violations"] = task.violations(x, y)
    dims = dict(DIMS)
    if x is not None:
        stacked_groups["constant_data"] = {"x": x, "num_solutions": puzzles.num_solutions}
        dims["x"] = ["instance", "position_in"] + ["feature"] * (x.ndim - 2)
    return from_groups(stacked_groups, dims, UNITS)


def _guide_groups(
    task: Task, model: nn.Module, guide: nn.Module, puzzles: PuzzleSet, y: Tensor, *, depth: int, draws: int, seed: int
) -> Groups:
    max_traced = chunk_size(task.spec.positions, MAX_TRACED)
    x, y = to_device_of(model, puzzles.inputs), to_device_of(model, y)
    q = guide_draws(model, guide, x, y, steps=depth, num_samples=draws, seed=seed, max_traced=max_traced)
    return {
        "posterior": {"guidance": q.guidance.permute(1, 2, 0), "h": q.h[:, :STATE_INSTANCES]},
        "posterior_predictive": _check_answers(task, puzzles, q.tokens),
        "log_likelihood": {"log_p_y": q.log_likelihood},
        "sample_stats": {"log_weight": q.log_weight, "kl": q.kl.permute(1, 2, 0)},
    }


class _RecordGuidanceScale(Messenger):
    """Record the scale of the guidance (the root mean square of eps) of each transition."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.by_transition: list[Tensor] = []

    def _pyro_post_sample(self, msg: Any) -> None:
        if transition_index(msg["name"]) is not None:
            self.by_transition.append(guidance_scale(msg["value"], padding_mask(self.model)))


def _prior_groups(task: Task, model: nn.Module, puzzles: PuzzleSet, *, depth: int, draws: int, seed: int) -> Groups:
    x, shape = to_device_of(model, puzzles.inputs), (draws, len(puzzles))
    by_step: dict[str, list[Tensor]] = {}
    with isolated_rng(model, x), _RecordGuidanceScale(model) as scale:
        torch.manual_seed(seed)
        for end in rollout_steps(model, x, depth=depth, num_samples=draws):
            tokens, h = end.values[ANSWER], end.state.h
            values = {"path": project_states(h), "score": end.likelihood.log_prob(tokens)}
            values |= {name: end.values[name] for name in (HALT, VALUE) if name in end.values}
            for name, tensor in values.items():
                by_step.setdefault(name, []).append(_expand(tensor, shape, DIMS[name][2:]))
    steps = {name: torch.stack(tensors, 2) for name, tensors in by_step.items()}
    prior = {"path": steps.pop("path"), "h": _expand(h, shape, DIMS["h"][1:])[:, :STATE_INSTANCES]}
    if scale.by_transition:
        prior["guidance"] = torch.stack([t.expand(shape).cpu() for t in scale.by_transition], 2)
    answers = _check_answers(task, puzzles, tokens.cpu())
    return {"prior": prior, "prior_predictive": answers, "sample_stats_prior": steps}


def _expand(values: Tensor, shape: tuple[int, int], event_dims: list[str]) -> Tensor:
    """Expand shared values, so that each trajectory of each input has its own value: ``[*shape, *event]``."""
    return values.expand(*shape, *values.shape[values.dim() - len(event_dims) :]).cpu()


def project_states(h: Tensor, count: int = PROJECTIONS) -> Tensor:
    """Project states ``[..., L, D]`` on ``count`` fixed random directions: ``[..., count]``."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(h.shape[-2] * h.shape[-1], count, generator=generator).to(h)
    return h.flatten(-2) @ (directions / directions.norm(dim=0))


def _check_answers(task: Task, puzzles: PuzzleSet, tokens: Tensor) -> dict[str, Any]:
    """Return answers with their violations and, if all solutions are known, the index of each answer among them."""
    answers: dict[str, Any] = {"y": tokens}
    if task.is_checkable:
        violations = task.violations(puzzles.inputs, tokens)
        answers |= {"violations": violations, "valid": (violations == 0).long()}
    if puzzles.has_all_solutions:
        answers["solution"] = solution_ids(task, puzzles, tokens)
    return answers


# ---- ArviZ data and files ----------------------------------------------------------------------------------------


def from_groups(groups: Groups, dims: dict[str, list[str]] | None = None, units: dict[str, str] | None = None) -> Any:
    """Make an InferenceData (ArviZ 0.23) or a DataTree (1.x) from groups of named arrays.

    Args:
        groups: group name -> variable name -> array. The first dimension of arrays in ``observed_data`` and
            ``constant_data`` is the instance. In all other groups the first two dimensions are chain and draw.
        dims: variable name -> the names of the dimensions after chain and draw.
        units: variable name -> the text of its attribute ``description``.
    """
    arrays: dict[str, Any] = {g: {k: np.asarray(v) for k, v in variables.items()} for g, variables in groups.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # for example, ArviZ warns of "more chains than draws"
        data = az.from_dict(**arrays, dims=dims or {}) if ARVIZ_MAJOR == 0 else az.from_dict(arrays, dims=dims or {})
    for group, variables in arrays.items():
        for name in variables:
            if units and name in units:
                data[group][name].attrs["description"] = units[name]
    return data


def group_names(data: Any) -> set[str]:
    """Return the names of the groups of an InferenceData (0.23) or a DataTree (1.x)."""
    return set(data.groups()) if callable(data.groups) else {g.strip("/") for g in data.groups} - {""}


def save(data: Any, path: str | Path) -> None:
    """Write netCDF through h5netcdf, atomically.

    Raises:
        UserError: ``path`` cannot be written.
    """
    write_atomically(Path(path), lambda temporary: data.to_netcdf(str(temporary), engine="h5netcdf"))


def load(path: str | Path) -> Any:
    """Load all data of a file that :func:`save` has written. The file is closed afterwards.

    Raises:
        InputError: the file does not exist, is damaged, or has another format.
    """
    path = Path(path)
    with convert_read_errors(str(path)), path.open("rb") as file:
        head = file.read(len(HDF5))
    if head != HDF5:
        reason = explain_file_type(path) or "it does not begin like HDF5"
        raise InputError(f"{path} is not a netCDF-4 file, the format of inference data: {reason}")
    try:
        with h5py.File(path) as file:
            has_groups = not set(file).isdisjoint(GROUPS)
        data = _load_netcdf(path) if has_groups else None
    except (MemoryError, PermissionError):
        raise
    except Exception as e:  # damaged bytes make h5py and xarray raise errors of many types
        reason = " ".join(str(e).split())[:200]
        raise InputError(f"cannot read {path}: the netCDF file is damaged or cut short ({reason})") from None
    if data is None:
        raise InputError(
            f"{path} is a netCDF or HDF5 file, but has none of the groups of inference data ({', '.join(GROUPS)})"
        )
    return data


def _load_netcdf(path: Path) -> Any:
    if ARVIZ_MAJOR == 0:
        with az.rc_context({"data.load": "eager"}):
            return az.from_netcdf(str(path), engine="h5netcdf")
    data = az.from_netcdf(str(path), engine="h5netcdf")
    data.load()
    data.close()
    return data


# ---- views for ArviZ's plots -------------------------------------------------------------------------------------


def depth_view(data: Any) -> Any:
    """Return the prior's trajectories as a group ``posterior``: its chains are trajectories, its draws are steps.

    A step is a supervision step. The view holds every variable with a dimension ``step``. A high R-hat means that the
    trajectories of an input end in different answers, as intended. The trajectories come from the prior, which is not
    given y.
    """
    arrays: dict[str, Any] = {}
    dims: dict[str, list[str]] = {}
    units: dict[str, str] = {}
    for group in ("prior", "sample_stats_prior"):
        for name, values in data[group].data_vars.items():
            if "step" in values.dims:
                ordered_values = values.transpose("chain", "draw", "step", ...)
                arrays[name] = ordered_values.values.reshape(-1, *ordered_values.shape[2:])
                dims[name] = [str(d) for d in ordered_values.dims[3:]]
                units[name] = values.attrs["description"]
    return from_groups({"posterior": arrays}, dims, units)


def khat(data: Any) -> Any:
    """Return k-hat of the guide's weights for each instance, in the form that ``az.plot_khat`` takes.

    The field ``elpd`` of the result is the sum over instances of held-out log p(y | x), estimated by Pareto-smoothed
    importance weights. It is not a leave-one-out estimate, because the guide was given y.

    Raises:
        UserError: the model has no inference network, so there are no weights.
    """
    if "sample_stats" not in group_names(data):
        raise UserError("there are no importance weights: the model has no inference network")
    weights = data["sample_stats"]["log_weight"].stack(__sample__=("chain", "draw")).transpose("__sample__", "instance")
    smoothed_log_weight, shape = pareto_smooth(torch.from_numpy(np.array(weights.values)))
    s, b = smoothed_log_weight.shape
    log_p = smoothed_log_weight.logsumexp(0).numpy() - np.log(s)
    by_instance = data["sample_stats"]["log_weight"].isel(chain=0, draw=0, drop=True)
    values: dict[str, Any] = {
        "elpd": log_p.sum(),
        "se": log_p.std() * b**0.5,
        "p": np.nan,
        "n_samples": s,
        "n_data_points": b,
        "warning": bool((shape > khat_threshold(s)).any()),
        "elpd_i": by_instance.copy(data=log_p).rename("elpd_i"),
        "pareto_k": by_instance.copy(data=shape.numpy()).rename("pareto_shape"),
        "scale": "log",
        "good_k": khat_threshold(s),
    }
    if ARVIZ_MAJOR == 0:
        from arviz.stats.stats_utils import ELPDData as Series

        names = {"elpd": "elpd_loo", "p": "p_loo", "elpd_i": "loo_i"}  # the names of ArviZ 0.23
        return Series(data=list(values.values()), index=[names.get(k, k) for k in values])
    from arviz_stats.utils import ELPDData

    return ELPDData(**values)


# ---- Pareto smoothing --------------------------------------------------------------------------------------------


def khat_threshold(num_samples: int) -> float:
    """Return the k-hat above which the mean of the weights cannot be trusted: min(1 - 1 / log10 S, 0.7).

    Vehtari et al., 2024.
    """
    return min(1 - 1 / np.log10(num_samples), 0.7) if num_samples > 1 else 0.0


def pareto_smooth(log_weight: Tensor) -> tuple[Tensor, Tensor]:
    """Replace the largest weights by quantiles of a generalized Pareto fit (PSIS; Vehtari et al., 2024).

    The scale of the weights is kept, so the mean of smoothed weights estimates the mean of raw weights. Weights
    that cannot be fitted are not changed; k-hat is then infinite for too few draws, and 0 for equal weights.

    Args:
        log_weight: ``[S, B]``.

    Returns:
        smoothed log weights, float64 ``[S, B]``, and k-hat, ``[B]``.
    """
    rows = np.array(log_weight.detach().cpu().T, dtype=np.float64)
    smoothed_log_weight, khats = rows.copy(), np.full(len(rows), np.inf)
    for i, row in enumerate(rows):
        tail = np.sort(row)[-max(1, int(min(len(row) / 5, 3 * len(row) ** 0.5))) :]
        if tail[-1] - tail[0] < 1e-9:
            khats[i] = 0.0
        elif len(row) >= LEAST_DRAWS:
            with np.errstate(over="ignore", invalid="ignore"):  # the fit tries extreme shapes
                values, khats[i] = _psis(row)
            lowest = row.argmin()  # the lowest weight is not smoothed: it gives the scale
            smoothed_log_weight[i] = values - values[lowest] + row[lowest]
    return torch.from_numpy(smoothed_log_weight.T.copy()), torch.from_numpy(khats)


def _psis(row: np.ndarray) -> tuple[np.ndarray, float]:
    """Return smoothed log weights up to a constant, and k-hat."""
    if ARVIZ_MAJOR == 0:
        smoothed_log_weight, k = az.psislw(row[None])
        return smoothed_log_weight[0], float(k[0])
    from arviz_stats.base import array_stats

    smoothed_log_weight, k = array_stats.psislw(-row)  # psislw() takes log-likelihoods and changes their sign
    return smoothed_log_weight, float(k)
