"""How the processes of a run find each other: in a thread, so that a signal ends the wait, and not for ever."""

from __future__ import annotations

import os
import re
import socket
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist

from pyro_gram.errors import ConfigError, UserError

JOINING = timedelta(minutes=5)  # in which every process must have come
SILENCE = 10.0  # seconds after which it is said who is waited for
MOST = 1_000_000  # processes, ports and restarts
LOOK = 0.2  # seconds between two looks for the others, and for a signal


class LostProcessError(UserError):
    """Another process of the run is gone, or has never come."""


def number_of(name: str, least: int, default: int | None = None) -> int:
    """A number that a launcher has left in the environment. Raises ConfigError where it is none, or below ``least``."""
    text = os.environ.get(name)
    if text is None and default is not None:
        return default
    number = int(text) if text is not None and text.isascii() and text.isdecimal() and len(text) < 10 else -1
    if not least <= number <= MOST:
        raise ConfigError(
            f"the environment's {name} is {text and text[:20]!r}, which is no whole number from {least} to {MOST:,}: "
            "unset it, or let torchrun start the processes"
        )
    return number


@dataclass(frozen=True)
class Launch:
    """What a launcher says to each process: which of how many it is, and where the first one is found.

    Attributes:
        rank, size: which process this is, of how many.
        address, port: of the store, which the first process holds or, before it, torchrun's agent (``by_agent``).
    """

    rank: int
    size: int
    address: str
    port: int
    by_agent: bool

    @classmethod
    def read(cls, size: int) -> Launch:
        """From the environment. Raises ConfigError where it is incomplete, or no launcher's."""
        missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
        if missing:
            raise ConfigError(
                f"WORLD_SIZE={size} is set without {', '.join(missing)}: let torchrun start the processes or, for one "
                "alone, unset WORLD_SIZE"
            )
        rank, port = number_of("RANK", 0), number_of("MASTER_PORT", 1)
        if rank >= size:
            raise ConfigError(f"RANK={rank} is none of the {size} processes of WORLD_SIZE, which count from 0")
        if port > 65535:
            raise ConfigError(f"MASTER_PORT={port} is no port: they go up to 65535")
        address = os.environ["MASTER_ADDR"]
        try:
            socket.getaddrinfo(address, port)
        except UnicodeError:
            raise ConfigError(f"MASTER_ADDR={address!r} is no name of a machine: correct it") from None
        except OSError as e:
            if rank == 0:  # which listens there; to the others the name may become known later
                raise ConfigError(f"MASTER_ADDR={address!r} cannot be found ({e.strerror or e}): correct it") from None
        agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        return cls(rank, size, address, port, agent)

    @property
    def place(self) -> str:
        return f"{self.address}:{self.port}"


@dataclass
class Joining:
    """The wait for the others, in a thread of its own: torch's calls do not return for a signal.

    Attributes:
        launch: which process this is.
        device: of this process.
        patience: with the others, once all are there.
        missing: the ranks that have not come, as the first process sees it; the first where the store is not reached.
        failure: what has ended the wait, if it was an error.
    """

    launch: Launch
    device: torch.device
    patience: timedelta
    missing: list[int] = field(default_factory=lambda: [0])
    failure: Exception | None = None
    late: bool = False

    def run(self) -> None:
        """Meet at the store, and open the exchange."""
        try:
            store = self._store()
            if store is None or not self._all_here(store):
                return
            if self.device.type == "cuda":
                torch.cuda.set_device(self.device)  # each thread has its own
            backend, launch = "nccl" if self.device.type == "cuda" else "gloo", self.launch
            dist.init_process_group(
                backend, store=store, rank=launch.rank, world_size=launch.size, timeout=self.patience
            )
        except Exception as e:  # is raised where the others are waited for
            self.failure = e

    def _store(self) -> dist.Store | None:
        launch = self.launch
        host = launch.rank == 0 and not launch.by_agent
        if not host and not self._reached():
            return None
        store: dist.Store = dist.TCPStore(
            launch.address,
            launch.port,
            launch.size,
            host,
            timeout=JOINING,
            wait_for_workers=False,
            multi_tenant=host,
        )
        # An agent's own store is kept through a restart, and with it the addresses of processes that are gone. Agents
        # that were replaced count their restarts anew, but then the store is new too.
        return dist.PrefixStore(f"restart {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)

    def _reached(self) -> bool:
        """Wait until somebody listens at the store's place; torch would complain of each try."""
        while not self.late:
            with suppress(OSError), socket.create_connection((self.launch.address, self.launch.port), timeout=5):
                return True
            time.sleep(LOOK)
        return False

    def _all_here(self, store: dist.Store) -> bool:
        """Wait for the others: the first process looks who has come, and tells those that have."""
        store.set(f"here {self.launch.rank}", "yes")
        self.missing = list(range(self.launch.size)) if self.launch.rank == 0 else []
        while not self.late:
            self.missing = [r for r in self.missing if not store.check([f"here {r}"])]
            if self.launch.rank == 0 and not self.missing:
                store.set("all here", "yes")
            if store.check(["all here"]):
                return True
            time.sleep(LOOK)
        return False


_threads: list[threading.Thread] = []


def has_met() -> bool:
    """Has this process met others, or waited for them? The store of a wait that a signal broke off is open too."""
    return bool(_threads)


def join(launch: Launch, device: torch.device, patience: timedelta) -> None:
    """Open the exchange with the other processes of a run.

    Args:
        launch: which process this is, and where the others are met.
        device: of this process; ``cuda`` exchanges by NCCL, ``cpu`` by Gloo.
        patience: with the others in every exchange, once all are there.

    Raises:
        LostProcessError: another has not come within :data:`JOINING`, or is gone again.
        ConfigError: the port is taken.
    """
    joining = Joining(launch, device, patience)
    thread = threading.Thread(target=joining.run, daemon=True)
    _threads[:] = [thread]
    thread.start()
    begun, said = time.monotonic(), False
    while thread.is_alive():
        thread.join(LOOK)  # signals are handled in between
        waited = time.monotonic() - begun
        if waited > SILENCE and not said and (launch.rank == 0 or joining.missing == [0]):
            said = True
            limit = f"{JOINING.total_seconds() / 60:g} minutes"
            print(
                f"waiting for {_named(joining.missing, launch)} at {launch.place}, {limit} at the most", file=sys.stderr
            )
        if waited > JOINING.total_seconds() and thread.is_alive():
            joining.late = True
            raise LostProcessError(
                f"{_named(joining.missing, launch)} has not come to {launch.place} within "
                f"{JOINING.total_seconds() / 60:g} minutes: start all {launch.size} with the same MASTER_ADDR and "
                "MASTER_PORT, or unset WORLD_SIZE to train with one"
            )
    if joining.failure is not None:
        raise _error(joining.failure, launch) from None


def _named(missing: list[int], launch: Launch) -> str:
    if not missing:
        return f"another of the {launch.size} processes"
    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    return f"process {missing[0]}{more} of {launch.size}"


def _error(failure: Exception, launch: Launch) -> UserError:
    if "EADDRINUSE" in str(failure) or "address already in use" in str(failure).lower():
        return ConfigError(
            f"port {launch.port} of {launch.address} is taken by another program: set MASTER_PORT to a free one "
            "(torchrun --master-port; torchrun --standalone finds one)"
        )
    return LostProcessError(f"the processes of this run cannot meet at {launch.place} ({reason(failure)})")


def reason(error: Exception) -> str:
    """The first line of an error, without the place in torch's sources where it was noticed."""
    return re.sub(r"^\[\S+\] ", "", (str(error).splitlines() or [type(error).__name__])[0])[:160]
