"""Names for models, priors, guides and tasks, so that a run is a line of words.

``MODELS.get("gram")`` imports the home package on first use and returns the registered class. A name with a colon,
``"mypkg.mymodel:MyModel"``, is a dotted path to a class that needs no registration. Checkpoints store these names,
never module paths of this repository.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any, TypeVar

from pyro_gram.checks import did_you_mean
from pyro_gram.errors import ConfigError

C = TypeVar("C", bound=type)


class Registry:
    """A lazy mapping from names to classes.

    Args:
        kind: what is registered, for messages ("model").
        home: the package to look in; every module in it is imported once.
    """

    def __init__(self, kind: str, home: str) -> None:
        self.kind = kind
        self._home = home
        self._classes: dict[str, type] = {}
        self._loaded = False

    def register(self, name: str) -> Callable[[C], C]:
        """Class decorator. Raises ConfigError where another class holds ``name`` already."""

        def decorate(cls: C) -> C:
            held = self._classes.get(name)
            if held is not None and held.__qualname__ != cls.__qualname__:
                raise ConfigError(f"{self.kind} {name!r} is already registered by {held.__module__}.{held.__name__}")
            self._classes[name] = cls
            cls.registered_name = name  # type: ignore[attr-defined]
            return cls

        return decorate

    def names(self) -> list[str]:
        """All registered names, sorted."""
        self._load()
        return sorted(self._classes)

    def get(self, name: str) -> Any:
        """The class called ``name``, or the one at the dotted path ``package.module:Class``.

        Raises:
            ConfigError: no such name, module or attribute.
        """
        if not isinstance(name, str):
            raise ConfigError(f"the name of a {self.kind} must be a word, not {name!r}")
        if ":" in name:
            return self._by_path(name)
        self._load()
        try:
            return self._classes[name]
        except KeyError:
            known = ", ".join(sorted(self._classes)) or "none"
            raise ConfigError(
                f"unknown {self.kind} {name!r}; known: {known}; or give your own as package.module:Class"
                f"{did_you_mean(name, self._classes)}"
            ) from None

    def _by_path(self, path: str) -> type:
        module_name, _, attribute = path.partition(":")
        if not all(word.isidentifier() for word in (*module_name.split("."), attribute)):
            raise ConfigError(f"{self.kind} {path!r} is no path of the form package.module:Class")
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as e:
            if e.name and (module_name == e.name or module_name.startswith(e.name + ".")):
                raise ConfigError(f"{self.kind} {path!r}: no module named {e.name!r} on the Python path") from None
            raise
        found = getattr(module, attribute, None)
        if not isinstance(found, type):
            raise ConfigError(f"{self.kind} {path!r}: {module_name} has no class {attribute!r}")
        return found

    def _load(self) -> None:
        if self._loaded:
            return
        package = importlib.import_module(self._home)
        for info in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{package.__name__}.{info.name}")
        self._loaded = True


MODELS = Registry("model", "pyro_gram.models")
PRIORS = Registry("prior", "pyro_gram.models")
GUIDES = Registry("guide", "pyro_gram.guides")
TASKS = Registry("task", "pyro_gram.tasks")
