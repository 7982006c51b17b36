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
from tests.diagnostics.test_figures import words


def frames_of(path):
    with Image.open(path) as image:
        return [(np.asarray(frame.convert("RGB")), dict(frame.info)) for frame in ImageSequence.Iterator(image)]


def landscape_of(case, **settings):
    x = None if case.x is None else case.x[:1]
    settings = {"solutions": case.y[:1], "depth": 3, "num_samples": 7, **settings}
    return landscape(case.solver.model, case.solver.task, x, **settings)


def test_the_landscape_shows_every_trajectory_and_the_deterministic_one(case):
    found = landscape_of(case)
    figure = landscape_figure(found)
    text = words(figure)
    answers = int(found.answer.max()) + 1
    for label in (
        "7 trajectories of the prior",
        f"{answers} distinct answer",
        f"{int(found.is_right.sum())} trajectories right",
        "first principal component",
        "z_0",
        "deterministic trajectory (guidance at the prior's mean)",
        "supervision steps",
        "loss: -log p(the solution | h), nats",
    ):
        assert label in text
    assert ("a wrong answer" in text) == (not found.is_right.all())
    plane, course = figure.axes[:2]
    assert plane.lines[0].get_xdata().tolist() == found.points[:, 0, 0].tolist()
    thick = [line for line in course.lines if line.get_color() == BLACK]
    assert [line.get_ydata().tolist() for line in thick] == [found.mean_loss.tolist()]
    marks = [line.get_marker() for line in course.lines if line.get_linestyle() == "None"]
    assert marks == ["o" if right else "x" for right in found.is_right]


@pytest.mark.parametrize(
    ("changes", "settings", "label"),
    [
        ({"prior_name": "flow"}, {}, "loss: -log p(the solution | h), nats"),
        ({"task_name": "sudoku_uncond"}, {"solutions": None}, "loss: -log p(decoded answer | h), nats"),
        ({"task_name": "mnist"}, {"depth": 1}, "an answer, one colour for each answer"),
    ],
)
def test_landscapes_of_all_kinds_are_drawn(changes, settings, label):
    text = words(landscape_figure(landscape_of(build_case(**changes), **settings)))
    assert label in text
    assert ("deterministic" in text) == (changes.get("prior_name") != "flow")


def drawn_attractors(case, known, depth=4, num_samples=6):
    walked = trace_trajectories(case.solver.model, case.x, depth=depth, num_samples=num_samples)
    found = attractors(case.solver.task, case.x, walked.tokens)
    pairs = separation(case.solver.task, case.x, walked)
    return found, pairs, attractors_figure(found, pairs, torch.tensor([3] * len(found.num_distinct)) if known else None)


@pytest.mark.parametrize("known", [True, False])
def test_attractors_show_counts_times_and_pairs(case, known):
    found, pairs, figure = drawn_attractors(case, known)
    text = words(figure)
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
    assert ("i.i.d. uniform draws" in text) == known
    many, settled, _, distances = figure.axes
    assert sorted(many.collections[0].get_offsets()[:, 1].tolist()) == sorted(found.num_distinct.tolist())
    assert settled.lines[0].get_ydata().tolist() == found.settled_by_step.mean(1).tolist()
    assert distances.lines[0].get_ydata()[0] == 0


@pytest.mark.parametrize("changes", [{"prior_name": "none", "guide_name": "prior"}, {"task_name": "mnist"}])
def test_attractors_of_all_kinds_are_drawn(changes):
    _, _, figure = drawn_attractors(build_case(**changes), known=False, depth=1)
    assert ("right answer" in words(figure)) == (changes.get("task_name") != "mnist")


def test_deciding_shows_chance_and_certainty(case):
    found = guidance_influence(case.solver.model, case.solver.task, case.x, depth=3, num_samples=5)
    figure = influence_figure(found)
    text = words(figure)
    for label in ("transitions whose guidance is kept", "position", "nothing kept", "all kept: 1", "same answer"):
        assert label in text
    left, right = figure.axes
    mean = next(line for line in left.lines if line.get_label() == "mean")
    assert mean.get_ydata().tolist() == found.by_transition.mean(1).tolist()
    assert [bar.get_height() for bar in right.patches] == found.by_position.mean(1).tolist()


@pytest.fixture
def history(case):
    return trace_trajectories(case.solver.model, case.x, depth=5, num_samples=3).tokens[:, :, 0]


def test_an_animation_has_a_frame_a_step_and_starts_anew(case, history, tmp_path):
    path = tmp_path / "made" / "answers.gif"
    animate(case.solver.task, case.x[0], history, path, milliseconds=100)
    frames = frames_of(path)
    assert len(frames) == 5
    assert all((a != b).any() for (a, _), (b, _) in pairwise(frames))
    assert [info["duration"] for _, info in frames] == [100] * 4 + [400]
    assert frames[0][1]["loop"] == 0
    assert path.stat().st_size < 100_000
    assert [p.name for p in path.parent.iterdir()] == ["answers.gif"]


def test_frames_show_the_answers_of_their_step(case, tmp_path):
    """Of sixty steps evenly spaced ones, with the first and the last; below the titles alike where answers are."""
    first, between, last = torch.tensor([[[0, 1, 2, 0]], [[0, 0, 0, 0]], [[0, 1, 1, 2]]])
    history = torch.cat((first[None], between.expand(58, 1, 4), last[None]))
    path = tmp_path / "answers.gif"
    animate(case.solver.task, case.x[0], history, path)
    pictures = [pixels[len(pixels) // 3 :] for pixels, _ in frames_of(path)]
    assert len(pictures) == 24
    changes = [(a != b).any() for a, b in pairwise(pictures)]
    assert changes == [True] + [False] * 21 + [True]


def test_images_are_animated_without_a_verdict(tmp_path):
    task = MNIST(MNISTConfig(side=14, patch=2))
    drawn = torch.randint(0, 2, (2, 7, 196), generator=torch.Generator().manual_seed(0))
    path = tmp_path / "digits.gif"
    animate(task, None, drawn, path)
    assert len(frames_of(path)) == 2


def test_an_animation_that_cannot_be_written_is_told(case, history, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        animate(case.solver.task, case.x[0], history, tmp_path / "file" / "answers.gif")
