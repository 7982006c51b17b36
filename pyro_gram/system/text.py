"""Decode the texts that users provide. The result does not depend on the program that wrote a text.

A byte-order mark selects UTF-16 or UTF-32 and is dropped. A gzip file is recognized by its first bytes and unpacked.
In the result every line ends in ``\\n``. For a file that is too large or not text, InputError is raised.
"""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TextIO

from pyro_gram.errors import InputError

MAX_PUZZLE_BYTES = 2**25  # the largest text of puzzles, after unpacking: about 400,000 Sudokus of size 9x9
MAX_TEXT_BYTES = 2**28  # the largest text of any other kind, after unpacking
MAX_LINE_LENGTH = 2**20  # characters
BYTE_ORDER_MARKS = (  # UTF-32 comes first, because its mark begins with the mark of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
BYTE_ORDER_MARK = "\N{ZERO WIDTH NO-BREAK SPACE}"  # the mark in decoded text
GZIP, ZIP = b"\x1f\x8b", b"PK\x03\x04"  # the first bytes of gzip and zip files
ZERO_BYTES_ERROR = "{} holds zero bytes: it is not text, or UTF-16 without a byte-order mark; save it as UTF-8"


class LineError(InputError):
    """An InputError that names the line of the text in which it occurred.

    Args:
        line: the number of the line, from 1.
        message: what is wrong.
    """

    def __init__(self, line: int, message: str) -> None:
        super().__init__(f"line {line}: {message}")
        self.line, self.message = line, message


@dataclass(frozen=True)
class PuzzleText:
    """The part of a file that holds one puzzle.

    Attributes:
        text: the puzzle, in a form that a task's ``parse`` reads.
        line: the number of the puzzle's first line in the file, from 1.
        name: the puzzle's name in messages (such as ``board 3`` of a JSON list); if empty, messages give the line.
    """

    text: str
    line: int
    name: str = ""

    def locate_error(self, error: InputError) -> InputError:
        """Return an error that says what ``error`` says, and where the puzzle stands in the file."""
        if self.name:
            return InputError(f"{self.name}: {error}")
        if isinstance(error, LineError):
            return LineError(self.line + error.line - 1, error.message)
        return LineError(self.line, str(error))


# ---- bytes ----------------------------------------------------------------------------------------------------------


def _size_error(name: str, limit: int) -> InputError:
    return InputError(f"{name} holds more than {limit} bytes, the most that is read: split it")


class _LimitedStream(io.RawIOBase):
    """A stream that raises InputError when more than ``limit`` bytes are read from it."""

    def __init__(self, stream: BinaryIO, limit: int, name: str) -> None:
        self.stream, self.remaining_bytes, self.limit, self.name = stream, limit, limit, name

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]
        data = self.stream.read(min(len(view), self.remaining_bytes + 1))
        if len(data) > self.remaining_bytes:
            raise _size_error(self.name, self.limit)
        self.remaining_bytes -= len(data)
        view[: len(data)] = data
        return len(data)


@contextmanager
def convert_read_errors(name: str) -> Iterator[None]:
    """Convert the errors of reading and decoding the file ``name`` to an InputError of one sentence."""
    try:
        yield
    except UnicodeDecodeError as e:
        raise InputError(
            f"cannot read {name}: it is not {e.encoding.upper()} text ({e.reason}); save it as UTF-8"
        ) from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as e:
        raise InputError(f"cannot read {name}: the .gz is damaged or cut short ({e})") from None
    except OSError as e:
        raise InputError(f"cannot read {name}: {e.strerror or e}") from None


def unpack_stream(stream: BinaryIO, name: str, limit: int = MAX_TEXT_BYTES) -> io.BufferedReader:
    """Return a reader of the bytes of ``stream``, unpacked if it is gzipped.

    Call this function, and use the reader, inside ``with convert_read_errors(name)``.

    Raises:
        InputError: the stream is a zip archive, which may hold many files; or, while reading, it holds more than
            ``limit`` bytes.
    """
    reader: io.BufferedReader = io.BufferedReader(_LimitedStream(stream, limit, name))
    head = reader.peek(len(ZIP))
    if head.startswith(ZIP):
        raise InputError(f"{name} is a zip archive: unpack it, and give one of its files")
    if not head.startswith(GZIP):
        return reader
    return io.BufferedReader(_LimitedStream(gzip.GzipFile(fileobj=reader), limit, name))  # type: ignore[arg-type]


