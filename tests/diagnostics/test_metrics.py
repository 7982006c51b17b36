import itertools
import math
from dataclasses import replace

import pytest
import torch
from scipy.stats import binomtest

from pyro_gram.diagnostics.metrics import (
    count_layers,
    coverage_by_input,
    coverage_limit,
    excess,
    measure,
    selected_answers,
    solution_ids,
    wilson_interval,
)
from pyro_gram.registry import TASKS
from pyro_gram.tasks.base import PuzzleSet
from pyro_gram.tasks.coloring.task import Coloring, ColoringConfig
from tests.conftest import SMALL_TASKS, build_case

LAYOUTS = ("vertex", "edge")
VERTICES = SMALL_TASKS["coloring"]["vertices"]


def make_task(layout="vertex", vertices=3, **changes):
    settings = {"train": 2, "validation": 1, "test": 1, **changes}
    return Coloring(ColoringConfig(vertices=vertices, layout=layout, **settings))


def path_and_triangle(task):
    """Return two graphs: the path 0-1-2 with the solutions 010 and 012, and the triangle with the solution 012."""
    adjacency = torch.tensor([[[0, 1, 0], [1, 0, 1], [0, 1, 0]], [[0, 1, 1], [1, 0, 1], [1, 1, 0]]]).bool()
    first = task.spec.output_classes - 3
    solutions = torch.tensor([[0, 1, 0], [0, 1, 2], [0, 1, 2]]) + first
    return PuzzleSet(task.encode(adjacency), solutions, torch.tensor([0, 2, 3]))


def tokens(task, *samples):
    """Return the tokens of samples. The sample ``"010 012"`` gives the colours of the vertices of two inputs."""
    first = task.spec.output_classes - 3
    return torch.tensor([[[int(c) for c in word] for word in sample.split()] for sample in samples]) + first


@pytest.mark.parametrize("layout", LAYOUTS)
def test_hand_made_samples_have_known_metrics(layout):
    task = make_task(layout)
    puzzles = path_and_triangle(task)
    samples = tokens(task, "010 000", "202 120", "001 012")
    assert solution_ids(task, puzzles, samples).tolist() == [[0, -1], [0, 0], [-1, 0]]
    m = measure(task, puzzles, samples)
    assert m.accuracy == pytest.approx(1 / 2)  # only the first samples count
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
    task = make_task()
    puzzles = path_and_triangle(task)
    wrong_metrics = measure(task, puzzles, tokens(task, "000 000", "111 001"))
    assert (wrong_metrics.accuracy, wrong_metrics.sample_accuracy, wrong_metrics.any_valid, wrong_metrics.coverage) == (
        0,
        0,
        0,
        0,
    )
    assert wrong_metrics.violations == 2 + 3
    right_metrics = measure(task, puzzles, tokens(task, "010 012", "012 012"))
    assert (
        right_metrics.accuracy,
        right_metrics.sample_accuracy,
        right_metrics.any_valid,
        right_metrics.coverage,
        right_metrics.violations,
    ) == (1, 1, 1, 1, 0)


def test_only_the_first_sample_counts_for_accuracy_and_violations():
    task = make_task()
    puzzles = path_and_triangle(task)
    first, second = (measure(task, puzzles, tokens(task, *s)) for s in (("010 012", "000 000"), ("000 000", "010 012")))
    assert (first.accuracy, first.violations) == (1, 0)
    assert (second.accuracy, second.violations) == (0, 5)
    assert first.coverage == second.coverage
    assert first.sample_accuracy == second.sample_accuracy == 0.5


@pytest.mark.parametrize("layout", LAYOUTS)
def test_renamed_colors_are_the_same_solution(layout):
    task = make_task(layout)
    puzzles = path_and_triangle(task)
    names = ["".join(p) for p in itertools.permutations("012")]
    samples = tokens(task, *(f"{p[0]}{p[1]}{p[0]} {p}" for p in names))
    assert solution_ids(task, puzzles, samples).tolist() == [[0, 0]] * 6
    assert measure(task, puzzles, samples).coverage == pytest.approx((1 / 2 + 1) / 2)


def test_invalid_and_repeated_samples_add_no_coverage():
    task = make_task()
    puzzles = path_and_triangle(task)
    one = ("010 012",)
    repeated_samples = one * 5 + ("000 000", "001 010", "101 201")
    coverages = [measure(task, puzzles, tokens(task, *samples)).coverage for samples in (one, repeated_samples)]
    assert coverages[0] == coverages[1]


