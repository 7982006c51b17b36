"""Files from strangers are safe to read: sizes are checked before memory is allocated, and no code in a file runs."""

import gzip
import json
import struct

import pytest
import torch

from pyro_gram.checkpoint import load, outline_misfits, save_model
from pyro_gram.diagnostics.report import Report, Row, Section, write_report
from pyro_gram.diagnostics.verdicts import Verdict
from pyro_gram.errors import CheckpointError, InputError, UserError
from pyro_gram.runs.state import load_state
from pyro_gram.system import files
from pyro_gram.system.cli import call
from pyro_gram.system.files import open_tensor_file, read_json
from pyro_gram.system.text import read_bytes
from pyro_gram.tasks import mnist
from pyro_gram.tasks.mnist import read_images
from pyro_gram.tasks.sudoku.data import read_csv
from tests.conftest import build_small, covering_program_names, small_config
from tests.test_checkpoint import model_file, rewrite, state_file, trainer_of  # noqa: F401 (fixtures)

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 12345\n"
PAGE = b"\xef\xbb\xbf\n<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>\n"
WRONG_FILES = {
    "pointer": (POINTER, "this is a Git LFS pointer: run git lfs pull"),
    "page": (PAGE, "this is a web page: download the file itself"),
    "gzip": (gzip.compress(b"x" * 100, mtime=0), "this is a gzip file: unpack it"),
    "zip": (b"PK\x03\x04" + bytes(100), "only safetensors are read"),
    "nothing": (b"", "it is empty"),
}


@pytest.mark.parametrize("kind", WRONG_FILES)
def test_a_wrong_file_given_as_a_checkpoint_is_described(kind, tmp_path, capsys):
    data, message = WRONG_FILES[kind]
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=message):
        load(path)
    from experiments import solve

    assert call(solve.main, ["--checkpoint", str(path)]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("kind", ["pointer", "page"])
def test_a_wrong_file_given_as_json_images_or_csv_is_described(kind, tmp_path):
    data, message = WRONG_FILES[kind]
    path = tmp_path / "results.json"
    path.write_bytes(data)
    with pytest.raises(UserError, match=message):
        read_json(path)
    with pytest.raises(InputError, match=message):
        read_images(path)
    with pytest.raises(InputError, match=message):
        read_csv(path, 4)


def safetensors_with(length, shape=(4,), end=16, tensor_bytes=b"\0" * 16):
    """Return a file with one tensor as bytes. Its header claims ``length``, and the tensor's ``shape`` and ``end``."""
    text = json.dumps({"w": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + tensor_bytes


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (safetensors_with(2**60), "cut short"),
        (safetensors_with(2**62 + 1), "cut short"),
        (safetensors_with(None, (2**40,), 2**42), "not a readable safetensors file"),
        (safetensors_with(None, (2**63, 2**63), 16), "not a readable safetensors file"),
        (struct.pack("<Q", 2**25) + b" " * 2**25, "its header has 33,554,432 bytes, and at most 16,777,216 are read"),
        (struct.pack("<Q", 10**5) + b"[" * 10**5, "not a readable safetensors file"),
    ],
)
def test_a_header_that_claims_too_much_is_refused(data, message, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=message):
        load(path)


def test_a_header_nested_without_end_is_refused(model_file):  # noqa: F811
    rewrite(model_file, pyro_gram="[" * 10**5)
    with pytest.raises(CheckpointError, match="damaged header"):
        load(model_file)


HUGE = [
    {"width": 2**62, "hidden": 2**62, "heads": 2},
    {"layers": 10**9},
    {"hidden": 10**12},
]


@pytest.mark.parametrize("changes", HUGE, ids=str)
def test_a_config_of_a_huge_model_is_refused_before_memory_is_allocated(changes, model_file):  # noqa: F811
    rewrite(model_file, lambda header: header["config"]["model"].update(changes))
    with pytest.raises(CheckpointError, match="model.safetensors"):
        load(model_file)


def test_a_config_of_huge_heads_is_refused(model_file):  # noqa: F811
    rewrite(model_file, lambda header: header["config"]["heads"].update(hidden=2**40, attention_heads=2))
    with pytest.raises(CheckpointError, match="they describe no model that can be built"):
        load(model_file)


def test_a_state_that_does_not_fit_is_refused_before_its_tensors_are_read(state_file, monkeypatch):  # noqa: F811
    rewrite(state_file, tensors=lambda t: t.update({"average/module.model.h0": torch.ones(2)}))
    config = small_config()
    trainer = trainer_of(config)
    monkeypatch.setattr("pyro_gram.system.files.TensorFile.tensors", lambda self: pytest.fail("the tensors were read"))
    with pytest.raises(CheckpointError, match="does not fit its own config"):
        load_state(state_file, config, trainer)


@pytest.mark.parametrize("names", covering_program_names(), ids=lambda names: "-".join(names.values()))
def test_the_shapes_of_every_program_are_known_without_building_it(names, tmp_path):
    """A file with other shapes than its model is refused before memory is allocated for the model."""
    solver = build_small(**names)
    config = solver.config
    path = tmp_path / "model.safetensors"
    save_model(path, solver)
    assert outline_misfits(open_tensor_file(path, "model"), config, solver.task) == []
    rewrite(path, tensors=lambda t: t.update(stray=torch.ones(1)))
    assert outline_misfits(open_tensor_file(path, "model"), config, solver.task) == ["stray"]


# ---- other files -------------------------------------------------------------------------------------------------


def test_a_gz_file_is_unpacked_up_to_the_limit_only(tmp_path):
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(bytes(2**22)))
    assert len(path.read_bytes()) < 2**14
    with pytest.raises(InputError, match=r"bomb.gz holds more than 1000 bytes, the most that is read"):
        read_bytes(path, 1000)
    assert len(read_bytes(path)) == 2**22


