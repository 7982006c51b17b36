"""The results of the paper (arXiv 2605.19376), from ``paper.toml``, to compare with.

The paper does not say whether its accuracies are of single samples; here they are compared with those of single samples
everywhere.
"""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path

TITLES = {"1": "Table 1", "2": "Table 2", "3a": "Table 3a", "3b": "Table 3b", "8": "Table 8", "arc": "ARC-AGI"}
COUNTS = ("violations", "inception_score", "frechet_distance")  # other metrics are shares, printed in per cent

ROWS = {"direct": "direct8", "d3pm": "d3pm_uniform"}  # registry name -> row, where they differ

Rows = dict[str, dict[str, float]]


@cache
def _tables() -> dict[str, dict[str, Rows]]:
    return tomllib.loads(Path(__file__).with_name("paper.toml").read_text())


def rows(table: str, problem: str) -> Rows:
    """Return row -> metric -> number as printed, of a problem in a table; empty if the paper has none."""
    return _tables().get(table, {}).get(problem, {})


def published(problem: str, model: str = "gram") -> dict[str, float]:
    """Return metric -> number of a model on a problem, shares as fractions; the first table with a metric counts."""
    numbers: dict[str, float] = {}
    for table in _tables().values():
        for metric, number in table.get(problem, {}).get(ROWS.get(model, model), {}).items():
            numbers.setdefault(metric, number if metric in COUNTS else number / 100)
    return numbers
