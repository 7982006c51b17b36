"""Test a mutant in a process of its own, and record which lines each test runs; for ``mutation.py``.

The parent process has imported the project and its tests. Each child is a fork of the parent. In the child, the changed
functions get the mutant's code. If the changed statement runs on import, the child imports the project again instead.
"""

from __future__ import annotations

import gc
import hashlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import coverage
import pytest

from experiments.studies.mutation.mutants import Mutant

ROOT = Path(__file__).resolve().parents[3]
WORK = ROOT / ".mutation"  # holds the lines that each test runs, and the result of every mutant; git ignores it
PACKAGES = ("models", "guides", "pyro_gram/inference", "pyro_gram/sampling", "pyro_gram/training")
METRICS = (
    *(f"pyro_gram/diagnostics/{name}.py" for name in ("bounds", "likelihood", "metrics", "calibration", "evidence")),
    "pyro_gram/tasks/uniform.py",
)
PROJECT = ("pyro_gram", "tests", "experiments")
# A mutant's time limit is TIME_FACTOR times the usual time of its tests, but at least MIN_SECONDS.
TIME_FACTOR, MIN_SECONDS = 10.0, 20.0
LEFT_OUT_PLUGINS = ("cacheprovider", "xdist", "cov", "unraisableexception")  # pytest plugins that are switched off
PYTEST_OPTIONS = ("-x", "-q", *(f"-pno:{name}" for name in LEFT_OUT_PLUGINS), "-o", "addopts=", "-m", "not slow")


def targets() -> list[str]:
    files = (p.relative_to(ROOT).as_posix() for package in PACKAGES for p in sorted((ROOT / package).rglob("*.py")))
    return [*files, *METRICS]


def module_name(file: str) -> str:
    """Return the module name of a file of :func:`targets`. ``models/gram.py`` is ``pyro_gram.models.gram``."""
    name = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    return name if name.startswith("pyro_gram.") else f"pyro_gram.{name}"


# ---- which tests run which lines ---------------------------------------------------------------------------------


class Recorder:
    """A pytest plugin that records the lines and the seconds of each test."""

    def __init__(self, cover: coverage.Coverage) -> None:
        self.cover = cover
        self.seconds: dict[str, float] = {}
        self.failed: set[str] = set()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: Any) -> Iterator[None]:
        self.cover.switch_context(item.nodeid)
        start = time.perf_counter()
        try:
            return (yield)
        finally:
            self.seconds[item.nodeid] = time.perf_counter() - start
            self.cover.switch_context("")

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.failed.add(report.nodeid)


def record(test_file: str) -> None:
    """Run the tests of a file, and write down which lines each test runs. Call it in a process of its own."""
    cover = coverage.Coverage(data_file=None, include=[str(ROOT / t) for t in targets()], config_file=False)
    cover.start()
    recorder = Recorder(cover)
    pytest.main([test_file, *PYTEST_OPTIONS[1:]], plugins=[recorder])
    cover.stop()
    data = cover.get_data()
    lines: dict[str, dict[str, list[int]]] = {}
    for path in data.measured_files():
        file = Path(path).relative_to(ROOT).as_posix()
        for line, tests in data.contexts_by_lineno(path).items():
            for test in filter(None, tests):
                lines.setdefault(test, {}).setdefault(file, []).append(line)
    results = {
        test: {"seconds": seconds, "lines": lines.get(test, {})}
        for test, seconds in recorder.seconds.items()
        if test not in recorder.failed
    }
    sources = {file: _digest(ROOT / file) for entry in lines.values() for file in entry}
    _map_file(test_file).write_text(json.dumps({"tests": results, "sources": sources}))


def _map_file(test_file: str) -> Path:
    """Return the path of the record of a test file. Its name contains a digest of the test file's contents."""
    name = f"{test_file.replace('/', '.')}.{_digest(ROOT / test_file, ROOT / 'tests/conftest.py')}.json"
    return WORK / "covered" / name


def _digest(*paths: Path) -> str:
    return hashlib.sha256(b"".join(p.read_bytes() if p.exists() else b"" for p in paths)).hexdigest()[:16]


def test_coverage(names: list[str], workers: int) -> dict[str, Any]:
    """Return the lines and seconds of each test. Test files that have no record yet are run first."""
    missing_files = [n for n in names if not _map_file(n).exists()]
    files_by_pid: dict[int, str] = {}
    while missing_files or files_by_pid:
        while missing_files and len(files_by_pid) < workers:
            name = missing_files.pop(0)
            files_by_pid[_fork(lambda name=name: record(name), WORK / "covered.log")] = name
            print(f"reading {name}", flush=True)
        pid, _ = os.wait()
        name = files_by_pid.pop(pid, "")
        if name and not _map_file(name).exists():
            raise SystemExit(f"{name} could not be run: see {WORK / 'covered.log'}")
    tests: dict[str, Any] = {}
    for file_record in (json.loads(_map_file(n).read_text()) for n in names):
        changed_files = {file for file, digest in file_record["sources"].items() if _digest(ROOT / file) != digest}
        for test, entry in file_record["tests"].items():
            # If a source file has changed, its recorded lines are wrong: assume that the test runs all its lines.
            lines = {
                file: None if file in changed_files else set(executed) for file, executed in entry["lines"].items()
            }
            tests[test] = {**entry, "lines": lines}
    return tests


