"""Unknown devices are refused, and results name the git commit of the code."""

import subprocess
import time
from pathlib import Path

import pytest

from pyro_gram.errors import ConfigError
from pyro_gram.system import machine
from pyro_gram.system.machine import device_type, environment, pick_device, revision
from tests.conftest import ROOT

# ---- devices and memory ---------------------------------------------------------------------------------------------


def test_a_device_that_is_missing_or_unknown_is_refused(monkeypatch):
    assert pick_device("cpu").type == "cpu"
    assert device_type("cuda:3") == "cuda"  # even if this machine has no such device
    with pytest.raises(ConfigError, match="no device 'gpu': give cpu, cuda or mps"):
        device_type("gpu")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match="no device 'cuda' here; available: cpu"):
        pick_device("cuda")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(ConfigError, match="no device 'cuda:1' here: this machine has 1 of cuda"):
        pick_device("cuda:1")


# ---- the git commit -------------------------------------------------------------------------------------------------


def git(folder, *arguments):
    settings = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *settings, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path):
    """Make a repository with one commit."""
    git(tmp_path, "init", "-q")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "gram.py").write_text("1\n")
    (tmp_path / "README.md").write_text("words\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "one")
    return tmp_path


def test_the_revision_is_the_commit_that_is_checked_out(checkout):
    assert revision(checkout) == (git(checkout, "rev-parse", "HEAD"), False)


@pytest.mark.parametrize(
    ("path", "modified"),
    [("models/gram.py", True), ("models/new.py", True), ("new/presets.toml", True), ("README.md", False)],
)
def test_code_that_was_changed_or_added_counts_as_modified_and_other_files_do_not(path, modified, checkout):
    (checkout / path).parent.mkdir(exist_ok=True)
    (checkout / path).write_text("2\n")
    assert revision(checkout) == (git(checkout, "rev-parse", "HEAD"), modified)


def test_a_worktree_has_its_own_revision(checkout, tmp_path_factory):
    other = tmp_path_factory.mktemp("other") / "tree"
    git(checkout, "worktree", "add", "-q", str(other))
    (other / "models" / "gram.py").write_text("2\n")
    git(other, "commit", "-qam", "two")
    assert revision(other) == (git(other, "rev-parse", "HEAD"), False)
    assert revision(other)[0] != revision(checkout)[0]


def test_the_revision_is_read_once_so_a_run_reports_the_code_that_it_began_with(checkout):
    before = revision(checkout)
    (checkout / "models" / "gram.py").write_text("2\n")
    git(checkout, "commit", "-qam", "two")
    assert revision(checkout) == before


def test_an_installed_package_within_another_repository_has_no_revision(checkout):
    package_folder = checkout / "venv" / "site-packages"
    package_folder.mkdir(parents=True)
    assert revision(package_folder) == (None, None)


def test_a_repository_without_a_commit_has_no_revision(tmp_path):
    git(tmp_path, "init", "-q")
    assert revision(tmp_path) == (None, None)


def test_without_git_there_is_no_revision(checkout, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert revision(checkout) == (None, None)


def test_a_git_that_does_not_answer_is_not_waited_for(checkout, tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("bin")
    (folder / "git").write_text("#!/bin/sh\nexec sleep 30\n")
    (folder / "git").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    monkeypatch.setattr(machine, "GIT_TIMEOUT", 0.2)
    start = time.monotonic()
    assert revision(checkout) == (None, None)
    assert time.monotonic() - start < 10


def test_the_environment_names_the_revision():
    versions = environment()
    assert (versions["revision"], versions["modified"]) == revision()
    if (ROOT / ".git").exists() and Path(machine.__file__).is_relative_to(ROOT):
        assert versions["revision"] == git(ROOT, "rev-parse", "HEAD")
