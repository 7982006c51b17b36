"""The splits of colouring graphs of any size: sizes, classes, planted graphs, augmentation."""

import itertools

import networkx as nx
import numpy as np
import pytest
import torch

from pyro_gram.tasks.base import SPLITS
from pyro_gram.tasks.batches import TargetStream
from pyro_gram.tasks.coloring.graph_splits import draw_split_graphs
from pyro_gram.tasks.coloring.graphs import isomorphism_invariants
from pyro_gram.tasks.coloring.planted import draw_planted
from tests.tasks.coloring_cases import make, networkx_graph


@pytest.fixture(scope="module")
def task():
    return make()


@pytest.fixture(scope="module")
def pairs(task):
    """Training inputs, each with a random solution."""
    train = task.split("train")
    return train.inputs, train.sample_targets(torch.arange(len(train)), torch.Generator().manual_seed(0))


@pytest.mark.parametrize("split", SPLITS)
def test_solutions_are_right_canonical_and_all_where_they_say_so(task, split):
    puzzles = task.split(split)
    largest = {"train": 800, "validation": 30, "test": 50}[split]
    assert 0.8 * largest <= len(puzzles) <= largest - (split != "train")
    x = puzzles.inputs.repeat_interleave(puzzles.num_solutions, 0)
    y = puzzles.solutions.long()
    assert task.is_valid(x, y).all()
    assert torch.equal(task.canonical_form(x, y), y)
    complete = set(puzzles.complete_rows.tolist())
    for i in range(len(puzzles)):
        solutions = puzzles.solutions_of(i).unique(dim=0)
        assert len(solutions) == puzzles.num_solutions[i] > 0
        assert (task.count_solutions(puzzles.inputs[i]) == len(solutions)) >= (i in complete)
        assert len(solutions) == 1 or i in complete
    assert (len(complete) == len(puzzles)) == (split != "train")
    assert len(complete) > 500 or split != "train"


def test_validation_and_test_are_shared_evenly_over_sizes_as_their_classes_allow(task):
    for split, total in (("test", 50), ("validation", 30)):
        counts = [len(graphs) for graphs in draw_split_graphs(task.config)[split]]
        assert sum(counts) == total
        assert 0 < counts[0] <= 0.15 * 29  # there are 29 3-colourable graphs of five vertices
        assert counts == sorted(counts)
        assert counts[-1] - counts[-2] <= 1
    without_planted = make(planted_graphs=0, planted_vertices=20, colors=3)
    listed = without_planted.split("train")
    assert without_planted.spec.sizes_of(listed.inputs).bincount()[5:].tolist() == [100, 100, 100, 100]


def test_no_held_out_graph_is_isomorphic_to_a_graph_of_another_split(task):
    graphs = {split: [networkx_graph(task, x) for x in task.split(split).inputs] for split in SPLITS}
    for a, b in (("test", "validation"), ("test", "train"), ("validation", "train")):
        for g, h in itertools.product(graphs[a], graphs[b]):
            assert len(g) != len(h) or not nx.faster_could_be_isomorphic(g, h) or not nx.is_isomorphic(g, h)
    for split in ("test", "validation"):
        for g, h in itertools.combinations(graphs[split], 2):
            assert len(g) != len(h) or not nx.faster_could_be_isomorphic(g, h) or not nx.is_isomorphic(g, h)


def test_no_held_out_graph_equals_one_of_another_split_without_vertices_that_have_no_edge(task):
    cores = {
        split: [
            g.subgraph(v for v, d in g.degree if d) for g in (networkx_graph(task, x) for x in task.split(split).inputs)
        ]
        for split in SPLITS
    }
    for a, b in (("test", "train"), ("validation", "train"), ("validation", "test")):
        for g, h in itertools.product(cores[a], cores[b]):
            assert len(g) != len(h) or not nx.faster_could_be_isomorphic(g, h) or not nx.is_isomorphic(g, h)


