"""Solve your own puzzles: ``python experiments/solve.py --checkpoint PATH --input FILE``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import pyro_gram
from pyro_gram.answers import Answer, Answers
from pyro_gram.diagnostics.plots.run import answers_figure, pluralize
from pyro_gram.errors import InputError, UserError
from pyro_gram.sampling.selection import SELECTIONS
from pyro_gram.sampling.tempering import TemperConfig
from pyro_gram.solver import BATCH_TRAJECTORIES, DRAWS, Solver
from pyro_gram.system.cli import Parser, add_device_option, add_trust_option, call
from pyro_gram.system.files import check_writable, write_atomically
from pyro_gram.system.machine import pick_device
from pyro_gram.system.text import MAX_PUZZLE_BYTES, make_printable, normalize_text, read_text
from pyro_gram.tasks.base import NO_PUZZLE, Task
from pyro_gram.tasks.terminal import wants_colour

PASSED_ON = ("num_samples", "depth", "seed", "select", "halt", "draws", "memory")  # to the solver
FIGURE_ROWS, FIGURE_COLUMNS = 6, 4  # inputs, and answers of each, in --figure
TITLE = 20  # characters of an input that stand above its picture
JSON_HELP = (
    "one JSON object a line and input: its answers, each with its count, whether it is valid, its score (log p(y|h_T) "
    "in nats: how sure the decoder was) and its value (the value head's P(right); null without heads); the number of "
    "samples, depth and mean steps; how many answers are distinct and how many of those valid, and the total of "
    "solutions that the input has (null where they cannot be counted)"
)


def make_parser() -> Parser:
    parser = Parser("solve.py", description=__doc__)
    parser.add_argument(
        "--checkpoint", type=Path, required=True, metavar="PATH", help=".safetensors, or a run's directory"
    )
    parser.add_argument(
        "--input",
        default="-",
        metavar="FILE",
        help="puzzles, one a line, or boards over several lines; - (the default) reads stdin",
    )
    parser.add_argument(
        "--keep-going",
        action="store_true",
        help="an input that cannot be solved is reported in its place, and the others are solved; the exit code is "
        "then 1. Without it nothing is solved",
    )
    parser.add_argument("--num-samples", type=int, default=20, metavar="N", help="trajectories an input (default 20)")
    parser.add_argument(
        "--depth", type=int, metavar="S", help="supervision steps, at the most (default: as the run was measured)"
    )
    parser.add_argument(
        "--select",
        choices=SELECTIONS,
        default="all",
        help="all distinct answers (the default); or one: the most frequent (vote), another in its place if the value "
        "head trusts it clearly more (value), the most frequent that the task's check accepts (verified)",
    )
    parser.add_argument(
        "--halt",
        type=float,
        metavar="P",
        help="a trajectory ends when its halt head gives its answer this probability of being right; 1 for never "
        "(default: as the checkpoint says)",
    )
    parser.add_argument(
        "--draws",
        choices=DRAWS,
        default="independent",
        help="how trajectories are drawn (default independent); smc weights them by the value head",
    )
    parser.add_argument(
        "--temper",
        nargs=2,
        metavar=("SCALE", "TRANSITIONS"),
        help="multiply the prior's sigma by SCALE in the first TRANSITIONS transitions of a trajectory (default: as "
        "the run was measured); 1 0 is the prior as it is",
    )
    parser.add_argument("--memory", type=float, metavar="MB", help="the most that trajectories may take (default ~250)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default 0)")
    parser.add_argument("--json", action="store_true", help=JSON_HELP)
    parser.add_argument("--figure", type=Path, metavar="FILE.png", help=f"draw the first {FIGURE_ROWS} inputs, solved")
    parser.add_argument("--data-dir", metavar="DIR", help="where a task that reads files finds them")
    add_trust_option(parser)
    add_device_option(parser)
    return parser


def read_input(source: str) -> str:
    """Read all of the input from a file or, for ``-``, from stdin. Raises InputError where it is empty."""
    name = f"--input {source}"
    if source != "-":
        text = read_text(Path(source), name, MAX_PUZZLE_BYTES)
    elif sys.stdin is None:
        raise InputError("standard input is closed: name a file with --input")
    else:
        stream = getattr(sys.stdin, "buffer", None)
        text = read_text(stream, name, MAX_PUZZLE_BYTES) if stream else normalize_text(sys.stdin.read())
    if not text.strip():
        raise InputError(f"{name} is empty: give one puzzle a line")
    return text


@dataclass(frozen=True)
class FailedInput:
    """The text of an input that cannot be solved, and why."""

    text: str
    error: str

    def show(self) -> str:
        """Return the line for a person."""
        return f"{make_printable(self.text, 80)}: not solved: {make_printable(self.error)}\n"

    def to_dict(self) -> dict[str, str]:
        """Return what ``--json`` prints."""
        return {"input": self.text, "error": self.error}


def read_inputs(task: Task, text: str) -> list[Tensor | FailedInput]:
    """Read every input of a text, for ``--keep-going``: an unreadable one gives a FailedInput in its place."""
    inputs: list[Tensor | FailedInput] = []
    pieces = task.puzzle_texts(text)
    if not pieces:
        raise InputError(NO_PUZZLE)
    for piece in pieces:
        try:
            inputs += task.parse_inputs(piece.text)
        except InputError as e:
            inputs.append(FailedInput(piece.text.strip(), str(piece.locate_error(e) if len(pieces) > 1 else e)))
    return inputs


def solve_all(solver: Solver, inputs: list[Tensor], **settings: Any) -> Iterator[Answers]:
    """Solve each input, in order, with a bar on stderr if that is a terminal or there is much to do."""
    if not inputs:
        return
    total = len(inputs) * settings["num_samples"]
    is_quiet = total <= BATCH_TRAJECTORIES and not sys.stderr.isatty()
    with tqdm(total=total, unit="trajectory", desc="solve", file=sys.stderr, mininterval=1.0, disable=is_quiet) as bar:
        yield from solver.stream(torch.stack(inputs), progress=bar.update, **settings)


def format_solved(solver: Solver, solved: Answers, colour: bool = False) -> str:
    """Return the text for a person: each answer in a line, and a picture of the first one."""
    steps = f", {solved.mean_steps:.1f} of {solved.depth} steps on average" if solved.mean_steps < solved.depth else ""
    introductions = {
        "vote": ", the most frequent:",
        "value": ", by vote and value:",
        "verified": ", the most frequent right one:",
    }
    introduction = introductions.get(solved.select, "") if solved.solutions else ", none of them right"
    answers, samples = pluralize(solved.distinct, "distinct answer"), pluralize(solved.num_samples, "sample")
    solutions = (
        "" if solved.total is None else f", {solved.distinct_valid} of {pluralize(solved.total, 'solution')} found"
    )
    equivalence = f" ({solver.task.equivalence})" if solutions and solver.task.equivalence else ""
    lines = [f"{solver.task.title(solved.x)}: {answers} in {samples}{solutions}{equivalence}{steps}{introduction}"]
    lines += [f"  {a.solution}  {describe(a, solved.num_samples)}" for a in solved.solutions]
    lines.append(f"  frequencies: {'an estimate of ' * (not solved.caveats)}{solved.frequencies}")
    best = solved.solutions[0].y if solved.solutions else None
    picture = solver.task.render(solved.x, best, colour=colour)
    return "\n".join([*lines, *(f"    {line}".rstrip() for line in picture.splitlines()), ""])


def describe(answer: Answer, num_samples: int) -> str:
    """Return whether an answer is right, how many samples gave it, its score (nats) and the value head's estimate."""
    mark = "unknown" if answer.valid is None else "valid  " if answer.valid else "INVALID"
    value = "" if answer.value is None else f"   value {answer.value:.3f}"
    return f"{mark}  {answer.count:>4} of {num_samples}   score {answer.score:.3f}{value}"


