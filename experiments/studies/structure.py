"""Measure how hard the code is to read: ``structure.py`` prints figures and writes them to ``structure.json``.

The figures are: the files that execute in one training update; the files that are imported when training begins; the
lengths of functions and files; imports that form a cycle or point to a higher layer; and names that should be
replaced by clearer ones (``OLD_WORDS``). ``tests/test_architecture.py`` compares the code with the JSON: no figure may
grow.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

from pyro_gram.system.cli import Parser, call
from pyro_gram.system.files import write_json

ROOT = Path(__file__).resolve().parents[2]
OUT = Path(__file__).with_suffix(".json")
LIBRARY = ("pyro_gram", "models", "guides")
PACKAGES = (*LIBRARY, "experiments", "tests")
MAX_LINES = 400  # largest length of a file
MAIN_JOB = ("--task", "coloring", "--preset", "tiny")

# The lowest layer comes first. A module may import modules of its own layer and of lower layers. Paths are relative to
# ROOT, without ".py".
LAYERS = (
    ("pyro_gram/errors", "pyro_gram/checks", "pyro_gram/version", "pyro_gram/registry"),
    ("pyro_gram/system",),
    ("pyro_gram/spec",),
    ("pyro_gram/networks",),
    ("pyro_gram/inference",),
    ("models", "guides"),
    ("pyro_gram/sampling",),
    ("pyro_gram/tasks",),
    ("pyro_gram/training",),
    ("pyro_gram/config", "pyro_gram/answers"),
    ("pyro_gram/presets", "pyro_gram/options"),
    ("pyro_gram/solver",),
    ("pyro_gram/build",),
    ("pyro_gram/checkpoint",),
    ("pyro_gram/__init__",),  # the names that ``import pyro_gram`` offers
    ("pyro_gram/diagnostics",),
    ("pyro_gram/runs",),
    ("experiments",),
    ("tests",),
)
FORBIDDEN = (("pyro_gram/diagnostics", "pyro_gram/solver"), ("models", "guides"), ("guides", "models"))

OLD_WORDS = frozenset(
    """
    found held told there beside alone between said begun given seen kept wanted asked chosen judged drawn rolled
    reading readings really cleaned isolated spoilt quiet most alike few some whole
    announce judge rehearse brings looks_of waves restless agree_ writes World Assembly Inside Guard Places Keeper
    Study VerdictConfig Solved AS_IT_IS RIM products_in at_once unrolled
    """.split()  # noqa: SIM905 (as a list it would fill a page)
)


def python_files(*packages: str) -> list[Path]:
    """List the Python files of packages, relative to ROOT."""
    return sorted(p.relative_to(ROOT) for package in packages for p in (ROOT / package).rglob("*.py"))


@cache
def parse(path: Path) -> ast.Module:
    """Parse a file of :func:`python_files`."""
    return ast.parse((ROOT / path).read_text())


def function_lengths(*packages: str) -> dict[str, int]:
    """Return the number of lines of each function and method, with its docstring. The keys are ``file::name:line``."""
    return {
        f"{path}::{node.name}:{node.lineno}": (node.end_lineno or node.lineno) - node.lineno + 1
        for path in python_files(*packages)
        for node in ast.walk(parse(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def long_files(*packages: str) -> dict[str, int]:
    """Return the number of lines of each file that has more than ``MAX_LINES``."""
    lengths = {str(path): len((ROOT / path).read_text().splitlines()) for path in python_files(*packages)}
    return {path: lines for path, lines in lengths.items() if lines > MAX_LINES}


def file_of(module: str) -> Path | None:
    """Return the file of a module of this project, relative to ROOT; None for any other module."""
    base = Path(*module.removeprefix("pyro_gram.").split(".")) if is_alias(module) else Path(*module.split("."))
    paths = (base.with_suffix(".py"), base / "__init__.py")
    return next((path for path in paths if (ROOT / path).is_file() and path.parts[0] in PACKAGES), None)


def is_alias(module: str) -> bool:
    """Return whether a module name is a second name of a module in ``models`` or ``guides`` (pyro_gram.models.gram)."""
    return module.startswith(("pyro_gram.models", "pyro_gram.guides"))


def imported_modules(path: Path) -> Iterator[str]:
    """Yield the modules that a file imports, in functions too; ``from a import b`` may import the module ``a.b``."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            folders = path.parts[: len(path.parts) - node.level] if node.level else ()  # start of a relative import
            module = ".".join((*folders, *filter(None, [node.module])))
            names = [f"{module}.{alias.name}" for alias in node.names]
            yield from (name if file_of(name) else module for name in names)


def import_graph(*packages: str) -> dict[Path, set[Path]]:
    """Return the files of this project that each file imports."""
    return {path: {f for f in map(file_of, imported_modules(path)) if f} - {path} for path in python_files(*packages)}


def import_cycles(graph: dict[Path, set[Path]]) -> list[list[str]]:
    """Return the sets of files that import each other in a cycle (strongly connected components)."""
    order: list[Path] = []
    visited: set[Path] = set()

    def visit(path: Path, edges: dict[Path, set[Path]], result: list[Path]) -> None:
        visited.add(path)
        for other in sorted(edges.get(path, ())):
            if other not in visited:
                visit(other, edges, result)
        result.append(path)

    for path in graph:
        if path not in visited:
            visit(path, graph, order)
    reverse: dict[Path, set[Path]] = {}
    for path, imports in graph.items():
        for other in imports:
            reverse.setdefault(other, set()).add(path)
    visited.clear()
    cycles = []
    for path in reversed(order):
        if path not in visited:
            component: list[Path] = []
            visit(path, reverse, component)
            if len(component) > 1:
                cycles.append(sorted(map(str, component)))
    return cycles


