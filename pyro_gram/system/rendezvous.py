"""Join the processes of a run. A thread waits for the other processes, so a signal or a time limit can end the wait."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist

from pyro_gram.errors import ConfigError, UserError, reason

JOIN_TIMEOUT = timedelta(minutes=5)  # every process must join within this time
NOTICE_SECONDS = 10.0  # after this wait a line says which process is missing
MAX_NUMBER = 1_000_000  # the largest number that is accepted from the environment
POLL_SECONDS = 0.2  # the pause between two checks for other processes, or for a signal


class LostProcessError(UserError):
    """Another process of the run has ended, or has never joined."""


def read_number(name: str, minimum: int, default: int | None = None) -> int:
    """Read a number that a launcher has set in the environment.

    Raises:
        ConfigError: the variable is not a number from ``minimum`` to ``MAX_NUMBER``.
    """
    text = os.environ.get(name)
    if text is None and default is not None:
        return default
    number = int(text) if text is not None and text.isascii() and text.isdecimal() and len(text) < 10 else -1
    if not minimum <= number <= MAX_NUMBER:
        raise ConfigError(
            f"the environment variable {name} is {text and text[:20]!r}, not a whole number from "
            f"{minimum} to {MAX_NUMBER:,}: "
            "unset it, or let torchrun start the processes"
        )
    return number


@dataclass(frozen=True)
class Launch:
    """The settings that a launcher such as torchrun gives to one process.

    Attributes:
        rank, size: the number of this process, and the number of processes.
        address, port: the address and port of torch's ``TCPStore``. The processes find each other through this store.
        by_agent: does torchrun's agent hold the store? Otherwise the main process does.
    """

    rank: int
    size: int
    address: str
    port: int
    by_agent: bool

    @classmethod
    def read(cls, size: int) -> Launch:
        """Read the launcher's environment variables. Raises ConfigError if one is missing or has a wrong value."""
        missing_names = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
        if missing_names:
            raise ConfigError(
                f"WORLD_SIZE={size} is set without {', '.join(missing_names)}: let torchrun start the processes, or "
                "unset WORLD_SIZE for a single one"
            )
        rank, port = read_number("RANK", 0), read_number("MASTER_PORT", 1)
        if rank >= size:
            raise ConfigError(f"RANK={rank} is too high: the {size} processes of WORLD_SIZE count from 0")
        if port > 65535:
            raise ConfigError(f"MASTER_PORT={port} is not a port: ports go up to 65535")
        address = os.environ["MASTER_ADDR"]
        try:
            socket.getaddrinfo(address, port)
        except UnicodeError:
            raise ConfigError(f"MASTER_ADDR={address!r} is not the name of a machine: correct it") from None
        except OSError as e:
            if rank == 0:  # rank 0 listens at this address; other ranks try the name again later
                raise ConfigError(f"MASTER_ADDR={address!r} cannot be found ({e.strerror or e}): correct it") from None
        agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        return cls(rank, size, address, port, agent)

    @property
    def endpoint(self) -> str:
        """The address and port of the store, as one text."""
        return f"{self.address}:{self.port}"