def test_planted_graphs_have_the_sizes_colors_and_clues_of_their_law(task):
    x = task.split("train").inputs
    graphs = task.decode(x)
    is_large = graphs.mask.sum(-1) > 8  # only planted graphs are
    sizes = graphs.mask.sum(-1)[is_large].bincount(minlength=13)[9:]
    assert sizes.min() > 25  # of 400 graphs, 50 have each of the eight sizes
    has_clues = (graphs.clues >= 0).any(-1)
    assert graphs.num_colors.unique().tolist() == [3, 4, 5]
    assert 80 < has_clues.sum() < 160  # 30 % of 400
    assert torch.equal((graphs.clues >= 0).sum(-1)[has_clues], graphs.mask.sum(-1)[has_clues] // 3)


def test_a_planted_coloring_is_uniform_over_the_colorings_of_its_graph():
    """Chi-squared over all pairs of a labelled graph of four vertices and one of its colourings."""
    graphs = draw_planted(np.random.default_rng(0), 4, np.full(60_000, 3))
    rows, cols = np.triu_indices(4, 1)
    key = graphs.adjacency[:, rows, cols] @ (1 << np.arange(6))
    coloring = graphs.colors @ 3 ** np.arange(4)
    statistic, degrees = 0.0, 0
    for graph in np.unique(key):
        counts = np.bincount(coloring[key == graph], minlength=81)
        adjacency = graphs.adjacency[key == graph][0]
        colors = np.arange(81)[:, None] // 3 ** np.arange(4) % 3
        is_proper = ~(adjacency & (colors[:, :, None] == colors[:, None, :])).any((1, 2))
        assert counts[~is_proper].sum() == 0
        expected = counts.sum() / is_proper.sum()
        if expected >= 5:
            statistic += ((counts[is_proper] - expected) ** 2 / expected).sum()
            degrees += is_proper.sum() - 1
    assert degrees > 300
    assert abs(statistic - degrees) < 4 * (2 * degrees) ** 0.5


def test_mean_degrees_reach_from_sparse_to_hard():
    graphs = draw_planted(np.random.default_rng(0), 30, np.full(1000, 4))
    degrees = graphs.adjacency.sum((1, 2)) / 30
    assert np.quantile(degrees, 0.05) == pytest.approx(2.5, abs=0.6)
    assert np.quantile(degrees, 0.95) == pytest.approx(8.0, abs=0.8)
    assert degrees.mean() == pytest.approx(5.25, abs=0.3)


def test_augmentation_is_an_isomorphism_with_a_right_answer(task, pairs):
    x, y = pairs
    new_x, new_y = task.augment(x, y, torch.Generator().manual_seed(0))
    assert task.is_valid(new_x, new_y).all()
    assert (new_x != x).flatten(1).any(1).double().mean() > 0.9
    old, new = task.decode(x), task.decode(new_x)
    assert torch.equal(old.mask, new.mask)
    assert torch.equal(old.num_colors, new.num_colors)
    assert torch.equal((old.clues >= 0).sum(-1), (new.clues >= 0).sum(-1))
    keys = isomorphism_invariants(old.adjacency.numpy())
    assert isomorphism_invariants(new.adjacency.numpy()) == keys
    for i in range(0, len(x), 40):
        assert nx.is_isomorphic(networkx_graph(task, x[i]), networkx_graph(task, new_x[i]))


def test_augmentation_renames_the_colors_of_clues(task):
    x = task.parse("DUW 01...").expand(600, 12, 12)
    y = task.canonical_form(x, torch.tensor([0, 1, 2, 2, 0] + [0] * 7).expand(600, 12))
    assert task.is_valid(x, y).all()
    new_x, _ = task.augment(x, y, torch.Generator().manual_seed(0))
    clues = task.decode(new_x).clues[:, :5]
    assert clues[clues >= 0].bincount().tolist() == pytest.approx([400, 400, 400], abs=60)
    assert (new_x[:, range(5), range(5)] > 2).sum(0).tolist() == pytest.approx([240] * 5, abs=60)


def test_batches_are_cropped_and_augmented(task):
    stream = TargetStream(task, task.split("train"), 32, seed=0)
    widths = set()
    for number in range(20):
        x, y = stream(number)
        assert x.shape[-1] == y.shape[-1] == int(task.spec.sizes_of(x).max())
        assert task.is_valid(x, y).all()
        widths.add(x.shape[-1])
    assert len(widths) > 2


def test_splits_follow_their_seed(task):
    assert torch.equal(make().split("train").inputs, task.split("train").inputs)
    assert not torch.equal(make(data_seed=1).split("train").inputs, task.split("train").inputs)
