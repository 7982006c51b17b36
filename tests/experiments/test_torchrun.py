"""Several processes on one run, as torchrun starts them."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import ROOT
from tests.experiments.test_run import SMALL, results, rows, run

WORDS = ["--train.evaluate_every", "2", "--train.on_policy", "4", "--train.on_policy_updates", "2"]


def torchrun(out, *words, restarts=0):
    script = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    script += [f"--max-restarts={restarts}", str(ROOT / "experiments" / "run.py")]
    words = [*SMALL, *WORDS, "--out", out, *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [*script, *map(str, words)],
        cwd=out.parent,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process):
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def close(a, b, tolerance=1e-3):
    return all(torch.allclose(a[k].float(), b[k].float(), atol=tolerance, rtol=tolerance) for k in a)


def test_two_processes_train_and_measure_as_one_does_and_one_goes_on_where_they_stopped(tmp_path):
    shared, alone = tmp_path / "shared", tmp_path / "alone"
    code, out, err = ended(torchrun(shared, "--train.batches", 4))
    assert code == 0, err
    assert out.count("held-out inputs") == 1  # one of them talks, and one writes
    assert run(alone, *WORDS, "--train.batches", 4) == 0
    weights = [load_file(o / "state.safetensors") for o in (shared, alone)]
    assert weights[0].keys() == weights[1].keys()
    assert close(*weights)
    for a, b in zip(rows(shared), rows(alone), strict=True):
        for name in ("reconstruction", "kl", "beta", *(["on_policy"] if "on_policy" in a else [])):
            assert a[name] == pytest.approx(b[name], rel=1e-3, abs=1e-4)
    assert results(shared)["metrics"]["coverage"] == results(alone)["metrics"]["coverage"]
    assert results(shared)["processes"] == 2
    for out in (shared, alone):
        assert run(out, *WORDS, "--train.batches", 5, "--resume") == 0
    assert close(*(load_file(o / "state.safetensors") for o in (shared, alone)))


def test_a_batch_that_cannot_be_shared_is_refused_before_training(tmp_path):
    code, _, err = ended(torchrun(tmp_path / "run", "--train.batches", 1, "--train.batch", 5))
    assert code != 0
    assert "a batch of 5 cannot be shared by 2 processes" in err
    assert not (tmp_path / "run").exists()


def rank_of(pid):
    """The rank of a process, None for one that has none."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as f:
            held = dict(pair.split(b"=", 1) for pair in f.read().split(b"\0") if b"=" in pair)
    except OSError:
        return None
    return held.get(b"RANK")


def workers(agent):
    """Ranks and process ids of what torchrun has started."""
    with open(f"/proc/{agent}/task/{agent}/children") as f:
        return {rank_of(pid): int(pid) for pid in f.read().split()}


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="looks for the processes in /proc")
def test_a_process_that_dies_ends_the_run_which_goes_on_from_its_checkpoint(tmp_path):
    words = ("--train.batches", 24, "--train.minutes", 0, "--train.evaluate_every", 100, "--train.save_seconds", 0)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    code, _, err = ended(torchrun(whole, *words))
    assert code == 0, err
    process = torchrun(broken, *words, restarts=1)
    try:
        deadline = time.monotonic() + 90
        log = broken / "metrics.jsonl"
        while not (log.exists() and len(log.read_text().splitlines()) > 5):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(workers(process.pid)[b"1"], signal.SIGKILL)
        code, _, err = ended(process)
    finally:
        process.kill()
    assert code == 0, err
    assert "the processes of this run cannot exchange tensors" in err or "Signal 9" in err
    first, second = (load_file(o / "state.safetensors") for o in (whole, broken))
    assert all(torch.equal(first[k], second[k]) for k in first)  # bit for bit
    kept = [[{k: v for k, v in row.items() if k != "seconds"} for row in rows(o)] for o in (whole, broken)]
    assert kept[0] == kept[1]
    assert json.loads((broken / "results.json").read_text())["batches"] == 24
