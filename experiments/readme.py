"""Write the tables of the README and of the log of studies from the committed JSON, so that none is typed by hand."""

from __future__ import annotations

import re
from typing import Any

from experiments import headline_text, table_text
from experiments.bench import speed_text
from experiments.bench.bench_gpu import shared
from experiments.headline_text import CHECKPOINTS, ROOT, SOLVED, made_by, read_results
from experiments.scaling import scaling_text
from experiments.studies import gap
from pyro_gram.diagnostics.verdicts import ESTIMATES, GUIDE, SAMPLES, Verdict, worst
from pyro_gram.errors import UserError
from pyro_gram.system.cli import Parser, call
from pyro_gram.system.files import read_json, write_bytes

EXPERIMENTS = ROOT / "experiments"
BENCH = EXPERIMENTS / "bench" / "bench.json"
OTHER_BENCH = EXPERIMENTS / "bench" / "bench_other.json"
SOLVE_BENCH = EXPERIMENTS / "bench" / "bench_solve.json"
GPU_BENCH = EXPERIMENTS / "bench" / "bench_gpu.json"
SURVIVE = EXPERIMENTS / "bench" / "survive.json"
TABLES = EXPERIMENTS / "tables"
AMORTIZATION = EXPERIMENTS / "studies" / "amortization.json"
SELECTION = EXPERIMENTS / "studies" / "selection.json"
FILTERING = EXPERIMENTS / "studies" / "filtering.json"
NO_NOISE = EXPERIMENTS / "studies" / "no_noise.json"
DETERMINISTIC = EXPERIMENTS / "studies" / "mnist_deterministic.json"
GENERATED = ("sudoku4-uncond", "mnist")


def generated_table() -> str:
    """The committed models p(x)."""
    boards, digits = read_results("sudoku4-uncond"), read_results("mnist")
    b, d, study = boards["metrics"], digits["metrics"], read_json(DETERMINISTIC)
    trm, short = study["deterministic"], f"{study['batches']} batches of the {digits['batches']:,} of `mnist`"
    rows = [
        (
            f"`sudoku4-uncond` (`{made_by(boards)}`), {b['num_samples']:,} samples: valid boards",
            f"{b['validity']:.4f}",
            "1",
        ),
        ("the 288 boards of 4x4 among them", f"{b['grids_found']:.0f}", "288"),
        (
            "total variation to uniform over the 288",
            f"{b['total_variation']:.3f}",
            f"{b['total_variation_perfect']:.3f} (perfect sampling, as many samples)",
        ),
        (
            f"`mnist` (`{made_by(digits)}`) †, {d['num_samples']:,} samples: Frechet distance",
            f"{d['frechet_distance']:.1f}",
            f"{d['frechet_distance_floor']:.1f} (real against real); deterministic model, after {short}, "
            f"{trm['frechet_distance']:.0f}",
        ),
        (
            "Inception score",
            f"{d['inception_score']:.2f}",
            f"{d['inception_score_real']:.2f} (real); deterministic model {trm['inception_score']:.2f}",
        ),
        (
            "pixels that differ from the nearest training image",
            f"{d['nearest_distance']:.1f}",
            f"{d['nearest_distance_real']:.1f} (real test images)",
        ),
        ("exact copies of training images", f"{d['exact_copies']:.4f}", f"{d['exact_copies_real']:.4f} (real)"),
    ]
    return "\n".join(["| | measured | to compare |", "|---|---|---|", *(f"| {a} | {b} | {c} |" for a, b, c in rows)])


def read_scaling() -> list[dict[str, Any]]:
    """The studies of ``scaling.py`` that are committed, in the order of the table of checkpoints."""
    paths = [CHECKPOINTS / f"{name}.scaling.json" for name in SOLVED]
    return [read_json(path) for path in paths if path.exists()]


