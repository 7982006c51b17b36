"""Where Sudoku puzzles come from: random ones with every solution, or files of Sudoku-Extreme, every row checked."""

from __future__ import annotations

import csv
import hashlib
import math
import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from pyro_gram.errors import ConfigError, InputError
from pyro_gram.system.download import data_folder, download, find_file
from pyro_gram.system.files import MAX_CSV_BYTES, explain_file_type
from pyro_gram.system.text import open_lines
from pyro_gram.tasks.sudoku.boards import all_grids_4, missing_digits, random_grids, solve, symmetry_invariants

BATCH = 1000  # random puzzles drawn at a time
PATIENCE = 8  # batches without any puzzle of a kind before it counts as not to be had
CHUNK = 50_000  # rows of a file checked at a time
COMPARED = 20_000  # puzzles compared with held-out ones at a time: about a second

PUZZLE = ("question", "questions", "puzzle", "puzzles", "quiz", "quizzes")  # names of columns, the best known first
ANSWER = ("answer", "answers", "solution", "solutions")
RATING = ("rating", "ratings", "difficulty")
DELIMITERS = ",;\t"  # spreadsheets write a semicolon where the comma stands in numbers
BLANKS = ".0*_-xX?"
BOARD = re.compile(f"(?:[1-9{re.escape(BLANKS)}]{{16}}|[1-9{re.escape(BLANKS)}]{{36}}|[1-9{re.escape(BLANKS)}]{{81}})")
NUMBER = re.compile(r"[+-]?(?:\d{1,15}(?:\.\d*)?|\.\d+)(?:e[+-]?\d{1,2})?", re.ASCII | re.IGNORECASE)

_HUB = "https://huggingface.co/datasets/sapientinc/sudoku-extreme/resolve/58942f96baeb572ca3127e2a9e9c70f330783d6b"
SHA256 = {
    "train.csv": "64b46674db0148e0d73a16346dadeb2b1c00824d3fca3f85b2ae7037f6b4b38e",
    "test.csv": "a2fd52aea23d331d5b4ee723c856236e838a9fb9a70e66f4e0e0cf26c338c6a8",
}
SMALL = {"train.csv": "sudoku-extreme-1k_train.csv", "test.csv": "sudoku-extreme-1k_test_hard.csv"}


@dataclass(frozen=True)
class Puzzles:
    """Boards of digits, 0 for a blank.

    Attributes:
        boards: uint8 ``[N, L]``.
        solutions: uint8 ``[M, L]``, those of board i at rows ``offsets[i] : offsets[i + 1]``.
        offsets: int64 ``[N + 1]``.
        ratings: how hard each is, int64 ``[N]``, or float64 where they are no whole numbers, nan where it is not known;
            None where it is known of none.
    """

    boards: np.ndarray
    solutions: np.ndarray
    offsets: np.ndarray
    ratings: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.boards)

    def take(self, index: np.ndarray) -> Puzzles:
        """The puzzles ``index``, int64 ``[n]``, in that order."""
        counts = np.diff(self.offsets)[index]
        offsets = np.concatenate(([0], counts.cumsum()))
        rows = np.arange(offsets[-1]) + np.repeat(self.offsets[index] - offsets[:-1], counts)
        ratings = None if self.ratings is None else self.ratings[index]
        return Puzzles(self.boards[index], self.solutions[rows], offsets, ratings)


# ---- random puzzles ----------------------------------------------------------------------------------------------