def write_figure(solver: Solver, shown: list[Answers], path: Path) -> None:
    """Write ``--figure``, one row an input. Raises UserError where the file cannot be written."""
    titles = [solver.task.title(s.x) for s in shown]
    rows = [
        (
            f"{title if len(title) <= TITLE else f'input {i}'}: {pluralize(s.distinct, 'distinct answer')}",
            s.x,
            [(a.y, a.count) for a in s.solutions[:FIGURE_COLUMNS]],
        )
        for i, (title, s) in enumerate(zip(titles, shown, strict=True), start=1)
    ]
    figure = answers_figure(solver.task, rows, shown[0].num_samples, FIGURE_COLUMNS)
    write_atomically(path, partial(figure.savefig, dpi=110))


def check_arguments(arguments: Any) -> None:
    """Refuse wrong options before the checkpoint is read. Raises UserError."""
    for name in ("num_samples", "depth"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, not {value}")
    if arguments.halt is not None and not 0 <= arguments.halt <= 1:
        raise UserError(f"--halt is a probability, from 0 to 1, not {arguments.halt:g}")
    if arguments.memory is not None and not arguments.memory > 0:
        raise UserError(f"--memory must be a positive number of MB, not {arguments.memory:g}")
    if arguments.figure is not None and arguments.figure.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise UserError(f"--figure writes .png, .pdf or .svg, not {str(arguments.figure)!r}")
    if arguments.figure is not None:
        if not arguments.figure.parent.is_dir():
            raise UserError(f"--figure: there is no directory {str(arguments.figure.parent)!r}; make it first")
        check_writable(arguments.figure)


def parse_temper(words: list[str] | None) -> TemperConfig | None:
    """Read ``--temper SCALE TRANSITIONS``. Raises UserError."""
    if words is None:
        return None
    try:
        return TemperConfig(scale=float(words[0]), transitions=int(words[1]))
    except ValueError as e:
        if isinstance(e, UserError):
            raise
        raise UserError(f"--temper takes a number and a whole number, not {' '.join(words)}") from None


def main(argv: list[str]) -> int:
    arguments = make_parser().parse_args(argv)
    check_arguments(arguments)
    settings: dict[str, Any] = {"temper": parse_temper(arguments.temper)}
    settings |= {name: getattr(arguments, name) for name in PASSED_ON}
    device = pick_device(arguments.device)
    solver = pyro_gram.load(arguments.checkpoint, arguments.data_dir, trust_code=arguments.trust_code).to(device)
    text = read_input(arguments.input)
    task = solver.task
    # Without --keep-going all inputs are checked before any is solved.
    inputs = read_inputs(task, text) if arguments.keep_going and task.spec.has_input else list(task.read_inputs(text))
    answers = solve_all(solver, [x for x in inputs if not isinstance(x, FailedInput)], **settings)
    shown: list[Answers] = []
    for x in inputs:
        done = x if isinstance(x, FailedInput) else next(answers)
        if arguments.json:
            print(json.dumps(done.to_dict()), flush=True)
        else:
            print(
                done.show() if isinstance(done, FailedInput) else format_solved(solver, done, wants_colour(sys.stdout)),
                flush=True,
            )
        if arguments.figure and isinstance(done, Answers) and len(shown) < FIGURE_ROWS:
            shown.append(done)
    failed = sum(isinstance(x, FailedInput) for x in inputs)
    if arguments.figure and shown:
        write_figure(solver, shown, arguments.figure)
        if len(inputs) - failed > len(shown):
            print(f"{arguments.figure} shows the first {len(shown)} of {len(inputs) - failed} inputs", file=sys.stderr)
    if failed:
        print(f"{failed} of {pluralize(len(inputs), 'input')} cannot be solved", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(call(main))
