"""Collect the results of an examination of a solver (verdicts, numbers, figures), and write the page with them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from pyro_gram.diagnostics.inference_data import collect, save
from pyro_gram.diagnostics.plots import run as plots
from pyro_gram.diagnostics.plots.posterior import leak_figure
from pyro_gram.diagnostics.plots.run import FEW_SOLUTIONS
from pyro_gram.diagnostics.report import Report, Section, result_rows, write_report
from pyro_gram.diagnostics.verdicts import Verdict
from pyro_gram.sampling.result import Rollout
from pyro_gram.solver import Solver
from pyro_gram.system.files import write_atomically
from pyro_gram.tasks.base import PuzzleSet


class Findings:
    """The verdicts, numbers and figures of an examination, in the order in which they were added.

    Args:
        folder: where figures and the page are written.

    Attributes:
        verdicts: the verdicts by name.
        numbers: the JSON values of each part of the examination.
        figures: for each name, the file of the figure, or the reason why there is none.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.verdicts: dict[str, Verdict] = {}
        self.numbers: dict[str, Any] = {}
        self.figures: dict[str, Path | str] = {}

    def add(self, *verdicts: Verdict, **numbers: Any) -> None:
        """Add verdicts, and the numbers of one part of the examination."""
        self.verdicts |= {verdict.name: verdict for verdict in verdicts}
        self.numbers |= numbers

    def draw(self, name: str, figure: Figure | Path) -> None:
        """Add a figure and write it as ``figures/NAME.png``; or add the file of a figure that is already written."""
        path = figure if isinstance(figure, Path) else self.folder / "figures" / f"{name}.png"
        if isinstance(figure, Figure):
            write_atomically(path, partial(figure.savefig, dpi=110))
        self.figures[name] = path

    def skip(self, name: str, reason: str) -> None:
        """Add the reason why a figure is missing."""
        self.figures[name] = reason

    def write_page(self, solver: Solver, title: str, summary: str, details: dict[str, Any], all_inputs: bool) -> None:
        """Write ``report.html``.

        Args:
            solver: the solver that was examined.
            title, summary: the heading of the page, and what was measured on which inputs.
            details: name -> JSON value. The end of the page lists the names; the reader can open each value.
            all_inputs: were all test inputs measured? If not, the page leaves out the paper's sum of violations.
        """
        sections = [
            Section.from_figure(name, figure, self.verdicts)
            if isinstance(figure, Path)
            else Section.without_figure(name, figure)
            for name, figure in self.figures.items()
        ]
        model = solver.config.names["model"]
        rows = result_rows(self.numbers["metrics"], solver.task.paper_name, model, all_inputs=all_inputs)
        report = Report(title, summary, list(self.verdicts.values()), rows, sections, details)
        write_report(self.folder / "report.html", report)


def draw_training(rows: list[dict[str, Any]], findings: Findings) -> None:
    """Draw the course of the training, from the lines of ``metrics.jsonl``."""
    if not rows:
        findings.skip("training", "there is no metrics.jsonl beside this checkpoint; it is in the directory of the run")
        return
    findings.draw("training", plots.training_figure(rows))
    if any("posterior_accuracy" in row for row in rows):
        findings.draw("leak", leak_figure(rows))


def draw_samples(solver: Solver, puzzles: PuzzleSet, samples: Rollout, findings: Findings) -> None:
    """Draw the answers to a few inputs. Without input, draw samples of p(x) and the training images nearest to them."""
    task = solver.task
    if puzzles.inputs is not None:
        findings.draw("solved", plots.solved_figure(task, puzzles, samples.tokens))
        return
    findings.draw("samples", plots.samples_figure(task, samples.tokens[:, 0]))
    if task.classifier == "digits" and task.spec.image is not None:
        train = task.split("train").solutions
        findings.draw("neighbours", plots.neighbours_figure(samples.tokens[:, 0], train, task.spec.image[0]))


def draw_formation(solver: Solver, puzzles: PuzzleSet, history: Tensor, findings: Findings) -> None:
    """Draw how the answers to one input develop. The input has about ``FEW_SOLUTIONS`` solutions.

    Args:
        puzzles: the inputs that were sampled.
        history: answers to the first b of these inputs after each supervision step, int64 ``[depth, N, b, L_out]``.
    """
    if puzzles.inputs is None:
        findings.draw("formation", plots.formation_figure(solver.task, None, history[:, :4, 0]))
        return
    index = index_with_few_solutions(puzzles.subset(history.shape[2]))
    findings.draw("formation", plots.formation_figure(solver.task, puzzles.inputs[index], history[:, :3, index]))


def index_with_few_solutions(puzzles: PuzzleSet) -> int:
    """Return the index of the input whose number of solutions is nearest to ``FEW_SOLUTIONS``."""
    return int((puzzles.num_solutions - FEW_SOLUTIONS).abs().argmin())


def save_trajectories(
    solver: Solver,
    puzzles: PuzzleSet,
    findings: Findings,
    *,
    inputs: int,
    chains: int,
    draws: int,
    depth: int,
    seed: int,
) -> Any:
    """Write trajectories of the guide and the prior to ``inference.nc``, and return them as ArviZ data."""
    data = collect(
        solver.task,
        solver.model,
        solver.guide,
        puzzles,
        depth=depth,
        inputs=inputs,
        chains=chains,
        draws=draws,
        seed=seed,
    )
    save(data, findings.folder / "inference.nc")
    return data
