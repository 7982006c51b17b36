"""If N-Queens is split by the orbits of solutions, no image of a test solution is ever an answer in training."""

import itertools

import pytest
import torch

import experiments.run
from pyro_gram.errors import ConfigError
from pyro_gram.tasks.base import SPLITS
from pyro_gram.tasks.batches import TargetStream
from pyro_gram.tasks.nqueens.boards import all_solutions, completions, images, orbit_numbers
from pyro_gram.tasks.nqueens.task import NQueens, NQueensConfig


def make(size=8, **changes) -> NQueens:
    return NQueens(NQueensConfig(size=size, split_by="orbit", **changes))


def rotate(columns: tuple[int, ...]) -> set[tuple[int, ...]]:
    """Return the rotations and reflections of a solution, computed from the coordinates of its queens."""
    n = len(columns)
    squares = set(enumerate(columns))
    boards = set()
    for _ in range(4):
        squares = {(c, n - 1 - r) for r, c in squares}
        for board in (squares, {(c, r) for r, c in squares}):
            boards.add(tuple(c for _, c in sorted(board)))
    return boards


def answers(task: NQueens, split: str) -> set[tuple[int, ...]]:
    columns = task.answer_board(task.split(split).solutions).long().argmax(-1)
    return {tuple(y) for y in columns.tolist()}


@pytest.mark.parametrize(("size", "layout"), [(7, "row"), (8, "cell")])
def test_no_image_of_a_held_out_solution_completes_a_training_input(size, layout):
    task = make(size, layout=layout)
    for split, other_split in (("test", "train"), ("test", "validation"), ("validation", "train")):
        other_answers = answers(task, other_split)
        for y in answers(task, split):
            assert not rotate(y) & other_answers


def test_no_test_input_is_an_image_of_a_training_input_unless_split_by_input():
    has_training_image = {}
    for split_by in ("orbit", "input"):
        task = NQueens(NQueensConfig(size=8, split_by=split_by))
        train = {tuple(x) for x in (task.split("train").inputs - 1).tolist()}
        test = images(task.split("test").inputs - 1)
        has_training_image[split_by] = [any(tuple(i) in train for i in image.tolist()) for image in test]
    assert not any(has_training_image["orbit"])
    assert all(has_training_image["input"])


@pytest.mark.parametrize(("size", "count", "test", "validation"), [(7, 6, 1, 1), (8, 12, 2, 1)])
def test_each_input_is_in_the_split_of_all_its_completions_or_in_none(size, count, test, validation):
    task = make(size, validation=10_000)
    puzzles = completions(all_solutions(size), 1, 3)
    inputs, solutions, offsets = puzzles.inputs, puzzles.solutions, puzzles.offsets
    orbit = orbit_numbers(solutions)
    assert orbit.unique().tolist() == list(range(count))
    orbits_of = {
        split: set(orbit_numbers(torch.cat((all_solutions(size), columns)))[len(all_solutions(size)) :].tolist())
        for split in SPLITS
        for columns in [task.answer_board(task.split(split).solutions).long().argmax(-1)]
    }
    assert [len(orbits_of[split]) for split in SPLITS] == [count - test - validation, validation, test]
    assert all(not orbits_of[a] & orbits_of[b] for a, b in itertools.combinations(SPLITS, 2))
    expected = {split: set() for split in SPLITS}
    for i, x in enumerate(inputs.tolist()):
        orbits = set(orbit[offsets[i] : offsets[i + 1]].tolist())
        for split in SPLITS:
            if orbits <= orbits_of[split]:
                expected[split].add(tuple(x))
    for split in SPLITS:
        rows = [tuple(x) for x in task.split(split).inputs.tolist()]
        assert len(set(rows)) == len(rows)
        assert set(rows) == expected[split]


def test_every_completion_is_listed():
    task = make()
    solutions = all_solutions(8)
    for split in SPLITS:
        puzzles = task.split(split)
        assert puzzles.has_all_solutions
        for i in range(0, len(puzzles), 29):
            x = puzzles.inputs[i] - 1
            completions_of_x = solutions[((x < 0) | (x == solutions)).all(1)]
            assert {tuple(y) for y in completions_of_x.tolist()} == {tuple(y) for y in puzzles.solutions_of(i).tolist()}


def test_the_validation_split_is_cut_to_its_setting_and_the_others_are_not():
    full_task, cut_task = make(validation=10_000), make(validation=50)
    assert len(cut_task.split("validation")) == 50 < len(full_task.split("validation"))
    for split in ("train", "test"):
        assert torch.equal(cut_task.split(split).inputs, full_task.split(split).inputs)


def test_the_split_by_orbit_follows_its_seed():
    assert torch.equal(make().split("test").inputs, make().split("test").inputs)
    assert answers(make(data_seed=1), "test") != answers(make(), "test")


def test_augmentation_stays_within_the_orbits_of_training():
    task = make()
    training_answers = answers(task, "train")
    inputs = {tuple(x) for x in task.split("train").inputs.tolist()}
    stream = TargetStream(task, task.split("train"), 64, seed=0)
    for number in range(10):
        x, y = stream(number)
        assert task.is_valid(x, y).all()
        assert {tuple(row) for row in y.tolist()} <= training_answers
        assert {tuple(row) for row in x.tolist()} <= inputs
    generator = torch.Generator().manual_seed(0)
    puzzles = task.split("train")
    y = puzzles.sample_targets(torch.arange(len(puzzles)), generator)
    image, _ = task.augment(puzzles.inputs, y, generator)
    assert (image != puzzles.inputs).any(-1).double().mean() > 0.8  # 7 of 8 symmetries change an input


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 6}, "6 queens have 1 orbit.* set size = 7 or larger, or split_by = input"),
        ({"size": 5}, "5 queens have 2 orbit.* set size = 7 or larger"),
        ({"size": 13}, "split_by = orbit needs every solution, known up to size = 12, not 13"),
    ],
)
def test_a_board_that_cannot_be_split_by_orbit_says_what_to_change(settings, message):
    with pytest.raises(ConfigError, match=message):
        make(**settings).split("train")


def test_run_lists_the_split_by_orbit_of_its_preset(capsys):
    task = make()
    assert experiments.run.main(["--task", "nqueens", "--preset", "cpu-orbit", "--list-split", "validation"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert torch.equal(torch.stack([task.parse(line) for line in lines]), task.split("validation").inputs)


def test_only_the_split_by_input_has_the_name_of_the_paper():
    assert NQueens(NQueensConfig()).paper_name == "nqueens8"
    assert make().paper_name == ""


def test_an_unknown_split_lists_the_known_ones():
    with pytest.raises(ConfigError, match="unknown split_by 'solution'; known: input, orbit"):
        NQueensConfig(split_by="solution")


def test_the_images_of_a_board_are_its_rotations_and_reflections():
    for y in all_solutions(6):
        assert {tuple(i) for i in images(y).tolist()} == rotate(tuple(y.tolist()))
    columns = torch.tensor([3, -1, -1, 0])
    assert {tuple(i) for i in images(columns).tolist()} == {(3, -1, -1, 0), (0, -1, -1, 3)}
