import pytest
import torch

from pyro_gram.errors import ConfigError, InputError
from pyro_gram.spec import TaskSpec
from pyro_gram.tasks.base import PuzzleSet, Task, make_task
from pyro_gram.tasks.batches import TargetStream
from pyro_gram.tasks.nqueens.task import NQueens, NQueensConfig
from pyro_gram.tasks.sudoku.unconditional import SudokuBoards


def versions():
    """Return three versions of one puzzle, and two of another. Solutions: 10 i in row i; in odd rows also 10 i + 1."""
    solutions = torch.tensor([0, 10, 11, 20, 30, 31, 40])[:, None]
    offsets = torch.tensor([0, 1, 3, 4, 6, 7])
    is_first_version = torch.tensor([True, False, False, True, False])
    return PuzzleSet(torch.arange(5)[:, None], solutions, offsets, is_first_version=is_first_version)


def test_a_subset_counts_inputs_and_keeps_their_versions():
    assert [len(versions().subset(n)) for n in (1, 2, 9)] == [3, 5, 5]
    first = versions().subset(1)
    assert first.is_first_version.tolist() == [True, False, False]
    assert first.solutions.flatten().tolist() == [0, 10, 11, 20]


def test_selected_puzzles_keep_their_solutions():
    selection = versions().select(torch.tensor([False, True, False, True, False]))
    assert selection.inputs.flatten().tolist() == [1, 3]
    assert [selection.solutions_of(i).flatten().tolist() for i in (0, 1)] == [[10, 11], [30, 31]]
    assert selection.is_first_version is None


def test_pairs_of_data_without_input_are_drawn_once_each():
    data = PuzzleSet.from_data(torch.arange(6, dtype=torch.uint8)[:, None])
    assert len(data) == 1
    x, y = data.sample_pairs(4, torch.Generator().manual_seed(0))
    assert x is None
    assert y.dtype == torch.int64
    assert len(y.unique()) == 4


def test_an_epoch_of_p_x_visits_each_datum_once():
    task = SudokuBoards(SudokuBoards.Config(size=4))
    stream = TargetStream(task, task.split("train"), 96, seed=0, augment=False)
    epochs = [torch.cat([stream(number)[1] for number in range(e, e + 3)]) for e in (0, 3)]
    assert all(x is None for x, _ in (stream(0), stream(5)))
    assert all(len(epoch.unique(dim=0)) == 288 for epoch in epochs)
    assert not torch.equal(*epochs)


def test_an_error_names_the_line_of_a_wrong_puzzle():
    task = NQueens(NQueensConfig(size=4, validation=1))
    valid_line, wrong_line = ".Q../..../..../....", "QQ../..../..../...."
    with pytest.raises(InputError, match="^line 4: the queens at row 1, column 1"):
        list(task.read_inputs(f"{valid_line}\n\n{valid_line}\n{wrong_line}\n"))
    with pytest.raises(InputError, match="^the queens at"):
        list(task.read_inputs(wrong_line))


@pytest.mark.parametrize("name", ["coloring", "nqueens", "arc", "sudoku"])
def test_a_missing_data_dir_is_an_error_for_every_task(name, tmp_path):
    from pyro_gram.registry import TASKS

    with pytest.raises(ConfigError, match="nowhere"):
        make_task(name, TASKS.get(name).Config(), str(tmp_path / "nowhere"))


class Bits(Task):
    """The smallest task: it implements only the required methods."""

    def __init__(self):
        self.spec = TaskSpec(3, None, 2, 3, 2)

    def split(self, name):
        x = torch.tensor([[0, 0, 1], [1, 0, 0]])
        return PuzzleSet.from_counts(x, 1 - x, torch.ones(2, dtype=torch.long))

    def violations(self, x, y):
        return (x == y).sum(-1)


def test_by_default_inputs_and_answers_are_written_as_tokens():
    task = Bits()
    x, y = task.parse("0, 1 1"), torch.tensor([1, 0, 1])
    assert x.tolist() == [0, 1, 1]
    assert task.format_input(x) == "0 1 1"
    assert task.render(x, y).splitlines() == ["0 1 1", "1 0 1 !"]
    for text in ("0 1", "0 1 2", "a b c", ""):
        with pytest.raises(InputError, match="an input is 3 whole numbers from 0 to 1"):
            task.parse(text)
    with pytest.raises(InputError, match="no graph: give texts"):
        task.parse_graph(None)


def test_by_default_a_picture_shows_the_text():
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    Bits().plot(axes, torch.tensor([0, 1, 1]))
    assert [text.get_text() for text in axes.texts] == ["0 1 1"]
