"""Guides. Import them from ``pyro_gram.guides``."""

if __name__ == "guides":  # under a second name, a second copy of each class would replace the first in the registry
    raise ImportError("import this package as pyro_gram.guides: it has no other name")
