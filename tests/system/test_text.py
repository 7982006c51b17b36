"""A text is read the same in every encoding, gzipped or not. Other files are refused with an error of one sentence."""

import gzip
import io

import pytest

from pyro_gram.errors import InputError
from pyro_gram.system import text as reader
from pyro_gram.system.text import open_lines, read_bytes, read_text

TEXT = "# é\nGCR`v_\n"
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-32")


@pytest.mark.parametrize("encoding", [*ENCODINGS, "utf-16-be with its mark"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("is_gzipped", [False, True])
def test_a_text_is_the_same_in_every_encoding(tmp_path, encoding, end, is_gzipped):
    content = TEXT.replace("\n", end)
    data = b"\xfe\xff" + content.encode("utf-16-be") if "mark" in encoding else content.encode(encoding)
    data = gzip.compress(data) if is_gzipped else data
    (tmp_path / "a.txt").write_bytes(data)
    assert read_text(tmp_path / "a.txt") == TEXT
    assert read_text(io.BytesIO(data), "stdin") == TEXT
    with open_lines(tmp_path / "a.txt", 1000) as lines:
        assert "".join(lines) == content


def test_marks_inside_concatenated_files_are_dropped():
    assert reader.decode("A\n".encode("utf-8-sig") * 2, "x") == "A\nA\n"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"ok\nFran\xe7ois", r"^x is not UTF-8 \(byte 0xE7 in line 2\): save it as UTF-8"),
        (b"\xff\xfe\x00", "begins as UTF-16 but is damaged"),
        ("GCR`v_".encode("utf-16-le"), "zero bytes: .* UTF-16 without a byte-order mark"),
        (gzip.compress(b"GCR`v_", mtime=0)[:-9], r"cannot read x: the \.gz is damaged or cut short"),
        (gzip.compress(b"a" * 5000, mtime=0), "x holds more than 1000 bytes"),
        (b"a" * 1001, "x holds more than 1000 bytes"),
        (b"PK\x03\x04" + bytes(30), "x is a zip archive: unpack it"),
    ],
)
def test_other_files_are_refused_in_one_sentence(data, message):
    with pytest.raises(InputError, match=message) as error:
        read_text(io.BytesIO(data), "x", limit=1000)
    assert "\n" not in str(error.value)


def test_open_lines_decodes_as_read_text_does(tmp_path):
    path = tmp_path / "a"
    path.write_bytes("A\n".encode("utf-8-sig") * 2)
    with open_lines(path, 1000) as lines:
        assert list(lines) == ["A\n", "A\n"]
    for data, message in (
        (b"PK\x03\x04" + bytes(30), "a is a zip archive: unpack it"),
        ("A\n".encode("utf-16-le"), "a holds zero bytes: .* UTF-16 without a byte-order mark"),
    ):
        path.write_bytes(data)
        with pytest.raises(InputError, match=message), open_lines(path, 1000) as lines:
            list(lines)


def test_a_large_file_is_refused_before_it_is_read(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"a" * 11)
    monkeypatch.setattr(reader, "unpack_stream", None)
    with pytest.raises(InputError, match="a holds more than 10 bytes"):
        read_bytes(tmp_path / "a", 10)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    for read in (read_text, read_bytes):
        with pytest.raises(InputError, match=f"cannot read {tmp_path}/gone: No such file"):
            read(tmp_path / "gone")


def test_an_endless_line_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "MAX_LINE_LENGTH", 10)
    (tmp_path / "a").write_text("short\n" + "x" * 100)
    with (
        pytest.raises(InputError, match="a line of more than 10 characters"),
        open_lines(tmp_path / "a", 1000) as lines,
    ):
        list(lines)
