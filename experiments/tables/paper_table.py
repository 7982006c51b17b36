"""Write one of the paper's tables from the JSON of ``table.py``, as Markdown and as a figure, with the paper's numbers.

The paper does not say whether its accuracies are those of single samples or of an answer that is selected among several
samples. Here they are compared with the accuracy of a single sample (``pyro_gram/diagnostics/paper.toml``).
"""

from __future__ import annotations

from statistics import mean, stdev
from typing import Any

from matplotlib.figure import Figure

from experiments.tables.cells import mean_and_sd
from pyro_gram.diagnostics.metrics import wilson_interval

LABELS = {
    "sample_accuracy": "accuracy of a sample, %",
    "vote_accuracy": "accuracy of the vote, %",
    "violations": "conflicts",
    "coverage": "coverage, %",
    "inception_score": "Inception score",
    "frechet_distance": "Frechet distance",
}
SHARES = ("sample_accuracy", "vote_accuracy", "coverage")  # metrics shown in per cent
ACCURACIES = ("sample_accuracy", "vote_accuracy")  # with one seed these metrics have an interval over inputs
FEWER_IS_BETTER = ("violations", "frechet_distance")


def values_of(row: dict[str, Any], metric: str) -> list[float]:
    """Return a metric of each seed of a row; shares are in per cent. The list is empty if the row lacks the metric."""
    values = [seed[metric] for seed in row["seeds"].values() if seed.get(metric) is not None]
    return [100 * v for v in values] if metric in SHARES else [float(v) for v in values]


def _number(row: dict[str, Any], metric: str) -> str:
    """Return mean ± standard deviation over seeds. With one seed an accuracy has its Wilson 95 % interval instead."""
    values = values_of(row, metric)
    if not values:
        return ""
    text = mean_and_sd(values, digits=2 if metric == "inception_score" else 1)
    inputs = next(iter(row["seeds"].values()))["num_inputs"]
    if len(values) == 1 and metric in ACCURACIES and inputs > 1:
        low, high = wilson_interval(values[0] / 100, inputs)
        text += f" ({100 * low:.1f} to {100 * high:.1f})"
    return text


def markdown(results: dict[str, Any]) -> str:
    """Return a Markdown table for each column (task): our means ± standard deviations, and the paper's numbers."""
    parts = []
    for column in results["columns"].values():
        metrics, paper = column["show"], column["paper"]
        paper_metrics = [m for m in metrics if any(m in numbers for numbers in paper.values())]
        header = ["model", "parameters (guide)", "layers a sample", "seeds", "updates", *(LABELS[m] for m in metrics)]
        header += [f"paper: {LABELS[m].removesuffix(', %')}" for m in paper_metrics]
        first = next(iter(next(iter(column["rows"].values()))["seeds"].values()))
        lines = [f"**{column['title']}**, {_caption(results, first)}", "", f"| {' | '.join(header)} |"]
        lines.append("|---" * len(header) + "|")
        for name, row in column["rows"].items():
            seeds = list(row["seeds"].values())
            guide = seeds[0]["guide_parameters"]
            cells = [row["title"], f"{seeds[0]['parameters']:,}{f' ({guide:,})' if guide else ''}"]
            cells += [f"{row['layers_a_sample']:,}", str(len(seeds)), f"{mean(seed['updates'] for seed in seeds):,.0f}"]
            cells += [_number(row, metric) for metric in metrics]
            numbers = paper.get(name, {})
            cells += [str(numbers[metric]) if metric in numbers else "" for metric in paper_metrics]
            lines.append(f"| {' | '.join(cells)} |")
        parts.append("\n".join(lines))
    if results["missing"]:
        parts.append(f"Missing cells: {', '.join(results['missing'])}.")
    return "\n\n".join(parts)


def _caption(results: dict[str, Any], first: dict[str, Any]) -> str:
    minutes, threads = results["minutes"], first["threads"]
    unit = "CPU minutes" if first.get("clock") == "CPU" else "minutes"
    length = f"{minutes:g} {unit} of training per cell" if minutes else "trained for the preset's length"
    limit = (
        f", coverage of i.i.d. uniform draws {100 * first['coverage_limit']:.1f} %" if "coverage_limit" in first else ""
    )
    inputs = "no input" if first["num_inputs"] == 1 else f"{first['num_inputs']} inputs that training never saw"
    return (
        f"{length} on {threads} thread{'s' if threads > 1 else ''}, {inputs}, {first['num_samples']} samples{limit}; "
        "mean ± standard deviation over seeds; for one seed, accuracies with their Wilson 95 % interval over inputs"
    )


def figure(results: dict[str, Any]) -> Figure:
    """Draw a row of panels for each task: our numbers as dots with standard deviations, the paper's as rings."""
    columns = list(results["columns"].values())
    num_columns = max(len(column["show"]) for column in columns)
    num_rows = max(len(column["rows"]) for column in columns)
    plot = Figure(figsize=(2.2 + 3.2 * num_columns, 1.0 + len(columns) * (0.9 + 0.36 * num_rows)), layout="constrained")
    axes = plot.subplots(len(columns), num_columns, squeeze=False)
    for row_of_axes, column in zip(axes, columns, strict=True):
        for i, axis in enumerate(row_of_axes):
            if i >= len(column["show"]):
                axis.set_visible(False)
                continue
            _panel(axis, column, column["show"][i], has_labels=i == 0)
        row_of_axes[0].set_title(column["title"], loc="left", fontsize=11, fontweight="bold")
    missing_text = f"; {len(results['missing'])} cells are missing" if results["missing"] else ""
    rings = "; rings: the paper's" if any(column["paper"] for column in columns) else ""
    subtitle = f"dots: ours, preset {results['preset']}, bars: standard deviation over seeds{rings}{missing_text}"
    plot.suptitle(f"{results['title']}\n({subtitle})", fontsize=11)
    return plot


def _panel(axis: Any, column: dict[str, Any], metric: str, has_labels: bool) -> None:
    rows = column["rows"]
    for height, (name, row) in enumerate(rows.items()):
        values = values_of(row, metric)
        numbers = column["paper"].get(name, {}).get(metric)
        if numbers is not None:
            axis.plot(numbers, height, "o", mfc="none", mec="0.45", ms=9, mew=1.3)
        if values:
            deviation = stdev(values) if len(values) > 1 else None
            color = "C0" if name != "gram" else "C3"
            axis.errorbar(mean(values), height, xerr=deviation, fmt="o", color=color, ms=6, capsize=3)
            coordinates = ("axes fraction", "data")
            axis.annotate(_number(row, metric), (1.02, height), xycoords=coordinates, va="center", fontsize=8)
    axis.set_yticks(range(len(rows)), [row["title"] for row in rows.values()] if has_labels else [""] * len(rows))
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_xlabel(LABELS[metric] + (" (fewer is better)" if metric in FEWER_IS_BETTER else ""), fontsize=9)
    if metric in SHARES:
        axis.set_xlim(-4, 104)
    else:
        axis.set_xlim(left=0)
    axis.grid(axis="y", alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