def random_puzzles(
    size: int, count: int, clues: tuple[int, int], unique: float, max_solutions: int, seed: int
) -> Puzzles:
    """Distinct random puzzles with all their solutions: a random grid, of which random cells stay.

    Args:
        size: 4, 6 or 9.
        count: N.
        clues: fewest and most cells that stay; the number is uniform between them before selection.
        unique: share of puzzles with exactly one solution; the others have 2 to ``max_solutions``.
        max_solutions: puzzles with more are dropped.
        seed: of everything.

    Raises:
        ConfigError: such puzzles are too rare, or there are not so many.
    """
    generator = torch.Generator().manual_seed(seed)
    one = round(unique * count)
    missing = {"one solution": one, f"2 to {max_solutions} solutions": count - one}
    single, several = missing
    found: dict[bytes, np.ndarray] = {}
    barren = dict.fromkeys(missing, 0)
    while any(missing.values()):
        before = dict(missing)
        boards = _random_clues(size, clues, generator)
        for board, solutions in zip(boards, _solutions(boards, size, max_solutions + 1), strict=True):
            kind = single if len(solutions) == 1 else several
            key = board.tobytes()
            if len(solutions) <= max_solutions and missing[kind] and key not in found:
                found[key] = solutions
                missing[kind] -= 1
        for kind, number in missing.items():
            barren[kind] = barren[kind] + 1 if number and number == before[kind] else 0
            if barren[kind] == PATIENCE:
                raise ConfigError(
                    f"too few {size}x{size} puzzles with {clues[0]} to {clues[1]} clues and {kind}: widen "
                    "min_clues and max_clues, change unique or max_solutions, or ask for fewer puzzles"
                )
    order = torch.randperm(count, generator=generator).numpy()
    boards = np.frombuffer(b"".join(found), np.uint8).reshape(count, size * size)
    counts = [len(solutions) for solutions in found.values()]
    whole = Puzzles(boards, np.concatenate(list(found.values())), np.concatenate(([0], np.cumsum(counts))))
    return whole.take(order)


def _random_clues(size: int, clues: tuple[int, int], generator: torch.Generator) -> np.ndarray:
    """Random grids with all but some cells blanked: uint8 ``[BATCH, L]``."""
    grids = random_grids(size, BATCH, generator)
    number = torch.randint(clues[0], clues[1] + 1, (BATCH, 1), generator=generator)
    rank = torch.rand(grids.shape, generator=generator).argsort(-1)
    return torch.where(rank < number, grids, 0).to(torch.uint8).numpy()


def _solutions(boards: np.ndarray, size: int, limit: int) -> Iterator[np.ndarray]:
    """For each board up to ``limit`` solutions (or all), uint8 ``[m, L]``."""
    if size == 4:
        grids = all_grids_4().numpy().astype(np.uint8)
        given = boards[:, None]
        yield from (grids[fits] for fits in ((given == grids) | (given == 0)).all(-1))
    else:
        yield from (np.array(solve(board, size, limit), dtype=np.uint8) for board in boards.tolist())


def deal(keys: np.ndarray, wanted: dict[str, int], rng: np.random.Generator) -> dict[str, np.ndarray] | None:
    """Indices for each split, so that equal keys are never in two of them; None where there are too few.

    Args:
        keys: ``[N]``; puzzles with one key go to one split, or nowhere.
        wanted: how many puzzles each split is to have; filled in this order.
    """
    _, group = np.unique(keys, return_inverse=True)
    place = rng.permutation(group.max() + 1)[group.ravel()]
    deck = np.argsort(place, kind="stable")
    place = place[deck]
    dealt: dict[str, np.ndarray] = {}
    start = 0
    for split, count in wanted.items():
        if start + count > len(deck):
            return None
        dealt[split] = rng.permutation(deck[start : start + count])
        start = int(np.searchsorted(place, place[start + count - 1], side="right"))  # the rest of a cut class: nowhere
    return dealt


def take_unlike(boards: np.ndarray, order: np.ndarray, held_out: np.ndarray, most: int, size: int) -> np.ndarray:
    """The first puzzles of an order that are symmetric to no held-out one.

    Args:
        boards: uint8 ``[N, L]``.
        order: the puzzles to go through, int64 ``[n]``.
        held_out: keys (:func:`~pyro_gram.tasks.sudoku.boards.symmetry_invariants`) of the held-out puzzles.
        most: stop at this many.
        size: of the boards.

    Returns:
        int64 ``[m]``, m at most ``most``.
    """
    kept = order[:0]
    for start in range(0, len(order), COMPARED):
        if len(kept) >= most:
            break
        part = order[start : start + COMPARED]
        keys = symmetry_invariants(boards[part], size)
        kept = np.concatenate((kept, part[~np.isin(keys, held_out)]))
    return kept[:most]


# ---- Sudoku-Extreme ----------------------------------------------------------------------------------------------


