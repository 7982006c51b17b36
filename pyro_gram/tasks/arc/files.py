"""Read and write ARC tasks as JSON. A file holds one task or, as Kaggle's files do, many tasks."""

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
NO_OUTPUT: tuple[Any, ...] = (None, [], [[]])  # values that stand for an unknown test output
MAX_NAME_LENGTH = 60
CHALLENGES, SOLUTIONS = "_challenges.json", "_solutions.json"  # the ends of the names of Kaggle's two files


@dataclass(frozen=True)
class ArcPuzzle:
    """One ARC task.

    Attributes:
        id: the id that checkpoints use for the task.
        train: the demonstrations, as pairs (input, output).
        test: the test inputs, each with its output, or with None if the output is unknown.
        name: for a user's own task the name of its file, or its id in a file of many tasks; empty for other tasks.
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
    def visible_grids(self) -> list[Grid]:
        """All grids but the test outputs."""
        return [g for pair in self.train for g in pair] + [a for a, _ in self.test]

    @property
    def demonstrations(self) -> frozenset[tuple[GridKey, GridKey]]:
        """A key for the demonstrations. Two tasks with equal keys are the same task."""
        return frozenset((grid_key(a), grid_key(b)) for a, b in self.train)

    @property
    def digest(self) -> str:
        """SHA-256 of the demonstrations, in hexadecimal."""
        return hashlib.sha256(repr(sorted(self.demonstrations)).encode()).hexdigest()


# ---- JSON ----------------------------------------------------------------------------------------------------------


def format_grid(grid: Grid) -> str:
    """Return a grid as compact JSON: ``[[0,1],[2,3]]``."""
    return json.dumps(grid.tolist(), separators=(",", ":"))


def format_input(puzzle: ArcPuzzle, version: int, grid: Grid) -> str:
    """Return an input as compact JSON, the inverse of :func:`parse_input`.

    An example is ``{"id":"0d3d703e","version":0,"input":[[3,1,2]]}``. A user's own task also has a ``name``.
    """
    names = {"id": puzzle.id, **({"name": puzzle.name} if puzzle.name else {}), "version": version}
    return f'{json.dumps(names, separators=(",", ":"))[:-1]},"input":{format_grid(grid)}}}'


def parse_json_text(text: str) -> Any:
    """Parse JSON. Raises InputError if ``text`` is not JSON."""
    try:
        return parse_json(text)
    except UserError as e:
        raise InputError(f"the task is not JSON: {e}") from None


def parse_grid(rows: Any, place: str, max_side: int | None) -> Grid:
    """Convert nested lists to a grid.

    Args:
        rows: a value from JSON.
        place: where the value stands; error messages begin with it.
        max_side: the most rows and columns; None for no limit.

    Raises:
        InputError: ``rows`` is not a list of rows, is empty, ragged or too large, or has a value that is not a colour.
    """
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise InputError(f"{place} must be a list of rows, each a list of colours 0-9")
    if not rows or not rows[0]:
        raise InputError(f"{place} is an empty grid: give at least one row of one cell")
    for number, row in enumerate(rows, start=1):
        if len(row) != len(rows[0]):
            raise InputError(f"{place} is ragged: row {number} has {len(row)} cells, row 1 has {len(rows[0])}")
        for value in row:
            if type(value) is not int or not 0 <= value < COLORS:
                raise InputError(
                    f"{place}, row {number}: {json.dumps(value)[:40]} is not a colour (an integer from 0 to 9)"
                )
    if max_side is not None and max(len(rows), len(rows[0])) > max_side:
        raise InputError(f"{place} has {len(rows)} x {len(rows[0])} cells; this canvas holds {max_side} x {max_side}")
    return np.array(rows, dtype=np.uint8)


def is_puzzle(data: Any) -> bool:
    """Return whether a JSON value is an ARC task, perhaps a malformed one.

    An object whose ``train`` and ``test`` are lists of ids (a split of tasks) is not an ARC task.
    """
    parts = [data[key] for key in ("train", "test") if key in data] if isinstance(data, dict) else []
    return any(isinstance(part, list) and all(isinstance(pair, dict) for pair in part) for part in parts)


def is_collection(data: Any) -> bool:
    """Return whether a JSON value is an object that maps ids to ARC tasks, as in Kaggle's challenges."""
    return isinstance(data, dict) and bool(data) and all(map(is_puzzle, data.values()))


