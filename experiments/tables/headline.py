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
from pyro_gram.diagnostics import paper
from pyro_gram.diagnostics.verdicts import ESTIMATES, GUIDE, SAMPLES, Verdict, worst_level
from pyro_gram.sampling.tempering import TemperConfig
from pyro_gram.system.files import read_json

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINTS = ROOT / "checkpoints"
LOOKUP = ROOT / "experiments" / "studies" / "lookup.json"
FRESH = ROOT / "experiments" / "studies" / "fresh.json"
ACCURACIES = ("sample_accuracy", "vote_accuracy")
SAMPLING_CHECKPOINTS = ("sudoku4-uncond", "mnist")
SOLVING_CHECKPOINTS = ("coloring8", "coloring10", "nqueens8", "nqueens10", "sudoku4", "sudoku6")
BY_ORBIT = {"nqueens8-orbit": "nqueens8", "nqueens10-orbit": "nqueens10"}  # the name of each problem in lookup.json
HEADLINE = (
    "coloring8",
    "coloring10",
    "nqueens8",
    "nqueens8-orbit",
    "nqueens10",
    "nqueens10-orbit",
    "sudoku4",
    "sudoku6",
)
SEEDS_TABLE_CHECKPOINTS = ("coloring8", "coloring10", "nqueens8", "nqueens8-orbit", "nqueens10", "nqueens10-orbit")
MARKED_CHECKPOINTS = (
    "coloring8",
    "coloring10",
    "nqueens8",
    "nqueens10",
)  # figures of test inputs of these checkpoints were known before the settings were final


def read_results(name: str) -> dict[str, Any]:
    return read_json(CHECKPOINTS / f"{name}.results.json")


def read_seeds(name: str) -> list[dict[str, Any]]:
    """Return the committed results of a checkpoint and of its other seeds, sorted by seed. The list may be empty."""
    paths = [CHECKPOINTS / f"{name}.results.json", *CHECKPOINTS.glob(f"{name}.seed*.results.json")]
    return sorted((read_json(path) for path in paths if path.exists()), key=lambda results: results["seed"])


def cells(metrics: list[dict[str, Any]]) -> str:
    """Return the cells for accuracy, vote, violations and coverage, over several seeds on the same inputs."""
    inputs = metrics[0]["num_inputs"]
    accuracy, vote = (
        share_with_interval([m[name] for m in metrics], inputs) for name in ("sample_accuracy", "vote_accuracy")
    )
    violations = fmean(m["violations"] for m in metrics)
    violations_cell = f"{violations:.0f}" if len(metrics) == 1 else f"{violations:.1f}"
    coverage = f"{mean_and_sd([m['coverage'] for m in metrics])} ({metrics[0]['coverage_limit']:.3f})"
    return f"{accuracy} | {vote} | {violations_cell} | {coverage}"


