"""Make the tables of the committed checkpoints: their metrics over seeds, beside those of a lookup and of the paper.

"Accuracy" means the accuracy of one sample: the mean over all samples of all inputs. If there are several seeds, a
figure is the mean over seeds ± standard deviation. These are seeds of training, or seeds of the draws if the weights
are fixed. A share of inputs is followed by its Wilson 95 % interval.
"""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

from experiments.tables.cells import mean_and_sd, share_with_interval
from pyro_gram.diagnostics.verdicts import ESTIMATES, GUIDE, SAMPLES, Verdict, worst_level
from pyro_gram.sampling.tempering import TemperConfig
from pyro_gram.system.files import read_json

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINTS = ROOT / "checkpoints"
STUDIES = ROOT / "experiments" / "studies"
LOOKUP = STUDIES / "lookup.json"
SAMPLING_CHECKPOINTS = ("sudoku4-uncond", "mnist")
SOLVING_CHECKPOINTS = ("coloring", "nqueens", "sudoku", "latin")
MAIN_JOB = "main_job"  # the name of the runs of ``run.py --task coloring``, of which only the results are committed


def read_results(name: str) -> dict[str, Any]:
    return read_json(CHECKPOINTS / f"{name}.results.json")


def read_seeds(name: str) -> list[dict[str, Any]]:
    """Return the committed results of all seeds of a checkpoint or of the main job, sorted by seed."""
    if name == MAIN_JOB:
        paths = [*(STUDIES / MAIN_JOB).glob("seed*.results.json")]
    else:
        paths = [CHECKPOINTS / f"{name}.results.json", *CHECKPOINTS.glob(f"{name}.seed*.results.json")]
    return sorted((read_json(path) for path in paths), key=lambda results: results["seed"])


def read_sizes(name: str) -> list[dict[str, Any]]:
    """Return a study of sizes (``experiments/studies/sizes.py``), sorted by the seeds of its checkpoints."""
    study = read_json(STUDIES / f"sizes_{name}.json")
    return sorted(study["checkpoints"].values(), key=lambda run: run["seed"])


def lookup_table() -> str:
    """Return the table of what a lookup in the training answers solves, for both splits of queens."""
    lines = [
        "| inputs | split | with an image in training | right answers | coverage (limit) |",
        "|---|---|---|---|---|",
    ]
    for problem, splits in read_json(LOOKUP)["problems"].items():
        for split, row in splits.items():
            accuracy = share_with_interval([row["images"]["sample_accuracy"]], row["test"])
            lines.append(
                f"| `{problem}` | by {split} | {row['symmetric_copies']:,} of {row['test']:,} | {accuracy} "
                f"| {row['images']['coverage']:.3f} ({row['coverage_limit']:.3f}) |"
            )
    return "\n".join(lines)


def run_options(results: dict[str, Any]) -> str:
    """Return the options of ``run.py`` with which a checkpoint was trained."""
    preset = "" if results["preset"] == "cpu" else f" --preset {results['preset']}"
    return f"--task {results['task']}{preset}"


