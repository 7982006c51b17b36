import numpy as np
import pytest
import torch

from pyro_gram.tasks.sudoku.boards import (
    BOXES,
    _representative_grids_6,
    all_grids_4,
    conflicts,
    geometry,
    missing_digits,
    random_symmetries,
    solve,
    symmetry_invariants,
    transform,
)
from tests.tasks.sudoku_cases import (
    ANSWER,
    QUESTION,
    SIZES,
    blank_cells,
    blocks,
    brute_force,
    canonical_4,
    sample_grids,
)

# ---- boards ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_units_are_the_rows_columns_and_boxes(size):
    units = [{divmod(cell, size) for cell in unit} for unit in geometry(size).units.tolist()]
    expected = [block for block in blocks(size) if block]
    assert len(units) == 3 * size
    assert all(block in units for block in expected)


def test_there_are_288_grids_of_4x4():
    grids = all_grids_4()
    assert len(grids.unique(dim=0)) == 288
    assert {tuple(g) for g in grids.tolist()} == brute_force([0] * 16, 4)


def test_the_representatives_of_6x6_grids_have_28_200_960_images():
    representatives = _representative_grids_6()
    assert len(representatives.unique(dim=0)) * 720 * 6 * 8 == 28_200_960
    assert (missing_digits(representatives - 1, 6) == 0).all()


def test_random_6x6_grids_are_uniform():
    """Each of the 816 representatives stands for equally many grids, so all must be drawn equally often."""
    count = 816 * 20
    grids = sample_grids(6, count)
    box = grids[:, [0, 1, 2, 6, 7, 8]]
    new_digit = torch.zeros(count, 7, dtype=torch.long).scatter_(1, box, torch.arange(1, 7).expand(count, 6))
    boards = new_digit.gather(1, grids).view(count, 6, 6)  # box 1 reads 1 to 6
    right_stack = boards[:, 0, 3:].argsort(1) + 3
    columns = torch.cat((torch.arange(3).expand(count, 3), right_stack), 1)
    boards = boards.gather(2, columns[:, None].expand(-1, 6, -1))  # row 1 reads 1 to 6
    first_column = boards[:, 2:, 0].view(count, 2, 2)
    order = first_column.argsort(2) + torch.tensor([[2], [4]])
    order = order.gather(1, first_column.amin(2).argsort(1)[..., None].expand(-1, -1, 2)).flatten(1)  # column 1 ascends
    boards = torch.cat((boards[:, :2], boards[:, 2:].gather(1, (order - 2)[..., None].expand(-1, -1, 6))), 1)
    canonical_grids, counts = np.unique(boards.flatten(1).numpy(), axis=0, return_counts=True)
    assert {tuple(form) for form in canonical_grids.tolist()} == {
        tuple(form) for form in _representative_grids_6().tolist()
    }
    chi_square = ((counts - 20) ** 2 / 20).sum()
    assert abs(chi_square - 815) < 5 * (2 * 815) ** 0.5


@pytest.mark.parametrize("size", SIZES)
def test_random_grids_are_valid_many_and_reproducible(size):
    grids = sample_grids(size, 40)
    assert (missing_digits(grids - 1, size) == 0).all()
    assert len(grids.unique(dim=0)) > (30 if size == 4 else 38)
    assert torch.equal(grids, sample_grids(size, 40))
    assert not torch.equal(grids, sample_grids(size, 40, seed=1))


# ---- solver ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "clues"), [(4, 3), (4, 6), (6, 13), (6, 18), (9, 45)])
def test_solver_finds_exactly_the_solutions_of_brute_force(size, clues):
    for board in blank_cells(size, 6, clues).tolist():
        solutions = solve(board, size, limit=100_000)
        assert len(solutions) == len(set(solutions)) > 0
        assert set(solutions) == brute_force(board, size)


