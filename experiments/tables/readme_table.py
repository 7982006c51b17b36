"""Make the results table of the README: every task, with the paper's figures and the best published figures."""

from __future__ import annotations

from typing import Any

from experiments.tables.cells import mean_and_sd
from experiments.tables.headline import MAIN_JOB, read_results, read_seeds, read_sizes
from pyro_gram.diagnostics import paper

# Each row holds the name of a study of sizes, its group of inputs, the title in the table (with the number of its note
# in the README), and the name in paper.toml. The main job has results of its own.
SIZES_ROWS = (
    ("coloring", "random, 10 vertices", "colouring, 10 vertices (1)", "coloring10"),
    ("coloring", "random, 32 vertices", "colouring, 32 vertices (2)", ""),
    ("nqueens-input", "8 rows", "8 queens, the paper's split (3)", "nqueens8"),
    ("nqueens-input", "10 rows", "10 queens, the paper's split (3)", "nqueens10"),
    ("nqueens", "10 rows", "10 queens, split by orbit (3)", ""),
    ("nqueens", "14 rows, never trained", "14 queens (2)", ""),
    ("sudoku", "6 rows", "Sudoku 6x6", ""),
    ("latin", "6 rows", "Latin squares 6x6", ""),
)
UNTRAINED_ROWS = (
    ("sudoku9", "Sudoku-Extreme 9x9", "sample_accuracy"),
    ("arc1", "ARC-AGI-1, two attempts", "pass_at_2"),
    ("arc2", "ARC-AGI-2, two attempts", "pass_at_2"),
)


def summary_table() -> str:
    """Return the table as Markdown. Shares are in per cent."""
    lines = [
        "| task | seeds | a sample is right | vote of 20 | one of 20 is right | coverage of 20 (limit) "
        "| paper | best published |",
        "|---|---|---|---|---|---|---|---|",
        _main_job_row(),
        *(_sizes_row(*row) for row in SIZES_ROWS),
        *_generated_rows(),
        *(_untrained_row(*row) for row in UNTRAINED_ROWS),
    ]
    return "\n".join(lines)


def _main_job_row() -> str:
    metrics = [results["metrics"] for results in read_seeds(MAIN_JOB)]
    columns = {"right": "sample_accuracy", "vote": "vote_accuracy", "solved": "any_valid"}
    names = columns | {name: name for name in ("coverage", "coverage_limit")}
    rows = [{name: m[key] for name, key in names.items()} for m in metrics]
    return _solved_row("colouring, 8 vertices, the main job (1)", rows, "coloring8")


def _sizes_row(name: str, group: str, title: str, problem: str) -> str:
    return _solved_row(title, [run["groups"][group] for run in read_sizes(name)], problem)


def _solved_row(title: str, rows: list[dict[str, Any]], problem: str) -> str:
    """Return a row of the table. ``rows`` holds the figures of each seed."""

    def per_cent(key: str) -> str:
        return mean_and_sd([100 * row[key] for row in rows], 1)

    coverage = f"{per_cent('coverage')} ({100 * rows[0]['coverage_limit']:.1f})" if "coverage" in rows[0] else ""
    shares = " | ".join(per_cent(key) for key in ("right", "vote", "solved"))
    published = " | ".join(_published(problem, row) for row in ("gram", "best"))
    return f"| {title} | {len(rows)} | {shares} | {coverage} | {published} |"


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
        f"| whole Sudoku boards 4x4, p(x) (4) | 1 | {100 * boards['validity']:.1f} | | "
        f"| {boards['grids_found']:.0f} of 288 boards | 9x9: {published_accuracy:.2f} | |",
        f"| binarized digits, p(x) (5) | 1 | distance {digits['frechet_distance']:.1f} | | | | FID {distance} | |",
    ]


def _untrained_row(problem: str, title: str, metric: str) -> str:
    ours, best = (
        f"{100 * paper.published(problem, row)[metric]:.2f}".rstrip("0").rstrip(".") for row in ("gram", "best")
    )
    return f"| {title} | not trained | | | | | {ours} | {best} |"
