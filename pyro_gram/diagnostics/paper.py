"""The numbers of the paper (arXiv 2605.19376) to stand beside ours; ``paper.toml`` holds them.

Its accuracies stand beside those of a single sample, everywhere: the paper does not say which they are.
"""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path

TITLES = {"1": "Table 1", "2": "Table 2", "3a": "Table 3a", "3b": "Table 3b", "8": "Table 8", "arc": "ARC-AGI"}
COUNTS = ("violations", "inception_score", "frechet_distance")  # all others are shares, there in per cent

ROWS = {"direct": "direct8", "d3pm": "d3pm_uniform"}  # the row of a model whose name here is another

Rows = dict[str, dict[str, float]]


@cache
def _tables() -> dict[str, dict[str, Rows]]:
    return tomllib.loads(Path(__file__).with_name("paper.toml").read_text())


def rows(table: str, problem: str) -> Rows:
    """Row -> metric -> number as printed, of one problem in one table; empty where the paper says nothing."""
    return _tables().get(table, {}).get(problem, {})


def published(problem: str, model: str = "gram") -> dict[str, float]:
    """Metric -> number, shares as fractions, of a model on a problem; the first table that has one counts."""
    found: dict[str, float] = {}
    for table in _tables().values():
        for metric, number in table.get(problem, {}).get(ROWS.get(model, model), {}).items():
            found.setdefault(metric, number if metric in COUNTS else number / 100)
    return found
