from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from pyro_gram.diagnostics.landscape import landscape
from pyro_gram.diagnostics.plots.trajectories import (
    BLACK,
    animate,
    attractors_figure,
    influence_figure,
    landscape_figure,
)
from pyro_gram.diagnostics.trajectories import attractors, guidance_influence, separation, trace_trajectories
from pyro_gram.errors import UserError
from pyro_gram.tasks.mnist import MNIST, MNISTConfig
from tests.conftest import build_case
from tests.diagnostics.test_figures import text_of


@pytest.fixture(scope="module")
def coloring():
    torch.manual_seed(0)
    return build_case()


def frames_of(path):
    with Image.open(path) as image:
        return [(np.asarray(frame.convert("RGB")), dict(frame.info)) for frame in ImageSequence.Iterator(image)]


def landscape_of(case, **settings):
    x = None if case.x is None else case.x[:1]
    settings = {"solutions": case.y[:1], "depth": 3, "num_samples": 7, **settings}
    return landscape(case.solver.model, case.solver.task, x, **settings)


def test_the_landscape_figure_draws_every_trajectory_and_the_deterministic_one(coloring):
    result = landscape_of(coloring)
    figure = landscape_figure(result)
    text = text_of(figure)
    answers = int(result.answer.max()) + 1
    for label in (
        "7 trajectories of the prior",
        f"{answers} distinct answer",
        f"{int(result.is_right.sum())} trajectories right",
        "first principal component",
        "z_0",
        "deterministic trajectory (guidance at the prior's mean)",
        "supervision steps",
        "loss: -log p(the solution | h), nats",
    ):
        assert label in text
    assert ("a wrong answer" in text) == (not result.is_right.all())
    plane, losses = figure.axes[:2]
    assert plane.lines[0].get_xdata().tolist() == result.points[:, 0, 0].tolist()
    deterministic_lines = [line for line in losses.lines if line.get_color() == BLACK]
    assert [line.get_ydata().tolist() for line in deterministic_lines] == [result.mean_loss.tolist()]
    markers = [line.get_marker() for line in losses.lines if line.get_linestyle() == "None"]
    assert markers == ["o" if is_right else "x" for is_right in result.is_right]


@pytest.mark.parametrize(
    ("changes", "settings", "label"),
    [
        ({"prior_name": "flow"}, {}, "loss: -log p(the solution | h), nats"),
        ({"task_name": "sudoku_uncond"}, {"solutions": None}, "loss: -log p(decoded answer | h), nats"),
        ({"task_name": "mnist"}, {"depth": 1}, "an answer, one colour for each answer"),
    ],
)
def test_landscapes_without_mean_solutions_or_check_are_drawn(changes, settings, label):
    text = text_of(landscape_figure(landscape_of(build_case(**changes), **settings)), draw=False)
    assert label in text
    assert ("deterministic" in text) == (changes.get("prior_name") != "flow")


def make_attractors_figure(case, with_solutions, depth=4, num_samples=6):
    trajectories = trace_trajectories(case.solver.model, case.x, depth=depth, num_samples=num_samples)
    ends = attractors(case.solver.task, case.x, trajectories.tokens)
    pairs = separation(case.solver.task, case.x, trajectories)
    num_solutions = torch.tensor([3] * len(ends.num_distinct)) if with_solutions else None
    return ends, pairs, attractors_figure(ends, pairs, num_solutions)


@pytest.mark.parametrize("with_solutions", [True, False])
def test_the_attractors_figure_draws_counts_settling_and_pairs(coloring, with_solutions):
    ends, pairs, figure = make_attractors_figure(coloring, with_solutions)
    text = text_of(figure, draw=with_solutions)
    for label in (
        "Answers that 6 trajectories of an input end in",
        "distinct",
        "effective",
        "keep their answer",
        "right answer",
        "last quarter",
        f"{pairs.num_different} pair",
        f"{pairs.num_same} pair",
        "root mean square",
    ):
        assert label in text
    assert ("i.i.d. uniform draws" in text) == with_solutions
    counts, settling, _, distances = figure.axes
    assert sorted(counts.collections[0].get_offsets()[:, 1].tolist()) == sorted(ends.num_distinct.tolist())
    assert settling.lines[0].get_ydata().tolist() == ends.settled_by_step.mean(1).tolist()
    assert distances.lines[0].get_ydata()[0] == 0


@pytest.mark.parametrize("changes", [{"prior_name": "none", "guide_name": "prior"}, {"task_name": "mnist"}])
def test_attractors_of_deterministic_models_and_of_images_are_drawn(changes):
    _, _, figure = make_attractors_figure(build_case(**changes), with_solutions=False, depth=1)
    text = text_of(figure, draw="task_name" not in changes)
    assert ("right answer" in text) == ("task_name" not in changes)


def test_the_influence_figure_draws_the_level_of_chance_and_certainty(coloring):
    influence = guidance_influence(coloring.solver.model, coloring.solver.task, coloring.x, depth=3, num_samples=5)
    figure = influence_figure(influence)
    text = text_of(figure)
    for label in ("transitions whose guidance is kept", "position", "nothing kept", "all kept: 1", "same answer"):
        assert label in text
    left, right = figure.axes
    mean = next(line for line in left.lines if line.get_label() == "mean")
    assert mean.get_ydata().tolist() == influence.by_transition.mean(1).tolist()
    assert [bar.get_height() for bar in right.patches] == influence.by_position.mean(1).tolist()


def test_an_animation_has_a_frame_for_each_step_and_loops(coloring, tmp_path):
    history = trace_trajectories(coloring.solver.model, coloring.x, depth=4, num_samples=2).tokens[:, :, 0]
    path = tmp_path / "made" / "answers.gif"
    animate(coloring.solver.task, coloring.x[0], history, path, milliseconds=100)
    frames = frames_of(path)
    assert len(frames) == 4
    assert all((a != b).any() for (a, _), (b, _) in pairwise(frames))
    assert [info["duration"] for _, info in frames] == [100] * 3 + [400]
    assert frames[0][1]["loop"] == 0
    assert path.stat().st_size < 100_000
    assert [p.name for p in path.parent.iterdir()] == ["answers.gif"]


def test_a_long_animation_shows_evenly_spaced_steps_from_the_first_to_the_last(coloring, tmp_path, monkeypatch):
    monkeypatch.setattr("pyro_gram.diagnostics.plots.trajectories.FRAMES", 6)
    first, middle, last = torch.tensor([[[0, 1, 2, 0]], [[0, 0, 0, 0]], [[0, 1, 1, 2]]])
    history = torch.cat((first[None], middle.expand(58, 1, 4), last[None]))
    path = tmp_path / "answers.gif"
    animate(coloring.solver.task, coloring.x[0], history, path)
    pictures = [pixels[len(pixels) // 3 :] for pixels, _ in frames_of(path)]  # without the titles
    changes = [(a != b).any() for a, b in pairwise(pictures)]
    assert changes == [True, False, False, False, True]


def test_images_are_animated_and_a_path_that_cannot_be_written_is_refused(tmp_path):
    task = MNIST(MNISTConfig(side=14, patch=2))
    history = torch.randint(0, 2, (2, 1, 196), generator=torch.Generator().manual_seed(0))
    animate(task, None, history, tmp_path / "digits.gif")
    assert len(frames_of(tmp_path / "digits.gif")) == 2
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        animate(task, None, history[:1], tmp_path / "file" / "answers.gif")
