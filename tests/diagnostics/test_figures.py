import io

import pytest
import torch
from matplotlib.figure import Figure

from pyro_gram.diagnostics.metrics import solution_ids
from pyro_gram.diagnostics.plots import run as figures
from pyro_gram.tasks.mnist import MNIST, MNISTConfig
from pyro_gram.tasks.sudoku.unconditional import SudokuBoards
from tests.conftest import build_small

LOOK = {
    "prior_accuracy": 0.5,
    "prior_coverage": 0.4,
    "coverage_limit": 0.9,
    "elbo_full": -3.0,
    "elbo_surrogate": -2.0,
}


def row(number, **more):
    return {
        "batch": number,
        "seconds": 0.1,
        "reconstruction": 4.0 / (number + 1),
        "kl": 0.1 * number,
        "beta": 1,
        **more,
    }


def words(figure):
    """All the text that a reader sees, drawn first so that nothing which fails on drawing passes."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=40)
    assert file.getvalue().startswith(b"\x89PNG")
    found = [figure.get_suptitle()]
    for axes in figure.axes:
        found += [axes.get_title(), axes.get_xlabel(), axes.get_ylabel(), *(t.get_text() for t in axes.texts)]
        if axes.get_legend():
            found += [t.get_text() for t in axes.get_legend().get_texts()]
    found += [t.get_text() for legend in figure.legends for t in legend.get_texts()]
    return " | ".join(w for w in found if w)


@pytest.fixture(scope="module")
def task():
    return build_small(task={"train": 30, "test": 6}).task


@pytest.fixture
def samples(task):
    puzzles = task.split("test")
    return torch.randint(0, 3, (5, len(puzzles), 4), generator=torch.Generator().manual_seed(0))


def test_training_shows_losses_bounds_and_the_prior():
    figure = figures.training_figure([row(i, **(LOOK if i % 2 else {})) for i in range(6)])
    assert isinstance(figure, Figure)
    text = words(figure)
    for label in ("batch", "reconstruction", "KL", "nats per input", "beta", "Eq. 13", "Eq. 14", "coverage", "limit"):
        assert label in text
    left, middle, right = figure.axes[:3]
    assert left.lines[0].get_xdata().tolist() == list(range(6))
    assert middle.lines[0].get_xdata().tolist() == right.lines[0].get_xdata().tolist() == [1, 3, 5]
    assert right.lines[0].get_ydata().tolist() == [0.5] * 3


@pytest.mark.parametrize(
    "rows", [[row(0, **LOOK)], [row(i) for i in range(3)], [row(0, **{**LOOK, "kl": 0.0, "reconstruction": 0.0})]]
)
def test_training_draws_short_runs(rows):
    assert "Training loss" in words(figures.training_figure(rows))


def test_solved_shows_each_input_and_a_verdict_on_each_answer(task, samples):
    puzzles = task.split("test").subset(2)
    samples = samples[:, :2]
    samples[:, 0] = puzzles.solutions_of(0)[0]  # one answer, right, five times
    samples[:, 1] = 0  # wrong by every edge
    figure = figures.solved_figure(task, puzzles, samples, inputs=2, answers=3)
    text = words(figure)
    m = int(puzzles.num_solutions[0])
    assert f"input 1: {m} solution{'s' * (m > 1)}" in text
    assert "5 of 5: valid" in text
    edges = int(task.edges(puzzles.inputs[1]).sum())
    assert f"5 of 5: {edges} conflict" in text
    assert len(figure.axes) == 2 * 2  # one answer each: no empty columns
    assert "prior trajectories" in text


def test_solved_draws_fewer_inputs_than_asked_for(task, samples):
    figure = figures.solved_figure(task, task.split("test").subset(1), samples[:, :1], inputs=9)
    assert "input 1" in words(figure)


def test_coverage_by_solutions_shows_the_limit(task, samples):
    puzzles = task.split("test")
    figure = figures.coverage_figure(solution_ids(task, puzzles, samples), puzzles.num_solutions)
    text = words(figure)
    for label in ("number of solutions", "coverage, 5 samples", "share of valid samples", "i.i.d. uniform limit"):
        assert label in text


def test_coverage_by_solutions_draws_one_input_with_one_solution():
    figure = figures.coverage_figure(torch.tensor([[0], [-1]]), torch.tensor([1]))
    assert "number of solutions" in words(figure)
    left, right = figure.axes
    assert left.lines[0].get_ydata().tolist() == [1]
    assert right.lines[0].get_ydata().tolist() == [0.5]


@pytest.mark.parametrize(("depth", "columns"), [(1, 1), (4, 4), (30, 9)])
def test_formation_has_a_row_a_trajectory_and_a_column_a_step(depth, columns, task):
    puzzles = task.split("test")
    right = puzzles.solutions_of(0)[:1]
    history = right.expand(depth, 2, 4)
    figure = figures.formation_figure(task, puzzles.inputs[0], history)
    text = words(figure)
    assert len(figure.axes) == 2 * columns
    assert text.count("step 1: valid") == 2
    assert f"step {depth}: valid" in text
    assert "each row a trajectory" in text


def test_samples_are_shown_as_they_came():
    task = MNIST(MNISTConfig(side=14, patch=2))
    tokens = torch.randint(0, 2, (80, 196), generator=torch.Generator().manual_seed(0))
    figure = figures.samples_figure(task, tokens)
    assert "64 trajectories of the prior" in words(figure)
    assert "valid" not in words(figure)
    shown = [axes.images[0].get_array() for axes in figure.axes if axes.images]
    assert [picture.tolist() for picture in shown] == tokens[:64].view(-1, 14, 14).tolist()
    assert len(figures.samples_figure(task, tokens[:5]).axes) == 8


def test_samples_of_boards_are_counted():
    task = SudokuBoards(SudokuBoards.Config(size=4))
    boards = task.split("test").solutions[:4].long().clone()
    boards[1] = 0
    assert "4 trajectories of the prior, 3 of them valid" in words(figures.samples_figure(task, boards))


def test_formation_without_input_names_the_steps_only():
    task = MNIST(MNISTConfig(side=14, patch=2))
    figure = figures.formation_figure(task, None, torch.zeros(3, 2, 196, dtype=torch.long))
    text = words(figure)
    assert text.count("step 3") == 2
    assert "valid" not in text
    assert "One input" not in text


def test_training_on_images_shows_the_tasks_own_figure():
    look = {"elbo_full": -3.0, "elbo_surrogate": -2.0, "prior_frechet_distance": 20.0}
    figure = figures.training_figure([row(i, **look) for i in range(3)])
    assert "frechet distance (log scale)" in words(figure)
    assert figure.axes[2].lines[0].get_ydata().tolist() == [20.0] * 3
