import csv
import gzip
import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from pyro_gram.errors import ConfigError, InputError
from pyro_gram.system import download
from pyro_gram.tasks.sudoku import data as sudoku_data
from pyro_gram.tasks.sudoku.boards import random_symmetries, solve, symmetry_invariants, transform
from pyro_gram.tasks.sudoku.data import locate_file, read_csv
from pyro_gram.tasks.sudoku.task import Sudoku, SudokuConfig
from tests.conftest import ROOT
from tests.tasks.sudoku_cases import ANSWER, QUESTION, sample_grids

DATA = Path(os.environ.get("PYRO_GRAM_DATA") or ROOT.parent / "shared" / "data")
needs_data = pytest.mark.skipif(
    not (DATA / "sudoku" / "sudoku-extreme-1k_train.csv.gz").is_file(), reason=f"no Sudoku-Extreme under {DATA}"
)


def write(path: Path, rows, header="source,question,answer,rating") -> Path:
    text = "\n".join([header, *rows]) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def random_rows(count, seed) -> list[str]:
    """Return rows of a CSV file of puzzles: random boards with 60 clues."""
    grids = sample_grids(9, count, seed)
    rank = torch.rand(count, 81, generator=torch.Generator().manual_seed(seed)).argsort(-1)
    rows = []
    for i, (grid, is_clue) in enumerate(zip(grids.tolist(), (rank < 60).tolist(), strict=True)):
        question = "".join(str(d) if k else "." for d, k in zip(grid, is_clue, strict=True))
        rows.append(f"s,{question},{''.join(map(str, grid))},{i}")
    return rows


@pytest.mark.parametrize("suffix", ["csv", "csv.gz"])
def test_a_file_is_read_with_its_ratings(tmp_path, suffix):
    puzzles = read_csv(write(tmp_path / f"a.{suffix}", [f"s,{QUESTION},{ANSWER},22", "", *random_rows(3, 0)]), 9)
    assert len(puzzles) == 4
    assert "".join(map(str, puzzles.boards[0])) == QUESTION.replace(".", "0")
    assert "".join(map(str, puzzles.solutions[0])) == ANSWER
    assert puzzles.ratings.tolist() == [22, 0, 1, 2]


def test_question_and_answer_are_enough(tmp_path):
    puzzles = read_csv(write(tmp_path / "a.csv", [f"{ANSWER},{QUESTION}"], header="answer, question"), 9)
    assert puzzles.boards[0, 1] == 4
    assert puzzles.ratings is None


CHANGED_CLUE = QUESTION[:1] + "5" + QUESTION[2:]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (f"s,{QUESTION[:-1]},{ANSWER},1", "line 4: the question has 80 characters, not 81"),
        (f"s,{QUESTION},{ANSWER}1,1", "line 4: the answer has 82 characters, not 81"),
        (f"s,{QUESTION[:-1]}y,{ANSWER},1", "line 4: the question has a character that is neither"),
        (f"s,{QUESTION[:-1]}é,{ANSWER},1", "line 4: the question has a character that is neither"),
        (f"s,{QUESTION},{ANSWER[:-1]}0,1", "line 4: the answer has a character that is no digit"),
        (f"s,{QUESTION},{ANSWER[:-1]}.,1", "line 4: the answer has a character that is no digit"),
        (f"s,{CHANGED_CLUE},{ANSWER},1", "line 4: the answer does not keep the clues"),
        (f"s,{QUESTION},{ANSWER[:-1]}9,1", "line 4: the answer repeats a digit"),
        (f"s,{QUESTION},{ANSWER},hard", "line 4: the rating 'hard' is no number"),
        (
            f"s,4.3002E+80,{ANSWER},1",
            "line 4: the question has 10 characters, not 81 .a spreadsheet turned it into a number",
        ),
        (f"s,{QUESTION}", "line 4: 2 fields, but the header has 4"),
    ],
)
def test_an_error_names_the_file_line_and_fault_of_a_bad_row(tmp_path, row, message, monkeypatch):
    path = write(tmp_path / "bad.csv", [*random_rows(2, 0), row, *random_rows(2, 1), "s,short,row,1"])
    for chunk in (1, 3, 1000):
        monkeypatch.setattr(sudoku_data, "ROWS_AT_ONCE", chunk)
        with pytest.raises(InputError, match=f"bad.csv, {message}"):
            read_csv(path, 9)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "line 1: expected a header with the columns question and answer, found nothing"),
        (b"puzzle,clues\n", "line 1: expected a header .* found 'puzzle,clues'"),
        (b"<!DOCTYPE html>\n<html>", "line 1: expected a header .* found this is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "line 1: expected a header .* Git LFS pointer: run git lfs"),
        (
            "question,answer\n".encode("utf-16-le"),
            "holds zero bytes: .* UTF-16 without a byte-order mark; save it as UTF-8",
        ),
        (b"source,question,answer,rating\n", "holds no puzzles"),
        (b"question,answer\n\xff\xfe\n", "cannot read"),
    ],
)
def test_an_error_names_a_file_without_a_csv_of_puzzles(tmp_path, content, message):
    (tmp_path / "odd.csv").write_bytes(content)
    with pytest.raises(
        InputError, match=f"odd.csv.*{message}" if message != "cannot read" else "cannot read .*odd.csv"
    ):
        read_csv(tmp_path / "odd.csv", 9)


