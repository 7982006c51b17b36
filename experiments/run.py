"""Train and measure a model on a task: ``python experiments/run.py --task coloring``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from pyro_gram.config import REGISTRIES, RunConfig
from pyro_gram.errors import ConfigError
from pyro_gram.options import add_options, foreign_options, with_options
from pyro_gram.presets import read_preset
from pyro_gram.sampling.tempering import TemperConfig
from pyro_gram.system.cli import (
    Parser,
    add_device_option,
    add_working_directory_to_path,
    call,
    directory,
    interrupt_exit_code,
    is_idle_process,
)
from pyro_gram.system.distributed import leave, start
from pyro_gram.system.files import check_directory
from pyro_gram.system.machine import pick_device
from pyro_gram.tasks.base import SPLITS, make_task

PRESETS = Path(__file__).parent / "presets"
PART_NAMES = ("model", "prior", "guide")  # parts that the user may name instead of the preset's


def make_parser(add_help: bool = True, list_names: bool = True) -> Parser:
    """Return a parser of all options except a run's settings. With ``list_names`` its help lists the names of parts."""
    parser = Parser(
        "run.py",
        description=__doc__,
        add_help=add_help,
        usage="run.py --task NAME [OPTION VALUE ...]",
        epilog="A run has further settings, which depend on its parts: run.py --task NAME --help explains them.",
    )
    tasks = ", ".join(sorted(p.stem for p in PRESETS.glob("*.toml")))
    parser.add_argument("--task", required=True, metavar="NAME", help=f"{tasks}, or your own as package.module:Class")
    parser.add_argument(
        "--preset",
        default="cpu",
        metavar="NAME",
        help="cpu (the default), tiny, paper, or another preset of the task",
    )
    for part in PART_NAMES:
        names = ", ".join(REGISTRIES[part].names()) if list_names else "a name"
        parser.add_argument(
            f"--{part}", metavar="NAME", help=f"{names}, or your own as package.module:Class (default: the preset's)"
        )
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, data order and guidance (default 0)")
    parser.add_argument("--out", type=directory, metavar="DIR", help="default runs/TASK-PRESET[-PARTS]-seedS")
    parser.add_argument("--resume", action="store_true", help="continue the run in DIR")
    parser.add_argument("--minutes", type=float, metavar="M", help="train for M minutes instead of the preset's length")
    parser.add_argument("--data-dir", metavar="DIR", help="directory of the data files, for tasks that read files")
    add_device_option(parser)
    parser.add_argument("--half", action="store_true", help="write model.safetensors as bfloat16, at half the size")
    parser.add_argument("--list-split", choices=SPLITS, help="print the inputs of a split, one per line, and exit")
    return parser


def parse(argv: list[str]) -> tuple[RunConfig, dict]:
    """Parse the command line. Return the run's config, and the values of all options."""
    parser = make_parser(add_help=False, list_names=False)
    parser.add_argument("-h", "--help", action="store_true")
    needs_help = bool({"-h", "--help"} & set(argv))
    if needs_help and "--task" not in {a.partition("=")[0] for a in argv}:
        make_parser().parse_args(["--help"])
    first, _ = parser.parse_known_args(argv)
    names = {part: getattr(first, part) for part in PART_NAMES}
    if any(":" in name for name in (first.task, *filter(None, names.values()))):
        add_working_directory_to_path()
    config = read_preset(PRESETS, first.task, first.preset, names=names, seed=first.seed)
    full_parser = make_parser(list_names=needs_help)
    add_options(full_parser, config)
    part_options = {"task": first.task, **({} if first.preset == "cpu" else {"preset": first.preset}), **names}
    full_parser.help_command = " ".join(
        ["run.py", *(f"--{part} {name}" for part, name in part_options.items() if name), "--help"]
    )
    full_parser.unavailable_options = partial(foreign_options, config)
    arguments = vars(full_parser.parse_args(argv))
    config = with_options(config, arguments)
    if arguments["minutes"] is not None:
        if not arguments["minutes"] > 0:
            raise ConfigError(f"--minutes must be positive, not {arguments['minutes']}")
        length = {"train.minutes": arguments["minutes"]}
        if "train.batches" not in arguments:
            length["train.batches"] = 0
        config = with_options(config, length)
    return config, arguments


