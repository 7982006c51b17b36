import csv
import gzip
import itertools
import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from pyro_gram import download
from pyro_gram.errors import ConfigError, InputError
from pyro_gram.registry import TASKS
from pyro_gram.tasks import sudoku_data
from pyro_gram.tasks.sudoku import WRONG_COLOR, Sudoku, SudokuConfig
from pyro_gram.tasks.sudoku_boards import (
    BOXES,
    _normal_grids_6,
    all_grids_4,
    conflicts,
    geometry,
    missing_digits,
    random_grids,
    random_symmetries,
    solve,
    symmetry_invariants,
    transform,
)
from pyro_gram.tasks.sudoku_data import deal, locate, random_puzzles, read_csv
from pyro_gram.tasks.symmetry import InputSet
from tests.conftest import ROOT

SIZES = (4, 6, 9)
DATA = Path(os.environ.get("PYRO_GRAM_DATA") or ROOT.parent / "shared" / "data")
needs_data = pytest.mark.skipif(
    not (DATA / "sudoku" / "sudoku-extreme-1k_train.csv.gz").is_file(), reason=f"no Sudoku-Extreme under {DATA}"
)
QUESTION = ".47.5....6.9.3.4..53..........9..6.....3.6.82.....5.4.79...4..64.37......56.9...."
ANSWER = "247659318689137425531482967874921653915346782362875149798514236423768591156293874"


@cache
def make(size=4, **changes) -> Sudoku:
    settings = {"source": "generated", "train": 60, "validation": 10, "test": 20, **changes}
    return Sudoku(SudokuConfig(size=size, **settings))