def layer_of(path: Path) -> int:
    """Return the number of a file's layer. Raises ValueError if the file is in no layer."""
    stem = path.with_suffix("").as_posix()
    for number, names in enumerate(LAYERS):
        if any(stem == name or stem.startswith(f"{name}/") for name in names):
            return number
    raise ValueError(f"{path} belongs to no layer of structure.py")


def upward_imports(graph: dict[Path, set[Path]]) -> list[str]:
    """List the imports that point to a higher layer, and those that ``FORBIDDEN`` lists."""

    def is_within(path: Path, name: str) -> bool:
        return path.with_suffix("").as_posix() == name or path.as_posix().startswith(f"{name}/")

    return sorted(
        f"{path} imports {other}"
        for path, imports in graph.items()
        for other in imports
        if layer_of(other) > layer_of(path)
        or any(is_within(path, low) and is_within(other, high) for low, high in FORBIDDEN)
    )


def identifiers(path: Path) -> Iterator[str]:
    """Yield every name in a file: variables, arguments, attributes, functions, classes, keywords."""
    for node in ast.walk(parse(path)):
        match node:
            case ast.Name(id=name) | ast.arg(arg=name) | ast.Attribute(attr=name) | ast.keyword(arg=str(name)):
                yield name
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                yield name
            case ast.MatchMapping(rest=str(name)):
                yield name
            case ast.alias(name=name, asname=asname):
                yield asname or name.rpartition(".")[2]


def old_words(*packages: str) -> dict[str, Counter[str]]:
    """Count the identifiers of each file that are in ``OLD_WORDS``. Leading underscores are ignored."""
    counts = {
        str(path): Counter(word for name in identifiers(path) if (word := name.lstrip("_")) in OLD_WORDS)
        for path in python_files(*packages)
    }
    return {path: count for path, count in counts.items() if count}


def files_of_an_update() -> list[str]:
    """List the files whose functions run in one update of the main job. Functions that make the batch do not count."""
    from experiments import run
    from pyro_gram.build import build
    from pyro_gram.config import with_settings
    from pyro_gram.tasks.batches import TargetStream
    from pyro_gram.training.trainer import Trainer

    config = with_settings(run.parse(list(MAIN_JOB))[0], {"train": {"supervision_steps": 1}})
    solver = build(config)
    batches = TargetStream(solver.task, solver.task.split("train"), config.train.batch, config.seed)
    trainer = Trainer(solver.model, solver.guide, batches, config.train, config.optim, config.beta, config.seed)
    trainer.train_batch(*batches(0))  # this first batch also runs functions that run only once
    batch = batches(1)
    paths: set[str] = set()
    sys.setprofile(lambda frame, *_: paths.add(frame.f_code.co_filename))
    try:
        trainer.supervise(*batch)
    finally:
        sys.setprofile(None)
    return project_paths(paths)


def project_paths(paths: set[str]) -> list[str]:
    """Keep the paths of this project's files that hold more than a docstring, and return them relative to ROOT."""
    files = (Path(path).relative_to(ROOT) for path in paths - {__file__} if path.startswith(f"{ROOT}/"))
    return sorted(str(path) for path in files if path.parts[0] in PACKAGES and len(parse(path).body) > 1)


AT_TRAINING = """
import json, os, sys, tempfile
import experiments.run as run
from pyro_gram.training.trainer import Trainer

def report(*_):
    print(json.dumps([m.__file__ for m in sys.modules.values() if getattr(m, "__file__", None)]))
    sys.stdout.flush()
    os._exit(0)

Trainer.train_batch = report
with tempfile.TemporaryDirectory() as folder:
    run.main([*sys.argv[1:], "--out", folder + "/run"])
"""


def files_at_training() -> list[str]:
    """List the files of this project that the main job has imported by the time it trains its first batch."""
    words = [sys.executable, "-c", AT_TRAINING, *MAIN_JOB]
    process = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    return project_paths(set(json.loads(process.stdout.splitlines()[-1])))


def measure_text() -> dict[str, Any]:
    """Return the figures that are computed from the text of the files."""
    lengths = function_lengths(*LIBRARY)
    graph = import_graph(*PACKAGES)
    words = old_words(*PACKAGES)
    return {
        "files": {package: len(python_files(package)) for package in PACKAGES},
        "lines": {p: sum(len((ROOT / f).read_text().splitlines()) for f in python_files(p)) for p in PACKAGES},
        "function_lines": {
            "median": median(lengths.values()),
            "largest": max(lengths.values()),
            "longest": dict(sorted(lengths.items(), key=lambda item: -item[1])[:5]),
        },
        "long_files": long_files(*PACKAGES),
        "import_cycles": import_cycles(graph),
        "upward_imports": upward_imports(graph),
        "old_words": dict(sum(words.values(), Counter()).most_common()),
        "old_words_by_package": {
            p: sum(c.total() for f, c in words.items() if f.startswith(f"{p}/")) for p in PACKAGES
        },
        "readme_bytes": len((ROOT / "README.md").read_bytes()),
    }


def main(argv: list[str]) -> int:
    parser = Parser("structure.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("--words", metavar="WORD", help="print the files and counts of one old word, and exit")
    parser.add_argument("--out", type=Path, default=OUT, metavar="FILE", help="(default structure.json)")
    arguments = parser.parse_args(argv)
    if arguments.words:
        for path, count in old_words(*PACKAGES).items():
            if arguments.words in count:
                print(f"{count[arguments.words]:4} {path}")
        return 0
    executed, imported = files_of_an_update(), files_at_training()
    figures = {"files_of_an_update": executed, "files_at_training": imported, **measure_text()}
    write_json(arguments.out, figures)
    counts = {"files_of_an_update": len(executed), "files_at_training": len(imported)}
    print(json.dumps({**figures, **counts}, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(call(main))
