"""The package finds its own parts, whatever a user's project calls its modules."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

PROBE = """
import sys
user, root, order, checkpoint = sys.argv[1:]
rest = [p for p in sys.path if p not in ("", user, root)]
sys.path[:] = [user, root, *rest] if order == "first" else [root, user, *rest]
import pyro_gram
from pyro_gram.registry import GUIDES, MODELS
solver = pyro_gram.load(checkpoint)
assert solver.sample(["GCR`v_"], num_samples=2, depth=1).tokens.shape == (2, 1, 8)
assert "trm" in MODELS.names() and "replay" in GUIDES.names()
from pyro_gram.models.gram import GRAM
assert type(solver.model) is GRAM
assert not {"models", "guides"} & set(sys.modules), "nothing is imported by a bare name"
if order == "first":
    import models
    assert models.MINE
print("found")
"""


def project(folder, kind):
    """A user's own ``models`` and ``guides``, which say it when they are imported."""
    for name in ("models", "guides"):
        path = folder / f"{name}.py" if kind == "module" else folder / name / "__init__.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"MINE = True\nprint('imported {name}')\n")
        if kind == "package":
            path.with_name("gram.py").write_text("raise SystemExit('the project of a user was imported')\n")
    return folder


@pytest.mark.parametrize("order", ["first", "last"])
@pytest.mark.parametrize("kind", ["module", "package"])
def test_a_project_with_models_of_its_own_is_left_alone(kind, order, tmp_path):
    user = project(tmp_path / "project", kind)
    words = [str(user), str(ROOT), order, str(ROOT / "checkpoints" / "coloring8.safetensors")]
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *words],
        capture_output=True,
        text=True,
        cwd=user,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == ["imported models", "found"] if order == "first" else ["found"]


def test_each_part_has_one_name(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", "import pyro_gram.models.gram, pyro_gram.guides as g; print(g.__file__)"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.stdout.strip() == str(ROOT / "guides" / "__init__.py"), done.stderr[-2000:]


def test_a_users_own_models_are_found_by_their_own_modules_under_our_programs(tmp_path):
    """An installed checkout has ``models`` on the path too."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").touch()
    (tmp_path / "models" / "mine.py").write_text("from pyro_gram.models.priors.gaussian import GaussianPrior as Mine\n")
    (tmp_path / "my_gram.py").write_text("from models.mine import Mine\n")
    words = ["--task", "coloring", "--preset", "tiny", "--prior", "my_gram:Mine", "--list-split", "validation"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "experiments" / "run.py"), *words],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr[-1000:]
    assert len(done.stdout.splitlines()) == 16


@pytest.mark.parametrize("name", ["models", "guides"])
def test_a_bare_name_of_a_part_is_refused(name):
    """A second copy of each class would replace the registered one."""
    code = f"import {name}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert f"import this package as pyro_gram.{name}" in done.stderr
