"""report.html: one self-contained file with a run's settings, results and figures."""

from __future__ import annotations

import base64
import html
import json
from pathlib import Path
from typing import Any

from pyro_gram.files import write_bytes
from pyro_gram.inference.temper import told

STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}
h1{font-size:1.6rem}h2{font-size:1.2rem;margin-top:2.2rem}img{max-width:100%;height:auto}
table{border-collapse:collapse}td,th{padding:.25rem .9rem .25rem 0;text-align:left;border-bottom:1px solid #ddd}
td.n{text-align:right;font-variant-numeric:tabular-nums}details{margin-top:2rem}pre{overflow:auto;font-size:.85rem}
.wide{overflow-x:auto}
"""
CAPTIONS = {
    "training": "Left: the two terms of the loss; beta rises once the reconstruction is under its target. Middle: both "
    "bounds should rise together. Right: accuracy and coverage of trajectories that never saw an answer; a fall here "
    "while the left keeps improving would mean that the guide leaks.",
    "solved": "Held-out inputs and the answers that the prior's trajectories end in, most frequent first. Several "
    "different valid answers in one row are what a generative reasoner is for.",
    "coverage_by_solutions": "A perfectly calibrated sampler follows the dotted line on the left and "
    "stays at 1 on the right.",
    "samples": "Draws of p(x), not chosen: each the end of one trajectory from z_0.",
    "neighbours": "Samples, each beside the training image nearest to it: a sample that equals its neighbour is "
    "remembered, not made.",
    "formation": "Answers settle over the supervision steps; rows that end differently are different solutions.",
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
    ("elbo", "Full ELBO (Eq. 13), nats per input"),
    ("elbo_surrogate", "Surrogate ELBO (Eq. 14), nats per input"),
    ("log_num_solutions", "Mean of log m, the least possible -ELBO"),
    ("excess", "Excess: -ELBO less log m, nats per input"),
    ("log_likelihood_prior_mc", "log p(y|x) by prior Monte Carlo on a few inputs, nats per input"),
    ("log_likelihood_limit", "What a perfect model has on average: minus the mean of log m on those inputs"),
)
LISTED = {key for key, _ in ROWS} | {
    "elbo_full", "elbo_inputs", "log_likelihood_samples", "log_likelihood_inputs", "num_inputs", "num_samples", "depth",
    "temper_scale", "temper_transitions",
}  # fmt: skip


def write_report(path: Path, config: dict[str, Any], results: dict[str, Any], figures: dict[str, Path]) -> None:
    """Write the report. Figures are PNG files by name, put into the page."""
    metrics = results["metrics"]
    rows = "".join(
        f"<tr><td>{html.escape(label)}</td><td class=n>{_number(metrics[key])}</td></tr>"
        for key, label in ROWS
        if metrics.get(key) is not None
    )
    rows += "".join(
        f"<tr><td>{html.escape(key.replace('_', ' ').capitalize())}</td><td class=n>{_number(metrics[key])}</td></tr>"
        for key in metrics
        if key not in LISTED and not key.endswith("_se") and metrics[key] is not None
    )
    pictures = "".join(
        f"<h2>{html.escape(name.replace('_', ' ').capitalize())}</h2><p>{html.escape(CAPTIONS.get(name, ''))}</p>"
        f"<img alt='{html.escape(name)}' src='data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}'>"
        for name, file in figures.items()
    )
    seconds, temper = results["seconds"], told(metrics["temper_scale"], metrics["temper_transitions"])
    page = f"""<!doctype html><html lang=en><head><meta charset=utf-8>
<meta name=viewport content="width=device-width,initial-scale=1"><title>{html.escape(results["task"])} report</title>
<style>{STYLE}</style></head><body>
<h1>pyro_gram: {html.escape(results["task"])}, preset {html.escape(results["preset"])}, seed {results["seed"]}</h1>
<p>{results["parameters"]:,} parameters, {results["batches"]:,}{_of(results, config)} batches; trained in
{seconds["train"]:.0f} s, evaluated in {seconds["evaluate"]:.0f} s. Every figure below is from fresh trajectories of the
prior{temper and f" ({temper})"}{_measured(results)}, {metrics["depth"]} supervision
steps deep; only the bounds use the guide, and they and log p(y|x) are of the prior as it is.</p>
<div class=wide><table>{rows}</table></div>{pictures}
<details><summary>Settings</summary><pre>{html.escape(json.dumps(config, indent=2))}</pre></details>
<details><summary>results.json</summary><pre>{html.escape(json.dumps(results, indent=2))}</pre></details>
</body></html>
"""
    write_bytes(path, page.encode())


def _of(results: dict[str, Any], config: dict[str, Any]) -> str:
    planned = config["train"]["batches"]
    return f" of {planned:,} (the clock ended it)" if results["batches"] < planned else ""


def _measured(results: dict[str, Any]) -> str:
    m = results["metrics"]
    if m["vote_accuracy"] is None:  # p(x)
        return f" without input, {m['num_samples']:,} samples"
    return f" on {m['num_inputs']:,} inputs that training never saw, {m['num_samples']} samples each"


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.3f}"
