import gzip
import warnings
from dataclasses import dataclass

import h5py
import numpy as np
import pytest
import torch

from pyro_gram.diagnostics import inference_data
from pyro_gram.diagnostics.inference_data import collect as collect_from
from pyro_gram.diagnostics.inference_data import group_names, project_states
from pyro_gram.errors import InputError, UserError
from pyro_gram.sampling.rollout import rollout
from pyro_gram.tasks.base import PuzzleSet
from pyro_gram.tasks.batches import derive_seed
from tests.conftest import build_case_with_heads, build_small

CHAINS, DRAWS, DEPTH, INPUTS, VERTICES, WIDTH, T = 2, 6, 3, 4, 4, 16, 2
GUIDE = ("posterior", "posterior_predictive", "log_likelihood", "sample_stats")
PRIOR = ("prior", "prior_predictive", "sample_stats_prior")
GROUPS = {*GUIDE, *PRIOR, "observed_data", "constant_data"}
SAMPLE = {"chain": CHAINS, "draw": DRAWS}
DIMS = {
    ("posterior", "guidance"): {**SAMPLE, "instance": INPUTS, "transition": DEPTH * T},
    ("posterior", "h"): {**SAMPLE, "state_instance": 2, "latent_position": VERTICES, "channel": WIDTH},
    ("prior", "guidance"): {**SAMPLE, "instance": INPUTS, "transition": DEPTH * T},
    ("posterior_predictive", "y"): {**SAMPLE, "instance": INPUTS, "position": VERTICES},
    ("posterior_predictive", "solution"): {**SAMPLE, "instance": INPUTS},
    ("prior_predictive", "y"): {**SAMPLE, "instance": INPUTS, "position": VERTICES},
    ("prior_predictive", "violations"): {**SAMPLE, "instance": INPUTS},
    ("log_likelihood", "log_p_y"): {**SAMPLE, "instance": INPUTS},
    ("sample_stats", "log_weight"): {**SAMPLE, "instance": INPUTS},
    ("sample_stats", "kl"): {**SAMPLE, "instance": INPUTS, "transition": DEPTH * T},
    ("sample_stats_prior", "score"): {**SAMPLE, "instance": INPUTS, "step": DEPTH},
    ("prior", "path"): {**SAMPLE, "instance": INPUTS, "step": DEPTH, "projection": 2},
    ("prior", "h"): {**SAMPLE, "state_instance": 2, "latent_position": VERTICES, "channel": WIDTH},
    ("observed_data", "violations"): {"instance": INPUTS},
    ("observed_data", "y"): {"instance": INPUTS, "position": VERTICES},
    ("constant_data", "x"): {"instance": INPUTS, "position_in": VERTICES, "feature": VERTICES},
    ("constant_data", "num_solutions"): {"instance": INPUTS},
}


@dataclass(frozen=True)
class LastSolutions(PuzzleSet):
    """A puzzle set that always draws the last solution of an input as its target."""

    def sample_targets(self, index, generator):
        return self.solutions[self.offsets[index + 1] - 1]


@pytest.fixture(scope="module")
def solver():
    torch.manual_seed(0)
    return build_small()


def collect(solver, puzzles=None, **settings):
    puzzles = puzzles or solver.task.split("test")
    settings = {"depth": DEPTH, "chains": CHAINS, "draws": DRAWS, **settings}
    return collect_from(solver.task, solver.model, solver.guide, puzzles, **settings)


@pytest.fixture(scope="module")
def data(solver):
    return collect(solver)


def test_all_groups_are_collected(data):
    assert group_names(data) == GROUPS


def test_dimensions_are_named_and_sized(data):
    assert {(group, name): dict(data[group][name].sizes) for group, name in DIMS} == DIMS