def split_tasks(text: str) -> list[PuzzleText]:
    """Cut a file into tasks: one ARC task in JSON, Kaggle's object of many tasks, or one JSON value on each line."""
    lines = numbered_lines(text)
    with suppress(InputError):
        parse_json_text(lines[0][1] if len(lines) > 1 else "")
        return [PuzzleText(line, number) for number, line in lines]
    with suppress(InputError):
        data = parse_json_text(text)
        if is_collection(data):
            return [PuzzleText(json.dumps(task), 1, f"task {name}") for name, task in data.items()]
    return [PuzzleText(text, 1)] if text.strip() else []


def parse_puzzle(data: Any, name: str, max_side: int | None) -> ArcPuzzle:
    """Convert the JSON value of an ARC task: ``{"train": [{"input", "output"}, ...], "test": [{"input"}, ...]}``.

    The output of a test is unknown if it is missing, null or empty.

    Raises:
        InputError: the value is not an ARC task; the message names the pair and the row.
    """
    if not isinstance(data, dict) or not {"train", "test"} <= data.keys():
        raise InputError(NO_TASK)
    pairs: dict[str, list[tuple[Any, Any]]] = {"train": [], "test": []}
    for part, part_pairs in pairs.items():
        if not isinstance(data[part], list) or not data[part]:
            raise InputError(f'"{part}" must be a list of at least one pair')
        for number, pair in enumerate(data[part], start=1):
            place = f"{part} pair {number}"
            has_output = part == "train" or not isinstance(pair, dict) or pair.get("output") not in NO_OUTPUT
            keys = ("input", "output") if has_output else ("input",)
            missing_keys = [key for key in keys if not isinstance(pair, dict) or key not in pair]
            if missing_keys:
                raise InputError(f'{place} has no "{missing_keys[0]}"')
            grids = [parse_grid(pair[key], f"{place}, {key}", max_side) for key in keys]
            part_pairs.append((grids[0], grids[1] if has_output else None))
    return ArcPuzzle(name, tuple(pairs["train"]), tuple(pairs["test"]))


def parse_input(data: dict[str, Any], max_side: int) -> tuple[str, int, Grid]:
    """Return id, version and grid of ``{"id": "0d3d703e", "version": 3, "input": [[...]]}``.

    The default version is 0, the plain one. ``name`` is ignored. The caller checks that the task and version exist.

    Raises:
        InputError: a key is missing, unknown or has a wrong value; the message names the key.
    """
    for key in ("id", "input"):
        if key not in data:
            raise InputError(f'the object has no "{key}": an input is {{"id": TASK, "version": V, "input": GRID}}')
    extra_keys = sorted(data.keys() - {"id", "name", "version", "input"})
    if extra_keys:
        raise InputError(f'an input has "id", "version" and "input"; {json.dumps(extra_keys[0])} is none of them')
    name, version = data["id"], data.get("version", 0)
    if not isinstance(name, str):
        raise InputError(f"id must be a text, not {json.dumps(name)}")
    if type(version) is not int or version < 0:
        raise InputError(f"version must be an integer from 0 (the plain task), not {json.dumps(version)}")
    return name, version, parse_grid(data["input"], "input", max_side)


# ---- files ---------------------------------------------------------------------------------------------------------


def find_folder(files: str, data_dir: str | None) -> Path:
    """Return the folder that ``task.files`` names, in the data directory or as a path.

    Raises:
        ConfigError: there is no such folder, or no such data directory.
    """
    data = None if Path(files).is_absolute() else data_folder(data_dir)
    folders = [Path(files)] if data is None else [data / files, Path(files)]
    for folder in folders:
        if folder.is_dir():
            return folder
    raise ConfigError(f"task.files = {folders[0]} must be a folder of ARC tasks, one .json file each")


