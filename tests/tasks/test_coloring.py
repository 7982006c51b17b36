import itertools

import networkx as nx
import numpy as np
import pytest
import torch

from pyro_gram.errors import ConfigError, InputError
from pyro_gram.tasks.batches import TargetStream
from pyro_gram.tasks.coloring.graphs import isomorphism_invariants
from pyro_gram.tasks.coloring.listing import list_three_colorings
from pyro_gram.tasks.coloring.task import Coloring, ColoringConfig

LAYOUTS = ("vertex", "edge")


def make(layout="vertex", **changes) -> Coloring:
    settings = {"vertices": 6, "train": 60, "validation": 10, "test": 20, **changes}
    return Coloring(ColoringConfig(layout=layout, **settings))


def brute_force(graph: nx.Graph) -> set[tuple[int, ...]]:
    """Try all 3^n colourings of a graph. Return those without a conflict, in canonical form."""
    colorings = set()
    for colors in itertools.product(range(3), repeat=len(graph)):
        if all(colors[u] != colors[v] for u, v in graph.edges):
            names: dict[int, int] = {}
            colorings.add(tuple(names.setdefault(c, len(names)) for c in colors))
    return colorings


def test_canonical_colorings_are_counted_by_the_stirling_numbers():
    for n, expected in ((3, 5), (4, 14), (8, 1094)):
        assert list_three_colorings(np.zeros((1, n, n), bool)).counts[0] == expected


@pytest.mark.parametrize("layout", LAYOUTS)
def test_solutions_are_exactly_those_of_brute_force(layout):
    task = make(layout)
    puzzles = task.split("train")
    for i in range(len(puzzles)):
        graph = nx.from_numpy_array(task.adjacency(puzzles.inputs[i]).numpy().astype(int))
        colorings = puzzles.solutions_of(i) - task._first_color
        assert len(colorings) == puzzles.num_solutions[i] > 0
        assert {tuple(row) for row in colorings.tolist()} == brute_force(graph)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_check_agrees_with_networkx_on_random_answers(layout):
    task = make(layout)
    puzzles = task.split("test")
    y = torch.randint(0, 3, (10, len(puzzles), 6)) + task._first_color
    violations = task.violations(puzzles.inputs, y)
    for i in range(len(puzzles)):
        graph = nx.from_numpy_array(task.adjacency(puzzles.inputs[i]).numpy().astype(int))
        for n in range(10):
            colors = y[n, i].tolist()
            assert violations[n, i] == sum(colors[u] == colors[v] for u, v in graph.edges)


def test_a_token_that_is_no_color_is_a_violation():
    task = make("edge")
    puzzles = task.split("test")
    y = puzzles.solutions_of(0).clone()[0]
    assert task.is_valid(puzzles.inputs[0], y)
    y[2] = 1
    assert not task.is_valid(puzzles.inputs[0], y)
    assert task.format_solution(puzzles.inputs[0], y)[2] == "?"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_canonical_form_undoes_any_renaming_of_colors(layout):
    task = make(layout)
    puzzles = task.split("train")
    y = puzzles.sample_targets(torch.arange(len(puzzles)), torch.Generator().manual_seed(0))
    assert (task.canonical_form(puzzles.inputs, y) == y).all()
    for permutation in itertools.permutations(range(3)):
        renamed_answers = torch.tensor(permutation)[y - task._first_color] + task._first_color
        assert (task.canonical_form(puzzles.inputs, renamed_answers) == y).all()


def test_no_graph_of_one_split_is_isomorphic_to_one_of_another():
    task = make(vertices=6, train=80, validation=10, test=20)
    graphs = {
        split: [nx.from_numpy_array(a) for a in task.adjacency(task.split(split).inputs).numpy().astype(int)]
        for split in ("train", "validation", "test")
    }
    assert [len(g) for g in graphs.values()] == [80, 10, 20]
    for a, b in itertools.combinations(graphs, 2):
        for g, h in itertools.product(graphs[a], graphs[b]):
            assert not nx.faster_could_be_isomorphic(g, h) or not nx.is_isomorphic(g, h)


def test_invariants_agree_on_isomorphic_graphs_and_differ_on_nearly_all_others():
    rng = np.random.default_rng(0)
    a = np.triu(rng.random((40, 7, 7)) < 0.5, 1)
    a = a | a.transpose(0, 2, 1)
    order = rng.permutation(7)
    assert isomorphism_invariants(a) == isomorphism_invariants(a[:, order][:, :, order])
    assert len(set(isomorphism_invariants(a))) > 30


