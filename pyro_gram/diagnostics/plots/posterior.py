"""Figures of the guide beside the prior: the evidence from both ends, terms by transition, and accuracy in training."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pyro_gram.diagnostics.evidence import GUIDE, HITS, NEITHER, PRIOR, Evidence
from pyro_gram.diagnostics.inference_data import good_khat, group_names
from pyro_gram.diagnostics.plots.run import BLUE, GREEN, GREY, ORANGE, clean
from pyro_gram.diagnostics.verdicts import LEAK

RED = "#D55E00"
SHADES = ("#0072B2", "#56B4E9", "#009E73", "#CC79A7")  # of the transitions of a supervision step


def evidence_figure(found: Evidence) -> Figure:
    """log p(y | x): bounds rising in k, both estimates of each pair, and how far each can be trusted."""
    if found.guide is None:
        figure = Figure(figsize=(5.6, 4.2), layout="constrained")
        _trust_of_prior(figure.subplots(), found)
        return figure
    figure = Figure(figsize=(14, 4.4), layout="constrained")
    bounds, both, trust = figure.subplots(1, 3)
    _bounds(bounds, found)
    _both(both, found)
    _khats(trust, found)
    return figure


def _bounds(axes: Any, found: Evidence) -> None:
    assert found.iwae is not None
    assert found.guide is not None
    mean = found.iwae.mean(1)
    error = found.iwae.std(1, correction=0) / found.iwae.shape[1] ** 0.5
    axes.fill_between(found.counts, mean - error, mean + error, color=BLUE, alpha=0.15, linewidth=0)
    axes.plot(found.counts, mean, color=BLUE, marker="o", label="IWAE of k draws (k = 1: the ELBO of these pairs)")
    for estimate, color, style, name in (
        (found.guide, BLUE, "--", "smoothed weights (PSIS)"),
        (found.prior, ORANGE, ":", "prior Monte Carlo"),
    ):
        label = f"{name}, {estimate.num_samples:,} draws"
        axes.axhline(estimate.log_p.mean().item(), color=color, linestyle=style, label=label)
    axes.set_xscale("log", base=4)
    axes.xaxis.set_major_formatter(lambda k, _: f"{k:g}")
    clean(axes, "k", "nats per pair, mean over pairs")
    axes.legend(frameon=False, loc="best")
    axes.set_title("Bounds rise towards log p(y|x)\n(band: standard error over pairs)")


def _both(axes: Any, found: Evidence) -> None:
    """Both estimates of each pair side by side, in order; what is believed is filled."""
    assert found.guide is not None
    order = found.order.tolist()
    for estimate, name, color, shift in ((found.guide, GUIDE, BLUE, -0.15), (found.prior, PRIOR, ORANGE, 0.15)):
        for held in (True, False):
            at = [i for i, pair in enumerate(order) if (found.believed[pair] == name) == held]
            pairs = [order[i] for i in at]
            axes.errorbar(
                np.array(at) + 1 + shift,
                estimate.log_p.numpy()[pairs],
                yerr=estimate.se.numpy()[pairs],
                fmt="o",
                color=color,
                markerfacecolor=color if held else "white",
                elinewidth=1,
                markersize=5,
                label=f"{name}: believed at {len(pairs)}" if held else None,
            )
    neither = [i + 1 for i, pair in enumerate(order) if found.believed[pair] == NEITHER]
    if neither:
        axes.plot(neither, found.log_p.numpy()[order][np.array(neither) - 1], "x", color=RED, label="neither is")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    clean(axes, "pairs, in order of log p(y|x)", "log p(y|x), nats")
    axes.legend(frameon=False, loc="best")
    axes.set_title("Each pair, two ways (bars: one\nstandard error; filled: believed)")


def _khats(axes: Any, found: Evidence) -> None:
    assert found.guide is not None
    khat = found.guide.khat.numpy()[found.order.numpy()]
    shown = np.where(np.isfinite(khat), khat, max(1.2, khat[np.isfinite(khat)].max(initial=1.0)))
    axes.plot(range(1, len(shown) + 1), shown, color=BLUE, marker="o", linestyle="none")
    limit = good_khat(found.guide.num_samples)
    axes.axhline(limit, color=RED, linestyle="--", label=f"{limit:.2f}: above it do not trust the weights")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    clean(axes, "pairs, in the same order", "k-hat of the guide's weights")
    axes.legend(frameon=False, loc="upper left")
    ess = found.guide.ess.median().item()
    axes.set_title(
        f"Tail of the weights; median effective\nsample size {ess:.0f} of {found.guide.num_samples}, "
        f"prior {found.prior.ess.median().item():.0f} of {found.prior.num_samples}"
    )


def _trust_of_prior(axes: Any, found: Evidence) -> None:
    axes.scatter(found.prior.log_p, found.prior.ess, color=ORANGE)
    axes.axhline(HITS, color=RED, linestyle="--", label=f"{HITS:g}: below it do not trust the estimate")
    axes.set_yscale("log")
    clean(axes, "log p(y|x) by prior Monte Carlo, nats", "effective draws behind it (log scale)")
    axes.legend(frameon=False)
    axes.set_title(f"{found.prior.num_samples:,} draws of the prior a pair")


def terms_figure(data: Any, transitions: int) -> Figure:
    """KL and scale of the guidance by transition, under guide and prior: what training did.

    Args:
        data: the InferenceData of ``collect``.
        transitions: T, those of a supervision step.
    """
    guided = "sample_stats" in group_names(data)
    figure = Figure(figsize=(11.5, 4.2) if guided else (6, 4.2), layout="constrained")
    panels = figure.subplots(1, 2 if guided else 1, squeeze=False)[0]
    scale = panels[-1]
    if guided:
        kl = data["sample_stats"]["kl"].mean(("chain", "draw", "instance")).values
        _by_step(panels[0], kl, transitions, SHADES, "o", "KL")
        panels[0].set_ylim(bottom=0)
        clean(panels[0], "supervision step", "nats per input")
        panels[0].set_title("KL(q || p) of each transition")
        guide = data["posterior"]["guidance"].mean(("chain", "draw", "instance")).values
        _by_step(scale, guide, transitions, (BLUE,) * transitions, "o", "guide")
    if "guidance" in data["prior"]:
        prior = data["prior"]["guidance"].mean(("chain", "draw", "instance")).values
        _by_step(scale, prior, transitions, (ORANGE,) * transitions, "s", "prior")
    scale.margins(y=0.1)
    scale.set_ylim(bottom=0)
    clean(scale, "supervision step", "root mean square of eps")
    scale.set_title("Scale of the guidance")
    for axes in panels:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False, fontsize=9)
    return figure


def _by_step(axes: Any, values: np.ndarray, transitions: int, colors: tuple[str, ...], marker: str, name: str) -> None:
    """Values by transition ``[N_sup * T]`` over the supervision steps: a curve for each transition of a step."""
    by_step = values.reshape(-1, transitions)
    for t in range(transitions):
        label = name if transitions == 1 else f"{name}, transition {t + 1} of {transitions}"
        style = ("-", "--", ":", "-.")[t % 4]
        axes.plot(
            range(1, len(by_step) + 1),
            by_step[:, t],
            color=colors[t % len(colors)],
            marker=marker,
            markersize=4,
            linestyle=style,
            label=label,
        )


def leak_figure(rows: list[dict[str, Any]]) -> Figure:
    """Right answers under the guide, which has y in sight, and of the prior, on validation inputs over training.

    Args:
        rows: the lines of ``metrics.jsonl``.
    """
    looks = [r for r in rows if {"posterior_accuracy", "prior_accuracy"} <= r.keys()]
    batch = [r["batch"] for r in looks]
    posterior, prior = ([r[f"{name}_accuracy"] for r in looks] for name in ("posterior", "prior"))
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(batch, posterior, color=GREY, marker=".", label="under the guide, y in sight")
    left.plot(batch, prior, color=BLUE, marker=".", label="prior, y unseen")
    left.set_ylim(0, 1.02)
    clean(left, "batch", "right answers")
    left.legend(frameon=False, loc="best")
    gap = np.subtract(posterior, prior)
    right.axhspan(LEAK.bad, 1.02, color=RED, alpha=0.12, linewidth=0, label="do not trust")
    right.axhspan(-1, LEAK.good, color=GREEN, alpha=0.12, linewidth=0, label="good")
    right.plot(batch, gap, color=BLUE, marker=".")
    right.set_ylim(min(-0.1, gap.min(initial=0) - 0.05), 1.02)
    clean(right, "batch", "guide less prior")
    right.legend(frameon=False, loc="best")
    return figure
