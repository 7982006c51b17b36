"""N-Queens on boards of several sizes: padding changes neither relations, conflicts, texts nor pictures."""

import itertools
import pickle
import sys

import numpy as np
import pytest
import torch

import experiments.run
from pyro_gram.errors import ConfigError, InputError
from pyro_gram.tasks.base import SPLITS
from pyro_gram.tasks.nqueens import exact
from pyro_gram.tasks.nqueens.boards import (
    all_solutions,
    random_solutions,
)
from pyro_gram.tasks.nqueens.squares import pad_answers, pad_inputs, square_structure
from pyro_gram.tasks.nqueens.task import NQueens, NQueensConfig
from tests.tasks.queens_cases import make, one_size, row


@pytest.fixture(scope="module", params=["input", "orbit"])
def task(request) -> NQueens:
    return make(split_by=request.param)


# ---- structure -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [6, 8])
def test_a_square_sees_its_row_column_and_diagonals_and_no_padding(length):
    boards = [[1, -1, -1, 2], [-1, 0, -1, -1, -1, 2]]
    structure = square_structure(torch.stack([row(columns, length) for columns in boards]))
    squares = list(itertools.product(range(length), repeat=2))
    for k, columns in enumerate(boards):
        m = len(columns)
        for i, (r, c) in enumerate(squares):
            on_board = r < m and c < m
            assert structure.mask[k, i] == on_board
            if on_board:
                expected_token = 0 if columns[r] < 0 else 1 if columns[r] == c else 2
                assert structure.tokens[k, i] == expected_token
            for j, (r2, c2) in enumerate(squares):
                is_pair = on_board and r2 < m and c2 < m
                lines = [r == r2, c == c2, r - c == r2 - c2, r + c == r2 + c2]
                expected = [i == j or (is_pair and line) for line in lines]
                assert structure.relations[k, :, i, j].tolist() == expected
        for r in range(length):
            if r >= m:
                open_columns = [0]
            elif columns[r] >= 0:
                open_columns = [columns[r]]
            else:
                open_columns = list(range(m))  # also columns that other queens attack
            assert structure.values[k, r].nonzero().flatten().tolist() == open_columns
    assert structure.tokens.max() < make().spec.input_vocabulary


@pytest.mark.parametrize("shape", [(), (4,), (2, 2)])
@pytest.mark.parametrize("length", [6, 7])
def test_boards_of_one_size_share_their_relations(shape, length):
    x = torch.stack(
        [row(columns, length) for columns in ([1, 3, 5, 0, 2, 4], [-1] * 6, [0] + [-1] * 5, [5] + [-1] * 5)]
    )
    x = x[0] if shape == () else x.view(*shape, length)
    small = row([-1] * 4, length).expand(*shape, length)
    single = square_structure(x)
    mixed = square_structure(torch.stack((x, small)))
    assert single.relations.shape == (*[1] * len(shape), 4, length**2, length**2)
    assert (single.mask is None) == (length == 6)
    assert torch.equal(single.relations.expand_as(mixed.relations[0]), mixed.relations[0])
    assert torch.equal(single.tokens, mixed.tokens[0])
    assert torch.equal(single.values, mixed.values[0])
    mask = torch.ones_like(mixed.mask[0]) if single.mask is None else single.mask
    assert torch.equal(mask, mixed.mask[0])


def test_the_structure_is_saved_by_name_and_names_the_shapes_of_the_spec(task):
    assert pickle.loads(pickle.dumps(task.spec.structure)) is square_structure
    structure = task.spec.structure(task.split("train").inputs[:8])
    assert structure.relations.shape[-3:] == (task.spec.relations, task.spec.positions, task.spec.positions)
    assert structure.values.shape == (8, task.spec.output_length, task.spec.output_classes)


def test_every_solution_is_open(task):
    for split in SPLITS:
        x, y = task.spec.crop(*task.split(split).sample_pairs(500, torch.Generator().manual_seed(0)))
        assert task.spec.structure(x).values.gather(-1, y[..., None]).all()