def test_the_split_is_reproducible_and_follows_its_seed():
    a, b, c = make(), make(), make(data_seed=1)
    assert torch.equal(a.split("test").inputs, b.split("test").inputs)
    assert not torch.equal(a.split("test").inputs, c.split("test").inputs)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_augmentation_is_an_isomorphism_with_a_canonical_valid_answer(layout):
    task = make(layout)
    puzzles = task.split("train")
    generator = torch.Generator().manual_seed(0)
    y = puzzles.sample_targets(torch.arange(len(puzzles)), generator)
    x2, y2 = task.augment(puzzles.inputs, y, generator)
    assert task.is_valid(x2, y2).all()
    assert (task.canonical_form(x2, y2) == y2).all()
    assert not torch.equal(x2, puzzles.inputs)
    keys = isomorphism_invariants(task.adjacency(puzzles.inputs).numpy())
    assert isomorphism_invariants(task.adjacency(x2).numpy()) == keys


def test_targets_are_uniform_over_solutions():
    task = make()
    puzzles = task.split("train")
    i = int(((puzzles.num_solutions - 6).abs()).argmin())
    m = int(puzzles.num_solutions[i])
    index = torch.full((1000 * m,), i)
    targets = puzzles.sample_targets(index, torch.Generator().manual_seed(0))
    counts = torch.stack([(targets == s).all(-1).sum() for s in puzzles.solutions_of(i)])
    assert counts.sum() == len(index)
    assert (counts - 1000).abs().max() < 5 * 1000**0.5


def test_a_batch_depends_on_its_number_only_and_an_epoch_visits_each_input_once():
    task = make()
    a = TargetStream(task, task.split("train"), 20, seed=3)
    b = TargetStream(task, task.split("train"), 20, seed=3)
    batch_7 = b(7)
    assert all(torch.equal(p, q) for p, q in zip(a(7), batch_7, strict=True))
    stream = TargetStream(task, task.split("train"), 20, seed=3, augment=False)
    inputs = torch.cat([stream(i)[0] for i in range(3)]).flatten(1)
    assert len(inputs.unique(dim=0)) == 60


@pytest.mark.parametrize("layout", LAYOUTS)
def test_text_round_trips_through_graph6_and_dimacs(layout):
    task = make(layout)
    for x in task.split("test").inputs:
        assert torch.equal(task.parse(task.format_input(x)), x)
        graph = nx.from_graph6_bytes(task.format_input(x).encode())
        lines = ["c a comment", f"p edge 6 {graph.number_of_edges()}"]
        lines += [f"e {u + 1} {v + 1}" for u, v in graph.edges]
        assert torch.equal(next(iter(task.read_inputs("\n".join(lines)))), x)


def test_several_graph6_lines_are_several_inputs():
    task = make()
    text = "\n\n".join(task.format_input(x) for x in task.split("test").inputs[:3])
    assert len(list(task.read_inputs(text))) == 3


BAD_INPUTS = [
    (nx.to_graph6_bytes(nx.path_graph(5), header=False).decode(), "5 vertices; this task has vertices = 6"),
    (nx.to_graph6_bytes(nx.complete_graph(6), header=False).decode(), "not 3-colourable"),
    ("p edge 6 1\ne 2 2", "line 2: edge .* is a loop at vertex 2"),
    ("E", "malformed graph6"),
    ("é???", "malformed graph6"),
    ("E\x01??", "malformed graph6"),
    ("p edge 6 1\ne 1 9", "line 2: edge 'e 1 9' names a vertex beyond"),
    ("p edge 6 1\ne 1 x", "line 2: cannot read 'e 1 x'"),
    ("p edge 6 1\nq 1 2", "line 2: expected c, p or e .*found 'q'"),
    ("c nothing here\nc more", "no 'p edge VERTICES EDGES' line"),
    ("  ", "empty input"),
]


def test_each_kind_of_bad_input_has_its_own_message():
    for text, message in BAD_INPUTS:
        with pytest.raises(InputError, match=message):
            make().parse(text)


BAD_SETTINGS = [
    ({"vertices": 40}, "vertices must lie between 3 and 12"),
    ({"edge_probability": 1.5}, "edge_probability"),
    ({"layout": "matrix"}, "layout"),
    ({"test": 0}, "test must be at least 1"),
]


def test_errors_name_bad_settings():
    for settings, message in BAD_SETTINGS:
        with pytest.raises(ConfigError, match=message):
            ColoringConfig(**settings)


def test_asking_for_more_graphs_than_exist_is_an_error():
    with pytest.raises(ConfigError, match="too few 3-colourable graphs of 4 vertices"):
        make(vertices=4, train=500).split("train")


def test_an_error_names_an_unknown_split():
    with pytest.raises(ConfigError, match="holdout"):
        make().split("holdout")


def test_a_graph_that_cannot_be_coloured_has_no_solution():
    colorings = list_three_colorings(~np.eye(4, dtype=bool)[None])
    assert len(colorings.solutions) == 0
    assert colorings.counts.tolist() == [0]


def test_pictures_mark_conflicts():
    from matplotlib.figure import Figure

    task = make()
    puzzles = task.split("test")
    axes = Figure().subplots(1, 2)
    task.plot(axes[0], puzzles.inputs[0])
    task.plot(axes[1], puzzles.inputs[0], torch.zeros(6, dtype=torch.long))
    assert axes[0].collections
    assert len(axes[1].collections) > len(axes[0].collections)
