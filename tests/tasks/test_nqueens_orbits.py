"""The split of N-Queens by orbit of solutions: no image of a test solution is ever an answer in training."""

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
    """The eight images of a solution, by plain coordinates."""
    n = len(columns)
    squares = set(enumerate(columns))
    found = set()
    for _ in range(4):
        squares = {(c, n - 1 - r) for r, c in squares}
        for board in (squares, {(c, r) for r, c in squares}):
            found.add(tuple(c for _, c in sorted(board)))
    return found


def answers(task: NQueens, split: str) -> set[tuple[int, ...]]:
    columns = task.answer_board(task.split(split).solutions).long().argmax(-1)
    return {tuple(y) for y in columns.tolist()}


@pytest.mark.parametrize("layout", ["row", "cell"])
@pytest.mark.parametrize("size", [7, 8])
def test_no_image_of_a_held_out_solution_completes_a_training_input(size, layout):
    task = make(size, layout=layout)
    for split, other in (("test", "train"), ("test", "validation"), ("validation", "train")):
        elsewhere = answers(task, other)
        for y in answers(task, split):
            assert not rotate(y) & elsewhere


def test_no_image_of_a_test_input_is_a_training_input_and_by_input_all_are():
    copies = {}
    for by in ("orbit", "input"):
        task = NQueens(NQueensConfig(size=8, split_by=by))
        train = {tuple(x) for x in (task.split("train").inputs - 1).tolist()}
        test = images(task.split("test").inputs - 1)
        copies[by] = [any(tuple(i) in train for i in image.tolist()) for image in test]
    assert not any(copies["orbit"])
    assert all(copies["input"])


@pytest.mark.parametrize(("size", "count", "test", "validation"), [(7, 6, 1, 1), (8, 12, 2, 1), (9, 46, 7, 3)])
def test_each_input_is_in_the_split_of_all_its_completions_or_in_none(size, count, test, validation):
    task = make(size, validation=10_000)
    puzzles = completions(all_solutions(size), 1, 3)
    given, solutions, offsets = puzzles.inputs, puzzles.solutions, puzzles.offsets
    number = orbit_numbers(solutions)
    assert number.unique().tolist() == list(range(count))
    side = {
        split: set(orbit_numbers(torch.cat((all_solutions(size), columns)))[len(all_solutions(size)) :].tolist())
        for split in SPLITS
        for columns in [task.answer_board(task.split(split).solutions).long().argmax(-1)]
    }
    assert [len(side[split]) for split in SPLITS] == [count - test - validation, validation, test]
    assert not side["train"] & side["test"] | side["train"] & side["validation"] | side["test"] & side["validation"]
    expected = {split: set() for split in SPLITS}
    for i, x in enumerate(given.tolist()):
        own = set(number[offsets[i] : offsets[i + 1]].tolist())
        for split in SPLITS:
            if own <= side[split]:
                expected[split].add(tuple(x))
    for split in SPLITS:
        listed = [tuple(x) for x in task.split(split).inputs.tolist()]
        assert len(set(listed)) == len(listed)
        assert set(listed) == expected[split]


def test_every_completion_is_listed():
    task = make()
    known = all_solutions(8)
    for split in SPLITS:
        puzzles = task.split(split)
        assert puzzles.has_all_solutions
        for i in range(0, len(puzzles), 7):
            x = puzzles.inputs[i] - 1
            fits = known[((x < 0) | (x == known)).all(1)]
            assert {tuple(y) for y in fits.tolist()} == {tuple(y) for y in puzzles.solutions_of(i).tolist()}


def test_the_validation_split_is_cut_to_its_setting_and_the_others_are_not():
    whole, cut = make(validation=10_000), make(validation=50)
    assert len(cut.split("validation")) == 50 < len(whole.split("validation"))
    for split in ("train", "test"):
        assert torch.equal(cut.split(split).inputs, whole.split(split).inputs)


def test_the_split_by_orbit_follows_its_seed():
    assert torch.equal(make().split("test").inputs, make().split("test").inputs)
    assert answers(make(data_seed=1), "test") != answers(make(), "test")


def test_augmentation_stays_within_the_orbits_of_training():
    task = make()
    allowed = answers(task, "train")
    inputs = {tuple(x) for x in task.split("train").inputs.tolist()}
    stream = TargetStream(task, task.split("train"), 64, seed=0)
    for number in range(10):
        x, y = stream(number)
        assert task.is_valid(x, y).all()
        assert {tuple(row) for row in y.tolist()} <= allowed
        assert {tuple(row) for row in x.tolist()} <= inputs
    generator = torch.Generator().manual_seed(0)
    puzzles = task.split("train")
    y = puzzles.sample_targets(torch.arange(len(puzzles)), generator)
    image, _ = task.augment(puzzles.inputs, y, generator)
    assert (image != puzzles.inputs).any(-1).double().mean() > 0.8  # 7 of 8: no image is held out


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
    for split in SPLITS:
        assert experiments.run.main(["--task", "nqueens", "--preset", "cpu-orbit", "--list-split", split]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert torch.equal(torch.stack([make().parse(line) for line in lines]), make().split(split).inputs)


def test_the_papers_numbers_stand_beside_its_own_split_alone():
    assert NQueens(NQueensConfig()).paper_name == "nqueens8"
    assert make().paper_name == ""


def test_an_unknown_split_lists_the_known_ones():
    with pytest.raises(ConfigError, match="unknown split_by 'solution'; known: input, orbit"):
        NQueensConfig(split_by="solution")


def test_the_images_of_a_board_are_its_rotations_and_reflections():
    for y in all_solutions(6):
        assert {tuple(i) for i in images(y).tolist()} == rotate(tuple(y.tolist()))
    part = torch.tensor([3, -1, -1, 0])
    assert {tuple(i) for i in images(part).tolist()} == {(3, -1, -1, 0), (0, -1, -1, 3)}
