"""An ARC task, its JSON, and the files that people have it in: one a task, or Kaggle's with many."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pyro_gram.errors import ConfigError, InputError, UserError
from pyro_gram.system.download import data_folder
from pyro_gram.system.files import explain_file_type, parse_json
from pyro_gram.system.text import PuzzleText, make_printable, numbered_lines, read_text
from pyro_gram.tasks.arc.grids import COLORS, Grid, GridKey, grid_key

log = logging.getLogger(__name__)

NO_TASK = 'an ARC task is a JSON object with "train" (demonstrations) and "test" (inputs to answer)'
UNKNOWN: tuple[Any, ...] = (None, [], [[]])  # what stands for a test output that is not given away
NAME = 60  # characters of a task's name that are kept
CHALLENGES, SOLUTIONS = "_challenges.json", "_solutions.json"  # Kaggle's: two files, known by the ends of their names


@dataclass(frozen=True)
class ArcPuzzle:
    """One ARC task.

    Attributes:
        id: what checkpoints know it by.
        train: the demonstrations, (input, output).
        test: the test inputs, each with its output, or None where that is unknown.
        name: that of the file that a task of a user's own came in; empty for others.
    """

    id: str
    train: tuple[tuple[Grid, Grid], ...]
    test: tuple[tuple[Grid, Grid | None], ...]
    name: str = ""

    @property
    def side(self) -> int:
        """The longest side of any grid."""
        return max(max(g.shape) for pair in (*self.train, *self.test) for g in pair if g is not None)

    @property
    def seen(self) -> list[Grid]:
        """Every grid but the test outputs."""
        return [g for pair in self.train for g in pair] + [a for a, _ in self.test]

    @property
    def demonstrations(self) -> frozenset[tuple[GridKey, GridKey]]:
        """What makes two tasks the same, whatever their names and the order of their pairs."""
        return frozenset((grid_key(a), grid_key(b)) for a, b in self.train)

    @property
    def digest(self) -> str:
        """SHA-256 of the demonstrations, in hexadecimal."""
        return hashlib.sha256(repr(sorted(self.demonstrations)).encode()).hexdigest()


# ---- JSON ----------------------------------------------------------------------------------------------------------


def grid_text(grid: Grid) -> str:
    """Compact JSON: ``[[0,1],[2,3]]``."""
    return json.dumps(grid.tolist(), separators=(",", ":"))


def input_text(puzzle: ArcPuzzle, version: int, grid: Grid) -> str:
    """An input as compact JSON, which :func:`read_named` reads: ``{"id":"0d3d703e","version":0,"input":[[3,1,2]]}``.

    A task of a user's own has its file's name beside its id.
    """
    names = {"id": puzzle.id, **({"name": puzzle.name} if puzzle.name else {}), "version": version}
    return f'{json.dumps(names, separators=(",", ":"))[:-1]},"input":{grid_text(grid)}}}'


def read_json(text: str, where: str = "the task") -> Any:
    """Raises InputError where ``text`` is not JSON."""
    try:
        return parse_json(text)
    except UserError as e:
        raise InputError(f"{where} is not JSON: {e}") from None


def read_grid(rows: Any, where: str, largest: int | None) -> Grid:
    """A grid from nested lists.

    Raises:
        InputError: beginning with ``where``: no list of rows, empty, ragged, no colour, larger than ``largest`` (None:
            however large).
    """
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise InputError(f"{where} must be a list of rows, each a list of colours 0-9")
    if not rows or not rows[0]:
        raise InputError(f"{where} is an empty grid: give at least one row of one cell")
    for number, row in enumerate(rows, start=1):
        if len(row) != len(rows[0]):
            raise InputError(f"{where} is ragged: row {number} has {len(row)} cells, row 1 has {len(rows[0])}")
        for value in row:
            if type(value) is not int or not 0 <= value < COLORS:
                raise InputError(
                    f"{where}, row {number}: {json.dumps(value)[:40]} is no colour, an integer from 0 to 9"
                )
    if largest is not None and max(len(rows), len(rows[0])) > largest:
        raise InputError(f"{where} has {len(rows)} x {len(rows[0])} cells; this canvas holds {largest} x {largest}")
    return np.array(rows, dtype=np.uint8)


def is_puzzle(data: Any) -> bool:
    """Is the value of a JSON meant as an ARC task, right or wrong? Lists of ids, or numbers of tasks, are none."""
    parts = [data[key] for key in ("train", "test") if key in data] if isinstance(data, dict) else []
    return any(isinstance(part, list) and all(isinstance(pair, dict) for pair in part) for part in parts)


def is_collection(data: Any) -> bool:
    """Is it an object of ARC tasks by id, as Kaggle's challenges are?"""
    return isinstance(data, dict) and bool(data) and all(map(is_puzzle, data.values()))


