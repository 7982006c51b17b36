"""Models and priors. Import them from ``pyro_gram.models``."""

if __name__ == "models":  # a second copy of each class would take the place of the first
    raise ImportError("import this package as pyro_gram.models: it has no other name")
