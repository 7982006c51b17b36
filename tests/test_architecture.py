"""Arrows point one way: experiments -> models, guides -> pyro_gram; networks and tasks are the ground floor."""

import ast

import pytest

from tests.conftest import ROOT

FORBIDDEN = {
    "pyro_gram": {"models", "guides", "experiments", "tests"},
    "models": {"guides", "experiments", "tests"},
    "guides": {"models", "experiments", "tests"},
    "pyro_gram/networks": {"pyro", "pyro_gram.tasks", "pyro_gram.inference", "pyro_gram.diagnostics"},
    "pyro_gram/tasks": {"pyro", "pyro_gram.networks", "pyro_gram.inference", "pyro_gram.diagnostics"},
    "pyro_gram/inference": {"pyro_gram.tasks", "pyro_gram.diagnostics"},
    "pyro_gram/diagnostics": {
        f"pyro_gram.{name}" for name in ("evaluate", "run", "run_report", "solver", "study", "diagnosis")
    },
}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_run_with_the_house(package):
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in (ROOT / package).rglob("*.py")
        for name in imports(path)
        for forbidden in FORBIDDEN[package]
        if name == forbidden or name.startswith(forbidden + ".")
    ]
    assert wrong == []


def test_arviz_has_one_seam():
    users = [p.name for p in (ROOT / "pyro_gram").rglob("*.py") if "arviz" in set(imports(p))]
    assert users == ["inference_data.py"]


def test_nothing_can_load_a_pickle():
    for folder in ("pyro_gram", "models", "guides", "experiments"):
        for path in (ROOT / folder).rglob("*.py"):
            names = {n.attr for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute)}
            assert "pickle" not in set(imports(path)), path
            calls = [
                n.func
                for n in ast.walk(ast.parse(path.read_text()))
                if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)
            ]
            loads = [c for c in calls if c.attr == "load" and getattr(c.value, "id", "") in ("torch", "np", "numpy")]
            assert not loads, path
            assert "allow_pickle" not in names


def test_the_model_reads_beside_the_paper():
    lines = (ROOT / "models" / "gram.py").read_text().splitlines()
    assert len(lines) < 150