def pieces_of(text: str) -> list[PuzzleText]:
    """An ARC task in JSON, over as many lines as it likes; one JSON value a line; or Kaggle's tasks by id."""
    lines = numbered_lines(text)
    with suppress(InputError):
        read_json(lines[0][1] if len(lines) > 1 else "")
        return [PuzzleText(line, number) for number, line in lines]
    with suppress(InputError):
        data = read_json(text)
        if is_collection(data):
            return [PuzzleText(json.dumps(task), 1, f"task {name}") for name, task in data.items()]
    return [PuzzleText(text, 1)] if text.strip() else []


def read_puzzle(data: Any, name: str, largest: int | None) -> ArcPuzzle:
    """An ARC task from the value of its JSON: ``{"train": [{"input", "output"}, ...], "test": [{"input"}, ...]}``.

    The output of a test is unknown where it is missing, null or empty.

    Raises:
        InputError: naming the pair and the row at fault.
    """
    if not isinstance(data, dict) or not {"train", "test"} <= data.keys():
        raise InputError(NO_TASK)
    pairs: dict[str, list[tuple[Any, Any]]] = {"train": [], "test": []}
    for part, found in pairs.items():
        if not isinstance(data[part], list) or not data[part]:
            raise InputError(f'"{part}" must be a list of at least one pair')
        for number, pair in enumerate(data[part], start=1):
            where = f"{part} pair {number}"
            unknown = part == "test" and isinstance(pair, dict) and pair.get("output") in UNKNOWN
            needed = ("input",) if unknown else ("input", "output")
            missing = [key for key in needed if not isinstance(pair, dict) or key not in pair]
            if missing:
                raise InputError(f'{where} has no "{missing[0]}"')
            grids = [read_grid(pair[key], f"{where}, {key}", largest) for key in needed]
            found.append((grids[0], None if unknown else grids[1]))
    return ArcPuzzle(name, tuple(pairs["train"]), tuple(pairs["test"]))


def read_named(data: dict[str, Any], largest: int) -> tuple[str, int, Grid]:
    """Id, version and input from ``{"id": "0d3d703e", "version": 3, "input": [[...]]}``; without version, 0 (plain).

    The ``name`` that a task of a user's own has beside its id is for people, and not looked at.

    Raises:
        InputError: naming the key at fault. Whether there are such a task and version is for the caller to say.
    """
    for key in ("id", "input"):
        if key not in data:
            raise InputError(f'the object has no "{key}": an input is {{"id": TASK, "version": V, "input": GRID}}')
    extra = sorted(data.keys() - {"id", "name", "version", "input"})
    if extra:
        raise InputError(f'an input has "id", "version" and "input"; {json.dumps(extra[0])} is none of them')
    name, version = data["id"], data.get("version", 0)
    if not isinstance(name, str):
        raise InputError(f"id must be a text, not {json.dumps(name)}")
    if type(version) is not int or version < 0:
        raise InputError(f"version must be an integer from 0 (the plain task), not {json.dumps(version)}")
    return name, version, read_grid(data["input"], "input", largest)


# ---- files ---------------------------------------------------------------------------------------------------------


def find_folder(files: str, data_dir: str | None) -> Path:
    """The folder that ``task.files`` names: in the data directory, where there is one, else as the path it is.

    Raises:
        ConfigError: no such folder, or a data directory that is none.
    """
    data = None if Path(files).is_absolute() else data_folder(data_dir)
    places = [Path(files)] if data is None else [data / files, Path(files)]
    for folder in places:
        if folder.is_dir():
            return folder
    raise ConfigError(f"task.files = {places[0]} must be a folder of ARC tasks, one .json file each")


