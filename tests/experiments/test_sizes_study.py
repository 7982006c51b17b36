"""Test ``sizes.py``, which measures checkpoints on inputs of many sizes, with small untrained models."""

from dataclasses import replace

import pytest

from experiments.studies import sizes
from pyro_gram.build import build
from pyro_gram.checkpoint import save_model
from pyro_gram.system.cli import call
from pyro_gram.system.files import read_json
from tests.conftest import small_config

MIXER = {"model": {"mixer": "relations", "heads": 4}}
LATIN = {"task_name": "latin", "task": {"size": 4, "min_size": 3, "train": 40, "validation": 4, "test": 6}, **MIXER}


@pytest.fixture
def save(tmp_path):
    """Return a function that saves an untrained model and returns its file."""

    def save_small(name, seed=0, **settings):
        config = replace(small_config(**settings), seed=seed)
        path = tmp_path / f"{name}.safetensors"
        save_model(path, build(config))
        return str(path)

    return save_small


def run(tmp_path, *options):
    out = tmp_path / "sizes.json"
    assert call(sizes.main, [*options, "--inputs", "2", "--out", str(out)]) == 0
    return read_json(out), out.with_suffix(".md").read_text().splitlines()


def test_each_size_has_a_row_over_all_seeds(save, tmp_path):
    study, lines = run(tmp_path, save("a", seed=3, **LATIN), save("b", seed=5, **LATIN))
    assert set(study["checkpoints"]) == {"seed3", "seed5"}
    for one in study["checkpoints"].values():
        assert set(one["groups"]) == {"3 rows", "4 rows"}
        for row in one["groups"].values():
            assert row["inputs"] == 2
            assert 0 <= row["right"] <= row["solved"] <= 1
            assert row["coverage"] == pytest.approx(row["coverage_ratio"] * row["coverage_limit"])
            assert row["coverage_limit"] > 0.5
    assert lines[0].split("|")[1:5] == [" inputs ", " number ", " right samples ", " vote "]
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["3 rows", "4 rows"]


def test_a_seed_is_added_to_those_that_were_measured(save, tmp_path, capsys):
    first, _ = run(tmp_path, save("a", seed=3, **LATIN))
    both, _ = run(tmp_path, save("b", seed=5, **LATIN), "--add")
    assert both["checkpoints"]["seed3"] == first["checkpoints"]["seed3"]
    assert list(both["checkpoints"]) == ["seed3", "seed5"]
    options = [save("c", seed=6, **LATIN), "--add", "--inputs", "3", "--out", str(tmp_path / "sizes.json")]
    assert call(sizes.main, options) == 2
    assert "holds other inputs" in capsys.readouterr().err


def test_queens_are_also_measured_on_boards_that_training_never_saw(save, tmp_path, monkeypatch):
    monkeypatch.setattr(sizes, "QUEENS_SIZES", (8, 13))
    task = {"size": 6, "min_size": 5, "layout": "square", "validation": 8}
    study, lines = run(tmp_path, save("q", task_name="nqueens", task=task, **MIXER))
    groups = study["checkpoints"]["seed0"]["groups"]
    assert list(groups) == ["5 rows", "6 rows", "8 rows, never trained", "13 rows, never trained"]
    assert all(row["exact_solved"] == 1 for row in groups.values())
    assert "coverage" not in groups["13 rows, never trained"]  # its solutions are too many to count
    assert "exact, ms" in lines[0]


def test_graphs_are_also_coloured_by_other_solvers(save, tmp_path, monkeypatch):
    monkeypatch.setattr(sizes, "RANDOM_SIZES", (9,))
    monkeypatch.setattr(sizes, "TIMED_SIZE", 9)
    monkeypatch.setattr(sizes, "NUM_SAMPLES", 2)
    task = {"layout": "graph", "min_vertices": 5, "vertices": 6, "train": 60, "validation": 4, "test": 6}
    task |= {"colors": 5, "planted_graphs": 8}
    study, _ = run(tmp_path, save("c", task=task, **MIXER))
    one = study["checkpoints"]["seed0"]
    assert one["single_seconds"] > 0
    assert {"random, 5 vertices", "random, 9 vertices", "Petersen graph"} <= set(one["groups"])
    assert one["groups"]["planted, 20 vertices, 4 colours"]["exact_solved"] == 1
    assert one["groups"]["Mycielski graph, 23 vertices"]["dsatur_solved"] == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([LATIN, {**LATIN, "seed": 0}], "two of the checkpoints have the same seed"),
        ([LATIN, {}], "checkpoints of several tasks (coloring, latin)"),
        ([{}], "solves inputs of one size"),
    ],
)
def test_checkpoints_that_do_not_belong_together_are_refused(settings, message, save, tmp_path, capsys):
    paths = [save(f"m{i}", **one) for i, one in enumerate(settings)]
    assert call(sizes.main, [*paths, "--out", str(tmp_path / "sizes.json")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "sizes.json").exists()
