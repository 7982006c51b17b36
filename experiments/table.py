"""Make the paper's tables: run or resume the missing cells, then collect the table.

    python experiments/table.py --table 1                     # run all missing cells, then make the table
    python experiments/table.py --table 1 --list              # print the command of each missing cell, one per line
    python experiments/table.py --table 1 --list | xargs -P 2 -I{} sh -c '{}'   # run two cells at a time
    python experiments/table.py --table 1 --collect           # make the table of the cells that are done
    python experiments/table.py --table 1 --redraw --out DIR  # make the table again from the JSON in DIR

A cell is one model (row) on one task (column) with one seed. It is made by one command in one directory under --runs.
Two tables may share cells. ``tables.toml`` defines rows and columns. ``pyro_gram/diagnostics/paper.toml`` has the
paper's numbers.
"""

from __future__ import annotations

import shlex
import sys
import time
import tomllib
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from experiments.run import PRESETS
from experiments.tables.cells import write_markdown
from experiments.tables.paper_table import figure, markdown
from pyro_gram.build import build, check_parts
from pyro_gram.checkpoint import load
from pyro_gram.config import RunConfig, with_settings
from pyro_gram.diagnostics import paper
from pyro_gram.diagnostics.metrics import count_layers, measure
from pyro_gram.errors import ConfigError, UserError
from pyro_gram.inference.contract import model_traits
from pyro_gram.presets import read_preset
from pyro_gram.registry import MODELS
from pyro_gram.runs.evaluate import evaluate
from pyro_gram.runs.run import check_same_settings, open_run
from pyro_gram.runs.train import InterruptedRunError, train
from pyro_gram.sampling.memory import chunk_size
from pyro_gram.sampling.rollout import rollout
from pyro_gram.system.cli import Parser, add_device_option, call, is_idle_process
from pyro_gram.system.distributed import ProcessGroup, leave, start
from pyro_gram.system.files import check_writable, open_tensor_file, read_json, write_atomically, write_json
from pyro_gram.system.machine import device_type, pick_device

HERE = Path(__file__).parent
TABLES = HERE / "tables" / "tables.toml"
EVALUATE_EVERY = 2000  # batches between evaluations, for rows with one update in each batch
CELL_METRICS = (  # the metrics of a cell that the table's JSON keeps
    "accuracy", "sample_accuracy", "violations", "any_valid", "vote_accuracy", "coverage", "coverage_limit",
    "total_variation", "total_variation_perfect", "num_inputs", "num_samples", "elbo", "log_likelihood_prior_mc",
    "inception_score", "frechet_distance", "depth", "mean_steps",
)  # fmt: skip


@cache
def definitions() -> dict[str, Any]:
    """Read ``tables.toml``."""
    return tomllib.loads(TABLES.read_text())


def pick(kind: str, name: str) -> dict[str, Any]:
    """Return a table, preset, row or column by its name. Raises ConfigError if no entry has this name."""
    entries = definitions()[kind]
    if name not in entries:
        raise ConfigError(f"unknown {kind[:-1]} {name!r}; known: {', '.join(entries)}")
    return entries[name]


def preset_entry(name: str) -> dict[str, Any]:
    """Return a preset, with the entries of the preset that it extends."""
    preset = pick("presets", name)
    return pick("presets", preset["extends"]) | preset if "extends" in preset else preset


def value_at(values: dict[str, Any], preset: str, default: Any = None) -> Any:
    """Return the value for a preset; if there is none, the value for the preset that it extends, or the default."""
    base = preset_entry(preset).get("extends", preset)
    return values.get(preset, values.get(base, default))


@dataclass(frozen=True)
class Cell:
    """One run: a row and a column of a table, a preset and a seed. ``minutes`` is None for the preset's own."""

    preset: str
    column: str
    row: str
    seed: int
    minutes: float | None = None

    @property
    def name(self) -> str:
        """The name of the cell's directory, and of the cell on the command line."""
        return f"{self.preset}-{self.column}-{self.row}-seed{self.seed}"

    def config(self) -> RunConfig:
        """Return the run's settings. Raises ConfigError if they do not fit together."""
        column, row, preset = pick("columns", self.column), pick("rows", self.row), preset_entry(self.preset)
        name = value_at(column["presets"], self.preset)
        config = read_preset(PRESETS, column["task"], name, names=row.get("names"), seed=self.seed)
        depth = value_at(column.get("depth", {}), self.preset)
        if depth and not model_traits(MODELS.get(config.names["model"])).is_one_step:
            config = with_settings(config, {"evaluate": {"depth": depth}})
        for settings in (preset["settings"], row.get("settings", {}), value_at(row, self.preset, {})):
            config = with_settings(config, settings)
        is_one_update = config.train.act or config.train.supervision_steps == 1
        if is_one_update:  # evaluations are then about as many updates apart as in other rows
            config = with_settings(config, {"train": {"evaluate_every": EVALUATE_EVERY}})
        minutes = self.minutes or preset.get("minutes")
        if minutes:  # all cells train for the same time, and each schedule is fitted to it
            config = with_settings(config, {"train": {"batches": 0, "minutes": minutes}})
        return config


