"""Test the study ``no_noise.py`` with committed checkpoints on a few inputs."""

import pytest

import pyro_gram
from experiments.studies import no_noise
from pyro_gram.sampling.rollout import rollout
from pyro_gram.sampling.steps import to_device_of
from pyro_gram.sampling.tempering import AtMean
from pyro_gram.system.cli import call
from pyro_gram.system.files import read_json


def test_without_noise_every_input_has_one_answer_which_is_measured(tmp_path):
    out = tmp_path / "no_noise.json"
    for name in ("coloring", "sudoku"):  # the second result is added to the file with the first
        assert call(no_noise.main, ["--checkpoints", name, "--inputs", "6", "--out", str(out)]) == 0
    assert list(read_json(out)) == ["coloring", "sudoku"]
    for name, study in read_json(out).items():
        solver = pyro_gram.load(name)
        x = solver.task.split("test").inputs[:6]
        with AtMean():
            samples = rollout(
                solver.model,
                to_device_of(solver.model, x),
                num_samples=2,
                depth=solver.config.depth,
                seed=7,
                temper=solver.config.temper,
            )
        assert (samples.tokens == samples.tokens[:1]).all()  # without noise all trajectories are the same
        assert study["accuracy"] == pytest.approx(solver.task.is_valid(x, samples.tokens[0]).double().mean().item())
        assert study["num_inputs"] == 6
        assert study["interval"][0] < study["accuracy"] <= study["interval"][1] + 1e-9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--checkpoints", "chess"], "no checkpoint at chess"),
        (["--inputs", "0"], "--inputs must be at least 1, not 0"),
    ],
)
def test_bad_arguments_end_in_one_line(options, message, tmp_path, capsys):
    assert call(no_noise.main, [*options, "--out", str(tmp_path / "no_noise.json")]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
