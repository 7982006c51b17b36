"""The program ``diagnose`` makes full diagnoses of small models of every kind."""

import json

import pytest
from matplotlib.figure import Figure

from experiments import diagnose as program
from pyro_gram.checkpoint import save_model
from pyro_gram.diagnostics import inference_data
from pyro_gram.diagnostics.plots.captions import CAPTIONS
from pyro_gram.errors import ConfigError
from pyro_gram.inference.contract import guide_traits
from pyro_gram.system.cli import call
from tests.conftest import build_small, digits_folder

FIGURES = {"solved", "evenness", "training", "terms", "evidence", "ranks", "attractors", "deciding", "landscape"}
FIGURES |= {"formation", "animation"}


@pytest.fixture
def tiny_diagnosis(monkeypatch):
    """Lower the numbers of samples, so that a diagnosis takes a second."""
    from pyro_gram.runs import diagnose

    for name, value in {
        "SAMPLES": 4,
        "MAX_DATA_SAMPLES": 16,
        "MIN_DATA_SAMPLES": 16,
        "GUIDE_SAMPLES": 30,
        "PRIOR_SAMPLES": 16,
        "DATA_PRIOR_SAMPLES": 16,
        "TRAIN_INPUTS": 4,
        "BOUND_PAIRS": 4,
        "RANK_DRAWS": 5,
        "DRAWS": 3,
        "END_SAMPLES": 6,
        "LANDSCAPE_SAMPLES": 6,
        "POSITIONS": 2,
    }.items():
        monkeypatch.setattr(diagnose, name, value)
    savefig = Figure.savefig

    def save_small(figure, target, **settings):
        figure.set_layout_engine("none")
        savefig(figure, target, **{**settings, "dpi": 20})

    monkeypatch.setattr(Figure, "savefig", save_small)  # drawing takes most of the time; other tests check it


def write_checkpoint(tmp_path, **changes):
    solver = build_small(**changes)
    path = tmp_path / "small.safetensors"
    save_model(path, solver)
    return path


def run_diagnosis(path, *options):
    assert call(program.main, ["--checkpoint", str(path), "--inputs", "4", *options]) == 0
    out = path.with_name("small.diagnosis")
    return out, json.loads((out / "diagnosis.json").read_text())


def test_a_diagnosis_is_written_beside_its_checkpoint(tiny_diagnosis, tmp_path, capsys):
    out, diagnosis = run_diagnosis(write_checkpoint(tmp_path))
    assert {p.name for p in out.iterdir()} == {"report.html", "diagnosis.json", "inference.nc", "figures"}
    figures = {p.name for p in (out / "figures").iterdir()}
    assert figures == {f"{name}.png" for name in FIGURES - {"training", "animation"}} | {"formation.gif"}
    names = [v["name"] for v in diagnosis["verdicts"]]
    assert names == [
        "right answers", "leak", "generalisation", "collapse", "bound", "evenness", "estimate", "importance weights",
        "two estimates", "likelihood", "ranks under the guide", "diversity", "settled",
    ]  # fmt: skip
    page = (out / "report.html").read_text()
    assert all(CAPTIONS[name].title in page for name in FIGURES)
    assert "Not shown: there is no metrics.jsonl" in page
    assert page.count("data:image/gif") == 1
    assert "posterior" in inference_data.group_names(inference_data.load(out / "inference.nc"))
    printed_lines = capsys.readouterr().out.splitlines()
    assert len(printed_lines) == len(names) + 1
    assert printed_lines[-1].endswith("report.html")


@pytest.mark.slow
def test_the_seed_fixes_the_diagnosis(tiny_diagnosis, tmp_path):
    path = write_checkpoint(tmp_path)
    first = run_diagnosis(path)[1]
    second = run_diagnosis(path)[1]
    other = run_diagnosis(path, "--seed", "1")[1]
    for part in ("metrics", "evidence", "ranks", "deciding"):
        assert first[part] == second[part]
        assert first[part] != other[part]


