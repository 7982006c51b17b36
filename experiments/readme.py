"""Write the tables of the README from the committed JSON files, so that no number in it is typed by hand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pyro_gram.cli import Parser, call
from pyro_gram.errors import UserError
from pyro_gram.files import read_json, write_bytes

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "checkpoints" / "coloring8.results.json"
BENCH = ROOT / "experiments" / "bench.json"


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
            f"log p(y\\|x), {m['log_likelihood_inputs']} graphs, {m['log_likelihood_samples']} prior samples each",
            f"{m['log_likelihood_prior_mc']:.2f}",
        ),
        ("the best possible on those graphs: minus the mean of log m", f"{m['log_likelihood_limit']:.2f}"),
        ("the best possible ELBO: minus the mean of log m on all", f"{-m['log_num_solutions']:.2f}"),
        ("parameters", f"{results['parameters']:,} (guide {results['guide_parameters']:,})"),
        ("seconds: training, evaluation", f"{seconds['train']:.0f}, {seconds['evaluate']:.0f}"),
        ("peak memory", f"{results['peak_memory_mb']:.0f} MB"),
    ]
    return "\n".join(["| | |", "|---|---|", *(f"| {label} | {value} |" for label, value in rows)])


def bench_table(bench: dict[str, Any]) -> str:
    lines = [
        "| step | Pyro | bare torch | ratio, median (quartiles) |",
        "|---|---|---|---|",
    ]
    for row in bench["steps"]:
        low, high = row["ratio_quartiles"]
        lines.append(
            f"| {row['size']}: batch {row['batch']}, {row['positions']} positions | {row['pyro_ms']:.0f} ms "
            f"| {row['torch_ms']:.0f} ms | {row['pyro_over_torch']:.3f} ({low:.3f} to {high:.3f}) |"
        )
    env = bench["environment"]
    lines.append("")
    lines.append(
        f"`python experiments/bench.py --out experiments/bench.json`, {env['threads']} threads, torch {env['torch']}, "
        f"Pyro {env['pyro']}: the same step with and without Pyro, timed in turn."
    )
    return "\n".join(lines)


def fill(text: str, name: str, content: str) -> str:
    """``text`` with ``content`` between the markers of ``name``. Raises UserError where they are missing."""
    pattern = re.compile(rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
    if not pattern.search(text):
        raise UserError(f"README.md has no '<!-- begin {name} -->' ... '<!-- end {name} -->'")
    return pattern.sub(lambda match: f"{match[1]}{content}\n{match[2]}", text)


def filled(text: str) -> str:
    text = fill(text, "results", results_table(read_json(RESULTS)))
    return fill(text, "bench", bench_table(read_json(BENCH)))


def main(argv: list[str]) -> int:
    Parser("readme.py", description=__doc__).parse_args(argv)
    path = ROOT / "README.md"
    write_bytes(path, filled(path.read_text()).encode())
    return 0


if __name__ == "__main__":
    raise SystemExit(call(main))
