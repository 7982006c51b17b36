"""Test ``gap.py``: the variants in its TOML file, and one tiny study from start to end."""

import json
import tomllib

import pytest

from experiments.run import PRESETS
from experiments.studies import gap
from pyro_gram.errors import ConfigError
from pyro_gram.presets import read_preset

STUDIES = tomllib.loads((gap.HERE / "gap.toml").read_text())


@pytest.mark.parametrize("name", STUDIES)
def test_every_variant_is_a_config_that_differs_from_every_other(name):
    study = gap.read_study(name)
    configs = {variant: gap.config_of(study, variant, seed=3) for variant in study["variants"]}
    assert len({json.dumps(c.to_dict()) for c in configs.values()}) == len(configs)
    preset = read_preset(PRESETS, study["task"], study["preset"]).to_dict()
    for variant, config in configs.items():
        for part, fields in gap.changes_of(study, variant).items():
            assert not fields.items() & preset[part].items(), f"{name}.{variant}: no difference"
        assert config.evaluate.depth * config.model.transitions == gap.TRANSITIONS
        assert (config.train.minutes, config.train.batches, config.seed) == (study["minutes"], 0, 3)
        assert config.temper.transitions == 0


def test_unknown_names_are_errors_that_list_the_known_ones():
    with pytest.raises(ConfigError, match="unknown study 'x'; known: queens8"):
        gap.read_study("x")
    study = gap.read_study("queens8")
    with pytest.raises(ConfigError, match="unknown variant 'y'; known: surrogate"):
        gap.config_of(study, "y", 0)
    study["variants"]["z"] = {"asks": "?", "gide": {"max_kl": 1.0}}
    with pytest.raises(ConfigError, match="unknown part 'gide'"):
        gap.config_of(study, "z", 0)


def test_a_study_runs_resumes_and_prints_its_table(tmp_path, monkeypatch, capsys):
    study = {
        "name": "any",
        "task": "coloring",
        "preset": "tiny",
        "minutes": 0.005,
        "seeds": [5],
        "variants": {
            "plain": {"asks": "as it is"},
            "quiet": {"asks": "budget?", "guide": {"max_kl": 0.1}, "train": {"supervision_steps": 2}},
        },
    }
    monkeypatch.setattr(gap, "read_study", lambda name: dict(study))
    monkeypatch.setattr(gap, "TRANSITIONS", 2)
    monkeypatch.setattr(gap, "LENGTHS", (2, 4))
    out = tmp_path / "gap.json"
    command = ["--study", "any", "--runs", str(tmp_path / "runs"), "--out", str(out)]
    assert gap.main([*command, "--seeds", "5", "--variants", "quiet"]) == 0
    first = json.loads(out.read_text())
    assert first["study"] == "any"
    assert list(first["variants"]) == ["quiet"]
    assert gap.main(command) == 0
    results = json.loads(out.read_text())
    assert results["variants"]["quiet"] == first["variants"]["quiet"]
    assert results["variants"]["quiet"]["changes"] == {
        k: v for k, v in study["variants"]["quiet"].items() if k != "asks"
    }
    run = results["variants"]["plain"]["seeds"]["5"]
    assert set(run["by_length"]) == {"2", "4"}
    assert 0 <= run["by_length"]["4"]["sample_accuracy"] <= 1
    assert "| `quiet` | 1 |" in capsys.readouterr().out
    assert 0 <= run["k_hat"]["above_0.7"] <= 1
    assert gap.main([*command, "--table"]) == 0
    output = capsys.readouterr().out
    assert "| `plain` | 1 |" in output
    assert "- `quiet`: budget?" in output
    with pytest.raises(ConfigError, match=r"has minutes = 0.005, not 3.0: give another --out and --runs"):
        gap.main([*command, "--minutes", "3"])
    with pytest.raises(ConfigError, match="any-plain-seed5 was begun with other settings: give another --runs"):
        gap.main([*command, "--minutes", "3", "--out", str(tmp_path / "other.json")])
    study["variants"]["plain"]["optim"] = {"lr": 0.5}
    with pytest.raises(ConfigError, match="'plain' was run with other settings of 'optim'"):
        gap.main(command)


def test_collecting_keeps_all_runs_of_a_study_and_ignores_runs_of_another(tmp_path):
    variants = {"a": {"asks": "a"}, "b": {"asks": "b", "optim": {"lr": 0.1}}}
    study = {"name": "any", "task": "coloring", "preset": "tiny", "minutes": 1.0, "variants": variants}
    out, runs = tmp_path / "gap.json", tmp_path / "runs"

    def write_run(variant, seed, study):
        folder = runs / f"any-{variant}-seed{seed}"
        folder.mkdir(parents=True)
        config = gap.shared_settings(gap.config_of(study, variant, seed))
        contents = {"variant": variant, "seed": seed, "config": config, "found": seed}
        (folder / "measured.json").write_text(json.dumps(contents))

    for variant, seed in (("b", 0), ("a", 1), ("b", 1)):
        write_run(variant, seed, study)
    write_run("a", 7, study | {"minutes": 2.0})
    write_run("gone", 0, study | {"variants": {"gone": {"asks": "?"}}})
    gap.collect(out, study, runs)
    (runs / "any-b-seed0" / "measured.json").unlink()  # the study's JSON still keeps the results of this run
    gap.collect(out, study, runs)
    results = json.loads(out.read_text())["variants"]
    assert list(results) == ["a", "b"]
    assert results["a"]["seeds"] == {"1": {"found": 1}}
    assert results["b"]["seeds"] == {"0": {"found": 0}, "1": {"found": 1}}
