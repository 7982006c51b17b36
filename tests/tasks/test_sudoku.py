import itertools
from functools import cache

import numpy as np
import pytest
import torch

from pyro_gram.errors import ConfigError, InputError
from pyro_gram.tasks.held_out import InputSet
from pyro_gram.tasks.sudoku import data
from pyro_gram.tasks.sudoku.boards import solve, symmetry_invariants
from pyro_gram.tasks.sudoku.data import assign_splits, random_puzzles
from pyro_gram.tasks.sudoku.pictures import MISTAKE_COLOR
from pyro_gram.tasks.sudoku.task import Sudoku, SudokuConfig
from tests.tasks.sudoku_cases import QUESTION, SIZES, blank_cells, blocks, brute_force, canonical_4, sample_grids


@cache
def make(size=4, **changes) -> Sudoku:
    settings = {"source": "generated", "train": 60, "validation": 10, "test": 20, **changes}
    return Sudoku(SudokuConfig(size=size, **settings))


# ---- generated puzzles -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "train"), [(4, 60), (6, 20), (9, 3)])
def test_every_solution_is_listed(size, train, monkeypatch):
    monkeypatch.setattr(data, "BATCH", 100 if size < 9 else 10)
    task = make(size, train=train, validation=1 if size == 9 else 10, test=1 if size == 9 else 20)
    puzzles = task.split("train")
    assert len(puzzles) == train
    assert puzzles.has_all_solutions
    for i in range(len(puzzles)):
        solutions = {tuple(row) for row in (puzzles.solutions_of(i) - 1).tolist()}
        board = (puzzles.inputs[i] - 1).tolist()
        assert len(solutions) == puzzles.num_solutions[i]
        assert solutions == (set(solve(board, size, 1000)) if size == 9 else brute_force(board, size))
        assert task.is_valid(puzzles.inputs[i], puzzles.solutions_of(i)).all()


def test_half_of_the_puzzles_have_one_solution_and_none_has_too_many():
    puzzles = random_puzzles(4, 500, (4, 10), 0.5, 6, seed=0)
    counts = np.diff(puzzles.offsets)
    assert (counts == 1).sum() == 250
    assert counts.max() <= 6
    assert len(np.unique(puzzles.boards, axis=0)) == 500
    clues = (puzzles.boards > 0).sum(1)
    assert clues.min() >= 4
    assert clues.max() <= 10
    unique_puzzles = random_puzzles(6, 20, (16, 20), 1.0, 6, seed=0)
    assert (np.diff(unique_puzzles.offsets) == 1).all()


def test_no_puzzle_of_one_split_is_symmetric_to_one_of_another():
    task = make(4, train=150, validation=20, test=30)
    forms = {
        split: {canonical_4(board) for board in (task.split(split).inputs - 1).tolist()}
        for split in ("train", "validation", "test")
    }
    assert [len(task.split(split)) for split in forms] == [150, 20, 30]
    for a, b in itertools.combinations(forms, 2):
        assert not forms[a] & forms[b]


def test_puzzles_with_the_same_key_are_never_in_two_splits():
    keys = np.repeat(np.arange(30), 10)
    splits = assign_splits(keys, {"test": 25, "validation": 5, "train": 200}, np.random.default_rng(0))
    assert [len(index) for index in splits.values()] == [25, 5, 200]
    classes = [set(keys[index].tolist()) for index in splits.values()]
    assert sum(map(len, classes)) == len(set.union(*classes))
    assert assign_splits(keys, {"test": 25, "validation": 5, "train": 280}, np.random.default_rng(0)) is None


def test_the_split_is_reproducible_and_follows_its_seed():
    a, b = make(), Sudoku(make().config)
    assert torch.equal(a.split("test").inputs, b.split("test").inputs)
    assert torch.equal(a.split("train").solutions, b.split("train").solutions)
    assert not torch.equal(a.split("test").inputs, make(data_seed=1).split("test").inputs)


def test_default_sizes_of_4x4():
    task = Sudoku(SudokuConfig())
    assert [len(task.split(split)) for split in ("train", "validation", "test")] == [7000, 128, 500]
    assert task.ratings("test") is None


