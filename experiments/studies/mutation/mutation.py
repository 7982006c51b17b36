"""Measure a mutation score: do the tests notice one small change to the code that computes probabilities?

    pip install -e '.[test,mutation]'
    mutation.py --out experiments/studies/mutation/mutation.json    # continues a stopped run
    mutation.py --module models/gram.py --again                     # only the survivors, after new tests
    mutation.py --sample 40 --seed 1                                # a random sample of each file

A mutant is a file with one change (``mutants.py``). It is tested in a process of its own, which is forked from a parent
that has imported the project and its tests. It first runs tests that are known to reach the changed lines, as many as
``--seconds`` allow; quick tests, and tests of the same module or folder, come first. A survivor is then tested with
the other tests of the same files. They may reach the lines too: lines of a shared fixture are recorded only for the
first test that uses it. If the tests take ten times their usual time, or if the process dies, the mutant counts as
killed. Slow tests are left out, and so are tests of the command line: they start another process without the change.

``explained.txt`` may give the reason why a mutant survives, in a line ``KEY ## reason`` with KEY as printed. A reason
that begins with "equivalent" says that no test on a CPU can notice the change. The score is the share of killed mutants
among those that are not equivalent. With ``--sample`` the score has a Wilson interval. Without it all mutants of a file
are tested, so the interval means nothing.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import math
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.studies.mutation.mutants import Module, Mutant
from experiments.studies.mutation.trial import (
    PYTEST_OPTIONS,
    ROOT,
    WORK,
    Functions,
    Trial,
    module_name,
    outcome,
    start,
    targets,
    test_coverage,
)

SEPARATOR = "  ## "  # stands between a survivor and its reason
EQUIVALENT = "equivalent"  # the first word of the reason if no test on a CPU can notice the change
EXPLANATIONS_FILE = Path(__file__).with_name("explained.txt")
TESTS = (
    *("tests/models", "tests/guides", "tests/inference", "tests/sampling", "tests/training"),
    *("tests/tasks/test_uniform.py", "tests/test_exact_values.py"),
    *(f"tests/diagnostics/test_{name}.py" for name in ("metrics", "calibration", "evidence")),
)
BROAD = ("tests/inference/test_contract.py",)  # left out: many programs run the same lines, which takes long


class TestChoice:
    """Choose the tests for a mutant, and their order."""

    def __init__(self, tests: dict[str, Any], seconds: float) -> None:
        self.tests, self.seconds = tests, seconds

    def first(self, mutant: Mutant) -> list[str]:
        """Return tests that run the changed lines, as many as the time allows."""
        return self._select_in_time(self._tests_of_lines(mutant), mutant, self.seconds)

    def second(self, mutant: Mutant, first: list[str]) -> list[str]:
        """Return the other tests that run the changed lines, then more tests of the same files, if time allows."""
        covering_tests = self._tests_of_lines(mutant)
        rest = self._select_in_time([t for t in covering_tests if t not in first], mutant, self.seconds)
        files = {t.partition("::")[0] for t in covering_tests}
        others = [t for t in self.tests if t.partition("::")[0] in files and t not in {*covering_tests}]
        return rest + self._select_in_time(others, mutant, self.seconds / 2)

    def _tests_of_lines(self, mutant: Mutant) -> list[str]:
        changed_lines = set(
            range(mutant.lines[0] - 1, mutant.lines[1] + 1)
        )  # add the line before, because Python may report no line for a "continue"

        def runs(entry: dict[str, Any]) -> bool:
            if mutant.file not in entry["lines"]:
                return False
            lines = entry["lines"][mutant.file]
            return mutant.imported or lines is None or bool(changed_lines & lines)

        return [name for name, entry in self.tests.items() if runs(entry)]

    def _select_in_time(self, names: list[str], mutant: Mutant, seconds: float) -> list[str]:
        stem = Path(mutant.file).stem
        parts = Path(mutant.file).parts

        def cost(name: str) -> float:
            file = name.partition("::")[0]
            near = f"test_{stem}.py" in file or parts[-2] in file
            return self.tests[name]["seconds"] * (0.2 if near else 1.0)

        chosen_tests: list[str] = []
        total = 0.0
        for name in sorted(names, key=cost):
            total += self.tests[name]["seconds"]
            if chosen_tests and total > seconds:
                break
            chosen_tests.append(name)
        return chosen_tests

    def time_of(self, names: list[str]) -> float:
        """Return the seconds that tests take."""
        return sum(self.tests[n]["seconds"] for n in names)


class Results:
    """The results of all mutants. They are kept in a file, one line each, so that a stopped run can continue."""

    def __init__(self) -> None:
        self.path = WORK / "results.jsonl"
        self.by_key: dict[str, dict[str, Any]] = {}
        for line in self.path.read_text().splitlines() if self.path.exists() else ():
            entry = json.loads(line)
            self.by_key[entry["key"]] = entry

    def add(self, mutant: Mutant, result: dict[str, Any]) -> None:
        entry = {"key": mutant.key, "file": mutant.file, "operator": mutant.operator, **result}
        self.by_key[mutant.key] = entry
        with self.path.open("a") as stream:
            stream.write(json.dumps(entry) + "\n")


def sample_changes(module: Module, sample: int, seed: int) -> list[Any]:
    """Return a random sample of a module's changes. With the same seed a larger sample contains a smaller one."""
    changes = list(module.changes)
    random.Random(f"{seed}:{module.file}").shuffle(changes)
    return changes[:sample] if sample else changes


