"""Write the tables of the README and of the log of studies from the committed JSON, so that none is typed by hand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from experiments import scaling_text, speed_text, table_text
from experiments.bench_gpu import shared
from experiments.studies import gap
from pyro_gram import paper
from pyro_gram.cli import Parser, call
from pyro_gram.diagnostics.verdicts import ESTIMATES, GUIDE, SAMPLES, Verdict, worst
from pyro_gram.errors import UserError
from pyro_gram.files import read_json, write_bytes
from pyro_gram.inference.temper import told

ROOT = Path(__file__).resolve().parent.parent
CHECKPOINTS = ROOT / "checkpoints"
EXPERIMENTS = ROOT / "experiments"
BENCH = EXPERIMENTS / "bench.json"
OTHER_BENCH = EXPERIMENTS / "bench_other.json"
SOLVE_BENCH = EXPERIMENTS / "bench_solve.json"
GPU_BENCH = EXPERIMENTS / "bench_gpu.json"
SURVIVE = EXPERIMENTS / "survive.json"
TABLES = EXPERIMENTS / "tables"
AMORTIZATION = EXPERIMENTS / "studies" / "amortization.json"
SELECTION = EXPERIMENTS / "studies" / "selection.json"
FILTERING = EXPERIMENTS / "studies" / "filtering.json"
DETERMINISTIC = EXPERIMENTS / "studies" / "mnist_deterministic.json"
REPEATED = ("coloring8", "coloring10", "nqueens8", "nqueens10")
GENERATED = ("sudoku4-uncond", "mnist")
SOLVED = ("coloring8", "coloring10", "nqueens8", "nqueens10", "sudoku4", "sudoku6")


def results_table(results: dict[str, Any]) -> str:
    m, seconds = results["metrics"], results["seconds"]
    rows = [
        ("accuracy, one sample", f"{m['accuracy']:.3f} ± {m['accuracy_se']:.3f}"),
        ("conflicting edges in the 255 first samples", str(m["violations"])),
        (f"coverage, {m['num_samples']} samples", f"{m['coverage']:.3f} ± {m['coverage_se']:.3f}"),
        ("coverage of i.i.d. uniform draws (the limit)", f"{m['coverage_limit']:.3f}"),
        ("coverage / limit", f"{m['coverage_ratio']:.3f}"),
        (f"graphs with a valid answer among {m['num_samples']}", f"{m['any_valid']:.3f}"),
        ("full ELBO (Eq. 13), nats per graph", f"{m['elbo_full']:.2f}"),
        ("surrogate ELBO (Eq. 14), nats per graph", f"{m['elbo_surrogate']:.2f}"),
        (
            "total variation of right samples to uniform over the colourings (perfect sampling)",
            f"{m['total_variation']:.3f} ({m['total_variation_perfect']:.3f})",
        ),
        (
            f"log p(y\\|x), {m['log_likelihood_inputs']} graphs, {m['log_likelihood_samples']} prior samples each",
            f"{m['log_likelihood_prior_mc']:.2f} ± {m['log_likelihood_se']:.2f}",
        ),
        ("a perfect model's, on average: minus the mean of log m on those graphs", f"{m['log_likelihood_limit']:.2f}"),
        ("a perfect model's ELBO, on average: minus the mean of log m on all", f"{-m['log_num_solutions']:.2f}"),
        ("parameters", f"{results['parameters']:,} (guide {results['guide_parameters']:,})"),
        ("seconds: training, evaluation", f"{seconds['train']:.0f}, {seconds['evaluate']:.0f}"),
        ("peak memory", f"{results['peak_memory_mb']:.0f} MB"),
    ]
    return "\n".join(["| | |", "|---|---|", *(f"| {label} | {value} |" for label, value in rows)])


def read_results(name: str) -> dict[str, Any]:
    return read_json(CHECKPOINTS / f"{name}.results.json")


def papers(name: str) -> str:
    """The paper's accuracy, or conflicting edges in all test graphs, and coverage, of the same problem."""
    told = paper.told(name)
    if not told:
        return ""
    first = f"{told['violations']} conflicts" if "violations" in told else _share(told["sample_accuracy"])
    return f"{first}, {_share(told['coverage'])}"


