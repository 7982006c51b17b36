import itertools

import numpy as np
import pytest
import torch

from pyro_gram.errors import ConfigError, InputError
from pyro_gram.tasks.batches import TargetStream
from pyro_gram.tasks.nqueens.boards import (
    all_solutions,
    board_symmetries,
    completions,
    random_solutions,
)
from pyro_gram.tasks.nqueens.task import NQueens, NQueensConfig

LAYOUTS = ("row", "cell")


def make(layout="row", size=6, **changes) -> NQueens:
    return NQueens(NQueensConfig(size=size, layout=layout, **{"validation": 5, **changes}))


def attacks(a, b) -> bool:
    return a[0] == b[0] or a[1] == b[1] or abs(a[0] - b[0]) == abs(a[1] - b[1])


def brute_force(n) -> set[tuple[int, ...]]:
    return {
        p
        for p in itertools.permutations(range(n))
        if not any(attacks(a, b) for a, b in itertools.combinations(enumerate(p), 2))
    }


def squares(board) -> list[tuple[int, ...]]:
    return [tuple(s) for s in board.nonzero().tolist()]


@pytest.mark.parametrize(("n", "count"), [(4, 2), (5, 10), (6, 4), (7, 40), (8, 92), (10, 724)])
def test_every_solution_is_enumerated_once(n, count):
    solutions = all_solutions(n)
    assert len(solutions) == len(solutions.unique(dim=0)) == count
    if n <= 7:
        assert {tuple(s) for s in solutions.tolist()} == brute_force(n)


@pytest.mark.parametrize(("size", "train", "test"), [(8, 4375, 773), (10, 36907, 6513)])
def test_there_are_as_many_inputs_as_in_the_paper(size, train, test):
    task = make(size=size, validation=100)
    assert len(task.split("train")) + len(task.split("validation")) == train
    assert len(task.split("validation")) == 100
    assert len(task.split("test")) == test


@pytest.mark.parametrize("layout", LAYOUTS)
def test_completions_are_exactly_those_of_brute_force(layout):
    task = make(layout)
    solutions = brute_force(6)
    for split in ("train", "validation", "test"):
        puzzles = task.split(split)
        for i in range(len(puzzles)):
            queens = squares(task.board(puzzles.inputs[i]))
            assert 1 <= len(queens) <= 3
            expected = {s for s in solutions if all(s[r] == c for r, c in queens)}
            columns = task.answer_board(puzzles.solutions_of(i)).long().argmax(-1)
            assert {tuple(s) for s in columns.tolist()} == expected
            assert len(columns) == len(expected) == puzzles.num_solutions[i]


def test_no_input_is_in_two_splits_and_the_split_follows_its_seed():
    task = make(size=8)
    inputs = torch.cat([task.split(s).inputs for s in ("train", "validation", "test")])
    assert len(inputs.unique(dim=0)) == len(inputs) == 5148
    assert torch.equal(make(size=8).split("test").inputs, task.split("test").inputs)
    assert not torch.equal(make(size=8, data_seed=1).split("test").inputs, task.split("test").inputs)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_check_counts_attacking_pairs_and_lost_queens(layout):
    task = make(layout)
    x = task.split("test").inputs[0]
    queens = squares(task.board(x))
    generator = torch.Generator().manual_seed(0)
    columns = torch.randint(6, (50, 6), generator=generator)
    counts = task.violations(x, task.encode_answer(columns))
    for y, count in zip(columns.tolist(), counts.tolist(), strict=True):
        pairs = sum(attacks(a, b) for a, b in itertools.combinations(enumerate(y), 2))
        assert count == pairs + sum(y[r] != c for r, c in queens)


def test_a_board_with_too_few_or_too_many_queens_is_wrong():
    task = make("cell")
    puzzles = task.split("test")
    x, y = puzzles.inputs[0], puzzles.solutions_of(0)[0]
    assert task.is_valid(x, y)
    place = int((y == 2).nonzero()[0])
    answer_without_queen = y.clone()
    answer_without_queen[place] = 1
    assert task.violations(x, answer_without_queen) >= 1
    assert (task.violations(x, torch.full_like(y, 2)) > 0).all()
    assert task.violations(x, torch.zeros_like(y)) >= 6


def test_the_symmetries_are_a_group_of_eight():
    group = board_symmetries(5)
    assert len(group.unique(dim=0)) == 8
    products = torch.stack([a[b] for a in group for b in group])
    assert len(products.unique(dim=0)) == 8


@pytest.mark.parametrize("layout", LAYOUTS)
def test_augmentation_keeps_pairs_right_and_gives_no_held_out_input(layout):
    task = make(layout, size=7)
    puzzles = task.split("train")
    generator = torch.Generator().manual_seed(0)
    held_out = {task.format_input(x) for s in ("validation", "test") for x in task.split(s).inputs}
    index = torch.arange(len(puzzles))
    images = set()
    for _ in range(3):
        y = puzzles.sample_targets(index, generator)
        x2, y2 = task.augment(puzzles.inputs, y, generator)
        assert task.is_valid(x2, y2).all()
        is_same = (x2 == puzzles.inputs).flatten(1).all(1)
        assert torch.equal(y2[is_same & (y2 == y).all(1)], y[is_same & (y2 == y).all(1)])
        assert (
            0.6 < 1 - is_same.double().mean() < 0.9
        )  # 7 of 8 symmetries change an input; 15 % of the images are held out
        images |= {task.format_input(x) for x in x2}
    assert not images & held_out
    assert len(images) > 0.9 * (len(puzzles) - 5)