def cells_of(table: dict[str, Any], preset: str, minutes: float | None = None, seeds: int = 0) -> list[Cell]:
    """List the cells of a table, sorted by seed. ``seeds`` replaces every row's own number of seeds, unless it is 0."""
    bases = {preset, preset_entry(preset).get("extends", preset)}
    rows = [row for row in table["rows"] if bases & set(pick("rows", row).get("presets", bases))]
    columns = [c for c in table["columns"] if value_at(pick("columns", c)["presets"], preset)]
    if not columns:
        raise ConfigError(f"no column of this table has a preset {preset!r}")
    counts = {row: seeds or value_at(pick("rows", row).get("seeds", {}), preset, 1) for row in rows}
    return [
        Cell(preset, column, row, seed, minutes)
        for seed in range(max(counts.values()))
        for column in columns
        for row in rows
        if seed < counts[row]
    ]


def is_done(cell: Cell, runs: Path) -> bool:
    """Return whether the cell has been measured.

    Raises:
        ConfigError: the parts of the cell do not fit together, or its directory holds a run with other settings.
    """
    folder, config = runs / cell.name, cell.config()
    check_parts(config)
    check_same_settings(folder, config, "--runs")
    return (folder / "results.json").exists()


def run_cell(cell: Cell, runs: Path, device: torch.device, data_dir: str | None, processes: ProcessGroup) -> None:
    """Train and measure a cell; if it was stopped before, continue it. Raises InterruptedRunError on a signal.

    On one thread of a CPU the minutes of training are CPU minutes, so that other programs do not shorten it.
    """
    folder = runs / cell.name
    with open_run(cell.config(), folder, resume=True, data_dir=data_dir, device=device, processes=processes) as run:
        if device.type == "cpu" and torch.get_num_threads() == 1:
            run.trainer.clock = time.process_time
        train(run)
        evaluate(run)


def cell_metrics(cell: Cell, runs: Path, num_samples: int | None, data_dir: str | None) -> dict[str, Any]:
    """Return the metrics of a finished cell from ``num_samples`` samples per input (None: as many as the run drew).

    If ``num_samples`` is smaller than the run's number, samples are drawn again from the run's checkpoint. This happens
    once: the metrics of these samples are kept in a file in the cell's directory.
    """
    folder = runs / cell.name
    results = read_json(folder / "results.json")
    metrics = results["metrics"]
    if num_samples is not None and num_samples < metrics["num_samples"]:
        metrics = metrics | metrics_of_fewer(num_samples, folder, data_dir, cell.config().names.values())
    return {
        **{name: metrics[name] for name in CELL_METRICS if metrics.get(name) is not None},
        **{name: results[name] for name in ("parameters", "guide_parameters", "batches")},
        "updates": count_updates(folder),
        "seconds": results["seconds"],
        "clock": results.get("clock", "wall"),
        "threads": results["environment"]["threads"],
        "revision": results["environment"].get("revision"),
        "last_accuracy": results["looks"].get("last_accuracy"),
    }


def metrics_of_fewer(
    num_samples: int, folder: Path, data_dir: str | None, class_names: Collection[str]
) -> dict[str, Any]:
    path = folder / f"measured-{num_samples}.json"
    if not path.exists():
        solver = load(folder, data_dir, trust_code=class_names)
        evaluate, task = solver.config.evaluate, solver.task
        puzzles = task.split("test")
        puzzles = puzzles.subset(evaluate.inputs) if evaluate.inputs else puzzles
        samples = rollout(
            solver.model,
            puzzles.inputs,
            num_samples=num_samples,
            depth=solver.config.depth,
            seed=evaluate.seed,
            temper=solver.config.temper,
            restarts=evaluate.restarts,
            sweeps=evaluate.sweeps,
            max_trajectories=chunk_size(task.spec.positions),
        )
        metrics = measure(task, puzzles, samples.tokens, samples.score).to_dict()
        write_json(path, metrics | {"mean_steps": samples.steps.double().mean().item()})
    return read_json(path)


