"""Tables over the committed checkpoints: their metrics over seeds, with a lookup and the paper for comparison.

An accuracy is that of one sample: the mean over all samples of an input. Where there are several seeds (of training, or
of the draws where the weights are fixed) a figure is their mean ± standard deviation; a share of inputs has its Wilson
95 % interval behind it.
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
GENERATED = ("sudoku4-uncond", "mnist")
SOLVED = ("coloring8", "coloring10", "nqueens8", "nqueens10", "sudoku4", "sudoku6")
BY_ORBIT = {"nqueens8-orbit": "nqueens8", "nqueens10-orbit": "nqueens10"}  # and what lookup.json calls the problem
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
REPEATED = ("coloring8", "coloring10", "nqueens8", "nqueens8-orbit", "nqueens10", "nqueens10-orbit")
TEST_SEEN = ("coloring8", "coloring10", "nqueens8", "nqueens10")  # studies/README.md: before the recipe was final


def read_results(name: str) -> dict[str, Any]:
    return read_json(CHECKPOINTS / f"{name}.results.json")


def read_seeds(name: str) -> list[dict[str, Any]]:
    """Return the results of a checkpoint and of its repeats, by seed; an empty list where none is committed."""
    paths = [CHECKPOINTS / f"{name}.results.json", *CHECKPOINTS.glob(f"{name}.seed*.results.json")]
    return sorted((read_json(path) for path in paths if path.exists()), key=lambda results: results["seed"])


def cells(metrics: list[dict[str, Any]]) -> str:
    """Return the cells for accuracy, vote, violations and coverage, of several seeds on the same inputs."""
    inputs = metrics[0]["num_inputs"]
    accuracy, vote = (
        share_with_interval([m[name] for m in metrics], inputs) for name in ("sample_accuracy", "vote_accuracy")
    )
    violations = fmean(m["violations"] for m in metrics)
    counted = f"{violations:.0f}" if len(metrics) == 1 else f"{violations:.1f}"
    coverage = f"{mean_and_sd([m['coverage'] for m in metrics])} ({metrics[0]['coverage_limit']:.3f})"
    return f"{accuracy} | {vote} | {counted} | {coverage}"


def solved_table() -> str:
    """Show every checkpoint that solves inputs, with fresh inputs, a lookup and the paper for comparison."""
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
            lines.append(_lookup_row("a lookup in the answers of training, no network", lookup[name]["input"]))
        elif name in BY_ORBIT:
            problem = BY_ORBIT[name]
            lines.append(_lookup_row(f"a lookup, `{problem}` split by orbit", lookup[problem]["orbit"]))
    return "\n".join(lines)


def _trained_row(name: str, seeds: list[dict[str, Any]]) -> str:
    metrics = [results["metrics"] for results in seeds]
    minutes = fmean(results["seconds"]["train"] for results in seeds) / 60
    mark = " †" if name in TEST_SEEN else ""
    split = ", split by orbit" if name in BY_ORBIT else ""
    return (
        f"| `{name}`, `{run_options(seeds[0])}`{mark} | {metrics[0]['num_inputs']:,}{split} | {len(seeds)} "
        f"| {cells(metrics)} | {minutes:.0f} min, {thread_count(seeds[0])} | {paper_cell(name)} |"
    )


def _fresh_row(study: dict[str, Any]) -> str:
    metrics = [m | {"num_inputs": study["num_inputs"]} for m in study["draws"]]
    which = f"{study['num_inputs']:,}: {study['what']}"
    if study["what"].startswith("data_seed"):
        which += f", {study['one_solution']:.0%} with one solution (test split {study['one_solution_test']:.0%})"
    seeds = f"1; {len(metrics)} of draws"
    return f"| the same weights, inputs nobody had measured | {which} | {seeds} | {cells(metrics)} | | |"


def _lookup_row(label: str, split: dict[str, Any]) -> str:
    metrics, inputs = split["images"], split["test"]
    copies = f"{split['symmetric_copies']:,} of {inputs:,} with an image in training"
    accuracy = share_with_interval([metrics["sample_accuracy"]], inputs)
    coverage = f"{metrics['coverage']:.3f} ({split['coverage_limit']:.3f})"
    return f"| {label} | {copies} | | {accuracy} | {accuracy} | | {coverage} | none | |"


def orbit_line() -> str:
    """Return a text that compares the split by orbit of solutions with the paper's split, under one recipe."""
    by_orbit, by_input = read_seeds("nqueens8-orbit"), read_seeds("nqueens8")
    if not by_orbit:
        return "No model trained on it is committed yet."
    counted = "1 seed" if len(by_orbit) == 1 else f"{len(by_orbit)} seeds"
    one, vote = (
        [fmean(results["metrics"][name] for results in seeds) for seeds in (by_orbit, by_input)]
        for name in ("sample_accuracy", "vote_accuracy")
    )
    single = all(results["metrics"]["log_num_solutions"] == 0 for results in by_orbit)
    completions = (
        "Each of these inputs has one completion, so that coverage is a right answer among 20. " if single else ""
    )
    return (
        f"Trained on it by the recipe of `nqueens8` ({counted}), a sample is right for {one[0]:.3f} of these inputs "
        f"and the vote of 20 for {vote[0]:.3f}, beside {one[1]:.3f} and {vote[1]:.3f} on the paper's split. "
        f"{completions}"
        "10 queens were not trained on it. (It "
        "trained on a machine busy with other work: its minutes are no measure.)"
    )


