"""Test the cells of the paper's tables, and that a small table can be run, resumed, collected and drawn."""

import itertools
import json
import shlex
import time
from dataclasses import replace

import pytest
import torch
from scipy.stats import binomtest

from experiments import table
from experiments.tables.cells import mean_and_sd
from experiments.tables.paper_table import figure, markdown, values_of
from pyro_gram.build import check_parts
from pyro_gram.config import with_settings
from pyro_gram.diagnostics import paper
from pyro_gram.errors import ConfigError
from pyro_gram.runs.state import differences
from pyro_gram.system.cli import call
from pyro_gram.system.distributed import SINGLE_PROCESS
from pyro_gram.system.files import read_json
from pyro_gram.system.machine import revision
from pyro_gram.tasks.base import make_task
from pyro_gram.training.loop import train_batches
from tests.training.test_trainer import make_trainer

TABLES = list(table.definitions()["tables"])
MINUTES = "0.01"


def presets_of(name):
    """Return the presets at which a table has a column."""
    columns = [table.pick("columns", column) for column in table.pick("tables", name)["columns"]]
    return [p for p in table.definitions()["presets"] if any(table.value_at(c["presets"], p) for c in columns)]


COMBINATIONS = [(name, preset) for name in TABLES for preset in presets_of(name)]


@pytest.mark.parametrize(("name", "preset"), COMBINATIONS)
def test_every_cell_of_every_table_is_a_run_of_its_own_whose_parts_fit(name, preset):
    cells = table.cells_of(table.pick("tables", name), preset)
    assert len({cell.name for cell in cells}) == len(cells)
    minutes = table.preset_entry(preset).get("minutes")
    for cell in cells:
        config = cell.config()
        check_parts(config)
        assert config.seed == cell.seed
        assert config.heads.hidden == config.temper.transitions == 0
        if preset != "paper":
            assert (config.train.minutes, config.train.batches > 0) == ((minutes, False) if minutes else (0, True))


def test_a_preset_that_extends_another_differs_from_it_only_in_its_own_entries():
    cells = table.cells_of(table.pick("tables", "long"), "long")
    assert len(cells) == len({cell.name for cell in cells}) == 2 * 4 * 3
    for cell in cells:
        short = table.Cell("cpu", cell.column, cell.row, cell.seed)
        assert with_settings(short.config(), {"train": {"minutes": 30.0}}) == cell.config() != short.config()
    rows_at = {p: {c.row for c in table.cells_of(table.pick("tables", "1"), p)} for p in ("cpu", "long", "paper")}
    assert rows_at["long"] == rows_at["cpu"] == rows_at["paper"] | {"gram_no_on_policy"}


def test_the_variants_of_the_main_job_have_equally_many_updates():
    for cell in table.cells_of(table.pick("tables", "main"), "main"):
        c = cell.config().train
        updates_a_batch, on_policy_every = (1, c.supervision_steps) if c.act else (c.supervision_steps, 1)
        assert c.batches * updates_a_batch == 2560
        on_policy_share = (1 - c.on_policy_after) / on_policy_every
        assert round(c.batches * on_policy_share) * c.on_policy_updates == 256


def test_the_papers_numbers_are_of_rows_and_metrics_that_are_shown():
    for name in TABLES:
        definition = table.pick("tables", name)
        numbers_of = {column: paper.rows(name, column) for column in definition["columns"]}
        assert any(numbers_of.values()) == (name not in ("main", "long", "orbit"))  # these tables are our own
        for column, numbers in numbers_of.items():
            assert set(numbers) <= set(definition["rows"])
            for metrics in numbers.values():
                assert set(metrics) <= set(table.pick("columns", column)["show"])


def test_table_1_has_three_seeds_of_its_main_rows_and_one_of_the_others():
    cells = table.cells_of(table.pick("tables", "1"), "cpu")
    seeds = {row: sum(c.row == row and c.column == "nqueens8" for c in cells) for row in {c.row for c in cells}}
    rows_with_three = {row for row, count in seeds.items() if count == 3}
    assert rows_with_three == {
        "gram",
        "gram_no_on_policy",
        "lattice",
        "lattice_sampled",
        "trm",
        "autoregressive",
        "mdlm",
    }
    assert {seeds[row] for row in seeds.keys() - rows_with_three} == {1}