def test_an_error_names_a_gzip_file_that_is_cut_short(tmp_path):
    whole_file = write(tmp_path / "b.csv.gz", random_rows(50, 0)).read_bytes()
    (tmp_path / "b.csv.gz").write_bytes(whole_file[: len(whole_file) // 2])
    with pytest.raises(InputError, match="cannot read .*b.csv.gz"):
        read_csv(tmp_path / "b.csv.gz", 9)


def extreme_task(tmp_path, **changes) -> Sudoku:
    settings = {"train": -1, "validation": 5, "test": -1, **changes}
    return Sudoku(SudokuConfig(size=9, **settings), str(tmp_path))


def test_training_puzzles_symmetric_to_held_out_ones_are_left_out(tmp_path):
    test = random_rows(10, 0)
    _, question, answer, _ = next(csv.reader(test[:1]))
    pair = torch.tensor([[int(c) if c != "." else 0 for c in text] for text in (question, answer)])
    cells, digits = random_symmetries(1, 9, torch.Generator().manual_seed(0))
    image = transform(pair, cells.expand(2, -1), digits.expand(2, -1), first=1)
    texts = ["".join(map(str, row)) for row in image.tolist()]
    (tmp_path / "sudoku").mkdir()
    write(tmp_path / "sudoku" / "sudoku-extreme-1k_test_hard.csv.gz", test)
    write(tmp_path / "sudoku" / "sudoku-extreme-1k_train.csv.gz", [*random_rows(30, 1), f"s,{texts[0]},{texts[1]},99"])
    task = extreme_task(tmp_path, train=0, data_seed=1)
    train, test_split = task.split("train"), task.split("test")
    assert len(test_split) == 10
    assert len(train) == 31 - 5 - 1
    assert 99 not in torch.cat((task.ratings("train"), task.ratings("validation"))).tolist()
    x, y = task.augment(train.inputs, train.solutions, torch.Generator().manual_seed(0))
    assert task.is_valid(x, y).all()
    assert train.num_solutions.tolist() == [1] * len(train)


@pytest.mark.parametrize("chunk", [7, 20_000])
def test_one_file_for_training_and_test_shares_no_puzzle_among_splits(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(sudoku_data, "PUZZLES_AT_ONCE", chunk)
    write(tmp_path / "one.csv", random_rows(60, 0))
    task = extreme_task(tmp_path, train_file="one.csv", test_file="one.csv", train=0, validation=20, test=30)
    splits = [task.split(split) for split in ("train", "validation", "test")]
    assert [len(puzzles) for puzzles in splits] == [10, 20, 30]
    keys = np.concatenate([symmetry_invariants((puzzles.inputs - 1).numpy(), 9) for puzzles in splits])
    assert len(np.unique(keys)) == 60


def test_files_without_puzzles_to_train_or_validate_on_are_an_error(tmp_path):
    write(tmp_path / "one.csv", random_rows(30, 0))
    settings = {"train_file": "one.csv", "test_file": "one.csv"}
    message = "validation = 5, but without images of test puzzles, .*one.csv holds only {} puzzles"
    with pytest.raises(ConfigError, match=message.format(0)):
        extreme_task(tmp_path, **settings, test=0).split("test")
    with pytest.raises(ConfigError, match=message.format(5)):
        extreme_task(tmp_path, **settings, test=25).split("test")
    write(tmp_path / "same.csv", random_rows(1, 1) * 8)
    with pytest.raises(ConfigError, match="same.csv holds no puzzles that could be the train split"):
        extreme_task(tmp_path, train_file="same.csv", test_file="one.csv").split("train")


@pytest.mark.parametrize("suffix", ["csv", "csv.gz"])
def test_provenance_is_names_and_digests_of_the_files_once_read(tmp_path, suffix):
    paths = {
        "train": write(tmp_path / f"train.{suffix}", random_rows(40, 0)),
        "test": write(tmp_path / f"mine.{suffix}", random_rows(20, 1)),
    }
    task = extreme_task(tmp_path, test_file=f"mine.{suffix}")
    assert task.provenance() == {}
    task.split("validation")
    assert task.provenance() == {
        split: f"{path.name} sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}" for split, path in paths.items()
    }


def test_generated_puzzles_come_from_no_file():
    task = Sudoku(SudokuConfig(size=4, train=20, validation=5, test=5))
    task.split("train")
    assert task.provenance() == {}


def test_sizes_of_splits_are_cut_from_the_files_or_refused(tmp_path):
    write(tmp_path / "train.csv", random_rows(40, 0))
    write(tmp_path / "test.csv", random_rows(20, 1))
    task = extreme_task(tmp_path, train=10, test=7)
    assert [len(task.split(split)) for split in ("train", "validation", "test")] == [10, 5, 7]
    full_task = extreme_task(tmp_path, train=0, test=0)
    assert [len(full_task.split(split)) for split in ("train", "validation", "test")] == [35, 5, 20]
    assert torch.equal(full_task.split("test").inputs[:7], task.split("test").inputs)
    assert torch.equal(full_task.split("validation").inputs, task.split("validation").inputs)
    assert torch.equal(full_task.split("train").inputs[:10], task.split("train").inputs)
    for settings, message in (
        ({"train": 36}, "train = 36, but .*train.csv holds only 35 puzzles"),
        ({"test": 21}, "test = 21, but .*test.csv holds only 20 puzzles"),
        ({"validation": 40}, "validation = 40, but .*train.csv holds only 40 puzzles"),
    ):
        with pytest.raises(ConfigError, match=message):
            extreme_task(tmp_path, **settings).split("train")


def test_files_can_be_named(tmp_path):
    write(tmp_path / "mine.csv", random_rows(40, 0))
    write(tmp_path / "other.csv", random_rows(20, 1))
    path = str(tmp_path / "other.csv")
    assert len(extreme_task(tmp_path, train_file="mine.csv", test_file=path, test=0).split("test")) == 20
    with pytest.raises(ConfigError, match="no file 'gone.csv'"):
        extreme_task(tmp_path, train_file="gone.csv", test_file=path).split("test")


def test_a_folder_without_the_files_is_an_error_and_without_a_folder_they_are_downloaded(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="holds neither train.csv nor sudoku-extreme-1k_train.csv.*--data-dir"):
        extreme_task(tmp_path).split("train")
    with pytest.raises(ConfigError, match="--data-dir .*gone' is not a directory"):
        extreme_task(tmp_path / "gone")
    monkeypatch.delenv("PYRO_GRAM_DATA", raising=False)
    downloads = []
    monkeypatch.setattr(sudoku_data, "download", lambda *arguments: downloads.append(arguments))
    locate_file("test.csv", "", None)
    [(url, known_hash, name)] = downloads
    assert url.startswith("https://huggingface.co/datasets/sapientinc/sudoku-extreme/resolve/")
    assert url.endswith("/test.csv")
    assert known_hash.startswith("a2fd52ae")
    assert name == "sudoku/test.csv"
    assert download.download is not sudoku_data.download


@needs_data
def test_the_real_data_is_split_by_its_settings():
    task = Sudoku(SudokuConfig(size=9, test=2000), str(DATA))
    train, validation, test = (task.split(split) for split in ("train", "validation", "test"))
    assert [len(train), len(validation), len(test)] == [872, 128, 2000]
    for split, puzzles in (("train", train), ("validation", validation), ("test", test)):
        assert task.is_valid(puzzles.inputs, puzzles.solutions).all()
        assert len(task.ratings(split)) == len(puzzles)
    keys = [symmetry_invariants((p.inputs - 1).numpy(), 9) for p in (train, validation, test)]
    assert not np.isin(keys[0], np.concatenate(keys[1:])).any()
    for x, y in zip(test.inputs[:5], test.solutions, strict=False):
        assert solve((x - 1).tolist(), 9, limit=2) == [tuple((y - 1).tolist())]
        assert torch.equal(task.parse(task.format_input(x)), x)
    x, y = task.augment(train.inputs, train.solutions, torch.Generator().manual_seed(0))
    assert task.is_valid(x, y).all()