def paper_cell(name: str) -> str:
    """Return the paper's accuracy (or conflicting edges in all test graphs) and coverage of the same problem."""
    numbers = paper.published(name)
    if not numbers:
        return ""
    first = f"{numbers['violations']} conflicts" if "violations" in numbers else _share(numbers["sample_accuracy"])
    return f"{first}, {_share(numbers['coverage'])}"


def _share(value: float) -> str:
    return f"{value:.3f}".lstrip("0")


def run_options(results: dict[str, Any]) -> str:
    """Return the options of ``run.py`` that make a checkpoint."""
    preset = "" if results["preset"] == "cpu" else f" --preset {results['preset']}"
    return f"--task {results['task']}{preset}"


def thread_count(results: dict[str, Any]) -> str:
    threads = results["environment"]["threads"]
    return f"{threads} thread{'' if threads == 1 else 's'}"


def seeds_table() -> str:
    """Show the runs whose recipe was repeated with other seeds; seed 0 is the checkpoint."""
    lines = [
        "| run | seed | prior | accuracy of all samples (of the first) | violations, first samples | coverage / limit "
        "| total variation to uniform (perfect sampling) | excess, nats | last look, best look |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in REPEATED:
        plain = CHECKPOINTS / f"{name}.untempered.results.json"
        for results in [*read_seeds(name), *([read_json(plain)] if plain.exists() else [])]:
            m, looks = results["metrics"], results["looks"]
            lines.append(
                f"| `{name}` | {results['seed']} | {_prior(m)}, {m['depth']} steps "
                f"| {m['sample_accuracy']:.3f} ({m['accuracy']:.3f}) | {m['violations']} in {m['num_inputs']} "
                f"| {m['coverage_ratio']:.3f} | {m['total_variation']:.3f} ({m['total_variation_perfect']:.3f}) "
                f"| {m['excess']:.2f} | {looks['last_accuracy']:.3f}, {looks['best_accuracy']:.3f} |"
            )
    return "\n".join(lines)


def _prior(metrics: dict[str, Any]) -> str:
    """Describe how the prior was sampled."""
    return TemperConfig(metrics["temper_scale"], metrics["temper_transitions"]).describe() or "as it is"


def results_table(name: str) -> str:
    """Show one checkpoint in detail: means over seeds ± standard deviations, and the same weights on fresh inputs."""
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
        ("a perfect model's, on average: minus the mean of log m on them", f"{first['log_likelihood_limit']:.2f}"),
        ("a perfect model's ELBO, on average: minus the mean of log m on all", f"{-first['log_num_solutions']:.2f}"),
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
    """Return the lines of :func:`results_table` on fresh inputs."""
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
    """Show the committed models p(x); ``deterministic``: the JSON of ``mnist_deterministic.py``."""
    boards, digits = read_results("sudoku4-uncond"), read_results("mnist")
    b, d = boards["metrics"], digits["metrics"]
    trm = deterministic["deterministic"]
    short = f"{deterministic['batches']} batches of the {digits['batches']:,} of `mnist`"
    rows = [
        (
            f"`sudoku4-uncond` (`{run_options(boards)}`), {b['num_samples']:,} samples: valid boards",
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
            f"`mnist` (`{run_options(digits)}`) †, {d['num_samples']:,} samples: Frechet distance",
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


def diagnoses_table(diagnoses: dict[str, dict[str, Any]]) -> str:
    """Show what ``diagnose.py`` found for each checkpoint."""
    lines = [
        "| checkpoint | its answers | its likelihoods | its guide | right samples "
        "| total variation above perfect sampling "
        "| log p(y\\|x), nats: prior, weights; ELBO of the same pairs; a perfect model's "
        "| pairs: both trusted, agree | k-hat too high | largest deviation of ranks (of uniform ones) |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, d in diagnoses.items():
        e, right, even = d["evidence"]["summary"], d["metrics"]["sample_accuracy"], d["uniformity"].get("excess")
        deviation = max(ranks["deviation"] for ranks in d["ranks"]["summary"].values())
        perfect = e.get("log_p_perfect")
        lines.append(
            f"| `{name}` | {' | '.join(_level(d, about) for about in (SAMPLES, ESTIMATES, GUIDE))} "
            f"| {_number(right)} | {_number(even)} "
            f"| {e['log_p_prior']:.2f}, {e['log_p_guide']:.2f}; {e['iwae']['1']:.2f}; {_number(perfect, 2)} "
            f"| {e['both_trusted']}, {e['agree']} of {e['pairs']} | {e['khat_above']:.2f} "
            f"| {deviation:.2f} ({d['ranks']['band']:.2f}) |"
        )
    return "\n".join(lines)


def _level(diagnosis: dict[str, Any], about: str) -> str:
    return worst_level(Verdict(**v) for v in diagnosis["verdicts"] if v["about"] == about)


def _number(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}f}"
