"""Measure how fast the paper's presets train on one device: ``bench_gpu.py --device cuda --out FILE.json``.

Each preset is trained for some updates in fp32, TF32 and bf16, with and without compiled cores. The batches have the
same shapes as in ``run.py``, but hold random tokens: their values do not affect the time. The results are updates per
second, memory, the rate of floating-point operations, and the hours that the preset's run would take.

``--shared FILE.json`` measures nothing: it computes the cost of exchanging gradients among N processes.
"""

from __future__ import annotations

import gc
import json
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyro
import torch
import torch._dynamo
from torch.utils.flop_counter import FlopCounterMode

from experiments.bench.bench_steps import random_batch
from experiments.tables.cells import write_markdown
from pyro_gram.build import build
from pyro_gram.config import RunConfig, with_settings
from pyro_gram.errors import UserError
from pyro_gram.presets import read_preset
from pyro_gram.system.cli import Parser, call
from pyro_gram.system.files import check_writable, read_json, write_json
from pyro_gram.system.machine import environment
from pyro_gram.training.dry_run import prepare_core
from pyro_gram.training.precision import PRECISIONS, matmul_precision
from pyro_gram.training.trainer import Trainer

PRESETS = Path(__file__).parents[1] / "presets"
TASKS = ("coloring", "nqueens", "sudoku", "sudoku_uncond", "mnist")
WAYS = [(precision, compiled) for precision in PRECISIONS if precision != "auto" for compiled in (False, True)]
PEAK_TFLOPS = 780  # measured rate of dense bfloat16 products on an H100 or H200 (data sheet: 989)
UPDATES = 4  # a timed batch makes at most this many updates; every update takes the same time
REPEATS = 3


