"""What the command-line programs share: one-line errors, exit codes, and a clean end on a signal."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from pyro_gram.checks import similar
from pyro_gram.errors import UserError
from pyro_gram.system.allocator import keep_freed_memory
from pyro_gram.system.text import printable


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line on stderr and exit code 2, and which guesses no abbreviation.

    An error about an unknown option says what was meant, as far as that can be seen.

    Attributes:
        page: the command that explains the options.
        foreign: options that this run has not: option to whose it is, in words, and the command that explains it.
    """

    def __init__(self, prog: str, **kwargs: Any) -> None:
        super().__init__(prog, allow_abbrev=False, **kwargs)
        self.page = f"{prog} --help"
        self.foreign: dict[str, tuple[str, str]] = {}
        self._words: list[str] = []
        # What torch.distributed.launch says to each of its processes, which torchrun says by LOCAL_RANK.
        self.add_argument("--local-rank", "--local_rank", action=_LocalRank, type=int, help=argparse.SUPPRESS)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self._words = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        page, meant = self.page, ""
        if message.startswith(("unrecognized arguments", "the following arguments are required")):
            unknown = dict.fromkeys(word.partition("=")[0] for word in self._words if word.startswith("--"))
            for option in [word for word in unknown if word not in self._option_string_actions]:
                said, page = self._meant(option, page)
                meant += said
        print(f"{self.prog}: error: {message}{meant} (see {page})", file=sys.stderr)
        raise SystemExit(2)

    def _meant(self, option: str, page: str) -> tuple[str, str]:
        """What an unknown option may have meant, as the end of a message, and the command that explains it."""
        shown = (action for action in self._actions if action.help != argparse.SUPPRESS)
        known = [name for action in shown for name in action.option_strings if name.startswith("--")]
        near = [option] if option in self.foreign else similar(option, [*known, *self.foreign])
        here = [name for name in near if name not in self.foreign]
        if here or not near:
            return (f"; did you mean {' or '.join(here)}?" if here else ""), page
        whose, page = self.foreign[near[0]]
        return f"; {option} {whose}" if near[0] == option else f"; did you mean {near[0]}? It {whose}", page


class _LocalRank(argparse.Action):
    def __init__(self, option_strings: list[str], dest: str, type: Any, help: str) -> None:
        super().__init__(option_strings, dest, default=argparse.SUPPRESS, type=type, help=help)

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, value: Any, *_: Any) -> None:
        os.environ.setdefault("LOCAL_RANK", str(value))


def directory(text: str) -> Path:
    """The type of an option that names a directory."""
    if not text:
        raise argparse.ArgumentTypeError("give a directory")
    return Path(text)


def add_device(parser: argparse.ArgumentParser) -> None:
    """The option ``--device``, for ``device.pick_device``."""
    parser.add_argument("--device", default="cpu", help="cpu (the default), cuda or mps")


def add_trust(parser: argparse.ArgumentParser) -> None:
    """The option ``--trust-code``, for ``pyro_gram.load``."""
    parser.add_argument(
        "--trust-code",
        action=_TrustCode,
        help="import what the checkpoint names as package.module:Class, which runs that module's code",
    )


class _TrustCode(argparse.Action):
    def __init__(self, option_strings: list[str], dest: str, help: str) -> None:
        super().__init__(option_strings, dest, nargs=0, default=False, help=help)

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, *_: Any) -> None:
        setattr(namespace, self.dest, True)
        use_working_directory()


def use_working_directory() -> None:
    """Let a user's own package.module:Class be found in the working directory: only where one has been asked for.

    It comes first: a checkout that is installed to be edited has ``models`` and ``guides`` on the path too.
    """
    here = os.getcwd()
    if sys.path[:1] != [here]:
        sys.path.insert(0, here)


def spare_process() -> bool:
    """Is this one of several processes that torchrun has started, and not the first?"""
    return "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("RANK", "0") not in ("", "0")


def call(main: Callable[[list[str]], int], argv: list[str] | None = None, *, shared: bool = False) -> int:
    """Run a program's main; an error becomes one line on stderr and exit code 2, a signal one and 128 + its number.

    Args:
        main: takes the command line, returns an exit code.
        argv: the command line; this process's where None.
        shared: do several processes share the work? Otherwise the first of those that torchrun starts does it alone.
    """
    if not shared and spare_process():
        print(f"process {os.environ['RANK']} has nothing to do: the first one does it alone", file=sys.stderr)
        return 0
    _open_streams()
    keep_freed_memory()
    before = set_handler(signal.SIGTERM, _terminate)
    try:
        return main(sys.argv[1:] if argv is None else argv)
    except UserError as e:
        print(f"error: {printable(' '.join(str(e).split()))}", file=sys.stderr)
        return 2
    except MemoryError as e:
        print(f"error: not enough memory ({' '.join(str(e).split()) or 'no more is said'})", file=sys.stderr)
        return 2
    except KeyboardInterrupt as e:
        print("interrupted", file=sys.stderr)
        return interruption(e)
    except BrokenPipeError:  # the reader of our output has gone: `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as e:  # a full disk, a directory taken away
        print(f"error: {e.strerror or e}{f' ({e.filename})' if e.filename else ''}", file=sys.stderr)
        return 2
    finally:
        set_handler(signal.SIGTERM, before)


def _open_streams() -> None:
    """Give a program that was started with stdout or stderr closed a place to write to."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (for as long as the process lives)


def set_handler(number: int, handler: Any) -> Any:
    """Set a signal's handler and return the one before. Outside the main thread Python sets none: None is returned."""
    if threading.current_thread() is not threading.main_thread():
        return None
    return signal.signal(number, signal.SIG_DFL if handler is None else handler)


class TerminatedError(KeyboardInterrupt):
    """SIGTERM, which ends a program as SIGINT does."""


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun sends one more
    raise TerminatedError


def interruption(stopped: KeyboardInterrupt) -> int:
    """The exit code of a program that a signal ended."""
    return 128 + (signal.SIGTERM if isinstance(stopped, TerminatedError) else signal.SIGINT)


class StopOnSignal:
    """Within it, SIGINT and SIGTERM only set ``signal``; a second SIGINT interrupts at once. In the main thread only.

    A second SIGTERM does not: a scheduler that signals every process, and torchrun, which hands its own on, both send
    one to the same run.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._held: dict[int, object] = {}

    def __enter__(self) -> StopOnSignal:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._held[number] = set_handler(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._held.items():
            set_handler(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number
