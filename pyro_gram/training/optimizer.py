"""One fused AdamW, and Muon for the hidden matrices where it is asked for, behind Pyro's optimizer interface.

Pyro's own optimizers keep a torch optimizer per tensor and clip per tensor. ``TorchOptim`` keeps these one or two for
all, clips the global norm and steps the learning-rate schedule.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from pyro.optim import PyroOptim
from torch import Tensor, nn

from pyro_gram.checks import AT_LEAST_0, FRACTION, POSITIVE, check_choice, check_range
from pyro_gram.errors import ConfigError
from pyro_gram.inference.sites import drop_param_names
from pyro_gram.system.distributed import SINGLE_PROCESS, ProcessGroup

EMBEDDING = "puzzle_embedding"  # parameters of this name have a rate and a decay of their own
HIDDEN_OPTIMIZERS = ("adamw", "muon")
RIM = {"encoder", "answer", "decoder"}  # what a model or a guide calls its embeddings of x and of y, and its logits


@dataclass(frozen=True)
class OptimConfig:
    """AdamW (Appendix B.2: lr 1e-4, decay 1.0, clip 1.0 at D = 512).

    Attributes:
        hidden_optimizer: what trains the hidden matrices (:func:`hidden_matrices`): ``adamw``, as everything else, or
            ``muon``, whose updates have singular values of nearly one size (torch's: momentum 0.95, Nesterov, five
            Newton-Schulz iterations in bfloat16) and are scaled to the size of AdamW's.
        lr: the learning rate after warm-up, of AdamW and Muon.
        weight_decay: decoupled decay, of AdamW and Muon.
        beta1, beta2: decay of AdamW's running means. Muon has a momentum of its own.
        clip: largest global norm of the gradient of the mean loss per input, nats. Muon's updates do not grow with the
            gradient, so that it only weighs its momentum there.
        warmup: updates over which the rate rises linearly from 0.
        embedding_lr: the rate of puzzle embeddings (ARC; TRM's is 100 times the rest); 0 for ``lr``.
        embedding_decay: weight decay of puzzle embeddings.
        min_lr_ratio: the rate falls along a half cosine to ``min_lr_ratio * lr`` at the last update of the run; 1 keeps
            it constant.
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

    def rate(self, update: int, done: float) -> float:
        """The learning rate of one update (counted from 0), with the share ``done`` of the run behind it.

        Puzzle embeddings take ``embedding_lr / lr`` times as much.
        """
        rising = min(1.0, (update + 1) / max(1, self.warmup))
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        return self.lr * rising * (self.min_lr_ratio + (1 - self.min_lr_ratio) * cosine)


def hidden_matrices(modules: dict[str, nn.Module]) -> list[str]:
    """The matrices between embeddings and logits, by their names in ``TorchOptim.named``: where Muon belongs.

    These are the linear layers outside submodules of the names in ``RIM``.
    """
    return [
        f"{part}.{path}.weight"
        for part, module in modules.items()
        for path, layer in module.named_modules()
        if isinstance(layer, nn.Linear) and RIM.isdisjoint(path.split("."))
    ]


class TorchOptim(PyroOptim):
    """A PyroOptim over a fixed, named set of parameters.

    The schedule follows ``done``, the share of the run that is over, which the caller sets; ``check``, where the caller
    sets one, is given the gradient's norm and the learning rate before each update, and may raise: nothing is changed.

    Args:
        modules: every module to train, by name: ``{"model": model, "guide": guide}``.
        config: rates and limits.
        processes: the processes whose gradients are averaged.

    Raises:
        ConfigError: when called with a parameter of no given module, which would stay untrained in silence.
    """

    def __init__(
        self, modules: dict[str, nn.Module], config: OptimConfig, processes: ProcessGroup = SINGLE_PROCESS
    ) -> None:
        super().__init__(torch.optim.AdamW, {"lr": config.lr})
        self.config, self.processes = config, processes
        self.done = 0.0
        self.update = 0
        self.check: Callable[[float, float], None] | None = None
        self.named: dict[str, nn.Parameter] = {}
        self._known: set[Tensor] = set()
        for name, module in modules.items():
            for key, p in module.named_parameters():
                if p not in self._known:  # a guide may hold its model
                    self.named[f"{name}.{key}"] = p
                    self._known.add(p)
        matrices = set(hidden_matrices(modules)) if config.hidden_optimizer == "muon" else set()
        adamw = self._adamw([name for name in self.named if name not in matrices])
        self.optimizers: dict[torch.optim.Optimizer, tuple[str, ...]] = {adamw: ("step", "exp_avg", "exp_avg_sq")}
        if matrices:
            muon = torch.optim.Muon(
                [p for name, p in self.named.items() if name in matrices],
                lr=config.lr,
                weight_decay=config.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
            self.optimizers[muon] = ("momentum_buffer",)

    def _adamw(self, names: list[str]) -> torch.optim.AdamW:
        c = self.config
        embeddings = [name for name in names if name.endswith(EMBEDDING)]
        others = [name for name in names if not name.endswith(EMBEDDING)]
        groups: list[dict[str, Any]] = [{"params": [self.named[name] for name in others]}]
        if embeddings:
            relative = c.embedding_lr / c.lr if c.embedding_lr else 1.0
            parameters = [self.named[name] for name in embeddings]
            groups.append({"params": parameters, "relative": relative, "weight_decay": c.embedding_decay})
        return torch.optim.AdamW(
            groups,
            lr=c.lr,
            weight_decay=c.weight_decay,
            betas=(c.beta1, c.beta2),
            fused=all(p.device.type in ("cpu", "cuda") for p in self.named.values()),
        )

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The parameter groups of every optimizer."""
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def __call__(self, params: Iterable[Tensor], *args: Any, **kwargs: Any) -> None:
        """One update. Raises ConfigError on an unknown parameter."""
        params = list(params)
        drop_param_names(params)  # this class has names of its own
        unknown = [tuple(p.shape) for p in params if p not in self._known]
        if unknown:
            raise ConfigError(
                f"{len(unknown)} parameters (first shape {unknown[0]}) belong to no module of TorchOptim: "
                "give the model or the guide an nn.Parameter, where pyro.param was called"
            )
        # SVI clears the gradients of announced parameters only; this class trains, and so clears, all of its own.
        self.processes.all_reduce_mean_([p.grad for p in self.named.values() if p.grad is not None])
        norm = nn.utils.clip_grad_norm_(self.named.values(), self.config.clip)  # in order: sums of floats repeat
        rate = self.config.rate(self.update, self.done)
        if self.check:
            self._checked(norm.item(), rate)
        for group in self.groups:
            group["lr"] = rate * group.get("relative", 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.update += 1

    def _checked(self, norm: float, rate: float) -> None:
        assert self.check
        try:
            self.check(norm, rate)
        except Exception:
            for optimizer in self.optimizers:
                optimizer.zero_grad()
            raise

    def get_state(self) -> dict[str, Tensor]:
        """The optimizers' state as flat named tensors (safetensors holds nothing else)."""
        state: dict[str, Tensor] = {"update": torch.tensor(self.update)}
        for optimizer in self.optimizers:
            for name, p in self.named.items():
                for key, value in optimizer.state.get(p, {}).items():
                    state[f"{name}/{key}"] = value
        return state

    def set_state(self, state: dict[str, Tensor]) -> None:
        """Take back what :meth:`get_state` gave. Raises KeyError naming a missing, stray or misshapen tensor."""
        update = int(state["update"])
        holder = {id(p): o for o in self.optimizers for group in o.param_groups for p in group["params"]}
        # A parameter that has never had a gradient has no state, and keeps none; otherwise it has every slot.
        names = {key.rpartition("/")[0] for key in state if key != "update"}
        slots_of = {name: self.optimizers[holder[id(self.named[name])]] for name in names}
        expected = {f"{name}/{slot}" for name, slots in slots_of.items() for slot in slots}
        strays = sorted(expected.symmetric_difference(state.keys() - {"update"}))
        if strays:
            raise KeyError(strays[0])
        found: list[tuple[nn.Parameter, dict[str, Tensor]]] = []
        for name, wanted in slots_of.items():
            p = self.named[name]
            slots = {slot: state[f"{name}/{slot}"] for slot in wanted}
            wanted_shapes = {slot: torch.Size() if slot == "step" else p.shape for slot in slots}
            if any(v.shape != wanted_shapes[slot] or not v.is_floating_point() for slot, v in slots.items()):
                raise KeyError(name)
            found.append((p, slots))
        self.update = update
        for p, slots in found:
            optimizer = holder[id(p)]
            # A fused optimizer counts its steps beside the parameter, another on the CPU.
            stays = set() if optimizer.defaults.get("fused") else {"step"}
            optimizer.state[p] = {slot: v if slot in stays else v.to(p.device) for slot, v in slots.items()}