def blocks(size):
    """Rows, columns and boxes as sets of (row, column), written down anew."""
    h, w = BOXES[size]
    span = range(size)
    yield from ({(r, c) for c in span} for r in span)
    yield from ({(r, c) for r in span} for c in span)
    yield from ({(r, c) for r in span for c in span if r // h == i and c // w == j} for i in span for j in span)


def brute_force(board, size):
    """Every completion, cell after cell, without any cleverness."""
    units = [[r * size + c for r, c in block] for block in blocks(size) if block]
    around = [set().union(*(u for u in units if cell in u)) - {cell} for cell in range(size * size)]
    board, found = list(board), set()

    def fill(cell):
        if cell == size * size:
            found.add(tuple(board))
        elif board[cell]:
            fill(cell + 1)
        else:
            for digit in set(range(1, size + 1)) - {board[other] for other in around[cell]}:
                board[cell] = digit
                fill(cell + 1)
            board[cell] = 0

    fill(0)
    return found


def some_grids(size, count, seed=0):
    return random_grids(size, count, torch.Generator().manual_seed(seed))


def blanked(size, count, clues, seed=0):
    """Random grids with ``clues`` cells kept: int64 [count, L]."""
    rank = torch.rand(count, size * size, generator=torch.Generator().manual_seed(seed)).argsort(-1)
    return torch.where(rank < clues, some_grids(size, count, seed), 0)


def canonical_4(board):
    """The least of all symmetric images of a 4x4 board, digits renamed as they appear."""
    lines = [[2 * b + i for b in bands for i in ((0, 1), (1, 0))[flips[b]]] for bands in ((0, 1), (1, 0))
             for flips in itertools.product((0, 1), repeat=2)]  # fmt: skip
    grid = np.array(board).reshape(4, 4)
    images = []
    for rows, cols in itertools.product(lines, lines):
        for image in (grid[rows][:, cols], grid[rows][:, cols].T):
            names = {0: 0}
            images.append(tuple(names.setdefault(d, len(names)) for d in image.ravel().tolist()))
    return min(images)


# ---- boards ------------------------------------------------------------------------------------------------------


def test_it_is_registered():
    assert TASKS.get("sudoku") is Sudoku


@pytest.mark.parametrize("size", SIZES)
def test_units_are_the_rows_columns_and_boxes(size):
    listed = [{divmod(cell, size) for cell in unit} for unit in geometry(size).units.tolist()]
    expected = [block for block in blocks(size) if block]
    assert len(listed) == 3 * size
    assert all(block in listed for block in expected)


def test_there_are_288_grids_of_4x4():
    grids = all_grids_4()
    assert len(grids.unique(dim=0)) == 288
    assert {tuple(g) for g in grids.tolist()} == brute_force([0] * 16, 4)


def test_random_6x6_grids_stand_for_all_28_200_960():
    normal = _normal_grids_6()
    assert len(normal.unique(dim=0)) * 720 * 6 * 8 == 28_200_960
    assert (missing_digits(normal - 1, 6) == 0).all()


def test_random_6x6_grids_are_uniform():
    """Brought to the normal form of their orbit, of which all have one size, each of the 816 forms is as frequent."""
    count = 816 * 60
    grids = some_grids(6, count)
    box = grids[:, [0, 1, 2, 6, 7, 8]]
    names = torch.zeros(count, 7, dtype=torch.long).scatter_(1, box, torch.arange(1, 7).expand(count, 6))
    boards = names.gather(1, grids).view(count, 6, 6)  # box 1 reads 1 to 6
    right = boards[:, 0, 3:].argsort(1) + 3
    columns = torch.cat((torch.arange(3).expand(count, 3), right), 1)
    boards = boards.gather(2, columns[:, None].expand(-1, 6, -1))  # row 1 reads 1 to 6
    first = boards[:, 2:, 0].view(count, 2, 2)
    order = first.argsort(2) + torch.tensor([[2], [4]])
    order = order.gather(1, first.amin(2).argsort(1)[..., None].expand(-1, -1, 2)).flatten(1)  # column 1 ascends
    boards = torch.cat((boards[:, :2], boards[:, 2:].gather(1, (order - 2)[..., None].expand(-1, -1, 6))), 1)
    forms, counts = np.unique(boards.flatten(1).numpy(), axis=0, return_counts=True)
    assert {tuple(form) for form in forms.tolist()} == {tuple(form) for form in _normal_grids_6().tolist()}
    chi_square = ((counts - 60) ** 2 / 60).sum()
    assert abs(chi_square - 815) < 5 * (2 * 815) ** 0.5


@pytest.mark.parametrize("size", SIZES)
def test_random_grids_are_valid_many_and_reproducible(size):
    grids = some_grids(size, 200)
    assert (missing_digits(grids - 1, size) == 0).all()
    assert len(grids.unique(dim=0)) > (100 if size == 4 else 195)
    assert torch.equal(grids, some_grids(size, 200))
    assert not torch.equal(grids, some_grids(size, 200, seed=1))


# ---- solver ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "clues"), [(4, 3), (4, 6), (6, 13), (6, 18), (9, 45)])
def test_solver_finds_exactly_the_solutions_of_brute_force(size, clues):
    for board in blanked(size, 12, clues).tolist():
        found = solve(board, size, limit=100_000)
        assert len(found) == len(set(found)) > 0
        assert set(found) == brute_force(board, size)


def test_solver_agrees_with_brute_force_on_boards_of_any_digits():
    rng = np.random.default_rng(0)
    counts = set()
    for _ in range(200):
        board = np.where(rng.random(16) < 0.25, rng.integers(1, 5, 16), 0).tolist()
        if not conflicts(board, 4):
            found = solve(board, 4, limit=1000)
            assert set(found) == brute_force(board, 4)
            counts.add(len(found))
    assert 0 in counts
    assert len(counts) > 10


def test_solver_stops_at_its_limit():
    assert len(solve([0] * 81, 9, limit=5)) == 5
    assert len(solve([0] * 16, 4, limit=288)) == len(solve([0] * 16, 4, limit=289)) == 288


def test_solver_refutes_contradicting_clues_and_the_hard_impossible_board():
    assert solve([1, 1] + [0] * 14, 4) == []
    text = ".....5.8....6.1.43..........1.5........1.6...3.......553.....61........4........."
    assert solve([int(c) if c != "." else 0 for c in text], 9) == []  # hours for a solver that looks at cells only


def test_solver_solves_the_example_of_the_data_set():
    assert solve([0 if c == "." else int(c) for c in QUESTION], 9, limit=2) == [tuple(map(int, ANSWER))]


# ---- symmetries --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_symmetries_keep_grids_valid_and_have_the_right_group(size):
    grids = some_grids(size, 300)
    cells, digits = random_symmetries(300, size, torch.Generator().manual_seed(0))
    assert cells.shape == (300, size * size)
    assert digits.shape == (300, size)
    assert (cells.sort(1).values == torch.arange(size * size)).all()
    images = transform(grids, cells, digits, first=1)
    assert (missing_digits(images - 1, size) == 0).all()
    for image, grid, cell, digit in zip(images, grids, cells, digits, strict=True):
        assert torch.equal(image, digit[grid[cell] - 1] + 1)
    h, w = BOXES[size]
    transposed = cells[:, 1] // size != cells[:, 0] // size
    assert transposed.any() == (h == w)
    assert not transposed.all()


def test_every_symmetry_of_4x4_is_drawn():
    cells, _ = random_symmetries(4000, 4, torch.Generator().manual_seed(0))
    assert len(cells.unique(dim=0)) == 8 * 8 * 2


def test_blanks_stay_blanks():
    boards = blanked(6, 50, 12)
    cells, digits = random_symmetries(50, 6, torch.Generator().manual_seed(0))
    assert torch.equal(transform(boards, cells, digits, first=1) == 0, boards.gather(1, cells) == 0)


@pytest.mark.parametrize("size", SIZES)
def test_invariants_agree_on_symmetric_boards_and_tell_most_others_apart(size):
    for clues in (size, size * size // 2, size * size):
        boards = blanked(size, 200, clues)
        images = transform(boards, *random_symmetries(200, size, torch.Generator().manual_seed(1)), first=1)
        keys = symmetry_invariants(boards.numpy(), size)
        assert (keys == symmetry_invariants(images.numpy(), size)).all()
        if clues == size * size // 2:
            assert len(np.unique(keys)) > (100 if size == 4 else 195)


def test_invariants_of_4x4_are_those_of_classes_and_tell_nearly_all_apart():
    boards = blanked(4, 400, 6).unique(dim=0)
    keys = symmetry_invariants(boards.numpy(), 4).tolist()
    pairs = {(key, canonical_4(board)) for key, board in zip(keys, boards.tolist(), strict=True)}
    classes = len({form for _, form in pairs})
    assert len(pairs) == classes  # one key a class
    assert len({key for key, _ in pairs}) > 0.97 * classes > 200


def test_invariants_do_not_depend_on_the_chunk():
    boards = blanked(6, 50, 12).numpy()
    assert (symmetry_invariants(boards, 6, chunk=7) == symmetry_invariants(boards, 6)).all()
    assert len(symmetry_invariants(boards[:0], 6)) == 0


# ---- generated puzzles -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "train"), [(4, 200), (6, 60), (9, 10)])
def test_every_solution_is_listed(size, train):
    task = make(size, train=train, validation=2 if size == 9 else 10, test=2 if size == 9 else 20)
    puzzles = task.split("train")
    assert len(puzzles) == train
    assert puzzles.complete
    for i in range(len(puzzles)):
        listed = {tuple(row) for row in (puzzles.solutions_of(i) - 1).tolist()}
        board = (puzzles.inputs[i] - 1).tolist()
        assert len(listed) == puzzles.num_solutions[i]
        assert listed == (set(solve(board, size, 1000)) if size == 9 else brute_force(board, size))
        assert task.valid(puzzles.inputs[i], puzzles.solutions_of(i)).all()


def test_half_of_the_puzzles_have_one_solution_and_none_has_too_many():
    puzzles = random_puzzles(4, 500, (4, 10), 0.5, 6, seed=0)
    counts = np.diff(puzzles.offsets)
    assert (counts == 1).sum() == 250
    assert counts.max() <= 6
    assert len(np.unique(puzzles.boards, axis=0)) == 500
    clues = (puzzles.boards > 0).sum(1)
    assert clues.min() >= 4
    assert clues.max() <= 10
    every = random_puzzles(6, 20, (16, 20), 1.0, 6, seed=0)
    assert (np.diff(every.offsets) == 1).all()


def test_no_puzzle_of_one_split_is_symmetric_to_one_of_another():
    task = make(4, train=300, validation=30, test=60)
    forms = {
        split: {canonical_4(board) for board in (task.split(split).inputs - 1).tolist()}
        for split in ("train", "validation", "test")
    }
    assert [len(task.split(split)) for split in forms] == [300, 30, 60]
    for a, b in itertools.combinations(forms, 2):
        assert not forms[a] & forms[b]


def test_dealing_cuts_a_class_but_never_shares_it():
    keys = np.repeat(np.arange(30), 10)
    dealt = deal(keys, {"test": 25, "validation": 5, "train": 200}, np.random.default_rng(0))
    assert [len(index) for index in dealt.values()] == [25, 5, 200]
    classes = [set(keys[index].tolist()) for index in dealt.values()]
    assert sum(map(len, classes)) == len(set.union(*classes))
    assert deal(keys, {"test": 25, "validation": 5, "train": 280}, np.random.default_rng(0)) is None


def test_the_split_is_reproducible_and_follows_its_seed():
    a, b = make(6), Sudoku(make(6).config)
    assert torch.equal(a.split("test").inputs, b.split("test").inputs)
    assert torch.equal(a.split("train").solutions, b.split("train").solutions)
    assert not torch.equal(a.split("test").inputs, make(6, data_seed=1).split("test").inputs)


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
    assert task.valid(x2, y2).all()
    assert (x2 != puzzles.inputs).any(1).float().mean() > 0.9
    before = symmetry_invariants((puzzles.inputs - 1).numpy(), size)
    assert (symmetry_invariants((x2 - 1).numpy(), size) == before).all()


def test_augmentation_takes_any_leading_shape():
    task = make()
    puzzles = task.split("train")
    y = puzzles.sample_targets(torch.arange(60), torch.Generator().manual_seed(0))
    flat = task.augment(puzzles.inputs, y, torch.Generator().manual_seed(1))
    x, y = puzzles.inputs.view(3, 20, 16), y.view(3, 20, 16)
    for wide, narrow in zip(task.augment(x, y, torch.Generator().manual_seed(1)), flat, strict=True):
        assert torch.equal(wide.view(60, 16), narrow)


def test_augmentation_never_shows_a_held_out_puzzle():
    task = Sudoku(make().config)
    x, y = task.split("test").inputs, task.split("test").solutions[task.split("test").offsets[:-1]]
    x, y = x[:1].expand(4000, -1), y[:1].expand(4000, -1)
    images, _ = task.augment(x, y, torch.Generator().manual_seed(0))
    forbidden = images[(images != x[0]).any(1)][:1]
    task.__dict__["_held_out"] = InputSet(forbidden, task.spec.input_vocabulary)
    again, answers = task.augment(x, y, torch.Generator().manual_seed(0))
    assert (images == forbidden).all(1).any()
    assert not (again == forbidden).all(1).any()
    assert task.valid(again, answers).all()


# ---- what is right -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_check_agrees_with_counting_by_hand(size):
    task = Sudoku(SudokuConfig(size=size, source="generated"))
    x = blanked(size, 5, size * 2) + 1
    noise = torch.randint(0, size + 2, (20, 5, size * size), generator=torch.Generator().manual_seed(0))
    keep = torch.rand(noise.shape, generator=torch.Generator().manual_seed(1)) < 0.9
    y = torch.where(keep, some_grids(size, 5) + 1, noise)
    broken = task.violations(x, y)
    assert broken.shape == (20, 5)
    for n, i in itertools.product(range(20), range(5)):
        rows = (y[n, i] - 1).view(size, size).tolist()
        expected = sum(len(set(range(1, size + 1)) - {rows[r][c] for r, c in block}) for block in blocks(size) if block)
        expected += sum(digit < 1 for row in rows for digit in row)
        expected += sum(a > 1 and a != b for a, b in zip(x[i].tolist(), y[n, i].tolist(), strict=True))
        assert broken[n, i] == expected


def test_each_kind_of_mistake_is_a_violation():
    task = make()
    x, y = task.split("test").inputs[0], task.split("test").solutions_of(0)[0]
    assert task.valid(x, y)
    renamed = torch.tensor([0, 1, 3, 4, 5, 2])[y]  # a correct grid that does not keep the clues
    assert task.violations(x, renamed) == (x > 1).sum()
    assert task.valid(torch.ones_like(x), renamed)
    y = y.clone()
    y[5] = 1
    assert not task.valid(torch.ones_like(x), y)
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
    assert len(list(task.read("\n\n".join(map(task.format_input, puzzles.inputs))))) == len(puzzles)
    y = puzzles.solutions_of(0)[0]
    assert torch.equal(task.parse(task.format_solution(puzzles.inputs[0], y)), y)


@pytest.mark.parametrize(
    ("size", "text", "message"),
    [
        (9, QUESTION[:-1], "a 9x9 puzzle has 81 characters, not 80"),
        (4, "", "a 4x4 puzzle has 16 characters, not 0"),
        (4, "12/.............", "character 3 is '/'"),
        (4, "...5............", "character 4 is '5': expected a digit from 1 to 4"),
        (6, "....é" + "." * 31, "character 5 is 'é'"),
        (4, "1..1............", "row 1 has 1 twice"),
        (4, ".2...2..........", "column 2 has 2 twice"),
        (6, "5....." + ".5...." + "." * 24, "box 1 has 5 twice"),
        (6, "....5." + "." * 6 + "....5." + "." * 18, "column 5 has 5 twice"),
        (4, "123....4........", "has no solution"),
        (4, "12.3...4........", "has no solution"),
        (9, "5" + QUESTION[1:], "row 1 has 5 twice"),
        (9, ".....5.8....6.1.43..........1.5........1.6...3.......553.....61........4.........", "has no solution"),
    ],
)
def test_each_kind_of_bad_input_has_its_own_message(size, text, message):
    with pytest.raises(InputError, match=message):
        Sudoku(SudokuConfig(size=size, source="generated")).parse(text)


@pytest.mark.parametrize("size", SIZES)
def test_pictures_mark_conflicts_and_broken_clues(size):
    from matplotlib.figure import Figure

    task = Sudoku(SudokuConfig(size=size, source="generated"))
    grid = some_grids(size, 1)[0] + 1
    x = torch.where(torch.arange(size * size) % 3 == 0, grid, 1)
    wrong = grid.clone()
    wrong[0] = wrong[1]  # a clue is changed, and repeats the digit beside it
    wrong[5] = 0
    axes = Figure().subplots(1, 3)
    task.draw(axes[0], x)
    task.draw(axes[1], x, grid)
    task.draw(axes[2], x, wrong)
    assert len(axes[0].texts) == (x > 1).sum()
    assert sum(t.get_fontweight() == "bold" for t in axes[1].texts) == (x > 1).sum()
    red = [[t.get_text() for t in a.texts if t.get_color() == WRONG_COLOR] for a in axes]
    assert red[0] == red[1] == []
    assert red[2][:2] == [str(int(grid[1]) - 1)] * 2
    assert "?" in red[2]


# ---- settings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
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
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        SudokuConfig(**settings)


def test_puzzles_that_do_not_exist_are_an_error_not_a_wait():
    with pytest.raises(ConfigError, match="too few 4x4 puzzles with 1 to 3 clues and one solution"):
        make(4, min_clues=1, max_clues=3).split("train")
    with pytest.raises(ConfigError, match="symmetric ones across splits"):
        make(4, min_clues=15, max_clues=15, unique=1.0, train=1000, test=1000).split("train")


def test_unknown_split_is_named():
    with pytest.raises(ConfigError, match="holdout"):
        make().split("holdout")


# ---- files -------------------------------------------------------------------------------------------------------


def write(path: Path, rows, header="source,question,answer,rating") -> Path:
    text = "\n".join([header, *rows]) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def invented(count, seed) -> list[str]:
    """Rows of a file: random boards with many clues."""
    grids = some_grids(9, count, seed)
    rank = torch.rand(count, 81, generator=torch.Generator().manual_seed(seed)).argsort(-1)
    rows = []
    for i, (grid, kept) in enumerate(zip(grids.tolist(), (rank < 60).tolist(), strict=True)):
        question = "".join(str(d) if k else "." for d, k in zip(grid, kept, strict=True))
        rows.append(f"s,{question},{''.join(map(str, grid))},{i}")
    return rows


@pytest.mark.parametrize("suffix", ["csv", "csv.gz"])
def test_a_file_is_read_with_its_ratings(tmp_path, suffix):
    puzzles = read_csv(write(tmp_path / f"a.{suffix}", [f"s,{QUESTION},{ANSWER},22", "", *invented(3, 0)]), 9)
    assert len(puzzles) == 4
    assert "".join(map(str, puzzles.boards[0])) == QUESTION.replace(".", "0")
    assert "".join(map(str, puzzles.solutions[0])) == ANSWER
    assert puzzles.ratings.tolist() == [22, 0, 1, 2]


def test_question_and_answer_are_enough(tmp_path):
    puzzles = read_csv(write(tmp_path / "a.csv", [f"{ANSWER},{QUESTION}"], header="answer, question"), 9)
    assert puzzles.boards[0, 1] == 4
    assert puzzles.ratings is None


BROKEN = QUESTION[:1] + "5" + QUESTION[2:]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (f"s,{QUESTION[:-1]},{ANSWER},1", "line 4: the question has 80 characters, not 81"),
        (f"s,{QUESTION},{ANSWER}1,1", "line 4: the answer has 82 characters, not 81"),
        (f"s,{QUESTION[:-1]}x,{ANSWER},1", "line 4: the question has a character that is neither"),
        (f"s,{QUESTION[:-1]}é,{ANSWER},1", "line 4: the question has a character that is neither"),
        (f"s,{QUESTION},{ANSWER[:-1]}0,1", "line 4: the answer has a character that is no digit"),
        (f"s,{QUESTION},{ANSWER[:-1]}.,1", "line 4: the answer has a character that is no digit"),
        (f"s,{BROKEN},{ANSWER},1", "line 4: the answer does not keep the clues"),
        (f"s,{QUESTION},{ANSWER[:-1]}9,1", "line 4: the answer repeats a digit"),
        (f"s,{QUESTION},{ANSWER},hard", "line 4: the rating 'hard' is no whole number"),
        (f"s,{QUESTION}", "line 4: 2 fields, but the header has 4"),
    ],
)
def test_a_bad_row_is_named_by_file_line_and_fault(tmp_path, row, message, monkeypatch):
    path = write(tmp_path / "bad.csv", [*invented(2, 0), row, *invented(2, 1), "s,short,row,1"])
    for chunk in (1, 3, 1000):
        monkeypatch.setattr(sudoku_data, "CHUNK", chunk)
        with pytest.raises(InputError, match=f"bad.csv, {message}"):
            read_csv(path, 9)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "line 1: expected a header with the columns question and answer, found nothing"),
        (b"puzzle,solution\n", "line 1: expected a header .* found 'puzzle,solution'"),
        (b"source,question,answer,rating\n", "holds no puzzles"),
        (b"question,answer\n\xff\xfe\n", "cannot read"),
    ],
)
def test_a_file_that_is_none_is_named(tmp_path, content, message):
    (tmp_path / "odd.csv").write_bytes(content)
    with pytest.raises(
        InputError, match=f"odd.csv.*{message}" if message != "cannot read" else "cannot read .*odd.csv"
    ):
        read_csv(tmp_path / "odd.csv", 9)


