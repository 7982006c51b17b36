"""Each example in a docstring gives the result that it shows."""

import doctest
import importlib

import pytest

from tests.conftest import ROOT

FOLDERS = ("pyro_gram", "models", "guides")


def module_name(path):
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    return name if name.startswith("pyro_gram") else f"pyro_gram.{name}"


MODULES = [
    module_name(path)
    for folder in FOLDERS
    for path in sorted((ROOT / folder).rglob("*.py"))
    if ">>> " in path.read_text()
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_give_the_results_that_they_show(name, monkeypatch):
    monkeypatch.chdir(ROOT)  # examples load committed checkpoints
    results = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert results.attempted > 0
    assert results.failed == 0
