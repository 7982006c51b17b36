"""Nothing stays on the CPU that a model on another device needs: tried without one, on ``tests.fake_device``'s."""

import json
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from experiments import diagnose, run, solve
from experiments.scaling import scaling
from pyro_gram.sampling.rollout import rollout
from pyro_gram.training.trainer import Trainer
from tests.conftest import build_small, program_names
from tests.experiments.test_run import SMALL, cli
from tests.fake_device import FakeDeviceTensor, fake_device

LONGER = ["--train.batches", 6, "--train.on_policy_depth", 4, "--train.on_policy_after", 0.5]


def trained(device, **names):
    """What two batches report, the samples after them, and the trained weights, on the CPU."""
    assembly = build_small(**names)
    model, guide, config = assembly.model.to(device), assembly.guide.to(device), assembly.config
    x, y = assembly.task.split("train").sample_pairs(4, torch.Generator().manual_seed(0))
    trainer = Trainer(model, guide, lambda _: (x, y), config.train, config.optim, config.beta)
    reports = [trainer.one_batch(x, y) for _ in range(2)]
    rolled = rollout(model, None if x is None else x.to(device), num_samples=3, depth=2, seed=2)
    return [(r.reconstruction, r.kl) for r in reports], rolled, dict(model.named_parameters())


def each_part():
    """Every prior and guide with GRAM's own, every model on one task, and GRAM on every task."""
    one = [
        p for p in program_names() if len(p) == 2 and {"gaussian", "amortized", "gram", "coloring"} & set(p.values())
    ]
    return [p for p in one if p.get("task_name", "coloring") == "coloring" or p["model_name"] == "gram"]


@pytest.mark.parametrize("names", each_part(), ids=lambda names: "-".join(names.values()))
def test_every_program_trains_and_samples_where_its_model_is(names):
    near, answers, _ = trained("cpu", **names)
    with fake_device() as device:
        torch.manual_seed(0)
        far, away, far_weights = trained(device, **names)
        assert all(isinstance(w.data, FakeDeviceTensor) for w in far_weights.values())
        assert isinstance(away.tokens, FakeDeviceTensor)
        for there, here in zip(far, near, strict=True):
            assert there == pytest.approx(here, rel=1e-3, abs=1e-4)
        assert (away.tokens.cpu() == answers.tokens).double().mean() > 0.9


def test_that_device_refuses_what_a_real_one_would():
    with fake_device() as device:
        far, near = torch.ones(3, device=device), torch.ones(3)
        assert (far + 1 + near[0]).tolist() == [3, 3, 3]
        assert far[near.long()].tolist() == [1, 1, 1]
        assert near.copy_(2 * far).tolist() == [2, 2, 2]
        for mistake in (
            lambda: far + near,
            lambda: near[far.long()],
            lambda: torch.stack((far, near)),
            lambda: torch.normal(far, far, generator=torch.Generator()),
        ):
            with pytest.raises(RuntimeError, match="CPU"):
                mistake()
        with pytest.raises(TypeError, match="CPU"):
            np.asarray(far)
        for mistake in (far.double, lambda: torch.ones(2, dtype=torch.float64, device=device)):
            with pytest.raises(TypeError, match=r"no torch.float64, as MPS has none"):
                mistake()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run whose every part was on that device: heads, on-policy updates, bounds, measures."""
    out = tmp_path_factory.mktemp("far") / "run"
    with fake_device(run) as device:
        assert cli(run.main, *SMALL, "--out", out, *LONGER, "--device", device) == 0
    return out


def test_a_run_measures_what_it_would_on_the_cpu(made, tmp_path):
    assert cli(run.main, *SMALL, "--out", tmp_path, *LONGER) == 0
    found, wanted = (json.loads((p / "results.json").read_text())["metrics"] for p in (made, tmp_path))
    for name in ("elbo_full", "kl", "sample_accuracy", "log_likelihood_prior_mc"):
        assert found[name] == pytest.approx(wanted[name], rel=0.02, abs=0.02), name


def test_puzzles_are_solved_there(made, tmp_path, capsys):
    (tmp_path / "graphs").write_text("CF\nCr\n")
    words = ["--checkpoint", made, "--input", tmp_path / "graphs", "--num-samples", 6, "--draws", "sobol", "--json"]
    told = []
    for somewhere in (fake_device(solve), nullcontext("cpu")):
        with somewhere as device:
            assert cli(solve.main, *words, "--device", device) == 0
        answers = [json.loads(line)["solutions"] for line in capsys.readouterr().out.splitlines()]
        told.append([(one["solution"], one["count"]) for found in answers for one in found])
    assert told[0] == told[1]


def test_a_checkpoint_is_examined_there(made, tmp_path):
    with fake_device(diagnose, scaling) as device:
        words = ["--checkpoint", made, "--device", device, "--depth", 2]
        assert cli(scaling.main, *words, "--out", tmp_path, "--seeds", 1, "--inputs", 2) == 0
        assert cli(diagnose.main, *words, "--out", tmp_path / "diagnosis", "--inputs", 4) == 0
    assert (tmp_path / "diagnosis" / "report.html").exists()
