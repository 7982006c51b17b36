"""Colouring of graphs of any size, with three to six colours and clues (layout ``graph``)."""

import copy
import itertools
import pickle

import networkx as nx
import numpy as np
import pytest
import torch

from pyro_gram.errors import ConfigError
from pyro_gram.spec import Structure
from pyro_gram.tasks.coloring import Coloring
from pyro_gram.tasks.coloring.any_graph import GraphColoring
from pyro_gram.tasks.coloring.config import ColoringConfig
from pyro_gram.tasks.coloring.counting import count_colorings
from pyro_gram.tasks.coloring.exact import count_partial_colorings
from pyro_gram.tasks.coloring.listing import list_colorings
from tests.tasks.coloring_cases import SETTINGS, make, networkx_graph


@pytest.fixture(scope="module")
def task():
    return make()


@pytest.fixture(scope="module")
def pairs(task):
    """Training inputs, each with a random solution."""
    train = task.split("train")
    return train.inputs, train.sample_targets(torch.arange(len(train)), torch.Generator().manual_seed(0))


def brute_force(graph: nx.Graph, colors: int) -> set[tuple[int, ...]]:
    """Try all colourings. Return those that keep the clues; colours without a clue are renamed by first appearance."""
    clues = nx.get_node_attributes(graph, "color")
    open_names = [c for c in range(colors) if c not in clues.values()]
    result = set()
    for y in itertools.product(range(colors), repeat=len(graph)):
        if any(y[u] == y[v] for u, v in graph.edges) or any(y[v] != c for v, c in clues.items()):
            continue
        names = {c: c for c in clues.values()}
        left = iter(open_names)
        result.add(tuple(names[c] if c in names else names.setdefault(c, next(left)) for c in y))
    return result


def random_graphs(count, n, p, seed=0) -> np.ndarray:
    adjacency = np.triu(np.random.default_rng(seed).random((count, n, n)) < p, 1)
    return adjacency | adjacency.transpose(0, 2, 1)


# ---- lists and counts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("colors", [3, 4, 5, 6])
def test_lists_and_counts_are_those_of_brute_force(colors):
    rng = np.random.default_rng(colors)
    adjacency = random_graphs(12, 5, 0.5, seed=colors)
    clues = np.where(rng.random((12, 5)) < 0.3, rng.integers(0, colors, (12, 5)), -1)
    adjacency[0, 1, 2] = adjacency[0, 2, 1] = True
    clues[0, 1:3] = 2  # adjacent vertices with one clue: no colouring
    listed = list_colorings(adjacency, clues, np.full(12, colors))
    solutions = np.split(listed.solutions, listed.counts.cumsum()[:-1])
    for i in range(12):
        graph = nx.from_numpy_array(adjacency[i].astype(int))
        nx.set_node_attributes(graph, {v: int(c) for v, c in enumerate(clues[i]) if c >= 0}, "color")
        expected = brute_force(graph, colors)
        assert [tuple(y) for y in solutions[i].tolist()] == sorted(expected)
        assert count_partial_colorings(adjacency[i], clues[i], colors) == len(expected)
    assert listed.counts[0] == 0
    assert listed.counts.max() > 1


def test_a_search_is_given_up_at_its_limit():
    adjacency = np.stack((np.zeros((6, 6), bool), ~np.eye(6, dtype=bool)))
    listed = list_colorings(adjacency, np.full((2, 6), -1), np.array([6, 6]), limit=100)
    assert listed.is_complete.tolist() == [False, True]
    assert listed.counts.tolist() == [0, 1]  # 203 partitions of six vertices are too many


@pytest.mark.parametrize("n", [9, 12])
def test_all_graphs_up_to_twelve_vertices_are_counted(n):
    for p, colors in itertools.product((0.0, 0.1, 0.3, 0.6), (3, 6)):
        for adjacency in random_graphs(5, n, p):
            listed = list_colorings(adjacency[None], np.full((1, n), -1), np.array([colors]), 20_000)
            count = count_colorings(adjacency, colors)
            assert count is not None
            assert count == listed.counts[0] or not listed.is_complete[0]


