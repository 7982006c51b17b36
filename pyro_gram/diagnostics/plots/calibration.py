"""Figures of calibration: evenness over the solutions, and ranks under the guide."""

from __future__ import annotations

from typing import Any

import torch
from matplotlib.figure import Figure

from pyro_gram.diagnostics.calibration import Uniformity
from pyro_gram.diagnostics.plots.run import BLUE, GREEN, GREY, ORANGE, clean, counts_axis, jittered
from pyro_gram.diagnostics.sbc import Simulated


def uniformity_figure(found: Uniformity) -> Figure:
    """Evenness of each input against its number of solutions, its p-value, and its coverage."""
    figure = Figure(figsize=(14, 4.4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    _variation(left, found)
    _p_values(middle, found)
    _coverage(right, found)
    return figure


def _variation(axes: Any, found: Uniformity) -> None:
    several = found.num_solutions > 1
    m = found.num_solutions[several]
    for values, color, marker, name in (
        (found.total_variation, BLUE, "o", "right samples of an input"),
        (found.expected, GREEN, "_", "perfect sampling of as many, on average"),
    ):
        axes.scatter(jittered(m), values[several], s=24, color=color, marker=marker, alpha=0.6, label=name)
    axes.set_xscale("log")
    counts_axis(axes.xaxis)
    axes.set_ylim(-0.03, 1.2)
    clean(axes, "number of solutions", "total variation to uniform")
    axes.legend(frameon=False, loc="upper left")
    excess = found.summary().get("excess")
    axes.set_title("Nothing tested" if excess is None else f"Above perfect sampling by {excess:.3f} on average")


def _p_values(axes: Any, found: Uniformity) -> None:
    p = found.p_value[found.tested].sort().values
    share = torch.arange(1, len(p) + 1) / max(1, len(p))
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", label="uniform sampling")
    axes.step(p, share, where="post", color=BLUE, label="inputs")
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    clean(axes, "p-value of an input (chi-square, simulated)", "share of inputs below")
    axes.legend(frameon=False, loc="lower right")
    axes.set_title(
        f"{int(found.rejected.sum())} of {len(p)} inputs uneven beyond\nchance (false discovery rate {found.level:g})"
    )


def _coverage(axes: Any, found: Uniformity) -> None:
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", label="i.i.d. uniform draws, on average")
    noise = torch.rand(len(found.coverage), generator=torch.Generator().manual_seed(1)) * 0.02 - 0.01
    axes.scatter(found.coverage_limit + noise, found.coverage, s=18, color=ORANGE, alpha=0.5, label="an input")
    axes.set_xlim(0, 1.04)
    axes.set_ylim(0, 1.04)
    clean(axes, "coverage limit of an input", "its coverage")
    axes.legend(frameon=False, loc="upper left")
    axes.set_title(f"Coverage {found.coverage.mean():.3f}, limit {found.coverage_limit.mean():.3f}")


def sbc_figure(found: Simulated) -> Figure:
    """The distribution of each summary's ranks less the uniform one, with the band that uniform ranks stay in."""
    columns = 3
    rows = -(-len(found.names) // columns)
    figure = Figure(figsize=(12, 3.1 * rows + 0.3), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    at = torch.arange(1, found.draws + 2) / (found.draws + 1)
    band, difference = found.band, found.difference
    for axes, name, line, told in zip(grid, found.names, difference, found.summary().values(), strict=False):
        axes.axhspan(-band, band, color=GREEN, alpha=0.15, linewidth=0)
        axes.axhline(0, color=GREY, linestyle=":")
        axes.step(at, line, where="post", color=BLUE)
        clean(axes, "", "")
        axes.set_title(
            f"{name}: deviation {told['deviation']:.2f},\nmean {told['mean']:.2f}, spread {told['spread']:.2f}"
        )
    for axes in grid[len(found.names) :]:
        axes.set_axis_off()
    figure.supxlabel("rank of the true trajectory among the guide's, as a share")
    figure.supylabel("share of ranks below, less uniform")
    figure.suptitle(f"{found.ranks.shape[1]} simulated data; band: where uniform ranks stay at 95 of 100 times")
    return figure
