"""Configs check their fields, are written as JSON, become command-line options, and are read from presets."""

import argparse
import copy
import dataclasses
import json
import tomllib

import pytest

from pyro_gram.build import build, check_parts
from pyro_gram.config import EvaluateConfig, RunConfig, from_fields, make_run_config, with_settings
from pyro_gram.errors import ConfigError
from pyro_gram.inference.contract import model_traits
from pyro_gram.options import add_options, with_options
from pyro_gram.presets import read_preset
from pyro_gram.registry import GUIDES, MODELS, PRIORS
from pyro_gram.system.cli import Parser
from tests.conftest import DEFAULT_NAMES, ROOT, small_config

PRESETS = ROOT / "experiments" / "presets"
ALL_PRESETS = [(path, preset) for path in sorted(PRESETS.glob("*.toml")) for preset in tomllib.loads(path.read_text())]


@dataclasses.dataclass(frozen=True)
class ExampleConfig:
    width: int = 1
    rate: float = 0.5
    name: str = "a"
    on: bool = True


def option_parser(config):
    parser = Parser("prog")
    add_options(parser, config)
    return parser


# ---- fields ------------------------------------------------------------------------------------------------------


def test_an_unknown_field_lists_the_known_ones():
    with pytest.raises(ConfigError, match="unknown setting part.wdith; known in part: name, on, rate, width"):
        from_fields(ExampleConfig, {"wdith": 2}, "part")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"width": "2"}, "part.width must be int, not '2'"),
        ({"width": 2.0}, "part.width must be int, not 2.0"),
        ({"width": True}, "part.width must be int, not True"),
        ({"width": None}, "part.width must be int, not None"),
        ({"rate": "x"}, "part.rate must be float, not 'x'"),
        ({"rate": True}, "part.rate must be float, not True"),
        ({"name": 3}, "part.name must be str, not 3"),
        ({"on": 1}, "part.on must be bool, not 1"),
    ],
)
def test_an_error_names_a_value_of_the_wrong_type(values, message):
    with pytest.raises(ConfigError, match=message):
        from_fields(ExampleConfig, values, "part")


def test_an_integer_is_a_float_and_other_fields_keep_their_defaults():
    assert from_fields(ExampleConfig, {"rate": 1}) == ExampleConfig(rate=1)


@pytest.mark.parametrize(
    ("names", "settings", "message"),
    [
        ({**DEFAULT_NAMES, "model": "grim"}, {}, "unknown model 'grim'; known: .*gram"),
        ({**DEFAULT_NAMES, "task": "chess"}, {}, "unknown task 'chess'"),
        ({**DEFAULT_NAMES, "optimizer": "adam"}, {}, "wrong or missing: optimizer"),
        ({k: v for k, v in DEFAULT_NAMES.items() if k != "guide"}, {}, "wrong or missing: guide"),
        (DEFAULT_NAMES, {"trian": {}}, "unknown part 'trian'; known: task, model, prior, guide, train"),
        (DEFAULT_NAMES, {"train": {"batchs": 3}}, "unknown setting train.batchs"),
        (DEFAULT_NAMES, {"train": {"batches": 0}}, "a run needs an end"),
    ],
)
def test_an_unknown_name_part_or_field_of_a_run_is_an_error(names, settings, message):
    with pytest.raises(ConfigError, match=message):
        make_run_config(names, settings)


@pytest.mark.parametrize("path", ["pathlib:Path", ":x", ".x:y", "pyro_gram.models.gram:RecursiveCore"])
def test_a_dotted_path_to_another_object_than_a_model_is_a_config_error(path):
    with pytest.raises(ConfigError, match="model"):
        make_run_config({**DEFAULT_NAMES, "model": path}, {})


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("task", "data_seed", -1),
        ("optim", "weight_decay", -1.0),
        ("optim", "beta1", 2.0),
        ("optim", "beta2", -0.1),
        ("beta", "smoothing", 5.0),
        ("train", "minutes", float("nan")),
        ("evaluate", "seed", -1),
        ("model", "prefix", -1),
        ("prior", "hidden", 0),
        ("prior", "initial_scale", -1.0),
        ("guide", "initial_scale", 0.0),
    ],
)
def test_an_impossible_value_is_refused_before_anything_is_built(part, field, value):
    with pytest.raises(ConfigError, match=field):
        small_config(**{part: {field: value}})


@pytest.mark.parametrize("seed", [-1, 10**30, "x", None])
def test_an_impossible_seed_is_refused(seed):
    with pytest.raises(ConfigError, match="seed"):
        make_run_config(DEFAULT_NAMES, {}, seed=seed)


def test_evaluation_settings_are_checked():
    with pytest.raises(ConfigError, match="num_samples must be at least 1, not 0"):
        EvaluateConfig(num_samples=0)
    with pytest.raises(ConfigError, match="depth must be at least 0, not -1"):
        EvaluateConfig(depth=-1)


