"""Small configs, models and batches that the tests share."""

from __future__ import annotations

import atexit
import os
import shutil
import struct
import tempfile
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from torch import Tensor, nn

from pyro_gram.build import build, build_task, check_parts
from pyro_gram.config import RunConfig, config_class, make_run_config
from pyro_gram.inference.contract import model_traits
from pyro_gram.presets import default_overrides
from pyro_gram.registry import GUIDES, MODELS, PRIORS, TASKS
from pyro_gram.solver import Solver
from pyro_gram.tasks.base import Task

if "PYTEST_XDIST_WORKER" in os.environ:  # parallel test workers share the cores
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _reset_pyro() -> None:
    pyro.enable_validation(True)
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


DEFAULT_NAMES = {"task": "coloring", "model": "gram", "prior": "gaussian", "guide": "amortized"}
SMALL_TASKS: dict[str, dict] = {
    "coloring": {"vertices": 4, "edge_probability": 0.4, "train": 20, "validation": 4, "test": 4},
    "latin": {"size": 4, "train": 40, "validation": 4, "test": 4},
    "nqueens": {"size": 5, "validation": 4},
    "sudoku": {"size": 4, "train": 40, "validation": 4, "test": 4},
    "sudoku_uncond": {"size": 4},
    "arc": {"canvas": 4, "augmentations": 2, "evaluate_augmentations": 2, "validation": 2},
    "mnist": {"side": 14, "patch": 7, "train": 20, "validation": 4, "test": 10},
}
SMALL_MODELS: dict[str, dict] = {"arc": {"prefix": 1}}  # the puzzle embedding needs one prefix position
SMALL_PARTS: dict[str, dict] = {
    "model": {"width": 16, "heads": 2, "hidden": 16, "layers": 1, "low_steps": 2, "transitions": 2},
    "prior": {"hidden": 16},
    "guide": {"hidden": 16},
    "train": {"batches": 3, "batch": 8, "supervision_steps": 2, "evaluate_every": 2, "ema": 0.5},
    "optim": {"lr": 1e-2, "warmup": 1},
}


def small_config(**changes: Any) -> RunConfig:
    """Return the config of a run that takes seconds.

    ``prior_name="gaussian"`` chooses a part, and ``prior={...}`` sets fields of its config. By default a model gets the
    prior, the guide and the training settings that it needs. All sizes are small.
    """
    part_names = {part: changes.pop(f"{part}_name") for part in DEFAULT_NAMES if changes.get(f"{part}_name")}
    model = MODELS.get(part_names.get("model", DEFAULT_NAMES["model"]))
    overrides = default_overrides(model_traits(model))
    names = {**DEFAULT_NAMES, **model_traits(model).default_parts, **part_names}
    task = names["task"]
    small_parts = {
        **SMALL_PARTS,
        "task": SMALL_TASKS.get(task, {}),
        "model": {**SMALL_PARTS["model"], **SMALL_MODELS.get(task, {})},
    }
    for part in ("model", "prior", "guide"):
        field_names = {f.name for f in fields(config_class(part, names[part]))}
        small_parts[part] = {k: v for k, v in small_parts[part].items() if k in field_names}
    for part in ("train", "evaluate"):
        small_parts[part] = {**small_parts.get(part, {}), **overrides.get(part, {})}
    if "supervision_steps" in overrides.get("train", {}) and not model_traits(model).has_lattice:
        small_parts["train"]["supervision_steps"] = min(2, small_parts["train"]["supervision_steps"])
        small_parts["evaluate"]["depth"] = 0
    parts = {part: {**small_parts.get(part, {}), **changes.get(part, {})} for part in {*small_parts, *changes}}
    return make_run_config(names, parts, preset="test")


def perturb_(module: nn.Module, scale: float = 0.05) -> nn.Module:
    """Add noise to every parameter, so that gradients flow through layers that are initialized at zero."""
    with torch.no_grad():
        for p in module.parameters():
            p.add_(scale * torch.randn_like(p))
    return module


