"""Measure time and memory of solving the test graphs of ``coloring`` with N = 20, by ``solve.py`` and from Python.

Each time is the median of several measurements, in seconds. Nothing else should run on the machine.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import pyro_gram
from experiments.tables.cells import write_markdown
from pyro_gram.errors import UserError
from pyro_gram.system.cli import Parser, call
from pyro_gram.system.files import write_json
from pyro_gram.system.machine import environment

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT = ROOT / "checkpoints" / "coloring.safetensors"
NUM_SAMPLES = 20
MANY, LIMITS = 1000, (25.0, 100.0)  # trajectories per input, and two limits of the memory in MB

PEAK = """
import sys
import pyro_gram

def memory_mb(field):  # MB, of this process
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith(field)) / 1024

solver = pyro_gram.load(sys.argv[1])
graphs = ["GCR`v_", "GImxiG", "GitMd_", "G[bWhw"]
solver.sample(graphs, num_samples=1, halt=1)  # the first call allocates memory that stays
with open("/proc/self/clear_refs", "w") as f:
    f.write("5")  # reset the peak memory
before = memory_mb("VmRSS")
solver.sample(graphs, num_samples=int(sys.argv[2]), memory=float(sys.argv[3]), halt=1)
print(memory_mb("VmHWM") - before)
"""


def median_seconds(run: Callable[[], Any], repeats: int) -> float:
    """Return the median time of ``repeats`` calls."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def peak_mb(limit: float) -> float:
    """Return the rise of a process's peak memory, in MB, when it runs MANY trajectories of each of four graphs.

    It works on Linux only.
    """
    command = [sys.executable, "-c", PEAK, str(CHECKPOINT), str(MANY), str(limit)]
    return float(output(command))


def output(command: list[str]) -> str:
    """Run a program and return its output. Raises UserError with the end of its stderr if it fails."""
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if process.returncode:
        raise UserError(f"{' '.join(command[1:3])} failed: {process.stderr[-500:]}")
    return process.stdout


def measure(repeats: int, inputs: int | None = None) -> dict[str, Any]:
    """Measure times and memory on the first ``inputs`` graphs, or on all if ``inputs`` is None."""
    solver = pyro_gram.load(CHECKPOINT)
    x = solver.task.split("test").inputs
    assert x is not None
    if inputs is not None and not 1 <= inputs <= len(x):
        raise UserError(f"--inputs must be from 1 to the {len(x)} of the test split, not {inputs}")
    x = x[:inputs]
    first_input = x[:1]
    with tempfile.NamedTemporaryFile("w", suffix=".g6") as f:
        f.write("".join(solver.task.format_input(graph) + "\n" for graph in x))
        f.flush()
        command = [sys.executable, "experiments/solve.py", "--checkpoint", str(CHECKPOINT), "--input", f.name, "--json"]
        script_seconds = median_seconds(lambda: output(command), repeats)

    def sample(inputs: torch.Tensor, n: int, **settings: Any) -> Callable[[], Any]:
        return lambda: solver.sample(inputs, num_samples=n, **settings)

    sample(first_input, 1)()
    every_step_seconds = median_seconds(sample(x, NUM_SAMPLES, history=True), repeats)  # heads run at every step
    model: Any = solver.model
    heads, model.heads = model.heads, None
    no_heads_seconds = median_seconds(sample(x, NUM_SAMPLES, history=True), repeats)
    model.heads = heads
    return {
        "checkpoint": CHECKPOINT.stem,
        "inputs": len(x),
        "num_samples": NUM_SAMPLES,
        "depth": solver.config.depth,
        "halt": solver.config.heads.halt,
        "repeats": repeats,
        "seconds": {
            "solve_py": script_seconds,
            "halting": median_seconds(sample(x, NUM_SAMPLES), repeats),
            "never_halting": median_seconds(sample(x, NUM_SAMPLES, halt=1), repeats),
            "every_step_judged": every_step_seconds,
            "no_heads": no_heads_seconds,
            "one_input_n1": median_seconds(sample(first_input, 1, halt=1), repeats),
            "one_input_n20": median_seconds(sample(first_input, NUM_SAMPLES, halt=1), repeats),
        },
        "memory": [{"trajectories": MANY, "limit_mb": limit, "peak_mb": peak_mb(limit)} for limit in LIMITS],
        "environment": environment(),
    }


def markdown(bench: dict[str, Any]) -> str:
    """Return the times and the memory as a Markdown table."""
    times, n = bench["seconds"], bench["num_samples"]
    rows = [
        (f"`solve.py --json`, {bench['inputs']} graphs, N = {n}, from start to end", f"{times['solve_py']:.1f} s"),
        ("the same from Python, with the model loaded", f"{times['halting']:.1f} s"),
        (f"the same without halting, all {bench['depth']} steps", f"{times['never_halting']:.1f} s"),
        (
            "additional time if the heads run at every step",
            f"{times['every_step_judged'] / times['no_heads'] - 1:.0%}",
        ),
        ("one graph, N = 1, without halting", f"{1e3 * times['one_input_n1']:.0f} ms"),
        (f"one graph, N = {n}, without halting", f"{1e3 * times['one_input_n20']:.0f} ms"),
    ]
    rows += [
        (
            f"peak memory of {m['trajectories']:,} trajectories of each of four graphs, `--memory {m['limit_mb']:g}`",
            f"{m['peak_mb']:.0f} MB",
        )
        for m in bench["memory"]
    ]
    return "\n".join(["| `coloring` | |", "|---|---|", *(f"| {label} | {value} |" for label, value in rows)])


def main(argv: list[str]) -> int:
    parser = Parser("bench_solve.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("--repeats", type=int, default=5, metavar="K", help="(default 5)")
    parser.add_argument("--inputs", type=int, metavar="B", help="solve the first B graphs only (default: all)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the JSON to FILE as well")
    arguments = parser.parse_args(argv)
    if arguments.repeats < 1:
        raise UserError(f"--repeats must be at least 1, not {arguments.repeats}")
    results = measure(arguments.repeats, arguments.inputs)
    if arguments.out:
        write_json(arguments.out, results)
        write_markdown(arguments.out, markdown(results))
    print(json.dumps(results, indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(call(main))
