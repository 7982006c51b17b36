import json
import math
import os
import re
import signal

import pytest
from safetensors import safe_open
from safetensors.torch import load_file

import experiments.run
from pyro_gram.config import RunConfig
from pyro_gram.diagnostics import inference_data
from pyro_gram.system.machine import revision
from pyro_gram.training import precision as speed
from tests.experiments.small_run import cli, results, rows, run

METRICS = {
    "accuracy", "sample_accuracy", "any_valid", "coverage", "coverage_limit", "violations", "num_inputs", "num_samples",
    "elbo", "elbo_full", "elbo_surrogate",
}  # fmt: skip


def test_a_compiler_that_fails_ends_the_run_in_one_line(monkeypatch, tmp_path, capsys):
    def fail(graph, inputs):
        raise RuntimeError("no space left on the compiler's disk")

    monkeypatch.setattr(speed, "BACKEND", fail)
    assert run(tmp_path / "run", "--train.batches", 2, "--train.compile", "true") == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("error: the core could not be compiled (")
    assert "set train.compile to false" in line


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """The directory of a run of four batches that was not interrupted."""
    out = tmp_path_factory.mktemp("runs") / "new" / "run"
    assert run(out, "--train.batches", 4, "--train.evaluate_every", 2) == 0
    return out


def test_a_run_writes_everything_and_leaves_no_temporary_files(finished_run):
    figures = {"training", "leak", "solved", "coverage_by_solutions", "formation"}
    assert {p.relative_to(finished_run).as_posix() for p in finished_run.rglob("*") if p.is_file()} == {
        *(f"figures/{name}.png" for name in figures),
        "config.json", "metrics.jsonl", "results.json", "model.safetensors", "state.safetensors", "inference.nc",
        "report.html", ".lock",
    }  # fmt: skip
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in finished_run.glob("figures/*.png"))
    assert {"posterior", "prior_predictive"} <= set(inference_data.load(finished_run / "inference.nc").groups())


def test_the_config_of_a_run_holds_the_preset_and_its_changes(finished_run):
    config = RunConfig.from_dict(json.loads((finished_run / "config.json").read_text()))
    assert (config.preset, config.names["task"], config.seed) == ("tiny", "coloring", 0)
    assert (config.train.batches, config.task.vertices, config.model.width) == (4, 4, 16)
    assert config.model.heads == 2  # the preset's number of attention heads


def test_the_results_have_the_promised_keys_and_ranges(finished_run):
    r = results(finished_run)
    assert {"task", "preset", "seed", "parameters", "seconds", "metrics"} <= r.keys()
    assert (r["environment"]["revision"], r["environment"]["modified"]) == revision()
    assert (r["task"], r["preset"], r["seed"], r["batches"]) == ("coloring", "tiny", 0, 4)
    assert r["seconds"].keys() == {"train", "evaluate", "total"}
    assert r["seconds"]["total"] == pytest.approx(r["seconds"]["train"] + r["seconds"]["evaluate"])
    m = r["metrics"]
    assert m.keys() >= METRICS
    for name in ("accuracy", "sample_accuracy", "any_valid", "coverage", "coverage_limit"):
        assert 0 <= m[name] <= 1
    assert (m["num_inputs"], m["num_samples"]) == (4, 5)
    assert isinstance(m["violations"], int)
    assert m["violations"] >= 4 * (1 - m["accuracy"])  # every wrong answer breaks a constraint
    assert m["elbo"] <= 0
    assert math.isfinite(m["elbo"])
    assert m["log_likelihood_prior_mc"] <= 0


def test_every_batch_has_a_line_and_some_measure_the_validation_split(finished_run):
    lines = rows(finished_run)
    assert [row["batch"] for row in lines] == [0, 1, 2, 3]
    assert all({"seconds", "reconstruction", "kl", "beta"} <= row.keys() for row in lines)
    assert ["prior_accuracy" in row for row in lines] == [False, True, False, True]
    assert {"prior_coverage", "coverage_limit", "elbo_full", "elbo_surrogate"} <= lines[-1].keys()


def test_the_report_is_one_file_that_loads_nothing(finished_run):
    page = (finished_run / "report.html").read_text()
    assert page.count('src="data:image/png;base64,') == page.count("<img") == 5
    text = re.sub(r"base64,[A-Za-z0-9+/=]+", "", page)
    assert not re.search(r"https?:|<script|<link|<iframe|@import|url\(|href|file:", text)
    assert str(finished_run) not in text
    assert f"{results(finished_run)['metrics']['coverage']:.3f}" in text