@dataclass
class Rendezvous:
    """Waits for the other processes of a run, in a thread of its own: torch's calls do not return on a signal.

    Attributes:
        launch: the settings of this process.
        device: the device of this process.
        timeout: the time limit of each exchange after all have joined.
        missing_ranks: ``[0]`` before the store is reached. Then, in the main process, the ranks that have not joined;
            in other processes an empty list.
        failure: the error that ended the wait.
        is_late: has :data:`JOIN_TIMEOUT` passed?
    """

    launch: Launch
    device: torch.device
    timeout: timedelta
    missing_ranks: list[int] = field(default_factory=lambda: [0])
    failure: Exception | None = None
    is_late: bool = False

    def run(self) -> None:
        """Find the other processes through the store, and initialize the process group."""
        try:
            store = self._open_store()
            if store is None or not self._wait_for_all(store):
                return
            if self.device.type == "cuda":
                torch.cuda.set_device(self.device)  # each thread has a current device of its own
            backend, launch = "nccl" if self.device.type == "cuda" else "gloo", self.launch
            dist.init_process_group(
                backend, store=store, rank=launch.rank, world_size=launch.size, timeout=self.timeout
            )
        except Exception as e:  # ``join`` raises an error that explains this one
            self.failure = e

    def _open_store(self) -> dist.Store | None:
        launch = self.launch
        host = launch.rank == 0 and not launch.by_agent
        if not host and not self._wait_for_store():
            return None
        store: dist.Store = dist.TCPStore(
            launch.address,
            launch.port,
            launch.size,
            host,
            timeout=JOIN_TIMEOUT,
            wait_for_workers=False,
            multi_tenant=host,
        )
        # An agent's store outlives a restart and keeps the addresses of processes that have ended. So each restart
        # needs its own prefix. A new agent counts its restarts from 0 again, but it also has a new store.
        return dist.PrefixStore(f"restart {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)

    def _wait_for_store(self) -> bool:
        """Wait until the store accepts connections. (Torch could wait too, but logs each attempt.)"""
        while not self.is_late:
            with suppress(OSError), socket.create_connection((self.launch.address, self.launch.port), timeout=5):
                return True
            time.sleep(POLL_SECONDS)
        return False

    def _wait_for_all(self, store: dist.Store) -> bool:
        """Wait until all processes have joined. The main process sets the key ``all joined``."""
        store.set(f"joined {self.launch.rank}", "yes")
        self.missing_ranks = list(range(self.launch.size)) if self.launch.rank == 0 else []
        while not self.is_late:
            self.missing_ranks = [r for r in self.missing_ranks if not store.check([f"joined {r}"])]
            if self.launch.rank == 0 and not self.missing_ranks:
                store.set("all joined", "yes")
            if store.check(["all joined"]):
                return True
            time.sleep(POLL_SECONDS)
        return False


_threads: list[threading.Thread] = []


def has_joined() -> bool:
    """Has this process joined others, or at least waited for them? The store may be open in both cases."""
    return bool(_threads)


def join(launch: Launch, device: torch.device, timeout: timedelta) -> None:
    """Join the other processes of a run.

    Args:
        launch: the settings of this process.
        device: the device of this process; ``cuda`` exchanges by NCCL, ``cpu`` by Gloo.
        timeout: the time limit of each exchange after all have joined.

    Raises:
        LostProcessError: another process has not joined within :data:`JOIN_TIMEOUT`, or has ended while joining.
        ConfigError: the port is taken.
    """
    rendezvous = Rendezvous(launch, device, timeout)
    thread = threading.Thread(target=rendezvous.run, daemon=True)
    _threads[:] = [thread]
    thread.start()
    start, has_printed = time.monotonic(), False
    while thread.is_alive():
        thread.join(POLL_SECONDS)  # Python handles signals between two calls
        seconds = time.monotonic() - start
        if seconds > NOTICE_SECONDS and not has_printed and (launch.rank == 0 or rendezvous.missing_ranks == [0]):
            has_printed = True
            limit = f"{JOIN_TIMEOUT.total_seconds() / 60:g} minutes"
            print(
                f"waiting for {_name_missing(rendezvous.missing_ranks, launch)} at {launch.endpoint}, "
                f"{limit} at the most",
                file=sys.stderr,
            )
        if seconds > JOIN_TIMEOUT.total_seconds() and thread.is_alive():
            rendezvous.is_late = True
            raise LostProcessError(
                f"{_name_missing(rendezvous.missing_ranks, launch)} has not joined at {launch.endpoint} within "
                f"{JOIN_TIMEOUT.total_seconds() / 60:g} minutes: start all {launch.size} processes with the same "
                "MASTER_ADDR and MASTER_PORT, or unset WORLD_SIZE to train with a single one"
            )
    if rendezvous.failure is not None:
        raise _explain(rendezvous.failure, launch) from None


def _name_missing(missing_ranks: list[int], launch: Launch) -> str:
    if not missing_ranks:
        return f"another of the {launch.size} processes"
    ending = f" and {len(missing_ranks) - 1} more" if len(missing_ranks) > 1 else ""
    return f"process {missing_ranks[0]}{ending} of {launch.size}"


def _explain(failure: Exception, launch: Launch) -> UserError:
    if "EADDRINUSE" in str(failure) or "address already in use" in str(failure).lower():
        return ConfigError(
            f"port {launch.port} of {launch.address} is taken by another program: set MASTER_PORT to a free one "
            "(torchrun --master-port; torchrun --standalone finds one)"
        )
    return LostProcessError(f"the processes of this run cannot connect at {launch.endpoint} ({reason(failure)})")
