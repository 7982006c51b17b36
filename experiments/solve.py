"""Solve your own puzzles: ``python experiments/solve.py FILE`` finds their task, and a checkpoint, by the notation."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

import pyro_gram
from pyro_gram.answers import Answer, Answers
from pyro_gram.checkpoint import checkpoint_for_puzzles
from pyro_gram.checks import check_counts
from pyro_gram.diagnostics.plots.run import answers_figure, pluralize
from pyro_gram.errors import CheckpointError, InputError, UserError
from pyro_gram.sampling.selection import SELECTIONS
from pyro_gram.sampling.tempering import TemperConfig
from pyro_gram.solver import BATCH_TRAJECTORIES, DRAWS, Solver
from pyro_gram.system.cli import Parser, add_device_option, add_trust_option, call
from pyro_gram.system.files import check_writable, write_atomically
from pyro_gram.system.machine import pick_device
from pyro_gram.system.text import make_printable
from pyro_gram.tasks.recognition import choose_task
from pyro_gram.tasks.sources import STDIN_NAME, FailedInput, Source, names_of_vertices, read_inputs, read_sources
from pyro_gram.tasks.terminal import wants_colour

# options of Solver.stream
SOLVER_OPTIONS = ("num_samples", "depth", "seed", "select", "colors", "halt", "draws", "restarts", "sweeps", "memory")
FIGURE_ROWS, FIGURE_COLUMNS = 6, 4  # largest numbers of inputs, and of answers for each input, in --figure
MAX_TITLE = 20  # an input with more characters is titled by its number in a figure
JSON_HELP = (
    "print one line of JSON for each input: its answers, each with its count, whether it is valid, its score (log "
    "p(y|h_T) in nats: how sure the decoder was) and its value (the value head's P(right); null without heads); the "
    "number of samples, depth and mean steps; what the text calls the vertices of a graph, unless it counts from 0; "
    "the number of distinct answers, and of valid ones among them; the number "
    "of all solutions of the input (null if they cannot be counted)"
)


def make_parser() -> Parser:
    parser = Parser("solve.py", description=__doc__)
    parser.add_argument(
        "files",
        nargs="*",
        metavar="FILE",
        help="puzzles, one per line, or boards of several lines; - reads stdin, as does no FILE",
    )
    parser.add_argument("--input", metavar="FILE", help="the same as a single FILE")
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="PATH",
        help=".safetensors, a run's directory, or the name of a checkpoint of the repository (default: the one of the "
        "task)",
    )
    parser.add_argument(
        "--task", metavar="NAME", help="the task of all puzzles (default: recognized by their notation)"
    )
    parser.add_argument(
        "--colors",
        type=int,
        metavar="K",
        help="colour graphs with at most K colours (default: with the fewest from 3 on for which an answer is found)",
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
    parser.add_argument(
        "--floor",
        type=float,
        metavar="P",
        help="draw no value with a lower probability, for models with a lattice (default: as in the run's evaluation)",
    )
    parser.add_argument(
        "--restarts",
        type=int,
        metavar="R",
        help="start a trajectory anew, up to R times, if the halt head thinks its answer wrong "
        "(default: the checkpoint's)",
    )
    parser.add_argument(
        "--sweeps",
        type=int,
        metavar="W",
        help="draw half of each complete answer again, W times, for models with a lattice (default: the checkpoint's)",
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


@dataclass
class Job:
    """The inputs of consecutive sources that one solver solves, each with the names of its vertices."""

    solver: Solver
    inputs: list[Tensor | FailedInput]
    names: list[list[str]]


class Solvers:
    """The solvers that a command needs; each checkpoint is loaded once.

    Attributes:
        default: the solver of ``--checkpoint``, which then solves all sources; else None.
        choices: for each source without ``--checkpoint``, a line that names its task and the checkpoint.
    """

    def __init__(self, arguments: Any) -> None:
        self.arguments = arguments
        self.device = pick_device(arguments.device)
        self._solvers: dict[Path, Solver] = {}
        self.choices: list[str] = []
        self.default = None if arguments.checkpoint is None else self._load(arguments.checkpoint)

    def _load(self, path: Path) -> Solver:
        if path not in self._solvers:
            arguments = self.arguments
            solver = pyro_gram.load(path, arguments.data_dir, trust_code=arguments.trust_code).to(self.device)
            name = solver.config.names["task"]
            if arguments.task not in (None, name):
                raise UserError(f"--task is {arguments.task}, and the checkpoint {path} is of the task {name}")
            self._solvers[path] = solver
        return self._solvers[path]

    def solver_of(self, source: Source) -> Solver:
        """Return the solver for a source. Raises UserError if its task is not clear, or there is no checkpoint."""
        if self.default is not None:
            return self.default
        name = self.arguments.task or choose_task(source.text, source.name)
        path = checkpoint_for_puzzles(name, source.text)
        shown_path = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
        self.choices.append(f"{source.name}: {name}, solved with {shown_path}")
        return self._load(path)


def make_jobs(sources: list[Source], solvers: Solvers, arguments: Any) -> list[Job]:
    """Read the inputs of all sources. Raises UserError if an input is faulty, unless ``--keep-going`` is set."""
    jobs: list[Job] = []
    for source in sources:
        try:
            solver = solvers.solver_of(source)
            keep_going = arguments.keep_going and solver.task.spec.has_input
            inputs = read_inputs(solver.task, source.text, arguments.colors, keep_going)
        except (InputError, CheckpointError) as e:
            is_named = source.name in str(e) or (source.name == STDIN_NAME and len(sources) == 1)
            raise (e if is_named else UserError(f"{source.name}: {e}")) from None
        if not jobs or jobs[-1].solver is not solver:
            jobs.append(Job(solver, [], []))
        jobs[-1].inputs += inputs
        jobs[-1].names += names_of_vertices(solver.task, source.text, inputs)
    return jobs


def solve_all(solver: Solver, inputs: list[Tensor], **settings: Any) -> Iterator[Answers]:
    """Solve the inputs in order. Show a progress bar if stderr is a terminal or there are many trajectories.

    The bar grows if an input is solved again with more colours.
    """
    if not inputs:
        return
    total = len(inputs) * settings["num_samples"]
    is_quiet = total <= BATCH_TRAJECTORIES and not sys.stderr.isatty()
    with tqdm(total=total, unit="trajectory", desc="solve", file=sys.stderr, mininterval=1.0, disable=is_quiet) as bar:

        def on_progress(count: int) -> None:
            bar.total = max(int(bar.total or 0), int(bar.n) + count)
            bar.update(count)

        yield from solver.stream(inputs, progress=on_progress, **settings)


def format_solved(solver: Solver, answers: Answers, names: list[str] | None = None, colour: bool = False) -> str:
    """Return the readable output for one input: a line for each answer, and a picture of one."""
    is_early = answers.mean_steps < answers.depth
    steps = f", {answers.mean_steps:.1f} of {answers.depth} steps on average" if is_early else ""
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
    if answers.colors is not None:
        lines.append(describe_colors(answers))
    if names:
        lines.append(f"  vertices: {describe_names(names)}")
    lines += [f"  {a.solution}  {describe(a, answers.num_samples)}" for a in answers.solutions]
    lines.append(f"  frequencies: {'an estimate of ' * (not answers.caveats)}{answers.frequencies}")
    shown = next((a for a in answers.solutions if a.valid), next(iter(answers.solutions), None))  # a right one, if any
    picture = solver.task.render(answers.x, None if shown is None else shown.y, colour=colour)
    return "\n".join([*lines, *(f"    {line}".rstrip() for line in picture.splitlines()), ""])


def describe(answer: Answer, num_samples: int) -> str:
    """Describe an answer: whether it is right, its number of samples, its score (nats), the value head's estimate."""
    mark = "unknown" if answer.valid is None else "valid  " if answer.valid else "INVALID"
    value = "" if answer.value is None else f"   value {answer.value:.3f}"
    return f"{mark}  {answer.count:>4} of {num_samples}   score {answer.score:.3f}{value}"


