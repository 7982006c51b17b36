"""JSON, TOML and metrics files are read in every encoding. If a file is of another kind, the error says which kind."""

import gzip
import json

import pytest

from experiments.run import parse
from pyro_gram.errors import UserError
from pyro_gram.presets import read_preset
from pyro_gram.registry import TASKS
from pyro_gram.runs.run import read_rows, truncate_metrics
from pyro_gram.system.files import read_json, read_toml_tables
from pyro_gram.tasks import advice
from pyro_gram.tasks.coloring.task import Coloring, ColoringConfig

ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-32")
PRESET = """# é\n[cpu.names]\nmodel = "gram"\n[cpu.task]\nvertices = 6\n[cpu.model]\nwidth = 16\n"""


@pytest.fixture(params=ENCODINGS)
def encode(request):
    """Return a function that encodes a text in one of the encodings, with Windows line endings."""
    return lambda text: text.replace("\n", "\r\n").encode(request.param)


def test_json_is_the_same_in_every_encoding(tmp_path, encode):
    value = {"a": ["é", 1.5, None]}
    path = tmp_path / "a.json"
    path.write_bytes(encode(json.dumps(value, indent=1, ensure_ascii=False)))
    assert read_json(path) == value
    path.write_bytes(gzip.compress(path.read_bytes()))
    assert read_json(path) == value


def test_presets_are_the_same_in_every_encoding(tmp_path, encode):
    (tmp_path / "coloring.toml").write_bytes(encode(PRESET))
    config = read_preset(tmp_path, "coloring", "cpu")
    assert (config.task.vertices, config.model.width) == (6, 16)


def test_metrics_are_the_same_in_every_encoding(tmp_path, encode):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(encode('{"batch": 1}\n\n{"batch": 2}\n'))
    assert read_rows(path) == [{"batch": 1}, {"batch": 2}]


def test_a_byte_order_mark_before_the_metrics_costs_no_line_on_resume(tmp_path):
    path = tmp_path / "metrics.jsonl"
    line = json.dumps({"batch": 1, "seconds": 1, "reconstruction": 1, "kl": 1, "beta": 1})
    path.write_bytes(f"{line}\r\n{line}\r\n".encode("utf-8-sig"))
    assert truncate_metrics(path, 2) == 0
    assert path.read_text() == f"{line}\n{line}\n"


def test_advice_names_a_fitting_checkpoint_in_every_encoding(tmp_path, monkeypatch, encode):
    monkeypatch.setattr(advice, "CHECKPOINTS", tmp_path)
    config = {"names": {"task": "coloring"}, "task": {"vertices": 9}}
    (tmp_path / "nine.json").write_bytes(encode(json.dumps(config)))
    (tmp_path / "nine.safetensors").write_bytes(b"")
    (tmp_path / "notes.json").write_text("<html>")
    assert advice.suggest_checkpoint(Coloring(ColoringConfig()), 9) == (
        f"--checkpoint {tmp_path / 'nine.safetensors'} solves vertices = 9"
    )


@pytest.mark.parametrize(
    ("task", "size"),
    [("coloring", 14), ("coloring", 8), ("nqueens", 12), ("nqueens", 25), ("latin", 4), ("latin", 8), ("sudoku", 9)],
)
def test_the_advised_command_trains_a_model_of_this_size(task, size):
    text = advice.suggest_training(TASKS.get(task), task, size)
    command = text.partition("train one: python experiments/run.py ")[2]
    config, _ = parse(command.split())
    assert size in config.task.solved_sizes


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\nsize 3\n", "this is a Git LFS pointer: run git lfs pull"),
        (b"\xef\xbb\xbf<!DOCTYPE html>\n<html></html>", "this is a web page: download the file itself"),
        ("<html></html>".encode("utf-16"), "cannot be read as"),
        (gzip.compress(b"<", mtime=0), "cannot be read as (JSON: Expecting|TOML: Invalid)"),
        (gzip.compress(b"{}", mtime=0)[:-5], "the .gz is damaged or cut short"),
        (b"Fran\xe7ois", "is not UTF-8 .byte 0xE7"),
        (b"a = \x00", "is not a text file|holds zero bytes"),
        (b"[[[", "cannot be read as"),
    ],
)
@pytest.mark.parametrize("read", [read_json, read_toml_tables])
def test_another_type_of_file_is_described_in_one_sentence(tmp_path, read, data, message):
    path = tmp_path / "x"
    path.write_bytes(data)
    with pytest.raises(UserError, match=message) as error:
        read(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    for read in (read_json, read_toml_tables):
        with pytest.raises(UserError, match=f"^{tmp_path}/gone does not exist$"):
            read(tmp_path / "gone")
        with pytest.raises(UserError, match=f"^cannot read {tmp_path}: Is a directory$"):
            read(tmp_path)


@pytest.mark.parametrize(
    ("text", "key"), [("cpu = 3", "cpu"), ("[cpu]\ntask = 3", "cpu.task"), ("[[cpu]]\nx = 1", "cpu")]
)
def test_the_key_of_a_preset_that_is_not_a_table_is_named(tmp_path, text, key):
    (tmp_path / "coloring.toml").write_text(text)
    with pytest.raises(UserError, match=f"coloring.toml: {key} must be a table"):
        read_preset(tmp_path, "coloring", "cpu")


# ---- tables that extend others -------------------------------------------------------------------------------------


def test_a_table_has_the_fields_of_the_table_that_it_extends(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text(
        '[big]\nextends = "small"\n[big.task]\nsize = 9\n[small.task]\nsize = 4\nseed = 1\n[small.model]\nwidth = 8\n'
    )
    tables = read_toml_tables(path)
    assert tables["big"] == {"task": {"size": 9, "seed": 1}, "model": {"width": 8}}
    assert tables["small"] == {"task": {"size": 4, "seed": 1}, "model": {"width": 8}}


@pytest.mark.parametrize("base", ['"tiny"', '"big"', '"other"', "3", '["small"]'])
def test_a_table_extends_only_a_table_that_extends_none(tmp_path, base):
    path = tmp_path / "a.toml"
    path.write_text(f'[big]\nextends = {base}\n[other]\nextends = "small"\n[small.task]\nsize = 4\n')
    with pytest.raises(UserError, match=r"\[big\] extends .*; it can extend small$"):
        read_toml_tables(path)