# ---- one mutant --------------------------------------------------------------------------------------------------


class MutantLoader(importlib.machinery.SourceFileLoader):
    """Load a module from ``text`` instead of its file."""

    text = b""

    def get_code(self, fullname: str) -> Any:
        return compile(self.text, self.path, "exec", dont_inherit=True)


class MutantFinder(importlib.abc.MetaPathFinder):
    """Find the changed module before the import system finds the file."""

    def __init__(self, mutant: Mutant) -> None:
        self.mutant = mutant
        self.name = module_name(mutant.file)

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        if fullname != self.name:
            return None
        loader = MutantLoader(fullname, str(ROOT / self.mutant.file))
        loader.text = self.mutant.source.encode()
        return importlib.util.spec_from_file_location(fullname, ROOT / self.mutant.file, loader=loader)


class Functions:
    """Hold the functions of the imported project by file, name and first line, so that their code can be replaced."""

    def __init__(self) -> None:
        self.functions: dict[tuple[str, str, int], list[FunctionType]] = {}
        for thing in gc.get_objects():
            if type(thing) is FunctionType and thing.__code__.co_filename.startswith(str(ROOT)):
                code = thing.__code__
                self.functions.setdefault((code.co_filename, code.co_qualname, code.co_firstlineno), []).append(thing)

    def exchange(self, mutant: Mutant) -> bool:
        """Put the mutant's code into the live functions; return False if the change needs a new import."""
        path = str(ROOT / mutant.file)
        old = _functions_in(compile((ROOT / mutant.file).read_text(), path, "exec", dont_inherit=True))
        new = _functions_in(compile(mutant.source, path, "exec", dont_inherit=True))
        changed_functions = [(key, code) for key, code in new.items() if old.get(key) != code]
        # A change to a nested function is made in its outermost live function.
        live_functions = [(f, code) for key, code in changed_functions for f in self.functions.get((path, *key), ())]
        if mutant.imported or not live_functions or old.keys() != new.keys():
            return False
        try:
            for function, code in live_functions:
                function.__code__ = code
        except ValueError:  # the new code has another number of free variables
            return False
        return True


def _functions_in(code: CodeType) -> dict[tuple[str, int], CodeType]:
    inner = [c for c in code.co_consts if isinstance(c, CodeType)]
    nested = [entry for c in inner for entry in _functions_in(c).items()]
    return {(c.co_qualname, c.co_firstlineno): c for c in inner} | dict(nested)


def import_anew(mutant: Mutant) -> None:
    """Remove the project's modules from sys.modules, and let the next import find the mutant."""
    for name in [m for m in sys.modules if m.partition(".")[0] in PROJECT and m != "experiments"]:
        if not name.startswith("experiments.studies.mutation."):
            del sys.modules[name]
    sys.meta_path.insert(0, MutantFinder(mutant))


class SelectedTests:
    """A pytest plugin that runs listed tests in their order, and writes the name of a failed test to a pipe."""

    def __init__(self, tests: list[str], pipe: int) -> None:
        self.order = {test: i for i, test in enumerate(tests)}
        self.pipe = pipe

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items[:] = sorted((i for i in items if i.nodeid in self.order), key=lambda i: self.order[i.nodeid])

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            os.write(self.pipe, report.nodeid.encode())

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            os.write(self.pipe, b"import of " + report.nodeid.encode())


def _fork(work: Any, log: Path) -> int:
    """Run ``work`` in a child process, whose exit status is the result of ``work``; return the child's id."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.setsid()
        gc.disable()
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(output, stream)
        status = int(work() or 0)
    except BaseException:  # a child must never return into the parent's loop
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


@dataclass
class Trial:
    """A mutant, and the process that tests it."""

    mutant: Mutant
    tests: list[str]
    second: bool
    pid: int
    pipe: int
    deadline: float


def start(mutant: Mutant, functions: Functions, tests: list[str], seconds: float, second: bool = False) -> Trial:
    read, write = os.pipe()

    def work() -> int:
        if not functions.exchange(mutant):
            import_anew(mutant)
        files = sorted({t.partition("::")[0] for t in tests})
        return int(pytest.main([*files, *PYTEST_OPTIONS], plugins=[SelectedTests(tests, write)]))

    pid = _fork(work, WORK / f"worker.{hashlib.md5(mutant.key.encode()).hexdigest()[:4]}.log")
    os.close(write)
    return Trial(mutant, tests, second, pid, read, time.monotonic() + max(MIN_SECONDS, TIME_FACTOR * seconds))


def outcome(trial: Trial) -> dict[str, Any] | None:
    """Return the result of a trial, or None while its process still runs."""
    pid, status = os.waitpid(trial.pid, os.WNOHANG)
    if not pid and time.monotonic() < trial.deadline:
        return None
    if not pid:
        os.killpg(trial.pid, signal.SIGKILL)
        os.waitpid(trial.pid, 0)
    by = os.read(trial.pipe, 1 << 16).decode() if pid else "the time limit"
    os.close(trial.pipe)
    code = os.waitstatus_to_exitcode(status) if pid else -9
    killed = code != 0
    return {"killed": killed, "by": (by or f"exit status {code}") if killed else "", "tests": len(trial.tests)}
