"""Figures and report of a run: what its own measurement says. ``diagnosis.py`` asks more, of any checkpoint."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from torch import Tensor

from pyro_gram.diagnostics import verdicts
from pyro_gram.diagnostics.plots import run as figures
from pyro_gram.diagnostics.plots.run import HANDFUL
from pyro_gram.diagnostics.metrics import solution_ids
from pyro_gram.diagnostics.plots.posterior import leak_figure
from pyro_gram.diagnostics.report import Report, Section, lead_of, result_rows, write_report
from pyro_gram.system.files import write_atomically
from pyro_gram.tasks.base import PuzzleSet

if TYPE_CHECKING:
    from pyro_gram.runs.run import Run


def draw_figures(run: Run, puzzles: PuzzleSet, tokens: Tensor, history: Tensor) -> dict[str, Path]:
    """Every figure of the run as a PNG file, by name.

    Args:
        puzzles: what was measured.
        tokens: its samples, int64 ``[N, B, L_out]``.
        history: the answers of some trajectories of its first inputs after each step, int64 ``[S, N, b, L_out]``.
    """
    task = run.solver.task
    drawn: dict[str, Figure] = {"training": figures.training(run.rows())}
    if any("posterior_accuracy" in row for row in run.rows()):
        drawn["leak"] = leak_figure(run.rows())
    if puzzles.inputs is None:
        drawn["samples"] = figures.samples(task, tokens[:, 0])
        drawn["formation"] = figures.formation(task, None, history[:, :4, 0])
        if task.classifier == "digits" and task.spec.image is not None:
            from pyro_gram.diagnostics import digits

            drawn["neighbours"] = digits.neighbours(tokens[:, 0], task.split("train").solutions, task.spec.image[0])
    else:
        # An input with several solutions shows best how trajectories part.
        followed = puzzles.first_versions.subset(history.shape[2])
        several = int((followed.num_solutions - HANDFUL).abs().argmin())
        drawn["solved"] = figures.solved(task, puzzles, tokens)
        if puzzles.has_all_solutions and int(puzzles.num_solutions.max()) > 1:
            drawn["coverage_by_solutions"] = figures.coverage_by_solutions(
                solution_ids(task, puzzles, tokens), puzzles.num_solutions
            )
        assert followed.inputs is not None
        drawn["formation"] = figures.formation(task, followed.inputs[several], history[:, :3, several])
    paths = {name: run.out / "figures" / f"{name}.png" for name in drawn}
    for name, figure in drawn.items():
        write_atomically(paths[name], partial(figure.savefig, dpi=110))
    return paths


def write_run_report(run: Run, results: dict[str, Any], drawn: dict[str, Path]) -> list[verdicts.Verdict]:
    """report.html of a run; returns its verdicts."""
    config, task = run.solver.config, run.solver.task
    judged = verdicts.of_metrics(results["metrics"], results["looks"], results["uniformity"])
    by_name = {v.name: v for v in judged}
    sections = [Section.of(name, path, by_name) for name, path in drawn.items()]
    title = f"pyro_gram: {results['task']}, preset {results['preset']}, seed {results['seed']}"
    report = Report(
        title=title,
        lead=lead_of(config.to_dict(), results),
        verdicts=judged,
        rows=result_rows(results["metrics"], task.paper_name, config.names["model"], whole=not config.evaluate.inputs),
        sections=sections,
        details={"Settings": config.to_dict(), "results.json": results},
    )
    write_report(run.out / "report.html", report)
    return judged
