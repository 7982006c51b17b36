"""A user's mypy sees the types of the package (py.typed): right programs pass, and wrong calls are errors."""

import os
import re
import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT

RIGHT_PROGRAM = """
import pyro_gram
from my_guide import ShiftGuide, ShiftGuideConfig
from my_model import FlatModel
from my_prior import CauchyPrior, CauchyPriorConfig
from my_task import Completion, CompletionConfig
from pyro_gram.networks.core import CoreConfig

solver: pyro_gram.Solver = pyro_gram.load("checkpoint.safetensors")
for answers in solver.solve(["GCR`v_"], num_samples=20, seed=1, select="vote"):
    solution: str = answers.solutions[0].solution
    count: int = answers.solutions[0].count
shape = solver.sample("GCR`v_", num_samples=3, temper=pyro_gram.TemperConfig()).tokens.shape

task = Completion(CompletionConfig(size=5))
model = FlatModel(CoreConfig(width=16), task.spec, CauchyPrior(CauchyPriorConfig(hidden=8), 16))
guide = ShiftGuide(ShiftGuideConfig(), task.spec, model, 16)
"""
WRONG_PROGRAM = """
import pyro_gram
from my_task import Completion, CompletionConfig

solver = pyro_gram.load(3)  # error: "load" has incompatible type "int"
solver.solve(["GCR`v_"], num_samples="20")  # error: "solve" of "Solver" has incompatible type "str"
solver.solve(["GCR`v_"], halting=0.9)  # error: Unexpected keyword argument "halting" for "solve"
solver.sample("GCR`v_").token  # error: "Rollout" has no attribute "token"
Completion(CompletionConfig(sizes=5))  # error: Unexpected keyword argument "sizes"
version: int = pyro_gram.__version__  # error: Incompatible types in assignment
"""
OPTIONS = ("--disallow-untyped-defs", "--warn-unused-ignores", "--strict-equality", "--extra-checks")


@pytest.mark.slow
def test_a_users_mypy_accepts_right_programs_and_refuses_wrong_calls(tmp_path):
    pytest.importorskip("mypy")
    for path in (ROOT / "docs" / "parts").glob("*.py"):  # examples of users' own parts
        shutil.copy(path, tmp_path)
    (tmp_path / "right.py").write_text(RIGHT_PROGRAM)
    (tmp_path / "wrong.py").write_text(WRONG_PROGRAM)
    process = subprocess.run(
        [sys.executable, "-m", "mypy", *OPTIONS, "right.py", "wrong.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    errors = re.findall(r"^(\S+):(\d+): error: (.*)$", process.stdout, re.MULTILINE)
    expected = [
        (n, line.split("# error: ")[1]) for n, line in enumerate(WRONG_PROGRAM.splitlines(), 1) if "# error" in line
    ]
    assert len(errors) == len(expected), process.stdout + process.stderr
    for (path, number, message), (line, fragment) in zip(errors, expected, strict=True):
        assert (path, int(number)) == ("wrong.py", line)
        assert fragment in message
