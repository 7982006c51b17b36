"""Command-line programs: the option parser, one-line errors with exit codes, and a clean end on a signal."""

from __future__ import annotations

import argparse
import inspect
import os
import re
import signal
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from pyro_gram.checks import closest_names
from pyro_gram.errors import UserError
from pyro_gram.system.text import make_printable

# ---- options --------------------------------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that accepts no abbreviations. On an error it prints one line and exits with code 2.

    An error about an unknown option suggests the nearest options.

    Attributes:
        help_command: the command that explains the options; error messages end with it.
        unavailable_options: a function that returns the options of other programs or parts. For each option it gives
            a phrase that names the owner, and the command that explains the option. Only error messages call it.
    """

    def __init__(self, prog: str, **kwargs: Any) -> None:
        super().__init__(prog, allow_abbrev=False, **kwargs)
        self.help_command = f"{prog} --help"
        self.unavailable_options: Callable[[], dict[str, tuple[str, str]]] = dict
        self._arguments: list[str] = []
        # torch.distributed.launch passes this option to each process; torchrun sets LOCAL_RANK instead.
        self.add_argument("--local-rank", "--local_rank", action=_LocalRank, type=int, help=argparse.SUPPRESS)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self._arguments = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        help_command, suggestions = self.help_command, ""
        if message.startswith(("unrecognized arguments", "the following arguments are required")):
            options = dict.fromkeys(word.partition("=")[0] for word in self._arguments if word.startswith("--"))
            for option in options:
                if option not in self._option_string_actions:
                    suggestion, help_command = self._suggest(option, help_command)
                    suggestions += suggestion
        print(f"{self.prog}: error: {message}{suggestions} (see {help_command})", file=sys.stderr)
        raise SystemExit(2)

    def _suggest(self, option: str, help_command: str) -> tuple[str, str]:
        """Return the end of a message about an unknown option, and the command that explains the suggested option."""
        actions = (action for action in self._actions if action.help != argparse.SUPPRESS)
        options = [name for action in actions for name in action.option_strings if name.startswith("--")]
        unavailable_options = self.unavailable_options()
        suggestions = (
            [option] if option in unavailable_options else closest_names(option, [*options, *unavailable_options])
        )
        available_options = [name for name in suggestions if name not in unavailable_options]
        if available_options or not suggestions:
            return (f"; did you mean {' or '.join(available_options)}?" if available_options else ""), help_command
        name = suggestions[0]
        owner, help_command = unavailable_options[name]
        return f"; {option} {owner}" if name == option else f"; did you mean {name}? It {owner}", help_command


class _LocalRank(argparse.Action):
    def __init__(self, option_strings: list[str], dest: str, type: Any, help: str) -> None:
        super().__init__(option_strings, dest, default=argparse.SUPPRESS, type=type, help=help)

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, value: Any, *_: Any) -> None:
        os.environ.setdefault("LOCAL_RANK", str(value))


def directory(text: str) -> Path:
    """Convert the value of an option that names a directory (``type=directory``)."""
    if not text:
        raise argparse.ArgumentTypeError("an empty name: give a directory")
    return Path(text)


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--device``. Its value is an argument of ``machine.pick_device``."""
    parser.add_argument("--device", default="cpu", help="cpu (the default), cuda or mps")


