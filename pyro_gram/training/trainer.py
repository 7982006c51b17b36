"""Deep supervision by SVI: one optimizer update a supervision step, the latent state carried and detached (Eq. 14).

In the on-policy part of a run each batch is followed by updates along trajectories of the prior
(``training.on_policy``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import SVI
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from pyro_gram.errors import ConfigError
from pyro_gram.inference.elbo import make_elbo
from pyro_gram.inference.guide import PriorGuide
from pyro_gram.inference.terms import StepTerms
from pyro_gram.networks.core import LatentState
from pyro_gram.system.distributed import SINGLE_PROCESS, ProcessGroup
from pyro_gram.training.act import Places
from pyro_gram.training.beta_schedule import BetaConfig, BetaController
from pyro_gram.training.config import TrainConfig
from pyro_gram.training.divergence import DivergedError, Guard, Update
from pyro_gram.training.on_policy import draw_targets, prior_end
from pyro_gram.training.optimizer import OptimConfig, TorchOptim
from pyro_gram.training.pace import Pace, batches_that_fit, measure_pace
from pyro_gram.training.pause import Inside, random_state, set_random_state
from pyro_gram.training.precision import check_speed, compilation_told, products_in, speed_up

Batches = Callable[[int], tuple[Tensor | None, Tensor]]  # and for on-policy training ``TargetStream.candidates``


@dataclass
class BatchReport:
    """What one batch cost, means over its supervision steps and inputs, nats per input at beta = 1.

    On-policy updates are left out of all but ``on_policy``, their own mean reconstruction (None where there were none).
    ``seconds`` of training are behind it; ``last`` says that it ends the run.
    """

    number: int
    reconstruction: float
    kl: float
    beta: float
    on_policy: float | None = None
    seconds: float = 0.0
    last: bool = False

    @property
    def loss(self) -> float:
        """-ELBO of Eq. 14, nats per input."""
        return self.reconstruction + self.kl


def pair(model: nn.Module, guide: nn.Module) -> nn.ModuleDict:
    """Model and guide as one module, so that copies and averages keep the guide attached to its model."""
    return nn.ModuleDict({"model": model, "guide": guide})


class Trainer:
    """Trains a model and its guide.

    Args:
        model: the generative program.
        guide: its inference program.
        batches: number -> (x, y), a pure function.
        config, optim, beta: the recipe.
        seed: of the guidance drawn in training; with the batch's number it fixes every draw of that batch.
        processes: the processes that share each batch.

    Raises:
        ConfigError: on-policy training of p(x), or where not every solution of every input is known.
    """

    def __init__(
        self,
        model: nn.Module,
        guide: nn.Module,
        batches: Batches,
        config: TrainConfig,
        optim: OptimConfig,
        beta: BetaConfig,
        seed: int = 0,
        processes: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        self.model, self.guide, self.batches, self.config, self.seed = model, guide, batches, config, seed
        self.processes = processes
        if processes.size > 1 and config.particles > 1:
            raise ConfigError("several processes share the inputs of a batch: set train.particles to 1")
        self.candidates: Callable[[int], Any] | None = getattr(batches, "candidates", None)
        if config.on_policy_depth:
            if self.candidates is None:
                raise ConfigError(
                    "train.on_policy_depth needs batches that know every solution (tasks.batches.TargetStream)"
                )
            self.candidates(0)  # raises now, not in the middle of the run
        self.elbo = make_elbo(config.elbo, config.balance, config.particles)
        modules = {"model": model, "guide": guide}
        self.optim = TorchOptim(modules, optim, processes)
        self.svi = SVI(model, guide, self.optim, loss=self.elbo)
        self.alone = SVI(model, PriorGuide(model), self.optim, loss=self.elbo)
        self.beta = BetaController(beta)
        self.places: Places | None = None  # of train.act
        self.guard = Guard()
        self.inside: Inside | None = None  # a batch that is not at its end
        self._draws: dict[str, Tensor] = {}  # the state of the generators before the update that is going on
        self.between: Callable[[], None] = lambda: None  # called between two updates of a batch
        self.average = AveragedModel(pair(model, guide), multi_avg_fn=self._ema)
        check_speed(config.precision, config.compile, model, self.device)
        self.number = 0  # the next batch
        # Of the run, 0 where only the clock ends it; None until ``fit`` says how many fit into the minutes.
        self.num_batches: int | None = None if config.batches and config.minutes else config.batches
        self.pace: Pace | None = None  # where ``fit`` has measured it
        self.elapsed = 0.0  # seconds of training behind this state, over all sittings
        self._begun = 0.0, 0.0  # the elapsed seconds, and the clock, when this sitting began

    def rehearse(self) -> tuple[str, str] | None:
        """The loss of two pairs, without an update: what cannot be trained is refused here. No random state changes.

        Returns:
            the kinds of posterior and prior whose KL ``balanced`` estimates from draws, for want of a closed form; or
            None.

        Raises:
            ConfigError: the model, prior, guide and bound do not fit together.
        """
        x, y = self.batches(0)
        x, y = None if x is None else x[:2].to(self.device), y[:2].to(self.device)
        with torch.random.fork_rng(devices=[y.device] if y.is_cuda else []), pyro.validation_enabled(False):
            try:
                self.elbo.loss(self.model, self.guide, x, y)
            except NotImplementedError as e:  # draws without gradient, or what a distribution lacks
                raise ConfigError(str(e)) from None
            if self.elbo.terms is None:
                raise ConfigError(
                    f"the program {type(self.model).__name__} has no sites 'y', 'h' and 'l': observe the answer at "
                    "'y', and call pyro_gram.inference.sites.record_state in it"
                )
            if self.config.act:
                Places.new(x, y).after(self.elbo.terms, self.config.supervision_steps)
        return getattr(self.elbo, "estimated_kl", None)

    @torch.no_grad()
    def _ema(self, averages: Any, currents: Any, count: Any) -> None:
        n = float(count)
        decay = min(self.config.ema, (1 + n) / (10 + n))  # the average of a short run must not be its start
        torch._foreach_lerp_(averages, currents, 1 - decay)

    def run(self) -> Iterator[BatchReport]:
        """Train until the batches, or the minutes where there is no number of batches, are used up.

        Yields after each batch.

        Raises:
            DivergedError: before the first update that is not finite, or out of all proportion; what can be saved then
                is the state before it.
        """
        self.model.train()
        self.guide.train()
        if not self.finished:
            self.prepare()
            self.fit()
        self._begun = self.elapsed, time.perf_counter()
        last = self.finished
        while not last:
            with pyro.validation_enabled(False), products_in(self.config.precision, self.device):
                report = self.one_batch(*self.batches(self.number))
            # What the caller does between batches (evaluation, saving) counts: minutes are the user's minutes.
            report.seconds = self._agree()
            report.last = last = self.finished  # decided once: the caller looks and saves on the same answer
            yield report
            self._agree()

    def prepare(self) -> None:
        """Speed the core up as the config says; where it is compiled, it meets all that training will ask of it.

        ``run`` calls it before its clock starts. No update is made and no random state changes.

        Raises:
            UserError: the compiler fails.
        """
        c = self.config
        speed_up(self.model, c.precision, c.compile, self.device)
        if c.compile:
            with compilation_told(), products_in(c.precision, self.device):
                self._compile()

    def fit(self, look: Callable[[], object] | None = None) -> bool:
        """Lower the number of batches to what fits into the minutes, where the config has both (``training.pace``).

        This is decided once, before the clock starts, and is the same in all processes. ``run`` calls it where nobody
        has. No update is made and no random state changes.

        Args:
            look: what the caller does every ``evaluate_every`` batches, so that its time counts.

        Returns:
            has it been decided now?
        """
        if self.num_batches is not None or self.finished:
            return False
        self.pace = measure_pace(self, look)
        c = self.config
        found = batches_that_fit(self.pace, c, self.number, self.elapsed) if self.pace else c.batches
        self.num_batches = int(self.processes.from_main(found))
        return True

    def _compile(self) -> None:
        """Let the core meet a batch's shapes: from z_0 and from elsewhere, with gradient and without."""
        x, y = (self._share(t) for t in self.batches(self.number))
        devices = [self.device] if self.device.type == "cuda" else []
        # Compiled code takes note of what surrounds it: of the draws for all processes too.
        with torch.random.fork_rng(devices=devices), pyro.validation_enabled(False), self.processes.draws():
            state = None
            for _ in range(2):
                self.elbo.loss_and_grads(self.model, self.guide, x, y, state)
                assert self.elbo.terms is not None
                state = self.elbo.terms.state
            if self.config.on_policy_depth:
                assert x is not None
                prior_end(self.model, x, 2)
        for p in self.optim.named.values():
            p.grad = None

    def read_clock(self) -> float:
        """``elapsed``, now."""
        before, start = self._begun
        self.elapsed = before + time.perf_counter() - start
        return self.elapsed

    def _agree(self) -> float:
        """:meth:`read_clock`, of the first process in all of them: the end of a run is that of all."""
        self.elapsed = self.processes.from_main(self.read_clock())
        return self.elapsed

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def finished(self) -> bool:
        """Are the batches used up, or the minutes where there is no number of batches?"""
        c = self.config
        if self.inside is not None:  # saved within a batch, which is trained to its end
            return False
        if c.batches:
            return self.number >= (self.num_batches or c.batches)
        return self.elapsed >= c.minutes * 60

    @property
    def done(self) -> float:
        """The share of the run that is over."""
        return self._done_at(0)

    def _done_at(self, step: int) -> float:
        """The share of the run that is over. By batches, which repeat exactly, unless only the clock ends the run."""
        c = self.config
        if c.batches:
            return (self.number + step / c.supervision_steps) / (self.num_batches or c.batches)
        return self.elapsed / (c.minutes * 60)

    def one_batch(self, x: Tensor | None, y: Tensor) -> BatchReport:
        """N_sup updates on one batch, each supervision step starting where the last one ended.

        In the on-policy part of a run, further updates on other inputs, under the prior. A batch that was saved in the
        middle goes on there.
        """
        if self.inside is None:
            torch.manual_seed((self.seed * 1_000_003 + self.number) % 2**63)
            self.inside = Inside()
        else:
            set_random_state(self.inside.random, self.device)
        done = self.done
        self.beta.begin(done)
        terms = self._carry_on(x, y) if self.config.act else self._supervise(x, y, self.inside)
        mean, kl = terms.mean(0).tolist()
        report = BatchReport(self.number, mean, kl, self.beta.value)
        if self.config.on_policy_depth and done >= self.config.on_policy_after:
            report.on_policy = self._supervise_on_policy(self.inside)
        self.beta.update(terms[-1, 0].item() if self.beta.config.watch == "last" else mean)
        self.number += 1
        self.inside = None
        return report

    def _supervise(self, x: Tensor | None, y: Tensor, inside: Inside) -> Tensor:
        """N_sup updates from z_0; the mean reconstruction and KL of each, nats per input, ``[N_sup, 2]``."""
        x, y = self._share(x), self._share(y)
        self.optim.done = self._done_at(self.config.supervision_steps - 1)  # of on-policy updates, where those are left
        for step in range(len(inside.terms), self.config.supervision_steps):
            self.optim.done = self._done_at(step)
            self._draws = random_state(self.device)
            terms, means = self._update(self.svi, x, y, inside.state)
            inside.state = terms.state
            inside.terms.append(means)
            self.between()
        return torch.stack(inside.terms)

    def _carry_on(self, x: Tensor | None, y: Tensor) -> Tensor:
        """One update of every place, those whose trajectory is over with the new pair; as :meth:`_supervise`."""
        x, y = self._share(x), self._share(y)
        places = self.places.refilled(self.model, x, y) if self.places else Places.new(x, y)
        self.optim.done = self.done
        self._draws = random_state(self.device)
        terms, means = self._update(self.svi, places.x, places.y, places.state)
        with self.processes.draws():
            self.places = places.after(terms, self.config.supervision_steps)
        return means[None]

    def _share(self, tensor: Any, dim: int = 0) -> Any:
        """This process's rows of a batch, on its device; None stays None."""
        return None if tensor is None else self.processes.shard(tensor, dim).to(self.device)

    def _supervise_on_policy(self, inside: Inside) -> float:
        """Updates at successive supervision steps of trajectories of the prior, the first at a random depth.

        Returns:
            their mean reconstruction, nats per input.
        """
        assert self.candidates is not None
        c = self.config
        found = self.candidates(self.number)
        x, solutions, there = self._share(found.x), self._share(found.solutions, 1), self._share(found.mask, 1)
        if inside.first < 0:
            inside.first, inside.state = int(torch.randint(c.on_policy_depth - c.on_policy_updates + 1, ())), None
        for step in range(inside.first + len(inside.seen), inside.first + c.on_policy_updates):
            self._draws = random_state(self.device)
            with self.processes.draws():
                end = prior_end(self.model, x, 0 if inside.seen else inside.first, inside.state)
            with self.processes.draws(dim=1):
                # Before the first step a trajectory heads nowhere yet.
                y = draw_targets(end.likelihood if step else None, solutions, there)
            terms, means = self._update(self.alone, x, y, end.state)
            inside.state = terms.state
            inside.seen.append(means[0])
            self.between()
        return torch.stack(inside.seen).mean().item()

    def _update(self, svi: SVI, x: Tensor | None, y: Tensor, state: LatentState | None) -> tuple[StepTerms, Tensor]:
        """One supervision step from ``state``, one update, what the step cost, and its means over the whole batch."""
        means: list[Tensor] = []

        def check(norm: float, rate: float) -> None:
            assert self.elbo.terms is not None
            means.append(self.processes.all_reduce_mean(self.elbo.terms.means))
            try:
                self.guard.check(self._told(means[0], norm, rate))
            except DivergedError:
                set_random_state(self._draws, self.device)  # what is saved now is the state before the update
                raise

        self.optim.check = check
        compiling = compilation_told() if self.config.compile else nullcontext()
        with poutine.scale(scale=1 / y[..., 0].numel()), self.processes.draws(), compiling:
            svi.step(x, y, state, beta=self.beta.value)
        self.average.update_parameters(pair(self.model, self.guide))
        assert self.elbo.terms is not None
        return self.elbo.terms, means[0]

    def _told(self, means: Tensor, norm: float, rate: float) -> Update:
        """The update that is about to be made. ``means``: of reconstruction and KL, ``[2]``."""
        inside = self.inside or Inside()
        reconstruction, kl = means.tolist()
        on_policy = inside.first >= 0
        return Update(
            batch=self.number,
            step=inside.first + len(inside.seen) if on_policy else len(inside.terms),
            on_policy=on_policy,
            loss=reconstruction + self.beta.value * kl,
            reconstruction=reconstruction,
            kl=kl,
            gradient_norm=norm,
            learning_rate=rate,
            beta=self.beta.value,
            usual=self.guard.usual,
        )

    @property
    def averaged(self) -> tuple[nn.Module, nn.Module]:
        """The averaged model and the guide attached to it."""
        module = self.average.module
        assert isinstance(module, nn.ModuleDict)
        return module["model"], module["guide"]
