"""The examples of the documents run as written, and their tables show the committed JSON."""

import json
import re
import warnings

import matplotlib.pyplot as plt
import pytest

from pyro_gram.diagnostics.inference_data import ARVIZ_MAJOR
from pyro_gram.diagnostics.plots.captions import CAPTIONS
from pyro_gram.system.cli import call
from tests.conftest import ROOT

TINY_OPTIONS = [
    "--preset",
    "tiny",
    "--train.batches",
    "2",
    "--train.supervision_steps",
    "2",
    "--evaluate.num_samples",
    "2",
]
COLORING_OPTIONS = [
    "--task",
    "coloring",
    "--task.vertices",
    "4",
    "--task.train",
    "20",
    "--task.test",
    "4",
    "--task.validation",
    "4",
]


PARTS = ROOT / "docs" / "parts"


@pytest.fixture
def own_parts(tmp_path, monkeypatch):
    """Return a new folder with the example files of docs/parts. It becomes the current directory."""
    for file in PARTS.glob("*.py"):
        (tmp_path / file.name).write_text(file.read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_a_users_own_prior_guide_and_model_train_and_are_measured(own_parts, capsys):
    from experiments import run

    parts = ["--prior", "my_prior:CauchyPrior", "--guide", "my_guide:ShiftGuide", "--model", "my_model:FlatModel"]
    assert call(run.main, [*COLORING_OPTIONS, *parts, *TINY_OPTIONS, "--out", "out"]) == 0
    assert (own_parts / "out" / "results.json").exists()
    assert "no closed-form KL of Normal from Cauchy: the KL is estimated from each draw" in capsys.readouterr().err


def test_a_users_own_task_trains_and_is_measured(own_parts):
    from experiments import run

    assert call(run.main, ["--task", "my_task:Completion", *TINY_OPTIONS, "--out", "out"]) == 0
    assert (own_parts / "out" / "results.json").exists()


README = (ROOT / "README.md").read_text()


def python_blocks(text, start):
    return [b for b in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL) if b.startswith(start)]


def test_every_table_shows_its_committed_json_and_every_document_the_table():
    from experiments.tables import refresh

    for path, text in refresh.render_tables().items():
        assert path.read_text() == text, path
    for path in refresh.DOCUMENTS:
        document = path.read_text()
        assert document.count("<!-- begin ") == len(refresh.TABLE_MARKERS.findall(document))
        assert refresh.fill(document) == document


@pytest.mark.parametrize("path", sorted((ROOT / "checkpoints").glob("*.diagnosis.json")), ids=lambda path: path.stem)
def test_the_committed_diagnoses_answer_the_questions_that_the_code_asks(path):
    names = {verdict["name"] for verdict in json.loads(path.read_text())["verdicts"]}
    assert names <= {name for caption in CAPTIONS.values() for name in caption.verdicts}
    assert {"estimate", "importance weights", "two estimates", "ranks under the guide"} <= names


def test_the_readmes_excerpt_is_the_program():
    source = (ROOT / "models" / "gram.py").read_text()
    (block,) = python_blocks(README, "for t in")
    for line in block.splitlines():
        assert line.partition("#")[0].strip() in source


def test_the_readmes_python_runs_as_written(monkeypatch):
    monkeypatch.chdir(ROOT)
    namespace: dict = {}
    (block,) = python_blocks(README, "import pyro_gram")
    exec(block, namespace)
    answers = namespace["answers"]
    assert sum(answer.count for answer in answers.solutions) == answers.num_samples == 100
    assert answers.solutions[0].valid


def test_the_documented_arviz_calls_run_as_written(tmp_path, monkeypatch):
    plt.switch_backend("Agg")
    from experiments import run

    page = (ROOT / "docs" / "howto" / "arviz.md").read_text()
    monkeypatch.chdir(tmp_path)
    assert call(run.main, [*COLORING_OPTIONS, *TINY_OPTIONS, "--out", "runs/coloring-cpu-seed0"]) == 0
    (block,) = python_blocks(page, f"import arviz as az  # {'0.23' if ARVIZ_MAJOR == 0 else '1.x'}")
    namespace: dict = {}
    with warnings.catch_warnings():
        # ArviZ warns that a tiny run has too few draws
        warnings.filterwarnings("ignore", category=UserWarning, module="arviz.*")
        exec(block, namespace)
    assert namespace["by_depth"]["posterior"]["path"].sizes["chain"] == 100
    plt.close("all")


def test_the_readme_is_short_and_every_file_that_it_links_to_exists():
    assert len(README.encode()) <= 8192
    for document in (README, (ROOT / "CONTRIBUTING.md").read_text()):
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", document):
            assert (ROOT / target).exists(), target