def test_a_run_is_frozen_and_its_parts_are_attributes():
    config = small_config()
    assert config.train is config.parts["train"]
    with pytest.raises(AttributeError, match="trian"):
        _ = config.trian
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 3
    assert copy.deepcopy(config) == config


# ---- JSON --------------------------------------------------------------------------------------------------------


def test_json_round_trip():
    config = dataclasses.replace(small_config(guide_name="replay", beta={"target": 0.0}), seed=7)
    assert RunConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("names"), "no 'names'"),
        (lambda d: d.update(names=["gram"]), "no 'names'"),
        (lambda d: d["names"].update(model="grim"), "unknown model 'grim'"),
        (lambda d: d["names"].update(model=3), "model"),
        (lambda d: d["names"].pop("prior"), "missing: prior"),
        (lambda d: d.update(extra={}), "unknown part 'extra'"),
        (lambda d: d["model"].update(depth=3), "unknown setting model.depth"),
        (lambda d: d["model"].update(width="wide"), "model.width must be int"),
        (lambda d: d.update(train=3), "train"),
        (lambda d: d.update(train=None), "train"),
        (lambda d: d.update(seed="x"), "seed"),
    ],
)
def test_a_damaged_json_config_is_a_config_error(change, message):
    data = small_config().to_dict()
    change(data)
    with pytest.raises(ConfigError, match=message):
        RunConfig.from_dict(data)


@pytest.mark.parametrize("value", [None, [], "names", {}])
def test_json_without_a_config_is_a_config_error(value):
    with pytest.raises(ConfigError, match="not a run's config"):
        RunConfig.from_dict(value)


# ---- command line ------------------------------------------------------------------------------------------------


def test_every_field_is_an_option_and_none_is_set_unless_given():
    config = small_config()
    options = set(option_parser(config)._option_string_actions)
    for part, value in config.parts.items():
        assert {f"--{part}.{f.name}" for f in dataclasses.fields(value)} <= options
    assert vars(option_parser(config).parse_args([])) == {}


def test_options_change_their_fields_and_no_others():
    config = small_config()
    arguments = ["--train.batches", "7", "--optim.lr", "0.5", "--task.layout", "edge", "--train.augment", "no"]
    changed_config = with_options(config, vars(option_parser(config).parse_args(arguments)))
    assert (
        changed_config.train.batches,
        changed_config.optim.lr,
        changed_config.task.layout,
        changed_config.train.augment,
    ) == (
        7,
        0.5,
        "edge",
        False,
    )
    expected = config.to_dict()
    expected["train"] |= {"batches": 7, "augment": False}
    expected["optim"]["lr"] = 0.5
    expected["task"]["layout"] = "edge"
    assert changed_config.to_dict() == expected


def test_options_pass_the_checks_of_their_dataclass():
    config = small_config()
    with pytest.raises(ConfigError, match="balance"):
        with_options(config, vars(option_parser(config).parse_args(["--train.balance", "2"])))


@pytest.mark.parametrize(
    "arguments",
    ["--train.batchs 3", "--train.batche 3", "--train.batches x", "--train.batches 1.5", "--train.augment maybe"],
)
def test_an_unknown_abbreviated_or_mistyped_option_ends_in_one_line(arguments, capsys):
    with pytest.raises(SystemExit) as e:
        option_parser(small_config()).parse_args(arguments.split())
    assert e.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_help_shows_the_defaults_of_the_config():
    parser = argparse.ArgumentParser()
    add_options(parser, small_config(train={"batches": 4321}))
    assert "default 4321" in parser.format_help()


# ---- presets -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "preset"), ALL_PRESETS, ids=[f"{p.stem}-{name}" for p, name in ALL_PRESETS])
def test_every_preset_parses_and_survives_json(path, preset):
    config = read_preset(PRESETS, path.stem, preset, seed=3)
    assert (config.names["task"], config.preset, config.seed) == (path.stem, preset, 3)
    assert RunConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize("path", sorted(PRESETS.glob("*.toml")), ids=lambda p: p.stem)
def test_every_task_has_the_three_presets(path):
    assert {"cpu", "tiny", "paper"} <= set(tomllib.loads(path.read_text()))


def test_the_paper_preset_of_coloring_has_the_settings_of_appendix_b2():
    c = read_preset(PRESETS, "coloring", "paper")
    assert (c.model.width, c.model.heads, c.model.hidden, c.model.layers) == (512, 8, 512, 2)
    assert (c.model.low_steps, c.model.transitions, c.train.supervision_steps) == (4, 3, 16)
    assert (c.optim.lr, c.optim.weight_decay, c.optim.clip) == (1e-4, 1.0, 1.0)
    assert (c.train.batch, c.train.ema, c.train.balance) == (768, 0.9999, 0.8)
    assert (c.beta.start, c.beta.target) == (0.5, 0.0)  # beta is constant
    assert (c.model.prefix, c.model.truncated, c.train.augment) == (16, True, False)
    assert (c.task.vertices, c.task.layout, c.task.train, c.task.test) == (8, "edge", 7002, 255)
    assert (c.prior.hidden, c.guide.hidden, c.evaluate.num_samples) == (512, 512, 20)