def read_folder(folder: Path, largest: int) -> list[ArcPuzzle]:
    """Every ARC task in the ``.json`` files of a folder and of those in it, ordered by their demonstrations.

    A checkpoint knows tasks by number, so files may be renamed. Tasks with the same demonstrations are one. Tasks with
    a grid longer than ``largest`` are left out and files that hold no task are skipped, which is logged; hidden files
    are not looked at.

    Raises:
        ConfigError: there is none, or none that is not too large.
        InputError: naming the file at fault: it is no JSON, or its task is wrong.
    """
    found: dict[str, ArcPuzzle] = {}
    large: list[str] = []
    strange: list[Path] = []
    for path in _json_files(folder):
        read = list(_tasks_of(path))
        if not read:
            strange.append(path)
        for puzzle in read:
            if puzzle.side > largest:
                large.append(puzzle.name)
                continue
            digest = puzzle.digest
            first = found.get(digest, replace(puzzle, id=f"files/{digest[:12]}", test=()))
            found[digest] = replace(first, test=first.test + puzzle.test)
    if not found and large:
        raise ConfigError(
            f"task.files = {folder}: {_some(large)} has a grid longer than the canvas of {largest} x {largest}, and no "
            "other task is there: raise task.canvas (at most 30)"
        )
    if not found and strange:
        raise InputError(f"{strange[0]}: {NO_TASK}")
    if not found:
        raise ConfigError(f"task.files = {folder} must be a folder of ARC tasks, one .json file each")
    if strange:
        names = [str(path.relative_to(folder)) for path in strange]
        log.warning("task.files = %s: skipped, as it holds no ARC task: %s", folder, _some(names))
    if large:
        size = f"{largest} x {largest}"
        log.warning("task.files = %s: left out, as it is larger than the canvas of %s: %s", folder, size, _some(large))
    return [found[digest] for digest in sorted(found)]


def _some(names: list[str], most: int = 3) -> str:
    """The first few names, and how many there are in all."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _json_files(folder: Path) -> list[Path]:
    """Those in a folder, however deep, but for hidden ones and the solutions that lie beside their challenges."""
    found = []
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower() == ".json" and not hidden and path.is_file():
            found.append(path)
    challenges = {path for path in found if path.name.endswith(CHALLENGES)}
    return [path for path in found if _partner(path, SOLUTIONS, CHALLENGES) not in challenges]


def _partner(path: Path, end: str, other: str) -> Path | None:
    """The path whose name ends in ``other`` instead of ``end``; None for a name with another end."""
    return path.with_name(path.name.removesuffix(end) + other) if path.name.endswith(end) else None


def _tasks_of(path: Path) -> Iterator[ArcPuzzle]:
    """The tasks in a JSON file, named by it, or by their ids where there are several. Raises InputError naming it."""
    data = _value_of(path)
    if is_puzzle(data):
        with _named(path):
            yield replace(read_puzzle(data, path.name, None), name=make_printable(path.name[:NAME]))
    elif is_collection(data):
        partner = _partner(path, CHALLENGES, SOLUTIONS)
        solutions = _value_of(partner) if partner and partner.is_file() else {}
        if not isinstance(solutions, dict):
            raise InputError(f"{partner}: must be a JSON object of lists of outputs by the ids of their tasks")
        for name, task in data.items():
            with _named(path, name):
                puzzle = read_puzzle(task, name, None)
            if name in solutions:
                assert partner is not None
                with _named(partner, name):
                    puzzle = _with_outputs(puzzle, solutions[name])
            yield replace(puzzle, name=make_printable(name[:NAME]))


def _value_of(path: Path) -> Any:
    """The value of a JSON file. Raises InputError naming it."""
    text = read_text(path)
    try:
        return read_json(text)
    except InputError as e:
        raise InputError(f"{path}: {explain_file_type(path) or e}") from None


@contextmanager
def _named(path: Path, task: str = "") -> Iterator[None]:
    """An InputError says in which file, and in which of its tasks, it is."""
    try:
        yield
    except InputError as e:
        raise InputError(f"{path}{f', task {task}' if task else ''}: {e}") from None


def _with_outputs(puzzle: ArcPuzzle, outputs: Any) -> ArcPuzzle:
    """A task with the outputs of its tests that it does not give itself. Raises InputError."""
    if not isinstance(outputs, list) or len(outputs) != len(puzzle.test):
        raise InputError(f"must be a list of outputs, as many as the task has tests, which is {len(puzzle.test)}")
    test = []
    for number, ((a, b), output) in enumerate(zip(puzzle.test, outputs, strict=True), start=1):
        known = b is not None or output in UNKNOWN
        test.append((a, b if known else read_grid(output, f"output {number}", None)))
    return replace(puzzle, test=tuple(test))
