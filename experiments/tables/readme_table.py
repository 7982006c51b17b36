"""Make the results table of the README: every task, with the paper's figures and the best published figures."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from experiments.tables.cells import mean_and_sd
from experiments.tables.headline import read_results, read_seeds
from pyro_gram.diagnostics import paper

# Each row holds the name of the checkpoint, its title in the table (with the number of its note in the README), and its
# name in paper.toml.
SOLVING_ROWS = (
    ("coloring8", "colouring, 8 vertices (1)", "coloring8"),
    ("coloring10", "colouring, 10 vertices (1)", "coloring10"),
    ("nqueens8", "8 queens (2)", "nqueens8"),
    ("nqueens8-orbit", "8 queens, split by orbit (2)", ""),
    ("nqueens10", "10 queens (2)", "nqueens10"),
    ("sudoku4", "Sudoku 4x4", ""),
    ("sudoku6", "Sudoku 6x6", ""),
)
UNTRAINED_ROWS = (
    ("sudoku9", "Sudoku-Extreme 9x9", "sample_accuracy"),
    ("arc1", "ARC-AGI-1, two attempts", "pass_at_2"),
    ("arc2", "ARC-AGI-2, two attempts", "pass_at_2"),
)


def summary_table() -> str:
    """Return the table as Markdown. Shares are in per cent."""
    lines = [
        "| task | seeds | a sample is right | vote of 20 | conflicts | coverage of 20 (limit) "
        "| paper | best published |",
        "|---|---|---|---|---|---|---|---|",
        *(_solved_row(*row) for row in SOLVING_ROWS),
        *_generated_rows(),
        *(_untrained_row(*row) for row in UNTRAINED_ROWS),
    ]
    return "\n".join(lines)


def _solved_row(name: str, title: str, problem: str) -> str:
    seeds = read_seeds(name)
    metrics = [results["metrics"] for results in seeds]

    def per_cent(key: str) -> str:
        return mean_and_sd([100 * m[key] for m in metrics], 1)

    conflicts = f"{fmean(m['violations'] for m in metrics):.1f}" if name.startswith("coloring") else ""
    coverage = f"{per_cent('coverage')} ({100 * metrics[0]['coverage_limit']:.1f})"
    return (
        f"| {title} | {len(seeds)} | {per_cent('sample_accuracy')} | {per_cent('vote_accuracy')} | {conflicts} "
        f"| {coverage} | {_published(problem, 'gram')} | {_published(problem, 'best')} |"
    )


def _published(problem: str, row: str) -> str:
    """Return published figures as "accuracy; coverage" or "conflicts; coverage", or "" if nothing is published."""
    numbers: dict[str, Any] = paper.published(problem, row)
    if not numbers:
        return ""
    first = (
        f"{numbers['violations']} conflicts" if "violations" in numbers else f"{100 * numbers['sample_accuracy']:.1f}"
    )
    return f"{first}; {100 * numbers['coverage']:.1f}"


def _generated_rows() -> list[str]:
    boards, digits = (read_results(name)["metrics"] for name in ("sudoku4-uncond", "mnist"))
    published_accuracy = 100 * paper.published("sudoku_uncond")["sample_accuracy"]
    distance = paper.published("mnist")["frechet_distance"]
    return [
        f"| whole Sudoku boards 4x4, p(x) (3) | 1 | {100 * boards['validity']:.1f} | | "
        f"| {boards['grids_found']:.0f} of 288 boards | 9x9: {published_accuracy:.2f} | |",
        f"| binarized digits, p(x) (4) | 1 | distance {digits['frechet_distance']:.1f} | | | | FID {distance} | |",
    ]


def _untrained_row(problem: str, title: str, metric: str) -> str:
    ours, best = (
        f"{100 * paper.published(problem, row)[metric]:.2f}".rstrip("0").rstrip(".") for row in ("gram", "best")
    )
    return f"| {title} | not trained | | | | | {ours} | {best} |"
