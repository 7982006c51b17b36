import math
import sys

import pytest
import torch

from pyro_gram.diagnostics.landscape import REACH, check_installed, interpolate_loss, landscape
from pyro_gram.diagnostics.trajectories import trace_trajectories
from pyro_gram.errors import ConfigError
from pyro_gram.sampling.rollout import rollout
from tests.conftest import build_case


def test_the_loss_is_that_of_all_solutions_together(case):
    model, task = case.solver.model, case.solver.task
    puzzles = task.split("train")
    index = int(puzzles.num_solutions.argmax())
    x, solutions = puzzles.inputs[index : index + 1], puzzles.solutions_of(index)
    result = landscape(model, task, x, solutions, depth=3, num_samples=6, seed=5)
    assert result.num_solutions == len(solutions) > 1

    def expected(**settings):
        h = trace_trajectories(model, x, depth=3, seed=5, **settings).h[:, :, 0]
        log_p = model.decoder(h).log_softmax(-1)  # [S + 1, N, L_out, classes]
        return -sum(log_p[..., range(4), y].sum(-1).exp() for y in solutions).log().double()

    torch.testing.assert_close(result.loss, expected(num_samples=6), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(result.mean_loss, expected(at_mean=True)[:, 0], atol=1e-5, rtol=1e-5)
    assert (
        result.is_right.tolist()
        == task.is_valid(x, trace_trajectories(model, x, depth=3, num_samples=6, seed=5).tokens[-1, :, 0]).tolist()
    )


def test_projected_distances_are_at_most_the_true_distances(case):
    model, task = case.solver.model, case.solver.task
    result = landscape(model, task, case.x[:1], None, depth=4, num_samples=5, seed=2)
    h = trace_trajectories(model, case.x[:1], depth=4, num_samples=5, seed=2).h.flatten(-2)[:, :, 0].double()
    assert result.points.shape == (5, 5, 2)
    distances, projected_distances = (
        torch.cdist(h.flatten(0, 1), h.flatten(0, 1)),
        torch.cdist(*[result.points.flatten(0, 1)] * 2),
    )
    assert (projected_distances <= distances + 1e-4).all()
    assert torch.equal(result.points[0], result.points[0, :1].expand(5, 2))  # all start at z_0
    torch.testing.assert_close(result.mean_points[0], result.points[0, 0])
    late_states = h[3:].flatten(0, 1)
    share = result.points[3:].flatten(0, 1).var(0) / late_states.var(0).sum()
    torch.testing.assert_close(share, torch.tensor(result.explained_variance).double(), atol=1e-4, rtol=1e-3)
    assert sum(result.explained_variance) <= 1 + 1e-6


def test_without_known_solutions_the_loss_is_that_of_the_decoded_answer():
    case = build_case(task_name="sudoku_uncond")
    result = landscape(case.solver.model, case.solver.task, None, None, depth=2, num_samples=3, seed=1)
    samples = rollout(case.solver.model, None, depth=2, num_samples=3, seed=1)
    torch.testing.assert_close(result.loss[-1], -samples.score[:, 0].double())
    assert result.num_solutions == 0


@pytest.mark.parametrize(
    ("changes", "has_mean"),
    [
        ({"prior_name": "flow"}, False),
        ({"prior_name": "none", "guide_name": "prior"}, True),
        ({"model_name": "vae"}, True),
    ],
)
@pytest.mark.parametrize(("depth", "num_samples"), [(1, 1), (1, 5)])
def test_landscapes_of_few_trajectories_and_steps_are_finite(changes, has_mean, depth, num_samples):
    case = build_case(**changes)
    solutions = case.y[:1]
    model, task = case.solver.model, case.solver.task
    result = landscape(model, task, case.x[:1], solutions, depth=depth, num_samples=num_samples)
    if "model_name" in changes and num_samples == 1:
        assert result is None  # the program starts anew at each call, so all states of a trajectory are equal
        return
    assert (result.mean_points is not None) == has_mean == (result.mean_is_right is not None)
    assert result.points.isfinite().all()
    assert all(math.isfinite(share) for share in result.explained_variance)
    assert not result.grid.isnan().all()


def test_a_program_with_a_constant_state_has_no_landscape():
    case = build_case(model_name="direct")
    assert landscape(case.solver.model, case.solver.task, case.x[:1], None, depth=1, num_samples=3) is None


def test_the_interpolated_loss_follows_the_states_and_is_nan_far_from_them():
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(400, 2, generator=generator).double() * torch.tensor([1.0, 30.0])
    points[:, 0] *= points[:, 0] < 0.5  # half of the points lie at the left edge; 200 more will lie at one place
    points = torch.cat((points, points[:1].expand(200, 2), torch.tensor([[1.0, 0.0]])))
    x, y, grid = interpolate_loss(points, torch.exp(points[:, 1] / 3 - 5))
    inside = (y > 0) & (y < 30)
    column = grid[inside, int((x - 0.0).abs().argmin())].log()
    torch.testing.assert_close(column, y[inside] / 3 - 5, atol=0.4, rtol=0)
    nearest_distance = torch.cdist(
        torch.stack(torch.meshgrid(x, y / 30, indexing="xy"), -1).view(-1, 2), points / torch.tensor([1.0, 30.0])
    ).amin(1)
    assert grid.flatten()[nearest_distance > REACH + 0.02].isnan().all()
    assert not grid.flatten()[nearest_distance < REACH - 0.02].isnan().any()


def test_the_loss_of_equal_states_is_interpolated():
    _, _, grid = interpolate_loss(
        torch.zeros(3, 2).double() + torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0]]), torch.ones(3)
    )
    torch.testing.assert_close(grid[~grid.isnan()], torch.ones((~grid.isnan()).sum()).double())


def test_a_missing_scikit_learn_is_reported(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.decomposition", None)
    with pytest.raises(ConfigError, match=r"pip install -e '.\[diagnose\]'"):
        check_installed()
