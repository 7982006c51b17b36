"""Test that the metrics of the lookup in the training answers equal those of brute force."""

import pytest
import torch

from experiments.studies import lookup
from experiments.tables.headline import LOOKUP
from pyro_gram.system.cli import call
from pyro_gram.system.files import read_json
from pyro_gram.tasks.nqueens.boards import all_solutions, completions
from pyro_gram.tasks.nqueens.task import NQueens, NQueensConfig


def test_the_expected_metrics_are_those_of_many_lookups():
    puzzles = completions(all_solutions(7), 1, 2).select(torch.arange(0, 300, 5))
    answers = all_solutions(7)[::3]
    generator = torch.Generator().manual_seed(0)
    has_match, coverages = [], []
    for i, x in enumerate(puzzles.inputs):
        matches = [y for y in answers.tolist() if all(not g or g == c + 1 for g, c in zip(x.tolist(), y, strict=True))]
        solutions = {tuple(y) for y in puzzles.solutions_of(i).tolist()}
        assert {tuple(y) for y in matches} <= solutions
        has_match.append(bool(matches))
        for _ in range(300):
            samples = (
                torch.randint(len(matches), (lookup.NUM_SAMPLES,), generator=generator).tolist() if matches else []
            )
            coverages.append(len(set(samples)) / len(solutions))
    results = lookup.lookup_metrics(puzzles, answers)
    assert 0 < results["sample_accuracy"] < 1
    assert results["sample_accuracy"] == pytest.approx(sum(has_match) / len(has_match))
    assert results["coverage"] == pytest.approx(sum(coverages) / len(coverages), abs=0.01)
    assert results["coverage"] < results["coverage_all"]
    assert results["answers"] == len(answers)


def test_the_lookup_solves_the_split_by_input_and_nothing_of_the_split_by_orbit():
    by_input, by_orbit = lookup.measure_split(7, "input"), lookup.measure_split(7, "orbit")
    assert by_input["images"]["coverage_all"] == 1
    assert by_orbit["symmetric_copies"] == 0
    for kind in ("plain", "images"):
        assert by_orbit[kind]["sample_accuracy"] == by_orbit[kind]["coverage_all"] == 0
    task = NQueens(NQueensConfig(size=7))
    train = {tuple(x) for x in task.board(task.split("train").inputs).flatten(1).tolist()}
    num_with_image = 0
    for board in task.board(task.split("test").inputs):
        images = [torch.rot90(b, k) for b in (board, board.T) for k in range(4)]
        num_with_image += any(tuple(b.flatten().tolist()) in train for b in images)
    assert by_input["symmetric_copies"] == num_with_image > 0


def test_the_committed_figures_are_those_of_the_script(tmp_path):
    assert call(lookup.main, ["--sizes", "8", "--out", str(tmp_path / "lookup.json")]) == 0
    assert read_json(tmp_path / "lookup.json")["problems"]["nqueens8"] == read_json(LOOKUP)["problems"]["nqueens8"]
