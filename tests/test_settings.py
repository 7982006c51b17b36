"""Every option has a description, and an error about an unknown name suggests the nearest names."""

import dataclasses
import re
import tomllib

import pytest

import experiments.run
import experiments.solve
from pyro_gram.checks import check_choice, closest_names
from pyro_gram.config import FIXED_PARTS, REGISTRIES, RunConfig, from_fields, make_run_config
from pyro_gram.errors import ConfigError
from pyro_gram.options import add_options
from pyro_gram.presets import read_preset
from pyro_gram.system.cli import Parser, call, field_descriptions
from tests.conftest import DEFAULT_NAMES, ROOT

CONFIGS = {
    **{f"{part}-{name}": (part, r.get(name).Config) for part, r in REGISTRIES.items() for name in r.names()},
    **{part: (part, cls) for part, cls in FIXED_PARTS.items()},
}
FREE_TEXTS = {"files", "tasks", "train_file", "test_file"}  # settings that accept any text


def error_of(capsys, *arguments, main=experiments.run.main):
    """Return the only line on stderr of a program that refuses its arguments."""
    try:
        code = call(main, list(arguments))
    except SystemExit as e:
        code = e.code
    assert code == 2
    [line] = capsys.readouterr().err.splitlines()
    return line


# ---- descriptions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("part", "cls"), CONFIGS.values(), ids=CONFIGS)
def test_every_setting_has_a_description_that_names_its_choices(part, cls):
    descriptions = field_descriptions(cls)
    for field in dataclasses.fields(cls):
        text = descriptions[field.name]
        assert len(text.split()) >= 2, (field.name, text)
        assert not re.search(r"``|:\w+:`|\\", text)
        if field.type == "str" and field.name not in FREE_TEXTS:
            with pytest.raises(ConfigError) as e:
                from_fields(cls, {field.name: "no such word"}, part)
            choices = re.search(r"known: ([^;]*)", str(e.value))[1].split(", ")
            assert set(choices) <= set(re.findall(r"[\w/]+", text)), (field.name, text)


def test_every_documented_setting_exists():
    for _, cls in CONFIGS.values():
        assert field_descriptions(cls).keys() == {field.name for field in dataclasses.fields(cls)}, cls


@dataclasses.dataclass
class Base:
    """A base.

    Attributes:
        width: of the base.
        depth: of
            it all.
    """

    width: int = 1
    depth: int = 2


@dataclasses.dataclass
class Derived(Base):
    """A class whose docstring has a percent sign, markup, a colon in a description, and text after the section.

    Attributes:
        width: 50 % of :meth:`Base.width`, as ``wide`` says: a colon.
        low, high (int): at the ends.

    After the section.
    other: is no attribute.
    """

    low: int = 0
    high: int = 0
    undocumented: int = 0


@dataclasses.dataclass
class Undocumented:
    width: int = 7


def test_descriptions_are_read_from_a_class_and_its_bases():
    assert field_descriptions(Derived) == {
        "width": "50 % of Base.width, as wide says: a colon",
        "depth": "of it all",
        "low": "at the ends",
        "high": "at the ends",
    }
    assert field_descriptions(Undocumented) == {}


def help_of(config):
    parser = Parser("prog")
    add_options(parser, RunConfig({}, {"part": config}))
    return " ".join(parser.format_help().split())


def test_help_shows_the_description_of_a_setting_and_its_default():
    text = help_of(Derived())
    assert "--part.width INT 50 % of Base.width, as wide says: a colon (default 1)" in text
    assert "--part.undocumented INT default 0" in text
    assert "--part.width INT default 7" in help_of(Undocumented())


@pytest.mark.parametrize("task", REGISTRIES["task"].names())
def test_the_help_of_a_task_explains_its_settings_and_lists_names(task, capsys):
    with pytest.raises(SystemExit) as e:
        experiments.run.main(["--task", task, "--help"])
    assert e.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "the reconstruction that is compared with the target: the mean over supervision steps" in text
    assert field_descriptions(REGISTRIES["task"].get(task).Config)["data_seed"] in text
    for part, registry in REGISTRIES.items():
        assert ", ".join(registry.names()) in text, part


