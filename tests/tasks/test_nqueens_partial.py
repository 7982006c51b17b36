"""Boards on which some rows take no queen: their completions, their splits, and their text."""

import itertools

import numpy as np
import pytest
import torch

from pyro_gram.errors import ConfigError, InputError
from pyro_gram.tasks.base import PuzzleSet
from pyro_gram.tasks.batches import TargetStream
from pyro_gram.tasks.nqueens import NQueens
from pyro_gram.tasks.nqueens.boards import BLANK, NO_ROW, all_solutions, images, list_completions
from pyro_gram.tasks.nqueens.config import NQueensConfig
from pyro_gram.tasks.nqueens.exact import has_completion
from pyro_gram.tasks.nqueens.partial import MAX_COMPLETIONS, partial_boards, show_held_out
from pyro_gram.tasks.nqueens.squares import EMPTY_ROW, NO_QUEEN, PADDING, square_structure

SIZES = {"size": 7, "min_size": 5, "layout": "square", "validation": 16}
BOARD = "Q....../XXXXXXX/......./......./......Q/......./......."


@pytest.fixture(scope="module")
def task():
    return NQueens(NQueensConfig(**SIZES, split_by="orbit", partial_boards=200))


@pytest.fixture(scope="module")
def partial(task):
    train = task.split("train")
    return train.select((train.inputs == EMPTY_ROW).any(1))


def attack(queens):
    squares = [(r, c) for r, c in enumerate(queens) if c >= 0]
    pairs = itertools.combinations(squares, 2)
    return any(c1 == c2 or abs(r1 - r2) == abs(c1 - c2) for (r1, c1), (r2, c2) in pairs)


def brute_force(queens):
    n = len(queens)
    choices = [range(n) if column == BLANK else [column] for column in queens]
    return [board for board in itertools.product(*choices) if not attack(board)]


def test_completions_are_those_of_brute_force():
    boards = [
        [BLANK] * 5,
        [0, NO_ROW, BLANK, BLANK, BLANK],
        [NO_ROW, 2, NO_ROW, BLANK, NO_ROW],
        [2, 1, BLANK, NO_ROW, BLANK],
    ]
    puzzles = list_completions(torch.tensor(boards))
    assert puzzles.num_solutions.tolist() == [len(brute_force(board)) for board in boards]
    assert [count > 0 for count in puzzles.num_solutions] == [True] * 3 + [False]
    for i, board in enumerate(boards):
        assert [tuple(row) for row in puzzles.solutions_of(i).tolist()] == brute_force(board)
    assert torch.equal(list_completions(torch.full((1, 8), BLANK)).solutions, all_solutions(8))


@pytest.mark.parametrize("n", [5, 7])
def test_drawn_boards_have_empty_rows_and_all_their_completions(n):
    puzzles = partial_boards(np.random.default_rng(0), n, 60, 3, [])
    assert len(puzzles) == 60
    assert {int(k) for k in (puzzles.inputs == NO_ROW).sum(1)} == {1, 2, 3}
    assert puzzles.num_solutions.min() >= 1
    assert puzzles.num_solutions.max() <= MAX_COMPLETIONS
    for i in range(20):
        assert [tuple(row) for row in puzzles.solutions_of(i).tolist()] == brute_force(puzzles.inputs[i].tolist())


def test_a_placement_that_is_a_part_of_a_held_out_solution_or_contains_a_smaller_one_is_recognized():
    part = torch.tensor([[0, NO_ROW, 7, 5, NO_ROW, 6, 1, 3]])  # 0 4 7 5 2 6 1 3 solves eight queens
    assert attack(part[0].tolist()) is False
    solution = torch.tensor([[0, 4, 7, 5, 2, 6, 1, 3]])
    assert show_held_out(part, [solution]).tolist() == [True]
    assert show_held_out(part, [solution.flip(1)]).tolist() == [False]
    smaller = torch.tensor([[1, 3, 0, 2]])
    inside = torch.tensor([[NO_ROW, 3, 5, 2, 4, NO_ROW], [NO_ROW, 3, 5, NO_ROW, 4, NO_ROW]])
    assert show_held_out(inside, [smaller]).tolist() == [True, False]


