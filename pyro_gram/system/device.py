"""Which device a program runs on."""

from __future__ import annotations

import torch

from pyro_gram.errors import ConfigError


def kind_of(name: str) -> str:
    """The type of a device, there or not. Raises ConfigError where there is no such type."""
    try:
        return torch.device(name).type
    except RuntimeError:
        raise ConfigError(f"no device {name!r}: give cpu, cuda or mps") from None


def pick_device(name: str) -> torch.device:
    """Raises ConfigError where the device is not there."""
    kind = kind_of(name)
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(kind, False):
        raise ConfigError(f"no device {name!r} here; available: {', '.join(k for k, v in there.items() if v)}")
    device = torch.device(name)
    count = torch.cuda.device_count() if kind == "cuda" else 1
    if device.index is not None and device.index >= count:
        raise ConfigError(f"no device {name!r} here: there {'is' if count == 1 else 'are'} {count} of {kind}")
    return device
