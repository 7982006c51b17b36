"""The README's tables of what more compute at inference buys, from the committed JSON of the studies."""

from __future__ import annotations

from typing import Any

from experiments.headline_text import share
from experiments.scaling.scaling import SPREAD_OF, SPREADS

Study = dict[str, Any]
COLUMNS = ("whole", "shallower", "shallower_as_right", "halting", "halting_as_right")
SHOWN_BUDGETS = (5, 20)  # in whole trajectories


def with_sd(point: dict[str, float], name: str) -> str:
    """A mean over seeds with its standard deviation, where that is not 0: equal figures say nothing of their spread."""
    deviation = point[f"{name}_sd"]
    return f"{point[name]:.3f}" + (f" ± {deviation:.3f}" if round(deviation, 3) else "")


def selection_table(studies: list[Study], no_noise: Study) -> str:
    """What is selected, and what halting saves; beside one trajectory without noise on the whole test split."""
    lines = [
        "| checkpoint | unseen inputs | steps | one sample | vote of 20 | by value, of 20 | task's check, of 20 "
        "| no noise, N = 1 (whole test split) | halting: one sample (P) | steps taken "
        "| core evaluations saved, the heads' deducted |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for s in studies:
        full, halted, depth = s["width"][str(s["depth"])][str(s["of"])], s["halted"], s["depth"]
        votes = [share([full[name]], s["inputs"]) for name in ("vote", "value", "verified")]
        flat = no_noise[s["checkpoint"]]
        saved = 1 - halted["steps"] * (1 + s["head_cost"]) / depth
        lines.append(
            f"| `{s['checkpoint']}` | {s['inputs']} | {depth} | {with_sd(full, 'sample')} | {' | '.join(votes)} "
            f"| {share([flat['accuracy']], flat['num_inputs'])} of {flat['num_inputs']:,} "
            f"| {with_sd(halted, 'sample')} ({s['halt']:g}) | {halted['steps']:.1f} | {saved:.0%} |"
        )
    return "\n".join(lines)


def compute_table(studies: list[Study]) -> str:
    """At a few budgets the point of each method that was best on validation inputs, measured on test inputs."""
    lines = [
        "| checkpoint, core evaluations an input | whole trajectories | fewer steps each | and as right "
        "| halting | and as right |",
        "|---|---|---|---|---|---|",
    ]
    for s in studies:
        chosen, points = s["validation"]["chosen"], s["points"]
        for budget in (b * s["depth"] for b in SHOWN_BUDGETS):
            row = chosen[str(budget)]
            cells = [_cell(points, row[column]) for column in COLUMNS]
            lines.append(f"| `{s['checkpoint']}`, {budget} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(points: dict[str, dict[str, float]], name: str | None) -> str:
    if name is None:
        return "none"
    point = points[name]
    return f"{with_sd(point, 'coverage')}; {point['sample']:.3f} ({name}; {point['work']:.0f})"


def spread_table(studies: list[Study]) -> str:
    """Diversified width: coverage and accuracy, trajectories that halt."""
    kinds = ("independent", *SPREADS)
    lines = [
        f"| checkpoint, N | {' | '.join(kind.capitalize() if kind == 'sobol' else kind for kind in kinds)} |",
        "|---" * (len(kinds) + 1) + "|",
    ]
    for s in studies:
        for n in SPREAD_OF:
            cells = []
            for kind in kinds:
                p = s["spreads"][kind][str(n)]
                fewer = f", N = {p['n']}" if p["n"] != n else ""
                cells.append(f"{with_sd(p, 'coverage')}; {p['sample']:.3f}{fewer}")
            lines.append(f"| `{s['checkpoint']}`, {n} | {' | '.join(cells)} |")
    return "\n".join(lines)


def fresh_table(study: Study, names: tuple[str, ...]) -> str:
    """Vote and value on fresh inputs."""
    lines = [
        "| checkpoint | fresh inputs | seeds | vote of 20 | by value, of 20 | only the vote right, only value right |",
        "|---|---|---|---|---|---|",
    ]
    for name in (name for name in names if name in study):
        s = study[name]
        lines.append(
            f"| `{name}` | {s['inputs']:,} ({s['which']}) | {s['seeds']} | {_share(s['vote'])} | {_share(s['value'])} "
            f"| {s['only_vote_right']}, {s['only_value_right']} of {s['inputs'] * s['seeds']:,} |"
        )
    return "\n".join(lines)


def _share(share: dict[str, Any]) -> str:
    low, high = share["interval"]
    sd = f" ± {share['sd']:.4f}" if round(share["sd"] or 0, 4) else ""
    return f"{share['accuracy']:.4f}{sd} [{low:.4f}, {high:.4f}]"


def filtering_table(study: Study, names: tuple[str, ...]) -> str:
    """The filter beside weighing once."""
    lines = [
        "| checkpoint, steps (test inputs) | independent | filtered: potential, power, threshold | resampled after "
        "| the same weights once, at the end | the best weights once, at the end: potential, power |",
        "|---|---|---|---|---|---|",
    ]
    for name in (name for name in names if name in study):
        s = study[name]
        t, best = s["tuned"], s["weighed"]
        for depth, rows in s["test"].items():
            cells = {key: f"{with_sd(row, 'sample')}; {row['coverage']:.3f}" for key, row in rows.items()}
            resampled = rows["filtered"]["resampled"]
            lines.append(
                f"| `{name}`, {depth} ({s['inputs']}) | {cells['independent']} "
                f"| {cells['filtered']}: {t['potential']}, {t['power']:g}, {t['threshold']:g} "
                f"| {resampled:.1%} of stages | {cells['reweighted']} "
                f"| {cells['weighed']}: {best['potential']}, {best['power']:g} |"
            )
    return "\n".join(lines)
