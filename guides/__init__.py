"""Guides. Import them from ``pyro_gram.guides``."""

if __name__ == "guides":  # a second import would replace each class in the registry by a copy
    raise ImportError("import this package as pyro_gram.guides: it has no other name")