def test_training_answers_of_partial_boards_show_no_held_out_solution(task, partial):
    held_out = [task.split(name) for name in ("validation", "test")]
    solutions = torch.cat([part.solutions[part.solutions.sum(1) == 21] for part in held_out]).unique(dim=0)  # 7 rows
    assert len(solutions)
    rows = (partial.inputs != PADDING).sum(1).repeat_interleave(partial.num_solutions)
    filled = (partial.inputs != EMPTY_ROW).repeat_interleave(partial.num_solutions, 0)
    answers = torch.where(filled, partial.solutions, NO_ROW)[rows == 7]
    assert len(answers) > 100
    assert not show_held_out(answers, [images(solutions).flatten(0, 1)]).any()


def test_training_has_partial_boards_of_each_size_and_the_other_splits_have_none(task, partial):
    assert (partial.inputs != PADDING).sum(1).bincount().tolist() == [0, 0, 0, 0, 0, 200, 200, 200]
    x, y = partial.sample_pairs(300, torch.Generator())
    assert task.is_valid(x, y).all()
    for name in ("validation", "test"):
        assert not (task.split(name).inputs == EMPTY_ROW).any()


def test_augmentation_and_structure_keep_the_answers_right(task, partial):
    stream = TargetStream(task, partial, 64, seed=0)
    for number in range(4):
        x, y = stream(number)
        assert (x == EMPTY_ROW).any(1).all()
        assert task.is_valid(x, y).all()
        structure = square_structure(x)
        assert structure.values.gather(-1, y[..., None]).all()
        is_empty = ((x == EMPTY_ROW)[..., None] & (x != PADDING)[:, None]).flatten(1)
        assert (structure.tokens[is_empty] == NO_QUEEN).all()
        assert structure.values.sum(-1)[x == EMPTY_ROW].eq(1).all()


def test_a_row_that_takes_no_queen_counts_neither_as_missing_nor_as_a_queen(task):
    x = task.parse(BOARD)
    y = list_completions(task._queens(x)[None]).solutions[0].clamp(min=0)
    assert task.is_valid(x, y)
    assert task.difficulty(x) == 4
    assert task.violations(x, torch.zeros(7, dtype=torch.long)) > 0
    y[1] = 5  # a value at a row without queen means nothing
    assert task.is_valid(x, y)


def test_text_round_trips_and_pictures_show_the_empty_rows(task):
    x = task.parse(BOARD)
    assert x.tolist() == [1, EMPTY_ROW, 0, 0, 7, 0, 0]
    assert task.format_input(x) == BOARD
    y = list_completions(task._queens(x)[None]).solutions[0].clamp(min=0)
    assert task.count_solutions(x) == len(brute_force([0, NO_ROW, BLANK, BLANK, 6, BLANK, BLANK]))
    assert task.format_solution(x, y).split("/")[1] == "XXXXXXX"
    lines = task.render(x, y).split("\n")
    assert lines[1].split() == ["X"] * 7
    assert all(line.split().count(".") == 6 for line in lines[:1] + lines[2:])


def test_bad_rows_are_refused(task):
    with pytest.raises(InputError, match="row 2 of the board marks only some squares with X"):
        task.parse(BOARD.replace("XXXXXXX", "XX....."))
    with pytest.raises(InputError, match="row 2 takes no queen; only a checkpoint of many sizes"):
        NQueens(NQueensConfig(size=7)).parse(BOARD)
    with pytest.raises(InputError, match="cannot be completed"):
        task.parse("...../XXXXX/Q..../...../...Q.")
    with pytest.raises(ConfigError, match="partial_boards = 5 needs boards of several sizes"):
        NQueensConfig(size=8, layout="square", partial_boards=5)


def test_the_sat_solver_knows_rows_without_queens():
    pytest.importorskip("pysat")
    for board in list(itertools.product([NO_ROW, BLANK, 0, 2], repeat=5))[::7]:
        if not attack(board):
            assert has_completion(list(board)) == bool(brute_force(board))


def test_a_set_of_partial_boards_is_a_set_of_puzzles(partial):
    assert isinstance(partial, PuzzleSet)
    assert len(partial.complete_rows) == len(partial)
