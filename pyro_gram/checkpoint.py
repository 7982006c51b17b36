"""Checkpoints: tensors in safetensors, everything else in its JSON header. Nothing pickled is read or written.

Two kinds: a *model* (averaged weights of model and guide, with the config that rebuilds them), and a *training state*
(all that the next update depends on).
"""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pyro_gram.build import build, build_task
from pyro_gram.config import RunConfig
from pyro_gram.errors import CheckpointError, ConfigError, UserError
from pyro_gram.networks.core import LatentState
from pyro_gram.runs.heads import attach, takes_heads
from pyro_gram.sampling.isolation import generator_lock
from pyro_gram.solver import Solver
from pyro_gram.system.files import TensorFile, open_tensor_file, write_tensor_file
from pyro_gram.system.rendezvous import reason
from pyro_gram.tasks.base import Task
from pyro_gram.training.act import Places
from pyro_gram.training.pause import Inside
from pyro_gram.training.trainer import Trainer, pair
from pyro_gram.version import __version__

MAX_TABLES = 2**28  # bytes of what a model keeps beside its weights (angles, masks): they are in no file
CALLS = 400  # of torch's functions, for each tensor that a model has, in building it
SHOWN = 4  # settings that differ, in a message


def save_model(path: Path, solver: Solver, *, half: bool = False) -> None:
    """Write a model checkpoint, atomically: the weights of model and guide, the config and the task's provenance.

    Args:
        path: the file.
        solver: the model with its task, guide and config.
        half: keep weights as bfloat16, at half the size; they are float32 again once loaded.
    """
    tensors = dict(pair(solver.model, solver.guide).state_dict())
    if half:
        tensors = {k: v.bfloat16() if v.is_floating_point() else v for k, v in tensors.items()}
    header = {"kind": "model", "config": solver.config.to_dict(), "data": solver.task.provenance()}
    write_tensor_file(path, tensors, header)


@generator_lock()  # initial weights are drawn
def load(path: str | Path, data_dir: str | None = None, *, trust_code: bool | Collection[str] = False) -> Solver:
    """Load a solver from a model checkpoint (``.safetensors``) or a run's directory.

    Args:
        path: the file, or the directory.
        data_dir: where a task that reads files finds them.
        trust_code: may the checkpoint name classes outside pyro_gram (``package.module:Class``)? Their module is
            imported, which runs its code. True for any; or the paths that the user has named.

    Raises:
        CheckpointError: missing, damaged, of another format, weights that do not fit the config, or code that is not
            trusted.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "model.safetensors"
    held = open_tensor_file(path, "model")
    try:
        config = RunConfig.from_dict(held.header.get("config", {}), trust_code)
        task = build_task(config, data_dir)
        _check_fit(outline_misfits(held, config, task), path)
        solver = build(config, data_dir, task)
        if takes_heads(solver.model, config.heads):
            attach(solver.model, task, config)
    except ConfigError as e:
        raise CheckpointError(f"{path} cannot be rebuilt from its settings: {e}") from None
    if solver.task.spec.puzzles:  # which embedding is whose
        _same_data(path, held.header, solver.task.provenance())
    whole = pair(solver.model, solver.guide)
    _check_fit(held.mismatched_names(whole.state_dict()), path)
    _fill(whole, held.tensors())
    solver.model.eval()
    solver.guide.eval()
    return solver


def outline_misfits(held: TensorFile, config: RunConfig, task: Task) -> list[str]:
    """The tensors of a file that do not fit its settings, found without memory for those that the settings ask for.

    Classes of a user's own may not build without numbers: what they would take is not looked at.

    Raises:
        ConfigError: the settings describe a model that is larger than any.
    """
    if any(":" in name for name in config.names.values()):
        return []
    try:
        with AtMost(CALLS * (len(held.shapes) + 1)), torch.device("meta"):
            solver = build(config, None, task)
            if takes_heads(solver.model, config.heads):
                attach(solver.model, task, config)
            whole = pair(solver.model, solver.guide)
            misfits = held.mismatched_names(whole.state_dict())
    except (RuntimeError, TypeError, OverflowError, MemoryError) as e:
        raise ConfigError(f"they describe no model that can be built: {reason(e)}") from None
    tables = sum(buffer.numel() * buffer.element_size() for buffer in whole.buffers())
    if tables > MAX_TABLES:
        raise ConfigError(f"they describe a model whose tables take {tables // 2**20:,} MiB beside its weights")
    return misfits


class AtMost(TorchFunctionMode):
    """Within it, torch's functions may be called so many times: a model of a billion layers is never made."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.left = calls

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.left -= 1
        if self.left < 0:
            raise ConfigError("they describe more layers than it has tensors")
        return func(*args, **(kwargs or {}))


