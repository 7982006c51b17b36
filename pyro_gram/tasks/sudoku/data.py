"""Draw random Sudoku puzzles with all their solutions, or read and check the files of Sudoku-Extreme."""

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

BATCH = 1000  # number of random puzzles that are drawn at once
MAX_BARREN_BATCHES = 8  # random_puzzles gives up after this many successive batches without a puzzle that it needs
ROWS_AT_ONCE = 50_000  # number of rows of a file that are checked at once
PUZZLES_AT_ONCE = 20_000  # puzzles that are compared with held-out puzzles at once, which takes about a second

PUZZLE_COLUMNS = ("question", "questions", "puzzle", "puzzles", "quiz", "quizzes")  # the most frequent name first
ANSWER_COLUMNS = ("answer", "answers", "solution", "solutions")
RATING_COLUMNS = ("rating", "ratings", "difficulty")
DELIMITERS = ",;\t"  # spreadsheets write semicolons if their language has a decimal comma
BLANKS = ".0*_-xX?"
BOARD = re.compile(f"(?:[1-9{re.escape(BLANKS)}]{{16}}|[1-9{re.escape(BLANKS)}]{{36}}|[1-9{re.escape(BLANKS)}]{{81}})")
NUMBER = re.compile(r"[+-]?(?:\d{1,15}(?:\.\d*)?|\.\d+)(?:e[+-]?\d{1,2})?", re.ASCII | re.IGNORECASE)

HUB_URL = "https://huggingface.co/datasets/sapientinc/sudoku-extreme/resolve/58942f96baeb572ca3127e2a9e9c70f330783d6b"
SHA256 = {
    "train.csv": "64b46674db0148e0d73a16346dadeb2b1c00824d3fca3f85b2ae7037f6b4b38e",
    "test.csv": "a2fd52aea23d331d5b4ee723c856236e838a9fb9a70e66f4e0e0cf26c338c6a8",
}
SMALL_FILES = {"train.csv": "sudoku-extreme-1k_train.csv", "test.csv": "sudoku-extreme-1k_test_hard.csv"}


@dataclass(frozen=True)
class RatedPuzzles:
    """Puzzles as digits, 0 for a blank, stored compactly because there may be millions.

    Attributes:
        boards: uint8 ``[N, L]``.
        solutions: uint8 ``[M, L]``; the solutions of board i are the rows ``offsets[i]`` to ``offsets[i + 1] - 1``.
        offsets: int64 ``[N + 1]``.
        ratings: how hard each puzzle is, int64 ``[N]`` (float64 if not all are whole numbers; nan for an unknown one);
            None if no rating is known.
    """

    boards: np.ndarray
    solutions: np.ndarray
    offsets: np.ndarray
    ratings: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.boards)

    def take(self, index: np.ndarray) -> RatedPuzzles:
        """Return the puzzles ``index``, int64 ``[n]``, in that order."""
        counts = np.diff(self.offsets)[index]
        offsets = np.concatenate(([0], counts.cumsum()))
        rows = np.arange(offsets[-1]) + np.repeat(self.offsets[index] - offsets[:-1], counts)
        ratings = None if self.ratings is None else self.ratings[index]
        return RatedPuzzles(self.boards[index], self.solutions[rows], offsets, ratings)


# ---- random puzzles ----------------------------------------------------------------------------------------------