def test_large_graphs_are_counted_by_their_chromatic_polynomials():
    path = nx.to_numpy_array(nx.path_graph(64)) > 0
    assert count_colorings(path, 3) == 2**62  # P(3) = 3 * 2^63, and each colouring has six names
    cycle = nx.to_numpy_array(nx.cycle_graph(41)) > 0
    assert count_colorings(cycle, 3) == (2**41 - 2) // 6  # P(3) = 2^n - 2 for odd n; each colouring has six names
    assert count_colorings(random_graphs(1, 40, 0.15)[0], 6) is None


# ---- inputs ----------------------------------------------------------------------------------------------------------


def test_the_config_chooses_the_class_and_copies_keep_it(task):
    assert isinstance(task, GraphColoring)
    assert type(Coloring(ColoringConfig())) is Coloring
    assert isinstance(copy.deepcopy(task), GraphColoring)
    structure = pickle.loads(pickle.dumps(task.spec)).structure
    assert torch.equal(
        structure(task.split("test").inputs).relations, task.spec.structure(task.split("test").inputs).relations
    )


def test_tokens_stay_below_the_vocabulary_and_all_are_used(task, pairs):
    x, _ = pairs
    spec = task.spec
    assert (spec.padding, spec.input_vocabulary, spec.output_classes) == (20, 21, 5)
    assert x.unique().tolist() == [t for t in range(21) if t not in (6, 7, 13)]  # three colours have no clue 3 or 4


def test_the_structure_has_neighbours_others_and_all(task, pairs):
    x = pairs[0]
    structure = task.spec.structure(x)
    assert isinstance(structure, Structure)
    neighbours, others, everything = structure.relations.unbind(1)
    is_self = torch.eye(12).bool()
    both = structure.mask[:, :, None] & structure.mask[:, None, :]
    assert torch.equal(neighbours, (x == 1) | is_self)
    assert torch.equal(everything, both | is_self)
    assert torch.equal(neighbours & others, is_self.expand_as(others))
    assert torch.equal(neighbours | others, everything)
    assert torch.equal(structure.tokens, x.diagonal(dim1=1, dim2=2))
    assert torch.equal(structure.mask.sum(1), task.spec.sizes_of(x))


def test_cropped_inputs_have_the_same_structure_and_answers(task, pairs):
    x, y = pairs
    small = task.spec.sizes_of(x) <= 6
    x, y = x[small], y[small]
    cropped_x, cropped_y = task.spec.crop(x, y)
    assert cropped_x.shape[1:] == (6, 6)
    padded, cropped = task.spec.structure(x), task.spec.structure(cropped_x)
    assert torch.equal(padded.relations[..., :6, :6], cropped.relations)
    assert torch.equal(padded.values[:, :6], cropped.values)
    wrong = (cropped_y + 1) % 3
    padded_wrong = torch.nn.functional.pad(wrong, (0, 6))
    assert torch.equal(task.violations(x, padded_wrong), task.violations(cropped_x, wrong))
    assert torch.equal(task.canonical_form(x, padded_wrong)[:, :6], task.canonical_form(cropped_x, wrong))


def test_values_are_closed_beyond_the_number_of_colors_at_clues_and_at_padding(task, pairs):
    x, y = pairs
    values = task.spec.structure(x).values
    graphs = task.decode(x)
    for i in range(len(x)):
        for v in range(12):
            clue = int(graphs.clues[i, v])
            expected = [0] if not graphs.mask[i, v] else [clue] if clue >= 0 else list(range(int(graphs.num_colors[i])))
            assert values[i, v].nonzero().flatten().tolist() == expected
    assert values.gather(-1, y[..., None]).all()


def test_another_number_of_colors_changes_nothing_else(task, pairs):
    x = pairs[0]
    graphs = task.decode(x)
    wider = task.replace_colors(x, 5)
    result = task.decode(wider)
    assert (result.num_colors == 5).all()
    assert torch.equal(result.adjacency, graphs.adjacency)
    assert torch.equal(result.clues, graphs.clues)
    assert torch.equal(task.spec.sizes_of(wider), task.spec.sizes_of(x))
    free = graphs.clues.amax(-1) < 3
    assert torch.equal(task.replace_colors(task.replace_colors(x[free], 4), 3), task.replace_colors(x[free], 3))


# ---- right and equal answers -----------------------------------------------------------------------------------------