def test_a_run_is_not_overwritten(finished_run, capsys):
    before = {p: p.read_bytes() for p in finished_run.rglob("*") if p.is_file()}
    assert run(finished_run) == 2
    assert re.fullmatch(r"error: .* holds a run already: add --resume .*\n", capsys.readouterr().err)
    assert {p: p.read_bytes() for p in finished_run.rglob("*") if p.is_file()} == before


def test_each_choice_of_parts_has_a_directory_of_its_own_by_default():
    def default_out(*options):
        return str(experiments.run.default_directory(*experiments.run.parse(["--task", "coloring", *options])))

    assert default_out() == "runs/coloring-cpu-seed0"
    assert default_out("--preset", "tiny", "--seed", "3") == "runs/coloring-tiny-seed3"
    assert default_out("--model", "trm") == "runs/coloring-cpu-trm-seed0"
    assert default_out("--prior", "flow", "--guide", "mean_field") == "runs/coloring-cpu-flow-mean_field-seed0"
    assert default_out("--prior", "pyro_gram.models.priors.flow:FlowPrior") == "runs/coloring-cpu-FlowPrior-seed0"


def test_a_resumed_run_ends_as_an_unbroken_one(finished_run, train, tmp_path):
    out = tmp_path / "run"
    assert train(out, "--train.batches", 2) == 0
    with (out / "metrics.jsonl").open("a") as f:  # a line that was written after the last saved state
        f.write('{"batch": 2, "reconstruction": 1e9}\n')
    assert train(out, "--train.batches", 4, "--train.evaluate_every", 2, "--resume") == 0
    a, b = (load_file(o / "state.safetensors") for o in (finished_run, out))
    assert a.keys() == b.keys()
    assert all(a[k].equal(b[k]) for k in a)
    logs = [[{k: v for k, v in row.items() if k != "seconds"} for row in rows(o)] for o in (finished_run, out)]
    assert logs[0] == logs[1]
    assert (out / "config.json").read_bytes() == (finished_run / "config.json").read_bytes()


def test_resuming_a_run_with_other_settings_is_refused(finished_run, capsys):
    before = (finished_run / "config.json").read_bytes()
    assert run(finished_run, "--resume", "--train.batches", 4, "--optim.lr", 0.5) == 2
    err = capsys.readouterr().err
    assert "other settings" in err
    assert len(err.splitlines()) == 1
    assert (finished_run / "config.json").read_bytes() == before


def test_resume_without_a_run_starts_one(tmp_path, train):
    assert train(tmp_path, "--resume", "--train.batches", 1) == 0
    assert len(rows(tmp_path)) == 1


def test_minutes_replace_the_presets_length(tmp_path, train):
    assert train(tmp_path / "run", "--minutes", 0.004) == 0
    *earlier, last = [row["seconds"] for row in rows(tmp_path / "run")]
    assert last >= 0.24 >= max(earlier, default=0.0)


def test_a_run_whose_batches_do_not_fit_into_its_minutes_trains_fewer_and_says_so(tmp_path, train, capsys, monkeypatch):
    out, every = tmp_path / "run", 100000
    options = ("--train.batches", 100000, "--train.minutes", 0.01, "--train.evaluate_every", every)
    options += ("--train.on_policy_depth", 4, "--train.on_policy_updates", 2, "--train.on_policy_after", 0.8)
    assert run(out, *options) == 0
    summary = results(out)
    num_batches = summary["batches"]
    assert 5 <= num_batches < 5000
    message = f"this machine trains {num_batches:,} of 100,000 batches in 0.01 minutes: the schedule is fitted to them"
    err = capsys.readouterr().err
    assert err.index("timing a few batches: how many of 100,000 fit into 0.01 minutes?") < err.index(message)
    assert err.count(message) == 1
    assert summary["length"] == {"batches": 100000, "minutes": 0.01}
    assert f"{num_batches:,} of 100,000 (fitted to 0.01 minutes) batches" in (out / "report.html").read_text()
    assert ["on_policy" in row for row in rows(out)] == [number / num_batches >= 0.8 for number in range(num_batches)]
    monkeypatch.setattr("pyro_gram.training.pace.measure_pace", None)  # measuring the pace again would fail
    assert train(out, "--resume", *options) == 0
    assert f"training in {out} is over, at batch {num_batches} of {num_batches}" in capsys.readouterr().err


