"""The training steps that ``bench.py`` times: an SVI step, the same step in plain torch, and its matrix products.

Each of the two steps has a forward pass under the guide, a balanced KL, a backward pass, clipping by the global norm,
and fused AdamW. They compute the same numbers: losses, gradients and weights are compared before timing. Steps and
products are timed in turn, so that a change in the machine's speed affects all three. Both steps evaluate the prior at
every transition, and keep the terms that training reports and the state in which the next supervision step starts.
"""

from __future__ import annotations

import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import SVI
from torch import Tensor, nn
from torch.distributions import Categorical, Normal, kl_divergence
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from pyro_gram.build import build
from pyro_gram.config import RunConfig, with_settings
from pyro_gram.errors import UserError
from pyro_gram.inference.elbo import scale_gradient
from pyro_gram.networks.core import LatentState
from pyro_gram.presets import read_preset
from pyro_gram.registry import GUIDES, MODELS, PRIORS
from pyro_gram.solver import Solver
from pyro_gram.spec import TaskSpec
from pyro_gram.tasks.batches import TargetStream
from pyro_gram.training.trainer import Trainer

PRESETS = Path(__file__).parents[1] / "presets"
Step = Callable[[], float]


# Each entry of SIZES names a task, and the settings in which it differs from the task's cpu preset.
WIDE = {"width": 128, "heads": 4, "hidden": 128, "layers": 2, "low_steps": 4, "transitions": 3, "truncated": True}
SIZES: dict[str, tuple[str, dict[str, dict[str, Any]]]] = {
    "cpu": ("coloring", {}),
    "edge": ("coloring", {"task": {"layout": "edge"}, "model": {"mixer": "attention"}, "train": {"batch": 64}}),
    "paper-step": ("coloring", {"model": {"transitions": 3}, "train": {"batch": 64}}),
    # Our target for the speed is stated for the size ``cells``: D = 128, 64 tokens, batch 64, K = 4, T = 3.
    "cells": ("nqueens", {"task": {"layout": "cell"}, "model": WIDE, "train": {"batch": 64}}),
}


def assemble(name: str) -> Solver:
    task, settings = SIZES[name]
    return build(with_settings(read_preset(PRESETS, task, "cpu"), settings))


def make_trainer(solver: Solver) -> Trainer:
    c = solver.config
    stream = TargetStream(solver.task, solver.task.split("train"), c.train.batch, 0, c.train.augment)
    return Trainer(solver.model, solver.guide, stream, c.train, c.optim, c.beta)


def random_batch(spec: TaskSpec, batch: int, device: torch.device) -> tuple[Tensor | None, Tensor]:
    """Return a batch (x, y) of random tokens in the shapes of a task. x is None if the task has no input."""
    y = torch.randint(spec.output_classes, (batch, spec.output_length), device=device)
    if not spec.has_input:
        return None, y
    return torch.randint(spec.input_vocabulary, (batch, *spec.input_shape), device=device), y


def on_random_tokens(config: RunConfig, length: int, batch: int) -> Step:
    """Return a training step on random tokens at ``length`` positions. Its time depends only on the shapes."""
    spec = TaskSpec(length, None, 3, length, 2)
    prior = PRIORS.get(config.names["prior"])(config.prior, config.model.width)
    model = MODELS.get(config.names["model"])(replace(config.model, mixer="attention"), spec, prior)
    guide = GUIDES.get(config.names["guide"])(config.guide, spec, model, config.model.width)
    x, y = random_batch(spec, batch, torch.device("cpu"))
    assert x is not None
    trainer = Trainer(
        model, guide, lambda _: (x, y), replace(config.train, on_policy_depth=0), config.optim, config.beta
    )
    return pyro_step(trainer, x, y)


def pyro_step(trainer: Trainer, x: Tensor, y: Tensor) -> Step:
    """Return a training step that Pyro's SVI makes, without the divergence check and the running average."""
    svi = SVI(trainer.model, trainer.guide, trainer.optimizer, loss=trainer.elbo)

    def step() -> float:
        with pyro.validation_enabled(False), poutine.scale(scale=1 / len(y)):
            return svi.step(x, y, None, beta=1.0)

    return step


