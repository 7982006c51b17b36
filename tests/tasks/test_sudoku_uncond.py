import pytest
import torch

from pyro_gram.diagnostics.metrics import measure
from pyro_gram.errors import ConfigError, InputError
from pyro_gram.tasks.batches import TargetStream
from pyro_gram.tasks.held_out import InputSet
from pyro_gram.tasks.sudoku import boards
from pyro_gram.tasks.sudoku.boards import all_grids_4, random_grids
from pyro_gram.tasks.sudoku.unconditional import DEFAULT_COUNTS, SudokuBoards, SudokuBoardsConfig

SETTINGS = {6: {"count": 200, "validation": 20, "test": 40}, 9: {"count": 60, "validation": 5, "test": 12}, 4: {}}
SIZES = tuple(SETTINGS)


def make(size, **changes) -> SudokuBoards:
    return SudokuBoards(SudokuBoardsConfig(size=size, **{**SETTINGS[size], **changes}))


def rows(tokens):
    return {tuple(row) for row in tokens.tolist()}


@pytest.mark.parametrize("size", SIZES)
def test_there_is_no_input_and_a_token_for_each_digit(size):
    task = make(size)
    assert not task.spec.has_input
    assert task.spec.input_length == task.spec.output_length == size * size
    assert task.spec.output_classes == size
    assert task.format_input(None) == ""
    with pytest.raises(InputError, match="takes no input"):
        task.parse("1" * size * size)


def test_4x4_is_the_whole_set_of_288_grids():
    task = make(4)
    for split in ("train", "validation", "test"):
        puzzles = task.split(split)
        assert puzzles.inputs is None
        assert puzzles.has_all_solutions
        assert len(puzzles) == 1
        assert rows(puzzles.solutions) == rows(all_grids_4() - 1)
    part = make(4, count=100).split("train")
    assert len(rows(part.solutions)) == 100
    assert not part.has_all_solutions


@pytest.mark.parametrize("size", [6, 9])
def test_splits_are_distinct_valid_boards(size):
    task = make(size)
    splits = [task.split(split) for split in ("train", "validation", "test")]
    assert [len(s.solutions) for s in splits] == list(SETTINGS[size].values())
    for puzzles in splits:
        assert puzzles.inputs is None
        assert not puzzles.has_all_solutions
        assert task.is_valid(None, puzzles.solutions).all()
    all_boards = torch.cat([s.solutions for s in splits])
    assert len(rows(all_boards)) == len(all_boards)


def test_boards_follow_their_seed():
    a, b, c = make(6), make(6), make(6, data_seed=1)
    assert torch.equal(a.split("train").solutions, b.split("train").solutions)
    assert not rows(a.split("train").solutions) & rows(c.split("train").solutions)


def test_the_default_count_is_that_of_the_paper_and_may_exceed_the_searched_grids(monkeypatch):
    assert DEFAULT_COUNTS[9] == 50_000
    monkeypatch.setattr(boards, "MAX_SEARCHED_GRIDS_9", 10)
    grids = make(9, count=500).split("train").solutions
    assert len(grids.unique(dim=0)) == 500


@pytest.mark.parametrize("size", SIZES)
def test_augmented_boards_are_valid_and_new(size):
    task = make(size)
    y = task.split("train").solutions[:60]
    x, image = task.augment(None, y, torch.Generator().manual_seed(0))
    assert x is None
    assert task.is_valid(None, image).all()
    assert (image != y).any(1).float().mean() > 0.9
    _, shaped_image = task.augment(None, y.view(3, 20, -1), torch.Generator().manual_seed(0))
    assert torch.equal(shaped_image.reshape(60, -1), image)


def test_augmentation_gives_no_held_out_board():
    task = make(6)
    y = task.split("train").solutions
    _, images = task.augment(None, y, torch.Generator().manual_seed(0))
    held_out = images[:100]
    task.__dict__["_held_out"] = InputSet(held_out, 6)
    _, new_images = task.augment(None, y, torch.Generator().manual_seed(0))
    assert torch.equal(new_images[:100], y[:100])
    assert torch.equal(new_images[100:], images[100:])


def test_augmentation_of_4x4_gives_training_boards_only():
    task = make(4, count=100)
    y = task.split("train").solutions
    _, images = task.augment(None, y.repeat(50, 1), torch.Generator().manual_seed(0))
    assert (images != y.repeat(50, 1)).any(1).float().mean() > 0.2
    assert rows(images) == rows(y)
    _, images = make(4).augment(None, y.repeat(50, 1), torch.Generator().manual_seed(0))
    assert rows(images) == rows(all_grids_4() - 1)


def test_validation_and_test_boards_are_held_out():
    task = make(6)
    assert task._held_out.contains(torch.cat([task.split(s).solutions for s in ("validation", "test")])).all()
    assert not task._held_out.contains(task.split("train").solutions).any()