@pytest.mark.parametrize(
    ("group", "name", "unit"),
    [
        ("posterior", "guidance", "root mean square"),
        ("sample_stats", "kl", "nats"),
        ("sample_stats", "log_weight", "nats"),
        ("sample_stats_prior", "score", "nats"),
        ("log_likelihood", "log_p_y", "nats"),
        ("prior_predictive", "violations", "number of violated constraints"),
        ("prior_predictive", "solution", "-1 for none"),
    ],
)
def test_units_are_written_as_attributes_of_the_variables(group, name, unit, data):
    assert unit in data[group][name].attrs["description"]


@pytest.mark.parametrize("group", ["posterior_predictive", "prior_predictive"])
def test_answers_and_their_checks_are_integers_that_agree(group, data):
    part = data[group]
    assert all(part[name].dtype.kind == "i" for name in ("y", "violations", "valid", "solution"))
    valid = part["valid"].values
    assert set(np.unique(valid)) <= {0, 1}
    assert ((part["violations"].values == 0) == (valid == 1)).all()
    assert ((part["solution"].values >= 0) == (valid == 1)).all()
    assert (part["solution"].values < data["constant_data"]["num_solutions"].values).all()


def test_densities_have_the_right_signs_and_all_values_are_finite(data):
    assert (data["log_likelihood"]["log_p_y"].values <= 0).all()
    assert (data["sample_stats"]["kl"].values >= 0).all()
    for group in GROUPS:
        assert all(np.isfinite(v.values).all() for v in data[group].data_vars.values())


def test_chains_are_different_draws_and_the_seed_fixes_them(solver, data):
    h = data["posterior"]["h"].values
    assert not np.array_equal(h[0], h[1])
    assert np.array_equal(collect(solver)["posterior"]["h"].values, h)
    assert not np.array_equal(collect(solver, seed=9)["posterior"]["h"].values, h)


def test_the_groups_of_the_prior_do_not_depend_on_y(solver, data):
    puzzles = solver.task.split("test")
    other = collect(solver, LastSolutions(puzzles.inputs, puzzles.solutions, puzzles.offsets))
    assert not np.array_equal(other["observed_data"]["y"].values, data["observed_data"]["y"].values)
    for group in PRIOR:
        for name, values in data[group].data_vars.items():
            np.testing.assert_array_equal(values.values, other[group][name].values, err_msg=f"{group}.{name}")
    assert not np.array_equal(other["posterior"]["guidance"].values, data["posterior"]["guidance"].values)


def test_observed_y_is_a_solution_of_x(solver, data):
    x, y = (torch.from_numpy(v.values) for v in (data["constant_data"]["x"], data["observed_data"]["y"]))
    assert torch.equal(x, solver.task.split("test").inputs)
    assert solver.task.is_valid(x, y).all()


def test_round_trip_through_netcdf(data, tmp_path):
    path = tmp_path / "inference.nc"
    inference_data.save(data, path)
    assert list(tmp_path.iterdir()) == [path]
    loaded_data = inference_data.load(path)
    assert group_names(loaded_data) == GROUPS
    for group in GROUPS:
        assert set(loaded_data[group].data_vars) == set(data[group].data_vars)
        for name, values in data[group].data_vars.items():
            copy = loaded_data[group][name]
            assert copy.dims == values.dims
            assert copy.dtype == values.dtype
            assert copy.attrs == values.attrs
            np.testing.assert_array_equal(copy.values, values.values)


@pytest.fixture
def saved_path(tmp_path):
    """Save a small file and return its path."""
    path = tmp_path / "small.nc"
    inference_data.save(inference_data.from_groups({"prior": {"a": np.arange(6.0).reshape(1, 2, 3)}}), str(path))
    return path


def test_a_loaded_file_is_closed_and_can_be_overwritten(saved_path):
    loaded_data = inference_data.load(str(saved_path))
    with h5py.File(saved_path, "a") as file:  # this fails if the file is still open
        file.attrs["note"] = "x"
    inference_data.save(loaded_data, saved_path)
    reloaded_data = inference_data.load(saved_path)
    saved_path.unlink()
    for copy in (loaded_data, reloaded_data):
        np.testing.assert_array_equal(copy["prior"]["a"].values, np.arange(6.0).reshape(1, 2, 3))


