import subprocess
import sys

import pytest

from pyro_gram.errors import ConfigError
from pyro_gram.registry import GUIDES, MODELS, PRIORS, TASKS, Registry


def test_everything_in_the_homes_is_found():
    assert "gram" in MODELS.names()
    assert "gaussian" in PRIORS.names()
    assert {"amortized", "replay"} <= set(GUIDES.names())
    assert "coloring" in TASKS.names()


def test_every_registered_class_has_a_frozen_config():
    for registry in (MODELS, PRIORS, GUIDES, TASKS):
        for name in registry.names():
            assert registry.get(name).Config.__dataclass_params__.frozen


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ConfigError, match="unknown guide 'psychic'; known: additive, amortized, global"):
        GUIDES.get("psychic")


def test_a_name_can_be_taken_once():
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