def test_a_token_that_is_not_a_color_is_wrong():
    task = make_task("edge")
    puzzles = path_and_triangle(task)
    samples = tokens(task, "010 012")
    samples[0, 0, 2] = 1
    assert solution_ids(task, puzzles, samples).tolist() == [[-1, 0]]
    m = measure(task, puzzles, samples)
    assert (m.accuracy, m.violations) == (0.5, 1)


def test_coverage_ignores_wrong_samples():
    ids = torch.tensor([[0, -1, 3], [0, -1, 1], [-1, -1, 3]])
    assert coverage_by_input(ids, torch.tensor([4, 2, 4])).tolist() == [0.25, 0, 0.5]


def test_the_coverage_limit_follows_its_formula():
    assert coverage_limit(torch.tensor([1, 2, 4]), 2).tolist() == [1, 0.75, 1 - (3 / 4) ** 2]
    assert coverage_limit(torch.tensor([8]), 1).item() == pytest.approx(1 / 8)


def test_a_perfect_sampler_reaches_the_coverage_limit():
    task = make_task(vertices=6, train=60, validation=10, test=20, edge_probability=0.4)
    puzzles = task.split("train")
    generator = torch.Generator().manual_seed(0)
    index, repeats, n = torch.arange(60), 12, 10
    coverages = []
    for _ in range(repeats):
        samples = torch.stack([puzzles.sample_targets(index, generator) for _ in range(n)])
        m = measure(task, puzzles, samples)
        assert m.accuracy == m.sample_accuracy == 1
        coverages.append(m.coverage)
    coverage = torch.tensor(coverages)
    error = coverage.std() / repeats**0.5
    assert error < 0.02
    assert 0.2 < m.coverage_limit < 0.98  # the limit is neither 0 nor 1
    assert abs(coverage.mean() - m.coverage_limit) < 4 * error


def test_metrics_are_plain_numbers():
    task = make_task()
    values = measure(task, path_and_triangle(task), tokens(task, "010 012")).to_dict().values()
    assert {type(v) for v in values} == {int, float}


def test_the_vote_goes_to_the_most_frequent_and_a_tie_to_the_first():
    task = make_task()
    puzzles = path_and_triangle(task)
    samples = tokens(task, "000 001", "010 012", "101 001", "111 012", "000 012")
    votes = selected_answers(task.canonical_form(puzzles.inputs, samples))
    # The path has 010 twice (101 is the same answer) and 000 thrice (111 is the same). The triangle has 012 thrice.
    assert votes.tolist() == [[0, 0, 0], [0, 1, 2]]
    assert measure(task, puzzles, samples).vote_accuracy == 0.5
    tie = selected_answers(tokens(task, "010 012", "000 001", "000 001", "010 012"))
    assert tie.tolist() == [[0, 1, 0], [0, 1, 2]]


def test_coverage_needs_all_solutions():
    task = make_task()
    puzzles = replace(path_and_triangle(task), has_all_solutions=False)
    m = measure(task, puzzles, tokens(task, "010 000"))
    assert m.coverage is m.coverage_limit is m.coverage_se is None
    assert (m.accuracy, m.violations) == (0.5, 3)


def test_samples_of_p_x_are_measured_one_by_one():
    task = TASKS.get("sudoku_uncond")(TASKS.get("sudoku_uncond").Config(size=4))
    puzzles = task.split("test")
    samples = puzzles.solutions[[0, 1, 1, 2]].long()[:, None]
    samples[3, 0, :2] = samples[3, 0, 0]  # one digit is twice in its row, and another digit is missing
    m = measure(task, puzzles, samples)
    assert (m.accuracy, m.sample_accuracy) == (0.75, 0.75)
    assert m.violations == int(task.violations(None, samples).sum()) > 0
    assert m.any_valid is m.vote_accuracy is None
    assert m.coverage == pytest.approx(2 / 288)
    assert m.coverage_limit == pytest.approx(1 - (1 - 1 / 288) ** 4)
    assert (m.num_inputs, m.num_samples) == (1, 4)
    assert m.coverage_se is None  # there is one input


