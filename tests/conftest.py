"""Small models and cases shared by the tests."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor, nn

from pyro_gram.build import Assembly, build
from pyro_gram.config import RunConfig, make_run_config
from pyro_gram.registry import GUIDES, MODELS, PRIORS, TASKS

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _fresh() -> None:
    pyro.enable_validation(True)
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


NAMES = {"task": "coloring", "model": "gram", "prior": "gaussian", "guide": "amortized"}
SMALL: dict[str, dict] = {
    "task": {"vertices": 4, "edge_probability": 0.4, "train": 20, "validation": 4, "test": 4},
    "model": {"width": 16, "heads": 2, "hidden": 16, "layers": 1, "low_steps": 2, "transitions": 2},
    "prior": {"hidden": 16},
    "guide": {"hidden": 16},
    "train": {"batches": 3, "batch": 8, "supervision_steps": 2, "evaluate_every": 2, "ema": 0.5},
    "optim": {"lr": 1e-2, "warmup": 1},
}


def small_config(**changes: Any) -> RunConfig:
    """A run of seconds. ``prior_name="gaussian"`` names a part, ``prior={...}`` sets its fields."""
    names = {part: changes.pop(f"{part}_name", name) for part, name in NAMES.items()}
    parts = {part: {**SMALL.get(part, {}), **changes.get(part, {})} for part in {*SMALL, *changes}}
    return make_run_config(names, parts, preset="test")


def warm_(module: nn.Module, scale: float = 0.05) -> nn.Module:
    """Move every parameter a little, so that layers which start at zero have gradients behind them."""
    with torch.no_grad():
        for p in module.parameters():
            p.add_(scale * torch.randn_like(p))
    return module


def small(**changes: Any) -> Assembly:
    assembly = build(small_config(**changes))
    warm_(assembly.model)
    warm_(assembly.guide)
    return assembly


@dataclass
class Case:
    assembly: Assembly
    x: Tensor
    y: Tensor


def case_of(**changes: Any) -> Case:
    assembly = small(**changes)
    puzzles = assembly.task.split("train").subset(5)
    y = puzzles.sample_targets(torch.arange(5), torch.Generator().manual_seed(0))
    return Case(assembly, puzzles.inputs, y)


@pytest.fixture
def case() -> Case:
    return case_of()


def combinations() -> list[tuple[str, str, str, str]]:
    """Every registered model x prior x guide x task."""
    return list(itertools.product(MODELS.names(), PRIORS.names(), GUIDES.names(), TASKS.names()))