@pytest.mark.parametrize("size", [4, 6])
def test_augmentation_is_a_symmetry_with_a_valid_answer(size):
    task = make(size)
    puzzles = task.split("train")
    generator = torch.Generator().manual_seed(0)
    y = puzzles.sample_targets(torch.arange(len(puzzles)), generator)
    x2, y2 = task.augment(puzzles.inputs, y, generator)
    assert task.is_valid(x2, y2).all()
    assert (x2 != puzzles.inputs).any(1).float().mean() > 0.9
    keys = symmetry_invariants((puzzles.inputs - 1).numpy(), size)
    assert (symmetry_invariants((x2 - 1).numpy(), size) == keys).all()


def test_augmentation_takes_any_leading_shape():
    task = make()
    puzzles = task.split("train")
    y = puzzles.sample_targets(torch.arange(60), torch.Generator().manual_seed(0))
    flat_images = task.augment(puzzles.inputs, y, torch.Generator().manual_seed(1))
    x, y = puzzles.inputs.view(3, 20, 16), y.view(3, 20, 16)
    for image, flat_image in zip(task.augment(x, y, torch.Generator().manual_seed(1)), flat_images, strict=True):
        assert torch.equal(image.view(60, 16), flat_image)


def test_augmentation_gives_no_held_out_puzzle():
    task = Sudoku(make().config)
    x, y = task.split("test").inputs, task.split("test").solutions[task.split("test").offsets[:-1]]
    x, y = x[:1].expand(1000, -1), y[:1].expand(1000, -1)
    images, _ = task.augment(x, y, torch.Generator().manual_seed(0))
    held_out = images[(images != x[0]).any(1)][:1]
    task.__dict__["_held_out"] = InputSet(held_out, task.spec.input_vocabulary)
    new_x, answers = task.augment(x, y, torch.Generator().manual_seed(0))
    assert (images == held_out).all(1).any()
    assert not (new_x == held_out).all(1).any()
    assert task.is_valid(new_x, answers).all()


# ---- right answers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_check_agrees_with_counting_by_hand(size):
    task = Sudoku(SudokuConfig(size=size, source="generated"))
    x = blank_cells(size, 5, size * 2) + 1
    noise = torch.randint(0, size + 2, (4, 5, size * size), generator=torch.Generator().manual_seed(0))
    is_kept = torch.rand(noise.shape, generator=torch.Generator().manual_seed(1)) < 0.9
    y = torch.where(is_kept, sample_grids(size, 5) + 1, noise)
    violations = task.violations(x, y)
    assert violations.shape == (4, 5)
    for n, i in itertools.product(range(4), range(5)):
        rows = (y[n, i] - 1).view(size, size).tolist()
        expected = sum(len(set(range(1, size + 1)) - {rows[r][c] for r, c in block}) for block in blocks(size) if block)
        expected += sum(digit < 1 for row in rows for digit in row)
        expected += sum(a > 1 and a != b for a, b in zip(x[i].tolist(), y[n, i].tolist(), strict=True))
        assert violations[n, i] == expected


def test_each_kind_of_mistake_is_a_violation():
    task = make()
    x, y = task.split("test").inputs[0], task.split("test").solutions_of(0)[0]
    assert task.is_valid(x, y)
    renamed_grid = torch.tensor([0, 1, 3, 4, 5, 2])[y]  # a correct grid that changes every clue
    assert task.violations(x, renamed_grid) == (x > 1).sum()
    assert task.is_valid(torch.ones_like(x), renamed_grid)
    y = y.clone()
    y[5] = 1
    assert not task.is_valid(torch.ones_like(x), y)
    assert task.format_solution(x, y)[5] == "?"


def test_tokens_are_those_of_the_paper():
    spec = Sudoku(SudokuConfig(size=9, source="generated")).spec
    assert (spec.input_length, spec.input_vocabulary, spec.output_length, spec.output_classes) == (81, 11, 81, 11)
    x = Sudoku(SudokuConfig(size=9, source="generated")).parse(QUESTION)
    assert x[:4].tolist() == [1, 5, 8, 1]


# ---- text and picture --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [4, 6])
def test_text_round_trips(size):
    task = make(size)
    puzzles = task.split("test")
    for x in puzzles.inputs:
        text = task.format_input(x)
        assert torch.equal(task.parse(f" {text}\n"), x)
        assert torch.equal(task.parse(text.replace(".", "0")), x)
    assert len(list(task.read_inputs("\n\n".join(map(task.format_input, puzzles.inputs))))) == len(puzzles)
    y = puzzles.solutions_of(0)[0]
    assert torch.equal(task.parse(task.format_solution(puzzles.inputs[0], y)), y)