def test_a_file_of_images_is_compared_with_its_size_first(tmp_path, monkeypatch):
    monkeypatch.setattr(mnist, "MAX_BYTES", 100)
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(struct.pack(">IIII", 2051, 2**32 - 1, 28, 28) + bytes(84))
    with pytest.raises(InputError, match="its header announces"):
        read_images(path)
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(InputError, match="holds more than 100 bytes, the most that is read"):
        read_images(path)


def test_an_endless_line_is_refused_before_it_fills_the_memory(tmp_path):
    path = tmp_path / "train.csv.gz"
    path.write_bytes(gzip.compress(b"question,answer\n" + b"1" * 2**22))
    with pytest.raises(InputError, match=r"train.csv.gz has a line of more than"):
        read_csv(path, 4)


@pytest.mark.parametrize("text", ["[" * 10**5, "{" * 3, "NaN,", '{"a": 1', "1" * 5000])
def test_invalid_json_is_a_user_error(text, tmp_path):
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(UserError, match="cannot be read as JSON"):
        read_json(path)


def test_a_large_json_file_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_JSON_BYTES", 10)
    path = tmp_path / "results.json"
    path.write_text("[1, 2, 3, 4, 5]")
    with pytest.raises(UserError, match="results.json holds more than 10 bytes, the most that is read"):
        read_json(path)


def test_running_out_of_memory_is_a_one_line_error(capsys):
    def main(argv):
        raise MemoryError("Unable to allocate 9.31 GiB")

    assert call(main, []) == 2
    assert capsys.readouterr().err == "error: not enough memory (Unable to allocate 9.31 GiB)\n"


SCRIPT = '<script>alert("x")</script>'


def test_a_script_in_a_name_is_escaped_in_the_report(tmp_path):
    page = tmp_path / "report.html"
    section = Section(SCRIPT, SCRIPT, reason=SCRIPT)
    verdict = Verdict(SCRIPT, "good", SCRIPT, SCRIPT, SCRIPT)
    write_report(page, Report(SCRIPT, SCRIPT, [verdict], [Row(SCRIPT, SCRIPT)], [section], {SCRIPT: {SCRIPT: SCRIPT}}))
    assert "<script" not in page.read_text()
    assert page.read_text().count("&lt;script&gt;") >= 10


@pytest.mark.slow
def test_a_script_in_a_file_name_is_escaped_in_the_diagnosis(model_file, tmp_path):  # noqa: F811
    from experiments import diagnose

    path = tmp_path / "<script>alert(1)<&$x_{$>.safetensors"  # Matplotlib reads dollars as mathematics
    model_file.rename(path)
    arguments = ["--checkpoint", str(path), "--out", str(tmp_path / "out"), "--inputs", "2", "--depth", "1"]
    assert call(diagnose.main, arguments) == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;&amp;$x_{$&gt;" in page