def seeds_table() -> str:
    """Return the table with a row for each seed of each run. Seed 0 is the committed checkpoint."""
    lines = [
        "| run | seed | prior | accuracy of all samples (of the first) | violations, first samples | coverage / limit "
        "| total variation to uniform (perfect sampling) | excess, nats | validation accuracy: last, best |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in (MAIN_JOB, *SOLVING_CHECKPOINTS):
        for results in read_seeds(name):
            m, history = results["metrics"], results["looks"]
            lines.append(
                f"| `{name}` | {results['seed']} | {_prior(m)}, {m['depth']} steps "
                f"| {m['sample_accuracy']:.3f} ({m['accuracy']:.3f}) | {m['violations']} in {m['num_inputs']} "
                f"| {m['coverage_ratio']:.3f} | {m['total_variation']:.3f} ({m['total_variation_perfect']:.3f}) "
                f"| {m['excess']:.2f} | {history['last_accuracy']:.3f}, {history['best_accuracy']:.3f} |"
            )
    return "\n".join(lines)


def _prior(metrics: dict[str, Any]) -> str:
    """Return a description of the tempering of the prior."""
    settings = metrics["temper_scale"], metrics["temper_transitions"], metrics.get("temper_floor", 0.0)
    return TemperConfig(*settings).describe() or "untempered"


def main_job_table() -> str:
    """Return the detailed table of the main job: means over seeds ± deviations."""
    seeds = read_seeds(MAIN_JOB)
    metrics = [results["metrics"] for results in seeds]
    first, inputs = metrics[0], metrics[0]["num_inputs"]

    def over_seeds(key: str, digits: int = 3) -> str:
        return mean_and_sd([m[key] for m in metrics], digits)

    def over_inputs(key: str) -> str:
        return share_with_interval([m[key] for m in metrics], inputs)

    likelihoods = f"{first['log_likelihood_inputs']} graphs, {first['log_likelihood_samples']} prior samples each"
    rows = [
        (f"accuracy, one sample (mean of {first['num_samples']})", over_inputs("sample_accuracy")),
        (f"conflicting edges in the {inputs} first samples", ", ".join(str(m["violations"]) for m in metrics)),
        (f"vote of {first['num_samples']}", over_inputs("vote_accuracy")),
        (f"graphs with a valid answer among {first['num_samples']}", over_inputs("any_valid")),
        (f"coverage, {first['num_samples']} samples", over_seeds("coverage")),
        ("coverage of i.i.d. uniform draws (the limit)", f"{first['coverage_limit']:.3f}"),
        ("coverage / limit", over_seeds("coverage_ratio")),
        ("full ELBO (Eq. 13), nats per graph", over_seeds("elbo_full", 2)),
        ("surrogate ELBO (Eq. 14), nats per graph", over_seeds("elbo_surrogate", 2)),
        (
            "total variation of right samples to uniform over the colourings (perfect sampling)",
            f"{over_seeds('total_variation')} ({first['total_variation_perfect']:.3f})",
        ),
        (
            f"log p(y\\|x), {likelihoods} (standard error over graphs)",
            f"{over_seeds('log_likelihood_prior_mc', 2)} ({first['log_likelihood_se']:.2f})",
        ),
        (
            "log p(y\\|x) of a perfect model on these graphs (all names of a colouring count)",
            f"{first['log_likelihood_limit']:.2f}",
        ),
        ("ELBO of a perfect model on all graphs", f"{-first['log_num_solutions']:.2f}"),
        ("parameters", f"{seeds[0]['parameters']:,} (guide {seeds[0]['guide_parameters']:,})"),
        (
            "seconds: training, evaluation",
            ", ".join(f"{fmean(results['seconds'][part] for results in seeds):.0f}" for part in ("train", "evaluate")),
        ),
        ("peak memory", f"{max(results['peak_memory_mb'] for results in seeds):.0f} MB"),
    ]
    head = ", ".join(str(results["seed"]) for results in seeds)
    return "\n".join(
        [f"| training seeds {head} | |", "|---|---|", *(f"| {label} | {value} |" for label, value in rows)]
    )


def generated_table(deterministic: dict[str, Any]) -> str:
    """Return the table of the models p(x). ``deterministic`` is the JSON that ``mnist_deterministic.py`` writes."""
    boards, digits = read_results("sudoku4-uncond"), read_results("mnist")
    b, d = boards["metrics"], digits["metrics"]
    trm = deterministic["deterministic"]
    training_note = f"{deterministic['batches']} batches of the {digits['batches']:,} of `mnist`"
    rows = [
        (
            f"`sudoku4-uncond` (`{run_options(boards)}`), {b['num_samples']:,} samples: valid boards",
            f"{b['validity']:.4f}",
            "1",
        ),
        ("distinct valid boards among them", f"{b['grids_found']:.0f}", "288 exist"),
        (
            "total variation to uniform over the 288",
            f"{b['total_variation']:.3f}",
            f"{b['total_variation_perfect']:.3f} (perfect sampling, as many samples)",
        ),
        (
            f"`mnist` (`{run_options(digits)}`) †, {d['num_samples']:,} samples: Frechet distance",
            f"{d['frechet_distance']:.1f}",
            f"{d['frechet_distance_floor']:.1f} (real against real); deterministic model, after {training_note}, "
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


def diagnoses_table(diagnoses: dict[str, dict[str, Any]]) -> str:
    """Return the table of the diagnoses of all checkpoints."""
    lines = [
        "| checkpoint | its answers | its likelihoods | its guide | right samples (inputs) "
        "| total variation above perfect sampling "
        "| log p(y\\|x), nats: by the prior, by the weights; ELBO of the same pairs; log p(y\\|x) of a perfect model "
        "| pairs: both trusted, agree | k-hat > 0.7 | largest deviation of ranks (band of uniform ranks) |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, d in diagnoses.items():
        e, accuracy, evenness = d["evidence"]["summary"], d["metrics"]["sample_accuracy"], d["uniformity"].get("excess")
        deviation = max(ranks["deviation"] for ranks in d["ranks"]["summary"].values())
        perfect_log_p = e.get("log_p_perfect")
        lines.append(
            f"| `{name}` | {' | '.join(_level(d, subject) for subject in (SAMPLES, ESTIMATES, GUIDE))} "
            f"| {_number(accuracy)} ({d['metrics']['num_inputs']}) | {_number(evenness)} "
            f"| {e['log_p_prior']:.2f}, {e['log_p_guide']:.2f}; {e['iwae']['1']:.2f}; {_number(perfect_log_p, 2)} "
            f"| {e['both_trusted']}, {e['agree']} of {e['pairs']} | {e['khat_above']:.2f} "
            f"| {deviation:.2f} ({d['ranks']['band']:.2f}) |"
        )
    return "\n".join(lines)


def _level(diagnosis: dict[str, Any], subject: str) -> str:
    return worst_level(Verdict(**v) for v in diagnosis["verdicts"] if v["about"] == subject)


def _number(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}f}"
