"""A trained model at work: inputs in, distinct answers with their frequencies out.

Frequencies estimate p(y | x) only where nothing alters how trajectories are drawn and when they end; what does is told
with every answer (:meth:`Solver.altered`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pyro_gram.checks import check_choice, check_counts
from pyro_gram.config import RunConfig
from pyro_gram.errors import InputError, UserError
from pyro_gram.inference.contract import model_sizes, model_traits
from pyro_gram.inference.sites import check_has_heads, has_heads
from pyro_gram.sampling.draws import UNBIASED, DrawScheme
from pyro_gram.sampling.isolation import generator_lock, isolated_program
from pyro_gram.sampling.memory import chunk_size, trajectories_in_memory
from pyro_gram.sampling.rollout import Rollout, rollout, to_device_of
from pyro_gram.sampling.selection import SELECTIONS, select_by_value, tally
from pyro_gram.sampling.smc import check_fits, smc, to_rollout
from pyro_gram.sampling.tempering import TemperConfig
from pyro_gram.tasks.base import Task
from pyro_gram.tasks.batches import derive_seed
from pyro_gram.tasks.inputs import input_tokens, to_int

DRAWS = (*UNBIASED, "smc")
TRAJECTORIES = 1280  # of a batch of inputs, after which their answers are told


@dataclass(frozen=True)
class Answer:
    """One distinct answer to one input.

    Attributes:
        solution: its text.
        count: trajectories that ended in it. ``count / num_samples`` is its frequency, which estimates p(y | x) where
            :attr:`Solved.frequencies` says so.
        valid: does the task's check accept it? None where no right answer is known (a user's own ARC test).
        score: the best decoder confidence log p(y | h_T) among those trajectories, nats.
        value: the value head's best estimate among them that it is right; None without heads.
        y: its tokens, int64 ``[L_out]``.
    """

    solution: str
    count: int
    valid: bool | None
    score: float
    value: float | None
    y: Tensor = field(repr=False, compare=False)


@dataclass(frozen=True)
class Solved:
    """The answers to one input, most frequent first.

    Attributes:
        input: its text.
        solutions: the answers that were selected.
        num_samples: N, the trajectories behind them.
        depth: the most supervision steps that a trajectory could take.
        select: how they were selected.
        distinct: how many distinct answers the trajectories gave.
        distinct_valid: how many of these are right; None where that is not known of all.
        total: how many right answers the input has, counted exactly; None where they cannot be counted.
        mean_steps: the supervision steps that they took on average.
        altered: what makes the frequencies of answers others than those of the model as it is (:meth:`Solver.altered`).
        x: its tokens, int64 ``[*event]``.
    """

    input: str
    solutions: list[Answer]
    num_samples: int
    depth: int
    select: str
    distinct: int
    distinct_valid: int | None
    total: int | None
    mean_steps: float
    altered: tuple[str, ...]
    x: Tensor = field(repr=False, compare=False)

    @property
    def frequencies(self) -> str:
        """What the frequencies of answers estimate: ``p(y|x)`` of the model at its depth, or why they do not."""
        return f"not p(y|x): {', '.join(self.altered)}" if self.altered else f"p(y|x) at depth {self.depth}"

    def to_dict(self) -> dict[str, Any]:
        """As ``solve.py --json`` prints it."""
        names = ("solution", "count", "valid", "score", "value")
        return {
            "input": self.input,
            "solutions": [{name: getattr(a, name) for name in names} for a in self.solutions],
            "num_samples": self.num_samples,
            "depth": self.depth,
            "mean_steps": self.mean_steps,
            "distinct": self.distinct,
            "distinct_valid": self.distinct_valid,
            "total": self.total,
            "frequencies": self.frequencies,
        }


@dataclass(eq=False)
class Solver:
    """Samples answers from a checkpoint: from p(y | x) as it is, or with what :meth:`altered` names.

    Threads may share one: they sample in turn, each under its own seed. Plates and traces of the caller do not reach
    its program, and other Pyro handlers are refused (``sampling.rollout.rollout`` runs under them). What draws from
    torch's own generator in another thread meanwhile is not kept apart, nor is Pyro code that runs there.

    Args:
        config: the run that made the model.
        task: its task.
        model: the generative program, with trained weights.
        guide: the inference program it was trained with (for diagnostics; sampling does not use it).
    """

    config: RunConfig
    task: Task
    model: nn.Module
    guide: nn.Module

    def to(self, device: torch.device | str) -> Solver:
        """This solver, its programs moved to a device in place. Answers come back on the CPU."""
        self.model.to(device)
        self.guide.to(device)
        return self

    @property
    def state_length(self) -> int:
        """L of a state: the positions of the input and, before them, of the prefix tokens."""
        return self.task.spec.input_length + model_sizes(self.config.model).prefix

    @property
    def has_heads(self) -> bool:
        """Does the checkpoint have halt and value heads?"""
        return has_heads(self.model)

    def sample(
        self,
        x: Any,
        num_samples: int = 20,
        depth: int | None = None,
        seed: int = 0,
        *,
        history: bool = False,
        temper: TemperConfig | None = None,
        halt: float | None = None,
        draws: str = "independent",
        memory: float | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Rollout:
        """Trajectories of the prior.

        Args:
            x: one input or several: texts, networkx graphs, or tokens, whole numbers ``[B, *event]``; None for p(x),
                where B is 1.
            num_samples: N, trajectories an input.
            depth: supervision steps, at the most; as the run was measured where None.
            seed: of the draws.
            history: keep every supervision step's answer; nothing halts then, and no halt may be given.
            temper: the scale of the prior at the start of a trajectory; as the run was measured where None.
            halt: P(right), by the halt head, at which a trajectory ends (ACT); as the checkpoint says where None, 1 for
                never. Without heads all trajectories go to ``depth``.
            draws: how the trajectories of an input are drawn together: ``independent``, ``antithetic`` or ``sobol``
                (``sampling.draws``); or ``smc``, weighted by the value head (``sampling.smc``).
            memory: MB that the trajectories which run at once may take; by default some 250 at D = 128.
            progress: called with the number of trajectories that have been run.

        Returns:
            ``tokens`` int64 ``[N, B, L_out]``; ``score`` (log p(tokens | h_T), nats), ``steps`` taken and, with heads,
            ``value``, ``[N, B]`` each; on the CPU.

        Raises:
            InputError: x is no input of this task.
            UserError: a count below 1; a temper, halt or draw scheme that is none; too little memory.
            ConfigError: a halt without heads; antithetic or Sobol draws of a prior that is not Gaussian.
        """
        if temper is not None and not isinstance(temper, TemperConfig):
            raise UserError(f"temper must be a pyro_gram.TemperConfig, not {temper!r}")
        check_choice("draws", draws, DRAWS)
        num_samples, seed = to_int("num_samples", num_samples), to_int("seed", seed)
        depth = self.config.depth if depth is None else to_int("depth", depth)
        self.check_depth(depth)
        tokens = self._tokens(x)
        common: dict[str, Any] = {
            "num_samples": num_samples,
            "depth": depth,
            "seed": seed,
            "temper": self._temper(temper),
            "max_trajectories": self._chunk_size(memory),
        }
        tokens = to_device_of(self.model, tokens)
        if draws == "smc":
            if tokens is None or history or halt not in (None, 1):
                raise UserError("smc weighs whole trajectories of answers to an input: no history, and nothing halts")
            with isolated_program():
                rolled = to_rollout(smc(self.model, tokens, **common), common["depth"], seed).cpu()
            if progress:
                progress(num_samples * len(tokens))
            return rolled
        halt = halt if history else self._halt(halt)
        settings: dict[str, Any] = {"history": history, "halt": halt, "draws": DrawScheme(draws), "progress": progress}
        with isolated_program():
            return rollout(self.model, tokens, **settings, **common).cpu()

    def altered(
        self, *, temper: TemperConfig | None = None, halt: float | None = None, draws: str = "independent", **_: Any
    ) -> tuple[str, ...]:
        """What :meth:`sample` does under these settings so that answers are no longer as frequent as p(y | x) says.

        Nothing, where trajectories of the prior as it is go to their full depth: an answer's frequency then estimates
        the probability that it is the most probable one at the end of a trajectory, without bias (antithetic and Sobol
        draws too, each of which is one of the prior). A temper makes other answers frequent than the prior does; those
        that halt keep an answer that more steps would have changed; a filter favours what the value head trusts.

        Args:
            temper, halt, draws: as for :meth:`sample`.
        """
        wider = self._temper(temper)
        found = [wider.describe()] if wider.transitions else []
        if draws == "smc":
            return (*found, "filtered by the value head")
        stops = self._halt(halt)
        return tuple(found) if stops in (None, 1) else (*found, f"halting at P = {stops:g}")

    def _temper(self, temper: TemperConfig | None) -> TemperConfig:
        """As asked for, else as the run was measured."""
        return self.config.temper if temper is None else temper

    def _halt(self, halt: float | None) -> float | None:
        """As asked for, else as the checkpoint says; None without heads."""
        return self.config.heads.halt if halt is None and self.has_heads else halt

    def check_depth(self, depth: int | None) -> None:
        """Raises UserError where a model that answers in one supervision step is asked for more."""
        if depth not in (None, 1) and model_traits(self.model).is_one_step:
            raise UserError(f"this model answers in one supervision step: depth must be 1, not {depth}")

    def _chunk_size(self, memory: float | None) -> int:
        if memory is None:
            return chunk_size(self.task.spec.input_length)
        return trajectories_in_memory(memory, self.state_length, self.config.model.width)

    def _tokens(self, x: Any) -> Tensor | None:
        """Checked input tokens, int64 ``[B, *event]``. Raises InputError."""
        spec = self.task.spec
        if not spec.has_input:
            if x is not None:
                raise InputError(
                    "this checkpoint is a model p(x), without input: use x = None, or experiments/sample.py"
                )
            return None
        if x is None:
            raise InputError("this checkpoint solves inputs: give at least one")
        with generator_lock():  # a forked process parses, which torch does too, in one thread
            x = input_tokens(self.task, x)
        if len(x) == 0:
            raise InputError("no input: give at least one")
        event = spec.input_shape
        if tuple(x.shape[1:]) != event:
            raise InputError(f"x must have the shape [B, {', '.join(map(str, event))}], not {list(x.shape)}")
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
        x: Any,
        num_samples: int = 20,
        depth: int | None = None,
        seed: int = 0,
        select: str = "all",
        **settings: Any,
    ) -> list[Solved]:
        """Distinct answers of each input, most frequent first, ties by score and then by appearance.

        Args:
            x: one input or several: texts, networkx graphs, or tokens, whole numbers ``[B, *event]``.
            num_samples, depth, seed: as for :meth:`sample`.
            select: ``all`` distinct answers; or one: the winner of the ``vote``; by ``value``, another answer in its
                place if the value head trusts it clearly more (``sampling.selection``); or the most frequent that the
                task's check has ``verified`` (none, where no sample is right).
            **settings: ``temper``, ``halt``, ``draws``, ``memory``, ``progress``, as for :meth:`sample`.

        Raises:
            InputError, UserError, ConfigError: as :meth:`sample`; a selection that is none, or that this checkpoint or
                one of the inputs does not allow.
        """
        return list(self.stream(x, num_samples, depth, seed, select, **settings))

    def stream(
        self,
        x: Any,
        num_samples: int = 20,
        depth: int | None = None,
        seed: int = 0,
        select: str = "all",
        **settings: Any,
    ) -> Iterator[Solved]:
        """As :meth:`solve`, each answer as soon as its batch of inputs is solved; all inputs are checked before."""
        num_samples, seed = to_int("num_samples", num_samples), to_int("seed", seed)
        depth = None if depth is None else to_int("depth", depth)
        check_counts(seed=seed, num_samples=num_samples)
        self.check_depth(depth)
        if settings.get("draws") == "smc":
            check_fits(num_samples, self._chunk_size(settings.get("memory")))
        tokens = self._tokens(x)
        if tokens is None:
            raise InputError("this checkpoint is a model p(x): there is no input to solve, use sample")
        self._check_selection(select, tokens)
        batches = tokens.split(max(1, TRAJECTORIES // num_samples))
        return (
            solved
            for number, batch in enumerate(batches)
            for solved in self._solve(batch, num_samples, depth, _seed_of(seed, number), select, settings)
        )

    def _solve(
        self, x: Tensor, num_samples: int, depth: int | None, seed: int, select: str, settings: dict[str, Any]
    ) -> Iterator[Solved]:
        rolled = self.sample(x, num_samples, depth, seed, **settings)
        altered = self.altered(**settings)
        canonical = self.task.canonical_form(x, rolled.tokens)
        valid, known = self.task.is_valid(x, canonical), self.task.has_known_answer(x, canonical)
        for i, one in enumerate(x):
            texts = [self.task.format_solution(one, y) for y in canonical[:, i]]
            scores = rolled.score[:, i].tolist()
            values = None if rolled.value is None else rolled.value[:, i].tolist()
            found = tally(texts, scores)
            highest = {} if values is None else {texts[c.first]: c.score for c in tally(texts, values)}
            answers = [
                Answer(
                    texts[c.first],
                    c.count,
                    bool(valid[c.first, i]) if known[c.first, i] else None,
                    c.score,
                    highest.get(texts[c.first]),
                    canonical[c.first, i],
                )
                for c in found
            ]
            verdicts = [a.valid for a in answers]
            chosen = answers
            if select == "value":
                assert values is not None
                chosen = [answers[found.index(select_by_value(texts, values, scores))]]
            elif select == "vote":
                chosen = answers[:1]
            elif select == "verified":
                chosen = [a for a in answers if a.valid][:1]
            yield Solved(
                self.task.format_input(one),
                chosen,
                num_samples,
                self.config.depth if depth is None else depth,
                select,
                len(found),
                None if None in verdicts else sum(map(bool, verdicts)),
                self.task.count_solutions(one),
                rolled.steps[:, i].double().mean().item(),
                altered,
                one,
            )

    def _check_selection(self, select: str, x: Tensor) -> None:
        check_choice("selection", select, SELECTIONS)
        if select == "value":
            check_has_heads(self.model, "select")
        if select == "verified":
            known = self.task.has_known_answer(x, torch.zeros(len(x), self.task.spec.output_length, dtype=torch.long))
            if not known.all():
                first = int((~known).nonzero()[0]) + 1
                raise UserError(f"input {first} has no known right answer to verify by: select by vote or value")


def _seed_of(seed: int, batch: int) -> int:
    """The first batch has the caller's own, so that it draws as :meth:`Solver.sample` does; others theirs."""
    return seed if batch == 0 else derive_seed(seed, batch)
