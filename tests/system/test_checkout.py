"""In a checkout, ``pyro_gram.models`` and ``pyro_gram.guides`` are found even if a user's modules have these names."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

SCRIPT = """
import sys
user, root, checkpoint = sys.argv[1:]
sys.path[:] = [user, root, *(p for p in sys.path if p not in ("", user, root))]
import pyro_gram, pyro_gram.guides
from pyro_gram.registry import GUIDES, MODELS
solver = pyro_gram.load(checkpoint)
assert solver.sample(["GCR`v_"], num_samples=2, depth=1).tokens.shape[:2] == (2, 1)
assert "trm" in MODELS.names() and "replay" in GUIDES.names()
from pyro_gram.models.gram import GRAM
assert type(solver.model) is GRAM
assert not {"models", "guides"} & set(sys.modules), "no part is imported by a bare name"
import models
assert models.IS_USERS
print(pyro_gram.guides.__file__)
"""


def run_python(*arguments, folder):
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


@pytest.mark.slow
def test_models_and_guides_of_a_users_project_are_not_imported_in_place_of_ours(tmp_path):
    for name in ("models", "guides"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"IS_USERS = True\nprint('imported {name}')\n")
        (tmp_path / name / "gram.py").write_text("raise SystemExit('the module of a user was imported')\n")
    checkpoint = ROOT / "checkpoints" / "coloring.safetensors"
    process = run_python("-c", SCRIPT, tmp_path, ROOT, checkpoint, folder=tmp_path)
    assert process.returncode == 0, process.stderr[-2000:]
    assert process.stdout.splitlines() == ["imported models", str(ROOT / "guides" / "__init__.py")]


@pytest.mark.slow
def test_a_users_module_imports_the_users_models_under_our_programs(tmp_path):
    """An editable install also puts the repository on the path, and the repository has a ``models`` too."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").touch()
    (tmp_path / "models" / "mine.py").write_text("from pyro_gram.models.priors.gaussian import GaussianPrior as Mine\n")
    (tmp_path / "my_gram.py").write_text("from models.mine import Mine\n")
    options = ["--task", "coloring", "--preset", "tiny", "--prior", "my_gram:Mine", "--list-split", "validation"]
    process = run_python(ROOT / "experiments" / "run.py", *options, folder=tmp_path)
    assert process.returncode == 0, process.stderr[-1000:]
    assert len(process.stdout.splitlines()) == 16


@pytest.mark.parametrize("name", ["models", "guides"])
def test_importing_a_part_by_its_bare_name_is_an_error(name):
    """A plain ``import models`` would define each class a second time, and replace the registered classes."""
    process = run_python("-c", f"import {name}", folder=ROOT)
    assert f"import this package as pyro_gram.{name}" in process.stderr
