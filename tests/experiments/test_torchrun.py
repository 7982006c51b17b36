"""Test runs that torchrun starts in two processes."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import experiments.run
from pyro_gram.runs.run import lock_directory
from tests.conftest import ROOT
from tests.experiments.small_run import SMALL, cli, results, rows

OPTIONS = ["--train.evaluate_every", "2", "--train.on_policy_depth", "4", "--train.on_policy_updates", "2"]


def torchrun(out, *options, restarts=0):
    return launch("run.py", *SMALL, *OPTIONS, "--out", out, *options, folder=out.parent, restarts=restarts)


def launch(program, *options, folder, restarts=0):
    script = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    script += [f"--max-restarts={restarts}", str(ROOT / "experiments" / program)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [*script, *map(str, options)],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(process):
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def are_close(a, b, tolerance=1e-3):
    return all(torch.allclose(a[k].float(), b[k].float(), atol=tolerance, rtol=tolerance) for k in a)


@pytest.mark.slow
def test_two_processes_without_draws_train_and_measure_as_one_does_and_one_resumes_their_run(tmp_path):
    two_process_run, one_process_run = tmp_path / "shared", tmp_path / "single"
    pairs = zip(SMALL[::2], SMALL[1::2], strict=True)
    sizes = [word for pair in pairs if pair[0] not in ("--prior.hidden", "--guide.hidden") for word in pair]
    options = (*sizes, "--train.evaluate_every", 2, "--prior", "none", "--guide", "prior")
    code, out, err = wait_for(
        launch("run.py", *options, "--train.batches", 4, "--out", two_process_run, folder=tmp_path)
    )
    assert code == 0, err
    assert out.count("held-out inputs") == 1  # only the main process prints and writes
    assert cli(experiments.run.main, *options, "--train.batches", 4, "--out", one_process_run) == 0
    weights = [load_file(o / "state.safetensors") for o in (two_process_run, one_process_run)]
    assert weights[0].keys() == weights[1].keys()
    assert are_close(*weights)
    for a, b in zip(rows(two_process_run), rows(one_process_run), strict=True):
        for name in ("reconstruction", "kl", "beta"):
            assert a[name] == pytest.approx(b[name], rel=1e-3, abs=1e-4)
    assert results(two_process_run)["metrics"]["coverage"] == results(one_process_run)["metrics"]["coverage"]
    assert results(two_process_run)["processes"] == 2
    for out in (two_process_run, one_process_run):
        assert cli(experiments.run.main, *options, "--train.batches", 5, "--out", out, "--resume") == 0
    assert are_close(*(load_file(o / "state.safetensors") for o in (two_process_run, one_process_run)))


TRAIN = """
import torch
from safetensors.torch import save_file
from pyro_gram.build import build
from pyro_gram.system.distributed import leave, start
from pyro_gram.tasks.batches import TargetStream
from pyro_gram.training.loop import train_batches
from pyro_gram.training.trainer import Trainer
from tests.conftest import small_config

processes, _ = start(torch.device("cpu"))
config = small_config(CHANGES)
solver = build(config)
batch, is_grouped = config.train.batch, not config.train.act
stream = TargetStream(solver.task, solver.task.split("train"), batch, config.seed, group=is_grouped)
trainer = Trainer(
    solver.model, solver.guide, stream, config.train, config.optim, config.beta, config.seed, processes
)
losses = torch.tensor([report.loss for report in train_batches(trainer)])
torch.manual_seed(0)
trainer._seed_draws()
state = trainer.state_dict()
tensors = {**state["weights"], **{name: tensor.contiguous() for name, tensor in state["carry"].items()}}
save_file({**tensors, "losses": losses, "draws": torch.rand(8)}, f"{processes.rank}.safetensors")
leave(0)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        'train={"on_policy_depth": 4, "on_policy_after": 0.5}',
        'model_name="lattice", task_name="nqueens"',  # the processes share trajectories and their solutions
    ],
)
def test_two_processes_have_equal_weights_and_different_draws(changes, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(TRAIN.replace("CHANGES", changes))
    code, _, err = wait_for(launch(script, folder=tmp_path))
    assert code == 0, err
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in range(2))
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == ["draws"]


@pytest.mark.slow
def test_two_processes_agree_on_how_many_batches_fit_into_their_minutes(tmp_path):
    options = ("--train.batches", 100000, "--train.minutes", 0.05, "--train.evaluate_every", 100000)
    code, _, err = wait_for(torchrun(tmp_path / "run", *options))
    assert code == 0, err
    num_batches = results(tmp_path / "run")["batches"]
    assert err.count(f"this machine trains {num_batches:,} of 100,000 batches in 0.05 minutes") == 1
    assert len(rows(tmp_path / "run")) == num_batches
    assert any("on_policy" in row for row in rows(tmp_path / "run"))


