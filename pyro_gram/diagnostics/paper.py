"""Read the results of the paper (arXiv 2605.19376) from ``paper.toml``, for comparisons.

The paper does not say whether its accuracies are those of single samples. Here the paper's
accuracies are always compared with accuracies of single samples.
"""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path

COUNTS = ("violations", "inception_score", "frechet_distance")  # other metrics are shares, printed in per cent

ROWS = {"direct": "direct8", "d3pm": "d3pm_uniform"}  # registry name -> name of the row, if they differ

Rows = dict[str, dict[str, float]]


@cache
def _tables() -> dict[str, dict[str, Rows]]:
    return tomllib.loads(Path(__file__).with_name("paper.toml").read_text())


def rows(table: str, problem: str) -> Rows:
    """Return the printed numbers of a problem in a table, as row -> metric -> number; empty if the paper has none."""
    return _tables().get(table, {}).get(problem, {})


def published(problem: str, model: str = "gram") -> dict[str, float]:
    """Return the numbers of a model on a problem, as metric -> number.

    If several tables give a metric, the number of the first table is returned.
    """
    numbers: dict[str, float] = {}
    for table in _tables().values():
        for metric, number in table.get(problem, {}).get(ROWS.get(model, model), {}).items():
            numbers.setdefault(metric, number if metric in COUNTS else number / 100)
    return numbers
