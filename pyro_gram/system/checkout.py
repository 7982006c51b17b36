"""A checkout keeps ``models`` and ``guides`` beside the package; a wheel keeps them in it. They have one name in both.

Bare names would find a user's own ``models`` as soon as that lies further up the path.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
PARTS = {"pyro_gram.models": ROOT / "models", "pyro_gram.guides": ROOT / "guides"}


class PartsFinder(MetaPathFinder):
    """Finds ``pyro_gram.models`` and ``pyro_gram.guides`` in the folders beside the package."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The place of one of :data:`PARTS`; None for every other name, and where the folder is missing."""
        folder = PARTS.get(fullname)
        if folder is None or not (folder / "__init__.py").is_file():
            return None
        return spec_from_file_location(fullname, folder / "__init__.py", submodule_search_locations=[str(folder)])


def add_finder() -> None:
    """Let Python import the parts of a checkout. It asks last: the parts inside a wheel's package come first."""
    if not any(type(finder).__name__ == "PartsFinder" for finder in sys.meta_path):
        sys.meta_path.append(PartsFinder())