def make_trainer(config: RunConfig, device: torch.device) -> Trainer:
    solver = build(config)
    model, guide = solver.model.to(device), solver.guide.to(device)
    batch = random_batch(solver.task.spec, config.train.batch, device)
    return Trainer(model, guide, lambda _: batch, config.train, config.optim, config.beta)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def measure(config: RunConfig, precision: str, compiled: bool, device: torch.device) -> dict[str, Any]:
    """Measure the training of one config at one precision, with a plain or a compiled core."""
    _forget()
    torch.manual_seed(0)
    trainer = make_trainer(with_settings(config, {"train": {"precision": precision, "compile": compiled}}), device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    x, y = trainer.batches(0)
    start = time.perf_counter()
    seconds: list[float] = []
    with matmul_precision(precision, device), pyro.validation_enabled(False):
        prepare_core(trainer)
        for _ in range(2):
            report = trainer.train_batch(x, y)
        synchronize(device)
        first_batches = time.perf_counter() - start
        for _ in range(REPEATS):
            start = time.perf_counter()
            report = trainer.train_batch(x, y)
            synchronize(device)
            seconds.append((time.perf_counter() - start) / config.train.supervision_steps)
    update = statistics.median(seconds)
    memory = torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else None
    return {
        "precision": precision,
        "compiled": compiled,
        "updates_per_second": 1 / update,
        "update_ms": 1e3 * update,
        "update_ms_spread": [1e3 * min(seconds), 1e3 * max(seconds)],
        "first_batches_seconds": first_batches,
        "peak_memory_mb": memory,
        "loss": report.loss,
    }


def _forget() -> None:
    """Free the memory and the compiled code of the previous measurement."""
    gc.collect()
    torch._dynamo.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def operations(config: RunConfig, device: torch.device) -> float:
    """Count the floating-point operations of matrix products and attention in one update."""
    trainer = make_trainer(replace_steps(config, 1), device)
    with FlopCounterMode(display=False) as counter, pyro.validation_enabled(False):
        trainer.train_batch(*trainer.batches(0))
    return float(counter.get_total_flops())


def replace_steps(config: RunConfig, steps: int) -> RunConfig:
    """Return a copy of the config with ``steps`` supervision steps for each batch."""
    return replace(config, parts={**config.parts, "train": replace(config.train, supervision_steps=steps)})


def study(
    task: str, preset: str, device: torch.device, ways: list[tuple[str, bool]], product_tflops: dict[str, float]
) -> dict[str, Any]:
    """Measure one preset at each pair (precision, compiled or not) in ``ways``.

    ``product_tflops`` maps each precision to the measured rate of a large matrix product on the device.
    """
    config = read_preset(PRESETS, task, preset)
    flops: float | None = None
    train = config.train
    on_policy = train.on_policy_updates * (1 - train.on_policy_after) if train.on_policy_depth else 0.0
    updates = round(train.batches * (train.supervision_steps + on_policy))
    short_config = replace_steps(config, min(UPDATES, config.train.supervision_steps))
    rows = []
    for precision, compiled in ways:
        print(f"{task}: {precision}{', compiled' if compiled else ''}", file=sys.stderr)
        try:
            flops = flops or operations(config, device)
            row = measure(short_config, precision, compiled, device)
        except torch.cuda.OutOfMemoryError:
            row = {"precision": precision, "compiled": compiled, "out_of_memory": True}
        else:
            row["tflops"] = flops * row["updates_per_second"] / 1e12
            row["of_products"] = row["tflops"] / product_tflops[precision]
            if device.type == "cuda":
                row["of_peak"] = row["tflops"] / PEAK_TFLOPS
            row["hours_of_the_run"] = updates / row["updates_per_second"] / 3600
        rows.append(row)
    return {"batch": config.train.batch, "updates_of_the_run": updates, "flops_per_update": flops, "ways": rows}


def product_rate(device: torch.device, precision: str) -> float:
    """Measure the device's rate of a large matrix product, TFLOP/s."""
    side = 8192 if device.type == "cuda" else 512
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    with matmul_precision(precision, device):
        for _ in range(8):
            synchronize(device)
            start = time.perf_counter()
            a @ b
            synchronize(device)
            seconds.append(time.perf_counter() - start)
    return 2 * side**3 / statistics.median(seconds[3:]) / 1e12


LINKS = {"NVLink, 300 GB/s": 300.0, "PCIe 5.0, 40 GB/s": 40.0, "100 Gb Ethernet, 11 GB/s": 11.0}  # GB/s, one direction


def exchange_table(results: dict[str, Any], processes: int) -> str:
    """Return a Markdown table of the time of an update: on one process, and on several processes with different links.

    A ring all-reduce of G bytes among N processes moves 2 (N - 1) / N * G bytes over each link. The time of computing
    is divided by N. The exchange begins after the backward pass, so its time is added to the time of computing.
    """
    lines = [
        f"| paper preset | parameters | gradients | one GPU | {processes} GPUs, computed "
        + "".join(f"| + {link} " for link in LINKS)
        + "|",
        "|---" * (5 + len(LINKS)) + "|",
    ]
    for task, task_results in results["tasks"].items():
        rows = [row for row in task_results["ways"] if "update_ms" in row]
        best = min(rows, key=lambda row: row["update_ms"])
        solver = build(read_preset(PRESETS, task, results["preset"]))
        num_parameters = sum(p.numel() for module in (solver.model, solver.guide) for p in module.parameters())
        compute_ms = best["update_ms"] / processes
        cells = []
        for rate in LINKS.values():
            exchange_ms = 2 * (processes - 1) / processes * 4 * num_parameters / (1e6 * rate)  # milliseconds
            cells.append(f"{exchange_ms:.1f} ms, {best['update_ms'] / (compute_ms + exchange_ms):.1f} x")
        way = f"{best['precision']}{', compiled' if best['compiled'] else ''}"
        lines.append(
            f"| {task} | {num_parameters / 1e6:.1f} M | {4 * num_parameters / 1e6:.0f} MB "
            f"| {best['update_ms']:.0f} ms ({way}) | {compute_ms:.1f} ms | " + " | ".join(cells) + " |"
        )
    return "\n".join(lines)


def markdown(results: dict[str, Any]) -> str:
    """Return a Markdown table of the hours that the paper's runs take on one GPU at each precision."""
    ways = ["fp32", "tf32", "tf32, compiled", "bf16", "bf16, compiled"]
    lines = [f"| `paper` preset, hours on one {results['device']} | {' | '.join(ways)} |", "|---" * 6 + "|"]
    for task, task_results in results["tasks"].items():
        hours = {f"{w['precision']}{', compiled' if w['compiled'] else ''}": w for w in task_results["ways"]}
        cells = [
            f"{hours[way]['hours_of_the_run']:.1f} ({hours[way]['tflops']:.0f} TFLOP/s)" if way in hours else ""
            for way in ways
        ]
        lines.append(f"| {task} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    parser = Parser("bench_gpu.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("--device", default="cpu", help="cpu (the default) or cuda")
    parser.add_argument("--preset", default="paper", help="preset of each task (default paper)")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS, help="(default all)")
    parser.add_argument("--eager", action="store_true", help="leave out compiled cores")
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON")
    parser.add_argument(
        "--shared", type=Path, metavar="FILE", help="a file of --out: print the cost of exchanging gradients"
    )
    parser.add_argument("--processes", type=int, default=8, metavar="N", help="for --shared (default 8)")
    arguments = parser.parse_args(argv)
    if arguments.processes < 2:
        raise UserError(f"--processes must be at least 2, not {arguments.processes}")
    if arguments.shared:
        print(exchange_table(read_json(arguments.shared), arguments.processes))
        return 0
    if not arguments.out:
        raise UserError("give --out FILE to measure, or --shared FILE")
    try:
        device = torch.device(arguments.device)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as e:
        raise UserError(f"--device {arguments.device} cannot be used: {str(e).splitlines()[0]}") from None
    check_writable(arguments.out)
    precisions = PRECISIONS if device.type == "cuda" else [p for p in PRECISIONS if p != "tf32"]
    ways = [way for way in WAYS if way[0] in precisions and not (arguments.eager and way[1])]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    results: dict[str, Any] = {
        "device": name,
        "preset": arguments.preset,
        "product_tflops": {p: product_rate(device, p) for p in precisions},
        "peak_tflops": PEAK_TFLOPS,
        "tasks": {},
        "environment": environment(),
    }
    for task in arguments.tasks:
        results["tasks"][task] = study(task, arguments.preset, device, ways, results["product_tflops"])
        write_json(arguments.out, results)
        write_markdown(arguments.out, markdown(results))  # written after each task, in case a later one fails
    print(
        json.dumps({task: [row.get("updates_per_second") for row in f["ways"]] for task, f in results["tasks"].items()})
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(call(main))
