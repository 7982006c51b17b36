"""ARC-AGI-1 and -2 (Section 4 and Appendix B.2 of the paper): apply the rule of a task to a grid.

As in HRM and TRM, the model never sees demonstrations as context. Each task, plain or in an augmented version, is a
puzzle with its own number, and the model learns an embedding for each number. The demonstrations of *evaluation* tasks
are training data. Their tests are the test split, and are never trained on (:mod:`pyro_gram.tasks.arc.data`).
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
from pyro_gram.tasks.arc.data import ArcConfig, Pair, collect_tasks
from pyro_gram.tasks.arc.grids import INVERSE, VOCABULARY, Augmentation, Grid, grid_key
from pyro_gram.tasks.base import PuzzleSet, Task, check_split
from pyro_gram.tasks.terminal import join_blocks, mark_mistake, painter

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CANVASES_AT_ONCE = 4096  # the most canvases that are processed at once


@TASKS.register("arc")
class Arc(Task):
    """Apply the rule of the task with a given number to an input grid.

    x is int64 ``[..., 1 + canvas * canvas]``: the number of the puzzle (a task in one version), and the canvas of the
    input. y is the canvas of the answer. Only the grid on it is compared; tokens outside the grid are ignored.
    """

    Config = ArcConfig
    violation_name = "wrong cell"

    def __init__(self, config: ArcConfig, data_dir: str | None = None) -> None:
        self.config = config
        self.canvas = config.canvas
        self.paper_name = "arc2" if config.dataset == "arcagi2" else "arc1"
        pool = self._pool = collect_tasks(config, data_dir)
        self.puzzles = pool.puzzles
        self._splits: dict[str, PuzzleSet] = {}
        count, seed = config.augmentations, config.data_seed
        versions = [grids.draw_augmentations(p.id, p.visible_grids, count, seed) for p in self.puzzles]
        self._num_versions = torch.tensor([len(t) for t, _ in versions])
        self._first_number = self._num_versions.cumsum(0) - self._num_versions  # number of each task's plain version
        self._task_of_number = torch.arange(len(versions)).repeat_interleave(self._num_versions)
        transforms, colors = (np.concatenate(arrays) for arrays in zip(*versions, strict=True))
        self._transforms, self._colors = torch.from_numpy(transforms), torch.from_numpy(colors)
        size = self.canvas**2
        self.spec = TaskSpec(size, None, VOCABULARY, size, VOCABULARY, puzzles=len(transforms))

    def task_of(self, number: int) -> tuple[str, Augmentation]:
        """Return the id of the task and the version that a puzzle number stands for."""
        version = Augmentation(int(self._transforms[number]), tuple(self._colors[number].tolist()))
        return self.puzzles[int(self._task_of_number[number])].id, version

    def provenance(self) -> dict[str, str]:
        """Return digests of the tasks and versions that the puzzle numbers stand for: the embeddings fit only these.

        ``puzzles``: SHA-256 of the id and the demonstrations of every task, in order. ``versions``: SHA-256 of the
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
        """Return the puzzles of a split; in ``test`` the versions of an input are successive rows, plain first."""
        check_split(name)
        if name not in self._splits:
            pool, shuffle = self._pool, random.Random(self.config.data_seed)
            if name == "test":
                order = shuffle.sample(pool.scored_tasks, len(pool.scored_tasks))
                pairs = [(i, a, b) for i in order for a, b in self.puzzles[i].test if b is not None]
                self._splits[name] = self._puzzle_set(pairs, self.config.evaluate_augmentations)
            else:
                pairs = pool.train if name == "train" else pool.validation
                self._splits[name] = self._puzzle_set(shuffle.sample(pairs, len(pairs)), 1)
        return self._splits[name]

    def _puzzle_set(self, pairs: list[Pair], versions: int) -> PuzzleSet:
        """Place pairs at the top left of a canvas. Return up to ``versions`` versions of each, the plain one first."""
        task = torch.tensor([i for i, _, _ in pairs])
        count = self._num_versions[task].clamp(max=versions)
        row = torch.arange(len(pairs)).repeat_interleave(count)
        version = torch.arange(len(row)) - (count.cumsum(0) - count)[row]
        number = self._first_number[task[row]] + version
        canvases = []
        for plain_grids in ([a for _, a, _ in pairs], [b for _, _, b in pairs]):
            size = torch.tensor([g.shape for g in plain_grids])
            cells, _ = grids.crop(self._to_canvas(grids.encode(plain_grids, self.canvas)), torch.zeros_like(size))
            images = [self._to_version(cells[r], size[r], n) for r, n in zip(*self._chunks(row, number), strict=True)]
            canvases.append(torch.cat([grids.place(c, s, torch.zeros_like(s)).flatten(-2) for c, s in images]))
        x = torch.cat((number[:, None], canvases[0]), dim=-1)
        is_first_version = version == 0 if versions > 1 else None
        return PuzzleSet(x, canvases[1], torch.arange(len(row) + 1), is_first_version=is_first_version)

    @staticmethod
    def _chunks(*tensors: Tensor) -> tuple[tuple[Tensor, ...], ...]:
        """Cut each tensor into chunks whose canvases fit into memory."""
        return tuple(t.split(CANVASES_AT_ONCE) for t in tensors)

    @cached_property
    def _pairs_of_task(self) -> Tensor:
        return torch.bincount(torch.tensor([i for i, _, _ in self._pool.train]), minlength=len(self.puzzles))

    def augment(self, x: Tensor | None, y: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Turn each pair into a random version of its task, at a random offset on the canvas.

        As in HRM and TRM, input and output have the same offset, and both stay inside the canvas. With probability 1 /
        (number of the task's pairs) the offset is 0, as in all tests. (In TRM it is 0 for one pair of each version.)
        """

        def draw_below(limit: Tensor) -> Tensor:
            return (torch.rand(limit.shape, generator=generator, dtype=torch.float64) * limit).long()

        number, cells_x, size_x, origin = self._unpack(x)
        cells_y, size_y = grids.crop(self._to_canvas(y), origin)
        task = self._task_of_number[number]
        new_number = self._first_number[task] + draw_below(self._num_versions[task])
        images = []
        for cells, size in ((cells_x, size_x), (cells_y, size_y)):
            images.append(self._to_version(*self._to_plain(cells, size, number), new_number))
        max_offset = self.canvas - torch.maximum(images[0][1], images[1][1])
        offset = draw_below(max_offset + 1) * (draw_below(self._pairs_of_task[task].clamp(min=1)) > 0)[..., None]
        new_x, new_y = (grids.place(cells, size, offset).flatten(-2) for cells, size in images)
        return torch.cat((new_number[..., None], new_x), dim=-1), new_y

    def _to_canvas(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, (self.canvas, self.canvas))

    def _unpack(self, x: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return for each input the puzzle number, and the cells, the size and the origin of its grid."""
        assert x is not None
        canvas = self._to_canvas(x[..., 1:])
        origin = grids.origin_of(canvas)
        return x[..., 0], *grids.crop(canvas, origin), origin

    def _to_version(self, cells: Tensor, size: Tensor, number: Tensor) -> tuple[Tensor, Tensor]:
        """Convert plain grids to the version that the puzzle ``number`` stands for."""
        return grids.turn(cells, size, self._transforms[number].long(), self._colors[number].long())

    def _to_plain(self, cells: Tensor, size: Tensor, number: Tensor) -> tuple[Tensor, Tensor]:
        """Undo the version that the puzzle ``number`` stands for: return the plain grids."""
        transform = torch.from_numpy(INVERSE)[self._transforms[number].long()]
        return grids.turn(cells, size, transform, self._colors[number].long().argsort(-1))

    # ---- right answers -----------------------------------------------------------------------------------------

    @cached_property
    def _answers(self) -> tuple[dict[tuple[int, Hashable], int], Tensor, Tensor]:
        """All known answers: a dict (task, plain input) -> row; cells, uint8 ``[K, C, C]``; sizes, int64 ``[K, 2]``."""
        rows: dict[tuple[int, Hashable], int] = {}
        outputs: list[Grid] = []
        for i, puzzle in enumerate(self.puzzles):
            for a, b in (*puzzle.train, *puzzle.test):
                if b is not None and (i, grid_key(a)) not in rows:
                    rows[i, grid_key(a)] = len(outputs)
                    outputs.append(b)
        size = torch.tensor([b.shape for b in outputs])
        cells = self._to_canvas(grids.encode(outputs, self.canvas))
        return rows, grids.crop(cells, torch.zeros_like(size))[0].byte(), size

    def _input_keys(self, x: Tensor) -> list[tuple[int, Hashable]]:
        """Return the key (task, plain input) of each input ``x [N, event]``."""
        number, cells, size, _ = self._unpack(x)
        cells, size = self._to_plain(cells, size, number)
        plain_grids = (grids.to_grid(c, s) for c, s in zip(cells, size, strict=True))
        keys = (None if g is None else grid_key(g) for g in plain_grids)
        return list(zip(self._task_of_number[number].tolist(), keys, strict=True))

    def _expected_answers(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return cells and size of the answers to ``x [N, event]``, and which answers are known, bool ``[N]``."""
        _, cells, size = self._answers
        row = self._answer_rows(x)
        valid_row = row.clamp(min=0)
        return *self._to_version(cells[valid_row].long(), size[valid_row], x[:, 0]), row >= 0

    def _answer_rows(self, x: Tensor) -> Tensor:
        """Return the row in ``_answers`` of each input ``x [N, event]``, -1 for no known answer: int64 ``[N]``."""
        rows = self._answers[0]
        return torch.tensor([rows.get(key, -1) for key in self._input_keys(x)], dtype=torch.long)

    def has_known_answer(self, x: Tensor | None, y: Tensor) -> Tensor:
        """Return bool ``[...]``: False for a user's test without output, and for an input that no task here has."""
        assert x is not None
        is_known = self._answer_rows(x.reshape(-1, x.shape[-1])) >= 0
        return is_known.view(x.shape[:-1]).expand(torch.broadcast_shapes(x.shape[:-1], y.shape[:-1]))

    def violations(self, x: Tensor | None, y: Tensor) -> Tensor:
        """Count the cells that differ from the known answer. If ``y`` has another shape, count all cells plus 1.

        If no answer is known (:meth:`has_known_answer`), the count is 1 if ``y`` has no grid, and 0 if it has one,
        although that grid may be wrong.
        """
        assert x is not None
        cells, size, is_known = self._expected_answers(x.reshape(-1, x.shape[-1]))

        def count_mistakes(row: Tensor, answer_cells: Tensor, answer_size: Tensor, _: Tensor) -> Tensor:
            mistakes = (answer_cells != cells[row]).sum((-1, -2))
            mistakes = torch.where((answer_size == size[row]).all(-1), mistakes, size[row].prod(-1) + 1)
            return torch.where(is_known[row], mistakes, (answer_size[:, 0] == 0).long())

        return self._map_grids(count_mistakes, x, y)

    def canonical_form(self, x: Tensor | None, y: Tensor) -> Tensor:
        """Return a canvas with only the grid in ``y``, at the place of the grid in x; empty if ``y`` has no grid."""
        return self._map_grids(lambda _, *grid: grids.place(*grid).flatten(-2), x, y)

    def _map_grids(self, function: Callable[..., Tensor], x: Tensor | None, y: Tensor) -> Tensor:
        """Apply ``function(row, cells, size, origin)`` to the grids in ``y [..., L]``, in chunks.

        ``row`` is the index of each grid's input among the flattened inputs.
        """
        assert x is not None
        origin = grids.origin_of(self._to_canvas(x.reshape(-1, x.shape[-1])[:, 1:]))
        batch_shape = torch.broadcast_shapes(x.shape[:-1], y.shape[:-1])
        rows = torch.arange(len(origin)).view(x.shape[:-1]).expand(batch_shape).reshape(-1)
        tokens = y.expand(*batch_shape, y.shape[-1]).reshape(-1, y.shape[-1])
        chunks = zip(*self._chunks(rows, tokens), strict=True)
        crops = ((row, *grids.crop(self._to_canvas(chunk), origin[row]), origin[row]) for row, chunk in chunks)
        results = torch.cat([function(*crop) for crop in crops])
        return results.view((*batch_shape, *results.shape[1:]))

    def extra_metrics(self, puzzles: PuzzleSet, tokens: Tensor) -> dict[str, float]:
        """Return the official scores, by a vote over all samples of all versions of each test input.

        The symmetry of each version is undone before the vote. ``pass_at_1`` and ``pass_at_2``: the share of test
        inputs whose right answer is among the 1 or 2 most frequent (Kaggle's average). ``arc_score``: the same for the
        ``attempts`` most frequent, averaged within each task, then over tasks (ARC Prize's score). An answer without a
        grid has no vote. Ties go to the earlier version, then to the earlier sample.
        """
        x = puzzles.inputs
        assert x is not None
        number, _, _, origin = self._unpack(x)
        canvas = self._to_canvas(tokens)
        # N pairs of cells [B, C, C] and sizes [B, 2]
        plain_samples = [self._to_plain(*grids.crop(sample, origin), number) for sample in canvas]
        rows, cells, size = self._answers
        groups: dict[tuple[int, Hashable], list[int]] = {}
        for index, key in enumerate(self._input_keys(x)):
            if key in rows:
                groups.setdefault(key, []).append(index)
        outcomes: dict[int, dict[tuple[int, Hashable], bool]] = {1: {}, 2: {}, self.config.attempts: {}}
        for key, indices in groups.items():
            right_key = grid_key(_crop_grid(cells[rows[key]].long(), size[rows[key]]))
            answers = [grids.to_grid(c[i], s[i]) for i in indices for c, s in plain_samples]
            ranking = grids.vote((None if g is None else grid_key(g) for g in answers), max(outcomes))
            for attempts, is_solved in outcomes.items():
                is_solved[key] = right_key in ranking[:attempts]
        shares = {k: sum(is_solved.values()) / max(1, len(is_solved)) for k, is_solved in outcomes.items()}
        score = grids.mean_by_task(outcomes[self.config.attempts])
        return {"pass_at_1": shares[1], "pass_at_2": shares[2], "arc_score": score}

    # ---- text and picture --------------------------------------------------------------------------------------

    @cached_property
    def _index_by_demonstrations(self) -> dict[Hashable, int]:
        return {p.demonstrations: i for i, p in reversed(list(enumerate(self.puzzles)))}

    @cached_property
    def _index_by_id(self) -> dict[str, int]:
        return {p.id: i for i, p in enumerate(self.puzzles)}

    @cached_property
    def _inputs_by_grid(self) -> dict[Hashable, dict[int, Tensor]]:
        """For each input grid of any split, a dict that maps every task with this grid to its input x."""
        inputs: dict[Hashable, dict[int, Tensor]] = {}
        for name in ("test", "validation", "train"):
            x = self.split(name).inputs
            assert x is not None
            _, cells, size, _ = self._unpack(x)
            for row, c, s, i in zip(x, cells, size, self._task_of_number[x[:, 0]].tolist(), strict=True):
                inputs.setdefault(grid_key(_crop_grid(c, s)), {}).setdefault(i, row)
        return inputs

    def parse(self, text: str) -> Tensor:
        """Parse JSON: a text of :meth:`format_input`, a task with one test, or an input grid that only one task has."""
        inputs = self.parse_inputs(text)
        if len(inputs) > 1:
            raise InputError(
                f"the task has {len(inputs)} test inputs: give one at a time, or pass the file to solve.py"
            )
        return inputs[0]

    def puzzle_texts(self, text: str) -> list[PuzzleText]:
        return arc_files.split_tasks(text)

    def parse_inputs(self, text: str) -> list[Tensor]:
        """Parse every test input of an ARC task, or the input in another JSON value (see :meth:`parse`)."""
        data = arc_files.parse_json_text(text)
        if isinstance(data, list):
            return [self._input_from_grid(arc_files.parse_grid(data, "the grid", self.canvas))]
        if isinstance(data, dict) and data.keys() & {"id", "input"} and not data.keys() & {"train", "test"}:
            return [self._input_from_id(*arc_files.parse_input(data, self.canvas))]
        puzzle = arc_files.parse_puzzle(data, "input", self.canvas)
        task = self._index_by_demonstrations.get(puzzle.demonstrations)
        if task is None:
            raise InputError(
                "this checkpoint has no embedding for the task, as it was not trained on these demonstrations: put the "
                "file into a folder and train with --task.files FOLDER"
            )
        return [self._make_input(task, 0, grid) for grid, _ in puzzle.test]

    def _make_input(self, task: int, version: int, grid: Grid) -> Tensor:
        return torch.cat((self._first_number[task].view(1) + version, grids.encode([grid], self.canvas)[0]))

    def _input_from_id(self, name: str, version: int, grid: Grid) -> Tensor:
        task = self._index_by_id.get(name)
        if task is None:
            raise InputError(f"id {json.dumps(name)} is no task of this run: give the task, with its demonstrations")
        last = int(self._num_versions[task]) - 1
        if version > last:
            title = self.puzzles[task].name or name
            raise InputError(f"version {version} of task {title} does not exist: the last is {last}, the plain one 0")
        return self._make_input(task, version, grid)

    def _input_from_grid(self, grid: Grid) -> Tensor:
        inputs = list(self._inputs_by_grid.get(grid_key(grid), {}).values())
        if len(inputs) == 1:
            return inputs[0]
        reason = f"is an input of {len(inputs)} tasks" if inputs else "is an input of no task of this run"
        raise InputError(f"the grid {reason}, so its rule is unknown: add the id of its task or its demonstrations")

    def format_input(self, x: Tensor | None) -> str:
        """Return task, version and grid as JSON, in the form of :func:`~pyro_gram.tasks.arc.files.format_input`."""
        return arc_files.format_input(*self._task_and_version(x), _crop_grid(*self._unpack(x)[1:3]))

    def title(self, x: Tensor | None) -> str:
        """Return the file name or the id of the task; the version follows if it is not the plain one."""
        puzzle, version = self._task_and_version(x)
        return (puzzle.name or puzzle.id) + (f", version {version}" if version else "")

    def _task_and_version(self, x: Tensor | None) -> tuple[arc_files.ArcPuzzle, int]:
        """Return the task of one input, and its version."""
        number = self._unpack(x)[0]
        task = int(self._task_of_number[number])
        return self.puzzles[task], int(number - self._first_number[task])

    def format_solution(self, x: Tensor | None, y: Tensor) -> str:
        """Return the answer's grid as compact JSON; ``?`` if there is none."""
        grid = self._answer_grid(x, y)
        return "?" if grid is None else arc_files.format_grid(grid)

    def _answer_grid(self, x: Tensor | None, y: Tensor) -> Grid | None:
        return grids.to_grid(*grids.crop(self._to_canvas(y), self._unpack(x)[-1]))

    def _find_mistakes(self, x: Tensor | None, grid: Grid) -> np.ndarray:
        """Mark the cells that differ from the known answer: all if its shape differs, none if no answer is known."""
        assert x is not None
        cells, size, is_known = self._expected_answers(x[None])
        expected = _crop_grid(cells[0], size[0]) if is_known[0] else grid
        return grid != expected if grid.shape == expected.shape else np.ones_like(grid, dtype=bool)

    def plot(self, axes: Axes, x: Tensor | None, y: Tensor | None = None) -> None:
        """Draw the grid of y, or of x if y is None. Crosses mark the cells that differ from the known answer."""
        grid = _crop_grid(*self._unpack(x)[1:3]) if y is None else self._answer_grid(x, y)
        if grid is None:
            axes.text(0.5, 0.5, "no grid", ha="center", va="center", transform=axes.transAxes)
            axes.set_axis_off()
        else:
            grids.draw_grid(axes, grid, np.zeros_like(grid) if y is None else self._find_mistakes(x, grid))

    def render(self, x: Tensor | None, y: Tensor | None = None, colour: bool = False) -> str:
        """Return the input's grid and, on its right, the grid of the answer, with a mark at each wrong cell."""
        paint = painter(colour)
        input_grid = _crop_grid(*self._unpack(x)[1:3])
        input_block = grids.render_grid(input_grid, np.zeros_like(input_grid), paint)
        if y is None:
            return input_block
        grid, answer_block = self._answer_grid(x, y), mark_mistake("no grid", paint)
        if grid is not None:
            answer_block = grids.render_grid(grid, self._find_mistakes(x, grid), paint)
        return join_blocks(input_block, answer_block, separator="  ->  ")


def _crop_grid(cells: Tensor, size: Tensor) -> Grid:
    """Convert one result of :func:`~pyro_gram.tasks.arc.grids.crop`, which must not be empty, to a grid."""
    grid = grids.to_grid(cells, size)
    assert grid is not None
    return grid
