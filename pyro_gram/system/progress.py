"""What is to come of a run, and when all of it will be over: lines and bars on stderr."""

from __future__ import annotations

import shutil
import sys

from tqdm import tqdm

WIDE = 140  # columns, of a terminal that has room for a bar beside what is told of it
NARROW = "{desc}: {percentage:3.0f}% {n_fmt}/{total_fmt} [{remaining} left{postfix}]"
ON_TOP = "figures and the report come on top"


class Phases:
    """The phases of a run: a bar for each, which says its place, and one estimate of the end of them all.

    On a terminal there are bars; elsewhere (a log) each phase has a line.

    Args:
        sizes: the phases in order, with what each does: ``{"train": "2,000 batches"}``.
        silent: nothing is said (by all processes but the first).

    Attributes:
        seconds: how long a phase takes, where that has been measured.
    """

    def __init__(self, sizes: dict[str, str], silent: bool = False) -> None:
        self.sizes, self.silent = sizes, silent
        self.seconds: dict[str, float] = {}
        self._bar: tqdm | None = None
        self._estimated = False

    def announce(self) -> None:
        """Say which phases there will be."""
        self.say("phases: " + ", ".join(f"{self._title(name)} ({size})" for name, size in self.sizes.items()))

    def start(self, name: str, total: int, unit: str, initial: int = 0) -> tqdm:
        """The bar of a phase that begins now; on no terminal a line in its place."""
        terminal = sys.stderr.isatty()
        if not terminal and self.sizes.get(name):
            long = f", about {format_duration(self.seconds[name])}" if name in self.seconds else ""
            self.say(f"{self._title(name)}: {self.sizes[name]}{long}")
        self._bar = tqdm(
            total=total,
            initial=initial,
            unit=unit,
            desc=self._title(name),
            file=sys.stderr,
            mininterval=1.0,
            bar_format=None if shutil.get_terminal_size().columns >= WIDE else NARROW,
            disable=self.silent or not terminal,
        )
        return self._bar

    def update(self, count: int) -> None:
        """Move the bar of the phase that is going on."""
        if self._bar is not None:
            self._bar.update(count)

    def left(self, name: str, here: float | None) -> float | None:
        """The seconds until all is over; None where a phase that is to come has not been measured.

        Args:
            name: the phase that is going on.
            here: the seconds that are left of it.
        """
        later = list(self.sizes)[list(self.sizes).index(name) + 1 :] if name in self.sizes else []
        if here is None or not later or not self.seconds.keys() >= set(later):
            return None
        return here + sum(self.seconds[phase] for phase in later)

    def estimate(self, name: str, here: float | None) -> str:
        """``all ends in 17:54 | ``, for the bar of the phase ``name``; nothing where it is not known.

        Once, as soon as it is known, a line says how it is composed. Arguments as for :meth:`left`.
        """
        left = self.left(name, here)
        if left is None:
            return ""
        if not self._estimated:
            self._estimated = True
            long = {name: here or 0.0} | {phase: s for phase, s in self.seconds.items() if phase != name}
            told = ", ".join(f"{phase} {format_duration(long[phase])}" for phase in self.sizes if phase in long)
            self.say(f"about {format_duration(left)} from now in all: {told}; {ON_TOP}")
        return f"all ends in {format_duration(left)} | "

    def _title(self, name: str) -> str:
        names = list(self.sizes)
        return f"{names.index(name) + 1}/{len(names)} {name}" if len(names) > 1 else name

    def say(self, text: str) -> None:
        """A line that disturbs no bar."""
        if not self.silent:
            tqdm.write(text, file=sys.stderr)


def format_duration(seconds: float) -> str:
    """``13:47``, or ``2:13:47``."""
    return tqdm.format_interval(round(seconds))