def mutants_of(file: str, settings: Any) -> Iterator[Mutant]:
    """Draw a sample of a file's changes. Yield the mutant of each change, but equal mutants only once."""
    module, keys = Module(ROOT, file), set()
    for change in sample_changes(module, settings.sample, settings.seed):
        mutant = module.mutant(change)
        if mutant is not None and mutant.key not in keys:
            keys.add(mutant.key)
            yield mutant


def survivors_of(file: str, results: Results) -> Iterator[Mutant]:
    """Yield the mutants of a file that have survived so far."""
    module = Module(ROOT, file)
    survivors = {key: entry for key, entry in results.by_key.items() if entry["file"] == file and not entry["killed"]}
    lines = module.source.splitlines()
    for change in module.changes:
        line = lines[change.span[0][0] - 1].strip()
        if any(change.operator == entry["operator"] and line in key for key, entry in survivors.items()):
            mutant = module.mutant(change)
            if mutant is not None and mutant.key in survivors:
                del survivors[mutant.key]
                yield mutant


def run(files: list[str], settings: Any) -> None:
    """Test the mutants that have no result yet. With ``--again``, test the survivors that are not explained instead."""
    (WORK / "covered").mkdir(parents=True, exist_ok=True)
    names = [n for t in settings.tests or TESTS for n in ([t] if t.endswith(".py") else _tests_under(t))]
    if pytest.main(
        [*names, *PYTEST_OPTIONS[1:], "-q", "--collect-only"], plugins=[]
    ):  # collecting the tests imports them before the forks
        raise SystemExit("the tests cannot be collected")
    for package in ("models", "guides", "pyro_gram"):  # import also the modules that no test has imported yet
        for path in sorted((ROOT / package).rglob("[!_]*.py")):
            importlib.import_module(module_name(path.relative_to(ROOT).as_posix()))
    torch.set_num_threads(1)
    tests = test_coverage(names, settings.workers)
    choice, results, functions = TestChoice(tests, settings.seconds), Results(), Functions()
    gc.freeze()
    reasons = explanations()
    trials: list[Trial] = []

    def settle(room: int) -> None:
        while len(trials) >= room and trials:
            for trial in list(trials):
                result = outcome(trial)
                if result is None:
                    continue
                trials.remove(trial)
                other_tests = choice.second(trial.mutant, trial.tests)
                if not result["killed"] and not trial.second and other_tests:
                    trials.append(start(trial.mutant, functions, other_tests, choice.time_of(other_tests), second=True))
                    continue
                results.add(trial.mutant, result)
                if not result["killed"]:
                    print(f"SURVIVED {trial.mutant.key}", flush=True)
            time.sleep(0.02)

    for file in files:
        for mutant in survivors_of(file, results) if settings.again else mutants_of(file, settings):
            if mutant.key in reasons or (mutant.key in results.by_key and not settings.again):
                continue
            settle(settings.workers)
            first = choice.first(mutant)
            if first:
                trials.append(start(mutant, functions, first, choice.time_of(first)))
            else:
                results.add(mutant, {"killed": False, "by": "", "tests": 0})
                print(f"SURVIVED (no test runs it) {mutant.key}", flush=True)
        print(f"{file} is done", flush=True)
    settle(1)