def read_bytes(path: Path, limit: int = MAX_TEXT_BYTES) -> bytes:
    """Return the contents of a file, unpacked if it is gzipped.

    Raises:
        InputError: the file cannot be read, or holds more than ``limit`` bytes.
    """
    with convert_read_errors(str(path)), path.open("rb") as file:
        if path.stat().st_size > limit:
            raise _size_error(str(path), limit)
        return unpack_stream(file, str(path), limit).read()


def is_gzip(path: Path) -> bool:
    """Return whether the first bytes of a file are those of gzip. Raises InputError if the file cannot be read."""
    with convert_read_errors(str(path)), path.open("rb") as file:
        return file.read(len(GZIP)) == GZIP


# ---- text -----------------------------------------------------------------------------------------------------------


def read_text(source: Path | BinaryIO, name: str = "", limit: int = MAX_TEXT_BYTES) -> str:
    """Return the text of a file or a stream, in lines that end in ``\\n``.

    Args:
        source: a path, or a stream of bytes.
        name: the name of the source in messages; by default the path.
        limit: the maximal number of bytes after unpacking.

    Raises:
        InputError: the source cannot be read, is not text, is damaged or is too large.
    """
    name = name or str(source)
    with convert_read_errors(name):
        if isinstance(source, Path):
            with source.open("rb") as file:
                data = unpack_stream(file, name, limit).read()
        else:
            data = unpack_stream(source, name, limit).read()
    return decode(data, name)


def decode(data: bytes, name: str) -> str:
    """Decode the bytes of the file ``name`` to text, in lines that end in ``\\n``.

    Raises:
        InputError: the bytes are not text.
    """
    encoding = _encoding(data[:4])
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as e:
        if encoding != "utf-8":
            raise InputError(f"{name} begins as {encoding.upper()} but is damaged, or not a text file") from None
        if b"\0" in data:
            raise InputError(f"{name} is not a text file") from None
        raise InputError(
            f"{name} is not UTF-8 (byte 0x{data[e.start]:02X} in line {data.count(10, 0, e.start) + 1}): save it as "
            "UTF-8, or convert it (iconv -f latin1 -t utf-8)"
        ) from None
    if "\0" in text:
        raise InputError(ZERO_BYTES_ERROR.format(name))
    return normalize_text(text)


def make_printable(text: str, max_length: int = 2000) -> str:
    """Return a stranger's text in a form that is safe to print: without escape sequences, and not too long.

    >>> make_printable("a\\x1b[31mb", max_length=6)
    'a?[31m...'
    """
    ending = "..." if len(text) > max_length else ""
    return "".join(c if c.isprintable() else "?" for c in text[:max_length]) + ending


def normalize_text(text: str) -> str:
    """Remove byte-order marks (concatenated files have several), and end each line of the text in ``\\n``."""
    return text.replace(BYTE_ORDER_MARK, "").replace("\r\n", "\n").replace("\r", "\n")


@contextmanager
def open_lines(path: Path, limit: int) -> Iterator[Iterator[str]]:
    """Open a text that may be long, and provide an iterator over its lines. Line ends are not changed.

    Raises:
        InputError: the file cannot be read, is not text, is damaged or is too large; or a line has more than
            ``MAX_LINE_LENGTH`` characters.
    """
    name = str(path)
    with convert_read_errors(name), path.open("rb") as file:
        stream = unpack_stream(file, name, limit)
        encoding = _encoding(stream.peek(4)[:4])  # peek() returns at least the first bytes
        encoding = "utf-8-sig" if encoding == "utf-8" else encoding  # utf-8-sig drops the mark
        with io.TextIOWrapper(stream, encoding=encoding, newline="") as text:
            yield _checked_lines(text, name)


def _checked_lines(text: TextIO, name: str) -> Iterator[str]:
    while line := text.readline(MAX_LINE_LENGTH):
        if len(line) == MAX_LINE_LENGTH:
            raise InputError(f"{name} has a line of more than {MAX_LINE_LENGTH} characters: these are not puzzles")
        if "\0" in line:
            raise InputError(ZERO_BYTES_ERROR.format(name))
        yield line.replace(BYTE_ORDER_MARK, "")


def numbered_lines(text: str, comment: str = "#") -> list[tuple[int, str]]:
    """Return the number (from 1) and the text of each line.

    Blank lines and lines that begin with ``comment`` are left out.

    >>> numbered_lines("# graphs\\nCF\\n\\n Cr")
    [(2, 'CF'), (4, 'Cr')]
    """
    lines = ((n, line.strip()) for n, line in enumerate(normalize_text(text).split("\n"), start=1))
    return [(n, line) for n, line in lines if line and not (comment and line.startswith(comment))]


def _encoding(head: bytes) -> str:
    return next((encoding for mark, encoding in BYTE_ORDER_MARKS if head.startswith(mark)), "utf-8")
