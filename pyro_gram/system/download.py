"""Find files of data sets in the user's data folder, or download them once and check their checksum."""

from __future__ import annotations

import os
from pathlib import Path

from pyro_gram.errors import ConfigError

DATA_VARIABLE = "PYRO_GRAM_DATA"


def data_folder(data_dir: str | None) -> Path | None:
    """Return the user's data folder: ``data_dir`` if given, else the environment variable ``PYRO_GRAM_DATA``.

    Returns:
        the folder; None if neither is set.

    Raises:
        ConfigError: the named folder is not a directory.
    """
    source, folder = "--data-dir", data_dir
    if folder is None:
        source, folder = DATA_VARIABLE, os.environ.get(DATA_VARIABLE)
        if not folder:
            return None
    path = Path(folder).expanduser()
    if not folder or not path.is_dir():
        raise ConfigError(f"{source} {folder!r} is not a directory")
    return path


def find_file(data_dir: str | None, *names: str) -> Path | None:
    """Return the first file of the data folder that has one of ``names``, plain or with ``.gz`` added; else None.

    Args:
        data_dir: the data folder; None for the folder that ``PYRO_GRAM_DATA`` names, if any.
        names: the names in order of preference; for ``"sudoku/train.csv"``, that path and then ``train.csv`` are tried.

    Raises:
        ConfigError: the folder is not a directory.
    """
    folder = data_folder(data_dir)
    if folder is None:
        return None
    for name in names:
        for relative_path in dict.fromkeys((name, Path(name).name)):
            for path in (folder / relative_path, folder / f"{relative_path}.gz"):
                if path.is_file():
                    return path
    return None


def download(url: str, known_hash: str, name: str) -> Path:
    """Download a file to the cache, with a progress bar. A file that is already in the cache is not downloaded again.

    Args:
        url: the address of the file.
        known_hash: the SHA-256 of the file; or the name of another digest, a colon and the digest (``md5:...``).
        name: the path of the file in the cache; may contain a subfolder.

    Returns:
        the path of the downloaded file.

    Raises:
        ConfigError: the download fails, or the checksum differs. The message says how to get the file by other means.
    """
    try:
        import pooch
    except ImportError:
        raise ConfigError(
            f"downloading {name} needs the package pooch: pip install -e '.[all]', or name a folder that holds "
            "the file with --data-dir"
        ) from None
    pooch.get_logger().setLevel("WARNING")  # the progress bar is enough
    try:
        return Path(
            pooch.retrieve(
                url,
                known_hash,
                fname=name,
                path=pooch.os_cache("pyro_gram"),
                downloader=pooch.HTTPDownloader(progressbar=True, timeout=30),
            )
        )
    except (OSError, ValueError) as e:  # requests raises OSErrors; for a wrong checksum pooch raises ValueError
        if isinstance(e, ValueError) and "hash" in str(e):
            reason = "its checksum is not the expected one"
        elif type(e).__name__ in ("ConnectionError", "ConnectTimeout"):  # the text of these errors is half a page
            reason = "no connection"
        else:
            reason = " ".join(str(e).split())[:200]
        raise ConfigError(
            f"cannot download {name} from {url}: {reason}; get the file by other means and name its folder with "
            f"--data-dir (or {DATA_VARIABLE})"
        ) from None
