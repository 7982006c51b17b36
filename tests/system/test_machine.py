"""What results say of the code that made them."""

import subprocess
import time
from pathlib import Path

import pytest

from pyro_gram.system import machine
from pyro_gram.system.machine import environment, revision
from tests.conftest import ROOT


def git(folder, *words):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", str(folder), *identity, *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path):
    """A repository with one commit."""
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
def test_code_that_was_changed_or_added_is_told_and_other_files_are_not(path, modified, checkout):
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


def test_it_is_asked_for_once_so_that_a_run_says_what_it_began_with(checkout):
    before = revision(checkout)
    (checkout / "models" / "gram.py").write_text("2\n")
    git(checkout, "commit", "-qam", "two")
    assert revision(checkout) == before


def test_an_installed_package_within_another_repository_has_none(checkout):
    installed = checkout / "venv" / "site-packages"
    installed.mkdir(parents=True)
    assert revision(installed) == (None, None)


def test_a_folder_without_a_commit_has_none(tmp_path):
    git(tmp_path, "init", "-q")
    assert revision(tmp_path) == (None, None)


def test_without_git_there_is_none(checkout, monkeypatch):
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


def test_the_environment_of_every_results_file_holds_it():
    found = environment()
    assert (found["revision"], found["modified"]) == revision()
    if (ROOT / ".git").exists() and Path(machine.__file__).is_relative_to(ROOT):
        assert found["revision"] == git(ROOT, "rev-parse", "HEAD")