def write_hdf5(path, groups):
    with h5py.File(path, "w") as file:
        for name in groups:
            file.create_group(name)["x"] = np.zeros(3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.unlink(), "cannot read .*small.nc: No such file"),
        (lambda path: (path.unlink(), path.mkdir()), "cannot read .*small.nc: Is a directory"),
        (lambda path: path.write_text(""), "small.nc is not a netCDF-4 file.*it is empty"),
        (lambda path: path.write_text("x,y\n1,2\n"), "small.nc is not a netCDF-4 file.*does not begin like HDF5"),
        (lambda path: path.write_text("<!DOCTYPE html>"), "small.nc is not a netCDF-4 file.*this is a web page"),
        (lambda path: path.write_text("version https://git-lfs.x/1"), "not a netCDF-4 file.*Git LFS pointer"),
        (lambda path: path.write_bytes(gzip.compress(path.read_bytes())), "not a netCDF-4 file.*this is a gzip file"),
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "cannot read .*small.nc: the netCDF file is damaged"),
        (
            lambda path: path.write_bytes(path.read_bytes()[:48] + b"\xff" * 5000),
            "small.nc: the netCDF file is damaged",
        ),
        (lambda path: write_hdf5(path, ["mesh"]), "small.nc is a netCDF or HDF5 file, but has none of the groups"),
        (lambda path: write_hdf5(path, []), "small.nc is a netCDF or HDF5 file, but has none of the groups"),
    ],
)
def test_other_files_are_refused_in_one_sentence(saved_path, change, message):
    change(saved_path)
    with pytest.raises(InputError, match=message) as error:
        inference_data.load(saved_path)
    assert "\n" not in str(error.value)


def test_a_path_that_cannot_be_written_is_refused(tmp_path):
    small = inference_data.from_groups({"prior": {"a": np.zeros((1, 2, 3))}})
    (tmp_path / "file").write_text("")
    for path in (tmp_path, str(tmp_path / "file" / "a.nc")):
        with pytest.raises(UserError, match=f"cannot write {tmp_path}"):
            inference_data.save(small, path)


def test_arviz_summarises_the_posterior(data):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # ArviZ 0.23 announces 1.x
        import arviz as az
    table = az.summary(data, var_names=["guidance"])
    assert len(table) == INPUTS * DEPTH * T
    assert {"mean", "r_hat"} <= set(table.columns)
    expected = data["posterior"]["guidance"].values.mean((0, 1)).ravel()
    np.testing.assert_allclose(table["mean"].to_numpy(float), expected, atol=1e-3)


def test_the_depth_view_has_a_chain_for_each_trajectory_and_a_draw_for_each_step(data):
    view = inference_data.depth_view(data)
    assert group_names(view) == {"posterior"}
    assert set(view["posterior"].data_vars) == {"path", "score"}
    path = view["posterior"]["path"]
    assert dict(path.sizes) == {"chain": CHAINS * DRAWS, "draw": DEPTH, "instance": INPUTS, "projection": 2}
    np.testing.assert_array_equal(path.values[DRAWS + 2, 1], data["prior"]["path"].values[1, 2, :, 1])
    assert "projections of h" in path.attrs["description"]


def test_the_last_point_of_a_path_is_the_final_state(data):
    h = torch.from_numpy(data["prior"]["h"].values)
    last = data["prior"]["path"].values[:, :, :2, -1]
    np.testing.assert_allclose(project_states(h), last, atol=1e-5)


