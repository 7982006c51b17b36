"""Kill a run at random moments, resume it, and compare its end with that of a run that nobody killed.

    python experiments/bench/survive.py --kills 50 --out experiments/bench/survive.json

Each trial starts the same small run, which saves after every update, kills it with SIGKILL at a random moment between
its start and its end (imports, training, saving, evaluation), and resumes it. Its weights, optimizer, averages, metrics
and results must be bit for bit those of the unbroken run; times apart.
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


def command(out: Path, *words: str) -> list[str]:
    """Return the command of the run in ``out``."""
    settings = [word for name, value in SETTINGS.items() for word in (f"--{name}", str(value))]
    base = [sys.executable, str(RUN), "--task", "coloring", "--preset", "tiny", "--out", str(out)]
    return [*base, *settings, *words]


def run_to_end(out: Path, *words: str) -> float:
    """Run without a kill and return the seconds that it took. Raises UserError where it fails."""
    start = time.monotonic()
    done = subprocess.run(command(out, *words), capture_output=True, text=True, env=environ())
    if done.returncode:
        raise UserError(f"the run in {out} ended with {done.returncode}: {done.stderr[-800:]}")
    return time.monotonic() - start


def environ() -> dict[str, str]:
    """Return an environment of one thread: trials share the cores, and sums of floats repeat."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def run_and_kill(out: Path, after: float) -> bool:
    """Start a run and kill it after so many seconds; return False where it ended before."""
    process = subprocess.Popen(command(out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environ())
    try:
        process.wait(timeout=after)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return True
    return False


def final_contents(out: Path) -> dict[str, Any]:
    """Return all that a run leaves, but times and memory."""
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
    """Kill one run and resume it."""
    out = folder / str(number)
    after = random.Random(number).uniform(0, length)
    was_killed = run_and_kill(out, after)
    batch = saved_batch(out)
    run_to_end(out, "--resume")
    return {
        "after_seconds": round(after, 3),
        "killed": was_killed,
        "saved_batch": batch,
        "differing": differing_parts(expected, final_contents(out)),
        "left_over": sorted(p.name for p in out.rglob(".*") if p.name != ".lock"),
    }


def saved_batch(out: Path) -> int | None:
    """Return the number of batches behind a killed run's saved state; None where nothing was saved."""
    path = out / "state.safetensors"
    if not path.exists():
        return None
    with safe_open(path, framework="np") as f:
        return json.loads(f.metadata()["pyro_gram"])["state"]["progress"]["number"]


def survive(kills: int, parallel: int) -> dict[str, Any]:
    """Make trials until so many runs have been killed."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        print("a run that nobody kills", file=sys.stderr)
        length = run_to_end(folder / "unbroken")
        expected = final_contents(folder / "unbroken")
        bar = tqdm(total=kills, unit="kill", file=sys.stderr)
        trials: list[dict[str, Any]] = []

        def run_trial(number: int) -> dict[str, Any]:
            result = trial(folder, number, length, expected)
            bar.update(result["killed"])
            return result

        with bar, ThreadPoolExecutor(parallel) as pool:
            while (missing := kills - sum(t["killed"] for t in trials)) > 0:
                trials += pool.map(run_trial, range(len(trials), len(trials) + missing))
    died = [t for t in trials if t["killed"]]
    return {
        "kills": len(died),
        "identical": sum(not t["differing"] for t in died),
        "before_the_first_save": sum(t["saved_batch"] is None for t in died),
        "unbroken_seconds": length,
        "trials": trials,
        "environment": environment(),
    }


def markdown(results: dict[str, Any]) -> str:
    """Return a sentence on the trials."""
    inside = f" and {results['inside_a_batch']} between two updates of one batch" * ("inside_a_batch" in results)
    return (
        f"`python experiments/bench/survive.py --kills {results['kills']} --out experiments/bench/survive.json` killed "
        f"{results['kills']} runs with SIGKILL at random moments, {results['before_the_first_save']} of them before "
        f"anything was saved{inside}, and resumed them: {results['identical']} of {results['kills']} "
        "ended bit for bit as the run that nobody killed (weights, optimizer, averages, metrics, results)."
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
    print(f"{results['kills']} kills, {results['identical']} endings identical to that of the unbroken run")
    return 0 if results["identical"] == results["kills"] else 1


if __name__ == "__main__":
    raise SystemExit(call(main))
