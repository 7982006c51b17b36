"""Generate Sudoku grids without clues: a task p(x), whose data are correct grids (Section 4.3 of the paper).

For size 4 all 288 grids are listed. So the distance of the samples from the uniform distribution can be measured, and
compared with the distance of a perfect sampler.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pyro_gram.checks import AT_LEAST_0, AT_LEAST_1, check_range, check_seed
from pyro_gram.errors import ConfigError
from pyro_gram.registry import TASKS
from pyro_gram.spec import TaskSpec
from pyro_gram.tasks.base import PuzzleSet, Task, check_split
from pyro_gram.tasks.held_out import InputSet, replace_unless_held_out
from pyro_gram.tasks.sudoku.boards import all_grids_4, missing_digits, random_grids, random_symmetries, transform
from pyro_gram.tasks.sudoku.config import check_size
from pyro_gram.tasks.sudoku.pictures import draw_board, render_board

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DEFAULT_COUNTS = {4: 288, 6: 20_000, 9: 50_000}  # 4: all grids; 9: as in the paper


@dataclass(frozen=True)
class SudokuBoardsConfig:
    """Settings of the boards and their number.

    Attributes:
        size: rows of a board: 4, 6 or 9.
        count: number of training boards. 0: all 288 for size 4, 20,000 for size 6, 50,000 for size 9.
        validation, test: number of held-out boards. Size 4 ignores them: both splits have all 288 grids, to measure
            how many of these the samples cover. Grids that a smaller count leaves out are never trained on.
        data_seed: seed of the boards; runs with equal seeds can be compared.
    """

    size: int = 9
    count: int = 0
    validation: int = 128
    test: int = 500
    data_seed: int = 0

    def __post_init__(self) -> None:
        check_size(self.size)
        check_range(self, count=AT_LEAST_0, validation=AT_LEAST_1, test=AT_LEAST_1)
        if self.size == 4 and self.count > DEFAULT_COUNTS[4]:
            raise ConfigError(f"count must be at most 288, the number of 4x4 grids, not {self.count}")
        check_seed(self.data_seed, "data_seed")


@TASKS.register("sudoku_uncond")
class SudokuBoards(Task):
    """Generate boards whose rows, columns and boxes hold every digit once; the token of digit d is d - 1."""

    Config = SudokuBoardsConfig

    def __init__(self, config: SudokuBoardsConfig, data_dir: str | None = None) -> None:
        self.config = config
        self.size, self.cells = config.size, config.size**2
        self.paper_name = "sudoku_uncond" if self.size == 9 else ""
        self.spec = TaskSpec(self.cells, None, 0, self.cells, self.size)

    def violations(self, x: Tensor | None, y: Tensor) -> Tensor:
        """Count the digits missing from rows, columns and boxes. For each missing digit, another digit is repeated."""
        return missing_digits(y, self.size)

    # ---- data --------------------------------------------------------------------------------------------------

    def split(self, name: str) -> PuzzleSet:
        check_split(name)
        boards = self._boards[name]
        return PuzzleSet.from_data(boards, has_all_solutions=self.size == 4 and len(boards) == DEFAULT_COUNTS[4])

    @cached_property
    def _boards(self) -> dict[str, Tensor]:
        """The tokens of each split, int64 ``[N, L]``: distinct boards. For sizes 6 and 9, no board is in two splits."""
        c = self.config
        generator = torch.Generator().manual_seed(c.data_seed)
        count = c.count or DEFAULT_COUNTS[self.size]
        if self.size == 4:
            boards = all_grids_4()[torch.randperm(DEFAULT_COUNTS[4], generator=generator)] - 1
            return {"train": boards[:count], "validation": boards, "test": boards}
        held_out = self._draw(c.validation + c.test, generator, None)
        train = self._draw(count, generator, InputSet(held_out, self.size))
        return {"train": train, "validation": held_out[: c.validation], "test": held_out[c.validation :]}

    def _draw(self, count: int, generator: torch.Generator, held_out: InputSet | None) -> Tensor:
        """Draw ``count`` distinct random boards, none of them in ``held_out``."""
        boards = torch.zeros(0, self.cells, dtype=torch.long)
        while len(boards) < count:
            num_missing = count - len(boards)
            batch = random_grids(self.size, num_missing + num_missing // 100 + 8, generator) - 1
            if held_out is not None:
                batch = batch[~held_out.contains(batch)]
            boards = torch.cat((boards, batch))
            _, first = np.unique(_to_keys(boards), return_index=True)
            boards = boards[torch.from_numpy(np.sort(first))]
        return boards[:count]

    def augment(self, x: Tensor | None, y: Tensor, generator: torch.Generator) -> tuple[None, Tensor]:
        """Apply a random symmetry to each board; a board whose image is held out stays unchanged."""
        flat_y = y.reshape(-1, self.cells)
        image = transform(flat_y, *random_symmetries(len(flat_y), self.size, generator), first=0)
        if self._held_out is not None:
            _, image = replace_unless_held_out(self._held_out, flat_y, flat_y, image, image)
        return None, image.reshape(y.shape)

    @cached_property
    def _held_out(self) -> InputSet | None:
        """The validation and test boards; for size 4, the grids that are not trained on. None if none is held out."""
        boards = self._boards
        held_out = torch.cat((boards["validation"], boards["test"]))
        if self.size == 4:
            held_out = held_out[~InputSet(boards["train"], self.size).contains(held_out)]
        return InputSet(held_out, self.size) if len(held_out) else None

    # ---- metrics -----------------------------------------------------------------------------------------------

    def extra_metrics(self, puzzles: PuzzleSet, tokens: Tensor) -> dict[str, float]:
        """Return validity, uniqueness and novelty of samples.

        A symmetric image of a training board, which augmentation may have shown, counts as novel. Novelty is therefore
        meaningful only with ``train.augment`` off, as in the presets.

        Args:
            puzzles: ignored.
            tokens: int64 ``[N, 1, L]``.

        Returns:
            ``validity``: the share of samples that are correct boards. ``uniqueness``: the number of distinct correct
            boards, divided by the number of correct samples. ``novelty`` (sizes 6 and 9): the share of the distinct
            correct boards that are not training boards. ``grids_found`` (size 4): the number of distinct correct
            boards, 288 at most. If no sample is correct, ``uniqueness`` and ``novelty`` are undefined and left out.
        """
        samples = tokens.reshape(-1, self.cells)
        valid_samples = samples[self.is_valid(None, samples)]
        keys, first = np.unique(_to_keys(valid_samples), return_index=True)
        metrics = {"validity": len(valid_samples) / max(1, len(samples))}
        if self.size == 4:
            metrics["grids_found"] = float(len(keys))
        if not len(valid_samples):
            return metrics
        metrics["uniqueness"] = len(keys) / len(valid_samples)
        if self.size != 4:
            is_known = InputSet(self._boards["train"], self.size).contains(valid_samples[torch.from_numpy(first)])
            metrics["novelty"] = 1 - is_known.double().mean().item()
        return metrics

    # ---- text and picture --------------------------------------------------------------------------------------

    def format_solution(self, x: Tensor | None, y: Tensor) -> str:
        """Return the digits in one line."""
        return "".join(str(token + 1) for token in y.tolist())

    def plot(self, axes: Axes, x: Tensor | None, y: Tensor | None = None) -> None:
        draw_board(axes, self.size, *self._digits(y))

    def render(self, x: Tensor | None, y: Tensor | None = None, colour: bool = False) -> str:
        """Return the answer as a board with its boxes; without an answer, a blank board."""
        return render_board(self.size, *self._digits(y), colour)

    def _digits(self, y: Tensor | None) -> tuple[list[int], list[int] | None]:
        """Return a blank board in place of the clues, and the digits of the answer."""
        return [0] * self.cells, None if y is None else (y + 1).tolist()


def _to_keys(boards: Tensor) -> np.ndarray:
    """Return the tokens of each board as one comparable item: ``[N]``."""
    tokens = np.ascontiguousarray(boards.numpy().astype(np.uint8))
    return tokens.view(np.dtype((np.void, boards.shape[-1])))[:, 0]