def test_rows_differ_from_each_other_within_a_table():
    for name, preset in COMBINATIONS:
        cells = table.cells_of(table.pick("tables", name), preset, seeds=1)
        for column in {c.column for c in cells}:
            configs = [json.dumps(c.config().to_dict()) for c in cells if c.column == column]
            assert len(set(configs)) == len(configs)


def configs_of(row):
    """Yield the cells and configs of a row, from every table and preset that has this row."""
    for name, preset in COMBINATIONS:
        definition = table.pick("tables", name)
        yield from ((c, c.config()) for c in table.cells_of(definition, preset, seeds=1) if c.row == row)


@pytest.mark.parametrize(("row", "T", "K"), [("hrm", 2, 2), ("trm", 3, 6), ("trm_sampled", 3, 6), ("trm_random", 3, 6)])
def test_hrm_and_trm_run_at_the_transitions_and_low_level_steps_of_their_papers(row, T, K):
    configs = [config.model for _, config in configs_of(row)]
    assert configs
    assert {(model.transitions, model.low_steps) for model in configs} == {(T, K)}


def test_mdlm_is_sampled_in_far_more_steps_than_an_answer_has_tokens():
    configs = list(configs_of("mdlm"))
    assert {config.model.sampling_steps for cell, config in configs if cell.preset != "paper"} == {64}
    for _, config in configs:
        tokens = make_task(config.names["task"], config.task).spec.output_length
        assert config.model.sampling_steps >= 8 * tokens


def test_gram_without_on_policy_training_differs_from_gram_only_in_that():
    variants, gram = dict(configs_of("gram_no_on_policy")), dict(configs_of("gram"))
    expected = itertools.product(("cpu", "long"), ("nqueens8", "coloring8"))
    assert {(cell.preset, cell.column) for cell in variants} == set(expected)
    for cell, config in variants.items():
        full_training = gram[replace(cell, row="gram")]
        assert differences(config.to_dict(), full_training.to_dict()) == ["train.on_policy_depth: 0 then, 16 now"]


@pytest.mark.parametrize("path", sorted((table.HERE / "tables").glob("*.json")), ids=lambda path: path.stem)
def test_the_committed_tables_state_the_settings_of_each_row(path):
    for column in json.loads(path.read_text())["columns"].values():
        for name, row in column["rows"].items():
            model, depth = row["config"]["model"], row["config"]["evaluate"]["depth"]
            if "transitions" in model:
                passes = depth * model["transitions"] * (model["low_steps"] + (model_of(row) not in ("flat", "looped")))
            else:
                passes = {"autoregressive": 8, "mdlm": model.get("sampling_steps") or 8}.get(name, 1)
            assert row["layers_a_sample"] == passes * model["layers"]
            if name.startswith(("hrm", "trm")):
                assert f"T = {model['transitions']}, K = {model['low_steps']}, N_sup = {depth}" in row["title"]
            if name == "mdlm":
                assert f"sampled in {model['sampling_steps'] or 8} steps" in row["title"]