@cache
def digits_folder() -> str:
    """Return a folder with four small files in MNIST's format; squares and bars take the place of digits."""
    folder = Path(tempfile.mkdtemp(prefix="pyro_gram-digits-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    rng = np.random.default_rng(0)
    for split, count in (("train", 40), ("t10k", 20)):
        images = np.zeros((count, 28, 28), np.uint8)
        labels = rng.integers(0, 2, count).astype(np.uint8)
        for image, label, (row, column) in zip(images, labels, rng.integers(4, 16, (count, 2)), strict=True):
            image[row : row + 8, column + (3 if label else 0) : column + (5 if label else 8)] = 255
        header = struct.pack(">IIII", 2051, count, 28, 28)
        (folder / f"{split}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, count) + labels.tobytes())
    return str(folder)


@cache
def small_task(name: str) -> Task:
    """Return a task of :func:`small_config`. It is built only once and shared, so tests must not change it."""
    return build_task(small_config(task_name=name), digits_folder() if name == "mnist" else None)


def build_small(**changes: Any) -> Solver:
    """Build the task, model and guide of :func:`small_config`, and perturb their parameters."""
    config = small_config(**changes)
    check_parts(config)
    task = small_task(config.names["task"]) if "task" not in changes else None
    solver = build(config, digits_folder() if config.names["task"] == "mnist" else None, task)
    perturb_(solver.model)
    perturb_(solver.guide)
    return solver


@dataclass
class Case:
    """A small solver and a batch of its training data."""

    solver: Solver
    x: Tensor | None
    y: Tensor


def build_case(**changes: Any) -> Case:
    solver = build_small(**changes)
    x, y = solver.task.split("train").sample_pairs(5, torch.Generator().manual_seed(0))
    return Case(solver, x, y)


@pytest.fixture
def case() -> Case:
    return build_case()


class StateHeads(nn.Module):
    """Halt and value heads. Their logits depend only on the mean of the state, which differs between trajectories."""

    def __init__(self, strength: float = 0.0, shift: float = 0.0) -> None:
        super().__init__()
        self.strength, self.shift = strength, shift

    def forward(self, h: Tensor, e_x: Tensor, probabilities: Tensor) -> tuple[Tensor, Tensor]:
        logits = 4 * (self.strength * h.mean((-1, -2))).sin() + self.shift
        return logits, logits


def build_case_with_heads(strength: float = 0.0, shift: float = 0.0, **changes: Any) -> Case:
    """Return a case whose model has :class:`StateHeads`."""
    case = build_case(**changes)
    model: Any = case.solver.model
    model.heads = StateHeads(strength, shift)
    return case


def program_names() -> list[dict[str, str]]:
    """Return combinations of parts. Every prior, guide, model and task occurs, mostly with several partners."""
    priors, guides, models, tasks = (r.names() for r in (PRIORS, GUIDES, MODELS, TASKS))
    pairs = []
    for i, prior in enumerate(priors):
        partners = [guide for guide in guides if not incompatibility(prior, guide)]
        pairs += [(prior, partners[(i + shift) % len(partners)]) for shift in range(min(2, len(partners)))]
    amortized_pairs = [(model, "gaussian") for model in ("flat", "hrm", "vae")] + [("vae", "mixture")]
    task_pairs = [("gram", task) for task in tasks]
    task_pairs += [(model, tasks[(i + shift) % len(tasks)]) for i, model in enumerate(models) for shift in (0, 4)]
    return [
        *({"prior_name": prior, "guide_name": guide} for prior, guide in pairs),
        *({"model_name": model, "prior_name": prior, "guide_name": "amortized"} for model, prior in amortized_pairs),
        *({"model_name": model, "task_name": task} for model, task in dict.fromkeys(task_pairs)),
    ]


def covering_program_names() -> list[dict[str, str]]:
    """Return about twenty combinations of parts. Every registered prior, guide, model and task occurs in one."""
    programs, names = [], {item for program in program_names() for item in program.items()}
    while names:
        programs.append(max(program_names(), key=lambda program: len(names & set(program.items()))))
        names -= set(programs[-1].items())
    return programs


def incompatibility(prior: str, guide: str) -> str:
    """Return words of the error message if a guide cannot be used with a prior; an empty text if it can."""
    if prior == "decisions" or guide == "reveal":
        return "do not fit model"
    if prior == "none":
        return "" if guide == "prior" else "leaves nothing to infer"
    if prior == "mixture" and guide in ("prior", "mean_field"):
        return "without gradient"
    if (prior, guide) == ("flow", "residual"):
        return "needs the mean of the prior"
    if guide == "mean_field" and prior in ("discrete", "mean_only"):
        return "guides for this prior are not"
    return ""
