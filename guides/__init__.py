"""Guides. Import them from ``pyro_gram.guides``."""

if __name__ == "guides":  # a second copy of each class would take the place of the first
    raise ImportError("import this package as pyro_gram.guides: it has no other name")
