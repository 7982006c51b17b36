"""A run, from its config to everything under its directory. ``experiments/run.py`` is its command line."""

from __future__ import annotations

import json
import platform
import resource
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import torch
from tqdm import tqdm

from pyro_gram.build import Assembly, build
from pyro_gram.checkpoint import load_training, save_model, save_training
from pyro_gram.cli import StopOnSignal
from pyro_gram.config import RunConfig
from pyro_gram.diagnostics import figures
from pyro_gram.diagnostics.metrics import Metrics, measure, solution_ids
from pyro_gram.diagnostics.report import write_report
from pyro_gram.errors import UserError
from pyro_gram.files import write_json, write_via
from pyro_gram.inference.bounds import bounds, prior_log_likelihood
from pyro_gram.inference.sampling import Rollout, rollout
from pyro_gram.inference.training import BatchReport, Trainer
from pyro_gram.tasks.base import PuzzleSet
from pyro_gram.tasks.stream import TargetStream, generator_for
from pyro_gram.version import __version__

MONITOR_INPUTS = 64  # validation inputs looked at during training
LIKELIHOOD_INPUTS, LIKELIHOOD_SAMPLES = 64, 100  # the prior Monte Carlo estimate of log p(y | x)


class InterruptedRunError(Exception):
    """The user stopped the run; its state is saved."""

    def __init__(self, number: int, out: Path) -> None:
        super().__init__(f"stopped by signal {number}; continue with --resume --out {out}")
        self.exit_code = 128 + number


@dataclass
class Run:
    """One run in one directory.

    Attributes:
        assembly: task, model and guide.
        trainer: its training state.
        out: the directory.
    """

    assembly: Assembly
    trainer: Trainer
    out: Path

    @property
    def depth(self) -> int:
        """Supervision steps of an evaluation roll-out."""
        config = self.assembly.config
        return config.evaluate.depth or config.train.supervision_steps

    @property
    def metrics_path(self) -> Path:
        return self.out / "metrics.jsonl"

    @property
    def state_path(self) -> Path:
        return self.out / "state.safetensors"


def open_run(config: RunConfig, out: Path, *, resume: bool, data_dir: str | None, device: torch.device) -> Run:
    """A new run in ``out``, or the one that is there.

    Raises:
        UserError: ``out`` holds a run and ``resume`` was not asked for, or cannot be written, or holds another run.
    """
    if (out / "config.json").exists() and not resume:
        raise UserError(f"{out} holds a run already: add --resume to continue it, or choose another --out")
    assembly = build(config, data_dir)
    assembly.model.to(device)
    assembly.guide.to(device)
    stream = TargetStream(
        assembly.task, assembly.task.split("train"), config.train.batch, config.seed, config.train.augment
    )
    trainer = Trainer(assembly.model, assembly.guide, stream, config.train, config.optim, config.beta, seed=config.seed)
    run = Run(assembly, trainer, out)
    if resume and run.state_path.exists():
        load_training(run.state_path, config, trainer)
        _cut_metrics(run.metrics_path, trainer.number)
    else:
        run.metrics_path.unlink(missing_ok=True)
    write_json(out / "config.json", config.to_dict())
    return run


def _cut_metrics(path: Path, number: int) -> None:
    """Drop the lines of batches that the saved state has not seen: they will be trained again."""
    if path.exists():
        kept = [line for line in path.read_text().splitlines() if line and json.loads(line)["batch"] < number]
        write_via(path, lambda temporary: temporary.write_text("".join(line + "\n" for line in kept)))


