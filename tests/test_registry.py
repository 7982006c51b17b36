import subprocess
import sys

import pytest

from pyro_gram.errors import ConfigError
from pyro_gram.registry import GUIDES, MODELS, PRIORS, TASKS, Registry

TINY_REGISTRY, LAZY_REGISTRY = Registry("thing", "tiny_home"), Registry("thing", "lazy_home")


def test_names_lists_every_registered_class_and_each_has_a_frozen_config():
    examples = {"gram", "trm", "gaussian", "mixture", "amortized", "replay", "coloring", "sudoku_uncond"}
    for registry in (MODELS, PRIORS, GUIDES, TASKS):
        for name in registry.names():
            examples.discard(name)
            assert registry.get(name).Config.__dataclass_params__.frozen
    assert examples == set()


def test_a_name_imports_its_own_module_only(tmp_path, monkeypatch):
    home = tmp_path / "lazy_home"
    home.mkdir()
    (home / "__init__.py").touch()
    (home / "first.py").write_text(
        "from tests.test_registry import LAZY_REGISTRY\n\n@LAZY_REGISTRY.register('first')\nclass A:\n    pass\n"
    )
    (home / "second.py").write_text("raise AssertionError('this module is imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert LAZY_REGISTRY.get("first").registered_name == "first"
    with pytest.raises(AssertionError, match="this module is imported"):
        LAZY_REGISTRY.get("third")


@pytest.mark.parametrize(("registry", "name"), [(MODELS, "trm"), (PRIORS, "none"), (TASKS, "sudoku_uncond")])
def test_a_name_may_be_registered_in_a_module_of_another_name(registry, name):
    assert registry.get(name).registered_name == name


def test_a_class_of_another_package_cannot_take_a_name_that_the_home_package_registers(tmp_path, monkeypatch):
    home = tmp_path / "tiny_home"
    home.mkdir()
    (home / "__init__.py").touch()
    (home / "first.py").write_text(
        "import tests.test_registry as t\n\n@t.TINY_REGISTRY.register('second')\nclass Inner:\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    TINY_REGISTRY.register("second")(type("Outer", (), {"__module__": "elsewhere"}))
    with pytest.raises(ConfigError, match="thing 'second' is already registered by elsewhere.Outer"):
        TINY_REGISTRY.get("second")


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ConfigError, match="unknown guide 'psychic'; known: additive, amortized, global"):
        GUIDES.get("psychic")


def test_a_name_can_be_registered_once():
    registry = Registry("thing", "tests")
    registry.register("a")(type("A", (), {}))
    with pytest.raises(ConfigError, match="thing 'a' is already registered by .*A"):
        registry.register("a")(type("B", (), {}))


def test_dotted_paths_need_no_registration():
    assert MODELS.get("pyro_gram.models.gram:GRAM").__name__ == "GRAM"
    with pytest.raises(ConfigError, match="no module named 'nowhere'"):
        MODELS.get("nowhere:GRAM")
    with pytest.raises(ConfigError, match="has no class 'Gram'"):
        MODELS.get("pyro_gram.models.gram:Gram")


def test_a_missing_dependency_of_a_home_is_not_masked(tmp_path, monkeypatch):
    (tmp_path / "needy_home").mkdir()
    (tmp_path / "needy_home" / "__init__.py").write_text("import a_library_that_is_not_installed\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_library_that_is_not_installed"):
        Registry("thing", "needy_home").names()


def test_importing_the_library_imports_no_torch():
    code = "import sys, pyro_gram, pyro_gram.registry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
