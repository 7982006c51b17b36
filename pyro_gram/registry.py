"""Registries map names to the classes of models, priors, guides and tasks, so that a command line can name them.

``MODELS.get("gram")`` imports ``pyro_gram.models.gram`` and returns the class that it registers. A name with a colon,
``"mypkg.mymodel:MyModel"``, is the path of a class that needs no registration. Checkpoints store these names, never
module paths of this repository.
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
    """Map names to classes. The module of a class is imported when its name is first looked up.

    >>> registry = Registry("thing", "pyro_gram.tasks")
    >>> @registry.register("example")
    ... class Example:
    ...     pass
    >>> registry.get("example").registered_name
    'example'

    Args:
        kind: the kind of class, for error messages ("model").
        home: the package whose modules register classes.
    """

    def __init__(self, kind: str, home: str) -> None:
        self.kind = kind
        self._home = home
        self._classes: dict[str, type] = {}

    def register(self, name: str) -> Callable[[C], C]:
        """Return a class decorator that registers the class as ``name``.

        Raises:
            ConfigError: another class is registered under ``name``.
        """

        def decorate(cls: C) -> C:
            owner = self._classes.get(name)
            if owner is not None and owner.__qualname__ != cls.__qualname__:
                raise ConfigError(f"{self.kind} {name!r} is already registered by {owner.__module__}.{owner.__name__}")
            self._classes[name] = cls
            cls.registered_name = name  # type: ignore[attr-defined]
            return cls

        return decorate

    def names(self) -> list[str]:
        """Import every module of the home package and return all registered names, sorted."""
        for module in self._modules():
            importlib.import_module(f"{self._home}.{module}")
        return sorted(self._classes)

    def get(self, name: str) -> Any:
        """Return the class registered as ``name``, or the class at a path ``package.module:Class``.

        The module called ``name`` is imported first. If ``name`` is still unknown, all modules of the home
        package are imported.

        Raises:
            ConfigError: there is no such name, module or class.
        """
        if not isinstance(name, str):
            raise ConfigError(f"the name of a {self.kind} must be a word, not {name!r}")
        if ":" in name:
            return self._class_at(name)
        if name in self._modules():
            importlib.import_module(f"{self._home}.{name}")
        cls = self._classes.get(name)
        if cls is not None and cls.__module__.startswith(f"{self._home}."):
            return cls
        names = self.names()
        if name not in self._classes:
            raise ConfigError(
                f"unknown {self.kind} {name!r}; known: {', '.join(names) or 'none'}; "
                f"or give your own as package.module:Class{did_you_mean(name, names)}"
            )
        return self._classes[name]

    def _class_at(self, path: str) -> type:
        module_name, _, class_name = path.partition(":")
        if not all(word.isidentifier() for word in (*module_name.split("."), class_name)):
            raise ConfigError(f"{self.kind} {path!r} is not a path of the form package.module:Class")
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as e:
            if e.name and (module_name == e.name or module_name.startswith(e.name + ".")):
                raise ConfigError(f"{self.kind} {path!r}: no module named {e.name!r} on the Python path") from None
            raise
        cls = getattr(module, class_name, None)
        if not isinstance(cls, type):
            raise ConfigError(f"{self.kind} {path!r}: {module_name} has no class {class_name!r}")
        return cls

    def _modules(self) -> list[str]:
        """List the modules of the home package, without importing them."""
        package = importlib.import_module(self._home)
        return [module.name for module in pkgutil.iter_modules(package.__path__)]


MODELS = Registry("model", "pyro_gram.models")
PRIORS = Registry("prior", "pyro_gram.models.priors")
GUIDES = Registry("guide", "pyro_gram.guides")
TASKS = Registry("task", "pyro_gram.tasks")