def diagnoses_table() -> str:
    """What ``diagnose.py`` says of the committed checkpoints."""
    lines = [
        "| checkpoint | its answers | its likelihoods | its guide | right samples "
        "| total variation above perfect sampling "
        "| log p(y\\|x), nats: prior, weights; ELBO of the same pairs; a perfect model's "
        "| pairs: both trusted, agree | k-hat too high | largest deviation of ranks (of uniform ones) |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in (*SOLVED, *GENERATED):
        d = read_json(CHECKPOINTS / f"{name}.diagnosis.json")
        e, right, even = d["evidence"]["summary"], d["metrics"]["sample_accuracy"], d["uniformity"].get("excess")
        deviation = max(told["deviation"] for told in d["ranks"]["summary"].values())
        perfect = e.get("log_p_perfect")
        lines.append(
            f"| `{name}` | {' | '.join(_level(d, about) for about in (SAMPLES, ESTIMATES, GUIDE))} "
            f"| {_told(right)} | {_told(even)} "
            f"| {e['log_p_prior']:.2f}, {e['log_p_guide']:.2f}; {e['iwae']['1']:.2f}; {_told(perfect, 2)} "
            f"| {e['both_trusted']}, {e['agree']} of {e['pairs']} | {e['khat_above']:.2f} "
            f"| {deviation:.2f} ({d['ranks']['band']:.2f}) |"
        )
    return "\n".join(lines)


def _level(diagnosis: dict[str, Any], about: str) -> str:
    return worst(Verdict(**v) for v in diagnosis["verdicts"] if v["about"] == about)


def _told(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def amortization_table(study: dict[str, Any]) -> str:
    """The bounds of the study of amortization, and the two gaps between them."""
    bounds, log_p = study["bounds"], study["log_p_prior_mc"]
    rows = [
        ("ELBO, the trained guide", bounds["guide"]["elbo"]),
        (f"its importance-weighted bound, {study['draws']} draws", bounds["guide"]["iwae"]),
        (f"ELBO, a copy of the guide fitted to these pairs, {study['updates']} updates", bounds["copy"]["elbo"]),
        ("its importance-weighted bound", bounds["copy"]["iwae"]),
        (f"ELBO, mean field fitted to these pairs, {study['updates']} updates", bounds["mean_field"]["elbo"]),
        ("its importance-weighted bound", bounds["mean_field"]["iwae"]),
        (f"log p(y\\|x), {log_p['draws']:,} trajectories of the prior", log_p),
        ("amortization gap: the copy less the guide", study["amortization_gap"]),
        ("approximation gap: log p less the copy", study["approximation_gap"]),
    ]
    lines = [
        f"| `{study['checkpoint']}`, {study['inputs']} held-out pairs, {study['depth']} steps | nats a pair |",
        "|---|---|",
    ]
    return "\n".join([*lines, *(f"| {label} | {v['mean']:.2f} ± {v['se']:.2f} |" for label, v in rows)])


def fill(text: str, name: str, content: str) -> str:
    """``text`` with ``content`` between the markers of ``name``. Raises UserError where they are missing."""
    pattern = re.compile(rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
    if not pattern.search(text):
        raise UserError(f"there is no '<!-- begin {name} -->' ... '<!-- end {name} -->' to fill")
    return pattern.sub(lambda match: f"{match[1]}{content}\n{match[2]}", text)


def filled(text: str) -> str:
    text = fill(text, "results", headline_text.results_table("coloring8"))
    text = fill(text, "solved", headline_text.solved_table())
    text = fill(text, "orbit", headline_text.orbit_line())
    text = fill(text, "seeds", headline_text.seeds_table())
    text = fill(text, "generated", generated_table())
    studies = read_scaling()
    text = fill(text, "selection", scaling_text.selection_table(studies, read_json(NO_NOISE)))
    text = fill(text, "fresh-selection", scaling_text.fresh_table(read_json(SELECTION), (*SOLVED, "nqueens8-orbit")))
    text = fill(text, "compute", scaling_text.compute_table(studies))
    text = fill(text, "spreads", scaling_text.spread_table(studies))
    text = fill(text, "filtering", scaling_text.filtering_table(read_json(FILTERING), SOLVED))
    text = fill(text, "diagnoses", diagnoses_table())
    for name in ("1", "3a", "3b"):
        text = fill(text, f"table{name}", f"\n{table_text.markdown(read_json(TABLES / f'table{name}-cpu.json'))}\n")
    text = fill(text, "solving", speed_text.solve_table(read_json(SOLVE_BENCH)))
    text = fill(text, "survive", speed_text.survive_line(read_json(SURVIVE)))
    text = fill(text, "gpu", speed_text.gpu_table(read_json(GPU_BENCH)))
    return fill(text, "bench", speed_text.bench_table(read_json(BENCH), read_json(OTHER_BENCH)))


def filled_studies(text: str) -> str:
    """The log of the studies, with the table of each study of ``gap.py`` whose JSON is there."""
    for path in sorted((EXPERIMENTS / "studies").glob("gap_*.json")):
        text = fill(text, path.stem, gap.table(read_json(path)))
    return fill(text, "amortization", amortization_table(read_json(AMORTIZATION)))


def filled_cluster(text: str) -> str:
    """What the gradients of several processes cost."""
    return fill(text, "shared", shared(read_json(GPU_BENCH), processes=8))


def main(argv: list[str]) -> int:
    Parser("readme.py", description=__doc__).parse_args(argv)
    documents = {
        ROOT / "README.md": filled,
        EXPERIMENTS / "studies" / "README.md": filled_studies,
        ROOT / "docs" / "howto" / "cluster.md": filled_cluster,
    }
    for path, fill_in in documents.items():
        write_bytes(path, fill_in(path.read_text()).encode())
    return 0


if __name__ == "__main__":
    raise SystemExit(call(main))