def train(run: Run) -> None:
    """Train to the end, looking at the validation split and saving on the way.

    Raises:
        InterruptedRunError: on SIGINT or SIGTERM, after saving.
        DivergedError: the loss is no longer finite.
    """
    config = run.assembly.config.train
    limit = config.minutes * 60
    saved = time.monotonic()
    look: dict[str, float] = {}
    # The bar counts batches, or seconds where only the clock ends the run.
    by_clock = not config.batches
    total = round(limit) if by_clock else config.batches
    bar = tqdm(
        total=total,
        initial=round(run.trainer.elapsed) if by_clock else run.trainer.number,
        unit="s" if by_clock else "batch",
        desc="train",
        file=sys.stderr,
        mininterval=1.0,
    )
    with StopOnSignal() as stop, bar, run.metrics_path.open("a", buffering=1) as log:
        for report in run.trainer.run():
            last = run.trainer.finished
            row = _row(report)
            if run.trainer.number % config.evaluate_every == 0 or last:
                look = monitor(run)
                row |= look
            log.write(json.dumps(row) + "\n")
            bar.update(min(round(report.seconds), total) - bar.n if by_clock else 1)
            bar.set_postfix_str(_postfix(report, look), refresh=False)
            if time.monotonic() - saved > config.save_seconds or last or stop.signal:
                save_training(run.state_path, run.assembly.config, run.trainer)
                saved = time.monotonic()
            if stop.signal:
                raise InterruptedRunError(stop.signal, run.out)


def _row(report: BatchReport) -> dict[str, float]:
    return {
        "batch": report.number,
        "seconds": round(report.seconds, 3),
        "reconstruction": report.reconstruction,
        "kl": report.kl,
        "beta": report.beta,
    }


def _postfix(report: BatchReport, look: dict[str, float]) -> str:
    text = f"loss {report.loss:.2f} kl {report.kl:.2f}"
    if look:
        text += f" | prior: accuracy {look['prior_accuracy']:.2f} coverage {look['prior_coverage']:.2f}"
    return text


def monitor(run: Run) -> dict[str, float]:
    """Bounds, and accuracy and coverage of the prior, of the averaged weights on a few validation inputs."""
    task, config = run.assembly.task, run.assembly.config
    puzzles = task.split("validation").subset(MONITOR_INPUTS)
    rolled = _roll(run, puzzles)
    metrics = measure(task, puzzles, rolled.tokens)
    x, y = _targets(puzzles, config.evaluate.seed)
    model, guide = run.trainer.averaged
    found = bounds(model, guide, _to(run, x), _to(run, y), steps=run.depth, seed=config.evaluate.seed)
    return {
        "prior_accuracy": metrics.sample_accuracy,
        "prior_coverage": metrics.coverage,
        "coverage_limit": metrics.coverage_limit,
        "elbo_full": found.full.mean().item(),
        "elbo_surrogate": found.surrogate.mean().item(),
    }


def _roll(run: Run, puzzles: PuzzleSet, **changes: Any) -> Rollout:
    evaluate = run.assembly.config.evaluate
    settings = {"num_samples": evaluate.num_samples, "depth": run.depth, "seed": evaluate.seed, **changes}
    model = run.trainer.averaged[0]
    rolled = rollout(model, _to(run, puzzles.inputs), **settings)
    return Rollout(rolled.tokens.cpu(), rolled.score.cpu(), None if rolled.history is None else rolled.history.cpu())


