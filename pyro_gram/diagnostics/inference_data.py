"""What is asked of ArviZ, 0.23 (InferenceData) and 1.x (DataTree) alike; the only module that imports it.

What the groups hold is the business of ``collect``.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # 0.23 announces 1.x at import
    import arviz as az

from pyro_gram.errors import InputError, UserError
from pyro_gram.system.files import explain_file_type, write_atomically
from pyro_gram.system.text import convert_read_errors

if TYPE_CHECKING:
    import torch

ARVIZ_MAJOR = int(az.__version__.split(".")[0])
HDF5 = b"\x89HDF\r\n\x1a\n"
GROUPS = (  # some or all of them are what `collect` gives
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
LEAST_DRAWS = 25  # a fifth of the weights is fitted: five


def from_groups(
    groups: dict[str, dict[str, Any]], dims: dict[str, list[str]] | None = None, units: dict[str, str] | None = None
) -> Any:
    """Groups of named arrays to an InferenceData (0.23) or a DataTree (1.x).

    Args:
        groups: group name -> variable name -> array. Arrays of ``observed_data`` and ``constant_data`` start with the
            instance, all others with ``[chain, draw]``.
        dims: variable name -> the names of the dimensions that follow chain, draw.
        units: variable name -> what its attribute ``description`` will say.
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
            if units and name in units:
                data[group][name].attrs["description"] = units[name]
    return data


def good_khat(num_samples: int) -> float:
    """Above it the mean of as many weights cannot be trusted: 0.7 for many, less for few (Vehtari et al., 2024)."""
    return min(1 - 1 / np.log10(num_samples), 0.7) if num_samples > 1 else 0.0


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
            with np.errstate(over="ignore", invalid="ignore"):  # its fit tries shapes that are far off
                found, khat[i] = _psis(row)
            lowest = row.argmin()  # of the body, which is not smoothed
            smoothed[i] = found - found[lowest] + row[lowest]
    return torch.from_numpy(smoothed.T.copy()), torch.from_numpy(khat)


def _psis(row: np.ndarray) -> tuple[np.ndarray, float]:
    """Smoothed log weights up to a constant, and k-hat."""
    if ARVIZ_MAJOR == 0:
        found, k = az.psislw(row[None])
        return found[0], float(k[0])
    from arviz_stats.base import array_stats

    found, k = array_stats.psislw(-row)  # takes log-likelihoods, and turns their sign itself
    return found, float(k)


def save(data: Any, path: str | Path) -> None:
    """Write netCDF through h5netcdf, atomically. Raises UserError where ``path`` cannot be written."""
    write_atomically(Path(path), lambda temporary: data.to_netcdf(str(temporary), engine="h5netcdf"))


def load(path: str | Path) -> Any:
    """Read what :func:`save` wrote, into memory: the file may be written again, or removed.

    Raises:
        InputError: there is no such file, or it is damaged or something else.
    """
    path = Path(path)
    with convert_read_errors(str(path)), path.open("rb") as file:
        head = file.read(len(HDF5))
    if head != HDF5:
        what = explain_file_type(path) or "it does not begin as HDF5 does"
        raise InputError(f"{path} is no netCDF-4 file, which inference data are saved in: {what}")
    try:
        with h5py.File(path) as file:
            ours = not set(file).isdisjoint(GROUPS)
        data = _in_memory(path) if ours else None
    except (MemoryError, PermissionError):
        raise
    except Exception as e:  # what h5py and xarray raise for damaged bytes can be anything
        why = " ".join(str(e).split())[:200]
        raise InputError(f"cannot read {path}: the netCDF file is damaged or cut short ({why})") from None
    if data is None:
        raise InputError(
            f"{path} is a netCDF or HDF5 file of something else: it has none of the groups of inference data "
            f"({', '.join(GROUPS)})"
        )
    return data


def _in_memory(path: Path) -> Any:
    """The contents of a netCDF file, which is closed again."""
    if ARVIZ_MAJOR == 0:
        with az.rc_context({"data.load": "eager"}):
            return az.from_netcdf(str(path), engine="h5netcdf")
    data = az.from_netcdf(str(path), engine="h5netcdf")
    data.load()
    data.close()
    return data


def by_depth(data: Any) -> Any:
    """The second view of the prior's trajectories: chain = trajectory, draw = supervision step, group ``posterior``.

    It holds every variable that has a dimension ``step``. A high R-hat there means that the trajectories of an input
    end in different answers, which is what they are for, and no failure. They are of the prior: no y is in them.
    """
    arrays: dict[str, Any] = {}
    dims: dict[str, list[str]] = {}
    units: dict[str, str] = {}
    for group in ("prior", "sample_stats_prior"):
        for name, values in data[group].data_vars.items():
            if "step" in values.dims:
                ordered = values.transpose("chain", "draw", "step", ...)
                arrays[name] = ordered.values.reshape(-1, *ordered.shape[2:])
                dims[name] = [str(d) for d in ordered.dims[3:]]
                units[name] = values.attrs["description"]
    return from_groups({"posterior": arrays}, dims, units)


def khat(data: Any) -> Any:
    """k-hat of the guide's weights on each instance, in the form that ``az.plot_khat`` takes.

    Its ``elpd`` is held-out log p(y | x) by Pareto-smoothed importance weights, summed over instances. It is no
    leave-one-out estimate, which draws that have seen y cannot give.

    Raises:
        UserError: a model without an inference network has no weights.
    """
    import torch

    if "sample_stats" not in group_names(data):
        raise UserError("there are no importance weights: the model has no inference network")
    weights = data["sample_stats"]["log_weight"].stack(__sample__=("chain", "draw")).transpose("__sample__", "instance")
    smoothed, shape = pareto_smoothed(torch.from_numpy(np.array(weights.values)))
    s, b = smoothed.shape
    log_p = smoothed.logsumexp(0).numpy() - np.log(s)
    like = data["sample_stats"]["log_weight"].isel(chain=0, draw=0, drop=True)
    said: dict[str, Any] = {
        "elpd": log_p.sum(),
        "se": log_p.std() * b**0.5,
        "p": np.nan,
        "n_samples": s,
        "n_data_points": b,
        "warning": bool((shape > good_khat(s)).any()),
        "elpd_i": like.copy(data=log_p).rename("elpd_i"),
        "pareto_k": like.copy(data=shape.numpy()).rename("pareto_shape"),
        "scale": "log",
        "good_k": good_khat(s),
    }
    if ARVIZ_MAJOR == 0:
        from arviz.stats.stats_utils import ELPDData as Series

        names = {"elpd": "elpd_loo", "p": "p_loo", "elpd_i": "loo_i"}  # the only ones that it knows
        return Series(data=list(said.values()), index=[names.get(k, k) for k in said])
    from arviz_stats.utils import ELPDData

    return ELPDData(**said)


def group_names(data: Any) -> set[str]:
    """The names of the groups of an InferenceData (0.23) or a DataTree (1.x)."""
    return set(data.groups()) if callable(data.groups) else {g.strip("/") for g in data.groups} - {""}
