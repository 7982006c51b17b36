"""Sudokus of several sizes in one model: padding, relations, symmetries and texts of each size."""

import copy
import itertools
import pickle
from functools import cache

import pytest
import torch

from pyro_gram.build import build
from pyro_gram.errors import ConfigError, InputError
from pyro_gram.presets import read_preset
from pyro_gram.tasks.held_out import InputSet
from pyro_gram.tasks.inputs import input_tokens
from pyro_gram.tasks.sudoku.boards import symmetry_invariants
from pyro_gram.tasks.sudoku.task import Sudoku, SudokuConfig
from tests.conftest import ROOT, small_config
from tests.tasks.sudoku_cases import blocks, sample_grids

SIZES, SPLITS = (4, 6), ("train", "validation", "test")


@cache
def make(**changes) -> Sudoku:
    """Return a task that tests share; no test may change it."""
    return Sudoku(SudokuConfig(**{"size": 6, "min_size": 4, "train": 30, "validation": 5, "test": 10, **changes}))


def single(size) -> Sudoku:
    return make(size=size, min_size=0)


def cells_of(x):
    return int((x != 0).sum())


# ---- data ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS)
def test_a_split_is_the_union_of_the_splits_of_each_size_in_random_order(split):
    task = make()
    puzzles = task.split(split)
    assert puzzles.has_all_solutions
    sizes = task.spec.sizes_of(puzzles.inputs)
    assert sizes[: len(sizes) // 2].unique().tolist() == [16, 36]
    for size in SIZES:
        part, cells = single(size).split(split), size**2
        index = (sizes == cells).nonzero().flatten()
        solutions = {
            tuple(puzzles.inputs[i, :cells].tolist()): puzzles.solutions_of(i)[:, :cells].tolist()
            for i in index.tolist()
        }
        assert (puzzles.inputs[index, cells:] == 0).all()
        assert all((puzzles.solutions_of(i)[:, cells:] == 0).all() for i in index.tolist())
        assert solutions == {tuple(x.tolist()): part.solutions_of(i).tolist() for i, x in enumerate(part.inputs)}
        assert len(index) == len(part)


def test_augmentation_is_a_symmetry_of_each_size():
    task = make()
    puzzles = task.split("train")
    y = puzzles.sample_targets(torch.arange(60), torch.Generator().manual_seed(0))
    x2, y2 = task.augment(puzzles.inputs, y, torch.Generator().manual_seed(1))
    assert task.is_valid(x2, y2).all()
    sizes = task.spec.sizes_of(x2)
    assert torch.equal(sizes, task.spec.sizes_of(puzzles.inputs))
    assert (x2 != puzzles.inputs).any(1).float().mean() > 0.9
    for size in SIZES:
        boards, images = ((t[sizes == size**2, : size**2] - 1).numpy() for t in (puzzles.inputs, x2))
        assert (symmetry_invariants(boards, size) == symmetry_invariants(images, size)).all()


def test_augmentation_of_cropped_inputs_gives_no_held_out_puzzle():
    task = Sudoku(make().config)
    puzzles = task.split("test")
    is_small = (task.spec.sizes_of(puzzles.inputs) == 16).nonzero().flatten()[:1]
    x, y = puzzles.inputs[is_small], puzzles.sample_targets(is_small, torch.Generator())
    x, y = (t.expand(1000, -1) for t in task.spec.crop(x, y))
    assert x.shape == y.shape == (1000, 16)
    images, _ = task.augment(x, y, torch.Generator().manual_seed(0))
    held_out = images[(images != x[0]).any(1)][:1]
    task.__dict__["_held_out"] = InputSet(task.boards.pad(held_out), task.spec.input_vocabulary)
    new_x, new_y = task.augment(x, y, torch.Generator().manual_seed(0))
    assert (images == held_out).all(1).any()
    assert not (new_x == held_out).all(1).any()
    assert task.is_valid(new_x, new_y).all()


# ---- right answers ---------------------------------------------------------------------------------------------------


def test_violations_are_those_of_the_task_of_each_size():
    task = make()
    puzzles = task.split("test")
    generator = torch.Generator().manual_seed(0)
    y = puzzles.sample_targets(torch.arange(20), generator).expand(5, -1, -1)
    noise = torch.randint(0, 6, y.shape, generator=generator)
    y = torch.where((torch.rand(y.shape, generator=generator) < 0.1) & (puzzles.inputs > 0), noise, y)
    violations = task.violations(puzzles.inputs, y)
    assert violations.shape == (5, 20)
    for i, x in enumerate(puzzles.inputs):
        cells = cells_of(x)
        expected = single({16: 4, 36: 6}[cells]).violations(x[:cells], y[:, i, :cells])
        assert torch.equal(violations[:, i], expected)
    assert (violations > 0).any()
    assert task.difficulty(puzzles.inputs).tolist() == [int((x == 1).sum()) for x in puzzles.inputs]


def test_digits_beyond_the_size_and_answers_at_padding_are_violations():
    task = make()
    x = task.parse("." * 16)
    y = torch.nn.functional.pad(sample_grids(4, 1)[0] + 1, (0, 20))
    assert task.violations(x, y) == 0
    cropped_x, cropped_y = task.spec.crop(x, y)
    assert cropped_x.shape == (16,)
    assert task.violations(cropped_x, cropped_y) == 0
    y[16] = 2
    assert task.violations(x, y) == 1
    y[16] = 0
    y[0] = 7  # the digit 6: three units miss a digit, and it is no digit of the board
    assert task.violations(x, y) == 4
    assert task.format_solution(x, y)[0] == "?"
    assert "?!" in task.render(x, y).splitlines()[0]


# ---- structure -------------------------------------------------------------------------------------------------------


def expected_relations(size):
    """Yield for each pair of cells which relations it has, computed from the cells of each block."""
    units = [[{r * size + c for r, c in block} for block in list(blocks(size)) if block]][0]
    kinds = [units[:size], units[size : 2 * size], units[2 * size :]]
    for a, b in itertools.product(range(size**2), repeat=2):
        yield a, b, [*(any({a, b} <= unit for unit in kind) for kind in kinds), True]


@pytest.mark.parametrize("size", [4, 6, 9])
def test_cells_of_one_size_see_their_row_column_and_box(size):
    task = Sudoku(SudokuConfig(size=size, source="generated"))
    assert task.spec.padding is None
    x = torch.where(torch.arange(size**2) % 2 == 0, sample_grids(size, 2) + 1, 1)
    structure = pickle.loads(pickle.dumps(copy.deepcopy(task.spec.structure)))(x)
    assert structure.mask is None
    assert structure.relations.shape == (1, task.spec.relations, size**2, size**2)
    for a, b, expected in expected_relations(size):
        assert structure.relations[0, :, a, b].tolist() == expected
    for i, cell in itertools.product(range(2), range(size**2)):
        token = int(x[i, cell])
        expected = [token] if token > 1 else list(range(2, size + 2))
        assert structure.values[i, cell].nonzero().flatten().tolist() == expected


def test_padding_sees_only_itself_and_has_only_the_value_0():
    task = make()
    x = torch.stack((task.parse("1" + "." * 15), task.parse("6" + "." * 35)))
    structure = task.spec.structure(x)
    for i, size in enumerate(SIZES):
        cells = size**2
        for a, b, expected in expected_relations(size):
            assert structure.relations[i, :, a, b].tolist() == expected
        assert structure.mask[i].tolist() == [True] * cells + [False] * (36 - cells)
        assert torch.equal(structure.relations[i, :, cells:], torch.eye(36).bool()[cells:].expand(4, -1, -1))
        assert torch.equal(structure.relations[i, :, :cells, cells:].any(), torch.tensor(False))
        assert structure.values[i, 0].nonzero().flatten().tolist() == [(2, 7)[i]]
        assert structure.values[i, 1].nonzero().flatten().tolist() == list(range(2, size + 2))
        assert all(v.nonzero().flatten().tolist() == [0] for v in structure.values[i, cells:])
    cropped = task.spec.structure(task.spec.crop(x[:1], x[:1])[0])
    assert torch.equal(cropped.relations, structure.relations[:1, :, :16, :16])
    assert torch.equal(cropped.values, structure.values[:1, :16])


def test_a_model_of_two_sizes_keeps_clues_and_padding():
    task = {"size": 6, "min_size": 4, "train": 12}
    solver = build(small_config(task_name="sudoku", task=task, model={"mixer": "relations", "heads": 4}))
    x = solver.task.split("test").inputs
    y = solver.sample(x, num_samples=3, depth=2).tokens
    assert ((x < 2) | (y == x)).all()
    assert (y[:, x == 0] == 0).all()
    assert (y[:, x > 0] > 1).all()
    assert (y - 1 <= solver.task.spec.sizes_of(x).sqrt()[:, None]).all()
    with pytest.raises(ConfigError, match="several sizes.* need --model.mixer relations"):
        build(small_config(task_name="sudoku", task=task))


# ---- texts and settings ----------------------------------------------------------------------------------------------


def test_texts_of_both_sizes_round_trip_in_one_file():
    task = make()
    puzzles = task.split("test")
    texts = list(map(task.format_input, puzzles.inputs))
    assert {len(text) for text in texts} == {16, 36}
    assert torch.equal(torch.stack(list(task.read_inputs("\n".join(texts)))), puzzles.inputs)
    for i, (x, text) in enumerate(zip(puzzles.inputs, texts, strict=True)):
        assert task.count_solutions(x) == puzzles.num_solutions[i]
        size = round(len(text) ** 0.5)
        rows = "\n".join(text[r : r + size] for r in range(0, len(text), size))
        assert torch.equal(task.parse(rows), x)
        y = puzzles.solutions_of(i)[0]
        assert torch.equal(task.parse(task.format_solution(x, y)), y)
        assert len(task.render(x, y).splitlines()) == {4: 5, 6: 8}[size]


def test_pictures_have_the_size_of_the_board():
    from matplotlib.figure import Figure

    task = make()
    for cells in (16, 36):
        axes = Figure().subplots()
        x = task.parse("." * cells)
        task.plot(axes, x, x)
        assert len(axes.texts) == cells


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("." * 81, "the board is 9x9; this task has size = 4 or 6: "),
        ("." * 15, "15 cells .* and a 4x4 board has 16, a 6x6 board has 36"),
        ("....\n....\n....", "a 4x4 board has 4 rows of 4, a 6x6 board has 6 rows of 6"),
        ("5" + "." * 15, "the digit 5 does not belong on a 4x4 board"),
        ("11" + "." * 34, "row 1 has 1 twice"),
        ("123....4........", "has no solution"),
    ],
)
def test_errors_name_the_sizes(text, message):
    with pytest.raises(InputError, match=message):
        make().parse(text)


