"""A trained model at work: inputs in, distinct answers with their frequencies out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyro_gram.checkpoint import load_model
from pyro_gram.config import RunConfig
from pyro_gram.errors import InputError, UserError
from pyro_gram.inference.sampling import Rollout, at_once, rollout
from pyro_gram.inference.selection import tally
from pyro_gram.inference.temper import TemperConfig
from pyro_gram.tasks.base import Task

SELECTIONS = ("all", "vote")


@dataclass(frozen=True)
class Answer:
    """One distinct answer to one input.

    Attributes:
        solution: its text.
        count: trajectories that ended in it; ``count / num_samples`` estimates p(y | x).
        valid: does the task's check accept it? None where no right answer is known (a user's own ARC test).
        score: the best decoder confidence log p(y | h_T) among those trajectories, nats.
    """

    solution: str
    count: int
    valid: bool | None
    score: float


@dataclass(frozen=True)
class Solved:
    """The answers to one input, most frequent first."""

    input: str
    solutions: list[Answer]
    num_samples: int
    depth: int

    def to_dict(self) -> dict[str, Any]:
        """As ``solve.py --json`` prints it."""
        return asdict(self)


class Solver:
    """Samples p(y | x) from a checkpoint.

    Args:
        config: the run that made the model.
        task: its task.
        model: the generative program, with trained weights.
        guide: the inference program it was trained with (for diagnostics; sampling does not use it).
    """

    def __init__(self, config: RunConfig, task: Task, model: nn.Module, guide: nn.Module) -> None:
        self.config, self.task, self.model, self.guide = config, task, model, guide

    @property
    def default_depth(self) -> int:
        """The supervision steps of a roll-out unless asked otherwise."""
        return self.config.evaluate.depth or self.config.train.supervision_steps

    def sample(
        self,
        x: Tensor | str | list[str] | None,
        num_samples: int = 20,
        depth: int | None = None,
        seed: int = 0,
        max_trajectories: int | None = None,
        history: bool = False,
        temper: TemperConfig | None = None,
    ) -> Rollout:
        """Trajectories of the prior.

        Args:
            x: input tokens, int64 ``[B, *event]``, or the text of one input or of several; None for p(x), where B is 1.
            num_samples: N, trajectories an input.
            depth: supervision steps; as the run was measured where None.
            seed: of the draws.
            max_trajectories: the most that run at once; bounds the memory. By default by the length of the sequence.
            history: keep every supervision step's answer.
            temper: the scale of the prior at the start of a trajectory; as the run was measured where None.

        Returns:
            ``tokens`` int64 ``[N, B, L_out]`` and ``score`` (log p(tokens | h_T), nats) ``[N, B]``.

        Raises:
            InputError: x is no input of this task.
            UserError: ``num_samples`` or ``depth`` below 1; a temper that is none.
        """
        if temper is not None and not isinstance(temper, TemperConfig):
            raise UserError(f"temper must be a pyro_gram.TemperConfig, not {temper!r}")
        return rollout(
            self.model,
            self._tokens(x),
            num_samples=num_samples,
            depth=self.default_depth if depth is None else depth,
            seed=seed,
            history=history,
            temper=self.config.temper if temper is None else temper,
            max_trajectories=at_once(self.task.spec.input_length) if max_trajectories is None else max_trajectories,
        )

    def _tokens(self, x: Tensor | str | list[str] | None) -> Tensor | None:
        """Checked input tokens, int64 ``[B, *event]``. Raises InputError."""
        spec = self.task.spec
        if not spec.conditional:
            if x is not None:
                raise InputError(
                    "this checkpoint is a model p(x), without input: use x = None, or experiments/sample.py"
                )
            return None
        if x is None:
            raise InputError("this checkpoint solves inputs: give at least one")
        if isinstance(x, str):
            x = [x]
        if len(x) == 0:
            raise InputError("no input: give at least one")
        if isinstance(x, list):
            x = torch.stack([self.task.parse(text) for text in x])
        event = spec.input_shape
        if tuple(x.shape[1:]) != event or x.dtype != torch.int64:
            raise InputError(f"x must be int64 [B, {', '.join(map(str, event))}], not {x.dtype} {list(x.shape)}")
        tokens = x
        if spec.puzzles:
            tokens = x[:, 1:]
            if not 0 <= int(x[:, 0].min()) <= int(x[:, 0].max()) < spec.puzzles:
                raise InputError(f"the number of a puzzle, the first token, must lie in [0, {spec.puzzles})")
        if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < spec.input_vocabulary:
            raise InputError(f"input tokens must lie in [0, {spec.input_vocabulary})")
        return x

    def solve(
        self,
        x: Tensor | str | list[str],
        num_samples: int = 20,
        depth: int | None = None,
        seed: int = 0,
        select: str = "all",
        temper: TemperConfig | None = None,
    ) -> list[Solved]:
        """Distinct answers of each input, most frequent first, ties by score and then by appearance.

        Args:
            x: input tokens, int64 ``[B, *event]``, or the text of one input or of several.
            num_samples, depth, seed, temper: as for :meth:`sample`.
            select: ``all`` distinct answers, or the one that won the ``vote``.
        """
        tokens = self._tokens(x)
        if tokens is None:
            raise InputError("this checkpoint is a model p(x): there is no input to solve, use sample")
        if select not in SELECTIONS:
            raise UserError(f"unknown selection {select!r}; known: {', '.join(SELECTIONS)}")
        rolled = self.sample(tokens, num_samples, depth, seed, temper=temper)
        depth = self.default_depth if depth is None else depth
        canonical = self.task.canonical(tokens, rolled.tokens)
        valid, known = self.task.valid(tokens, canonical), self.task.known(tokens, canonical)
        solved = []
        for i, one in enumerate(tokens):
            texts = [self.task.format_solution(one, y) for y in canonical[:, i]]
            answers = [
                Answer(texts[c.first], c.count, bool(valid[c.first, i]) if known[c.first, i] else None, c.score)
                for c in tally(texts, rolled.score[:, i].tolist())
            ]
            chosen = answers if select == "all" else answers[:1]
            solved.append(Solved(self.task.format_input(one), chosen, num_samples, depth))
        return solved


def load(path: str | Path, data_dir: str | None = None) -> Solver:
    """A Solver from a model checkpoint (``.safetensors``) or a run's directory.

    Raises:
        CheckpointError: missing, damaged, or made by something else. Nothing pickled is ever loaded.
    """
    assembly = load_model(path, data_dir)
    return Solver(assembly.config, assembly.task, assembly.model, assembly.guide)
