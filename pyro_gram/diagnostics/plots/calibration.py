"""Figures of calibration: evenness of samples over the solutions, and ranks under the guide."""

from __future__ import annotations

from typing import Any

import torch
from matplotlib.figure import Figure

from pyro_gram.diagnostics.calibration import Uniformity
from pyro_gram.diagnostics.plots.run import BLUE, GREEN, GREY, ORANGE, jitter, set_count_ticks, style_axes
from pyro_gram.diagnostics.sbc import SBCRanks


def uniformity_figure(uniformity: Uniformity) -> Figure:
    """Draw three panels: total variation by number of solutions, the p-values, and coverage against its limit."""
    figure = Figure(figsize=(14, 4.4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    _draw_variation(left, uniformity)
    _draw_p_values(middle, uniformity)
    _draw_coverage(right, uniformity)
    return figure


def _draw_variation(axes: Any, uniformity: Uniformity) -> None:
    mask = uniformity.num_solutions > 1
    m = uniformity.num_solutions[mask]
    for values, color, marker, name in (
        (uniformity.total_variation, BLUE, "o", "right samples of an input"),
        (uniformity.expected_variation, GREEN, "_", "as many uniform draws, on average"),
    ):
        axes.scatter(jitter(m), values[mask], s=24, color=color, marker=marker, alpha=0.6, label=name)
    axes.set_xscale("log")
    set_count_ticks(axes.xaxis)
    axes.set_ylim(-0.03, 1.2)
    style_axes(axes, "number of solutions", "total variation to uniform")
    axes.legend(frameon=False, loc="upper left")
    excess = uniformity.summary().get("excess")
    axes.set_title("Nothing tested" if excess is None else f"Above perfect sampling by {excess:.3f} on average")


def _draw_p_values(axes: Any, uniformity: Uniformity) -> None:
    p = uniformity.p_value[uniformity.is_tested].sort().values
    share = torch.arange(1, len(p) + 1) / max(1, len(p))
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", label="uniform sampling")
    axes.step(p, share, where="post", color=BLUE, label="inputs")
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    style_axes(axes, "p-value of an input (chi-square, simulated)", "share of inputs below")
    axes.legend(frameon=False, loc="lower right")
    num_rejected, rate = int(uniformity.is_rejected.sum()), uniformity.false_discovery_rate
    axes.set_title(f"{num_rejected} of {len(p)} inputs uneven beyond\nchance (false discovery rate {rate:g})")


def _draw_coverage(axes: Any, uniformity: Uniformity) -> None:
    coverage, limit = uniformity.coverage, uniformity.coverage_limit
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", label="i.i.d. uniform draws, on average")
    noise = torch.rand(len(coverage), generator=torch.Generator().manual_seed(1)) * 0.02 - 0.01
    axes.scatter(limit + noise, coverage, s=18, color=ORANGE, alpha=0.5, label="an input")
    axes.set_xlim(0, 1.04)
    axes.set_ylim(0, 1.04)
    style_axes(axes, "coverage limit of an input", "its coverage")
    axes.legend(frameon=False, loc="upper left")
    axes.set_title(f"Coverage {coverage.mean():.3f}, limit {limit.mean():.3f}")


def sbc_figure(ranks: SBCRanks) -> Figure:
    """Draw how far the ranks of each summary deviate from the uniform distribution, and the band of uniform ranks."""
    columns = 3
    rows = -(-len(ranks.names) // columns)
    figure = Figure(figsize=(12, 3.1 * rows + 0.3), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    x = torch.arange(1, ranks.num_draws + 2) / (ranks.num_draws + 1)
    band = ranks.band
    for axes, name, line, summary in zip(grid, ranks.names, ranks.difference, ranks.summary().values(), strict=False):
        axes.axhspan(-band, band, color=GREEN, alpha=0.15, linewidth=0)
        axes.axhline(0, color=GREY, linestyle=":")
        axes.step(x, line, where="post", color=BLUE)
        style_axes(axes, "", "")
        axes.set_title(
            f"{name}: deviation {summary['deviation']:.2f},\nmean {summary['mean']:.2f}, spread {summary['spread']:.2f}"
        )
    for axes in grid[len(ranks.names) :]:
        axes.set_axis_off()
    figure.supxlabel("rank of the true trajectory among the guide's, as a share")
    figure.supylabel("share of ranks below, minus uniform")
    figure.suptitle(f"{ranks.ranks.shape[1]} simulated data; band: it contains uniform ranks in 95 % of simulations")
    return figure
