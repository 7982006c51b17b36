"""A trained model at work: inputs in, distinct answers with their frequencies out."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyro_gram.checkpoint import load_model
from pyro_gram.config import RunConfig
from pyro_gram.errors import InputError, UserError
from pyro_gram.inference.sampling import Rollout, at_once, rollout, within
from pyro_gram.inference.selection import SELECTIONS, Candidate, best, tally
from pyro_gram.inference.temper import TemperConfig
from pyro_gram.inference.width import Width
from pyro_gram.tasks.base import Task


@dataclass(frozen=True)
class Answer:
    """One distinct answer to one input.

    Attributes:
        solution: its text.
        count: trajectories that ended in it; ``count / num_samples`` estimates p(y | x).
        valid: does the task's check accept it? None where no right answer is known (a user's own ARC test).
        score: the best decoder confidence log p(y | h_T) among those trajectories, nats; where it was selected by
            value, the value head's best estimate that it is right.
        y: its tokens, int64 ``[L_out]``.
    """

    solution: str
    count: int
    valid: bool | None
    score: float
    y: Tensor = field(repr=False, compare=False)


@dataclass(frozen=True)
class Solved:
    """The answers to one input, most frequent first.

    Attributes:
        input: its text.
        solutions: the answers.
        num_samples: N, the trajectories behind them.
        depth: the most supervision steps that a trajectory could take.
        mean_steps: what they took on average.
        x: its tokens, int64 ``[*event]``.
    """

    input: str
    solutions: list[Answer]
    num_samples: int
    depth: int
    mean_steps: float
    x: Tensor = field(repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """As ``solve.py --json`` prints it."""
        answers = [{k: getattr(a, k) for k in ("solution", "count", "valid", "score")} for a in self.solutions]
        return {"input": self.input, "solutions": answers, "num_samples": self.num_samples, "depth": self.depth}


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

    @property
    def has_heads(self) -> bool:
        """Does the checkpoint have halt and value heads?"""
        return getattr(self.model, "verdict", None) is not None

    def sample(
        self,
        x: Tensor | str | list[str] | None,
        num_samples: int = 20,
        depth: int | None = None,
        seed: int = 0,
        *,
        history: bool = False,
        temper: TemperConfig | None = None,
        halt: float | None = None,
        width: Width | str = "independent",
        memory: float | None = None,
    ) -> Rollout:
        """Trajectories of the prior.

        Args:
            x: input tokens, int64 ``[B, *event]``, or the text of one input or of several; None for p(x), where B is 1.
            num_samples: N, trajectories an input.
            depth: supervision steps, at the most; as the run was measured where None.
            seed: of the draws.
            history: keep every supervision step's answer. Nothing halts then.
            temper: the scale of the prior at the start of a trajectory; as the run was measured where None.
            halt: P(right), by the halt head, at which a trajectory ends (ACT); as the checkpoint says where None, 1 for
                never. Without heads all trajectories go to ``depth``.
            width: how the trajectories of an input are spread, a ``pyro_gram.inference.width.Width`` or its kind.
            memory: MB that the trajectories which run at once may take; by default some 250.

        Returns:
            ``tokens`` int64 ``[N, B, L_out]``; ``score`` (log p(tokens | h_T), nats), ``steps`` taken and, with heads,
            ``value``, ``[N, B]`` each.

        Raises:
            InputError: x is no input of this task.
            UserError: ``num_samples`` or ``depth`` below 1; a temper, halt or width that is none; too little memory.
        """
        if temper is not None and not isinstance(temper, TemperConfig):
            raise UserError(f"temper must be a pyro_gram.TemperConfig, not {temper!r}")
        if halt is None and self.has_heads and not history:
            halt = self.config.verdict.halt
        return rollout(
            self.model,
            self._tokens(x),
            num_samples=num_samples,
            depth=self.default_depth if depth is None else depth,
            seed=seed,
            history=history,
            temper=self.config.temper if temper is None else temper,
            halt=None if halt == 1 else halt,
            width=width if isinstance(width, Width) else Width(width),
            max_trajectories=self._at_once(memory),
        )

    def _at_once(self, memory: float | None) -> int:
        length = self.task.spec.input_length + getattr(self.config.model, "prefix", 0)
        return at_once(length) if memory is None else within(memory, length, self.config.model.width)

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
        **settings: Any,
    ) -> list[Solved]:
        """Distinct answers of each input, most frequent first, ties by score and then by appearance.

        Args:
            x: input tokens, int64 ``[B, *event]``, or the text of one input or of several.
            num_samples, depth, seed: as for :meth:`sample`.
            select: ``all`` distinct answers; or one: the winner of the ``vote``, of the best ``value``, or the most
                frequent that the task's check has ``verified`` (none, where no sample is right).
            **settings: ``temper``, ``halt``, ``width``, ``memory``, as for :meth:`sample`.
        """
        tokens = self._tokens(x)
        if tokens is None:
            raise InputError("this checkpoint is a model p(x): there is no input to solve, use sample")
        self.check_selection(select)
        rolled = self.sample(tokens, num_samples, depth, seed, **settings)
        canonical = self.task.canonical(tokens, rolled.tokens)
        valid, known = self.task.valid(tokens, canonical), self.task.known(tokens, canonical)
        if select == "verified" and not known.all():
            raise UserError("--select verified needs a known right answer, and this input has none: use vote or value")
        depth = self.default_depth if depth is None else depth
        solved = []
        for i, one in enumerate(tokens):
            texts = [self.task.format_solution(one, y) for y in canonical[:, i]]
            values = None if rolled.value is None else rolled.value[:, i].tolist()
            answers = [
                Answer(
                    texts[c.first],
                    c.count,
                    bool(valid[c.first, i]) if known[c.first, i] else None,
                    c.score,
                    canonical[c.first, i],
                )
                for c in _select(select, texts, rolled.score[:, i].tolist(), values)
            ]
            if select == "verified":
                answers = [answer for answer in answers if answer.valid][:1]
            steps = rolled.steps[:, i].double().mean().item()
            solved.append(Solved(self.task.format_input(one), answers, num_samples, depth, steps, one))
        return solved

    def check_selection(self, select: str) -> None:
        """Raises UserError where answers cannot be selected so."""
        if select not in SELECTIONS:
            raise UserError(f"unknown selection {select!r}; known: {', '.join(SELECTIONS)}")
        if select == "value" and not self.has_heads:
            raise UserError(
                "this checkpoint has no value head: select by vote, train with --verdict.hidden 64, or add heads with "
                "experiments/verdict.py"
            )


def _select(how: str, texts: list[str], scores: list[float], values: list[float] | None) -> list[Candidate]:
    if how == "value":
        assert values is not None
        return [best(texts, values, scores)]
    found = tally(texts, scores)
    return found[:1] if how == "vote" else found


def load(path: str | Path, data_dir: str | None = None) -> Solver:
    """A Solver from a model checkpoint (``.safetensors``) or a run's directory.

    Raises:
        CheckpointError: missing, damaged, or made by something else. Nothing pickled is ever loaded.
    """
    assembly = load_model(path, data_dir)
    return Solver(assembly.config, assembly.task, assembly.model, assembly.guide)