def test_solver_agrees_with_brute_force_on_boards_of_any_digits():
    rng = np.random.default_rng(0)
    counts = set()
    for _ in range(200):
        board = np.where(rng.random(16) < 0.25, rng.integers(1, 5, 16), 0).tolist()
        if not conflicts(board, 4):
            solutions = solve(board, 4, limit=1000)
            assert set(solutions) == brute_force(board, 4)
            counts.add(len(solutions))
    assert 0 in counts
    assert len(counts) > 10


def test_solver_stops_at_its_limit():
    assert len(solve([0] * 81, 9, limit=5)) == 5
    assert len(solve([0] * 16, 4, limit=288)) == len(solve([0] * 16, 4, limit=289)) == 288


def test_solver_refutes_contradicting_clues_and_the_hard_impossible_board():
    assert solve([1, 1] + [0] * 14, 4) == []
    text = ".....5.8....6.1.43..........1.5........1.6...3.......553.....61........4........."
    assert solve([int(c) if c != "." else 0 for c in text], 9) == []  # hours, if the solver branched over cells only


def test_solver_solves_the_example_of_the_data_set():
    assert solve([0 if c == "." else int(c) for c in QUESTION], 9, limit=2) == [tuple(map(int, ANSWER))]


# ---- symmetries --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_symmetries_keep_grids_valid_and_transpose_only_square_boxes(size):
    grids = sample_grids(size, 40)
    cells, digits = random_symmetries(40, size, torch.Generator().manual_seed(0))
    assert cells.shape == (40, size * size)
    assert digits.shape == (40, size)
    assert (cells.sort(1).values == torch.arange(size * size)).all()
    images = transform(grids, cells, digits, first=1)
    assert (missing_digits(images - 1, size) == 0).all()
    for image, grid, cell, digit in zip(images, grids, cells, digits, strict=True):
        assert torch.equal(image, digit[grid[cell] - 1] + 1)
    h, w = BOXES[size]
    is_transposed = cells[:, 1] // size != cells[:, 0] // size
    assert is_transposed.any() == (h == w)
    assert not is_transposed.all()


def test_every_symmetry_of_4x4_is_drawn():
    cells, _ = random_symmetries(4000, 4, torch.Generator().manual_seed(0))
    assert len(cells.unique(dim=0)) == 8 * 8 * 2


def test_blanks_stay_blanks():
    boards = blank_cells(6, 50, 12)
    cells, digits = random_symmetries(50, 6, torch.Generator().manual_seed(0))
    assert torch.equal(transform(boards, cells, digits, first=1) == 0, boards.gather(1, cells) == 0)


@pytest.mark.parametrize("size", SIZES)
def test_invariants_agree_on_symmetric_boards_and_differ_on_nearly_all_others(size):
    for clues in (size, size * size // 2, size * size):
        boards = blank_cells(size, 60, clues)
        images = transform(boards, *random_symmetries(60, size, torch.Generator().manual_seed(1)), first=1)
        keys = symmetry_invariants(boards.numpy(), size)
        assert (keys == symmetry_invariants(images.numpy(), size)).all()
        if clues == size * size // 2:
            assert len(np.unique(keys)) > (40 if size == 4 else 58)


def test_invariants_of_4x4_agree_within_a_class_and_differ_between_nearly_all_classes():
    boards = blank_cells(4, 150, 6).unique(dim=0)
    keys = symmetry_invariants(boards.numpy(), 4).tolist()
    pairs = {(key, canonical_4(board)) for key, board in zip(keys, boards.tolist(), strict=True)}
    classes = len({form for _, form in pairs})
    assert len(pairs) == classes  # all boards of a class have the same key
    assert len({key for key, _ in pairs}) > 0.97 * classes > 80


def test_invariants_do_not_depend_on_the_chunk():
    boards = blank_cells(6, 50, 12).numpy()
    assert (symmetry_invariants(boards, 6, chunk=7) == symmetry_invariants(boards, 6)).all()
    assert len(symmetry_invariants(boards[:0], 6)) == 0