def test_one_input_has_no_standard_error_and_shares_are_in_double_precision():
    task = make_task()
    half = measure(task, path_and_triangle(task), tokens(task, "010 000", "012 001"))
    assert half.any_valid == 0.5  # a share of the inputs, not of the samples
    m = measure(task, path_and_triangle(task).subset(1), tokens(task, "010", "012", "000"))
    assert (m.accuracy, m.accuracy_se, m.coverage, m.coverage_se) == (1, None, 1, None)
    assert coverage_by_input(torch.tensor([[0], [2]]), torch.tensor([3])).item() == 2 / 3


def test_the_excess_of_a_perfect_model_is_0():
    m = torch.tensor([1, 2, 8])
    perfect = -m.double().log()
    assert excess(perfect, m).tolist() == pytest.approx([0, 0, 0])
    assert excess(perfect - torch.tensor([0.0, 1.0, 0.5]), m).tolist() == pytest.approx([0, 1, 0.5])
    assert excess(torch.tensor([-math.log(288) - 1] * 3), torch.tensor([288])).tolist() == pytest.approx([1] * 3)


# ---- intervals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("hits", "count", "level"), [(0, 1, 0.95), (1, 1, 0.9), (254, 255, 0.95), (108, 1000, 0.9)])
def test_the_interval_of_a_count_equals_that_of_scipy(hits, count, level):
    expected = binomtest(hits, count).proportion_ci(confidence_level=level, method="wilson")
    assert wilson_interval(hits / count, count, level) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_the_interval_of_a_share_of_1_shrinks_with_the_inputs():
    small, large = wilson_interval(1.0, 255), wilson_interval(1.0, 1000)
    assert small[1] == large[1] == 1
    assert small[0] == pytest.approx(0.98516, abs=1e-5)
    assert small[0] < large[0] < 1


def test_the_interval_of_a_mean_lies_between_those_of_the_nearest_counts():
    low, high = wilson_interval(0.9982, 255)
    assert wilson_interval(254 / 255, 255)[0] < low < wilson_interval(1.0, 255)[0] < 0.9982 < high < 1


@pytest.mark.parametrize(("share", "count"), [(1.01, 5), (-0.1, 5), (float("nan"), 5), (0.5, 0)])
def test_an_interval_needs_a_share_of_inputs(share, count):
    with pytest.raises(ValueError, match="a share of inputs lies between 0 and 1"):
        wilson_interval(share, count)


# ---- the cost of a sample ----------------------------------------------------------------------------------------


def layers_of(depth=1, layers=2, **changes):
    case = build_case(model=changes.pop("model", {}) | {"layers": layers}, **changes)
    return count_layers(case.solver.model, None if case.x is None else case.x[:1], depth)


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        ({"depth": 16, "model": {"transitions": 3, "low_steps": 4}}, 16 * 3 * (4 + 1) * 2),
        ({"depth": 4, "model_name": "trm", "model": {"transitions": 3, "low_steps": 6}}, 4 * 3 * 7 * 2),
        ({"depth": 4, "model_name": "hrm", "model": {"transitions": 2, "low_steps": 2}}, 4 * 2 * 3 * 2),
        ({"model_name": "looped", "model": {"transitions": 8, "low_steps": 1}}, 8 * 2),
        ({"depth": 2, "prior_name": "flow"}, 2 * 2 * 3 * 2),  # priors have no layers
        ({"depth": 3, "task_name": "sudoku_uncond"}, 3 * 2 * 3 * 2),  # a model without input
        ({"layers": 8, "model_name": "direct"}, 8),
        ({"layers": 3, "model_name": "autoregressive"}, VERTICES * 3),
        ({"layers": 3, "model_name": "mdlm", "model": {"sampling_steps": 16}}, 16 * 3),
        ({"layers": 3, "model_name": "mdlm"}, VERTICES * 3),
        ({"layers": 3, "model_name": "d3pm", "model": {"diffusion_steps": 10}}, 10 * 3),
        ({"layers": 3, "model_name": "vae"}, 2 * 3),
    ],
)
def test_a_sample_passes_through_the_layers_of_every_pass(changes, count):
    assert layers_of(**changes) == count


def test_counting_layers_leaves_no_hooks():
    case = build_case()
    count_layers(case.solver.model, case.x[:1], 1)
    assert not any(module._forward_hooks for module in case.solver.model.modules())