def layers_of(row: dict[str, Any], data_dir: str | None) -> int:
    """Count the layers that a sample passes through on average, with an untrained model of a row's config.

    The samples of the row's runs say how many supervision steps they took; in older runs all took ``depth`` steps.
    """
    config = RunConfig.from_dict(row["config"])
    solver = build(config, data_dir)
    x = solver.task.split("test").inputs
    steps = mean(seed.get("mean_steps", config.depth) for seed in row["seeds"].values())
    return round(count_layers(solver.model, None if x is None else x[:1], 1) * steps)


def count_updates(folder: Path) -> int:
    """Return the number of optimizer updates of a run."""
    return int(open_tensor_file(folder / "state.safetensors", "training").tensors()["optimizer/num_updates"])


def collect(name: str, cells: list[Cell], runs: Path, data_dir: str | None) -> dict[str, Any]:
    """Collect the table's JSON from the finished cells."""
    table = pick("tables", name)
    columns: dict[str, Any] = {}
    for cell in cells:
        if not is_done(cell, runs):
            continue
        print(f"collecting {cell.name}", file=sys.stderr)
        row = columns.setdefault(cell.column, {}).setdefault(cell.row, {"title": pick("rows", cell.row)["title"]})
        row.setdefault("seeds", {})[str(cell.seed)] = cell_metrics(cell, runs, table.get("num_samples"), data_dir)
        if "config" not in row:
            row["config"] = {k: v for k, v in cell.config().to_dict().items() if k != "seed"}
    for column in columns.values():
        for row in column.values():
            row["layers_a_sample"] = layers_of(row, data_dir)
    preset = cells[0].preset
    return {
        "table": name,
        "title": table["title"],
        "preset": preset,
        "minutes": cells[0].minutes or preset_entry(preset).get("minutes"),
        "missing": [cell.name for cell in cells if not is_done(cell, runs)],
        "columns": {
            column: {
                "title": pick("columns", column)["title"],
                "show": pick("columns", column)["show"],
                "paper": paper.rows(name, column),
                "rows": {row: columns[column][row] for row in table["rows"] if row in columns[column]},
            }
            for column in table["columns"]
            if column in columns
        },
    }


def renew(results: dict[str, Any], data_dir: str | None) -> dict[str, Any]:
    """Renew the parts of a table's JSON that need no runs: the layers of a sample, and the paper's numbers."""
    for name, column in results["columns"].items():
        column["paper"] = paper.rows(results["table"], name)
        for row in column["rows"].values():
            row["layers_a_sample"] = layers_of(row, data_dir)
    return results


def write_table(results: dict[str, Any], out: Path) -> list[Path]:
    """Write the JSON, Markdown and PNG of a collected table; return their paths."""
    stem = out / f"table{results['table']}-{results['preset']}"
    paths = [stem.with_suffix(suffix) for suffix in (".json", ".md", ".png")]
    write_json(paths[0], results)
    write_markdown(paths[0], markdown(results))
    plot = figure(results)
    write_atomically(paths[2], lambda temporary: plot.savefig(temporary, format="png", dpi=110))
    return paths


def command(cell: Cell, arguments: Any) -> str:
    """Return the command line that makes one cell."""
    launcher = shlex.split(arguments.launcher) or [sys.executable]
    argv = [*launcher, str(HERE / "table.py"), "--table", arguments.table, "--preset", cell.preset]
    argv += ["--cell", cell.name, "--runs", str(arguments.runs.absolute())]
    for option in ("minutes", "seeds", "data_dir"):
        if getattr(arguments, option):
            argv += [f"--{option.replace('_', '-')}", str(getattr(arguments, option))]
    argv += ["--device", arguments.device] if arguments.device != "cpu" else []
    return shlex.join(argv)