# ---- suggestions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "sudoku", "--size", "6"], "did you mean --task.size? (see run.py --task sudoku --help)"),
        (["--task", "sudoku", "--size=6"], "did you mean --task.size? (see run.py --task sudoku --help)"),
        (["--task", "coloring", "--task.vertexes", "6"], "did you mean --task.vertices? (see"),
        (["--task", "coloring", "--batchs", "6"], "did you mean --train.batches or --train.batch? (see"),
        (["--task", "coloring", "--trian.batches", "6"], "did you mean --train.batches? (see"),
        (["--task", "coloring", "--modle", "trm"], "did you mean --model? (see run.py --task coloring --help)"),
        (["--tsak", "coloring"], "required: --task; did you mean --task? (see run.py --help)"),
        (
            ["--task", "coloring", "--model", "trm", "--preset", "tiny", "--model.decodin", "x"],
            "did you mean --model.decoding? (see run.py --task coloring --preset tiny --model trm --help)",
        ),
        (
            ["--task", "sudoku", "--task.vertices", "6"],
            "--task.vertices belongs to the task coloring, and this run's task is sudoku (see run.py --task coloring "
            "--help)",
        ),
        (
            ["--task", "coloring", "--size", "6"],
            "did you mean --task.size? It belongs to the tasks latin, nqueens, sudoku and sudoku_uncond, and this "
            "run's task is coloring (see run.py --task latin --help)",
        ),
        (
            ["--task", "coloring", "--model.decoding", "mode"],
            "belongs to the model trm, and this run's model is gram (see run.py --task coloring --model trm --help)",
        ),
    ],
)
def test_an_unknown_option_suggests_the_nearest(arguments, message, capsys):
    assert message in error_of(capsys, *arguments)


def test_nothing_is_suggested_if_no_name_is_close(capsys):
    line = error_of(capsys, "--task", "coloring", "--zzz", "3")
    assert line == "run.py: error: unrecognized arguments: --zzz 3 (see run.py --task coloring --help)"


def test_other_programs_suggest_too(capsys):
    line = error_of(capsys, "--checkpoint", "x", "--samples", "3", main=experiments.solve.main)
    assert line.endswith("did you mean --num-samples? (see solve.py --help)")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "colouring"], "did you mean coloring?"),
        (["--task", "coloring", "--preset", "tyny"], "did you mean tiny?"),
        (["--task", "coloring", "--model", "autoregresive"], "did you mean autoregressive?"),
        (["--task", "coloring", "--prior", "gausian"], "did you mean gaussian?"),
        (["--task", "coloring", "--guide", "amortised"], "did you mean amortized?"),
        (["--task", "coloring", "--beta.watch", "lst"], "known: mean, last; did you mean last?"),
    ],
)
def test_an_unknown_name_suggests_the_nearest(arguments, message, capsys):
    assert error_of(capsys, *arguments).endswith(message)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train": {"batchs": 3}}, "did you mean train.batches or train.batch? (see run.py --task NAME --help)"),
        ({"trian": {"batches": 3}}, "did you mean train?"),
        (
            {"task": {"size": 6}},
            "it belongs to the tasks latin, nqueens, sudoku and sudoku_uncond (see run.py --task latin",
        ),
        ({"model": {"decoding": "mode"}}, "it belongs to the model trm (see run.py --task NAME --model trm --help)"),
    ],
)
def test_an_unknown_setting_suggests_the_nearest(settings, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        make_run_config(DEFAULT_NAMES, settings)


def test_an_unknown_setting_of_a_preset_suggests_the_nearest(tmp_path):
    (tmp_path / "coloring.toml").write_text("[cpu.task]\nvertexes = 4\n")
    with pytest.raises(ConfigError, match=re.escape("did you mean task.vertices? (see run.py --task NAME --help)")):
        read_preset(tmp_path, "coloring", "cpu")


def test_the_nearest_names_come_first_and_distant_ones_are_left_out():
    assert closest_names("--batchs", ["--train.batch", "--train.batches", "--seed"]) == [
        "--train.batches",
        "--train.batch",
    ]
    assert closest_names("--model.hiden", ["--model.hidden", "--prior.hidden"]) == ["--model.hidden"]
    assert closest_names("chess", ["coloring", "nqueens"]) == []
    with pytest.raises(ConfigError, match=r"known: a, b$"):
        check_choice("letter", "zebra", ("a", "b"))


def test_every_task_has_presets():
    stems = {p.stem for p in (ROOT / "experiments" / "presets").glob("*.toml") if tomllib.loads(p.read_text())}
    assert stems == set(REGISTRIES["task"].names())
