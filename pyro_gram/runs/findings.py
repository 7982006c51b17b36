"""What an examination of a solver has brought to light: verdicts, numbers and figures, and the page that shows them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from pyro_gram.diagnostics.report import Report, Section, result_rows, write_report
from pyro_gram.diagnostics.verdicts import Verdict
from pyro_gram.solver import Solver
from pyro_gram.system.files import write_atomically


class Findings:
    """The verdicts, numbers and figures of an examination, in the order in which they came.

    Args:
        folder: where figures and the page are written.

    Attributes:
        verdicts: by name.
        numbers: of each part of the examination, JSON values.
        figures: the file of each figure, by name; or why there is none.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.verdicts: dict[str, Verdict] = {}
        self.numbers: dict[str, Any] = {}
        self.figures: dict[str, Path | str] = {}

    def add(self, *verdicts: Verdict, **numbers: Any) -> None:
        """Add verdicts, and the numbers of a part."""
        self.verdicts |= {verdict.name: verdict for verdict in verdicts}
        self.numbers |= numbers

    def draw(self, name: str, figure: Figure | Path) -> None:
        """Add a figure, which is written as ``figures/NAME.png``; or the file of one that is written already."""
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
            solver: that was examined.
            title, summary: the heading of the page, and what was measured on what.
            details: JSON values by name, folded in at the end.
            all_inputs: were all test inputs measured? The paper's sums are of all.
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