def test_the_heads_outputs_are_collected_after_every_step():
    case = build_case_with_heads(strength=1.0)
    part = collect(case.solver)["sample_stats_prior"]
    for name in ("halt", "value"):
        assert dict(part[name].sizes) == {**SAMPLE, "instance": INPUTS, "step": DEPTH}
        assert ((part[name].values > 0) & (part[name].values < 1)).all()
        assert len(np.unique(part[name].values)) > 1


def test_the_priors_groups_are_those_of_a_rollout(solver, data):
    x = solver.task.split("test").inputs
    samples = rollout(solver.model, x, num_samples=DRAWS, depth=DEPTH, seed=derive_seed(0, 1, 0))
    np.testing.assert_array_equal(data["prior_predictive"]["y"].values[1], samples.tokens)
    np.testing.assert_allclose(data["sample_stats_prior"]["score"].values[1, ..., -1], samples.score, atol=1e-5)


def test_khat_is_computed_from_the_weights_of_each_instance(solver):
    data = collect(solver, draws=40, depth=1)
    result = inference_data.khat(data)
    weights = data["sample_stats"]["log_weight"].values.reshape(CHAINS * 40, INPUTS)
    smoothed_log_weight, shape = inference_data.pareto_smooth(torch.from_numpy(weights.copy()))
    np.testing.assert_allclose(result.pareto_k.values, shape)
    assert result.pareto_k.dims == ("instance",)
    assert result["se"] > 0
    total = float((smoothed_log_weight.logsumexp(0) - np.log(CHAINS * 40)).sum())
    assert float(result["elpd"] if inference_data.ARVIZ_MAJOR else result["elpd_loo"]) == pytest.approx(total)


def test_a_model_without_inference_network_has_no_weights():
    data = collect(build_small(prior_name="none", guide_name="prior"))
    assert group_names(data) == {*PRIOR, "observed_data", "constant_data"}
    with pytest.raises(UserError, match="no inference network"):
        inference_data.khat(data)


@pytest.mark.parametrize("changes", [{"guide_name": "replay"}, {"task": {"layout": "edge"}}], ids=str)
def test_other_guides_and_layouts_are_collected(changes):
    data = collect(build_small(**changes), depth=2, draws=2)
    assert group_names(data) == GROUPS
    assert data["posterior"]["guidance"].sizes["transition"] == 4


def test_khat_is_the_shape_of_the_tail():
    exponential = torch.distributions.Exponential(1.0).expand([20_000, 3])
    torch.manual_seed(0)
    tails = torch.tensor([0.2, 0.5, 1.5])  # if E is exponential, exp(k E) is Pareto with shape k
    _, shape = inference_data.pareto_smooth(exponential.sample() * tails)
    np.testing.assert_allclose(shape, tails, atol=0.3)


def test_smoothing_changes_only_the_largest_weights_and_keeps_the_scale():
    torch.manual_seed(0)
    raw = torch.randn(400, 2, dtype=torch.double) - 50  # the weights are far from 1: normalizing would lose their scale
    smoothed_log_weight, _ = inference_data.pareto_smooth(raw)
    order = raw.argsort(0)
    body, tail = order[: 400 - 61], order[-20:]
    torch.testing.assert_close(smoothed_log_weight.gather(0, body), raw.gather(0, body), rtol=0, atol=1e-9)
    assert (smoothed_log_weight.gather(0, tail) != raw.gather(0, tail)).any()
    assert (smoothed_log_weight.max(0).values <= raw.max(0).values + 1e-9).all()
    torch.testing.assert_close(smoothed_log_weight.logsumexp(0), raw.logsumexp(0), rtol=0, atol=0.05)


def test_khat_of_equal_weights_is_0_and_of_few_weights_infinite():
    raw = torch.zeros(100, 1)
    smoothed_log_weight, khat = inference_data.pareto_smooth(raw)
    assert khat.tolist() == [0.0]
    assert torch.equal(smoothed_log_weight, raw.double())
    assert inference_data.pareto_smooth(torch.randn(10, 1))[1].tolist() == [float("inf")]
