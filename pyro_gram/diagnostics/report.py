"""Write report.html, which says whether a posterior can be trusted. This single file needs no network."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from PIL import Image

from pyro_gram.diagnostics import paper
from pyro_gram.diagnostics.plots.captions import CAPTIONS
from pyro_gram.diagnostics.verdicts import BAD, ESTIMATES, GOOD, GUIDE, LOOK, SAMPLES, UNKNOWN, Verdict, worst_level
from pyro_gram.sampling.tempering import TemperConfig
from pyro_gram.system.files import format_json, write_bytes

MIME = {".png": "image/png", ".gif": "image/gif"}
CLASSES = {GOOD: "good", LOOK: "look", BAD: "bad", UNKNOWN: "unknown"}
QUESTIONS = {
    SAMPLES: ("Can its answers be trusted?", "Trajectories of the prior, on inputs that training never saw."),
    ESTIMATES: ("Can its likelihoods be trusted?", "Estimates of log p(y|x), from the guide and from the prior."),
    GUIDE: ("Can its guide be trusted?", "The guide and the bounds. Answers do not depend on them."),
}
ROWS = (
    ("accuracy", "Accuracy, first samples"),
    ("violations", "Violations in the first samples, summed"),
    ("vote_accuracy", "Accuracy, most frequent sample"),
    ("sample_accuracy", "Accuracy, all samples"),
    ("any_valid", "Inputs with at least one right sample"),
    ("coverage", "Coverage of all solutions"),
    ("coverage_limit", "Coverage limit of i.i.d. uniform draws"),
    ("coverage_ratio", "Coverage / limit"),
    ("total_variation", "Total variation of right samples to uniform over the solutions"),
    ("total_variation_perfect", "Expected total variation of N i.i.d. uniform draws (larger for fewer right samples)"),
    ("posterior_accuracy", "Right answers under the guide, which is given y: no measure of reasoning"),
    ("elbo", "Full ELBO (Eq. 13), nats per input"),
    ("elbo_surrogate", "Surrogate ELBO (Eq. 14), nats per input"),
    ("kl", "KL of the full trajectory, nats per input"),
    ("reconstruction", "Reconstruction: -log p(y|h) at the end of the trajectory, nats per input"),
    ("log_num_solutions", "Mean of log m, the least possible -ELBO (m counts all names of exchangeable values)"),
    ("excess", "Excess: -ELBO minus log m, nats per input"),
    ("log_likelihood_prior_mc", "log p(y|x) by prior Monte Carlo on a few inputs, nats per input"),
    ("log_likelihood_limit", "Mean log p(y|x) of a perfect model on these inputs: minus the mean of log m"),
)
LISTED = {key for key, _ in ROWS} | {
    "elbo_full", "elbo_inputs", "log_likelihood_samples", "log_likelihood_inputs", "num_inputs", "num_samples", "depth",
    "temper_scale", "temper_transitions", "temper_floor", "mean_steps",
}  # fmt: skip


@dataclass(frozen=True)
class Section:
    """A figure with its caption and verdicts.

    Attributes:
        title: the title of the figure.
        caption: how to read the figure.
        figure: a PNG or GIF file; None if there is no figure.
        verdicts: the verdicts that the figure shows.
        reason: why there is no figure.
    """

    title: str
    caption: str
    figure: Path | None = None
    verdicts: tuple[Verdict, ...] = ()
    reason: str = ""

    @classmethod
    def from_figure(cls, name: str, figure: Path, verdicts: dict[str, Verdict]) -> Section:
        """Make the section of a figure of ``CAPTIONS``, with the verdicts that the figure shows."""
        caption = CAPTIONS[name]
        return cls(caption.title, caption.text, figure, tuple(verdicts[v] for v in caption.verdicts if v in verdicts))

    @classmethod
    def without_figure(cls, name: str, reason: str) -> Section:
        """Make the section of a figure that cannot be drawn."""
        return cls(CAPTIONS[name].title, CAPTIONS[name].text, reason=reason)


@dataclass(frozen=True)
class Row:
    """One row of the table of results. ``paper`` is the value in the paper; it is empty if the paper has none."""

    label: str
    value: str
    paper: str = ""


@dataclass(frozen=True)
class Report:
    """The contents of the page.

    Attributes:
        title: the title of the page.
        summary: what was measured, and on which inputs.
        verdicts: the answers to the questions at the top.
        rows: the results.
        sections: the figures, in order.
        details: name -> JSON value. The end of the page lists the names; the reader can open each value.
    """

    title: str
    summary: str
    verdicts: list[Verdict]
    rows: list[Row]
    sections: list[Section]
    details: dict[str, Any] = field(default_factory=dict)


def write_report(path: Path, report: Report) -> None:
    """Render the page and write it atomically."""
    groups = []
    for about, (question, subject) in QUESTIONS.items():
        verdicts = [v for v in report.verdicts if v.about == about]
        if verdicts:
            groups.append((question, subject, worst_level(verdicts), verdicts))
    page = _template().render(
        report=report,
        groups=groups,
        classes=CLASSES,
        with_paper=any(row.paper for row in report.rows),
        details={name: format_json(value) for name, value in report.details.items()},
    )
    write_bytes(path, page.encode())


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data_uri"] = _data_uri
    environment.filters["css_class"] = _css_class
    environment.filters["capitalize_first"] = lambda text: text[:1].upper() + text[1:]
    return environment.get_template("report.html.jinja")


def _data_uri(path: Path) -> str:
    """Return a picture as a data URI."""
    return f"data:{MIME[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _css_class(path: Path) -> str:
    """Return the CSS class of a picture. Wide pictures scroll sideways on a telephone instead of shrinking."""
    with Image.open(path) as image:
        ratio = image.width / image.height
    return "wider" if ratio > 2.5 else "wide" if ratio > 1.4 else ""


def result_rows(metrics: dict[str, Any], problem: str, model: str, all_inputs: bool) -> list[Row]:
    """Return one row for each metric of results.json, with the paper's number for the same model.

    Args:
        problem: the task's name in the tables of the paper (``Task.paper_name``).
        model: the model's registry name.
        all_inputs: do the metrics cover all test inputs? If not, the paper's sum of violations is left out.
    """
    published = paper.published(problem, model)
    if not all_inputs:
        published.pop("violations", None)
    labels = list(ROWS) + [
        (key, key.replace("_", " ").capitalize()) for key in metrics if key not in LISTED and not key.endswith("_se")
    ]
    return [
        Row(label, format_number(metrics[key]), f"{published[key]:g}" if key in published else "")
        for key, label in labels
        if isinstance(metrics.get(key), int | float)
    ]


def summarize_run(config: dict[str, Any], results: dict[str, Any]) -> str:
    """Describe what was trained and measured, in a few sentences."""
    m, seconds = results["metrics"], results["seconds"]
    batches, minutes = config["train"]["batches"], config["train"]["minutes"]
    total = f" of {batches:,} (fitted to {minutes:g} minutes)" if results["batches"] < batches else ""
    temper = TemperConfig(m["temper_scale"], m["temper_transitions"], m.get("temper_floor", 0.0)).describe()
    return (
        f"{results['parameters']:,} parameters, {results['batches']:,}{total} batches. Training took "
        f"{seconds['train']:.0f} s, evaluation {seconds['evaluate']:.0f} s. Accuracy and coverage come from "
        "trajectories of the prior"
        f"{f' ({temper})' if temper else ''}{_describe_samples(m)}, {m['depth']} supervision steps deep. They are "
        "never given y. The guide and the bounds are given y; they and log p(y|x) use the prior without temper."
    )


def _describe_samples(m: dict[str, Any]) -> str:
    if m["vote_accuracy"] is None:  # a model p(x) has no votes
        return f" without input, {m['num_samples']:,} samples"
    return f" on {m['num_inputs']:,} inputs that training never saw, {m['num_samples']} samples each"


def format_number(value: float) -> str:
    """Format a number with three decimals, or a whole number with none."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"
