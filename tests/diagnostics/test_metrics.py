import itertools
import math
from dataclasses import replace

import pytest
import torch

from pyro_gram.diagnostics.metrics import (
    coverage_by_input,
    coverage_limit,
    excess,
    measure,
    selected_answers,
    solution_ids,
)
from pyro_gram.registry import TASKS
from pyro_gram.tasks.base import PuzzleSet
from pyro_gram.tasks.coloring.task import Coloring, ColoringConfig

LAYOUTS = ("vertex", "edge")


def make(layout="vertex", vertices=3, **changes):
    settings = {"train": 2, "validation": 1, "test": 1, **changes}
    return Coloring(ColoringConfig(vertices=vertices, layout=layout, **settings))


def path_and_triangle(task):
    """The path 0-1-2, with the solutions 010 and 012, and the triangle, with 012."""
    adjacency = torch.tensor([[[0, 1, 0], [1, 0, 1], [0, 1, 0]], [[0, 1, 1], [1, 0, 1], [1, 1, 0]]]).bool()
    first = task.spec.output_classes - 3
    solutions = torch.tensor([[0, 1, 0], [0, 1, 2], [0, 1, 2]]) + first
    return PuzzleSet(task.encode(adjacency), solutions, torch.tensor([0, 2, 3]))


def tokens(task, *samples):
    """``"010 012"`` a sample: the colours of each input's vertices."""
    first = task.spec.output_classes - 3
    return torch.tensor([[[int(c) for c in word] for word in sample.split()] for sample in samples]) + first


@pytest.mark.parametrize("layout", LAYOUTS)
def test_hand_made_samples_have_known_metrics(layout):
    task = make(layout)
    puzzles = path_and_triangle(task)
    samples = tokens(task, "010 000", "202 120", "001 012")
    assert solution_ids(task, puzzles, samples).tolist() == [[0, -1], [0, 0], [-1, 0]]
    m = measure(task, puzzles, samples)
    assert m.accuracy == pytest.approx(1 / 2)  # of the first samples
    assert m.violations == 3  # the triangle's three edges
    assert m.sample_accuracy == pytest.approx(4 / 6)
    assert m.any_valid == 1
    assert m.coverage == pytest.approx((1 / 2 + 1) / 2)
    assert m.coverage_limit == pytest.approx((7 / 8 + 1) / 2)
    assert m.total_variation == pytest.approx((1 / 2 + 0) / 2)
    assert m.total_variation_perfect == pytest.approx((1 / 4 + 0) / 2)
    assert m.accuracy_se == pytest.approx(0.5 / 2**0.5)
    assert m.coverage_se == pytest.approx(0.25 / 2**0.5)
    assert (m.num_inputs, m.num_samples) == (2, 3)


def test_nothing_right_and_everything_right():
    task = make()
    puzzles = path_and_triangle(task)
    wrong = measure(task, puzzles, tokens(task, "000 000", "111 001"))
    assert (wrong.accuracy, wrong.sample_accuracy, wrong.any_valid, wrong.coverage) == (0, 0, 0, 0)
    assert wrong.violations == 2 + 3
    right = measure(task, puzzles, tokens(task, "010 012", "012 012"))
    assert (right.accuracy, right.sample_accuracy, right.any_valid, right.coverage, right.violations) == (1, 1, 1, 1, 0)


def test_only_the_first_sample_counts_for_accuracy_and_violations():
    task = make()
    puzzles = path_and_triangle(task)
    first, second = (measure(task, puzzles, tokens(task, *s)) for s in (("010 012", "000 000"), ("000 000", "010 012")))
    assert (first.accuracy, first.violations) == (1, 0)
    assert (second.accuracy, second.violations) == (0, 5)
    assert first.coverage == second.coverage
    assert first.sample_accuracy == second.sample_accuracy == 0.5


@pytest.mark.parametrize("layout", LAYOUTS)
def test_renamed_colors_are_the_same_solution(layout):
    task = make(layout)
    puzzles = path_and_triangle(task)
    names = ["".join(p) for p in itertools.permutations("012")]
    samples = tokens(task, *(f"{p[0]}{p[1]}{p[0]} {p}" for p in names))
    assert solution_ids(task, puzzles, samples).tolist() == [[0, 0]] * 6
    assert measure(task, puzzles, samples).coverage == pytest.approx((1 / 2 + 1) / 2)


def test_invalid_and_repeated_samples_add_no_coverage():
    task = make()
    puzzles = path_and_triangle(task)
    few = ("010 012",)
    many = few * 5 + ("000 000", "001 010", "101 201")
    assert measure(task, puzzles, tokens(task, *many)).coverage == measure(task, puzzles, tokens(task, *few)).coverage


def test_a_token_that_is_no_color_is_wrong_and_no_solution():
    task = make("edge")
    puzzles = path_and_triangle(task)
    samples = tokens(task, "010 012")
    samples[0, 0, 2] = 1
    assert solution_ids(task, puzzles, samples).tolist() == [[-1, 0]]
    m = measure(task, puzzles, samples)
    assert (m.accuracy, m.violations) == (0.5, 1)


