"""A solver holds a task, a model and its guide. It samples answers to inputs, and counts the distinct ones.

Frequencies estimate p(y | x) only if no setting changes how trajectories are drawn or when they end. The caveats
of the answers name such settings (:meth:`Solver.frequency_caveats`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import torch
from torch import Tensor, nn

from pyro_gram.checks import check_choice, check_counts, did_you_mean, to_int
from pyro_gram.config import RunConfig
from pyro_gram.errors import InputError, UserError
from pyro_gram.inference.contract import model_sizes, model_traits
from pyro_gram.inference.sites import check_has_heads, has_heads
from pyro_gram.sampling.draws import UNBIASED, DrawScheme
from pyro_gram.sampling.isolation import generator_lock, isolated_program
from pyro_gram.sampling.memory import chunk_size, trajectories_in_memory
from pyro_gram.sampling.result import Rollout
from pyro_gram.sampling.rollout import rollout
from pyro_gram.sampling.steps import to_device_of
from pyro_gram.sampling.tempering import TemperConfig
from pyro_gram.tasks.base import Task
from pyro_gram.tasks.batches import derive_seed

if TYPE_CHECKING:
    from pyro_gram.answers import Answers

DRAWS = (*UNBIASED, "smc")
BATCH_TRAJECTORIES = 1280  # `stream` solves inputs in batches of about this many trajectories


class SampleSettings(TypedDict, total=False):
    """The settings that :meth:`Solver.solve` and :meth:`Solver.stream` pass on to :meth:`Solver.sample`."""

    temper: TemperConfig | None
    halt: float | None
    draws: str
    restarts: int | None
    sweeps: int | None
    memory: float | None
    progress: Callable[[int], Any] | None


@dataclass(eq=False)
class Solver:
    """A task, a model and its guide, as :func:`pyro_gram.build.build` makes them and :func:`pyro_gram.load` loads them.

    Threads may share a solver: they sample in turn, each under its own seed. The caller's plates and traces do not
    act on the model. Other Pyro handlers raise an error; call ``sampling.rollout.rollout`` to run under them. A
    solver is not protected from other threads that draw from torch's generator or run Pyro at the same time.

    Args:
        config: the settings of the run.
        task: the problem.
        model: the generative program.
        guide: the inference program. Training and diagnostics use it, sampling does not.
    """

    config: RunConfig
    task: Task
    model: nn.Module
    guide: nn.Module

    def to(self, device: torch.device | str) -> Solver:
        """Move model and guide to a device, in place, and return the solver. Answers come back on the CPU."""
        self.model.to(device)
        self.guide.to(device)
        return self

    @property
    def modules(self) -> nn.ModuleDict:
        """Model and guide in one module. If this module is copied, weights that model and guide share stay shared."""
        return nn.ModuleDict({"model": self.model, "guide": self.guide})

    @property
    def has_heads(self) -> bool:
        """Does the model have halt and value heads?"""
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
        restarts: int | None = None,
        sweeps: int | None = None,
        memory: float | None = None,
        progress: Callable[[int], Any] | None = None,
    ) -> Rollout:
        """Sample trajectories of the prior.

        Args:
            x: one input or several: texts, the ``pathlib.Path`` of a file of texts, networkx graphs, or integer
                tokens ``[B, *event]``; None for p(x), where B is 1.
            num_samples: N, the number of trajectories per input.
            depth: the maximal number of supervision steps; None for the depth of the config.
            seed: the seed of the draws.
            history: keep the answer after every supervision step. No trajectory halts then, and ``halt`` must be None.
            temper: how the prior differs from the trained one; None for the temper of the config.
            halt: a trajectory ends as soon as the halt head gives its answer at least this probability of being right
                (ACT). None takes the value of the config; 1 lets no trajectory end early. Without heads all
                trajectories run to ``depth``.
            draws: how the trajectories of an input are drawn together: ``independent``, ``antithetic`` or ``sobol``
                (``sampling.draws``); or ``smc``, weighted by the value head (``sampling.smc``).
            restarts: how often a trajectory starts anew if the halt head thinks its last answer wrong (P below 0.5);
                None takes the value of the config.
            sweeps: how often half of a complete answer is drawn again, for models with a lattice; None takes the value
                of the config.
            memory: MB for the trajectories that run at once; by default about 250 MB if D = 128.
            progress: called with the number of trajectories that have just ended.

        Returns:
            ``tokens`` int64 ``[N, B, L_out]``; ``score`` (log p(tokens | h_T), nats), ``steps`` taken and, with heads,
            ``value``, ``[N, B]`` each; on the CPU.

        Raises:
            InputError: x is not an input of this task.
            UserError: a count is below 1; temper, halt or draws has a wrong value; or there is too little memory.
            ConfigError: halt or restarts without heads; or antithetic or Sobol draws of a prior that is not Gaussian.
        """
        settings = SampleSettings(
            temper=temper, halt=halt, draws=draws, restarts=restarts, sweeps=sweeps, memory=memory, progress=progress
        )
        return self._sample(self._tokens(x), num_samples, depth, seed, settings, history)

    def _sample(
        self,
        tokens: Tensor | None,
        num_samples: int,
        depth: int | None,
        seed: int,
        settings: SampleSettings,
        history: bool = False,
    ) -> Rollout:
        """Sample as :meth:`sample` does. The caller has checked the tokens."""
        temper, halt, progress = settings.get("temper"), settings.get("halt"), settings.get("progress")
        draws = settings.get("draws", "independent")
        if temper is not None and not isinstance(temper, TemperConfig):
            raise UserError(f"temper must be a pyro_gram.TemperConfig, not {temper!r}")
        check_choice("draws", draws, DRAWS)
        num_samples, seed = to_int("num_samples", num_samples), to_int("seed", seed)
        depth = self.config.depth if depth is None else to_int("depth", depth)
        self.check_depth(depth)
        common_settings: dict[str, Any] = {
            "num_samples": num_samples,
            "depth": depth,
            "seed": seed,
            "temper": temper or self.config.temper,
            "max_trajectories": self._chunk_size(settings.get("memory"), tokens),
        }
        tokens = to_device_of(self.model, tokens)
        if draws == "smc":
            is_repeated = settings.get("restarts") or settings.get("sweeps")
            if tokens is None or history or halt not in (None, 1) or is_repeated:
                raise UserError("smc weighs full trajectories of inputs: it takes no history, halt, restarts or sweeps")
            return self._filter(tokens, progress, **common_settings)
        common_settings["draws"] = DrawScheme(draws)
        for name in ("restarts", "sweeps"):  # a history leaves out those of the config
            value: Any = settings.get(name)
            common_settings[name] = value or 0 if history else self._count_of(name, value)
        halt = halt if history else self._halt(halt)
        with isolated_program():
            samples = rollout(self.model, tokens, history=history, halt=halt, progress=progress, **common_settings)
        return samples.cpu()

    def _filter(self, tokens: Tensor, progress: Callable[[int], Any] | None, **settings: Any) -> Rollout:
        """Sample trajectories weighted by the value head (``sampling.smc``)."""
        from pyro_gram.sampling.smc import smc, to_rollout

        with isolated_program():
            samples = to_rollout(smc(self.model, tokens, **settings), settings["depth"], settings["seed"]).cpu()
        if progress:
            progress(settings["num_samples"] * len(tokens))
        return samples

    def frequency_caveats(
        self,
        *,
        temper: TemperConfig | None = None,
        halt: float | None = None,
        draws: str = "independent",
        restarts: int | None = None,
        sweeps: int | None = None,
        **_: Any,
    ) -> tuple[str, ...]:
        """Return the reasons why, under these settings of :meth:`sample`, frequencies do not estimate p(y | x).

        There is no such reason if all trajectories come from the prior without temper and run to their full depth. The
        frequency of an answer is then an unbiased estimate of the probability that a trajectory ends in it. This holds
        for antithetic and Sobol draws too: each draw comes from the prior. A temper makes other answers frequent;
        a trajectory that halts keeps an answer that later steps might change; SMC favours answers that the value head
        trusts, and so do restarts; sweeps draw from the model's conditional distributions of a half given the other.

        Args:
            temper, halt, draws, restarts, sweeps: as for :meth:`sample`.
        """
        temper, halt = temper or self.config.temper, self._halt(halt)
        floor = getattr(self.config.model, "floor", 0.0)
        caveats = [text] if (text := temper.describe()) else [f"no tokens below p = {floor:g}"] if floor else []
        if draws == "smc":
            caveats.append("filtered by the value head")
        elif halt not in (None, 1):
            caveats.append(f"halting at P = {halt:g}")
        for name, value in {"restarts": restarts, "sweeps": sweeps}.items():
            if draws != "smc" and (count := self._count_of(name, value)):
                caveats.append(f"{count} {name}")
        return tuple(caveats)

    def _halt(self, halt: float | None) -> float | None:
        return self.config.heads.halt if halt is None and self.has_heads else halt

    def _count_of(self, name: str, value: int | None) -> int:
        """Return the number of restarts or sweeps: ``value``, or that of the config if it is None."""
        return getattr(self.config.evaluate, name) if value is None else to_int(name, value)

    def check_depth(self, depth: int | None) -> None:
        """Raise UserError if ``depth`` is not 1 and the model answers in one supervision step."""
        if depth not in (None, 1) and model_traits(self.model).is_one_step:
            raise UserError(f"this model answers in one supervision step: depth must be 1, not {depth}")

    def _chunk_size(self, memory: float | None, tokens: Tensor | None) -> int:
        """Return how many trajectories of the largest of the inputs ``tokens`` run at once, in ``memory`` MB."""
        spec = self.task.spec
        positions = spec.positions
        if tokens is not None and spec.padding is not None:
            with generator_lock():  # the lock also limits a forked process to one thread
                positions = int(spec.positions_of(tokens).max())
        if memory is None:
            return chunk_size(positions)
        sizes = model_sizes(self.config.model)
        return trajectories_in_memory(memory, positions + sizes.prefix, sizes.width)

    def _tokens(self, x: Any) -> Tensor | None:
        """Return checked input tokens, int64 ``[B, *event]``; None for p(x). Raises InputError."""
        from pyro_gram.tasks.inputs import has_event_shape, input_tokens

        spec = self.task.spec
        if not spec.has_input:
            if x is not None:
                raise InputError("this checkpoint is a model p(x), without input: use x = None, or sample.py")
            return None
        if x is None:
            raise InputError("this checkpoint solves inputs: give at least one")
        with generator_lock():  # the lock also limits a forked process to one thread
            x = input_tokens(self.task, x)
        if len(x) == 0:
            raise InputError("no input: give at least one")
        if not has_event_shape(self.task, x.shape[1:]):
            event, largest = spec.input_shape, self.task.max_size
            sizes = f", or the same with any size up to {largest}" if spec.padding is not None and largest else ""
            advice = "; give a matrix as networkx.from_numpy_array(matrix)" if len(event) == x.ndim == 2 else ""
            shape = ", ".join(map(str, event))
            raise InputError(f"x must have the shape [B, {shape}]{sizes}, not {list(x.shape)}{advice}")
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
        colors: int | None = None,
        **settings: Unpack[SampleSettings],
    ) -> list[Answers]:
        """Return the distinct answers to each input, the most frequent first.

        Equally frequent answers are ordered by score, then by first appearance.

        Args:
            x: as for :meth:`sample`.
            num_samples, depth, seed: as for :meth:`sample`.
            select: ``all`` distinct answers; or a single one: ``vote``, the most frequent answer; ``value``, the most
                frequent answer unless the value head trusts another clearly more (``sampling.selection``);
                ``verified``, the most frequent answer that the task's check accepts (none if no sample is right).
            colors: the largest number of colours of an answer, in tasks that have such a number
                (``Task.max_colors``). With None these tasks try the fewest colours, or as many as the text of an input
                says, then one more and so on, until a sample is right.
            **settings: ``temper``, ``halt``, ``draws``, ``restarts``, ``sweeps``, ``memory`` and ``progress``, as for
                :meth:`sample`.

        Raises:
            InputError, UserError, ConfigError: as for :meth:`sample`; or the selection is unknown, or impossible for
                this model or one of the inputs; or it is proved that an input needs more than ``colors``.
        """
        return list(self.stream(x, num_samples, depth, seed, select, colors, **settings))

    def stream(
        self,
        x: Any,
        num_samples: int = 20,
        depth: int | None = None,
        seed: int = 0,
        select: str = "all",
        colors: int | None = None,
        **settings: Unpack[SampleSettings],
    ) -> Iterator[Answers]:
        """Yield the results of :meth:`solve` batch by batch. All inputs are checked before the first batch."""
        from pyro_gram.answers import solve_with_fewest_colors
        from pyro_gram.tasks.inputs import input_with_colors

        for name in settings.keys() - SampleSettings.__annotations__.keys():
            options = (*SampleSettings.__annotations__, "colors", "num_samples", "select")
            raise TypeError(f"unknown option {name!r}{did_you_mean(name, options)}")
        num_samples, seed = to_int("num_samples", num_samples), to_int("seed", seed)
        depth = None if depth is None else to_int("depth", depth)
        check_counts(seed=seed, num_samples=num_samples)
        self.check_depth(depth)
        tokens = self._tokens(x)
        if settings.get("draws") == "smc":
            from pyro_gram.sampling.smc import check_fits

            check_fits(num_samples, self._chunk_size(settings.get("memory"), tokens))
        if tokens is None:
            raise InputError("this checkpoint is a model p(x): there is no input to solve, use sample")
        if colors is not None:
            with generator_lock():
                tokens = input_with_colors(self.task, tokens, to_int("colors", colors))
        self._check_selection(select, tokens)
        finds_colors = colors is None and self.task.max_colors > self.task.min_colors

        def solve_batch(number: int, batch: Tensor) -> Iterator[Answers]:
            batch_seed = _batch_seed(seed, number)
            solve = partial(
                self._solve, num_samples=num_samples, depth=depth, seed=batch_seed, select=select, settings=settings
            )
            if finds_colors:
                return iter(solve_with_fewest_colors(self.task, batch, solve))
            return (replace(answers, colors=colors) for answers in solve(batch))

        batches = tokens.split(max(1, BATCH_TRAJECTORIES // num_samples))
        return (answers for number, batch in enumerate(batches) for answers in solve_batch(number, batch))

    def _solve(
        self, x: Tensor, num_samples: int, depth: int | None, seed: int, select: str, settings: SampleSettings
    ) -> Iterator[Answers]:
        from pyro_gram.answers import Answers, select_answers, tally_answers

        samples = self._sample(x, num_samples, depth, seed, settings)
        tokens = self.task.canonical_form(x, samples.tokens)
        is_valid = self.task.is_valid(x, tokens).double()
        is_valid[~self.task.has_known_answer(x, tokens)] = torch.nan
        for i, single in enumerate(x):
            texts = [self.task.format_solution(single, y) for y in tokens[:, i]]
            scores = samples.score[:, i].tolist()
            values = None if samples.value is None else samples.value[:, i].tolist()
            answers = tally_answers(texts, scores, values, is_valid[:, i], tokens[:, i])
            validity = [answer.valid for answer in answers]
            yield Answers(
                input=self.task.format_input(single),
                solutions=select_answers(select, answers, texts, scores, values),
                num_samples=num_samples,
                depth=self.config.depth if depth is None else depth,
                select=select,
                distinct=len(answers),
                distinct_valid=None if None in validity else sum(map(bool, validity)),
                total=self.task.count_solutions(single),
                mean_steps=samples.steps[:, i].double().mean().item(),
                caveats=self.frequency_caveats(**settings),
                x=single,
            )

    def _check_selection(self, select: str, x: Tensor) -> None:
        from pyro_gram.sampling.selection import SELECTIONS

        check_choice("selection", select, SELECTIONS)
        if select == "value":
            check_has_heads(self.model, "select")
        if select == "verified":
            placeholder = torch.zeros(len(x), self.task.spec.output_length, dtype=torch.long)
            is_known = self.task.has_known_answer(x, placeholder)
            if not is_known.all():
                number = int((~is_known).nonzero()[0]) + 1
                raise UserError(f"input {number} has no known right answer to compare with: select by vote or value")


def _batch_seed(seed: int, batch: int) -> int:
    """Return the seed of a batch. The first batch keeps the caller's seed, so its samples are those of `sample`."""
    return seed if batch == 0 else derive_seed(seed, batch)