def locate(name: str, wanted: str, data_dir: str | None) -> Path:
    """The training or test file of Sudoku-Extreme.

    Args:
        name: ``train.csv`` or ``test.csv``, the files of the full set; those of the set of 1,000 are taken too.
        wanted: the user's own file, in the data folder or a path; ``""`` for none.
        data_dir: as in :func:`pyro_gram.system.download.find_file`. Without a data folder the full set is downloaded.

    Raises:
        ConfigError: no such file, or the download fails.
    """
    if wanted:
        path = find_file(data_dir, wanted) or Path(wanted).expanduser()
        if not path.is_file():
            raise ConfigError(f"no file {wanted!r}, neither in the data folder (--data-dir) nor as a path")
        return path
    names = (f"sudoku/{name}", f"sudoku/{SMALL[name]}")
    found = find_file(data_dir, *names)
    if found is not None:
        return found
    folder = data_folder(data_dir)
    if folder is not None:
        raise ConfigError(
            f"{folder} holds neither {name} nor {SMALL[name]} (plain or .gz, there or in its folder sudoku): name "
            "another folder with --data-dir, or leave it out to download Sudoku-Extreme"
        )
    return download(f"{_HUB}/{name}", SHA256[name], names[0])


def digest(path: Path) -> str:
    """``sha256:...`` of a file as it is stored. Raises InputError where it cannot be read."""
    try:
        with path.open("rb") as file:
            return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    except OSError as e:
        raise InputError(f"cannot read {path}: {e.strerror or e}") from None


def columns_of(header: list[str]) -> tuple[int, int, int | None] | None:
    """Where puzzle, answer and rating stand in a CSV file with this header, capitals and spaces aside.

    Returns:
        Three places, from 0, that of the rating None without one; None where the header has no puzzle or no answer.
    """
    names = [name.strip().casefold() for name in header]
    puzzle, answer, rating = (
        next((names.index(name) for name in known if name in names), None) for known in (PUZZLE, ANSWER, RATING)
    )
    return None if puzzle is None or answer is None else (puzzle, answer, rating)


def read_csv(path: Path, size: int) -> Puzzles:
    """The puzzles of a CSV file, plain or gzipped, with a column of puzzles and one of answers (and one of ratings).

    :func:`columns_of` knows them by their header; without a header there must be two columns of boards. Every row is
    checked: its answer is a correct grid that keeps the puzzle's clues. That there is no other answer is taken on
    trust. About 30 s and 1 GB for the 3.8 million rows of the full training set.

    Raises:
        InputError: naming file, line and fault.
    """
    boards, answers, ratings = bytearray(), bytearray(), array("d")
    chunk: list[tuple[int, str, str]] = []

    def flush() -> None:
        if chunk:
            questions, solved = _checked(path, size, chunk)
            boards.extend(questions.tobytes())
            answers.extend(solved.tobytes())
            chunk.clear()

    try:
        for line, question, answer, rating in _rows(path, size * size):
            chunk.append((line, question, answer))
            ratings.append(rating)
            if len(chunk) == CHUNK:
                flush()
    except InputError:
        flush()  # a fault further up comes first
        raise
    flush()
    if not boards:
        raise InputError(f"{path} holds no puzzles")
    grids = np.frombuffer(boards, np.uint8).reshape(-1, size * size)
    return Puzzles(
        grids,
        np.frombuffer(answers, np.uint8).reshape(-1, size * size),
        np.arange(len(grids) + 1),
        _as_ratings(np.frombuffer(ratings)),
    )


@dataclass(frozen=True)
class _Layout:
    """How the rows of a CSV file are to be read; the columns are those of :func:`columns_of`."""

    delimiter: str
    puzzle: int
    answer: int
    rating: int | None
    width: int  # fields of a row
    headed: bool  # is the first row a header?


def _layout(path: Path, line: int, text: str) -> _Layout:
    """The layout of a file whose first row is ``text``. Raises InputError where it names no columns and is no row."""
    for delimiter in DELIMITERS:
        first = next(csv.reader([text], delimiter=delimiter, skipinitialspace=True))
        columns = columns_of(first)
        if columns:
            return _Layout(delimiter, *columns, len(first), True)
        cells = [(place, cell.strip()) for place, cell in enumerate(first)]
        found = [(not set(cell) & set(BLANKS), place) for place, cell in cells if BOARD.fullmatch(cell)]
        if len(found) == 2:
            (_, puzzle), (_, answer) = sorted(found)  # what has a blank is the puzzle; else the first
            return _Layout(delimiter, puzzle, answer, None, len(first), False)
    raise InputError(
        f"{path}, line {line}: expected a header with the columns question and answer (or puzzle and solution), found "
        f"{explain_file_type(path) or repr(text.strip()[:60])}"
    )


