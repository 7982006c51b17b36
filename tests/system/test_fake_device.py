"""Training and sampling on a fake device show that every tensor is on the device of its model."""

import json

import numpy as np
import pytest
import torch

from experiments import diagnose, run, solve
from experiments.scaling import scaling
from pyro_gram.sampling.rollout import rollout
from pyro_gram.training.trainer import Trainer
from tests.conftest import build_small, covering_program_names
from tests.experiments.small_run import SMALL, cli
from tests.fake_device import FakeDeviceTensor, fake_device
from tests.training.test_trainer import make_trainer

SIZES = [
    "--model.low_steps",
    1,
    "--heads.rounds",
    1,
    "--evaluate.num_samples",
    2,
    "--evaluate.inputs",
    2,
    "--train.batches",
    4,
]
ON_POLICY = ["--train.on_policy_depth", 2, "--train.on_policy_updates", 1, "--train.on_policy_after", 0.5]


def train_and_sample(device, **names):
    """Train on two batches, then sample. Return (reconstruction, KL) of each batch, the samples and the weights."""
    is_lattice = names.get("model_name") == "lattice"  # it makes one supervision step in each update in any case
    solver = build_small(**names, train={} if is_lattice else {"supervision_steps": 1})
    model, guide, config = solver.model.to(device), solver.guide.to(device), solver.config
    x, y = solver.task.split("train").sample_pairs(4, torch.Generator().manual_seed(0))
    trainer = Trainer(model, guide, lambda _: (x, y), config.train, config.optim, config.beta)
    reports = [trainer.train_batch(x, y) for _ in range(2)]
    samples = rollout(model, None if x is None else x.to(device), num_samples=2, depth=1, seed=2)
    return [(r.reconstruction, r.kl) for r in reports], samples, dict(model.named_parameters())


@pytest.mark.parametrize("names", covering_program_names(), ids=lambda names: "-".join(names.values()))
def test_every_part_trains_and_samples_on_the_device_of_its_model(names):
    cpu_reports, cpu_samples, _ = train_and_sample("cpu", **names)
    with fake_device() as device:
        torch.manual_seed(0)
        reports, samples, weights = train_and_sample(device, **names)
        assert all(isinstance(w.data, FakeDeviceTensor) for w in weights.values())
        assert isinstance(samples.tokens, FakeDeviceTensor)
        for report, cpu_report in zip(reports, cpu_reports, strict=True):
            assert report == pytest.approx(cpu_report, rel=1e-3, abs=1e-4)
        assert (samples.tokens.cpu() == cpu_samples.tokens).double().mean() > 0.9


def test_exact_targets_are_computed_on_the_device():
    with fake_device() as device:
        solver = build_small(model_name="lattice", task_name="nqueens")
        solver.model.to(device), solver.guide.to(device)
        trainer = make_trainer(solver)
        for number in range(4):
            trainer.train_batch(*trainer.batches(number))
        assert isinstance(trainer.carry.candidates.solutions, FakeDeviceTensor)
        assert isinstance(trainer.carry.state.h, FakeDeviceTensor)


def test_the_fake_device_refuses_the_same_operations_as_a_real_one():
    with fake_device() as device:
        tensor, cpu_tensor = torch.ones(3, device=device), torch.ones(3)
        assert (tensor + 1 + cpu_tensor[0]).tolist() == [3, 3, 3]
        assert tensor[cpu_tensor.long()].tolist() == [1, 1, 1]
        assert cpu_tensor.copy_(2 * tensor).tolist() == [2, 2, 2]
        for mistake in (
            lambda: tensor + cpu_tensor,
            lambda: cpu_tensor[tensor.long()],
            lambda: torch.stack((tensor, cpu_tensor)),
            lambda: torch.normal(tensor, tensor, generator=torch.Generator()),
        ):
            with pytest.raises(RuntimeError, match="CPU"):
                mistake()
        with pytest.raises(TypeError, match="CPU"):
            np.asarray(tensor)
        for mistake in (tensor.double, lambda: torch.ones(2, dtype=torch.float64, device=device)):
            with pytest.raises(TypeError, match=r"no torch.float64, as MPS has none"):
                mistake()


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory):
    """Make a run on the fake device, with on-policy updates and heads, and return its directory."""
    folder = tmp_path_factory.mktemp("fake_device") / "run"
    with fake_device(run) as device:
        assert cli(run.main, *SMALL, *SIZES, "--out", folder, *ON_POLICY, "--device", device) == 0
    return folder


@pytest.mark.slow
def test_a_run_measures_the_same_as_on_the_cpu(run_directory, tmp_path):
    assert cli(run.main, *SMALL, *SIZES, "--out", tmp_path, *ON_POLICY) == 0
    metrics, cpu_metrics = (json.loads((p / "results.json").read_text())["metrics"] for p in (run_directory, tmp_path))
    for name in ("elbo_full", "kl", "sample_accuracy", "log_likelihood_prior_mc"):
        assert metrics[name] == pytest.approx(cpu_metrics[name], rel=0.02, abs=0.02), name


@pytest.mark.slow
def test_puzzles_have_the_same_answers_as_on_the_cpu(run_directory, tmp_path, capsys):
    (tmp_path / "graphs").write_text("CF\nCr\n")
    arguments = [
        "--checkpoint",
        run_directory,
        "--input",
        tmp_path / "graphs",
        "--num-samples",
        6,
        "--draws",
        "sobol",
        "--json",
    ]

    def solutions(device):
        assert cli(solve.main, *arguments, "--device", device) == 0
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        return [[(s["solution"], s["count"]) for s in line["solutions"]] for line in lines]

    with fake_device(solve) as device:
        answers = solutions(device)
    assert answers == solutions("cpu")


@pytest.mark.slow
def test_a_checkpoint_is_diagnosed_on_the_device(run_directory, tmp_path):
    with fake_device(diagnose, scaling) as device:
        arguments = ["--checkpoint", run_directory, "--device", device, "--depth", 1]
        assert cli(scaling.main, *arguments, "--out", tmp_path, "--seeds", 1, "--inputs", 2) == 0
        assert cli(diagnose.main, *arguments, "--out", tmp_path / "diagnosis", "--inputs", 2) == 0
    assert (tmp_path / "diagnosis" / "report.html").exists()


@pytest.mark.slow
def test_graphs_of_several_sizes_are_diagnosed_on_the_device(tmp_path):
    sizes = ["--task.layout", "graph", "--task.vertices", 6, "--task.min_vertices", 5, "--model.mixer", "relations"]
    sizes += ["--model.heads", 4, "--heads.attention_heads", 4]
    with fake_device(run, diagnose) as device:
        assert cli(run.main, *SMALL, *SIZES, *sizes, "--out", tmp_path / "run", "--device", device) == 0
        arguments = ["--checkpoint", tmp_path / "run", "--device", device, "--depth", 1, "--inputs", 2]
        assert cli(diagnose.main, *arguments, "--out", tmp_path / "diagnosis") == 0
    assert (tmp_path / "diagnosis" / "report.html").exists()