def torch_step(trainer: Trainer, x: Tensor, y: Tensor) -> tuple[Step, torch.optim.AdamW]:
    """Return the step of :func:`pyro_step`, written without Pyro (same modules, same loss), and its optimizer."""
    model: Any = trainer.model
    guide: Any = trainer.guide
    config = trainer.optimizer.config
    if config.hidden_optimizer != "adamw":
        raise UserError(f"the plain step uses AdamW, but the preset's optimizer is {config.hidden_optimizer}")
    parameters = list(trainer.optimizer.parameters_by_name.values())
    adam = torch.optim.AdamW(
        parameters,
        lr=config.rate(0, 0.0),
        weight_decay=config.weight_decay,
        betas=(config.beta1, config.beta2),
        fused=True,
    )
    balance, T = trainer.config.balance, model.config.transitions
    updates = count()
    terms: list[Tensor] = []  # what training reports, and the state in which the next supervision step starts

    def step() -> float:
        e_x, code = model.encode(x), guide.answer(y)
        if e_x.shape[-2] > code.shape[-2]:
            code = nn.functional.pad(code, (0, 0, e_x.shape[-2] - code.shape[-2], 0))
        h, l = model.h0.expand_as(e_x), model.l0.expand_as(e_x)
        kls = []
        for t in range(T):
            is_charged = not model.config.truncated or t == T - 1
            with torch.set_grad_enabled(is_charged):
                u, l = model.propose(LatentState(h, l), e_x)
                loc, scale = guide.head(torch.cat((u, code), -1))
                loc_p, scale_p = model.prior.head(u)  # at every transition, as in the program
                if is_charged:
                    q = scale_gradient(Normal(loc, scale, validate_args=False), 1 - balance)
                    p = scale_gradient(Normal(loc_p, scale_p, validate_args=False), balance)
                    kls.append(kl_divergence(q, p).sum((-2, -1)))
                h = u + loc + scale * torch.randn_like(loc)
        logits = model.open_values(model.decoder(h))
        reconstruction, kl = -Categorical(logits=logits, validate_args=False).log_prob(y).sum(-1), torch.stack(kls)
        loss = (reconstruction.sum() + kl.sum()) / len(y)
        terms[:] = reconstruction.detach(), kl.detach(), h.detach(), l.detach()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, config.clip)
        adam.param_groups[0]["lr"] = config.rate(next(updates), 0.0)
        adam.step()
        adam.zero_grad(set_to_none=True)
        return loss.item()

    return step, adam


def check_same_updates(name: str, steps: int = 3, tolerance: float = 1e-3) -> list[float]:
    """Make some updates with both steps from the same weights. Check that they agree, and return the losses.

    Raises:
        UserError: the losses, the moments of the gradients, or the weights differ.
    """
    pyro_trainer, torch_trainer = make_trainer(assemble(name)), make_trainer(assemble(name))
    x, y = pyro_trainer.batches(0)
    assert x is not None
    torch_update, adam = torch_step(torch_trainer, x, y)
    losses = []
    for trainer, step in ((pyro_trainer, pyro_step(pyro_trainer, x, y)), (torch_trainer, torch_update)):
        torch.manual_seed(0)
        with torch.no_grad():  # every GaussianHead starts at 0, so the KL would stay 0 at first
            for p in trainer.optimizer.parameters_by_name.values():
                p.add_(0.05 * torch.randn_like(p))
        losses.append([step() for _ in range(steps)])
    if any(abs(a - b) > tolerance * abs(b) for a, b in zip(*losses, strict=True)):
        raise UserError(f"the two steps disagree: {losses[0]} with Pyro, {losses[1]} without; the benchmark is wrong")
    for key, p in torch_trainer.optimizer.parameters_by_name.items():
        pyro_parameter = pyro_trainer.optimizer.parameters_by_name[key]
        state = next(o.state[pyro_parameter] for o in pyro_trainer.optimizer.optimizers)
        for a, b in ((pyro_parameter, p), (state["exp_avg"], adam.state[p]["exp_avg"])):
            if (a - b).norm() > tolerance * b.norm():
                raise UserError(f"the two steps disagree about {key}: the benchmark is wrong")
    return losses[0]


