"""One fused AdamW behind Pyro's optimizer interface.

Pyro's own optimizers keep a torch optimizer per tensor and clip per tensor. ``TorchOptim`` keeps one for all, clips the
global norm and steps the learning-rate schedule.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from pyro.optim import PyroOptim
from torch import Tensor, nn

from pyro_gram.checks import AT_LEAST_0, FRACTION, POSITIVE, check_range
from pyro_gram.errors import ConfigError

EMBEDDING = "puzzle_embedding"  # parameters of this name have a rate and a decay of their own


@dataclass(frozen=True)
class OptimConfig:
    """AdamW (Appendix B.2: lr 1e-4, decay 1.0, clip 1.0 at D = 512).

    Attributes:
        lr: the learning rate after warm-up.
        weight_decay: decoupled decay.
        clip: largest global norm of the gradient of the mean loss per input, nats.
        warmup: updates over which the rate rises linearly from 0.
        embedding_lr: the rate of puzzle embeddings (ARC; TRM's is 100 times the rest); 0 for ``lr``.
        embedding_decay: their decay.
        final: the rate falls along a half cosine to ``final * lr`` at the last update of the run; 1 keeps it constant.
    """

    lr: float = 1e-4
    weight_decay: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.95
    clip: float = 1.0
    warmup: int = 2000
    final: float = 1.0
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
            final=FRACTION,
            embedding_lr=AT_LEAST_0,
            embedding_decay=AT_LEAST_0,
        )

    def rate(self, update: int, done: float) -> float:
        """The learning rate of one update (counted from 0), with the share ``done`` of the run behind it.

        Puzzle embeddings take ``embedding_lr / lr`` times as much.
        """
        rising = min(1.0, (update + 1) / max(1, self.warmup))
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        return self.lr * rising * (self.final + (1 - self.final) * cosine)


class TorchOptim(PyroOptim):
    """A PyroOptim over a fixed, named set of parameters.

    The schedule follows ``done``, the share of the run that is over, which the caller sets.

    Args:
        modules: every module to train, by name: ``{"model": model, "guide": guide}``.
        config: rates and limits.

    Raises:
        ConfigError: when called with a parameter of no given module, which would stay untrained in silence.
    """

    def __init__(self, modules: dict[str, nn.Module], config: OptimConfig) -> None:
        super().__init__(torch.optim.AdamW, {"lr": config.lr})
        self.config = config
        self.done = 0.0
        self.update = 0
        self.named = {f"{name}.{key}": p for name, module in modules.items() for key, p in module.named_parameters()}
        parameters = list(self.named.values())
        self._known = set(parameters)
        embeddings = [p for name, p in self.named.items() if name.endswith(EMBEDDING)]
        groups: list[dict[str, Any]] = [
            {"params": [p for name, p in self.named.items() if not name.endswith(EMBEDDING)], "relative": 1.0}
        ]
        if embeddings:
            relative = config.embedding_lr / config.lr if config.embedding_lr else 1.0
            groups.append({"params": embeddings, "relative": relative, "weight_decay": config.embedding_decay})
        self.torch_optimizer = torch.optim.AdamW(
            groups,
            lr=config.lr,
            weight_decay=config.weight_decay,
            betas=(config.beta1, config.beta2),
            fused=all(p.device.type in ("cpu", "cuda") for p in parameters),
        )

    def __call__(self, params: Iterable[Tensor], *args: Any, **kwargs: Any) -> None:
        """One update. Raises ConfigError on an unknown parameter."""
        unknown = [tuple(p.shape) for p in params if p not in self._known]
        if unknown:
            raise ConfigError(f"{len(unknown)} parameters (first shape {unknown[0]}) belong to no module of TorchOptim")
        # SVI clears the gradients of announced parameters only; this class trains, and so clears, all of its own.
        nn.utils.clip_grad_norm_(self.named.values(), self.config.clip)  # in order: sums of floats repeat
        for group in self.torch_optimizer.param_groups:
            group["lr"] = self.config.rate(self.update, self.done) * group["relative"]
        self.torch_optimizer.step()
        self.torch_optimizer.zero_grad(set_to_none=True)
        self.update += 1

    def get_state(self) -> dict[str, Tensor]:
        """The optimizer's state as flat named tensors (safetensors holds nothing else)."""
        state: dict[str, Tensor] = {"update": torch.tensor(self.update)}
        for name, p in self.named.items():
            for key, value in self.torch_optimizer.state.get(p, {}).items():
                state[f"{name}/{key}"] = value
        return state

    def set_state(self, state: dict[str, Tensor]) -> None:
        """Take back what :meth:`get_state` gave. Raises KeyError naming a missing, stray or misshapen tensor."""
        update = int(state["update"])
        names = {key.rpartition("/")[0] for key in state if key != "update"}
        slots = {name: {slot: state[f"{name}/{slot}"] for slot in ("step", "exp_avg", "exp_avg_sq")} for name in names}
        for name, values in slots.items():
            p = self.named[name]
            if any(values[slot].shape != p.shape for slot in ("exp_avg", "exp_avg_sq")):
                raise KeyError(name)
        self.update = update
        for name, values in slots.items():
            p = self.named[name]
            self.torch_optimizer.state[p] = {
                slot: value if slot == "step" else value.to(p.device) for slot, value in values.items()
            }
