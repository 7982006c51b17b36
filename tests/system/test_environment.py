"""Programs work without some modules, with closed streams, refused system calls, or variables of a launcher."""

import math
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import experiments.run
from pyro_gram.system import machine, rendezvous
from pyro_gram.system.cli import StopOnSignal, call
from pyro_gram.system.files import write_json
from pyro_gram.tasks import batches as stream
from tests.conftest import ROOT
from tests.experiments.small_run import SMALL, cli, results

LAUNCHER = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")


@pytest.fixture(autouse=True)
def _single_process(monkeypatch):
    for name in LAUNCHER:
        monkeypatch.delenv(name, raising=False)


def error_of(capsys):
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1, err
    return err


# ---- systems -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_memory_is_unknown_on_a_system_without_the_module_resource(monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)  # Windows has no such module
    monkeypatch.setattr(pathlib.Path, "read_text", lambda *_, **__: (_ for _ in ()).throw(FileNotFoundError()))
    assert math.isnan(machine.peak_memory_mb())
    assert math.isnan(machine.resident_memory_mb())
    modules = "pyro_gram.runs.run, experiments.bench.bench, experiments.run"
    code = f"import sys; sys.modules['resource'] = None; import {modules}"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert process.returncode == 0, process.stderr


def test_files_are_written_where_chmod_is_refused(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "chmod", refuse)
    monkeypatch.setattr(pathlib.Path, "chmod", refuse)
    write_json(tmp_path / "a.json", [1])
    assert (tmp_path / "a.json").read_text() == "[\n  1\n]\n"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


class Word(int):
    """An integer that cannot be shifted right by a Python integer, like an unsigned integer of NumPy 1.26."""

    def __rshift__(self, other):
        raise TypeError("ufunc 'right_shift' not supported for the input types")


def test_seeds_are_the_same_under_every_numpy(monkeypatch):
    seeds = [3291213472928352369, 3153263424282473045]
    assert [stream.generator_for(0, 3).initial_seed(), stream.derive_seed(1, 2)] == seeds
    original_sequence = np.random.SeedSequence

    class Words:
        def __init__(self, key):
            self.key = key

        def generate_state(self, *arguments):
            return [Word(w) for w in original_sequence(self.key).generate_state(*arguments)]

    monkeypatch.setattr(np.random, "SeedSequence", Words)
    assert [stream.generator_for(0, 3).initial_seed(), stream.derive_seed(1, 2)] == seeds


def test_a_run_works_in_a_thread_of_another_program(tmp_path):
    codes = []
    arguments = [*SMALL, "--train.batches", 4, "--out", tmp_path / "run"]
    thread = threading.Thread(target=lambda: codes.append(cli(experiments.run.main, *arguments)))
    thread.start()
    thread.join()
    assert codes == [0]
    assert results(tmp_path / "run")["batches"] == 4


def test_a_signal_handler_that_python_did_not_set_does_no_harm(monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda number, handler: None if callable(handler) else handler)
    assert call(lambda argv: 0, []) == 0
    with StopOnSignal() as stop:
        assert stop.signal is None


@pytest.mark.slow
@pytest.mark.parametrize("redirections", ["2>&-", "<&- >&- 2>&-"])
def test_a_program_works_with_closed_streams(redirections, tmp_path):
    (tmp_path / "graphs").write_text("GCR`v_\n" * 2)
    arguments = [
        str(ROOT / "experiments" / "solve.py"),
        "--checkpoint",
        str(ROOT / "checkpoints" / "coloring.safetensors"),
    ]
    arguments += ["--input", "graphs", "--num-samples", "2", "--figure", "solved.png"]
    process = subprocess.run(
        ["sh", "-c", f'exec "$@" {redirections}', "sh", sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.returncode == 0, process.stderr[-2000:]
    assert (tmp_path / "solved.png").stat().st_size > 1000
    assert not process.stderr


# ---- launchers ---------------------------------------------------------------------------------------------------


SETTINGS = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"RANK": None, "MASTER_ADDR": None, "MASTER_PORT": None},
            "WORLD_SIZE=2 is set without RANK, MASTER_ADDR, MAS",
        ),
        (
            {"WORLD_SIZE": ""},
            "the environment variable WORLD_SIZE is '', not a whole number from 1 to 1,000,000: unset it",
        ),
        ({"WORLD_SIZE": "1" * 5000}, "WORLD_SIZE is '11111111111111111111'"),
        ({"MASTER_ADDR": "not..a..host"}, "MASTER_ADDR='not..a..host' is not the name of a machine"),
        ({"MASTER_ADDR": "no-such-machine.invalid"}, "MASTER_ADDR='no-such-machine.invalid' cannot be found"),
        ({"WORLD_SIZE": "-1"}, "WORLD_SIZE is '-1'"),
        ({"RANK": "2"}, "RANK=2 is too high: the 2 processes"),
        ({"MASTER_PORT": "99999"}, "MASTER_PORT=99999 is not a port"),
        ({"LOCAL_RANK": ""}, "LOCAL_RANK is ''"),
        ({"TORCHELASTIC_RESTART_COUNT": "many"}, "TORCHELASTIC_RESTART_COUNT is 'many'"),
    ],
)
def test_wrong_variables_of_a_launcher_are_named_in_one_line(changes, message, tmp_path, monkeypatch, capsys):
    for name, value in {**SETTINGS, **changes}.items():
        if value is not None:
            monkeypatch.setenv(name, value)
    assert cli(experiments.run.main, *SMALL, "--out", tmp_path / "run") == 2
    assert message in error_of(capsys)
    assert not (tmp_path / "run").exists()


