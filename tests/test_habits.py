"""Files that state the same facts agree: CI, pre-commit, versions, citation and changelog."""

import re
import tomllib

import pyro_gram
from tests.conftest import ROOT

CI = (ROOT / ".ci" / "run").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_pre_commit_runs_what_ci_lints():
    hooks = re.findall(r"entry: (.*)", (ROOT / ".pre-commit-config.yaml").read_text())
    lint_step = CI.partition('step "lint and types"\n')[2].partition("\n\n")[0]
    assert hooks == lint_step.splitlines()


def test_ci_names_only_files_that_exist():
    paths = re.findall(r"(?:tests|experiments|checkpoints)/[\w/]+\.\w+", CI)
    assert len(paths) >= 10
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_documented_lowest_versions_are_those_of_pyproject():
    text = (ROOT / "docs" / "install.md").read_text()
    python = PROJECT["requires-python"].removeprefix(">=")
    torch = next(d for d in PROJECT["dependencies"] if d.startswith("torch>")).removeprefix("torch>=")
    assert f"Python {python} or later" in text
    assert f"Torch {torch} and later" in text


def test_citation_and_changelog_name_the_version():
    assert f"version: {pyro_gram.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert pyro_gram.__version__ in (ROOT / "CHANGELOG.md").read_text()
