"""ARC-AGI-1 and -2 (Section 4 and Appendix B.2 of the paper): one rule a task, known by an embedding.

As in HRM and TRM the model never sees demonstrations as context. Each task, and each augmented version of it, is a
puzzle with a number and a learned embedding; the demonstrations of *evaluation* tasks are training data, their test
inputs the test split. What may be trained on is settled in :mod:`pyro_gram.tasks.arc.data`.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Hashable
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pyro_gram.errors import InputError
from pyro_gram.registry import TASKS
from pyro_gram.spec import TaskSpec
from pyro_gram.system.text import PuzzleText
from pyro_gram.tasks.arc import files as arc_files
from pyro_gram.tasks.arc import grids
from pyro_gram.tasks.arc.data import ArcConfig, Pair, collect
from pyro_gram.tasks.arc.grids import INVERSE, VOCABULARY, Augmentation, Grid, grid_key
from pyro_gram.tasks.base import PuzzleSet, Task, check_split
from pyro_gram.tasks.terminal import join_blocks, mark_mistake, painter

if TYPE_CHECKING:
    from matplotlib.axes import Axes

AT_ONCE = 4096  # canvases held in memory together when answers are checked


@TASKS.register("arc")
class Arc(Task):
    """Apply the rule that a task's number stands for to an input grid.

    x is int64 ``[..., 1 + canvas * canvas]``: the number of the (task, version), then the canvas; y the canvas of the
    answer. What stands on a canvas outside its grid does not matter: answers are compared as grids.
    """

    Config = ArcConfig
    violation_name = "wrong cell"

    def __init__(self, config: ArcConfig, data_dir: str | None = None) -> None:
        self.config = config
        self.canvas = config.canvas
        self.paper_name = "arc2" if config.dataset == "arcagi2" else "arc1"
        pool = self._pool = collect(config, data_dir)
        self.puzzles = pool.puzzles
        self._splits: dict[str, PuzzleSet] = {}
        drawn = [grids.draw_augmentations(p.id, p.seen, config.augmentations, config.data_seed) for p in self.puzzles]
        self._versions = torch.tensor([len(t) for t, _ in drawn])
        self._first = self._versions.cumsum(0) - self._versions  # the number of each plain task
        self._task = torch.arange(len(drawn)).repeat_interleave(self._versions)
        transforms, colors = (np.concatenate(part) for part in zip(*drawn, strict=True))
        self._transforms, self._colors = torch.from_numpy(transforms), torch.from_numpy(colors)
        size = self.canvas**2
        self.spec = TaskSpec(size, None, VOCABULARY, size, VOCABULARY, puzzles=len(transforms))

    def task_of(self, number: int) -> tuple[str, Augmentation]:
        """The id of the task that a puzzle number stands for, and the version."""
        version = Augmentation(int(self._transforms[number]), tuple(self._colors[number].tolist()))
        return self.puzzles[int(self._task[number])].id, version

    def provenance(self) -> dict[str, str]:
        """What the puzzle numbers stand for, on which learned embeddings depend.

        ``puzzles``: SHA-256 of the id and the demonstrations of every task, in order. ``versions``: that of the
        transform and the colours of every number.
        """
        puzzles = "".join(f"{p.id} {p.digest}\n" for p in self.puzzles)
        versions = torch.cat((self._transforms[:, None], self._colors), dim=-1)
        return {
            "puzzles": hashlib.sha256(puzzles.encode()).hexdigest(),
            "versions": hashlib.sha256(versions.numpy().tobytes()).hexdigest(),
        }

    # ---- data --------------------------------------------------------------------------------------------------

    def split(self, name: str) -> PuzzleSet:
        """``test`` keeps the versions of one test input together, the plain one, which is ``primary``, first."""
        check_split(name)
        if name not in self._splits:
            pool, shuffle = self._pool, random.Random(self.config.data_seed)
            if name == "test":
                order = shuffle.sample(pool.scored, len(pool.scored))
                pairs = [(i, a, b) for i in order for a, b in self.puzzles[i].test if b is not None]
                self._splits[name] = self._puzzle_set(pairs, self.config.evaluate_augmentations)
            else:
                pairs = pool.train if name == "train" else pool.validation
                self._splits[name] = self._puzzle_set(shuffle.sample(pairs, len(pairs)), 1)
        return self._splits[name]

    def _puzzle_set(self, pairs: list[Pair], versions: int) -> PuzzleSet:
        """Pairs at the top left, each in up to ``versions`` versions of its task, the plain one first."""
        task = torch.tensor([i for i, _, _ in pairs])
        count = self._versions[task].clamp(max=versions)
        row = torch.arange(len(pairs)).repeat_interleave(count)
        version = torch.arange(len(row)) - (count.cumsum(0) - count)[row]
        number = self._first[task[row]] + version
        canvases = []
        for side in ([a for _, a, _ in pairs], [b for _, _, b in pairs]):
            size = torch.tensor([g.shape for g in side])
            cells, _ = grids.crop(self._square(grids.encode(side, self.canvas)), torch.zeros_like(size))
            turned = [self._turned(cells[r], size[r], n) for r, n in zip(*self._parts(row, number), strict=True)]
            canvases.append(torch.cat([grids.place(c, s, torch.zeros_like(s)).flatten(-2) for c, s in turned]))
        x = torch.cat((number[:, None], canvases[0]), dim=-1)
        primary = version == 0 if versions > 1 else None
        return PuzzleSet(x, canvases[1], torch.arange(len(row) + 1), is_first_version=primary)

    @staticmethod
    def _parts(*tensors: Tensor) -> tuple[tuple[Tensor, ...], ...]:
        """Each tensor in pieces whose canvases fit into memory together."""
        return tuple(t.split(AT_ONCE) for t in tensors)

    @cached_property
    def _pairs_of_task(self) -> Tensor:
        return torch.bincount(torch.tensor([i for i, _, _ in self._pool.train]), minlength=len(self.puzzles))

    def augment(self, x: Tensor | None, y: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Another version of each pair's task, standing elsewhere on the canvas.

        Input and output move together, by a translation that keeps both inside, as in HRM and TRM; one visit in as
        many as the task has pairs leaves them at the top left, where every test stands (TRM: one pair a version).
        """

        def draw(below: Tensor) -> Tensor:
            return (torch.rand(below.shape, generator=generator, dtype=torch.float64) * below).long()

        number, cells_x, size_x, origin = self._opened(x)
        cells_y, size_y = grids.crop(self._square(y), origin)
        task = self._task[number]
        new = self._first[task] + draw(self._versions[task])
        moved = []
        for cells, size in ((cells_x, size_x), (cells_y, size_y)):
            moved.append(self._turned(*self._undone(cells, size, number), new))
        room = self.canvas - torch.maximum(moved[0][1], moved[1][1])
        offset = draw(room + 1) * (draw(self._pairs_of_task[task].clamp(min=1)) > 0)[..., None]
        x_new, y_new = (grids.place(cells, size, offset).flatten(-2) for cells, size in moved)
        return torch.cat((new[..., None], x_new), dim=-1), y_new

    def _square(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, (self.canvas, self.canvas))

    def _opened(self, x: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Number, cells, size and origin of inputs."""
        assert x is not None
        canvas = self._square(x[..., 1:])
        origin = grids.origin_of(canvas)
        return x[..., 0], *grids.crop(canvas, origin), origin

    def _turned(self, cells: Tensor, size: Tensor, number: Tensor) -> tuple[Tensor, Tensor]:
        """Plain grids in the version of ``number``."""
        return grids.turn(cells, size, self._transforms[number].long(), self._colors[number].long())

    def _undone(self, cells: Tensor, size: Tensor, number: Tensor) -> tuple[Tensor, Tensor]:
        """Grids in the version of ``number``, plain again."""
        transform = torch.from_numpy(INVERSE)[self._transforms[number].long()]
        return grids.turn(cells, size, transform, self._colors[number].long().argsort(-1))

    # ---- what is right -----------------------------------------------------------------------------------------

    @cached_property
    def _answers(self) -> tuple[dict[tuple[int, Hashable], int], Tensor, Tensor]:
        """Every known answer: (task, plain input) to its row; cells, uint8 ``[K, C, C]``; sizes, int64 ``[K, 2]``."""
        rows: dict[tuple[int, Hashable], int] = {}
        outputs: list[Grid] = []
        for i, puzzle in enumerate(self.puzzles):
            for a, b in (*puzzle.train, *puzzle.test):
                if b is not None and (i, grid_key(a)) not in rows:
                    rows[i, grid_key(a)] = len(outputs)
                    outputs.append(b)
        size = torch.tensor([b.shape for b in outputs])
        cells = self._square(grids.encode(outputs, self.canvas))
        return rows, grids.crop(cells, torch.zeros_like(size))[0].byte(), size

    def _keys(self, x: Tensor) -> list[tuple[int, Hashable]]:
        """(task, plain input) of each of ``x [N, event]``."""
        number, cells, size, _ = self._opened(x)
        cells, size = self._undone(cells, size, number)
        plain = (grids.to_grid(c, s) for c, s in zip(cells, size, strict=True))
        return [
            (i, None if g is None else grid_key(g)) for i, g in zip(self._task[number].tolist(), plain, strict=True)
        ]

    def _expected(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Cells and size of the answers to ``x [N, event]``, and which are known, bool ``[N]``."""
        _, cells, size = self._answers
        row = self._answer_of(x)
        here = row.clamp(min=0)
        return *self._turned(cells[here].long(), size[here], x[:, 0]), row >= 0

    def _answer_of(self, x: Tensor) -> Tensor:
        """The row of ``_answers`` of each of ``x [N, event]``, -1 where it is not known: int64 ``[N]``."""
        rows = self._answers[0]
        return torch.tensor([rows.get(key, -1) for key in self._keys(x)], dtype=torch.long)

    def has_known_answer(self, x: Tensor | None, y: Tensor) -> Tensor:
        """False for a user's own test without its output, and for an input that no task of this run has."""
        assert x is not None
        found = self._answer_of(x.reshape(-1, x.shape[-1])) >= 0
        return found.view(x.shape[:-1]).expand(torch.broadcast_shapes(x.shape[:-1], y.shape[:-1]))

    def violations(self, x: Tensor | None, y: Tensor) -> Tensor:
        """Cells that differ from the known answer; where even the shape differs, all of its cells and one more.

        For an input whose answer is not :meth:`known`: 1 if no grid can be read off ``y``, else 0. Only there, 0 does
        not mean that the answer is right.
        """
        assert x is not None
        cells, size, known = self._expected(x.reshape(-1, x.shape[-1]))

        def count(row: Tensor, drawn: Tensor, shape: Tensor, _: Tensor) -> Tensor:
            wrong = (drawn != cells[row]).sum((-1, -2))
            wrong = torch.where((shape == size[row]).all(-1), wrong, size[row].prod(-1) + 1)
            return torch.where(known[row], wrong, (shape[:, 0] == 0).long())

        return self._over(count, x, y)

    def canonical_form(self, x: Tensor | None, y: Tensor) -> Tensor:
        """The same grid drawn properly where x's grid stands; an empty canvas where ``y`` shows none."""
        return self._over(lambda _, *drawn: grids.place(*drawn).flatten(-2), x, y)

    def _over(self, function: Callable[..., Tensor], x: Tensor | None, y: Tensor) -> Tensor:
        """``function(row, cells, size, origin)`` of the grids in ``y [..., L]``, a bounded number at a time.

        ``row`` says which of the flattened inputs each belongs to.
        """
        assert x is not None
        origin = grids.origin_of(self._square(x.reshape(-1, x.shape[-1])[:, 1:]))
        lead = torch.broadcast_shapes(x.shape[:-1], y.shape[:-1])
        rows = torch.arange(len(origin)).view(x.shape[:-1]).expand(lead).reshape(-1)
        tokens = y.expand(*lead, y.shape[-1]).reshape(-1, y.shape[-1])
        results = [
            function(row, *grids.crop(self._square(part), origin[row]), origin[row])
            for row, part in zip(*self._parts(rows, tokens), strict=True)
        ]
        out = torch.cat(results)
        return out.view((*lead, *out.shape[1:]))

    def extra_metrics(self, puzzles: PuzzleSet, tokens: Tensor) -> dict[str, float]:
        """The official scores, by a vote over all samples of all versions of each test input, their symmetries undone.

        ``pass_at_1`` and ``pass_at_2``: test outputs that are the first, or one of the first two, in frequency
        (Kaggle's average). ``arc_score``: with ``attempts`` answers, averaged within a task and then over tasks
        (ARC Prize's). An answer without a grid has no vote; ties go to the earlier version, then sample.
        """
        x = puzzles.inputs
        assert x is not None
        number, _, _, origin = self._opened(x)
        canvas = self._square(tokens)
        plain = [self._undone(*grids.crop(sample, origin), number) for sample in canvas]  # N of [B, C, C] and [B, 2]
        rows, cells, size = self._answers
        groups: dict[tuple[int, Hashable], list[int]] = {}
        for place, key in enumerate(self._keys(x)):
            if key in rows:
                groups.setdefault(key, []).append(place)
        solved: dict[int, dict[tuple[int, Hashable], bool]] = {1: {}, 2: {}, self.config.attempts: {}}
        for key, places in groups.items():
            right = grid_key(_cut(cells[rows[key]].long(), size[rows[key]]))
            answers = [grids.to_grid(c[i], s[i]) for i in places for c, s in plain]
            ranked = grids.vote((None if g is None else grid_key(g) for g in answers), max(solved))
            for attempts, found in solved.items():
                found[key] = right in ranked[:attempts]
        shares = {k: sum(found.values()) / max(1, len(found)) for k, found in solved.items()}
        score = grids.mean_by_task(solved[self.config.attempts])
        return {"pass_at_1": shares[1], "pass_at_2": shares[2], "arc_score": score}

    # ---- text and picture --------------------------------------------------------------------------------------

    @cached_property
    def _by_demonstrations(self) -> dict[Hashable, int]:
        return {p.demonstrations: i for i, p in reversed(list(enumerate(self.puzzles)))}

    @cached_property
    def _by_id(self) -> dict[str, int]:
        return {p.id: i for i, p in enumerate(self.puzzles)}

    @cached_property
    def _by_grid(self) -> dict[Hashable, dict[int, Tensor]]:
        """For each input grid of the splits: x under each task that has it."""
        found: dict[Hashable, dict[int, Tensor]] = {}
        for name in ("test", "validation", "train"):
            x = self.split(name).inputs
            assert x is not None
            _, cells, size, _ = self._opened(x)
            for row, c, s, i in zip(x, cells, size, self._task[x[:, 0]].tolist(), strict=True):
                found.setdefault(grid_key(_cut(c, s)), {}).setdefault(i, row)
        return found

    def parse(self, text: str) -> Tensor:
        """One input, in JSON: what :meth:`format_input` prints; an ARC task with one test input, known by its
        demonstrations; or the bare grid of an input that only one task has.
        """
        inputs = self.parse_inputs(text)
        if len(inputs) > 1:
            raise InputError(f"the task has {len(inputs)} test inputs: give one at a time, or the file to solve.py")
        return inputs[0]

    def puzzle_texts(self, text: str) -> list[PuzzleText]:
        return arc_files.pieces_of(text)

    def parse_inputs(self, text: str) -> list[Tensor]:
        """Every test input of an ARC task; or the one that another JSON value gives, as in :meth:`parse`."""
        data = arc_files.read_json(text)
        if isinstance(data, list):
            return [self._lone_grid(arc_files.read_grid(data, "the grid", self.canvas))]
        if isinstance(data, dict) and data.keys() & {"id", "input"} and not data.keys() & {"train", "test"}:
            return [self._named_input(*arc_files.read_named(data, self.canvas))]
        puzzle = arc_files.read_puzzle(data, "input", self.canvas)
        task = self._by_demonstrations.get(puzzle.demonstrations)
        if task is None:
            raise InputError(
                "this checkpoint has no embedding for the task, as it was not trained on these demonstrations: put the "
                "file into a folder and train with --task.files FOLDER"
            )
        return [self._input(task, 0, grid) for grid, _ in puzzle.test]

    def _input(self, task: int, version: int, grid: Grid) -> Tensor:
        return torch.cat((self._first[task].view(1) + version, grids.encode([grid], self.canvas)[0]))

    def _named_input(self, name: str, version: int, grid: Grid) -> Tensor:
        task = self._by_id.get(name)
        if task is None:
            raise InputError(f"id {json.dumps(name)} is no task of this run: give the task, with its demonstrations")
        last = int(self._versions[task]) - 1
        if version > last:
            shown = self.puzzles[task].name or name
            raise InputError(f"version {version} of task {shown} does not exist: the last is {last}, the plain one 0")
        return self._input(task, version, grid)

    def _lone_grid(self, grid: Grid) -> Tensor:
        found = list(self._by_grid.get(grid_key(grid), {}).values())
        if len(found) == 1:
            return found[0]
        why = f"is an input of {len(found)} tasks" if found else "is an input of no task of this run"
        raise InputError(f"the grid {why}, and so names no rule: add the id of its task or its demonstrations")

    def format_input(self, x: Tensor | None) -> str:
        """Task, version and grid as JSON, as :func:`~pyro_gram.tasks.arc.files.input_text` writes it."""
        return arc_files.input_text(*self._named(x), _cut(*self._opened(x)[1:3]))

    def title(self, x: Tensor | None) -> str:
        """The name of the file, or the id, of the task and, but for the plain one, the version."""
        puzzle, version = self._named(x)
        return (puzzle.name or puzzle.id) + (f", version {version}" if version else "")

    def _named(self, x: Tensor | None) -> tuple[arc_files.ArcPuzzle, int]:
        """The task of one input and its version."""
        number = self._opened(x)[0]
        task = int(self._task[number])
        return self.puzzles[task], int(number - self._first[task])

    def format_solution(self, x: Tensor | None, y: Tensor) -> str:
        """The answer's grid as compact JSON; ``?`` where there is none."""
        grid = self._grid(x, y)
        return "?" if grid is None else arc_files.grid_text(grid)

    def _grid(self, x: Tensor | None, y: Tensor) -> Grid | None:
        return grids.to_grid(*grids.crop(self._square(y), self._opened(x)[-1]))

    def _wrong(self, x: Tensor | None, grid: Grid) -> np.ndarray:
        """Cells of an answer that differ from the known one, if there is one; all, where the shapes do."""
        assert x is not None
        cells, size, known = self._expected(x[None])
        right = _cut(cells[0], size[0]) if known[0] else grid
        return grid != right if grid.shape == right.shape else np.ones_like(grid, dtype=bool)

    def plot(self, axes: Axes, x: Tensor | None, y: Tensor | None = None) -> None:
        """The grid in ARC's colours; crosses mark cells that differ from the answer, where it is known."""
        grid = _cut(*self._opened(x)[1:3]) if y is None else self._grid(x, y)
        if grid is None:
            axes.text(0.5, 0.5, "no grid", ha="center", va="center", transform=axes.transAxes)
            axes.set_axis_off()
        else:
            grids.draw_grid(axes, grid, np.zeros_like(grid) if y is None else self._wrong(x, grid))

    def render(self, x: Tensor | None, y: Tensor | None = None, colour: bool = False) -> str:
        """The input's grid and, where given, the answer's beside it; marked as :meth:`draw` does."""
        paint = painter(colour)
        given = _cut(*self._opened(x)[1:3])
        left = grids.render_grid(given, np.zeros_like(given), paint)
        if y is None:
            return left
        grid = self._grid(x, y)
        right = mark_mistake("no grid", paint) if grid is None else grids.render_grid(grid, self._wrong(x, grid), paint)
        return join_blocks(left, right, separator="  ->  ")


def _cut(cells: Tensor, size: Tensor) -> Grid:
    """A grid that is there."""
    grid = grids.to_grid(cells, size)
    assert grid is not None
    return grid
