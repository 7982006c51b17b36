"""Test the tables of the checkpoints: means over seeds, intervals of shares, and rows for comparison."""

import re
from statistics import mean, stdev

import pytest
from experiments.studies.fresh import weights_digest
from scipy.stats import binomtest

from experiments.tables import headline
from experiments.tables.headline import CHECKPOINTS, FRESH, HEADLINE, LOOKUP, MARKED_CHECKPOINTS
from pyro_gram.system.files import read_json

SHARE = re.compile(r"^(\d\.\d+)(?: ± (\d\.\d+))? \((\d\.\d{3}) to (\d\.\d{3})\)$")


def rows_of(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table.splitlines()[2:]]


def seeds_of(name: str) -> list[dict]:
    paths = [CHECKPOINTS / f"{name}.results.json", *sorted(CHECKPOINTS.glob(f"{name}.seed*.results.json"))]
    return [read_json(path)["metrics"] for path in paths if path.exists()]


def row_of(name: str) -> list[str]:
    (row,) = [row for row in rows_of(headline.solved_table()) if row[0].startswith(f"`{name}`,")]
    return row


@pytest.mark.parametrize("name", [name for name in HEADLINE if seeds_of(name)])
def test_a_row_has_the_mean_over_all_samples_and_seeds_and_the_number_of_seeds(name):
    metrics, row = seeds_of(name), row_of(name)
    assert row[2] == str(len(metrics))
    accuracies = [m["sample_accuracy"] for m in metrics]
    accuracy, deviation, low, high = SHARE.match(row[3]).groups()
    assert float(accuracy) == pytest.approx(mean(accuracies), abs=5.1e-4)
    assert (deviation is None) == (len(metrics) == 1)
    if deviation:
        assert float(deviation) == pytest.approx(stdev(accuracies), abs=5.1e-4)
        assert float(deviation) > 0
    assert float(low) < mean(accuracies) < float(high)
    assert row[5] == (
        f"{metrics[0]['violations']}" if len(metrics) == 1 else f"{mean(m['violations'] for m in metrics):.1f}"
    )


def test_eight_queens_show_three_seeds_and_not_the_best_one():
    metrics = seeds_of("nqueens8")
    assert len(metrics) >= 3
    assert row_of("nqueens8")[3].startswith("0.986 ± 0.007 (")
    assert max(m["sample_accuracy"] for m in metrics) > 0.99


def test_every_share_has_its_wilson_interval_and_no_deviation_is_zero():
    for table in (headline.solved_table(), headline.results_table("coloring8"), headline.seeds_table()):
        assert not re.search(r"± 0\.0+\b", table)
    for row in rows_of(headline.solved_table()):
        assert SHARE.match(row[3])
        assert SHARE.match(row[4])
    expected = binomtest(255, 255).proportion_ci(method="wilson")
    assert row_of("coloring8")[4] == f"1.000 ({expected.low:.3f} to 1.000)"


def test_checkpoints_whose_test_figures_were_known_early_are_marked():
    names = {name for name in HEADLINE if seeds_of(name) and row_of(name)[0].endswith("†")}
    assert names == set(MARKED_CHECKPOINTS) == {"coloring8", "coloring10", "nqueens8", "nqueens10"}


def test_fresh_figures_belong_to_the_committed_weights_and_stand_under_their_checkpoint():
    fresh = read_json(FRESH)
    assert {"coloring8", "coloring10", "sudoku4", "sudoku6"} <= set(fresh)
    rows = rows_of(headline.solved_table())
    for name, study in fresh.items():
        assert study["sha256"] == weights_digest(CHECKPOINTS / f"{name}.safetensors")
        row = rows[rows.index(row_of(name)) + 1]
        assert row[0].startswith("the same weights")
        assert row[1].startswith(f"{study['num_inputs']:,}: {study['what']}")
        assert row[2] == f"1; {len(study['draws'])} of draws"
        assert len(study["draws"]) >= 3
        assert float(row[3].split()[0]) == pytest.approx(mean(d["sample_accuracy"] for d in study["draws"]), abs=5e-4)


def test_the_lookup_stands_under_the_queens_of_the_papers_split():
    rows, lookup = rows_of(headline.solved_table()), read_json(LOOKUP)["problems"]
    for problem, copies in (("nqueens8", "773 of 773"), ("nqueens10", "6,513 of 6,513")):
        rows_below = rows[rows.index(row_of(problem)) + 1 :]
        row = next(row for row in rows_below if row[0].startswith("a lookup"))
        assert row[1].startswith(copies)
        assert row[3].startswith(f"{lookup[problem]['input']['images']['sample_accuracy']:.3f} (")
        (row,) = [row for row in rows if row[0] == f"a lookup, `{problem}` split by orbit"]
        assert row[1].startswith(f"0 of {lookup[problem]['orbit']['test']:,} with")
        assert row[3].startswith("0.000 (0.000 to 0.00")


@pytest.mark.parametrize(("count", "seeds_text"), [(0, ""), (1, "(1 seed)"), (3, "(3 seeds)")])
def test_the_text_about_the_split_by_orbit_follows_the_committed_results(count, seeds_text, monkeypatch):
    def read_seeds(name):
        accuracy_0 = 0.25 if name == "nqueens8-orbit" else 0.5
        shared = {"vote_accuracy": accuracy_0 + 0.125, "log_num_solutions": 0.5 if count == 3 else 0.0}
        metrics = [{"sample_accuracy": accuracy_0 + i / 100, **shared} for i in range(3)]
        return [{"metrics": m} for m in metrics[: count if name == "nqueens8-orbit" else 3]]

    monkeypatch.setattr(headline, "read_seeds", read_seeds)
    line = headline.orbit_line()
    if not count:
        assert line == "No model trained on this split is committed yet."
    else:
        accuracy = mean(0.25 + i / 100 for i in range(count))
        assert seeds_text in line
        assert f"Its accuracy is {accuracy:.3f} for one sample and 0.375 for the vote of 20;" in line
        assert "on the paper's split it is 0.510 and 0.625." in line
        assert ("Each of these inputs has one completion" in line) is (count == 1)


def test_a_row_of_one_seed_has_no_deviation_and_equal_seeds_have_none():
    first_seed = {"num_inputs": 500, "sample_accuracy": 0.95, "vote_accuracy": 1.0, "violations": 7, "coverage": 0.9}
    first_seed["coverage_limit"] = 0.95
    assert headline.cells([first_seed]) == "0.950 (0.927 to 0.966) | 1.000 (0.992 to 1.000) | 7 | 0.900 (0.950)"
    second_seed = first_seed | {"sample_accuracy": 0.97, "violations": 8}
    assert headline.cells([first_seed, second_seed]).startswith(
        "0.960 ± 0.014 (0.939 to 0.974) | 1.000 (0.992 to 1.000) | 7.5 |"
    )


def test_details_are_over_all_seeds():
    rows = dict(rows_of(headline.results_table("coloring8")))
    metrics = seeds_of("coloring8")
    assert rows["conflicting edges in the 255 first samples"] == ", ".join(str(m["violations"]) for m in metrics)
    accuracy = SHARE.match(rows["accuracy, one sample (mean of 20)"])
    assert float(accuracy[1]) == pytest.approx(mean(m["sample_accuracy"] for m in metrics), abs=5e-5)
    assert float(rows["coverage, 20 samples"].split()[0]) == pytest.approx(
        mean(m["coverage"] for m in metrics), abs=5e-4
    )
