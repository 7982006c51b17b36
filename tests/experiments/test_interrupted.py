"""Test that runs resume after a stop, a kill, a divergence or a full disk, and that a run locks its directory."""

import errno
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace

import pytest
from safetensors.torch import load_file

from experiments.bench import survive
from pyro_gram.runs.run import lock_directory
from pyro_gram.training.divergence import DivergenceCheck
from tests.conftest import ROOT
from tests.experiments.small_run import SMALL, cli, rows, run


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_outside_training_is_one_line(number, tmp_path, monkeypatch, capsys):
    def interrupt(*_, **__):
        os.kill(os.getpid(), number)
        time.sleep(5)

    before, old_handler = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    monkeypatch.setattr("pyro_gram.runs.evaluate.evaluate", interrupt)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have made this process ignore SIGINT
    try:
        assert run(tmp_path, "--train.batches", 1) == 128 + number
    finally:
        signal.signal(signal.SIGINT, old_handler)
    assert signal.getsignal(signal.SIGTERM) is before
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .startswith("interrupted after training; to continue, run the same command with --resume")
    )


def test_sigterm_saves_the_state_and_exits_with_143_and_the_run_can_be_resumed(tmp_path, train):
    out = tmp_path / "run"
    options = [*SMALL, "--out", str(out), "--train.batches", "1000000", "--train.evaluate_every", "1000000"]
    script = [sys.executable, str(ROOT / "experiments" / "run.py"), *options]
    process = subprocess.Popen(script, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while not ((out / "metrics.jsonl").exists() and len((out / "metrics.jsonl").read_text().splitlines()) > 2):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 143
    assert err.splitlines()[-1] == f"stopped by signal 15; to continue, run the same command with --resume --out {out}"
    assert "Traceback" not in err
    assert not (out / "results.json").exists()
    num_batches = len(rows(out))
    assert train(out, "--resume", "--train.batches", num_batches + 1) == 0
    assert [row["batch"] for row in rows(out)] == list(range(num_batches + 1))


def test_a_second_run_in_one_directory_is_refused_while_the_first_is_running(tmp_path, train, capsys):
    out = tmp_path / "run"
    lock = lock_directory(out)
    try:
        assert run(out, "--train.batches", 1) == 2
        err = capsys.readouterr().err
        assert f"another run is writing to {out}" in err
        assert len(err.splitlines()) == 1
        assert [p.name for p in out.iterdir()] == [".lock"]
    finally:
        lock.release()
    assert train(out, "--train.batches", 1) == 0


def test_a_diverging_run_keeps_its_saved_state_and_reports_the_update(tmp_path, train, monkeypatch, capsys):
    out, check, updates = tmp_path / "run", DivergenceCheck.check, []

    def refuse(guard, update):
        updates.append(update)
        check(guard, replace(update, loss=math.nan) if len(updates) == 4 else update)

    options = ("--train.batches", 4, "--train.save_seconds", 0, "--train.evaluate_every", 100)
    with monkeypatch.context() as patch:
        patch.setattr(DivergenceCheck, "check", refuse)
        assert run(out, *options) == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert re.search(r"error: the loss became nan in batch 1, step 1: .*diverged.json", err)
    report = json.loads((out / "diverged.json").read_text())
    assert {"batch", "step", "loss", "gradient_norm", "learning_rate", "beta", "last_batches"} <= report.keys()
    saved_state, diverged_state = (load_file(out / f"{name}.safetensors") for name in ("state", "diverged"))
    assert int(saved_state["optimizer/num_updates"]) == 2  # this state was saved at the end of batch 0
    assert int(diverged_state["optimizer/num_updates"]) == 3  # this state is the one before the update that diverged
    assert not (out / "results.json").exists()
    assert train(out, *options, "--resume") == 0  # without the patch the update does not diverge
    assert not list(out.glob("diverged*"))


def test_a_diverging_update_is_not_made(tmp_path, capsys):
    out = tmp_path / "run"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert run(out, "--train.batches", 4, "--optim.lr", 1e30) == 2
    assert not (out / "state.safetensors").exists()  # the first update diverged, so no good state was saved
    state = load_file(out / "diverged.safetensors")
    assert all(v.isfinite().all() for v in state.values() if v.is_floating_point())


def test_an_incomplete_log_line_is_dropped_on_resuming(tmp_path, train):
    out = tmp_path / "run"
    assert train(out, "--train.batches", 2) == 0
    with (out / "metrics.jsonl").open("a") as f:
        f.write('{"batch": 1}\n{"batch": 2, "recons')
    (out / ".state.unfinished-0a1b2c3d.safetensors").write_text("what a killed writer left")
    (out / ".my-settings.json").write_text("of somebody else")
    assert train(out, "--train.batches", 3, "--resume") == 0
    assert [row["batch"] for row in rows(out)] == [0, 1, 2]
    assert {path.name for path in out.glob(".*")} == {".lock", ".my-settings.json"}


def test_a_full_disk_ends_the_run_in_one_line_and_the_last_state_can_be_resumed(tmp_path, train, monkeypatch, capsys):
    out = tmp_path / "run"
    assert train(out, "--train.batches", 2) == 0
    before = (out / "state.safetensors").read_bytes()

    def fail_on_state(handle):
        if "state" in os.readlink(f"/proc/self/fd/{handle}"):
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail_on_state)
        assert train(out, "--train.batches", 4, "--train.save_seconds", 0, "--resume") == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert err == f"error: cannot write {out / 'state.safetensors'}: No space left on device"
    assert (out / "state.safetensors").read_bytes() == before
    assert not [p for p in out.glob(".*") if p.name != ".lock"]
    assert train(out, "--train.batches", 4, "--resume") == 0


@pytest.mark.slow
def test_killed_runs_end_as_an_unbroken_one(tmp_path, monkeypatch):
    lines = iter((3, 60))  # kill a run at these lines of its log: one is before the on-policy part, one in it

    def in_training(out, after):
        line_count, process = next(lines), subprocess.Popen(survive.command(out), env=survive.environ())
        log = out / "metrics.jsonl"
        while not log.exists() or len(log.read_bytes().splitlines()) < line_count:
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
        process.wait()
        return True

    monkeypatch.setattr(survive, "run_and_kill", in_training)
    assert cli(survive.main, "--kills", 2, "--out", tmp_path / "survive.json") == 0
    summary = json.loads((tmp_path / "survive.json").read_text())
    assert summary["identical"] == summary["kills"] == 2
    assert all(0 < t["saved_batch"] < survive.SETTINGS["train.batches"] for t in summary["trials"])
    assert not any(t["left_over"] for t in summary["trials"])
