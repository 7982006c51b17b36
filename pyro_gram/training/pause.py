"""Where a batch stands between two of its updates, so that a run can be stopped, and go on, in the middle of one."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyro_gram.networks.core import LatentState


@dataclass
class Inside:
    """The updates that a batch has seen, and what the next one starts from.

    Attributes:
        state: where its trajectories are, ``[B, L, D]`` each; None is z_0.
        terms: reconstruction and KL of each update under the guide, nats per input, ``[n, 2]``.
        first: supervision step at which on-policy updates begin; -1 before they do.
        seen: reconstruction of each on-policy update, nats per input, ``[m]``.
        random: of the generators, where a saved batch goes on: :func:`random_state`.
    """

    state: LatentState | None = None
    terms: list[Tensor] = field(default_factory=list)
    first: int = -1
    seen: list[Tensor] = field(default_factory=list)
    random: dict[str, Tensor] = field(default_factory=dict)

    def tensors(self, device: torch.device) -> dict[str, Tensor]:
        """What a checkpoint keeps. ``device``: where the run draws."""
        kept = {"first": torch.tensor(self.first), **random_state(device)}
        if self.state is not None:
            kept |= {"h": self.state.h, "l": self.state.l}
        kept |= {"terms": torch.stack(self.terms)} if self.terms else {}
        return kept | ({"seen": torch.stack(self.seen)} if self.seen else {})

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], device: torch.device) -> Inside | None:
        """What :meth:`tensors` gave; None where there were none. Raises KeyError naming what is missing."""
        if not tensors:
            return None
        state = LatentState(tensors["h"].to(device), tensors["l"].to(device)) if "h" in tensors else None
        terms, seen = (list(tensors[k].to(device)) if k in tensors else [] for k in ("terms", "seen"))
        random = {name: tensors[name] for name in ("cpu", device.type)}
        return cls(state, terms, int(tensors["first"]), seen, random)


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The states of torch's generators that a run on ``device`` draws from, uint8, by kind of device."""
    found = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        found["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        found["mps"] = torch.mps.get_rng_state()
    return found


def set_random_state(found: dict[str, Tensor], device: torch.device) -> None:
    """Put back what :func:`random_state` gave."""
    torch.set_rng_state(found["cpu"].cpu())
    if device.type == "cuda":
        torch.cuda.set_rng_state(found["cuda"].cpu(), device)
    elif device.type == "mps":
        torch.mps.set_rng_state(found["mps"].cpu())