def test_violations_count_conflicts_broken_clues_and_colors_beyond_the_number(task, pairs):
    x, _ = pairs
    graphs = task.decode(x)
    y = torch.randint(0, 5, (3, len(x), 12), generator=torch.Generator().manual_seed(0)) * graphs.mask
    violations = task.violations(x, y)
    for i in range(len(x)):
        graph = networkx_graph(task, x[i])
        clues = nx.get_node_attributes(graph, "color")
        for n in range(3):
            colors = y[n, i].tolist()
            expected = sum(colors[u] == colors[v] for u, v in graph.edges)
            expected += sum(colors[v] != clue for v, clue in clues.items())
            expected += sum(colors[v] >= graphs.num_colors[i] for v in graph)
            assert violations[n, i] == expected


def test_the_canonical_form_keeps_the_names_of_clues(task):
    x = task.parse("GCR`v_ ...2.... colors=4")
    names = [3, 1, 0, 2, 0, 1, 1, 1]
    y = torch.tensor([*names, 0, 0, 0, 0])
    assert task.canonical_form(x, y).tolist() == [0, 1, 3, 2, 3, 1, 1, 1, 0, 0, 0, 0]
    without_clues = task.parse("GCR`v_ colors=4")
    assert task.canonical_form(without_clues, y).tolist() == [0, 1, 2, 3, 2, 1, 1, 1, 0, 0, 0, 0]


def test_no_renaming_makes_a_wrong_answer_right_or_a_right_one_wrong(task, pairs):
    x, y = pairs
    generator = torch.Generator().manual_seed(0)
    for answers in (y, torch.randint(0, 5, y.shape, generator=generator) * task.decode(x).mask):
        canonical = task.canonical_form(x, answers)
        assert torch.equal(task.violations(x, canonical), task.violations(x, answers))
        assert torch.equal(task.canonical_form(x, canonical), canonical)
    assert torch.equal(task.canonical_form(x, y), y)


def test_equal_answers_have_one_canonical_form(task, pairs):
    x, y = pairs
    is_free = (task.decode(x).clues < 0).all(-1) & (task.decode(x).num_colors == 3)
    x, y = x[is_free], y[is_free]
    for names in itertools.permutations(range(3)):
        assert torch.equal(task.canonical_form(x, torch.tensor(names)[y]), y)


# ---- settings --------------------------------------------------------------------------------------------------------

BAD_SETTINGS = [
    ({"layout": "vertex"}, "colors needs layout = graph: layout vertex ignores it"),
    ({"layout": "edge", "colors": 3}, "min_vertices needs layout = graph"),
    ({"colors": 7}, "colors must lie between 3 and 6"),
    ({"min_vertices": 9}, "min_vertices must lie between 3 and 8"),
    ({"min_vertices": 0}, "planted_graphs have several sizes: set min_vertices"),
    ({"planted_vertices": 65}, "planted_vertices must lie between 5 and 64"),
    ({"planted_graphs": 0}, "colors needs planted_graphs"),
    ({"planted_graphs": 0, "colors": 3}, "planted_vertices needs planted_graphs"),
    ({"planted_graphs": -1}, "planted_graphs must be at least 0"),
    ({"vertices": 13}, "vertices must lie between 3 and 12"),
]


@pytest.mark.parametrize(("settings", "message"), BAD_SETTINGS)
def test_errors_name_bad_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        ColoringConfig(**{**SETTINGS, **settings})


def test_too_few_graphs_are_an_error():
    with pytest.raises(ConfigError, match="too few 3-colourable graphs of 5 to 6 vertices for test = 50"):
        make(vertices=6).split("train")


def test_all_names_of_colours_are_equally_probable_in_training():
    task = Coloring(
        ColoringConfig(
            layout="graph", min_vertices=4, vertices=5, colors=4, planted_graphs=4, train=20, validation=2, test=2
        )
    )
    x = task.with_colors(task.parse("C~"), 4).expand(6000, -1, -1)  # four vertices, all adjacent: they need four names
    y = torch.nn.functional.pad(torch.arange(4), (0, x.shape[-1] - 4)).expand(6000, -1)
    _, names = task.augment(x, y, torch.Generator().manual_seed(0))
    _, counts = names.unique(dim=0, return_counts=True)
    assert len(counts) == 24
    assert ((counts - 250) ** 2 / 250).sum() < 23 + 4 * 46**0.5
