"""One reader for every text that people hand over: whatever wrote it, it comes out the same.

A byte-order mark is dropped, UTF-16 and UTF-32 are decoded by theirs, gzip is unpacked by its contents and not by the
file's name, and every line ends in ``\\n``. What is none of that is refused in one sentence; only so much is read.
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

MAX_PUZZLE_BYTES = 2**25  # bytes of a text of puzzles, unpacked: some 400,000 of 9x9 Sudoku
MAX_TEXT_BYTES = 2**28  # bytes of a text, unpacked: puzzles are small
MAX_LINE_LENGTH = 2**20  # characters of a line of a file that is read line by line
BYTE_ORDER_MARKS = (  # UTF-32 first: its mark begins as that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
GZIP, ZIP = b"\x1f\x8b", b"PK\x03\x04"
BYTE_ORDER_MARK = "\N{ZERO WIDTH NO-BREAK SPACE}"  # the byte-order mark once it is decoded
ZERO_BYTES_ERROR = "{} holds zero bytes: not a text file, or UTF-16 without its mark; save it as UTF-8"


class LineError(InputError):
    """An InputError in one line of a text.

    Args:
        line: its number, from 1.
        message: what is wrong there.
    """

    def __init__(self, line: int, message: str) -> None:
        super().__init__(f"line {line}: {message}")
        self.line, self.message = line, message


@dataclass(frozen=True)
class PuzzleText:
    """The part of a file that holds one puzzle.

    Attributes:
        text: of the puzzle, as a task's ``parse`` reads it.
        line: where it begins, from 1.
        name: what it is called in messages, where a line is no help (``board 3`` of a JSON list).
    """

    text: str
    line: int
    name: str = ""

    def located(self, error: InputError) -> InputError:
        """An error of this piece that says where in the file it is."""
        if self.name:
            return InputError(f"{self.name}: {error}")
        if isinstance(error, LineError):
            return LineError(self.line + error.line - 1, error.message)
        return LineError(self.line, str(error))


# ---- bytes ---------------------------------------------------------------------------------------------------------


def _too_large(name: str, limit: int) -> InputError:
    return InputError(f"{name} holds more than {limit} bytes, the most that is read: cut it up")


class _Bounded(io.RawIOBase):
    """The bytes of a stream, of which more than ``limit`` are refused."""

    def __init__(self, stream: BinaryIO, limit: int, name: str) -> None:
        self.stream, self.left, self.limit, self.name = stream, limit, limit, name

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]
        data = self.stream.read(min(len(view), self.left + 1))
        if len(data) > self.left:
            raise _too_large(self.name, self.limit)
        self.left -= len(data)
        view[: len(data)] = data
        return len(data)


@contextmanager
def convert_read_errors(name: str) -> Iterator[None]:
    """What can go wrong while ``name`` is read becomes an InputError of one sentence."""
    try:
        yield
    except UnicodeDecodeError as e:
        raise InputError(
            f"cannot read {name}: it is no text in {e.encoding.upper()} ({e.reason}); save it as UTF-8"
        ) from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as e:
        raise InputError(f"cannot read {name}: the .gz is damaged or cut short ({e})") from None
    except OSError as e:
        raise InputError(f"cannot read {name}: {e.strerror or e}") from None


def unpack_stream(stream: BinaryIO, name: str, limit: int = MAX_TEXT_BYTES) -> io.BufferedReader:
    """The bytes of ``stream``, gunzipped where they are gzipped; to be read within :func:`reading`.

    Raises:
        InputError: at once for a zip archive, which may hold many files; while reading, at the first byte beyond
            ``limit``.
    """
    plain: io.BufferedReader = io.BufferedReader(_Bounded(stream, limit, name))
    head = plain.peek(len(ZIP))
    if head.startswith(ZIP):
        raise InputError(f"{name} is a zip archive: unpack it, and give a file of it")
    if not head.startswith(GZIP):
        return plain
    return io.BufferedReader(_Bounded(gzip.GzipFile(fileobj=plain), limit, name))  # type: ignore[arg-type]


def read_bytes(path: Path, limit: int = MAX_TEXT_BYTES) -> bytes:
    """The contents of a file, plain or gzipped. Raises InputError."""
    with convert_read_errors(str(path)), path.open("rb") as file:
        if path.stat().st_size > limit:
            raise _too_large(str(path), limit)
        return unpack_stream(file, str(path), limit).read()


def is_gzip(path: Path) -> bool:
    """Does a file begin as gzip does, whatever it is called? Raises InputError where it cannot be read."""
    with convert_read_errors(str(path)), path.open("rb") as file:
        return file.read(len(GZIP)) == GZIP


# ---- text ----------------------------------------------------------------------------------------------------------


def read_text(source: Path | BinaryIO, name: str = "", limit: int = MAX_TEXT_BYTES) -> str:
    """The whole text of a file or a stream, in lines that end in ``\\n``.

    Args:
        source: a path, or a stream of bytes.
        name: what messages call it; the path by default.
        limit: the most bytes that are read, unpacked.

    Raises:
        InputError: it cannot be read, is no text, is damaged or too large.
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
    """Bytes as text, in lines that end in ``\\n``. Raises InputError where they are none."""
    encoding = _encoding(data[:4])
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as e:
        if encoding != "utf-8":
            raise InputError(f"{name} begins as {encoding.upper()} and is not: cut off, or not a text file") from None
        if b"\0" in data:
            raise InputError(f"{name} is not a text file") from None
        raise InputError(
            f"{name} is not UTF-8 (byte 0x{data[e.start]:02X} in line {data.count(10, 0, e.start) + 1}): save it as "
            "UTF-8, or convert it (iconv -f latin1 -t utf-8)"
        ) from None
    if "\0" in text:
        raise InputError(ZERO_BYTES_ERROR.format(name))
    return normalize_text(text)


