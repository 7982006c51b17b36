"""One fused AdamW (and Muon for the hidden matrices, if the config says so) behind Pyro's optimizer interface.

Pyro's own optimizers keep one torch optimizer for each tensor, and clip the gradient of each tensor separately.
``TorchOptim`` keeps one or two optimizers for all tensors, clips the global norm of the gradient, and follows a
learning-rate schedule.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from pyro.optim import PyroOptim
from torch import Tensor, nn

from pyro_gram.checks import AT_LEAST_0, FRACTION, POSITIVE, check_choice, check_range
from pyro_gram.errors import ConfigError
from pyro_gram.inference.sites import drop_param_names
from pyro_gram.system.distributed import SINGLE_PROCESS, ProcessGroup

EMBEDDING = "puzzle_embedding"  # parameters of this name have their own learning rate and weight decay
HIDDEN_OPTIMIZERS = ("adamw", "muon")
NON_HIDDEN = {"encoder", "lattice_encoder", "answer", "decoder"}  # they embed x, h and y, or return logits


@dataclass(frozen=True)
class OptimConfig:
    """Settings of the optimizers. (Appendix B.2 of the paper: AdamW, lr 1e-4, weight decay 1.0, clip 1.0, for D = 512.)

    Attributes:
        hidden_optimizer: the optimizer of the hidden matrices (:func:`hidden_matrices`): ``adamw``, as for all other
            parameters; or ``muon`` (``torch.optim.Muon``: momentum 0.95, Nesterov, five Newton-Schulz iterations in
            bfloat16). Muon's updates have nearly equal singular values, and are scaled to the size of AdamW's.
        lr: the learning rate after warm-up, of AdamW and Muon.
        weight_decay: decoupled decay, of AdamW and Muon.
        beta1, beta2: decay of AdamW's running means.
        clip: the gradient of the mean loss per input, in nats, is clipped to this global norm.
        warmup: number of updates over which the rate rises linearly from 0.
        embedding_lr: the rate of puzzle embeddings (ARC; in TRM it is 100 times the rate of the rest); 0: the same as
            ``lr``.
        embedding_decay: weight decay of puzzle embeddings.
        min_lr_ratio: the rate falls along a half cosine to ``min_lr_ratio * lr`` at the last update of the run; 1 for
            a constant rate.
    """

    hidden_optimizer: str = "adamw"
    lr: float = 1e-4
    weight_decay: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.95
    clip: float = 1.0
    warmup: int = 2000
    min_lr_ratio: float = 1.0
    embedding_lr: float = 0.0
    embedding_decay: float = 0.1

    def __post_init__(self) -> None:
        check_range(
            self,
            lr=POSITIVE,
            weight_decay=AT_LEAST_0,
            beta1=(0, 1 - 1e-9),
            beta2=(0, 1 - 1e-9),
            clip=POSITIVE,
            warmup=AT_LEAST_0,
            min_lr_ratio=FRACTION,
            embedding_lr=AT_LEAST_0,
            embedding_decay=AT_LEAST_0,
        )
        check_choice("hidden_optimizer", self.hidden_optimizer, HIDDEN_OPTIMIZERS)

    def rate(self, update: int, progress: float) -> float:
        """Return the learning rate of update ``update`` (from 0), when the share ``progress`` of the run is over.

        The rate of puzzle embeddings is ``embedding_lr / lr`` times this rate.
        """
        warmup = min(1.0, (update + 1) / max(1, self.warmup))
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        return self.lr * warmup * (self.min_lr_ratio + (1 - self.min_lr_ratio) * cosine)


def hidden_matrices(modules: dict[str, nn.Module]) -> list[str]:
    """Return the names of the matrices that Muon trains: keys of ``TorchOptim.parameters_by_name``.

    The matrices are the weights of all linear layers outside the submodules named in ``NON_HIDDEN``.
    """
    return [
        f"{part}.{path}.weight"
        for part, module in modules.items()
        for path, layer in module.named_modules()
        if isinstance(layer, nn.Linear) and NON_HIDDEN.isdisjoint(path.split("."))
    ]


class TorchOptim(PyroOptim):
    """A PyroOptim over a fixed, named set of parameters.

    ``SVI`` calls it like any other PyroOptim; ``Trainer`` calls :meth:`clip_gradients` and :meth:`step` itself. The
    schedule follows ``progress``, the share of the run that is over. The caller sets this share.

    Args:
        modules: every module to train, by name: ``{"model": model, "guide": guide}``.
        config: learning rates and other settings.
        processes: the processes whose gradients are averaged.

    Raises:
        ConfigError: in a call, if a parameter belongs to none of the modules and so would stay untrained.
    """

    def __init__(
        self, modules: dict[str, nn.Module], config: OptimConfig, processes: ProcessGroup = SINGLE_PROCESS
    ) -> None:
        super().__init__(torch.optim.AdamW, {"lr": config.lr})
        self.config, self.processes = config, processes
        self.progress = 0.0
        self.num_updates = 0
        self.parameters_by_name: dict[str, nn.Parameter] = {}
        self._parameters: set[Tensor] = set()
        for name, module in modules.items():
            for key, p in module.named_parameters():
                if p not in self._parameters:  # a guide may contain its model
                    self.parameters_by_name[f"{name}.{key}"] = p
                    self._parameters.add(p)
        matrices = set(hidden_matrices(modules)) if config.hidden_optimizer == "muon" else set()
        adamw = self._adamw([name for name in self.parameters_by_name if name not in matrices])
        self.optimizers: dict[torch.optim.Optimizer, tuple[str, ...]] = {adamw: ("step", "exp_avg", "exp_avg_sq")}
        if matrices:
            muon = torch.optim.Muon(
                [p for name, p in self.parameters_by_name.items() if name in matrices],
                lr=config.lr,
                weight_decay=config.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
            self.optimizers[muon] = ("momentum_buffer",)

    def _adamw(self, names: list[str]) -> torch.optim.AdamW:
        c = self.config
        embeddings = [name for name in names if name.endswith(EMBEDDING)]
        others = [name for name in names if not name.endswith(EMBEDDING)]
        groups: list[dict[str, Any]] = [{"params": [self.parameters_by_name[name] for name in others]}]
        if embeddings:
            lr_factor = c.embedding_lr / c.lr if c.embedding_lr else 1.0
            parameters = [self.parameters_by_name[name] for name in embeddings]
            groups.append({"params": parameters, "lr_factor": lr_factor, "weight_decay": c.embedding_decay})
        return torch.optim.AdamW(
            groups,
            lr=c.lr,
            weight_decay=c.weight_decay,
            betas=(c.beta1, c.beta2),
            fused=all(p.device.type in ("cpu", "cuda") for p in self.parameters_by_name.values()),
        )

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The parameter groups of every optimizer."""
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    @property
    def rate(self) -> float:
        """The learning rate of the next update."""
        return self.config.rate(self.num_updates, self.progress)

    def __call__(self, params: Iterable[Tensor], *args: Any, **kwargs: Any) -> None:
        """Make one update, for ``SVI``. Raises ConfigError for an unknown parameter."""
        self.check_parameters(params)
        self.clip_gradients()
        self.step()

    def check_parameters(self, params: Iterable[Tensor]) -> None:
        """Raise ConfigError for a parameter that belongs to no module of this optimizer."""
        params = list(params)
        drop_param_names(params)  # otherwise Pyro's store would keep the parameters alive
        unknown_shapes = [tuple(p.shape) for p in params if p not in self._parameters]
        if unknown_shapes:
            raise ConfigError(
                f"{len(unknown_shapes)} parameters (first shape {unknown_shapes[0]}) belong to no module of "
                "TorchOptim: give the model or the guide an nn.Parameter instead of a call of pyro.param"
            )

    def clip_gradients(self) -> Tensor:
        """Average the gradients over the processes, clip their global norm, and return the norm before clipping."""
        if self.processes.size > 1:
            self.processes.all_reduce_mean_([p.grad for p in self.parameters_by_name.values() if p.grad is not None])
        parameters = self.parameters_by_name.values()  # a fixed order, so that sums of floats are reproducible
        return nn.utils.clip_grad_norm_(parameters, self.config.clip)

    def step(self) -> None:
        """Make one update at the rate of the schedule, and clear the gradients."""
        rate = self.rate
        for group in self.groups:
            group["lr"] = rate * group.get("lr_factor", 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.zero_grad()
        self.num_updates += 1

    def zero_grad(self) -> None:
        """Clear the gradients of all parameters."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the optimizers' state as flat named tensors (safetensors can hold nothing else)."""
        state: dict[str, Tensor] = {"num_updates": torch.tensor(self.num_updates)}
        for optimizer in self.optimizers:
            for name, p in self.parameters_by_name.items():
                for key, value in optimizer.state.get(p, {}).items():
                    state[f"{name}/{key}"] = value
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load a saved state. Raises KeyError for a missing, stray or misshapen tensor."""
        num_updates = int(state["num_updates"])
        owners = {id(p): o for o in self.optimizers for group in o.param_groups for p in group["params"]}
        # A parameter that has never had a gradient has no state; for any other parameter all tensors (slots) are saved.
        names = {key.rpartition("/")[0] for key in state if key != "num_updates"}
        slots_of = {name: self.optimizers[owners[id(self.parameters_by_name[name])]] for name in names}
        expected = {f"{name}/{slot}" for name, slots in slots_of.items() for slot in slots}
        strays = sorted(expected.symmetric_difference(state.keys() - {"num_updates"}))
        if strays:
            raise KeyError(strays[0])
        for name, slots in slots_of.items():
            for slot in slots:
                tensor = state[f"{name}/{slot}"]
                shape = torch.Size() if slot == "step" else self.parameters_by_name[name].shape
                if tensor.shape != shape or not tensor.is_floating_point():
                    raise KeyError(name)
        self.num_updates = num_updates
        for name, slots in slots_of.items():
            p = self.parameters_by_name[name]
            optimizer = owners[id(p)]
            # A fused optimizer counts its steps on the parameter's device, any other optimizer on the CPU.
            cpu_slots = set() if optimizer.defaults.get("fused") else {"step"}
            tensors = {slot: state[f"{name}/{slot}"] for slot in slots}
            optimizer.state[p] = {slot: t if slot in cpu_slots else t.to(p.device) for slot, t in tensors.items()}

    def get_state(self) -> dict[str, Tensor]:
        """Return :meth:`state_dict`, under the name that PyroOptim uses."""
        return self.state_dict()

    def set_state(self, state: dict[str, Tensor]) -> None:
        """Call :meth:`load_state_dict`, under the name that PyroOptim uses."""
        self.load_state_dict(state)
