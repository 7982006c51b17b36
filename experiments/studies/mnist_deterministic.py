"""Train a deterministic model of MNIST, and compare it with GRAM, which should have a smaller Frechet distance.

The deterministic model (TRM) is GRAM with eps = 0. Without input it has a single trajectory and a single image: the
most probable value of every pixel. Table 2 of the paper gives this model an Inception score of 1.00. This script trains
it with the settings of a preset, and writes its figures beside the figures of a GRAM run:

    python experiments/studies/mnist_deterministic.py --data-dir DIR --gram checkpoints/mnist.results.json
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from pyro import poutine
from torch import Tensor, nn

from experiments.run import PRESETS
from pyro_gram.build import build
from pyro_gram.config import RunConfig
from pyro_gram.diagnostics import digits
from pyro_gram.errors import ConfigError
from pyro_gram.inference.sites import ANSWER, STATE_H, STATE_L, transition_index
from pyro_gram.networks.core import LatentState
from pyro_gram.presets import read_preset
from pyro_gram.sampling.rollout import rollout
from pyro_gram.system.cli import Parser, call
from pyro_gram.system.files import read_json, write_json
from pyro_gram.system.machine import environment
from pyro_gram.tasks.batches import TargetStream
from pyro_gram.training.optimizer import TorchOptim

OUT = Path(__file__).with_suffix(".json")


class NoGuidance(poutine.messenger.Messenger):
    """Set every guidance to 0 and hide its site from other handlers. The program is then TRM."""

    def _pyro_sample(self, msg: Any) -> None:
        if transition_index(msg["name"]) is not None:
            msg["value"] = torch.zeros_like(msg["fn"].mean)
            msg["done"] = msg["stop"] = True


def without_guidance(model: nn.Module) -> Any:
    """Return the model's program without guidance."""

    def program(*args: Any, **kwargs: Any) -> Tensor:
        with NoGuidance():
            return model(*args, **kwargs)

    return program


def train(config: RunConfig, task: Any, model: nn.Module, batches: int) -> float:
    """Train with deep supervision, as GRAM is trained: one update per supervision step. Return the seconds it took."""
    start = time.perf_counter()
    stream = TargetStream(task, task.split("train"), config.train.batch, config.seed, config.train.augment)
    optim = TorchOptim({"model": model}, config.optim)
    program = without_guidance(model)
    for number in range(batches):
        _, y = stream(number)
        state = None
        for _ in range(config.train.supervision_steps):
            optim.progress = optim.num_updates / (batches * config.train.supervision_steps)
            nodes = poutine.trace(program).get_trace(None, y, state).nodes
            (-nodes[ANSWER]["fn"].log_prob(y).mean()).backward()
            optim(model.parameters())
            state = LatentState(nodes[STATE_H]["value"], nodes[STATE_L]["value"]).detach()
    return time.perf_counter() - start


def main(argv: list[str]) -> int:
    parser = Parser("mnist_deterministic.py", description=__doc__)
    parser.add_argument("--preset", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--batches", type=int, default=200, help="batches of training (default 200, more than enough to converge)"
    )
    parser.add_argument("--data-dir", metavar="DIR", help="directory of the MNIST files")
    parser.add_argument("--gram", type=Path, required=True, metavar="FILE", help="results.json of the GRAM run")
    parser.add_argument("--out", type=Path, default=OUT, metavar="FILE")
    arguments = parser.parse_args(argv)
    if arguments.batches < 1:
        raise ConfigError(f"--batches must be at least 1, not {arguments.batches}")
    gram = read_json(arguments.gram)
    config = read_preset(PRESETS, "mnist", arguments.preset, seed=arguments.seed)
    solver = build(config, arguments.data_dir)
    task, model = solver.task, solver.model
    seconds = train(config, task, model, arguments.batches)
    samples = gram["metrics"]["num_samples"]
    depth = config.depth
    tokens = rollout(without_guidance(model), None, num_samples=samples, depth=depth).tokens[:, 0]
    results = digits.assess(digits.reference(task, "test"), tokens)
    ours = {name: gram["metrics"][name] for name in ("frechet_distance", "inception_score", "num_samples")}
    write_json(
        arguments.out,
        {
            "preset": config.preset,
            "seed": config.seed,
            "batches": arguments.batches,
            "seconds": seconds,
            "distinct_images": len(tokens.unique(dim=0)),
            "deterministic": results,
            "gram": ours,
            "frechet_ratio": results["frechet_distance"] / ours["frechet_distance"],
            "environment": environment(),
        },
    )
    print(
        f"deterministic: Frechet distance {results['frechet_distance']:.1f}, Inception score "
        f"{results['inception_score']:.2f}; GRAM: {ours['frechet_distance']:.1f}, {ours['inception_score']:.2f}"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(call(main))