def time_call(step: Callable[[], Any]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def time_in_turn(calls: Mapping[str, Callable[[], Any]], repeats: int) -> list[dict[str, float]]:
    """Time the calls in turn. Return for each round the seconds of every call.

    The order of a round is random, so that no call always runs after the same other call, with what that one cached.
    """
    generator = random.Random(0)
    orders = [generator.sample(list(calls), len(calls)) for _ in range(repeats)]
    return [{name: time_call(calls[name]) for name in order} for order in orders]


def spread(values: list[float]) -> dict[str, Any]:
    """Return the median and the quartiles of some values."""
    sorted_values = sorted(values)
    return {
        "median": statistics.median(sorted_values),
        "quartiles": [sorted_values[len(sorted_values) // 4], sorted_values[(3 * len(sorted_values)) // 4]],
    }


class Products(TorchDispatchMode):
    """Count the matrix products that run in this context, by the shapes and strides of their operands."""

    OPERANDS = {  # noqa: RUF012 (a constant)
        torch.ops.aten.mm.default: slice(0, 2),
        torch.ops.aten.bmm.default: slice(0, 2),
        torch.ops.aten.bmm.out: slice(0, 2),
        torch.ops.aten.addmm.default: slice(1, 3),
        torch.ops.aten.baddbmm.default: slice(1, 3),
    }

    def __init__(self) -> None:
        super().__init__()
        self.operand_counts: Counter[tuple[tuple[torch.Size, tuple[int, ...]], ...]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self.OPERANDS:
            self.operand_counts[tuple((t.shape, t.stride()) for t in args[self.OPERANDS[func]])] += 1
        return func(*args, **(kwargs or {}))

    def replay(self) -> Step:
        """Return a function that repeats only the products, on random numbers."""
        pairs = []
        for operands, times in self.operand_counts.items():
            a, b = (torch.empty_strided(shape, stride).normal_() for shape, stride in operands)
            pairs.append((a, b, torch.matmul(a, b), times))

        def step() -> float:
            for a, b, out, times in pairs:
                for _ in range(times):
                    torch.matmul(a, b, out=out)
            return 0.0

        return step


def compare(name: str, repeats: int, warmup: int = 3) -> dict[str, Any]:
    """Time the Pyro step, the torch step and the products in turn. Return the times and the ratio Pyro to torch."""
    losses = check_same_updates(name)
    solver = assemble(name)
    pyro_trainer, torch_trainer = make_trainer(solver), make_trainer(assemble(name))
    x, y = pyro_trainer.batches(0)
    assert x is not None
    step = pyro_step(pyro_trainer, x, y)
    with Products() as products:
        step()
    with FlopCounterMode(display=False) as counter:
        step()
    calls = {"pyro": step, "torch": torch_step(torch_trainer, x, y)[0], "products": products.replay()}
    time_in_turn(calls, warmup)
    rounds = time_in_turn(calls, repeats)
    times = {f"{name_of_call}_ms": spread([1e3 * r[name_of_call] for r in rounds]) for name_of_call in calls}
    ratio = spread([r["pyro"] / r["torch"] for r in rounds])
    gigaflop = counter.get_total_flops() / 1e9
    return {
        "size": name,
        "batch": len(y),
        "positions": solver.task.spec.positions,
        **times,
        "pyro_over_torch": ratio["median"],
        "ratio_quartiles": ratio["quartiles"],
        "gigaflop": gigaflop,
        "gflops": 1e3 * gigaflop / times["pyro_ms"]["median"],
        "machine_gflops": 1e3 * gigaflop / times["products_ms"]["median"],
        "roofline_fraction": statistics.median(r["products"] / r["pyro"] for r in rounds),
        "batch_made_ms": 1e3 * statistics.median(time_call(partial(pyro_trainer.batches, n)) for n in range(1, 9)),
        "repeats": repeats,
        "loss": losses,
    }
