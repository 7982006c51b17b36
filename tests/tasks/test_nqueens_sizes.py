"""N-Queens on boards of several sizes: sizes are balanced, and training shows no held-out solution."""

import itertools

import numpy as np
import pytest
import torch

from pyro_gram.errors import ConfigError
from pyro_gram.tasks.base import SPLITS
from pyro_gram.tasks.batches import TargetStream
from pyro_gram.tasks.held_out import InputSet, even_shares
from pyro_gram.tasks.nqueens.boards import (
    all_solutions,
    completions,
    contain_solutions,
    images,
    random_solutions,
    solved_boards,
)
from pyro_gram.tasks.nqueens.squares import pad_answers, pad_inputs
from pyro_gram.tasks.nqueens.task import NQueens
from pyro_gram.tasks.uniform import expected_total_variation, total_variation
from tests.tasks.queens_cases import answers_by_size, inputs_by_size, make, one_size, row


@pytest.fixture(scope="module", params=["input", "orbit"])
def task(request) -> NQueens:
    return make(split_by=request.param)


@pytest.fixture(scope="module")
def large_task() -> NQueens:
    return make(size=10, min_size=7, split_by="orbit", validation=10_000, train_per_size=30_000)


# ---- splits --------------------------------------------------------------------------------------------------------


def test_each_size_is_split_as_if_it_were_the_only_one(task):
    test_inputs, validation_inputs = inputs_by_size(task, "test"), inputs_by_size(task, "validation")
    train_inputs = inputs_by_size(task, "train")
    for m in task.config.sizes:
        if task.config.split_by == "orbit" and m < 7:  # too few orbits
            assert not test_inputs[m]
            assert not validation_inputs[m]
            continue
        single_task = one_size(m, split_by=task.config.split_by)
        expected = single_task.split("test").inputs.tolist()
        assert sorted(test_inputs[m]) == sorted(map(tuple, expected))
        train_and_validation = {tuple(x) for s in ("train", "validation") for x in single_task.split(s).inputs.tolist()}
        assert set(train_inputs[m]) <= train_and_validation
    assert all(validation_inputs[m] for m in test_inputs if test_inputs[m])


def test_sizes_are_balanced_in_training_and_share_the_validation_inputs(task):
    assert {len(x) for x in inputs_by_size(task, "train").values()} == {300}
    counts = [len(x) for x in inputs_by_size(task, "validation").values() if x]
    assert sum(counts) == 60
    assert max(counts) - min(counts) <= 1
    small = inputs_by_size(task, "train")[5]
    repeats = {small.count(x) for x in small}
    assert max(repeats) - min(repeats) <= 1
    assert max(repeats) > 1  # few inputs of five rows are repeated
    large = inputs_by_size(task, "train")[8]
    assert len(set(large)) == 300  # and many inputs of eight rows are thinned