def test_images_are_in_the_orbit_of_the_input():
    task = make(size=8)
    puzzles = task.split("train").subset(20)
    generator = torch.Generator().manual_seed(0)
    x2, _ = task.augment(puzzles.inputs, puzzles.sample_targets(torch.arange(20), generator), generator)
    for x, image in zip(puzzles.inputs, x2, strict=True):
        board = task.board(x)
        orbit = [torch.rot90(b, k) for b in (board, board.T) for k in range(4)]
        assert any(torch.equal(task.board(image), b) for b in orbit)


def test_the_training_stream_holds_no_held_out_input():
    task = make(size=6)
    stream = TargetStream(task, task.split("train"), 16, seed=0)
    held_out = {task.format_input(x) for s in ("validation", "test") for x in task.split(s).inputs}
    for number in range(20):
        x, y = stream(number)
        assert task.is_valid(x, y).all()
        assert not held_out & {task.format_input(row) for row in x}


def test_inputs_of_large_boards_are_listed_with_one_solution():
    task = make(size=13, solutions=100, max_queens=5)
    for split in ("train", "validation", "test"):
        puzzles = task.split(split)
        assert not puzzles.has_all_solutions
        assert (puzzles.num_solutions == 1).all()
        assert task.is_valid(puzzles.inputs, puzzles.solutions).all()


def test_random_solutions_are_distinct_and_right():
    solutions = random_solutions(np.random.default_rng(0), 16, 50)
    assert len(solutions.unique(dim=0)) == len(solutions) == 50
    task = make(size=16)
    assert (task.violations(torch.zeros(16, dtype=torch.long), solutions) == 0).all()


def test_the_empty_board_has_every_solution():
    puzzles = completions(all_solutions(6), 0, 0)
    assert puzzles.inputs.tolist() == [[0] * 6]
    assert torch.equal(puzzles.solutions, all_solutions(6))
    assert puzzles.offsets.tolist() == [0, 4]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_text_round_trips(layout):
    task = make(layout)
    puzzles = task.split("test")
    for i, x in enumerate(puzzles.inputs):
        text = task.format_input(x)
        assert len(text.split("/")) == 6
        assert torch.equal(task.parse(text), x)
        answer = task.format_solution(x, puzzles.solutions_of(i)[0])
        assert answer.count("Q") == 6
        assert all(a in (g, "Q") for g, a in zip(text, answer, strict=True))
    assert len(list(task.read_inputs("\n\n".join(task.format_input(x) for x in puzzles.inputs)))) == len(puzzles)


BAD_INPUTS = [
    ("....../......", "2 rows; this task has size = 6"),
    ("", "empty input"),
    ("......", "one row of 6 squares; give all rows"),
    ("....../....../.../....../....../......", "row 3 of the board has 3 squares, not 6"),
    ("....../...x../....../....../....../......", "row 2 of the board holds 'x'"),
    ("Q...Q./....../....../....../....../......", "row 1, column 1 and row 1, column 5 attack"),
    ("Q...../....../....../...Q../....../......", "row 1, column 1 and row 4, column 4 attack"),
    ("Q...../....../....../....../....../......", "cannot be completed"),  # no solution of 6 has a queen in a corner
]


def test_each_kind_of_bad_input_has_its_own_message():
    for text, message in BAD_INPUTS:
        with pytest.raises(InputError, match=message):
            make().parse(text)


BAD_SETTINGS = [
    ({"size": 3}, "size must lie between 4 and 64"),
    ({"layout": "matrix"}, "layout"),
    ({"min_queens": 4, "max_queens": 3}, "max_queens must lie between 4 and 8"),
    ({"max_queens": 9}, "max_queens must lie between 1 and 8"),
    ({"validation": 0}, "validation"),
]


def test_errors_name_bad_settings():
    for settings, message in BAD_SETTINGS:
        with pytest.raises(ConfigError, match=message):
            NQueensConfig(**settings)


def test_a_validation_split_that_leaves_no_training_is_an_error():
    with pytest.raises(ConfigError, match="leaves nothing of the"):
        make(validation=5000).split("train")


def test_pictures_distinguish_input_added_and_attacked_queens():
    from matplotlib.figure import Figure

    from pyro_gram.tasks.nqueens.task import ADDED_COLOR, INPUT_COLOR, MISTAKE_COLOR

    task = make()
    puzzles = task.split("test")
    x, y = puzzles.inputs[0], puzzles.solutions_of(0)[0]
    axes_x, axes_y, axes_wrong = Figure().subplots(1, 3)
    task.plot(axes_x, x)
    assert {t.get_color() for t in axes_x.texts} == {INPUT_COLOR}
    task.plot(axes_y, x, y)
    assert {t.get_color() for t in axes_y.texts} == {INPUT_COLOR, ADDED_COLOR}
    assert len(axes_y.texts) == 6
    task.plot(axes_wrong, x, torch.zeros(6, dtype=torch.long))
    assert MISTAKE_COLOR in {t.get_color() for t in axes_wrong.texts}