def random_puzzles(
    size: int, count: int, clues: tuple[int, int], unique: float, max_solutions: int, seed: int
) -> RatedPuzzles:
    """Draw distinct random puzzles with all their solutions, by blanking random cells of random grids.

    Args:
        size: 4, 6 or 9.
        count: N, the number of puzzles.
        clues: the fewest and the most clues. The number of clues is drawn uniformly, before boards are selected by
            their number of solutions.
        unique: share of puzzles with exactly one solution; the others have 2 to ``max_solutions``.
        max_solutions: boards with more solutions are dropped.
        seed: seed of all draws.

    Raises:
        ConfigError: such puzzles are too rare, or fewer than ``count`` exist.
    """
    generator = torch.Generator().manual_seed(seed)
    num_unique = round(unique * count)
    num_missing = {"one solution": num_unique, f"2 to {max_solutions} solutions": count - num_unique}
    unique_kind, other_kind = num_missing
    solutions_of: dict[bytes, np.ndarray] = {}
    barren_batches = dict.fromkeys(num_missing, 0)
    while any(num_missing.values()):
        previous_missing = dict(num_missing)
        boards = _random_boards(size, clues, generator)
        for board, solutions in zip(boards, _solve_all(boards, size, max_solutions + 1), strict=True):
            kind = unique_kind if len(solutions) == 1 else other_kind
            key = board.tobytes()
            if len(solutions) <= max_solutions and num_missing[kind] and key not in solutions_of:
                solutions_of[key] = solutions
                num_missing[kind] -= 1
        for kind, number in num_missing.items():
            barren_batches[kind] = barren_batches[kind] + 1 if number and number == previous_missing[kind] else 0
            if barren_batches[kind] == MAX_BARREN_BATCHES:
                raise ConfigError(
                    f"too few {size}x{size} puzzles with {clues[0]} to {clues[1]} clues and {kind}: widen "
                    "min_clues and max_clues, change unique or max_solutions, or ask for fewer puzzles"
                )
    order = torch.randperm(count, generator=generator).numpy()
    boards = np.frombuffer(b"".join(solutions_of), np.uint8).reshape(count, size * size)
    offsets = np.concatenate(([0], np.cumsum([len(solutions) for solutions in solutions_of.values()])))
    return RatedPuzzles(boards, np.concatenate(list(solutions_of.values())), offsets).take(order)


def _random_boards(size: int, clues: tuple[int, int], generator: torch.Generator) -> np.ndarray:
    """Draw grids and blank all but a random number of cells: uint8 ``[BATCH, L]``."""
    grids = random_grids(size, BATCH, generator)
    number = torch.randint(clues[0], clues[1] + 1, (BATCH, 1), generator=generator)
    rank = torch.rand(grids.shape, generator=generator).argsort(-1)
    return torch.where(rank < number, grids, 0).to(torch.uint8).numpy()


def _solve_all(boards: np.ndarray, size: int, limit: int) -> Iterator[np.ndarray]:
    """Yield up to ``limit`` solutions of each board (for size 4, all of them), uint8 ``[m, L]``."""
    if size == 4:
        grids = all_grids_4().numpy().astype(np.uint8)
        clues = boards[:, None]
        yield from (grids[is_solution] for is_solution in ((clues == grids) | (clues == 0)).all(-1))
    else:
        yield from (np.array(solve(board, size, limit), dtype=np.uint8) for board in boards.tolist())


def assign_splits(keys: np.ndarray, sizes: dict[str, int], rng: np.random.Generator) -> dict[str, np.ndarray] | None:
    """Assign puzzles to splits at random, so that no two splits have puzzles with the same key.

    Args:
        keys: ``[N]``.
        sizes: the number of puzzles of each split; the splits are filled in this order.

    Returns:
        The indices of each split's puzzles, or None if there are too few puzzles.
    """
    if not len(keys):
        return None
    _, group = np.unique(keys, return_inverse=True)
    rank = rng.permutation(group.max() + 1)[group.ravel()]
    order = np.argsort(rank, kind="stable")
    rank = rank[order]
    splits: dict[str, np.ndarray] = {}
    start = 0
    for split, size in sizes.items():
        if start + size > len(order):
            return None
        splits[split] = rng.permutation(order[start : start + size])
        start = int(np.searchsorted(rank, rank[start + size - 1], side="right"))  # skip the rest of the last group
    return splits


def exclude_symmetric(boards: np.ndarray, order: np.ndarray, held_out: np.ndarray, count: int, size: int) -> np.ndarray:
    """Return the first ``count`` puzzles, in a given order, that are not symmetric to a held-out puzzle.

    Args:
        boards: uint8 ``[N, L]``.
        order: indices of the puzzles in that order, int64 ``[n]``.
        held_out: keys (:func:`~pyro_gram.tasks.sudoku.boards.symmetry_invariants`) of the held-out puzzles.
        count: the most puzzles to return.
        size: size of the boards.

    Returns:
        Indices, int64 ``[m]``, m at most ``count``.
    """
    index = order[:0]
    for start in range(0, len(order), PUZZLES_AT_ONCE):
        if len(index) >= count:
            break
        chunk = order[start : start + PUZZLES_AT_ONCE]
        keys = symmetry_invariants(boards[chunk], size)
        index = np.concatenate((index, chunk[~np.isin(keys, held_out)]))
    return index[:count]


# ---- Sudoku-Extreme ----------------------------------------------------------------------------------------------