@pytest.mark.slow
def test_a_batch_that_cannot_be_shared_is_refused_before_training(tmp_path):
    code, _, err = wait_for(torchrun(tmp_path / "run", "--train.batches", 1, "--train.batch", 5))
    assert code != 0
    assert "a batch of 5 cannot be shared by 2 processes" in err
    assert not (tmp_path / "run").exists()


def rank_of(pid):
    """Return the rank of a process, from its environment in /proc; None if RANK is not set."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as f:
            environment = dict(pair.split(b"=", 1) for pair in f.read().split(b"\0") if b"=" in pair)
    except OSError:
        return None
    return environment.get(b"RANK")


def workers(agent):
    """Return the ranks and ids of the processes that torchrun has started."""
    with open(f"/proc/{agent}/task/{agent}/children") as f:
        return {rank_of(pid): int(pid) for pid in f.read().split()}


def wait_for_batches(process, out, count):
    """Wait until a run has ``count`` lines in its log."""
    deadline, log = time.monotonic() + 90, out / "metrics.jsonl"
    while not (log.exists() and len(log.read_text().splitlines()) >= count):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="looks for the processes in /proc")
def test_a_signal_to_all_processes_saves_the_state_and_a_restart_resumes_only_its_own_run(tmp_path):
    out, options = tmp_path / "run", ("--train.batches", 400, "--train.evaluate_every", 500)
    process = torchrun(out, *options)
    try:
        wait_for_batches(process, out, 3)
        for pid in (*workers(process.pid).values(), process.pid):
            os.kill(pid, signal.SIGTERM)  # a scheduler signals all; torchrun then signals its processes again
        code, _, err = wait_for(process)
    finally:
        process.kill()
    assert code != 0
    assert "stopped by signal 15" in err
    with safe_open(out / "state.safetensors", framework="pt") as f:
        number = json.loads(f.metadata()["pyro_gram"])["state"]["progress"]["number"]
    assert number == len(rows(out)) >= 3
    before = (out / "state.safetensors").read_bytes()
    code, _, err = wait_for(torchrun(out, *options, restarts=1))
    assert code != 0
    assert err.count("holds a run already") == 2  # the first start and the restart are both refused
    assert (out / "state.safetensors").read_bytes() == before


@pytest.mark.slow
def test_a_divergence_of_two_processes_is_saved(tmp_path):
    out = tmp_path / "run"
    code, _, err = wait_for(torchrun(out, "--train.batches", 4, "--optim.lr", 1e30))
    assert code != 0
    assert "diverged.json describes it" in err
    assert json.loads((out / "diverged.json").read_text())["batch"] < 4
    assert load_file(out / "diverged.safetensors")


@pytest.mark.slow
def test_a_cell_that_one_process_cannot_write_ends_the_table_of_two(tmp_path):
    options = ["--table", "3b", "--preset", "tiny", "--minutes", "0.02", "--runs", str(tmp_path)]
    cells = [f"tiny-nqueens8-{row}-seed0" for row in ("gram", "direct32")]
    lock = lock_directory(tmp_path / cells[0])
    try:
        code, _, err = wait_for(launch("table.py", *options, "--cell", *cells, folder=tmp_path))
    finally:
        lock.release()
    assert code != 0
    assert "another run is writing to" in err
    assert not list(tmp_path.glob("*/results.json"))


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="looks for the processes in /proc")
def test_a_run_restarted_after_a_process_died_ends_like_an_unbroken_one(tmp_path):
    options = ("--train.batches", 24, "--train.evaluate_every", 100, "--train.save_seconds", 0)
    unbroken_run, killed_run = tmp_path / "whole", tmp_path / "broken"
    code, _, err = wait_for(torchrun(unbroken_run, *options))
    assert code == 0, err
    process = torchrun(killed_run, *options, restarts=1)
    try:
        wait_for_batches(process, killed_run, 6)
        os.kill(workers(process.pid)[b"1"], signal.SIGKILL)
        code, _, err = wait_for(process)
    finally:
        process.kill()
    assert code == 0, err
    assert "the processes of this run cannot exchange tensors" in err or "Signal 9" in err
    first, second = (load_file(o / "state.safetensors") for o in (unbroken_run, killed_run))
    assert all(torch.equal(first[k], second[k]) for k in first)  # the states are equal bit for bit
    logs = [[{k: v for k, v in row.items() if k != "seconds"} for row in rows(o)] for o in (unbroken_run, killed_run)]
    assert logs[0] == logs[1]
    assert json.loads((killed_run / "results.json").read_text())["batches"] == 24
