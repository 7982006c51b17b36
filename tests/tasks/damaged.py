"""Draw damaged files and odd command lines, and check that a reader accepts them or refuses them in one line."""

from __future__ import annotations

import codecs
import contextlib
import gzip
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from pyro_gram.errors import UserError

SEED = int(os.environ.get("PYRO_GRAM_FUZZ_SEED", "22"))
SECONDS = 20  # time limit for one input
SNIPPET_WORDS = r""", ; / | - + # . 0 1 9 -1 1e9 Q x é [ ] { } " ' null NaN 99999999999999999999 : >>graph6<< ~~~~~~~~ e
c = \\ [[ true % ]]"""
CHARACTERS = ["", " ", "\n", "\r\n", "\t", "\0", "\ufeff", "\u0663", "\uff14", "\u265b"]
SNIPPETS = [*SNIPPET_WORDS.split(), *CHARACTERS, "p edge 8 1\n", "e 1 2\n", "\x1b[31m"]
OPTION_WORDS = """--task --preset --model --prior --guide --seed --minutes --train.batches --train.elbo --task.size
--task.vertices --optim.lr --beta.watch --num-samples --depth --select --halt --draws --temper --memory --checkpoint
--input --figure --size --trian.batches -x --"""
VALUE_WORDS = """coloring sudoku nqueens tiny cpu gram gaussian amortized 0 1 -1 nan inf 1e400 x a.png é ../.. vote
sobol true evil:Prior : 0.5"""
OPTIONS, VALUES = OPTION_WORDS.split(), [*VALUE_WORDS.split(), "", "9" * 30, "\0"]


@st.composite
def damaged_files(draw: st.DrawFn, originals: Callable[[], tuple[bytes, ...]]) -> bytes:
    """Draw one of the intact files that ``originals`` returns, and damage it in ways that occur in practice."""
    data = draw(st.sampled_from(originals()))
    for _ in range(draw(st.integers(0, 4))):
        a, b = sorted(draw(st.tuples(st.integers(0, len(data)), st.integers(0, len(data)))))
        kind = draw(st.sampled_from(("insert", "replace", "cut", "double", "swap lines", "flip", "end")))
        snippet = draw(st.sampled_from(SNIPPETS)).encode()
        if kind == "insert":
            data = data[:a] + snippet + data[a:]
        elif kind == "replace":
            data = data[:a] + snippet + data[a + 1 :]
        elif kind == "cut":
            data = data[:a] + data[a + (b - a) % 7 :]
        elif kind == "double":
            data = data[:b] + data[a:]
        elif kind == "swap lines":
            lines = data.split(b"\n")
            lines[a % len(lines)], lines[b % len(lines)] = lines[b % len(lines)], lines[a % len(lines)]
            data = b"\n".join(lines)
        elif kind == "flip" and data:
            data = data[: a - 1] + bytes([data[a - 1] ^ draw(st.integers(1, 255))]) + data[a:] if a else data
        else:
            data = data[:b]
    encoding = draw(st.sampled_from(("none",) * 6 + ("mark", "utf-16", "utf-16 without mark", "gzip", "half a gzip")))
    if encoding == "mark":
        return codecs.BOM_UTF8 + data
    if encoding.startswith("utf-16"):
        return data.decode("latin-1").encode("utf-16" if encoding == "utf-16" else "utf-16-le")
    if "gzip" in encoding:
        gzip_data = gzip.compress(data, mtime=0)
        return gzip_data if encoding == "gzip" else gzip_data[: len(gzip_data) // 2]
    return data


def damaged_texts(*originals: str) -> st.SearchStrategy[bytes]:
    return damaged_files(lambda: tuple(text.encode() for text in originals))


@st.composite
def command_lines(draw: st.DrawFn, *first: str) -> list[str]:
    pairs = st.tuples(st.sampled_from(OPTIONS), st.lists(st.sampled_from(VALUES), max_size=2))
    arguments = [word for option, values in draw(st.lists(pairs, max_size=4)) for word in (option, *values)]
    return [*draw(st.sampled_from(((), first))), *arguments]


class LateError(BaseException):
    """Raised when a time limit is over. Readers do not catch it, because it is a BaseException."""


@contextlib.contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raise LateError if the ``with`` block takes longer than ``seconds``."""

    def raise_late(*_: object) -> None:
        raise LateError(f"not done in {seconds} s")

    previous_handler = signal.signal(signal.SIGALRM, raise_late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous_handler)


def check_reader(
    inputs: st.SearchStrategy[Any], read: Callable[[Path, Any], None], folder: Path, cases: int, capsys: Any
) -> None:
    """Assert that ``read`` accepts some of ``cases`` drawn inputs, and refuses the others in a message of one line."""
    counts: Counter[str] = Counter()

    @seed(SEED)
    @settings(
        max_examples=cases,
        deadline=None,
        report_multiple_bugs=False,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )
    @given(inputs)
    def check_case(data: Any) -> None:
        code = None
        try:
            with time_limit(SECONDS):
                read(folder, data)
        except UserError as e:
            message = str(e)
            assert 5 < len(message) < 600, message
            assert "\n" not in message.strip(), message
            assert "Traceback" not in message
            counts["refused"] += 1
        except SystemExit as e:  # the end of a command-line program
            code = e.code
            counts["refused"] += 1
        else:
            counts["accepted"] += 1
        message = capsys.readouterr().err
        assert code in (None, 0) or (code == 2 and len(message.strip()) > 5)

    print(f"seed {SEED}")
    check_case()
    assert counts["refused"], counts
    assert counts["accepted"], counts
