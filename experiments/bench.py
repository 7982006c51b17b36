"""What the Pyro machinery costs: one SVI step against the same step written in bare torch.

Both steps compute the same numbers (checked before timing): forward under the guide, balanced KL, backward, global-norm
clip, fused AdamW. They are timed in turn, so that a change in the machine's speed meets both.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.distributions import Categorical, Normal, kl_divergence

from pyro_gram.build import Assembly, build
from pyro_gram.cli import Parser, call
from pyro_gram.config import read_preset, with_settings
from pyro_gram.errors import UserError
from pyro_gram.evaluate import environment
from pyro_gram.files import write_json
from pyro_gram.inference.elbo import scale_gradient
from pyro_gram.inference.training import Trainer
from pyro_gram.networks.core import LatentState
from pyro_gram.tasks.stream import TargetStream

PRESETS = Path(__file__).parent / "presets"
Step = Callable[[], float]


# The settings that each size changes in the cpu preset of colouring.
SIZES: dict[str, dict[str, dict[str, Any]]] = {
    "cpu": {},
    "edge": {"task": {"layout": "edge"}, "train": {"batch": 64}},
    "paper-step": {"model": {"transitions": 3}, "train": {"batch": 64}},
}


def assemble(name: str) -> Assembly:
    return build(with_settings(read_preset(PRESETS, "coloring", "cpu"), SIZES[name]))


def make_trainer(assembly: Assembly) -> Trainer:
    c = assembly.config
    stream = TargetStream(assembly.task, assembly.task.split("train"), c.train.batch, 0, c.train.augment)
    return Trainer(assembly.model, assembly.guide, stream, c.train, c.optim, c.beta)


def pyro_step(trainer: Trainer, x: Tensor, y: Tensor) -> Step:
    """The step that training takes."""

    def step() -> float:
        with pyro.validation_enabled(False), poutine.scale(scale=1 / len(y)):
            return trainer.svi.step(x, y, None, beta=1.0)

    return step


def torch_step(trainer: Trainer, x: Tensor, y: Tensor) -> Step:
    """The same step without Pyro: same modules, same loss, its own optimizer."""
    model: Any = trainer.model
    guide: Any = trainer.guide
    config = trainer.optim.config
    if config.matrices != "adamw":
        raise UserError(f"the bare step is AdamW's, and the preset's optimizer is {config.matrices}")
    parameters = list(trainer.optim.named.values())
    adam = torch.optim.AdamW(
        parameters,
        lr=config.rate(0, 0.0),
        weight_decay=config.weight_decay,
        betas=(config.beta1, config.beta2),
        fused=True,
    )
    balance, T = trainer.config.balance, model.config.transitions

    def step() -> float:
        e_x, code = model.encoder(x), guide.answer(y)
        code = nn.functional.pad(code, (0, 0, e_x.shape[-2] - code.shape[-2], 0))
        h, l = model.h0.expand_as(e_x), model.l0.expand_as(e_x)
        loss = torch.zeros(())
        for t in range(T):
            charged = not model.config.truncated or t == T - 1
            with torch.set_grad_enabled(charged):
                u, l = model.core(LatentState(h, l), e_x)
                loc, scale = guide.head(torch.cat((u, code), -1))
                if charged:
                    q = scale_gradient(Normal(loc, scale, validate_args=False), 1 - balance)
                    loc_p, scale_p = model.prior.head(u)
                    p = scale_gradient(Normal(loc_p, scale_p, validate_args=False), balance)
                    loss = loss + kl_divergence(q, p).sum() / len(y)
                h = u + loc + scale * torch.normal(torch.zeros_like(loc), torch.ones_like(scale))
        logits = model.decoder(h)
        loss = loss - Categorical(logits=logits, validate_args=False).log_prob(y).sum() / len(y)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, config.clip)
        adam.step()
        adam.zero_grad(set_to_none=True)
        return loss.item()

    return step


def timed(step: Step) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def compare(name: str, repeats: int, warmup: int = 3) -> dict[str, Any]:
    """Median times of both steps, in turn, and the ratio pair by pair."""
    ours, bare = make_trainer(assemble(name)), make_trainer(assemble(name))
    x, y = ours.batches(0)
    assert x is not None
    steps = pyro_step(ours, x, y), torch_step(bare, x, y)
    losses = []
    for step in steps:
        torch.manual_seed(0)
        losses.append(step())
    if abs(losses[0] - losses[1]) > 1e-3 * abs(losses[1]):
        raise UserError(f"the two steps disagree: {losses[0]} with Pyro, {losses[1]} without; the benchmark is wrong")
    for step in steps * warmup:
        step()
    pairs = [(timed(steps[0]), timed(steps[1])) for _ in range(repeats)]
    ratios = sorted(a / b for a, b in pairs)
    return {
        "size": name,
        "batch": len(y),
        "positions": ours.model.get_buffer("h0").shape[0],
        "pyro_ms": 1e3 * statistics.median(a for a, _ in pairs),
        "torch_ms": 1e3 * statistics.median(b for _, b in pairs),
        "pyro_over_torch": statistics.median(ratios),
        "ratio_quartiles": [ratios[repeats // 4], ratios[(3 * repeats) // 4]],
        "repeats": repeats,
        "loss": losses,
    }


def main(argv: list[str]) -> int:
    parser = Parser("bench.py", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one size, fewer repeats: under 50 s")
    parser.add_argument("--repeats", type=int, metavar="N", help="pairs of steps a size (default 60; 40 with --quick)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the JSON to FILE as well")
    arguments = parser.parse_args(argv)
    repeats = arguments.repeats or (40 if arguments.quick else 60)
    if repeats < 4:
        raise UserError(f"--repeats must be at least 4, not {repeats}")
    names = ["cpu"] if arguments.quick else list(SIZES)
    rows = []
    for name in names:
        print(f"timing {name}", file=sys.stderr)
        rows.append(compare(name, repeats))
    result = {"pyro_over_torch": rows[0]["pyro_over_torch"], "steps": rows, "environment": environment()}
    if arguments.out:
        write_json(arguments.out, result)
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        for row in rows:
            low, high = row["ratio_quartiles"]
            print(
                f"{row['size']:<11} batch {row['batch']:>4} x {row['positions']:>3} positions: "
                f"Pyro {row['pyro_ms']:.1f} ms, torch {row['torch_ms']:.1f} ms, "
                f"ratio {row['pyro_over_torch']:.3f} (quartiles {low:.3f}-{high:.3f})"
            )
    return 0


if __name__ == "__main__":
    raise SystemExit(call(main))
