"""Kill runs at random moments, resume them, and compare their results with those of an uninterrupted run.

    python experiments/bench/survive.py --kills 50 --out experiments/bench/survive.json

Each trial starts the same small run, which saves its state after every batch. The trial kills the run with SIGKILL at a
random moment (during imports, training, saving or evaluation) and resumes it. The weights, optimizer, averages, metrics
and results of the resumed run must equal those of the uninterrupted run bit for bit, except for times.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from safetensors import safe_open
from tqdm import tqdm

from experiments.tables.cells import write_markdown
from pyro_gram.errors import UserError
from pyro_gram.runs.run import read_rows
from pyro_gram.system.cli import Parser, call
from pyro_gram.system.files import check_writable, read_json, write_json
from pyro_gram.system.machine import environment

RUN = Path(__file__).parents[1] / "run.py"
SETTINGS = {
    "task.vertices": 4, "task.train": 20, "task.validation": 4, "task.test": 4,
    "model.width": 16, "model.hidden": 16, "prior.hidden": 16, "guide.hidden": 16,
    "train.batches": 100, "train.batch": 8, "train.evaluate_every": 20, "train.save_seconds": 0,
    "train.on_policy_depth": 4, "train.on_policy_updates": 2, "train.on_policy_after": 0.4, "optim.min_lr_ratio": 0.1,
    "optim.warmup": 1, "evaluate.num_samples": 5,
}  # fmt: skip


def command(out: Path, *options: str) -> list[str]:
    """Return the command line that trains the small run in the directory ``out``."""
    settings = [word for name, value in SETTINGS.items() for word in (f"--{name}", str(value))]
    base = [sys.executable, str(RUN), "--task", "coloring", "--preset", "tiny", "--out", str(out)]
    return [*base, *settings, *options]


def run_to_end(out: Path, *options: str) -> float:
    """Train a run to its end and return the seconds that this took. Raises UserError if the run fails."""
    start = time.monotonic()
    process = subprocess.run(command(out, *options), capture_output=True, text=True, env=environ())
    if process.returncode:
        raise UserError(f"the run in {out} ended with {process.returncode}: {process.stderr[-800:]}")
    return time.monotonic() - start


def environ() -> dict[str, str]:
    """Return an environment with one thread per run: sums of floats repeat, and parallel trials share the cores."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def run_and_kill(out: Path, delay: float) -> bool:
    """Start a run and kill it after ``delay`` seconds. Return False if the run ended before that."""
    process = subprocess.Popen(command(out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environ())
    try:
        process.wait(timeout=delay)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return True
    return False


def final_contents(out: Path) -> dict[str, Any]:
    """Return the contents of a finished run's files, without times and memory."""
    contents: dict[str, Any] = {}
    for name in ("model", "state"):
        with safe_open(out / f"{name}.safetensors", framework="np") as f:
            contents[name] = {key: f.get_tensor(key).tobytes() for key in f.keys()}  # noqa: SIM118 (not a dict)
            header = json.loads(f.metadata()["pyro_gram"])
        header.get("state", {}).get("progress", {}).pop("elapsed", None)
        contents[f"{name} header"] = header
    contents["metrics"] = [{k: v for k, v in row.items() if k != "seconds"} for row in read_rows(out / "metrics.jsonl")]
    results = read_json(out / "results.json")
    contents["results"] = {k: results[k] for k in ("metrics", "batches", "looks", "uniformity")}
    return contents


def differing_parts(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """Name the parts in which two runs differ."""
    return [name for name in first if first[name] != second[name]]


def trial(folder: Path, number: int, length: float, expected: dict[str, Any]) -> dict[str, Any]:
    """Kill one run, resume it, and compare its results with ``expected``."""
    out = folder / str(number)
    delay = random.Random(number).uniform(0, length)
    was_killed = run_and_kill(out, delay)
    batch = saved_batch(out)
    run_to_end(out, "--resume")
    return {
        "after_seconds": round(delay, 3),
        "killed": was_killed,
        "saved_batch": batch,
        "differing": differing_parts(expected, final_contents(out)),
        "left_over": sorted(p.name for p in out.rglob(".*") if p.name != ".lock"),
    }


def saved_batch(out: Path) -> int | None:
    """Return how many batches a killed run had trained when it last saved its state; None if it saved none."""
    path = out / "state.safetensors"
    if not path.exists():
        return None
    with safe_open(path, framework="np") as f:
        return json.loads(f.metadata()["pyro_gram"])["state"]["progress"]["number"]


def survive(kills: int, parallel: int) -> dict[str, Any]:
    """Make trials until ``kills`` runs have been killed before their end."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        print("uninterrupted run", file=sys.stderr)
        length = run_to_end(folder / "unbroken")
        expected = final_contents(folder / "unbroken")
        bar = tqdm(total=kills, unit="kill", file=sys.stderr)
        trials: list[dict[str, Any]] = []

        def run_trial(number: int) -> dict[str, Any]:
            result = trial(folder, number, length, expected)
            bar.update(result["killed"])
            return result

        with bar, ThreadPoolExecutor(parallel) as pool:
            while (num_missing := kills - sum(t["killed"] for t in trials)) > 0:
                trials += pool.map(run_trial, range(len(trials), len(trials) + num_missing))
    killed_trials = [t for t in trials if t["killed"]]
    return {
        "kills": len(killed_trials),
        "identical": sum(not t["differing"] for t in killed_trials),
        "before_the_first_save": sum(t["saved_batch"] is None for t in killed_trials),
        "unbroken_seconds": length,
        "trials": trials,
        "environment": environment(),
    }


def markdown(results: dict[str, Any]) -> str:
    """Return two sentences that describe the kills and their results."""
    between_updates = ""
    if "inside_a_batch" in results:  # only an earlier version could save between two updates
        between_updates = f" and {results['inside_a_batch']} between two updates of one batch"
    return (
        f"`python experiments/bench/survive.py --kills {results['kills']} --out experiments/bench/survive.json` killed "
        f"{results['kills']} runs with SIGKILL at random moments ({results['before_the_first_save']} of them before "
        f"anything was saved{between_updates}) and resumed them. {results['identical']} of {results['kills']} ended "
        "bit for bit like an uninterrupted run (weights, optimizer, averages, metrics, results)."
    )


def main(argv: list[str]) -> int:
    parser = Parser("survive.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=50, metavar="N", help="default 50; some 25 s each, two at a time")
    parser.add_argument("--parallel", type=int, default=2, metavar="N", help="trials at a time (default 2)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write JSON to FILE")
    arguments = parser.parse_args(argv)
    if arguments.kills < 1 or arguments.parallel < 1:
        raise UserError("--kills and --parallel must be at least 1")
    if arguments.out:
        check_writable(arguments.out)
    results = survive(arguments.kills, arguments.parallel)
    if arguments.out:
        write_json(arguments.out, results)
        write_markdown(arguments.out, markdown(results))
    print(f"{results['kills']} killed runs, {results['identical']} with the results of the uninterrupted run")
    return 0 if results["identical"] == results["kills"] else 1


if __name__ == "__main__":
    raise SystemExit(call(main))