def test_tokens_that_are_no_board_are_refused():
    task = make()
    x = task.split("test").inputs[:2].clone()
    assert torch.equal(input_tokens(task, x), x)
    x[1] = 1
    x[1, 20:] = 0
    with pytest.raises(InputError, match="20 tokens that are not padding .* 16 or 36"):
        input_tokens(task, x)
    x[1, 20:] = 1
    x[1, 0] = 0
    with pytest.raises(InputError, match="35 tokens that are not padding"):
        input_tokens(task, x)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 6, "min_size": 5}, "min_size must be 4, 6 or 9 and at most size = 6, or 0, not 5"),
        ({"size": 4, "min_size": 6}, "min_size must be 4, 6 or 9 and at most size = 4"),
        ({"size": 6, "min_size": 4, "min_clues": 5}, "with several sizes, min_clues"),
        ({"size": 9, "min_size": 4, "source": "extreme"}, "source must be auto or generated"),
        ({"size": 9, "min_size": 4, "train": 0}, "train must be at least 1"),
    ],
)
def test_errors_name_bad_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        SudokuConfig(**settings)


def test_sizes_lie_between_the_smallest_and_the_largest():
    assert SudokuConfig(size=9, min_size=4).sizes == (4, 6, 9)
    assert SudokuConfig(size=6, min_size=6).sizes == SudokuConfig(size=6).sizes == (6,)
    assert Sudoku(SudokuConfig(size=9, min_size=6, source="generated")).spec.input_shape == (81,)


def test_the_preset_has_both_sizes():
    config = read_preset(ROOT / "experiments" / "presets", "sudoku", "sizes")
    assert (config.task.sizes, config.model.mixer) == ((4, 6), "relations")
