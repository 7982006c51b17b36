"""Test the tables of the checkpoints: means over seeds, intervals of shares, and rows for comparison."""

import re
from statistics import mean

import pytest

from experiments.tables import headline, readme_table
from experiments.tables.headline import CHECKPOINTS, LOOKUP, MAIN_JOB, SOLVING_CHECKPOINTS, read_seeds, read_sizes
from pyro_gram.system.files import read_json

SHARE = re.compile(r"^(\d\.\d+)(?: ± (\d\.\d+))? \((\d\.\d{3}) to (\d\.\d{3})\)$")


def rows_of(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table.splitlines()[2:]]


def test_there_is_one_checkpoint_for_each_task_of_at_most_8_mb():
    weights = {path.stem: path.stat().st_size for path in CHECKPOINTS.glob("*.safetensors")}
    assert set(weights) == {*SOLVING_CHECKPOINTS, *headline.SAMPLING_CHECKPOINTS}
    assert max(weights.values()) <= 8e6


def test_the_main_job_has_three_seeds_and_its_goals_are_met():
    seeds = [results["metrics"] for results in read_seeds(MAIN_JOB)]
    assert len(seeds) == 3
    assert mean(m["sample_accuracy"] for m in seeds) >= 0.99
    assert mean(m["coverage_ratio"] for m in seeds) >= 0.98


def test_details_of_the_main_job_are_over_all_seeds():
    rows = dict(rows_of(headline.main_job_table()))
    metrics = [results["metrics"] for results in read_seeds(MAIN_JOB)]
    assert rows["conflicting edges in the 255 first samples"] == ", ".join(str(m["violations"]) for m in metrics)
    accuracy = SHARE.match(rows["accuracy, one sample (mean of 20)"])
    assert float(accuracy[1]) == pytest.approx(mean(m["sample_accuracy"] for m in metrics), abs=5e-4)
    coverage = float(rows["coverage, 20 samples"].split()[0])
    assert coverage == pytest.approx(mean(m["coverage"] for m in metrics), abs=5e-4)


def test_a_row_of_the_readme_has_the_mean_over_the_seeds_of_its_group():
    table = {row[0]: row for row in rows_of(readme_table.summary_table())}
    for name, group, title, _ in readme_table.SIZES_ROWS:
        groups = [run["groups"][group] for run in read_sizes(name)]
        row = table[title]
        assert row[1] == str(len(groups))
        for cell, key in zip(row[2:5], ("right", "vote", "solved"), strict=True):
            assert float(cell.split()[0]) == pytest.approx(100 * mean(g[key] for g in groups), abs=0.051)
        limits = re.search(r"\((\d+\.\d)\)", row[5])
        assert ("coverage" in groups[0]) == (limits is not None)


def test_no_deviation_is_zero():
    for table in (headline.main_job_table(), headline.seeds_table(), readme_table.summary_table()):
        assert not re.search(r"± 0\.0+\b", table)


def test_a_lookup_solves_the_papers_split_and_nothing_of_the_split_by_orbit():
    rows = {(row[0].strip("`"), row[1]): row for row in rows_of(headline.lookup_table())}
    for problem, copies in (("nqueens8", "773 of 773"), ("nqueens10", "6,513 of 6,513")):
        assert rows[problem, "by input"][2] == copies
        assert rows[problem, "by input"][3].startswith("1.000 (")
        orbit = read_json(LOOKUP)["problems"][problem]["orbit"]
        assert rows[problem, "by orbit"][2] == f"0 of {orbit['test']:,}"
        assert rows[problem, "by orbit"][3].startswith("0.000 (")