def locate_file(name: str, user_file: str, data_dir: str | None) -> Path:
    """Return the path of the training or test file of Sudoku-Extreme.

    Args:
        name: ``train.csv`` or ``test.csv`` of the full set; the files of the set of 1,000 puzzles are accepted too.
        user_file: the user's own file, a name in the data folder or a path; ``""`` for none.
        data_dir: as in :func:`pyro_gram.system.download.find_file`. If there is no data folder, the full set is
            downloaded.

    Raises:
        ConfigError: there is no such file, or the download fails.
    """
    if user_file:
        path = find_file(data_dir, user_file) or Path(user_file).expanduser()
        if not path.is_file():
            raise ConfigError(f"no file {user_file!r}, neither in the data folder (--data-dir) nor as a path")
        return path
    names = (f"sudoku/{name}", f"sudoku/{SMALL_FILES[name]}")
    path_in_folder = find_file(data_dir, *names)
    if path_in_folder is not None:
        return path_in_folder
    folder = data_folder(data_dir)
    if folder is not None:
        raise ConfigError(
            f"{folder} holds neither {name} nor {SMALL_FILES[name]} (plain or .gz, there or in its folder sudoku): "
            "name another folder with --data-dir, or leave it out to download Sudoku-Extreme"
        )
    return download(f"{HUB_URL}/{name}", SHA256[name], names[0])


def digest(path: Path) -> str:
    """Return ``sha256:...``, the digest of a file's stored bytes. Raises InputError if the file cannot be read."""
    try:
        with path.open("rb") as file:
            return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    except OSError as e:
        raise InputError(f"cannot read {path}: {e.strerror or e}") from None


def columns_of(header: list[str]) -> tuple[int, int, int | None] | None:
    """Return the columns of puzzle, answer and rating in a CSV file with this header.

    Returns:
        Three column numbers, from 0 (None for a missing rating); a single None if puzzle or answer is missing.
    """
    names = [name.strip().casefold() for name in header]
    puzzle, answer, rating = (
        next((names.index(name) for name in choices if name in names), None)
        for choices in (PUZZLE_COLUMNS, ANSWER_COLUMNS, RATING_COLUMNS)
    )
    return None if puzzle is None or answer is None else (puzzle, answer, rating)


def read_csv(path: Path, size: int) -> RatedPuzzles:
    """Read a CSV file, plain or gzipped, with columns of puzzles, answers and perhaps ratings.

    The header names the columns (:func:`columns_of`); a file without a header has two columns of boards. Every row is
    checked: its answer must be a correct grid with the clues of its puzzle. Whether another answer exists is not
    checked. The full training set, 3.8 million rows, takes about 30 s and 1 GB.

    Raises:
        InputError: a row is wrong, or the file cannot be read; the message names the file, the line and the fault.
    """
    boards, answers, ratings = bytearray(), bytearray(), array("d")
    rows: list[tuple[int, str, str]] = []

    def convert_rows() -> None:
        if rows:
            puzzle_digits, answer_digits = _check_rows(path, size, rows)
            boards.extend(puzzle_digits.tobytes())
            answers.extend(answer_digits.tobytes())
            rows.clear()

    try:
        for line, puzzle, answer, rating in _read_rows(path, size * size):
            rows.append((line, puzzle, answer))
            ratings.append(rating)
            if len(rows) == ROWS_AT_ONCE:
                convert_rows()
    except InputError:
        convert_rows()  # if an earlier row has a fault too, report that one instead
        raise
    convert_rows()
    if not boards:
        raise InputError(f"{path} holds no puzzles")
    board_array, answer_array = (np.frombuffer(b, np.uint8).reshape(-1, size * size) for b in (boards, answers))
    offsets = np.arange(len(board_array) + 1)
    return RatedPuzzles(board_array, answer_array, offsets, _convert_ratings(np.frombuffer(ratings)))


@dataclass(frozen=True)
class _Layout:
    """The layout of a CSV file; columns are numbered as in :func:`columns_of`."""

    delimiter: str
    puzzle: int
    answer: int
    rating: int | None
    num_fields: int
    has_header: bool


