"""Show progress on stderr: a bar for each phase of a run, and an estimate of the time until the last phase ends."""

from __future__ import annotations

import shutil
import sys

from tqdm import tqdm

MIN_COLUMNS = 140  # a narrower terminal shows the text without a bar
TEXT_FORMAT = "{desc}: {percentage:3.0f}% {n_fmt}/{total_fmt} [{remaining} left{postfix}]"


class Phases:
    """The phases of a run. A terminal shows a bar for each phase; a log gets a line for each phase.

    Args:
        sizes: the phases in order, with the work in each: ``{"train": "2,000 batches"}``.
        silent: print nothing. All processes except the main process are silent.

    Attributes:
        seconds: the expected duration of each phase that has been measured or estimated.
    """

    def __init__(self, sizes: dict[str, str], silent: bool = False) -> None:
        self.sizes, self.silent = sizes, silent
        self.seconds: dict[str, float] = {}
        self._bar: tqdm | None = None
        self._has_printed_estimate = False

    def print_plan(self) -> None:
        """Print the phases of the run."""
        self.print("phases: " + ", ".join(f"{self._title(name)} ({size})" for name, size in self.sizes.items()))

    def start(self, name: str, total: int, unit: str, initial: int = 0) -> tqdm:
        """Begin a phase.

        Args:
            name: the name of the phase.
            total: the count at which the phase ends.
            unit: the unit that is counted.
            initial: the count at which the phase begins; above 0 in a resumed run.

        Returns:
            the bar of the phase. If stderr is not a terminal, the bar is hidden, and a line is printed instead.
        """
        is_terminal = sys.stderr.isatty()
        if not is_terminal and self.sizes.get(name):
            duration = f", about {format_duration(self.seconds[name])}" if name in self.seconds else ""
            self.print(f"{self._title(name)}: {self.sizes[name]}{duration}")
        self._bar = tqdm(
            total=total,
            initial=initial,
            unit=unit,
            desc=self._title(name),
            file=sys.stderr,
            mininterval=1.0,
            bar_format=None if shutil.get_terminal_size().columns >= MIN_COLUMNS else TEXT_FORMAT,
            disable=self.silent or not is_terminal,
        )
        return self._bar

    def update(self, count: int) -> None:
        """Advance the bar of the current phase by ``count``."""
        if self._bar is not None:
            self._bar.update(count)

    def remaining_seconds(self, name: str, phase_seconds: float | None) -> float | None:
        """Return the seconds until the last phase ends; None if the duration of a later phase is unknown.

        Args:
            name: the current phase.
            phase_seconds: the seconds until the current phase ends; None if unknown.
        """
        later_phases = list(self.sizes)[list(self.sizes).index(name) + 1 :] if name in self.sizes else []
        if phase_seconds is None or not later_phases or not self.seconds.keys() >= set(later_phases):
            return None
        return phase_seconds + sum(self.seconds[phase] for phase in later_phases)

    def remaining_text(self, name: str, phase_seconds: float | None) -> str:
        """Return "all ends in 17:54 | ", for the bar of the current phase; an empty text if the time is unknown.

        When the time is first known, one line with the duration of each phase is printed. The arguments are those of
        :meth:`remaining_seconds`.
        """
        total = self.remaining_seconds(name, phase_seconds)
        if total is None:
            return ""
        if not self._has_printed_estimate:
            self._has_printed_estimate = True
            seconds = self.seconds | {name: phase_seconds or 0.0}
            durations = ", ".join(f"{p} {format_duration(seconds[p])}" for p in self.sizes if p in seconds)
            self.print(
                f"about {format_duration(total)} from now in all: {durations}; figures and the report come on top"
            )
        return f"all ends in {format_duration(total)} | "

    def _title(self, name: str) -> str:
        names = list(self.sizes)
        return f"{names.index(name) + 1}/{len(names)} {name}" if len(names) > 1 else name

    def print(self, text: str) -> None:
        """Print a line on stderr without breaking a bar."""
        if not self.silent:
            tqdm.write(text, file=sys.stderr)


def format_duration(seconds: float) -> str:
    """Return a duration in minutes and seconds, or with hours.

    >>> format_duration(827.4), format_duration(8027)
    ('13:47', '2:13:47')
    """
    return tqdm.format_interval(round(seconds))