def describe_names(names: list[str]) -> str:
    """Return how the vertices of answers, which count from 0, are called in the text of the input."""
    if names == [str(i + 1) for i in range(len(names))]:
        return f"0 to {len(names) - 1} are 1 to {len(names)} of the text"
    return make_printable(", ".join(f"{i} is {name}" for i, name in enumerate(names)))


def describe_colors(answers: Answers) -> str:
    """Return a line with the number of colours, and with what came of smaller numbers."""
    failure = "" if answers.distinct_valid else f": none found in {pluralize(answers.num_samples, 'sample')}"
    attempts = "".join(f"; with {colors}: {result}" for colors, result in answers.fewer_colors.items())
    return f"  with {pluralize(answers.colors or 0, 'colour')}{failure}{attempts}"


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
    if arguments.files and arguments.input is not None:
        raise UserError("puzzles are named twice: give FILE or --input, not both")
    for name in ("num_samples", "depth", "colors"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, not {value}")
    check_counts(seed=arguments.seed, num_samples=arguments.num_samples)
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


def parse_temper(values: list[str] | None, floor: float | None) -> TemperConfig | None:
    """Read ``--temper SCALE TRANSITIONS`` and ``--floor``; None without both. Raises UserError if a value is wrong."""
    if values is None:
        return None if floor is None else TemperConfig(floor=floor)
    try:
        return TemperConfig(float(values[0]), int(values[1]), floor or 0.0)
    except ValueError as e:
        if isinstance(e, UserError):
            raise
        raise UserError(f"--temper takes a number and a whole number, not {' '.join(values)}") from None


def main(argv: list[str]) -> int:
    arguments = make_parser().parse_args(argv)
    check_arguments(arguments)
    settings: dict[str, Any] = {"temper": parse_temper(arguments.temper, arguments.floor)}
    settings |= {name: getattr(arguments, name) for name in SOLVER_OPTIONS}
    solvers = Solvers(arguments)
    # Without --keep-going all inputs are checked before any is solved.
    jobs = make_jobs(read_sources(arguments.files, arguments.input), solvers, arguments)
    if arguments.figure and len(jobs) > 1:
        raise UserError("--figure draws the puzzles of one task: give the files of one task")
    print(*solvers.choices, sep="\n", end="\n" * bool(solvers.choices), file=sys.stderr)
    figure_answers: list[Answers] = []
    for job in jobs:
        answers = solve_all(job.solver, [x for x in job.inputs if not isinstance(x, FailedInput)], **settings)
        for x, names in zip(job.inputs, job.names, strict=True):
            result = x if isinstance(x, FailedInput) else next(answers)
            print_result(job.solver, result, names, arguments.json)
            if arguments.figure and isinstance(result, Answers) and len(figure_answers) < FIGURE_ROWS:
                figure_answers.append(result)
    num_inputs = sum(len(job.inputs) for job in jobs)
    num_failed = sum(isinstance(x, FailedInput) for job in jobs for x in job.inputs)
    if arguments.figure and figure_answers:
        write_figure(jobs[0].solver, figure_answers, arguments.figure)
        if num_inputs - num_failed > len(figure_answers):
            drawn_inputs = f"the first {len(figure_answers)} of {num_inputs - num_failed} inputs"
            print(f"{arguments.figure} shows {drawn_inputs}", file=sys.stderr)
    if num_failed:
        print(f"{num_failed} of {pluralize(num_inputs, 'input')} cannot be solved", file=sys.stderr)
    return 1 if num_failed else 0


def print_result(solver: Solver, result: Answers | FailedInput, names: list[str], as_json: bool) -> None:
    """Print the answers to one input, or why it cannot be solved."""
    if as_json:
        print(json.dumps(result.to_dict() | ({"vertices": names} if names else {})), flush=True)
    elif isinstance(result, FailedInput):
        print(result.show(), flush=True)
    else:
        print(format_solved(solver, result, names, wants_colour(sys.stdout)), flush=True)


if __name__ == "__main__":
    raise SystemExit(call(main))
