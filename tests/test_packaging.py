"""The wheel holds the library, its models and guides, and works without the repository."""

import json
import subprocess
import sys
import zipfile

import pytest

import pyro_gram
from tests.conftest import ROOT

pytestmark = pytest.mark.slow

SCRIPT = """
import json, sys
sys.path[:] = [p for p in sys.path if p not in sys.argv[1:]]  # an editable install puts the repository there
import pyro_gram
from pyro_gram.registry import GUIDES, MODELS, PRIORS, TASKS
classes = {n: r.get(n) for r, n in ((MODELS, "gram"), (PRIORS, "gaussian"), (GUIDES, "amortized"), (TASKS, "coloring"))}
import pyro_gram.runs.run, pyro_gram.solver, pyro_gram.diagnostics.inference_data
print(json.dumps({
    "files": {n: m.__file__ for n, m in sys.modules.items()
              if n.partition(".")[0] in ("pyro_gram", "models", "guides") and getattr(m, "__file__", None)},
    "homes": {n: c.__module__ for n, c in classes.items()},
    "version": pyro_gram.__version__,
    "names": MODELS.names() + GUIDES.names(),
}))
"""


def run(*command, **settings):
    process = subprocess.run(
        [str(argument) for argument in command], capture_output=True, text=True, check=False, **settings
    )
    assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-2000:]
    return process.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", ROOT, "--no-deps", "--no-build-isolation", "--no-index", "-w", folder)
    (wheel_file,) = folder.glob("*.whl")
    return wheel_file


@pytest.fixture(scope="module")
def site_folder(wheel, tmp_path_factory):
    target = tmp_path_factory.mktemp("site")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "install", wheel, "--no-deps", "--no-index", "--target", target)
    return target


def test_the_wheel_holds_the_library_models_guides_and_types_and_nothing_else(wheel):
    assert wheel.name == f"pyro_gram-{pyro_gram.__version__}-py3-none-any.whl"
    files = set(zipfile.ZipFile(wheel).namelist())
    assert {"pyro_gram/py.typed", "pyro_gram/models/gram.py", "pyro_gram/guides/amortized.py"} <= files
    assert {"pyro_gram/diagnostics/digits.safetensors", "pyro_gram/diagnostics/digits.json"} <= files
    assert {"pyro_gram/diagnostics/report.html.jinja", "pyro_gram/diagnostics/paper.toml"} <= files
    assert {f.partition("/")[0] for f in files} == {"pyro_gram", f"pyro_gram-{pyro_gram.__version__}.dist-info"}
    sources = {f"pyro_gram/{p.relative_to(ROOT / 'pyro_gram').as_posix()}" for p in (ROOT / "pyro_gram").rglob("*.py")}
    assert sources <= files
    assert not [f for f in files if "__pycache__" in f]
    assert any(f.endswith("licenses/LICENSE") for f in files)


def test_the_registry_finds_everything_in_an_installed_wheel(site_folder, tmp_path):
    # With -P and another current folder, Python does not find the repository, even after an editable install.
    out = run(sys.executable, "-P", "-c", SCRIPT, ROOT, cwd=tmp_path, env={"PYTHONPATH": str(site_folder)})
    package = json.loads(out)
    assert package["files"]
    assert all(file.startswith(str(site_folder)) for file in package["files"].values())
    assert package["version"] == pyro_gram.__version__
    assert package["homes"] == {
        "gram": "pyro_gram.models.gram",
        "gaussian": "pyro_gram.models.priors.gaussian",
        "amortized": "pyro_gram.guides.amortized",
        "coloring": "pyro_gram.tasks.coloring.task",
    }
    assert {"gram", "amortized", "replay"} <= set(package["names"])
    assert (site_folder / "pyro_gram" / "py.typed").is_file()
