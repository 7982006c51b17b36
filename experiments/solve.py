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

SOLVER_OPTIONS = ("num_samples", "depth", "seed", "select", "halt", "draws", "memory")  # options of Solver.stream
FIGURE_ROWS, FIGURE_COLUMNS = 6, 4  # largest numbers of inputs, and of answers for each input, in --figure
MAX_TITLE = 20  # an input with more characters is titled by its number in a figure
JSON_HELP = (
    "print one line of JSON for each input: its answers, each with its count, whether it is valid, its score (log "
    "p(y|h_T) in nats: how sure the decoder was) and its value (the value head's P(right); null without heads); the "
    "number of samples, depth and mean steps; the number of distinct answers, and of valid ones among them; the number "
    "of all solutions of the input (null if they cannot be counted)"
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
        help="puzzles, one per line, or boards of several lines; - (the default) reads stdin",
    )
    parser.add_argument(
        "--keep-going",
        action="store_true",
        help="report an input that cannot be solved in the place of its answer, solve the others, and exit with 1 "
        "(default: solve nothing if any input is faulty)",
    )
    parser.add_argument("--num-samples", type=int, default=20, metavar="N", help="trajectories per input (default 20)")
    parser.add_argument(
        "--depth",
        type=int,
        metavar="S",
        help="largest number of supervision steps (default: that of the run's evaluation)",
    )
    parser.add_argument(
        "--select",
        choices=SELECTIONS,
        default="all",
        help="all: every distinct answer (the default); vote: the most frequent one; value: the vote, unless the value "
        "head trusts another answer clearly more; verified: the most frequent one that the task's check accepts",
    )
    parser.add_argument(
        "--halt",
        type=float,
        metavar="P",
        help="a trajectory ends when its halt head gives its answer this probability of being right; 1 for never "
        "(default: the checkpoint's)",
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
        "in the run's evaluation); 1 0 for no tempering",
    )
    parser.add_argument("--memory", type=float, metavar="MB", help="memory that trajectories may take (default ~250)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draws (default 0)")
    parser.add_argument("--json", action="store_true", help=JSON_HELP)
    parser.add_argument(
        "--figure", type=Path, metavar="FILE.png", help=f"draw the first {FIGURE_ROWS} inputs with their answers"
    )
    parser.add_argument("--data-dir", metavar="DIR", help="directory of the data files, for tasks that read files")
    add_trust_option(parser)
    add_device_option(parser)
    return parser


def read_input(source: str) -> str:
    """Read the whole input from a file or, for ``-``, from stdin. Raises InputError if it is empty."""
    name = f"--input {source}"
    if source != "-":
        text = read_text(Path(source), name, MAX_PUZZLE_BYTES)
    elif sys.stdin is None:
        raise InputError("standard input is closed: name a file with --input")
    else:
        stream = getattr(sys.stdin, "buffer", None)
        text = read_text(stream, name, MAX_PUZZLE_BYTES) if stream else normalize_text(sys.stdin.read())
    if not text.strip():
        raise InputError(f"{name} is empty: give one puzzle per line")
    return text


@dataclass(frozen=True)
class FailedInput:
    """The text of an input that cannot be solved, and the reason."""

    text: str
    error: str

    def show(self) -> str:
        """Return the line that is printed without ``--json``."""
        return f"{make_printable(self.text, 80)}: not solved: {make_printable(self.error)}\n"

    def to_dict(self) -> dict[str, str]:
        """Return the object that ``--json`` prints."""
        return {"input": self.text, "error": self.error}


def read_inputs(task: Task, text: str) -> list[Tensor | FailedInput]:
    """Read every input of a text, for ``--keep-going``. An input that cannot be read becomes a FailedInput."""
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
    """Solve the inputs in order. Show a progress bar if stderr is a terminal or there are many trajectories."""
    if not inputs:
        return
    total = len(inputs) * settings["num_samples"]
    is_quiet = total <= BATCH_TRAJECTORIES and not sys.stderr.isatty()
    with tqdm(total=total, unit="trajectory", desc="solve", file=sys.stderr, mininterval=1.0, disable=is_quiet) as bar:
        yield from solver.stream(torch.stack(inputs), progress=bar.update, **settings)