def is_half(path: Path) -> bool:
    """Are a model checkpoint's weights kept as bfloat16? Raises CheckpointError as :func:`load`."""
    return open_tensor_file(path, "model").half


def save_training(path: Path, config: RunConfig, trainer: Trainer, data: dict[str, str] | None = None) -> None:
    """Write everything that the next batch depends on, atomically; of several processes, all call it and one writes.

    ``data``: the task's provenance.
    """
    tensors = {f"weights/{k}": v for k, v in pair(trainer.model, trainer.guide).state_dict().items()}
    tensors |= {f"average/{k}": v for k, v in trainer.average.state_dict().items()}
    tensors |= {f"optim/{k}": v for k, v in trainer.optim.get_state().items()}
    places = trainer.places.tensors() if trainer.places else {}
    tensors |= {f"places/{k}": trainer.processes.all_gather(v) for k, v in places.items()}
    inside = trainer.inside.tensors(trainer.device) if trainer.inside else {}
    inside |= {k: trainer.processes.all_gather(inside[k]) for k in ("h", "l") if k in inside}
    if not trainer.processes.is_main:
        return
    tensors |= {f"inside/{k}": v for k, v in inside.items()}
    header = {
        "kind": "training",
        "config": config.to_dict(),
        "number": trainer.number,
        "num_batches": trainer.num_batches,
        "elapsed": trainer.elapsed,
        "beta": trainer.beta.get_state(),
        "usual": trainer.guard.usual,
        "data": data or {},
    }
    write_tensor_file(path, tensors, header)


def load_training(path: Path, config: RunConfig, trainer: Trainer, data: dict[str, str] | None = None) -> None:
    """Put a saved training state into a freshly built trainer.

    Raises:
        CheckpointError: missing, damaged, or of a run with other settings (its length, its heads, and how it is
            evaluated and computed, may differ).
    """
    try:
        _load_training(path, config, trainer, data or {})
    except UserError:  # it says itself what is wrong
        raise
    except (ValueError, TypeError, OverflowError, IndexError, RuntimeError, AttributeError) as e:
        raise CheckpointError(f"{path} holds what no run has saved: {reason(e)}") from None


