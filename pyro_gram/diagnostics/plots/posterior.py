"""Figures that compare guide and prior: estimates of log p(y|x), terms of the bound, and accuracy during training."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pyro_gram.diagnostics.evidence import GUIDE, MIN_ESS, NEITHER, PRIOR, Evidence
from pyro_gram.diagnostics.inference_data import group_names, khat_threshold
from pyro_gram.diagnostics.plots.run import BLUE, GREEN, GREY, ORANGE, style_axes
from pyro_gram.diagnostics.verdicts import LEAK

RED = "#D55E00"
SHADES = ("#0072B2", "#56B4E9", "#009E73", "#CC79A7")  # a colour for each transition of a supervision step


def evidence_figure(evidence: Evidence) -> Figure:
    """Draw log p(y | x): the bounds IWAE_k, which rise with k; two estimates of each pair; k-hat of the weights."""
    if evidence.guide is None:
        figure = Figure(figsize=(5.6, 4.2), layout="constrained")
        _draw_prior_ess(figure.subplots(), evidence)
        return figure
    figure = Figure(figsize=(14, 4.4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    _draw_bounds(left, evidence)
    _draw_estimates(middle, evidence)
    _draw_khats(right, evidence)
    return figure


def _draw_bounds(axes: Any, evidence: Evidence) -> None:
    assert evidence.iwae is not None
    assert evidence.guide is not None
    mean = evidence.iwae.mean(1)
    error = evidence.iwae.std(1, correction=0) / evidence.iwae.shape[1] ** 0.5
    axes.fill_between(evidence.counts, mean - error, mean + error, color=BLUE, alpha=0.15, linewidth=0)
    axes.plot(evidence.counts, mean, color=BLUE, marker="o", label="IWAE of k draws (k = 1: the ELBO of these pairs)")
    for estimate, color, style, name in (
        (evidence.guide, BLUE, "--", "smoothed weights (PSIS)"),
        (evidence.prior, ORANGE, ":", "prior Monte Carlo"),
    ):
        label = f"{name}, {estimate.num_samples:,} draws"
        axes.axhline(estimate.log_p.mean().item(), color=color, linestyle=style, label=label)
    axes.set_xscale("log", base=4)
    axes.xaxis.set_major_formatter(lambda k, _: f"{k:g}")
    style_axes(axes, "k", "nats per pair, mean over pairs")
    axes.legend(frameon=False, loc="best")
    axes.set_title("Bounds rise towards log p(y|x)\n(band: standard error over pairs)")


def _draw_estimates(axes: Any, evidence: Evidence) -> None:
    """Draw both estimates of each pair side by side, in order of log p. The marker of the chosen estimate is filled."""
    assert evidence.guide is not None
    ranking, choices = evidence.ranking.tolist(), evidence.choices
    for estimate, name, color, shift in ((evidence.guide, GUIDE, BLUE, -0.15), (evidence.prior, PRIOR, ORANGE, 0.15)):
        for is_chosen in (True, False):
            places = [i for i, pair in enumerate(ranking) if (choices[pair] == name) == is_chosen]
            pairs = [ranking[i] for i in places]
            axes.errorbar(
                np.array(places) + 1 + shift,
                estimate.log_p.numpy()[pairs],
                yerr=estimate.se.numpy()[pairs],
                fmt="o",
                color=color,
                markerfacecolor=color if is_chosen else "white",
                elinewidth=1,
                markersize=5,
                label=f"{name}: believed for {len(pairs)}" if is_chosen else None,
            )
    untrusted_places = [i + 1 for i, pair in enumerate(ranking) if choices[pair] == NEITHER]
    if untrusted_places:
        log_p = evidence.log_p.numpy()[ranking][np.array(untrusted_places) - 1]
        axes.plot(untrusted_places, log_p, "x", color=RED, label="neither is believed")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    style_axes(axes, "pairs, in order of log p(y|x)", "log p(y|x), nats")
    axes.legend(frameon=False, loc="best")
    axes.set_title("Two estimates of each pair (bars: one\nstandard error; filled: believed)")


def _draw_khats(axes: Any, evidence: Evidence) -> None:
    assert evidence.guide is not None
    guide, prior = evidence.guide, evidence.prior
    khat = guide.khat.numpy()[evidence.ranking.numpy()]
    finite_khat = np.where(np.isfinite(khat), khat, max(1.2, khat[np.isfinite(khat)].max(initial=1.0)))
    axes.plot(range(1, len(finite_khat) + 1), finite_khat, color=BLUE, marker="o", linestyle="none")
    limit = khat_threshold(guide.num_samples)
    axes.axhline(limit, color=RED, linestyle="--", label=f"{limit:.2f}: above it do not trust the weights")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    style_axes(axes, "pairs, in the same order", "k-hat of the guide's weights")
    axes.legend(frameon=False, loc="upper left")
    axes.set_title(
        f"Tail of the weights; median effective\nsample size {guide.ess.median().item():.0f} of {guide.num_samples}, "
        f"prior {prior.ess.median().item():.0f} of {prior.num_samples}"
    )


def _draw_prior_ess(axes: Any, evidence: Evidence) -> None:
    prior = evidence.prior
    axes.scatter(prior.log_p, prior.ess, color=ORANGE)
    axes.axhline(MIN_ESS, color=RED, linestyle="--", label=f"{MIN_ESS:g}: below it do not trust the estimate")
    axes.set_yscale("log")
    style_axes(axes, "log p(y|x) by prior Monte Carlo, nats", "effective sample size (log scale)")
    axes.legend(frameon=False)
    axes.set_title(f"{prior.num_samples:,} draws of the prior for each pair")


def terms_figure(data: Any, transitions: int) -> Figure:
    """Draw the KL and the scale of the guidance by transition, under guide and prior.

    Args:
        data: the InferenceData of ``inference_data.collect``.
        transitions: T, the number of transitions in a supervision step.
    """
    has_guide = "sample_stats" in group_names(data)
    figure = Figure(figsize=(11.5, 4.2) if has_guide else (6, 4.2), layout="constrained")
    panels = figure.subplots(1, 2 if has_guide else 1, squeeze=False)[0]
    scale = panels[-1]
    if has_guide:
        kl = data["sample_stats"]["kl"].mean(("chain", "draw", "instance")).values
        _plot_by_step(panels[0], kl, transitions, SHADES, "o", "KL")
        panels[0].set_ylim(bottom=0)
        style_axes(panels[0], "supervision step", "nats per input")
        panels[0].set_title("KL(q || p) of each transition")
        guide = data["posterior"]["guidance"].mean(("chain", "draw", "instance")).values
        _plot_by_step(scale, guide, transitions, (BLUE,) * transitions, "o", "guide")
    if "guidance" in data["prior"]:
        prior = data["prior"]["guidance"].mean(("chain", "draw", "instance")).values
        _plot_by_step(scale, prior, transitions, (ORANGE,) * transitions, "s", "prior")
    scale.margins(y=0.1)
    scale.set_ylim(bottom=0)
    style_axes(scale, "supervision step", "root mean square of eps")
    scale.set_title("Scale of the guidance")
    for axes in panels:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False, fontsize=9)
    return figure


def _plot_by_step(
    axes: Any, values: np.ndarray, transitions: int, colors: tuple[str, ...], marker: str, name: str
) -> None:
    """Plot values ``[N_sup * T]`` over the supervision steps, with one curve for each transition of a step."""
    by_step = values.reshape(-1, transitions)
    for t in range(transitions):
        axes.plot(
            range(1, len(by_step) + 1),
            by_step[:, t],
            color=colors[t % len(colors)],
            marker=marker,
            markersize=4,
            linestyle=("-", "--", ":", "-.")[t % 4],
            label=name if transitions == 1 else f"{name}, transition {t + 1} of {transitions}",
        )


def leak_figure(rows: list[dict[str, Any]]) -> Figure:
    """Draw the shares of right answers of the guide, which is given y, and of the prior, during training.

    Args:
        rows: the lines of ``metrics.jsonl``.
    """
    rows = [r for r in rows if {"posterior_accuracy", "prior_accuracy"} <= r.keys()]
    batch = [r["batch"] for r in rows]
    posterior, prior = ([r[f"{name}_accuracy"] for r in rows] for name in ("posterior", "prior"))
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(batch, posterior, color=GREY, marker=".", label="guide, given y")
    left.plot(batch, prior, color=BLUE, marker=".", label="prior, without y")
    left.set_ylim(0, 1.02)
    style_axes(left, "batch", "right answers")
    left.legend(frameon=False, loc="best")
    gap = np.subtract(posterior, prior)
    right.axhspan(LEAK.bad, 1.02, color=RED, alpha=0.12, linewidth=0, label="do not trust")
    right.axhspan(-1, LEAK.good, color=GREEN, alpha=0.12, linewidth=0, label="good")
    right.plot(batch, gap, color=BLUE, marker=".")
    right.set_ylim(min(-0.1, gap.min(initial=0) - 0.05), 1.02)
    style_axes(right, "batch", "guide minus prior")
    right.legend(frameon=False, loc="best")
    return figure
