"""Fresh inputs are drawn from a seed, and none of them is symmetric to an input of a split."""

import networkx as nx
import pytest
import torch

from pyro_gram.errors import ConfigError
from pyro_gram.tasks.base import SPLITS, PuzzleSet
from pyro_gram.tasks.coloring.task import Coloring, ColoringConfig
from pyro_gram.tasks.held_out import add_new_classes
from pyro_gram.tasks.nqueens.task import NQueens, NQueensConfig
from pyro_gram.tasks.sudoku.boards import random_symmetries, transform
from pyro_gram.tasks.sudoku.task import FIRST_DIGIT, Sudoku, SudokuConfig

SEED = 7


def coloring(**changes) -> Coloring:
    return Coloring(ColoringConfig(**{"vertices": 7, "train": 60, "validation": 10, "test": 20, **changes}))


def sudoku() -> Sudoku:
    return Sudoku(SudokuConfig(train=100, validation=20, test=40))


@pytest.mark.parametrize("make", [coloring, sudoku])
def test_fresh_inputs_are_right_and_follow_their_seed(make):
    task = make()
    fresh_set = task.fresh_inputs(30, SEED)
    assert len(fresh_set) == len(fresh_set.inputs) == 30
    assert fresh_set.has_all_solutions
    assert task.is_valid(fresh_set.inputs.repeat_interleave(fresh_set.num_solutions, 0), fresh_set.solutions).all()
    repeated_set = make().fresh_inputs(30, SEED)
    assert torch.equal(repeated_set.inputs, fresh_set.inputs)
    assert torch.equal(repeated_set.solutions, fresh_set.solutions)
    assert torch.equal(task.fresh_inputs(10, SEED).inputs, fresh_set.inputs[:10])
    assert not torch.equal(task.fresh_inputs(30, SEED + 1).inputs, fresh_set.inputs)


def test_no_fresh_graph_is_isomorphic_to_a_graph_of_a_split_or_to_another_fresh_one():
    task = coloring()  # under its data_seed, fresh_inputs draws the graphs of the splits again, and must drop them

    def graphs(inputs):
        return [nx.from_numpy_array(a.numpy().astype(int)) for a in task.adjacency(inputs)]

    fresh_graphs = graphs(task.fresh_inputs(30, task.config.data_seed).inputs)
    split_graphs = [g for split in SPLITS for g in graphs(task.split(split).inputs)]
    for i, graph in enumerate(fresh_graphs):
        assert not any(nx.faster_could_be_isomorphic(graph, g) and nx.is_isomorphic(graph, g) for g in split_graphs)
        assert not any(nx.faster_could_be_isomorphic(graph, g) and nx.is_isomorphic(graph, g) for g in fresh_graphs[:i])


def test_no_fresh_sudoku_is_an_image_of_a_puzzle_of_a_split_or_of_another_fresh_one():
    task = sudoku()
    fresh_inputs = task.fresh_inputs(3, task.config.data_seed).inputs
    split_inputs = {tuple(x) for split in SPLITS for x in task.split(split).inputs.tolist()}
    generator = torch.Generator().manual_seed(0)
    for i, x in enumerate(fresh_inputs):
        cells, digits = random_symmetries(12_000, 4, generator)  # nearly all of the 3,072 symmetries
        images = {
            tuple(row) for row in transform(x.expand(12_000, 16), cells, digits, FIRST_DIGIT).unique(dim=0).tolist()
        }
        assert not images & split_inputs
        assert not images & {tuple(other_x) for other_x in fresh_inputs[:i].tolist()}


def test_asking_for_more_fresh_inputs_than_exist_is_refused_in_a_sentence():
    with pytest.raises(ConfigError, match="found only [0-9]+ graphs of 4 vertices that .* ask for fewer"):
        coloring(vertices=4, train=4, validation=1, test=1).fresh_inputs(500, SEED)


def test_a_task_without_fresh_inputs_is_an_error():
    with pytest.raises(ConfigError, match="makes no fresh inputs: measure on its test split"):
        NQueens(NQueensConfig(size=6, validation=5)).fresh_inputs(3, SEED)


def test_the_first_key_of_each_new_class_is_returned():
    classes = {"a"}
    assert add_new_classes(classes, "abcbad") == [1, 2, 5]
    assert classes == set("abcd")
    assert add_new_classes(classes, "abcd") == []


def test_concatenated_sets_keep_their_solutions():
    task = sudoku()
    a, b = task.split("test"), task.split("validation")
    whole_set = PuzzleSet.concatenate([a, b])
    assert len(whole_set) == len(a) + len(b)
    assert torch.equal(whole_set.inputs[len(a)], b.inputs[0])
    assert torch.equal(whole_set.solutions_of(len(a) + 3), b.solutions_of(3))
    assert torch.equal(whole_set.solutions_of(5), a.solutions_of(5))
