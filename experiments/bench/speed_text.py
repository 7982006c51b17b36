"""What the benchmarks measured, as Markdown."""

from __future__ import annotations

from typing import Any


def solve_table(bench: dict[str, Any]) -> str:
    seconds, n = bench["seconds"], bench["num_samples"]
    rows = [
        (f"`solve.py --json`, {bench['inputs']} graphs, N = {n}, from start to end", f"{seconds['solve_py']:.1f} s"),
        ("the same from Python, the model loaded", f"{seconds['halting']:.1f} s"),
        (f"without halting, all {bench['depth']} steps", f"{seconds['never_halting']:.1f} s"),
        (
            "heads at every step, in addition",
            f"{seconds['every_step_judged'] / seconds['no_heads'] - 1:.0%}",
        ),
        ("one graph, N = 1, without halting", f"{1e3 * seconds['one_input_n1']:.0f} ms"),
        (f"one graph, N = {n}, without halting", f"{1e3 * seconds['one_input_n20']:.0f} ms"),
    ]
    rows += [
        (
            f"most memory of {m['trajectories']:,} trajectories of four graphs, `--memory {m['limit_mb']:g}`",
            f"{m['peak_mb']:.0f} MB",
        )
        for m in bench["memory"]
    ]
    return "\n".join(["| `coloring8` | |", "|---|---|", *(f"| {label} | {value} |" for label, value in rows)])


def bench_table(bench: dict[str, Any], other: dict[str, Any]) -> str:
    """Training: Pyro against bare torch, and both against the products alone; then sampling, memory and growth.

    ``other``: the same of another machine, whose ratios are told.
    """
    lines = [
        "| step | Pyro | bare torch | ratio, median (quartiles) | GFLOP/s, of the products alone |",
        "|---|---|---|---|---|",
    ]
    for row in bench["steps"]:
        low, high = row["ratio_quartiles"]
        lines.append(
            f"| {row['size']}: batch {row['batch']}, {row['positions']} positions | {row['pyro_ms']['median']:.0f} ms "
            f"| {row['torch_ms']['median']:.0f} ms | {row['pyro_over_torch']:.3f} ({low:.3f} to {high:.3f}) "
            f"| {row['gflops']:.0f} of {row['machine_gflops']:.0f}: {row['roofline_fraction']:.2f} |"
        )
    lines += ["", "| trajectories a second, one input | N = 1 | N = 20 | N = 100 | time of 20 over that of 1 |"]
    lines.append("|---|---|---|---|---|")
    for row in bench["sampling"]:
        rates = " | ".join(f"{w['trajectories_per_second']:.0f}" for w in row["widths"])
        depth = row["widths"][0]["depth"]
        title = f"{row['size']}: {row['positions']} positions, depth {depth}"
        lines.append(f"| {title} | {rates} | {row['width20_over_width1']:.1f} |")
    held = bench["memory"]["peak_mb_by_n_sup"]
    env = bench["environment"]
    lines.append("")
    lines += [_compiled(row) for row in bench["compiled"]]
    lines += [
        f"- A batch of 64 supervision steps takes {held['64']:.0f} MB, one of 4 {held['4']:.0f} MB.",
        f"- A training step grows as D to the power {bench['growth']['D']['power']:.2f} (64 to 256) and L to the power "
        f"{bench['growth']['L']['power']:.2f} (16 to 128), sampling as N to the power "
        f"{bench['growth']['N']['power']:.2f} (1 to 100).",
        f"- Making a batch takes {bench['steps'][0]['batch_made_ms']:.1f} ms, training it four steps of "
        f"{bench['steps'][0]['pyro_ms']['median']:.0f} ms: data are not on the critical path.",
    ]
    lines.append("")
    lines.append(
        "`python experiments/bench/bench.py --out experiments/bench/bench.json` (`--quick`: a part, under 50 s on two "
        "idle cores), "
        f"{env['threads']} threads of an {env['processor']}, torch {env['torch']}, Pyro {env['pyro']}; what is "
        "compared is timed in turn."
    )
    lines += ["", _elsewhere(other)]
    return "\n".join(lines)


def _elsewhere(bench: dict[str, Any]) -> str:
    ratios = "; ".join(
        f"{row['size']} {row['pyro_over_torch']:.3f}, {row['gflops']:.0f} of {row['machine_gflops']:.0f} GFLOP/s: "
        f"{row['roofline_fraction']:.2f}"
        for row in bench["steps"]
        if row["size"] in ("cpu", "cells")
    )
    return (
        "How near a step comes to its products is the machine's doing too: on another, of "
        f"{bench['environment']['threads']} threads (`experiments/bench/bench_other.json`, an earlier version of the "
        f"benchmark), {ratios} ({bench['roofline_fraction_compiled']:.2f} compiled)."
    )


def _compiled(row: dict[str, Any]) -> str:
    pays = row["pays_after_steps"]
    when = f"pays after {pays:,.0f} steps" if pays else "does not pay"
    return (
        f"- `--train.compile true`, {row['size']}: {row['compile_seconds']:.0f} s of compiling, then "
        f"{row['plain_over_compiled']:.2f} times as fast, {row['roofline_fraction']:.2f} of the products alone: {when}."
    )


def survive_line(found: dict[str, Any]) -> str:
    """The trials of ``survive.py``, in a sentence."""
    return (
        f"`python experiments/bench/survive.py --kills {found['kills']} --out experiments/bench/survive.json` killed "
        f"{found['kills']} runs with SIGKILL at random moments, {found['before_the_first_save']} of them before "
        f"anything was saved and {found['inside_a_batch']} between two updates of one batch, and resumed them: "
        f"{found['identical']} of {found['kills']} ended bit for bit as the run that nobody killed (weights, "
        "optimizer, averages, metrics, results)."
    )


def gpu_table(found: dict[str, Any]) -> str:
    """Hours of the paper's runs on one GPU, by precision."""
    ways = ["fp32", "tf32", "tf32, compiled", "bf16", "bf16, compiled"]
    lines = [f"| `paper` preset, hours on one {found['device']} | {' | '.join(ways)} |", "|---" * 6 + "|"]
    for task, one in found["tasks"].items():
        hours = {f"{w['precision']}{', compiled' if w['compiled'] else ''}": w for w in one["ways"]}
        cells = [
            f"{hours[way]['hours_of_the_run']:.1f} ({hours[way]['tflops']:.0f} TFLOP/s)" if way in hours else ""
            for way in ways
        ]
        lines.append(f"| {task} | {' | '.join(cells)} |")
    return "\n".join(lines)
