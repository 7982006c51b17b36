"""report.html: can this posterior be trusted? One self-contained file, which needs no network and fits a telephone."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from PIL import Image

from pyro_gram.diagnostics import paper
from pyro_gram.diagnostics.plots.captions import READINGS, SHOWS
from pyro_gram.diagnostics.verdicts import BAD, ESTIMATES, GOOD, GUIDE, LOOK, SAMPLES, UNKNOWN, Verdict, worst
from pyro_gram.sampling.tempering import TemperConfig
from pyro_gram.system.files import format_json, write_bytes

MIME = {".png": "image/png", ".gif": "image/gif"}
CLASSES = {GOOD: "good", LOOK: "look", BAD: "bad", UNKNOWN: "unknown"}
QUESTIONS = {
    SAMPLES: ("Can its answers be trusted?", "Trajectories of the prior, on inputs that training never saw."),
    ESTIMATES: ("Can its likelihoods be trusted?", "Estimates of log p(y|x), from the guide and from the prior."),
    GUIDE: ("Can its guide be trusted?", "The inference network, and the bounds that lean on it. No answer does."),
}
ROWS = (
    ("accuracy", "Right first sample"),
    ("violations", "Violations in the first samples, summed"),
    ("vote_accuracy", "Right most frequent sample"),
    ("sample_accuracy", "Right samples among all"),
    ("any_valid", "Inputs with any right sample"),
    ("coverage", "Coverage of all solutions"),
    ("coverage_limit", "Coverage limit of i.i.d. uniform draws"),
    ("coverage_ratio", "Coverage / limit"),
    ("total_variation", "Total variation of right samples to uniform over the solutions"),
    (
        "total_variation_perfect",
        "The same of N i.i.d. uniform draws (of fewer, where samples are wrong, it is greater)",
    ),
    ("posterior_accuracy", "Right answers under the guide, which has y in sight: no measure of reasoning"),
    ("elbo", "Full ELBO (Eq. 13), nats per input"),
    ("elbo_surrogate", "Surrogate ELBO (Eq. 14), nats per input"),
    ("kl", "KL of the whole trajectory, nats per input"),
    ("reconstruction", "-log p(y|h) at its end, nats per input"),
    ("log_num_solutions", "Mean of log m, the least possible -ELBO"),
    ("excess", "Excess: -ELBO less log m, nats per input"),
    ("log_likelihood_prior_mc", "log p(y|x) by prior Monte Carlo on a few inputs, nats per input"),
    ("log_likelihood_limit", "What a perfect model has on average: minus the mean of log m on those inputs"),
)
LISTED = {key for key, _ in ROWS} | {
    "elbo_full", "elbo_inputs", "log_likelihood_samples", "log_likelihood_inputs", "num_inputs", "num_samples", "depth",
    "temper_scale", "temper_transitions",
}  # fmt: skip


@dataclass(frozen=True)
class Section:
    """A figure with what a reader needs.

    Attributes:
        title: of the figure.
        reading: one sentence on how to read it.
        figure: a PNG or GIF file; None where ``missing`` says why there is none.
        verdicts: what it shows.
        missing: the reason.
    """

    title: str
    reading: str
    figure: Path | None = None
    verdicts: tuple[Verdict, ...] = ()
    missing: str = ""

    @classmethod
    def of(cls, name: str, figure: Path, found: dict[str, Verdict]) -> Section:
        """The section of a figure that ``readings`` knows, with those of the verdicts ``found`` that it shows."""
        return cls(*READINGS[name], figure, tuple(found[v] for v in SHOWS[name] if v in found))

    @classmethod
    def without(cls, name: str, missing: str) -> Section:
        """The section of a figure that there is none of."""
        return cls(*READINGS[name], missing=missing)


@dataclass(frozen=True)
class Row:
    """One figure of the table of results; ``paper`` holds the paper's, where it has one."""

    label: str
    ours: str
    paper: str = ""


@dataclass(frozen=True)
class Report:
    """What the page says.

    Attributes:
        title: its heading.
        lead: what was measured, on what.
        verdicts: the answers to the questions at its top.
        rows: the results.
        sections: figures, in order.
        details: name -> JSON value, folded in at the end.
    """

    title: str
    lead: str
    verdicts: list[Verdict]
    rows: list[Row]
    sections: list[Section]
    details: dict[str, Any] = field(default_factory=dict)


def write_report(path: Path, report: Report) -> None:
    """Render the page and write it, atomically."""
    groups = []
    for about, (question, what) in QUESTIONS.items():
        found = [v for v in report.verdicts if v.about == about]
        if found:
            groups.append((question, what, worst(found), found))
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
    environment.filters["embedded"] = _embedded
    environment.filters["shape"] = _shape
    environment.filters["capitalize_first"] = lambda text: text[:1].upper() + text[1:]
    return environment.get_template("report.html.jinja")


def _embedded(path: Path) -> str:
    """A picture as a data URI."""
    return f"data:{MIME[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _shape(path: Path) -> str:
    """Wide pictures scroll sideways on a telephone, instead of shrinking until nobody can read them."""
    with Image.open(path) as image:
        ratio = image.width / image.height
    return "wider" if ratio > 2.5 else "wide" if ratio > 1.4 else ""


def result_rows(metrics: dict[str, Any], problem: str, model: str, whole: bool) -> list[Row]:
    """The metrics of results.json, beside the paper's of the same model.

    Args:
        problem: ``Task.paper_name``.
        model: the model's registry name.
        whole: they are of all test inputs. The paper's sums are.
    """
    numbers = paper.published(problem, model)
    if not whole:
        numbers = {metric: value for metric, value in numbers.items() if metric != "violations"}
    named = list(ROWS) + [
        (key, key.replace("_", " ").capitalize()) for key in metrics if key not in LISTED and not key.endswith("_se")
    ]
    return [
        Row(label, number(metrics[key]), f"{numbers[key]:g}" if key in numbers else "")
        for key, label in named
        if isinstance(metrics.get(key), int | float)
    ]


def lead_of(config: dict[str, Any], results: dict[str, Any]) -> str:
    """What was trained and measured, in a few sentences."""
    m, seconds = results["metrics"], results["seconds"]
    asked, minutes = config["train"]["batches"], config["train"]["minutes"]
    of = f" of {asked:,} (fitted to {minutes:g} minutes)" if results["batches"] < asked else ""
    temper = TemperConfig(m["temper_scale"], m["temper_transitions"]).describe()
    return (
        f"{results['parameters']:,} parameters, {results['batches']:,}{of} batches; trained in {seconds['train']:.0f}, "
        f"evaluated in {seconds['evaluate']:.0f} s. Accuracy and coverage are of fresh trajectories of the prior"
        f"{f' ({temper})' if temper else ''}{_measured(m)}, {m['depth']} supervision steps deep; only the bounds and "
        "what is said of the guide have y in sight, and they and log p(y|x) are of the prior as it is."
    )


def _measured(m: dict[str, Any]) -> str:
    if m["vote_accuracy"] is None:  # p(x)
        return f" without input, {m['num_samples']:,} samples"
    return f" on {m['num_inputs']:,} inputs that training never saw, {m['num_samples']} samples each"


def number(value: float) -> str:
    """Three decimals; whole numbers as they are."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"
