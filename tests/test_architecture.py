"""Check layers, words and imports of the package. ``structure.py`` counts them, and its JSON holds the limits."""

import ast
from statistics import median

import pytest

from experiments.studies.structure import (
    LIBRARY,
    OUT,
    PACKAGES,
    Path,
    files_at_training,
    files_of_an_update,
    function_lengths,
    identifiers,
    import_cycles,
    import_graph,
    imported_modules,
    long_files,
    old_words,
    parse,
    python_files,
    upward_imports,
)
from pyro_gram.system.files import read_json
from tests.conftest import ROOT

LIMITS = read_json(OUT)


@pytest.fixture(scope="module")
def graph():
    return import_graph(*PACKAGES)


def test_imports_form_no_new_cycle(graph):
    known_cycles = [set(cycle) for cycle in LIMITS["import_cycles"]]
    assert [cycle for cycle in import_cycles(graph) if not any(set(cycle) <= files for files in known_cycles)] == []


def test_no_new_import_points_upward(graph):
    assert set(upward_imports(graph)) <= set(LIMITS["upward_imports"])


def test_a_cycle_and_an_upward_import_are_found():
    elbo, trainer, model = (
        Path(f) for f in ("pyro_gram/inference/elbo.py", "pyro_gram/training/trainer.py", "models/gram.py")
    )
    graph = {elbo: {trainer}, trainer: {model, elbo}, model: set()}
    assert import_cycles(graph) == [[str(elbo), str(trainer)]]
    assert upward_imports(graph) == [f"{elbo} imports {trainer}"]
    assert upward_imports({model: {Path("guides/amortized.py")}}) != []


def test_words_of_the_old_dialect_do_not_come_back():
    words = {path: set(count) for path, count in old_words(*PACKAGES).items()}
    assert words == {"tests/tasks/damaged.py": {"given"}}  # a decorator of hypothesis


def test_identifiers_are_variables_arguments_attributes_and_keywords(tmp_path):
    path = tmp_path / "a.py"
    path.write_text(
        "def a(b, *, c=1):\n    d = b.e(f=c)\n    return [g for g in d]\n\nclass h: ...\n"
        "import i as j\nfrom x import k\n"
        "async def l(): ...\nmatch a:\n    case [m, *n]: ...\n    case {1: o, **p}: ...\n"
    )
    assert set(identifiers(path)) == set("abcdefghjklmnop")


def test_relative_imports_are_resolved():
    assert "models.gram" in set(imported_modules(Path("models/flat.py")))
    assert "models.priors.gaussian" in set(imported_modules(Path("models/priors/structured.py")))


def test_no_more_files_run_in_an_update():
    assert len(files_of_an_update()) <= len(LIMITS["files_of_an_update"]) <= 15


@pytest.mark.slow
def test_no_more_files_are_imported_when_training_begins():
    assert len(files_at_training()) <= len(LIMITS["files_at_training"])


def test_functions_have_the_median_length_of_the_committed_figures():
    assert median(function_lengths(*LIBRARY).values()) <= LIMITS["function_lines"]["median"]


def test_the_readme_has_at_most_8_kilobytes():
    assert len((ROOT / "README.md").read_bytes()) <= 8 * 1024


def test_functions_are_short():
    lengths = function_lengths(*LIBRARY)
    assert max(lengths.values()) <= max(60, LIMITS["function_lines"]["largest"])


def test_no_file_becomes_too_long():
    assert set(long_files(*PACKAGES)) <= set(LIMITS["long_files"])


@pytest.mark.parametrize("package", ["pyro_gram/networks", "pyro_gram/tasks"])
def test_networks_and_tasks_do_not_import_pyro(package):
    assert [path for path in python_files(package) if "pyro" in set(imported_modules(path))] == []


def test_one_file_imports_arviz():
    users = [p.name for p in python_files("pyro_gram") if "arviz" in set(imported_modules(p))]
    assert users == ["inference_data.py"]


def test_nothing_can_load_a_pickle():
    for path in python_files(*LIBRARY, "experiments"):
        nodes = list(ast.walk(parse(path)))
        attributes = [node for node in nodes if isinstance(node, ast.Attribute)]
        loads = [a for a in attributes if a.attr == "load" and getattr(a.value, "id", "") in ("torch", "np", "numpy")]
        assert not loads, path
        assert "pickle" not in set(imported_modules(path)), path
        assert "allow_pickle" not in set(identifiers(path)), path


def test_the_model_is_short_enough_to_read_beside_the_paper():
    assert len((ROOT / "models" / "gram.py").read_text().splitlines()) < 150