def test_a_run_killed_before_its_first_batch_keeps_its_fitted_number_of_batches(tmp_path, train, monkeypatch):
    out = tmp_path / "run"
    options = ("--train.batches", 100000, "--train.minutes", 0.01, "--train.evaluate_every", 100000)
    with monkeypatch.context() as patch:
        patch.setattr("pyro_gram.runs.train._batches", lambda run: os.kill(os.getpid(), signal.SIGTERM) or iter(()))
        assert train(out, *options) == 143
    with safe_open(out / "state.safetensors", framework="np") as f:
        header = json.loads(f.metadata()["pyro_gram"])
    progress = header["state"]["progress"]
    assert progress["number"] == 0
    assert 0 < progress["num_batches"] < 100000
    monkeypatch.setattr("pyro_gram.training.pace.measure_pace", None)
    assert train(out, "--resume", *options) == 0
    assert len(rows(out)) == progress["num_batches"]


@pytest.mark.parametrize("task", sorted(path.stem for path in experiments.run.PRESETS.glob("*.toml")))
def test_the_preset_tiny_of_every_task_has_a_length_in_batches_only(task):
    train = experiments.run.parse(["--task", task, "--preset", "tiny"])[0].train
    assert train.batches > 0
    assert train.minutes == 0


def test_listed_splits_are_disjoint_inputs_and_write_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lines = {}
    for split, count in (("train", 20), ("test", 4)):
        assert run(tmp_path / "out", "--list-split", split) == 0
        output = capsys.readouterr()
        lines[split] = output.out.splitlines()
        assert output.err == ""
        assert len(set(lines[split])) == len(lines[split]) == count
        assert all(re.fullmatch(r"C[?-~]", line) for line in lines[split])  # graph6 texts of four vertices
    assert not set(lines["train"]) & set(lines["test"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--task chess", "unknown task 'chess'; known: .*coloring"),
        ("--preset huge", "unknown preset 'huge'"),
        ("--model grim", "unknown model 'grim'"),
        ("--model pathlib:Path", "pathlib:Path"),
        ("--model nowhere:GRAM", "no module named 'nowhere'"),
        ("--prior flat", "unknown prior 'flat'"),
        ("--guide psychic", "unknown guide 'psychic'; known: additive, amortized, global"),
        ("--minutes -1", "--minutes must be positive"),
        ("--minutes nan", "--minutes must be positive"),
        ("--minutes soon", "invalid float value: 'soon'"),
        ("--train.minutes nan", "minutes"),
        ("--task.color 3", "--task.color"),
        ("--task.vertice 4", "--task.vertice"),
        ("--task.vertices four", "--task.vertices.*'four'"),
        ("--task.vertices 40", "vertices must lie between 3 and 12"),
        ("--task.train 5000", "too few 3-colourable graphs"),
        ("--task.data_seed -1", "seed"),
        ("--train.elbo best", "unknown elbo 'best'"),
        ("--train.augment maybe", "expected true or false"),
        ("--optim.weight_decay -1", "weight_decay"),
        ("--prior.initial_scale 0", "initial_scale"),
        ("--model.heads 3", "multiple of"),
        ("--model.prefix -1", "prefix"),
        ("--seed x", "--seed"),
        ("--seed -1", "seed"),
        ("--seed 100000000000000000000", "seed"),
        ("--evaluate.seed -1", "seed"),
        ("--evaluate.num_samples 0", "num_samples must be at least 1"),
        ("--device nope", "no device 'nope': give cpu, cuda or mps"),
        ("--device cpu:x", "cpu:x"),
        ("--list-split holdout", "--list-split"),
        ("stray", "unrecognized arguments: stray"),
    ],
)
def test_bad_arguments_end_in_one_line_and_write_nothing(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(tmp_path / "out", "--train.batches", 1, *options.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert re.search(message, err)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("out", ["file", "file/run", ""])
def test_an_out_that_is_no_directory_is_refused_and_stays_unchanged(out, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    assert run(out, "--train.batches", 1) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert (tmp_path / "file").read_text() == "mine"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_task_is_required(capsys):
    assert cli(experiments.run.main) == 2
    assert "--task" in capsys.readouterr().err


def test_help_with_a_task_lists_every_setting(capsys):
    assert cli(experiments.run.main, "--task", "coloring", "--help") == 0
    out = capsys.readouterr().out
    assert "--train.supervision_steps" in out
    assert cli(experiments.run.main, "--help") == 0
    assert "--list-split" in capsys.readouterr().out
