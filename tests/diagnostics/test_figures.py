import io

import pytest
import torch

from pyro_gram.diagnostics.metrics import solution_ids
from pyro_gram.diagnostics.plots import run as plots
from pyro_gram.tasks.mnist import MNIST, MNISTConfig
from pyro_gram.tasks.sudoku.unconditional import SudokuBoards
from tests.conftest import build_small

EVALUATION = {
    "prior_accuracy": 0.5,
    "prior_coverage": 0.4,
    "coverage_limit": 0.9,
    "elbo_full": -3.0,
    "elbo_surrogate": -2.0,
}
IMAGES = {"elbo_full": -3.0, "elbo_surrogate": -2.0, "prior_frechet_distance": 20.0}


def row(number, **fields):
    losses = {"reconstruction": 4.0 / (number + 1), "kl": 0.1 * number}
    return {"batch": number, "seconds": 0.1, "beta": 1, **losses, **fields}


def text_of(figure, draw=True):
    """Return all text of a figure. The figure is drawn first, so that errors in drawing are found."""
    if draw:
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=20)
        assert file.getvalue().startswith(b"\x89PNG")
    texts = [figure.get_suptitle()]
    for axes in figure.axes:
        texts += [axes.get_title(), axes.get_xlabel(), axes.get_ylabel(), *(t.get_text() for t in axes.texts)]
        if axes.get_legend():
            texts += [t.get_text() for t in axes.get_legend().get_texts()]
    texts += [t.get_text() for legend in figure.legends for t in legend.get_texts()]
    return " | ".join(w for w in texts if w)


@pytest.fixture(scope="module")
def task():
    return build_small(task={"train": 30, "test": 6}).task


@pytest.fixture(scope="module")
def mnist():
    return MNIST(MNISTConfig(side=14, patch=2))


@pytest.fixture
def samples(task):
    puzzles = task.split("test")
    return torch.randint(0, 3, (5, len(puzzles), 4), generator=torch.Generator().manual_seed(0))


def test_the_training_figure_draws_losses_bounds_and_the_prior():
    figure = plots.training_figure([row(i, **(EVALUATION if i % 2 else {})) for i in range(6)])
    text = text_of(figure)
    for label in ("batch", "reconstruction", "KL", "nats per input", "beta", "Eq. 13", "Eq. 14", "coverage", "limit"):
        assert label in text
    left, middle, right = figure.axes[:3]
    assert left.lines[0].get_xdata().tolist() == list(range(6))
    assert middle.lines[0].get_xdata().tolist() == right.lines[0].get_xdata().tolist() == [1, 3, 5]
    assert right.lines[0].get_ydata().tolist() == [0.5] * 3


def test_the_training_figure_draws_runs_without_evaluations_and_with_zero_losses():
    assert "Training loss" in text_of(plots.training_figure([row(i) for i in range(3)]), draw=False)
    zero = plots.training_figure([row(0, **{**EVALUATION, "kl": 0.0, "reconstruction": 0.0})])
    assert "Training loss" in text_of(zero)


def test_the_training_figure_of_images_draws_the_tasks_own_metric():
    figure = plots.training_figure([row(i, **IMAGES) for i in range(3)])
    assert "frechet distance (log scale)" in text_of(figure, draw=False)
    assert figure.axes[2].lines[0].get_ydata().tolist() == [20.0] * 3


def test_the_solved_figure_checks_each_answer(task, samples):
    puzzles = task.split("test").subset(2)
    samples = samples[:, :2]
    samples[:, 0] = puzzles.solutions_of(0)[0]  # the same right answer five times
    samples[:, 1] = 0  # equal colours everywhere break every edge
    figure = plots.solved_figure(task, puzzles, samples, inputs=9, answers=3)
    text = text_of(figure)
    m = int(puzzles.num_solutions[0])
    assert f"input 1: {m} solution{'s' * (m > 1)}" in text
    assert "5 of 5: valid" in text
    edges = int(task.edges(puzzles.inputs[1]).sum())
    assert f"5 of 5: {edges} conflict" in text
    assert len(figure.axes) == 2 * 2  # two inputs with one answer each, and no empty columns
    assert "prior trajectories" in text


def test_the_coverage_figure_draws_the_limit_also_for_one_input(task, samples):
    puzzles = task.split("test")
    text = text_of(plots.coverage_figure(solution_ids(task, puzzles, samples), puzzles.num_solutions))
    for label in ("number of solutions", "coverage, 5 samples", "share of valid samples", "i.i.d. uniform limit"):
        assert label in text
    left, right = plots.coverage_figure(torch.tensor([[0], [-1]]), torch.tensor([1])).axes
    assert left.lines[0].get_ydata().tolist() == [1]
    assert right.lines[0].get_ydata().tolist() == [0.5]


@pytest.mark.parametrize(("depth", "columns"), [(1, 1), (3, 3), (30, 9)])
def test_the_formation_figure_has_a_row_for_each_trajectory_and_a_column_for_each_step(depth, columns, task):
    puzzles = task.split("test")
    history = puzzles.solutions_of(0)[:1].expand(depth, 2, 4)
    figure = plots.formation_figure(task, puzzles.inputs[0], history)
    text = text_of(figure, draw=depth == 3)
    assert len(figure.axes) == 2 * columns
    assert text.count("step 1: valid") == 2
    assert f"step {depth}: valid" in text
    assert "each row a trajectory" in text


def test_the_formation_figure_without_input_has_no_check_of_images(mnist):
    figure = plots.formation_figure(mnist, None, torch.zeros(3, 1, 196, dtype=torch.long))
    text = text_of(figure, draw=False)
    assert "step 3" in text
    assert "valid" not in text
    assert "One input" not in text


def test_the_samples_figure_draws_the_first_samples(mnist):
    tokens = torch.randint(0, 2, (80, 196), generator=torch.Generator().manual_seed(0))
    figure = plots.samples_figure(mnist, tokens, columns=4, rows=2)
    text = text_of(figure)
    assert "8 trajectories of the prior" in text
    assert "valid" not in text
    pictures = [axes.images[0].get_array() for axes in figure.axes if axes.images]
    assert [picture.tolist() for picture in pictures] == tokens[:8].view(-1, 14, 14).tolist()
    assert len(plots.samples_figure(mnist, tokens[:5], columns=4).axes) == 8


def test_the_samples_figure_counts_valid_boards():
    task = SudokuBoards(SudokuBoards.Config(size=4))
    boards = task.split("test").solutions[:4].long().clone()
    boards[1] = 0
    figure = plots.samples_figure(task, boards, columns=4)
    assert "4 trajectories of the prior, 3 of them valid" in text_of(figure, draw=False)