def _share(value: float) -> str:
    return f"{value:.3f}".lstrip("0")


def solved_table() -> str:
    """Every committed checkpoint that solves inputs, beside the paper."""
    lines = [
        "| checkpoint, `run.py` ... | unseen inputs | accuracy, one sample | vote of 20 | violations "
        "| coverage, 20 samples (limit) | training | paper |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in SOLVED:
        results = read_results(name)
        m = results["metrics"]
        lines.append(
            f"| `{name}`, `{made_by(results)}` | {m['num_inputs']:,} | {m['accuracy']:.3f} ± {m['accuracy_se']:.3f} "
            f"| {m['vote_accuracy']:.3f} | {m['violations']} | {m['coverage']:.3f} ({m['coverage_limit']:.3f}) "
            f"| {results['seconds']['train'] / 60:.0f} min, {counted_threads(results)} | {papers(name)} |"
        )
    return "\n".join(lines)


def seeds_table() -> str:
    """The runs whose recipe was repeated with other seeds: seed 0 is the checkpoint."""
    lines = [
        "| run | seed | prior | accuracy, first samples (all) | violations | coverage / limit "
        "| total variation to uniform (perfect sampling) | excess, nats | last look, best look |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in REPEATED:
        repeats = sorted(CHECKPOINTS.glob(f"{name}.seed*.results.json"))
        plain = CHECKPOINTS / f"{name}.untempered.results.json"
        for path in [CHECKPOINTS / f"{name}.results.json", *repeats, *([plain] if plain.exists() else [])]:
            results = read_json(path)
            m, looks = results["metrics"], results["looks"]
            lines.append(
                f"| `{name}` | {results['seed']} | {_prior(m)}, {m['depth']} steps "
                f"| {m['accuracy']:.3f} ({m['sample_accuracy']:.3f}) | {m['violations']} in {m['num_inputs']} "
                f"| {m['coverage_ratio']:.3f} | {m['total_variation']:.3f} ({m['total_variation_perfect']:.3f}) "
                f"| {m['excess']:.2f} | {looks['last_accuracy']:.3f}, {looks['best_accuracy']:.3f} |"
            )
    return "\n".join(lines)


def _prior(metrics: dict[str, Any]) -> str:
    """How the prior was sampled."""
    return told(metrics["temper_scale"], metrics["temper_transitions"]) or "as it is"


def made_by(results: dict[str, Any]) -> str:
    """The options of ``run.py`` that make a checkpoint."""
    preset = "" if results["preset"] == "cpu" else f" --preset {results['preset']}"
    return f"--task {results['task']}{preset}"


def counted_threads(results: dict[str, Any]) -> str:
    threads = results["environment"]["threads"]
    return f"{threads} thread{'' if threads == 1 else 's'}"


def generated_table() -> str:
    """The committed models p(x)."""
    boards, digits = read_results("sudoku4-uncond"), read_results("mnist")
    b, d, trm = boards["metrics"], digits["metrics"], read_json(DETERMINISTIC)["deterministic"]
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
            f"`mnist` (`{made_by(digits)}`), {d['num_samples']:,} samples: Frechet distance",
            f"{d['frechet_distance']:.1f}",
            f"{d['frechet_distance_floor']:.1f} (real against real); deterministic model {trm['frechet_distance']:.0f}",
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
    text = fill(text, "results", results_table(read_results("coloring8")))
    text = fill(text, "solved", solved_table())
    text = fill(text, "seeds", seeds_table())
    text = fill(text, "generated", generated_table())
    studies = read_scaling()
    text = fill(text, "selection", scaling_text.selection_table(studies))
    text = fill(text, "fresh-selection", scaling_text.fresh_table(read_json(SELECTION), SOLVED))
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
        EXPERIMENTS / "CLUSTER.md": filled_cluster,
    }
    for path, fill_in in documents.items():
        write_bytes(path, fill_in(path.read_text()).encode())
    return 0


if __name__ == "__main__":
    raise SystemExit(call(main))