def _load_training(path: Path, config: RunConfig, trainer: Trainer, data: dict[str, str]) -> None:
    held = open_tensor_file(path, "training")
    header, wanted = held.header, config.to_dict()
    try:
        # Other names differ before anything is imported that they say.
        names = differences(dict(header["config"]["names"]), wanted["names"], "names.")
        saved = wanted if names else RunConfig.from_dict(header["config"], config.names.values()).to_dict()
        number, elapsed, beta = int(header["number"]), float(header["elapsed"]), dict(header["beta"])
        beta = {"value": float(beta["value"]), "mean": None if beta["mean"] is None else float(beta["mean"])}
        usual = None if header.get("usual") is None else float(header["usual"])
        num_batches = None if header.get("num_batches") is None else int(header["num_batches"])
        numbers = [number, elapsed, usual or 0.0, beta["value"], beta["mean"] or 0.0]
        if number < 0 or elapsed < 0 or (num_batches or 0) < 0 or not all(map(math.isfinite, numbers)):
            raise ValueError(f"its numbers cannot be {numbers}")
    except (ConfigError, KeyError, TypeError, ValueError, OverflowError) as e:
        by = f", written by pyro_gram {header.get('version', 'of an unknown version')} (this is {__version__})"
        raise CheckpointError(f"{path} has a damaged header, or one of another version{by}: {e}") from None
    same_length = all(saved["train"][field] == wanted["train"][field] for field in ("batches", "minutes"))
    for field in ("batches", "minutes", "save_seconds", "evaluate_every", "precision", "compile"):
        saved["train"] = {**saved["train"], field: wanted["train"][field]}
    saved |= {part: wanted[part] for part in ("temper", "heads", "evaluate")}
    differing = names or differences(saved, wanted)
    if differing:
        more = f", and {len(differing) - SHOWN} more" if len(differing) > SHOWN else ""
        raise CheckpointError(
            f"{path} belongs to a run with other settings ({'; '.join(differing[:SHOWN])}{more}): give those, or use "
            "another --out"
        )
    if 0 < config.train.batches < number:
        raise CheckpointError(
            f"{path} has {number} batches behind it, more than the {config.train.batches} of train.batches: raise that"
        )
    _same_data(path, header, data)

    parts = {"weights/": pair(trainer.model, trainer.guide), "average/": trainer.average}
    for prefix, module in parts.items():
        _check_fit(held.mismatched_names(module.state_dict(), prefix), path)
    tensors = held.tensors()

    def part(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    for prefix, module in parts.items():
        _fill(module, part(prefix))
    try:
        trainer.optim.set_state(part("optim/"))
    except KeyError as e:
        raise CheckpointError(f"{path} holds no state, or a stray one, for the optimizer's {e}") from None
    try:
        places = Places.from_tensors({k: v.to(trainer.device) for k, v in part("places/").items()})
    except KeyError as e:
        raise CheckpointError(f"{path} holds no {e} of the trajectories that go on") from None
    if places and not config.train.act:
        raise CheckpointError(f"{path} holds trajectories that go on, which train.act alone has")
    inside = _load_inside(path, part("inside/"), trainer)
    trainer.places = places.shared(trainer.processes) if places else None
    trainer.inside, trainer.guard.usual = inside, usual
    trainer.number, trainer.elapsed = number, elapsed
    if same_length and trainer.num_batches is None:
        trainer.num_batches = num_batches  # decided already: a run that goes on is the run that it was
    trainer.beta.set_state(beta)


def _load_inside(path: Path, tensors: dict[str, Tensor], trainer: Trainer) -> Inside | None:
    """Where a saved batch stands, for this process. Raises CheckpointError where the run cannot go on there."""
    device = trainer.device.type
    if tensors and device not in tensors and "cpu" in tensors:
        there = next((kind for kind in ("cuda", "mps") if kind in tensors), "cpu")
        raise CheckpointError(
            f"{path} was saved within a batch on {there}, whose generator {device} does not have: resume with --device "
            f"{there} (a run that is stopped between batches may change its device)"
        )
    try:
        inside = Inside.from_tensors(tensors, trainer.device)
    except KeyError as e:
        raise CheckpointError(f"{path} holds no {e} of the batch that it stands in") from None
    if inside is None:
        return None
    torch.Generator().set_state(inside.random["cpu"])  # one that is none raises now
    c = trainer.config
    if not (-1 <= inside.first < max(1, c.on_policy_depth) and len(inside.terms) <= c.supervision_steps):
        raise CheckpointError(f"{path} stands at a step that its batch does not have")
    fitting = len(inside.seen) <= c.on_policy_updates * (inside.first >= 0)
    if not fitting or any(t.shape != (2,) for t in inside.terms) or any(t.ndim for t in inside.seen):
        raise CheckpointError(f"{path} holds misshapen terms of the batch that it stands in")
    if inside.state:
        _, y = trainer.batches(trainer.number)
        shapes = {tuple(t.shape) for t in inside.state}
        if trainer.elbo.terms is None:
            trainer.rehearse()
        assert trainer.elbo.terms is not None
        wanted = (len(y), *trainer.elbo.terms.state.h.shape[1:])
        if shapes != {wanted} or any(t.dtype != torch.float32 for t in inside.state):
            raise CheckpointError(f"{path} holds a state of the shape {shapes.pop()} where {wanted} is that of a batch")
        inside.state = LatentState(*map(trainer.processes.shard, inside.state))
    return inside


def differences(then: dict[str, Any], now: dict[str, Any], within: str = "") -> list[str]:
    """What differs between two configs, each as ``part.field: this then, that now``."""
    found = []
    for name in sorted(then.keys() | now.keys()):
        a, b = then.get(name), now.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, f"{within}{name}.")
        elif a != b:
            found.append(f"{within}{name}: {a} then, {b} now")
    return found


def _same_data(path: Path, header: dict[str, Any], data: dict[str, str]) -> None:
    """Raises CheckpointError where the files that a task found are not those that the checkpoint was made with."""
    made = header.get("data", {})
    for name in sorted(set(made) & set(data)):
        if made[name] != data[name]:
            raise CheckpointError(
                f"{path} was made with other data ({name}: {made[name]} then, {data[name]} now): give it the files "
                "that it was trained with"
            )


def _check_fit(misfits: list[str], path: Path) -> None:
    if misfits:
        raise CheckpointError(f"{path} does not fit its own config: {len(misfits)} tensors differ, first {misfits[0]}")


def _fill(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    with torch.no_grad():
        module.load_state_dict(tensors)