# ---- right answers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("m", [4, 7])
def test_padding_changes_neither_the_conflicts_nor_the_difficulty(m):
    generator = torch.Generator().manual_seed(m)
    x = torch.randint(-1, m, (40, m), generator=generator) + 1
    y = torch.cat((torch.randint(m, (38, m), generator=generator), all_solutions(m)[:2]))
    x[-2:] = torch.where(torch.arange(m) == 1, y[-2:] + 1, 0)
    old_task = one_size(m)
    expected = old_task.violations(x, y)
    assert (expected[-2:] == 0).all()
    assert (expected[:-2] > 0).all()
    for length in (m, 9, 20):
        padded_x, padded_y = pad_inputs(x, length), pad_answers(y, length)
        assert torch.equal(make().violations(padded_x, padded_y), expected)
        assert torch.equal(make().violations(padded_x.view(4, 10, -1), padded_y.view(4, 10, -1)), expected.view(4, 10))
        assert torch.equal(make().difficulty(padded_x), old_task.difficulty(x))


def test_a_queen_beside_the_board_is_missing():
    x = row([-1] * 4, 6)
    assert make().violations(x, torch.tensor([1, 3, 0, 2, 0, 0])) == 0
    assert make().violations(x, torch.tensor([1, 3, 0, 5, 0, 0])) == 1


# ---- text and picture ----------------------------------------------------------------------------------------------


def text_of(columns) -> str:
    n = len(columns)
    return "/".join("".join("Q" if c == column else "." for c in range(n)) for column in columns)


@pytest.mark.parametrize("m", [4, 7, 12, 13, 20])
def test_boards_of_4_to_20_rows_are_read_and_written(m):
    task = make()
    [solution] = random_solutions(np.random.default_rng(0), m, 1)
    columns = torch.where(torch.arange(m) < 2, solution, -1)
    text = text_of(columns.tolist())
    x = task.parse(text)
    assert torch.equal(x, row(columns.tolist(), max(8, m)))
    assert torch.equal(task.parse(str(columns.tolist())), x)
    assert torch.equal(task.parse(text.replace("/", "\n")), x)
    assert task.format_input(x) == text
    y = pad_answers(solution, len(x))
    assert task.format_solution(x, y) == text_of(solution.tolist())
    assert task.is_valid(x, y)
    assert len(x) <= task.max_size == 20
    assert x.max() < task.spec.input_vocabulary


@pytest.mark.parametrize("rows", [21, 30])
def test_larger_boards_are_refused(rows):
    with pytest.raises(InputError, match=f"the board has {rows} rows; this task reads boards of 4 to 20"):
        make().parse(text_of([-1] * rows))


def test_a_file_may_hold_boards_of_several_sizes():
    task = make()
    text = "Q...\n....\n....\n....\n\n.....Q/....../....../....../....../......\n" + "\n".join(["." * 9] * 9)
    with pytest.raises(InputError, match="cannot be completed"):
        list(task.read_inputs(text))
    inputs = list(task.read_inputs(text.replace("Q...\n", ".Q..\n").replace(".....Q", "..Q...")))
    assert [int(task.sizes(x)) for x in inputs] == [4, 6, 9]
    csv = ".,Q,.,.,\n" + ".,.,.,.,\n" * 3
    assert [task.format_input(x) for x in task.read_inputs(csv)] == [".Q../..../..../...."]


@pytest.mark.parametrize(("task", "m"), [(one_size(8), 8), (make(), 20)])
def test_rows_that_end_in_a_comma_are_cut_into_boards_if_their_size_is_clear(task, m):
    text = (".," * m + "\n") * 2 * m
    assert [task.sizes(x).item() for x in task.read_inputs(text)] == [m, m]


def unsolvable_board() -> list[int]:
    """Return a board of 13 rows whose queens attack every square of the last row."""
    rng = np.random.default_rng(0)
    while True:
        columns = [-1] * 13
        for r in rng.permutation(12).tolist():
            free = [
                c
                for c in range(13)
                if all(c not in (o, o + abs(r - i), o - abs(r - i)) for i, o in enumerate(columns) if o >= 0)
            ]
            if free:
                columns[r] = int(rng.choice(free))
            if all(any(c in (o, o + 12 - i, o - 12 + i) for i, o in enumerate(columns) if o >= 0) for c in range(13)):
                return columns


