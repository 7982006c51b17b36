"""Measure how fast this machine trains and samples: ``python experiments/bench/bench.py``.

    python experiments/bench/bench.py --quick              # under 50 s
    python experiments/bench/bench.py --out experiments/bench/bench.json

It compares an SVI step with the same step in plain torch, and with its matrix products alone. It measures the memory
for two numbers of supervision steps, the trajectories per second for several N and depths, and how time grows with D, L
and N. Results are medians and quartiles. Calls that are compared are timed in turn. Nothing else should run meanwhile.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from experiments.bench.bench_steps import (
    SIZES,
    Products,
    assemble,
    compare,
    make_trainer,
    on_random_tokens,
    pyro_step,
    spread,
    time_call,
    time_in_turn,
)
from experiments.tables.cells import write_markdown
from pyro_gram.build import build
from pyro_gram.config import RunConfig, with_settings
from pyro_gram.errors import UserError
from pyro_gram.sampling.rollout import rollout
from pyro_gram.system.cli import Parser, call
from pyro_gram.system.files import check_writable, read_json, write_json
from pyro_gram.system.machine import environment, peak_memory_mb, resident_memory_mb
from pyro_gram.training.dry_run import prepare_core
from pyro_gram.training.precision import has_compiler

SAMPLE_COUNTS, DEPTHS = (1, 20, 100), (4, 8, 16, 32, 64)
DEPTH, NUM_SAMPLES = 16, 20  # the depth of rollouts with various N, and the N of rollouts with various depths
STEPS = (4, 64)  # numbers of supervision steps (N_sup) whose peak memory is compared
CHANNELS, LENGTHS = (64, 128, 256), (16, 32, 64, 128)  # values of D (channels) and of L (positions)
GROWTH_BATCH = 16
SAMPLING_SIZES = ("cpu", "cells")
PARTS = ["steps", "memory", "sampling", "growth", "compiled"]
QUICK = PARTS[:3]
TABLE_KEYS = {"steps", "memory", "sampling", "growth", "compiled"}  # the table is written if the JSON has all these
OTHER_JSON = Path(__file__).with_name("bench_other.json")
MEMORY_SIZE = "edge"  # the entry of SIZES whose memory is measured


def seconds_of(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, dict[str, Any]]:
    """Time functions in turn, after one round of warm-up. Return the median and quartiles of the seconds of each."""
    time_in_turn(calls, 1)
    rounds = time_in_turn(calls, repeats)
    return {name: spread([r[name] for r in rounds]) for name in calls}


def sampling(name: str, repeats: int, depths: tuple[int, ...] = DEPTHS) -> dict[str, Any]:
    """Time trajectories of one input: several N at depth 16, and 20 trajectories at several depths."""
    solver = assemble(name)
    x = solver.task.split("test").inputs
    assert x is not None

    axes = {(w, DEPTH) for w in SAMPLE_COUNTS} | {(NUM_SAMPLES, d) for d in depths}
    calls: dict[str, Callable[[], Any]] = {
        f"{w}x{d}": partial(rollout, solver.model, x[:1], num_samples=w, depth=d) for w, d in sorted(axes)
    }
    seconds = seconds_of(calls, repeats)

    def row(width: int, depth: int) -> dict[str, Any]:
        times = seconds[f"{width}x{depth}"]
        return {"width": width, "depth": depth, "seconds": times, "trajectories_per_second": width / times["median"]}

    widths = [row(w, DEPTH) for w in SAMPLE_COUNTS]
    return {
        "size": name,
        "positions": solver.task.spec.positions,
        "widths": widths,
        "depths": [row(NUM_SAMPLES, d) for d in depths],
        "width20_over_width1": seconds[f"20x{DEPTH}"]["median"] / seconds[f"1x{DEPTH}"]["median"],
    }


def growth(repeats: int) -> dict[str, Any]:
    """Time a training step for several D and L, and sampling for several N. Return times and exponents of growth."""
    solver = assemble("cells")
    config = solver.config

    def config_of_width(channels: int) -> RunConfig:
        return with_settings(config, {"model": {"width": channels, "hidden": channels}})

    channels = {str(d): on_random_tokens(config_of_width(d), 64, GROWTH_BATCH) for d in CHANNELS}
    lengths = {str(n): on_random_tokens(config, n, GROWTH_BATCH) for n in LENGTHS}
    x = solver.task.split("test").inputs
    assert x is not None
    rollouts: dict[str, Callable[[], Any]] = {
        str(n): partial(rollout, solver.model, x[:1], num_samples=n, depth=4) for n in (1, 10, 100)
    }
    results = {}
    for axis, calls in (("D", channels), ("L", lengths), ("N", rollouts)):
        seconds = seconds_of(calls, repeats)
        first, *_, last = calls
        results[axis] = {"seconds": seconds, "power": power(seconds, first, last)}
    return {"size": "cells", "batch": GROWTH_BATCH, **results}


def power(seconds: dict[str, dict[str, Any]], first: str, last: str) -> float:
    """Return the exponent a such that time grows as ``size ** a`` from the first size to the last."""
    ratio = seconds[last]["median"] / seconds[first]["median"]
    return float(torch.tensor(ratio).log() / torch.tensor(int(last) / int(first)).log())


def memory(name: str) -> dict[str, float]:
    """Measure in another process the peak memory (MiB) of training a batch, for each N_sup in ``STEPS``."""
    command = [sys.executable, "-m", "experiments.bench.bench", "--memory-of", name]
    process = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    if process.returncode:
        raise UserError(f"{' '.join(command[1:])} failed: {process.stderr[-500:]}")
    return json.loads(process.stdout)


def own_memory(name: str) -> dict[str, float]:
    """Measure in this process the peak memory (MiB) of training a batch, for each N_sup in ``STEPS``."""
    before, peak_mb = resident_memory_mb(), {}
    trainer = make_trainer(assemble(name))
    for steps in STEPS:  # the recorded peak memory never falls: the batch with fewer steps must come first
        trainer.config = replace(trainer.config, supervision_steps=steps, on_policy_depth=0)
        trainer.train_batch(*trainer.batches(0))
        peak_mb[str(steps)] = peak_memory_mb() - before
    return peak_mb


def compiled(name: str, repeats: int) -> dict[str, Any]:
    """Time a training step with a plain core and with a compiled core, in turn. Also time the compiling itself.

    ``pays_after_steps`` is the number of steps after which the saved time exceeds the time of compiling.
    """
    plain = assemble(name)
    trainers = [
        make_trainer(build(with_settings(plain.config, {"train": {"compile": choice}}))) for choice in (False, True)
    ]
    x, y = trainers[0].batches(0)
    assert x is not None
    steps = [pyro_step(trainer, x, y) for trainer in trainers]
    with Products() as products:
        steps[0]()
    # The cache is empty, so that the core is really compiled.
    with tempfile.TemporaryDirectory() as empty, patch.dict(os.environ, {"TORCHINDUCTOR_CACHE_DIR": empty}):
        compile_seconds = time_call(lambda: prepare_core(trainers[1]))
    seconds = seconds_of({"plain": steps[0], "compiled": steps[1], "products": products.replay()}, repeats)
    saved_seconds = seconds["plain"]["median"] - seconds["compiled"]["median"]
    return {
        "size": name,
        "compile_seconds": compile_seconds,
        **{f"{version}_ms": {k: _ms(v) for k, v in times.items()} for version, times in seconds.items()},
        "plain_over_compiled": seconds["plain"]["median"] / seconds["compiled"]["median"],
        "roofline_fraction": seconds["products"]["median"] / seconds["compiled"]["median"],
        "pays_after_steps": compile_seconds / saved_seconds if saved_seconds > 0 else None,
    }


def _ms(seconds: Any) -> Any:
    return [1e3 * v for v in seconds] if isinstance(seconds, list) else 1e3 * seconds


def format_result(result: dict[str, Any]) -> str:
    """Return the measurements as text for the terminal."""
    lines = []
    for row in result.get("steps", []):
        low, high = row["ratio_quartiles"]
        lines.append(
            f"{row['size']:<11} batch {row['batch']:>4} x {row['positions']:>3} positions: "
            f"Pyro {row['pyro_ms']['median']:.1f} ms, torch {row['torch_ms']['median']:.1f} ms, "
            f"ratio {row['pyro_over_torch']:.3f} (quartiles {low:.3f}-{high:.3f}); {row['gflops']:.0f} of "
            f"{row['machine_gflops']:.0f} GFLOP/s, {row['roofline_fraction']:.2f}"
        )
    for row in result.get("sampling", []):
        rates = ", ".join(f"N = {w['width']}: {w['trajectories_per_second']:.0f}/s" for w in row["widths"])
        lines.append(f"{row['size']:<11} sampling {rates}; 20 take {row['width20_over_width1']:.1f} times as long as 1")
    if "memory" in result:
        lines.append(f"memory of 64 supervision steps over that of 4: {result['memory_ratio_n_sup']:.2f}")
    for row in result.get("compiled", []):
        break_even = row["pays_after_steps"]
        lines.append(
            f"{row['size']:<11} compiled core: {row['plain_over_compiled']:.2f} times as fast, "
            + (f"pays after {break_even:.0f} steps" if break_even else "never pays")
        )
    if "growth" in result:
        powers = ", ".join(f"{axis}^{result['growth'][axis]['power']:.2f}" for axis in "DLN")
        lines.append(f"time grows as {powers}")
    return "\n".join(lines)


def markdown(bench: dict[str, Any]) -> str:
    """Return all parts as Markdown tables, with the ratios of another machine (``bench_other.json``)."""
    lines = [
        "| step | Pyro | plain torch | ratio, median (quartiles) | GFLOP/s of the step, of its products alone: ratio |",
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
    peak_mb = bench["memory"]["peak_mb_by_n_sup"]
    env = bench["environment"]
    lines.append("")
    lines += [_compiled_line(row) for row in bench["compiled"]]
    lines += [
        f"- A batch of 64 supervision steps takes {peak_mb['64']:.0f} MB, a batch of 4 takes {peak_mb['4']:.0f} MB.",
        f"- The time of a training step grows as D to the power {bench['growth']['D']['power']:.2f} (64 to 256) and as "
        f"L to the power {bench['growth']['L']['power']:.2f} (16 to 128). The time of sampling grows as N to the power "
        f"{bench['growth']['N']['power']:.2f} (1 to 100).",
        f"- Making a batch takes {bench['steps'][0]['batch_made_ms']:.1f} ms; training it takes four steps of "
        f"{bench['steps'][0]['pyro_ms']['median']:.0f} ms.",
    ]
    lines.append("")
    lines.append(
        "`python experiments/bench/bench.py --out experiments/bench/bench.json` measured this with "
        f"{env['threads']} threads of an {env['processor']}, torch {env['torch']}, Pyro {env['pyro']}. (`--quick` "
        "measures a part, in less than 50 s on two idle cores.)"
    )
    lines += ["", _other_machine(read_json(OTHER_JSON))]
    return "\n".join(lines)


def _other_machine(bench: dict[str, Any]) -> str:
    sentences = " ".join(
        f"A step of `{row['size']}` takes {row['pyro_over_torch']:.3f} times as long as in plain torch; it reaches "
        f"{row['gflops']:.0f} of the {row['machine_gflops']:.0f} GFLOP/s of its products alone, a ratio of "
        f"{row['roofline_fraction']:.2f}."
        for row in bench["steps"]
        if row["size"] in ("cpu", "cells")
    )
    return (
        "The ratio of a step to its products depends on the machine. `experiments/bench/bench_other.json` was measured "
        f"on another machine, with {bench['environment']['threads']} threads and an earlier version of the benchmark. "
        f"{sentences} With a compiled core the ratio of `cells` is {bench['roofline_fraction_compiled']:.2f}."
    )


def _compiled_line(row: dict[str, Any]) -> str:
    break_even = row["pays_after_steps"]
    verdict = f"pays after {break_even:,.0f} steps" if break_even else "does not pay"
    return (
        f"- `--train.compile true`, {row['size']}: after {row['compile_seconds']:.0f} s of compiling, a step is "
        f"{row['plain_over_compiled']:.2f} times as fast, and reaches {row['roofline_fraction']:.2f} of the speed of "
        f"its products alone. Compiling {verdict}."
    )


def main(argv: list[str]) -> int:
    parser = Parser("bench.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer sizes, repeats and parts: under 50 s")
    parser.add_argument(
        "--repeats", type=int, metavar="N", help="rounds of steps for each size (default 40; 12 with --quick)"
    )
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, metavar="PART", help=f"measure only these: {', '.join(PARTS)}"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the JSON to FILE as well")
    parser.add_argument("--memory-of", choices=SIZES, help="print only the peak memory of this size, in MiB")
    arguments = parser.parse_args(argv)
    if arguments.memory_of:
        print(json.dumps(own_memory(arguments.memory_of)))
        return 0
    repeats = (12 if arguments.quick else 40) if arguments.repeats is None else arguments.repeats
    if repeats < 4:
        raise UserError(f"--repeats must be at least 4, not {repeats}")
    if arguments.out:
        check_writable(arguments.out)
    result: dict[str, Any] = {}
    if arguments.only and arguments.out and arguments.out.exists():
        result = read_json(arguments.out)  # keep the results of the parts that are not measured now
        if result.get("environment", environment()) != environment():
            raise UserError(f"{arguments.out} was measured on another machine or version: give another --out")
    for results in measure(repeats, arguments.quick, arguments.only or (QUICK if arguments.quick else PARTS)):
        result |= results | {"environment": environment()}
        if arguments.out:
            write_json(arguments.out, result)  # written after each part, so that a later failure loses nothing
    if arguments.out and result.keys() >= TABLE_KEYS:
        write_markdown(arguments.out, markdown(result))
    print(json.dumps(result, indent=2) if arguments.json else format_result(result))
    return 0


def measure(repeats: int, quick: bool, parts: list[str]) -> Iterator[dict[str, Any]]:
    """Measure the named parts one by one, and yield the results of each. ``quick`` uses fewer sizes and repeats."""
    if "steps" in parts:
        rows = []
        for name in ("cpu", "cells") if quick else SIZES:
            print(f"timing {name}", file=sys.stderr)
            rows.append(compare(name, max(4, repeats // 2) if quick and name == "cells" else repeats))
        row_by_size = {row["size"]: row for row in rows}
        yield {
            # Our target for the speed is stated for the size ``cells``: D = 128, 64 positions, batch 64.
            "pyro_over_torch": row_by_size["cells"]["pyro_over_torch"],
            "roofline_fraction": row_by_size["cells"]["roofline_fraction"],
            "pyro_over_torch_of_the_main_job": row_by_size["cpu"]["pyro_over_torch"],
            "steps": rows,
        }
    if "memory" in parts:
        print("memory", file=sys.stderr)
        peak_mb = memory(MEMORY_SIZE)
        yield {
            "memory_ratio_n_sup": peak_mb[str(STEPS[1])] / peak_mb[str(STEPS[0])],
            "memory": {"size": MEMORY_SIZE, "peak_mb_by_n_sup": peak_mb},
        }
    if "sampling" in parts:
        print("sampling", file=sys.stderr)
        names, depths = (SAMPLING_SIZES[:1], (4, 64)) if quick else (SAMPLING_SIZES, DEPTHS)
        rows = [sampling(name, max(4, repeats // 8), depths) for name in names]
        yield {"width20_over_width1": rows[0]["width20_over_width1"], "sampling": rows}
    if "growth" in parts:
        print("growth", file=sys.stderr)
        yield {"growth": growth(max(4, repeats // 4))}
    if "compiled" in parts and has_compiler():
        results = []
        for name in ("cpu", "cells"):
            print(f"compiling {name}", file=sys.stderr)
            results.append(compiled(name, max(4, repeats // 4)))
        yield {"roofline_fraction_compiled": results[-1]["roofline_fraction"], "compiled": results}


if __name__ == "__main__":
    raise SystemExit(call(main))
