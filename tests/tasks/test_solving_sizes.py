"""A task whose inputs have several sizes: they are padded, solved together, and coloured with the fewest colours."""

import itertools
from dataclasses import dataclass

import networkx as nx
import pytest
import torch

from pyro_gram.answers import Answers, solve_with_fewest_colors
from pyro_gram.build import build
from pyro_gram.errors import InputError
from pyro_gram.spec import Structure, TaskSpec
from pyro_gram.tasks.base import PuzzleSet, Task
from pyro_gram.tasks.inputs import input_tokens
from tests.conftest import perturb_, small_config

PADDING = 6  # the diagonal holds 1 + the number of colours
LARGEST_TRAINED, LARGEST = 5, 7


def structure_of(x):
    mask = x.diagonal(dim1=-2, dim2=-1) != PADDING
    is_self = torch.eye(x.shape[-1], dtype=torch.bool)
    pairs = mask[..., None] & mask[..., None, :] | is_self
    colors = (x.diagonal(dim1=-2, dim2=-1) - 1) * mask + ~mask
    values = torch.arange(4) < colors[..., None]
    return Structure(x.diagonal(dim1=-2, dim2=-1), torch.stack(((x == 1) | is_self, pairs), -3), mask, values)


@dataclass(frozen=True)
class GraphsConfig:
    pass


class Graphs(Task):
    Config = GraphsConfig
    max_size = LARGEST
    min_colors, max_colors = 3, 4

    def __init__(self, config=None, data_dir=None):
        n = LARGEST_TRAINED
        self.spec = TaskSpec(n, n, PADDING + 1, n, 4, structure=structure_of, relations=2, padding=PADDING)

    def split(self, name):
        x = torch.stack([self.parse(text) for text in ("C~", "DQc")])
        return PuzzleSet.from_counts(x, torch.tensor([[0, 1, 2, 3, 0], [0, 0, 1, 2, 2]]), torch.tensor([1, 1]))

    def violations(self, x, y):
        return ((x == 1) & (y[..., :, None] == y[..., None, :])).sum((-1, -2)) // 2

    def parse(self, text):
        return self.parse_graph(nx.from_graph6_bytes(text.encode()))

    def parse_graph(self, graph):
        if len(graph) > LARGEST:
            raise InputError("too large")
        x = torch.from_numpy(nx.to_numpy_array(graph)).long()
        x.fill_diagonal_(1 + self.max_colors)
        return self.spec.pad(x, LARGEST_TRAINED)

    def format_input(self, x):
        n = int(self.spec.sizes_of(x))
        return nx.to_graph6_bytes(nx.from_numpy_array((x[:n, :n] == 1).int().numpy()), header=False).decode().strip()

    def with_colors(self, x, colors):
        if not 1 <= colors <= self.max_colors:
            raise InputError(f"this task colours with 1 to {self.max_colors} colours, not {colors}")
        n = int(self.spec.sizes_of(x))
        edges = (x[:n, :n] == 1).nonzero().tolist()
        if not any(all(c[u] != c[v] for u, v in edges) for c in itertools.product(range(colors), repeat=n)):
            raise InputError(f"the graph needs more than {colors} colours")
        x = x.clone()
        x.diagonal()[:n] = 1 + colors
        return x


@pytest.fixture(scope="module")
def solver():
    config = small_config(model={"mixer": "relations"})
    solver = build(config, None, Graphs())
    perturb_(solver.model, 0.3)
    return solver


def test_padding_is_the_inverse_of_cropping():
    lines = TaskSpec(5, None, 4, 5, 2, structure=structure_of, relations=2, padding=3)
    x = torch.tensor([[0, 1, 2], [2, 1, 3]])
    assert lines.pad(x, 5).tolist() == [[0, 1, 2, 3, 3], [2, 1, 3, 3, 3]]
    spec = Graphs().spec
    matrix = torch.randint(0, 2, (2, 4, 4)) + 3 * torch.eye(4, dtype=torch.long)
    padded = spec.pad(matrix, 6)
    assert spec.sizes_of(padded).tolist() == [4, 4]
    assert torch.equal(spec.crop(padded, padded[..., 0])[0], matrix)
    assert padded[:, 4:, :4].sum() == padded[:, :4, 4:].sum() == 0
    assert spec.pad(matrix, 3) is matrix
    assert TaskSpec(3, None, 4, 3, 2).pad(x, 5) is x


def test_inputs_of_several_sizes_are_padded_to_the_largest():
    task = Graphs()
    graphs = [nx.path_graph(3), nx.cycle_graph(7)]
    x = input_tokens(task, graphs)
    assert x.shape == (2, 7, 7)
    assert task.spec.sizes_of(x).tolist() == [3, 7]
    assert torch.equal(input_tokens(task, [x[0], x[1, :7, :7]]), x)
    assert torch.equal(input_tokens(task, [x[0, :3, :3], x[1]]), x)
    assert torch.equal(input_tokens(task, x), x)