def test_a_large_board_that_cannot_be_completed_is_refused_if_it_can_be_proved(monkeypatch):
    columns = unsolvable_board()
    pytest.importorskip("pysat")
    with pytest.raises(InputError, match="cannot be completed .proved by a SAT solver.: no answer exists"):
        make().parse(text_of(columns))
    assert exact.has_completion([-1] * 20) is True
    monkeypatch.setitem(sys.modules, "pysat", None)
    monkeypatch.setitem(sys.modules, "pysat.solvers", None)
    assert exact.has_completion(columns) is None
    assert make().parse(text_of(columns)).tolist() == [c + 1 for c in columns]


@pytest.mark.parametrize("n", [6, 9])
def test_the_sat_solver_agrees_with_the_list_of_solutions(n):
    pytest.importorskip("pysat")
    task = make()
    rng = np.random.default_rng(n)
    results = set()
    for _ in range(60):
        columns = np.where(rng.random(n) < 0.4, rng.permutation(n), -1).tolist()
        is_completable = task.count_solutions(row(columns, n)) > 0
        assert exact.has_completion(columns) == is_completable
        results.add(is_completable)
    assert results == {True, False}


def test_solutions_are_counted_up_to_12_rows():
    task = make()
    assert task.count_solutions(row([-1] * 8, 8)) == 92
    assert task.count_solutions(row([-1] * 5, 8)) == 10
    assert task.count_solutions(row([-1] * 12, 12)) == 14200
    assert task.count_solutions(row([-1] * 13, 13)) is None


def test_pictures_of_padded_boards_are_those_of_their_size():
    from matplotlib.figure import Figure

    x, y = torch.tensor([2, 0, 0, 0, 0]), torch.tensor([1, 4, 4, 0, 3])
    pictures = []
    for task, length in ((one_size(5), 5), (make(), 8)):
        padded_x, padded_y = pad_inputs(x, length), pad_answers(y, length)
        axes = Figure().add_subplot()
        task.plot(axes, padded_x, padded_y)
        texts = [(text.get_position(), text.get_text(), text.get_color()) for text in axes.texts]
        pictures.append((axes.get_xlim(), texts, task.render(padded_x, padded_y), task.render(padded_x)))
    assert pictures[0] == pictures[1]
    assert pictures[0][2].count("\n") == 4


# ---- settings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_size": 5}, "layout = row has boards of one size: set min_size = 0, or layout = square"),
        ({"min_size": 5, "layout": "cell"}, "layout = cell has boards of one size"),
        ({"layout": "square", "size": 21}, "size must lie between 4 and 20, not 21"),
        ({"layout": "square", "min_size": 3}, "min_size must lie between 4 and 8, not 3"),
        ({"layout": "square", "min_size": 9}, "min_size must lie between 4 and 8, not 9"),
        ({"layout": "square", "min_size": 5, "max_queens": 5}, "max_queens = 5 leaves nothing to place on boards of"),
        ({"layout": "square", "train_per_size": 9}, "train_per_size = 9 balances boards of several sizes"),
        ({"train_per_size": 9}, "train_per_size = 9 balances boards of several sizes"),
        ({"layout": "square", "min_size": 5, "train_per_size": 0}, "train_per_size must lie between 1 and"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        NQueensConfig(**settings)


def test_boards_of_one_size_keep_the_splits_of_the_layout_row():
    old_task, task = one_size(8), one_size(8, layout="square")
    for split in SPLITS:
        assert torch.equal(task.split(split).inputs, old_task.split(split).inputs)
        assert torch.equal(task.split(split).solutions, old_task.split(split).solutions)
    assert task.paper_name == "nqueens8"
    assert make().paper_name == ""
    assert (old_task.max_size, task.max_size) == (None, 20)


@pytest.mark.parametrize("preset", ["sizes", "sizes-orbit"])
def test_the_presets_have_boards_of_5_to_10_rows(preset, capsys):
    assert experiments.run.main(["--task", "nqueens", "--preset", preset, "--list-split", "validation"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 256
    assert {line.count("/") + 1 for line in lines} == set(range(5, 11) if preset == "sizes" else range(7, 11))