def model_of(row):
    return row["config"]["names"]["model"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The directory of two finished cells of table 3b. Each was made by the command that ``--list`` prints for it."""
    folder = tmp_path_factory.mktemp("tables")
    common = ["--table", "3b", "--preset", "tiny", "--minutes", MINUTES, "--runs", str(folder / "runs")]
    for row in ("gram", "direct32"):
        assert call(table.main, [*common, "--cell", f"tiny-nqueens8-{row}-seed0"]) == 0
    return folder, [*common, "--out", str(folder / "out")]


def test_a_launcher_stands_before_each_command(tmp_path, capsys):
    options = ["--table", "1", "--preset", "tiny", "--runs", str(tmp_path), "--list"]
    assert call(table.main, [*options, "--launcher", "torchrun --nproc-per-node=8"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines
    assert all(line.startswith(f"torchrun --nproc-per-node=8 {table.HERE / 'table.py'} --table 1") for line in lines)


def test_finished_cells_are_skipped_and_missing_cells_are_listed_as_commands(runs, capsys):
    _, common = runs
    assert call(table.main, [*common, "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert not any("-gram-seed0" in line or "direct32" in line for line in lines)
    options = shlex.split(lines[0])
    assert options[options.index("--cell") + 1].startswith("tiny-nqueens8-gram_no_guidance-seed0")
    assert options[options.index("--minutes") + 1] == MINUTES


def test_collecting_writes_json_markdown_and_a_picture_and_names_the_missing_cells(runs, capsys):
    folder, common = runs
    assert call(table.main, [*common, "--collect"]) == 0
    out = capsys.readouterr().out
    results = json.loads((folder / "out" / "table3b-tiny.json").read_text())
    rows = results["columns"]["nqueens8"]["rows"]
    assert list(rows) == ["gram", "direct32"]
    assert len(results["missing"]) == 5
    assert rows["gram"]["seeds"]["0"]["updates"] > 0
    assert rows["gram"]["config"]["names"]["prior"] == "gaussian"
    assert {name: row["layers_a_sample"] for name, row in rows.items()} == {"gram": 2 * 1 * 3 * 1, "direct32": 32}
    assert rows["gram"]["seeds"]["0"]["revision"] == revision()[0]
    assert (folder / "out" / "table3b-tiny.md").read_text().count("| GRAM |") == 1
    assert (folder / "out" / "table3b-tiny.png").stat().st_size > 1000
    assert "| GRAM |" in out
    assert "Missing cells: tiny-nqueens8-gram_no_guidance-seed0" in out


def test_a_table_is_made_again_from_its_json_without_its_runs(runs, tmp_path):
    _, common = runs
    assert call(table.main, [*common[:-1], str(tmp_path), "--collect"]) == 0
    path = tmp_path / "table3b-tiny.json"
    first = path.read_text()
    old_results = json.loads(first)
    for row in old_results["columns"]["nqueens8"]["rows"].values():
        row.pop("layers_a_sample")
        row["config"]["train"].pop("compile")  # earlier versions did not write this setting
    path.write_text(json.dumps(old_results))
    options = ["--table", "3b", "--preset", "tiny", "--runs", str(tmp_path / "none"), "--out", str(tmp_path)]
    assert call(table.main, [*options, "--redraw"]) == 0
    new_results = json.loads(path.read_text())
    for row in new_results["columns"]["nqueens8"]["rows"].values():
        row["config"]["train"]["compile"] = False
    assert new_results == json.loads(first)
    assert "| 32 |" in (tmp_path / "table3b-tiny.md").read_text()


def test_cells_of_other_minutes_are_refused(runs, capsys):
    _, common = runs
    other_options = [w if w != MINUTES else "0.02" for w in common]
    assert call(table.main, [*other_options, "--collect"]) == 2
    assert "begun with other settings: give another --runs" in capsys.readouterr().err


def test_a_cell_that_fails_does_not_keep_the_others_from_running(tmp_path, monkeypatch, capsys):
    rows = []

    def run_cell(cell, *_):
        rows.append(cell.row)
        if cell.row == "direct8":
            raise ConfigError("no such data")

    monkeypatch.setattr(table, "run_cell", run_cell)
    options = ["--table", "1", "--preset", "tiny", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    assert call(table.main, options) == 2
    assert len(rows) == 18
    assert "2 cells failed, the first tiny-nqueens8-direct8-seed0: no such data" in capsys.readouterr().err


def results(**seeds):
    row = {"title": "GRAM", "layers_a_sample": 1344, "seeds": seeds}
    return {
        "title": "T",
        "preset": "cpu",
        "minutes": 5,
        "missing": [],
        "columns": {
            "c": {
                "title": "C",
                "show": ["sample_accuracy", "violations"],
                "paper": {"gram": {"violations": 2.7}},
                "rows": {"gram": row},
            }
        },
    }


def cell(accuracy, violations):
    return {
        "sample_accuracy": accuracy, "violations": violations, "parameters": 1234567, "guide_parameters": 89,
        "updates": 10, "threads": 1, "num_inputs": 7, "num_samples": 20, "coverage_limit": 0.9,
    }  # fmt: skip


def test_means_and_standard_deviations_over_seeds_stand_beside_the_papers_numbers():
    two_seeds = results(**{"0": cell(0.5, 10), "1": cell(0.7, 14)})
    text = markdown(two_seeds)
    assert "| GRAM | 1,234,567 (89) | 1,344 | 2 | 10 | 60.0 ± 14.1 | 12.0 ± 2.8 | 2.7 |" in text
    assert "| layers a sample | seeds |" in text
    assert (
        "samples, coverage of i.i.d. uniform draws 90.0 %; mean ± standard deviation over seeds; for one seed" in text
    )
    assert "5 minutes of training per cell on 1 thread, 7 inputs" in text
    assert "90.0 %" in text
    row = two_seeds["columns"]["c"]["rows"]["gram"]
    assert values_of(row, "sample_accuracy") == [pytest.approx(50), pytest.approx(70)]
    assert values_of(row, "coverage") == []
    axes = figure(two_seeds).axes
    assert [a.get_xlabel() for a in axes] == ["accuracy of a sample, %", "conflicts (fewer is better)"]


def test_an_accuracy_of_one_seed_has_its_wilson_interval_and_equal_seeds_have_no_deviation_of_zero():
    one_seed = markdown(results(**{"0": cell(1.0, 10)}))
    low = 100 * binomtest(7, 7).proportion_ci(method="wilson").low
    assert f"| 100.0 ({low:.1f} to 100.0) | 10.0 | 2.7 |" in one_seed
    equal_seeds = markdown(results(**{"0": cell(1.0, 10), "1": cell(1.0, 10)}))
    assert "| 100.0 | 10.0 | 2.7 |" in equal_seeds


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([0.5], "0.500"),
        ([1.0, 1.0, 1.0], "1.000"),
        ([0.9978, 0.9975, 0.9982], "0.9978 ± 0.0004"),
        ([0.9, 1.0], "0.950 ± 0.071"),
    ],
)
def test_a_deviation_has_the_digits_that_it_needs_and_is_never_zero(values, text):
    assert mean_and_sd(values) == text


@pytest.mark.parametrize("name", ["1", "3a", "3b"])
def test_the_committed_tables_hold_the_papers_numbers_as_they_are_matched_now(name):
    results = read_json(table.HERE / "tables" / f"table{name}-cpu.json")
    assert {column: numbers["paper"] for column, numbers in results["columns"].items()} == {
        column: paper.rows(name, column) for column in results["columns"]
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--table", "9"], "unknown table '9'; known: 1, 2"),
        (["--table", "1", "--preset", "huge"], "unknown preset 'huge'; known: tiny"),
        (
            ["--table", "1", "--cell", "x"],
            "no cell 'x' in this table; --list prints the missing cells, such as cpu-nqueens8-direct8-seed0",
        ),
        (["--table", "1", "--minutes", "0"], "--minutes must be positive"),
        (["--table", "1", "--seeds", "-1"], "--seeds"),
        (["--table", "1", "--collect"], "no cell of table 1 is done"),
        (
            ["--table", "1", "--collect", "--cell", "cpu-nqueens8-gram-seed0"],
            "--cell runs cells, while --collect and --redraw run none",
        ),
        (["--table", "1", "--redraw"], "table1-cpu.json does not exist"),
    ],
)
def test_bad_arguments_end_in_one_line(options, message, tmp_path, capsys):
    assert call(table.main, [*options, "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(("threads", "expected"), [(1, time.process_time), (2, None)])
def test_minutes_are_cpu_minutes_on_one_thread(threads, expected, tmp_path, monkeypatch):
    clocks = []
    monkeypatch.setattr(table, "train", lambda run: clocks.append(run.trainer.clock))
    monkeypatch.setattr(table, "evaluate", lambda run: None)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    cell = table.Cell("tiny", "coloring8", "gram", 0)
    table.run_cell(cell, tmp_path, torch.device("cpu"), None, SINGLE_PROCESS)
    assert clocks == [expected]


def test_a_trainer_counts_the_seconds_of_its_clock():
    trainer = make_trainer(batches=2)
    trainer.clock = itertools.count(10, 1000).__next__  # each look at the clock is 1,000 seconds later
    first, second = (report.seconds for report in train_batches(trainer))
    assert first >= 1000
    assert second > first
    assert first % 1000 == second % 1000 == 0
