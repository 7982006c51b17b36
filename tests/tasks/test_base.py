import pytest
import torch

from pyro_gram.errors import ConfigError, InputError
from pyro_gram.tasks.base import PuzzleSet, make_task
from pyro_gram.tasks.batches import TargetStream
from pyro_gram.tasks.nqueens.task import NQueens, NQueensConfig
from pyro_gram.tasks.sudoku.unconditional import SudokuBoards


def versions():
    """Two inputs, one in three versions and one in two; input i has the solutions 10 i and, if odd, 10 i + 1."""
    solutions = torch.tensor([0, 10, 11, 20, 30, 31, 40])[:, None]
    offsets = torch.tensor([0, 1, 3, 4, 6, 7])
    primary = torch.tensor([True, False, False, True, False])
    return PuzzleSet(torch.arange(5)[:, None], solutions, offsets, is_first_version=primary)


def test_a_subset_counts_inputs_and_keeps_their_versions():
    assert [len(versions().subset(n)) for n in (1, 2, 9)] == [3, 5, 5]
    first = versions().subset(1)
    assert first.is_first_version.tolist() == [True, False, False]
    assert first.solutions.flatten().tolist() == [0, 10, 11, 20]


def test_selected_puzzles_keep_their_solutions():
    kept = versions().select(torch.tensor([False, True, False, True, False]))
    assert kept.inputs.flatten().tolist() == [1, 3]
    assert [kept.solutions_of(i).flatten().tolist() for i in (0, 1)] == [[10, 11], [30, 31]]
    assert kept.is_first_version is None


def test_pairs_of_data_without_input_are_drawn_once_each():
    data = PuzzleSet.from_data(torch.arange(6, dtype=torch.uint8)[:, None])
    assert len(data) == 1
    x, y = data.sample_pairs(4, torch.Generator().manual_seed(0))
    assert x is None
    assert y.dtype == torch.int64
    assert len(y.unique()) == 4


def test_the_stream_of_p_x_visits_each_datum_once_an_epoch():
    task = SudokuBoards(SudokuBoards.Config(size=4))
    stream = TargetStream(task, task.split("train"), 96, seed=0, augment=False)
    epochs = [torch.cat([stream(number)[1] for number in range(e, e + 3)]) for e in (0, 3)]
    assert all(x is None for x, _ in (stream(0), stream(5)))
    assert all(len(epoch.unique(dim=0)) == 288 for epoch in epochs)
    assert not torch.equal(*epochs)


def test_a_bad_line_of_many_is_named_by_its_number():
    task = NQueens(NQueensConfig(size=4, validation=1))
    good, bad = ".Q../..../..../....", "QQ../..../..../...."
    with pytest.raises(InputError, match="^line 4: the queens at row 1, column 1"):
        list(task.read_inputs(f"{good}\n\n{good}\n{bad}\n"))
    with pytest.raises(InputError, match="^the queens at"):
        list(task.read_inputs(bad))


@pytest.mark.parametrize("name", ["coloring", "nqueens", "arc", "sudoku"])
def test_a_data_dir_that_is_none_is_an_error_for_every_task(name, tmp_path):
    from pyro_gram.registry import TASKS

    with pytest.raises(ConfigError, match="nowhere"):
        make_task(name, TASKS.get(name).Config(), str(tmp_path / "nowhere"))