def test_splits_are_in_random_order_and_follow_their_seed(task):
    for split in SPLITS:
        sizes = task.sizes(task.split(split).inputs).double()
        first, last = sizes[: len(sizes) // 2].mean(), sizes[len(sizes) // 2 :].mean()
        assert abs(first - last) < 0.5
    again, other = (make(split_by=task.config.split_by, data_seed=seed) for seed in (0, 1))
    assert torch.equal(task.split("train").inputs, again.split("train").inputs)
    assert sorted(inputs_by_size(other, "test")[8]) != sorted(inputs_by_size(task, "test")[8])


def test_every_completion_is_listed_and_no_input_is_in_two_splits(task):
    inputs = {split: {tuple(x) for x in task.split(split).inputs.tolist()} for split in SPLITS}
    assert all(not inputs[a] & inputs[b] for a, b in itertools.combinations(SPLITS, 2))
    for split in SPLITS:
        puzzles = task.split(split)
        assert puzzles.has_all_solutions
        for i in range(0, len(puzzles), 29):
            x = puzzles.inputs[i]
            m = int(task.sizes(x))
            solutions = all_solutions(m)
            expected = solutions[((x[:m] == 0) | (x[:m] - 1 == solutions)).all(1)]
            assert {tuple(y) for y in puzzles.solutions_of(i)[:, :m].tolist()} == {tuple(y) for y in expected.tolist()}


def windows(columns, m):
    """Yield every smaller board of m queens inside a board, found square by square."""
    n = len(columns)
    board = np.zeros((n, n), dtype=bool)
    board[np.arange(n), columns] = True
    for r, c in itertools.product(range(n - m + 1), repeat=2):
        part = board[r : r + m, c : c + m]
        if part.sum() == m:
            yield tuple(part.argmax(1).tolist())


def shown_solutions(answers, held_out) -> int:
    """Count the held-out solutions of fewer queens that appear inside answers."""
    return sum(
        window in held_out[m]
        for n in answers
        for columns in answers[n]
        for m in held_out
        if m < n
        for window in windows(columns, m)
    )


def test_no_training_answer_shows_a_held_out_solution_of_the_same_or_fewer_queens(large_task):
    held_out = answers_by_size(large_task, "test")
    for m, answers in answers_by_size(large_task, "validation").items():
        held_out[m] |= answers
    train = answers_by_size(large_task, "train")
    assert all(held_out.values())
    for m in held_out:
        held_out_images = {tuple(i) for y in held_out[m] for i in images(torch.tensor(y)).tolist()}
        assert held_out_images == held_out[m]
        assert not held_out[m] & train[m]
    assert shown_solutions(train, held_out) == 0
    single_tasks = {m: one_size(m, split_by="orbit") for m in large_task.config.sizes}
    unchecked = {m: {tuple(y) for y in t.split("train").solutions.tolist()} for m, t in single_tasks.items()}
    assert shown_solutions(unchecked, held_out) > 0
    lost = {m: len(unchecked[m] - train[m]) / len(unchecked[m]) for m in train}
    assert lost[7] == 0
    assert max(lost.values()) < 0.25  # most solutions stay


def test_a_smaller_solution_is_found_in_all_places():
    small = torch.tensor([[1, 3, 0, 2]])
    for r, c in itertools.product(range(3), repeat=2):
        board = torch.full((6,), 99)
        board[r : r + 4] = small[0] + c
        free_columns = [column for column in range(6) if column not in board.tolist()]
        board[board == 99] = torch.tensor(free_columns)
        assert contain_solutions(board[None], small).item()
        mirrored = small.flip(1)
        assert contain_solutions(board[None], mirrored).item() == (tuple(mirrored[0].tolist()) in windows(board, 4))
    stretched = torch.tensor([[1, 4, 0, 2, 3, 5]])  # in consecutive rows, but not in consecutive columns
    assert not contain_solutions(stretched, small).item()
    same_weighted_sum = torch.tensor([[5, 2, 8, 0, 1, 3, 4, 6, 7]])  # 5 + 2 * 4 + 8 * 4^2 = 1 + 3 * 4 + 2 * 4^3
    assert not contain_solutions(same_weighted_sum, small).item()


def test_sizes_without_enough_orbits_are_refused():
    with pytest.raises(ConfigError, match="6 queens have 1 orbit.*set size = 7 or larger, or split_by = input"):
        make(size=6, split_by="orbit").split("train")


def test_more_validation_inputs_than_half_of_training_are_refused():
    with pytest.raises(ConfigError, match="validation = 500 is more than half of the .* training inputs: lower it"):
        make(size=6, min_size=4, validation=500).split("train")


def test_small_boards_give_no_more_than_half_of_their_training_inputs():
    counts = {m: len(x) for m, x in inputs_by_size(make(size=7, min_size=4, validation=100), "validation").items()}
    assert counts[4] == 11  # 28 inputs, 23 of which are not for test
    assert sum(counts.values()) == 100


def test_totals_are_shared_as_evenly_as_limits_allow():
    assert even_shares(7, [9, 9]) == [3, 4]
    assert even_shares(7, [2, 1]) == [2, 1]
    assert even_shares(10, [2, 9, 9]) == [2, 4, 4]
    assert even_shares(11, [9, 2, 9]) == [4, 2, 5]


def test_boards_too_large_to_enumerate_are_listed_with_one_solution():
    task = make(size=13, min_size=12, min_queens=11, max_queens=11, solutions=200, validation=20, train_per_size=50)
    for split in SPLITS:
        puzzles = task.split(split)
        is_small = task.sizes(puzzles.inputs) == 12
        assert is_small.any()
        assert not is_small.all()
        assert puzzles.complete_rows.tolist() == is_small.nonzero().flatten().tolist()


# ---- augmentation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [6, 8])
def test_augmentation_takes_the_symmetries_of_each_board_by_its_own_size(length):
    task = make()
    task.__dict__["_held_out"] = InputSet(row([0] * 8, 8)[None], task.spec.input_vocabulary)
    boards = [(1, 3, 0, 2), (0, 2, 4, 1, 3), (1, 3, 5, 0, 2, 4)]
    y = torch.stack([pad_answers(torch.tensor(columns), length) for columns in boards])
    x = torch.stack(
        [pad_inputs(torch.tensor([columns[0] + 1, *[0] * (len(columns) - 1)]), length) for columns in boards]
    )
    generator = torch.Generator().manual_seed(0)
    results = [set(), set(), set()]
    for _ in range(100):
        image_x, image_y = task.augment(x, y, generator)
        assert image_x.shape == image_y.shape == (3, length)
        assert task.is_valid(image_x, image_y).all()
        assert torch.equal(task.sizes(image_x), task.sizes(x))
        for k in range(3):
            results[k].add((tuple(image_x[k].tolist()), tuple(image_y[k].tolist())))
    for k, columns in enumerate(boards):
        m = len(columns)
        expected_x = images(x[k, :m] - 1) + 1
        expected_y = images(y[k, :m])
        assert results[k] == {
            (tuple(pad_inputs(a, length).tolist()), tuple(pad_answers(b, length).tolist()))
            for a, b in zip(expected_x, expected_y, strict=True)
        }


def test_augmentation_never_gives_a_held_out_input(task):
    held_out = {tuple(x) for split in ("validation", "test") for x in task.split(split).inputs.tolist()}
    held_out_answers = {m: set() for m in task.config.sizes}
    if task.config.split_by == "orbit":
        for split in ("validation", "test"):
            for m, answers in answers_by_size(task, split).items():
                held_out_answers[m] |= answers
    stream = TargetStream(task, task.split("train"), 64, seed=0, group=False)
    num_changed = 0
    for number in range(30):
        x, y = stream(number)
        small_x, small_y = task.spec.crop(x, y)
        for image_x, image_y in (task.augment(x, y, torch.Generator().manual_seed(number)) for _ in range(2)):
            assert task.is_valid(image_x, image_y).all()
            assert not {tuple(row) for row in image_x.tolist()} & held_out
            for m, columns in zip(task.sizes(image_x).tolist(), image_y.tolist(), strict=True):
                assert tuple(columns[:m]) not in held_out_answers[m]
            num_changed += int((image_x != x).any(-1).sum())
        cropped_x, cropped_y = task.augment(small_x, small_y, torch.Generator().manual_seed(number))
        assert torch.equal(pad_inputs(cropped_x, task.n), image_x)
        assert torch.equal(pad_answers(cropped_y, task.n), image_y)
    assert num_changed > 30 * 64


def test_all_solutions_of_a_batch_are_candidates_for_on_policy_training(task):
    candidates = TargetStream(task, task.split("train"), 64, seed=0, group=False).candidates(0)
    assert len(task.sizes(candidates.x).unique()) > 2
    assert task.is_valid(candidates.x.expand(len(candidates.mask), -1, -1), candidates.solutions).all()


# ---- boards for measuring ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "count"), [(4, 20), (11, 40), (14, 40), (20, 10)])
def test_boards_of_other_sizes_are_distinct_and_have_a_solution(size, count):
    task = make()
    puzzles = task.fresh_boards(size, count, data_seed=3)
    x = puzzles.inputs
    assert x.shape == (count, max(8, size))
    assert len(x.unique(dim=0)) == count
    assert (task.sizes(x) == size).all()
    assert set(task.board(x).flatten(1).sum(1).tolist()) == {1, 2, 3}
    assert puzzles.has_all_solutions == (size <= 12)
    for i in range(count):
        y = puzzles.solutions_of(i)
        assert task.is_valid(x[i].expand(len(y), -1), y).all()
        assert len(y) == (task.count_solutions(x[i]) if size <= 12 else 1)
    assert torch.equal(task.fresh_boards(size, count, data_seed=3).inputs, x)
    assert not torch.equal(task.fresh_boards(size, count, data_seed=4).inputs, x)


@pytest.mark.parametrize(
    ("task", "size", "count", "message"),
    [
        (make(), 6, 5, "the splits have boards of 6 rows: measure on the test split"),
        (make(), 21, 5, "boards have 4 to 20 rows, not 21"),
        (make(), 4, 1000, "boards of 4 rows have fewer than 1000 inputs"),
        (one_size(8), 11, 5, "layout = row has boards of one size: set layout = square"),
    ],
)
def test_boards_for_measuring_that_cannot_be_drawn_say_why(task, size, count, message):
    with pytest.raises(ConfigError, match=message):
        task.fresh_boards(size, count)


def test_solved_boards_are_as_uneven_as_their_docstring_says():
    weights = torch.tensor([8**i for i in range(8)])
    keys = (all_solutions(8) @ weights).sort().values
    boards: list[np.ndarray] = []
    for solutions in solved_boards(np.random.default_rng(0), 8):
        boards.append(solutions)
        if sum(map(len, boards)) >= 10_000:
            break
    drawn_keys = torch.from_numpy(np.concatenate(boards)) @ weights
    ids = torch.searchsorted(keys, drawn_keys)
    assert torch.equal(keys[ids], drawn_keys)
    num_solutions = torch.tensor([92])
    assert expected_total_variation(num_solutions, len(ids)) < 0.04
    assert 0.07 < total_variation(ids[:, None], num_solutions) < 0.12
    shares = 92 * torch.bincount(ids, minlength=92) / len(ids)
    assert 0.3 < shares.min() < 0.7
    assert 1.6 < shares.max() < 2.3


def test_distinct_random_solutions_are_solutions():
    solutions = random_solutions(np.random.default_rng(0), 8, 80)
    assert len(solutions.unique(dim=0)) == 80
    assert len(torch.cat((solutions, all_solutions(8))).unique(dim=0)) == 92
    assert len(completions(solutions, 8, 8)) == 80