def test_an_epoch_visits_each_board_once():
    task = make(4)
    stream = TargetStream(task, task.split("train"), 96, seed=0, augment=False)
    assert rows(torch.cat([stream(i)[1] for i in range(3)])) == rows(all_grids_4() - 1)


@pytest.mark.parametrize("size", SIZES)
def test_violations_count_missing_digits(size):
    task = make(size)
    board = random_grids(size, 1, torch.Generator().manual_seed(0))[0] - 1
    assert task.violations(None, board) == 0
    assert task.violations(None, torch.zeros_like(board)) == 3 * size * (size - 1)
    board[0] = board[1]
    assert task.violations(None, board) == 3  # row 1, column 1 and box 1 lack the digit that was overwritten
    assert task.violations(None, board.expand(2, 3, -1)).shape == (2, 3)


# ---- metrics -----------------------------------------------------------------------------------------------------


def test_independent_samples_of_4x4_have_the_total_variation_of_a_perfect_sampler():
    task = make(4)
    samples = random_grids(4, 5000, torch.Generator().manual_seed(0))[:, None] - 1
    own_metrics = task.extra_metrics(task.split("test"), samples)
    assert own_metrics["validity"] == 1
    assert own_metrics["grids_found"] == 288
    assert own_metrics["uniqueness"] == 288 / 5000
    metrics = measure(task, task.split("test"), samples)
    assert abs(metrics.total_variation - metrics.total_variation_perfect) < 0.015
    assert 0.08 < metrics.total_variation_perfect < 0.11  # sqrt(288 / (2 pi 5000)) = 0.096
    assert "novelty" not in own_metrics


def test_a_sampler_of_half_of_the_grids_has_total_variation_one_half():
    task = make(4)
    right_boards = (all_grids_4()[:144] - 1).repeat(10, 1)
    wrong_boards = torch.zeros(480, 16, dtype=torch.long)
    samples = torch.cat((right_boards, wrong_boards))[:, None]
    own_metrics = task.extra_metrics(task.split("test"), samples)
    assert own_metrics["validity"] == 0.75
    assert own_metrics["grids_found"] == 144
    metrics = measure(task, task.split("test"), samples)
    assert metrics.total_variation == pytest.approx(0.5)
    assert metrics.total_variation_perfect < 0.3
    assert own_metrics["uniqueness"] == 0.1


@pytest.mark.parametrize("size", [6, 9])
def test_training_boards_are_not_novel_and_copies_not_unique(size):
    task = make(size)
    train, test = task.split("train").solutions[:30], task.split("test").solutions[:10]
    samples = torch.cat((train, train, test, torch.zeros_like(test)))[:, None]
    own_metrics = task.extra_metrics(task.split("test"), samples)
    assert own_metrics["validity"] == pytest.approx(70 / 80)
    assert own_metrics["uniqueness"] == pytest.approx(40 / 70)
    assert own_metrics["novelty"] == pytest.approx(10 / 40)
    assert set(own_metrics) == {"validity", "uniqueness", "novelty"}


@pytest.mark.parametrize("size", SIZES)
def test_metrics_without_any_valid_sample_are_left_out(size):
    own_metrics = make(size).extra_metrics(make(size).split("test"), torch.zeros(5, 1, size * size, dtype=torch.long))
    assert own_metrics == ({"validity": 0.0, "grids_found": 0.0} if size == 4 else {"validity": 0.0})


# ---- text, picture, settings -------------------------------------------------------------------------------------


def test_text_has_digits_from_1():
    board = all_grids_4()[0]
    assert make(4).format_solution(None, board - 1) == "".join(map(str, board.tolist())) == "1234341221434321"


@pytest.mark.parametrize("size", SIZES)
def test_pictures_show_every_digit(size):
    from matplotlib.figure import Figure

    task = make(size)
    axes = Figure().subplots(1, 2)
    y = random_grids(size, 1, torch.Generator().manual_seed(0))[0] - 1
    task.plot(axes[0], None, y)
    assert "".join(t.get_text() for t in axes[0].texts) == task.format_solution(None, y)
    task.plot(axes[1], None)
    assert not axes[1].texts


BAD_SETTINGS = [
    ({"size": 8}, "size must be 4, 6 or 9, not 8"),
    ({"size": 4, "count": 289}, "at most 288"),
    ({"count": -1}, "count must be at least 0"),
    ({"test": 0}, "test must be at least 1"),
    ({"data_seed": -1}, "data_seed"),
]


def test_errors_name_bad_settings():
    for settings, message in BAD_SETTINGS:
        with pytest.raises(ConfigError, match=message):
            SudokuBoardsConfig(**settings)


def test_an_error_names_an_unknown_split():
    with pytest.raises(ConfigError, match="holdout"):
        make(4).split("holdout")