def default_directory(config: RunConfig, arguments: dict) -> Path:
    """Return ``runs/TASK-PRESET[-PARTS]-seedS``. PARTS names the parts that the user chose instead of the preset's."""
    other_parts = [arguments[part] for part in PART_NAMES if arguments[part]]
    names = [name.rpartition(":")[2] for name in (config.names["task"], config.preset, *other_parts)]
    return Path("runs") / "-".join([*names, f"seed{config.seed}"])


def list_split(config: RunConfig, split: str, data_dir: str | None) -> int:
    """Print the inputs of a split, one per line. If the task has no input, print the split's answers instead."""
    task = make_task(config.names["task"], config.task, data_dir)
    puzzles = task.split(split)
    if puzzles.inputs is None:  # a split of a task p(x) is a set of answers
        for y in puzzles.solutions:
            print(task.format_solution(None, y.long()))
    else:
        for x in puzzles.inputs:
            print(task.format_input(x))
    return 0


SUMMARY_METRICS = ("frechet_distance", "inception_score", "pass_at_1", "pass_at_2")  # metrics of some tasks


def summary(task: str, m: dict[str, Any]) -> str:
    """Return one line about the metrics of a run."""
    figures = [f"accuracy of a sample {m['sample_accuracy']:.3f}"] if m["sample_accuracy"] is not None else []
    if m["vote_accuracy"] is not None:
        figures += [f"{m['violations']} violations (first sample)", f"vote {m['vote_accuracy']:.3f}"]
    if m["coverage"] is not None:
        figures += [f"coverage {m['coverage']:.3f} of a possible {m['coverage_limit']:.3f}"]
    if m["total_variation"] is not None:
        figures += [f"total variation {m['total_variation']:.2f} (perfect {m['total_variation_perfect']:.2f})"]
    figures += [f"{name.replace('_', ' ')} {m[name]:.2f}" for name in SUMMARY_METRICS if m.get(name) is not None]
    temper = TemperConfig(m["temper_scale"], m["temper_transitions"], m.get("temper_floor", 0.0)).describe()
    inputs_text = "no input" if m["vote_accuracy"] is None else f"{m['num_inputs']} held-out inputs"
    return f"{task}, {inputs_text}, {m['num_samples']} samples{temper and f' ({temper})'}: {', '.join(figures)}"


def main(argv: list[str]) -> int:
    config, arguments = parse(argv)
    if arguments["list_split"]:
        return 0 if is_idle_process() else list_split(config, arguments["list_split"], arguments["data_dir"])
    processes, device = start(pick_device(arguments["device"]))
    out = arguments["out"] or default_directory(config, arguments)
    check_directory(out, "--out")

    from pyro_gram.runs.run import open_run
    from pyro_gram.runs.train import InterruptedRunError, train

    resume, data_dir = arguments["resume"], arguments["data_dir"]
    with open_run(config, out, resume=resume, data_dir=data_dir, device=device, processes=processes) as run:
        try:
            train(run)
        except InterruptedRunError as interruption:
            run.print(str(interruption))
            return interruption.exit_code
        from pyro_gram.runs.evaluate import evaluate

        try:
            results = evaluate(run, half=arguments["half"])
        except KeyboardInterrupt as interruption:
            run.print(f"interrupted after training; to continue, run the same command with --resume --out {out}")
            return interrupt_exit_code(interruption)
    if not processes.is_main:
        return 0
    m = results["metrics"]
    print(summary(config.names["task"], m))
    print(f"results: {out / 'results.json'}   report: {out / 'report.html'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(leave(call(main, distributed=True)))