def format_solved(solver: Solver, answers: Answers, colour: bool = False) -> str:
    """Return the readable output for one input: a line for each answer, and a picture of the first one."""
    steps = (
        f", {answers.mean_steps:.1f} of {answers.depth} steps on average" if answers.mean_steps < answers.depth else ""
    )
    introductions = {
        "vote": ", the most frequent:",
        "value": ", by vote and value:",
        "verified": ", the most frequent right one:",
    }
    introduction = introductions.get(answers.select, "") if answers.solutions else ", none of them right"
    answer_text, sample_text = pluralize(answers.distinct, "distinct answer"), pluralize(answers.num_samples, "sample")
    solutions = (
        "" if answers.total is None else f", {answers.distinct_valid} of {pluralize(answers.total, 'solution')} found"
    )
    equivalence = f" ({solver.task.equivalence})" if solutions and solver.task.equivalence else ""
    lines = [
        f"{solver.task.title(answers.x)}: {answer_text} in {sample_text}{solutions}{equivalence}{steps}{introduction}"
    ]
    lines += [f"  {a.solution}  {describe(a, answers.num_samples)}" for a in answers.solutions]
    lines.append(f"  frequencies: {'an estimate of ' * (not answers.caveats)}{answers.frequencies}")
    best = answers.solutions[0].y if answers.solutions else None
    picture = solver.task.render(answers.x, best, colour=colour)
    return "\n".join([*lines, *(f"    {line}".rstrip() for line in picture.splitlines()), ""])


def describe(answer: Answer, num_samples: int) -> str:
    """Describe an answer: whether it is right, its number of samples, its score (nats), the value head's estimate."""
    mark = "unknown" if answer.valid is None else "valid  " if answer.valid else "INVALID"
    value = "" if answer.value is None else f"   value {answer.value:.3f}"
    return f"{mark}  {answer.count:>4} of {num_samples}   score {answer.score:.3f}{value}"


def write_figure(solver: Solver, answers: list[Answers], path: Path) -> None:
    """Write ``--figure``, with one row for each input. Raises UserError if the file cannot be written."""
    titles = [solver.task.title(one_input.x) for one_input in answers]
    rows = [
        (
            f"{title if len(title) <= MAX_TITLE else f'input {i}'}: {pluralize(one_input.distinct, 'distinct answer')}",
            one_input.x,
            [(a.y, a.count) for a in one_input.solutions[:FIGURE_COLUMNS]],
        )
        for i, (title, one_input) in enumerate(zip(titles, answers, strict=True), start=1)
    ]
    figure = answers_figure(solver.task, rows, answers[0].num_samples, FIGURE_COLUMNS)
    write_atomically(path, partial(figure.savefig, dpi=110))


def check_arguments(arguments: Any) -> None:
    """Raise UserError for wrong options, before the checkpoint is read."""
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


def parse_temper(values: list[str] | None) -> TemperConfig | None:
    """Read ``--temper SCALE TRANSITIONS``. Raises UserError if the values are wrong."""
    if values is None:
        return None
    try:
        return TemperConfig(scale=float(values[0]), transitions=int(values[1]))
    except ValueError as e:
        if isinstance(e, UserError):
            raise
        raise UserError(f"--temper takes a number and a whole number, not {' '.join(values)}") from None


def main(argv: list[str]) -> int:
    arguments = make_parser().parse_args(argv)
    check_arguments(arguments)
    settings: dict[str, Any] = {"temper": parse_temper(arguments.temper)}
    settings |= {name: getattr(arguments, name) for name in SOLVER_OPTIONS}
    device = pick_device(arguments.device)
    solver = pyro_gram.load(arguments.checkpoint, arguments.data_dir, trust_code=arguments.trust_code).to(device)
    text = read_input(arguments.input)
    task = solver.task
    # Without --keep-going all inputs are checked before any is solved.
    inputs = read_inputs(task, text) if arguments.keep_going and task.spec.has_input else list(task.read_inputs(text))
    answers = solve_all(solver, [x for x in inputs if not isinstance(x, FailedInput)], **settings)
    figure_answers: list[Answers] = []
    for x in inputs:
        result = x if isinstance(x, FailedInput) else next(answers)
        if arguments.json:
            print(json.dumps(result.to_dict()), flush=True)
        else:
            print(
                result.show()
                if isinstance(result, FailedInput)
                else format_solved(solver, result, wants_colour(sys.stdout)),
                flush=True,
            )
        if arguments.figure and isinstance(result, Answers) and len(figure_answers) < FIGURE_ROWS:
            figure_answers.append(result)
    num_failed = sum(isinstance(x, FailedInput) for x in inputs)
    if arguments.figure and figure_answers:
        write_figure(solver, figure_answers, arguments.figure)
        if len(inputs) - num_failed > len(figure_answers):
            print(
                f"{arguments.figure} shows the first {len(figure_answers)} of {len(inputs) - num_failed} inputs",
                file=sys.stderr,
            )
    if num_failed:
        print(f"{num_failed} of {pluralize(len(inputs), 'input')} cannot be solved", file=sys.stderr)
    return 1 if num_failed else 0


if __name__ == "__main__":
    raise SystemExit(call(main))