def _rows(path: Path, cells: int) -> Iterator[tuple[int, str, str, float]]:
    """Line, puzzle, answer and rating of every row of a CSV file, in the right shape. Raises InputError."""
    with open_lines(path, MAX_CSV_BYTES) as lines:
        before, text = next(((n, line) for n, line in enumerate(lines) if line.strip()), (0, ""))
        if not text:
            raise InputError(f"{path}, line 1: expected a header with the columns question and answer, found nothing")
        try:
            layout = _layout(path, before + 1, text)
        except csv.Error as e:
            raise InputError(f"{path}, line {before + 1}: {e}") from None
        reader = csv.reader(chain([text], lines), delimiter=layout.delimiter, skipinitialspace=True)
        try:
            if layout.headed:
                next(reader)
            for row in reader:
                if any(row):
                    yield before + reader.line_num, *_fields(row, layout, cells)
        except (csv.Error, _RowError) as e:
            raise InputError(f"{path}, line {before + reader.line_num}: {e}") from None


class _RowError(Exception):
    """What is wrong with a row of a file, before its line is known."""


def _fields(row: list[str], layout: _Layout, cells: int) -> tuple[str, str, float]:
    """Puzzle, answer and rating, nan without one, of a row. Raises _RowError for a row of another shape."""
    if len(row) != layout.width:
        raise _RowError(f"{len(row)} fields, but the {'header' if layout.headed else 'first row'} has {layout.width}")
    question, answer = row[layout.puzzle], row[layout.answer]
    if len(question) != cells or len(answer) != cells:
        question, answer = question.strip(), answer.strip()
        for name, value in (("question", question), ("answer", answer)):
            if len(value) != cells:
                number = " (a spreadsheet made a number of it: save the column as text)" * bool(NUMBER.fullmatch(value))
                raise _RowError(f"the {name} has {len(value)} characters, not {cells}{number}")
    if layout.rating is None:
        return question, answer, math.nan
    rating = row[layout.rating].strip()
    if rating and not NUMBER.fullmatch(rating):
        raise _RowError(f"the rating {rating!r} is no number")
    return question, answer, float(rating or "nan")


def _as_ratings(ratings: np.ndarray) -> np.ndarray | None:
    """Float64 ratings as int64 where all are whole numbers; None where all are nan."""
    if np.isnan(ratings).all():
        return None
    whole = (ratings == np.floor(ratings)) & (np.abs(ratings) < 2**53)
    return ratings.astype(np.int64) if whole.all() else ratings


def _checked(path: Path, size: int, rows: list[tuple[int, str, str]]) -> tuple[np.ndarray, np.ndarray]:
    """Questions and answers as digits, uint8 ``[n, L]``. Raises InputError for the first row that is wrong."""
    digit_of = np.full(256, 255, np.uint8)
    digit_of[[*BLANKS.encode()]] = 0
    digit_of[ord("1") : ord("1") + size] = range(1, size + 1)

    def digits(texts: list[str]) -> np.ndarray:
        text = "".join(texts)
        if not text.isascii():
            text = re.sub(r"[^\x00-\x7f]", "!", text)  # one byte a character, and no blank
        codes = np.frombuffer(text.encode(), np.uint8)
        return digit_of[codes].reshape(len(texts), size * size)

    questions, answers = digits([row[1] for row in rows]), digits([row[2] for row in rows])
    faults = {
        f"the question has a character that is neither a digit from 1 to {size} nor a blank ({' '.join(BLANKS)})": (
            (questions == 255).any(1)
        ),
        f"the answer has a character that is no digit from 1 to {size}": ((answers == 255) | (answers == 0)).any(1),
        "the answer does not keep the clues of its question": ((questions > 0) & (questions != answers)).any(1),
        "the answer repeats a digit in a row, column or box": (
            missing_digits(torch.from_numpy(answers.astype(np.int64)) - 1, size).numpy() > 0
        ),
    }
    wrong = np.logical_or.reduce(list(faults.values()))
    if wrong.any():
        first = int(wrong.argmax())
        fault = next(text for text, rows_with in faults.items() if rows_with[first])
        raise InputError(f"{path}, line {rows[first][0]}: {fault}")
    return questions, answers