def _tests_under(folder: str) -> list[str]:
    names = (p.relative_to(ROOT).as_posix() for p in (ROOT / folder).glob("test_*.py"))
    return [n for n in names if n not in BROAD]


# ---- the summary -------------------------------------------------------------------------------------------------


def explanations() -> dict[str, str]:
    lines = EXPLANATIONS_FILE.read_text().splitlines() if EXPLANATIONS_FILE.exists() else []
    return dict(line.split(SEPARATOR, 1) for line in lines if SEPARATOR in line)


def wilson(share: float, n: float, z: float = 1.96) -> list[float]:
    """Return the Wilson 95 % interval of a share of n."""
    if n <= 0:
        return [0.0, 1.0]
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return [round(max(0.0, middle - half), 4), round(min(1.0, middle + half), 4)]


def line_exists(entry: dict[str, Any]) -> bool:
    """Return whether the file still has the line that a mutant changed."""
    old = entry["key"].split(": ", 1)[1].split("  ->  ", 1)[0]
    text = " ".join(line.strip() for line in (ROOT / entry["file"]).read_text().splitlines())
    return re.sub(r"^\[\d+\] ", "", old) in text  # equal lines of a function are numbered


def summary(names: list[str]) -> dict[str, Any]:
    """Return the score of each file, and a total in which each file is weighted by its number of changes."""
    results, reasons = Results().by_key, explanations()
    files: dict[str, Any] = {}
    survivors: list[dict[str, str]] = []
    for file in names:
        entries = [entry for entry in results.values() if entry["file"] == file and line_exists(entry)]
        if not entries:
            continue
        survivor_keys = [entry["key"] for entry in entries if not entry["killed"]]
        num_killed = len(entries) - len(survivor_keys)
        num_equivalent = sum(reasons.get(k, "").startswith(EQUIVALENT) for k in survivor_keys)
        num_noticeable = len(entries) - num_equivalent
        files[file] = {
            "changes": len(Module(ROOT, file).changes),
            "tried": len(entries),
            "killed": num_killed,
            "equivalent": num_equivalent,
            "explained": sum(k in reasons for k in survivor_keys) - num_equivalent,
            "score": round(num_killed / num_noticeable, 4) if num_noticeable else 1.0,
            "interval": wilson(num_killed / num_noticeable if num_noticeable else 1.0, num_noticeable),
        }
        survivors += [{"mutant": k, "why": reasons.get(k, "")} for k in survivor_keys]
    total = sum(f["changes"] for f in files.values())
    score = sum(f["changes"] * f["score"] for f in files.values()) / total
    variance = sum(
        (f["changes"] / total) ** 2 * f["score"] * (1 - f["score"]) / max(1, f["tried"] - f["equivalent"])
        for f in files.values()
    )
    columns = ("changes", "tried", "killed", "equivalent", "explained")
    counts = {name: sum(f[name] for f in files.values()) for name in columns}
    size = (
        score * (1 - score) / variance if variance else counts["tried"]
    )  # the size of a simple random sample with the same variance
    return {
        "total": {**counts, "score": round(score, 4), "interval": wilson(score, size)},
        "files": files,
        "survivors": survivors,
    }


def show(results: dict[str, Any]) -> None:
    for file, entry in (*results["files"].items(), ("all", results["total"])):
        low, high = entry["interval"]
        print(
            f"{file:45} {entry['killed']:4} of {entry['tried']:4} killed, {entry['explained']:3} explained, "
            f"score {entry['score']:.3f} [{low:.3f}, {high:.3f}]"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--module", action="append", help="files; default: all of them")
    parser.add_argument(
        "--tests",
        action="append",
        help="files or folders of tests (default: those of models, guides, inference and metrics)",
    )
    parser.add_argument("--sample", type=int, default=0, help="number of random mutants of each file; 0 for all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=25.0, help="seconds of tests for each mutant")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--again", action="store_true", help="test only the survivors again")
    parser.add_argument("--summary", action="store_true", help="summarize the present results, and test nothing")
    parser.add_argument("--out", type=Path, help="write the summary here (JSON)")
    settings = parser.parse_args()
    files = settings.module or targets()
    unknown_files = [f for f in files if not (ROOT / f).is_file()]
    if unknown_files:
        raise SystemExit(f"no such file: {', '.join(unknown_files)}; give paths from the root, as in models/gram.py")
    if not settings.summary:
        run(files, settings)
    results = summary(files)
    show(results)
    if settings.out:
        settings.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
