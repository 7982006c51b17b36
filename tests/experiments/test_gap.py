"""The study of the gap between guide and prior: its table of variants, and one tiny study end to end."""

import json

import pytest

from experiments.studies import gap
from pyro_gram.errors import ConfigError

STUDIES = ("queens8", "coloring8", "queens10")


@pytest.mark.parametrize("name", STUDIES)
def test_every_variant_is_a_config_that_differs_from_every_other(name):
    study = gap.read_study(name)
    configs = {variant: gap.config_of(study, variant, seed=3) for variant in study["variants"]}
    assert len({json.dumps(c.to_dict()) for c in configs.values()}) == len(configs)
    for config in configs.values():
        assert (config.train.minutes, config.train.batches, config.seed) == (study["minutes"], 0, 3)


def test_what_is_unknown_is_named():
    with pytest.raises(ConfigError, match="unknown study 'x'; known: queens8"):
        gap.read_study("x")
    study = gap.read_study("queens8")
    with pytest.raises(ConfigError, match="unknown variant 'y'; known: surrogate"):
        gap.config_of(study, "y", 0)
    study["variants"]["z"] = {"asks": "?", "gide": {"budget": 1.0}}
    with pytest.raises(ConfigError, match="unknown part 'gide' in variant 'z'"):
        gap.config_of(study, "z", 0)


def test_a_study_runs_goes_on_and_prints_its_table(tmp_path, monkeypatch, capsys):
    study = {
        "task": "coloring",
        "preset": "tiny",
        "minutes": 0.02,
        "variants": {
            "plain": {"asks": "as it is"},
            "quiet": {"asks": "budget?", "guide": {"budget": 0.1}, "train": {"supervision_steps": 2}},
        },
    }
    monkeypatch.setattr(gap, "read_study", lambda name: dict(study))
    monkeypatch.setattr(gap, "DEPTHS", (1, 3))
    out = tmp_path / "gap.json"
    command = ["--study", "any", "--runs", str(tmp_path / "runs"), "--out", str(out)]
    assert gap.main([*command, "--seeds", "5", "--variants", "quiet"]) == 0
    first = json.loads(out.read_text())
    assert list(first["variants"]) == ["quiet"]
    assert gap.main([*command, "--seeds", "5"]) == 0
    found = json.loads(out.read_text())
    assert found["variants"]["quiet"] == first["variants"]["quiet"]
    assert found["variants"]["quiet"]["changes"] == {k: v for k, v in study["variants"]["quiet"].items() if k != "asks"}
    run = found["variants"]["plain"]["seeds"]["5"]
    assert set(run["by_depth"]) == {"1", "3", str(run["depth"])}
    assert 0 <= run["by_depth"]["3"]["sample_accuracy"] <= 1
    assert "| `quiet` | 1 |" in capsys.readouterr().out
    assert gap.main([*command, "--table"]) == 0
    assert "| `plain` | 1 |" in capsys.readouterr().out