def start_process(tmp_path, rank, port, join_seconds=300.0, notice_seconds=0.5):
    """Start one of the two processes of a run. Its waiting times are set in code, because no option sets them."""
    code = (
        "import sys; from datetime import timedelta; from pyro_gram.system import rendezvous as r;"
        "import experiments.run as e;"
        "from pyro_gram.system.cli import call; from pyro_gram.system.distributed import leave;"
        f"r.JOIN_TIMEOUT, r.NOTICE_SECONDS = timedelta(seconds={join_seconds}), {notice_seconds};"
        "sys.exit(leave(call(e.main, sys.argv[1:], distributed=True)))"
    )
    variables = {**SETTINGS, "RANK": str(rank), "MASTER_PORT": str(port)}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, SMALL), "--train.batches", "2", "--out", str(tmp_path / "run")],
        env={**os.environ, **variables, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def port():
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "other"), [(1, "process 0 of 2")])
def test_a_process_that_never_joins_ends_the_run_within_the_limit(rank, other, tmp_path, port):
    waiting_process = start_process(tmp_path, rank, port, join_seconds=2.0, notice_seconds=60)
    _, err = waiting_process.communicate(timeout=60)
    assert waiting_process.returncode == 2
    assert f"error: {other} has not joined at localhost:{port} within 0.0333333 minutes" in err
    assert len(err.splitlines()) == 1, err


@pytest.mark.parametrize(("rank", "other"), [(0, "process 1 of 2")])
def test_a_signal_ends_the_wait_at_once(rank, other, tmp_path, port):
    waiting_process = start_process(tmp_path, rank, port)
    try:
        assert waiting_process.stderr is not None
        assert waiting_process.stderr.readline() == f"waiting for {other} at localhost:{port}, 5 minutes at the most\n"
        waiting_process.send_signal(signal.SIGTERM)
        start = time.monotonic()
        assert waiting_process.wait(timeout=20) == 128 + signal.SIGTERM
        assert time.monotonic() - start < 10
        assert waiting_process.stderr.read() == "interrupted\n"
    finally:
        waiting_process.kill()
        waiting_process.communicate()


@pytest.mark.slow
def test_a_process_that_joins_late_is_waited_for(tmp_path, port):
    first = start_process(tmp_path, 0, port)
    assert first.stderr is not None
    assert "waiting for process 1 of 2" in first.stderr.readline()
    second = start_process(tmp_path, 1, port)
    for process in (first, second):
        _, err = process.communicate(timeout=400)
        assert process.returncode == 0, err
    assert results(tmp_path / "run")["processes"] == 2


def test_a_port_that_is_taken_is_named(tmp_path):
    with socket.socket() as s:
        s.bind(("0.0.0.0", 0))
        s.listen()
        process = start_process(tmp_path, 0, s.getsockname()[1])
        _, err = process.communicate(timeout=60)
        assert process.returncode == 2
        assert f"port {s.getsockname()[1]} of localhost is taken by another program: set MASTER_PORT" in err
        assert len([line for line in err.splitlines() if line.startswith("error")]) == 1
        assert "Traceback" not in err


def test_the_main_process_alone_runs_a_program_that_is_not_distributed(monkeypatch):
    ranks = []
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    for rank in ("0", "1", "7"):
        monkeypatch.setenv("RANK", rank)
        assert call(lambda argv, rank=rank: ranks.append(rank) or 0, []) == 0
    assert ranks == ["0"]
    assert call(lambda argv: ranks.append("all") or 0, [], distributed=True) == 0
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")  # only RANK is left over in the environment
    assert call(lambda argv: ranks.append("left over") or 0, []) == 0
    assert ranks == ["0", "all", "left over"]


@pytest.mark.slow
def test_solving_under_a_launcher_prints_once(tmp_path):
    (tmp_path / "graphs").write_text("GCR`v_\n")
    script = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--nproc-per-node=2"]
    script += [str(ROOT / "experiments" / "solve.py")]
    script += ["--checkpoint", str(ROOT / "checkpoints" / "coloring.safetensors"), "--input", "graphs"]
    process = subprocess.run(
        [*script, "--num-samples", "2", "--json"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert process.returncode == 0, process.stderr[-2000:]
    assert len(process.stdout.splitlines()) == 1


@pytest.mark.parametrize("option", ["--local-rank=1", "--local_rank=1"])
def test_the_option_of_the_old_launcher_sets_the_local_rank(option, monkeypatch, capsys):
    assert cli(experiments.run.main, option, "--task", "coloring", "--preset", "tiny", "--list-split", "test") == 0
    assert os.environ.pop("LOCAL_RANK") == "1"
    assert capsys.readouterr().out


def test_a_changed_option_is_named_when_a_run_is_resumed(tmp_path, capsys):
    out, arguments = tmp_path / "run", [*SMALL, "--train.batches", 2]
    assert cli(experiments.run.main, *arguments, "--out", out) == 0
    capsys.readouterr()
    for option, message in {
        "--optim.lr=0.5": "optim.lr: 0.004 then, 0.5 now",
        "--seed=3": "seed: 0 then, 3 now",
        "--beta.start=3": "beta.start",
        "--prior=flow": "names.prior: gaussian then, flow now",
        "--model.layers=2": "model.layers",
    }.items():
        assert cli(experiments.run.main, *arguments, "--out", out, "--resume", option) == 2
        err = error_of(capsys)
        assert message in err, err
        assert "cannot be loaded" not in err


def test_the_join_timeout_is_between_one_and_ten_minutes():
    assert 60 <= rendezvous.JOIN_TIMEOUT.total_seconds() <= 600