def _detect_layout(path: Path, line: int, text: str) -> _Layout:
    """Return the layout of a file whose header or first row is ``text``. Raises InputError if ``text`` is neither."""
    for delimiter in DELIMITERS:
        first = next(csv.reader([text], delimiter=delimiter, skipinitialspace=True))
        columns = columns_of(first)
        if columns:
            return _Layout(delimiter, *columns, len(first), True)
        fields = [(column, field.strip()) for column, field in enumerate(first)]
        boards = [(not set(field) & set(BLANKS), column) for column, field in fields if BOARD.fullmatch(field)]
        if len(boards) == 2:
            (_, puzzle), (_, answer) = sorted(boards)  # the board with a blank, or else the first, is the puzzle
            return _Layout(delimiter, puzzle, answer, None, len(first), False)
    raise InputError(
        f"{path}, line {line}: expected a header with the columns question and answer (or puzzle and solution), found "
        f"{explain_file_type(path) or repr(text.strip()[:60])}"
    )


def _read_rows(path: Path, cells: int) -> Iterator[tuple[int, str, str, float]]:
    """Yield line number, puzzle, answer and rating of each row of a CSV file. Raises InputError for wrong lengths."""
    with open_lines(path, MAX_CSV_BYTES) as lines:
        num_skipped, text = next(((n, line) for n, line in enumerate(lines) if line.strip()), (0, ""))
        if not text:
            raise InputError(f"{path}, line 1: expected a header with the columns question and answer, found nothing")
        try:
            layout = _detect_layout(path, num_skipped + 1, text)
        except csv.Error as e:
            raise InputError(f"{path}, line {num_skipped + 1}: {e}") from None
        reader = csv.reader(chain([text], lines), delimiter=layout.delimiter, skipinitialspace=True)
        try:
            if layout.has_header:
                next(reader)
            for row in reader:
                if any(row):
                    yield num_skipped + reader.line_num, *_parse_row(row, layout, cells)
        except (csv.Error, _RowError) as e:
            raise InputError(f"{path}, line {num_skipped + reader.line_num}: {e}") from None


class _RowError(Exception):
    """A fault in a row of a file. Whoever catches it adds the number of the line."""


def _parse_row(row: list[str], layout: _Layout, cells: int) -> tuple[str, str, float]:
    """Return puzzle, answer and rating (nan if missing) of a row. Raises _RowError for wrong lengths."""
    if len(row) != layout.num_fields:
        raise _RowError(
            f"{len(row)} fields, but the {'header' if layout.has_header else 'first row'} has {layout.num_fields}"
        )
    question, answer = row[layout.puzzle], row[layout.answer]
    if len(question) != cells or len(answer) != cells:
        question, answer = question.strip(), answer.strip()
        for name, value in (("question", question), ("answer", answer)):
            if len(value) != cells:
                is_number = NUMBER.fullmatch(value)
                hint = " (a spreadsheet turned it into a number: save the column as text)" if is_number else ""
                raise _RowError(f"the {name} has {len(value)} characters, not {cells}{hint}")
    if layout.rating is None:
        return question, answer, math.nan
    rating = row[layout.rating].strip()
    if rating and not NUMBER.fullmatch(rating):
        raise _RowError(f"the rating {rating!r} is no number")
    return question, answer, float(rating or "nan")


def _convert_ratings(ratings: np.ndarray) -> np.ndarray | None:
    """Convert float64 ratings to int64 if all are whole numbers; return None if all are nan."""
    if np.isnan(ratings).all():
        return None
    is_whole = (ratings == np.floor(ratings)) & (np.abs(ratings) < 2**53)
    return ratings.astype(np.int64) if is_whole.all() else ratings


def _check_rows(path: Path, size: int, rows: list[tuple[int, str, str]]) -> tuple[np.ndarray, np.ndarray]:
    """Convert puzzles and answers to digits, uint8 ``[n, L]``. Raises InputError for the first wrong row."""
    digit_of = np.full(256, 255, np.uint8)
    digit_of[[*BLANKS.encode()]] = 0
    digit_of[ord("1") : ord("1") + size] = range(1, size + 1)

    def to_digits(texts: list[str]) -> np.ndarray:
        text = "".join(texts)
        if not text.isascii():
            text = re.sub(r"[^\x00-\x7f]", "!", text)  # each character must be one byte; ! is refused below
        codes = np.frombuffer(text.encode(), np.uint8)
        return digit_of[codes].reshape(len(texts), size * size)

    questions, answers = to_digits([row[1] for row in rows]), to_digits([row[2] for row in rows])
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
    is_wrong = np.logical_or.reduce(list(faults.values()))
    if is_wrong.any():
        first = int(is_wrong.argmax())
        fault = next(text for text, has_fault in faults.items() if has_fault[first])
        raise InputError(f"{path}, line {rows[first][0]}: {fault}")
    return questions, answers
