"""Files of data sets are found in a data folder or downloaded. The tests download from a server on this machine."""

import functools
import gc
import gzip
import hashlib
import http.server
import sys
import threading

import pytest

from pyro_gram.errors import ConfigError
from pyro_gram.system.download import data_folder, download, find_file

CONTENT = b"question,answer\n" * 1000


class RecordingHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        self.server.requests.append(self.path)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    pooch = pytest.importorskip("pooch")
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / "cache" / name)
    return tmp_path / "cache" / "pyro_gram"


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "train.csv").write_bytes(CONTENT)
    handler = functools.partial(RecordingHandler, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as http_server:
        http_server.requests = []
        http_server.url = f"http://127.0.0.1:{http_server.server_address[1]}"
        thread = threading.Thread(target=http_server.serve_forever)
        thread.start()
        yield http_server
        http_server.shutdown()
        thread.join()


@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
def test_a_file_is_downloaded_once_with_a_progress_bar_on_stderr(server, cache, capsys, algorithm):
    digest = hashlib.new(algorithm, CONTENT).hexdigest()
    known_hash = digest if algorithm == "sha256" else f"md5:{digest}"
    path = download(f"{server.url}/train.csv", known_hash, "sudoku/train.csv")
    assert path == cache / "sudoku" / "train.csv"
    assert path.read_bytes() == CONTENT
    output = capsys.readouterr()
    assert "100%" in output.err
    assert output.out == ""
    assert download(f"{server.url}/train.csv", known_hash, "sudoku/train.csv") == path
    assert server.requests == ["/train.csv"]


def test_a_damaged_file_in_the_cache_is_downloaded_again(server, cache):
    known_hash = hashlib.sha256(CONTENT).hexdigest()
    path = download(f"{server.url}/train.csv", known_hash, "train.csv")
    path.write_bytes(CONTENT[:100])
    assert download(f"{server.url}/train.csv", known_hash, "train.csv").read_bytes() == CONTENT


def test_a_wrong_checksum_leaves_no_file_behind(server, cache):
    with pytest.raises(ConfigError, match="checksum is not the expected one.*--data-dir") as error:
        download(f"{server.url}/train.csv", "0" * 64, "sudoku/train.csv")
    assert "sudoku/train.csv from http://127.0.0.1" in str(error.value)
    assert "\n" not in str(error.value)
    assert [p for p in cache.rglob("*") if p.is_file()] == []


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # pooch leaves the response of a 404 open
def test_a_missing_file_is_reported_in_one_line(server, cache):
    with pytest.raises(ConfigError, match="cannot download gone.csv from .*404.*--data-dir") as error:
        download(f"{server.url}/gone.csv", "0" * 64, "gone.csv")
    assert "\n" not in str(error.value)
    del error
    gc.collect()


def test_a_missing_network_is_reported_in_one_line(server, cache):
    server.shutdown()
    server.server_close()
    with pytest.raises(
        ConfigError, match="cannot download train.csv from http://127.*: no connection; .*--data-dir"
    ) as error:
        download(f"{server.url}/train.csv", "0" * 64, "train.csv")
    assert "\n" not in str(error.value)


def test_without_pooch_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[all\]'"):
        download("http://127.0.0.1/train.csv", "0" * 64, "train.csv")


def test_find_file_prefers_earlier_names_and_the_subfolder_plain_or_gzipped(tmp_path):
    assert find_file(str(tmp_path), "sudoku/train.csv") is None
    (tmp_path / "other.csv").write_text("")
    assert find_file(str(tmp_path), "sudoku/train.csv", "sudoku/other.csv") == tmp_path / "other.csv"
    (tmp_path / "train.csv.gz").write_bytes(gzip.compress(b""))
    assert find_file(str(tmp_path), "sudoku/train.csv", "sudoku/other.csv") == tmp_path / "train.csv.gz"
    (tmp_path / "sudoku").mkdir()
    (tmp_path / "sudoku" / "train.csv").write_text("")
    assert find_file(str(tmp_path), "sudoku/train.csv") == tmp_path / "sudoku" / "train.csv"


def test_the_environment_variable_names_the_folder_if_no_argument_does(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("")
    monkeypatch.delenv("PYRO_GRAM_DATA", raising=False)
    assert data_folder(None) is None
    assert find_file(None, "file") is None
    monkeypatch.setenv("PYRO_GRAM_DATA", str(tmp_path / "a"))
    assert find_file(None, "file") == tmp_path / "a" / "file"
    assert find_file(str(tmp_path / "b"), "file") == tmp_path / "b" / "file"


def test_a_data_folder_that_is_not_a_directory_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "gone", tmp_path / "file", ""):
        with pytest.raises(ConfigError, match=f"--data-dir '{folder}' is not a directory"):
            find_file(str(folder), "train.csv")
    monkeypatch.setenv("PYRO_GRAM_DATA", str(tmp_path / "gone"))
    with pytest.raises(ConfigError, match="PYRO_GRAM_DATA .*gone' is not a directory"):
        find_file(None, "train.csv")