def test_sizes_up_to_the_largest_position_are_solved_together(solver):
    graphs = [nx.path_graph(3), nx.cycle_graph(7), nx.cycle_graph(5)]
    samples = solver.sample(graphs, num_samples=4)
    assert samples.tokens.shape == (4, 3, 7)
    assert (samples.tokens[:, 0, 3:] == 0).all()
    for answers, graph in zip(solver.solve(graphs, num_samples=4), graphs, strict=True):
        assert answers.input == nx.to_graph6_bytes(graph, header=False).decode().strip()
        for answer in answers.solutions:
            assert answer.valid == all(answer.y[u] != answer.y[v] for u, v in graph.edges)
    assert solver.sample("Bw", num_samples=2).tokens.shape == (2, 1, 5)


def test_other_shapes_are_refused(solver):
    for x in (torch.full((1, 8, 8), 5), torch.full((1, 3, 4), 5), torch.full((1, 4), 5), torch.zeros(1, 0, 0).long()):
        with pytest.raises(InputError, match=r"shape \[B, 5, 5\], or the same with any size up to 7, not"):
            solver.sample(x)
    with pytest.raises(InputError, match="not the tokens"):
        solver.sample(torch.tensor([[[5, 1], [0, 5]]]))  # not symmetric


def test_a_number_of_colours_closes_the_others(solver):
    for colors in (2, 3, 4):
        (answers,) = solver.solve(nx.path_graph(4), num_samples=30, colors=colors)
        assert max(int(answer.y.max()) for answer in answers.solutions) < colors
        assert (answers.colors, answers.fewer_colors) == (colors, {})
        assert answers.to_dict()["colors"] == colors
    x = solver.task.with_colors(solver.task.parse("Bw"), 3)
    assert solver.sample(x[None], num_samples=2).tokens.max() < 3  # tokens with fewer colours are an input too


def test_a_wrong_number_of_colours_is_refused_before_anything_is_solved(solver):
    with pytest.raises(InputError, match="^input 2: the graph needs more than 3 colours"):
        solver.stream(["Bw", "C~"], colors=3)
    for colors in (0, 5):
        with pytest.raises(InputError, match=f"^this task colours with 1 to 4 colours, not {colors}"):
            solver.stream("Bw", colors=colors)


def test_a_task_without_colours_refuses_their_number(case):
    text = case.solver.task.format_input(case.x[0])
    with pytest.raises(InputError, match="^the task coloring has no number of colours"):
        case.solver.solve(text, colors=3)
    (answers,) = case.solver.solve(text, num_samples=2)
    assert answers.colors is None
    assert "colors" not in answers.to_dict()


def test_the_solver_proves_that_three_colours_do_not_suffice(solver):
    answers = solver.solve(["C~", "B?"], num_samples=4)
    assert (answers[0].colors, answers[0].fewer_colors) == (4, {3: "proved impossible"})
    assert (answers[1].colors, answers[1].fewer_colors) == (3, {})


def test_colours_are_added_until_an_answer_is_right():
    """The graphs are right with 3 colours, with 4, and never."""
    task = Graphs()
    x = input_tokens(task, [nx.path_graph(n) for n in (2, 3, 4)])
    batches = []

    def solve(batch):
        batches.append([(int(task.spec.sizes_of(row)), int(row[0, 0]) - 1) for row in batch])
        for size, colors in batches[-1]:
            is_right = (size, colors) in ((2, 3), (3, 4))
            yield Answers(str(size), [], 9, 1, "all", 1, int(is_right), None, 1.0, (), batch[0])

    answers = solve_with_fewest_colors(task, x, solve)
    assert batches == [[(2, 3), (3, 3), (4, 3)], [(3, 4), (4, 4)]]
    assert [a.input for a in answers] == [task.format_input(row) for row in x]
    assert [a.colors for a in answers] == [3, 4, 4]
    assert [a.fewer_colors for a in answers] == [{}, *[{3: "none found in 9 samples"}] * 2]
    assert [a.distinct_valid for a in answers] == [1, 1, 0]


def test_an_input_that_says_its_number_of_colours_begins_with_it(monkeypatch):
    task = Graphs()
    monkeypatch.setattr(Graphs, "colors_of", lambda self, x: x[..., 0, 0] - 1)
    x = input_tokens(task, [nx.path_graph(n) for n in (2, 3)])
    x = torch.stack([task.with_colors(x[0], 4), task.with_colors(x[1], 2)])
    batches = []

    def solve(batch):
        batches.append(task.colors_of(batch).tolist())
        return [Answers("", [], 9, 1, "all", 1, 1, None, 1.0, (), row) for row in batch]

    answers = solve_with_fewest_colors(task, x, solve)
    assert batches == [[3], [4]]
    assert [(a.colors, a.fewer_colors) for a in answers] == [(4, {}), (3, {})]


def test_an_input_that_needs_too_many_colours_is_refused():
    task = Graphs()
    with pytest.raises(InputError, match="needs more than 4 colours"):
        solve_with_fewest_colors(task, input_tokens(task, nx.complete_graph(5)), list)