def _targets(puzzles: PuzzleSet, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    every = torch.arange(len(puzzles))
    return puzzles.inputs, puzzles.sample_targets(every, generator_for(seed, len(puzzles)))


def _to(run: Run, tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(next(run.assembly.model.parameters()).device)


def finish(run: Run) -> dict[str, Any]:
    """Measure on the test split and write everything: weights, results, figures, inference.nc and the report."""
    start = time.perf_counter()
    model, guide = (m.eval() for m in run.trainer.averaged)
    config, task = run.assembly.config, run.assembly.task
    save_model(run.out / "model.safetensors", config, model, guide)
    puzzles = task.split("test")
    rolled = _roll(run, puzzles)
    metrics = test_metrics(run, puzzles, measure(task, puzzles, rolled.tokens))
    drawn = draw_figures(run, puzzles, rolled.tokens)
    write_inference_data(run, puzzles)
    trained = run.trainer.elapsed
    evaluated = time.perf_counter() - start
    results = {
        "task": config.names["task"],
        "preset": config.preset,
        "seed": config.seed,
        "parameters": sum(p.numel() for p in run.assembly.model.parameters()),
        "guide_parameters": sum(p.numel() for p in run.assembly.guide.parameters()),
        "batches": run.trainer.number,
        "seconds": {"train": trained, "evaluate": evaluated, "total": trained + evaluated},
        "peak_memory_mb": peak_memory_mb(),
        "metrics": metrics,
        "environment": environment(),
    }
    write_json(run.out / "results.json", results)
    write_report(run.out / "report.html", config.to_dict(), results, drawn)
    return results


def test_metrics(run: Run, puzzles: PuzzleSet, metrics: Metrics) -> dict[str, Any]:
    """The metrics of the roll-outs, and the bounds at beta = 1."""
    seed = run.assembly.config.evaluate.seed
    model, guide = run.trainer.averaged
    x, y = (_to(run, t) for t in _targets(puzzles, seed))
    found = bounds(model, guide, x, y, steps=run.depth, seed=seed)
    log_m = puzzles.num_solutions.double().log()
    few = slice(LIKELIHOOD_INPUTS)
    log_p = prior_log_likelihood(model, x[few], y[few], depth=run.depth, num_samples=LIKELIHOOD_SAMPLES, seed=seed)
    return {
        **metrics.to_dict(),
        "coverage_ratio": metrics.coverage / metrics.coverage_limit,
        "elbo": found.full.mean().item(),
        "elbo_full": found.full.mean().item(),
        "elbo_surrogate": found.surrogate.mean().item(),
        "log_likelihood_prior_mc": log_p.mean().item(),
        "log_likelihood_samples": LIKELIHOOD_SAMPLES,
        "log_likelihood_inputs": len(log_p),
        "log_likelihood_limit": -log_m[few].mean().item(),
        "log_num_solutions": log_m.mean().item(),
        "depth": run.depth,
    }


def draw_figures(run: Run, puzzles: PuzzleSet, tokens: torch.Tensor) -> dict[str, Path]:
    """Every figure of the run as a PNG file, by name."""
    task = run.assembly.task
    rows = [json.loads(line) for line in run.metrics_path.read_text().splitlines()]
    # An input with several solutions shows best how trajectories part.
    several = int((puzzles.num_solutions - 6).abs().argmin())
    one = PuzzleSet(puzzles.inputs[several : several + 1], puzzles.solutions, puzzles.offsets)
    history = _roll(run, one, num_samples=3, history=True).history
    assert history is not None
    drawn = {
        "training": figures.training(rows),
        "solved": figures.solved(task, puzzles, tokens),
        "coverage_by_solutions": figures.coverage_by_solutions(
            solution_ids(task, puzzles, tokens), puzzles.num_solutions
        ),
        "formation": figures.formation(task, one.inputs[0], history[:, :, 0]),
    }
    paths = {name: run.out / "figures" / f"{name}.png" for name in drawn}
    for name, figure in drawn.items():
        write_via(paths[name], partial(figure.savefig, dpi=110))
    return paths


def write_inference_data(run: Run, puzzles: PuzzleSet, inputs: int = 32) -> None:
    """inference.nc: the guide's and the prior's trajectories on a few held-out inputs."""
    from pyro_gram.diagnostics import inference_data

    model, guide = (m.cpu() for m in run.trainer.averaged)
    data = inference_data.collect(
        run.assembly.task, model, guide, puzzles.subset(inputs), depth=run.depth, seed=run.assembly.config.evaluate.seed
    )
    inference_data.save(data, run.out / "inference.nc")


def peak_memory_mb() -> float:
    """The most memory this process has held, MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if platform.system() == "Darwin" else 2**10)


def environment() -> dict[str, Any]:
    """What the figures depend on besides the config."""
    return {
        "pyro_gram": __version__,
        "torch": torch.__version__,
        "pyro": pyro.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
    }