def read_folder(folder: Path, max_side: int) -> list[ArcPuzzle]:
    """Read the ARC tasks in the ``.json`` files of a folder and its subfolders, ordered by their demonstrations.

    The order does not depend on names, so files may be renamed. Tasks with the same demonstrations are merged.
    Tasks with a grid longer than ``max_side`` and files without a task are left out with a warning; hidden files are
    ignored.

    Raises:
        ConfigError: there is no task, or every task is too large.
        InputError: a file is not JSON, or its task is malformed; the message names the file.
    """
    puzzles: dict[str, ArcPuzzle] = {}
    large_task_names: list[str] = []
    taskless_paths: list[Path] = []
    for path in _json_files(folder):
        file_puzzles = list(_read_puzzles(path))
        if not file_puzzles:
            taskless_paths.append(path)
        for puzzle in file_puzzles:
            if puzzle.side > max_side:
                large_task_names.append(puzzle.name)
                continue
            digest = puzzle.digest
            first = puzzles.get(digest, replace(puzzle, id=f"files/{digest[:12]}", test=()))
            puzzles[digest] = replace(first, test=first.test + puzzle.test)
    size = f"{max_side} x {max_side}"
    if not puzzles and large_task_names:
        raise ConfigError(
            f"task.files = {folder}: {_join_names(large_task_names)} has a grid longer than the canvas of {size}, and "
            "no other task is there: raise task.canvas (at most 30)"
        )
    if not puzzles and taskless_paths:
        raise InputError(f"{taskless_paths[0]}: {NO_TASK}")
    if not puzzles:
        raise ConfigError(f"task.files = {folder} must be a folder of ARC tasks, one .json file each")
    if taskless_paths:
        names = _join_names([str(path.relative_to(folder)) for path in taskless_paths])
        log.warning("task.files = %s: skipped files without an ARC task: %s", folder, names)
    if large_task_names:
        names = _join_names(large_task_names)
        log.warning("task.files = %s: left out tasks larger than the canvas of %s: %s", folder, size, names)
    return [puzzles[digest] for digest in sorted(puzzles)]


def _join_names(names: list[str], limit: int = 3) -> str:
    """Return the first few names, and the number of the others."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _json_files(folder: Path) -> list[Path]:
    """List the JSON files of a folder and its subfolders, but not hidden files and not the solutions of challenges."""
    paths = []
    for path in sorted(folder.rglob("*")):
        is_hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower() == ".json" and not is_hidden and path.is_file():
            paths.append(path)
    challenges = {path for path in paths if path.name.endswith(CHALLENGES)}
    return [path for path in paths if _replace_suffix(path, SOLUTIONS, CHALLENGES) not in challenges]


def _replace_suffix(path: Path, suffix: str, new_suffix: str) -> Path | None:
    """Replace the end of a file name; return None if the name has another end."""
    return path.with_name(path.name.removesuffix(suffix) + new_suffix) if path.name.endswith(suffix) else None


def _read_puzzles(path: Path) -> Iterator[ArcPuzzle]:
    """Yield the tasks of a JSON file. A single task is named after the file, others by their ids. Raises InputError."""
    data = _read_json_file(path)
    if is_puzzle(data):
        with _locate_errors(path):
            yield replace(parse_puzzle(data, path.name, None), name=make_printable(path.name[:MAX_NAME_LENGTH]))
    elif is_collection(data):
        solutions_path = _replace_suffix(path, CHALLENGES, SOLUTIONS)
        solutions = _read_json_file(solutions_path) if solutions_path and solutions_path.is_file() else {}
        if not isinstance(solutions, dict):
            raise InputError(f"{solutions_path}: must be a JSON object that maps ids of tasks to lists of outputs")
        for name, task in data.items():
            with _locate_errors(path, name):
                puzzle = parse_puzzle(task, name, None)
            if name in solutions:
                assert solutions_path is not None
                with _locate_errors(solutions_path, name):
                    puzzle = _add_outputs(puzzle, solutions[name])
            yield replace(puzzle, name=make_printable(name[:MAX_NAME_LENGTH]))


def _read_json_file(path: Path) -> Any:
    """Return the value of a JSON file. Raises an InputError that names the file."""
    text = read_text(path)
    try:
        return parse_json_text(text)
    except InputError as e:
        raise InputError(f"{path}: {explain_file_type(path) or e}") from None


@contextmanager
def _locate_errors(path: Path, task: str = "") -> Iterator[None]:
    """Add the file, and the task in it, to the message of an InputError."""
    try:
        yield
    except InputError as e:
        raise InputError(f"{path}{f', task {task}' if task else ''}: {e}") from None


def _add_outputs(puzzle: ArcPuzzle, outputs: Any) -> ArcPuzzle:
    """Fill in the unknown outputs of a task's tests from the list ``outputs``. Raises InputError."""
    if not isinstance(outputs, list) or len(outputs) != len(puzzle.test):
        raise InputError(f"must be a list of {len(puzzle.test)} outputs, one for each test of the task")
    test = []
    for number, ((a, b), output) in enumerate(zip(puzzle.test, outputs, strict=True), start=1):
        is_settled = b is not None or output in NO_OUTPUT
        test.append((a, b if is_settled else parse_grid(output, f"output {number}", None)))
    return replace(puzzle, test=tuple(test))