def test_the_paper_preset_of_coloring_has_the_papers_size():
    task = {"train": 20, "validation": 4, "test": 4}
    config = read_preset(PRESETS, "coloring", "paper")
    solver = build(with_options(config, {f"task.{k}": v for k, v in task.items()}))
    assert (solver.task.spec.input_length, solver.task.spec.output_length) == (28 + 8, 8)
    parameters = [*solver.model.parameters(), *solver.guide.parameters()]
    assert sum(p.numel() for p in parameters) == pytest.approx(10e6, rel=0.2)  # the paper says "about 10 M"


def test_an_unknown_preset_or_task_lists_the_known_ones():
    with pytest.raises(
        ConfigError,
        match="unknown preset 'huge' for coloring; known: cpu, positions, cpu10, lattice, lattice10, lattice-sizes, ",
    ):
        read_preset(PRESETS, "coloring", "huge")
    with pytest.raises(ConfigError, match="unknown task 'chess'; known: .*coloring"):
        read_preset(PRESETS, "chess", "cpu")


def test_a_preset_with_an_unknown_field_is_an_error(tmp_path):
    (tmp_path / "coloring.toml").write_text("[cpu.train]\nbatchs = 3\n")
    with pytest.raises(ConfigError, match="unknown setting train.batchs"):
        read_preset(tmp_path, "coloring", "cpu")


def test_another_guide_keeps_the_fields_of_the_preset_that_it_shares():
    config = read_preset(PRESETS, "coloring", "tiny", names={"guide": "replay", "model": None})
    assert config.names["guide"] == "replay"
    assert config.guide.hidden == 32


def preset_with(task="nqueens", preset="cpu", **names):
    return read_preset(PRESETS, task, preset, names=names)


@pytest.mark.parametrize("model", MODELS.names())
def test_every_model_fits_the_presets_of_every_task_with_the_updates_of_gram(model):
    for task, preset in [(path.stem, name) for path, name in ALL_PRESETS if name in ("cpu", "tiny")]:
        config = preset_with(task, preset, model=model)
        check_parts(config)
        assert config.names["model"] == model
        if model != "gram":
            assert config.names["guide"] == model_traits(MODELS.get(model)).default_parts.get("guide", "amortized")
        gram_config = preset_with(task, preset)
        assert config.model.width == gram_config.model.width
        updates = 1 if config.train.act else config.train.supervision_steps
        expected = gram_config.train.supervision_steps * gram_config.train.batches
        assert updates * config.train.batches == pytest.approx(expected, abs=updates)


@pytest.mark.parametrize("prior", PRIORS.names())
def test_every_prior_fits_a_preset(prior):
    config = preset_with(prior=prior, **({"model": "lattice"} if prior == "decisions" else {}))
    check_parts(config)
    assert config.names["guide"] == {"none": "prior", "decisions": "reveal"}.get(prior, "amortized")
    if prior != "gaussian":
        assert config.temper.transitions == 0  # the preset's tempering is for the gaussian prior


@pytest.mark.parametrize("guide", GUIDES.names())
def test_every_guide_fits_a_preset(guide):
    is_reveal = guide == "reveal"
    config = preset_with(guide=guide, **({"model": "lattice"} if is_reveal else {}))
    check_parts(config)
    assert config.temper.transitions == (0 if is_reveal else 2)
    assert config.train.augment == (guide != "mean_field")


def test_parts_that_the_user_names_replace_the_defaults_of_a_model():
    config = preset_with(model="looped", prior="gaussian", guide="additive")
    assert (config.names["prior"], config.names["guide"]) == ("gaussian", "additive")
    assert preset_with(model="vae", prior="gaussian").names["guide"] == "amortized"
    with pytest.raises(ConfigError, match="leaves nothing to infer"):
        check_parts(preset_with(prior="none", guide="amortized"))


def test_settings_override_fields_of_a_config():
    config = make_run_config(DEFAULT_NAMES, {})
    changed_config = with_settings(config, {"train": {"batch": 3}, "beta": {"silent_fraction": 0.5}})
    assert (changed_config.train.batch, changed_config.beta.silent_fraction) == (3, 0.5)
    assert changed_config.train.minutes == config.train.minutes
    assert with_settings(config, {}) == config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"trian": {"batch": 3}}, "unknown part 'trian'"),
        ({"seed": {"x": 3}}, "unknown part 'seed'"),
        ({"names": {"model": "x"}}, "unknown part 'names'"),
        ({"train": 3}, "settings of 'train' must be a table"),
        ({"train": {"batches_": 3}}, "train.batches_"),
        ({"train": {"batch": "3"}}, "train.batch must be int"),
    ],
)
def test_errors_name_wrong_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        with_settings(make_run_config(DEFAULT_NAMES, {}), settings)