BAD_INPUTS = [
    (9, QUESTION[:-1], r"80 cells .*, and a 9x9 board has 81"),
    (4, "", "empty input"),
    (4, "12/.............", "'/' is neither a digit nor a blank"),
    (4, "...5............", "the digit 5 does not belong on a 4x4 board, whose digits are 1 to 4"),
    (6, "....é" + "." * 31, "'é' is neither a digit nor a blank"),
    (4, "1..1............", "row 1 has 1 twice"),
    (4, ".2...2..........", "column 2 has 2 twice"),
    (6, "5....." + ".5...." + "." * 24, r"box 1 \(of 2 rows and 3 columns\) has 5 twice"),
    (6, "....5." + "." * 6 + "....5." + "." * 18, "column 5 has 5 twice"),
    (4, "123....4........", "has no solution"),
    (4, "12.3...4........", "has no solution"),
    (9, "5" + QUESTION[1:], "row 1 has 5 twice"),
    (9, ".....5.8....6.1.43..........1.5........1.6...3.......553.....61........4.........", "has no solution"),
]


def test_each_kind_of_bad_input_has_its_own_message():
    for size, text, message in BAD_INPUTS:
        with pytest.raises(InputError, match=message):
            Sudoku(SudokuConfig(size=size, source="generated")).parse(text)


@pytest.mark.parametrize("size", [4, 9])
def test_pictures_mark_conflicts_and_broken_clues(size):
    from matplotlib.figure import Figure

    task = Sudoku(SudokuConfig(size=size, source="generated"))
    grid = sample_grids(size, 1)[0] + 1
    x = torch.where(torch.arange(size * size) % 3 == 0, grid, 1)
    mistakes = grid.clone()
    mistakes[0] = mistakes[1]  # cell 0 is a clue, and now repeats the digit of cell 1
    mistakes[5] = 0
    axes = Figure().subplots(1, 3)
    task.plot(axes[0], x)
    task.plot(axes[1], x, grid)
    task.plot(axes[2], x, mistakes)
    assert len(axes[0].texts) == (x > 1).sum()
    assert sum(t.get_fontweight() == "bold" for t in axes[1].texts) == (x > 1).sum()
    red_texts = [[t.get_text() for t in a.texts if t.get_color() == MISTAKE_COLOR] for a in axes]
    assert red_texts[0] == red_texts[1] == []
    assert red_texts[2][:2] == [str(int(grid[1]) - 1)] * 2
    assert "?" in red_texts[2]


# ---- settings ----------------------------------------------------------------------------------------------------


BAD_SETTINGS = [
    ({"size": 5}, "size must be 4, 6 or 9, not 5"),
    ({"source": "web"}, "unknown source 'web'"),
    ({"source": "extreme"}, "9x9 only"),
    ({"train": 0}, "train must be at least 1"),
    ({"test": -2}, "test must be at least -1"),
    ({"validation": 0}, "validation must be at least 1"),
    ({"min_clues": 16}, "min_clues must lie between 0 and 15"),
    ({"min_clues": 12}, "12 is more than 10"),
    ({"unique": 1.5}, "unique"),
    ({"max_solutions": 1}, "max_solutions"),
    ({"data_seed": -1}, "data_seed"),
]


def test_errors_name_bad_settings():
    for settings, message in BAD_SETTINGS:
        with pytest.raises(ConfigError, match=message):
            SudokuConfig(**settings)


def test_asking_for_puzzles_that_do_not_exist_is_an_error_not_an_endless_loop():
    with pytest.raises(ConfigError, match="too few 4x4 puzzles with 1 to 3 clues and one solution"):
        make(4, min_clues=1, max_clues=3).split("train")
    with pytest.raises(ConfigError, match="symmetric ones across splits"):
        make(4, min_clues=15, max_clues=15, unique=1.0, train=500, test=100).split("train")


def test_an_error_names_an_unknown_split():
    with pytest.raises(ConfigError, match="holdout"):
        make().split("holdout")
