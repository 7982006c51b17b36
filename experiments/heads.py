"""Give a checkpoint halt and value heads: ``python experiments/heads.py --checkpoint PATH``.

A run trains its own heads if ``--heads.hidden`` is set. This script adds heads to a trained model, or replaces its
heads by new ones; all other weights stay the same. If the model has heads and ``--heads.halt`` is the only ``--heads``
option, only this threshold changes, and nothing is trained.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from tqdm import tqdm

from pyro_gram.checkpoint import is_half, load, save_model
from pyro_gram.checks import check_seed
from pyro_gram.config import RunConfig
from pyro_gram.errors import ConfigError
from pyro_gram.options import add_options, with_options
from pyro_gram.system.cli import Parser, add_trust_option, call
from pyro_gram.system.files import check_writable, write_json
from pyro_gram.training.config import HeadsConfig
from pyro_gram.training.heads import check_heads, train_heads

DEFAULT = RunConfig({}, {"heads": HeadsConfig(hidden=64)})


def make_parser() -> Parser:
    parser = Parser("heads.py", description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--checkpoint", type=Path, required=True, metavar="PATH", help=".safetensors, or a run's directory"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE.safetensors", help="file to write (default: the checkpoint itself)"
    )
    parser.add_argument("--seed", type=int, help="seed of the heads and of their training data (default: the run's)")
    parser.add_argument("--data-dir", metavar="DIR", help="directory of the data files, for tasks that read files")
    add_trust_option(parser)
    add_options(parser, DEFAULT)
    return parser


def main(argv: list[str]) -> int:
    arguments = vars(make_parser().parse_args(argv))
    source = arguments["checkpoint"]
    source = source / "model.safetensors" if source.is_dir() else source
    out = arguments["out"] or source
    if out.suffix != ".safetensors":
        raise ConfigError(f"--out must end in .safetensors, not {str(out)!r}")
    if arguments["seed"] is not None:
        check_seed(arguments["seed"], "--seed")
    with_options(DEFAULT, arguments)  # refuse wrong values of options before any file is read
    check_writable(out)
    solver = load(source, arguments["data_dir"], trust_code=arguments["trust_code"])
    current = solver.config.heads
    base = current if current.hidden else DEFAULT.heads
    heads = with_options(RunConfig({}, {"heads": base}), arguments).heads
    if not heads.hidden:
        raise ConfigError("--heads.hidden 0 means no heads: give a width")
    config = dataclasses.replace(solver.config, parts={**solver.config.parts, "heads": heads})
    options = {name for name in arguments if name.startswith("heads.")}
    if not (current.hidden and options == {"heads.halt"}):
        seed = config.seed if arguments["seed"] is None else arguments["seed"]
        check_heads(solver.model, solver.task, heads)
        with tqdm(total=heads.rounds, desc="heads", unit="round", file=sys.stderr, disable=None) as bar:
            settings = dataclasses.replace(config, seed=seed).head_settings
            train_heads(
                solver.model, config.model, solver.task, heads, **settings, progress=lambda number, loss: bar.update()
            )
    save_model(out, dataclasses.replace(solver, config=config), half=is_half(source))
    config_path = out.with_name("config.json") if out.name == "model.safetensors" else out.with_suffix(".json")
    write_json(config_path, config.to_dict())
    print(f"{out} has halt and value heads now; its config is {config_path}", file=sys.stderr)
    results = out.with_name("results.json")
    if out.name == "model.safetensors" and results.exists():
        print(
            f"{results} is of the run without these heads: experiments/run.py --resume measures the run again",
            file=sys.stderr,
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(call(main))
