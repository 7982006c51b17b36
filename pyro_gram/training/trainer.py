"""Deep supervision by SVI: one update for each supervision step. A step starts in the state in which the previous step
ended, without gradient through that state (Eq. 14).

In the on-policy part of a run each batch is followed by updates along trajectories of the prior
(``training.on_policy``).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from pyro import poutine
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from pyro_gram.errors import ConfigError
from pyro_gram.inference.contract import guide_traits, model_traits
from pyro_gram.inference.elbo import make_elbo
from pyro_gram.inference.guide import PriorGuide
from pyro_gram.networks.core import LatentState
from pyro_gram.system.distributed import SINGLE_PROCESS, ProcessGroup
from pyro_gram.tasks.batches import Candidates, derive_seed
from pyro_gram.training.act import RESTART_BATCHES, RESTARTED_SHARE, Carry
from pyro_gram.training.beta_schedule import BetaConfig, BetaController
from pyro_gram.training.config import TrainConfig
from pyro_gram.training.divergence import DivergedError, DivergenceCheck, UpdateRecord
from pyro_gram.training.on_policy import draw_targets, prior_end
from pyro_gram.training.optimizer import OptimConfig, TorchOptim
from pyro_gram.training.precision import check_precision
from pyro_gram.training.report import BatchReport, Pace

# Maps the number of a batch to (x, y). On-policy training also needs the method ``candidates`` of ``TargetStream``, and
# exact targets need ``with_solutions``.
Batches = Callable[[int], tuple[Tensor | None, Tensor]]


class Trainer:
    """Trains a model and its guide.

    ``pyro.infer.SVI(model, guide, optimizer, elbo).step`` makes the same update, with a ``TorchOptim`` or an optimizer
    of ``pyro.optim``. :meth:`update` calls the parts of that step one by one. So it can leave out an update whose loss
    diverges.

    Args:
        model: the generative program.
        guide: the inference program of the model.
        batches: maps the number of a batch to (x, y); a pure function.
        config, optim, beta: the settings of training, of the optimizer and of beta.
        seed: seed of the draws. With the batch's number and the process's rank, it fixes every draw of a batch.
        processes: the processes that share each batch.

    Raises:
        ConfigError: on-policy training lacks inputs or some of their solutions; or several processes are to train a
            guide that has parameters for each datum.
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
        if processes.size > 1 and not guide_traits(guide).is_amortized:
            raise ConfigError("a guide with parameters for each datum trains in one process: unset WORLD_SIZE")
        self.candidates: Callable[[int], Any] | None = getattr(batches, "candidates", None)
        if config.on_policy_depth:
            if self.candidates is None:
                raise ConfigError("train.on_policy_depth needs batches with every solution, as of a TargetStream")
            self.candidates(0)  # an error should come now, not in the middle of the run
        self.with_solutions: Callable[[int], Any] | None = getattr(batches, "with_solutions", None)
        self.prior_guide = PriorGuide(model)
        self.elbo = make_elbo(config.elbo, config.balance, config.particles)
        self.optimizer = TorchOptim({"model": model, "guide": guide}, optim, processes)
        self.beta = BetaController(beta)
        self.divergence = DivergenceCheck()
        # one module, so that in a copy the guide refers to the copied model
        self.modules = nn.ModuleDict({"model": model, "guide": guide})
        self.average = make_average(self.modules, config.ema)
        self.carry: Carry | None = None  # used if train.act is set
        self.is_checked = False  # has ``dry_run`` passed?
        check_precision(config.precision, config.compile, model, self.device)
        self.number = 0  # the number of the next batch
        # Number of batches in the run: 0 if only the clock ends it, None until ``pace.fit_to_minutes`` has decided it.
        self.num_batches: int | None = None if config.batches and config.minutes else config.batches
        self.pace: Pace | None = None  # measured by ``pace.fit_to_minutes``
        self.clock: Callable[[], float] | None = None  # what ``elapsed`` counts; None for time.perf_counter
        self.elapsed = 0.0  # seconds of training since the run began, including those before a resume
        self._clock_start = 0.0, 0.0  # elapsed seconds and time of the clock at the call of ``start_clock``

    # ---- one batch -------------------------------------------------------------------------------------------------

    def train_batch(self, x: Tensor | None, y: Tensor) -> BatchReport:
        """Make the updates of one batch; in the on-policy part of a run, also those along trajectories of the prior.

        Args:
            x: inputs of the batch of all processes, int64 ``[B, *event]``; None for p(x).
            y: their answers, int64 ``[B, L_out]``.
        """
        self._seed_draws()
        x, y = self.shard(x), self.shard(y)
        progress = self.progress
        self.beta.start_batch(progress)
        means = self.act_step(x, y) if self.config.act else self.supervise(x, y)
        reconstruction, kl = means.mean(0).tolist()
        report = BatchReport(self.number, reconstruction, kl, self.beta.value)
        if self.is_on_policy:
            report.on_policy = self.supervise_on_policy()
        self.beta.update(means[-1, 0].item() if self.beta.config.watch == "last" else reconstruction)
        self.number += 1
        return report

    def supervise(self, x: Tensor | None, y: Tensor) -> Tensor:
        """Make N_sup updates. Each starts in the state in which the previous update ended.

        Returns:
            mean reconstruction and KL of each update, nats per input, ``[N_sup, 2]``.
        """
        state, means = None, []
        for step in range(self.config.supervision_steps):
            self.optimizer.progress = self.progress_at(step)
            state, mean = self.update(self.guide, x, y, state, step)
            means.append(mean)
        return torch.stack(means)

    def supervise_on_policy(self) -> float:
        """Make updates at successive supervision steps of trajectories of the prior, the first at a random depth.

        Returns:
            the mean reconstruction of these updates, nats per input (``training.on_policy``).
        """
        assert self.candidates is not None
        c, candidates = self.config, self.shard_candidates(self.candidates(self.number))
        x = candidates.x
        depth = torch.randint(c.on_policy_depth - c.on_policy_updates + 1, ()).item()
        first = int(self.processes.from_main(depth))
        state, losses = None, []
        for step in range(first, first + c.on_policy_updates):
            end = prior_end(self.model, x, first if state is None else 0, state)
            # At step 0 the state is z_0, which prefers no solution yet.
            y = draw_targets(end.likelihood if step else None, candidates)
            state, mean = self.update(self.prior_guide, x, y, end.state, step)
            losses.append(mean[0])
        return torch.stack(losses).mean().item()

    def shard_candidates(self, batch: Candidates) -> Candidates:
        """Return this process's share of a batch with its solutions, on the device."""
        names = "solutions", "mask", "is_naming", "log_namings"
        shards = {name: self.shard(getattr(batch, name), 1) for name in names}
        namings = None if batch.namings is None else batch.namings.to(self.device)
        return replace(batch, x=self.shard(batch.x), namings=namings, is_token=self.shard(batch.is_token), **shards)

    def act_step(self, x: Tensor | None, y: Tensor) -> Tensor:
        """Make one update of all trajectories, after new pairs have replaced finished pairs (``training.act``).

        Returns:
            mean reconstruction and KL of the update, nats per input, ``[1, 2]``.
        """
        candidates = None
        if self.config.exact_targets and x is not None:
            if self.with_solutions is None:
                raise ConfigError("train.exact_targets needs batches with every solution, as of a TargetStream")
            candidates = self.shard_candidates(self.with_solutions(self.number)[1])
        pairs = x, y, candidates
        carry = self.carry.replace_finished(self.model, *pairs) if self.carry else Carry.start(*pairs)
        self.optimizer.progress = self.progress
        with nullcontext() if carry.candidates is None else _exact_targets(carry.candidates):
            _, mean = self.update(self.guide, carry.x, carry.y, carry.state, step=0)
        assert self.elbo.terms is not None
        settings = {}
        if model_traits(self.model).has_lattice:  # a complete answer cannot change: nothing to explore
            settings = {"exploration": 0.0, "restart": RESTARTED_SHARE * (self.number < RESTART_BATCHES)}
        self.carry = carry.advance(self.elbo.terms, self.config.supervision_steps, **settings)
        return mean[None]

    def update(
        self, guide: nn.Module, x: Tensor | None, y: Tensor, state: LatentState | None, step: int
    ) -> tuple[LatentState, Tensor]:
        """Make one update on one supervision step from ``state`` (None is z_0).

        Returns:
            the state at the end of the step, detached; and mean reconstruction and KL, nats per input, ``[2]``.

        Raises:
            DivergedError: the update would ruin the run, and was not made.
        """
        with poutine.scale(scale=1 / y[..., 0].numel()):
            self.elbo.loss_and_grads(self.model, guide, x, y, state, beta=self.beta.value)
        mean = self._check_divergence(step, on_policy=guide is self.prior_guide)
        self.optimizer.step()
        self.average.update_parameters(self.modules)
        assert self.elbo.terms is not None
        return self.elbo.terms.state, mean

    def _check_divergence(self, step: int, on_policy: bool) -> Tensor:
        """Average and clip the gradient, and check gradient and loss. Return mean reconstruction and KL, ``[2]``."""
        assert self.elbo.terms is not None
        gradient_norm = self.optimizer.clip_gradients()
        mean = self.elbo.terms.means
        if self.processes.size > 1:
            self.processes.all_reduce_mean_([mean])
        reconstruction, kl = mean.tolist()
        record = UpdateRecord(
            batch=self.number,
            step=step,
            on_policy=on_policy,
            loss=reconstruction + self.beta.value * kl,
            reconstruction=reconstruction,
            kl=kl,
            gradient_norm=gradient_norm.item(),
            learning_rate=self.optimizer.rate,
            beta=self.beta.value,
            usual_loss=self.divergence.usual_loss,
        )
        try:
            self.divergence.check(record)
        except DivergedError:
            self.optimizer.zero_grad()
            raise
        return mean

    def _seed_draws(self) -> None:
        """Seed torch's generators for this batch, differently in every process."""
        seed = (self.seed * 1_000_003 + self.number) % 2**63
        torch.manual_seed(seed if self.processes.is_main else derive_seed(seed, self.processes.rank))

    def shard(self, tensor: Any, dim: int = 0) -> Any:
        """Return this process's shard of a batch, on its device; None stays None."""
        return None if tensor is None else self.processes.shard(tensor, dim).to(self.device)

    # ---- progress of the run ---------------------------------------------------------------------------------------

    def start_clock(self) -> None:
        """Let the seconds from now on count as training."""
        self._clock_start = self.elapsed, (self.clock or time.perf_counter)()

    def sync_clock(self) -> float:
        """Set ``elapsed`` to the seconds of training by the main process's clock, and return them."""
        elapsed, start = self._clock_start
        self.elapsed = self.processes.from_main(elapsed + (self.clock or time.perf_counter)() - start)
        return self.elapsed

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return next(self.model.parameters()).device

    @property
    def is_finished(self) -> bool:
        """True if all batches are done or, in a run without a number of batches, the minutes are over."""
        c = self.config
        return self.number >= (self.num_batches or c.batches) if c.batches else self.elapsed >= c.minutes * 60

    @property
    def progress(self) -> float:
        """The share of the run that is over."""
        return self.progress_at(0)

    @property
    def is_on_policy(self) -> bool:
        """Do on-policy updates follow this batch?"""
        c = self.config
        is_turn = not c.act or self.number % c.supervision_steps == 0
        return c.on_policy_depth > 0 and self.progress >= c.on_policy_after and is_turn

    def progress_at(self, step: int) -> float:
        """Return the share of the run that is over before a step.

        It is a share of the batches or, if only the clock ends the run, of the minutes.
        """
        c = self.config
        if c.batches:
            return (self.number + step / c.supervision_steps) / (self.num_batches or c.batches)
        return self.elapsed / (c.minutes * 60)

    @property
    def averaged_modules(self) -> tuple[nn.Module, nn.Module]:
        """The model with the averaged weights, and the guide attached to it."""
        module = self.average.module
        assert isinstance(module, nn.ModuleDict)
        return module["model"], module["guide"]

    # ---- saved state -----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """Return tensors and numbers that the next batch depends on, by part and name. Every process must call this."""
        return {
            "weights": self.modules.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "carry": self.carry.all_gather(self.processes).state_dict() if self.carry else {},
            "beta": self.beta.state_dict(),
            "divergence": self.divergence.state_dict(),
            "progress": {"number": self.number, "num_batches": self.num_batches, "elapsed": self.elapsed},
        }

    def load_state_dict(self, state: dict[str, dict[str, Any]]) -> None:
        """Load a saved state. Raises KeyError for a missing or stray name, ValueError for an impossible number."""
        progress = state["progress"]
        number, elapsed, num_batches = int(progress["number"]), float(progress["elapsed"]), progress["num_batches"]
        if number < 0 or not 0 <= elapsed < math.inf or (num_batches is not None and int(num_batches) < 0):
            raise ValueError(f"batch {number} of {num_batches} after {elapsed} seconds")
        self.modules.load_state_dict(state["weights"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.beta.load_state_dict(state["beta"])
        self.divergence.load_state_dict(state["divergence"])
        self.carry = (
            Carry.from_state_dict(state["carry"]).shard(self.processes, self.device) if state["carry"] else None
        )
        self.number, self.elapsed = number, elapsed
        if self.num_batches is None and num_batches is not None:
            self.num_batches = int(num_batches)


def make_average(modules: nn.Module, decay: float) -> AveragedModel:
    """Return an exponential moving average of weights.

    After n updates its decay is min(``decay``, (1 + n) / (10 + n)), so that the average of a short run does not stay at
    the initial weights.
    """

    @torch.no_grad()
    def move_average(averages: Any, weights: Any, count: Any) -> None:
        n = float(count)
        torch._foreach_lerp_(averages, weights, 1 - min(decay, (1 + n) / (10 + n)))

    return AveragedModel(modules, multi_avg_fn=move_average)


def _exact_targets(candidates: Candidates) -> Any:
    from pyro_gram.training.exact_targets import ExactTargets  # only models with a lattice need it

    return ExactTargets(candidates)
