"""Make the tables that show the effect of more compute, from the JSON of ``scaling.py`` for several checkpoints."""

from __future__ import annotations

from typing import Any

from experiments.scaling.scaling import OTHER_SCHEMES, SCHEME_COUNTS
from experiments.tables.cells import point_and_sd, share_with_interval

Results = dict[str, Any]
COLUMNS = ("whole", "shallower", "shallower_as_right", "halting", "halting_as_right")
TABLE_BUDGETS = (5, 20)  # a budget of b is the work of b trajectories of full depth


def selection_table(studies: list[Results], no_noise: Results) -> str:
    """Return the table of selection and halting. One column measures trajectories without noise on all test inputs."""
    lines = [
        "| checkpoint | unseen inputs | steps | one sample | vote of 20 | by value, of 20 | task's check, of 20 "
        "| no noise, N = 1 (whole test split) | halting: one sample (P) | steps taken "
        "| core evaluations saved, less the heads' work |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for s in studies:
        full_point, halted_point, depth = s["width"][str(s["depth"])][str(s["of"])], s["halted"], s["depth"]
        votes = [share_with_interval([full_point[name]], s["inputs"]) for name in ("vote", "value", "verified")]
        point = no_noise[s["checkpoint"]]
        saving = 1 - halted_point["steps"] * (1 + s["head_cost"]) / depth
        lines.append(
            f"| `{s['checkpoint']}` | {s['inputs']} | {depth} | {point_and_sd(full_point, 'sample')} "
            f"| {' | '.join(votes)} "
            f"| {share_with_interval([point['accuracy']], point['num_inputs'])} of {point['num_inputs']:,} "
            f"| {point_and_sd(halted_point, 'sample')} ({s['halt']:g}) | {halted_point['steps']:.1f} | {saving:.0%} |"
        )
    return "\n".join(lines)


def compute_table(studies: list[Results]) -> str:
    """Return the table of the points that were chosen on validation inputs, with their measurements on test inputs."""
    lines = [
        "| checkpoint, core evaluations per input | whole trajectories | fewer steps | fewer steps, as accurate "
        "| halting | halting, as accurate |",
        "|---|---|---|---|---|---|",
    ]
    for s in studies:
        choices, points = s["validation"]["chosen"], s["points"]
        for budget in (b * s["depth"] for b in TABLE_BUDGETS):
            row = choices[str(budget)]
            cells = [_cell(points, row[column]) for column in COLUMNS]
            lines.append(f"| `{s['checkpoint']}`, {budget} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(points: dict[str, dict[str, float]], name: str | None) -> str:
    if name is None:
        return "none"
    point = points[name]
    return f"{point_and_sd(point, 'coverage')}; {point['sample']:.3f} ({name}; {point['work']:.0f})"


def scheme_table(studies: list[Results]) -> str:
    """Return the table that compares draw schemes by the coverage and accuracy of trajectories that halt."""
    kinds = ("independent", *OTHER_SCHEMES)
    lines = [
        f"| checkpoint, N | {' | '.join(kind.capitalize() if kind == 'sobol' else kind for kind in kinds)} |",
        "|---" * (len(kinds) + 1) + "|",
    ]
    for s in studies:
        for n in SCHEME_COUNTS:
            cells = []
            for kind in kinds:
                if kind not in s["spreads"]:  # the prior does not allow the scheme
                    cells.append("not possible")
                    continue
                p = s["spreads"][kind][str(n)]
                count_note = f", N = {p['n']}" if p["n"] != n else ""
                cells.append(f"{point_and_sd(p, 'coverage')}; {p['sample']:.3f}{count_note}")
            lines.append(f"| `{s['checkpoint']}`, {n} | {' | '.join(cells)} |")
    return "\n".join(lines)