def test_a_file_that_is_not_gzip_or_is_cut_short_is_named(tmp_path):
    (tmp_path / "a.csv.gz").write_bytes(b"source,question,answer,rating\n")
    with pytest.raises(InputError, match="cannot read .*a.csv.gz"):
        read_csv(tmp_path / "a.csv.gz", 9)
    whole = write(tmp_path / "b.csv.gz", invented(50, 0)).read_bytes()
    (tmp_path / "b.csv.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="cannot read .*b.csv.gz"):
        read_csv(tmp_path / "b.csv.gz", 9)


def extreme(tmp_path, **changes) -> Sudoku:
    settings = {"train": -1, "validation": 5, "test": -1, **changes}
    return Sudoku(SudokuConfig(size=9, **settings), str(tmp_path))


def test_training_puzzles_symmetric_to_held_out_ones_are_left_out(tmp_path):
    test = invented(10, 0)
    _, question, answer, _ = next(csv.reader(test[:1]))
    pair = torch.tensor([[int(c) if c != "." else 0 for c in text] for text in (question, answer)])
    cells, digits = random_symmetries(1, 9, torch.Generator().manual_seed(0))
    image = transform(pair, cells.expand(2, -1), digits.expand(2, -1), first=1)
    texts = ["".join(map(str, row)) for row in image.tolist()]
    (tmp_path / "sudoku").mkdir()
    write(tmp_path / "sudoku" / "sudoku-extreme-1k_test_hard.csv.gz", test)
    write(tmp_path / "sudoku" / "sudoku-extreme-1k_train.csv.gz", [*invented(30, 1), f"s,{texts[0]},{texts[1]},99"])
    task = extreme(tmp_path, train=0, data_seed=1)
    train, test_split = task.split("train"), task.split("test")
    assert len(test_split) == 10
    assert len(train) == 31 - 5 - 1
    assert 99 not in torch.cat((task.ratings("train"), task.ratings("validation"))).tolist()
    x, y = task.augment(train.inputs, train.solutions, torch.Generator().manual_seed(0))
    assert task.valid(x, y).all()
    assert train.num_solutions.tolist() == [1] * len(train)


def test_counts_of_a_file(tmp_path):
    write(tmp_path / "train.csv", invented(40, 0))
    write(tmp_path / "test.csv", invented(20, 1))
    task = extreme(tmp_path, train=10, test=7)
    assert [len(task.split(split)) for split in ("train", "validation", "test")] == [10, 5, 7]
    whole = extreme(tmp_path, train=0, test=0)
    assert [len(whole.split(split)) for split in ("train", "validation", "test")] == [35, 5, 20]
    assert torch.equal(whole.split("test").inputs[:7], task.split("test").inputs)
    assert torch.equal(whole.split("validation").inputs, task.split("validation").inputs)
    assert torch.equal(whole.split("train").inputs[:10], task.split("train").inputs)
    for settings, message in (
        ({"train": 36}, "train = 36, but .*train.csv holds only 35 puzzles"),
        ({"test": 21}, "test = 21, but .*test.csv holds only 20 puzzles"),
        ({"validation": 40}, "validation = 40, but .*train.csv holds only 40 puzzles"),
    ):
        with pytest.raises(ConfigError, match=message):
            extreme(tmp_path, **settings).split("train")


def test_files_can_be_named(tmp_path):
    write(tmp_path / "mine.csv", invented(40, 0))
    write(tmp_path / "other.csv", invented(20, 1))
    path = str(tmp_path / "other.csv")
    assert len(extreme(tmp_path, train_file="mine.csv", test_file=path, test=0).split("test")) == 20
    with pytest.raises(ConfigError, match="no file 'gone.csv'"):
        extreme(tmp_path, train_file="gone.csv", test_file=path).split("test")


def test_a_folder_without_the_files_is_an_error_and_no_folder_a_download(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="holds neither train.csv nor sudoku-extreme-1k_train.csv.*--data-dir"):
        extreme(tmp_path).split("train")
    with pytest.raises(ConfigError, match="--data-dir .*gone' is not a directory"):
        extreme(tmp_path / "gone")
    monkeypatch.delenv("PYRO_GRAM_DATA", raising=False)
    asked = []
    monkeypatch.setattr(sudoku_data, "fetch", lambda *arguments: asked.append(arguments))
    locate("test.csv", "", None)
    [(url, known_hash, name)] = asked
    assert url.startswith("https://huggingface.co/datasets/sapientinc/sudoku-extreme/resolve/")
    assert url.endswith("/test.csv")
    assert known_hash.startswith("a2fd52ae")
    assert name == "sudoku/test.csv"
    assert download.fetch is not sudoku_data.fetch


@needs_data
def test_the_real_data_is_split_as_it_says():
    task = Sudoku(SudokuConfig(size=9, test=0), str(DATA))
    train, validation, test = (task.split(split) for split in ("train", "validation", "test"))
    assert [len(train), len(validation), len(test)] == [872, 128, 20_000]
    for split, puzzles in (("train", train), ("validation", validation), ("test", test)):
        assert task.valid(puzzles.inputs, puzzles.solutions).all()
        assert len(task.ratings(split)) == len(puzzles)
    keys = [symmetry_invariants((p.inputs - 1).numpy(), 9) for p in (train, validation, test)]
    assert not np.isin(keys[0], np.concatenate(keys[1:])).any()
    for x, y in zip(test.inputs[:20], test.solutions, strict=False):
        assert solve((x - 1).tolist(), 9, limit=2) == [tuple((y - 1).tolist())]
        assert torch.equal(task.parse(task.format_input(x)), x)
    x, y = task.augment(train.inputs, train.solutions, torch.Generator().manual_seed(0))
    assert task.valid(x, y).all()