def test_coverage_by_input_ignores_what_is_no_solution():
    ids = torch.tensor([[0, -1, 3], [0, -1, 1], [-1, -1, 3]])
    assert coverage_by_input(ids, torch.tensor([4, 2, 4])).tolist() == [0.25, 0, 0.5]


def test_the_limit_is_that_of_the_formula():
    assert coverage_limit(torch.tensor([1, 2, 4]), 2).tolist() == [1, 0.75, 1 - (3 / 4) ** 2]
    assert coverage_limit(torch.tensor([8]), 1).item() == pytest.approx(1 / 8)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_perfect_sampler_covers_what_the_limit_says(layout):
    task = make(layout, vertices=6, train=60, validation=10, test=20, edge_probability=0.4)
    puzzles = task.split("train")
    generator = torch.Generator().manual_seed(0)
    every, repeats, n = torch.arange(60), 30, 10
    found = []
    for _ in range(repeats):
        drawn = torch.stack([puzzles.sample_targets(every, generator) for _ in range(n)])
        m = measure(task, puzzles, drawn)
        assert m.accuracy == m.sample_accuracy == 1
        found.append(m.coverage)
    coverage = torch.tensor(found)
    error = coverage.std() / repeats**0.5
    assert error < 0.01
    assert 0.2 < m.coverage_limit < 0.98  # neither trivial
    assert abs(coverage.mean() - m.coverage_limit) < 4 * error


def test_metrics_are_plain_numbers():
    task = make()
    values = measure(task, path_and_triangle(task), tokens(task, "010 012")).to_dict().values()
    assert {type(v) for v in values} == {int, float}


def test_the_vote_goes_to_the_most_frequent_and_a_tie_to_the_first():
    task = make()
    puzzles = path_and_triangle(task)
    samples = tokens(task, "000 001", "010 012", "101 001", "111 012", "000 012")
    won = selected_answers(task.canonical_form(puzzles.inputs, samples))
    # the path: 010 twice (101 is the same), 000 thrice (111 is the same); the triangle: 012 thrice
    assert won.tolist() == [[0, 0, 0], [0, 1, 2]]
    assert measure(task, puzzles, samples).vote_accuracy == 0.5
    tie = selected_answers(tokens(task, "010 012", "000 001", "000 001", "010 012"))
    assert tie.tolist() == [[0, 1, 0], [0, 1, 2]]


def test_where_not_all_solutions_are_known_there_is_no_coverage():
    task = make()
    puzzles = replace(path_and_triangle(task), has_all_solutions=False)
    m = measure(task, puzzles, tokens(task, "010 000"))
    assert m.coverage is m.coverage_limit is m.coverage_se is None
    assert (m.accuracy, m.violations) == (0.5, 3)


def test_samples_of_p_x_are_measured_one_by_one():
    task = TASKS.get("sudoku_uncond")(TASKS.get("sudoku_uncond").Config(size=4))
    puzzles = task.split("test")
    drawn = puzzles.solutions[[0, 1, 1, 2]].long()[:, None]
    drawn[3, 0, :2] = drawn[3, 0, 0]  # a digit twice in its row, and another gone
    m = measure(task, puzzles, drawn)
    assert (m.accuracy, m.sample_accuracy) == (0.75, 0.75)
    assert m.violations == int(task.violations(None, drawn).sum()) > 0
    assert m.any_valid is m.vote_accuracy is None
    assert m.coverage == pytest.approx(2 / 288)
    assert m.coverage_limit == pytest.approx(1 - (1 - 1 / 288) ** 4)
    assert (m.num_inputs, m.num_samples) == (1, 4)
    assert m.coverage_se is None  # there is one input


def test_one_input_has_no_standard_error_and_shares_are_in_double_precision():
    task = make()
    half = measure(task, path_and_triangle(task), tokens(task, "010 000", "012 001"))
    assert half.any_valid == 0.5  # of the inputs, not of the samples
    m = measure(task, path_and_triangle(task).subset(1), tokens(task, "010", "012", "000"))
    assert (m.accuracy, m.accuracy_se, m.coverage, m.coverage_se) == (1, None, 1, None)
    assert coverage_by_input(torch.tensor([[0], [2]]), torch.tensor([3])).item() == 2 / 3


def test_excess_is_what_the_bound_is_short_of_a_perfect_models():
    m = torch.tensor([1, 2, 8])
    perfect = -m.double().log()
    assert excess(perfect, m).tolist() == pytest.approx([0, 0, 0])
    assert excess(perfect - torch.tensor([0.0, 1.0, 0.5]), m).tolist() == pytest.approx([0, 1, 0.5])
    assert excess(torch.tensor([-math.log(288) - 1] * 3), torch.tensor([288])).tolist() == pytest.approx([1] * 3)