def add_trust_option(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--trust-code``. Its value is the argument ``trust_code`` of ``pyro_gram.load``."""
    parser.add_argument(
        "--trust-code",
        action=_TrustCode,
        help="import classes that the checkpoint names as package.module:Class, which runs the code of that module",
    )


class _TrustCode(argparse.Action):
    def __init__(self, option_strings: list[str], dest: str, help: str) -> None:
        super().__init__(option_strings, dest, nargs=0, default=False, help=help)

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, *_: Any) -> None:
        setattr(namespace, self.dest, True)
        add_working_directory_to_path()


def add_working_directory_to_path() -> None:
    """Let Python import a user's own classes, named as package.module:Class, from the working directory.

    The working directory comes first, because an editable install puts our ``models`` and ``guides`` on the path too.
    """
    folder = os.getcwd()
    if sys.path[:1] != [folder]:
        sys.path.insert(0, folder)


FIELD_ENTRY = re.compile(r"(\w+(?:, *\w+)*)(?: \([^)]*\))?:\s*(.*)")  # "name:", "low, high:" or "name (int):"
SPHINX_ROLE = re.compile(r":\w+:`~?([^`]*)`")  # :meth:`name`, :math:`x`


def field_descriptions(cls: type) -> dict[str, str]:
    """Return the description of each field of a dataclass, for the help of its options.

    Descriptions come from the section ``Attributes:`` of the docstrings of the class and its bases; the class's own
    docstring takes precedence. Fields without a description are left out. Sphinx markup is removed.
    """
    descriptions: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        descriptions |= _parse_attributes(inspect.cleandoc(base.__dict__.get("__doc__") or ""))
    return descriptions


def _parse_attributes(doc: str) -> dict[str, str]:
    _, _, text_after = f"\n{doc}".partition("\nAttributes:\n")
    section = re.split(r"\n(?=\S)", text_after, maxsplit=1)[0]
    entries: list[tuple[list[str], list[str]]] = []
    for line in textwrap.dedent(section).splitlines():
        if entry := FIELD_ENTRY.fullmatch(line):
            entries.append((re.split(", *", entry[1]), [entry[2]]))
        elif entries and line.strip():
            entries[-1][1].append(line.strip())
    return {name: _remove_markup(" ".join(lines)) for names, lines in entries for name in names}


def _remove_markup(text: str) -> str:
    text = SPHINX_ROLE.sub(lambda role: role[1].replace("\\", ""), text)
    return text.replace("``", "").strip().rstrip(".")


# ---- programs -------------------------------------------------------------------------------------------------------


def is_idle_process() -> bool:
    """Did torchrun start this process with a rank above 0? In most programs such a process ends at once."""
    return "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("RANK", "0") not in ("", "0")


def call(main: Callable[[list[str]], int], argv: list[str] | None = None, *, distributed: bool = False) -> int:
    """Run a program and return its exit code.

    A :class:`UserError` becomes one line on stderr and exit code 2. A signal becomes one line and an exit code of 128
    plus the signal's number.

    Args:
        main: the program; it takes the command line and returns an exit code.
        argv: the command line; by default the command line of this process.
        distributed: do the processes that torchrun starts share the work? Otherwise the first process does all of the
            work, and the other processes end at once.
    """
    if not distributed and is_idle_process():
        print(f"process {os.environ['RANK']} is not needed: process 0 does the work", file=sys.stderr)
        return 0
    _open_standard_streams()
    previous_handler = set_signal_handler(signal.SIGTERM, _terminate)
    try:
        return main(sys.argv[1:] if argv is None else argv)
    except UserError as e:
        print(f"error: {make_printable(' '.join(str(e).split()))}", file=sys.stderr)
        return 2
    except MemoryError as e:
        details = " ".join(str(e).split())
        print(f"error: not enough memory{f' ({details})' if details else ''}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as e:
        print("interrupted", file=sys.stderr)
        return interrupt_exit_code(e)
    except BrokenPipeError:  # the program that reads our output has ended (`... | head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as e:  # for example, a full disk or a removed directory
        print(f"error: {e.strerror or e}{f' ({e.filename})' if e.filename else ''}", file=sys.stderr)
        return 2
    finally:
        set_signal_handler(signal.SIGTERM, previous_handler)


def _open_standard_streams() -> None:
    """Open the null device in place of a stdout or stderr that was closed when the program started."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (stays open until the process ends)


# ---- signals --------------------------------------------------------------------------------------------------------


def set_signal_handler(number: int, handler: Any) -> Any:
    """Set a signal's handler and return the previous one. Does nothing outside of the main thread."""
    if threading.current_thread() is not threading.main_thread():
        return None
    return signal.signal(number, signal.SIG_DFL if handler is None else handler)


class TerminatedError(KeyboardInterrupt):
    """Raised on SIGTERM, so that SIGTERM ends a program in the same way as SIGINT."""


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun sends a second SIGTERM
    raise TerminatedError


def interrupt_exit_code(interrupt: KeyboardInterrupt) -> int:
    """Return the exit code of a program that a signal has ended: 128 + the signal's number."""
    return 128 + (signal.SIGTERM if isinstance(interrupt, TerminatedError) else signal.SIGINT)


class StopOnSignal:
    """A context in which SIGINT and SIGTERM only set :attr:`signal`, so that the work can stop at a safe point.

    A second SIGINT raises KeyboardInterrupt at once. A second SIGTERM has no effect, because one stop may send two: a
    scheduler signals every process, and torchrun passes its own signal on. Works only in the main thread.

    Attributes:
        signal: the number of the signal that was received; None before that.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._previous_handlers: dict[int, object] = {}

    def __enter__(self) -> StopOnSignal:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous_handlers[number] = set_signal_handler(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous_handlers.items():
            set_signal_handler(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number