@pytest.mark.slow
def test_the_log_of_the_run_is_read_if_there_is_one(tiny_diagnosis, tmp_path):
    path = write_checkpoint(tmp_path)
    rows = [{"batch": b, "reconstruction": 1.0, "kl": 1.0, "beta": 1.0} for b in range(7)]
    for row, prior in zip(rows, (0.2, 0.9, 0.9, 0.9, 0.7, 0.8, 0.6), strict=True):
        row |= {"prior_accuracy": prior, "posterior_accuracy": 1.0, "elbo_full": -2.0, "elbo_surrogate": -1.0}
        row |= {"prior_coverage": 0.5, "coverage_limit": 0.9}
    path.with_name("small.metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out, diagnosis = run_diagnosis(path)
    verdicts = {v["name"]: v for v in diagnosis["verdicts"]}
    assert verdicts["decay"]["level"] == "do not trust"
    assert diagnosis["looks"]["recent_accuracy"] == pytest.approx(0.7)
    assert (diagnosis["looks"]["peak_accuracy"], diagnosis["looks"]["last_accuracy"]) == (pytest.approx(0.9), 0.6)
    assert {"training.png", "leak.png"} <= {p.name for p in (out / "figures").iterdir()}


@pytest.mark.parametrize(
    "changes",
    [
        {"task_name": "sudoku_uncond"},
        pytest.param({"task_name": "arc"}, marks=pytest.mark.slow),
        pytest.param({"task_name": "mnist"}, marks=pytest.mark.slow),
        {"task_name": "nqueens", "prior_name": "discrete"},
        pytest.param({"prior_name": "none", "guide_name": "prior"}, marks=pytest.mark.slow),
        pytest.param({"prior_name": "mean_only"}, marks=pytest.mark.slow),
        pytest.param({"model_name": "autoregressive"}, marks=pytest.mark.slow),
        pytest.param({"model_name": "mdlm"}, marks=pytest.mark.slow),
        {"model_name": "trm"},
    ],
    ids=str,
)
def test_any_checkpoint_is_diagnosed_without_the_verdicts_that_do_not_apply(tiny_diagnosis, tmp_path, changes):
    path = write_checkpoint(tmp_path, **changes)
    data = ["--data-dir", digits_folder()] if changes.get("task_name") == "mnist" else []
    out, diagnosis = run_diagnosis(path, *data)
    names = {v["name"] for v in diagnosis["verdicts"]}
    has_inference = (
        not guide_traits(build_small(**changes).guide).follows_prior and changes.get("prior_name") != "mean_only"
    )
    assert ("collapse" in names) == ("ranks under the guide" in names) == has_inference
    images = changes.get("task_name") == "mnist"
    assert ("right answers" in names) == (not images)
    assert ("likeness" in names) == ("copies" in names) == images
    page = (out / "report.html").read_text()
    assert ("this model has no inference network" in page or "is not that of its draws" in page) == (not has_inference)
    has_prior_estimate = "log p(y|x) by prior Monte Carlo" in page
    assert has_prior_estimate == (not has_inference and changes.get("model_name") != "mdlm")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        pytest.param({"task_name": "sudoku_uncond"}, marks=pytest.mark.slow),
        pytest.param({"model_name": "trm"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_one_input_and_one_step_are_enough_but_do_not_show_whether_answers_settle(tiny_diagnosis, tmp_path, changes):
    path = write_checkpoint(tmp_path, **changes)
    _, diagnosis = run_diagnosis(path, "--inputs", "1", "--depth", "1")
    assert "settled" not in {v["name"] for v in diagnosis["verdicts"]}  # the answer of a single step cannot change


def test_generalisation_is_judged_for_models_without_a_guide_too(tiny_diagnosis, tmp_path):
    _, diagnosis = run_diagnosis(write_checkpoint(tmp_path, model_name="direct"))
    assert "generalisation" in {v["name"] for v in diagnosis["verdicts"]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--inputs", "0"], "--inputs must be at least 1, not 0"),
        (["--depth", "0"], "--depth must be at least 1, not 0"),
        (["--seed", "-1"], "--seed"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_read(arguments, message, tmp_path, capsys):
    assert call(program.main, ["--checkpoint", str(tmp_path / "none.safetensors"), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_depth_above_that_of_a_one_step_model_is_refused(tiny_diagnosis, tmp_path, capsys):
    path = write_checkpoint(tmp_path, model_name="direct")
    assert call(program.main, ["--checkpoint", str(path), "--depth", "4"]) == 2
    assert "depth must be 1, not 4" in capsys.readouterr().err


def test_a_missing_checkpoint_is_named(tmp_path, capsys):
    assert call(program.main, ["--checkpoint", str(tmp_path / "none.safetensors")]) == 2
    assert "no checkpoint at" in capsys.readouterr().err


def test_a_diagnosis_is_not_written_into_the_directory_of_a_run(tiny_diagnosis, tmp_path, capsys):
    path = write_checkpoint(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    assert call(program.main, ["--checkpoint", str(path), "--out", str(tmp_path / "run")]) == 2
    assert "holds a run" in capsys.readouterr().err


def test_a_file_is_refused_as_the_output_directory(tiny_diagnosis, tmp_path, capsys):
    path = write_checkpoint(tmp_path)
    for out, message in ((path, "is a file, or lies in one"), ("", "give a directory")):
        try:
            code = call(program.main, ["--checkpoint", str(path), "--out", str(out)])
        except SystemExit as e:
            code = e.code
        assert code == 2
        assert message in capsys.readouterr().err


def test_the_json_file_beside_a_checkpoint_is_refused_with_the_name_of_the_weights(tiny_diagnosis, tmp_path, capsys):
    path = write_checkpoint(tmp_path)
    path.with_suffix(".json").write_text("{}")
    assert call(program.main, ["--checkpoint", str(path.with_suffix(".json"))]) == 2
    assert "its weights are in small.safetensors" in capsys.readouterr().err


def test_a_missing_package_is_named_before_any_work(tiny_diagnosis, tmp_path, monkeypatch, capsys):
    from pyro_gram.diagnostics import landscape

    def missing():
        raise ConfigError("pip install 'pyro-gram[diagnose]'")

    monkeypatch.setattr(landscape, "check_installed", missing)
    path = write_checkpoint(tmp_path)
    assert call(program.main, ["--checkpoint", str(path)]) == 2
    assert "pyro-gram[diagnose]" in capsys.readouterr().err
    assert not path.with_name("small.diagnosis").exists()


def test_a_damaged_log_is_refused(tiny_diagnosis, tmp_path, capsys):
    path = write_checkpoint(tmp_path)
    for text in ("{", "3"):
        path.with_name("small.metrics.jsonl").write_text(text)
        assert call(program.main, ["--checkpoint", str(path)]) == 2
        assert "cannot be read as lines of JSON" in capsys.readouterr().err


TINY = ["--task", "coloring", "--preset", "tiny", "--heads.hidden", "0"]
RECIPES = {
    # There are six vertices: with only five, too many answers are right by chance.
    "leaking": ["--beta.start", "0.01", "--beta.target", "0", "--task.vertices", "6"],
    "collapsed": ["--beta.start", "50", "--beta.target", "0"],
    # As in the cpu presets, on-policy training repairs the prior in states that the guide does not visit.
    "good": [
        *("--train.batches", "300", "--beta.target", "0.5", "--evaluate.depth", "8"),
        *("--train.on_policy_depth", "8", "--train.on_policy_updates", "2"),
    ],
}  # fmt: skip


@pytest.mark.slow
def test_the_verdicts_tell_a_good_model_from_one_that_leaks_and_one_that_has_collapsed(tmp_path, capsys):
    from experiments import run

    levels, has_warned = {}, {}
    for name, recipe in RECIPES.items():
        out = tmp_path / name
        assert call(run.main, [*TINY, *recipe, "--out", str(out)]) == 0
        has_warned[name] = "the guide leaks" in capsys.readouterr().err
        assert call(program.main, ["--checkpoint", str(out), "--inputs", "32"]) == 0
        diagnosis = json.loads((out / "diagnosis" / "diagnosis.json").read_text())
        levels[name] = {v["name"]: v["level"] for v in diagnosis["verdicts"]}
        assert (out / "diagnosis" / "figures" / "leak.png").exists()
    assert levels["leaking"]["leak"] == levels["leaking"]["bound"] == "do not trust"
    assert levels["leaking"]["collapse"] == "good"
    assert levels["collapsed"]["collapse"] == "do not trust"
    assert levels["collapsed"]["leak"] == "good"
    assert levels["good"]["collapse"] == levels["good"]["leak"] == levels["good"]["right answers"] == "good"
    assert has_warned == {"leaking": True, "collapsed": False, "good": False}