def make_printable(text: str, most: int = 2000) -> str:
    """What a stranger may have written, as a terminal can show it: without escape sequences, and not without end."""
    return "".join(c if c.isprintable() else "?" for c in text[:most]) + "..." * (len(text) > most)


def normalize_text(text: str) -> str:
    """A text without byte-order marks (one stands inside where files were put together), its lines ended by ``\\n``."""
    return text.replace(BYTE_ORDER_MARK, "").replace("\r\n", "\n").replace("\r", "\n")


@contextmanager
def open_lines(path: Path, limit: int) -> Iterator[Iterator[str]]:
    """The lines of a text that may be long, as :func:`read_text` has them, with their ends as they are.

    Raises:
        InputError: as :func:`read_text`; and a line of more than ``LINE_LIMIT`` characters.
    """
    name = str(path)
    with convert_read_errors(name), path.open("rb") as file:
        stream = unpack_stream(file, name, limit)
        # The mark of UTF-8 is dropped with the encoding's own; peek() has at least the file's first bytes.
        encoding = {"utf-8": "utf-8-sig"}.get(found := _encoding(stream.peek(4)[:4]), found)
        with io.TextIOWrapper(stream, encoding=encoding, newline="") as text:
            yield _lines(text, name)


def _lines(text: TextIO, name: str) -> Iterator[str]:
    while line := text.readline(MAX_LINE_LENGTH):
        if len(line) == MAX_LINE_LENGTH:
            raise InputError(f"{name} has a line of more than {MAX_LINE_LENGTH} characters: it is no file of puzzles")
        if "\0" in line:
            raise InputError(ZERO_BYTES_ERROR.format(name))
        yield line.replace(BYTE_ORDER_MARK, "")


def numbered_lines(text: str, comment: str = "#") -> list[tuple[int, str]]:
    """The lines of a text with their numbers, from 1, without blank ones and those that begin with ``comment``."""
    numbered = ((n, line.strip()) for n, line in enumerate(normalize_text(text).split("\n"), start=1))
    return [(n, line) for n, line in numbered if line and not (comment and line.startswith(comment))]


def _encoding(head: bytes) -> str:
    return next((encoding for mark, encoding in BYTE_ORDER_MARKS if head.startswith(mark)), "utf-8")