def make_parser() -> Parser:
    parser = Parser("table.py", description=__doc__)
    parser.add_argument("--table", required=True, metavar="NAME", help=", ".join(definitions()["tables"]))
    parser.add_argument("--preset", default="cpu", help=f"{', '.join(definitions()['presets'])} (default cpu)")
    parser.add_argument("--runs", type=Path, default=Path("runs/tables"), metavar="DIR", help="directory of the cells")
    parser.add_argument("--out", type=Path, metavar="DIR", help="directory of the table (default: that of the cells)")
    parser.add_argument(
        "--minutes", type=float, metavar="M", help="train each cell for M minutes instead of the preset's"
    )
    parser.add_argument(
        "--seeds", type=int, default=0, metavar="N", help="number of seeds of every row, instead of its own"
    )
    parser.add_argument("--cell", nargs="+", metavar="NAME", help="run only these cells, and make no table")
    parser.add_argument("--list", action="store_true", help="print the command of each missing cell, and exit")
    parser.add_argument(
        "--launcher", default="", metavar="WORDS", help="for --list: 'torchrun --nproc-per-node=8' in place of python"
    )
    parser.add_argument("--collect", action="store_true", help="make the table of the finished cells, and run nothing")
    parser.add_argument("--redraw", action="store_true", help="make the table again from its JSON in --out")
    parser.add_argument("--data-dir", metavar="DIR", help="directory of the data files, for tasks that read files")
    add_device_option(parser)
    return parser


def main(argv: list[str]) -> int:
    arguments = make_parser().parse_args(argv)
    if arguments.minutes is not None and not arguments.minutes > 0:
        raise ConfigError(f"--minutes must be positive, not {arguments.minutes}")
    if arguments.seeds < 0:
        raise ConfigError(f"--seeds must be at least 1, not {arguments.seeds}")
    if arguments.cell and (arguments.collect or arguments.redraw):
        raise ConfigError("--cell runs cells, while --collect and --redraw run none: give only one of these options")
    cells = cells_of(pick("tables", arguments.table), arguments.preset, arguments.minutes, arguments.seeds)
    if arguments.redraw and is_idle_process():
        return 0
    if arguments.redraw:
        path = (arguments.out or arguments.runs) / f"table{arguments.table}-{arguments.preset}.json"
        return show(renew(read_json(path), arguments.data_dir), arguments)
    if arguments.cell:
        cells_by_name = {cell.name: cell for cell in cells}
        unknown_names = [name for name in arguments.cell if name not in cells_by_name]
        if unknown_names:
            raise ConfigError(
                f"no cell {unknown_names[0]!r} in this table; --list prints the missing cells, such as {cells[0].name}"
            )
        cells = [cells_by_name[name] for name in arguments.cell]
    missing_cells = [cell for cell in cells if not is_done(cell, arguments.runs)]  # is_done also checks settings
    device_type(arguments.device)  # check only its kind: with --list the device may be on another machine
    if arguments.list and is_idle_process():
        return 0
    if arguments.list:
        print("".join(f"{command(cell, arguments)}\n" for cell in missing_cells), end="")
        return 0
    out = arguments.out or arguments.runs
    processes, device = start(pick_device(arguments.device))
    if processes.is_main:
        check_writable(out / "table.json")
    failures = []
    for cell in [] if arguments.collect else missing_cells:
        if processes.is_main:
            print(f"{cell.name} ({1 + missing_cells.index(cell)} of {len(missing_cells)})", file=sys.stderr)
        try:
            run_cell(cell, arguments.runs, device, arguments.data_dir, processes)
        except InterruptedRunError as interruption:
            if processes.is_main:
                print("stopped; to continue, run the same command", file=sys.stderr)
            return interruption.exit_code
        except UserError as e:  # after such an error the other cells can still be run
            if processes.size > 1:  # the other processes may still be training this cell
                raise
            failures.append(f"{cell.name}: {e}")
            print(f"error: {failures[-1]}", file=sys.stderr)
    if failures:
        raise UserError(f"{len(failures)} cells failed, the first {failures[0]}")
    if arguments.cell or not processes.is_main:
        return 0
    results = collect(arguments.table, cells, arguments.runs, arguments.data_dir)
    if not results["columns"]:
        raise UserError(
            f"no cell of table {arguments.table} is done in {arguments.runs}: leave out --collect to run the cells"
        )
    return show(results, arguments)


def show(results: dict[str, Any], arguments: Any) -> int:
    """Write a table, and print it."""
    paths = write_table(results, arguments.out or arguments.runs)
    print(markdown(results))
    print(f"table: {', '.join(map(str, paths))}")
    return 0


if __name__ == "__main__":
    raise SystemExit(leave(call(main, distributed=True)))
