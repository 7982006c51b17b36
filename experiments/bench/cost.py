"""Count what the training of a run has cost: ``python experiments/bench/cost.py RUN [RUN ...] --out FILE.json``.

The floating-point operations of one update are counted while it is made (matrix products, convolutions and attention),
and multiplied by the number of updates. Their rate is compared with the rate of large matrix products on this machine's
CPU, measured now: measure on the machine that trained, with as many threads, while nothing else runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyro
import torch
from torch.utils.flop_counter import FlopCounterMode

from experiments.bench.bench_gpu import product_rate
from experiments.tables.cells import write_study
from pyro_gram.build import build
from pyro_gram.config import RunConfig, with_settings
from pyro_gram.errors import UserError
from pyro_gram.runs.run import read_rows
from pyro_gram.system.cli import Parser, call
from pyro_gram.system.files import check_writable, read_json
from pyro_gram.tasks.batches import TargetStream
from pyro_gram.training.precision import runs_in_bfloat16
from pyro_gram.training.trainer import Trainer

CPU = torch.device("cpu")


def operations_of_a_batch(config: RunConfig, data_dir: str | None) -> int:
    """Count the floating-point operations of one batch of training, with a core that is not compiled."""
    config = with_settings(config, {"train": {"compile": False, "precision": "fp32"}})
    solver, c = build(config, data_dir), config.train
    stream = TargetStream(solver.task, solver.task.split("train"), c.batch, 0, c.augment, group=not c.act)
    trainer = Trainer(solver.model, solver.guide, stream, c, config.optim, config.beta)
    with pyro.validation_enabled(False):
        trainer.train_batch(*trainer.batches(0))
        with FlopCounterMode(display=False) as counter:
            trainer.train_batch(*trainer.batches(1))
    return int(counter.get_total_flops())


def measure_run(folder: Path, data_dir: str | None) -> dict[str, Any]:
    """Return the cost of a run so far: batches, seconds, operations, and their rate."""
    config, rows = RunConfig.from_dict(read_json(folder / "config.json")), read_rows(folder / "metrics.jsonl")
    if not rows:
        raise UserError(f"{folder} has trained no batch yet")
    batches, seconds = rows[-1]["batch"] + 1, rows[-1]["seconds"]
    operations = operations_of_a_batch(config, data_dir)
    precision = "bf16" if runs_in_bfloat16(config.train.precision, CPU) else "fp32"
    rate, limit = batches * operations / seconds / 1e12, product_rate(CPU, precision)
    return {
        "run": folder.name,
        "batches": batches,
        "hours": seconds / 3600,
        "gflop_of_a_batch": operations / 1e9,
        "pflop": batches * operations / 1e15,
        "tflops": rate,
        "precision": precision,
        "tflops_of_products": limit,
        "share": rate / limit,
    }


def markdown(results: dict[str, Any]) -> str:
    """Return a Markdown table with a row for each run."""
    lines = ["| run | batches | hours | PFLOP | TFLOP/s | of large products |", "|---" * 6 + "|"]
    for run in results["runs"]:
        products = f"{100 * run['share']:.0f} % of {run['tflops_of_products']:.2f} ({run['precision']})"
        cells = (
            run["run"],
            f"{run['batches']:,}",
            f"{run['hours']:.1f}",
            f"{run['pflop']:.3f}",
            f"{run['tflops']:.3f}",
        )
        lines.append(f"| {' | '.join(cells)} | {products} |")
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    parser = Parser("cost.py", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="the directory of a run")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json")
    parser.add_argument("--data-dir", metavar="DIR", help="directory of the data files, for tasks that read files")
    arguments = parser.parse_args(argv)
    check_writable(arguments.out)
    results = {"threads": torch.get_num_threads(), "runs": [measure_run(r, arguments.data_dir) for r in arguments.runs]}
    write_study(arguments.out, results, markdown(results))
    return 0


if __name__ == "__main__":
    raise SystemExit(call(main))