def solved_table() -> str:
    """Return the table of the checkpoints that solve puzzles.

    For comparison it also shows their results on fresh inputs, the results of a lookup, and the paper's.
    """
    lookup, fresh = read_json(LOOKUP)["problems"], read_json(FRESH)
    lines = [
        "| checkpoint, `run.py` ... | unseen inputs | seeds | accuracy, one sample | vote of 20 "
        "| violations, first samples | coverage, 20 samples (limit) | training | paper: accuracy, coverage |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in HEADLINE:
        seeds = read_seeds(name)
        if seeds:
            lines.append(_trained_row(name, seeds))
        if name in fresh:
            lines.append(_fresh_row(fresh[name]))
        if name in lookup:
            lines.append(_lookup_row("a lookup in the training answers, no network", lookup[name]["input"]))
        elif name in BY_ORBIT:
            problem = BY_ORBIT[name]
            lines.append(_lookup_row(f"a lookup, `{problem}` split by orbit", lookup[problem]["orbit"]))
    return "\n".join(lines)


def _trained_row(name: str, seeds: list[dict[str, Any]]) -> str:
    metrics = [results["metrics"] for results in seeds]
    minutes = fmean(results["seconds"]["train"] for results in seeds) / 60
    mark = " †" if name in MARKED_CHECKPOINTS else ""
    split = ", split by orbit" if name in BY_ORBIT else ""
    return (
        f"| `{name}`, `{run_options(seeds[0])}`{mark} | {metrics[0]['num_inputs']:,}{split} | {len(seeds)} "
        f"| {cells(metrics)} | {minutes:.0f} min, {thread_count(seeds[0])} | {paper_cell(name)} |"
    )


def _fresh_row(study: dict[str, Any]) -> str:
    metrics = [m | {"num_inputs": study["num_inputs"]} for m in study["draws"]]
    inputs_text = f"{study['num_inputs']:,}: {study['what']}"
    if study["what"].startswith("data_seed"):
        inputs_text += f", {study['one_solution']:.0%} with one solution (test split {study['one_solution_test']:.0%})"
    seeds = f"1; {len(metrics)} of draws"
    return f"| the same weights, inputs never measured before | {inputs_text} | {seeds} | {cells(metrics)} | | |"


def _lookup_row(label: str, split: dict[str, Any]) -> str:
    metrics, inputs = split["images"], split["test"]
    copies = f"{split['symmetric_copies']:,} of {inputs:,} with an image in training"
    accuracy = share_with_interval([metrics["sample_accuracy"]], inputs)
    coverage = f"{metrics['coverage']:.3f} ({split['coverage_limit']:.3f})"
    return f"| {label} | {copies} | | {accuracy} | {accuracy} | | {coverage} | none | |"


def orbit_line() -> str:
    """Return a text that compares the results on the split by orbit with those on the paper's split."""
    by_orbit, by_input = read_seeds("nqueens8-orbit"), read_seeds("nqueens8")
    if not by_orbit:
        return "No model trained on this split is committed yet."
    seeds_text = "1 seed" if len(by_orbit) == 1 else f"{len(by_orbit)} seeds"
    accuracy, vote = (
        [fmean(results["metrics"][name] for results in seeds) for seeds in (by_orbit, by_input)]
        for name in ("sample_accuracy", "vote_accuracy")
    )
    have_one_solution = all(results["metrics"]["log_num_solutions"] == 0 for results in by_orbit)
    completions = (
        "Each of these inputs has one completion, so coverage is the share of inputs with a right answer among 20. "
        if have_one_solution
        else ""
    )
    return (
        f"A model was trained on this split with the settings of `nqueens8` ({seeds_text}). Its accuracy is "
        f"{accuracy[0]:.3f} for one sample and {vote[0]:.3f} for the vote of 20; on the paper's split it is "
        f"{accuracy[1]:.3f} and {vote[1]:.3f}. {completions}No model of 10 queens was trained on this split. (The "
        "machine was busy with other work, so the minutes of training mean nothing.)"
    )


def paper_cell(name: str) -> str:
    """Return the paper's accuracy (or number of conflicting edges) of a problem, and its coverage."""
    numbers = paper.published(name)
    if not numbers:
        return ""
    first = f"{numbers['violations']} conflicts" if "violations" in numbers else _share(numbers["sample_accuracy"])
    return f"{first}, {_share(numbers['coverage'])}"


def _share(value: float) -> str:
    return f"{value:.3f}".lstrip("0")


def run_options(results: dict[str, Any]) -> str:
    """Return the options of ``run.py`` with which a checkpoint was trained."""
    preset = "" if results["preset"] == "cpu" else f" --preset {results['preset']}"
    return f"--task {results['task']}{preset}"


def thread_count(results: dict[str, Any]) -> str:
    threads = results["environment"]["threads"]
    return f"{threads} thread{'' if threads == 1 else 's'}"


def seeds_table() -> str:
    """Return the table with a row for each seed of each run. Seed 0 is the committed checkpoint."""
    lines = [
        "| run | seed | prior | accuracy of all samples (of the first) | violations, first samples | coverage / limit "
        "| total variation to uniform (perfect sampling) | excess, nats | validation accuracy: last, best |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in SEEDS_TABLE_CHECKPOINTS:
        untempered_path = CHECKPOINTS / f"{name}.untempered.results.json"
        for results in [*read_seeds(name), *([read_json(untempered_path)] if untempered_path.exists() else [])]:
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
    return TemperConfig(metrics["temper_scale"], metrics["temper_transitions"]).describe() or "untempered"


def results_table(name: str) -> str:
    """Return the detailed table of one checkpoint: means over seeds ± deviations, and results on fresh inputs."""
    seeds, fresh = read_seeds(name), read_json(FRESH)[name]
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
        *_fresh_details(fresh),
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
        ("log p(y\\|x) of a perfect model on these graphs, the mean of -log m", f"{first['log_likelihood_limit']:.2f}"),
        ("ELBO of a perfect model on all graphs, the mean of -log m", f"{-first['log_num_solutions']:.2f}"),
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


def _fresh_details(study: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the rows of :func:`results_table` for fresh inputs."""
    draws, count = study["draws"], study["num_inputs"]
    accuracy, vote = (
        share_with_interval([m[name] for m in draws], count) for name in ("sample_accuracy", "vote_accuracy")
    )
    coverage = mean_and_sd([m["coverage"] for m in draws])
    return [
        (f"seed 0 on {count:,} fresh graphs, {len(draws)} seeds of the draws: accuracy, one sample", accuracy),
        ("the same: vote", vote),
        ("the same: coverage (the limit)", f"{coverage} ({draws[0]['coverage_limit']:.3f})"),
    ]


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
        "| checkpoint | its answers | its likelihoods | its guide | right samples "
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
            f"| {_number(accuracy)} | {_number(evenness)} "
            f"| {e['log_p_prior']:.2f}, {e['log_p_guide']:.2f}; {e['iwae']['1']:.2f}; {_number(perfect_log_p, 2)} "
            f"| {e['both_trusted']}, {e['agree']} of {e['pairs']} | {e['khat_above']:.2f} "
            f"| {deviation:.2f} ({d['ranks']['band']:.2f}) |"
        )
    return "\n".join(lines)


def _level(diagnosis: dict[str, Any], subject: str) -> str:
    return worst_level(Verdict(**v) for v in diagnosis["verdicts"] if v["about"] == subject)


def _number(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}f}"
