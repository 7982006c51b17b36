"""Write cells of Markdown tables: means with standard deviations, and shares with Wilson intervals."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from pyro_gram.diagnostics.metrics import wilson_interval
from pyro_gram.system.files import write_bytes, write_json
from pyro_gram.system.machine import environment


def mean_and_sd(values: Sequence[float], digits: int = 3) -> str:
    """Write mean ± standard deviation, with as many digits as the standard deviation needs.

    Only the mean is written if there is one value, or if all values are equal.
    """
    deviation = stdev(values) if len(values) > 1 else 0.0
    if deviation < 1e-9:
        return f"{mean(values):.{digits}f}"
    while round(deviation, digits) == 0:
        digits += 1
    return f"{mean(values):.{digits}f} ± {deviation:.{digits}f}"


def share_with_interval(values: Sequence[float], inputs: int) -> str:
    """Write :func:`mean_and_sd` with the Wilson 95 % interval of the mean over ``inputs`` inputs."""
    low, high = wilson_interval(mean(values), inputs)
    return f"{mean_and_sd(values)} ({low:.3f} to {high:.3f})"


def point_and_sd(point: dict[str, float], metric: str) -> str:
    """Write a mean over seeds, with its standard deviation ``*_sd`` unless the deviation rounds to 0."""
    deviation = point[f"{metric}_sd"]
    return f"{point[metric]:.3f}" + (f" ± {deviation:.3f}" if round(deviation, 3) else "")


def write_markdown(json_path: Path, text: str) -> None:
    """Write a table beside the JSON that it shows."""
    write_bytes(json_path.with_suffix(".md"), f"{text}\n".encode())


def write_study(path: Path, results: dict[str, Any], table: str) -> None:
    """Write the results of a study, the machine that measured them, and the table beside them; print the path."""
    write_json(path, results | {"environment": environment()})
    write_markdown(path, table)
    print(f"results: {path}")


def by_checkpoint(study: dict[str, Any]) -> list[tuple[str, Any]]:
    """List the results of a study by checkpoint, sorted by name."""

    def key(name: str) -> list[Any]:
        return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]

    return [(name, study[name]) for name in sorted(study.keys() - {"environment"}, key=key)]
